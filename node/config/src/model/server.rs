//! Servers, and how one of them is chosen: `server`, `balance`, `hash-type` and `cookie` lines.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{Discovery, Family, InitAddr, Network, Pos};

/// A `server` line (section 5.2).
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Unique in its backend.
    pub name: String,
    /// `id`, or the next free one from 1.
    pub id: u32,
    /// Where it was declared; default for a server added at run time.
    pub pos: Pos,
    /// As written, for messages: host name or address.
    pub host: String,
    /// The address, with the port to connect to; a port of 0 means the client's destination port. An
    /// unspecified address is none: the server waits for one from where it is `discovered`.
    pub addr: SocketAddr,
    /// Where its address comes from at run time; `None` = it stays.
    pub discovered: Option<Arc<Discovery>>,
    /// Everything else.
    pub options: ServerOptions,
}

/// Options of `server` and `default-server` (section 5.2).
#[derive(Clone, Debug, PartialEq)]
pub struct ServerOptions {
    /// `weight` 0..=256, default 1.
    pub weight: u32,
    /// `maxconn`, 0 = no limit.
    pub maxconn: u32,
    /// `maxconn <n> cluster`: the limit is that of all nodes together.
    pub maxconn_cluster: bool,
    /// `minconn`, 0 = none.
    pub minconn: u32,
    /// `maxqueue`, 0 = no limit.
    pub maxqueue: u32,
    /// `backup`.
    pub backup: bool,
    /// `disabled`.
    pub disabled: bool,
    /// `cookie`.
    pub cookie: Option<String>,
    /// `non-stick`.
    pub non_stick: bool,
    /// `check`.
    pub check: bool,
    /// `inter`, default 2 s.
    pub inter: Duration,
    /// `fastinter`.
    pub fastinter: Option<Duration>,
    /// `downinter`.
    pub downinter: Option<Duration>,
    /// `rise`, default 2.
    pub rise: u32,
    /// `fall`, default 3.
    pub fall: u32,
    /// `port` for checks.
    pub check_port: Option<u16>,
    /// `addr` for checks.
    pub check_addr: Option<IpAddr>,
    /// `agent-check`.
    pub agent_check: bool,
    /// `agent-port`.
    pub agent_port: Option<u16>,
    /// `agent-inter`, default 2 s.
    pub agent_inter: Duration,
    /// `agent-addr`.
    pub agent_addr: Option<IpAddr>,
    /// `agent-send`.
    pub agent_send: Option<String>,
    /// `pool-max-conn`: idle connections kept; `None` = no limit, `Some(0)` = none.
    pub pool_max_conn: Option<u32>,
    /// `pool-purge-delay`, default 5 s.
    pub pool_purge_delay: Duration,
    /// `max-reuse`; `None` = no limit.
    pub max_reuse: Option<u32>,
    /// `on-marked-down shutdown-sessions`.
    pub shutdown_sessions_on_down: bool,
    /// `slowstart`.
    pub slowstart: Option<Duration>,
    /// `resolvers`: name of the section.
    pub resolvers: Option<String>,
    /// `init-addr`; empty = `last,libc`.
    pub init_addr: Vec<InitAddr>,
    /// `resolve-prefer`.
    pub resolve_prefer: Family,
    /// `resolve-net`.
    pub resolve_net: Vec<Network>,
    /// `resolve-opts allow-dup-ip`.
    pub allow_dup_ip: bool,
    /// `resolve-opts ignore-weight`.
    pub ignore_weight: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            weight: 1,
            maxconn: 0,
            maxconn_cluster: false,
            minconn: 0,
            maxqueue: 0,
            backup: false,
            disabled: false,
            cookie: None,
            non_stick: false,
            check: false,
            inter: Duration::from_secs(2),
            fastinter: None,
            downinter: None,
            rise: 2,
            fall: 3,
            check_port: None,
            check_addr: None,
            agent_check: false,
            agent_port: None,
            agent_inter: Duration::from_secs(2),
            agent_addr: None,
            agent_send: None,
            pool_max_conn: None,
            pool_purge_delay: Duration::from_secs(5),
            max_reuse: None,
            shutdown_sessions_on_down: false,
            slowstart: None,
            resolvers: None,
            init_addr: Vec::new(),
            resolve_prefer: Family::V6,
            resolve_net: Vec::new(),
            allow_dup_ip: false,
            ignore_weight: false,
        }
    }
}

/// `balance` (section 4.2).
#[derive(Clone, Debug, PartialEq)]
pub enum Balance {
    /// Smooth weighted round robin; weights may change at run time.
    RoundRobin,
    /// As `RoundRobin` with fixed weights.
    StaticRr,
    /// Fewest connections per weight.
    LeastConn,
    /// Lowest server id with a free slot.
    First,
    /// Client address.
    Source,
    /// Value of a request header.
    Hdr {
        /// Lower-case name.
        name: String,
        /// `use_domain_only`.
        domain_only: bool,
    },
    /// Left part of the URI.
    Uri {
        /// `len`.
        len: Option<usize>,
        /// `depth`.
        depth: Option<u32>,
        /// `whole`.
        whole: bool,
        /// `path-only`.
        path_only: bool,
    },
    /// A parameter of the query string.
    UrlParam(String),
    /// The least loaded of so many draws.
    Random(u32),
}

/// `hash-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashType {
    /// `map-based` or `consistent`.
    pub method: HashMethod,
    /// The hash function.
    pub function: HashFunction,
    /// Whether the result goes through the avalanche.
    pub avalanche: bool,
}

impl Default for HashType {
    fn default() -> Self {
        HashType { method: HashMethod::MapBased, function: HashFunction::Sdbm, avalanche: false }
    }
}

/// How a hash maps to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashMethod {
    /// `hash % total weight`.
    MapBased,
    /// A ring.
    Consistent,
}

/// `hash-type … <function>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashFunction {
    /// The default.
    Sdbm,
    /// Bernstein's.
    Djb2,
    /// CRC 32.
    Crc32,
    /// The key's text read as a number.
    None,
}

/// `cookie` of a backend (section 4.2).
#[derive(Clone, Debug, PartialEq)]
pub struct Cookie {
    /// Name.
    pub name: String,
    /// `rewrite`, `insert` or `prefix`; passive (only looked at) when none is given.
    pub mode: CookieMode,
    /// `indirect`.
    pub indirect: bool,
    /// `nocache`.
    pub nocache: bool,
    /// `postonly`.
    pub postonly: bool,
    /// `preserve`.
    pub preserve: bool,
    /// `httponly`.
    pub httponly: bool,
    /// `secure`.
    pub secure: bool,
    /// `domain`, several allowed.
    pub domains: Vec<String>,
    /// `attr`, several allowed.
    pub attrs: Vec<String>,
    /// `maxidle`.
    pub maxidle: Option<Duration>,
    /// `maxlife`.
    pub maxlife: Option<Duration>,
}

/// Who writes the persistence cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CookieMode {
    /// Neither: the server's own cookie is looked at.
    Passive,
    /// The server sets it, the proxy replaces its value.
    Rewrite,
    /// The proxy sets it.
    Insert,
    /// The proxy puts its value before the server's.
    Prefix,
}
