//! A network's packet filter: virtual IPs, hairpins, refusals, and the way back for transparent sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use super::{Backends, Spec, TRANSPARENT_MARK, guard};
use crate::{
    decide::{
        balance,
        policy::{Opening, Policy},
    },
    device::{
        conntrack::{Connection, TCP, UDP},
        nft::{
            Base, Chain, ChainKind, Elements, Family, Field, Hook, Pick, Refusal, Rule, Set, Statement,
            Table, Target, Value, Verdict, ct, priority,
        },
    },
};

/// A virtual IP and who answers for it, on every port and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    /// The address clients use.
    pub address: Ipv4Addr,
    /// Tasks that get new connections, in turn. Without any, connections are refused at once.
    pub backends: BTreeSet<Ipv4Addr>,
    /// Tasks that keep the TCP connections they have, and get no new ones.
    pub draining: BTreeSet<Ipv4Addr>,
    /// Of these, the ones with which no connection begins any more, not even one that is being made: its first packet
    /// was lost, and goes to another task when it is sent again.
    pub closed: BTreeSet<Ipv4Addr>,
    /// Whether a client's connections go to the same task as long as that takes any.
    pub affinity: bool,
}

/// The table of network `spec` with these services.
pub(super) fn table(spec: &Spec, backends: &Backends) -> Table {
    let mut table = Table::new(Family::Ip, "rswarm");
    let chain_of = |vip: &Vip| format!("vip-{}", vip.address);

    let goto = |vip: &Vip| (vec![Value::Address(vip.address.into())], Verdict::Goto(chain_of(vip)));
    let (served, empty): (Vec<&Vip>, Vec<&Vip>) =
        backends.vips.iter().partition(|vip| !vip.backends.is_empty());
    table.sets.push(Set {
        name: "vips".to_owned(),
        key: vec![Field::IpDestination],
        elements: Elements::Verdicts(served.iter().map(|vip| goto(vip)).collect::<BTreeMap<_, _>>()),
    });
    table.sets.push(Set {
        name: "empty".to_owned(),
        key: vec![Field::IpDestination],
        elements: Elements::Keys(empty.iter().map(|vip| vec![Value::Address(vip.address.into())]).collect()),
    });
    // After the translation only a task that reached itself has itself as the other end.
    let tasks: BTreeSet<Ipv4Addr> = served.iter().flat_map(|vip| &vip.backends).copied().collect();
    let own = |task: &Ipv4Addr| vec![Value::Address((*task).into()), Value::Address((*task).into())];
    table.sets.push(Set {
        name: "hairpin".to_owned(),
        key: vec![Field::IpSource, Field::IpDestination],
        elements: Elements::Keys(tasks.iter().map(own).collect()),
    });

    for vip in served {
        let (pick, tasks) = match vip.affinity {
            true => (Pick::BySource, balance::places(&vip.backends)),
            false => (Pick::RoundRobin, vip.backends.iter().copied().collect()),
        };
        let tasks = tasks.into_iter().map(IpAddr::V4).collect();
        let rules = vec![Rule(vec![Statement::Dnat(Target::Of(pick, tasks))])];
        table.chains.push(Chain::regular(chain_of(vip), rules));
    }
    table.chains.push(refusal("refuse", Refusal::PortUnreachable));
    let mut first = vec![
        // Of TCP and UDP, and errors that belong to them.
        Rule(vec![
            Statement::Is(Field::SocketTransparent, Value::Byte(1)),
            Statement::SetMark(TRANSPARENT_MARK),
        ]),
        // Only the first packet: what drains may go on.
        Rule(vec![
            Statement::In(vec![Field::IpDestination], "empty".to_owned()),
            Statement::AnyOf(Field::CtState, ct::NEW),
            Statement::Verdict(Verdict::Goto("refuse".to_owned())),
        ]),
    ];
    first.extend(guard::add(&mut table, spec, &backends.policy));
    table.chains.push(Chain::base(
        "mangle",
        Base::new(ChainKind::Filter, Hook::Prerouting, priority::MANGLE),
        first,
    ));
    table.chains.push(Chain::base(
        "translate",
        Base::new(ChainKind::Nat, Hook::Prerouting, priority::DSTNAT),
        vec![Rule(vec![Statement::VerdictOf(vec![Field::IpDestination], "vips".to_owned())])],
    ));
    table.chains.push(Chain::base(
        "hairpins",
        Base::new(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT),
        vec![Rule(vec![
            Statement::AnyOf(Field::CtStatus, ct::DNAT),
            Statement::In(vec![Field::IpSource, Field::IpDestination], "hairpin".to_owned()),
            Statement::Snat(spec.gateway.into()),
        ])],
    ));
    table
}

/// A chain that refuses at once, so that nobody waits for what will not come: TCP by a reset, the rest as said.
pub(super) fn refusal(name: &str, otherwise: Refusal) -> Chain {
    let is_tcp = Statement::Is(Field::Protocol, Value::Byte(TCP));
    let rules = vec![
        Rule(vec![is_tcp, Statement::Reject(Refusal::TcpReset)]),
        Rule(vec![Statement::Reject(otherwise)]),
    ];
    Chain::regular(name, rules)
}

/// Whether there may be connections that were all right before and are not any more.
pub(super) fn ends_connections(before: &Backends, now: &Backends) -> bool {
    let vips: BTreeMap<Ipv4Addr, &Vip> = now.vips.iter().map(|vip| (vip.address, vip)).collect();
    let ends = |old: &Vip| {
        vips.get(&old.address).is_none_or(|new| {
            // Those of UDP end when their task begins to drain.
            !old.backends.is_subset(&new.backends)
                || old
                    .draining
                    .iter()
                    .any(|task| !new.backends.contains(task) && !new.draining.contains(task))
                || !new.closed.is_subset(&old.closed)
        })
    };
    before.policy != now.policy || before.vips.iter().any(ends)
}

/// Which connections may go on.
pub(super) struct Keepers<'a> {
    spec: &'a Spec,
    vips: BTreeMap<Ipv4Addr, &'a Vip>,
    policy: &'a Policy,
}

impl<'a> Keepers<'a> {
    pub(super) fn of(spec: &'a Spec, backends: &'a Backends) -> Self {
        let vips = backends.vips.iter().map(|vip| (vip.address, vip)).collect();
        Self { spec, vips, policy: &backends.policy }
    }

    /// Whether the connection goes to a task that no longer answers for the virtual IP it was made to, or was opened by
    /// one that is no longer allowed to.
    pub(super) fn is_stale(&self, connection: &Connection) -> bool {
        let (IpAddr::V4(source), IpAddr::V4(destination), IpAddr::V4(task)) =
            (connection.original.source, connection.original.destination, connection.reply.source)
        else {
            return false;
        };
        let kept = self.vips.get(&destination).is_some_and(|vip| {
            vip.backends.contains(&task)
                || (connection.original.protocol != UDP
                    && vip.draining.contains(&task)
                    && (connection.answered || !vip.closed.contains(&task)))
        });
        (connection.dnat && !kept)
            || (self.is_between_tasks(source, destination) && {
                let (protocol, port) = (connection.original.protocol, connection.original.destination_port);
                self.policy.ends(Opening { source, destination, protocol, port })
            })
    }

    /// What comes from elsewhere comes by a published port, for which there is no policy.
    fn is_between_tasks(&self, source: Ipv4Addr, destination: Ipv4Addr) -> bool {
        let is_task = |address| self.spec.holds(address) && address != self.spec.gateway;
        is_task(source) && is_task(destination)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    /// Without the many places of a service whose clients stay.
    fn places_cut(table: &str) -> String {
        let cut = |line: &str| match line.split_once("mod 1024 map { ") {
            Some((start, _)) => format!("{start}mod 1024 map {{ …\n"),
            None => format!("{line}\n"),
        };
        table.lines().map(cut).collect()
    }

    #[test]
    fn services_become_a_table() {
        let ip = |last| Ipv4Addr::new(10, 50, 0, last);
        let spec = Spec {
            pin: "/run/x".into(),
            subnet: ip(0),
            prefix_len: 24,
            gateway: ip(1),
            mtu: 1400,
            queues: 1,
        };
        let vip = |last, tasks: &[u8], affinity| Vip {
            address: ip(last),
            backends: tasks.iter().map(|last| ip(*last)).collect(),
            draining: BTreeSet::new(),
            closed: BTreeSet::new(),
            affinity,
        };
        let vips = vec![vip(100, &[3, 4], false), vip(101, &[3, 4], true), vip(102, &[], false)];
        let backends = Backends { vips, policy: Policy::default() };
        expect![[r#"
            table ip rswarm {
              map vips {
                type ipv4_addr : verdict
                10.50.0.100 : goto vip-10.50.0.100
                10.50.0.101 : goto vip-10.50.0.101
              }
              set empty {
                type ipv4_addr
                10.50.0.102
              }
              set hairpin {
                type ipv4_addr . ipv4_addr
                10.50.0.3 . 10.50.0.3
                10.50.0.4 . 10.50.0.4
              }
              chain vip-10.50.0.100 {
                dnat to numgen inc mod 2 map { 0 : 10.50.0.3, 1 : 10.50.0.4 }
              }
              chain vip-10.50.0.101 {
                dnat to jhash saddr mod 1024 map { …
              }
              chain refuse {
                meta l4proto 6 reject with tcp reset
                reject with icmp port-unreachable
              }
              chain mangle {
                type filter hook prerouting priority -150; policy accept;
                socket transparent 1 meta mark set 0x1
                ip daddr @empty ct state & 0x8 != 0 goto refuse
              }
              chain translate {
                type nat hook prerouting priority -100; policy accept;
                ip daddr vmap @vips
              }
              chain hairpins {
                type nat hook postrouting priority 100; policy accept;
                ct status & 0x20 != 0 ip saddr . ip daddr @hairpin snat to 10.50.0.1
              }
            }
        "#]]
        .assert_eq(&places_cut(&table(&spec, &backends).to_string()));
    }

    #[test]
    fn connections_end_when_a_task_or_a_permission_goes_and_not_when_one_comes() {
        let ip = |last| Ipv4Addr::new(10, 50, 0, last);
        let set = |tasks: &[u8]| tasks.iter().map(|last| ip(*last)).collect::<BTreeSet<_>>();
        let of = |backends: &[u8], draining: &[u8], closed: &[u8]| Backends {
            vips: vec![Vip {
                address: ip(100),
                backends: set(backends),
                draining: set(draining),
                closed: set(closed),
                affinity: false,
            }],
            policy: Policy::default(),
        };
        let before = of(&[2, 3], &[4], &[]);
        for (now, ends) in [
            (of(&[2, 3], &[4], &[]), false),
            (of(&[2, 3, 5], &[4], &[]), false),
            (of(&[2, 3, 4], &[], &[]), false),
            (of(&[2], &[3, 4], &[]), true),
            (of(&[2, 3], &[], &[]), true),
            (of(&[2, 3], &[4], &[4]), true),
            (Backends::default(), true),
        ] {
            assert_eq!(ends_connections(&before, &now), ends, "{now:?}");
        }
        assert!(!ends_connections(&Backends::default(), &before), "a service that is new");
        let other = Policy { isolated: true, ..Policy::default() };
        assert!(ends_connections(&before, &Backends { policy: other, ..before.clone() }));
    }
}
