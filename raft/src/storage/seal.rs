//! Keys and sealing: a random key for each manager, from which each file gets a key of its own.
//!
//! Everything on disk is sealed with AES-256-GCM. A file's key is derived from the manager's key and a random
//! salt in the file's header, so a nonce need only be unique within its file: it is the record's number.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};

use crate::OpenError;

/// What sealing adds to a record.
pub(crate) const TAG_BYTES: usize = 16;
pub(crate) const SALT_BYTES: usize = 16;

const KEY_FILE: &str = "raft.key";
const KEY_MAGIC: &[u8; 8] = b"RSWRKEY1";
const KEY_FILE_BYTES: usize = 8 + 4 + 32 + 12 + 48 + 4;
/// The key stands in the file as it is. Other values are kept for keys wrapped by an unlock key, for which
/// salt, nonce and tag have room in the file already.
const WRAP_NONE: u32 = 0;

/// A manager's key.
pub(crate) struct MasterKey([u8; 32]);

impl MasterKey {
    /// The one that the fuzzer's files are sealed with.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) const FUZZ: Self = Self([7; 32]);

    /// Reads the key in `dir`, or makes one if there is none and nothing yet that was sealed with it (`fresh`).
    pub(crate) fn load_or_create(dir: &Path, fresh: bool) -> Result<Self, OpenError> {
        let path = dir.join(KEY_FILE);
        match File::open(&path) {
            Ok(file) => Self::read(file, &path),
            Err(error) if fresh && error.kind() == io::ErrorKind::NotFound => Self::create(dir, &path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(OpenError::damaged(&path, 0, "the key is missing"))
            }
            Err(error) => Err(OpenError::io(&path, error)),
        }
    }

    fn read(file: File, path: &Path) -> Result<Self, OpenError> {
        let mut bytes = Vec::with_capacity(KEY_FILE_BYTES);
        file.take(KEY_FILE_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| OpenError::io(path, error))?;
        let damaged = |what| OpenError::damaged(path, 0, what);
        let (body, sum) = match bytes.split_last_chunk::<4>() {
            Some(parts) if bytes.len() == KEY_FILE_BYTES => parts,
            _ => return Err(damaged("the key file has the wrong length")),
        };
        if &body[..8] != KEY_MAGIC || crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(damaged("the key file fails its checksum"));
        }
        if body[8..12] != WRAP_NONE.to_le_bytes() {
            return Err(OpenError::Locked { file: path.to_owned() });
        }
        let mut key = [0; 32];
        key.copy_from_slice(&body[56..88]);
        Ok(Self(key))
    }

    fn create(dir: &Path, path: &Path) -> Result<Self, OpenError> {
        let key = random::<32>();
        let mut bytes = Vec::with_capacity(KEY_FILE_BYTES);
        bytes.extend_from_slice(KEY_MAGIC);
        bytes.extend_from_slice(&WRAP_NONE.to_le_bytes());
        bytes.extend_from_slice(&[0; 32 + 12]);
        bytes.extend_from_slice(&key);
        bytes.extend_from_slice(&[0; TAG_BYTES]);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());

        let write = || {
            let tmp = dir.join("raft.key.tmp");
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&tmp)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&tmp, path)?;
            sync_dir(dir)
        };
        write().map_err(|error| OpenError::io(path, error))?;
        Ok(Self(key))
    }

    /// The key of one file, named by what it is (`purpose`, which carries its identity) and its salt.
    pub(crate) fn derive(&self, salt: &[u8; SALT_BYTES], purpose: &[u8]) -> FileKey {
        let info = [purpose];
        let prk = Salt::new(HKDF_SHA256, salt).extract(&self.0);
        let okm = prk.expand(&info, &AES_256_GCM).expect("an AES key is a valid length for HKDF");
        FileKey(LessSafeKey::new(UnboundKey::from(okm)))
    }
}

/// Removes the key, and with it the meaning of everything sealed.
pub(crate) fn forget(dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(dir.join(KEY_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_dir(dir),
    }
}

/// The key of one file.
pub(crate) struct FileKey(LessSafeKey);

impl FileKey {
    /// Seals `body[from..]` in place and appends the tag. `number` must never repeat in a file.
    pub(crate) fn seal(&self, number: u64, aad: &[u8], body: &mut Vec<u8>, from: usize) {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(number), Aad::from(aad), &mut body[from..])
            .expect("records are far below the cipher's limit of 64 GiB");
        body.extend_from_slice(tag.as_ref());
    }

    /// Opens `body` in place; `None` if it is not what was sealed under this number.
    pub(crate) fn open<'a>(&self, number: u64, aad: &[u8], body: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.0.open_in_place(nonce(number), Aad::from(aad), body).ok()
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the kernel's random source does not fail once seeded");
    bytes
}

/// Makes renames and removals in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_readable_by_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let first = MasterKey::load_or_create(dir.path(), true).unwrap();
        let second = MasterKey::load_or_create(dir.path(), true).unwrap();
        assert_eq!(first.0, second.0);
        let mode = std::fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        MasterKey::load_or_create(dir.path(), true).unwrap();
        let path = dir.path().join(KEY_FILE);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(MasterKey::load_or_create(dir.path(), true).is_err(), "flip at {at}");
        }
    }

    #[test]
    fn a_sealed_record_opens_only_where_it_was_put() {
        let key = MasterKey([7; 32]).derive(&[1; SALT_BYTES], b"here");
        let mut body = b"..hello".to_vec();
        key.seal(3, b"aad", &mut body, 2);
        assert_eq!(key.open(3, b"aad", &mut body.clone()[2..]).unwrap(), b"hello");
        assert!(key.open(4, b"aad", &mut body.clone()[2..]).is_none());
        assert!(key.open(3, b"bad", &mut body.clone()[2..]).is_none());
        let other = MasterKey([7; 32]).derive(&[2; SALT_BYTES], b"here");
        assert!(other.open(3, b"aad", &mut body[2..]).is_none());
    }
}
