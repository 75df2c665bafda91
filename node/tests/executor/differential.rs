//! The same containers by this executor and by runc: what their programs find must be the same.

use super::bench::{Bench, Claim, claims};
use rswarm::executor::{ContainerRequest, Mount, Rlimit};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const CLAIMS: &[Claim] = claims![runc_makes_the_same_of_the_same_specification,];

pub fn runc_makes_the_same_of_the_same_specification(bench: &mut Bench) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(runc) = std::env::split_paths(&path).map(|at| at.join("runc")).find(|at| at.is_file()) else {
        eprintln!("skipped: runc is not installed (Debian's package runc)");
        return;
    };
    let mut plain = bench.request(&["state"]);
    plain.env = vec!["COLOUR=blue".into(), "EMPTY=".into(), "TWO=a=b".into()];
    plain.hostname = "box".into();
    let mut user = bench.request(&["state"]);
    (user.user, user.groups) = ("33:34".into(), vec!["40".into()]);
    (user.workdir, user.oom_score_adj) = ("/data".into(), 300);
    let mut changed = bench.request(&["state"]);
    changed.privileges.cap_add = vec!["NET_ADMIN".into()];
    changed.privileges.cap_drop = vec!["CHOWN".into(), "KILL".into()];
    changed.privileges.read_only_root = true;
    changed.privileges.new_privileges = true;
    changed.privileges.sysctls = [("net.ipv4.ip_default_ttl".into(), "33".into())].into();
    let limit = |name: &str, soft, hard| Rlimit { name: name.into(), soft, hard };
    changed.rlimits = vec![limit("nofile", 100, 200), limit("core", 0, 0), limit("nproc", 60, 70)];
    changed.shm_bytes = Some(1 << 20);
    let bound = bench.directory.path().join("bound");
    fs::create_dir(&bound).unwrap();
    fs::write(bound.join("file"), "given").unwrap();
    for (target, readonly) in [("/ro", true), ("/rw", false)] {
        changed.mounts.push(Mount::Bind { source: bound.clone(), target: target.into(), readonly });
    }
    changed.mounts.push(Mount::Tmpfs { target: "/scratch".into(), size_bytes: Some(1 << 20), mode: 0o1777 });
    let ends = [&["exit", "7"][..], &["abort"]].map(|words| bench.request(words));

    for request in [plain, user, changed].into_iter().chain(ends) {
        let (id, words) = (request.id.clone(), request.args.join(" "));
        let ours = by_us(bench, request);
        let theirs = by_runc(bench, &runc, &id);
        let masked: BTreeSet<String> = ours.2;
        assert_eq!(ours.0, theirs.0, "how {id} ended: {words}");
        let (ours, theirs) = (comparable(&ours.1, &masked), comparable(&theirs.1, &masked));
        let alone = |one: &BTreeSet<String>, other: &BTreeSet<String>| {
            one.difference(other).cloned().collect::<Vec<_>>().join("\n  ")
        };
        assert!(
            ours == theirs,
            "{id}: {words}\nby us alone:\n  {}\nby runc alone:\n  {}",
            alone(&ours, &theirs),
            alone(&theirs, &ours),
        );
    }
}

/// How it ended, what it said, and which paths are masked.
fn by_us(bench: &Bench, request: ContainerRequest) -> (i32, String, BTreeSet<String>) {
    let id = request.id.clone();
    let (code, said) = bench.run(request);
    let masked = specification(bench, &id)["linux"]["maskedPaths"].clone();
    (code, said, serde_json::from_value(masked).unwrap())
}

fn specification(bench: &Bench, id: &str) -> Value {
    let path = bench.config.root_dir.join("containers").join(id).join("config.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Runs the specification of a container of ours, on a root of its own.
fn by_runc(bench: &Bench, runc: &Path, id: &str) -> (i32, String) {
    let bundle: PathBuf = bench.directory.path().join(format!("bundle-{id}"));
    let root = bundle.join("rootfs");
    for name in ["bin", "etc", "data"] {
        fs::create_dir_all(root.join(name)).unwrap();
        for entry in fs::read_dir(bench.image().join(name)).unwrap() {
            let entry = entry.unwrap();
            fs::hard_link(entry.path(), root.join(name).join(entry.file_name())).unwrap();
        }
    }
    let mut spec = specification(bench, id);
    spec["root"]["path"] = json!(root);
    spec["linux"]["cgroupsPath"] = json!(format!("/rswarm-runc-{}-{id}", std::process::id()));
    fs::write(bundle.join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    let mut command = Command::new(runc);
    command.arg("--root").arg(bundle.join("state")).arg("run").arg("--bundle").arg(&bundle);
    let ran = command.arg(format!("{}-{id}", std::process::id())).output().unwrap();
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(errors.is_empty() || !errors.contains("runc"), "{errors}");
    (ran.status.code().unwrap(), String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// The lines, but for what is each one's own: the root, the control groups, what covers a masked path, and what runc
/// alone puts into /dev.
fn comparable(said: &str, masked: &BTreeSet<String>) -> BTreeSet<String> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["mount", "/", ..] | ["dev", "core" | "console"] => None,
            ["mount", target, ..] if target.starts_with("/sys/fs/cgroup") => None,
            ["mount", target, ..] if masked.contains(target) => Some(format!("masked {target}")),
            _ => Some(line.to_owned()),
        }
    };
    said.lines().filter_map(line).collect()
}
