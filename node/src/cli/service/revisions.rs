//! `rswarm service history web`, `rollback web`, `pause web`, `resume web`

use super::dry_run::DryRun;
use super::update::find;
use super::wait;
use crate::cli::context::Context;
use crate::cli::failure::refused;
use crate::cli::output::listing::{Listing, Options};
use crate::cli::output::units;
use crate::cli::output::value::{Struct, Value};
use crate::cli::view::service::{image, update_state};
use anyhow::{Context as _, Result};
use rswarm_control::Timestamp;
use rswarm_control::model::{Service, ServiceSpec};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::planned_request::What;

/// Show what a service was asked to be, by whom and when
#[derive(Debug, clap::Args)]
pub struct History {
    /// Id, beginning of an id, or name
    service: String,
    #[command(flatten)]
    options: Options,
}

/// Go back to what a service was before
#[derive(Debug, clap::Args)]
pub struct Rollback {
    /// Id, beginning of an id, or name
    service: String,
    /// To this revision, of those that `service history` shows [default: the last one before the present]
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    to: Option<u64>,
    #[command(flatten)]
    dry: DryRun,
    #[command(flatten)]
    wait: wait::Options,
}

/// Stop an update or a rollback where it is
#[derive(Debug, clap::Args)]
pub struct Pause {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

/// Let an update or a rollback go on that was paused
#[derive(Debug, clap::Args)]
pub struct Resume {
    /// Id, beginning of an id, or name
    service: String,
    #[command(flatten)]
    wait: wait::Options,
}

/// How revisions are listed.
pub const LISTING: Listing = Listing {
    columns: &[
        ("Revision", "REVISION"),
        ("Since", "SINCE"),
        ("Author", "AUTHOR"),
        ("Image", "IMAGE"),
        ("Replicas", "REPLICAS"),
        ("State", "STATE"),
        ("At", "AT"),
    ],
    table: "{{.Revision}}\t{{.Since}}\t{{.Author}}\t{{.Image}}\t{{.Replicas}}\t{{.State}}",
    raw: "revision: {{.Revision}}\nsince: {{.At}}\nauthor: {{.Author}}\nimage: {{.Image}}\n\
          replicas: {{.Replicas}}\nstate: {{.State}}\n",
};

impl History {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such service, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let service = find(&mut cx.client().await?, &self.service).await?;
        cx.out.write_all(render(&service, units::now_ms(), &self.options)?.as_bytes())?;
        Ok(())
    }
}

fn render(service: &Service, now_ms: u64, options: &Options) -> Result<String> {
    let row = |number: u64, since: Timestamp, author: &str, spec: &ServiceSpec, state: &str| {
        let main = spec.task.containers.first();
        Struct::new("revision")
            .with("Revision", number)
            .with("Since", units::ago(since.0, now_ms))
            .with("Author", author)
            .with("Image", main.map(image).unwrap_or_default())
            .with(
                "Replicas",
                spec.mode.replicas().map_or(spec.mode.name().into(), |replicas| replicas.to_string()),
            )
            .with("State", state)
            .with("At", Value::time_ms(since.0))
    };
    let state = service.update_status.as_ref().map_or("current", |status| match status.state {
        state if state.is_complete() => "current",
        state => update_state(state),
    });
    let mut rows = vec![row(service.revision, service.spec_since, &service.author, &service.spec, state)];
    rows.extend(service.previous.iter().rev().map(|revision| {
        let state = if revision.settled { "" } else { "incomplete" };
        row(revision.number, revision.since, &revision.author, &revision.spec, state)
    }));
    LISTING.print(&rows, "Revision", options)
}

impl Rollback {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is nothing to go back to, the manager refuses, or the service does not come to run.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        roll_back(cx, &self.service, self.to, &self.dry, &self.wait).await
    }
}

/// Goes back to a former spec of a service, and waits for it.
///
/// # Errors
/// As [`Rollback::run`].
pub async fn roll_back(
    cx: &mut Context,
    name: &str,
    to: Option<u64>,
    dry: &DryRun,
    wait: &wait::Options,
) -> Result<()> {
    let mut client = cx.client().await?;
    let request = pb::RollbackServiceRequest {
        service: name.to_owned(),
        to: to.unwrap_or_default(),
        author: crate::cli::author(),
    };
    if dry.is_asked() {
        let what = || format!("cannot roll back `{name}`");
        return dry.rehearse(cx, &mut client, What::RollbackService(request)).await.with_context(what);
    }
    let answer = client.control.rollback_service(request).await.map_err(|status| refused(&status));
    let answer = answer.with_context(|| format!("cannot roll back `{name}`"))?.into_inner();
    writeln!(cx.out, "{name}")?;
    cx.out.flush()?;
    wait::revised(cx, &mut client, name, &answer, wait).await
}

impl Pause {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such service, or nothing to pause.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        for service in self.services {
            set(cx, &service, true).await?;
        }
        Ok(())
    }
}

impl Resume {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is nothing to resume, or the service does not come to run.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let answer = set(cx, &self.service, false).await?;
        let mut client = cx.client().await?;
        wait::revised(cx, &mut client, &self.service, &answer, &self.wait).await
    }
}

async fn set(cx: &mut Context, name: &str, pause: bool) -> Result<pb::UpdateServiceResponse> {
    let what = if pause { "pause" } else { "resume" };
    let request = pb::PauseUpdateRequest { service: name.to_owned(), pause };
    let answer = cx.client().await?.control.pause_update(request).await.map_err(|status| refused(&status));
    let answer = answer.with_context(|| format!("cannot {what} the update of `{name}`"))?.into_inner();
    writeln!(cx.out, "{name}")?;
    cx.out.flush()?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples;
    use expect_test::expect;
    use rswarm_control::model::Revision;

    #[test]
    fn the_newest_comes_first_and_what_never_got_there_is_marked() {
        let mut service = samples::service("web");
        service.revision = 3;
        let former = |number: u64, author: &str, settled| Revision {
            number,
            author: author.into(),
            since: Timestamp(service.spec_since.0.saturating_sub((3 - number) * 3_600_000)),
            replaced_at: service.spec_since,
            settled,
            spec: service.spec.clone(),
        };
        service.previous = vec![former(1, "ann@n1", true), former(2, "bob@n2", false)];
        expect![[r#"
            REVISION   SINCE                AUTHOR    IMAGE                                                                                   REPLICAS   STATE
            3          About a minute ago   ann@n1    rswarm/demo:1@sha256:28402db69fec7c17e179ea87882667f1e054391138f77ffaf0c3eb388efc3ffb   3          current
            2          About an hour ago    bob@n2    rswarm/demo:1@sha256:28402db69fec7c17e179ea87882667f1e054391138f77ffaf0c3eb388efc3ffb   3          incomplete
            1          2 hours ago          ann@n1    rswarm/demo:1@sha256:28402db69fec7c17e179ea87882667f1e054391138f77ffaf0c3eb388efc3ffb   3
        "#]].assert_eq(&render(&service, service.spec_since.0 + 60_000, &Options::default()).expect("it renders"));
    }
}
