//! How containers end, and what is told of it.

use super::bench::{Bench, Claim, PATIENCE, claims, signal, until};
use rswarm::executor::{ContainerRequest, State};
use std::fs;
use std::time::{Duration, Instant};

pub const CLAIMS: &[Claim] = claims![
    exit_codes_and_signals_are_told,
    a_willing_program_ends_within_its_grace,
    an_unwilling_program_is_killed_after_its_grace,
    every_way_to_die_has_its_record_and_its_words,
];

fn exit_codes_and_signals_are_told(bench: &mut Bench) {
    for code in [0, 1, 42] {
        let request = bench.request(&["exit", &code.to_string()]);
        let id = bench.start(request).unwrap();
        let exit = bench.wait(bench.executor.wait(&id)).unwrap();
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (code, None, false));
        assert!(exit.started_unix_ns.unwrap() < exit.finished_unix_ns);
    }
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    bench.wait(bench.executor.kill(&id, 9)).unwrap();
    let exit = bench.wait(bench.executor.wait(&id)).unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
}

fn a_willing_program_ends_within_its_grace(bench: &mut Bench) {
    let request = bench.request(&["obey"]);
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "ready");
    let begun = Instant::now();
    let exit = bench.wait(bench.executor.stop(&id, PATIENCE)).unwrap().unwrap();
    assert_eq!((exit.code, exit.signal), (7, None));
    assert!(begun.elapsed() < PATIENCE / 2);
}

pub fn an_unwilling_program_is_killed_after_its_grace(bench: &mut Bench) {
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    let grace = Duration::from_millis(200);
    let begun = Instant::now();
    let exit = bench.wait(bench.executor.stop(&id, grace)).unwrap().unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    assert!(begun.elapsed() >= grace);
}

fn every_way_to_die_has_its_record_and_its_words(bench: &mut Bench) {
    type Change = fn(&mut ContainerRequest);
    type Act = fn(&Bench, &str);
    type Way = (&'static str, &'static [&'static str], Change, Act, i32, Option<i32>, &'static str);
    let limited = bench.executor.limits_unenforced().is_none();
    let no_change: Change = |_| {};
    let no_act: Act = |_, _| {};
    let shim: Act = |bench, id| match bench.executor.inspect(id).unwrap().state {
        State::Running(running) => signal(running.shim_pid, 9),
        other => panic!("{id}: {other:?}"),
    };
    let cgroup: Act = |bench, id| {
        for parent in bench.cgroups() {
            let own = fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().path());
            let own =
                own.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&format!("{id}-")));
            for path in own {
                // All that is in it is killed, and then it goes, as when somebody tidies up by hand.
                for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
                    signal(pid.parse().unwrap(), 9);
                }
                until("the cgroup is gone", || fs::remove_dir(&path).is_ok() || !path.exists());
            }
        }
    };
    let table: &[Way] = &[
        ("exit", &["exit", "0"], no_change, no_act, 0, None, ""),
        ("code", &["exit", "42"], no_change, no_act, 42, None, ""),
        (
            "kill",
            &["hang"],
            no_change,
            |b, id| b.wait(b.executor.kill(id, 9)).unwrap(),
            137,
            Some(9),
            "ended by signal 9 (SIGKILL)",
        ),
        (
            "usr1",
            &["hang"],
            |r| r.init = true,
            |b, id| b.wait(b.executor.kill(id, 10)).unwrap(),
            138,
            None,
            "",
        ),
        ("abort", &["abort"], |r| r.init = true, no_act, 134, None, ""),
        (
            "oom",
            &["eat", "200"],
            |r| r.limits.memory_bytes = Some(32 << 20),
            no_act,
            137,
            Some(9),
            "killed by the kernel: out of memory",
        ),
        (
            "oom-init",
            &["eat", "200"],
            |r| (r.limits.memory_bytes, r.init) = (Some(32 << 20), true),
            no_act,
            137,
            None,
            "killed by the kernel: out of memory",
        ),
        (
            "exec",
            &[],
            |r| r.args = vec!["/bin/garbage".into()],
            no_act,
            126,
            None,
            "exec \"/bin/garbage\": exec format error",
        ),
        (
            "missing",
            &[],
            |r| r.args = vec!["/foo".into()],
            no_act,
            127,
            None,
            "exec \"/foo\": no such file or directory",
        ),
        (
            "setup",
            &["exit", "0"],
            |r| r.user = "ghost".into(),
            no_act,
            125,
            None,
            "user \"ghost\" is not in the image's /etc/passwd",
        ),
        ("shim", &["hang"], no_change, shim, 255, None, rswarm::executor::LOST),
        ("cgroup", &["hang"], no_change, cgroup, 137, Some(9), "ended by signal 9 (SIGKILL)"),
        (
            "lease",
            &["hang"],
            |r| r.lease = Some(Duration::from_millis(50)),
            no_act,
            137,
            Some(9),
            rswarm_shim::protocol::LEASE_OVER,
        ),
    ];
    for (what, words, change, act, code, signal, told) in table {
        if !limited && (what.starts_with("oom") || *what == "cgroup") {
            continue;
        }
        let mut request = bench.request(words);
        request.id = (*what).into();
        change(&mut request);
        let started = bench.start(request);
        assert_eq!(started.is_err(), matches!(code, 125..=127), "{what}: {started:?}");
        if started.is_ok() {
            act(bench, what);
        }
        let exit = bench.wait(bench.executor.wait(what)).unwrap();
        assert_eq!((exit.code, exit.signal), (*code, *signal), "{what}: {exit:?}");
        assert_eq!(rswarm::executor::ending(&exit), *told, "{what}");
        // Another daemon knows it the same way.
        bench.reopen();
        assert_eq!(bench.wait(bench.executor.wait(what)).unwrap(), exit, "{what}");
    }
}
