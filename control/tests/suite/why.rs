//! Explanations in words, for scripts. Times are told in seconds from now, since a script knows no others.

use crate::world::World;
use rswarm_control::Timestamp;
use rswarm_control::admission::find_any;
use rswarm_control::explain::{Explanation, explain};
use std::fmt::Write;

pub fn why(world: &World, name: &str, out: &mut String) -> Result<(), String> {
    let about = find_any(&world.state, name, "").map_err(|refused| refused.to_string())?;
    let told = explain(&world.state, &world.heard, world.now, about).ok_or("it has just gone")?;
    tell(&told, world.now, out).map_err(|error| error.to_string())
}

fn tell(told: &Explanation, now: Timestamp, out: &mut String) -> std::fmt::Result {
    let ago = |at: Timestamp| format!("{:.1} s ago", now.since(at).as_secs_f32());
    writeln!(out, "  {} {}", told.name, told.summary)?;
    for (name, text) in &told.facts {
        writeln!(out, "  {name}: {text}")?;
    }
    for wait in &told.waits {
        let since = wait.since.map_or(String::new(), |since| format!(", since {}", ago(since)));
        let next =
            wait.next.map_or(String::new(), |next| format!(", for {:.1} s", next.since(now).as_secs_f32()));
        writeln!(out, "  - {} waits for {}{since}{next}", wait.who, wait.what)?;
    }
    for (reason, nodes) in &told.refusals {
        writeln!(out, "  refused by {nodes}: {reason}")?;
    }
    if !told.nearest.is_empty() {
        writeln!(out, "  nearest: {}", told.nearest)?;
    }
    if let Some(choice) = &told.choice {
        let other = choice.other.as_deref().unwrap_or("nobody");
        writeln!(out, "  number {} of {}, beside {other}{}", choice.rank, choice.of, choice.refused)?;
        for criterion in &choice.criteria {
            let decides = if criterion.decides { ", which decides" } else { "" };
            writeln!(out, "    {}: {} and {}{decides}", criterion.what, criterion.here, criterion.there)?;
        }
    }
    for past in &told.past {
        let why = if past.why.is_empty() { String::new() } else { format!(" ({})", past.why) };
        writeln!(out, "  {}: {} by {}{why}", ago(past.at), past.what, past.by)?;
    }
    Ok(())
}

/// What has happened, or of it what has happened to one kind of object.
pub fn events(world: &World, kind: &str, out: &mut String) -> Result<(), String> {
    for event in world.state.events().filter(|event| kind.is_empty() || event.kind() == kind) {
        let more: Vec<String> =
            event.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join(", ")) };
        let at = (event.at.0 - 1_000_000) as f32 / 1000.0;
        writeln!(out, "  {at:.1}s {} {} {}{more}", event.kind(), event.action, event.name)
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}
