//! `show info`: the process in numbers.
//!
//! Names and positions are HAProxy's. A field that means nothing here (TLS, compression) is left out rather than made up; tools look fields up
//! by name.

use std::fmt::Write as _;

use crate::state::State;
use crate::time::Now;

use super::format::{description, json_field, line_value, type_name};
use super::{Value, number};

/// The version that the Runtime API and the stats page report. Tools decide by its first part what
/// they may ask for, so it starts with the HAProxy version whose interface this is.
pub const VERSION: &str = concat!("3.4.0-phalanx-", env!("CARGO_PKG_VERSION"));

/// Date of that version.
pub const RELEASE_DATE: &str = "2026/11/21";

/// What the program knows about itself and the engine does not.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Limit of file descriptors.
    pub ulimit_n: u64,
    /// Bytes of memory held.
    pub memory: Option<u64>,
    /// Percent of the workers' time that was idle lately.
    pub idle_pct: Option<u32>,
    /// Open listening sockets.
    pub listeners: u32,
    /// Peers that replication is configured with.
    pub active_peers: u32,
    /// Peers that it is connected to.
    pub connected_peers: u32,
    /// Log lines that could not be sent.
    pub dropped_logs: u64,
    /// Warnings since the start.
    pub warnings: u32,
    /// How it was built.
    pub build: String,
}

/// One line of `show info`.
#[derive(Clone, Debug)]
pub struct Field {
    /// Place in HAProxy's order, gaps included.
    pub pos: usize,
    /// Name.
    pub name: &'static str,
    /// Origin, nature and scope.
    pub tags: &'static str,
    /// Value.
    pub value: Value,
    /// What it means.
    pub text: &'static str,
}

/// The fields in order.
pub fn fields(state: &State, process: &Process, now: Now) -> Vec<Field> {
    let mut fields = Vec::with_capacity(64);
    let mut add = |pos, name, tags, value: Value, text| {
        if !value.is_empty() {
            fields.push(Field { pos, name, tags, value, text });
        }
    };
    let p = state.process();
    let sum = p.counters().sum(now);
    let up = now.mono.saturating_sub(p.started.mono).as_secs();
    let plan = state.plan_owned();
    let frontends = plan.proxies.iter().filter_map(|p| p.frontend.as_ref());
    let bytes_out: u64 = frontends.map(|f| f.counters().sum(now).bout).sum();
    let global = &plan.config.global;
    let maxconn = p.maxconn();
    let megabytes = |n: u64| number(n / (1 << 20));
    let str = |s: &str| Value::from(s);
    let u32 = Value::U32;
    let u64 = Value::U64;

    add(0, "Name", "POS", str("HAProxy"), "product that the interface is that of");
    add(1, "Version", "POS", str(VERSION), "version");
    add(2, "Release_date", "POS", str(RELEASE_DATE), "date of the version");
    add(3, "Nbthread", "CGS", u32(number(state.workers() as u64)), "worker threads");
    add(4, "Nbproc", "CGS", u32(1), "processes, always 1");
    add(5, "Process_num", "KGP", u32(1), "number of this process, always 1");
    add(6, "Pid", "SGP", u32(process.pid), "process id");
    add(7, "Uptime", "MDP", uptime(up).into(), "time since the start");
    add(8, "Uptime_sec", "MDP", u32(number(up)), "seconds since the start");
    add(9, "Memmax_MB", "CLP", u32(0), "limit of memory in megabytes, 0 for none");
    if let Some(bytes) = process.memory {
        add(10, "PoolAlloc_MB", "MGP", u32(megabytes(bytes)), "megabytes of memory held");
        add(11, "PoolUsed_MB", "MGP", u32(megabytes(bytes)), "megabytes of memory used");
    }
    add(12, "PoolFailed", "MCP", u32(0), "failed allocations");
    add(13, "Ulimit-n", "CLP", u32(number(process.ulimit_n)), "limit of file descriptors");
    add(14, "Maxsock", "CLP", u32(number(process.ulimit_n)), "limit of sockets");
    add(15, "Maxconn", "CLP", u32(maxconn), "limit of connections in force");
    add(16, "Hard_maxconn", "CLP", u32(state.hard_maxconn()), "limit of connections configured");
    add(17, "CurrConns", "MGP", u32(p.conns()), "connections now");
    add(18, "CumConns", "MCP", u32(number(sum.conn_tot)), "connections in all");
    add(19, "CumReq", "MCP", u32(number(sum.req_tot)), "requests in all");
    add(23, "Maxpipes", "CLP", u32(p.pipes.max()), "limit of pipes for splicing");
    add(24, "PipesUsed", "MGP", u32(p.pipes.used()), "pipes that hold bytes");
    add(25, "PipesFree", "MGP", u32(p.pipes.free()), "pipes that are open and empty");
    add(26, "ConnRate", "MRP", u32(number(sum.conn_rate)), "connections per second");
    add(27, "ConnRateLimit", "CLP", u32(0), "limit of connections per second, 0 for none");
    add(28, "MaxConnRate", "MMP", u32(number(sum.conn_rate_max)), "largest ConnRate");
    add(29, "SessRate", "MRP", u32(number(sum.sess_rate)), "sessions per second");
    add(30, "SessRateLimit", "CLP", u32(0), "limit of sessions per second, 0 for none");
    add(31, "MaxSessRate", "MMP", u32(number(sum.sess_rate_max)), "largest SessRate");
    if let Some(percent) = process.idle_pct {
        add(49, "Idle_pct", "MaP", u32(percent), "percent of its time that the process was idle lately");
    }
    add(50, "node", "COS", str(state.node()), "name of the node");
    if let Some(text) = &global.description {
        add(51, "description", "COS", str(text), "description of the configuration");
    }
    add(52, "Stopping", "MGP", u32(u32::from(p.is_stopping())), "1 while the process stops");
    let jobs = number(u64::from(p.conns()) + u64::from(process.listeners));
    add(53, "Jobs", "MGP", u32(jobs), "connections and listeners");
    add(54, "Unstoppable Jobs", "MGP", u32(0), "jobs that do not keep the process from stopping");
    add(55, "Listeners", "MGP", u32(process.listeners), "listening sockets");
    add(56, "ActivePeers", "MGP", u32(process.active_peers), "peers to replicate with");
    add(57, "ConnectedPeers", "MGP", u32(process.connected_peers), "peers connected");
    add(58, "DroppedLogs", "MGP", u32(number(process.dropped_logs)), "log lines that could not be sent");
    add(59, "BusyPolling", "MGP", u32(0), "1 if the workers never sleep");
    add(60, "FailedResolutions", "MGP", u32(0), "failed name resolutions");
    add(61, "TotalBytesOut", "MGP", u64(bytes_out), "bytes sent to clients");
    let spliced = p.spliced.load(std::sync::atomic::Ordering::Relaxed);
    add(62, "TotalSplicedBytesOut", "MGP", u64(spliced), "bytes sent without passing through the process");
    add(65, "CumRecvLogs", "MCP", u32(0), "log lines received");
    add(66, "Build info", "POS", str(&process.build), "how it was built");
    add(67, "Memmax_bytes", "CLP", u32(0), "limit of memory, 0 for none");
    if let Some(bytes) = process.memory {
        add(68, "PoolAlloc_bytes", "MGP", u64(bytes), "bytes of memory held");
        add(69, "PoolUsed_bytes", "MGP", u64(bytes), "bytes of memory used");
    }
    let started = number(p.started.unix_us / 1_000_000);
    add(70, "Start_time_sec", "MDP", u32(started), "start in seconds since the epoch");
    add(71, "Tainted", "SGP", str("0"), "flags of unsafe debugging");
    add(72, "TotalWarnings", "MCP", u32(process.warnings), "warnings since the start");
    let reached = p.maxconn_reached.load(std::sync::atomic::Ordering::Relaxed);
    add(73, "MaxconnReached", "MCP", u32(number(reached)), "times that a connection had to wait for Maxconn");
    add(81, "NbThreadGroups", "CGS", u32(1), "groups of threads");
    fields
}

fn uptime(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    format!("{days}d {}h{:02}m{:02}s", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Appends `Name: value` lines.
pub fn plain(fields: &[Field], describe: bool, out: &mut String) {
    for field in fields {
        let _ = write!(out, "{}: ", field.name);
        line_value(&field.value, out);
        description(describe.then_some(field.text), out);
    }
}

/// Appends typed lines.
pub fn typed(fields: &[Field], describe: bool, out: &mut String) {
    for Field { pos, name, tags, value, text } in fields {
        let _ = write!(out, "{pos}.{name}.1:{tags}V:{}:", type_name(value));
        line_value(value, out);
        description(describe.then_some(text), out);
    }
}

/// Appends a JSON array of fields.
pub fn json(fields: &[Field], out: &mut String) {
    out.push('[');
    for (i, field) in fields.iter().enumerate() {
        out.push_str(if i > 0 { ",{" } else { "{" });
        json_field(field.pos, field.name, field.tags, &field.value, out);
    }
    out.push_str("]\n");
}
