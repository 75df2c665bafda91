//! Options about how a service is reached.

use clap::ValueEnum;
use rswarm_control::model::{EndpointMode, EndpointSpec, PortMode, PortSpec, Protocol};
use std::str::FromStr;

/// What `create` and `update` have in common; what is not given changes nothing.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Reach {
    /// What the service's name means: one virtual address, or the addresses of its tasks in turn [default: vip]
    #[arg(long, value_enum)]
    endpoint_mode: Option<EndpointArg>,
    /// Lead each client's connections, to the service or its published ports, to the same task as long as that takes any
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    client_affinity: Option<bool>,
}

/// What a service's name means, as an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EndpointArg {
    /// One virtual address
    Vip,
    /// The addresses of the tasks
    Dnsrr,
}

impl Reach {
    /// Makes the changes.
    pub fn apply(self, spec: &mut EndpointSpec) {
        let Self { endpoint_mode, client_affinity } = self;
        if let Some(mode) = endpoint_mode {
            spec.mode = match mode {
                EndpointArg::Vip => EndpointMode::Vip,
                EndpointArg::Dnsrr => EndpointMode::Dnsrr,
            };
        }
        spec.client_affinity = client_affinity.unwrap_or(spec.client_affinity);
    }
}

/// `8080:80/tcp`, `80`, or `published=8080,target=80,protocol=tcp,mode=ingress,proxy-protocol=v2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish(pub PortSpec);

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| {
            let port = text.parse::<u16>().ok().filter(|port| *port > 0);
            port.ok_or_else(|| format!("`{text}` is not a port; a port is a number from 1 to 65535"))
        };
        let protocol = |text: &str| match text {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            _ => Err(format!("`{text}` is not a protocol; there are tcp and udp")),
        };
        let mut spec = PortSpec {
            published: None,
            target: 0,
            protocol: Protocol::Tcp,
            mode: PortMode::Ingress,
            proxy_protocol: false,
        };
        if !text.contains('=') {
            let (ports, named) = text.split_once('/').unwrap_or((text, "tcp"));
            spec.protocol = protocol(named)?;
            let (published, target) = match ports.split_once(':') {
                Some((_, rest)) if rest.contains(':') => {
                    return Err("a port cannot be published on one address; write PUBLISHED:TARGET".into());
                }
                Some((published, target)) => (Some(port(published)?), target),
                None => (None, ports),
            };
            (spec.published, spec.target) = (published, port(target)?);
            return Ok(Self(spec));
        }
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("published", value)) => spec.published = Some(port(value)?),
                Some(("target", value)) => spec.target = port(value)?,
                Some(("protocol", value)) => spec.protocol = protocol(value)?,
                Some(("mode", "ingress")) => spec.mode = PortMode::Ingress,
                Some(("mode", "host")) => spec.mode = PortMode::Host,
                Some(("mode", value)) => {
                    return Err(format!("`{value}` is not a mode; there are ingress and host"));
                }
                Some(("proxy-protocol", "v2")) => spec.proxy_protocol = true,
                Some(("proxy-protocol", value)) => {
                    return Err(format!("`{value}` is no version of the PROXY protocol here; there is v2"));
                }
                _ => {
                    return Err(format!(
                        "`{part}` is none of published=, target=, protocol=, mode= and proxy-protocol="
                    ));
                }
            }
        }
        if spec.target == 0 {
            Err("target= is missing: the port in the container".into())
        } else {
            Ok(Self(spec))
        }
    }
}

/// `80` or `80/udp`: a port in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPort(Publish);

impl FromStr for TargetPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self)
    }
}

impl TargetPort {
    /// Whether the option names this port.
    pub fn names(&self, spec: &PortSpec) -> bool {
        let Self(Publish(named)) = self;
        named.target == spec.target
            && named.protocol == spec.protocol
            && (named.published.is_none() || named.published == spec.published)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        reach: Reach,
    }

    #[test]
    fn what_is_not_said_stays_as_it_is() {
        let mut spec = EndpointSpec::default();
        let mut change = |words: &[&str]| {
            let words = ["x"].iter().chain(words);
            Args::try_parse_from(words).expect("it parses").reach.apply(&mut spec);
            (spec.mode, spec.client_affinity)
        };
        use EndpointMode::{Dnsrr, Vip};
        assert_eq!(change(&["--endpoint-mode", "dnsrr"]), (Dnsrr, false));
        assert_eq!(change(&["--client-affinity"]), (Dnsrr, true));
        assert_eq!(change(&["--endpoint-mode=vip"]), (Vip, true));
        assert_eq!(change(&[]), (Vip, true));
        assert_eq!(change(&["--client-affinity=false"]), (Vip, false));
        assert!(Args::try_parse_from(["x", "--endpoint-mode", "anycast"]).is_err());
    }

    #[test]
    fn ports_are_published_short_and_long() {
        let spec = |published, target, protocol, mode| PortSpec {
            published,
            target,
            protocol,
            mode,
            proxy_protocol: false,
        };
        use {PortMode::*, Protocol::*};
        for (text, is) in [
            ("8080:80", spec(Some(8080), 80, Tcp, Ingress)),
            ("80", spec(None, 80, Tcp, Ingress)),
            ("53:5353/udp", spec(Some(53), 5353, Udp, Ingress)),
            ("published=8080,target=80", spec(Some(8080), 80, Tcp, Ingress)),
            ("target=80,mode=host,protocol=udp", spec(None, 80, Udp, Host)),
            (
                "target=80,proxy-protocol=v2",
                PortSpec { proxy_protocol: true, ..spec(None, 80, Tcp, Ingress) },
            ),
        ] {
            assert_eq!(text.parse(), Ok(Publish(is)), "{text}");
        }
        for (text, why) in [
            ("", "is not a port"),
            ("0:80", "is not a port"),
            ("80/sctp", "there are tcp and udp"),
            ("127.0.0.1:80:80", "on one address"),
            ("published=80", "target= is missing"),
            ("target=80,mode=dns", "there are ingress and host"),
            ("target=80,x=1", "is none of"),
            ("target=80,proxy-protocol=v1", "there is v2"),
            ("99999", "is not a port"),
        ] {
            let error = text.parse::<Publish>().expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
