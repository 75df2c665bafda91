//! What a link's hardware is said to do by itself. A veth does everything, which no network card of a rented machine
//! does; here it is made to behave like one of those.

use anyhow::{Context, Result};
use rswarm_netoverlay::device::netns::Netns;
use std::io;
use std::os::fd::AsRawFd;

/// The longest name of a link with its final zero, in bytes.
const NAME: usize = 16;
/// The length of a feature's name, in bytes.
const FEATURE: usize = 32;
/// More features than any kernel has.
const FEATURES: usize = 256;

const ETHTOOL_GET_STRINGS: u32 = 0x1b;
const ETHTOOL_GET_SET_INFO: u32 = 0x37;
const ETHTOOL_SET_FEATURES: u32 = 0x3b;
const SET_OF_FEATURES: u32 = 4;
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// What a plain card leaves to the processor.
const OFF: [&str; 7] = [
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-udp-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
];
/// What the kernel does for every card.
const ON: [&str; 1] = ["rx-gro"];

#[repr(C)]
struct Request {
    name: [u8; NAME],
    data: *mut libc::c_void,
    rest: [u8; 16],
}

#[repr(C)]
struct SetInfo {
    command: u32,
    reserved: u32,
    mask: u64,
    count: u32,
}

#[repr(C)]
struct Names {
    command: u32,
    set: u32,
    count: u32,
    names: [[u8; FEATURE]; FEATURES],
}

#[repr(C)]
struct Features {
    command: u32,
    blocks: u32,
    /// Which bits are meant, and what they are to be.
    bits: [[u32; 2]; FEATURES / 32],
}

/// Makes the veth `name` of `netns` a card that does not cut packets, as the cheaper virtual ones do not.
pub fn make_plain(netns: &Netns, name: &str) -> Result<()> {
    netns
        .run(|| set_features(name))?
        .with_context(|| format!("cannot change what link {name} does by itself"))
}

fn set_features(name: &str) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut info =
        SetInfo { command: ETHTOOL_GET_SET_INFO, reserved: 0, mask: 1 << SET_OF_FEATURES, count: 0 };
    call(&socket, name, &mut info)?;
    let count = info.count.min(FEATURES as u32);
    let mut names = Box::new(Names {
        command: ETHTOOL_GET_STRINGS,
        set: SET_OF_FEATURES,
        count,
        names: [[0; FEATURE]; FEATURES],
    });
    call(&socket, name, &mut *names)?;
    let mut features =
        Features { command: ETHTOOL_SET_FEATURES, blocks: count.div_ceil(32), bits: [[0; 2]; FEATURES / 32] };
    for (at, feature) in names.names.iter().enumerate().take(count as usize) {
        let length = feature.iter().position(|byte| *byte == 0).unwrap_or(FEATURE);
        let feature = str::from_utf8(&feature[..length]).unwrap_or_default();
        let on = ON.contains(&feature);
        if on || OFF.contains(&feature) {
            features.bits[at / 32][0] |= 1 << (at % 32);
            features.bits[at / 32][1] |= u32::from(on) << (at % 32);
        }
    }
    call(&socket, name, &mut features)
}

fn call<T>(socket: &std::net::UdpSocket, link: &str, argument: &mut T) -> io::Result<()> {
    let mut request = Request { name: [0; NAME], data: (&raw mut *argument).cast(), rest: [0; 16] };
    let bytes = link.as_bytes();
    request.name.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
    // SAFETY: the kernel reads and writes the request and the argument behind it, both alive and as large as the
    // command in the argument's first word says: each type above holds what the kernel returns for `FEATURES`.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
