//! That nothing is left behind, however often and under whichever deaths.

use super::bench::{Bench, Claim, claims, monotonic_ns, until};
use rswarm::executor::{Config, ContainerRequest, Executor};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, Read};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

pub const CLAIMS: &[Claim] =
    claims![daemons_killed_at_random_leave_nothing_behind, thirty_starts_leave_nothing,];

/// Makes, starts, stops and removes containers without end, saying so for each: `churn ROOT RUN CGROUP IMAGE SEED`.
pub fn churn(args: &[String]) -> ExitCode {
    let [root, run, cgroup, image, seed] = args else { panic!("churn ROOT RUN CGROUP IMAGE SEED") };
    let mut random = Random(seed.parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let config = Config {
            root_dir: root.into(),
            run_dir: run.into(),
            cgroup_parent: cgroup.into(),
            cgroup_mount: "/sys/fs/cgroup".into(),
            user_ids: Default::default(),
            runtime: None,
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
