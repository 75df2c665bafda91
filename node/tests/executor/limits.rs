//! Control groups: what containers may use, and how that is changed.

use super::bench::{Bench, Claim, claims};
use super::beside::another_program_runs_inside;
use super::ends::an_unwilling_program_is_killed_after_its_grace;
use rswarm::executor::Limits;
use std::path::Path;
use std::time::Duration;

pub const CLAIMS: &[Claim] = claims![
    memory_is_limited_and_its_want_is_told_apart,
    processes_are_limited,
    cpu_is_limited_and_updated,
    a_unified_hierarchy_serves_as_well,
    a_device_that_was_made_cannot_be_opened,
    limits_are_seen_from_inside,
    limits_are_changed_while_it_runs,
    the_limits_that_were_asked_for_last_hold,
];

fn memory_is_limited_and_its_want_is_told_apart(bench: &mut Bench) {
    if unlimited(bench) {
        return;
    }
    let mut request = bench.request(&["eat", "200"]);
    request.limits.memory_bytes = Some(32 << 20);
    let id = bench.start(request).unwrap();
    let exit = bench.wait(bench.executor.wait(&id)).unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
    let mut request = bench.request(&["eat", "8"]);
    request.limits.memory_bytes = Some(32 << 20);
    assert_eq!(bench.run(request).0, 0);
}

fn processes_are_limited(bench: &mut Bench) {
    if unlimited(bench) {
        return;
    }
    let mut request = bench.request(&["threads", "100"]);
    request.limits.pids = Some(20);
    let (code, output) = bench.run(request);
    assert_eq!(code, 0);
    let count: usize = output.trim().parse().unwrap();
    assert!((10..20).contains(&count), "{count} threads began");
}

fn cpu_is_limited_and_updated(bench: &mut Bench) {
    if unlimited(bench) {
        return;
    }
    let mut request = bench.request(&["burn"]);
    request.limits = Limits {
        nano_cpus: Some(100_000_000),
        memory_bytes: Some(64 << 20),
        pids: Some(10),
        ..Limits::default()
    };
    let id = bench.start(request).unwrap();
    bench.wait(async {
        loop {
            let usage = bench.executor.stats(&id).await.unwrap();
            if usage.throttled_periods > 0 && usage.cpu_ns > 0 {
                assert_eq!(usage.memory_limit_bytes, Some(64 << 20));
                assert!(usage.memory_bytes > 0 && usage.pids == 1);
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let limits = Limits { nano_cpus: None, memory_bytes: Some(32 << 20), ..Limits::default() };
        bench.executor.update(&id, limits.clone()).await.unwrap();
        assert_eq!(bench.executor.stats(&id).await.unwrap().memory_limit_bytes, Some(32 << 20));
        let raised = Limits { memory_bytes: Some(128 << 20), ..limits };
        bench.executor.update(&id, raised).await.unwrap();
        assert_eq!(bench.executor.stats(&id).await.unwrap().memory_limit_bytes, Some(128 << 20));
    });
}

/// On a machine with both kinds, the unified hierarchy is one without controllers: all but limits can be shown.
fn a_unified_hierarchy_serves_as_well(bench: &mut Bench) {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !unified.join("cgroup.procs").exists() {
        return eprintln!("skipped: the unified hierarchy is not beside the others");
    }
    bench.wait(bench.executor.purge()).unwrap();
    let hybrid = std::mem::replace(&mut bench.config.cgroup_mount, unified.into());
    bench.reopen();
    assert!(bench.executor.limits_unenforced().unwrap().contains("Memory"));
    a_device_that_was_made_cannot_be_opened(bench);
    an_unwilling_program_is_killed_after_its_grace(bench);
    another_program_runs_inside(bench);
    let request = bench.request(&["profile"]);
    assert_eq!(bench.run(request).0, 0);
    bench.wait(bench.executor.purge()).unwrap();
    assert!(!unified.join(&bench.config.cgroup_parent).exists());
    bench.config.cgroup_mount = hybrid;
    bench.reopen();
}

pub fn a_device_that_was_made_cannot_be_opened(bench: &mut Bench) {
    let mut request = bench.request(&["device"]);
    request.privileges.cap_add = vec!["MKNOD".into()];
    assert_eq!(bench.run(request).1, "open 1:3: ok\nopen 1:11: EPERM\n");
}

fn limits_are_seen_from_inside(bench: &mut Bench) {
    let limit = Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    if !limit.exists() {
        return eprintln!("skipped: no old memory controller");
    }
    let mut request = bench.request(&["limit", limit.to_str().unwrap()]);
    request.limits.memory_bytes = Some(64 << 20);
    assert_eq!(bench.run(request), (0, "67108864\nraise: EROFS\nescape: EROFS\n".into()));
}

fn limits_are_changed_while_it_runs(bench: &mut Bench) {
    if let Some(why) = bench.executor.limits_unenforced() {
        return eprintln!("skipped: {why}");
    }
    let mut request = bench.request(&["eat-and-wait", "40"]);
    request.limits = Limits { memory_bytes: Some(128 << 20), pids: Some(50), ..Limits::default() };
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "eaten");
    let pid = bench.pid(&id);
    let update = |limits: Limits| bench.wait(bench.executor.update(&id, limits));
    let limit = || bench.wait(bench.executor.stats(&id)).unwrap().memory_limit_bytes;
    assert_eq!(limit(), Some(128 << 20));
    for bytes in [Some(256_u64 << 20), Some(64 << 20), None, Some(96 << 20)] {
        update(Limits { memory_bytes: bytes, pids: Some(50), ..Limits::default() }).unwrap();
        assert_eq!(limit(), bytes);
    }
    update(Limits { memory_bytes: Some(64 << 20), swap_bytes: 32 << 20, ..Limits::default() }).unwrap();
    assert_eq!(limit(), Some(64 << 20));
    // Less than it uses would be its death: it is refused, and nothing changes.
    let refused = update(Limits { memory_bytes: Some(16 << 20), ..Limits::default() }).unwrap_err();
    assert!(refused.to_string().contains("uses more memory than 16 MiB"), "{refused}");
    assert_eq!(limit(), Some(64 << 20));
    assert_eq!(bench.pid(&id), pid, "it goes on");
}

fn the_limits_that_were_asked_for_last_hold(bench: &mut Bench) {
    if unlimited(bench) {
        return;
    }
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    let limits = |mebibytes: u64| Limits { memory_bytes: Some(mebibytes << 20), ..Limits::default() };
    bench.wait(async {
        for round in 0..20 {
            // One whose caller gives up may still be under way when the next is asked for.
            let given_up = bench.executor.update(&id, limits(100 + round));
            let _ = tokio::time::timeout(Duration::from_micros(50 * round), given_up).await;
            let (_, last) = tokio::join!(
                bench.executor.update(&id, limits(200 + round)),
                bench.executor.update(&id, limits(300 + round))
            );
            last.unwrap();
            let holds = bench.executor.stats(&id).await.unwrap().memory_limit_bytes;
            assert_eq!(holds, Some((300 + round) << 20));
        }
    });
}

fn unlimited(bench: &Bench) -> bool {
    let reason = bench.executor.limits_unenforced();
    if let Some(reason) = reason {
        eprintln!("skipped: {reason}");
    }
    reason.is_some()
}
