//! `rswarm node ls`

use super::{all, availability_name, natural, status_name};
use crate::cli::context::Context;
use crate::cli::output::filter;
use crate::cli::output::listing::{Listing, Options};
use crate::cli::output::value::Struct;
use anyhow::Result;
use rswarm_control::model::{Node, Role};
use rswarm_proto::v1 as pb;

/// List the nodes
#[derive(Debug, clap::Args)]
pub struct Ls {
    #[command(flatten)]
    options: Options,
}

/// How nodes are listed.
pub const LISTING: Listing = Listing {
    columns: &[
        ("ID", "ID"),
        ("Self", ""),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Availability", "AVAILABILITY"),
        ("ManagerStatus", "MANAGER STATUS"),
        ("EngineVersion", "ENGINE VERSION"),
        ("TLSStatus", "TLS STATUS"),
    ],
    table: "{{.ID}} {{if .Self}}*{{else}} {{end}}\t{{.Hostname}}\t{{.Status}}\t{{.Availability}}\t\
            {{.ManagerStatus}}\t{{.EngineVersion}}",
    raw: "node_id: {{.ID}}\nhostname: {{.Hostname}}\nstatus: {{.Status}}\navailability: {{.Availability}}\n\
          manager_status: {{.ManagerStatus}}\n",
};

const FILTERS: [&str; 7] = ["id", "label", "node.label", "name", "role", "status", "availability"];

impl Ls {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the manager refuses, or the options make no sense.
    pub async fn run(mut self, cx: &mut Context) -> Result<()> {
        filter::known(&self.options.filters, &FILTERS)?;
        let (nodes, answer) = all(&mut cx.client().await?).await?;
        self.options.age = cx.age();
        cx.out.write_all(render(nodes, &answer, &self.options)?.as_bytes())?;
        Ok(())
    }
}

fn render(mut nodes: Vec<Node>, answer: &pb::ListNodesResponse, options: &Options) -> Result<String> {
    let filters = &options.filters;
    nodes.retain(|node| {
        filter::any(filters, "id", |id| node.id.to_string().starts_with(id))
            && filter::any(filters, "name", |name| node.hostname.contains(name))
            && filter::any(filters, "role", |role| node.role.to_string() == role)
            && filter::any(filters, "status", |status| status_name(node.status).eq_ignore_ascii_case(status))
            && filter::any(filters, "availability", |is| {
                availability_name(node.availability).eq_ignore_ascii_case(is)
            })
            && filter::labels(filters, "label", &node.labels)
            && filter::labels(filters, "node.label", &node.labels)
    });
    nodes.sort_by(|a, b| natural(&a.hostname, &b.hostname).then(a.id.cmp(&b.id)));
    let rows: Vec<Struct> = nodes.iter().map(|node| row(node, answer)).collect();
    LISTING.print(&rows, "ID", options)
}

fn row(node: &Node, answer: &pb::ListNodesResponse) -> Struct {
    let id = node.id.to_string();
    Struct::new("node")
        .with("Availability", availability_name(node.availability))
        .with("EngineVersion", &node.description.engine_version)
        .with("Hostname", &node.hostname)
        .with("ID", &id)
        .with("ManagerStatus", manager_status(node, answer))
        .with("Self", id == answer.self_id)
        .with("Status", status_name(node.status))
        .with("TLSStatus", "Ready")
}

fn manager_status(node: &Node, answer: &pb::ListNodesResponse) -> &'static str {
    let id = node.id.to_string();
    match node.role {
        Role::Worker => "",
        Role::Manager if id == answer.leader_id => "Leader",
        Role::Manager if answer.reachable_managers.contains(&id) => "Reachable",
        Role::Manager => "Unreachable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples;
    use expect_test::expect;

    fn printed(options: &Options) -> String {
        let nodes = vec![samples::node("n10", 10), samples::node("n2", 2), samples::node("n1", 1)];
        let answer = pb::ListNodesResponse {
            self_id: nodes[2].id.to_string(),
            leader_id: nodes[1].id.to_string(),
            reachable_managers: vec![nodes[2].id.to_string()],
            nodes: Vec::new(),
        };
        render(nodes, &answer, options).expect("it renders")
    }

    #[test]
    fn nodes_are_listed() {
        expect![[r"
            ID                HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION
            0000000000001 *   n1         Ready     Active         Reachable        0.1.0
            0000000000002     n2         Ready     Active         Leader           0.1.0
            000000000000a     n10        Ready     Active                          0.1.0
        "]]
        .assert_eq(&printed(&Options::default()));
    }

    #[test]
    fn options_choose_and_shape() {
        let with = |options: &[&str]| {
            #[derive(clap::Parser)]
            struct Args {
                #[command(flatten)]
                options: Options,
            }
            let words = std::iter::once("ls").chain(options.iter().copied());
            let args: Args = clap::Parser::try_parse_from(words).expect("options");
            printed(&args.options)
        };
        assert_eq!(with(&["-q", "-f", "role=worker"]), "000000000000a\n");
        assert_eq!(with(&["--filter", "name=n1", "--format", "{{.Hostname}}"]), "n1\nn10\n");
        assert_eq!(
            with(&["-f", "id=0000000000001", "--format", "json"]),
            "{\"Availability\":\"Active\",\"EngineVersion\":\"0.1.0\",\"Hostname\":\"n1\",\"ID\":\"0000000000001\",\
             \"ManagerStatus\":\"Reachable\",\"Self\":true,\"Status\":\"Ready\",\"TLSStatus\":\"Ready\"}\n"
        );
    }
}
