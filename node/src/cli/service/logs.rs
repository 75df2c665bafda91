//! `rswarm service logs -f web`

use crate::cli::context::{Colour, Context};
use crate::cli::failure::refused;
use crate::cli::output::units::{now_ms, parse_moment, rfc3339};
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Print what the tasks of a service, or one task, have printed
#[derive(Debug, clap::Args)]
pub struct Logs {
    /// Service or task
    #[arg(value_name = "SERVICE|TASK")]
    of: String,
    /// Go on with what they will print
    #[arg(short, long)]
    follow: bool,
    /// Begin this many lines before the end, or with `all`
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = tail)]
    tail: i64,
    /// Begin at this moment: 10m, or 2026-11-20T23:07:07Z
    #[arg(long, value_name = "MOMENT")]
    since: Option<String>,
    /// End at this moment: 10m, or 2026-11-20T23:07:07Z
    #[arg(long, value_name = "MOMENT")]
    until: Option<String>,
    /// Print the ids of task and node as details
    #[arg(long)]
    details: bool,
    /// Print when each line was printed
    #[arg(short, long)]
    timestamps: bool,
    /// Print the lines alone
    #[arg(long)]
    raw: bool,
    /// Leave out the tasks' ids
    #[arg(long)]
    no_task_ids: bool,
    /// Ids are always whole; taken for compatibility
    #[arg(long, hide = true)]
    no_trunc: bool,
}

fn tail(text: &str) -> Result<i64, String> {
    match text {
        "all" => Ok(-1),
        text => text.parse::<u32>().map(i64::from).map_err(|_| "expected a number of lines, or `all`".into()),
    }
}

impl Logs {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such service or task, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let moment = |text: &Option<String>| {
            let moment = text.as_deref().map(|text| parse_moment(text, now_ms())).transpose();
            moment.map_err(crate::cli::failure::Failure::usage)
        };
        let request = pb::LogsRequest {
            of: self.of.clone(),
            follow: self.follow,
            tail: self.tail,
            since_ms: moment(&self.since)?.unwrap_or(0),
            until_ms: moment(&self.until)?.unwrap_or(0),
            stdout: true,
            stderr: true,
        };
        let what = || format!("cannot read the logs of `{}`", self.of);
        let stream = cx.client().await?.control.logs(request).await;
        let mut stream = stream.map_err(|status| refused(&status)).with_context(what)?.into_inner();
        let mut width = 0;
        while let Some(line) = stream.message().await.map_err(|status| refused(&status)).with_context(what)? {
            if !line.note.is_empty() {
                let note = cx.paint(Colour::Yellow, "Note:", &format!("Note: {}", line.note));
                writeln!(cx.err, "{note}")?;
                continue;
            }
            let text = self.render(&line, &mut width);
            if line.stderr {
                // In order with what was printed before, where both go to one place.
                cx.out.flush()?;
                cx.err.write_all(&text)?;
            } else {
                cx.out.write_all(&text)?;
                if self.follow {
                    cx.out.flush()?;
                }
            }
        }
        Ok(())
    }

    /// The line with what goes before it. `width` is that of the widest so far, so that lines begin below
    /// one another.
    fn render(&self, line: &pb::LogLine, width: &mut usize) -> Vec<u8> {
        let mut text = Vec::new();
        if self.timestamps {
            text.extend(rfc3339(line.at_ns).into_bytes());
            text.push(b' ');
        }
        if !self.raw {
            let id = if self.no_task_ids { String::new() } else { format!(".{}", line.task_id) };
            let from = format!("{}{id}@{}", line.task_name, line.node_name);
            *width = from.chars().count().max(*width);
            text.extend(format!("{from:0$}    | ", *width).into_bytes());
        }
        if self.details {
            let (node, task) = (&line.node_name, &line.task_id);
            text.extend(format!("rswarm.node.name={node},rswarm.task.id={task} ").into_bytes());
        }
        text.extend_from_slice(&line.line);
        text.push(b'\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use expect_test::expect;

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        logs: Logs,
    }

    fn printed(words: &[&str]) -> String {
        let words = ["logs"].into_iter().chain(words.iter().copied()).chain(["web"]);
        let logs = Args::try_parse_from(words).expect("it parses").logs;
        let mut width = 0;
        let line = |task: &str, node: &str, text: &str| pb::LogLine {
            task_id: "0000000000001".into(),
            task_name: task.into(),
            node_name: node.into(),
            at_ns: 1_795_216_027_500_000_000,
            line: text.to_owned().into(),
            ..Default::default()
        };
        let lines = [line("web.1", "n10", "hello"), line("web.2", "n1", "world")];
        let lines = lines.iter().flat_map(|line| logs.render(line, &mut width)).collect();
        String::from_utf8(lines).expect("it is text")
    }

    #[test]
    fn lines_say_whose_they_are() {
        expect![[r"
            web.1.0000000000001@n10    | hello
            web.2.0000000000001@n1     | world
        "]]
        .assert_eq(&printed(&[]));
        assert_eq!(printed(&["--raw", "-t"]), "2026-11-20T23:07:07.5Z hello\n2026-11-20T23:07:07.5Z world\n");
        assert_eq!(
            printed(&["--raw", "--details"]),
            "rswarm.node.name=n10,rswarm.task.id=0000000000001 hello\n\
             rswarm.node.name=n1,rswarm.task.id=0000000000001 world\n"
        );
        assert_eq!(printed(&["--no-task-ids"]), "web.1@n10    | hello\nweb.2@n1     | world\n");
    }

    #[test]
    fn tails_are_read() {
        assert_eq!(tail("all"), Ok(-1));
        assert_eq!(tail("0"), Ok(0));
        assert!(tail("-3").is_err());
    }
}
