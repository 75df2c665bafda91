//! Real containers, of which this program itself, being static, is the image: the executor's claims are asserted
//! from inside and from outside. Run without rights it says so and does nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::future::Future;
use std::io::{BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rswarm::executor::{
    AttachEnd, Config, ContainerRequest, Device, Error, Event, Exec, Executor, Limits, LogDriver, LogEntry,
    LogOptions, LogQuery, LogStream, Mount, Probe, Rlimit, State, WindowSize,
};
use rswarm::files;

/// No claim takes longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    if let Some(code) = rswarm_chaos::vm::dispatch() {
        return code;
    }
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("inside") => inside::main(&args[2..]),
        Some("starter") => starter(&args[2..]),
        Some("churn") => churn(&args[2..]),
        _ => outside(&args[1..]),
    }
}

type Claim = (&'static str, fn(&mut Bench));

const CLAIMS: &[Claim] = &[
    ("exit_codes_and_signals_are_told", exit_codes_and_signals_are_told),
    ("a_program_that_cannot_be_executed_is_explained", a_program_that_cannot_be_executed_is_explained),
    ("what_cannot_be_set_up_is_explained", what_cannot_be_set_up_is_explained),
    ("invalid_requests_are_refused", invalid_requests_are_refused),
    ("operations_may_be_repeated", operations_may_be_repeated),
    ("a_willing_program_ends_within_its_grace", a_willing_program_ends_within_its_grace),
    ("an_unwilling_program_is_killed_after_its_grace", an_unwilling_program_is_killed_after_its_grace),
    ("both_streams_are_kept_in_order", both_streams_are_kept_in_order),
    ("a_long_log_is_rotated_and_followed", a_long_log_is_rotated_and_followed),
    ("a_container_survives_its_starter_and_is_adopted", a_container_survives_its_starter_and_is_adopted),
    ("an_end_nobody_watched_is_known_after_a_restart", an_end_nobody_watched_is_known_after_a_restart),
    ("a_container_dies_with_its_shim_and_is_known_to_be_lost", a_container_dies_with_its_shim),
    ("a_half_made_container_is_swept_away", a_half_made_container_is_swept_away),
    ("memory_is_limited_and_its_want_is_told_apart", memory_is_limited_and_its_want_is_told_apart),
    ("processes_are_limited", processes_are_limited),
    ("a_unified_hierarchy_serves_as_well", a_unified_hierarchy_serves_as_well),
    ("a_device_that_was_made_cannot_be_opened", a_device_that_was_made_cannot_be_opened),
    ("limits_are_seen_from_inside", limits_are_seen_from_inside),
    ("a_start_nobody_waits_for_is_still_watched", a_start_nobody_waits_for_is_still_watched),
    ("cpu_is_limited_and_updated", cpu_is_limited_and_updated),
    ("the_default_profile_holds_inside", the_default_profile_holds_inside),
    ("dangerous_system_calls_are_refused", dangerous_system_calls_are_refused),
    ("the_user_is_looked_up_in_the_image", the_user_is_looked_up_in_the_image),
    ("mounts_are_what_was_asked_for", mounts_are_what_was_asked_for),
    ("links_in_the_image_do_not_lead_out", links_in_the_image_do_not_lead_out),
    ("a_network_namespace_is_joined", a_network_namespace_is_joined),
    ("names_are_generated", names_are_generated),
    ("privileges_are_given_only_when_asked_for", privileges_are_given_only_when_asked_for),
    ("another_program_runs_inside", another_program_runs_inside),
    ("a_probe_tells_the_well_from_the_ill", a_probe_tells_the_well_from_the_ill),
    ("a_probe_that_hangs_is_killed_with_its_children", a_probe_that_hangs_is_killed_with_its_children),
    ("a_port_is_probed_inside_the_containers_network", a_port_is_probed_inside_the_containers_network),
    ("a_program_beside_has_a_terminal_of_the_containers_own", a_program_beside_has_a_terminal),
    ("a_program_beside_is_signalled_and_listed", a_program_beside_is_signalled_and_listed),
    ("a_paused_container_stands_still_and_can_be_stopped", a_paused_container_stands_still),
    ("options_of_a_container_hold_inside", options_of_a_container_hold_inside),
    ("a_device_may_be_used_as_far_as_was_said", a_device_may_be_used_as_far_as_was_said),
    ("what_is_not_of_a_containers_own_is_refused", what_is_not_of_a_containers_own_is_refused),
    ("an_init_reaps_and_passes_signals_on", an_init_reaps_and_passes_signals_on),
    ("standard_input_is_fed_by_whoever_attaches", standard_input_is_fed_by_whoever_attaches),
    ("a_containers_own_terminal_is_attached_to", a_containers_own_terminal_is_attached_to),
    ("who_listens_too_slowly_is_let_go", who_listens_too_slowly_is_let_go),
    ("a_log_is_compressed_and_read_as_before", a_log_is_compressed_and_read_as_before),
    ("a_full_disk_of_logs_holds_nobody_up", a_full_disk_of_logs_holds_nobody_up),
    ("a_log_may_be_kept_nowhere_or_in_the_journal", a_log_may_be_kept_nowhere_or_in_the_journal),
    ("files_are_copied_out_of_containers_and_their_remains", files_are_copied_out_of_containers),
    ("files_are_copied_into_a_container_and_nowhere_else", files_are_copied_into_a_container),
    ("limits_are_changed_while_it_runs", limits_are_changed_while_it_runs),
    ("the_shim_is_sealed_and_small", the_shim_is_sealed_and_small),
    ("thirty_starts_leave_nothing", thirty_starts_leave_nothing),
    ("every_way_to_die_has_its_record_and_its_words", every_way_to_die_has_its_record_and_its_words),
    ("daemons_killed_at_random_leave_nothing_behind", daemons_killed_at_random_leave_nothing_behind),
    ("all_this_holds_on_another_kernel_with_a_unified_hierarchy", all_this_holds_on_another_kernel),
];

fn outside(args: &[String]) -> ExitCode {
    if args.iter().any(|arg| arg == "--list") {
        CLAIMS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: containers need root");
        return ExitCode::SUCCESS;
    }
    let exact = args.iter().any(|arg| arg == "--exact");
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen = |name: &str| {
        let fits =
            |filter: &&String| if exact { name == filter.as_str() } else { name.contains(filter.as_str()) };
        filters.is_empty() || filters.iter().any(fits)
    };
    let mut failed = 0;
    for (name, claim) in CLAIMS.iter().filter(|(name, _)| chosen(name)) {
        let begun = Instant::now();
        let mut bench = Bench::new();
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| claim(&mut bench))).is_ok();
        let clean = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bench.clear())).is_ok();
        failed += usize::from(!held || !clean);
        let verdict = if held && clean { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({} ms)", begun.elapsed().as_millis());
    }
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// An executor of its own with an image, and the way to clear both away.
struct Bench {
    runtime: tokio::runtime::Runtime,
    directory: tempfile::TempDir,
    config: Config,
    executor: Executor,
    made: usize,
}

impl Bench {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        for name in ["bin", "etc", "data"] {
            fs::create_dir_all(image.join(name)).unwrap();
        }
        fs::copy(std::env::current_exe().unwrap(), image.join("bin/inside")).unwrap();
        fs::write(image.join("bin/data"), "not a program").unwrap();
        fs::set_permissions(image.join("bin/data"), fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(image.join("bin/garbage"), "not a program").unwrap();
        fs::set_permissions(image.join("bin/garbage"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(image.join("etc/passwd"), "root:x:0:0::/root:\nweb:x:33:34::/srv:\n").unwrap();
        fs::write(image.join("etc/group"), "www:x:34:\nlogs:x:40:web\n").unwrap();
        let name = directory.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
        let config = Config {
            root_dir: directory.path().join("root"),
            run_dir: directory.path().join("run"),
            cgroup_parent: format!("rswarm-test-{}-{name}", std::process::id()),
            cgroup_mount: "/sys/fs/cgroup".into(),
        };
        let executor = runtime.block_on(Executor::open(config.clone())).unwrap();
        Self { runtime, directory, config, executor, made: 0 }
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, future).await })
            .expect("it takes too long")
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// A container that runs this program's other half.
    fn request(&mut self, words: &[&str]) -> ContainerRequest {
        self.made += 1;
        let args = ["/bin/inside", "inside"].iter().chain(words).map(ToString::to_string).collect();
        ContainerRequest::new(format!("c{}", self.made), vec![self.image()], args)
    }

    fn start(&self, request: ContainerRequest) -> Result<String, Error> {
        let id = request.id.clone();
        self.wait(async {
            self.executor.create(request).await?;
            self.executor.start(&id).await?;
            Ok(id)
        })
    }

    /// Runs to the end; the code and all that was written.
    fn run(&self, request: ContainerRequest) -> (i32, String) {
        let id = self.start(request).unwrap();
        let exit = self.wait(self.executor.wait(&id)).unwrap();
        (exit.code, self.output(&id))
    }

    fn entries(&self, id: &str, query: LogQuery) -> Vec<LogEntry> {
        let mut logs = self.executor.logs(id, query).unwrap();
        let mut entries = Vec::new();
        self.wait(async {
            while let Some(entry) = logs.next().await {
                entries.push(entry);
            }
        });
        entries
    }

    fn output(&self, id: &str) -> String {
        let texts = self.entries(id, LogQuery::default()).into_iter().map(|entry| entry.text);
        texts.map(|text| String::from_utf8_lossy(&text).into_owned() + "\n").collect()
    }

    /// Waits for a line that says that the program has come so far.
    fn until_said(&self, id: &str, words: &str) {
        let mut logs = self.executor.logs(id, LogQuery { follow: true, ..LogQuery::default() }).unwrap();
        self.wait(async {
            while let Some(entry) = logs.next().await {
                if entry.text == words.as_bytes() {
                    return;
                }
            }
            panic!("it ended without having said {words:?}");
        });
    }

    fn pid(&self, id: &str) -> i32 {
        match self.executor.inspect(id).unwrap().state {
            State::Running(running) => running.pid,
            other => panic!("{id} does not run: {other:?}"),
        }
    }

    fn reopen(&mut self) {
        self.executor = self.wait(Executor::open(self.config.clone())).unwrap();
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let roots = mounts.chain([PathBuf::from("/sys/fs/cgroup")]);
        roots.map(|root| root.join(&self.config.cgroup_parent)).filter(|path| path.exists()).collect()
    }

    /// Removes all, and asserts that all is gone.
    fn clear(&self) {
        self.wait(self.executor.purge()).unwrap();
        let mark = self.directory.path().to_str().unwrap();
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "cgroups stay behind");
        assert!(!fs::read_to_string("/proc/mounts").unwrap().contains(mark), "mounts stay behind");
        let left: Vec<String> = processes().into_iter().filter(|line| line.contains(mark)).collect();
        assert!(left.is_empty(), "processes stay behind: {left:?}");
        assert!(!self.config.run_dir.exists() && !self.config.root_dir.join("containers").exists());
    }
}

/// The command lines of all processes.
fn processes() -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path().join("cmdline")));
    entries
        .filter_map(|path| fs::read(path).ok())
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .collect()
}

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

fn a_willing_program_ends_within_its_grace(bench: &mut Bench) {
    let request = bench.request(&["obey"]);
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "ready");
    let begun = Instant::now();
    let exit = bench.wait(bench.executor.stop(&id, PATIENCE)).unwrap().unwrap();
    assert_eq!((exit.code, exit.signal), (7, None));
    assert!(begun.elapsed() < PATIENCE / 2);
}

fn an_unwilling_program_is_killed_after_its_grace(bench: &mut Bench) {
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    let grace = Duration::from_millis(200);
    let begun = Instant::now();
    let exit = bench.wait(bench.executor.stop(&id, grace)).unwrap().unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    assert!(begun.elapsed() >= grace);
}

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

/// Starts a container in a process that is then killed: `starter ROOT RUN CGROUP IMAGE ID WORDS...`.
fn starter(args: &[String]) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let [root, run, cgroup, image, id, words @ ..] = args else {
        panic!("starter ROOT RUN CGROUP IMAGE ID WORDS...");
    };
    runtime.block_on(async {
        let config = Config {
            root_dir: root.into(),
            run_dir: run.into(),
            cgroup_parent: cgroup.into(),
            cgroup_mount: "/sys/fs/cgroup".into(),
        };
        let executor = Executor::open(config).await.unwrap();
        let args =
            ["/bin/inside".to_owned(), "inside".to_owned()].into_iter().chain(words.to_vec()).collect();
        let mut request = ContainerRequest::new(id, vec![image.into()], args);
        request.labels.insert("task".into(), "t1".into());
        executor.create(request).await.unwrap();
        println!("{}", executor.start(id).await.unwrap().pid);
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

/// The pid of a container whose starter has been killed.
fn orphan(bench: &Bench, id: &str, words: &[&str]) -> i32 {
    let config = &bench.config;
    let mut starter = Command::new(std::env::current_exe().unwrap())
        .arg("starter")
        .args([&config.root_dir, &config.run_dir, &PathBuf::from(&config.cgroup_parent), &bench.image()])
        .arg(id)
        .args(words)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(starter.stdout.take().unwrap()).read_line(&mut line).unwrap();
    starter.kill().unwrap();
    starter.wait().unwrap();
    line.trim().parse().unwrap()
}

fn a_container_survives_its_starter_and_is_adopted(bench: &mut Bench) {
    let pid = orphan(bench, "orphan", &["obey"]);
    bench.reopen();
    assert_eq!(bench.pid("orphan"), pid);
    assert_eq!(bench.executor.inspect("orphan").unwrap().labels["task"], "t1");
    bench.until_said("orphan", "ready");
    let mut events = bench.executor.events();
    let exit = bench.wait(bench.executor.stop("orphan", PATIENCE)).unwrap().unwrap();
    assert_eq!(exit.code, 7);
    assert_eq!(bench.wait(events.next()), Some(Event::Exited { id: "orphan".into(), exit }));
}

fn an_end_nobody_watched_is_known_after_a_restart(bench: &mut Bench) {
    let pid = orphan(bench, "orphan", &["wait-for", "/data/go"]);
    File::create(format!("/proc/{pid}/root/data/go")).unwrap();
    let record = bench.config.root_dir.join("containers/orphan/exit.json");
    until("the exit record is written", || record.exists());
    bench.reopen();
    let State::Exited(exit) = bench.executor.inspect("orphan").unwrap().state else {
        panic!("it is not known to have ended");
    };
    assert_eq!((exit.code, exit.error), (3, None));
}

fn a_container_dies_with_its_shim(bench: &mut Bench) {
    for (adopted, rebooted) in [(false, false), (true, false), (true, true)] {
        let request = bench.request(&["hang"]);
        let id = bench.start(request).unwrap();
        let State::Running(running) = bench.executor.inspect(&id).unwrap().state else {
            panic!("it does not run");
        };
        let dead = || !Path::new(&format!("/proc/{}/exe", running.pid)).exists();
        if adopted {
            // The old executor's tasks end with its runtime, so that only the new one sees what has happened.
            let fresh =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            std::mem::replace(&mut bench.runtime, fresh).shutdown_timeout(PATIENCE);
        }
        signal(running.shim_pid, 9);
        if rebooted {
            until("the program is dead", dead);
            fs::remove_dir_all(&bench.config.run_dir).unwrap();
        }
        if adopted {
            bench.reopen();
        }
        let exit = bench.wait(bench.executor.wait(&id)).unwrap();
        assert_eq!(exit.code, 255);
        assert!(exit.error.unwrap().contains("shim is gone"));
        until("the program is dead", dead);
        // It is told the same way ever after.
        bench.reopen();
        assert!(
            matches!(bench.executor.inspect(&id).unwrap().state, State::Exited(exit) if exit.code == 255)
        );
    }
}

fn a_half_made_container_is_swept_away(bench: &mut Bench) {
    let request = bench.request(&["exit", "0"]);
    let id = request.id.clone();
    bench.wait(bench.executor.create(request)).unwrap();
    let containers = bench.config.root_dir.join("containers");
    for name in ["half.partial", "empty"] {
        fs::create_dir(containers.join(name)).unwrap();
    }
    bench.reopen();
    assert_eq!(bench.executor.list().len(), 1);
    assert_eq!(bench.executor.inspect(&id).unwrap().state, State::Created);
    assert!(!containers.join("half.partial").exists() && !containers.join("empty").exists());
    // What was made before the restart can be started after it.
    bench.wait(bench.executor.start(&id)).unwrap();
    assert_eq!(bench.wait(bench.executor.wait(&id)).unwrap().code, 0);
}

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

fn a_device_that_was_made_cannot_be_opened(bench: &mut Bench) {
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

fn unlimited(bench: &Bench) -> bool {
    let reason = bench.executor.limits_unenforced();
    if let Some(reason) = reason {
        eprintln!("skipped: {reason}");
    }
    reason.is_some()
}

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

fn mounts_are_what_was_asked_for(bench: &mut Bench) {
    let shared = bench.directory.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "from outside").unwrap();
    let mut request = bench.request(&["mounts"]);
    let bind =
        |source: PathBuf, target: &str, readonly| Mount::Bind { source, target: target.into(), readonly };
    request.mounts = vec![
        bind(shared.clone(), "/mnt/ro", true),
        bind(shared.clone(), "/mnt/deep/rw", false),
        bind(shared.join("file"), "/etc/one-file", true),
        Mount::Tmpfs { target: "/scratch".into(), size_bytes: Some(1 << 20), mode: 0o1777 },
    ];
    request.privileges.read_only_root = true;
    let (code, output) = bench.run(request);
    assert_eq!(code, 0, "{output}");
    assert_eq!(
        output,
        "/mnt/ro/file: from outside\n/etc/one-file: from outside\nwrite /mnt/ro/new: EROFS\n\
         write /mnt/deep/rw/new: ok\nwrite /scratch/new: ok\nfill /scratch/big: ENOSPC\nwrite /new: EROFS\n"
    );
    assert_eq!(fs::read_to_string(shared.join("new")).unwrap(), "from inside");
    // The image stays as it was: what a container writes goes to its own layer.
    let request = bench.request(&["write", "/data/own"]);
    assert_eq!(bench.run(request).0, 0);
    assert!(!bench.image().join("data/own").exists());
    let request = bench.request(&["write", "/data/own"]);
    assert_eq!(bench.run(request).0, 0, "another container sees what the first has written");
}

fn links_in_the_image_do_not_lead_out(bench: &mut Bench) {
    let outside = bench.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let layer = bench.directory.path().join("links");
    fs::create_dir_all(layer.join("data/real")).unwrap();
    symlink(&outside, layer.join("data/absolute")).unwrap();
    symlink("../../../../../../..", layer.join("data/climbing")).unwrap();
    symlink("/data/real", layer.join("data/inner")).unwrap();
    let mount = |target: &str| Mount::Tmpfs { target: target.into(), size_bytes: None, mode: 0o755 };

    let mut request = bench.request(&["write", "/data/real/under/x"]);
    request.lower.insert(0, layer.clone());
    request.mounts =
        vec![mount("/data/inner/under"), mount(&format!("/data/climbing{}/y", outside.display()))];
    request.workdir = "/data/inner/work".into();
    assert_eq!(bench.run(request).0, 0);

    // A link to where nothing is inside is refused, whatever is there outside.
    let mut request = bench.request(&["exit", "0"]);
    request.lower.insert(0, layer);
    request.mounts = vec![mount("/data/absolute/z")];
    assert!(matches!(bench.start(request), Err(Error::Start { code: 125, .. })));
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
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
    refused(&|request| request.devices = vec![device("/etc/passwd", "/dev/x")], "it is no device");
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

/// The reading end of what a container writes, which is listened to.
fn listen(bench: &Bench, id: &str) -> (rswarm::executor::Attached, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let error = OwnedFd::from(writer.try_clone().unwrap());
    let attached = bench.wait(bench.executor.attach(id, vec![writer.into(), error])).unwrap();
    (attached, reader)
}

fn standard_input_is_fed_by_whoever_attaches(bench: &mut Bench) {
    let mut request = bench.request(&["echo"]);
    request.stdin = true;
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "ready");
    let (mut attached, mut reader) = listen(bench, &id);
    let mut input = File::from(attached.take_input().expect("its standard input"));
    input.write_all(b"one\n").unwrap();
    let mut answer = [0; 8];
    reader.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"got one\n");
    // Another one may come and go.
    let (mut other, mut also) = listen(bench, &id);
    File::from(other.take_input().unwrap()).write_all(b"two\n").unwrap();
    also.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"got two\n");
    drop((other, also));
    bench.wait(bench.executor.close_stdin(&id)).unwrap();
    drop(input);
    match bench.wait(attached.wait()).unwrap() {
        AttachEnd::Exited(exit) => assert_eq!(exit.code, 5),
        AttachEnd::Lagging => panic!("nobody lags"),
    }
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got two\nend\n");
    // The log has all of it too.
    assert_eq!(bench.output(&id), "ready\ngot one\ngot two\nend\n");
    // Without being asked for there is none.
    let request = bench.request(&["echo"]);
    let (code, output) = bench.run(request);
    assert_eq!((code, output.as_str()), (5, "ready\nend\n"));
}

fn a_containers_own_terminal_is_attached_to(bench: &mut Bench) {
    let mut request = bench.request(&["terminal"]);
    (request.tty, request.init) = (true, true);
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "24x80 on /dev/pts/0\r");
    let (mut attached, mut reader) = listen(bench, &id);
    let terminal = attached.take_input().expect("its terminal");
    let size = rustix::termios::Winsize { ws_row: 9, ws_col: 33, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&terminal, size).unwrap();
    let mut terminal = File::from(terminal);
    terminal.write_all(b"\n").unwrap();
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("9x33 on /dev/pts/0") {
        let mut buffer = [0; 64];
        let count = reader.read(&mut buffer).unwrap();
        assert!(count > 0, "it has ended");
        heard.extend_from_slice(&buffer[..count]);
    }
    // The interrupt key is for the program.
    terminal.write_all(b"\x03").unwrap();
    match bench.wait(attached.wait()).unwrap() {
        AttachEnd::Exited(exit) => assert_eq!((exit.code, exit.signal), (130, None)),
        AttachEnd::Lagging => panic!("nobody lags"),
    }
}

fn who_listens_too_slowly_is_let_go(bench: &mut Bench) {
    let mut request = bench.request(&["count", "200000"]);
    request.log = LogOptions { file_bytes_max: 4 << 20, files_max: 2, ..LogOptions::default() };
    let gate = bench.directory.path().join("gate");
    fs::create_dir(&gate).unwrap();
    request.args.splice(2..2, ["gated".into(), "/gate/open".into()]);
    request.mounts = vec![Mount::Bind { source: gate.clone(), target: "/gate".into(), readonly: true }];
    let id = bench.start(request).unwrap();
    let (mut attached, reader) = listen(bench, &id);
    fs::write(gate.join("open"), "").unwrap();
    assert_eq!(bench.wait(attached.wait()).unwrap(), AttachEnd::Lagging);
    drop(reader);
    assert_eq!(bench.wait(bench.executor.wait(&id)).unwrap().code, 0);
    let tail = bench.entries(&id, LogQuery { tail: Some(1), ..LogQuery::default() });
    assert_eq!(tail[0].text, b"199999");
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

/// Unpacks what is at a path in a container, and gives the directory.
fn copy_out(bench: &Bench, id: &str, path: &str) -> Result<tempfile::TempDir, String> {
    let root = bench.wait(bench.executor.root(id, false)).map_err(|error| error.to_string())?;
    let mut archive = Vec::new();
    files::pack(&root, Path::new(path), false, &mut archive).map_err(|error| error.to_string())?;
    let to = tempfile::tempdir().unwrap();
    let target = files::Target { name: Some("copy".into()), ..files::Target::default() };
    let here = files::directory(to.path()).unwrap();
    files::unpack(&here, Path::new("/copy"), &target, &archive[..]).map_err(|error| error.to_string())?;
    Ok(to)
}

fn files_are_copied_out_of_containers(bench: &mut Bench) {
    let mut request = bench.request(&["write-and-wait", "/data/own", "/scratch/own"]);
    request.mounts = vec![Mount::Tmpfs { target: "/scratch".into(), size_bytes: None, mode: 0o1777 }];
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "written");
    let read = |directory: tempfile::TempDir| fs::read_to_string(directory.path().join("copy")).unwrap();
    assert_eq!(read(copy_out(bench, &id, "/data/own").unwrap()), "from inside");
    assert_eq!(read(copy_out(bench, &id, "/scratch/own").unwrap()), "from inside");
    assert!(copy_out(bench, &id, "/etc").unwrap().path().join("copy/passwd").exists());
    // A link that climbs leads to what is inside, and an absolute one likewise.
    symlink("/proc/self/root/../../../../..", bench.image().join("data/climb")).unwrap();
    let outside = bench.directory.path().join("outside-file");
    fs::write(&outside, "secret").unwrap();
    let link = format!("/data/climb{}", outside.display());
    assert!(copy_out(bench, &id, &link).is_err());
    bench.wait(bench.executor.stop(&id, Duration::ZERO)).unwrap();
    // What it has written is there when it has ended; what was in memory is gone.
    assert_eq!(read(copy_out(bench, &id, "/data/own").unwrap()), "from inside");
    assert!(copy_out(bench, &id, "/bin/inside").is_ok(), "the image is below");
    assert!(copy_out(bench, &id, "/scratch/own").is_err());
    assert!(copy_out(bench, &id, &link).is_err());
    assert!(matches!(bench.wait(bench.executor.root(&id, true)), Err(Error::NotRunning(_))));
}

fn files_are_copied_into_a_container(bench: &mut Bench) {
    let outside = bench.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let layer = bench.directory.path().join("links");
    fs::create_dir_all(layer.join("data")).unwrap();
    symlink(&outside, layer.join("data/out")).unwrap();
    let mut request = bench.request(&["wait-for", "/data/arrived"]);
    request.lower.insert(0, layer.clone());
    let id = bench.start(request).unwrap();
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("arrived"), "hello").unwrap();
    let mut archive = Vec::new();
    let here = files::directory(from.path()).unwrap();
    files::pack(&here, Path::new("/arrived"), false, &mut archive).unwrap();
    let root = bench.wait(bench.executor.root(&id, true)).unwrap();
    let target = files::Target { name: Some("arrived".into()), ..files::Target::default() };
    let put = |path: &str| files::unpack(&root, Path::new(path), &target, &archive[..]);
    assert!(put("/data/out/").is_err(), "the link leads to nothing inside");
    assert!(put("/data/out/x").is_err());
    put("/data/").unwrap();
    assert_eq!(bench.wait(bench.executor.wait(&id)).unwrap().code, 3);
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
    assert!(!layer.join("data/arrived").exists());
    let mut request = bench.request(&["hang"]);
    request.privileges.read_only_root = true;
    let id = bench.start(request).unwrap();
    let root = bench.wait(bench.executor.root(&id, true)).unwrap();
    let error = files::unpack(&root, Path::new("/data/"), &target, &archive[..]).unwrap_err();
    assert!(error.to_string().to_lowercase().contains("read-only"), "{error}");
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
    assert_eq!(bench.pid(&id), pid, "it goes on");
}

fn another_program_runs_inside(bench: &mut Bench) {
    let mut request = bench.request(&["hang"]);
    request.env = vec!["COLOUR=blue".into()];
    let id = bench.start(request).unwrap();
    let run = |exec: Exec| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let stdio = [null(), OwnedFd::from(writer), null()];
        let exit = bench.wait(bench.executor.exec(&id, exec, stdio));
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        (exit, output)
    };
    let exec = |words: &[&str]| {
        let args = ["/bin/inside", "inside"].iter().chain(words).map(ToString::to_string).collect();
        Exec { args, env: vec!["SHAPE=round".into()], ..Exec::default() }
    };
    let (exit, output) = run(exec(&["names"]));
    assert_eq!(exit.unwrap().code, 0);
    assert!(output.contains("COLOUR=blue") && output.contains("SHAPE=round"), "{output}");
    let (exit, output) =
        run(Exec { user: Some("web".into()), workdir: Some("/data".into()), ..exec(&["who"]) });
    assert_eq!(exit.unwrap().code, 0);
    assert!(output.contains("33:34 [40] home=/srv in /data"), "{output}");
    let (exit, output) = run(exec(&["profile"]));
    assert_eq!(exit.unwrap().code, 0);
    assert!(output.contains("CapBnd: 00000000000405fb") && output.contains("Seccomp: 2"), "{output}");
    let (exit, _) = run(exec(&["exit", "9"]));
    assert_eq!((exit.as_ref().unwrap().code, exit.unwrap().timed_out), (9, false));
    let (exit, _) = run(Exec { timeout_ms: Some(50), ..exec(&["hang"]) });
    assert_eq!((exit.as_ref().unwrap().code, exit.unwrap().timed_out), (137, true));
    let (exit, _) = run(Exec { args: vec!["/nothing".into()], ..exec(&[]) });
    assert!(matches!(exit, Err(Error::Start { code: 127, .. })), "{exit:?}");
    // A program still running beside the first one ends with it.
    let executor = bench.executor.clone();
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let (hanging, beside) = (exec(&["hang"]), id.clone());
    bench.runtime.spawn(async move { executor.exec(&beside, hanging, [null(), null(), null()]).await });
    bench.wait(async {
        while bench.executor.stats(&id).await.is_ok_and(|usage| usage.pids == 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.executor.stop(&id, Duration::ZERO).await.unwrap();
    });
}

fn inside_words(words: &[&str]) -> Vec<String> {
    ["/bin/inside", "inside"].iter().chain(words).map(ToString::to_string).collect()
}

fn a_probe_tells_the_well_from_the_ill(bench: &mut Bench) {
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    let probe = |words: &[&str]| {
        let probe = Probe::Exec { args: inside_words(words) };
        bench.wait(bench.executor.probe(&id, &probe, PATIENCE))
    };
    let well = probe(&["speak"]);
    assert!(well.healthy && well.output.starts_with("one\nwrong\ntwo\nxxx"), "{well:?}");
    // Far more was written, and nobody waited for it to be read.
    assert_eq!(well.output.len(), 4096);
    assert_eq!(
        probe(&["exit", "3"]),
        rswarm::executor::ProbeOutcome { healthy: false, output: "exit code 3".into() }
    );
    let missing = Probe::Exec { args: vec!["/nothing".into()] };
    let ill = bench.wait(bench.executor.probe(&id, &missing, PATIENCE));
    assert!(!ill.healthy && ill.output.contains("no such file"), "{ill:?}");
    bench.wait(bench.executor.stop(&id, Duration::ZERO)).unwrap();
    let ended = probe(&["exit", "0"]);
    assert!(!ended.healthy && ended.output.contains("is not running"), "{ended:?}");
    let unknown = bench.wait(bench.executor.probe("nobody", &missing, PATIENCE));
    assert!(!unknown.healthy && unknown.output.contains("there is no container nobody"), "{unknown:?}");
}

fn a_probe_that_hangs_is_killed_with_its_children(bench: &mut Bench) {
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    let alone = |bench: &Bench| {
        until("the probe's processes are gone", || {
            processes().iter().filter(|line| line.contains("brood")).count() == 0
        });
        for cgroup in bench.cgroups() {
            let own = fs::read_dir(cgroup).unwrap().map(|entry| entry.unwrap().path());
            let own = own.filter(|path| path.is_dir()).find(|path| path.ends_with(&id));
            assert!(
                own.is_none_or(|own| fs::read_dir(own).unwrap().all(|entry| !entry.unwrap().path().is_dir()))
            );
        }
    };
    // Its child has left its session, and holds its output open.
    let probe = Probe::Exec { args: inside_words(&["brood", "hang"]) };
    let ill = bench.wait(bench.executor.probe(&id, &probe, Duration::from_millis(300)));
    assert!(!ill.healthy && ill.output.contains("no answer within 300ms"), "{ill:?}");
    assert!(ill.output.contains("hatched"), "what it wrote is kept: {ill:?}");
    alone(bench);
    // One that ends in good order leaves nothing either.
    let probe = Probe::Exec { args: inside_words(&["brood", "leave"]) };
    let well = bench.wait(bench.executor.probe(&id, &probe, PATIENCE));
    assert!(well.healthy, "{well:?}");
    alone(bench);
    // Nor does one that nobody waits for any more.
    let probe = Probe::Exec { args: inside_words(&["brood", "hang"]) };
    bench.wait(async {
        let mut probing = std::pin::pin!(bench.executor.probe(&id, &probe, PATIENCE));
        let hatched = async {
            while !processes().iter().any(|line| line.contains("brood")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            found = &mut probing => panic!("it hangs, yet has answered {found:?}"),
            () = hatched => {}
        }
    });
    alone(bench);
    assert!(matches!(bench.executor.inspect(&id).unwrap().state, State::Running(_)));
}

fn a_port_is_probed_inside_the_containers_network(bench: &mut Bench) {
    let before = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let mut request = bench.request(&["serve"]);
    request.privileges.cap_add = vec!["NET_ADMIN".into()];
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "serving");
    let probe = |probe: Probe| bench.wait(bench.executor.probe(&id, &probe, PATIENCE));
    let http = |path: &str| probe(Probe::Http { port: 80, path: path.into() });
    let well = http("/fine?really");
    assert!(well.healthy && well.output == "HTTP 200 OK\nGET /fine?really", "{well:?}");
    assert!(http("/moved").healthy);
    let ill = http("/broken");
    assert!(!ill.healthy && ill.output.starts_with("HTTP 500"), "{ill:?}");
    let ill = http("/nonsense");
    assert!(!ill.healthy && ill.output.starts_with("no HTTP on port 80"), "{ill:?}");
    let hanging = Probe::Http { port: 80, path: "/hang".into() };
    let ill = bench.wait(bench.executor.probe(&id, &hanging, Duration::from_millis(200)));
    assert_eq!((ill.healthy, ill.output.as_str()), (false, "no answer within 200ms"));
    assert!(probe(Probe::Tcp { port: 80 }).healthy);
    let ill = probe(Probe::Tcp { port: 81 });
    assert!(!ill.healthy && ill.output.contains("cannot connect to port 81"), "{ill:?}");
    assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
}

fn a_program_beside_has_a_terminal(bench: &mut Bench) {
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    for user in ["root", "web"] {
        let size = WindowSize { rows: 33, columns: 101 };
        let user = Some(user.to_owned());
        let exec = Exec { args: inside_words(&["terminal"]), tty: Some(size), user, ..Exec::default() };
        let mut execution = bench.wait(bench.executor.begin(&id, exec, Vec::new())).unwrap();
        let mut terminal = File::from(execution.take_terminal().unwrap());
        let mut said = String::new();
        let mut until_said = |words: &str, terminal: &mut File| {
            let mut buffer = [0; 4096];
            while !said.contains(words) {
                match terminal.read(&mut buffer) {
                    Ok(count @ 1..) => said.push_str(&String::from_utf8_lossy(&buffer[..count])),
                    ended => panic!("{words:?} is missing from {said:?}, and it is over: {ended:?}"),
                }
            }
        };
        until_said("33x101 on /dev/pts/", &mut terminal);
        let larger = rustix::termios::Winsize { ws_row: 50, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&terminal, larger).unwrap();
        terminal.write_all(b"again\n").unwrap();
        until_said("50x120 on /dev/pts/", &mut terminal);
        // What a terminal is for: the key that interrupts.
        terminal.write_all(b"\x03").unwrap();
        assert_eq!(bench.wait(execution.wait()).unwrap().code, 130);
    }
}

fn a_program_beside_is_signalled_and_listed(bench: &mut Bench) {
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let null = OwnedFd::from(File::open("/dev/null").unwrap());
    let exec = Exec { args: inside_words(&["obey"]), ..Exec::default() };
    let begun = bench.executor.begin(&id, exec, vec![null, OwnedFd::from(writer)]);
    let mut execution = bench.wait(begun).unwrap();
    let mut said = [0; 6];
    reader.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"ready\n");
    let listed = bench.wait(bench.executor.processes(&id)).unwrap();
    let commands: Vec<(i32, &str)> =
        listed.iter().map(|process| (process.pid, process.command.as_str())).collect();
    let (first, beside) = (bench.pid(&id), execution.pid());
    assert_eq!(commands, [(first, "/bin/inside inside hang"), (beside, "/bin/inside inside obey")]);
    assert!(listed.iter().all(|process| process.uid == 0 && process.tty.is_none()), "{listed:?}");
    bench.wait(bench.executor.signal(&id, beside, 15)).unwrap();
    assert_eq!(bench.wait(execution.wait()).unwrap().code, 7);
    bench.wait(bench.executor.signal(&id, beside, 15)).unwrap();
}

fn a_paused_container_stands_still(bench: &mut Bench) {
    let burning = bench.request(&["burn"]);
    let burning = bench.start(burning).unwrap();
    let obedient = bench.request(&["obey"]);
    let obedient = bench.start(obedient).unwrap();
    bench.until_said(&obedient, "ready");
    let pause = |id: &str| bench.wait(bench.executor.pause(id));
    if let Err(error) = pause(&burning) {
        assert!(bench.cgroups().is_empty(), "{error}");
        return eprintln!("skipped: {error}");
    }
    let used = || bench.wait(bench.executor.stats(&burning)).unwrap().cpu_ns;
    let before = used();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(used(), before);
    let exec = Exec { args: inside_words(&["exit", "0"]), ..Exec::default() };
    let refused = bench.wait(bench.executor.begin(&burning, exec, Vec::new())).err().unwrap();
    assert!(refused.to_string().contains("is paused"), "{refused}");
    pause(&burning).unwrap();
    bench.wait(bench.executor.unpause(&burning)).unwrap();
    until("it goes on", || used() > before);
    // One that is asked to end hears it, and one that is killed dies.
    pause(&obedient).unwrap();
    let exit = bench.wait(bench.executor.stop(&obedient, PATIENCE)).unwrap().unwrap();
    assert_eq!(exit.code, 7);
    pause(&burning).unwrap();
    bench.wait(bench.executor.remove(&burning)).unwrap();
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

/// Makes, starts, stops and removes containers without end, saying so for each: `churn ROOT RUN CGROUP IMAGE SEED`.
fn churn(args: &[String]) -> ExitCode {
    let [root, run, cgroup, image, seed] = args else { panic!("churn ROOT RUN CGROUP IMAGE SEED") };
    let mut random = Random(seed.parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let config = Config {
            root_dir: root.into(),
            run_dir: run.into(),
            cgroup_parent: cgroup.into(),
            cgroup_mount: "/sys/fs/cgroup".into(),
        };
        let executor = Executor::open(config).await.unwrap();
        for number in 0.. {
            // What an earlier one left behind is cleared away now and then, as by a manager's word.
            if random.below(4) == 0 {
                for container in executor.list() {
                    executor.remove(&container.id).await.unwrap();
                }
            }
            let id = format!("k{seed}-{number}");
            let words: &[&str] = if random.below(2) == 0 { &["hang"] } else { &["exit", "0"] };
            let words = ["/bin/inside", "inside"].iter().chain(words).map(ToString::to_string).collect();
            let mut request = ContainerRequest::new(&id, vec![image.into()], words);
            request.init = random.below(2) == 0;
            executor.create(request).await.unwrap();
            executor.start(&id).await.unwrap();
            println!("started");
            if random.below(3) > 0 {
                executor.stop(&id, Duration::ZERO).await.unwrap();
            }
            if random.below(3) > 0 {
                executor.remove(&id).await.unwrap();
            }
        }
    });
    ExitCode::SUCCESS
}

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// `LEAKS=10000` makes so many starts, `SEED=7` other ones.
fn daemons_killed_at_random_leave_nothing_behind(bench: &mut Bench) {
    let setting =
        |name: &str, usual: u64| std::env::var(name).map_or(usual, |text| text.parse().expect("a number"));
    let (wanted, seed) = (setting("LEAKS", 60), setting("SEED", 1));
    let mut random = Random(seed);
    let state = || {
        let namespaces: BTreeSet<_> =
            fs::read_dir("/proc/self/ns").unwrap().flatten().map(|e| e.path()).collect();
        (fs::read_dir("/proc/self/fd").unwrap().count(), namespaces.len())
    };
    let before = state();
    let (mut starts, mut deaths) = (0, 0);
    while starts < wanted {
        let config = &bench.config;
        let mut daemon = Command::new(std::env::current_exe().unwrap())
            .arg("churn")
            .args([&config.root_dir, &config.run_dir, &PathBuf::from(&config.cgroup_parent), &bench.image()])
            .arg(random.below(1 << 31).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Killed some starts and some moments later, wherever it is by then.
        let mut lines = std::io::BufReader::new(daemon.stdout.take().unwrap()).lines();
        let turns = 1 + random.below(12);
        for _ in 0..turns {
            let Some(line) = lines.next() else {
                let mut words = String::new();
                daemon.stderr.take().unwrap().read_to_string(&mut words).unwrap();
                panic!("seed {seed}, after {starts} starts: a daemon ended by itself: {words}");
            };
            assert_eq!(line.unwrap(), "started");
            starts += 1;
        }
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        deaths += 1;
    }
    println!("    {starts} starts, {deaths} daemons killed");
    bench.reopen();
    for container in bench.executor.list() {
        bench.wait(bench.executor.remove(&container.id)).unwrap();
    }
    assert!(bench.executor.list().is_empty());
    assert_eq!(fs::read_dir(bench.config.root_dir.join("containers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&bench.config.run_dir).unwrap().count(), 0);
    for cgroup in bench.cgroups() {
        let children = fs::read_dir(cgroup).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir());
        assert_eq!(children.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(), ["shims"]);
    }
    until("descriptors are closed", || state().0 <= before.0);
    // The rest is asserted of every claim: no mount, cgroup, process or directory.
}

fn thirty_starts_leave_nothing(bench: &mut Bench) {
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let mut latencies = Vec::new();
    let mut before = 0;
    for round in 0..31 {
        let request = bench.request(&["clock"]);
        let begun = monotonic_ns();
        let (code, output) = bench.run(request);
        assert_eq!(code, 0);
        latencies.push(output.trim().parse::<u64>().unwrap() - begun);
        let id = format!("c{}", bench.made);
        bench.wait(bench.executor.remove(&id)).unwrap();
        if round == 0 {
            before = descriptors();
        }
    }
    until("descriptors are closed", || descriptors() <= before);
    assert!(bench.executor.list().is_empty());
    for cgroup in bench.cgroups() {
        let children = fs::read_dir(cgroup).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir());
        assert_eq!(children.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(), ["shims"]);
    }
    latencies.sort_unstable();
    let ms = |ns: u64| ns as f64 / 1e6;
    println!(
        "    create + start to the first instruction: median {:.2} ms, least {:.2}, most {:.2}",
        ms(latencies[latencies.len() / 2]),
        ms(latencies[0]),
        ms(*latencies.last().unwrap())
    );
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn signal(pid: i32, number: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::try_from(number).unwrap()).unwrap();
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What this program does as a container's program.
mod inside {
    use super::*;
    use nix::libc;

    pub fn main(args: &[String]) -> ExitCode {
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        match words[..] {
            ["exit", code] => return ExitCode::from(code.parse::<u8>().unwrap()),
            ["hang"] => loop {
                std::thread::park();
            },
            ["clock"] => println!("{}", monotonic_ns()),
            ["obey"] => return obey(),
            ["speak"] => speak(),
            ["count", last] => (0..last.parse().unwrap()).for_each(|number: usize| println!("{number}")),
            ["wait-for", path] => {
                until("the file is there", || Path::new(path).exists());
                return ExitCode::from(3);
            }
            ["eat", mebibytes] => drop(eat(mebibytes.parse().unwrap())),
            ["threads", count] => threads(count.parse().unwrap()),
            ["burn"] => loop {
                std::hint::spin_loop();
            },
            ["profile"] => profile(),
            ["calls"] => calls(),
            ["who"] => who(),
            ["mounts"] => mounts(),
            ["device"] => device(),
            ["limit", path] => limit(Path::new(path)),
            ["write", path] => {
                File::create_new(path).unwrap();
            }
            ["names"] => names(),
            ["abort"] => {
                // A core is no file anybody wants here.
                nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
                // As process 1 it would be spared by the default action, but not by its own hand.
                std::process::abort()
            }
            ["options"] => options(),
            ["open", ref paths @ ..] => paths.iter().for_each(|path| open(path)),
            ["orphans"] => return orphans(),
            ["echo"] => return echo(),
            ["gated", gate, "count", last] => {
                until("the gate is open", || Path::new(gate).exists());
                (0..last.parse().unwrap()).for_each(|number: usize| println!("{number}"));
            }
            ["count-and-hang", last] => {
                (0..last.parse().unwrap()).for_each(|number: usize| println!("{number}"));
                loop {
                    std::thread::park();
                }
            }
            ["write-and-wait", ref paths @ ..] => {
                paths.iter().for_each(|path| fs::write(path, "from inside").unwrap());
                println!("written");
                loop {
                    std::thread::park();
                }
            }
            ["eat-and-wait", mebibytes] => {
                let memory = eat(mebibytes.parse().unwrap());
                println!("eaten");
                loop {
                    std::thread::park();
                    std::hint::black_box(&memory);
                }
            }
            ["terminal"] => terminal(),
            ["brood", then] => brood(then),
            ["serve"] => serve(),
            ["network"] => println!("{}", fs::read_link("/proc/self/ns/net").unwrap().display()),
            _ => panic!("{words:?} is nothing to do"),
        }
        ExitCode::SUCCESS
    }

    fn obey() -> ExitCode {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut signals =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
            println!("ready");
            signals.recv().await;
        });
        ExitCode::from(7)
    }

    fn speak() {
        println!("one");
        eprintln!("wrong");
        println!("two");
        println!("{}", "x".repeat(40_000));
        print!("no newline");
        std::io::stdout().flush().unwrap();
    }

    /// Says what its terminal is like, and again for each line that is typed.
    fn terminal() {
        loop {
            let stdin = std::io::stdin();
            let size = rustix::termios::tcgetwinsize(&stdin).unwrap();
            let name = rustix::termios::ttyname(&stdin, Vec::new()).unwrap();
            // Found again by its name, and by the one that leads to it for every program.
            File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
            File::open("/dev/tty").unwrap();
            println!("{}x{} on {}", size.ws_row, size.ws_col, name.to_str().unwrap());
            stdin.read_line(&mut String::new()).unwrap();
        }
    }

    /// Starts a child in a session of its own, and then hangs or leaves it alone.
    #[allow(clippy::zombie_processes, reason = "a bad program leaves its children alone")]
    fn brood(then: &str) {
        use std::os::unix::process::CommandExt;
        let mut child = Command::new("/bin/inside");
        child.args(["inside", "hang"]).arg0("brood");
        // SAFETY: a system call that allocates nothing.
        unsafe { child.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) };
        child.spawn().unwrap();
        println!("hatched");
        if then == "hang" {
            loop {
                std::thread::park();
            }
        }
    }

    /// Answers HTTP on port 80 of the loopback device, a connection at a time but for those it leaves hanging.
    fn serve() {
        // SAFETY: an all-zero request is valid, and outlives the call.
        unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
            let mut request: libc::ifreq = std::mem::zeroed();
            request.ifr_name[0] = b'l' as libc::c_char;
            request.ifr_name[1] = b'o' as libc::c_char;
            request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
            assert_eq!(libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request), 0);
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:80").unwrap();
        println!("serving");
        let mut hanging = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            std::io::BufReader::new(&stream).read_line(&mut line).unwrap();
            let asked = line.trim_end().trim_end_matches(" HTTP/1.1");
            let answer = match asked.rsplit('/').next().unwrap() {
                "broken" => "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned(),
                "moved" => "HTTP/1.1 302 There\r\ncontent-length: 0\r\n\r\n".to_owned(),
                "nonsense" => "what?\r\n\r\n".to_owned(),
                "hang" => {
                    hanging.push(stream);
                    continue;
                }
                _ => format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{asked}"),
            };
            // A probe of the port alone has left already.
            let _ = stream.write_all(answer.as_bytes());
        }
    }

    fn eat(mebibytes: usize) -> Vec<u8> {
        let mut memory = vec![0_u8; mebibytes << 20];
        memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        std::hint::black_box(&memory);
        memory
    }

    fn options() {
        let groups: Vec<u32> =
            rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        println!("groups {groups:?}");
        for line in fs::read_to_string("/proc/self/limits").unwrap().lines() {
            println!("{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
        for name in ["net.ipv4.ip_default_ttl", "kernel.shmmni"] {
            let value = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).unwrap();
            println!("{name} {}", value.trim());
        }
        let shm = nix::sys::statvfs::statvfs("/dev/shm").unwrap();
        println!("shm {}", shm.blocks() * shm.fragment_size());
        println!("oom {}", fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim());
        status().iter().filter(|line| line.starts_with("Cap")).for_each(|line| println!("{line}"));
    }

    fn open(path: &str) {
        println!("{path} read {}", words(File::open(path)));
        println!("{path} write {}", words(File::options().write(true).open(path)));
    }

    /// Leaves a child without its parent, and says what becomes of it. Ends with 7 when it is told to.
    fn orphans() -> ExitCode {
        let mut child = Command::new("/bin/inside");
        // What hatches outlives it, and is process 1's.
        child.args(["inside", "brood", "leave"]).stdout(Stdio::null());
        assert!(child.status().unwrap().success());
        let parent = fs::read_to_string("/proc/1/comm").unwrap();
        let processes = || {
            let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                name.parse::<i32>().ok()
            });
            entries.collect::<Vec<_>>()
        };
        let own = [1, std::process::id() as i32];
        for pid in processes().into_iter().filter(|pid| !own.contains(pid)) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
        until("the orphan is gone", || processes().into_iter().all(|pid| own.contains(&pid)));
        assert_eq!(std::os::unix::process::parent_id(), 1);
        println!("my parent is {}, none is dead", parent.trim());
        obey()
    }

    fn echo() -> ExitCode {
        println!("ready");
        for line in std::io::stdin().lines() {
            println!("got {}", line.unwrap());
        }
        println!("end");
        ExitCode::from(5)
    }

    fn threads(count: usize) {
        let begin = |_| std::thread::Builder::new().stack_size(65_536).spawn(std::thread::park).is_ok();
        println!("{}", (0..count).map(begin).filter(|begun| *begun).count());
    }

    fn status() -> Vec<String> {
        let text = fs::read_to_string("/proc/self/status").unwrap();
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    fn profile() {
        status().iter().for_each(|line| println!("{line}"));
        println!("pid {}", std::process::id());
        // The listing itself has a descriptor, which is closed again when it is asked after.
        let listed: Vec<i32> = fs::read_dir("/proc/self/fd")
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        let open = listed
            .into_iter()
            .filter(|fd| nix::fcntl::fcntl(borrowed(*fd), nix::fcntl::FcntlArg::F_GETFD).is_ok());
        let sorted: BTreeSet<i32> = open.collect();
        println!("fds {}", sorted.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        let interfaces = fs::read_dir("/sys/class/net").unwrap();
        let names: Vec<_> =
            interfaces.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        println!("interfaces {}", names.join(" "));
        for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts"] {
            if fs::read(path).map_or(true, |bytes| bytes.is_empty()) {
                println!("empty or absent {path}");
            }
        }
        if fs::read_dir("/sys/firmware").map_or(0, Iterator::count) == 0 {
            println!("no entries in /sys/firmware");
        }
        for path in ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/kernel/uevent_seqnum"] {
            if File::options().write(true).open(path).is_err() {
                println!("cannot write {path}");
            }
        }
        for path in ["/dev/mem", "/dev/kmsg", "/dev/loop-control", "/dev/kvm"] {
            if File::open(path).is_err() {
                println!("cannot open {path}");
            }
        }
        for path in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/ptmx"] {
            if File::options().read(true).write(true).open(path).is_ok() {
                println!("can open {path}");
            }
        }
        if std::net::TcpListener::bind("0.0.0.0:80").is_ok() {
            println!("port 80 can be bound");
        }
        let made = nix::sys::stat::mknod(
            "/data/mem",
            nix::sys::stat::SFlag::S_IFCHR,
            nix::sys::stat::Mode::empty(),
            nix::sys::stat::makedev(1, 1),
        );
        if made.is_err() {
            println!("cannot make a device node");
        }
    }

    fn borrowed(fd: i32) -> std::os::fd::BorrowedFd<'static> {
        // SAFETY: only asked whether it is open.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
    }

    /// Each with arguments that do no harm should the call be let through.
    fn calls() {
        let table = [
            ("mount", libc::SYS_mount),
            ("umount2", libc::SYS_umount2),
            ("pivot_root", libc::SYS_pivot_root),
            ("setns", libc::SYS_setns),
            ("open_tree", libc::SYS_open_tree),
            ("move_mount", libc::SYS_move_mount),
            ("fsopen", libc::SYS_fsopen),
            ("mount_setattr", libc::SYS_mount_setattr),
            ("bpf", libc::SYS_bpf),
            ("perf_event_open", libc::SYS_perf_event_open),
            ("keyctl", libc::SYS_keyctl),
            ("add_key", libc::SYS_add_key),
            ("request_key", libc::SYS_request_key),
            ("userfaultfd", libc::SYS_userfaultfd),
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("open_by_handle_at", libc::SYS_open_by_handle_at),
            ("init_module", libc::SYS_init_module),
            ("delete_module", libc::SYS_delete_module),
            ("kexec_load", libc::SYS_kexec_load),
            ("swapoff", libc::SYS_swapoff),
            ("acct", libc::SYS_acct),
            ("quotactl", libc::SYS_quotactl),
            ("syslog", libc::SYS_syslog),
            ("kcmp", libc::SYS_kcmp),
            ("fanotify_init", libc::SYS_fanotify_init),
            ("clone3", libc::SYS_clone3),
            ("unknown", 9_999),
        ];
        for (name, number) in table {
            report(name, [number, -1, 0, 0]);
        }
        report("unshare user", [libc::SYS_unshare, libc::CLONE_NEWUSER.into(), 0, 0]);
        report("clone user", [libc::SYS_clone, libc::CLONE_NEWUSER.into(), 0, 0]);
        report("socket vsock", [libc::SYS_socket, libc::AF_VSOCK.into(), libc::SOCK_STREAM.into(), 0]);
        report("socket alg", [libc::SYS_socket, libc::AF_ALG.into(), libc::SOCK_SEQPACKET.into(), 0]);
        report("personality", [libc::SYS_personality, 0x0040_0000, 0, 0]);
    }

    fn report(name: &str, [number, first, second, third]: [libc::c_long; 4]) {
        // SAFETY: the arguments are null or invalid, so that a call let through fails.
        let result = unsafe { libc::syscall(number, first, second, third, 0, 0) };
        let words = match std::io::Error::last_os_error().raw_os_error() {
            _ if result >= 0 => "allowed".to_owned(),
            Some(libc::EPERM) => "EPERM".to_owned(),
            Some(libc::ENOSYS) => "ENOSYS".to_owned(),
            other => format!("error {other:?}"),
        };
        println!("{name} {words}");
    }

    fn who() {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let groups: Vec<u32> =
            rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        let (home, here) = (std::env::var("HOME").unwrap(), std::env::current_dir().unwrap());
        println!("{uid}:{gid} {groups:?} home={home} in {}", here.display());
        status().iter().filter(|line| line.starts_with("Cap")).for_each(|line| println!("{line}"));
        if let Ok(mut stdout) = File::options().write(true).open("/dev/stdout") {
            stdout.write_all(b"stdout can be opened anew\n").unwrap();
        }
    }

    fn words<T>(result: std::io::Result<T>) -> String {
        match result.map_err(|error| error.raw_os_error()) {
            Ok(_) => "ok".to_owned(),
            Err(Some(libc::EPERM)) => "EPERM".to_owned(),
            Err(Some(libc::EROFS)) => "EROFS".to_owned(),
            Err(Some(libc::ENOSPC)) => "ENOSPC".to_owned(),
            Err(other) => format!("{other:?}"),
        }
    }

    fn device() {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        for (major, minor) in [(1, 3), (1, 11)] {
            let path = format!("/data/{major}-{minor}");
            mknod(path.as_str(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
                .unwrap();
            println!("open {major}:{minor}: {}", words(File::open(path)));
        }
    }

    fn limit(path: &Path) {
        print!("{}", fs::read_to_string(path).unwrap());
        println!("raise: {}", words(File::options().write(true).open(path)));
        println!("escape: {}", words(fs::create_dir(path.with_file_name("child"))));
    }

    fn mounts() {
        for path in ["/mnt/ro/file", "/etc/one-file"] {
            println!("{path}: {}", fs::read_to_string(path).unwrap());
        }
        for path in ["/mnt/ro/new", "/mnt/deep/rw/new", "/scratch/new"] {
            println!("write {path}: {}", words(fs::write(path, "from inside")));
        }
        println!("fill /scratch/big: {}", words(fs::write("/scratch/big", vec![1; 2 << 20])));
        println!("write /new: {}", words(fs::write("/new", "from inside")));
    }

    fn names() {
        println!("kernel {}", rustix::system::uname().nodename().to_str().unwrap());
        std::env::vars().for_each(|(name, value)| println!("{name}={value}"));
        for file in ["hostname", "hosts", "resolv.conf"] {
            print!("{}", fs::read_to_string(Path::new("/etc").join(file)).unwrap());
        }
    }
}

/// The whole of this program once more, in a machine with a kernel of its own.
fn all_this_holds_on_another_kernel(_: &mut Bench) {
    if let Some(why) = rswarm_chaos::vm::missing() {
        eprintln!("skipped: {why}");
        return;
    }
    let kernel = rswarm_chaos::vm::Kernel::find().unwrap();
    println!("a machine with Linux {}:", kernel.release);
    let machine = rswarm_chaos::vm::Machine {
        kernel,
        init: std::env::current_exe().unwrap(),
        programs: Vec::new(),
        modules: rswarm_chaos::vm::NEEDED.map(str::to_owned).to_vec(),
        command: vec!["/init".into()],
        memory_mib: 3072,
        cpus: 2,
        disk: None,
    };
    let ran = machine.run(10 * PATIENCE, |line| println!("  {line}")).unwrap();
    assert_eq!(ran.code, 0, "claims do not hold there");
    assert!(ran.console.contains("test thirty_starts_leave_nothing ... ok"), "they were looked at");
}
