//! From a call to the first line of a program in a container: through the whole cluster, and through the executor
//! alone.

use super::figure::{Figure, Of, Samples};
use super::{note, service, site::Site, stamp};
use crate::executor::{Config, ContainerRequest, Executor, Mount};
use anyhow::{Context, Result};
use rswarm_control::model;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where a container finds its directory.
const INSIDE: &str = "/stamp";
/// Trials that are not counted, because something is made for the first time in them on some node.
const WARM_UP: usize = 4;

/// Measures both, `trials` times each.
pub async fn run(site: &Site, trials: usize) -> Result<Vec<Figure>> {
    let (through_api, answers) = api(site, trials).await?;
    let alone = executor(site, trials).await.context("the executor alone")?;
    let ms = |goal, what, of, samples: &Samples| Figure::new(goal, what, of, samples, "ms");
    let figures = [
        ms("exec.start.api_p50_ms", "service create to the program's first line", Of::Median, &through_api),
        ms("exec.start.api_max_ms", "the same, the slowest", Of::Max, &through_api),
        ms("exec.start.answer_p50_ms", "service create to its answer", Of::Median, &answers),
        ms("exec.start.p50_ms", "executor alone, create and start to the first line", Of::Median, &alone),
        ms("exec.start.max_ms", "the same, the slowest", Of::Max, &alone),
    ];
    Ok(figures.into_iter().flatten().collect())
}

/// Milliseconds to the program's first line, and to the API's answer.
async fn api(site: &Site, trials: usize) -> Result<(Samples, Samples)> {
    let (mut begun, mut answers) = (Samples::default(), Samples::default());
    for number in 0..WARM_UP + trials {
        let leader = site.whole().await?;
        let directory = site.directory().join(format!("stamp-{number}"));
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let name = format!("bench-start-{number}");
        let mut spec = service(&name, 1, &["/rswarm", stamp::COMMAND, INSIDE]);
        let task = std::sync::Arc::make_mut(&mut spec.task);
        task.containers[0].mounts.push(model::Mount::Bind {
            source: directory.display().to_string(),
            target: INSIDE.into(),
            read_only: false,
        });
        let mut client = site.client(&leader).await?;
        let request =
            rswarm_proto::v1::CreateServiceRequest { spec: Some((&spec).into()), ..Default::default() };
        let call = stamp::now_ns();
        client.control.create_service(request).await.context("cannot create a service")?;
        let answered = stamp::now_ns();
        let began = wait(&directory).await.with_context(|| format!("{name} does not start"))?;
        if number >= WARM_UP {
            let (first, answer) = (millis(call, began), millis(call, answered));
            let count = number + 1 - WARM_UP;
            note(&format!(
                "start through the API, {count} of {trials}: answer {answer:.1} ms, first line {first:.1} ms"
            ));
            begun.push(first);
            answers.push(answer);
        }
        site.remove(&leader, &name).await?;
    }
    Ok((begun, answers))
}

/// Milliseconds to the program's first line.
async fn executor(site: &Site, trials: usize) -> Result<Samples> {
    let base = site.directory().join("executor");
    let image = image(&base)?;
    let executor = Executor::open(Config {
        root_dir: base.join("root"),
        run_dir: base.join("run"),
        // Within the lab's, so that it goes with it whatever happens.
        cgroup_parent: format!("{}/executor", site.control_group()?),
        cgroup_mount: "/sys/fs/cgroup".into(),
        user_ids: Default::default(),
        runtime: None,
    })
    .await?;
    let mut begun = Samples::default();
    for number in 0..WARM_UP + trials {
        let directory = base.join(format!("stamp-{number}"));
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let id = format!("bench-{number}");
        let words = ["/rswarm", stamp::COMMAND, INSIDE].map(String::from).to_vec();
        let mut request = ContainerRequest::new(&id, vec![image.clone()], words);
        request.mounts.push(Mount::Bind {
            source: directory.clone(),
            target: INSIDE.into(),
            readonly: false,
        });
        let call = stamp::now_ns();
        executor.create(request).await?;
        executor.start(&id).await?;
        let began = wait(&directory).await?;
        if number >= WARM_UP {
            begun.push(millis(call, began));
        }
        executor.remove(&id).await?;
    }
    executor.purge().await?;
    note(&format!("start by the executor alone, {trials} times"));
    Ok(begun)
}

/// A root with this program in it.
fn image(base: &Path) -> Result<PathBuf> {
    let image = base.join("image");
    for name in ["dev", "etc", "proc", "sys", "tmp"] {
        let directory = image.join(name);
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let program = image.join("rswarm");
    fs::copy("/proc/self/exe", &program).context("cannot copy this program")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).context("cannot copy this program")?;
    Ok(image)
}

async fn wait(directory: &Path) -> Result<u64> {
    let began = async {
        loop {
            match stamp::read(directory) {
                Some(began) => return began,
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, began).await;
    waited.ok().with_context(|| format!("no program has begun within {} s", PATIENCE.as_secs()))
}

fn millis(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}
