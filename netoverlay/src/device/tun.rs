//! TUN devices: whole IP packets of a namespace as reads and writes on a descriptor of the host's thread.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::{Error, Result, link::NAME_LEN_MAX, netns::Netns};

/// The length of the virtio header before each packet, in bytes.
pub const VNET_HEADER_LEN: usize = 10;

const CLONE_DEVICE: &str = "/dev/net/tun";

const IFF_TUN: i16 = 0x0001;
const IFF_TAP: i16 = 0x0002;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

#[allow(missing_docs)]
mod calls {
    use super::Request;

    nix::ioctl_write_ptr_bad!(tun_set_iff, nix::request_code_write!(b'T', 202, 4), Request);
    nix::ioctl_write_int_bad!(tun_set_persist, nix::request_code_write!(b'T', 203, 4));
    nix::ioctl_write_int_bad!(tun_set_offload, nix::request_code_write!(b'T', 208, 4));
    nix::ioctl_write_ptr_bad!(tun_set_vnet_hdr_size, nix::request_code_write!(b'T', 216, 4), libc::c_int);
}

/// The kernel's `struct ifreq`, as far as TUN reads it.
#[repr(C)]
struct Request {
    name: [u8; NAME_LEN_MAX + 1],
    flags: i16,
    rest: [u8; 22],
}

/// How a TUN is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many queues, each with a descriptor of its own; at least 1.
    pub queues: usize,
    /// Whether the device, and with it its routes, outlives the descriptors.
    pub persist: bool,
    /// Whether checksum and segmentation are left to the reader; without, each packet is one of the wire's.
    pub offload: bool,
    /// Whether it is a TAP: Ethernet frames in place of IP packets.
    pub ethernet: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { queues: 1, persist: true, offload: true, ethernet: false }
    }
}

/// Opens, and makes if it is missing, the TUN `name` inside `netns`. Each read and write on the (nonblocking)
/// descriptors is one packet behind a virtio header of [`VNET_HEADER_LEN`] bytes, up to 64 KiB long: checksum
/// and segmentation of TCP, and of UDP where the kernel can, are left to the reader unless that is declined.
///
/// A device that is there must have been made with the same number of queues (1, or more than 1), else `EINVAL`;
/// one that another process has open answers `EBUSY`.
pub fn open(netns: &Netns, name: &str, options: Options) -> Result<Vec<OwnedFd>> {
    let failed = |source: io::Error| Error::new(format!("open TUN {name}"), netns, source);
    if name.is_empty() || name.len() > NAME_LEN_MAX || options.queues == 0 {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    }
    if !Path::new(CLONE_DEVICE).exists() {
        let cure =
            format!("{CLONE_DEVICE} is missing: load the kernel module tun, or give the daemon the device");
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, cure)));
    }
    netns
        .run(|| (0..options.queues).map(|_| open_queue(name, options)).collect::<io::Result<_>>())?
        .map_err(failed)
}

fn open_queue(name: &str, options: Options) -> io::Result<OwnedFd> {
    let file =
        fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(CLONE_DEVICE)?;
    let fd = file.as_raw_fd();
    let kind = if options.ethernet { IFF_TAP } else { IFF_TUN };
    let mut request =
        Request { name: [0; NAME_LEN_MAX + 1], flags: kind | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    if options.queues > 1 {
        request.flags |= IFF_MULTI_QUEUE;
    }
    // SAFETY: each call gets the type the kernel reads for it, alive during the call.
    unsafe {
        calls::tun_set_iff(fd, &request)?;
        calls::tun_set_vnet_hdr_size(fd, &(VNET_HEADER_LEN as libc::c_int))?;
        if options.offload {
            let offload = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
            // UDP segmentation exists from Linux 6.2 on.
            calls::tun_set_offload(fd, (offload | TUN_F_USO4 | TUN_F_USO6) as libc::c_int)
                .or_else(|_| calls::tun_set_offload(fd, offload as libc::c_int))?;
        }
        calls::tun_set_persist(fd, options.persist.into())?;
    }
    Ok(file.into())
}
