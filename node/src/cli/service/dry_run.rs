//! `--dry-run` and `--plan-out FILE`, of all commands that the cluster can rehearse.

use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, refused};
use crate::cli::output::table;
use crate::cli::output::units::{cpus, duration, memory};
use anyhow::{Context as _, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::planned_request::What;
use rswarm_proto::v1::rehearsal::{Fate, Peak, Place};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a plan file begins with.
const FORMAT: u64 = 1;
/// A plan file is never larger, in bytes.
const FILE_MAX: u64 = 64 << 20;

/// Whether a command only tells what it would do.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DryRun {
    /// Tell what would change, which tasks would come to which nodes, and what would be reserved on the way; change
    /// nothing
    #[arg(long)]
    dry_run: bool,
    /// Like --dry-run, and write the plan to a file for `rswarm service apply-plan`
    #[arg(long, value_name = "FILE")]
    plan_out: Option<PathBuf>,
}

impl DryRun {
    /// Whether nothing is to be changed.
    pub fn is_asked(&self) -> bool {
        self.dry_run || self.plan_out.is_some()
    }

    /// Whether the plan is to be written, so that there can be only one.
    pub fn writes(&self) -> bool {
        self.plan_out.is_some()
    }

    /// Tells what a request would come to.
    ///
    /// # Errors
    /// If it would be refused, or the plan cannot be written.
    pub async fn rehearse(&self, cx: &mut Context, client: &mut Client, what: What) -> Result<()> {
        let request = pb::PlannedRequest { what: Some(what) };
        let answer = client.insight.rehearse(request).await.map_err(|status| refused(&status))?;
        let told = answer.into_inner();
        cx.warn(&told.warnings)?;
        write!(cx.out, "{}", render(&told)?)?;
        if let Some(path) = &self.plan_out {
            let text = serde_json::to_string_pretty(&file(&told))? + "\n";
            std::fs::write(path, text)
                .with_context(|| format!("cannot write the plan to {}", path.display()))?;
            writeln!(cx.out, "\nThe plan is in {0}: `rswarm service apply-plan {0}`", path.display())?;
        }
        Ok(())
    }
}

fn render(told: &pb::Rehearsal) -> Result<String> {
    let mut text = String::new();
    if told.differences.is_empty() {
        text += "Nothing changes in what is asked for.\n";
    }
    for difference in &told.differences {
        writeln!(text, "{}", changed(difference))?;
    }
    let stay = told.places.iter().filter(|place| place.fate() == Fate::Stays).count();
    let mut rows = "\nTASK\tNOW\tTHEN\tWHAT\n".to_owned();
    for place in told.places.iter().filter(|place| place.fate() != Fate::Stays) {
        let Place { name, before, after, note, .. } = place;
        let or_none = |node: &str| if node.is_empty() { "-".to_owned() } else { node.to_owned() };
        let why = if note.is_empty() { String::new() } else { format!(", waits: {note}") };
        writeln!(rows, "{name}\t{}\t{}\t{}{why}", or_none(before), or_none(after), fate(place))?;
    }
    if told.places.len() > stay {
        text += &table::align(&rows);
    }
    if stay > 0 {
        writeln!(text, "\n{stay} {} as they are.", if stay == 1 { "task stays" } else { "tasks stay" })?;
    }
    if !told.peaks.is_empty() {
        let mut rows =
            "\nRESERVED ON\tCPUS NOW\tAT MOST\tTHEN\tOF\tMEMORY NOW\tAT MOST\tTHEN\tOF\n".to_owned();
        for Peak { node, before, most, after, capacity } in &told.peaks {
            let all = [before, most, after, capacity].map(|resources| resources.unwrap_or_default());
            let of_cpus: Vec<String> = all.iter().map(|resources| cpus(resources.nano_cpus)).collect();
            let of_memory: Vec<String> = all.iter().map(|resources| memory(resources.memory_bytes)).collect();
            writeln!(rows, "{node}\t{}\t{}", of_cpus.join("\t"), of_memory.join("\t"))?;
        }
        text += &table::align(&rows);
    }
    let took = duration(Duration::from_millis(told.took_ms));
    match told.settled {
        true => writeln!(text, "\nIt takes {took} and what the nodes need. Nothing was changed.")?,
        false => {
            writeln!(text, "\nIt does NOT come to what is asked for, after {took}. Nothing was changed.")?
        }
    }
    Ok(text)
}

fn changed(difference: &pb::rehearsal::Difference) -> String {
    let pb::rehearsal::Difference { of, path, before, after } = difference;
    match (before.as_str(), after.as_str()) {
        ("", after) => format!("+ {of}: {path} {after}"),
        (before, "") => format!("- {of}: {path} {before}"),
        (before, after) => format!("~ {of}: {path} {before} → {after}"),
    }
}

fn fate(place: &Place) -> &'static str {
    match place.fate() {
        Fate::Stays => "stays",
        Fate::Starts => "starts",
        Fate::Replaced if place.before == place.after => "is replaced there",
        Fate::Replaced => "moves",
        Fate::Stops => "stops",
        Fate::Unspecified => "",
    }
}

/// What a plan file holds: for people, for tools, and the plan itself.
fn file(told: &pb::Rehearsal) -> Value {
    let places = told.places.iter().map(
        |place| json!({ "name": place.name, "now": place.before, "then": place.after, "what": fate(place) }),
    );
    json!({
        "rswarm_plan": FORMAT,
        "index": told.index,
        "changes": told.differences.iter().map(changed).collect::<Vec<_>>(),
        "tasks": places.collect::<Vec<_>>(),
        "plan": BASE64.encode(&told.plan),
    })
}

/// The plan in a file.
///
/// # Errors
/// If there is none, or one of a newer format.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let what = || format!("cannot read the plan in {}", path.display());
    let size = std::fs::metadata(path).with_context(what)?.len();
    if size > FILE_MAX {
        return Err(Failure::failed(format!("{} is no plan: it has {size} bytes", path.display())).into());
    }
    let text = std::fs::read_to_string(path).with_context(what)?;
    let no_plan = |why: String| {
        Failure::failed(format!("{} is no plan: {why}", path.display()))
            .help("make one with --plan-out FILE, as in `rswarm service update --plan-out FILE …`")
    };
    let file: Value = serde_json::from_str(&text).map_err(|error| no_plan(error.to_string()))?;
    match file["rswarm_plan"].as_u64() {
        Some(FORMAT) => {}
        Some(other) => {
            return Err(no_plan(format!("its format is {other}, and this version reads {FORMAT}")).into());
        }
        None => return Err(no_plan("`rswarm_plan` is missing".into()).into()),
    }
    let plan = file["plan"].as_str().ok_or_else(|| no_plan("`plan` is missing".into()))?;
    Ok(BASE64.decode(plan).map_err(|error| no_plan(format!("`plan`: {error}")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> pb::Rehearsal {
        let place = |name: &str, before: &str, after: &str, fate: Fate| Place {
            name: name.into(),
            before: before.into(),
            after: after.into(),
            fate: fate.into(),
            note: String::new(),
        };
        pb::Rehearsal {
            differences: vec![pb::rehearsal::Difference {
                of: "service web".into(),
                path: "task.containers[0].image".into(),
                before: "\"demo:1\"".into(),
                after: "\"demo:2\"".into(),
            }],
            places: vec![
                place("web.1", "n1", "n2", Fate::Replaced),
                place("web.2", "n2", "", Fate::Stops),
                place("web.3", "n3", "n3", Fate::Stays),
            ],
            took_ms: 25_000,
            settled: true,
            plan: vec![1, 2, 3].into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_plan_is_told_and_written_and_read_back() {
        let text = render(&told()).expect("it renders");
        for part in [
            "~ service web: task.containers[0].image \"demo:1\" → \"demo:2\"",
            "moves",
            "stops",
            "1 task stays",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let to = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(to.path(), file(&told()).to_string()).expect("it is written");
        assert_eq!(read(to.path()).expect("a plan"), [1, 2, 3]);
        for (broken, why) in
            [("{", "EOF"), ("{}", "`rswarm_plan` is missing"), (r#"{"rswarm_plan":2}"#, "its format is 2")]
        {
            std::fs::write(to.path(), broken).expect("it is written");
            let error = read(to.path()).expect_err("no plan").to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
