//! What the benchmark replicates: keys and values, kept as the product keeps its state, in persistent maps that are
//! published once for each batch.

use arc_swap::ArcSwap;
use bytes::Bytes;
use prost::Message;
use rswarm_proto::etcd::PutRequest;
use rswarm_raft::{Entry, Frozen, StateMachine};
use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::Arc;

type Map = imbl::HashMap<Pair, ()>;

/// A key and its value, in one shared piece: persistent maps copy what they hold, so it should be small and cheap to
/// clone, as the product's objects are.
#[derive(Clone)]
struct Pair(Arc<PutRequest>);

impl Pair {
    fn of(put: PutRequest) -> Self {
        Self(Arc::new(put))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Pair {}

impl Hash for Pair {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Borrow::<[u8]>::borrow(self).hash(state);
    }
}

impl Borrow<[u8]> for Pair {
    fn borrow(&self) -> &[u8] {
        &self.0.key
    }
}

/// Reads what was last applied.
#[derive(Clone, Default)]
pub struct View(Arc<ArcSwap<Map>>);

impl View {
    /// The value of a key.
    pub fn get(&self, key: &Bytes) -> Option<Bytes> {
        self.0.load().get_key_value(&**key).map(|(pair, ())| pair.0.value.clone())
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.0.load().len()
    }
}

/// The state machine.
pub struct Store {
    map: Map,
    view: View,
}

impl Store {
    /// An empty one, and its view.
    pub fn new() -> (Self, View) {
        let view = View::default();
        (Self { map: Map::new(), view: view.clone() }, view)
    }

    fn publish(&self) {
        self.view.0.store(Arc::new(self.map.clone()));
    }
}

impl StateMachine for Store {
    fn apply(&mut self, entries: Vec<Entry>) -> Vec<Bytes> {
        let count = entries.len();
        for entry in entries {
            // A frame that brought many entries must not be kept for the sake of one.
            if let Ok(put) = PutRequest::decode(&*entry.bytes) {
                self.map.insert(Pair::of(put), ());
            }
        }
        self.publish();
        vec![Bytes::new(); count]
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(FrozenStore(self.map.clone()))
    }

    fn restore(&mut self, _: u64, from: &mut dyn Read) -> io::Result<()> {
        // Pair by pair: what comes may be larger than the memory that is left.
        let mut from = BufReader::new(from);
        let mut pair = Vec::new();
        self.map = Map::new();
        while let Some(len) = read_length(&mut from)? {
            pair.clear();
            (&mut from).take(len).read_to_end(&mut pair)?;
            if pair.len() as u64 != len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let put = PutRequest::decode(&*pair).map_err(io::Error::other)?;
            self.map.insert(Pair::of(put), ());
        }
        self.publish();
        Ok(())
    }
}

/// The length before a message; none at the end.
fn read_length(from: &mut impl BufRead) -> io::Result<Option<u64>> {
    let mut bytes = Vec::new();
    for byte in from.by_ref().bytes().take(10) {
        bytes.push(byte?);
        if bytes.last().is_some_and(|byte| byte & 0x80 == 0) {
            break;
        }
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    prost::decode_length_delimiter(&*bytes).map(|len| Some(len as u64)).map_err(io::Error::other)
}

struct FrozenStore(Map);

impl Frozen for FrozenStore {
    fn write(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        for pair in self.0.keys() {
            to.write_all(&pair.0.encode_length_delimited_to_vec())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_frozen_comes_back() {
        let put = |key: &str, value: &str| {
            let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into() };
            Entry { index: 1, term: 1, bytes: put.encode_to_vec().into() }
        };
        let (mut store, _) = Store::new();
        assert_eq!(store.apply(vec![put("a", "1"), put("b", "2"), put("a", "3")]).len(), 3);
        let mut bytes = Vec::new();
        store.freeze().write(&mut bytes).unwrap();
        let (mut other, view) = Store::new();
        other.restore(3, &mut &bytes[..]).unwrap();
        assert_eq!(view.get(&"a".into()), Some("3".into()));
        assert_eq!(view.get(&"b".into()), Some("2".into()));
        assert_eq!(view.get(&"c".into()), None);
        assert!(other.restore(3, &mut &bytes[..bytes.len() - 1]).is_err());
    }
}
