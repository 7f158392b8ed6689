//! A configuration while it is being read: what the keywords fill in, before references are resolved
//! and defaults applied.

use std::time::Duration;

use crate::model::*;
use crate::pattern::Patterns;

/// Everything read so far.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) global: Global,
    /// `zero-warning`.
    pub(crate) zero_warning: bool,
    pub(crate) defaults: Vec<Defaults>,
    pub(crate) proxies: Vec<ProxyDraft>,
    pub(crate) clusters: Vec<ClusterDraft>,
    /// `peers` sections.
    pub(crate) peers: Vec<Peers>,
    /// What ACLs and maps refer to.
    pub(crate) patterns: Patterns,
    pub(crate) resolvers: Vec<Resolvers>,
    pub(crate) consuls: Vec<Consul>,
}

/// A `defaults` section.
#[derive(Debug)]
pub(crate) struct Defaults {
    /// Empty when anonymous.
    pub(crate) name: String,
    pub(crate) pos: Pos,
    pub(crate) settings: Settings,
}

/// One `log` line of a section.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LogLine {
    /// `log global`.
    Global,
    /// A target of its own.
    Target(LogTarget),
}

/// What proxies take over from a `defaults` section.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    pub(crate) disabled: bool,
    pub(crate) maxconn: Option<u32>,
    pub(crate) fullconn: Option<u32>,
    pub(crate) default_backend: Option<Placed<String>>,
    pub(crate) default_server: ServerOptions,
    pub(crate) balance: Option<Balance>,
    pub(crate) hash_type: HashType,
    pub(crate) cookie: Option<Cookie>,
    pub(crate) timeouts: Timeouts,
    pub(crate) retries: Option<u32>,
    pub(crate) redispatch: Option<i32>,
    pub(crate) logs: Vec<LogLine>,
    pub(crate) log_format: Option<Placed<LogFormat>>,
    pub(crate) dontlognull: bool,
    pub(crate) dontlog_normal: bool,
    pub(crate) logasap: bool,
    pub(crate) log_health_checks: bool,
    pub(crate) per_node_checks: bool,
    pub(crate) connection_mode: Option<ConnectionMode>,
    pub(crate) http_reuse: HttpReuse,
    pub(crate) splice: Splice,
    pub(crate) forwardfor: Option<ForwardFor>,
    pub(crate) allbackups: bool,
    pub(crate) abortonclose: bool,
    pub(crate) persist: bool,
    pub(crate) tcpka: bool,
    pub(crate) clitcpka: bool,
    pub(crate) srvtcpka: bool,
    pub(crate) smart_accept: Option<bool>,
    pub(crate) smart_connect: Option<bool>,
    pub(crate) httpchk: Option<HttpCheck>,
    pub(crate) http_check_send: Option<HttpCheckSend>,
    pub(crate) errorfiles: Vec<std::sync::Arc<ErrorFile>>,
    pub(crate) monitor_uri: Option<String>,
    pub(crate) stats: Option<Stats>,
    /// First words of the lines that were refused, so that nothing is said to be missing twice.
    pub(crate) refused: Vec<String>,
}

/// `http-check send`: what it changes of the request of `option httpchk`.
#[derive(Clone, Debug, Default)]
pub(crate) struct HttpCheckSend {
    pub(crate) method: Option<String>,
    pub(crate) uri: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) host: Option<String>,
}

/// A value with the line that gave it, for the checks at the end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placed<T> {
    pub(crate) value: T,
    pub(crate) pos: Pos,
}

/// A `frontend`, `backend` or `listen` section.
#[derive(Debug)]
pub(crate) struct ProxyDraft {
    pub(crate) name: String,
    pub(crate) kind: ProxyKind,
    pub(crate) pos: Pos,
    pub(crate) id: Option<u32>,
    pub(crate) description: Option<String>,
    pub(crate) settings: Settings,
    pub(crate) binds: Vec<BindDraft>,
    pub(crate) servers: Vec<ServerDraft>,
    pub(crate) stick_table: Option<StickTable>,
    pub(crate) stick_rules: Vec<Placed<StickRule>>,
    pub(crate) acls: Vec<Acl>,
    pub(crate) rules: Rules,
    pub(crate) use_backend: Vec<Placed<UseBackend>>,
    pub(crate) use_server: Vec<Placed<UseServer>>,
    /// Expressions that name proxies, tables or servers.
    pub(crate) referring: Vec<Placed<Expr>>,
    /// Expressions that need HTTP, in rules that a TCP proxy has as well: what, and the text.
    pub(crate) needs_http: Vec<Placed<(&'static str, String)>>,
}

impl ProxyDraft {
    pub(crate) fn new(name: String, kind: ProxyKind, pos: Pos, settings: Settings) -> ProxyDraft {
        ProxyDraft {
            name,
            kind,
            pos,
            id: None,
            description: None,
            settings,
            binds: Vec::new(),
            servers: Vec::new(),
            stick_table: None,
            stick_rules: Vec::new(),
            acls: Vec::new(),
            rules: Rules::default(),
            use_backend: Vec::new(),
            use_server: Vec::new(),
            referring: Vec::new(),
            needs_http: Vec::new(),
        }
    }

    /// `frontend`, `backend`, or `proxy` for both, as messages call it.
    pub(crate) fn kind_name(&self) -> &'static str {
        match self.kind {
            ProxyKind::Frontend => "frontend",
            ProxyKind::Backend => "backend",
            ProxyKind::Listen => "proxy",
        }
    }
}

/// One listening address.
#[derive(Clone, Debug)]
pub(crate) struct BindDraft {
    pub(crate) bind: Bind,
    /// `id` as written.
    pub(crate) id: Option<u32>,
    /// The address as written.
    pub(crate) text: String,
}

/// A `server` line.
#[derive(Clone, Debug)]
pub(crate) struct ServerDraft {
    pub(crate) server: Server,
    /// `id` as written.
    pub(crate) id: Option<u32>,
}

/// A `cluster` section.
#[derive(Debug)]
pub(crate) struct ClusterDraft {
    pub(crate) name: String,
    pub(crate) pos: Pos,
    pub(crate) nodes: Vec<ClusterNode>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) data_dir: Option<std::path::PathBuf>,
    pub(crate) join: bool,
    pub(crate) vips: Vec<Vip>,
    pub(crate) vip_lease: Option<Duration>,
    pub(crate) vip_drain: Option<Duration>,
    pub(crate) ssl: Option<crate::model::ClusterSsl>,
    /// First words of the lines that were refused.
    pub(crate) refused: Vec<String>,
}

/// A timeout as written: 0 means none, as in HAProxy.
pub(crate) fn timeout(value: Duration) -> Option<Duration> {
    (!value.is_zero()).then_some(value)
}
