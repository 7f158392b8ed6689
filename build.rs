//! Compiles `proto/*.proto` to Rust. `protox` is a protobuf compiler in Rust, so that the
//! machine needs no `protoc`.

use std::error::Error;

const PROTOS: [&str; 3] = ["proto/cluster.proto", "proto/peers.proto", "proto/raft.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS {
        println!("cargo::rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
