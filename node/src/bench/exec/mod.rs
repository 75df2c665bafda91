//! Containers alone, without a cluster: from the call to the program's first instruction, a hundred of them, and the
//! memory that stays behind each; by this executor and, in turn, by the OCI runtimes that are installed.
//!
//! All see a unified hierarchy of control groups without limits. On a machine that has the old ones beside it, this
//! process has a view of its own, for which it must be alone.

pub mod floor;
mod oci;
mod program;

use super::figure::{Figure, Of, Samples};
use super::{note, process, stamp};
use crate::executor::{Config, ContainerRequest, Executor, Mount};
use anyhow::{Context, Result, ensure};
use floor::Floor;
use oci::Oci;
use program::Stamp;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;
use tokio::runtime::Runtime;

/// Trials that are not counted.
const WARM_UP: usize = 4;
/// How many containers are started one after the other by so many at a time.
const HUNDRED: usize = 100;
const AT_A_TIME: usize = 8;
/// How often the hundred are started by each.
const HUNDREDS: usize = 3;
/// How many run when their shims' memory is looked at.
const SHIMS: usize = 20;

/// Gives this process a view of its own of the control groups, where there is more than the unified hierarchy. Call it
/// while there is but one thread.
pub fn prepare() -> Result<()> {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !unified.join("cgroup.procs").exists() {
        let pure = Path::new("/sys/fs/cgroup/cgroup.procs").exists();
        ensure!(pure, "this machine has no unified hierarchy of control groups at /sys/fs/cgroup");
        return Ok(());
    }
    use nix::mount::{MsFlags, mount};
    let none = None::<&str>;
    let view = || -> nix::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some(unified), "/sys/fs/cgroup", none, MsFlags::MS_BIND, none)
    };
    view().context("cannot have a view of the control groups of its own")
}

/// Measures, `trials` starts of each kind. Blocks; once it is interrupted it clears away and ends.
pub fn run(trials: usize, interrupted: Arc<AtomicBool>) -> Result<Vec<Figure>> {
    let base = made_in(&std::env::temp_dir())?;
    let site = Site::new(base.clone(), interrupted);
    let measured = site.and_then(|mut site| {
        let measured = site.measure(trials);
        let cleared = site.clear();
        measured.and_then(|figures| cleared.map(|()| figures))
    });
    let removed = std::fs::remove_dir_all(&base).with_context(|| format!("cannot remove {}", base.display()));
    measured.and_then(|figures| removed.map(|()| figures))
}

fn made_in(parent: &Path) -> Result<PathBuf> {
    let directory = parent.join(format!("rswarm-bench-exec-{}", std::process::id()));
    std::fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

struct Site {
    base: PathBuf,
    image: PathBuf,
    /// Of its own: it must be able to clear away when all else has been given up.
    runtime: Runtime,
    executor: Executor,
    floor: Floor,
    peers: Vec<Oci>,
    /// Containers made so far, of whatever kind.
    made: AtomicUsize,
    interrupted: Arc<AtomicBool>,
}

/// Who starts a container.
#[derive(Clone, Copy)]
enum By {
    Us,
    Floor,
    Peer(usize),
}

impl Site {
    fn new(base: PathBuf, interrupted: Arc<AtomicBool>) -> Result<Self> {
        let runtime = Runtime::new().context("cannot start")?;
        let image = base.join("image");
        program::image(&image)?;
        let config = Config {
            root_dir: base.join("root"),
            run_dir: base.join("run"),
            cgroup_parent: format!("rswarm-bench-exec-{}", std::process::id()),
            cgroup_mount: "/sys/fs/cgroup".into(),
            user_ids: Default::default(),
            runtime: None,
        };
        let executor = runtime.block_on(Executor::open(config)).context("cannot open an executor")?;
        let root = base.join("bare");
        program::image(&root)?;
        let floor = Floor::new(&root)?;
        let spec = runtime.block_on(spec(&executor, &base, &image))?;
        let mut peers = Vec::new();
        for name in ["runc", "crun"] {
            match Oci::find(name, &base, &spec)? {
                Some(mut peer) => match peer.fit(&Stamp::new(base.join(format!("stamp-{name}")))?) {
                    Ok(()) => {
                        note(&format!("{name}: {}", peer.version()));
                        peers.push(peer);
                    }
                    Err(error) => note(&format!("{name}: not measured: {error:#}")),
                },
                None => note(&format!("{name}: not measured (not installed)")),
            }
        }
        note("dockerd: not measured by this command");
        Ok(Self { base, image, runtime, executor, floor, peers, made: AtomicUsize::new(0), interrupted })
    }

    fn clear(&mut self) -> Result<()> {
        self.peers.iter().for_each(Oci::clear);
        self.runtime.block_on(self.executor.purge()).context("cannot clear the executor away")
    }

    fn everybody(&self) -> Vec<By> {
        [By::Us, By::Floor].into_iter().chain((0..self.peers.len()).map(By::Peer)).collect()
    }

    fn measure(&mut self, trials: usize) -> Result<Vec<Figure>> {
        let (firsts, hundreds) = (self.firsts(trials)?, self.hundreds()?);
        let shims = self.shims()?;
        let kb =
            Figure::new("exec.shim_private_kb", "memory of a shim's own, of 20", Of::Median, &shims, "kB");
        let kb = kb.map(|figure| figure.target("<=200"));
        Ok(firsts.into_iter().chain(hundreds).chain(kb).collect())
    }

    /// From the call to the first instruction, everybody in turn, the order changing from round to round.
    fn firsts(&mut self, trials: usize) -> Result<Vec<Figure>> {
        let everybody = self.everybody();
        let mut times: Vec<Samples> = everybody.iter().map(|_| Samples::default()).collect();
        for round in 0..WARM_UP + trials {
            for turn in 0..everybody.len() {
                let at = (round + turn) % everybody.len();
                let ms = self.first(everybody[at]).with_context(|| self.name(everybody[at]))?;
                if round >= WARM_UP {
                    times[at].push(ms);
                }
            }
        }
        let mut figures = Vec::new();
        for (by, times) in everybody.iter().zip(&times) {
            let [p50, p99, words] = match self.name(*by).as_str() {
                "us" => {
                    ["exec.first.p50_ms", "exec.first.p99_ms", "create and start to the first instruction"]
                }
                "floor" => ["floor.first.p50_ms", "floor.first.p99_ms", "the same by a bare clone"],
                "runc" => ["runc.first.p50_ms", "runc.first.p99_ms", "the same by runc, without a shim"],
                _ => ["crun.first.p50_ms", "crun.first.p99_ms", "the same by crun, without a shim"],
            };
            figures.extend(Figure::new(p50, words, Of::Median, times, "ms"));
            figures.extend(Figure::new(p99, words, Of::P99, times, "ms"));
        }
        for (by, theirs) in everybody.iter().zip(&times).skip(1) {
            let (goal, words, target) = match self.name(*by).as_str() {
                "floor" => ("exec.first.vs_floor", "our time over the bare clone's", "<=6"),
                "runc" => ("exec.first.vs_runc", "our time over runc's", "<=0.35"),
                _ => ("exec.first.vs_crun", "our time over crun's", "<=1"),
            };
            let ratios: Samples = times[0].iter().zip(theirs.iter()).map(|(us, other)| us / other).collect();
            figures.extend(
                Figure::new(goal, words, Of::Median, &ratios, "").map(|figure| figure.target(target)),
            );
        }
        Ok(figures)
    }

    fn name(&self, by: By) -> String {
        match by {
            By::Us => "us".into(),
            By::Floor => "floor".into(),
            By::Peer(at) => self.peers[at].name().into(),
        }
    }

    fn stamp(&self) -> Result<(String, Stamp)> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let id = format!("bench-exec-{}-{number}", std::process::id());
        let stamp = Stamp::new(self.base.join(format!("stamp-{number}")))?;
        Ok((id, stamp))
    }

    /// Milliseconds to the first instruction.
    fn first(&mut self, by: By) -> Result<f64> {
        let (id, stamp) = self.stamp()?;
        let (call, began) = match by {
            By::Us => {
                let call = stamp::now_ns();
                let starting =
                    self.runtime.spawn(start(self.executor.clone(), self.request(&id, &stamp, false)));
                let began = stamp.read()?;
                self.runtime.block_on(starting).context("the start has panicked")??;
                self.runtime.block_on(finish(&self.executor, &id))?;
                (call, began)
            }
            By::Floor => {
                // Its pipe lies in its root.
                let stamp = Stamp::new(self.base.join("bare/stamp"))?;
                self.floor.order()?;
                let began = stamp.read()?;
                (self.floor.began()?, began)
            }
            By::Peer(at) => {
                let container = self.peers[at].bundle(&id, &stamp)?;
                let call = stamp::now_ns();
                let running = container.run()?;
                let began = stamp.read()?;
                running.finish()?;
                (call, began)
            }
        };
        Ok(began.saturating_sub(call) as f64 / 1e6)
    }

    fn request(&self, id: &str, stamp: &Stamp, stays: bool) -> ContainerRequest {
        let words = [program::PATH, "stay"].into_iter().take(1 + usize::from(stays)).map(String::from);
        let mut request = ContainerRequest::new(id, vec![self.image.clone()], words.collect());
        let source = stamp.directory().to_path_buf();
        request.mounts.push(Mount::Bind { source, target: program::INSIDE.into(), readonly: false });
        request
    }

    /// A hundred containers from the call to their end, eight at a time, everybody in turn.
    fn hundreds(&mut self) -> Result<Vec<Figure>> {
        let everybody: Vec<By> = self.everybody().into_iter().filter(|by| !matches!(by, By::Floor)).collect();
        let mut rates: Vec<Samples> = everybody.iter().map(|_| Samples::default()).collect();
        for round in 0..HUNDREDS {
            for turn in 0..everybody.len() {
                let at = (round + turn) % everybody.len();
                let rate = self.hundred(everybody[at]).with_context(|| self.name(everybody[at]))?;
                note(&format!("{HUNDRED} containers by {}: {rate:.1} a second", self.name(everybody[at])));
                rates[at].push(rate);
            }
        }
        let mut figures = Vec::new();
        for (by, own) in everybody.iter().zip(&rates) {
            let (goal, words) = match self.name(*by).as_str() {
                "us" => ("exec.hundred.per_s", "containers started and ended a second, 8 at a time"),
                "runc" => ("runc.hundred.per_s", "the same by runc"),
                _ => ("crun.hundred.per_s", "the same by crun"),
            };
            figures.extend(Figure::new(goal, words, Of::Median, own, "/s"));
        }
        for (by, theirs) in everybody.iter().zip(&rates).skip(1) {
            let ratios: Samples = rates[0].iter().zip(theirs.iter()).map(|(us, other)| us / other).collect();
            let figure = match self.name(*by).as_str() {
                "runc" => {
                    Figure::new("exec.hundred.vs_runc", "our rate over runc's", Of::Median, &ratios, "")
                        .map(|figure| figure.target(">=3"))
                }
                _ => Figure::new("exec.hundred.vs_crun", "our rate over crun's", Of::Median, &ratios, ""),
            };
            figures.extend(figure);
        }
        Ok(figures)
    }

    /// Containers a second.
    fn hundred(&self, by: By) -> Result<f64> {
        let left = AtomicUsize::new(HUNDRED);
        let take =
            || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        let one = || -> Result<()> {
            let (id, stamp) = self.stamp()?;
            match by {
                By::Us | By::Floor => {
                    let request = self.request(&id, &stamp, false);
                    let starting = self.runtime.spawn(start(self.executor.clone(), request));
                    stamp.read()?;
                    self.runtime.block_on(starting).context("the start has panicked")??;
                    self.runtime.block_on(finish(&self.executor, &id))
                }
                By::Peer(at) => {
                    let running = self.peers[at].bundle(&id, &stamp)?.run()?;
                    stamp.read()?;
                    running.finish()
                }
            }
        };
        let begun = Instant::now();
        let workers = || -> Result<()> {
            while take() {
                one()?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(workers)).collect();
            all.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
        })?;
        Ok(HUNDRED as f64 / begun.elapsed().as_secs_f64())
    }

    /// Memory that each shim has to itself while its container runs, in kB.
    fn shims(&self) -> Result<Samples> {
        let mut running = Vec::new();
        for _ in 0..SHIMS {
            let (id, stamp) = self.stamp()?;
            let starting = self.runtime.spawn(start(self.executor.clone(), self.request(&id, &stamp, true)));
            stamp.read()?;
            running.push((id, self.runtime.block_on(starting).context("the start has panicked")??));
        }
        let private =
            running.iter().map(|(_, shim)| Ok(process::usage(*shim)?.private_bytes as f64 / 1000.0));
        let private = private.collect::<Result<Samples>>()?;
        for (id, _) in &running {
            self.runtime.block_on(self.executor.remove(id))?;
        }
        Ok(private)
    }
}

/// The specification of a container of ours.
async fn spec(executor: &Executor, base: &Path, image: &Path) -> Result<serde_json::Value> {
    let id = "bench-exec-spec";
    let request = ContainerRequest::new(id, vec![image.to_path_buf()], vec![program::PATH.into()]);
    executor.create(request).await?;
    let path = base.join("root/containers").join(id).join("config.json");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // Files made for it are bound into those of the others as well, so it stays until the end.
    serde_json::from_slice(&bytes).context("the specification cannot be read")
}

/// Makes and starts a container; its shim.
async fn start(executor: Executor, request: ContainerRequest) -> Result<i32> {
    let id = request.id.clone();
    executor.create(request).await?;
    Ok(executor.start(&id).await?.shim_pid)
}

/// Waits for the end of a container, and removes it.
async fn finish(executor: &Executor, id: &str) -> Result<()> {
    let exit = executor.wait(id).await?;
    ensure!(exit.code == 0, "it ended with {exit:?}");
    Ok(executor.remove(id).await?)
}
