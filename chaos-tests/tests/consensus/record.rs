//! What happened in a run: a hash over every event, what clients saw, and what must never be.

use bytes::Bytes;
use rswarm_chaos::history::Operation;
use rswarm_control::RequestId;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::time::Instant;

/// Shared by all of a run.
#[derive(Clone)]
pub struct Record(Arc<Mutex<State>>);

struct State {
    began: Instant,
    hash: u64,
    events: u64,
    /// Written out as well, if asked for.
    aloud: bool,
    history: Vec<Operation>,
    /// What stands at each index, by whoever applied it first.
    truth: BTreeMap<u64, Bytes>,
    violations: Vec<String>,
    /// At which index each request took effect.
    effects: BTreeMap<RequestId, u64>,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Over all events with their times.
    pub hash: u64,
    pub events: u64,
    pub history: Vec<Operation>,
    pub violations: Vec<String>,
}

impl Record {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            began: Instant::now(),
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            aloud: std::env::var_os("TRACE").is_some(),
            history: Vec::new(),
            truth: BTreeMap::new(),
            violations: Vec::new(),
            effects: BTreeMap::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A request took effect on some manager, which may happen at one index alone.
    pub fn took_effect(&self, index: u64, request: RequestId) {
        let first = *self.state().effects.entry(request).or_insert(index);
        if first != index {
            self.violated(format!("request {request} took effect at {first} and again at {index}"));
        }
    }

    /// Notes an event.
    pub fn note(&self, event: impl Display) {
        let mut state = self.state();
        let text = format!("{:>9} {event}", state.began.elapsed().as_micros());
        if state.aloud {
            eprintln!("{text}");
        }
        for byte in text.bytes() {
            state.hash = (state.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        state.events += 1;
    }

    /// A moment after all before it, by which clients tell what came before what.
    pub fn tick(&self) -> u64 {
        let mut state = self.state();
        state.events += 1;
        state.events
    }

    /// A client is done with something.
    pub fn saw(&self, operation: Operation) {
        self.note(format_args!("{operation:?}"));
        self.state().history.push(operation);
    }

    /// A manager applied this.
    pub fn applied(&self, index: u64, bytes: &Bytes) {
        let mut state = self.state();
        let first = state.truth.entry(index).or_insert_with(|| bytes.clone());
        if first != bytes {
            state.violations.push(format!("two different commands were applied at index {index}"));
        }
    }

    /// Something that must not be.
    pub fn violated(&self, what: String) {
        self.state().violations.push(what);
    }

    pub fn outcome(&self) -> Outcome {
        let mut state = self.state();
        state.violations.dedup();
        Outcome {
            hash: state.hash,
            events: state.events,
            history: state.history.clone(),
            violations: state.violations.clone(),
        }
    }
}
