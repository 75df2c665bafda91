//! The owner of all parts of the overlay: takes calls, tables and events one after the other, and keeps the kernel in
//! step with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Attach, Call, Error, Event, NETWORKS, SANDBOXES, Status, file_names, network_pin, networks::Networks,
    sandbox_pin,
};
use crate::{
    decide::{
        balance,
        ended::Ended,
        former::Former,
        forward::{Reason, Routes},
        lately::{Lately, Tasks},
        policy::Policy,
    },
    device::netns::Netns,
    ingress::{self, PortEvent, Ports},
    network::{self, Attachment, Backends, Sandbox, Spec, Uplink, Vip},
    peer::{self, Mesh},
    resolver::Resolver,
    table::{Invalid, NetworkId, NodeId, Table},
    view::View,
};

/// Everything is compared with the kernel this often, in case somebody else has changed it.
pub(super) const RECONCILE_EVERY: Duration = Duration::from_secs(30);
/// What went wrong is tried again after this long.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a peer may take to hear that a task has ended.
const TELL_PATIENCE: Duration = Duration::from_secs(5);

/// Where each address is.
type Homes<'a> = BTreeMap<(NetworkId, Ipv4Addr), &'a NodeId>;

pub(super) struct Attached {
    networks: Vec<(NetworkId, Ipv4Addr)>,
    /// Ends its name server.
    dns: CancellationToken,
}

/// The owner of everything.
pub(super) struct Keeper {
    pub node: NodeId,
    pub mesh: Mesh,
    pub run_dir: PathBuf,
    /// The host's namespace, if containers may reach the world through it.
    pub host: Option<Netns>,
    pub networks: Arc<Networks>,
    pub ports: Ports,
    pub resolver: Arc<Resolver>,
    pub view: watch::Sender<View>,
    /// The table as the managers have told it; that of the view lacks what has ended since.
    pub told: Arc<Table>,
    pub ended: Ended,
    pub lately: Lately,
    pub former: Former,
    pub tracker: TaskTracker,
    pub events: mpsc::UnboundedSender<Event>,
    pub stop: CancellationToken,
    pub sandboxes: BTreeMap<String, Attached>,
    pub problems: BTreeMap<NetworkId, String>,
    pub dropped_by: BTreeSet<String>,
    /// When to compare with the kernel next.
    pub look_at: Instant,
}

/// What the owner hears from the other parts.
pub(super) struct Hearing {
    pub peers: mpsc::UnboundedReceiver<peer::Event>,
    pub ports: mpsc::UnboundedReceiver<PortEvent>,
    /// Nodes that say a task of theirs has ended.
    pub ended: mpsc::Receiver<(NodeId, NetworkId, Ipv4Addr)>,
}

impl Keeper {
    pub async fn run(mut self, mut calls: mpsc::Receiver<Call>, mut hearing: Hearing) {
        loop {
            let pruned_at = [self.ended.next(), self.lately.next(), self.former.next()];
            let pruned_at = pruned_at.into_iter().flatten().min();
            let pruned_at = pruned_at.map_or(self.look_at, Instant::from_std);
            tokio::select! {
                () = self.stop.cancelled() => break,
                call = calls.recv() => match call {
                    Some(call) => self.serve(call).await,
                    None => break,
                },
                event = hearing.peers.recv() => match event {
                    Some(event) => self.heed(event).await,
                    None => {
                        tracing::error!("the overlay's data thread has ended; the overlay stops");
                        break;
                    }
                },
                Some(event) = hearing.ports.recv() => self.tell(Event::Port(event)),
                Some((node, network, address)) = hearing.ended.recv() => {
                    self.note_ended(&node, &[(network, address)]).await;
                }
                () = sleep_until(self.look_at) => self.mend().await,
                () = sleep_until(pruned_at) => self.look().await,
            }
        }
        self.stop.cancel();
        let mesh = self.mesh.clone();
        // Joins the data thread.
        if tokio::task::spawn_blocking(move || mesh.stop()).await.is_err() {
            tracing::error!("the overlay's data thread could not be stopped");
        }
    }

    async fn serve(&mut self, call: Call) {
        // Whoever has given up waiting needs no answer.
        match call {
            Call::Apply(table, reply) => drop(reply.send(self.apply(table).await)),
            Call::Attach(attach, reply) => drop(reply.send(self.attach(attach).await)),
            Call::Detach(sandbox, reply) => drop(reply.send(self.detach(&sandbox).await)),
            Call::Ended(places, reply) => {
                self.tell_peers(&places);
                let node = self.node.clone();
                self.note_ended(&node, &places).await;
                drop(reply.send(Ok(())));
            }
            Call::Mend(reply) => {
                self.mend().await;
                drop(reply.send(Ok(())));
            }
            Call::Status(reply) => drop(reply.send(self.status().await)),
            Call::Purge(reply) => drop(reply.send(self.purge().await)),
        }
    }

    fn tell(&self, event: Event) {
        // Nobody listens any more only while the node stops.
        let _ = self.events.send(event);
    }

    async fn apply(&mut self, table: Table) -> Result<(), Error> {
        table.check()?;
        let current = self.view.borrow().table.generation;
        if table.generation < current {
            return Err(Invalid::Stale { given: table.generation, current }.into());
        }
        self.told = Arc::new(table);
        self.former.see(&self.told, std::time::Instant::now());
        self.route();
        self.see();
        self.reconcile().await;
        Ok(())
    }

    /// Tells the data thread where packets go.
    fn route(&self) {
        let mut routes = Routes::new(&self.told, &self.node);
        routes.linger(&self.former, &self.node);
        self.mesh.route(routes);
    }

    /// Shows everyone the table that was told, without what is known to have ended.
    fn see(&mut self) {
        self.ended.prune(&self.told, std::time::Instant::now());
        let table = self.ended.taken_from((*self.told).clone());
        let suspects: BTreeSet<NodeId> = {
            let view = self.view.borrow();
            let listed = |node: &&NodeId| table.nodes.iter().any(|listed| listed.id == **node);
            view.suspects.iter().filter(listed).cloned().collect()
        };
        self.view.send_replace(View { suspects: Arc::new(suspects), ..View::new(table) });
    }

    /// What has ended may be used again if the managers insist.
    async fn look(&mut self) {
        if self.former.prune(std::time::Instant::now()) {
            self.route();
        }
        self.see();
        self.render().await;
    }

    /// `node` says that these tasks of its own have ended.
    async fn note_ended(&mut self, node: &NodeId, places: &[(NetworkId, Ipv4Addr)]) {
        let now = std::time::Instant::now();
        let mut news = false;
        for place in places {
            news |= self.ended.note(&self.told, node, *place, now);
        }
        if news {
            tracing::debug!(%node, ?places, "ended, and taken out of its services");
            self.look().await;
        }
    }

    /// Tells all peers that tasks of this node have ended. Who cannot be reached learns it from the managers.
    fn tell_peers(&self, places: &[(NetworkId, Ipv4Addr)]) {
        for node in self.told.nodes.iter().filter(|node| node.id != self.node) {
            for (network, address) in places {
                let (mesh, stop, id) = (self.mesh.clone(), self.stop.clone(), node.id.clone());
                let notice = ingress::ended_notice(*network, *address);
                self.tracker.spawn(async move {
                    let told = async {
                        let mut stream = mesh.open(id.clone()).await.ok()?;
                        stream.sender.send(notice).await.ok()?;
                        stream.sender.finish().await.ok()?;
                        // The peer ends its side when it has heard.
                        stream.receiver.receive().await.ok()
                    };
                    tokio::select! {
                        () = stop.cancelled() => {}
                        heard = tokio::time::timeout(TELL_PATIENCE, told) => {
                            tracing::debug!(peer = %id, heard = matches!(heard, Ok(Some(_))), "told that a task has ended");
                        }
                    }
                });
            }
        }
    }

    /// Makes the kernel agree with the table, and with what it was made to be before.
    async fn mend(&mut self) {
        for id in self.networks.ids() {
            let Some(network) = self.networks.get(id) else { continue };
            if let Err(error) = self.mend_network(id, &network).await {
                self.problem(id, &error);
                // Made anew, below or when it is tried again.
                self.mesh.remove_device(id);
                self.networks.remove(id);
            }
        }
        self.reconcile().await;
    }

    async fn mend_network(&self, id: NetworkId, network: &network::Network) -> Result<(), Error> {
        network.settle().await?;
        let internal = self.told.network(id).is_some_and(|network| network.internal);
        if let Some(uplink) = self.uplink(id).filter(|_| !internal) {
            uplink.ensure(network.links(), network.spec().mtu).await?;
        }
        for (name, attached) in &self.sandboxes {
            let places = attached.networks.iter().zip(0..);
            for ((_, address), number) in places.filter(|((network, _), _)| *network == id) {
                let sandbox = Sandbox::ensure(name, &sandbox_pin(&self.run_dir, name)).await?;
                network.attach(&sandbox, &attachment(*address, number)).await?;
            }
        }
        Ok(())
    }

    async fn heed(&mut self, event: peer::Event) {
        let mut suspects = (*self.view.borrow().suspects).clone();
        let changed = match &event {
            peer::Event::Suspect(node) => suspects.insert(node.clone()),
            peer::Event::Recovered(node) => suspects.remove(node),
            peer::Event::Connected(_) | peer::Event::Refused { .. } => false,
        };
        if changed {
            self.view.send_modify(|view| view.suspects = Arc::new(suspects));
            self.render().await;
        }
        self.tell(Event::Peer(event));
    }

    /// Makes the kernel agree with the table.
    async fn reconcile(&mut self) {
        let table = self.view.borrow().table.clone();
        let mut needed: BTreeSet<NetworkId> = table
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.node == self.node)
            .map(|endpoint| endpoint.network)
            .collect();
        needed
            .extend(self.sandboxes.values().flat_map(|attached| attached.networks.iter().map(|(id, _)| *id)));
        self.problems.retain(|id, _| needed.contains(id));
        for id in &needed {
            if let Err(error) = self.ensure_network(*id).await
                && table.network(*id).is_some()
            {
                self.problem(*id, &error);
            } else {
                self.problems.remove(id);
            }
        }
        for id in self.networks.ids().difference(&needed) {
            if let Err(error) = self.remove_network(*id).await {
                self.problem(*id, &error);
            }
        }
        // Left by an earlier daemon, and not in the cluster any more.
        for id in self.pinned_networks() {
            if !needed.contains(&id) && table.network(id).is_none() && table.generation > 0 {
                tracing::info!(network = %id, "removing a network left by an earlier daemon");
                if let Err(error) = self.remove_network(id).await {
                    self.problem(id, &error);
                }
            }
        }
        self.render().await;
    }

    fn problem(&mut self, network: NetworkId, error: &dyn std::error::Error) {
        let why = chain(error);
        if self.problems.get(&network) != Some(&why) {
            tracing::warn!(%network, why, "network is not as it should be");
            self.tell(Event::Network { network, why: why.clone() });
            self.problems.insert(network, why);
        }
    }

    /// Makes the virtual addresses of all networks lead to the backends that answer.
    async fn render(&mut self) {
        let view = self.view.borrow().clone();
        let endpoints = view.table.endpoints.iter();
        let homes: Homes<'_> =
            endpoints.map(|endpoint| ((endpoint.network, endpoint.address), &endpoint.node)).collect();
        let of = |id: NetworkId| (id, backends(&view, &homes, id));
        let mut rendered = self.networks.ids().into_iter().map(of).collect();
        self.linger(&view, &homes, &mut rendered);
        for (id, backends) in rendered {
            let Some(network) = self.networks.get(id) else { continue };
            let rendered = tokio::task::spawn_blocking(move || network.render(&backends)).await;
            match rendered {
                Ok(Ok(rendered)) => {
                    tracing::debug!(network = %id, rendered.changed, rendered.forgotten, "virtual addresses");
                }
                Ok(Err(error)) => self.problem(id, &error),
                Err(error) => self.problem(id, &error),
            }
        }
        let pause = if self.problems.is_empty() { RECONCILE_EVERY } else { RETRY_AFTER };
        self.look_at = Instant::now() + pause;
    }

    /// Who has just left a service keeps its connections for a moment.
    fn linger(&mut self, view: &View, homes: &Homes<'_>, rendered: &mut BTreeMap<NetworkId, Backends>) {
        let vips = rendered.iter().flat_map(|(id, backends)| backends.vips.iter().map(|vip| (*id, vip)));
        let tasks = vips.map(|(id, vip)| {
            let known = |task: &Ipv4Addr| (*task, homes.get(&(id, *task)).copied().cloned());
            let tasks: Tasks = vip.backends.iter().chain(&vip.draining).map(known).collect();
            ((id, vip.address), tasks)
        });
        let vips = rendered.iter().flat_map(|(id, backends)| backends.vips.iter().map(|vip| (*id, vip)));
        let draining =
            vips.flat_map(|(id, vip)| vip.draining.iter().map(move |task| ((id, vip.address), *task)));
        self.lately.see(tasks.collect(), draining, &view.suspects, std::time::Instant::now());
        for (id, backends) in rendered {
            for vip in &mut backends.vips {
                vip.draining.extend(self.lately.left(*id, vip.address));
                vip.closed = self.lately.closed(*id, vip.address).collect();
            }
        }
    }

    async fn ensure_network(&mut self, id: NetworkId) -> Result<Arc<network::Network>, Error> {
        let (spec, internal) = {
            let view = self.view.borrow();
            let network = view.table.network(id).ok_or(Error::UnknownNetwork(id))?;
            let spec = Spec {
                pin: network_pin(&self.run_dir, id),
                subnet: network.subnet,
                prefix_len: network.prefix,
                gateway: network.gateway,
                mtu: u32::from(network.mtu),
                queues: 1,
            };
            (spec, network.internal)
        };
        if let Some(network) = self.networks.get(id) {
            if *network.spec() == spec {
                return Ok(network);
            }
            // The descriptor is closed by the data thread; until then the TUN is busy, and this is tried again.
            self.mesh.remove_device(id);
            self.networks.remove(id);
        }
        let mtu = spec.mtu;
        let (network, tun) = network::Network::ensure(spec).await?;
        if let Some(uplink) = self.uplink(id).filter(|_| !internal) {
            let report = uplink.ensure(network.links(), mtu).await?;
            self.dropped_by.extend(report.dropped_by);
        }
        for queue in tun {
            self.mesh.add_device(id, queue);
        }
        let network = Arc::new(network);
        self.networks.insert(id, network.clone());
        Ok(network)
    }

    async fn remove_network(&mut self, id: NetworkId) -> Result<(), Error> {
        self.mesh.remove_device(id);
        self.networks.remove(id);
        if let Some(uplink) = self.uplink(id) {
            uplink.remove(None).await?;
        }
        network::Network::remove(&network_pin(&self.run_dir, id)).await?;
        Ok(())
    }

    fn uplink(&self, id: NetworkId) -> Option<Uplink> {
        let host = self.host.clone()?;
        Some(Uplink { host, id: format!("{}/{id}", self.node) })
    }

    async fn attach(&mut self, attach: Attach) -> Result<PathBuf, Error> {
        let Attach { sandbox: name, networks, upstreams } = attach;
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(Error::Name(name));
        }
        let pin = sandbox_pin(&self.run_dir, &name);
        let sandbox = Sandbox::ensure(&name, &pin).await?;
        let mut ids = Vec::new();
        for ((id, address), number) in networks.iter().zip(0..) {
            let network = self.ensure_network(*id).await?;
            network.attach(&sandbox, &attachment(*address, number)).await?;
            ids.push(*id);
        }
        // Rendered before the container can send, so that no packet meets a network without its services.
        self.render().await;
        let dns = self.stop.child_token();
        let sockets = tokio::task::spawn_blocking(move || sandbox.open_dns()).await.map_err(|source| {
            Error::Io { what: "open the name server's sockets".into(), source: source.into() }
        })??;
        self.resolver
            .serve(ids, upstreams, sockets.udp, sockets.tcp, dns.clone())
            .map_err(|source| Error::Io { what: format!("serve names to container {name}"), source })?;
        if let Some(before) = self.sandboxes.insert(name, Attached { networks, dns }) {
            before.dns.cancel();
        }
        Ok(pin)
    }

    async fn detach(&mut self, name: &str) -> Result<(), Error> {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(Error::Name(name.to_owned()));
        }
        if let Some(attached) = self.sandboxes.get(name) {
            attached.dns.cancel();
            for ((id, _), number) in attached.networks.iter().zip(0..) {
                if let Some(network) = self.networks.get(*id) {
                    network.detach(name, &format!("eth{number}")).await?;
                }
            }
        }
        Sandbox::remove(&sandbox_pin(&self.run_dir, name)).await?;
        self.sandboxes.remove(name);
        self.reconcile().await;
        Ok(())
    }

    async fn status(&self) -> Status {
        let counters = self.mesh.counters();
        let generation = self.view.borrow().table.generation;
        Status {
            generation,
            peers: self.mesh.status().await,
            ports: self.ports.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            networks: self
                .networks
                .ids()
                .into_iter()
                .chain(self.problems.keys().copied())
                .map(|id| (id, self.problems.get(&id).cloned()))
                .collect(),
            sandboxes: self.sandboxes.keys().cloned().collect(),
            uplink_dropped_by: self.dropped_by.iter().cloned().collect(),
            packets_sent: counters.sent(),
            packets_received: counters.received(),
            packets_dropped: Reason::ALL
                .into_iter()
                .map(|reason| (reason, counters.dropped(reason)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }

    async fn purge(&mut self) -> Result<(), Error> {
        for attached in std::mem::take(&mut self.sandboxes).into_values() {
            attached.dns.cancel();
        }
        let listed = |directory: &str| {
            let path = self.run_dir.join(directory);
            file_names(&path).map_err(|source| Error::Io { what: format!("list {}", path.display()), source })
        };
        for name in listed(SANDBOXES)? {
            Sandbox::remove(&sandbox_pin(&self.run_dir, &name)).await?;
        }
        let mut networks = self.networks.ids();
        networks.extend(self.pinned_networks());
        for id in networks {
            self.remove_network(id).await?;
        }
        for directory in [NETWORKS, SANDBOXES] {
            let path = self.run_dir.join(directory);
            match std::fs::remove_dir(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::Io { what: format!("remove {}", path.display()), source });
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn pinned_networks(&self) -> BTreeSet<NetworkId> {
        // A directory that cannot be listed has nothing to adopt.
        let names = file_names(&self.run_dir.join(NETWORKS)).unwrap_or_default();
        names.iter().filter_map(|name| NetworkId::new(u32::from_str_radix(name, 16).ok()?)).collect()
    }
}

/// What a container gets in the network that is its `number`-th.
fn attachment(address: Ipv4Addr, number: usize) -> Attachment {
    Attachment { link: format!("eth{number}"), address, default_route: number == 0 }
}

/// The virtual addresses of `network` with the backends to use, and its policy.
fn backends(view: &View, homes: &Homes<'_>, network: NetworkId) -> Backends {
    let services = view.table.services.iter().filter(|service| service.network == network);
    let vips = services.filter_map(|service| {
        let node_of = |address: &Ipv4Addr| homes.get(&(network, *address)).copied().cloned();
        let usable = balance::usable(&service.backends, &view.suspects, node_of);
        let kept = balance::kept(&service.draining, &view.suspects, node_of);
        Some(Vip {
            address: service.vip?,
            backends: usable.into_iter().collect(),
            draining: kept.into_iter().collect(),
            closed: BTreeSet::new(),
            affinity: service.client_affinity,
        })
    });
    let policy = view.table.network(network).map(|network| Policy::new(&view.table, network));
    Backends { vips: vips.collect(), policy: policy.unwrap_or_default() }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
