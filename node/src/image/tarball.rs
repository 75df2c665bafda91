//! A tar reader for bytes nobody vouches for: every header is bounded before it is held in memory.
//!
//! It reads ustar, GNU (long names, base-256 numbers) and PAX (with binary values). Where readers disagree it
//! sides with the writers of images: empty numbers are zero, and links, directories and pipes carry no data
//! whatever their size field says. Sparse files and multi-volume archives are refused.

use std::collections::BTreeMap;
use std::io::{self, Read};

const BLOCK: usize = 512;
/// The largest long name or set of PAX records.
const EXTENSION_MAX: u64 = 1 << 20;
/// The longest path or link target, as the kernel has it.
const PATH_MAX: usize = 4096;
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    Device,
    Directory,
    Fifo,
}

/// One entry's header, extensions applied.
#[derive(Debug)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// The target of a link.
    pub link: Vec<u8>,
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Bytes of data that follow.
    pub size: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    /// The path for messages.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.path[..self.path.len().min(200)]).into_owned()
    }
}

/// Reads entries one after the other. Between two calls of [`Reader::next`] it is a [`Read`] of the entry's data.
pub struct Reader<R> {
    inner: R,
    /// Data of the current entry not read yet.
    left: u64,
    /// Zeros between that data and the next header.
    padding: u64,
    globals: Records,
    done: bool,
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl<R: Read> Reader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, globals: Records::new(), done: false }
    }

    /// The underlying reader, somewhere behind the last entry.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the end of the archive.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if this is not a tar archive or one of a kind that is not read here,
    /// [`io::ErrorKind::UnexpectedEof`] if it is cut off, and whatever the underlying reader says.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        let (mut long_name, mut long_link, mut records) = (None, None, None);
        loop {
            let Some(header) = self.header()? else {
                if long_name.is_some() || long_link.is_some() || records.is_some() {
                    return Err(bad("the archive ends after the header of an entry that never comes"));
                }
                return Ok(None);
            };
            match header[156] {
                b'L' => set_once(&mut long_name, self.extension(&header)?)?,
                b'K' => set_once(&mut long_link, self.extension(&header)?)?,
                b'x' => set_once(&mut records, parse_records(&self.extension(&header)?)?)?,
                b'g' => {
                    let globals = parse_records(&self.extension(&header)?)?;
                    self.globals.extend(globals);
                    if self.globals.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
                        > EXTENSION_MAX as usize
                    {
                        return Err(bad("the archive's global headers are too large"));
                    }
                }
                _ => return self.entry(&header, long_name, long_link, records.unwrap_or_default()).map(Some),
            }
        }
    }

    /// The next header block with a right checksum, or `None` at the end.
    fn header(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        if self.done {
            return Ok(None);
        }
        let skip = self.left + self.padding;
        if io::copy(&mut self.inner.by_ref().take(skip), &mut io::sink())? != skip {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (self.left, self.padding) = (0, 0);

        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => {
                    self.done = true;
                    return Ok(None);
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            self.done = true;
            return Ok(None);
        }
        let sum = |signed: bool| -> i64 {
            let weigh = |byte: u8| if signed { i64::from(byte as i8) } else { i64::from(byte) };
            block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { weigh(*b) }).sum()
        };
        let stated = number(&block[148..156])?;
        if stated != sum(false) && stated != sum(true) {
            return Err(bad("this is not a tar archive, or it is damaged (a header's checksum is wrong)"));
        }
        Ok(Some(block))
    }

    /// The data of a header that only describes the next one.
    fn extension(&mut self, header: &[u8; BLOCK]) -> io::Result<Vec<u8>> {
        let size =
            u64::try_from(number(&header[124..136])?).map_err(|_| bad("a header has a negative size"))?;
        if size > EXTENSION_MAX {
            return Err(bad(format!("an extended header claims {size} bytes, more than {EXTENSION_MAX}")));
        }
        self.expect_data(size);
        let mut data = Vec::new();
        self.read_to_end(&mut data)?;
        Ok(data)
    }

    fn expect_data(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        records: Records,
    ) -> io::Result<Entry> {
        let record = |key: &[u8]| {
            records.get(key).or_else(|| self.globals.get(key)).filter(|value| !value.is_empty()).cloned()
        };
        let decimal = |key: &[u8], field: &[u8]| match record(key) {
            Some(text) => {
                let text = String::from_utf8_lossy(&text).into_owned();
                let whole = text.split('.').next().unwrap_or_default();
                whole.parse::<i64>().map_err(|_| bad(format!("`{text}` is not a number")))
            }
            None => number(field),
        };
        if records.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
            return Err(bad("sparse files are not supported"));
        }

        let path = record(b"path").or(long_name.map(until_nul)).unwrap_or_else(|| name(header));
        let link = record(b"linkpath")
            .or(long_link.map(until_nul))
            .unwrap_or_else(|| until_nul(header[157..257].into()));
        for text in [&path, &link] {
            if text.len() > PATH_MAX || text.contains(&0) {
                return Err(bad("a path is longer than 4096 bytes or contains a zero byte"));
            }
        }
        let kind = match header[156] {
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(bad("sparse files are not supported")),
            other => {
                return Err(bad(format!("entries of type `{}` are not supported", other.escape_ascii())));
            }
        };
        let id = |key: &[u8], field: &[u8]| match decimal(key, field)?.try_into() {
            Ok(u32::MAX) | Err(_) => Err(bad("an owner's number is out of range")),
            Ok(id) => Ok(id),
        };
        let size = match kind {
            Kind::File => u64::try_from(decimal(b"size", &header[124..136])?)
                .map_err(|_| bad("a file has a negative size"))?,
            _ => 0,
        };
        let entry = Entry {
            mode: number(&header[100..108])? as u32 & 0o7777,
            uid: id(b"uid", &header[108..116])?,
            gid: id(b"gid", &header[116..124])?,
            mtime: decimal(b"mtime", &header[136..148])?,
            xattrs: (records.into_iter())
                .filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?.to_vec(), value)))
                .collect(),
            path,
            link,
            kind,
            size,
        };
        self.expect_data(size);
        Ok(entry)
    }
}

/// The current entry's data; an error, not an early end, if the archive is cut off.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T) -> io::Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(bad("two extended headers of one kind describe the same entry")),
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// The name in the header itself, with POSIX's prefix.
fn name(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(header[..100].into());
    let prefix = until_nul(header[345..500].into());
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        [&prefix[..], b"/", &name].concat()
    } else {
        name
    }
}

/// A number in octal or, with the high bit set, in base 256. Nothing at all is zero.
fn number(field: &[u8]) -> io::Result<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let first = if negative { i64::from(field[0] | 0x80) - 256 } else { i64::from(field[0] & 0x3f) };
        return field[1..]
            .iter()
            .try_fold(first, |value, byte| {
                value.checked_mul(256).and_then(|value| value.checked_add(i64::from(*byte)))
            })
            .ok_or_else(|| bad("a number in a header is out of range"));
    }
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
    if text.is_empty() {
        return Ok(0);
    }
    let text = std::str::from_utf8(text).ok().filter(|text| !text.starts_with(['+', '-']));
    text.and_then(|text| i64::from_str_radix(text, 8).ok()).ok_or_else(|| {
        bad("this is not a tar archive, or it is damaged (a header has no number where one belongs)")
    })
}

/// PAX records: `length key=value\n`, where only the length tells the end of the value.
fn parse_records(mut data: &[u8]) -> io::Result<Records> {
    let malformed = || bad("a PAX header is malformed");
    let mut records = Records::new();
    while data.first().is_some_and(|byte| *byte != 0) {
        let space = data.iter().take(20).position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length: usize = std::str::from_utf8(&data[..space])
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(malformed)?;
        if length > data.len() || length < space + 3 || data[length - 1] != b'\n' {
            return Err(malformed());
        }
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        records.insert(record[..equals].to_vec(), record[equals + 1..].to_vec());
        data = &data[length..];
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    #[test]
    fn long_names_and_data_come_back() {
        let long = format!("{}/file", "d".repeat(150));
        let bytes = archive(|tar| {
            let mut header = tar::Header::new_gnu();
            header.set_size(5);
            tar.append_data(&mut header, &long, &b"hello"[..]).unwrap();
        });
        let mut reader = Reader::new(&bytes[..]);
        let entry = reader.next().unwrap().unwrap();
        assert_eq!((entry.name(), entry.uid, entry.mode), (long, 0, 0), "empty numbers are zero");
        let mut data = String::new();
        reader.read_to_string(&mut data).unwrap();
        assert_eq!(data, "hello");
        assert!(reader.next().unwrap().is_none());
    }

    #[test]
    fn pax_values_may_hold_newlines() {
        let records = parse_records(b"12 a=x\n=y\nz\n7 b=\xff\n\n").unwrap();
        assert_eq!(records[&b"a"[..]], b"x\n=y\nz"[..]);
        assert_eq!(records[&b"b"[..]], b"\xff\n"[..]);
        for malformed in
            [&b"99 a=b\n"[..], b"a=b\n", b"5 a=b", b"18446744073709551616 a=b\n", b"0 a=b\n", b"4 a\n"]
        {
            assert!(parse_records(malformed).is_err(), "{malformed:?}");
        }
    }

    #[test]
    fn numbers_in_octal_and_base_256() {
        assert_eq!(number(b"0000755\0").unwrap(), 0o755);
        assert_eq!(number(b"   17 \0\0").unwrap(), 0o17);
        assert_eq!(number(&[0; 12]).unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]).unwrap(), 256);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert!(number(&[0x80, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]).is_err());
        assert!(number(b"99999999").is_err());
    }

    #[test]
    fn an_extended_header_is_not_read_beyond_its_bound() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_size(EXTENSION_MAX + 1);
        header.set_cksum();
        let endless = header.as_bytes().chain(io::repeat(b'x'));
        assert!(Reader::new(endless).next().unwrap_err().to_string().contains("claims"));
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let mut reader = Reader::new(&bytes[..]);
            while let Ok(Some(_)) = reader.next() {}
        }

        #[test]
        fn any_header_ends_without_panic(mut block in proptest::collection::vec(any::<u8>(), 512), kind in 0_u8..=255) {
            block[156] = kind;
            let sum: u32 = block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            block.extend([0; 4096]);
            let mut reader = Reader::new(&block[..]);
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
