//! Devices that a node's CDI files name, from the file to the program that has them; and containers that another runtime
//! makes, from the daemon's configuration on.

mod room;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use room::{Node, Room};

/// A node whose machine has these devices and says this in its configuration.
fn node<'room>(room: &'room Room, said: &str) -> Node<'room> {
    let mut node = room.machine("n1");
    let directory = room.path("cdi");
    fs::create_dir(&directory).expect("a directory");
    let device = |name: &str| {
        serde_json::json!({
            "name": name,
            "containerEdits": {
                "env": [format!("THING={name}")],
                "deviceNodes": [{"path": format!("/dev/thing-{name}"), "hostPath": "/dev/null", "permissions": "rw"}],
            },
        })
    };
    let file = serde_json::json!({
        "cdiVersion": "0.6.0",
        "kind": "example.com/thing",
        "containerEdits": {"mounts": [{"hostPath": "/usr", "containerPath": "/driver", "options": ["ro", "bind"]}]},
        "devices": [device("a"), device("b")],
    });
    fs::write(directory.join("things.json"), file.to_string()).expect("a file");
    let text = format!("{said}\ncdi-spec-dirs = [{directory:?}]\n");
    fs::write(node.config(), text).expect("a file");
    node.start();
    node.init("127.0.0.1").done();
    node
}

fn create(node: &Node<'_>, name: &str, words: &[&str]) {
    let all = [&["service", "create", "-q", "--name", name], words, &["rswarm/demo"]].concat();
    node.rswarm(&all).done();
}

/// The number of a task's first process.
fn process(node: &Node<'_>, task: &str) -> i32 {
    let text = node.rswarm(&["top", task]).done();
    let line = text.lines().nth(1).expect("a process");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("its number")
}

fn environment(pid: i32) -> BTreeMap<String, String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).expect("it runs");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.split('\0').filter_map(|entry| entry.split_once('=')).map(|(a, b)| (a.into(), b.into())).collect()
}

/// It has the one device and not the other.
fn has(pid: i32, name: &str, other: &str) {
    let root = format!("/proc/{pid}/root");
    let device = fs::metadata(format!("{root}/dev/thing-{name}")).expect("the device");
    assert_eq!(device.rdev(), fs::metadata("/dev/null").expect("a device").rdev());
    assert!(!Path::new(&format!("{root}/dev/thing-{other}")).exists());
    assert!(Path::new(&format!("{root}/driver/bin")).exists(), "what all devices of the file need");
    assert_eq!(environment(pid)["THING"], name);
}

fn devices_are_given_by_name_and_by_number(node: &Node<'_>) {
    let shown = node.rswarm(&["node", "inspect", "--pretty", "self"]).done();
    for line in ["Device:\t\texample.com/thing=a", "Generic:\t\texample.com/thing=b"] {
        assert!(shown.contains(line), "{shown}");
    }
    create(node, "named", &["--device", "example.com/thing=b"]);
    has(process(node, "named.1"), "b", "a");
    // One task at a time has what it was given by number.
    create(node, "counted", &["--generic-resource", "example.com/thing=1", "--replicas", "2"]);
    let given: Vec<String> = ["counted.1", "counted.2"]
        .into_iter()
        .map(|task| {
            let pid = process(node, task);
            let name = environment(pid)["THING"].clone();
            has(pid, &name, if name == "a" { "b" } else { "a" });
            name
        })
        .collect();
    assert_ne!(given[0], given[1]);
    let create =
        ["service", "create", "-q", "--timeout", "2s", "--name", "none", "--device", "example.com/thing=c"];
    let words =
        ["there is no device example.com/thing=c on 1 node", "has example.com/thing=a, example.com/thing=b"];
    node.rswarm(&[&create[..], &["rswarm/demo"]].concat()).refused(6, &words);
    node.rswarm(&["service", "create", "--device", "thing=c", "rswarm/demo"])
        .refused(1, &["neither an absolute path nor a name as in vendor.com/class=name"]);
}

#[test]
fn a_device_goes_from_a_file_to_a_program() {
    let Some(room) = Room::open() else { return };
    devices_are_given_by_name_and_by_number(&node(&room, ""));
}

#[test]
fn it_goes_there_by_another_runtime_too() {
    let Some(room) = Room::open() else { return };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(runc) = std::env::split_paths(&path).map(|at| at.join("runc")).find(|at| at.is_file()) else {
        eprintln!("skipped: runc is not installed");
        return;
    };
    let node = node(&room, &format!("runtime = {runc:?}"));
    devices_are_given_by_name_and_by_number(&node);
    let pid = process(&node, "named.1");
    let records = node.state.parent().expect("a directory");
    assert!(find(records, "runtime/config.json") > 0, "runc has made them");
    // The door is the shim's.
    node.rswarm(&["exec", "named.1", "/rswarm", "version"]).done();
    node.rswarm(&["service", "rm", "named", "counted"]).done();
    node.until("it has ended", |_| !Path::new(&format!("/proc/{pid}")).exists());
}

/// How many files lie below a directory whose paths end so.
fn find(directory: &Path, end: &str) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => find(&entry.path(), end),
            _ => usize::from(entry.path().ends_with(end)),
        })
        .sum()
}

#[test]
fn a_daemon_without_its_runtime_says_so_and_ends() {
    let Some(room) = Room::open() else { return };
    let node = room.machine("n1");
    let mut command = node.daemon_command();
    command.args(["--runtime", "/no/such/runc"]);
    let output = room.netns.run(|| command.output()).expect("the namespace").expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        said.contains("the container runtime /no/such/runc cannot be used: there is no such program"),
        "{said}"
    );
}
