//! An executor of its own for each claim, and what claims have in common.

use rswarm::executor::{Config, ContainerRequest, Error, Executor, LogEntry, LogQuery, State};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A claim by its name.
pub type Claim = (&'static str, fn(&mut Bench));

/// Claims, each under the name of its function.
macro_rules! claims {
    [$($claim:ident),* $(,)?] => { &[$((stringify!($claim), $claim)),*] };
}
pub(crate) use claims;

/// No claim takes longer than this.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An executor of its own with an image, and the way to clear both away.
pub struct Bench {
    pub runtime: tokio::runtime::Runtime,
    pub directory: tempfile::TempDir,
    pub config: Config,
    pub executor: Executor,
    pub made: usize,
}

impl Bench {
    pub fn new() -> Self {
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
            user_ids: Default::default(),
            runtime: None,
        };
        let executor = runtime.block_on(Executor::open(config.clone())).unwrap();
        Self { runtime, directory, config, executor, made: 0 }
    }

    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, future).await })
            .expect("it takes too long")
    }

    pub fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// A container that runs this program's other half.
    pub fn request(&mut self, words: &[&str]) -> ContainerRequest {
        self.made += 1;
        let args = ["/bin/inside", "inside"].iter().chain(words).map(ToString::to_string).collect();
        ContainerRequest::new(format!("c{}", self.made), vec![self.image()], args)
    }

    pub fn start(&self, request: ContainerRequest) -> Result<String, Error> {
        let id = request.id.clone();
        self.wait(async {
            self.executor.create(request).await?;
            self.executor.start(&id).await?;
            Ok(id)
        })
    }

    /// Runs to the end; the code and all that was written.
    pub fn run(&self, request: ContainerRequest) -> (i32, String) {
        let id = self.start(request).unwrap();
        let exit = self.wait(self.executor.wait(&id)).unwrap();
        (exit.code, self.output(&id))
    }

    pub fn entries(&self, id: &str, query: LogQuery) -> Vec<LogEntry> {
        let mut logs = self.executor.logs(id, query).unwrap();
        let mut entries = Vec::new();
        self.wait(async {
            while let Some(entry) = logs.next().await {
                entries.push(entry);
            }
        });
        entries
    }

    pub fn output(&self, id: &str) -> String {
        let texts = self.entries(id, LogQuery::default()).into_iter().map(|entry| entry.text);
        texts.map(|text| String::from_utf8_lossy(&text).into_owned() + "\n").collect()
    }

    /// Waits for a line that says that the program has come so far.
    pub fn until_said(&self, id: &str, words: &str) {
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

    pub fn pid(&self, id: &str) -> i32 {
        match self.executor.inspect(id).unwrap().state {
            State::Running(running) => running.pid,
            other => panic!("{id} does not run: {other:?}"),
        }
    }

    pub fn reopen(&mut self) {
        self.executor = self.wait(Executor::open(self.config.clone())).unwrap();
    }

    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let roots = mounts.chain([PathBuf::from("/sys/fs/cgroup")]);
        roots.map(|root| root.join(&self.config.cgroup_parent)).filter(|path| path.exists()).collect()
    }

    /// Removes all, and asserts that all is gone.
    pub fn clear(&self) {
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
pub fn processes() -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path().join("cmdline")));
    entries
        .filter_map(|path| fs::read(path).ok())
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .collect()
}

pub fn inside_words(words: &[&str]) -> Vec<String> {
    ["/bin/inside", "inside"].iter().chain(words).map(ToString::to_string).collect()
}

pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub fn signal(pid: i32, number: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::try_from(number).unwrap()).unwrap();
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
