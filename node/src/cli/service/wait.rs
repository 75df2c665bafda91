//! Waits until a service is as it was asked for, and shows how it gets there.

use crate::cli::client::Client;
use crate::cli::context::{Colour, Context};
use crate::cli::failure::{Exit, Failure, refused};
use crate::cli::output::units::{duration, parse_duration};
use anyhow::Result;
use pb::service_progress::State;
use rswarm_proto::v1 as pb;
use std::time::{Duration, Instant};

/// Whether and how long to wait.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Return at once, without waiting
    #[arg(short, long)]
    detach: bool,
    /// Show nothing while waiting
    #[arg(short, long)]
    quiet: bool,
    /// Wait no longer than this
    #[arg(long = "timeout", value_name = "DURATION", value_parser = parse_duration, default_value = "10m")]
    timeout: Duration,
}

/// The most tasks that are shown one by one.
const TASKS_SHOWN_MAX: usize = 20;

/// Waits until the service runs as its spec of `version` asks.
///
/// # Errors
/// If it will not get there by itself, or not in time; if the user interrupts.
pub async fn settled(
    cx: &mut Context,
    client: &mut Client,
    name: &str,
    version: u64,
    options: &Options,
) -> Result<()> {
    revised(cx, client, name, &pb::UpdateServiceResponse { version, ..Default::default() }, options).await
}

/// Waits until the service runs as its last change asks, or the cluster has gone back from that.
///
/// # Errors
/// As [`settled`]; if it was rolled back.
pub async fn revised(
    cx: &mut Context,
    client: &mut Client,
    name: &str,
    updated: &pb::UpdateServiceResponse,
    options: &Options,
) -> Result<()> {
    let pb::UpdateServiceResponse { version, revision, .. } = *updated;
    let request = pb::WatchServiceRequest { service: name.into(), version, removal: false, revision };
    watch(cx, client, name, request, options).await
}

/// Waits until the tasks of a removed service are gone.
///
/// # Errors
/// If they do not go in time; if the user interrupts.
pub async fn removed(
    cx: &mut Context,
    client: &mut Client,
    service: &pb::RemoveServiceResponse,
    options: &Options,
) -> Result<()> {
    let request =
        pb::WatchServiceRequest { service: service.id.clone(), removal: true, ..Default::default() };
    watch(cx, client, &service.name, request, options).await
}

async fn watch(
    cx: &mut Context,
    client: &mut Client,
    name: &str,
    request: pb::WatchServiceRequest,
    options: &Options,
) -> Result<()> {
    if options.detach {
        return Ok(());
    }
    let (started, removal) = (Instant::now(), request.removal);
    let mut progress = cx.progress();
    let mut stream =
        client.control.watch_service(request).await.map_err(|status| refused(&status))?.into_inner();
    let deadline = tokio::time::sleep(options.timeout);
    tokio::pin!(deadline);
    let mut last = pb::ServiceProgress::default();
    let end = loop {
        tokio::select! {
            message = stream.message() => match message {
                Ok(Some(message)) => {
                    let verdict = verdict(name, &message, removal);
                    // A good end has a line of its own; a bad one is shown with the tasks it is about.
                    if !options.quiet && !matches!(verdict, Some(Ok(_))) {
                        progress.show(&mut cx.err, lines(name, &message, removal))?;
                    }
                    last = message;
                    if let Some(verdict) = verdict {
                        break verdict;
                    }
                }
                Ok(None) => break Err(Failure::failed("the manager stopped telling before the service had settled")
                    .help(follow(name, removal))),
                Err(status) => break Err(refused(&status)),
            },
            () = &mut deadline => break Err(timed_out(name, &last, options.timeout, removal)),
            _ = tokio::signal::ctrl_c() => {
                break Err(Failure::new(Exit::Interrupted, "interrupted; the operation goes on in the background")
                    .help(follow(name, removal)));
            }
        }
    };
    match end {
        Ok(words) if !options.quiet => {
            progress.clear(&mut cx.err)?;
            let took = duration(round(started.elapsed()));
            let line = cx.paint(Colour::Green, name, &format!("{name}: {words} ({took})"));
            writeln!(cx.err, "{line}")?;
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(failure) => {
            if matches!(failure.exit, Exit::RolledBack | Exit::Paused | Exit::NotConverged | Exit::TimedOut) {
                last_words(cx, client, &last).await?;
            }
            Err(failure.into())
        }
    }
}

/// Lines of a failing task that are shown.
const LAST_WORDS: i64 = 10;

/// The last lines that a failing task logged, if they can be had soon.
async fn last_words(cx: &mut Context, client: &mut Client, last: &pb::ServiceProgress) -> Result<()> {
    if last.failing_task_id.is_empty() {
        return Ok(());
    }
    let (of, tail) = (last.failing_task_id.clone(), LAST_WORDS);
    let request = pb::LogsRequest { of, tail, stdout: true, stderr: true, ..Default::default() };
    let lines = async {
        let mut stream = client.control.logs(request).await?.into_inner();
        let mut lines = Vec::new();
        while let Some(line) = stream.message().await? {
            if line.note.is_empty() {
                lines.push(line.line);
            }
        }
        Ok::<_, tonic::Status>(lines)
    };
    let lines = match tokio::time::timeout(Duration::from_secs(5), lines).await {
        Ok(Ok(lines)) if !lines.is_empty() => lines,
        _ => return Ok(()),
    };
    writeln!(cx.err, "the last lines of task {}:", last.failing_task)?;
    for line in lines {
        let text: String = String::from_utf8_lossy(&line).chars().filter(|c| !c.is_control()).collect();
        writeln!(cx.err, "  {text}")?;
    }
    Ok(())
}

/// To a tenth of a second.
fn round(elapsed: Duration) -> Duration {
    Duration::from_millis(u64::try_from(elapsed.as_millis() / 100).unwrap_or(0) * 100)
}

fn follow(name: &str, removal: bool) -> String {
    if removal {
        "`rswarm node ps` shows what still runs".into()
    } else {
        format!("follow it with `rswarm service ps {name}`")
    }
}

/// How the service stands, one line; then its tasks.
fn lines(name: &str, progress: &pb::ServiceProgress, removal: bool) -> Vec<String> {
    let mut head = match removal {
        true => format!("{name}: {} still to stop", counted(progress.tasks.len())),
        false if progress.job => {
            let (completed, running) = (progress.completed, progress.running);
            format!(
                "{name}: {completed} of {} completed, {running} running",
                counted(progress.desired as usize)
            )
        }
        false => format!("{name}: {} of {} running", progress.running, counted(progress.desired as usize)),
    };
    let state = match progress.state() {
        State::Running => "; watching that they stay so",
        State::Paused => "; paused",
        State::RolledBack => "; rolled back",
        State::TimedOut => "; out of time",
        State::Failed | State::Converging | State::Settled | State::Removed | State::Unspecified => "",
    };
    head += state;
    let mut lines = vec![head];
    for task in progress.tasks.iter().take(TASKS_SHOWN_MAX) {
        let mut line = format!("  {}  {}", task.name, task.observed);
        if !task.node_name.is_empty() {
            line += &format!(" on {}", task.node_name);
        }
        if !task.words.is_empty() {
            line += &format!(": {}", task.words);
        }
        lines.push(line);
    }
    if let Some(more) = progress.tasks.len().checked_sub(TASKS_SHOWN_MAX).filter(|more| *more > 0) {
        lines.push(format!("  and {more} more"));
    }
    lines
}

fn counted(tasks: usize) -> String {
    if tasks == 1 { "1 task".into() } else { format!("{tasks} tasks") }
}

/// What is to be said at the end, if this is the end.
fn verdict(name: &str, progress: &pb::ServiceProgress, removal: bool) -> Option<Result<String, Failure>> {
    let end = |exit, what: &str| {
        let failing = match progress.failing_task.as_str() {
            "" => String::new(),
            task => format!(" (task {task})"),
        };
        let words = if progress.words.is_empty() { String::new() } else { format!(": {}", progress.words) };
        let failure = Failure::new(exit, format!("`{name}` {what}{failing}{words}"));
        let help = format!("see `rswarm service ps --no-trunc {name}` and `rswarm service logs {name}`");
        Some(Err(failure.help(help)))
    };
    match progress.state() {
        State::Unspecified | State::Converging | State::Running => None,
        State::Settled if progress.job => Some(Ok(match progress.desired {
            1 => "completed, its task has come to its end".into(),
            desired => format!("completed, {desired} tasks have come to their end"),
        })),
        State::Settled => Some(Ok(match progress.desired {
            1 => "converged, its task runs".into(),
            desired => format!("converged, {} of {desired} tasks run", progress.running),
        })),
        State::Removed if removal => Some(Ok("removed, its tasks have stopped".into())),
        State::Removed => end(Exit::Failed, "was removed meanwhile"),
        State::Failed if progress.job => end(Exit::NotConverged, "does not complete"),
        State::Failed => end(Exit::NotConverged, "does not converge"),
        State::Paused => end(Exit::Paused, "is paused in its update"),
        State::TimedOut => end(Exit::TimedOut, "has not come further in time"),
        State::RolledBack => end(Exit::RolledBack, "runs what it ran before"),
    }
}

fn timed_out(name: &str, last: &pb::ServiceProgress, after: Duration, removal: bool) -> Failure {
    let waiting = last.tasks.iter().find(|task| !task.words.is_empty());
    let why = waiting.map(|task| format!("; task {} is {}: {}", task.name, task.observed, task.words));
    let what = match removal {
        true => "still has tasks",
        false if last.job => "has not completed",
        false => "has not converged",
    };
    let text = format!("`{name}` {what} after {}{}", duration(after), why.unwrap_or_default());
    Failure::new(Exit::TimedOut, text).help(follow(name, removal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn progress(state: State, running: u32, desired: u32) -> pb::ServiceProgress {
        let task = |name: &str, node: &str, observed: &str, words: &str| pb::TaskProgress {
            name: name.into(),
            node_name: node.into(),
            observed: observed.into(),
            words: words.into(),
            ..Default::default()
        };
        let tasks =
            vec![task("web.1", "n1", "running", ""), task("web.2", "", "pending", "no node has 8 GiB free")];
        pb::ServiceProgress { state: state.into(), running, desired, tasks, ..Default::default() }
    }

    #[test]
    fn progress_names_each_task_and_why_it_waits() {
        expect![[r"
            web: 1 of 2 tasks running
              web.1  running on n1
              web.2  pending: no node has 8 GiB free"]]
        .assert_eq(&lines("web", &progress(State::Converging, 1, 2), false).join("\n"));
    }

    #[test]
    fn a_removal_counts_what_is_left() {
        let lines = lines("web", &progress(State::Converging, 0, 0), true);
        assert_eq!(lines[0], "web: 2 tasks still to stop");
    }

    #[test]
    fn a_failure_quotes_the_task() {
        let mut failed = progress(State::Failed, 1, 2);
        failed.words = "exited with 1".into();
        failed.failing_task = "web.2".into();
        let failure = verdict("web", &failed, false).expect("it ends").expect_err("it failed");
        assert_eq!(failure.exit, Exit::NotConverged);
        expect![[r"
            Error: `web` does not converge (task web.2): exited with 1
              help: see `rswarm service ps --no-trunc web` and `rswarm service logs web`
        "]]
        .assert_eq(&crate::cli::failure::report(&failure.into()));
    }

    #[test]
    fn only_ends_have_verdicts() {
        let end = |state, removal| {
            verdict("web", &progress(state, 2, 2), removal).map(|end| end.map_err(|f| f.exit))
        };
        assert_eq!(end(State::Converging, false), None);
        assert_eq!(end(State::Running, false), None);
        assert_eq!(end(State::Settled, false), Some(Ok("converged, 2 of 2 tasks run".into())));
        assert_eq!(end(State::Paused, false), Some(Err(Exit::Paused)));
        assert_eq!(end(State::TimedOut, false), Some(Err(Exit::TimedOut)));
        assert_eq!(end(State::Removed, true), Some(Ok("removed, its tasks have stopped".into())));
        assert_eq!(end(State::Removed, false), Some(Err(Exit::Failed)));
    }

    #[test]
    fn a_job_is_waited_for_until_it_is_completed() {
        let job = |state, running, completed| pb::ServiceProgress {
            job: true,
            completed,
            tasks: Vec::new(),
            ..progress(state, running, 5)
        };
        let lines = lines("pack", &job(State::Converging, 2, 1), false);
        assert_eq!(lines, ["pack: 1 of 5 tasks completed, 2 running"]);
        let end = |progress: &pb::ServiceProgress| {
            verdict("pack", progress, false).map(|end| end.map_err(|failure| failure.to_string()))
        };
        assert_eq!(end(&job(State::Converging, 2, 1)), None);
        let done = "completed, 5 tasks have come to their end";
        assert_eq!(end(&job(State::Settled, 0, 5)), Some(Ok(done.into())));
        assert_eq!(end(&job(State::Failed, 0, 3)), Some(Err("`pack` does not complete".into())));
    }

    #[test]
    fn a_timeout_says_what_it_waited_for() {
        let failure = timed_out("web", &progress(State::Converging, 1, 2), Duration::from_secs(90), false);
        assert_eq!(failure.exit, Exit::TimedOut);
        assert_eq!(
            failure.to_string(),
            "`web` has not converged after 1m30s; task web.2 is pending: no node has 8 GiB free"
        );
    }
}
