//! What was once written or sent is read for good. `tests/forms/VERSION` holds what that version wrote: a proposal with
//! each kind of change, snapshots with each kind of record, each message of a node's session, and the list of all
//! fields. `ADD_FORMS=1 cargo test -p rswarm-proto --test round_trip forms` adds what is missing, under the version of
//! today; what is there stays as it is.

use super::strategies;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use prost::Message;
use rswarm_control::assignment::{Assignment, Difference};
use rswarm_control::endpoints::Table;
use rswarm_control::{NodeId, Proposal, Report, State, Timestamp};
use rswarm_proto::store::{decode_proposal, encode_proposal, read_snapshot, write_snapshot};
use rswarm_proto::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// All fields of all messages, as they are now.
const FIELDS: &str = include_str!(concat!(env!("OUT_DIR"), "/fields.txt"));
/// How many are drawn to have a large one of each kind.
const DRAWS: usize = 4000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/forms")
}

/// The alternatives of a message that is one of many, by number.
fn kinds(message: &str) -> BTreeMap<u32, &'static str> {
    let fields = FIELDS.lines().filter_map(|line| line.strip_prefix("rswarm.v1.")?.strip_prefix(message));
    let alternatives = fields.filter(|field| field.ends_with(", one of what"));
    alternatives
        .map(|field| {
            let (name, rest) =
                field.strip_prefix('.').and_then(|field| field.split_once(" = ")).expect("a field");
            (rest.split(':').next().and_then(|number| number.parse().ok()).expect("a number"), name)
        })
        .collect()
}

/// Which alternative it is: messages of one field begin with its number.
fn kind(message: &str, bytes: &[u8]) -> &'static str {
    let (tag, _) = prost::encoding::decode_key(&mut &*bytes).expect("it has a field");
    kinds(message)[&tag]
}

/// Every stored file of this form: version, name, bytes.
fn stored(form: &str) -> Vec<(String, String, Vec<u8>)> {
    let mut files = Vec::new();
    for version in std::fs::read_dir(root()).expect("the forms are there") {
        let version = version.expect("a readable directory");
        let Ok(of_form) = std::fs::read_dir(version.path().join(form)) else { continue };
        for file in of_form {
            let path = file.expect("a readable directory").path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let bytes = std::fs::read(&path).expect("a readable file");
            files.push((version.file_name().to_string_lossy().into_owned(), name, bytes));
        }
    }
    files
}

/// Has a file of each kind, or says which are missing; adds them where that is asked for.
fn complete(form: &str, wanted: &BTreeSet<&str>, make: impl FnOnce() -> BTreeMap<String, Vec<u8>>) {
    let have: BTreeSet<String> = stored(form).into_iter().map(|(_, name, _)| name).collect();
    let missing: Vec<&str> = wanted.iter().copied().filter(|name| !have.contains(*name)).collect();
    if missing.is_empty() {
        return;
    }
    assert!(
        std::env::var_os("ADD_FORMS").is_some(),
        "no version has kept a {form} of these kinds: {missing:?}; run this test with ADD_FORMS=1, and commit what it adds"
    );
    let made = make();
    for name in missing {
        add(form, &format!("{name}.bin"), &made[name]);
    }
}

fn add(form: &str, name: &str, bytes: &[u8]) {
    let path = root().join(env!("CARGO_PKG_VERSION")).join(form).join(name);
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("it can be made");
    assert!(!path.exists(), "{} stays as it is", path.display());
    std::fs::write(path, bytes).expect("it can be written");
}

/// The longest of each kind among many.
fn longest<T>(
    of: impl Strategy<Value = T>,
    encode: impl Fn(&T) -> (String, Vec<u8>),
) -> BTreeMap<String, Vec<u8>> {
    let mut runner = TestRunner::deterministic();
    let mut longest: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for _ in 0..DRAWS {
        let (kind, bytes) = encode(&of.new_tree(&mut runner).expect("a value").current());
        let known = longest.entry(kind).or_default();
        if bytes.len() > known.len() {
            *known = bytes;
        }
    }
    longest
}

#[test]
fn forms_of_proposals_are_read_for_good() {
    let wanted = kinds("store.Change").into_values().collect();
    let of_change = |proposal: &Proposal| {
        let wire = pb::store::Proposal::decode(encode_proposal(proposal)).expect("it was just encoded");
        (
            kind("store.Change", &wire.changes[0].encode_to_vec()).to_owned(),
            encode_proposal(proposal).to_vec(),
        )
    };
    complete("proposal", &wanted, || {
        let one = strategies::change();
        longest(
            one.prop_map(|change| Proposal { changes: vec![change], at: Timestamp(1_795_000_000_000) }),
            of_change,
        )
    });
    for (version, name, bytes) in stored("proposal") {
        let proposal = decode_proposal(&bytes).unwrap_or_else(|error| panic!("{name} of {version}: {error}"));
        assert_eq!(
            of_change(&proposal),
            (name.clone(), bytes),
            "{name} of {version} says something else today"
        );
    }
}

#[test]
fn forms_of_snapshots_are_read_for_good() {
    let records = |bytes: &[u8]| -> BTreeSet<&'static str> {
        let (mut rest, mut found) = (&bytes[8..], BTreeSet::new());
        while let Some((length, behind)) = rest.split_first_chunk::<4>() {
            let (record, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
            found.insert(kind("store.Record", record));
            rest = behind;
        }
        found
    };
    let wanted: BTreeSet<&str> = kinds("store.Record").into_values().collect();
    let has: BTreeSet<&str> = stored("snapshot").iter().flat_map(|(_, _, bytes)| records(bytes)).collect();
    if has != wanted {
        let name = stored("snapshot").len().to_string();
        complete("snapshot", &BTreeSet::from([&*name]), || {
            let mut runner = TestRunner::deterministic();
            let all = (0..DRAWS).find_map(|_| {
                let drawn = strategies::snapshot().new_tree(&mut runner).expect("a state").current();
                let mut bytes = Vec::new();
                write_snapshot(&State::restore(drawn), &mut bytes).expect("a vector takes everything");
                (records(&bytes) == wanted).then_some(bytes)
            });
            BTreeMap::from([(name.clone(), all.expect("one of them has everything"))])
        });
    }
    for (version, name, bytes) in stored("snapshot") {
        let state =
            read_snapshot(&mut &*bytes).unwrap_or_else(|error| panic!("{name} of {version}: {error}"));
        let mut again = Vec::new();
        write_snapshot(&state, &mut again).expect("a vector takes everything");
        assert!(again == bytes, "snapshot {name} of {version} says something else today");
    }
}

fn drawn<T>(of: impl Strategy<Value = T>, size: impl Fn(&T) -> usize) -> T {
    let mut runner = TestRunner::deterministic();
    let draws = (0..100).map(|_| of.new_tree(&mut runner).expect("a value").current());
    draws.max_by_key(size).expect("there are some")
}

fn from_node() -> BTreeMap<String, Vec<u8>> {
    use pb::from_node::What;
    let node = pb::Node::from(&drawn(strategies::node(), |node| pb::Node::from(node).encoded_len()));
    let report = drawn(strategies::report(), |report| pb::TaskReport::from(report).encoded_len());
    let all = [
        What::Hello(pb::Hello {
            hostname: "n1".into(),
            description: node.description,
            incarnation: 1 << 32 | 7,
            seat: 3,
            seat_lost: true,
        }),
        What::Heartbeat(pb::Heartbeat { sequence: 12 }),
        What::Reports(pb::TaskReports { reports: vec![(&report).into()] }),
        What::Taken(9),
    ];
    let encoded = all.map(|what| pb::FromNode { what: Some(what) }.encode_to_vec());
    encoded.map(|bytes| (kind("FromNode", &bytes).to_owned(), bytes)).into()
}

fn to_node() -> BTreeMap<String, Vec<u8>> {
    use pb::to_node::What;
    let assignment = drawn(strategies::assignment(), |all| pb::Assignment::from(all).encoded_len());
    let difference = drawn(strategies::difference(), |all| pb::AssignmentDifference::from(all).encoded_len());
    let table = drawn(strategies::table(), |table| pb::Table::from(table).encoded_len());
    let manager = pb::Manager { node_id: NodeId(7).to_string(), addr: "192.0.2.1:2377".into(), raft_id: 4 };
    let all = [
        What::Assignment((&assignment).into()),
        What::Heartbeat(pb::HeartbeatReply { sequence: 12, confirmed: 11 }),
        What::Managers(pb::ManagerList {
            managers: vec![manager],
            role: pb::Role::Manager.into(),
            raft_id: 5,
            leader_id: NodeId(7).to_string(),
            incarnation: 1 << 32 | 7,
        }),
        What::Refusal(pb::Refusal {
            reason: pb::refusal::Reason::Outdated.into(),
            words: "it goes on without".into(),
            incarnation: 1 << 32 | 7,
        }),
        What::Table((&table).into()),
        What::Difference((&difference).into()),
    ];
    let encoded = all.map(|what| pb::ToNode { what: Some(what) }.encode_to_vec());
    encoded.map(|bytes| (kind("ToNode", &bytes).to_owned(), bytes)).into()
}

#[test]
fn forms_of_sessions_are_read_for_good() {
    complete("from-node", &kinds("FromNode").into_values().collect(), from_node);
    complete("to-node", &kinds("ToNode").into_values().collect(), to_node);
    for (version, name, bytes) in stored("from-node") {
        let mut message = pb::FromNode::decode(&*bytes).expect("it was a message once");
        // What has a meaning beyond the message goes there and back.
        if let Some(pb::from_node::What::Reports(all)) = &mut message.what {
            for wire in &mut all.reports {
                let report: Report = rswarm_proto::convert::report(NodeId(1), wire.clone())
                    .unwrap_or_else(|error| panic!("{name} of {version}: {error}"));
                *wire = (&report).into();
            }
        }
        assert_eq!(message.encode_to_vec(), bytes, "{name} of {version} says something else today");
    }
    for (version, name, bytes) in stored("to-node") {
        use pb::to_node::What;
        let wrong = |error: rswarm_proto::Invalid| -> ! { panic!("{name} of {version}: {error}") };
        let mut message = pb::ToNode::decode(&*bytes).expect("it was a message once");
        match &mut message.what {
            Some(What::Assignment(wire)) => {
                *wire = (&Assignment::try_from(wire.clone()).unwrap_or_else(|error| wrong(error))).into();
            }
            Some(What::Difference(wire)) => {
                *wire = (&Difference::try_from(wire.clone()).unwrap_or_else(|error| wrong(error))).into();
            }
            Some(What::Table(wire)) => {
                *wire = (&Table::try_from(wire.clone()).unwrap_or_else(|error| wrong(error))).into();
            }
            _ => {}
        }
        assert_eq!(message.encode_to_vec(), bytes, "{name} of {version} says something else today");
    }
}

#[test]
fn forms_keep_the_name_number_and_kind_of_every_field() {
    let now: BTreeSet<&str> = FIELDS.lines().collect();
    let lists: Vec<(String, String, Vec<u8>)> = stored("fields");
    if std::env::var_os("ADD_FORMS").is_some() {
        let known: BTreeSet<String> = lists
            .iter()
            .flat_map(|(_, _, text)| {
                String::from_utf8_lossy(text).lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        let new: String =
            now.iter().filter(|line| !known.contains(**line)).map(|line| format!("{line}\n")).collect();
        if !new.is_empty() {
            add("fields", &format!("{}.txt", lists.len()), new.as_bytes());
        }
    }
    for (version, _, text) in stored("fields") {
        let text = String::from_utf8(text).expect("text");
        let gone: Vec<&str> = text.lines().filter(|line| !now.contains(line)).collect();
        assert!(
            gone.is_empty(),
            "what {version} writes is no longer read so: {gone:#?}; a field that is no longer written is kept, \
             and its number never given to another"
        );
    }
    assert!(!stored("fields").is_empty(), "no version has kept its list of fields");
}
