//! Agreement with the other nodes: replicated commands, stick tables and floating IPs.
//!
//! One gRPC port per node serves them all (`server`), one set of connections per peer calls them
//! (`peer`). `raft` agrees on runtime commands; what they mean is the engine's [`Registry`]. All of it
//! runs on the control runtime and meets the forwarding plane only in engine state, so that nothing
//! here can stop or delay forwarding: whatever fails is a warning, or the refusal of a command.
//!
//! [`Registry`]: phalanx_engine::registry::Registry

#![allow(dead_code)]

use std::fmt;
use std::path::PathBuf;

pub use self::identity::{Caller, PROTOCOL, node_id};
pub use self::peer::{Known, Lane, Line, Peer, Peers};

mod identity;
mod peer;
mod server;

/// What the `cluster` section and the process say.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Name of the cluster.
    pub name: String,
    /// Name of this node.
    pub node: String,
    /// All nodes, this one included.
    pub nodes: Vec<Node>,
    /// Where the log and the snapshots are.
    pub data_dir: PathBuf,
    /// Number of this run of the process: larger than that of every earlier run.
    pub incarnation: u64,
}

/// A `node` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique in the cluster.
    pub name: String,
    /// `host:port`, resolved when connecting.
    pub addr: String,
    /// Votes, but never holds a floating IP.
    pub witness: bool,
}

impl Settings {
    /// The line of this node.
    pub fn this(&self) -> Option<&Node> {
        self.nodes.iter().find(|n| n.name == self.node)
    }
}

/// Why the cluster part of a node could not start. The peers are never the reason.
#[derive(Debug)]
pub enum StartError {
    /// This node is not in the list.
    NotListed {
        /// Its name.
        node: String,
        /// The cluster.
        cluster: String,
        /// Names that are.
        listed: Vec<String>,
    },
    /// A `node` line that can never be used.
    Node {
        /// Its name.
        node: String,
        /// What is wrong.
        reason: String,
    },
    /// The data directory cannot be used.
    Data {
        /// Which.
        dir: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::NotListed { node, cluster, listed } => write!(
                f,
                "cluster '{cluster}': no line for this node '{node}', use -L with one of: {}",
                listed.join(", ")
            ),
            StartError::Node { node, reason } => write!(f, "node '{node}': {reason}"),
            StartError::Data { dir, reason } => write!(f, "data-dir '{}': {reason}", dir.display()),
        }
    }
}

impl std::error::Error for StartError {}
