use rswarm_proto::v1 as pb;
use hyper_util::rt::TokioIo;
#[tokio::main]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let path = a[1].clone();
    let ch = tonic::transport::Endpoint::from_static("http://x").connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| { let p = path.clone(); async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(p).await?)) } }));
    let mut local = pb::local_client::LocalClient::new(ch.clone());
    let mut c = pb::control_client::ControlClient::new(ch);
    match a[2].as_str() {
        "init" => println!("{:?}", local.init(pb::InitRequest{advertise_addr: a[3].clone(), ..Default::default()}).await),
        "join" => println!("{:?}", local.join(pb::JoinRequest{token: a[3].clone(), addrs: vec![a[4].clone()], ..Default::default()}).await),
        "leave" => println!("{:?}", local.leave(pb::LeaveRequest{force: true}).await),
        "status" => println!("{:#?}", local.status(pb::StatusRequest{}).await),
        "nodes" => println!("{:#?}", c.list_nodes(pb::ListNodesRequest{}).await),
        "tasks" => for t in c.list_tasks(pb::ListTasksRequest::default()).await.unwrap().into_inner().tasks { println!("{} {} node={:?} desired={:?} obs={:?} {:?} note={}", t.id, t.service_name, t.node, t.desired, t.observed, t.status, t.note) },
        "tokens" => { let t = c.get_join_tokens(pb::GetJoinTokensRequest{}).await.unwrap().into_inner(); println!("{}\n{}", t.worker, t.manager) },
        "create" => {
            let spec = rswarm_control::model::ServiceSpec { name: a[3].clone(), labels: Default::default(), mode: rswarm_control::model::Mode::Replicated{replicas: a[4].parse().unwrap()}, task: std::sync::Arc::new(rswarm_control::model::TaskSpec{containers: vec![rswarm_control::model::ContainerSpec::new("rswarm/demo")], ..Default::default()}), update: Default::default(), endpoint: rswarm_control::model::EndpointSpec{ mode: Default::default(), ports: vec![rswarm_control::model::PortSpec{published: Some(8080), target: 80, protocol: rswarm_control::model::Protocol::Tcp, mode: rswarm_control::model::PortMode::Ingress}] } };
            let r = c.create_service(pb::CreateServiceRequest{spec: Some((&spec).into()), networks: vec![]}).await; println!("{r:?}");
            let mut w = c.watch_service(pb::WatchServiceRequest{service: a[3].clone(), ..Default::default()}).await.unwrap().into_inner();
            while let Ok(Some(m)) = w.message().await { println!("{m:?}"); }
        }
        "logs" => { let mut w = c.logs(pb::LogsRequest{of: a[3].clone(), tail: -1, ..Default::default()}).await.unwrap().into_inner(); while let Ok(Some(m)) = w.message().await { println!("{m:?}"); } }
        _ => {}
    }
}
