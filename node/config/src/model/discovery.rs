//! Where addresses of servers come from at run time: `resolvers` and `consul` sections, and what a
//! `server` or `server-template` line asks of them (manual sections 4.2, 5.2 and 5.3).
//!
//! Plain data, like the rest of the model. Who asks, and what is made of the answers, is decided
//! elsewhere.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::Pos;

/// A `resolvers` section (5.3.2).
#[derive(Clone, Debug, PartialEq)]
pub struct Resolvers {
    /// Its name.
    pub name: String,
    /// `nameserver` lines, and what `parse-resolv-conf` found.
    pub nameservers: Vec<Nameserver>,
    /// `accepted_payload_size`, default 512.
    pub payload_size: u16,
    /// `resolve_retries`, default 3.
    pub retries: u32,
    /// `timeout resolve`: between two resolutions, default 1 s.
    pub resolve: Duration,
    /// `timeout retry`: until a query is repeated, default 1 s.
    pub retry: Duration,
    /// `hold` lines.
    pub hold: Hold,
    /// Where the section starts.
    pub pos: Pos,
}

impl Resolvers {
    /// One without name servers, with HAProxy's defaults.
    pub fn new(name: impl Into<String>, pos: Pos) -> Resolvers {
        Resolvers {
            name: name.into(),
            nameservers: Vec::new(),
            payload_size: 512,
            retries: 3,
            resolve: Duration::from_secs(1),
            retry: Duration::from_secs(1),
            hold: Hold::default(),
            pos,
        }
    }
}

/// One name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nameserver {
    /// Unique in its section.
    pub name: String,
    /// Where it listens.
    pub addr: SocketAddr,
    /// `tcp@`: asked over TCP only.
    pub tcp: bool,
}

/// For how long a last valid answer outweighs what came after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// NXDOMAIN.
    pub nx: Duration,
    /// REFUSED.
    pub refused: Duration,
    /// No answer.
    pub timeout: Duration,
    /// Any other error.
    pub other: Duration,
    /// Only for the `do-resolve` actions.
    pub valid: Duration,
    /// For how long an address that is no longer in the answers is still used.
    pub obsolete: Duration,
}

impl Default for Hold {
    fn default() -> Self {
        let others = Duration::from_secs(30);
        Hold {
            nx: others,
            refused: others,
            timeout: others,
            other: others,
            valid: Duration::from_secs(10),
            obsolete: Duration::ZERO,
        }
    }
}

/// A `consul` section, Phalanx's own: an agent whose service catalogue is followed.
#[derive(Clone, Debug, PartialEq)]
pub struct Consul {
    /// Its name.
    pub name: String,
    /// `address`: `host:port` of agents, tried in turn.
    pub addresses: Vec<String>,
    /// They are `https://`.
    pub https: bool,
    /// `ca-file`: who must have signed an agent's certificate, else the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// `crt`: the certificate and key that this node shows.
    pub crt: Option<PathBuf>,
    /// `token` or `token-file`.
    pub token: Option<ConsulToken>,
    /// `datacenter`, else the agent's own.
    pub datacenter: Option<String>,
    /// `namespace` (Consul Enterprise).
    pub namespace: Option<String>,
    /// `partition` (Consul Enterprise).
    pub partition: Option<String>,
    /// `near`: the node from which the nearest come first.
    pub near: Option<String>,
    /// `consistency`, default `default`.
    pub consistency: Consistency,
    /// `wait`: longest blocking query, default 5 min.
    pub wait: Duration,
    /// `timeout connect`: until the agent accepts a connection and, beyond `wait`, answers; default 5 s.
    pub timeout: Duration,
    /// `hold empty`: for how long an empty answer must last before the last servers are given up,
    /// default 10 s.
    pub hold_empty: Duration,
    /// Where the section starts.
    pub pos: Pos,
}

impl Consul {
    /// One without an address, with the defaults.
    pub fn new(name: impl Into<String>, pos: Pos) -> Consul {
        Consul {
            name: name.into(),
            addresses: Vec::new(),
            https: false,
            ca_file: None,
            crt: None,
            token: None,
            datacenter: None,
            namespace: None,
            partition: None,
            near: None,
            consistency: Consistency::Default,
            wait: Duration::from_secs(300),
            timeout: Duration::from_secs(5),
            hold_empty: Duration::from_secs(10),
            pos,
        }
    }
}

/// The secret sent as `X-Consul-Token`.
#[derive(Clone, PartialEq, Eq)]
pub enum ConsulToken {
    /// As written.
    Literal(String),
    /// First line of a file, read anew for each connection.
    File(PathBuf),
}

impl fmt::Debug for ConsulToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A secret has no place in a log.
            ConsulToken::Literal(_) => f.write_str("Literal(..)"),
            ConsulToken::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// How fresh an answer of Consul must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// What the leader knows.
    Default,
    /// What any server knows: survives the loss of Consul's leader.
    Stale,
    /// What the leader knows after it has made sure that it still is one.
    Consistent,
}

/// Where the addresses of a server come from at run time. Its text is the source's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Discovery {
    /// `resolvers`: a host name, or an SRV label.
    Dns {
        /// Name of the section.
        resolvers: String,
        /// What is asked for, in lower case.
        name: String,
        /// Which family is asked for first.
        prefer: Family,
    },
    /// `consul(NAME)/SERVICE`.
    Consul {
        /// Name of the section.
        consul: String,
        /// The service.
        service: String,
        /// `tag=`: all of them.
        tags: Vec<String>,
        /// `health=`.
        health: ServiceHealth,
    },
}

impl Discovery {
    /// Whether it is an SRV label: HAProxy takes anything that begins with an underscore for one.
    pub fn is_srv(&self) -> bool {
        matches!(self, Discovery::Dns { name, .. } if name.starts_with('_'))
    }

    /// Whether the answers carry ports and weights.
    pub fn has_ports(&self) -> bool {
        matches!(self, Discovery::Consul { .. }) || self.is_srv()
    }
}

impl fmt::Display for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Discovery::Dns { resolvers, name, prefer } => {
                write!(f, "dns({resolvers})/{name}")?;
                if *prefer == Family::V4 { f.write_str("?prefer=ipv4") } else { Ok(()) }
            }
            Discovery::Consul { consul, service, tags, health } => {
                write!(f, "consul({consul})/{service}")?;
                let tags = tags.iter().map(|tag| format!("tag={tag}"));
                let health = match health {
                    ServiceHealth::Passing => None,
                    ServiceHealth::Warning => Some("health=warning".to_owned()),
                    ServiceHealth::Any => Some("health=any".to_owned()),
                };
                for (i, parameter) in tags.chain(health).enumerate() {
                    write!(f, "{}{parameter}", if i == 0 { '?' } else { '&' })?;
                }
                Ok(())
            }
        }
    }
}

/// Which instances of a Consul service are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceHealth {
    /// All checks pass.
    #[default]
    Passing,
    /// No check is critical.
    Warning,
    /// All.
    Any,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    #[default]
    V6,
}

/// A network, for `resolve-net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// An address in it.
    pub addr: IpAddr,
    /// How many bits are the network's.
    pub prefix: u8,
}

/// A method of `init-addr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitAddr {
    /// From a state file: there is none here, what was agreed comes back by itself.
    Last,
    /// The system's resolver.
    Libc,
    /// Start without an address.
    None,
    /// This one.
    Ip(IpAddr),
}
