//! The protocol between Phalanx nodes: three gRPC services on one port.
//!
//! `proto/*.proto` is its document (who sends what, when, and what the receiver does with late or
//! unknown input); the modules here are generated from it. Protobuf types stop at the `cluster`
//! crate: nothing below it knows them.

/// Leases of floating IPs, and commands that one node has another carry out.
pub mod cluster {
    tonic::include_proto!("phalanx.cluster.v1");
}

/// Replication of stick tables between peers.
pub mod peers {
    tonic::include_proto!("phalanx.peers.v1");
}

/// Transport of the replicated log, and commands forwarded to its leader.
pub mod raft {
    tonic::include_proto!("phalanx.raft.v1");
}
