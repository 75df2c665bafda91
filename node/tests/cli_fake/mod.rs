//! A daemon with made-up answers. What it says of a service depends on the service's name.

use rswarm_proto::v1 as pb;
use rswarm_proto::v1::control_server::{Control, ControlServer};
use rswarm_proto::v1::local_server::{Local, LocalServer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

const SERVICE: &str = "000000000000c";
const NETWORK: &str = "000000000000n";

pub struct Fake {
    socket: PathBuf,
    _dir: tempfile::TempDir,
    seen: Arc<Seen>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    updated: Mutex<Option<pb::UpdateServiceRequest>>,
    /// How each request for the service `lost` was called.
    lost: Mutex<Vec<String>>,
    /// The daemon ends, with all its connections, and is started again.
    ends: tokio::sync::Notify,
}

impl Fake {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let seen = Arc::new(Seen::default());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let socket = dir.path().join("s");
        let (path, answers) = (socket.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut stopped = stopped;
            let mut stop = false;
            while !stop {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
                    let _ = ready.send(());
                    let server = tonic::transport::Server::builder()
                        .add_service(ControlServer::new(Answers(answers.clone())))
                        .add_service(LocalServer::new(Answers(answers.clone())))
                        .serve_with_incoming(UnixListenerStream::new(listener));
                    tokio::select! {
                        served = server => served.expect("it serves"),
                        () = answers.ends.notified() => {}
                        _ = &mut stopped => stop = true,
                    }
                });
                // Connections end with their runtime.
                drop(runtime);
                std::fs::remove_file(&path).expect("the socket is there");
            }
        });
        is_ready.recv().expect("the daemon starts");
        Self { socket, _dir: dir, seen, stop: Some(stop), thread: Some(thread) }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How each request for the service `lost` was called.
    pub fn lost(&self) -> Vec<String> {
        self.seen.lost.lock().expect("nobody panics").clone()
    }

    pub fn updated(&self) -> Option<pb::UpdateServiceRequest> {
        self.seen.updated.lock().expect("nobody panics").take()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

struct Answers(Arc<Seen>);

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

fn ok<T>(answer: T) -> Answer<T> {
    Ok(Response::new(answer))
}

fn all<T>(messages: Vec<T>) -> Answer<Stream<T>> {
    let messages: Vec<Result<T, Status>> = messages.into_iter().map(Ok).collect();
    ok(tokio_stream::iter(messages))
}

fn unknown<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this test"))
}

fn service() -> pb::Service {
    let port = pb::PublishedPort { published: 8080, target: 80, protocol: 1, mode: 1, proxy_protocol: false };
    let container =
        pb::ContainerSpec { name: "main".into(), image: "rswarm/demo".into(), ..Default::default() };
    let task =
        pb::TaskSpec { containers: vec![container], networks: vec![NETWORK.into()], ..Default::default() };
    pb::Service {
        id: SERVICE.into(),
        meta: Some(pb::Meta { version: 7, ..Default::default() }),
        spec: Some(pb::ServiceSpec {
            name: "web".into(),
            mode: Some(pb::Mode {
                kind: Some(pb::mode::Kind::Replicated(pb::mode::Replicated { replicas: 2 })),
            }),
            task: Some(task),
            ..Default::default()
        }),
        endpoint: Some(pb::Endpoint { ports: vec![port], ..Default::default() }),
        ..Default::default()
    }
}

fn network() -> pb::Network {
    let subnet = Some(pb::Subnet { base: 0x0a00_0100, prefix: 24 });
    pb::Network { id: NETWORK.into(), name: "backend".into(), subnet, ..Default::default() }
}

fn progress(name: &str) -> Vec<pb::ServiceProgress> {
    use pb::service_progress::State;
    let task = |slot: u32, node: &str, observed: &str, words: &str| pb::TaskProgress {
        task_id: String::new(),
        name: format!("{name}.{slot}"),
        node_name: node.into(),
        observed: observed.into(),
        words: words.into(),
    };
    let one = |state: State, running, desired, tasks| pb::ServiceProgress {
        state: state.into(),
        running,
        desired,
        tasks,
        ..Default::default()
    };
    let up = || vec![task(1, "n1", "running", ""), task(2, "n2", "running", "")];
    match name {
        "broken" => {
            let mut end =
                one(State::Failed, 0, 1, vec![task(1, "n1", "failed", "exited with 3: no such table")]);
            end.words = "exited with 3: no such table".into();
            end.failing_task = "broken.1".into();
            vec![end]
        }
        "paused" => vec![one(State::Paused, 1, 2, up())],
        _ => vec![
            one(State::Converging, 1, 2, vec![task(1, "n1", "running", ""), task(2, "n2", "preparing", "")]),
            one(State::Running, 2, 2, up()),
            one(State::Settled, 2, 2, up()),
        ],
    }
}

#[tonic::async_trait]
impl Control for Answers {
    type WatchServiceStream =
        std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<pb::ServiceProgress, Status>> + Send>>;
    type LogsStream = Stream<pb::LogLine>;

    async fn get_cluster(&self, _: Request<pb::GetClusterRequest>) -> Answer<pb::GetClusterResponse> {
        unknown()
    }

    async fn update_cluster(
        &self,
        _: Request<pb::UpdateClusterRequest>,
    ) -> Answer<pb::UpdateClusterResponse> {
        ok(pb::UpdateClusterResponse {})
    }

    async fn get_join_tokens(
        &self,
        _: Request<pb::GetJoinTokensRequest>,
    ) -> Answer<pb::GetJoinTokensResponse> {
        ok(pb::GetJoinTokensResponse { worker: "RSWTKN-1-d-w".into(), manager: "RSWTKN-1-d-m".into() })
    }

    async fn rotate_join_token(
        &self,
        _: Request<pb::RotateJoinTokenRequest>,
    ) -> Answer<pb::GetJoinTokensResponse> {
        unknown()
    }

    async fn list_nodes(&self, _: Request<pb::ListNodesRequest>) -> Answer<pb::ListNodesResponse> {
        ok(pb::ListNodesResponse::default())
    }

    async fn update_node(&self, request: Request<pb::UpdateNodeRequest>) -> Answer<pb::UpdateNodeResponse> {
        // A leader may be another node than the one that is asked, and its `self` is not the user's.
        match request.into_inner().node.as_str() {
            "self" => Err(Status::not_found("no such node: self")),
            _ => ok(pb::UpdateNodeResponse { changed: true, ..Default::default() }),
        }
    }

    async fn remove_node(&self, _: Request<pb::RemoveNodeRequest>) -> Answer<pb::RemoveNodeResponse> {
        unknown()
    }

    async fn create_service(
        &self,
        request: Request<pb::CreateServiceRequest>,
    ) -> Answer<pb::CreateServiceResponse> {
        let name = request.metadata().get("rswarm-request-id").and_then(|name| name.to_str().ok());
        let name = name.unwrap_or_default().to_owned();
        let spec = request.into_inner().spec.ok_or_else(|| Status::invalid_argument("no spec"))?;
        if spec.name == "lost" {
            let first = {
                let mut lost = self.0.lost.lock().expect("nobody panics");
                lost.push(name);
                lost.len() == 1
            };
            if first {
                self.0.ends.notify_one();
                std::future::pending::<()>().await;
            }
        }
        if spec.name == "taken" {
            return Err(Status::already_exists(
                "a service named `taken` exists\nhelp: choose another --name",
            ));
        }
        ok(pb::CreateServiceResponse { id: SERVICE.into(), ..Default::default() })
    }

    async fn update_service(
        &self,
        request: Request<pb::UpdateServiceRequest>,
    ) -> Answer<pb::UpdateServiceResponse> {
        *self.0.updated.lock().expect("nobody panics") = Some(request.into_inner());
        ok(pb::UpdateServiceResponse { id: SERVICE.into(), changed: true, ..Default::default() })
    }

    async fn rollback_service(
        &self,
        request: Request<pb::RollbackServiceRequest>,
    ) -> Answer<pb::UpdateServiceResponse> {
        match request.into_inner().to {
            99 => Err(Status::not_found("service web does not remember revision 99; it has 1, and runs 2")),
            _ => ok(pb::UpdateServiceResponse { id: SERVICE.into(), changed: true, ..Default::default() }),
        }
    }

    async fn pause_update(
        &self,
        request: Request<pb::PauseUpdateRequest>,
    ) -> Answer<pb::UpdateServiceResponse> {
        match request.into_inner().pause {
            true => Err(Status::failed_precondition("service web is not being updated")),
            false => ok(pb::UpdateServiceResponse { id: SERVICE.into(), ..Default::default() }),
        }
    }

    async fn rebalance(&self, _: Request<pb::RebalanceRequest>) -> Answer<pb::RebalanceResponse> {
        ok(pb::RebalanceResponse::default())
    }

    async fn remove_service(
        &self,
        request: Request<pb::RemoveServiceRequest>,
    ) -> Answer<pb::RemoveServiceResponse> {
        ok(pb::RemoveServiceResponse { id: SERVICE.into(), name: request.into_inner().service })
    }

    async fn list_services(
        &self,
        request: Request<pb::ListServicesRequest>,
    ) -> Answer<pb::ListServicesResponse> {
        let asked = request.into_inner().services;
        if let Some(name) = asked.iter().find(|name| *name != "web") {
            let words = format!("there is no service `{name}`\nhelp: `rswarm service ls` shows the services");
            return Err(Status::not_found(words));
        }
        let status = pb::ServiceStatus { running: 2, desired: 2, ..Default::default() };
        ok(pb::ListServicesResponse { services: vec![service()], statuses: vec![status] })
    }

    async fn list_tasks(&self, _: Request<pb::ListTasksRequest>) -> Answer<pb::ListTasksResponse> {
        unknown()
    }

    async fn create_network(
        &self,
        _: Request<pb::CreateNetworkRequest>,
    ) -> Answer<pb::CreateNetworkResponse> {
        unknown()
    }

    async fn update_network(
        &self,
        _: Request<pb::UpdateNetworkRequest>,
    ) -> Answer<pb::UpdateNetworkResponse> {
        unknown()
    }

    async fn remove_network(
        &self,
        _: Request<pb::RemoveNetworkRequest>,
    ) -> Answer<pb::RemoveNetworkResponse> {
        unknown()
    }

    async fn list_networks(&self, _: Request<pb::ListNetworksRequest>) -> Answer<pb::ListNetworksResponse> {
        ok(pb::ListNetworksResponse { networks: vec![network()] })
    }

    async fn watch_service(
        &self,
        request: Request<pb::WatchServiceRequest>,
    ) -> Answer<Self::WatchServiceStream> {
        use futures_util::StreamExt;
        let pb::WatchServiceRequest { service: name, removal, .. } = request.into_inner();
        if name == "stuck" {
            let waits = pb::TaskProgress {
                name: "stuck.1".into(),
                observed: "pending".into(),
                words: "no node has 8GiB free".into(),
                ..Default::default()
            };
            let message =
                pb::ServiceProgress { state: 1, desired: 1, tasks: vec![waits], ..Default::default() };
            let first = futures_util::stream::iter([Ok(message)]);
            return ok(first.chain(futures_util::stream::pending()).boxed());
        }
        let messages = match removal {
            true => vec![pb::ServiceProgress { state: 6, ..Default::default() }],
            false => progress(&name),
        };
        ok(futures_util::stream::iter(messages.into_iter().map(Ok)).boxed())
    }

    async fn logs(&self, _: Request<pb::LogsRequest>) -> Answer<Self::LogsStream> {
        let line = |text: &'static str, stderr| pb::LogLine {
            task_name: "web.1".into(),
            node_name: "n1".into(),
            stderr,
            line: text.into(),
            ..Default::default()
        };
        let note = pb::LogLine { note: "node n2 cannot be reached".into(), ..Default::default() };
        all(vec![line("hello", false), line("oops", true), note])
    }

    async fn leave(&self, _: Request<pb::LeaveClusterRequest>) -> Answer<pb::LeaveClusterResponse> {
        unknown()
    }
}

#[tonic::async_trait]
impl Local for Answers {
    type PullImageStream = Stream<pb::ImageProgress>;
    type PushImageStream = Stream<pb::ImageProgress>;
    type SaveImagesStream = Stream<pb::ImageChunk>;
    type BackupStream = Stream<pb::BackupChunk>;

    async fn backup(&self, _: Request<pb::BackupRequest>) -> Answer<Self::BackupStream> {
        unknown()
    }

    async fn restore(&self, _: Request<Streaming<pb::RestoreChunk>>) -> Answer<pb::RestoreResponse> {
        unknown()
    }

    async fn init(&self, request: Request<pb::InitRequest>) -> Answer<pb::InitResponse> {
        ok(pb::InitResponse {
            node_id: "0000000000001".into(),
            worker_token: "RSWTKN-1-d-w".into(),
            manager_token: "RSWTKN-1-d-m".into(),
            addr: format!("{}:2377", request.into_inner().advertise_addr),
            ..Default::default()
        })
    }

    async fn join(&self, _: Request<pb::JoinRequest>) -> Answer<pb::JoinResponse> {
        unknown()
    }

    async fn rejoin(&self, _: Request<pb::RejoinRequest>) -> Answer<pb::RejoinResponse> {
        ok(pb::RejoinResponse { role: pb::Role::Manager.into() })
    }

    async fn leave(&self, _: Request<pb::LeaveRequest>) -> Answer<pb::LeaveResponse> {
        unknown()
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        ok(pb::StatusResponse::default())
    }

    async fn list_images(&self, _: Request<pb::ListImagesRequest>) -> Answer<pb::ListImagesResponse> {
        unknown()
    }

    async fn pull_image(&self, _: Request<pb::PullImageRequest>) -> Answer<Self::PullImageStream> {
        unknown()
    }

    async fn load_image(
        &self,
        request: Request<Streaming<pb::LoadImageChunk>>,
    ) -> Answer<pb::LoadImageResponse> {
        let (mut chunks, mut bytes) = (request.into_inner(), 0);
        while let Some(chunk) = chunks.message().await? {
            bytes += chunk.data.len();
        }
        ok(pb::LoadImageResponse { references: vec![format!("loaded:{bytes}")] })
    }

    async fn inspect_images(
        &self,
        request: Request<pb::InspectImagesRequest>,
    ) -> Answer<pb::InspectImagesResponse> {
        if let Some(name) = request.into_inner().names.iter().find(|name| *name != "web:1") {
            return Err(Status::failed_precondition(format!("no image `{name}` on this machine")));
        }
        let config = r#"{"architecture":"amd64","os":"linux","created":"2026-11-20T23:04:07Z",
            "config":{"Cmd":["/x"],"Env":["A=b"]},
            "history":[{"created_by":"COPY x /"},{"created_by":"CMD x","empty_layer":true}],
            "rootfs":{"type":"layers","diff_ids":["sha256:aa"]}}"#;
        let image = pb::Image {
            id: format!("sha256:{}", "ab".repeat(32)),
            references: vec!["web:1".into()],
            size_bytes: 2_000_000,
            digest: format!("sha256:{}", "cd".repeat(32)),
            ..Default::default()
        };
        let layer =
            pb::ImageLayer { diff_id: "sha256:aa".into(), blob: "sha256:bb".into(), size_bytes: 1_500_000 };
        let details = pb::ImageDetails {
            image: Some(image),
            repo_digests: vec!["web@sha256:cd".into()],
            config: config.as_bytes().into(),
            layers: vec![layer],
        };
        ok(pb::InspectImagesResponse { images: vec![details] })
    }

    async fn tag_image(&self, _: Request<pb::TagImageRequest>) -> Answer<pb::TagImageResponse> {
        ok(pb::TagImageResponse {})
    }

    async fn prune_images(
        &self,
        request: Request<pb::PruneImagesRequest>,
    ) -> Answer<pb::PruneImagesResponse> {
        let untagged = if request.into_inner().all { vec!["web:1".into()] } else { Vec::new() };
        ok(pb::PruneImagesResponse {
            untagged,
            deleted: vec!["sha256:ab".into()],
            reclaimed_bytes: 3_000_000,
            deferred: false,
        })
    }

    async fn save_images(&self, request: Request<pb::SaveImagesRequest>) -> Answer<Self::SaveImagesStream> {
        let names = request.into_inner().names.join(",");
        let chunk = |text: &str| Ok(pb::ImageChunk { data: text.as_bytes().to_vec().into() });
        let last = match &*names {
            "broken" => Err(Status::failed_precondition("blob sha256:bb: it is damaged")),
            names => chunk(names),
        };
        ok(tokio_stream::iter(vec![chunk("archive of "), last]))
    }

    async fn push_image(&self, request: Request<pb::PushImageRequest>) -> Answer<Self::PushImageStream> {
        let reference = request.into_inner().reference;
        let step = |id: &str, status: &str, digest: &str| pb::ImageProgress {
            id: id.into(),
            status: status.into(),
            digest: digest.into(),
            total: 700,
            reference: reference.clone(),
            ..Default::default()
        };
        all(vec![step("aaaa", "Pushed", ""), step("", "Pushed", "sha256:cd")])
    }

    async fn create_volume(&self, _: Request<pb::CreateVolumeRequest>) -> Answer<pb::Volume> {
        unknown()
    }

    async fn list_volumes(&self, _: Request<pb::ListVolumesRequest>) -> Answer<pb::ListVolumesResponse> {
        unknown()
    }

    async fn remove_volume(&self, _: Request<pb::RemoveVolumeRequest>) -> Answer<pb::RemoveVolumeResponse> {
        unknown()
    }

    async fn snapshot_volume(
        &self,
        _: Request<pb::SnapshotVolumeRequest>,
    ) -> Answer<pb::SnapshotVolumeResponse> {
        unknown()
    }

    async fn restore_volume(
        &self,
        _: Request<pb::SnapshotVolumeRequest>,
    ) -> Answer<pb::SnapshotVolumeResponse> {
        unknown()
    }

    async fn login(&self, request: Request<pb::LoginRequest>) -> Answer<pb::LoginResponse> {
        let pb::LoginRequest { registry, username, password } = request.into_inner();
        match (&*username, &*password) {
            ("alice", "secret") => ok(pb::LoginResponse { registry }),
            _ => Err(Status::failed_precondition("cannot log in: it says: incorrect username or password")),
        }
    }

    async fn logout(&self, request: Request<pb::LogoutRequest>) -> Answer<pb::LogoutResponse> {
        let registry = request.into_inner().registry;
        ok(pb::LogoutResponse { known: registry == "lan:5000", registry })
    }

    async fn remove_image(&self, _: Request<pb::RemoveImageRequest>) -> Answer<pb::RemoveImageResponse> {
        unknown()
    }
}
