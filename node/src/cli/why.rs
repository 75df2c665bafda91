//! `rswarm why web.1`

use super::context::Context;
use super::failure::refused;
use super::output::units::{now_ms, rfc3339, rough};
use super::output::value::{Struct, Value};
use super::output::{inspect, table};
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::explanation::{Choice, Criterion, Past, Wait};
use std::fmt::Write as _;
use std::time::Duration;

/// Say why a task, a service or a node is as it is: what it waits for, why it is where it is, what it went through
#[derive(Debug, clap::Args)]
pub struct Why {
    /// Task, service or node: a name such as `web.1`, an id, or the beginning of one
    #[arg(value_name = "TASK|SERVICE|NODE")]
    of: String,
    /// What it is, where a name means several: `task`, `service` or `node`
    #[arg(long = "type", value_name = "TYPE", default_value = "", hide_default_value = true)]
    kind: String,
    /// `json`, or a template such as '{{.Summary}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print whole reasons and ids
    #[arg(long)]
    no_trunc: bool,
}

/// Reasons are cut at this many characters, unless they shall not be.
const REASON_CHARS: usize = 60;

impl Why {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such thing, or no leader.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        let of = client.node(&self.of).await?;
        let request = pb::WhyRequest { of, r#type: self.kind };
        let told = client.insight.why(request).await.map_err(|status| refused(&status));
        let told = told.with_context(|| format!("cannot explain `{}`", self.of))?.into_inner();
        let text = match self.format {
            Some(format) => inspect::print(&[view(&told)], Some(&format))?,
            None => render(&told, now_ms(), self.no_trunc)?,
        };
        cx.out.write_all(text.as_bytes())?;
        Ok(())
    }
}

fn render(told: &pb::Explanation, now_ms: u64, whole: bool) -> Result<String> {
    let mut text = format!("{} {} {}.\n\n", capital(&told.r#type), told.name, told.summary);
    let mut facts = format!("Id\t{}\n", told.id);
    for fact in &told.facts {
        writeln!(facts, "{}\t{}", fact.name, fact.text)?;
    }
    text += &table::align(&facts);
    if !told.waits.is_empty() {
        text += "\nWaiting\n";
        for wait in &told.waits {
            writeln!(text, "  {}", waiting(wait, now_ms))?;
        }
    }
    if !told.refusals.is_empty() {
        text += "\nRefused\n";
        for refusal in &told.refusals {
            writeln!(text, "  {}", refusal.reason)?;
        }
        if !told.nearest.is_empty() {
            writeln!(text, "  nearest: {}", told.nearest)?;
        }
    }
    if let Some(choice) = &told.choice {
        text += &chosen(choice)?;
    }
    if !told.past.is_empty() {
        text += "\nHistory\n";
        let mut lines = "AT\tINDEX\tWHO\tWHAT\tBY\tWHY\n".to_owned();
        for past in &told.past {
            let index = if past.index == 0 { "-".to_owned() } else { past.index.to_string() };
            let why = if whole { past.why.clone() } else { cut(&past.why, REASON_CHARS) };
            let whom = if whole { past.whom.clone() } else { cut(&past.whom, 12) };
            writeln!(lines, "{}\t{index}\t{whom}\t{}\t{}\t{why}", moment(past.at_ms), past.what, past.by)?;
        }
        text += &table::align(&lines);
    }
    Ok(text)
}

fn waiting(wait: &Wait, now_ms: u64) -> String {
    let mut text = format!("{} waits for {}", wait.who, wait.what);
    if wait.since_ms != 0 {
        let ago = Duration::from_millis(now_ms.saturating_sub(wait.since_ms));
        text += &format!(", since {} ({} ago)", clock(wait.since_ms), rough(ago).to_lowercase());
    }
    if wait.next_ms != 0 {
        let left = Duration::from_millis(wait.next_ms.saturating_sub(now_ms)).as_secs_f32();
        text += &format!(", until {} (in {left:.1} s)", clock(wait.next_ms));
    }
    text
}

fn chosen(choice: &Choice) -> Result<String> {
    let mut text = "\nPlacement, were it chosen now\n".to_owned();
    if !choice.refused.is_empty() {
        writeln!(text, "  its node could not be given it: {}", choice.refused)?;
        if !choice.other.is_empty() {
            writeln!(text, "  the best of {} other nodes is {}", choice.of, choice.other)?;
        }
        return Ok(text);
    }
    if choice.other.is_empty() {
        writeln!(text, "  no other node could be given it")?;
        return Ok(text);
    }
    writeln!(text, "  its node is number {} of {}", choice.rank, choice.of)?;
    let mut lines = format!("  \tITS NODE\t{}\n", choice.other);
    for Criterion { what, here, there, decides } in &choice.criteria {
        let mark = if *decides { " ←" } else { "" };
        writeln!(lines, "  {what}\t{here}\t{there}{mark}")?;
    }
    text += &table::align(&lines);
    Ok(text)
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn cut(text: &str, at: usize) -> String {
    match text.char_indices().nth(at) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Day and time, to the millisecond.
fn moment(ms: u64) -> String {
    let text = rfc3339(ms * 1_000_000);
    text.get(..19).map_or(text.clone(), |start| format!("{}.{:03}", start.replace('T', " "), ms % 1000))
}

/// The time of day.
fn clock(ms: u64) -> String {
    rfc3339(ms * 1_000_000).get(11..19).unwrap_or_default().to_owned()
}

fn view(told: &pb::Explanation) -> Value {
    let time = |ms: u64| if ms == 0 { Value::from("") } else { Value::time_ms(ms) };
    let facts = told
        .facts
        .iter()
        .fold(Struct::new("facts"), |facts, fact| facts.with(fact.name.replace(' ', ""), fact.text.as_str()));
    let wait = |wait: &Wait| -> Value {
        let whole = Struct::new("wait").with("Who", wait.who.as_str()).with("What", wait.what.as_str());
        whole.with("Since", time(wait.since_ms)).with("Next", time(wait.next_ms)).into()
    };
    let refusal = |refusal: &pb::explanation::Refusal| -> Value {
        Struct::new("refusal").with("Reason", refusal.reason.as_str()).with("Nodes", refusal.nodes).into()
    };
    let past = |past: &Past| -> Value {
        let what = Struct::new("past").with("At", time(past.at_ms)).with("Index", past.index);
        let what = what.with("Who", past.whom.as_str()).with("What", past.what.as_str());
        what.with("By", past.by.as_str()).with("Why", past.why.as_str()).into()
    };
    let whole = Struct::new("explanation")
        .with("Type", told.r#type.as_str())
        .with("ID", told.id.as_str())
        .with("Name", told.name.as_str())
        .with("Summary", told.summary.as_str())
        .with("Facts", facts)
        .with("Waits", Value::List(told.waits.iter().map(wait).collect()))
        .with("Refusals", Value::List(told.refusals.iter().map(refusal).collect()))
        .with("Nearest", told.nearest.as_str());
    let whole = match &told.choice {
        None => whole,
        Some(choice) => whole.with("Placement", placement(choice)),
    };
    whole.with("History", Value::List(told.past.iter().map(past).collect())).into()
}

fn placement(choice: &Choice) -> Struct {
    let criterion = |criterion: &Criterion| -> Value {
        let what = Struct::new("criterion").with("What", criterion.what.as_str());
        let both = what.with("Here", criterion.here.as_str()).with("There", criterion.there.as_str());
        both.with("Decides", criterion.decides).into()
    };
    Struct::new("placement")
        .with("Rank", choice.rank)
        .with("Of", choice.of)
        .with("Other", choice.other.as_str())
        .with("Criteria", Value::List(choice.criteria.iter().map(criterion).collect()))
        .with("Refused", choice.refused.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_waits_says_what_for_and_since_when() {
        use pb::explanation::{Fact, Refusal};
        let at = 1_795_216_027_500;
        let told = pb::Explanation {
            r#type: "task".into(),
            id: "0000000000001".into(),
            name: "web.1".into(),
            summary: "waits for a node".into(),
            facts: vec![Fact { name: "Service".into(), text: "web".into() }],
            waits: vec![Wait {
                who: "web.1".into(),
                what: "a node".into(),
                since_ms: at,
                next_ms: at + 90_000,
            }],
            refusals: vec![Refusal { reason: "insufficient memory on 3 nodes".into(), nodes: 3 }],
            nearest: "n3 lacks 200 MiB".into(),
            choice: None,
            past: vec![Past {
                at_ms: at,
                index: 17,
                whom: "0000000000001".into(),
                what: "created".into(),
                by: "managers".into(),
                why: "for revision 1 by ann@n1".into(),
            }],
        };
        let text = render(&told, at + 60_000, false).expect("it renders");
        for part in [
            "Task web.1 waits for a node.\n",
            "  web.1 waits for a node, since ",
            "(about a minute ago)",
            "(in 30.0 s)",
            "  insufficient memory on 3 nodes\n  nearest: n3 lacks 200 MiB\n",
            "for revision 1 by ann@n1",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(view(&told).to_json().contains("\"Nearest\":\"n3 lacks 200 MiB\""));
    }

    #[test]
    fn a_running_task_is_compared_with_the_next_best_node() {
        let criterion = |what: &str, here: &str, there: &str, decides| Criterion {
            what: what.into(),
            here: here.into(),
            there: there.into(),
            decides,
        };
        let choice = Choice {
            rank: 1,
            of: 3,
            other: "n2".into(),
            criteria: vec![
                criterion("tasks of web on it", "0", "0", false),
                criterion("tasks on it", "1", "4", true),
            ],
            refused: String::new(),
        };
        let text = chosen(&choice).expect("it renders");
        assert!(text.contains("its node is number 1 of 3") && text.contains("4 ←"), "{text}");
    }
}
