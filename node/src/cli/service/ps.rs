//! `rswarm service ps web`

use crate::cli::client::checked;
use crate::cli::context::Context;
use crate::cli::output::listing::{Listing, Options};
use crate::cli::output::value::Struct;
use crate::cli::output::{filter, units};
use crate::cli::view::service::image;
use anyhow::Result;
use rswarm_control::health;
use rswarm_control::model::{Desired, Observed, Slot, Task};
use rswarm_proto::v1 as pb;
use std::collections::BTreeMap;

/// List the tasks of services
#[derive(Debug, clap::Args)]
pub struct Ps {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    options: PsOptions,
}

/// The options of `service ps` and `node ps`.
#[derive(Debug, Default, clap::Args)]
pub struct PsOptions {
    #[command(flatten)]
    list: Options,
    /// Print whole errors, and images with their digests
    #[arg(long)]
    no_trunc: bool,
    /// Print ids instead of names
    #[arg(long)]
    no_resolve: bool,
}

/// How tasks are listed.
pub const LISTING: Listing = Listing {
    columns: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Image", "IMAGE"),
        ("Node", "NODE"),
        ("DesiredState", "DESIRED STATE"),
        ("CurrentState", "CURRENT STATE"),
        ("Error", "ERROR"),
        ("Ports", "PORTS"),
    ],
    table: "{{.ID}}\t{{.Name}}\t{{.Image}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t{{.Error}}\t{{.Ports}}",
    raw: "id: {{.ID}}\nname: {{.Name}}\nimage: {{.Image}}\nnode: {{.Node}}\ndesired_state: {{.DesiredState}}\n\
          current_state: {{.CurrentState}}\nerror: {{.Error}}\nports: {{.Ports}}\n",
};

/// Errors are cut at this many characters, unless they shall not be.
const ERROR_CHARS: usize = 30;

impl Ps {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such service, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        self.options.check()?;
        let request = pb::ListTasksRequest { services: self.services, ..Default::default() };
        let tasks = cx.client().await?.tasks(request).await?;
        print(cx, tasks, self.options)
    }
}

impl PsOptions {
    /// # Errors
    /// If a filter is unknown.
    pub fn check(&self) -> Result<()> {
        filter::known(&self.list.filters, &["id", "name", "node", "desired-state"])
    }
}

/// Prints tasks.
///
/// # Errors
/// If they make no sense, or the options do not.
pub fn print(cx: &mut Context, answer: pb::ListTasksResponse, mut options: PsOptions) -> Result<()> {
    options.list.age = cx.age();
    let tasks = checked(answer.tasks)?;
    cx.out.write_all(render(tasks, &answer.node_names, units::now_ms(), &options)?.as_bytes())?;
    Ok(())
}

fn render(
    mut tasks: Vec<Task>,
    nodes: &BTreeMap<String, String>,
    now_ms: u64,
    options: &PsOptions,
) -> Result<String> {
    let node = |task: &Task| {
        let id = task.node.map(|node| node.to_string()).unwrap_or_default();
        if options.no_resolve { id } else { nodes.get(&id).cloned().unwrap_or(id) }
    };
    let filters = &options.list.filters;
    tasks.retain(|task| {
        filter::any(filters, "id", |id| task.id.to_string().starts_with(id))
            && filter::any(filters, "name", |name| task.name().starts_with(name))
            && filter::any(filters, "node", |named| {
                node(task) == named || task.node.is_some_and(|id| id.to_string().starts_with(named))
            })
            && filter::any(filters, "desired-state", |state| desired(task).eq_ignore_ascii_case(state))
    });
    // By service and slot; in a slot the newest first, and what came before it as its history.
    tasks.sort_by(|a, b| place(a).cmp(&place(b)).then(b.meta.number.cmp(&a.meta.number)));
    let mut before = None;
    let mut rows = Vec::new();
    for task in &tasks {
        let history = before == Some(place(task));
        before = Some(place(task));
        let name = if options.no_resolve { format!("{}.{}", task.service, task.slot) } else { task.name() };
        let name = if history && !options.list.quiet { format!(" \\_ {name}") } else { name };
        rows.push(row(task, &name, &node(task), now_ms, options.no_trunc));
    }
    LISTING.print(&rows, "ID", &options.list)
}

fn place(task: &Task) -> (&str, rswarm_control::ServiceId, Slot) {
    (&task.service_name, task.service, task.slot)
}

fn row(task: &Task, name: &str, node: &str, now_ms: u64, no_trunc: bool) -> Struct {
    let container = task.spec.containers.first();
    let image = container.map(|container| if no_trunc { image(container) } else { container.image.clone() });
    let image = image.unwrap_or_default();
    let image = if no_trunc { image.as_str() } else { super::ls::without_digest(&image) };
    let current = format!(
        "{} {}",
        titled(&task.observed.to_string()),
        units::ago(task.status.at.0, now_ms).to_lowercase()
    );
    let current = match health::badge(task) {
        Some(badge) => format!("{current} {badge}"),
        None => current,
    };
    Struct::new("task")
        .with("CurrentState", current)
        .with("DesiredState", desired(task))
        .with("Error", error(task, no_trunc))
        .with("ID", task.id.to_string())
        .with("Image", image)
        .with("Name", name)
        .with("Node", node)
        // A task has no ports of its own: they are its service's.
        .with("Ports", "")
}

fn desired(task: &Task) -> String {
    match task.desired {
        Desired::Ready => "Ready".into(),
        Desired::Running => "Running".into(),
        Desired::Shutdown => "Shutdown".into(),
        Desired::Remove => "Remove".into(),
    }
}

/// What went wrong, or else why it waits.
fn error(task: &Task, no_trunc: bool) -> String {
    let words = match (task.status.error.as_str(), task.status.exit_code) {
        ("", _) if task.is_live() && !task.note.is_empty() => task.note.clone(),
        ("", Some(code)) if code != 0 && task.observed == Observed::Failed => format!("exited with {code}"),
        (error, _) => error.to_owned(),
    };
    let words = words.replace('\n', " ");
    match (words.is_empty(), no_trunc || words.chars().count() <= ERROR_CHARS) {
        (true, _) => String::new(),
        (false, true) => format!("\"{words}\""),
        (false, false) => format!("\"{}…\"", words.chars().take(ERROR_CHARS - 1).collect::<String>()),
    }
}

fn titled(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples;
    use expect_test::expect;

    fn printed(options: &PsOptions) -> String {
        let mut failed = samples::task(11, 1, Some(1), Desired::Shutdown, Observed::Failed);
        failed.status.error = "cannot find /usr/local/bin/serve in the image".into();
        let mut pending = samples::task(13, 2, None, Desired::Running, Observed::Pending);
        pending.note = "no suitable node".into();
        let mut exited = samples::task(10, 1, Some(2), Desired::Shutdown, Observed::Failed);
        exited.status.exit_code = Some(3);
        let tasks =
            vec![exited, failed, pending, samples::task(12, 1, Some(2), Desired::Running, Observed::Running)];
        let nodes = [(1, "n1"), (2, "n2")]
            .map(|(id, name)| (rswarm_control::NodeId(id).to_string(), name.to_owned()));
        render(tasks, &nodes.into(), samples::NOW, options).expect("it renders")
    }

    #[test]
    fn tasks_are_listed_with_their_history() {
        expect![[r#"
            ID              NAME        IMAGE           NODE      DESIRED STATE   CURRENT STATE           ERROR                              PORTS
            000000000000c   web.1       rswarm/demo:1   n2        Running         Running 3 minutes ago
            000000000000b    \_ web.1   rswarm/demo:1   n1        Shutdown        Failed 3 minutes ago    "cannot find /usr/local/bin/se…"
            000000000000a    \_ web.1   rswarm/demo:1   n2        Shutdown        Failed 3 minutes ago    "exited with 3"
            000000000000d   web.2       rswarm/demo:1             Running         Pending 3 minutes ago   "no suitable node"
        "#]]
        .assert_eq(&printed(&PsOptions::default()));
    }

    #[test]
    fn errors_are_whole_on_request() {
        let list = Options {
            format: Some("{{.Image}} {{.Error}}".into()),
            filters: vec!["node=n1".parse().expect("a filter")],
            ..Options::default()
        };
        let options = PsOptions { list, no_trunc: true, no_resolve: false };
        expect![[r#"
            rswarm/demo:1@sha256:28402db69fec7c17e179ea87882667f1e054391138f77ffaf0c3eb388efc3ffb "cannot find /usr/local/bin/serve in the image"
        "#]]
        .assert_eq(&printed(&options));
    }

    #[test]
    fn filters_choose() {
        let list = Options {
            quiet: true,
            filters: vec!["desired-state=running".parse().expect("a filter")],
            ..Options::default()
        };
        let options = PsOptions { list, ..PsOptions::default() };
        assert_eq!(printed(&options), "000000000000c\n000000000000d\n");
    }
}
