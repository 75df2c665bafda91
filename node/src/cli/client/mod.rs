//! The way to the daemon: gRPC over its unix socket.

mod way;

pub use way::{Ages, Way};

use super::failure::{Failure, refused};
use anyhow::Result;
use hyper_util::rt::TokioIo;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::control_client::ControlClient;
use rswarm_proto::v1::event_log_client::EventLogClient;
use rswarm_proto::v1::insight_client::InsightClient;
use rswarm_proto::v1::local_client::LocalClient;
use rswarm_proto::v1::tasks_client::TasksClient;
use std::io::ErrorKind;
use std::path::Path;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Where a daemon listens unless told otherwise.
pub const SOCKET: &str = "/run/rswarm/rswarm.sock";

/// The largest answer that is taken, in bytes: a list of a large cluster's tasks.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Calls to a daemon.
#[derive(Clone, Debug)]
pub struct Client {
    /// The cluster's objects.
    pub control: ControlClient<Way>,
    /// What has happened.
    pub events: EventLogClient<Channel>,
    /// Why things are as they are.
    pub insight: InsightClient<Channel>,
    /// This machine's own affairs.
    pub local: LocalClient<Channel>,
    /// What goes on in running tasks.
    pub tasks: TasksClient<Channel>,
}

/// Connects to the daemon at `socket`. With `ages`, reads may be answered from an old state, and how old is noted there.
///
/// # Errors
/// If no daemon answers there, with the cure.
pub async fn connect(socket: &Path, ages: Option<Ages>) -> Result<Client> {
    // Tried once beforehand, because what the channel says about failure is of little use.
    UnixStream::connect(socket).await.map_err(|error| unreachable_daemon(socket, &error))?;
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from_static("http://rswarm.local").connect_with_connector_lazy(connector);
    Ok(Client {
        control: ControlClient::new(Way::new(channel.clone(), ages))
            .max_decoding_message_size(ANSWER_BYTES_MAX),
        local: LocalClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
        events: EventLogClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
        insight: InsightClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
        tasks: TasksClient::new(channel),
    })
}

fn unreachable_daemon(socket: &Path, error: &std::io::Error) -> Failure {
    let socket = socket.display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            Failure::failed(format!("no rswarm daemon answers at {socket}")).help(
                "start one with `rswarm init` or `rswarm join`, or `systemctl start rswarm`; \
                 if it listens elsewhere, name its socket with --socket or RSWARM_SOCKET",
            )
        }
        ErrorKind::PermissionDenied => {
            Failure::failed(format!("you may not use the daemon's socket {socket}"))
                .help("run the command as root, or as a member of the socket's group")
        }
        _ => Failure::failed(format!("cannot reach the rswarm daemon at {socket}: {error}")),
    }
}

impl Client {
    /// All nodes, and which of them answers and leads.
    ///
    /// # Errors
    /// If the manager refuses.
    pub async fn nodes(&mut self) -> Result<pb::ListNodesResponse> {
        let answer = self.control.list_nodes(pb::ListNodesRequest {}).await;
        let mut answer = answer.map_err(|status| refused(&status))?.into_inner();
        // The leader answers, whichever node is asked.
        answer.self_id = self.status().await?.node_id;
        Ok(answer)
    }

    /// What a manager knows the node `name` by: `self` is the one this command runs on.
    ///
    /// # Errors
    /// If the daemon refuses to say who it is.
    pub async fn node(&mut self, name: &str) -> Result<String> {
        Ok(if name == "self" { self.status().await?.node_id } else { name.to_owned() })
    }

    /// The services of these names, or all.
    ///
    /// # Errors
    /// If there is no such service.
    pub async fn services(&mut self, services: &[String]) -> Result<pb::ListServicesResponse> {
        let request = pb::ListServicesRequest { services: services.to_vec() };
        Ok(self.control.list_services(request).await.map_err(|status| refused(&status))?.into_inner())
    }

    /// The networks of these names, or all.
    ///
    /// # Errors
    /// If there is no such network.
    pub async fn networks(&mut self, networks: &[String]) -> Result<Vec<pb::Network>> {
        let request = pb::ListNetworksRequest { networks: networks.to_vec() };
        let answer = self.control.list_networks(request).await.map_err(|status| refused(&status))?;
        Ok(answer.into_inner().networks)
    }

    /// Tasks, by service, node, or name.
    ///
    /// # Errors
    /// If something of such a name is not there.
    pub async fn tasks(&mut self, request: pb::ListTasksRequest) -> Result<pb::ListTasksResponse> {
        Ok(self.control.list_tasks(request).await.map_err(|status| refused(&status))?.into_inner())
    }

    /// How the local node fares.
    ///
    /// # Errors
    /// If the daemon refuses.
    pub async fn status(&mut self) -> Result<pb::StatusResponse> {
        Ok(self.local.status(pb::StatusRequest {}).await.map_err(|status| refused(&status))?.into_inner())
    }
}

/// Objects as the daemon sent them, checked.
///
/// # Errors
/// If one cannot be; the daemon is of another version then.
pub fn checked<W, M>(wire: Vec<W>) -> Result<Vec<M>>
where
    M: TryFrom<W, Error = rswarm_proto::Invalid>,
{
    wire.into_iter().map(one).collect()
}

/// One object as the daemon sent it, checked.
///
/// # Errors
/// As [`checked`].
pub fn one<W, M>(wire: W) -> Result<M>
where
    M: TryFrom<W, Error = rswarm_proto::Invalid>,
{
    M::try_from(wire).map_err(|invalid| {
        let failure = Failure::failed(format!("the daemon's answer makes no sense: {invalid}"));
        failure.help("it is of another version; see `rswarm version`").into()
    })
}
