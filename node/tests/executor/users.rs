//! Containers whose users are their own: root inside is nobody outside, and files have the numbers they have inside.

use super::bench::{Bench, Claim, PATIENCE, claims, inside_words};
use rswarm::executor::{Error, Exec, Mount, State};
use rswarm::files;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const CLAIMS: &[Claim] = claims![
    root_in_a_container_of_its_own_users_is_nobody_outside,
    files_keep_the_numbers_that_users_have_inside,
    the_default_profile_holds_for_users_of_its_own,
    files_are_copied_as_its_own_users_have_them,
    no_two_containers_share_users_of_their_own,
];

/// Whether this machine can map users; says so where it cannot.
fn cannot(bench: &mut Bench) -> bool {
    let mut request = bench.request(&["exit", "0"]);
    request.own_users = true;
    match bench.start(request) {
        Ok(_) => false,
        Err(Error::Start { message, .. })
            if message.contains("cannot be mounted for a container with users") =>
        {
            eprintln!("skipped: {message}");
            true
        }
        Err(error) => panic!("{error}"),
    }
}

/// A line of `/proc/PID/status`, as the machine sees it.
fn status(bench: &Bench, id: &str, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", bench.pid(id))).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn first(bench: &Bench, id: &str) -> u32 {
    let map = fs::read_to_string(format!("/proc/{}/uid_map", bench.pid(id))).unwrap();
    let words: Vec<u32> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!((words[0], words[2]), (0, 65_536), "{map}");
    assert!(words[1] >= 0x7000_0000, "{map}");
    words[1]
}

fn root_in_a_container_of_its_own_users_is_nobody_outside(bench: &mut Bench) {
    if cannot(bench) {
        return;
    }
    // Of the machine's root alone, in a directory that anybody may look at.
    let outside = bench.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o755)).unwrap();
    for (user, uid) in [("", 0), ("web", 33)] {
        let mut request = bench.request(&["hang"]);
        (request.own_users, request.user) = (true, user.into());
        let id = bench.start(request).unwrap();
        let base = first(bench, &id);
        let (uid, gid) = (base + uid, base + if uid == 0 { 0 } else { 34 });
        assert_eq!(status(bench, &id, "Uid:"), format!("{uid} {uid} {uid} {uid}"));
        assert_eq!(status(bench, &id, "Gid:"), format!("{gid} {gid} {gid} {gid}"));
        let groups = if user.is_empty() { String::new() } else { format!("{}", base + 40) };
        assert_eq!(status(bench, &id, "Groups:"), groups);
        // Another program is as little, whoever it runs as.
        let who = |user: &str| {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let null = || OwnedFd::from(File::open("/dev/null").unwrap());
            let exec = Exec { args: inside_words(&["who"]), user: Some(user.into()), ..Exec::default() };
            let exit = bench.wait(bench.executor.exec(&id, exec, [null(), writer.into(), null()])).unwrap();
            let mut output = String::new();
            reader.read_to_string(&mut output).unwrap();
            (exit.code, output)
        };
        let (code, output) = who("0");
        assert_eq!(code, 0, "{output}");
        assert!(output.contains("0:0 [] home=/root"), "{output}");
        let (code, output) = who("web");
        assert_eq!(code, 0, "{output}");
        assert!(output.contains("33:34 [40] home=/srv"), "{output}");
        bench.wait(bench.executor.stop(&id, Duration::ZERO)).unwrap();
    }
    let mut request = bench.request(&["who"]);
    (request.own_users, request.user) = (true, "70000".into());
    match bench.start(request) {
        Err(Error::Start { message, .. }) => assert!(message.contains("no user or group 70000"), "{message}"),
        other => panic!("{other:?}"),
    }
}

fn files_keep_the_numbers_that_users_have_inside(bench: &mut Bench) {
    if cannot(bench) {
        return;
    }
    let volume = bench.directory.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("old"), "of root").unwrap();
    fs::set_permissions(volume.join("old"), fs::Permissions::from_mode(0o600)).unwrap();
    let mount = |source: &Path, target: &str| Mount::Bind {
        source: source.into(),
        target: target.into(),
        readonly: false,
    };
    // What one container has written, with users of its own, the next reads, with the machine's or others.
    for (number, own_users) in [(1, true), (2, false), (3, true)] {
        let mut request = bench.request(&["owners", &number.to_string()]);
        request.own_users = own_users;
        request.mounts = vec![
            mount(&volume, "/volume"),
            Mount::Tmpfs { target: "/scratch".into(), size_bytes: None, mode: 0o755 },
        ];
        request.hostname = "named".into();
        let id = request.id.clone();
        let (code, output) = bench.run(request);
        assert_eq!(code, 0, "{output}");
        let has =
            |line: &str| assert!(output.lines().any(|found| found == line), "{line:?} not in\n{output}");
        has("/ 0:0");
        has("/bin/inside 0:0");
        has("/volume/old 0:0 of root");
        has("/etc/hostname 0:0 named");
        has("/dev/null 0:0");
        has("/scratch 0:0");
        has("made 0:0");
        has("given 33:34");
        for earlier in 1..number {
            has(&format!("/volume/given-{earlier} 33:34 given"));
        }
        // On the disk the same numbers, whatever they stood for.
        let upper = bench.config.root_dir.join("containers").join(id).join("upper");
        for (path, ids) in [
            (volume.join(format!("given-{number}")), (33, 34)),
            (upper.join("data/made"), (0, 0)),
            (upper.join("data/given"), (33, 34)),
        ] {
            let data = fs::metadata(&path).unwrap();
            assert_eq!((data.uid(), data.gid()), ids, "{}", path.display());
        }
    }
    assert!(!bench.image().join("data/made").exists());
    // What cannot be mapped is refused, and not shown as somebody else's.
    let mut request = bench.request(&["exit", "0"]);
    request.own_users = true;
    request.mounts = vec![mount(Path::new("/proc/self/fdinfo"), "/mapped")];
    match bench.start(request) {
        Err(Error::Start { code: 125, message }) => {
            assert!(message.contains("cannot be mounted for a container with users of its own"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

fn the_default_profile_holds_for_users_of_its_own(bench: &mut Bench) {
    if cannot(bench) {
        return;
    }
    let mut request = bench.request(&["profile"]);
    request.own_users = true;
    let (code, output) = bench.run(request);
    assert_eq!(code, 0, "{output}");
    for line in [
        "CapEff: 00000000000405fb",
        "CapBnd: 00000000000405fb",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "pid 1",
        "fds 0 1 2",
        "cannot write /proc/sys/kernel/hostname",
        "cannot write /proc/sysrq-trigger",
        "cannot open /dev/mem",
        "cannot open /dev/kmsg",
        "can open /dev/null",
        "can open /dev/ptmx",
        "port 80 can be bound",
        "cannot make a device node",
    ] {
        assert!(output.lines().any(|found| found == line), "{line:?} is missing from\n{output}");
    }
    // All that it could be given is good for nothing outside.
    let mut request = bench.request(&["grasp"]);
    request.own_users = true;
    request.privileges.cap_add = vec!["ALL".into()];
    request.privileges.seccomp_unconfined = true;
    let (code, output) = bench.run(request);
    assert_eq!((code, output.as_str()), (0, "mount EPERM\nhostname EPERM\nnetwork EPERM\nnode EPERM\n"));
    // An init and a terminal are as usual.
    let mut request = bench.request(&["orphans"]);
    (request.own_users, request.init) = (true, true);
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "ready");
    assert_eq!(bench.wait(bench.executor.stop(&id, PATIENCE)).unwrap().unwrap().code, 7);
    let mut request = bench.request(&["terminal"]);
    (request.own_users, request.tty, request.user) = (true, true, "web".into());
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "24x80 on /dev/pts/0\r");
}

fn files_are_copied_as_its_own_users_have_them(bench: &mut Bench) {
    if cannot(bench) {
        return;
    }
    let mut request = bench.request(&["wait-for", "/data/arrived"]);
    request.own_users = true;
    let id = bench.start(request).unwrap();
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("arrived"), "hello").unwrap();
    std::os::unix::fs::chown(from.path().join("arrived"), Some(33), Some(34)).unwrap();
    let archive = |root: &files::Root, path: &str| {
        let mut archive = Vec::new();
        files::pack(root, Path::new(path), false, &mut archive).unwrap();
        archive
    };
    let here = files::directory(from.path()).unwrap().into();
    let sent = archive(&here, "/arrived");
    let root = bench.wait(bench.executor.root(&id, true)).unwrap();
    let put = |name: &str, archive: bool| {
        let target = files::Target { name: Some(name.into()), archive, ..files::Target::default() };
        files::unpack(&root, Path::new("/data/"), &target, &sent[..]).unwrap();
    };
    let owner = |path: &Path| fs::metadata(path).map(|data| (data.uid(), data.gid())).unwrap();
    let upper = bench.config.root_dir.join("containers").join(&id).join("upper/data");
    put("plain", false);
    put("kept", true);
    assert_eq!((owner(&upper.join("plain")), owner(&upper.join("kept"))), ((0, 0), (33, 34)));
    // This thread is who it was.
    let mine = from.path().join("mine");
    fs::write(&mine, "").unwrap();
    assert_eq!(owner(&mine), (0, 0));
    // Out again, while it runs and when it has ended.
    let back = |root: &files::Root| {
        let target = files::Target { name: Some("back".into()), archive: true, ..files::Target::default() };
        files::unpack(&here, Path::new("/"), &target, &archive(root, "/data/kept")[..]).unwrap();
        owner(&from.path().join("back"))
    };
    assert_eq!(back(&root), (33, 34));
    put("arrived", false);
    assert_eq!(bench.wait(bench.executor.wait(&id)).unwrap().code, 3);
    let remains = bench.wait(bench.executor.root(&id, false)).unwrap();
    assert_eq!(back(&remains), (33, 34));
}

fn no_two_containers_share_users_of_their_own(bench: &mut Bench) {
    if cannot(bench) {
        return;
    }
    let ids: Vec<String> = (0..3)
        .map(|_| {
            let mut request = bench.request(&["hang"]);
            request.own_users = true;
            bench.start(request).unwrap()
        })
        .collect();
    let mut firsts: Vec<u32> = ids.iter().map(|id| first(bench, id)).collect();
    // Another daemon knows who has which.
    bench.reopen();
    let mut request = bench.request(&["hang"]);
    request.own_users = true;
    let id = bench.start(request).unwrap();
    firsts.push(first(bench, &id));
    let mut distinct = firsts.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), firsts.len(), "{firsts:?}");
    // What is free is used again.
    bench.wait(bench.executor.remove(&ids[0])).unwrap();
    let mut request = bench.request(&["hang"]);
    request.own_users = true;
    let id = bench.start(request).unwrap();
    assert_eq!(first(bench, &id), firsts[0]);
    assert!(matches!(bench.executor.inspect(&id).unwrap().state, State::Running(_)));
    assert!(PathBuf::from(format!("/proc/{}", bench.pid(&id))).exists());
}
