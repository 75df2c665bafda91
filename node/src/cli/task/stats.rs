//! `rswarm stats`

use super::ask;
use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::output::listing::{Listing, Options};
use crate::cli::output::units::{memory, size};
use crate::cli::output::value::Struct;
use anyhow::Result;
use futures_util::future::join_all;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::task_ask::What;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two looks; a share of the CPU is of this time.
const INTERVAL: Duration = Duration::from_secs(1);

/// Show what running tasks use
#[derive(Debug, clap::Args)]
pub struct Stats {
    /// Services or tasks; none is all running tasks
    #[arg(value_name = "SERVICE|TASK")]
    of: Vec<String>,
    /// Print once, and not again every second
    #[arg(long)]
    no_stream: bool,
    /// `table`, `table TEMPLATE`, `json`, `raw`, or a template such as '{{.Name}} {{.CPUPerc}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Ids are always whole; taken for compatibility
    #[arg(long, hide = true)]
    no_trunc: bool,
    /// Tasks that run are shown; taken for compatibility
    #[arg(short, long, hide = true)]
    all: bool,
}

const LISTING: Listing = Listing {
    columns: &[
        ("ID", "TASK ID"),
        ("Container", "CONTAINER"),
        ("Name", "NAME"),
        ("Node", "NODE"),
        ("CPUPerc", "CPU %"),
        ("MemUsage", "MEM USAGE / LIMIT"),
        ("MemPerc", "MEM %"),
        ("NetIO", "NET I/O"),
        ("BlockIO", "BLOCK I/O"),
        ("PIDs", "PIDS"),
        ("Pressure", "PRESSURE CPU / MEM / IO"),
        ("Throttled", "THROTTLED"),
        ("OOMKills", "OOM KILLS"),
    ],
    table: "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}",
    raw: "task_id: {{.ID}}\nname: {{.Name}}\ncpu: {{.CPUPerc}}\nmemory: {{.MemUsage}}\n",
};

impl Stats {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such service or task, or the format makes no sense.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        let options = Options { format: self.format.clone(), ..Options::default() };
        let mut before = look(&mut client, &self.of).await?;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = look(&mut client, &self.of).await?;
            let rows: Vec<Struct> =
                now.values().map(|answer| row(answer, before.get(&answer.task_id))).collect();
            let text = LISTING.print(&rows, "ID", &options)?;
            if cx.live && !self.no_stream {
                // Home, and what was there before away.
                cx.out.write_all(b"\x1b[H\x1b[J")?;
            }
            cx.out.write_all(text.as_bytes())?;
            cx.out.flush()?;
            if self.no_stream {
                return Ok(());
            }
            before = now;
        }
    }
}

/// Usage by task id. A task that ends meanwhile is left out.
async fn look(client: &mut Client, of: &[String]) -> Result<BTreeMap<String, pb::TaskAnswer>> {
    let services = client.services(&[]).await?.services;
    let named = |name: &String| {
        services.iter().any(|service| {
            service.id == *name || service.spec.as_ref().is_some_and(|spec| spec.name == *name)
        })
    };
    let (services, tasks): (Vec<String>, Vec<String>) = of.iter().cloned().partition(named);
    let mut found = Vec::new();
    if of.is_empty() || !services.is_empty() {
        let request = pb::ListTasksRequest { services, ..Default::default() };
        found.extend(client.tasks(request).await?.tasks);
    }
    if !tasks.is_empty() {
        let request = pb::ListTasksRequest { tasks, ..Default::default() };
        found.extend(client.tasks(request).await?.tasks);
    }
    let running = found.into_iter().filter(|task| task.observed() == pb::Observed::Running);
    let answers = join_all(running.map(|task| {
        let mut client = client.clone();
        async move { ask(&mut client, &task.id, What::Stats).await }
    }));
    Ok(answers.await.into_iter().flatten().map(|answer| (answer.task_id.clone(), answer)).collect())
}

fn row(answer: &pb::TaskAnswer, before: Option<&pb::TaskAnswer>) -> Struct {
    let now = answer.usage.unwrap_or_default();
    let earlier = before.and_then(|before| before.usage).filter(|earlier| earlier.at_ns < now.at_ns);
    // Of a task that has only just begun nothing is known yet.
    let busy = earlier.map(|earlier| {
        let cpu = now.cpu_ns.saturating_sub(earlier.cpu_ns) as f64;
        cpu * 100.0 / (now.at_ns - earlier.at_ns) as f64
    });
    let percent = |share: f64| format!("{share:.2}%");
    let limit = now.memory_limit_bytes.max(1);
    let pressure = now.pressure.map_or("-- / -- / --".to_owned(), |pressure| {
        let hundredths = |share: u32| percent(f64::from(share) / 100.0);
        format!(
            "{} / {} / {}",
            hundredths(pressure.cpu),
            hundredths(pressure.memory),
            hundredths(pressure.io)
        )
    });
    Struct::new("stats")
        .with("ID", answer.task_id.as_str())
        .with("Container", answer.task_id.as_str())
        .with("Name", answer.task_name.as_str())
        .with("Node", answer.node_name.as_str())
        .with("CPUPerc", busy.map_or("--".to_owned(), percent))
        .with("MemUsage", format!("{} / {}", memory(now.memory_bytes), memory(now.memory_limit_bytes)))
        .with("MemPerc", percent(now.memory_bytes as f64 * 100.0 / limit as f64))
        .with("NetIO", format!("{} / {}", size(now.received_bytes), size(now.sent_bytes)))
        .with("BlockIO", format!("{} / {}", size(now.read_bytes), size(now.written_bytes)))
        .with("PIDs", now.pids.to_string())
        .with("Pressure", pressure)
        .with("Throttled", now.throttled_periods.to_string())
        .with("OOMKills", now.oom_kills.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_share_of_the_cpu_is_of_the_time_between_two_looks() {
        let answer = |at_ns, cpu_ns| pb::TaskAnswer {
            task_id: "0t1".into(),
            task_name: "web.1".into(),
            node_name: "n1".into(),
            usage: Some(pb::TaskUsage {
                at_ns,
                cpu_ns,
                memory_bytes: 64 << 20,
                memory_limit_bytes: 256 << 20,
                pids: 3,
                received_bytes: 1200,
                pressure: Some(pb::Pressure { cpu: 1234, memory: 0, io: 5 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let (before, now) = (answer(1_000_000_000, 0), answer(3_000_000_000, 3_000_000_000));
        let rows = [row(&now, Some(&before)), row(&now, None)];
        let format = "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.MemPerc}} {{.NetIO}} {{.PIDs}} {{.Pressure}}";
        let options = Options { format: Some(format.into()), ..Options::default() };
        expect![[r"
            web.1 150.00% 64MiB / 256MiB 25.00% 1.2kB / 0B 3 12.34% / 0.00% / 0.05%
            web.1 -- 64MiB / 256MiB 25.00% 1.2kB / 0B 3 12.34% / 0.00% / 0.05%
        "]]
        .assert_eq(&LISTING.print(&rows, "ID", &options).expect("it prints"));
    }
}
