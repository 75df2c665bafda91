//! What rswarm says on the wire and writes to disk: the generated messages and services, and every
//! translation between them and the model of `rswarm-control`. A boundary is checked here, once.

pub mod convert;
pub mod store;

pub use convert::{Invalid, Problem};

/// The generated messages, clients and servers of `rswarm.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("rswarm.v1");

    /// What managers write to disk.
    pub mod store {
        tonic::include_proto!("rswarm.v1.store");
    }
}

/// The calls of etcd's that benchmarks make.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod etcd {
    tonic::include_proto!("etcdserverpb");
}
