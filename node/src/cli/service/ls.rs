//! `rswarm service ls`

use crate::cli::client::checked;
use crate::cli::context::Context;
use crate::cli::output::filter;
use crate::cli::output::listing::{Listing, Options};
use crate::cli::output::value::Struct;
use crate::cli::view::service::protocol_name;
use anyhow::Result;
use rswarm_control::model::{PortMode, Service};
use rswarm_proto::v1 as pb;

/// List the services
#[derive(Debug, clap::Args)]
pub struct Ls {
    #[command(flatten)]
    options: Options,
}

/// How services are listed.
pub const LISTING: Listing = Listing {
    columns: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Mode", "MODE"),
        ("Replicas", "REPLICAS"),
        ("Image", "IMAGE"),
        ("Ports", "PORTS"),
    ],
    table: "{{.ID}}\t{{.Name}}\t{{.Mode}}\t{{.Replicas}}\t{{.Image}}\t{{.Ports}}",
    raw: "id: {{.ID}}\nname: {{.Name}}\nmode: {{.Mode}}\nreplicas: {{.Replicas}}\nimage: {{.Image}}\n\
          ports: {{.Ports}}\n",
};

impl Ls {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the manager refuses, or the options make no sense.
    pub async fn run(mut self, cx: &mut Context) -> Result<()> {
        filter::known(&self.options.filters, &["id", "label", "mode", "name", "runtime"])?;
        let answer = cx.client().await?.services(&[]).await?;
        let services = checked(answer.services)?;
        self.options.age = cx.age();
        cx.out.write_all(render(&services, &answer.statuses, &self.options)?.as_bytes())?;
        Ok(())
    }
}

fn render(services: &[Service], statuses: &[pb::ServiceStatus], options: &Options) -> Result<String> {
    let filters = &options.filters;
    let statuses = statuses.iter().copied().map(Some).chain(std::iter::repeat(None));
    let mut shown: Vec<(&Service, Option<pb::ServiceStatus>)> = services.iter().zip(statuses).collect();
    shown.retain(|(service, _)| {
        filter::any(filters, "id", |id| service.id.to_string().starts_with(id))
            && filter::any(filters, "name", |name| service.spec.name.starts_with(name))
            && filter::any(filters, "mode", |mode| mode == service.spec.mode.name())
            && filter::any(filters, "runtime", |runtime| runtime == "container")
            && filter::labels(filters, "label", &service.spec.labels)
    });
    shown.sort_by(|(a, _), (b, _)| crate::cli::node::natural(&a.spec.name, &b.spec.name));
    let rows: Vec<Struct> = shown.iter().map(|(service, status)| row(service, status.as_ref())).collect();
    LISTING.print(&rows, "ID", options)
}

fn row(service: &Service, status: Option<&pb::ServiceStatus>) -> Struct {
    let image = service.spec.task.containers.first().map(|container| container.image.as_str());
    let replicas = replicas(service, status);
    Struct::new("service")
        .with("ID", service.id.to_string())
        .with("Image", without_digest(image.unwrap_or_default()))
        .with("Mode", service.spec.mode.name())
        .with("Name", &service.spec.name)
        .with("Ports", ports(service))
        .with("Replicas", replicas)
}

/// `3/3`, `3/3 (max 1 per node)`, or of a job `2/2 (1/5 completed)`: how many run of how many.
fn replicas(service: &Service, status: Option<&pb::ServiceStatus>) -> String {
    let unknown =
        pb::ServiceStatus { desired: service.spec.mode.replicas().unwrap_or(0), ..Default::default() };
    let pb::ServiceStatus { running, desired, completed, total } = *status.unwrap_or(&unknown);
    match service.spec.task.placement.max_per_node {
        _ if service.spec.mode.is_job() => format!("{running}/{desired} ({completed}/{total} completed)"),
        0 => format!("{running}/{desired}"),
        max => format!("{running}/{desired} (max {max} per node)"),
    }
}

/// The name and tag, where there is one.
pub fn without_digest(image: &str) -> &str {
    image.split_once('@').map_or(image, |(name, _)| name)
}

/// `*:8080->80/tcp, *:53->53/udp`: those that every node answers on.
fn ports(service: &Service) -> String {
    let ingress = service.endpoint.ports.iter().filter(|port| port.mode == PortMode::Ingress);
    let port = |port: &rswarm_control::model::PublishedPort| {
        format!("*:{}->{}/{}", port.published, port.target, protocol_name(port.protocol))
    };
    ingress.map(port).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples;
    use expect_test::expect;
    use rswarm_control::model::Mode;
    use std::time::Duration;

    fn printed(options: &Options) -> String {
        let services = [samples::service("web"), samples::service("api")];
        let status = |running| pb::ServiceStatus { running, desired: 3, ..Default::default() };
        render(&services, &[status(3), status(1)], options).expect("it renders")
    }

    #[test]
    fn services_are_listed_by_name() {
        expect![[r"
            ID              NAME      MODE         REPLICAS   IMAGE           PORTS
            000000000000c   api       replicated   1/3        rswarm/demo:1   *:8080->80/tcp
            000000000000c   web       replicated   3/3        rswarm/demo:1   *:8080->80/tcp
        "]]
        .assert_eq(&printed(&Options::default()));
    }

    #[test]
    fn rows_are_json_too() {
        let options = Options {
            format: Some("json".into()),
            filters: vec!["name=web".parse().expect("a filter")],
            ..Options::default()
        };
        assert_eq!(
            printed(&options),
            "{\"ID\":\"000000000000c\",\"Image\":\"rswarm/demo:1\",\"Mode\":\"replicated\",\"Name\":\"web\",\
             \"Ports\":\"*:8080->80/tcp\",\"Replicas\":\"3/3\"}\n"
        );
    }

    #[test]
    fn jobs_show_what_is_completed() {
        let mut job = samples::service("pack");
        job.spec.mode = Mode::ReplicatedJob { completions: 10, max_concurrent: 2, deadline: Duration::ZERO };
        let mut agent = samples::service("agent");
        agent.spec.mode = Mode::Global;
        let statuses = [
            pb::ServiceStatus { running: 2, desired: 2, completed: 3, total: 10 },
            pb::ServiceStatus { running: 3, desired: 3, ..Default::default() },
        ];
        let format = |filter: Option<&str>| Options {
            format: Some("{{.Name}} {{.Mode}} {{.Replicas}}".into()),
            filters: filter.into_iter().map(|text| text.parse().expect("a filter")).collect(),
            ..Options::default()
        };
        let printed = |options: &Options| {
            render(&[job.clone(), agent.clone()], &statuses, options).expect("it renders")
        };
        assert_eq!(printed(&format(None)), "agent global 3/3\npack replicated-job 2/2 (3/10 completed)\n");
        assert_eq!(printed(&format(Some("mode=global"))), "agent global 3/3\n");
    }

    #[test]
    fn a_column_that_is_not_there_is_named_with_those_that_are() {
        let options = Options { format: Some("{{.Nmae}}".into()), ..Options::default() };
        let error =
            render(&[samples::service("web")], &[], &options).expect_err("it is misspelt").to_string();
        expect![[r#"
            template parsing error: template: :1:2: executing "" at <.Nmae>: can't evaluate field Nmae in type service
              the columns are ID, Name, Mode, Replicas, Image, Ports"#]]
        .assert_eq(&error);
    }
}
