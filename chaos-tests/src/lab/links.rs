//! Links worse than cables: packets lost, late, out of order, twice, or no faster than a rate.
//!
//! What such a link carries is led by the switch's routes into a TUN device, decided about here, and led back when
//! its time has come. Links that are whole are the kernel's alone.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fs::File,
    io::{ErrorKind, Read, Write},
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rswarm_netoverlay::device::{
    netns::Netns,
    tun::{self, VNET_HEADER_LEN},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::record::Record;
use crate::world::rng::Rng;

/// The device through which worse links lead.
pub(super) const DEVICE: &str = "worse";

/// Packets that wait for their time, of all links together; more are lost, as in a router.
const WAITING_MAX: usize = 20_000;
/// A packet that would wait longer than this for its link to be free is lost.
const QUEUE_MAX: Duration = Duration::from_millis(500);
const PACKET_MAX: usize = 64 << 10;

/// What one direction of a link does to packets. Chances are in hundredths of a percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// How many of 10 000 packets are lost.
    pub loss: u16,
    /// How many of 10 000 come twice.
    pub duplicate: u16,
    /// How late each is, in microseconds.
    pub delay_us: u32,
    /// How much later or earlier than that at most, in microseconds; they may overtake one another.
    pub jitter_us: u32,
    /// Bits a second; 0 is no limit.
    pub rate: u64,
}

impl Link {
    /// Whether it is a cable.
    pub fn is_whole(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.loss > 10_000 || self.duplicate > 10_000 {
            bail!("no more than all packets can be lost or come twice");
        }
        if self.delay_us > 60_000_000 || self.jitter_us > 60_000_000 {
            bail!("a link delays by a minute at most");
        }
        Ok(())
    }
}

/// For people: `loss 5%, delay 20ms ± 5ms`.
impl std::fmt::Display for Link {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut words = Vec::new();
        let percent = |share: u16| f64::from(share) / 100.0;
        let ms = |us: u32| f64::from(us) / 1e3;
        if self.loss > 0 {
            words.push(format!("loss {}%", percent(self.loss)));
        }
        if self.duplicate > 0 {
            words.push(format!("duplicates {}%", percent(self.duplicate)));
        }
        if self.delay_us > 0 || self.jitter_us > 0 {
            words.push(format!("delay {}ms ± {}ms", ms(self.delay_us), ms(self.jitter_us)));
        }
        if self.rate > 0 {
            words.push(format!("rate {} kbit/s", self.rate / 1000));
        }
        out.write_str(&words.join(", "))
    }
}

/// What worse links have carried since the switch runs, in packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Led into them.
    pub taken: u64,
    /// Led on from them, those that came twice counted twice.
    pub given: u64,
}

/// By what the kernel counts at the device, in a process's network as `/proc/PID/net/dev` shows it.
pub(super) fn carried(table: &str) -> Carried {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(DEVICE)?.strip_prefix(':'));
    let fields: Vec<u64> = line.unwrap_or_default().split_whitespace().flat_map(str::parse).collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or(0);
    // What the kernel sends is what the switch's process takes.
    Carried { taken: field(9), given: field(1) }
}

/// Decides when packets go on.
struct Shaper {
    links: BTreeMap<(Ipv4Addr, Ipv4Addr), Link>,
    /// When each link with a rate has sent what it has taken.
    free: BTreeMap<(Ipv4Addr, Ipv4Addr), Instant>,
    chance: Rng,
}

impl Shaper {
    fn new(links: BTreeMap<(Ipv4Addr, Ipv4Addr), Link>) -> Self {
        Self { links, free: BTreeMap::new(), chance: Rng::new(1) }
    }

    /// When a packet that has come `now` goes on: never, once, or twice.
    fn take(&mut self, packet: &[u8], now: Instant) -> Vec<Instant> {
        let ends = ends_of(packet);
        let Some((ends, link)) = ends.and_then(|ends| Some((ends, *self.links.get(&ends)?))) else {
            return vec![now];
        };
        if self.chance.below(10_000) < u64::from(link.loss) {
            return Vec::new();
        }
        let mut sent = now;
        let length = packet.len() as u64 * 8 * 1_000_000_000;
        if let Some(nanos) = length.checked_div(link.rate) {
            let free = self.free.entry(ends).or_insert(now);
            let wait = free.saturating_duration_since(now);
            if wait > QUEUE_MAX {
                return Vec::new();
            }
            sent = now + wait + Duration::from_nanos(nanos);
            *free = sent;
        }
        let copies = 1 + usize::from(self.chance.below(10_000) < u64::from(link.duplicate));
        (0..copies)
            .map(|_| {
                let late = u64::from(link.delay_us) + self.chance.below(2 * u64::from(link.jitter_us) + 1);
                sent + Duration::from_micros(late.saturating_sub(u64::from(link.jitter_us)))
            })
            .collect()
    }
}

/// Source and destination of an IPv4 packet.
fn ends_of(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let header = packet.get(..20).filter(|header| header[0] >> 4 == 4)?;
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    Some((address(12), address(16)))
}

/// Packets by the time they are due; of two for one time the first comes first.
type Waiting = BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>;

/// The work of the process that holds a switch: until it is killed, it does what the lab's record says of its links,
/// and reads that again whenever it is told SIGHUP.
pub(super) fn serve(directory: &Path) -> Result<()> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGHUP);
    mask.thread_block().context("cannot block signals")?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot receive signals")?;
    super::machine::announce_ready()?;

    let mut device: Option<File> = None;
    let mut shaper = Shaper::new(BTreeMap::new());
    let (mut waiting, mut number) = (Waiting::new(), 0);
    loop {
        let now = Instant::now();
        while waiting.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            if let (Some(Reverse((.., packet))), Some(device)) = (waiting.pop(), &mut device) {
                // What the kernel does not take is lost, as on a wire.
                let _ = device.write(&packet);
            }
        }
        let next = waiting.peek().map(|Reverse((due, ..))| due.saturating_duration_since(now));
        let next = next.map(|wait| Timespec {
            tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        });
        let mut ready = vec![PollFd::new(&signals, PollFlags::IN)];
        ready.extend(device.as_ref().map(|device| PollFd::new(device, PollFlags::IN)));
        match poll(&mut ready, next.as_ref()) {
            Err(Errno::INTR) => continue,
            polled => polled.context("cannot wait for packets")?,
        };
        let is_ready: Vec<bool> = ready.iter().map(|fd| fd.revents().contains(PollFlags::IN)).collect();
        drop(ready);
        if is_ready[0] {
            while let Ok(Some(_)) = signals.read_signal() {}
            match read_links(directory) {
                Ok(links) => {
                    if device.is_none() && !links.is_empty() {
                        device = Some(open()?);
                    }
                    shaper = Shaper::new(links);
                }
                // The lab is being removed, or somebody writes: the next word will be better.
                Err(error) => eprintln!("the links cannot be read: {error:#}"),
            }
        }
        if is_ready.get(1) == Some(&true)
            && let Some(device) = &mut device
        {
            take_all(device, &mut shaper, &mut waiting, &mut number)?;
        }
    }
}

fn take_all(device: &mut File, shaper: &mut Shaper, waiting: &mut Waiting, number: &mut u64) -> Result<()> {
    let mut buffer = vec![0; VNET_HEADER_LEN + PACKET_MAX];
    loop {
        let length = match device.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("cannot read packets"),
        };
        let packet = &buffer[..length];
        for due in shaper.take(packet.get(VNET_HEADER_LEN..).unwrap_or_default(), Instant::now()) {
            if waiting.len() < WAITING_MAX {
                *number += 1;
                waiting.push(Reverse((due, *number, packet.to_vec())));
            }
        }
    }
}

fn open() -> Result<File> {
    let here = Netns::current()?;
    let options = tun::Options { persist: false, offload: false, ..tun::Options::default() };
    let queue = tun::open(&here, DEVICE, options)?.pop().context("a device has a queue")?;
    Ok(File::from(queue))
}

fn read_links(directory: &Path) -> Result<BTreeMap<(Ipv4Addr, Ipv4Addr), Link>> {
    let record = Record::read(directory)?.context("there is no lab here")?;
    let subnet = record.subnet.context("the lab has no network yet")?;
    let mut links = BTreeMap::new();
    for worse in &record.links {
        let ends = (record.node(&worse.from)?.number, record.node(&worse.to)?.number);
        links.insert((subnet.node(ends.0), subnet.node(ends.1)), worse.link);
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn packet(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let mut packet = vec![0; 1250];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&from.octets());
        packet[16..20].copy_from_slice(&to.octets());
        packet
    }

    fn shaper(link: Link) -> Shaper {
        Shaper::new([((A, B), link)].into())
    }

    #[test]
    fn as_many_are_lost_and_doubled_as_was_said_and_only_one_way() {
        let now = Instant::now();
        let mut shaper = shaper(Link { loss: 2_000, duplicate: 1_000, ..Link::default() });
        let went: Vec<usize> = (0..10_000).map(|_| shaper.take(&packet(A, B), now).len()).collect();
        let count = |copies: usize| went.iter().filter(|went| **went == copies).count();
        assert!((1_800..2_200).contains(&count(0)), "{}", count(0));
        assert!((700..900).contains(&count(2)), "{}", count(2));
        assert!((0..1_000).all(|_| shaper.take(&packet(B, A), now) == [now]));
        assert_eq!(shaper.take(b"no packet", now), [now]);
    }

    #[test]
    fn what_was_carried_is_read_of_the_kernels_table() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets errs\n  host: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n\
                     worse: 900 95 0 0 0 0 0 0 1000 100 0 0 0 0 0 0\n";
        assert_eq!(carried(table), Carried { taken: 100, given: 95 });
        assert_eq!(carried("  host: 1 2"), Carried::default());
    }

    #[test]
    fn they_are_late_by_delay_and_jitter() {
        let now = Instant::now();
        let mut shaper = shaper(Link { delay_us: 20_000, jitter_us: 5_000, ..Link::default() });
        let late: Vec<Duration> =
            (0..1_000).flat_map(|_| shaper.take(&packet(A, B), now)).map(|due| due - now).collect();
        assert!(late.iter().all(|late| (15_000..=25_000).contains(&late.as_micros())));
        assert!(late.iter().min() < Some(&Duration::from_millis(16)));
        assert!(late.iter().max() > Some(&Duration::from_millis(24)));
    }

    #[test]
    fn a_rate_is_kept_and_what_would_wait_too_long_is_lost() {
        let now = Instant::now();
        // 1250 bytes take 10 ms.
        let mut shaper = shaper(Link { rate: 1_000_000, ..Link::default() });
        let due: Vec<Instant> = (0..100).flat_map(|_| shaper.take(&packet(A, B), now)).collect();
        assert_eq!(due[0] - now, Duration::from_millis(10));
        assert_eq!(due[9] - now, Duration::from_millis(100));
        assert_eq!(due.len(), 51, "half a second of them waits");
    }
}
