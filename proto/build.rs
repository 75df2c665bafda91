//! Generates Rust from the `.proto` files, without `protoc`.

const FILES: [&str; 7] = [
    "rswarm/v1/api.proto",
    "rswarm/v1/cluster.proto",
    "rswarm/v1/insight.proto",
    "rswarm/v1/tasks.proto",
    "rswarm/v1/types.proto",
    "rswarm/v1/store.proto",
    "peers/etcd.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    // Ordered maps make encodings a function of the value, and `Bytes` spares copies on the raft path.
    tonic_prost_build::configure().btree_map(".").bytes(".").compile_fds(descriptors)?;
    Ok(())
}
