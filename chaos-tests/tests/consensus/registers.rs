//! The replicated state machine of the simulation: registers that can be set, and swapped if they have a value. It
//! remembers requests as the cluster's state does, so that one that is repeated takes effect once.

use super::record::Record;
use bytes::Bytes;
use rswarm_chaos::history::Act;
use rswarm_control::{RequestId, Requests, Timestamp};
use rswarm_raft::{Entry, Frozen, StateMachine};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

/// A command: a register, and a write or a swap, unique by the register and the value it sets, which are
/// the request's id as well.
pub fn encode(register: u64, act: Act) -> Bytes {
    let (kind, expected, new) = match act {
        Act::Write(new) => (0, 0, new),
        Act::Swap { expected, new, .. } => (1, expected, new),
        Act::Read(_) => unreachable!("reads are not proposed"),
    };
    [kind, register, expected, new].into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>().into()
}

/// The registers of one manager, as clients read them.
#[derive(Clone, Default)]
pub struct View(Arc<Mutex<BTreeMap<u64, u64>>>);

impl View {
    pub fn get(&self, register: u64) -> u64 {
        self.0.lock().unwrap().get(&register).copied().unwrap_or(0)
    }

    pub fn all(&self) -> BTreeMap<u64, u64> {
        self.0.lock().unwrap().clone()
    }
}

pub struct Registers {
    view: View,
    record: Record,
    requests: Requests<bool>,
    /// A planted fault: what was carried out is not remembered.
    forgetful: bool,
}

impl Registers {
    pub fn new(record: Record, forgetful: bool) -> (Self, View) {
        let view = View::default();
        (Self { view: view.clone(), record, requests: Requests::default(), forgetful }, view)
    }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

impl StateMachine for Registers {
    fn apply(&mut self, entries: Vec<Entry>) -> Vec<Bytes> {
        let mut registers = self.view.0.lock().unwrap();
        let apply = |entry: Entry| {
            self.record.applied(entry.index, &entry.bytes);
            let words = words(&entry.bytes);
            let &[kind, register, expected, new] = &words[..] else { return Bytes::from_static(&[2]) };
            let request = RequestId(u128::from(register) << 64 | u128::from(new));
            if let Some(fits) = self.requests.answer(request) {
                return Bytes::copy_from_slice(&[(*fits).into()]);
            }
            let fits = kind == 0 || registers.get(&register).copied().unwrap_or(0) == expected;
            if fits {
                registers.insert(register, new);
                self.record.took_effect(entry.index, request);
            }
            if !self.forgetful {
                self.requests.note(request, Timestamp(entry.index), fits);
            }
            Bytes::copy_from_slice(&[fits.into()])
        };
        entries.into_iter().map(apply).collect()
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        let requests = self
            .requests
            .iter()
            .map(|(id, at, fits)| [(id.0 >> 64) as u64, id.0 as u64, at.0, u64::from(*fits)]);
        Box::new(FrozenRegisters(self.view.all(), requests.collect()))
    }

    fn restore(&mut self, _: u64, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let words = words(&bytes);
        let (count, rest) = words.split_first().ok_or(io::ErrorKind::InvalidData)?;
        let (registers, requests) =
            rest.split_at_checked(2 * *count as usize).ok_or(io::ErrorKind::InvalidData)?;
        let request = |words: &[u64]| {
            let id = u128::from(words[0]) << 64 | u128::from(words[1]);
            (RequestId(id), Timestamp(words[2]), words[3] == 1)
        };
        self.requests = requests.chunks_exact(4).map(request).collect();
        *self.view.0.lock().unwrap() = registers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        Ok(())
    }
}

struct FrozenRegisters(BTreeMap<u64, u64>, Vec<[u64; 4]>);

impl Frozen for FrozenRegisters {
    fn write(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        let count = self.0.len() as u64;
        let registers = self.0.into_iter().flat_map(|(register, value)| [register, value]);
        let words = [count].into_iter().chain(registers).chain(self.1.into_iter().flatten());
        to.write_all(&words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
    }
}
