//! The checked configuration: what the parser produces and every other layer reads.
//!
//! Plain data. A value of these types that came out of [`crate::parse`] is valid: references
//! resolve, names are unique, ports are in range. Nothing here is mutable state; what changes at run
//! time (weights, health, added servers) lives in the engine, keyed by proxy and server name.

mod link;
mod rules;
mod sample;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::discovery::{
    Consistency, Consul, ConsulToken, Discovery, Family, Hold, InitAddr, Nameserver, Network, Resolvers,
    ServiceHealth,
};
pub use self::link::Link;
pub use self::rules::*;
pub use self::sample::*;
use crate::pattern::{Method, Output};

mod discovery;

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

/// A set of patterns, or of keys with values: of a file, or of an ACL that lists them itself.
#[derive(Clone, Debug, PartialEq)]
pub struct PatternSource {
    /// The number that the Runtime API knows it by.
    pub id: u32,
    /// The file.
    pub file: Option<String>,
    /// What it is known by beyond this configuration: the file's name, or section and ACL.
    pub identity: String,
    /// Where it is used, as `show acl` has it.
    pub description: String,
    /// Whether entries have values.
    pub is_map: bool,
    /// In the file's order.
    pub entries: Arc<Vec<PatternEntry>>,
    /// How it is used, in order of appearance.
    pub uses: Vec<PatternUse>,
}

/// One entry of a file, or one pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternEntry {
    /// The pattern.
    pub key: Box<str>,
    /// What a map gives for it.
    pub value: Option<Box<str>>,
    /// Line of the file.
    pub line: u32,
}

/// How an ACL or a map uses a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternUse {
    /// Index in [`Config::patterns`].
    pub set: usize,
    /// How samples are compared.
    pub method: Method,
    /// `-i`.
    pub ignore_case: bool,
    /// What a map converts values to; `None` for ACLs.
    pub output: Option<Output>,
}

/// Process-wide parameters (manual section 3).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Global {
    /// `maxconn`: concurrent frontend connections of the process; `None` = derived from the
    /// file-descriptor limit.
    pub maxconn: Option<u32>,
    /// `nbthread`: workers; `None` = one per CPU that the process may run on.
    pub nbthread: Option<u32>,
    /// `log` targets.
    pub logs: Vec<LogTarget>,
    /// `log-tag`, default `phalanx` as program name in syslog headers (HAProxy: `haproxy`).
    pub log_tag: Option<String>,
    /// `log-send-hostname`: `Some(None)` = the system's host name.
    pub log_send_hostname: Option<Option<String>>,
    /// `stats socket` lines.
    pub stats_sockets: Vec<StatsSocket>,
    /// `stats timeout`, default 10 s.
    pub stats_timeout: Option<Duration>,
    /// `user` resolved or `uid`.
    pub uid: Option<u32>,
    /// `group` resolved or `gid`.
    pub gid: Option<u32>,
    /// `chroot`.
    pub chroot: Option<PathBuf>,
    /// `daemon`.
    pub daemon: bool,
    /// `pidfile`.
    pub pidfile: Option<PathBuf>,
    /// `localpeer`; `-L` wins over it.
    pub localpeer: Option<String>,
    /// `node`: shown by `show info` and the stats page.
    pub node: Option<String>,
    /// `description`.
    pub description: Option<String>,
    /// `ulimit-n`.
    pub ulimit_n: Option<u64>,
    /// `hard-stop-after`.
    pub hard_stop_after: Option<Duration>,
    /// `spread-checks`, percent 0..=50.
    pub spread_checks: u32,
    /// `tune.bufsize` in bytes, default 16384.
    pub bufsize: Option<usize>,
}

/// Where a `log` line sends to (`log` in section 4.2).
#[derive(Clone, Debug, PartialEq)]
pub struct LogTarget {
    /// The receiver.
    pub to: LogReceiver,
    /// `format`, default `local` for UDP and `rfc3164`'s local form; see manual.
    pub format: LogFraming,
    /// `len`: longest line in bytes, default 1024.
    pub len: usize,
    /// Syslog facility 0..=23.
    pub facility: u8,
    /// Least important level sent, 0 emerg ..= 7 debug; default 7.
    pub level: u8,
    /// Messages more important than this are sent at this level; default 0.
    pub min_level: u8,
}

/// The receiver of a log line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LogReceiver {
    /// UDP syslog, default port 514.
    Udp(SocketAddr),
    /// A datagram unix socket such as `/dev/log`.
    Unix(PathBuf),
    /// `stdout` or `fd@1`.
    Stdout,
    /// `stderr` or `fd@2`.
    Stderr,
}

/// The header put before the message (`format` of a `log` line).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFraming {
    /// `<pri>date tag[pid]: ` (the default).
    Local,
    /// As `Local` with the host name.
    Rfc3164,
    /// RFC 5424.
    Rfc5424,
    /// `<pri>` only, as syslog over a pipe wants it.
    Priority,
    /// `<level>` in brackets only.
    Short,
    /// `date tag[pid]: ` without priority.
    Timed,
    /// As `Timed` with an ISO date.
    Iso,
    /// The message only.
    Raw,
}

/// A Runtime API socket (`stats socket`).
#[derive(Clone, Debug, PartialEq)]
pub struct StatsSocket {
    /// Where it listens.
    pub addr: StatsAddr,
    /// Permissions of the unix socket.
    pub mode: Option<u32>,
    /// Owner of the unix socket.
    pub uid: Option<u32>,
    /// Group of the unix socket.
    pub gid: Option<u32>,
    /// What the commands of this socket may do.
    pub level: Level,
    /// `expose-fd listeners`.
    pub expose_fd: bool,
    /// Where it was declared.
    pub pos: Pos,
}

/// Address of a Runtime API socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StatsAddr {
    /// A stream unix socket.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
}

/// Rights on the Runtime API, in rising order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Reads that tell nothing sensitive.
    User,
    /// All reads (the default).
    #[default]
    Operator,
    /// Everything.
    Admin,
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

/// `stick-table` (section 11.1).
#[derive(Clone, Debug, PartialEq)]
pub struct StickTable {
    /// `type`.
    pub key: KeyType,
    /// `size`: entries.
    pub size: usize,
    /// `expire`.
    pub expire: Option<Duration>,
    /// `nopurge`.
    pub nopurge: bool,
    /// `peers`: name of the `cluster` section that replicates it.
    pub peers: Option<String>,
    /// `store`, in the order written, without duplicates.
    pub store: Vec<DataType>,
    /// `write-to`: name of the table that peers' registers go to as well.
    pub write_to: Option<String>,
    /// `recv-only`.
    pub recv_only: bool,
    /// `srvkey`: what `server_key` holds.
    pub server_key: ServerKey,
    /// `brates-factor`: bytes that `bytes_*_rate` count as one.
    pub brates_factor: u32,
    /// Where it was declared.
    pub pos: Pos,
}

/// What stands for a server in `server_key`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerKey {
    /// Its name.
    #[default]
    Name,
    /// Its address and port.
    Address,
}

/// Key type of a stick table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// `ip`, `ipv4`.
    Ip,
    /// `ipv6`.
    Ipv6,
    /// `integer`.
    Integer,
    /// `string [len n]`; longest key in bytes.
    String(usize),
    /// `binary [len n]`; keys of exactly so many bytes, padded with zeroes.
    Binary(usize),
}

/// Data stored with a key; rates carry their period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    /// Server id of stickiness.
    ServerId,
    /// Server name or address of stickiness.
    ServerKey,
    /// General purpose tag.
    Gpt0,
    /// General purpose tags.
    Gpt(usize),
    /// First general purpose counter.
    Gpc0,
    /// Its increments per period.
    Gpc0Rate(Duration),
    /// Second general purpose counter.
    Gpc1,
    /// Its increments per period.
    Gpc1Rate(Duration),
    /// General purpose counters.
    Gpc(usize),
    /// Increments of general purpose counters per period.
    GpcRate(usize, Duration),
    /// Connections.
    ConnCnt,
    /// Connections right now.
    ConnCur,
    /// Connections per period.
    ConnRate(Duration),
    /// Sessions: connections that the layer 4 rules accepted.
    SessCnt,
    /// Sessions per period.
    SessRate(Duration),
    /// HTTP requests.
    HttpReqCnt,
    /// HTTP requests per period.
    HttpReqRate(Duration),
    /// HTTP errors that the client caused.
    HttpErrCnt,
    /// HTTP errors that the client caused, per period.
    HttpErrRate(Duration),
    /// HTTP failures of the server.
    HttpFailCnt,
    /// HTTP failures of the server per period.
    HttpFailRate(Duration),
    /// Bytes from client to server.
    BytesInCnt,
    /// Bytes from client to server per period.
    BytesInRate(Duration),
    /// Bytes from server to client.
    BytesOutCnt,
    /// Bytes from server to client per period.
    BytesOutRate(Duration),
    /// Glitches of the front connection.
    GlitchCnt,
    /// Glitches of the front connection per period.
    GlitchRate(Duration),
}

/// The `cluster` section.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Its name; serves as the name of a `peers` section.
    pub name: String,
    /// `node` lines.
    pub nodes: Vec<ClusterNode>,
    /// `peer` lines: HAProxys that share its stick tables.
    pub peers: Vec<Peer>,
    /// `data-dir`: the raft log and snapshots.
    pub data_dir: PathBuf,
    /// `join`: this node founds no cluster, it only joins one.
    pub join: bool,
    /// `vip` lines.
    pub vips: Vec<Vip>,
    /// `vip-lease`; `None`: the default.
    pub vip_lease: Option<Duration>,
    /// `ssl`: the nodes talk TLS with each other.
    pub ssl: Option<ClusterSsl>,
    /// Where the section starts.
    pub pos: Pos,
}

/// What `vip-lease` may be. A holder may use of its lease seven eighths, less 12 ms for the kernel's timers;
/// within what is left beside the quarter between two renewals (25 ms of 60) a renewal has to get to
/// another node, back, and to kernel and guardian, or the VIP would be given up for nothing. Above ten seconds a dead
/// holder would be missed for longer than people wait.
pub const VIP_LEASE: std::ops::RangeInclusive<Duration> = Duration::from_millis(60)..=Duration::from_secs(10);

/// `ssl crt FILE [ca-file FILE] [verify required|none]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSsl {
    /// `crt`: certificate, chain and private key of this node, in PEM.
    pub crt: PathBuf,
    /// `ca-file`: who signs the certificates of the nodes. Always there with `verify required`.
    pub ca_file: Option<PathBuf>,
    /// `verify required`, the default: both sides show a certificate, and each checks the other's.
    pub verify: bool,
    /// Where it was declared.
    pub pos: Pos,
}

/// A `peers` section: stick tables are shared in HAProxy's protocol, with HAProxy's meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct Peers {
    /// What `stick-table ... peers` refers to.
    pub name: String,
    /// `peer` and `server` lines, this node among them.
    pub peers: Vec<Peer>,
    /// `bind`: `host:port`.
    pub bind: Option<String>,
    /// `disabled`.
    pub disabled: bool,
    /// Where the section starts.
    pub pos: Pos,
}

/// `peer NAME ADDR:PORT`, `server NAME [ADDR:PORT]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Unique in the section; `-L` says which one this node is.
    pub name: String,
    /// `host:port` as written; resolved when connecting. `None`: this node, on the address of `bind`.
    pub addr: Option<String>,
    /// Where it was declared.
    pub pos: Pos,
}

/// `node NAME ADDR:PORT [witness]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterNode {
    /// Unique in the cluster; compared with `-L`.
    pub name: String,
    /// `host:port` as written; resolved when connecting, so that a name that does not resolve is a
    /// warning and not a failed start.
    pub addr: String,
    /// Votes, but never holds a VIP.
    pub witness: bool,
    /// Where it was declared.
    pub pos: Pos,
}

/// `vip NAME ADDR[/LEN] [interface IF] [announce MODE] [prefer NODE] [on-quorum-loss POLICY]
/// [exec-timeout TIME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vip {
    /// Unique in the cluster.
    pub name: String,
    /// The floating address.
    pub addr: IpAddr,
    /// Prefix length; default 32 or 128.
    pub prefix: u8,
    /// `interface`, needed by `announce arp`.
    pub interface: Option<String>,
    /// `announce`.
    pub announce: Announce,
    /// `prefer`: name of a node.
    pub prefer: Option<String>,
    /// `on-quorum-loss hold`: the last holder keeps it without a majority; else it lets go.
    pub hold: bool,
    /// `exec-timeout`: how long a program of `announce exec` may take.
    pub exec_timeout: Duration,
    /// Where it was declared.
    pub pos: Pos,
}

/// How the holder of a VIP makes it its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announce {
    /// The address is put on the interface, and neighbours are told.
    Arp,
    /// Only the holder listens on it.
    Listen,
    /// Only the holder answers health checks on this port: a load balancer in front sends it the traffic.
    HealthPort(u16),
    /// A program moves it, a route of a cloud for instance.
    Exec(PathBuf),
}
