//! A network's policy as a part of its packet filter. It judges the first packet of a connection, before a virtual IP is
//! translated, on the way out of a task as on the way in: each node for itself, so that none has to be trusted.

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::{Spec, filter::refusal};
use crate::{
    decide::policy::{Policy, number},
    device::{
        conntrack::TCP,
        nft::{Chain, Elements, Field, Refusal, Rule, Set, Statement, Table, Value, Verdict, ct, tcp_flags},
    },
};

/// Packets of no connection that is known. Answers are of one that is.
const UNKNOWN: u32 = ct::NEW | ct::INVALID | ct::UNTRACKED;

/// Adds the sets and chains of the policy to the table; returns the rules that lead there.
pub(super) fn add(table: &mut Table, spec: &Spec, policy: &Policy) -> Vec<Rule> {
    if policy.is_empty() {
        return Vec::new();
    }
    let to = |service: &str| format!("to-{service}");
    let of = |service: &str| format!("of-{service}");
    let keys = |addresses: &BTreeSet<Ipv4Addr>| {
        Elements::Keys(addresses.iter().map(|address| vec![Value::Address((*address).into())]).collect())
    };
    let goto = |(address, service): (&Ipv4Addr, _)| {
        (vec![Value::Address((*address).into())], Verdict::Goto(to(service)))
    };
    table.sets.push(Set {
        name: "guarded".to_owned(),
        key: vec![Field::IpDestination],
        elements: Elements::Verdicts(
            policy.guarded.iter().map(|(address, service)| goto((address, &**service))).collect(),
        ),
    });
    table.sets.push(Set {
        name: "closed".to_owned(),
        key: vec![Field::IpSource],
        elements: keys(&policy.tasks),
    });
    for (service, members) in &policy.members {
        table.sets.push(Set { name: of(service), key: vec![Field::IpSource], elements: keys(members) });
    }
    for (service, allowed) in &policy.rules {
        let known = allowed.iter().filter(|allow| policy.members.contains_key(&allow.service));
        let mut rules: Vec<Rule> = known
            .map(|allow| {
                let mut rule = vec![Statement::In(vec![Field::IpSource], of(&allow.service))];
                if let Some((protocol, port)) = allow.port {
                    rule.push(Statement::Is(Field::Protocol, Value::Byte(number(protocol))));
                    rule.push(Statement::Is(Field::DestinationPort, Value::Port(port)));
                }
                rule.push(Statement::Verdict(Verdict::Accept));
                Rule(rule)
            })
            .collect();
        rules.push(forbid());
        table.chains.push(Chain::regular(to(service), rules));
    }
    table.chains.push(refusal("forbid", Refusal::Prohibited));
    // From the middle of a connection that is not known: the kernel would take it for the beginning of one in the other
    // direction, and what was forbidden would go on as the answers to it.
    table.chains.push(Chain::regular(
        "middle",
        vec![
            Rule(vec![
                Statement::AnyOf(Field::TcpFlags, tcp_flags::SYN),
                Statement::Verdict(Verdict::Return),
            ]),
            forbid(),
        ],
    ));
    let unknown = || Statement::AnyOf(Field::CtState, UNKNOWN);
    let mut rules = vec![
        Rule(vec![
            Statement::AnyOf(Field::CtState, ct::NEW),
            Statement::Is(Field::Protocol, Value::Byte(TCP)),
            Statement::In(vec![Field::IpSource], "closed".to_owned()),
            Statement::Verdict(Verdict::Jump("middle".to_owned())),
        ]),
        Rule(vec![unknown(), Statement::VerdictOf(vec![Field::IpDestination], "guarded".to_owned())]),
    ];
    if policy.isolated {
        let gateway = Statement::IsNot(Field::IpDestination, Value::Address(spec.gateway.into()));
        let subnet = Statement::Within(Field::IpDestination, spec.subnet.into(), spec.prefix_len);
        rules.push(Rule(vec![
            unknown(),
            gateway,
            subnet,
            Statement::Verdict(Verdict::Goto("forbid".to_owned())),
        ]));
    }
    rules
}

fn forbid() -> Rule {
    Rule(vec![Statement::Verdict(Verdict::Goto("forbid".to_owned()))])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::expect;

    use super::*;
    use crate::{
        device::nft::Family,
        table::{Allow, Protocol},
    };

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 50, 0, last)
    }

    #[test]
    fn a_policy_becomes_sets_and_chains() {
        let spec = Spec {
            pin: "/run/x".into(),
            subnet: ip(0),
            prefix_len: 24,
            gateway: ip(1),
            mtu: 1400,
            queues: 1,
        };
        let allow = |service: &str, port| Allow { service: service.into(), port };
        let db = BTreeSet::from([
            allow("web", Some((Protocol::Tcp, 5432))),
            allow("cache", None),
            allow("x", None),
        ]);
        let policy = Policy {
            guarded: BTreeMap::from([(ip(20), "db".into()), (ip(101), "db".into()), (ip(40), "gone".into())]),
            tasks: BTreeSet::from([ip(20), ip(40)]),
            rules: BTreeMap::from([("db".into(), db), ("gone".into(), BTreeSet::new())]),
            members: BTreeMap::from([
                ("web".into(), BTreeSet::from([ip(10), ip(11)])),
                ("cache".into(), BTreeSet::from([ip(30)])),
            ]),
            gone: BTreeSet::from([ip(40)]),
            isolated: true,
        };
        let mut table = Table::new(Family::Ip, "t");
        let rules = add(&mut table, &spec, &policy);
        table.chains.push(Chain::regular("mangle", rules));
        expect![[r#"
            table ip t {
              map guarded {
                type ipv4_addr : verdict
                10.50.0.20 : goto to-db
                10.50.0.40 : goto to-gone
                10.50.0.101 : goto to-db
              }
              set closed {
                type ipv4_addr
                10.50.0.20
                10.50.0.40
              }
              set of-cache {
                type ipv4_addr
                10.50.0.30
              }
              set of-web {
                type ipv4_addr
                10.50.0.10
                10.50.0.11
              }
              chain to-db {
                ip saddr @of-cache accept
                ip saddr @of-web meta l4proto 6 th dport 5432 accept
                goto forbid
              }
              chain to-gone {
                goto forbid
              }
              chain forbid {
                meta l4proto 6 reject with tcp reset
                reject with icmp admin-prohibited
              }
              chain middle {
                tcp flags & 0x2 != 0 return
                goto forbid
              }
              chain mangle {
                ct state & 0x8 != 0 meta l4proto 6 ip saddr @closed jump middle
                ct state & 0x49 != 0 ip daddr vmap @guarded
                ct state & 0x49 != 0 ip daddr != 10.50.0.1 ip daddr 10.50.0.0/24 goto forbid
              }
            }
        "#]]
        .assert_eq(&table.to_string());
        let mut table = Table::new(Family::Ip, "t");
        assert!(add(&mut table, &spec, &Policy::default()).is_empty() && table.sets.is_empty());
    }
}
