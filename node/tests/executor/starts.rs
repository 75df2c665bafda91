//! Starts, those that fail among them, and that all may be asked for twice.

use super::bench::{Bench, Claim, PATIENCE, claims};
use rswarm::executor::{ContainerRequest, Error, Event, Mount, State};
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

pub const CLAIMS: &[Claim] = claims![
    a_program_that_cannot_be_executed_is_explained,
    what_cannot_be_set_up_is_explained,
    invalid_requests_are_refused,
    operations_may_be_repeated,
    a_start_nobody_waits_for_is_still_watched,
    an_init_reaps_and_passes_signals_on,
    the_shim_is_sealed_and_small,
];

fn a_program_that_cannot_be_executed_is_explained(bench: &mut Bench) {
    for (program, code, words) in [
        ("/foo", 127, "exec \"/foo\": no such file or directory"),
        ("foo", 127, "exec \"foo\": executable file not found in $PATH"),
        ("/bin/data", 126, "exec \"/bin/data\": permission denied"),
        ("data", 126, "exec \"data\": permission denied"),
        ("/bin/garbage", 126, "exec \"/bin/garbage\": exec format error"),
        ("/bin", 126, "exec \"/bin\": permission denied"),
    ] {
        let mut request = bench.request(&[]);
        request.args = vec![program.into()];
        let id = request.id.clone();
        let mut events = bench.executor.events();
        match bench.start(request) {
            Err(Error::Start { code: told, message }) => assert_eq!((told, message.as_str()), (code, words)),
            other => panic!("{program}: {other:?}"),
        }
        let State::Exited(exit) = bench.executor.inspect(&id).unwrap().state else {
            panic!("{program} is not known to have failed");
        };
        assert_eq!((exit.code, exit.error.as_deref(), exit.started_unix_ns), (code, Some(words), None));
        assert_eq!(bench.wait(events.next()), Some(Event::Exited { id: id.clone(), exit }));
        assert!(matches!(bench.wait(bench.executor.start(&id)), Err(Error::Ended(_))));
    }
}

fn what_cannot_be_set_up_is_explained(bench: &mut Bench) {
    let mut explained = |change: &dyn Fn(&mut ContainerRequest), words: &str| {
        let mut request = bench.request(&["exit", "0"]);
        change(&mut request);
        match bench.start(request) {
            Err(Error::Start { code: 125, message }) => assert!(message.contains(words), "{message}"),
            other => panic!("{words}: {other:?}"),
        }
    };
    explained(&|request| request.user = "ghost".into(), "user \"ghost\" is not in the image's /etc/passwd");
    explained(
        &|request| request.user = "0:ghosts".into(),
        "group \"ghosts\" is not in the image's /etc/group",
    );
    explained(&|request| request.workdir = "/etc/passwd/x".into(), "workdir /etc/passwd/x: not a directory");
    explained(
        &|request| request.lower = vec!["/no/such/layer".into()],
        "/no/such/layer: no such file or directory",
    );
    explained(&|request| request.netns = Some("/no/such/netns".into()), "open /no/such/netns: no such file");
}

fn invalid_requests_are_refused(bench: &mut Bench) {
    let mut refused = |change: &dyn Fn(&mut ContainerRequest), words: &str| {
        let mut request = bench.request(&["exit", "0"]);
        change(&mut request);
        match bench.wait(bench.executor.create(request)) {
            Err(Error::Invalid { reason, .. }) => assert!(reason.contains(words), "{reason}"),
            other => panic!("{words}: {other:?}"),
        }
    };
    let bind = |source: &str, target: &str| {
        vec![Mount::Bind { source: source.into(), target: target.into(), readonly: true }]
    };
    refused(&|request| request.id = "../etc".into(), "an id is");
    refused(&|request| request.id = String::new(), "an id is");
    refused(&|request| request.lower.clear(), "no layers");
    refused(&|request| request.args.clear(), "no command");
    refused(&|request| request.args.push("a\0b".into()), "NUL");
    refused(&|request| request.env.push("=x".into()), "not NAME=value");
    refused(&|request| request.hostname = "two words".into(), "no host name");
    refused(&|request| request.workdir = "relative".into(), "not an absolute path");
    refused(&|request| request.mounts = bind("/etc", "/a/../../b"), "not an absolute path");
    refused(&|request| request.mounts = bind("/etc", "/"), "below /");
    refused(&|request| request.mounts = bind("/etc", "/proc/self"), "belongs to the kernel");
    refused(&|request| request.mounts = bind("/no/such", "/x"), "bind source /no/such");
    refused(&|request| request.stop_signal = 99, "no signal");
    refused(&|request| request.privileges.cap_add = vec!["FLY".into()], "no capability \"FLY\"");
    assert!(bench.executor.list().is_empty());
}

fn operations_may_be_repeated(bench: &mut Bench) {
    let request = bench.request(&["hang"]);
    let id = request.id.clone();
    assert!(matches!(bench.wait(bench.executor.start(&id)), Err(Error::Unknown(_))));
    let mut events = bench.executor.events();
    bench.wait(async {
        let executor = &bench.executor;
        executor.create(request.clone()).await.unwrap();
        executor.create(request).await.unwrap();
        assert_eq!(executor.stop(&id, Duration::ZERO).await.unwrap(), None);
        let (first, second) = tokio::join!(executor.start(&id), executor.start(&id));
        assert_eq!(first.unwrap(), second.unwrap());
        let (first, second) =
            tokio::join!(executor.stop(&id, Duration::ZERO), executor.stop(&id, Duration::ZERO));
        assert_eq!(first.unwrap(), second.unwrap());
        executor.kill(&id, 15).await.unwrap();
        executor.stop(&id, Duration::ZERO).await.unwrap();
        assert!(matches!(events.next().await, Some(Event::Started { .. })));
        assert!(matches!(events.next().await, Some(Event::Exited { .. })));
        executor.remove(&id).await.unwrap();
        executor.remove(&id).await.unwrap();
        assert!(executor.list().is_empty());
    });
}

fn a_start_nobody_waits_for_is_still_watched(bench: &mut Bench) {
    let request = bench.request(&["exit", "5"]);
    let id = request.id.clone();
    let mut events = bench.executor.events();
    bench.wait(async {
        bench.executor.create(request).await.unwrap();
        assert!(tokio::time::timeout(Duration::ZERO, bench.executor.start(&id)).await.is_err());
        assert!(matches!(events.next().await, Some(Event::Started { .. })));
        assert_eq!(bench.executor.wait(&id).await.unwrap().code, 5);
    });
}

fn an_init_reaps_and_passes_signals_on(bench: &mut Bench) {
    let mut request = bench.request(&["orphans"]);
    request.init = true;
    request.user = "web".into();
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "ready");
    assert!(bench.output(&id).contains("my parent is rswarm-init, none is dead"), "{}", bench.output(&id));
    let exit = bench.wait(bench.executor.stop(&id, PATIENCE)).unwrap().unwrap();
    assert_eq!((exit.code, exit.signal), (7, None));
    // Process 1 has no more rights than the program.
    let mut request = bench.request(&["hang"]);
    (request.init, request.user) = (true, "web".into());
    let id = bench.start(request).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", bench.pid(&id))).unwrap();
    for line in ["Uid:\t33\t33\t33\t33", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    bench.wait(bench.executor.kill(&id, 10)).unwrap();
    assert_eq!(bench.wait(bench.executor.wait(&id)).unwrap().code, 128 + 10);
    let mut request = bench.request(&[]);
    (request.init, request.args) = (true, vec!["/foo".into()]);
    match bench.start(request) {
        Err(Error::Start { code: 127, message }) => assert!(message.contains("no such file"), "{message}"),
        other => panic!("{other:?}"),
    }
}

fn the_shim_is_sealed_and_small(bench: &mut Bench) {
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    let State::Running(running) = bench.executor.inspect(&id).unwrap().state else {
        panic!("it does not run");
    };
    let program = PathBuf::from(format!("/proc/{}/exe", running.shim_pid));
    assert!(fs::read_link(&program).unwrap().to_str().unwrap().starts_with("/memfd:rswarm-shim"));
    assert!(File::options().write(true).open(&program).is_err(), "the shim's program can be written");
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", running.shim_pid)).unwrap();
    let private: u64 = rollup
        .lines()
        // The program itself lies in memory too, but only once for all shims.
        .filter(|line| line.starts_with("Anonymous:"))
        .map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap())
        .sum();
    println!("    memory a shim has for itself: {private} KiB");
    assert!(private < 512, "{private} KiB");
}
