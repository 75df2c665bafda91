//! What has changed of the [`Directory`] from one state to another, part by part. Takes time for what differs, not for
//! what there is, if one state was made from the other.

use super::directory::{Directory, Missed, Part, Place, Reached, Row, Section, Spot, Standing};
use crate::diff::sides;
use crate::ids::{NetworkId, NodeId, ServiceId};
use crate::model::{Network, Node, NodeStatus, Observed, Service, Task};
use crate::state::{Owner, State};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// What has changed of one part.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Of [`Part::Nodes`].
    Nodes(NodesNews),
    /// Of another.
    Section(Part, SectionNews),
}

/// What has changed of the nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodesNews {
    /// What was known before is forgotten.
    pub whole: bool,
    /// New ones and those that differ.
    pub places: Vec<(u64, Place)>,
    /// Those that are no more.
    pub gone: Vec<u64>,
}

/// What has changed of a part that is about services and tasks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SectionNews {
    /// What was known before is forgotten.
    pub whole: bool,
    /// The network it is about, if it is about one. Said with the whole, and when it differs.
    pub network: Option<Arc<Network>>,
    /// New ones and those that differ.
    pub services: Vec<(ServiceId, Reached)>,
    /// Those that are no more, or no longer of this part.
    pub services_gone: Vec<ServiceId>,
    /// New ones and those that differ.
    pub rows: Vec<(Spot, Row)>,
    /// Those of which nothing else differs.
    pub turned: Vec<(Spot, Standing)>,
    /// Those that are no more.
    pub rows_gone: Vec<Spot>,
}

impl Directory {
    /// Follows what has changed of one part.
    ///
    /// # Errors
    /// If something is said of what is not known. Then the directory is good for nothing until it is told anew.
    pub fn follow(&mut self, piece: Piece) -> Result<(), Missed> {
        match piece {
            Piece::Nodes(news) => {
                if news.whole {
                    self.nodes.clear();
                }
                for number in &news.gone {
                    self.nodes.remove(number);
                }
                self.nodes.extend(news.places);
                Ok(())
            }
            Piece::Section(part, news) => {
                if news.whole {
                    self.sections.insert(part, Section::default());
                }
                self.sections.get_mut(&part).ok_or(Missed)?.follow(news)
            }
        }
    }

    /// Forgets a part.
    pub fn leave(&mut self, part: Part) {
        self.sections.remove(&part);
    }
}

impl Section {
    fn follow(&mut self, news: SectionNews) -> Result<(), Missed> {
        if let Some(network) = news.network {
            self.network = Some(network);
        }
        for service in &news.services_gone {
            self.services.remove(service);
        }
        self.services.extend(news.services);
        for spot in &news.rows_gone {
            self.rows.remove(spot);
        }
        self.rows.extend(news.rows);
        for (spot, standing) in news.turned {
            self.rows.get_mut(&spot).ok_or(Missed)?.standing = standing;
        }
        Ok(())
    }
}

/// Which parts a node needs: the networks that its live tasks join, published ports, and, with either, the nodes.
/// Whether ports are published is the same for all nodes: [`is_published`].
pub fn parts(state: &State, node: NodeId, is_published: bool) -> BTreeSet<Part> {
    let networks = state
        .tasks_on(node)
        .filter(|task| task.is_live())
        .flat_map(|task| task.addresses.iter().map(|(network, _)| *network))
        .collect::<BTreeSet<_>>();
    let networks = networks.into_iter().filter(|network| state.network(*network).is_some());
    let mut parts: BTreeSet<Part> = networks.map(Part::Network).collect();
    if is_published {
        parts.insert(Part::Published);
    }
    if !parts.is_empty() {
        parts.insert(Part::Nodes);
    }
    parts
}

/// Whether any port is published.
pub fn is_published(state: &State) -> bool {
    state.services().any(|service| !service.endpoint.ports.is_empty())
}

/// All there is to say of one part.
pub fn whole(state: &State, part: Part) -> Piece {
    let id = match part {
        Part::Nodes => {
            let places = state.nodes().map(|node| (node.meta.number, place(node))).collect();
            return Piece::Nodes(NodesNews { whole: true, places, gone: Vec::new() });
        }
        Part::Published => None,
        Part::Network(network) => Some(network),
    };
    let services = state.services().filter_map(|service| Some((service.id, reached(service, part)?)));
    let mut news = SectionNews {
        whole: true,
        network: id.and_then(|id| state.network(id)).cloned(),
        services: services.collect(),
        ..SectionNews::default()
    };
    for network in state.networks().filter(|network| id.is_none_or(|id| id == network.id)) {
        for (address, _) in state.owners_in(network.id) {
            let row = row(state, network.id, address).filter(|row| part != Part::Published || row.published);
            news.rows.extend(row.map(|found| ((network.vni, address), found.row)));
        }
    }
    Piece::Section(part, news)
}

/// What has changed; parts of which nothing has are left out.
pub fn between(before: &State, after: &State) -> BTreeMap<Part, Piece> {
    let mut nodes = NodesNews::default();
    let mut sections = Sections::default();
    // Where tasks may be reached in another way than before.
    let mut spots: BTreeSet<(NetworkId, Ipv4Addr)> = BTreeSet::new();
    let spots_of = |task: &Arc<Task>| task.addresses.clone();

    for change in before.node_map().diff(after.node_map()) {
        let (old, new) = sides(change);
        let (old_place, new_place) = (old.map(|node| place(node)), new.map(|node| place(node)));
        if old_place == new_place {
            continue;
        }
        if let Some(id) = old.xor(new).map(|node| node.id) {
            spots.extend(before.tasks_on(id).chain(after.tasks_on(id)).flat_map(spots_of));
        }
        match new.zip(new_place) {
            Some((node, place)) => nodes.places.push((node.meta.number, place)),
            None => nodes.gone.extend(old.map(|node| node.meta.number)),
        }
    }
    for change in before.network_map().diff(after.network_map()) {
        if let (Some(old), Some(new)) = sides(change)
            && old != new
        {
            sections.of(Part::Network(new.id)).network = Some(new.clone());
        }
    }
    for change in before.service_map().diff(after.service_map()) {
        let (old, new) = sides(change);
        let publishes =
            |service: Option<&Arc<Service>>| service.is_some_and(|s| !s.endpoint.ports.is_empty());
        let Some(id) = old.or(new).map(|service| service.id) else { continue };
        if publishes(old) != publishes(new) {
            spots.extend(before.tasks_of(id).chain(after.tasks_of(id)).flat_map(spots_of));
        }
        let networks = || old.into_iter().chain(new).flat_map(|service| service.named_on());
        let parts: BTreeSet<Part> = networks().map(Part::Network).chain([Part::Published]).collect();
        for part in parts {
            let was = old.and_then(|service| reached(service, part));
            let is = new.and_then(|service| reached(service, part));
            match is {
                _ if is == was => {}
                Some(is) => sections.of(part).services.push((id, is)),
                None => sections.of(part).services_gone.push(id),
            }
        }
    }
    for change in before.all_tasks().diff(after.all_tasks()) {
        let (old, new) = sides(change);
        let is_same = |(old, new): (&Arc<Task>, &Arc<Task>)| shows(old) == shows(new);
        if !old.zip(new).is_some_and(is_same) {
            spots.extend(old.into_iter().chain(new).flat_map(spots_of));
        }
    }
    for (id, address) in spots {
        // A network is there as long as anybody has an address on it.
        let Some(network) = after.network(id).or_else(|| before.network(id)) else { continue };
        let (was, is) = (row(before, id, address), row(after, id, address));
        let spot = (network.vni, address);
        sections.note(Part::Network(id), spot, was.map(|found| found.row), is.map(|found| found.row));
        let published = |found: Option<Found>| found.filter(|found| found.published).map(|found| found.row);
        sections.note(Part::Published, spot, published(was), published(is));
    }

    let mut pieces: BTreeMap<Part, Piece> =
        sections.0.into_iter().map(|(part, news)| (part, Piece::Section(part, news))).collect();
    if nodes != NodesNews::default() {
        pieces.insert(Part::Nodes, Piece::Nodes(nodes));
    }
    pieces
}

/// Whether anything that could be given new connections no longer can be, or may be: nodes should not learn that late.
pub fn takes_out(before: &State, after: &State) -> bool {
    let is_heard = |node: &Arc<Node>| node.status == NodeStatus::Ready;
    let lost = before.node_map().diff(after.node_map()).any(|change| {
        let (old, new) = sides(change);
        old.is_some_and(is_heard) && !new.is_some_and(is_heard)
    });
    let gone = || {
        before.service_map().diff(after.service_map()).any(|change| {
            let (old, new) = sides(change);
            old.is_some() && old.map(|service| &service.endpoint) != new.map(|service| &service.endpoint)
        })
    };
    let serves = |task: &Arc<Task>| standing(task) == Standing::Serving;
    lost || gone()
        || before.all_tasks().diff(after.all_tasks()).any(|change| {
            let (old, new) = sides(change);
            old.is_some_and(serves) && !new.is_some_and(serves)
        })
}

#[derive(Default)]
struct Sections(BTreeMap<Part, SectionNews>);

impl Sections {
    fn of(&mut self, part: Part) -> &mut SectionNews {
        self.0.entry(part).or_default()
    }

    fn note(&mut self, part: Part, spot: Spot, was: Option<Row>, is: Option<Row>) {
        match (was, is) {
            _ if was == is => {}
            (_, None) => self.of(part).rows_gone.push(spot),
            (Some(was), Some(is)) if was == (Row { standing: was.standing, ..is }) => {
                self.of(part).turned.push((spot, is.standing));
            }
            (_, Some(is)) => self.of(part).rows.push((spot, is)),
        }
    }
}

#[derive(Clone, Copy)]
struct Found {
    row: Row,
    /// It is what the service's published ports lead to. A task is reached on the first of its own networks.
    published: bool,
}

/// Who is reached there: live tasks alone hold addresses.
fn row(state: &State, network: NetworkId, address: Ipv4Addr) -> Option<Found> {
    let Owner::Task(task) = state.owner_of(network, address)? else { return None };
    let task = state.task(task)?;
    let node = state.node(task.node?)?.meta.number;
    let row = Row { service: task.service, slot: task.slot, node, standing: standing(task) };
    let service = state.service(task.service);
    let publishes = service.is_some_and(|service| !service.endpoint.ports.is_empty());
    Some(Found { row, published: publishes && task.addresses.first() == Some(&(network, address)) })
}

fn standing(task: &Task) -> Standing {
    match task.is_wanted() && task.serves() {
        true => Standing::Serving,
        false if task.observed == Observed::Running => Standing::Draining,
        false => Standing::Routed,
    }
}

/// What of a task shows in its row, and whether it has one.
fn shows(task: &Task) -> impl PartialEq {
    (task.node, standing(task), task.is_live(), task.addresses.clone())
}

fn place(node: &Node) -> Place {
    Place { id: node.id, addr: node.addr.clone(), status: node.status }
}

fn reached(service: &Service, part: Part) -> Option<Reached> {
    let (endpoint, spec) = (&service.endpoint, &service.spec.endpoint);
    let reached = Reached {
        name: service.spec.name.clone(),
        vip: None,
        client_affinity: spec.client_affinity,
        ports: Vec::new(),
        allow: Vec::new(),
    };
    match part {
        Part::Nodes => None,
        Part::Published => {
            (!endpoint.ports.is_empty()).then(|| Reached { ports: endpoint.ports.clone(), ..reached })
        }
        Part::Network(network) => service.named_on().contains(&network).then(|| Reached {
            vip: endpoint.vips.get(&network).copied(),
            allow: spec.allow.clone(),
            ..reached
        }),
    }
}
