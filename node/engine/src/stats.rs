//! Statistics as HAProxy presents them: the rows of `show stat`, the fields of `show info`.
//!
//! [`rows`] reads the runtime state into typed values; [`csv`], [`typed`] and [`json`] print them
//! for the Runtime API, the stats page prints them as HTML. Nothing here is on the request path.

use std::fmt::Write as _;

use phalanx_config::model::{self, Balance, Mode};

use crate::backend::Backend;
use crate::counters::Snapshot;
use crate::frontend::Frontend;
use crate::health::Report;
use crate::server::Server;
use crate::state::State;
use crate::time::Now;

mod columns;
mod format;
pub mod info;
#[cfg(test)]
mod tests;

pub use columns::{COLUMNS, Column, Description, Tags};
pub use format::{csv, description, json, typed};

use Column::*;

/// One value of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Value {
    /// Does not apply.
    #[default]
    Empty,
    /// A 32-bit number.
    U32(u32),
    /// A 64-bit number.
    U64(u64),
    /// A signed number.
    S32(i32),
    /// A text.
    Str(String),
}

impl Value {
    /// Whether it does not apply.
    pub fn is_empty(&self) -> bool {
        *self == Value::Empty
    }

    /// The number, 0 for anything else.
    pub fn number(&self) -> u64 {
        match self {
            Value::U32(n) => u64::from(*n),
            Value::U64(n) => *n,
            Value::S32(n) => u64::try_from(*n).unwrap_or(0),
            Value::Empty | Value::Str(_) => 0,
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Empty => Ok(()),
            Value::U32(n) => write!(f, "{n}"),
            Value::U64(n) => write!(f, "{n}"),
            Value::S32(n) => write!(f, "{n}"),
            Value::Str(text) => f.write_str(text),
        }
    }
}

impl From<u32> for Value {
    fn from(n: u32) -> Value {
        Value::U32(n)
    }
}

impl From<u64> for Value {
    fn from(n: u64) -> Value {
        Value::U64(n)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Str(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Str(text)
    }
}

/// What a row describes; the number is the `type` column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A frontend.
    Frontend = 0,
    /// A backend.
    Backend = 1,
    /// A server.
    Server = 2,
}

impl Kind {
    /// Bit in the type mask of `show stat`.
    pub fn mask(self) -> u32 {
        1 << self as u32
    }
}

/// One row of `show stat`.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it describes.
    pub kind: Kind,
    /// Proxy id.
    pub iid: u32,
    /// Server id, 0 for the others.
    pub sid: u32,
    values: Vec<Value>,
}

impl Row {
    /// A value.
    pub fn get(&self, column: Column) -> &Value {
        &self.values[column as usize]
    }

    /// All values in order.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    fn new(kind: Kind, iid: u32, sid: u32, mode: Mode, proxy: &str, name: &str) -> Row {
        let mut row = Row { kind, iid, sid, values: vec![Value::Empty; COLUMNS.len()] };
        row.set(Pxname, proxy);
        row.set(Svname, name);
        row.set(Pid, 1u32);
        row.set(Iid, iid);
        row.set(Sid, sid);
        row.set(Type, kind as u32);
        row.set(Column::Mode, if mode == Mode::Http { "http" } else { "tcp" });
        row
    }

    fn set(&mut self, column: Column, value: impl Into<Value>) {
        self.values[column as usize] = value.into();
    }
}

/// Which rows are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    /// Proxy id; `None` = all.
    pub proxy: Option<u32>,
    /// Bits of [`Kind::mask`].
    pub kinds: u32,
    /// Server id; `None` = all.
    pub server: Option<u32>,
    /// Only servers that are up.
    pub up: bool,
    /// No servers in maintenance.
    pub no_maint: bool,
    /// Whether addresses, cookies and algorithms are shown: to operators, or with `show-legends`.
    pub details: bool,
}

impl Default for Filter {
    fn default() -> Self {
        Filter { proxy: None, kinds: u32::MAX, server: None, up: false, no_maint: false, details: true }
    }
}

impl Filter {
    fn wants(&self, kind: Kind, sid: u32) -> bool {
        self.kinds & kind.mask() != 0 && self.server.is_none_or(|wanted| wanted == sid)
    }
}

/// The rows that `filter` wants: per proxy the frontend, the servers, the backend.
pub fn rows(state: &State, filter: &Filter, now: Now) -> Vec<Row> {
    let mut rows = Vec::new();
    let plan = state.plan_owned();
    for proxy in plan.proxies.iter().filter(|p| filter.proxy.is_none_or(|id| id == p.config.id)) {
        if let Some(frontend) = proxy.frontend.as_ref().filter(|_| filter.wants(Kind::Frontend, 0)) {
            rows.push(frontend_row(&proxy.config, frontend, now));
        }
        let Some(backend) = &proxy.backend else { continue };
        if filter.kinds & Kind::Server.mask() != 0 {
            let shown = |s: &&std::sync::Arc<Server>| {
                filter.wants(Kind::Server, s.id())
                    && (!filter.up || s.is_up())
                    && (!filter.no_maint || !s.admin().maint())
            };
            let servers = backend.servers();
            rows.extend(
                servers
                    .iter()
                    .filter(shown)
                    .map(|s| server_row(&proxy.config, backend, s, filter.details, now)),
            );
        }
        if filter.wants(Kind::Backend, 0) {
            rows.push(backend_row(&proxy.config, backend, filter.details, now));
        }
    }
    rows
}

fn frontend_row(config: &model::Proxy, frontend: &Frontend, now: Now) -> Row {
    let sum = frontend.counters().sum(now);
    let mut row = Row::new(Kind::Frontend, config.id, 0, config.mode, &config.name, "FRONTEND");
    row.set(Scur, frontend.conns());
    row.set(Smax, frontend.conns_max());
    row.set(Slim, frontend.maxconn());
    row.set(Status, frontend.status_text());
    row.set(Rate, number(sum.sess_rate));
    row.set(RateLim, 0u32);
    row.set(RateMax, number(sum.sess_rate_max));
    row.set(ConnRate, number(sum.conn_rate));
    row.set(ConnRateMax, number(sum.conn_rate_max));
    row.set(ConnTot, sum.conn_tot);
    row.set(Dreq, sum.dreq);
    row.set(Ereq, sum.ereq);
    row.set(Dcon, sum.dcon);
    row.set(Dses, sum.dses);
    // HTTP/1 is the only HTTP so far, so what is HTTP is HTTP/1.
    let (http, other) = if config.mode == Mode::Http { (sum.stot, 0) } else { (0, sum.stot) };
    row.set(SessOther, other);
    row.set(H1sess, http);
    row.set(H2sess, 0u64);
    row.set(H3sess, 0u64);
    row.set(ReqOther, other);
    row.set(H1req, sum.req_tot);
    row.set(H2req, 0u64);
    row.set(H3req, 0u64);
    if config.mode == Mode::Http {
        row.set(ReqRate, number(sum.req_rate));
        row.set(ReqRateMax, number(sum.req_rate_max));
        row.set(ReqTot, sum.req_tot);
        row.set(Intercepted, sum.intercepted);
        row.set(CacheLookups, 0u64);
        row.set(CacheHits, 0u64);
        row.set(CacheHintHits, 0u64);
    }
    compression(&mut row);
    common(&mut row, &sum, config.mode);
    row
}

fn server_row(config: &model::Proxy, backend: &Backend, server: &Server, details: bool, now: Now) -> Row {
    let sum = server.counters().sum(now);
    let options = server.options();
    let mut row = Row::new(Kind::Server, config.id, server.id(), config.mode, &config.name, server.name());
    row.set(Qcur, server.queued());
    row.set(Qmax, server.queued_max());
    row.set(Scur, server.served());
    row.set(Smax, server.served_max());
    if server.maxconn() > 0 {
        row.set(Slim, server.maxconn());
    }
    row.set(Status, server.status());
    row.set(Weight, effective_weight(server));
    row.set(Act, u32::from(!server.is_backup()));
    row.set(Bck, u32::from(server.is_backup()));
    row.set(Lastchg, seconds_since(server.last_change(), now));
    if options.maxqueue > 0 {
        row.set(Qlimit, options.maxqueue);
    }
    if server.throttle() < 100 {
        row.set(Throttle, server.throttle());
    }
    row.set(Lbtot, sum.lbtot);
    row.set(Rate, number(sum.sess_rate));
    row.set(RateMax, number(sum.sess_rate_max));
    let idle = server.idle.load(std::sync::atomic::Ordering::Relaxed);
    row.set(SrvIcur, idle);
    if let Some(limit) = options.pool_max_conn {
        row.set(SrcIlim, limit);
    }
    row.set(IdleConnCur, 0u32);
    row.set(SafeConnCur, idle);
    row.set(UsedConnCur, server.served());
    row.set(NeedConnEst, server.served());
    row.set(PrivIdleCur, 0u32);
    row.set(Uweight, server.weight());
    row.set(Srid, 0u32);
    if config.mode == Mode::Http {
        row.set(ReqTot, sum.req_tot);
    }
    check(&mut row, server, now);
    agent(&mut row, server);
    if details {
        let addr = server.addr();
        row.set(Addr, if addr.ip().is_unspecified() { String::new() } else { addr.to_string() });
        if let Some(cookie) = &options.cookie {
            row.set(Cookie, cookie.as_str());
        }
    }
    back_side(&mut row, &sum);
    common(&mut row, &sum, config.mode);
    debug_assert!(**backend.name() == *config.name);
    row
}

fn check(row: &mut Row, server: &Server, now: Now) {
    let check = server.check();
    if !check.configured {
        return;
    }
    let (failed, down) = server.check_failures();
    row.set(Chkfail, failed);
    row.set(Chkdown, down);
    row.set(Downtime, number(server.downtime(now)));
    if !check.enabled || server.admin().maint() {
        return;
    }
    row.set(CheckRise, check.health.rise());
    row.set(CheckFall, check.health.fall());
    row.set(CheckHealth, check.health.value());
    if let Some(apart) = &check.apart {
        // Of this node alone: the others go on using the server.
        row.set(CheckStatus, apart.report.status.code());
        row.set(CheckDuration, apart.report.duration.as_millis() as u64);
        row.set(LastChk, format!("only from this node; {} can reach it", apart.reached_by));
        row.set(CheckDesc, apart.report.status.text());
        return;
    }
    let columns = [CheckStatus, CheckCode, CheckDuration, LastChk, CheckDesc];
    report(row, check.last.as_ref(), columns);
}

fn agent(row: &mut Row, server: &Server) {
    let agent = server.agent();
    if !server.agent_runs() {
        return;
    }
    row.set(AgentRise, 1u32);
    row.set(AgentFall, 1u32);
    row.set(AgentHealth, u32::from(!agent.view.down));
    let columns = [AgentStatus, AgentCode, AgentDuration, LastAgt, AgentDesc];
    report(row, agent.last.as_ref(), columns);
}

/// What a check said last.
fn report(row: &mut Row, last: Option<&Report>, [status, code, duration, info, text]: [Column; 5]) {
    let Some(last) = last else {
        row.set(status, "INI");
        row.set(text, "Initializing");
        return;
    };
    row.set(status, last.status.code());
    if let Some(number) = last.code {
        row.set(code, u32::from(number));
    }
    row.set(duration, last.duration.as_millis() as u64);
    row.set(info, last.info.as_str());
    row.set(text, last.status.text());
}

fn backend_row(config: &model::Proxy, backend: &Backend, details: bool, now: Now) -> Row {
    let sum = backend.counters().sum(now);
    let mut row = Row::new(Kind::Backend, config.id, 0, config.mode, &config.name, "BACKEND");
    let (active, backup) = backend.usable_servers();
    row.set(Qcur, backend.queued());
    row.set(Qmax, backend.queued_max());
    row.set(Scur, backend.conns());
    row.set(Smax, backend.conns_max());
    row.set(Slim, backend.fullconn());
    row.set(Dreq, sum.dreq);
    row.set(Status, if backend.is_up() { "UP" } else { "DOWN" });
    row.set(Weight, backend.weight());
    row.set(Act, active);
    row.set(Bck, backup);
    row.set(Chkdown, backend.down_transitions());
    row.set(Lastchg, seconds_since(backend.last_change(), now));
    if !backend.servers().is_empty() {
        row.set(Downtime, number(backend.downtime(now)));
    }
    row.set(Lbtot, sum.lbtot);
    row.set(Rate, number(sum.sess_rate));
    row.set(RateMax, number(sum.sess_rate_max));
    row.set(Uweight, backend.weight());
    // For exporters, which count the servers themselves.
    row.set(AggServerStatus, 0u64);
    row.set(AggServerCheckStatus, 0u64);
    row.set(AggCheckStatus, 0u64);
    if config.mode == Mode::Http {
        row.set(ReqTot, sum.req_tot);
        row.set(Intercepted, sum.intercepted);
        row.set(CacheLookups, 0u64);
        row.set(CacheHits, 0u64);
        row.set(CacheHintHits, 0u64);
    }
    if details {
        row.set(Algo, algorithm(config));
        if let Some(cookie) = &config.cookie {
            row.set(Cookie, cookie.name.as_str());
        }
    }
    compression(&mut row);
    back_side(&mut row, &sum);
    common(&mut row, &sum, config.mode);
    row
}

/// What all kinds have.
fn common(row: &mut Row, sum: &Snapshot, mode: Mode) {
    row.set(Stot, sum.stot);
    row.set(Bin, sum.bin);
    row.set(Bout, sum.bout);
    row.set(Dresp, sum.dresp);
    row.set(Wrew, sum.wrew);
    row.set(Eint, sum.eint);
    // `bin` and `bout` are what the client sent and was sent.
    row.set(Reqbin, sum.bin);
    row.set(Resbout, sum.bout);
    if mode == Mode::Http {
        row.set(Hrsp1xx, sum.hrsp_1xx);
        row.set(Hrsp2xx, sum.hrsp_2xx);
        row.set(Hrsp3xx, sum.hrsp_3xx);
        row.set(Hrsp4xx, sum.hrsp_4xx);
        row.set(Hrsp5xx, sum.hrsp_5xx);
        row.set(HrspOther, sum.hrsp_other);
    }
}

/// What servers and backends have.
fn back_side(row: &mut Row, sum: &Snapshot) {
    row.set(Econ, sum.econ);
    row.set(Eresp, sum.eresp);
    row.set(Wretr, sum.wretr);
    row.set(Wredis, sum.wredis);
    row.set(CliAbrt, sum.cli_abrt);
    row.set(SrvAbrt, sum.srv_abrt);
    row.set(Connect, sum.connect);
    row.set(Reuse, sum.reuse);
    let last = sum.last_session_secs.map_or(-1, |s| i32::try_from(s).unwrap_or(i32::MAX));
    row.values[Lastsess as usize] = Value::S32(last);
    for (column, ms) in [
        (Qtime, sum.qtime),
        (Ctime, sum.ctime),
        (Rtime, sum.rtime),
        (Ttime, sum.ttime),
        (QtimeMax, sum.qtime_max),
        (CtimeMax, sum.ctime_max),
        (RtimeMax, sum.rtime_max),
        (TtimeMax, sum.ttime_max),
    ] {
        row.set(column, number(ms));
    }
}

/// There is no compression, so nothing went through it or past it.
fn compression(row: &mut Row) {
    for column in [CompIn, CompOut, CompByp, CompRsp] {
        row.set(column, 0u64);
    }
}

/// Its weight as balancing sees it while it warms up.
fn effective_weight(server: &Server) -> u32 {
    (server.weight() * server.throttle()).div_ceil(100)
}

/// Name of the algorithm as HAProxy reports it: it has none for `random`.
pub fn algorithm(config: &model::Proxy) -> &'static str {
    match &config.balance {
        Some(Balance::RoundRobin) => "roundrobin",
        Some(Balance::StaticRr) => "static-rr",
        Some(Balance::LeastConn) => "leastconn",
        Some(Balance::First) => "first",
        Some(Balance::Source) => "source",
        Some(Balance::Hdr { .. }) => "hdr",
        Some(Balance::Uri { .. }) => "uri",
        Some(Balance::UrlParam(_)) => "url_param",
        Some(Balance::Random(_)) | None => "unknown",
    }
}

fn seconds_since(then: Now, now: Now) -> u32 {
    number(now.mono.saturating_sub(then.mono).as_secs())
}

fn number(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Quotes `text` for CSV if it needs it: HAProxy does only for quotes and commas, and a line end
/// would split the row.
fn quoted(text: &str, out: &mut String) {
    if text.contains(['"', ',', '\n', '\r']) {
        let _ = write!(out, "\"{}\"", text.replace('"', "\"\"").replace(['\n', '\r'], " "));
    } else {
        out.push_str(text);
    }
}
