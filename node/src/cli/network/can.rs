//! `rswarm network can web db:5432`

use crate::cli::client::{checked, one};
use crate::cli::context::Context;
use crate::cli::failure::Ended;
use anyhow::{Context as _, Result};
use rswarm_control::NetworkId;
use rswarm_control::model::{Network, PortMode, Protocol, Service};
use rswarm_control::policy::{self, Verdict, Ways};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

/// Say whether tasks of one service may connect to those of another, and by which rule
///
/// Ends with 0 if they may, and with 1 if they may not.
#[derive(Debug, clap::Args)]
pub struct Can {
    /// The service that wants to connect
    #[arg(value_name = "SERVICE")]
    from: String,
    /// Where to: a service, and a port of its containers
    #[arg(value_name = "SERVICE:PORT[/PROTOCOL]")]
    to: Target,
}

/// `db:5432`, `dns:53/udp`
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    service: String,
    port: u16,
    protocol: Protocol,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no service and port; write SERVICE:PORT or SERVICE:PORT/udp");
        // As an entry of an allow list, but with a port.
        let rswarm_control::model::Allow { from: service, port } = text.parse().map_err(|_| wrong())?;
        let (port, protocol) = port.ok_or_else(wrong)?;
        Ok(Self { service, port, protocol })
    }
}

impl Can {
    /// Carries the command out.
    ///
    /// # Errors
    /// If they may not, there is no such service, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        let mut find = async |name: &str| -> Result<Service> {
            one(client.services(&[name.to_owned()]).await?.services.pop().context("no service was found")?)
        };
        let (from, to) = (find(&self.from).await?, find(&self.to.service).await?);
        let networks: Vec<Network> = checked(client.networks(&[]).await?)?;
        let networks: BTreeMap<NetworkId, Network> =
            networks.into_iter().map(|network| (network.id, network)).collect();
        let (port, protocol) = (self.to.port, self.to.protocol);
        let ways = policy::ways(&from, &to, port, protocol, |id| networks.get(&id));
        let text = render(&from, &to, port, protocol, &ways, &networks)?;
        cx.out.write_all(text.as_bytes())?;
        cx.out.flush()?;
        if ways.is_yes() { Ok(()) } else { Err(Ended(1).into()) }
    }
}

/// The verdict on the network where the name leads, those on others, and ways around.
fn render(
    from: &Service,
    to: &Service,
    port: u16,
    protocol: Protocol,
    ways: &Ways,
    networks: &BTreeMap<NetworkId, Network>,
) -> Result<String> {
    let (asker, asked) = (&from.spec.name, &to.spec.name);
    let name =
        |id: &NetworkId| networks.get(id).map_or_else(|| id.to_string(), |network| network.name.clone());
    let mut text = String::new();
    if ways.networks.is_empty() {
        writeln!(text, "no: {asker} and {asked} have no network in common")?;
        let joined = to.spec.task.networks.first().map(name).unwrap_or_default();
        writeln!(text, "    rswarm service update --network-add {joined} {asker}")?;
    }
    for (at, (id, verdict)) in ways.networks.iter().enumerate() {
        let network = name(id);
        let word = if verdict.is_yes() { "yes" } else { "no" };
        let why = match verdict {
            Verdict::Open => {
                format!(
                    "network {network} is not isolated, and {asked} takes connections from everybody on it"
                )
            }
            Verdict::Allowed(entry) => format!("on network {network}, {asked} allows {entry}"),
            Verdict::Missing { isolated } => {
                let listed: Vec<String> = to.spec.endpoint.allow.iter().map(ToString::to_string).collect();
                let listed = if listed.is_empty() { "nobody".to_owned() } else { listed.join(", ") };
                let network = match isolated {
                    true => format!("network {network} is isolated, and"),
                    false => format!("on network {network},"),
                };
                format!("{network} {asked} allows {listed}, not {asker} to port {port}/{protocol}")
            }
        };
        match at {
            0 => writeln!(text, "{word}: {why}")?,
            _ => writeln!(text, "    by its address there, {word}: {why}")?,
        }
        if at == 0 && !verdict.is_yes() {
            writeln!(text, "    rswarm service update --allow-from-add {asker}:{port}/{protocol} {asked}")?;
        }
    }
    for (published, mode) in &ways.published {
        let place = match mode {
            PortMode::Ingress => "every node",
            PortMode::Host => "the nodes of its tasks",
        };
        writeln!(text, "    everybody reaches it by port {published}/{protocol} of {place}")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples;
    use expect_test::expect;

    #[test]
    fn the_rule_is_named_or_the_one_that_is_missing() {
        let mut networks = BTreeMap::new();
        for (id, name, isolated) in [(1, "open", false), (2, "shut", true)] {
            let network = Network { id: NetworkId(id), name: name.into(), isolated, ..samples::network() };
            networks.insert(network.id, network);
        }
        let service = |name: &str, joined: &[u64], allow: &[&str]| {
            let mut service = samples::service(name);
            std::sync::Arc::make_mut(&mut service.spec.task).networks =
                joined.iter().map(|id| NetworkId(*id)).collect();
            service.spec.endpoint.allow = allow.iter().map(|text| text.parse().expect("an entry")).collect();
            service
        };
        let (web, far) = (service("web", &[2, 1], &[]), service("far", &[7], &[]));
        let db = service("db", &[1, 2], &["web:5432", "cache"]);
        let told = |from: &Service, to: &Service, port, protocol| {
            let ways = policy::ways(from, to, port, protocol, |id| networks.get(&id));
            render(from, to, port, protocol, &ways, &networks).expect("it renders")
        };
        let mut text = told(&web, &db, 5432, Protocol::Tcp);
        text += &told(&web, &db, 80, Protocol::Tcp);
        text += &told(&db, &web, 53, Protocol::Udp);
        text += &told(&web, &service("mute", &[2], &[]), 53, Protocol::Udp);
        text += &told(&far, &db, 1, Protocol::Tcp);
        expect![[r"
            yes: on network shut, db allows web:5432/tcp
                by its address there, yes: on network open, db allows web:5432/tcp
            no: network shut is isolated, and db allows web:5432/tcp, cache, not web to port 80/tcp
                rswarm service update --allow-from-add web:80/tcp db
                by its address there, no: on network open, db allows web:5432/tcp, cache, not web to port 80/tcp
                everybody reaches it by port 8080/tcp of every node
            yes: network open is not isolated, and web takes connections from everybody on it
                by its address there, no: network shut is isolated, and web allows nobody, not db to port 53/udp
            no: network shut is isolated, and mute allows nobody, not web to port 53/udp
                rswarm service update --allow-from-add web:53/udp mute
            no: far and db have no network in common
                rswarm service update --network-add open far
        "]]
        .assert_eq(&text);
    }

    #[test]
    fn a_target_has_a_port() {
        let target = |port, protocol| Ok(Target { service: "db".into(), port, protocol });
        assert_eq!("db:80".parse(), target(80, Protocol::Tcp));
        assert_eq!("db:53/udp".parse(), target(53, Protocol::Udp));
        assert!("db".parse::<Target>().is_err() && "db:x".parse::<Target>().is_err());
    }
}
