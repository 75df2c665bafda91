//! `rswarm top web.1`

use super::ask;
use crate::cli::context::Context;
use crate::cli::output::table;
use crate::cli::output::units::{now_ms, rfc3339};
use anyhow::Result;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::task_ask::What;

/// List the processes of a running task
#[derive(Debug, clap::Args)]
pub struct Top {
    /// Task: a name such as `web.1`, an id, or the beginning of one
    task: String,
}

impl Top {
    /// Carries the command out. Processes are numbered as on their node.
    ///
    /// # Errors
    /// If there is no such running task.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let answer = ask(&mut cx.client().await?, &self.task, What::Top).await?;
        cx.out.write_all(render(&answer.processes, now_ms()).as_bytes())?;
        Ok(())
    }
}

fn render(processes: &[pb::TaskProcess], now_ms: u64) -> String {
    let mut text = String::from("UID\tPID\tPPID\tC\tSTIME\tTTY\tTIME\tCMD\n");
    for process in processes {
        let age_ms = now_ms.saturating_sub(process.started_at_ms).max(1);
        let busy = (process.cpu_ns / 10_000 / age_ms).min(99);
        let stamp = rfc3339(process.started_at_ms * 1_000_000);
        // Of today the time, of older ones the day.
        let started = match age_ms < 24 * 60 * 60 * 1000 {
            true => stamp.get(11..16),
            false => stamp.get(5..10),
        };
        let tty = process.tty.map_or("?".to_owned(), |number| format!("pts/{number}"));
        let seconds = process.cpu_ns / 1_000_000_000;
        let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let command: String = process.command.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let pb::TaskProcess { uid, pid, ppid, .. } = process;
        let started = started.unwrap_or_default();
        text += &format!("{uid}\t{pid}\t{ppid}\t{busy}\t{started}\t{tty}\t{time}\t{command}\n");
    }
    table::align(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn processes_are_listed_as_by_ps() {
        let now_ms = 1_795_216_027_500;
        let process = |pid, tty, cpu_ns, started_at_ms, command: &str| pb::TaskProcess {
            uid: 33,
            pid,
            ppid: 1,
            started_at_ms,
            cpu_ns,
            tty,
            command: command.into(),
        };
        let processes = [
            process(4242, None, 5_000_000_000, now_ms - 10_000, "nginx: master"),
            process(4243, Some(0), 0, now_ms - 100_000_000, "sh -c a\nb"),
        ];
        expect![[r"
            UID       PID       PPID      C         STIME     TTY       TIME       CMD
            33        4242      1         50        23:06     ?         00:00:05   nginx: master
            33        4243      1         0         11-19     pts/0     00:00:00   sh -c a?b
        "]]
        .assert_eq(&render(&processes, now_ms));
    }
}
