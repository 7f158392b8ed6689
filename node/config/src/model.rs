//! The checked configuration: what the parser produces and every other layer reads.
//!
//! Plain data. A value of these types that came out of [`crate::parse`] is valid: references
//! resolve, names are unique, ports are in range. Nothing here is mutable state; what changes at run
//! time (weights, health, added servers) lives in the engine, keyed by proxy and server name.

mod cluster;
mod discovery;
mod global;
mod link;
mod pattern;
mod rules;
mod sample;
mod server;
mod table;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use self::cluster::*;
pub use self::discovery::{
    Consistency, Consul, ConsulToken, Discovery, Family, Hold, InitAddr, Nameserver, Network, Resolvers,
    ServiceHealth,
};
pub use self::global::*;
pub use self::link::Link;
pub use self::pattern::*;
pub use self::rules::*;
pub use self::sample::*;
pub use self::server::*;
pub use self::table::*;

/// One line of one configuration file; `file` is an index into [`Config::files`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pos {
    /// Index into [`Config::files`].
    pub file: u32,
    /// Line number, from 1.
    pub line: u32,
}

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Names of the files it was read from, in order.
    pub files: Vec<String>,
    /// The `global` section (manual section 3).
    pub global: Global,
    /// `frontend`, `backend` and `listen` sections in order of declaration (section 4).
    pub proxies: Vec<Arc<Proxy>>,
    /// The `cluster` section, Phalanx's own.
    pub cluster: Option<Cluster>,
    /// `peers` sections.
    pub peers: Vec<Peers>,
    /// What ACLs and maps look samples up in; [`PatternUse::set`] is the index.
    pub patterns: Vec<Arc<PatternSource>>,
    /// `resolvers` sections (section 5.3).
    pub resolvers: Vec<Arc<Resolvers>>,
    /// `consul` sections, Phalanx's own.
    pub consuls: Vec<Arc<Consul>>,
}

/// Which sides a proxy section has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// `frontend`.
    Frontend,
    /// `backend`.
    Backend,
    /// `listen`: both.
    Listen,
}

impl ProxyKind {
    /// Whether it accepts connections.
    pub fn is_frontend(self) -> bool {
        self != ProxyKind::Backend
    }

    /// Whether it has servers.
    pub fn is_backend(self) -> bool {
        self != ProxyKind::Frontend
    }
}

/// `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Bytes (the default).
    #[default]
    Tcp,
    /// HTTP.
    Http,
}

/// A `frontend`, `backend` or `listen` section with its defaults applied (section 4).
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// Unique over all proxies.
    pub name: String,
    /// `id`, or numbered from 2 in order of declaration.
    pub id: u32,
    /// Which sides it has.
    pub kind: ProxyKind,
    /// Where the section starts.
    pub pos: Pos,
    /// `mode`.
    pub mode: Mode,
    /// `disabled`.
    pub disabled: bool,
    /// `description`.
    pub description: Option<String>,
    /// `bind` lines, one entry per address (a line may name several).
    pub binds: Vec<Bind>,
    /// `maxconn` of the frontend; `None` or 0 = the global one.
    pub maxconn: Option<u32>,
    /// `fullconn`.
    pub fullconn: Option<u32>,
    /// `default_backend`: name of an existing backend or listen.
    pub default_backend: Option<String>,
    /// `server` lines, in order. Ids are unique, from 1.
    pub servers: Vec<Arc<Server>>,
    /// The proxy's `default-server` options as they stand at the end of the section: what
    /// `add server` at run time starts from.
    pub default_server: ServerOptions,
    /// `balance`; `None` = no such line: `random` with two draws, as HAProxy since 3.3.
    pub balance: Option<Balance>,
    /// `hash-type`.
    pub hash_type: HashType,
    /// `cookie`.
    pub cookie: Option<Cookie>,
    /// `timeout …`.
    pub timeouts: Timeouts,
    /// `retries`, default 3.
    pub retries: u32,
    /// `option redispatch [interval]`: `None` = off, `Some(-1)` = on the last retry.
    pub redispatch: Option<i32>,
    /// `log` targets; `log global` is already resolved to the global ones.
    pub logs: Vec<LogTarget>,
    /// `option httplog`/`tcplog`.
    pub log_format: LogFormat,
    /// `option dontlognull`.
    pub dontlognull: bool,
    /// `option dontlog-normal`.
    pub dontlog_normal: bool,
    /// `option logasap`.
    pub logasap: bool,
    /// `option log-health-checks`.
    pub log_health_checks: bool,
    /// `option per-node-checks`: every node of a cluster checks for itself.
    pub per_node_checks: bool,
    /// `option httpclose`/`http-server-close`/`http-keep-alive`.
    pub connection_mode: ConnectionMode,
    /// `http-reuse`.
    pub http_reuse: HttpReuse,
    /// `option splice-auto`/`splice-request`/`splice-response`.
    pub splice: Splice,
    /// `option forwardfor`.
    pub forwardfor: Option<ForwardFor>,
    /// `option allbackups`.
    pub allbackups: bool,
    /// `option abortonclose`.
    pub abortonclose: bool,
    /// `option persist`.
    pub persist: bool,
    /// `option tcpka`/`clitcpka`: keep-alive probes towards the client.
    pub clitcpka: bool,
    /// `option tcpka`/`srvtcpka`: keep-alive probes towards the server.
    pub srvtcpka: bool,
    /// `option tcp-smart-accept`: what a client sends first is acknowledged by the answer. By default in HTTP.
    pub smart_accept: bool,
    /// `option tcp-smart-connect`: a server gets what there is to send with the end of the handshake. By
    /// default so.
    pub smart_connect: bool,
    /// `option httpchk`; `None` = TCP connect checks.
    pub httpchk: Option<HttpCheck>,
    /// `errorfile` lines; of several for a status the last.
    pub errorfiles: Vec<Arc<ErrorFile>>,
    /// `monitor-uri`.
    pub monitor_uri: Option<String>,
    /// `stats …`.
    pub stats: Option<Stats>,
    /// `stick-table`.
    pub stick_table: Option<StickTable>,
    /// `stick …` lines, in order.
    pub stick_rules: Vec<StickRule>,
    /// `acl` lines and the anonymous ACLs of conditions, which name them by index.
    pub acls: Vec<Acl>,
    /// Rule sets that run before the servers' answer.
    pub rules: Rules,
    /// `use_backend` lines, in order.
    pub use_backend: Vec<UseBackend>,
    /// `use-server` lines, in order.
    pub use_server: Vec<UseServer>,
}

/// One listening address (`bind`, section 5.1).
#[derive(Clone, Debug, PartialEq)]
pub struct Bind {
    /// Address and port.
    pub addr: SocketAddr,
    /// `interface`.
    pub interface: Option<String>,
    /// `name`.
    pub name: Option<String>,
    /// `id`, or numbered from 1 within the proxy.
    pub id: u32,
    /// `maxconn` of the listener.
    pub maxconn: Option<u32>,
    /// `backlog`.
    pub backlog: Option<u32>,
    /// `transparent`.
    pub transparent: bool,
    /// `v6only`: IPv6 only; otherwise `::` accepts IPv4 as well only with `v4v6`.
    pub v6only: Option<bool>,
    /// `accept-proxy` is not built; kept out of the model until it is.
    pub pos: Pos,
}

/// `timeout …`; `None` = unlimited or, where the manual says so, another one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeouts {
    /// `client`.
    pub client: Option<Duration>,
    /// `server`.
    pub server: Option<Duration>,
    /// `connect`.
    pub connect: Option<Duration>,
    /// `queue`; default `connect`.
    pub queue: Option<Duration>,
    /// `check`.
    pub check: Option<Duration>,
    /// `http-request`; default `client`.
    pub http_request: Option<Duration>,
    /// `http-keep-alive`; default `http-request`.
    pub http_keep_alive: Option<Duration>,
    /// `tunnel`.
    pub tunnel: Option<Duration>,
    /// `client-fin`.
    pub client_fin: Option<Duration>,
    /// `server-fin`.
    pub server_fin: Option<Duration>,
    /// `tarpit`; default `connect`.
    pub tarpit: Option<Duration>,
}

/// Which line a session logs (section 8.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `Connect from …`.
    #[default]
    Default,
    /// `option tcplog`.
    Tcp,
    /// `option httplog`.
    Http,
}

/// Which requests may go over a connection that another session opened (`http-reuse`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpReuse {
    /// None.
    Never,
    /// All but the first of a client's connection, which the client could not repeat.
    #[default]
    Safe,
    /// The first as well, over connections that have been used again already.
    Aggressive,
    /// All.
    Always,
}

/// What bytes go from socket to socket within the kernel (`option splice-…`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Splice {
    /// `splice-auto`; `None` = no such line, `Some(false)` = `no option splice-auto`.
    pub auto: Option<bool>,
    /// `splice-request`: all from client to server.
    pub request: bool,
    /// `splice-response`: all from server to client.
    pub response: bool,
}

/// What happens to connections after a response (section 4, "HTTP transaction model").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectionMode {
    /// Both sides are kept (KAL).
    #[default]
    KeepAlive,
    /// The server side is closed (SCL).
    ServerClose,
    /// Both sides are closed (CLO).
    Close,
}

/// `option forwardfor`.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardFor {
    /// `header`, default `X-Forwarded-For`.
    pub header: String,
    /// `except` network: address and prefix length.
    pub except: Option<(IpAddr, u8)>,
    /// `if-none`.
    pub if_none: bool,
}

/// `option httpchk`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpCheck {
    /// Default `OPTIONS`.
    pub method: String,
    /// Default `/`.
    pub uri: String,
    /// Default `HTTP/1.0`; may carry header lines after it, as HAProxy allows.
    pub version: String,
    /// Host header, if one was given.
    pub host: Option<String>,
}

/// `stats …` of a proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// `stats uri`, default `/haproxy?stats`.
    pub uri: String,
    /// `stats realm`, default `HAProxy Statistics`.
    pub realm: String,
    /// `stats auth` as `(user, password)`.
    pub auth: Vec<(String, String)>,
    /// `stats refresh`.
    pub refresh: Option<Duration>,
    /// `stats hide-version`.
    pub hide_version: bool,
    /// `stats show-legends`.
    pub show_legends: bool,
    /// `stats show-node`: name shown; empty = the node's own (`node` in `global`, else the host name).
    pub show_node: Option<String>,
    /// `stats scope`: the proxies shown, `.` for the one with the page; empty = all.
    pub scope: Vec<String>,
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            uri: "/haproxy?stats".to_owned(),
            realm: "HAProxy Statistics".to_owned(),
            auth: Vec::new(),
            refresh: None,
            hide_version: false,
            show_legends: false,
            show_node: None,
            scope: Vec::new(),
        }
    }
}
