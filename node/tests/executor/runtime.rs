//! Containers that another OCI runtime makes, from the same requests: the same holds inside and outside, but for what is
//! named here with its reason.

use super::bench::{Bench, Claim, claims};
use super::{adoption, beside, ends, limits, streams};
use rswarm::executor::{Config, ContainerRequest, Device, Error, Executor, Hook, Mount, Rlimit};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const CLAIMS: &[Claim] = claims![
    inside_it_is_as_if_runc_had_made_it,
    ends_are_told_as_if_runc_had_made_it,
    what_is_promised_of_containers_is_kept_by_runc,
    what_another_runtime_cannot_do_is_refused,
    hooks_are_run_by_another_runtime_only,
    a_runtime_that_will_not_do_is_refused_at_once,
];

/// The path of a runtime that is installed.
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|at| at.join(name)).find(|at| at.is_file());
    if found.is_none() {
        eprintln!("skipped: {name} is not installed");
    }
    found
}

/// From now on `runc` makes the containers, if it is there and can here.
fn by_runc(bench: &mut Bench) -> bool {
    let Some(path) = installed("runc") else { return false };
    bench.config.runtime = Some(path);
    match bench.wait(Executor::open(bench.config.clone())) {
        Ok(executor) => bench.executor = executor,
        Err(Error::Runtime(why)) if bench.executor.limits_unenforced().is_some() => {
            bench.config.runtime = None;
            eprintln!("skipped: {why}");
            return false;
        }
        Err(error) => panic!("{error}"),
    }
    true
}

/// What differs inside: how a line begins that only one of the two has, what else is in it, and why that is meant.
const MEANT: &[(&str, &str, &str)] = &[
    ("dies with its parent", "", "nobody but a parent can ask for it: a guard kills what runc has made"),
    (
        "mount /proc/acpi ",
        "ro tmpfs",
        "what we cover with may hold nothing and run nothing, beside being read-only",
    ),
    ("mount /proc/asound ", "ro tmpfs", "as above"),
    ("mount /proc/scsi ", "ro tmpfs", "as above"),
    ("mount /sys/devices/virtual/powercap ", "ro tmpfs", "as above"),
    ("mount /sys/firmware ", "ro tmpfs", "as above"),
    ("mount /sys ", "ro sysfs", "runc makes the file system read-only as well as its mount"),
    ("mount /sys/fs/cgroup ", "tmpfs", "runc leaves the directory of the hierarchies writable"),
    ("mount /sys/fs/cgroup/", ",ro cgroup ", "runc shows the hierarchies that we do not use, too"),
    ("devices.list c 10:200 rwm", "", "runc before 1.2 lets every container use /dev/net/tun"),
];

type Change = fn(&mut ContainerRequest);

/// Containers that differ in what they ask for.
const ASKED: &[(&str, Change)] = &[
    ("nothing", |_| {}),
    ("a user", |request| {
        request.user = "web".into();
        request.groups = vec!["www".into(), "55".into()];
        request.workdir = "/srv/made/for/it".into();
        request.env = vec!["COLOUR=blue".into(), "HOME=/elsewhere".into()];
    }),
    ("rights", |request| {
        request.privileges.cap_add = vec!["NET_RAW".into(), "SYS_PTRACE".into()];
        request.privileges.cap_drop = vec!["CHOWN".into()];
        request.privileges.seccomp_unconfined = true;
        request.privileges.new_privileges = true;
    }),
    ("no rights", |request| {
        request.privileges.cap_drop = vec!["ALL".into()];
        request.privileges.read_only_root = true;
    }),
    ("limits", |request| {
        request.limits.memory_bytes = Some(64 << 20);
        request.limits.nano_cpus = Some(500_000_000);
        request.limits.pids = Some(50);
        let rlimit = |name: &str, soft, hard| Rlimit { name: name.into(), soft, hard };
        request.rlimits = vec![rlimit("nofile", 100, 200), rlimit("core", 0, 0), rlimit("nproc", 50, 60)];
        request.oom_score_adj = 321;
    }),
    ("mounts", |request| {
        request.mounts = vec![
            Mount::Tmpfs { target: "/scratch".into(), size_bytes: Some(1 << 20), mode: 0o1777 },
            Mount::Bind { source: "/usr".into(), target: "/mnt/ro".into(), readonly: true },
            Mount::Bind { source: "/etc/hostname".into(), target: "/mnt/deep/file".into(), readonly: false },
        ];
        request.shm_bytes = Some(1 << 20);
    }),
    ("settings", |request| {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        request.privileges.sysctls =
            [pair("net.ipv4.ip_default_ttl", "42"), pair("kernel.shmmni", "77")].into();
        request.devices =
            vec![Device { source: "/dev/kmsg".into(), target: "/dev/made/kmsg".into(), access: "w".into() }];
        request.extra_hosts = vec![("db".into(), "10.0.0.9".parse().unwrap())];
        request.dns.servers = vec!["10.0.0.1".parse().unwrap()];
    }),
];

fn inside_it_is_as_if_runc_had_made_it(bench: &mut Bench) {
    if installed("runc").is_none() {
        return;
    }
    let ours = seen(bench);
    if !by_runc(bench) {
        return;
    }
    let theirs = seen(bench);
    let mut unmeant = Vec::new();
    let mut met = BTreeSet::new();
    for ((what, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        for (whose, line) in ours
            .difference(theirs)
            .map(|line| ("only by the shim", line))
            .chain(theirs.difference(ours).map(|line| ("only by runc", line)))
        {
            let meant =
                MEANT.iter().find(|(begins, holds, _)| line.starts_with(begins) && line.contains(holds));
            match meant {
                Some((begins, ..)) => drop(met.insert(*begins)),
                None => unmeant.push(format!("{what}, {whose}: {line}")),
            }
        }
    }
    assert!(unmeant.is_empty(), "these differ:\n{}", unmeant.join("\n"));
    println!("    {} of {} differences that are meant were met", met.len(), MEANT.len());
}

/// What programs see in containers that ask for this and that.
fn seen(bench: &mut Bench) -> Vec<(String, BTreeSet<String>)> {
    let host: BTreeSet<String> = fs::read_dir("/proc/self/ns")
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
        .collect();
    let whose = |line: &str| match line.strip_prefix("namespace ") {
        Some(link) if host.contains(link) => format!("{} is the machine's", link.split(':').next().unwrap()),
        Some(link) => format!("{} is its own", link.split(':').next().unwrap()),
        None => line.to_owned(),
    };
    let mut found = Vec::new();
    for words in ["probe", "profile", "calls"] {
        for (what, change) in ASKED {
            let mut request = bench.request(&[words]);
            request.hostname = "same".into();
            change(&mut request);
            let (code, output) = bench.run(request);
            assert_eq!(code, 0, "{words} of {what}: {output}");
            // What a process has of memory and has waited for is not a matter of its container.
            let lines = output.lines().filter(|line| *words != *"profile" || !line.contains(": "));
            found.push((format!("{words} of {what}"), lines.map(whose).collect()));
        }
    }
    found
}

fn ends_are_told_as_if_runc_had_made_it(bench: &mut Bench) {
    let ours = told(bench);
    if by_runc(bench) {
        let theirs = told(bench);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs);
        }
        // It executes the program when it has said that all is well: what is none is only seen to fail.
        let mut request = bench.request(&[]);
        request.args = vec!["/bin/garbage".into()];
        let exit = bench.run(request).0;
        assert!(exit != 0, "{exit}");
    }
}

/// How containers end in one way and another: code, signal, and whether memory was short.
fn told(bench: &mut Bench) -> Vec<(&'static str, i32, Option<i32>, bool)> {
    type Act = fn(&Bench, &str);
    let limited = bench.executor.limits_unenforced().is_none();
    let signalled = |number| -> Act {
        match number {
            9 => |bench, id| bench.wait(bench.executor.kill(id, 9)).unwrap(),
            _ => |bench, id| {
                bench.until_said(id, "ready");
                bench.wait(bench.executor.kill(id, 15)).unwrap();
            },
        }
    };
    let ways: &[(&'static str, &[&str], Act)] = &[
        ("well", &["exit", "0"], |_, _| {}),
        ("not well", &["exit", "42"], |_, _| {}),
        ("by its own hand", &["abort"], |_, _| {}),
        ("killed", &["hang"], signalled(9)),
        ("asked to", &["obey"], signalled(15)),
        ("want of memory", &["eat", "200"], |_, _| {}),
        ("no more lease", &["hang"], |_, _| {}),
    ];
    let mut found = Vec::new();
    for (what, words, act) in ways.iter().filter(|(what, ..)| limited || *what != "want of memory") {
        let mut request = bench.request(words);
        request.limits.memory_bytes = limited.then_some(48 << 20);
        request.lease = (*what == "no more lease").then_some(Duration::from_millis(300));
        let id = bench.start(request).unwrap();
        act(bench, &id);
        let exit = bench.wait(bench.executor.wait(&id)).unwrap();
        found.push((*what, exit.code, exit.signal, exit.oom_killed));
    }
    for (what, program) in [
        ("missing", "/foo"),
        ("missing in the path", "foo"),
        ("no right to", "/bin/data"),
        ("no file", "/bin"),
    ] {
        let mut request = bench.request(&[]);
        request.args = vec![program.into()];
        match bench.start(request) {
            Err(Error::Start { code, message }) => {
                assert!(message.contains(program), "{message}");
                found.push((what, code, None, false));
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    found
}

/// The claims made of our own containers that concern their lives and the ways into them, of runc's.
fn what_is_promised_of_containers_is_kept_by_runc(bench: &mut Bench) {
    if !by_runc(bench) {
        return;
    }
    let all = [ends::CLAIMS, adoption::CLAIMS, beside::CLAIMS, streams::CLAIMS, limits::CLAIMS];
    for (name, claim) in all.into_iter().flatten() {
        if let Some((_, why)) = NOT_OF_RUNC.iter().find(|(other, _)| other == name) {
            println!("    {name}: not looked at: {why}");
            continue;
        }
        println!("    {name}");
        claim(bench);
        for container in bench.executor.list() {
            bench.wait(bench.executor.remove(&container.id)).unwrap();
        }
    }
}

/// Claims that are not made of containers that runc has made, and why.
const NOT_OF_RUNC: &[(&str, &str)] = &[(
    "every_way_to_die_has_its_record_and_its_words",
    "it needs an init of ours, and runc has its own words; the codes are compared above",
)];

fn what_another_runtime_cannot_do_is_refused(bench: &mut Bench) {
    if !by_runc(bench) {
        return;
    }
    let changes: [(Change, &str); 2] =
        [(|request| request.init = true, "--init"), (|request| request.own_users = true, "--userns")];
    for (change, flag) in changes {
        let mut request = bench.request(&["exit", "0"]);
        change(&mut request);
        match bench.wait(bench.executor.create(request)) {
            Err(Error::Invalid { reason, .. }) => {
                assert!(reason.contains(flag) && reason.contains("made by runc 1."), "{reason}");
                assert!(reason.contains("place it on a node without `runtime`"), "{reason}");
            }
            other => panic!("{flag}: {other:?}"),
        }
    }
}

fn hooks_are_run_by_another_runtime_only(bench: &mut Bench) {
    let mark = bench.directory.path().join("mark");
    let hook = |moment: &str| Hook {
        hook_name: moment.into(),
        path: "/bin/sh".into(),
        args: ["sh", "-c", &format!("echo {moment} >> {}", mark.display())].map(String::from).into(),
        env: vec!["PATH=/bin".into()],
        timeout: Some(5),
    };
    let mut request = bench.request(&["exit", "0"]);
    request.hooks = vec![hook("createRuntime"), hook("poststop")];
    match bench.wait(bench.executor.create(request.clone())) {
        Err(Error::Invalid { reason, .. }) => assert!(reason.contains("only another runtime"), "{reason}"),
        other => panic!("{other:?}"),
    }
    if by_runc(bench) {
        assert_eq!(bench.run(request).0, 0);
        assert_eq!(fs::read_to_string(mark).unwrap(), "createRuntime\npoststop\n");
    }
}

fn a_runtime_that_will_not_do_is_refused_at_once(bench: &mut Bench) {
    let program = |name: &str, text: &str, mode: u32| {
        let path = bench.directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let table = [
        ("runc".into(), "no absolute path"),
        ("/no/such/runc".into(), "there is no such program"),
        (program("plain", "#!/bin/sh\n", 0o644), "it is not executable"),
        (program("other", "#!/bin/sh\necho busybox version 1.36\n", 0o755), "none of runc, crun and youki"),
        (program("failing", "#!/bin/sh\nexit 3\n", 0o755), "ends with exit status: 3"),
        (program("old", "#!/bin/sh\necho runc version 1.0.3\n", 0o755), "runc 1.0 is too old"),
    ];
    let shell = Path::new("/bin/sh").exists();
    if !shell {
        eprintln!("skipped for programs that say something: there is no shell here");
    }
    for (path, words) in table.into_iter().take(if shell { usize::MAX } else { 3 }) {
        let config = Config { runtime: Some(path.clone()), ..bench.config.clone() };
        match bench.wait(Executor::open(config)).err() {
            Some(Error::Runtime(said)) => {
                assert!(said.contains(words) && said.contains(path.to_str().unwrap()), "{said}");
                assert!(!said.contains('\n'), "{said}");
            }
            other => panic!("{words}: {other:?}"),
        }
    }
}
