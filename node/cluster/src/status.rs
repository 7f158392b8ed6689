//! The state of the cluster as people see it, from where this node stands.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use phalanx_engine::registry::Stage;
use phalanx_wire::raft::HelloReply;

use crate::peer::{FRESH, Peers};
use crate::roster::Roster;
use crate::{Node, Settings};

/// What a node is in the agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Orders the commands.
    Leader,
    /// Follows a leader.
    Follower,
    /// Wants to become the leader.
    Candidate,
    /// Follows without a vote.
    Learner,
    /// Its part in the agreement has ended; it forwards.
    Stopped,
    /// Does not answer this node.
    Unreachable,
}

impl State {
    /// The state that a node says it has.
    pub(crate) fn parse(text: &str) -> State {
        match text {
            "leader" => State::Leader,
            "follower" => State::Follower,
            "candidate" => State::Candidate,
            "learner" => State::Learner,
            _ => State::Stopped,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Leader => "leader",
            State::Follower => "follower",
            State::Candidate => "candidate",
            State::Learner => "learner",
            State::Stopped => "stopped",
            State::Unreachable => "unreachable",
        })
    }
}

/// The state of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its name.
    pub cluster: String,
    /// This node.
    pub node: String,
    /// Name of the leader, if this node knows one.
    pub leader: Option<String>,
    /// Raft's term.
    pub term: u64,
    /// Whether commands can be taken: there is a leader, and a majority answers.
    pub quorum: bool,
    /// Why this node takes no part now, if so.
    pub stopped: Option<String>,
    /// Index of the last entry of this node's log.
    pub last_log: Option<u64>,
    /// Index of the last committed entry that it knows of.
    pub committed: Option<u64>,
    /// Index of the last entry it applied.
    pub applied: Option<u64>,
    /// Index of the last entry in its snapshot.
    pub snapshot: Option<u64>,
    /// Commands applied.
    pub revision: u64,
    /// How many nodes have a vote, as the log says.
    pub voters: usize,
    /// What tells the cluster from another of its name; 0 = not founded.
    pub cluster_id: u64,
    /// Number of the configuration of members.
    pub config: u64,
    /// What a change of members waits for, as the leader says.
    pub change: Option<String>,
    /// All nodes: what is agreed, or the configuration before that.
    pub nodes: Vec<NodeStatus>,
}

/// The state of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its id in the log.
    pub id: u64,
    /// Its address as configured.
    pub addr: String,
    /// Whether it is this node.
    pub local: bool,
    /// Whether it only votes.
    pub witness: bool,
    /// Whether the cluster counts its vote.
    pub voter: bool,
    /// How far it has come as a member; `None` before the cluster is founded.
    pub stage: Option<Stage>,
    /// What it is.
    pub state: State,
    /// How long ago it last answered; zero for this node.
    pub seen: Option<Duration>,
    /// Why it cannot be reached, or does not vote.
    pub problem: Option<String>,
    /// Index of the last entry it said it had applied.
    pub applied: Option<u64>,
    /// Version of its program.
    pub version: Option<String>,
    /// The run of its process.
    pub incarnation: Option<u64>,
}

impl Status {
    /// The name of the node with this id; one that is no member shows as a number.
    pub(crate) fn name_of(nodes: &[Node], id: u64) -> String {
        let node = nodes.iter().find(|n| crate::node_id(&n.name) == id);
        node.map_or_else(|| format!("{id:016x}"), |n| n.name.clone())
    }
}

impl Status {
    /// The state as seen by a node that cannot use its log.
    pub(crate) fn stopped(settings: &Settings, roster: &Roster, peers: &Peers, reason: &str) -> Status {
        Status {
            cluster: settings.name.clone(),
            node: settings.node.clone(),
            leader: None,
            term: 0,
            quorum: false,
            stopped: Some(reason.to_owned()),
            last_log: None,
            committed: None,
            applied: None,
            snapshot: None,
            revision: 0,
            voters: 0,
            cluster_id: roster.members().cluster_id(),
            config: roster.members().config(),
            change: None,
            nodes: nodes(roster, &settings.node, peers, &BTreeSet::new(), None),
        }
    }
}

/// What is wrong with a node whose disk was replaced: until then the others must do without it.
const LOST: &str = "has lost its log, or is new, and does not vote before a leader has taught it";

/// The state of each configured node; `own` is what this node would say of itself.
pub(crate) fn nodes(
    roster: &Roster,
    me: &str,
    peers: &Peers,
    voters: &BTreeSet<u64>,
    own: Option<HelloReply>,
) -> Vec<NodeStatus> {
    let members = roster.members();
    let of = |node: &Node| {
        let mut status = NodeStatus::unknown(node, voters);
        status.stage = members.get(&node.name).map(|m| m.stage);
        let peer = peers.by_name(&node.name);
        let hello = match peer {
            None if node.name != me => None,
            None => {
                (status.local, status.seen, status.state) = (true, Some(Duration::ZERO), State::Stopped);
                own.clone()
            }
            Some(peer) => {
                let known = peer.known();
                status.problem = known.problem;
                status.seen = known.seen.map(|seen| seen.elapsed());
                known.hello
            }
        };
        if let Some(hello) = hello {
            if status.problem.is_none() && status.seen.is_some_and(|seen| seen < FRESH) {
                status.state = State::parse(&hello.state);
            }
            if status.state != State::Unreachable && status.problem.is_none() && !hello.whole {
                status.problem = Some(LOST.to_owned());
            }
            status.applied = hello.next_apply.checked_sub(1);
            status.version = Some(hello.version);
            status.incarnation = Some(hello.incarnation);
        }
        status
    };
    roster.nodes().iter().map(of).collect()
}

impl NodeStatus {
    /// A node of which nothing is known.
    pub(crate) fn unknown(node: &Node, voters: &BTreeSet<u64>) -> NodeStatus {
        let id = crate::node_id(&node.name);
        NodeStatus {
            name: node.name.clone(),
            id,
            addr: node.addr.clone(),
            local: false,
            witness: node.witness,
            voter: voters.contains(&id),
            stage: None,
            state: State::Unreachable,
            seen: None,
            problem: None,
            applied: None,
            version: None,
            incarnation: None,
        }
    }
}
