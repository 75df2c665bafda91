//! What the benchmark replicates: keys and values, kept as the product keeps its state, in persistent maps that are
//! published once for each batch.

use arc_swap::ArcSwap;
use bytes::Bytes;
use prost::Message;
use rswarm_proto::etcd::PutRequest;
use rswarm_raft::{Entry, Frozen, StateMachine};
use std::io::{self, Read, Write};
use std::sync::Arc;

type Map = imbl::HashMap<Bytes, Bytes>;

/// Reads what was last applied.
#[derive(Clone, Default)]
pub struct View(Arc<ArcSwap<Map>>);

impl View {
    /// The value of a key.
    pub fn get(&self, key: &Bytes) -> Option<Bytes> {
        self.0.load().get(key).cloned()
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
            if let Ok(put) = PutRequest::decode(Bytes::copy_from_slice(&entry.bytes)) {
                self.map.insert(put.key, put.value);
            }
        }
        self.publish();
        vec![Bytes::new(); count]
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(FrozenStore(self.map.clone()))
    }

    fn restore(&mut self, _: u64, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let mut rest = Bytes::from(bytes);
        self.map = Map::new();
        while !rest.is_empty() {
            let put = PutRequest::decode_length_delimited(&mut rest).map_err(io::Error::other)?;
            self.map.insert(put.key, put.value);
        }
        self.publish();
        Ok(())
    }
}

struct FrozenStore(Map);

impl Frozen for FrozenStore {
    fn write(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        for (key, value) in self.0.iter() {
            let put = PutRequest { key: key.clone(), value: value.clone() };
            to.write_all(&put.encode_length_delimited_to_vec())?;
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
