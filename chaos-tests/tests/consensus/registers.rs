//! The replicated state machine of the simulation: registers that can be set, and swapped if they have a value.

use super::record::Record;
use bytes::Bytes;
use rswarm_chaos::history::Act;
use rswarm_raft::{Entry, Frozen, StateMachine};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

/// A command: a register, and a write or a swap, unique by the value it sets.
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
}

impl Registers {
    pub fn new(record: Record) -> (Self, View) {
        let view = View::default();
        (Self { view: view.clone(), record }, view)
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
            let fits = kind == 0 || registers.get(&register).copied().unwrap_or(0) == expected;
            if fits {
                registers.insert(register, new);
            }
            Bytes::copy_from_slice(&[fits.into()])
        };
        entries.into_iter().map(apply).collect()
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(FrozenRegisters(self.view.all()))
    }

    fn restore(&mut self, _: u64, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let restored = words(&bytes).chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        *self.view.0.lock().unwrap() = restored;
        Ok(())
    }
}

struct FrozenRegisters(BTreeMap<u64, u64>);

impl Frozen for FrozenRegisters {
    fn write(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        for (register, value) in self.0 {
            to.write_all(&register.to_le_bytes())?;
            to.write_all(&value.to_le_bytes())?;
        }
        Ok(())
    }
}
