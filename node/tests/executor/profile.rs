//! What a container may do, who it is, and what it is told.

use super::bench::{Bench, Claim, claims};
use rswarm::executor::{ContainerRequest, Device, Error, Rlimit};
use std::fs;
use std::path::{Path, PathBuf};

pub const CLAIMS: &[Claim] = claims![
    the_default_profile_holds_inside,
    dangerous_system_calls_are_refused,
    the_user_is_looked_up_in_the_image,
    a_network_namespace_is_joined,
    names_are_generated,
    privileges_are_given_only_when_asked_for,
    options_of_a_container_hold_inside,
    a_device_may_be_used_as_far_as_was_said,
    what_is_not_of_a_containers_own_is_refused,
];

fn the_default_profile_holds_inside(bench: &mut Bench) {
    let request = bench.request(&["profile"]);
    let (code, output) = bench.run(request);
    assert_eq!(code, 0, "{output}");
    let has =
        |line: &str| assert!(output.lines().any(|found| found == line), "{line:?} is missing from\n{output}");
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        has(&format!("{set}: 00000000000405fb"));
    }
    has("CapInh: 0000000000000000");
    has("CapAmb: 0000000000000000");
    has("NoNewPrivs: 1");
    has("Seccomp: 2");
    has("pid 1");
    has("fds 0 1 2");
    has("interfaces lo");
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts"] {
        has(&format!("empty or absent {path}"));
    }
    has("no entries in /sys/firmware");
    for path in ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/kernel/uevent_seqnum"] {
        has(&format!("cannot write {path}"));
    }
    for path in ["/dev/mem", "/dev/kmsg", "/dev/loop-control", "/dev/kvm"] {
        has(&format!("cannot open {path}"));
    }
    for path in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/ptmx"] {
        has(&format!("can open {path}"));
    }
    has("port 80 can be bound");
    has("cannot make a device node");
    let mut request = bench.request(&["profile"]);
    request.user = "web".into();
    let (_, output) = bench.run(request);
    assert!(
        output.contains("port 80 can be bound") && output.contains("CapEff: 0000000000000000"),
        "{output}"
    );
}

fn dangerous_system_calls_are_refused(bench: &mut Bench) {
    let request = bench.request(&["calls"]);
    let (code, output) = bench.run(request);
    assert_eq!(code, 0, "{output}");
    assert!(output.lines().count() > 20);
    for line in output.lines() {
        let expected =
            if line.starts_with("clone3") || line.starts_with("unknown") { "ENOSYS" } else { "EPERM" };
        assert!(line.ends_with(expected), "{line}");
    }
}

fn the_user_is_looked_up_in_the_image(bench: &mut Bench) {
    for (user, words) in [
        ("", "0:0 [] home=/root"),
        ("web", "33:34 [40] home=/srv"),
        ("33", "33:34 [40] home=/srv"),
        ("1000", "1000:0 [] home=/"),
        ("1000:1001", "1000:1001 [] home=/"),
        ("web:logs", "33:40 [] home=/srv"),
    ] {
        let mut request = bench.request(&["who"]);
        request.user = user.into();
        request.workdir = "/srv/made/for/it".into();
        let (code, output) = bench.run(request);
        assert_eq!(code, 0, "{output}");
        assert!(output.contains(&format!("{words} in /srv/made/for/it")), "{user}: {output}");
        if !user.is_empty() {
            assert!(output.contains("CapEff: 0000000000000000"), "{user}: {output}");
        }
        assert!(output.contains("stdout can be opened anew"), "{user}: {output}");
    }
}

fn a_network_namespace_is_joined(bench: &mut Bench) {
    let (made, namespace) = std::sync::mpsc::channel();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let owner = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
        made.send(PathBuf::from(path)).unwrap();
        // Ends when the other side is dropped.
        let _ = wait.recv();
    });
    let path = namespace.recv().unwrap();
    let mut request = bench.request(&["network"]);
    request.netns = Some(path.clone());
    let inside = bench.run(request).1;
    assert_eq!(inside.trim(), fs::read_link(path).unwrap().to_str().unwrap());
    let request = bench.request(&["network"]);
    assert_ne!(bench.run(request).1, inside);
    drop(done);
    owner.join().unwrap();
}

fn names_are_generated(bench: &mut Bench) {
    let mut request = bench.request(&["names"]);
    request.hostname = "web-1".into();
    request.addresses = vec!["10.0.0.7".parse().unwrap()];
    request.extra_hosts = vec![("db".into(), "10.0.0.9".parse().unwrap())];
    request.dns.servers = vec!["10.0.0.1".parse().unwrap()];
    request.dns.search = vec!["example.org".into()];
    request.dns.options = vec!["ndots:0".into()];
    request.env = vec!["COLOUR=blue".into()];
    let (code, output) = bench.run(request);
    assert_eq!(code, 0, "{output}");
    for line in [
        "kernel web-1",
        "HOSTNAME=web-1",
        "COLOUR=blue",
        "web-1",
        "127.0.0.1\tlocalhost",
        "10.0.0.7\tweb-1",
        "10.0.0.9\tdb",
        "nameserver 10.0.0.1",
        "search example.org",
        "options ndots:0",
    ] {
        assert!(output.lines().any(|found| found == line), "{line:?} is missing from\n{output}");
    }
}

fn privileges_are_given_only_when_asked_for(bench: &mut Bench) {
    let mut request = bench.request(&["profile"]);
    request.privileges.cap_drop = vec!["ALL".into()];
    request.privileges.cap_add = vec!["CAP_NET_BIND_SERVICE".into()];
    request.privileges.seccomp_unconfined = true;
    request.privileges.new_privileges = true;
    let (_, output) = bench.run(request);
    for line in ["CapBnd: 0000000000000400", "CapEff: 0000000000000400", "NoNewPrivs: 0", "Seccomp: 0"] {
        assert!(output.lines().any(|found| found == line), "{line:?} is missing from\n{output}");
    }
}

fn options_of_a_container_hold_inside(bench: &mut Bench) {
    let mut request = bench.request(&["options"]);
    request.user = "web".into();
    request.groups = vec!["www".into(), "55".into()];
    let rlimit = |name: &str, soft, hard| Rlimit { name: name.into(), soft, hard };
    request.rlimits = vec![rlimit("nofile", 100, 200), rlimit("core", 0, 0), rlimit("nproc", 50, 60)];
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    request.privileges.sysctls = [pair("net.ipv4.ip_default_ttl", "42"), pair("kernel.shmmni", "77")].into();
    request.shm_bytes = Some(1 << 20);
    request.oom_score_adj = 321;
    request.privileges.cap_add = vec!["NET_RAW".into()];
    request.privileges.cap_drop = vec!["CHOWN".into()];
    let (code, output) = bench.run(request);
    assert_eq!(code, 0, "{output}");
    for line in [
        "groups [34, 40, 55]",
        "Max open files 100 200 files",
        "Max core file size 0 0 bytes",
        "Max processes 50 60 processes",
        "net.ipv4.ip_default_ttl 42",
        "kernel.shmmni 77",
        "shm 1048576",
        "oom 321",
        "CapBnd: 00000000000425fa",
    ] {
        assert!(output.lines().any(|found| found == line), "{line:?} is missing from\n{output}");
    }
    let mut request = bench.request(&["exit", "0"]);
    request.groups = vec!["ghosts".into()];
    match bench.start(request) {
        Err(Error::Start { code: 125, message }) => {
            assert!(message.contains("group \"ghosts\" is not in the image's /etc/group"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

fn a_device_may_be_used_as_far_as_was_said(bench: &mut Bench) {
    // Under other names, so that what every container has does not answer for it.
    let device = |source: &str, target: &str, access: &str| Device {
        source: source.into(),
        target: target.into(),
        access: access.into(),
    };
    let mut request = bench.request(&["open", "/dev/made/kmsg", "/dev/net/tun", "/dev/null"]);
    request.devices = vec![device("/dev/kmsg", "/dev/made/kmsg", "w")];
    let tun = Path::new("/dev/net/tun").exists();
    if tun {
        request.devices.push(device("/dev/net/tun", "/dev/net/tun", "rwm"));
    }
    let limited = bench.executor.limits_unenforced().is_none();
    let (code, output) = bench.run(request);
    assert_eq!(code, 0, "{output}");
    let has = |line: &str| assert!(output.lines().any(|found| found == line), "{line:?} not in\n{output}");
    has("/dev/made/kmsg write ok");
    if limited {
        has("/dev/made/kmsg read EPERM");
    }
    has("/dev/null read ok");
    if tun {
        has("/dev/net/tun read ok");
    }
}

fn what_is_not_of_a_containers_own_is_refused(bench: &mut Bench) {
    let mut refused = |change: &dyn Fn(&mut ContainerRequest), words: &str| {
        let mut request = bench.request(&["exit", "0"]);
        change(&mut request);
        match bench.wait(bench.executor.create(request)) {
            Err(Error::Invalid { reason, .. }) => assert!(reason.contains(words), "{reason}"),
            other => panic!("{words}: {other:?}"),
        }
    };
    let device = |source: &str, target: &str| Device {
        source: source.into(),
        target: target.into(),
        access: "rwm".into(),
    };
    refused(&|request| request.devices = vec![device("/proc/version", "/dev/x")], "it is no device");
    refused(&|request| request.devices = vec![device("/no/such", "/dev/x")], "device /no/such");
    refused(&|request| request.devices = vec![device("/dev/null", "/dev/../x")], "not an absolute path");
    let sysctl = |name: &str| [(name.to_owned(), "1".to_owned())].into();
    refused(&|request| request.privileges.sysctls = sysctl("kernel.panic"), "own namespaces");
    let mut request = bench.request(&["exit", "0"]);
    request.privileges.sysctls = sysctl("net.no.such");
    match bench.start(request) {
        Err(Error::Start { message, .. }) => assert!(message.contains("no such setting"), "{message}"),
        other => panic!("{other:?}"),
    }
}
