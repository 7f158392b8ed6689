//! Commands about the other nodes: `show cluster`, `show peers`, `cluster join|leave|replace`.

use std::fmt::Write as _;
use std::time::Duration;

use phalanx_cluster::haproxy::Handle;
use phalanx_cluster::{Cluster, NewMember, NodeStatus, Stage, Status};
use phalanx_config::Level;
use phalanx_engine::log;
use phalanx_engine::registry::Registry;
use serde_json::json;

use super::Context;
use super::keyword::{Answer, Call, Keyword, Run};

pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["show", "cluster"],
        usage: "[json]",
        text: "report the nodes of the cluster and their agreement",
        level: Level::User,
        run: Run::Now(show_cluster),
    },
    Keyword {
        words: &["show", "peers"],
        usage: "[dict|-] [section]",
        text: "dump some information about all the peers or this peers section",
        level: Level::User,
        run: Run::Now(show_peers),
    },
    Keyword {
        words: &["cluster", "join"],
        usage: "<node> <addr>:<port> [witness]",
        text: "take a node into the cluster",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(join(call))),
    },
    Keyword {
        words: &["cluster", "leave"],
        usage: "<node>",
        text: "let a node leave the cluster, or forget a dead one",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(leave(call))),
    },
    Keyword {
        words: &["cluster", "replace"],
        usage: "<old node> <new node> <addr>:<port> [witness]",
        text: "take a node into the cluster in the place of another",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(replace(call))),
    },
];

/// A change of members is answered within this time, done or not.
const CHANGE_WITHIN: Duration = Duration::from_secs(30);

pub(super) const NO_CLUSTER: &str = "The configuration has no 'cluster' section.";

/// Peers that stick tables are replicated with, and how many of them are connected.
pub(super) fn peer_counts(ctx: &Context) -> (u32, u32) {
    let Some(cluster) = ctx.authority.cluster() else { return (0, 0) };
    cluster.sync().peer_counts()
}

fn show_cluster(call: &Call<'_>) -> Answer {
    let as_json = match call.arg(0) {
        "" => false,
        "json" => true,
        other => return Answer::error(format!("'show cluster' expects nothing or 'json', not '{other}'.")),
    };
    match call.ctx.authority.cluster().map(Cluster::status) {
        Some(status) if as_json => Answer::dump(json_of(&status, &call.ctx.authority.registry())),
        Some(status) => Answer::dump(table_of(&status, &call.ctx.authority.registry())),
        None if as_json => Answer::dump(json!({"cluster": null, "leader": null, "nodes": []}).to_string()),
        None => Answer::info(NO_CLUSTER),
    }
}

fn json_of(status: &Status, registry: &Registry) -> String {
    let node = |n: &NodeStatus| {
        json!({
            "name": n.name,
            "addr": n.addr,
            "local": n.local,
            "witness": n.witness,
            "voter": n.voter,
            "stage": n.stage.map(stage),
            "state": n.state.to_string(),
            "maintenance": registry.in_maintenance(&n.name),
            "seen_ms": n.seen.map(|d| d.as_millis() as u64),
            "problem": n.problem,
            "applied": n.applied,
            "version": n.version,
            "incarnation": n.incarnation,
        })
    };
    let nodes: Vec<_> = status.nodes.iter().map(node).collect();
    json!({
        "cluster": status.cluster,
        "node": status.node,
        "leader": status.leader,
        "term": status.term,
        "quorum": status.quorum,
        "stopped": status.stopped,
        "last_log": status.last_log,
        "committed": status.committed,
        "applied": status.applied,
        "snapshot": status.snapshot,
        "revision": status.revision,
        "id": (status.cluster_id != 0).then(|| format!("{:016x}", status.cluster_id)),
        "configuration": status.config,
        "change": status.change,
        "nodes": nodes,
    })
    .to_string()
}

fn table_of(status: &Status, registry: &Registry) -> String {
    let index = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
    let mut out = format!(
        "# cluster: {}, node: {}, leader: {}, term: {}, quorum: {}, revision: {}\n\
         # log: last={} committed={} applied={} snapshot={}\n",
        status.cluster,
        status.node,
        status.leader.as_deref().unwrap_or("-"),
        status.term,
        if status.quorum { "yes" } else { "no" },
        status.revision,
        index(status.last_log),
        index(status.committed),
        index(status.applied),
        index(status.snapshot),
    );
    if let Some(why) = &status.stopped {
        let _ = writeln!(
            out,
            "# this node takes no runtime commands for now, it tries again by itself: {}",
            one_line(why)
        );
    }
    if status.cluster_id != 0 {
        let _ = writeln!(out, "# members: configuration {}, id {:016x}", status.config, status.cluster_id);
    } else {
        let _ = writeln!(out, "# members: this node belongs to no cluster yet");
    }
    if let Some(change) = &status.change {
        let _ = writeln!(out, "# change of members: {}", one_line(change));
    }
    let resting: Vec<&str> =
        status.nodes.iter().map(|n| n.name.as_str()).filter(|n| registry.in_maintenance(n)).collect();
    if !resting.is_empty() {
        let _ = writeln!(out, "# in maintenance: {}", resting.join(", "));
    }
    let header = ["# name", "addr", "state", "votes", "seen", "applied", "version", "problem"];
    let mut rows = vec![header.map(str::to_owned)];
    for n in &status.nodes {
        rows.push([
            n.name.clone(),
            n.addr.clone(),
            n.state.to_string(),
            match (n.voter, n.witness) {
                _ if n.stage == Some(Stage::Joining) => "joins".to_owned(),
                _ if n.stage == Some(Stage::Leaving) => "leaves".to_owned(),
                (true, true) => "witness".to_owned(),
                (true, false) => "yes".to_owned(),
                (false, _) => "no".to_owned(),
            },
            n.seen.map_or("-".to_owned(), |d| format!("{}ms", d.as_millis())),
            index(n.applied),
            n.version.clone().unwrap_or_else(|| "-".to_owned()),
            n.problem.as_deref().map_or("-".to_owned(), one_line),
        ]);
    }
    align(&rows, &mut out);
    out
}

/// Prints columns under each other.
pub(super) fn align<const N: usize>(rows: &[[String; N]], out: &mut String) {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
}

/// Text from elsewhere in one line: an empty one would end the answer.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn show_peers(call: &Call<'_>) -> Answer {
    let wanted = match (call.arg(0), call.arg(1)) {
        ("dict" | "-", name) => name,
        (name, _) => name,
    };
    let mut date = Vec::new();
    log::bracketed(call.now.unix_us, &mut date);
    let date = String::from_utf8_lossy(&date);
    let mut out = String::new();
    let head = |out: &mut String, id: &str| {
        let number = number(id);
        let _ = writeln!(out, "{number:#x}: {date} id={id} disabled=0 flags=0x0 resync_timeout=<NEVER>");
    };
    let local = |out: &mut String, node: &str, addr: &str| {
        let number = number(node);
        let _ = writeln!(out, "  {number:#x}: id={node}(local,inactive) addr={addr} last_status=NONE");
    };
    let is_wanted = |id: &str| wanted.is_empty() || wanted == id;
    if let Some(cluster) = call.ctx.authority.cluster()
        && let status = cluster.status()
        && is_wanted(&status.cluster)
    {
        head(&mut out, &status.cluster);
        let addr = |name: &str| status.nodes.iter().find(|n| n.name == name).map_or("?", |n| n.addr.as_str());
        local(&mut out, &status.node, addr(&status.node));
        for peer in cluster.sync().status() {
            peer_lines(&peer, addr(&peer.sync.name), &mut out);
        }
        let haproxys = cluster.haproxys().map(Handle::status).unwrap_or_default();
        haproxys.iter().for_each(|peer| haproxy_lines(peer, &mut out));
    }
    for section in &call.ctx.haproxys {
        let Some(id) = section.settings().section.as_deref().filter(|id| is_wanted(id)) else { continue };
        head(&mut out, id);
        local(&mut out, &section.settings().local, section.settings().bind.as_deref().unwrap_or("?"));
        section.status().iter().for_each(|peer| haproxy_lines(peer, &mut out));
    }
    if out.is_empty() && !wanted.is_empty() {
        return Answer::error("No such peers");
    }
    Answer::dump(out)
}

fn haproxy_lines(peer: &phalanx_cluster::haproxy::PeerStatus, out: &mut String) {
    let (activity, last) = if peer.connected { ("active", "ESTA") } else { ("inactive", "CONN") };
    let _ = writeln!(
        out,
        "  {:#x}: id={}(remote,{activity}) addr={} protocol=haproxy last_status={last}",
        number(&peer.name),
        peer.name,
        peer.addr,
    );
    let totals = &peer.totals;
    let _ = writeln!(
        out,
        "        new_conn={} tx_hbt={} rx_hbt={} bytes_in={} bytes_out={} updates_out={} taught_out={} \
         entries_in={}",
        totals.sessions,
        totals.heartbeats.0,
        totals.heartbeats.1,
        peer.bytes_in,
        peer.bytes_out,
        totals.updates_out,
        totals.taught_out,
        totals.updates_in,
    );
    if let Some(problem) = &peer.problem {
        let _ = writeln!(out, "        problem={}", one_line(problem));
    }
}

fn peer_lines(peer: &phalanx_cluster::sync::PeerStatus, addr: &str, out: &mut String) {
    let sync = &peer.sync;
    let up = sync.state != "down";
    let (activity, last) = if up { ("active", "ESTA") } else { ("inactive", "CONN") };
    let _ = writeln!(
        out,
        "  {:#x}: id={}(remote,{activity}) addr={addr} app_state={} last_status={last}",
        number(&sync.name),
        sync.name,
        sync.state,
    );
    let _ = writeln!(
        out,
        "        new_conn={} lag_updates={} lag_ms={} in_flight={} repairs={} incarnation={}",
        sync.totals.sessions,
        sync.lag_updates,
        sync.lag.as_millis(),
        sync.in_flight,
        sync.totals.repairs,
        sync.incarnation,
    );
    let _ = writeln!(
        out,
        "        bytes_in={} bytes_out={} updates_out={} taught_out={} entries_in={}",
        peer.bytes_in,
        peer.bytes_out,
        sync.totals.updates_out,
        sync.totals.taught_out,
        sync.totals.entries_in,
    );
    if let Some(problem) = &peer.problem {
        let _ = writeln!(out, "        problem={}", one_line(problem));
    }
    if sync.tables.is_empty() {
        return;
    }
    let _ = writeln!(out, "        shared tables:");
    for table in &sync.tables {
        let remote = table.remote_digest.map_or("-".to_owned(), |d| format!("{d:016x}"));
        let _ = writeln!(
            out,
            "          table: id={} matched={} learned={} lag_updates={} digest={:016x} remote_digest={remote} \
             in_sync={}",
            table.name,
            u8::from(table.matched),
            u8::from(table.learned),
            table.lag_updates,
            table.digest,
            u8::from(table.remote_digest == Some(table.digest)),
        );
    }
}

/// A stable number where HAProxy prints an address.
fn number(name: &str) -> u64 {
    phalanx_cluster::node_id(name)
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Joining => "joining",
        Stage::Voter => "member",
        Stage::Leaving => "leaving",
    }
}

async fn join(call: &Call<'_>) -> Answer {
    take_in(call, "cluster join", None, 0).await
}

async fn replace(call: &Call<'_>) -> Answer {
    if call.arg(0).is_empty() {
        return Answer::error("'cluster replace' expects the node to replace, a new one and its address.");
    }
    take_in(call, "cluster replace", Some(call.arg(0).to_owned()), 1).await
}

/// The arguments from `at` on name the new node.
async fn take_in(call: &Call<'_>, command: &str, replaces: Option<String>, at: usize) -> Answer {
    let Some(cluster) = call.ctx.authority.cluster() else { return Answer::error(NO_CLUSTER) };
    let (name, addr) = (call.arg(at), call.arg(at + 1));
    if name.is_empty() || addr.is_empty() {
        return Answer::error(format!("'{command}' expects the name of a node and its address, host:port."));
    }
    let witness = match call.arg(at + 2) {
        "" => false,
        "witness" => true,
        other => return Answer::error(format!("'{command}' expects 'witness' or nothing, not '{other}'.")),
    };
    let node = NewMember { name: name.to_owned(), addr: addr.to_owned(), witness };
    answer(cluster.join(node, replaces, CHANGE_WITHIN).await)
}

async fn leave(call: &Call<'_>) -> Answer {
    let Some(cluster) = call.ctx.authority.cluster() else { return Answer::error(NO_CLUSTER) };
    if call.arg(0).is_empty() {
        return Answer::error("'cluster leave' expects the name of a node.");
    }
    answer(cluster.leave(call.arg(0), CHANGE_WITHIN).await)
}

fn answer(outcome: Result<String, String>) -> Answer {
    match outcome {
        Ok(text) => Answer::notice(text),
        Err(why) => Answer::error(one_line(&why)),
    }
}
