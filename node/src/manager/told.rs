//! What a node was told on its session, and from that what it is to be told next.

use super::tables::{Edition, Latest};
use rswarm_control::assignment::Assignment;
use rswarm_control::endpoints::{self, Part};
use rswarm_control::ids::NodeId;
use rswarm_proto::v1 as pb;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::task::JoinError;

/// What a node was told on a session.
#[derive(Default)]
pub struct Told {
    /// Up to which edition.
    pub edition: u64,
    /// The generation of the table it has.
    generation: u64,
    /// What it is told news of.
    parts: BTreeSet<Part>,
    /// The whole table, where it is not told news.
    table: Option<endpoints::Table>,
    /// What it was told to hold.
    pub held: Option<Assignment>,
    /// Who it was told the managers are.
    pub managers: Option<pb::ManagerList>,
}

impl Told {
    /// What a node that follows news has not been told of; everything without the `editions` in between.
    ///
    /// # Errors
    /// If it could not be put into words.
    pub async fn news(
        &mut self,
        latest: &Latest,
        editions: Option<Vec<Arc<Edition>>>,
        node: NodeId,
    ) -> Result<Option<pb::TableNews>, JoinError> {
        let editions = editions.filter(|_| self.generation != 0);
        if editions.is_none() {
            (self.generation, self.parts) = (0, BTreeSet::new());
        }
        let mut needed = endpoints::parts(&latest.state, node, latest.is_published);
        // What is no network is kept up, once begun.
        needed.extend(self.parts.iter().filter(|part| !matches!(part, Part::Network(_))));
        let mut parts = Vec::new();
        for part in &needed {
            if self.parts.contains(part) {
                let editions = editions.iter().flatten();
                parts.extend(editions.filter_map(|edition| edition.parts.get(part).cloned()));
            } else {
                parts.push(latest.whole(*part).await?);
            }
        }
        let left = self.parts.difference(&needed).filter_map(|part| match part {
            Part::Network(network) => Some(network.0),
            Part::Nodes | Part::Published => None,
        });
        let left: Vec<u64> = left.collect();
        self.parts = needed;
        let is_news = self.generation == 0 || !parts.is_empty() || !left.is_empty();
        Ok(is_news.then(|| {
            let generation = latest.state.index();
            let follows = std::mem::replace(&mut self.generation, generation);
            pb::TableNews { follows, generation, parts, left }
        }))
    }

    /// The whole table, if it has changed.
    pub fn table(&mut self, latest: &Latest, node: NodeId) -> Option<pb::Table> {
        let table = endpoints::of(&latest.state, node);
        let is_news = self.table.as_ref() != Some(&table);
        let message = is_news.then(|| pb::Table { generation: latest.state.index(), ..(&table).into() });
        self.table = Some(table);
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Follower;
    use crate::manager::routes::Routes;
    use crate::manager::tables::{Due, Tables};
    use rswarm_control::admission::{self, Answer, Init, Request};
    use rswarm_control::model::{
        Availability, ContainerSpec, Description, EndpointSpec, Health, JoinTokens, Mode, Observed, PortMode,
        PortSpec, Protocol, Resources, Secret, ServiceSpec, Settings, TaskSpec, UpdateConfig,
    };
    use rswarm_control::state::{Change, Proposal, Report, State};
    use rswarm_control::{Crank, Heard, Timestamp};
    use std::collections::BTreeMap;

    /// One node, whose tasks do as they are told.
    struct Bed {
        state: State,
        node: NodeId,
        crank: Crank,
        heard: Heard,
    }

    const NOW: Timestamp = Timestamp(1_000_000);

    impl Bed {
        fn new() -> Self {
            let description = Description {
                capacity: Resources { nano_cpus: 64_000_000_000, memory_bytes: 64 << 30 },
                ..Description::default()
            };
            let secret = |letter: &str| Secret(letter.repeat(16));
            let init = Init {
                name: "test".into(),
                id_seed: 42,
                ca_cert_pem: "cert".into(),
                ca_key_pem: Secret("key".into()),
                tokens: JoinTokens { worker: secret("w"), manager: secret("m") },
                settings: Settings::default(),
                hostname: "n1".into(),
                addr: "192.0.2.1:2377".into(),
                availability: Availability::Active,
                description: description.clone(),
            };
            let state = State::default();
            let (changes, answer) = admission::init(&state, &init, NOW).expect("an empty state");
            let Answer::Node(node) = answer else { panic!("init answers with the founder") };
            let mut bed = Self { state, node, crank: Crank::default(), heard: Heard::new(NOW) };
            bed.commit(changes);
            let hostname = "n1".into();
            let session = admission::Session { node, hostname, addr: "192.0.2.1:2377".into(), description };
            bed.ask(&Request::OpenSession(session));
            bed.heard.beat(node, NOW);
            bed
        }

        fn commit(&mut self, changes: Vec<Change>) {
            let index = self.state.index() + 1;
            self.state.apply(index, &Proposal { changes, at: NOW }).expect("nobody else writes");
        }

        fn ask(&mut self, request: &Request) {
            let (changes, _) = admission::admit(&self.state, request, NOW).expect("it may be asked");
            self.commit(changes);
        }

        /// Has so many tasks run, and the port published.
        fn run(&mut self, name: &str, replicas: u32) {
            let port = PortSpec {
                published: None,
                target: 80,
                protocol: Protocol::Tcp,
                mode: PortMode::Ingress,
                proxy_protocol: false,
            };
            let containers = vec![ContainerSpec::new("web")];
            let spec = ServiceSpec {
                name: name.into(),
                labels: BTreeMap::new(),
                mode: Mode::Replicated { replicas },
                task: Arc::new(TaskSpec { containers, ..TaskSpec::default() }),
                update: UpdateConfig::default(),
                rollback: UpdateConfig::default(),
                endpoint: EndpointSpec { ports: vec![port], ..EndpointSpec::default() },
            };
            self.ask(&Request::CreateService { spec, networks: Vec::new() });
            loop {
                let plan = self.crank.turn(&self.state, &self.heard, NOW);
                if plan.changes.is_empty() {
                    break;
                }
                self.commit(plan.changes);
            }
            let assigned = self.state.tasks().filter(|task| task.observed == Observed::Assigned);
            let report = |id| Report {
                task: id,
                node: self.node,
                observed: Observed::Running,
                message: String::new(),
                error: String::new(),
                exit_code: None,
                pid: Some(1),
                health: Health::Unchecked,
                ready: None,
            };
            let reports = assigned.map(|task| Change::Report(report(task.id))).collect();
            self.commit(reports);
        }
    }

    #[tokio::test]
    async fn a_node_has_the_table_of_the_state_whether_it_is_told_each_edition_or_some_or_whole_tables() {
        let mut bed = Bed::new();
        let tables = Tables::new(Arc::new(bed.state.clone()));
        let routes = Routes::new([]);
        let (mut each, mut some, mut old) = (Told::default(), Told::default(), Told::default());
        let (mut by_each, mut by_some) = (Follower::default(), Follower::default());
        let mut whole = None;
        let mut sizes = Vec::new();
        for round in 0..100 {
            let last = Arc::new(bed.state.clone());
            bed.run(&format!("web{round}"), 2);
            tables.bring_out(&last, &Arc::new(bed.state.clone()), &routes, &mut Due::default()).await;
            let now = endpoints::of(&bed.state, bed.node);

            let (latest, editions) = tables.since(each.edition);
            let news = each
                .news(&latest, editions, bed.node)
                .await
                .expect("it can be said")
                .expect("something has changed");
            each.edition = latest.number;
            sizes.push(news.parts.iter().map(|part| part.len()).sum::<usize>());
            assert_eq!(by_each.follow(&news), Ok(()));
            assert_eq!(by_each.table(bed.node), now);

            whole = old.table(&latest, bed.node).or(whole);
            let whole = whole.clone().map(|table| endpoints::Table::try_from(table).expect("it is valid"));
            assert_eq!(whole.as_ref(), Some(&now));

            // More editions than are kept, now and then.
            if [0, 3, 4, 70, 99].contains(&round) {
                let (latest, editions) = tables.since(some.edition);
                assert_eq!(editions.is_none(), round == 70, "{round}");
                let news = some
                    .news(&latest, editions, bed.node)
                    .await
                    .expect("it can be said")
                    .expect("something has changed");
                some.edition = latest.number;
                assert_eq!(by_some.follow(&news), Ok(()));
                assert_eq!(by_some.table(bed.node), now);
            }
        }
        let (first, last) = (sizes[1], sizes[99]);
        assert!(last < first * 2, "what is told grows with what changed, not with what there is: {sizes:?}");

        // A node that lost track.
        let (latest, _) = tables.since(each.edition);
        let news = each
            .news(&latest, None, bed.node)
            .await
            .expect("it can be said")
            .expect("everything is told anew");
        assert_eq!(news.follows, 0);
        let mut anew = Follower::default();
        assert_eq!(anew.follow(&news), Ok(()));
        assert_eq!(anew.table(bed.node), endpoints::of(&bed.state, bed.node));
        let news = each.news(&latest, Some(Vec::new()), bed.node).await.expect("it can be said");
        assert_eq!(news, None, "nothing is new");
    }
}
