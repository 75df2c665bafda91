//! Whatever the model can hold comes back from the wire and from disk as it was, and hostile bytes are
//! refused without a panic.

mod forms;
mod hostile;
mod strategies;

use proptest::prelude::*;
use prost::Message;
use rswarm_control::assignment::{Assignment, Difference};
use rswarm_control::endpoints::{Directory, Table};
use rswarm_control::model::{Network, Node, Service, ServiceSpec, Task};
use rswarm_control::{Report, Snapshot, State};
use rswarm_proto::convert;
use rswarm_proto::store::{SnapshotError, decode_proposal, encode_proposal, read_snapshot, write_snapshot};
use rswarm_proto::v1 as pb;
use std::fmt::Debug;

/// Model → message → bytes → message → model.
fn check<M, W>(value: &M) -> Result<(), TestCaseError>
where
    M: TryFrom<W, Error: Debug> + PartialEq + Debug,
    W: for<'a> From<&'a M> + Message + Default,
{
    let bytes = W::from(value).encode_to_vec();
    let back = M::try_from(W::decode(bytes.as_slice()).expect("what was encoded decodes"));
    prop_assert_eq!(&back.expect("what the model holds is valid"), value);
    Ok(())
}

fn written(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_snapshot(state, &mut bytes).expect("a vector takes everything");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nodes_come_back(node in strategies::node()) {
        check::<Node, pb::Node>(&node)?;
    }

    #[test]
    fn services_come_back(service in strategies::service()) {
        check::<Service, pb::Service>(&service)?;
        check::<ServiceSpec, pb::ServiceSpec>(&service.spec)?;
    }

    #[test]
    fn tasks_come_back(task in strategies::task()) {
        check::<Task, pb::Task>(&task)?;
    }

    #[test]
    fn networks_come_back(network in strategies::network()) {
        check::<Network, pb::Network>(&network)?;
    }

    #[test]
    fn assignments_and_differences_come_back(
        assignment in strategies::assignment(),
        difference in strategies::difference(),
    ) {
        check::<Assignment, pb::Assignment>(&assignment)?;
        check::<Difference, pb::AssignmentDifference>(&difference)?;
    }

    #[test]
    fn tables_come_back(table in strategies::table()) {
        check::<Table, pb::Table>(&table)?;
    }

    #[test]
    fn news_of_tables_come_back(piece in strategies::piece()) {
        let back = convert::piece(convert::part(&piece));
        prop_assert_eq!(back.expect("what the model holds is valid"), piece);
    }

    #[test]
    fn a_bit_flipped_in_news_does_no_harm(
        piece in strategies::piece(),
        place: prop::sample::Index,
        bit in 0u8..8,
    ) {
        let mut bytes = convert::part(&piece).to_vec();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        if let Ok(piece) = convert::piece(bytes.into()) {
            let _ = Directory::default().follow(piece);
        }
    }

    #[test]
    fn reports_come_back(report in strategies::report()) {
        let bytes = pb::TaskReport::from(&report).encode_to_vec();
        let wire = pb::TaskReport::decode(bytes.as_slice()).expect("what was encoded decodes");
        let back: Report = rswarm_proto::convert::report(report.node, wire).expect("it is valid");
        prop_assert_eq!(back, report);
    }

    #[test]
    fn proposals_come_back(proposal in strategies::proposal()) {
        let bytes = encode_proposal(&proposal);
        prop_assert_eq!(&encode_proposal(&proposal), &bytes, "equal proposals give equal bytes");
        prop_assert_eq!(decode_proposal(&bytes).expect("what was encoded decodes"), proposal);
    }

    #[test]
    fn a_bit_flipped_in_a_proposal_does_no_harm(
        proposal in strategies::proposal(),
        place: prop::sample::Index,
        bit in 0u8..8,
    ) {
        let mut bytes = encode_proposal(&proposal).to_vec();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        let _ = decode_proposal(&bytes);
    }

    #[test]
    fn noise_is_no_proposal_and_no_snapshot(bytes: Vec<u8>) {
        let _ = decode_proposal(&bytes);
        prop_assert!(read_snapshot(&mut bytes.as_slice()).is_err());
    }

    #[test]
    fn snapshots_come_back(snapshot in strategies::snapshot()) {
        let state = State::restore(snapshot);
        let mut bytes = written(&state);
        bytes.extend(b"beyond");
        let mut rest = bytes.as_slice();
        prop_assert_eq!(read_snapshot(&mut rest).expect("what was written reads"), state);
        prop_assert_eq!(rest, b"beyond");
    }

    #[test]
    fn a_snapshot_cut_short_is_noticed(snapshot in strategies::snapshot(), cut: prop::sample::Index) {
        let bytes = written(&State::restore(snapshot));
        prop_assert!(read_snapshot(&mut &bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn a_bit_flipped_in_a_snapshot_does_no_harm(
        snapshot in strategies::snapshot(),
        place: prop::sample::Index,
        bit in 0u8..8,
    ) {
        let mut bytes = written(&State::restore(snapshot));
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        let _ = read_snapshot(&mut bytes.as_slice());
    }
}

/// Hands `each` what the fuzzer has kept for a target, see `fuzz/README.md`.
fn replay(target: &str, each: impl Fn(&[u8])) {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut count = 0;
    for file in std::fs::read_dir(&corpus).expect("the corpus is there") {
        let path = file.expect("a readable directory").path();
        println!("{}", path.display());
        each(&std::fs::read(path).expect("a readable file"));
        count += 1;
    }
    assert!(count >= 5, "{} is nearly empty", corpus.display());
}

#[test]
fn what_the_fuzzer_kept_does_no_harm() {
    replay("proposal", hostile::proposal);
    replay("state", hostile::state);
    replay("session", hostile::session);
}

#[test]
fn tasks_of_a_service_share_their_spec_on_disk_and_in_memory() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let service = strategies::service().new_tree(&mut runner).expect("a service").current();
    let task = strategies::task().new_tree(&mut runner).expect("a task").current();
    let tasks: Vec<_> = (0..100)
        .map(|id| {
            let mut task = task.clone();
            task.id = rswarm_control::TaskId(id);
            task.service = service.id;
            task.spec_version = service.spec_version;
            task.spec = service.spec.task.clone();
            task.into()
        })
        .collect();
    let state =
        State::restore(Snapshot { services: vec![service.clone().into()], tasks, ..Snapshot::default() });
    let back = read_snapshot(&mut written(&state).as_slice()).expect("what was written reads");
    assert_eq!(back, state);
    let spec = &back.service(service.id).expect("it is there").spec.task;
    assert!(back.tasks().all(|task| std::sync::Arc::ptr_eq(&task.spec, spec)));
}

#[test]
fn a_record_that_claims_too_much_is_refused_before_it_is_read() {
    let mut bytes = b"RSWSNAP1".to_vec();
    bytes.extend(u32::MAX.to_le_bytes());
    let error = read_snapshot(&mut bytes.as_slice()).expect_err("it claims 4 GiB");
    assert!(matches!(error, SnapshotError::Damaged { record: 0, .. }), "{error}");
}

#[test]
fn an_unknown_format_is_refused_with_the_cure() {
    let bytes = pb::store::Proposal { format: 9, ..Default::default() }.encode_to_vec();
    let error = decode_proposal(&bytes).expect_err("format 9 does not exist").to_string();
    assert_eq!(error, "the log entry has format 9, and this version reads only 1; install a newer rswarm");
    let error = read_snapshot(&mut b"RSWSNAP9....".as_slice()).expect_err("nor does it here");
    assert!(matches!(error, SnapshotError::Format));
}

#[test]
fn what_is_wrong_is_named_from_the_outside_in() {
    let case = |change: fn(&mut pb::ServiceSpec)| {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let spec = strategies::service_spec().new_tree(&mut runner).expect("a spec").current();
        let mut wire = pb::ServiceSpec::from(&spec);
        wire.task.as_mut().expect("a task").containers = vec![pb::ContainerSpec::default()];
        change(&mut wire);
        ServiceSpec::try_from(wire).expect_err("it is invalid").to_string()
    };
    fn task(wire: &mut pb::ServiceSpec) -> &mut pb::TaskSpec {
        wire.task.as_mut().expect("a task")
    }
    assert_eq!(case(|wire| wire.task = None), "task: is missing");
    assert_eq!(
        case(|wire| task(wire).containers[0].mounts = vec![pb::Mount::default()]),
        "task.containers[0].mounts[0].kind: is missing"
    );
    assert_eq!(
        case(|wire| task(wire).restart = Some(pb::RestartPolicy { condition: 77, ..Default::default() })),
        "task.restart.condition: has the unknown choice 77; is the sender of a newer version?"
    );
    assert_eq!(
        case(|wire| task(wire).networks = vec!["backend".into()]),
        "task.networks[0]: an id is 13 characters of 0-9 and a-z"
    );
    assert_eq!(
        case(|wire| {
            let port = pb::PortSpec { target: 70_000, protocol: 1, mode: 1, ..Default::default() };
            wire.endpoint = Some(pb::EndpointSpec { mode: 1, ports: vec![port], ..Default::default() });
        }),
        "endpoint.ports[0].target: is 70000, but can be 65535 at most"
    );
    assert_eq!(case(|wire| wire.mode = Some(pb::Mode { kind: None })), "mode.kind: is missing");
}
