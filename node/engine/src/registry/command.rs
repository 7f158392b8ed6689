//! The commands that change the registry, and their replies: the entries of the replicated log.
//!
//! They are stored by position and not by name (postcard): variants and fields are only added at
//! the end of a type's list of variants, never removed, moved or given another type.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use phalanx_config::model;

use super::DiscoveryCommand;
use super::epochs::ConfigCommand;
use super::frontends::FrontendCommand;
use super::maintenance::MaintenanceCommand;
use super::members::MemberCommand;
use super::patterns::PatternCommand;

/// A command as it stands in the log: with the identity that makes it apply once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who asks.
    pub id: CommandId,
    /// The asking process has finished with every sequence number below this one: it will not
    /// retry them, and nobody waits for them.
    pub done_below: u64,
    /// What is asked.
    pub command: Command,
}

/// Identity of one command over all its retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CommandId {
    /// The node that took the command.
    pub node: u64,
    /// The run of that node's process.
    pub incarnation: u64,
    /// Numbered from 1 within the run.
    pub seq: u64,
}

/// What a runtime command changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// `add server`. The node that takes the command has checked the words and that its
    /// configuration has no such server.
    AddServer {
        /// Name of the backend.
        backend: String,
        /// Name of the server.
        name: String,
        /// Host name or address as it was given.
        host: String,
        /// The address it resolved to.
        addr: SocketAddr,
        /// The words after the address.
        args: Vec<String>,
        /// From here on no configured server of the backend has an id: the highest configured id
        /// plus one.
        id_hint: u32,
    },
    /// `del server`. The node that takes the command has checked that nothing refers to the server.
    DelServer {
        /// Which one.
        target: Target,
    },
    /// `set server`, `enable server`, `set weight`, …
    SetServer {
        /// Which one.
        target: Target,
        /// What to change.
        change: Change,
    },
    /// A reload changed what the configuration says of servers that commands have changed.
    Rebase {
        /// The servers that it changed.
        servers: Vec<Rebased>,
    },
    /// `add map`, `del acl`, … and what a reload changed of their files.
    Patterns(PatternCommand),
    /// About the configuration itself.
    Config(ConfigCommand),
    /// The nodes of the cluster change.
    Member(MemberCommand),
    /// What discovery found.
    Discovered(DiscoveryCommand),
    /// `enable|disable|shutdown frontend`, `set maxconn frontend`.
    Frontend(FrontendCommand),
    /// `maintenance node`.
    Maintenance(MaintenanceCommand),
}

impl Command {
    /// The first version of the protocol between nodes that knows it. Who does not know a command can't
    /// store the log from there on, so it must not be in the log before all nodes do. A variant that is
    /// added to a command belongs here.
    pub fn since(&self) -> u32 {
        match self {
            Command::SetServer { change: Change::Spoken(_), .. } => 4,
            _ => 3,
        }
    }
}

/// A server as the node that takes a command knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Name of the backend.
    pub backend: String,
    /// Name of the server.
    pub name: String,
    /// Where it comes from.
    pub origin: Origin,
    /// What its configuration says.
    pub base: Base,
}

/// Where a server comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// From the configuration.
    Config,
    /// From `add server`.
    Added,
}

/// The configured values that commands can override.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// `disabled`.
    pub disabled: bool,
    /// `weight`.
    pub weight: u32,
    /// Host name or address as written.
    pub host: String,
    /// Its address and port.
    pub addr: SocketAddr,
    /// `check`.
    pub check: bool,
    /// `maxconn`.
    pub maxconn: u32,
    /// `addr`: where its checks go.
    pub check_ip: Option<IpAddr>,
    /// `port`: where its checks go.
    pub check_port: Option<u16>,
}

impl Base {
    /// What the configuration of `server` says. For an added server: of the server that its
    /// `add server` line describes.
    pub fn of(server: &model::Server) -> Base {
        Base {
            disabled: server.options.disabled,
            weight: server.options.weight,
            host: server.host.clone(),
            addr: server.addr,
            check: server.options.check,
            maxconn: server.options.maxconn,
            check_ip: server.options.check_addr,
            check_port: server.options.check_port,
        }
    }

    /// Whether both describe the same server, options aside. By the words of the configuration:
    /// a host name may resolve differently on each node.
    pub fn same_server(&self, other: &Base) -> bool {
        self.host == other.host && self.addr.port() == other.addr.port()
    }
}

/// One server whose configuration a reload changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebased {
    /// Name of the backend.
    pub backend: String,
    /// Name of the server.
    pub name: String,
    /// What the old configuration said; `None` = it did not have the server.
    pub from: Option<Base>,
    /// What the new configuration says; `None` = it does not have the server.
    pub to: Option<Base>,
}

/// What a command changes of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// `enable server`, `disable server`, `set server … state`.
    Admin(Admin),
    /// `set weight`, `set server … weight`.
    Weight(Weight),
    /// `set server … addr`.
    Addr {
        /// The new address.
        ip: IpAddr,
        /// The new port, if it was given.
        port: Option<u16>,
    },
    /// `enable health`, `disable health`.
    Check(bool),
    /// `set maxconn server`.
    Maxconn(u32),
    /// `set server … health`.
    Health(Force),
    /// `set server … check-addr` and `check-port`: what was given.
    CheckAddr {
        /// The address that checks go to.
        ip: Option<IpAddr>,
        /// The port that they go to.
        port: Option<u16>,
    },
    /// `enable agent`, `set server … agent`, …
    Agent(super::AgentChange),
    /// `set server … fqdn`: the name as it was given.
    Fqdn(String),
    /// One of those above, of a server whose agent may say otherwise.
    Spoken(super::SpokenChange),
}

/// Administrative state of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admin {
    /// Takes traffic.
    Ready,
    /// Takes only persistent traffic, and is still checked.
    Drain,
    /// Takes no traffic and is not checked.
    Maint,
}

/// A weight as it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Weight {
    /// 0..=256.
    Absolute(u32),
    /// Percent of the configured weight; the result is capped at 256.
    Percent(u32),
}

impl Weight {
    /// The weight of a server that is configured with `initial`.
    pub fn of(self, initial: u32) -> u32 {
        match self {
            Weight::Absolute(weight) => weight.min(256),
            Weight::Percent(percent) => (u64::from(initial) * u64::from(percent) / 100).min(256) as u32,
        }
    }
}

/// A health state to force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Force {
    /// `up`.
    Up,
    /// `stopping`.
    Stopping,
    /// `down`.
    Down,
}

/// The reply to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done; HAProxy says nothing.
    Ok,
    /// Done, and this is what HAProxy says.
    Text(String),
    /// Not done, in HAProxy's words.
    Refused(String),
}

impl Reply {
    /// A refusal.
    pub fn refused(text: &str) -> Reply {
        Reply::Refused(text.to_owned())
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CommandId { node, incarnation, seq } = self.id;
        write!(f, "{node:016x}.{incarnation}.{seq} {:?}", self.command)
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Ok => Ok(()),
            Reply::Text(text) | Reply::Refused(text) => f.write_str(text),
        }
    }
}
