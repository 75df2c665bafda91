//! What containers write, and where it is kept.

use super::bench::{Bench, Claim, PATIENCE, claims, until};
use rswarm::executor::{Config, Error, Executor, LogDriver, LogEntry, LogOptions, LogQuery, LogStream};
use std::fs;
use std::path::Path;
use std::time::Duration;

pub const CLAIMS: &[Claim] = claims![
    both_streams_are_kept_in_order,
    a_long_log_is_rotated_and_followed,
    a_log_is_compressed_and_read_as_before,
    a_full_disk_of_logs_holds_nobody_up,
    a_log_may_be_kept_nowhere_or_in_the_journal,
];

fn both_streams_are_kept_in_order(bench: &mut Bench) {
    let request = bench.request(&["speak"]);
    let id = bench.start(request).unwrap();
    bench.wait(bench.executor.wait(&id)).unwrap();
    let entries = bench.entries(&id, LogQuery::default());
    let of = |stream: LogStream| -> Vec<String> {
        let own = entries.iter().filter(|entry| entry.stream == stream && !entry.partial);
        own.map(|entry| String::from_utf8(entry.text.clone()).unwrap()).collect()
    };
    assert_eq!(of(LogStream::Stdout)[..2], ["one", "two"]);
    assert_eq!(of(LogStream::Stderr), ["wrong"]);
    assert!(entries.is_sorted_by_key(|entry| &entry.timestamp));
    // The long line comes in parts, and the last one has no newline.
    let long: usize =
        entries.iter().filter(|entry| entry.text.contains(&b'x')).map(|entry| entry.text.len()).sum();
    assert_eq!(long, 40_000);
    assert_eq!(entries.iter().filter(|entry| entry.partial).count(), 2);
    assert_eq!(entries.last().unwrap().text, b"no newline");
    let only = bench.entries(&id, LogQuery { stdout: false, ..LogQuery::default() });
    assert_eq!(only.len(), 1);
}

fn a_long_log_is_rotated_and_followed(bench: &mut Bench) {
    let mut request = bench.request(&["count", "20000"]);
    request.log = LogOptions { file_bytes_max: 400_000, files_max: 8, ..LogOptions::default() };
    let id = bench.start(request).unwrap();
    let followed = bench.entries(&id, LogQuery { follow: true, ..LogQuery::default() });
    let numbers: Vec<usize> =
        followed.iter().map(|entry| str::from_utf8(&entry.text).unwrap().parse().unwrap()).collect();
    assert_eq!(numbers, (0..20_000).collect::<Vec<_>>());
    let directory = bench.config.root_dir.join("containers").join(&id);
    assert!(directory.join("log.1").exists());
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        assert!(
            !entry.file_name().to_str().unwrap().starts_with("log")
                || entry.metadata().unwrap().len() <= 400_000
        );
    }
    let tail = bench.entries(&id, LogQuery { tail: Some(3), ..LogQuery::default() });
    assert_eq!(
        tail.iter().map(|entry| entry.text.clone()).collect::<Vec<_>>(),
        [b"19997", b"19998", b"19999"]
    );
}

fn a_log_is_compressed_and_read_as_before(bench: &mut Bench) {
    let mut request = bench.request(&["count-and-hang", "20000"]);
    request.log =
        LogOptions { file_bytes_max: 200_000, files_max: 50, compress: true, ..LogOptions::default() };
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "19999");
    let directory = bench.config.root_dir.join("containers").join(&id);
    let names = || -> Vec<String> {
        let names = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).filter(|name| name.starts_with("log.")).collect()
    };
    until("a file is compressed", || names().iter().any(|name| name.ends_with(".gz")));
    let all: Vec<String> = (0..20_000).map(|number| number.to_string()).collect();
    let texts = |entries: Vec<LogEntry>| -> Vec<String> {
        entries.into_iter().map(|entry| String::from_utf8(entry.text).unwrap()).collect()
    };
    assert_eq!(texts(bench.entries(&id, LogQuery::default())), all);
    bench.wait(bench.executor.stop(&id, Duration::ZERO)).unwrap();
    assert_eq!(texts(bench.entries(&id, LogQuery { follow: true, ..LogQuery::default() })), all);
    assert!(!names().contains(&"log.tmp".into()), "{:?}", names());
}

/// A file system of a few pages for the executor's directory of containers.
fn a_full_disk_of_logs_holds_nobody_up(bench: &mut Bench) {
    let small = bench.directory.path().join("small");
    fs::create_dir(&small).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &small, Some("tmpfs"), flags, Some("size=2m")).unwrap();
    let config = Config {
        root_dir: small.join("root"),
        run_dir: bench.directory.path().join("run-small"),
        cgroup_parent: format!("{}-small", bench.config.cgroup_parent),
        ..bench.config.clone()
    };
    let executor = bench.wait(Executor::open(config.clone())).unwrap();
    let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // One floods, its neighbours say little.
        let requests = [["count", "300000"], ["count", "3"], ["exit", "4"]].map(|words| {
            let mut request = bench.request(&words);
            request.log.file_bytes_max = 100 << 20;
            request
        });
        let ids = requests.each_ref().map(|request| request.id.clone());
        bench.wait(async {
            for request in requests {
                executor.create(request).await.unwrap();
            }
            for id in &ids {
                executor.start(id).await.unwrap();
            }
        });
        let ends: Vec<_> = ids.iter().map(|id| bench.wait(executor.wait(id)).unwrap()).collect();
        assert_eq!(ends.iter().map(|exit| exit.code).collect::<Vec<_>>(), [0, 0, 4]);
        assert!(ends[0].log_dropped_bytes > 0, "{ends:?}");
        // How they ended is on the disk all the same, for the next daemon.
        let next = bench.wait(Executor::open(config)).unwrap();
        let known = ids.iter().map(|id| bench.wait(next.wait(id)).unwrap().code);
        assert_eq!(known.collect::<Vec<_>>(), [0, 0, 4]);
        // What is there is whole lines, from the first one on.
        let mut logs = executor.logs(&ids[0], LogQuery::default()).unwrap();
        let first = bench.wait(logs.next()).unwrap();
        assert_eq!(first.text, b"0");
    }));
    bench.wait(executor.purge()).unwrap();
    nix::mount::umount(&small).unwrap();
    held.unwrap();
}

fn a_log_may_be_kept_nowhere_or_in_the_journal(bench: &mut Bench) {
    let mut request = bench.request(&["speak"]);
    request.log.driver = LogDriver::None;
    let id = bench.start(request).unwrap();
    assert_eq!(bench.wait(bench.executor.wait(&id)).unwrap().code, 0);
    assert!(!bench.config.root_dir.join("containers").join(&id).join("log").exists());
    match bench.executor.logs(&id, LogQuery::default()) {
        Err(Error::Unreadable { message, .. }) => assert!(message.contains("kept nowhere"), "{message}"),
        _ => panic!("there is no log"),
    }
    let socket = Path::new("/run/systemd/journal/socket");
    let mut request = bench.request(&["speak"]);
    request.log.driver = LogDriver::Journald;
    request.journal = vec![("CONTAINER_ID".into(), request.id.clone())];
    if socket.exists() {
        return eprintln!("skipped: this machine's own journal is not written to");
    }
    match bench.wait(bench.executor.create(request.clone())) {
        Err(Error::Invalid { reason, .. }) => assert!(reason.contains("no journal at"), "{reason}"),
        other => panic!("{other:?}"),
    }
    // A journal of the test's own, in the place of the machine's.
    let made = ["/run/systemd", "/run/systemd/journal"].map(|path| (path, fs::create_dir(path).is_ok()));
    let journal = std::os::unix::net::UnixDatagram::bind(socket).unwrap();
    journal.set_read_timeout(Some(PATIENCE)).unwrap();
    let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let id = bench.start(request).unwrap();
        let mut entries = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while !entries.iter().any(|entry: &String| entry.contains("no newline")) {
            let count = journal.recv(&mut buffer).unwrap();
            entries.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
        assert!(entries.iter().all(|entry| entry.contains(&format!("CONTAINER_ID={id}\n"))), "{entries:?}");
        let has = |text: &str| entries.iter().any(|entry| entry.contains(text));
        assert!(has("PRIORITY=6\nMESSAGE=one\n") && has("PRIORITY=3\nMESSAGE=wrong\n"), "{entries:?}");
        assert_eq!(bench.wait(bench.executor.wait(&id)).unwrap().code, 0);
    }));
    fs::remove_file(socket).unwrap();
    made.iter().rev().filter(|(_, made)| *made).for_each(|(path, _)| fs::remove_dir(path).unwrap());
    held.unwrap();
}
