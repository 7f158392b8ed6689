//! A cluster's status as text: the table that `up` opens with, and the line that it keeps up to date.

use std::fmt::Write;

use super::layout::Layout;
use super::status::{State, Status};

/// The table and how to go on from there.
pub(super) fn opening(layout: &Layout, status: &Status) -> String {
    let mut out = table(status);
    let _ = writeln!(out, "\nconfig  {}", layout.config.display());
    let _ = writeln!(out, "demo    {}", layout.demo_summary());
    let _ = writeln!(out, "logs    {}", layout.node_log("NODE").display());
    if let Some(network) = &layout.network {
        let _ = writeln!(out, "client  ip netns exec {} COMMAND", network.client_namespace());
    }
    if !layout.own_config
        && let (Some((_, vip)), Some(first)) = (layout.vips.first(), layout.nodes.first())
    {
        let dir = if layout.keep { format!(" --dir {}", layout.dir.display()) } else { String::new() };
        out += &hints(&vip.to_string(), &first.name, &first.addr.to_string(), &dir);
    }
    out
}

/// What to try first with the built-in configuration.
fn hints(vip: &str, name: &str, addr: &str, dir: &str) -> String {
    let mut out = String::new();
    for (label, command, what) in [
        ("try", format!("curl http://{vip}:8080/"), "whoever holds the address answers"),
        ("", format!("curl -H 'X-Session-ID: me' http://{addr}:8081/"), "the same server on every node"),
        ("", format!("nc {vip} 9000"), "TCP; a third client waits for a free server"),
        ("", format!("echo 'show cluster; show vip' | nc {addr} 9999"), "the Runtime API"),
        ("", format!("phalanx cluster kill {name}{dir}"), "or pause, start, failover web, status"),
    ] {
        let _ = writeln!(out, "{label:<7} {command:<52} {what}");
    }
    out
}

/// Nodes and virtual addresses in columns.
pub(super) fn table(status: &Status) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
    let mut rows =
        vec![["NODE", "STATE", "PID", "HTTP", "RUNTIME API", "STATS", "CLUSTER"].map(str::to_owned)];
    for node in &status.nodes {
        rows.push([
            if node.leader { format!("{} (leader)", node.name) } else { node.name.clone() },
            node.state.name().to_owned(),
            node.pid.map_or("-".into(), |p| p.to_string()),
            text(&node.http),
            text(&node.cli),
            text(&node.stats),
            text(&node.grpc),
        ]);
    }
    let mut out = columns(&rows);
    if !status.vips.is_empty() {
        let mut rows = vec![["VIP", "ADDRESS", "HOLDER", "EPOCH"].map(str::to_owned)];
        for vip in &status.vips {
            rows.push([vip.name.clone(), vip.address.clone(), text(&vip.holder), vip.epoch.to_string()]);
        }
        out.push('\n');
        out += &columns(&rows);
    }
    out
}

/// Everything that changes, on one line.
pub(super) fn line(status: &Status) -> String {
    let mut out = String::new();
    for node in &status.nodes {
        let sign = match node.state {
            State::Running => "up",
            state => state.name(),
        };
        let leader = if node.leader { "*" } else { "" };
        let _ = write!(out, "{}{leader} {sign}  ", node.name);
    }
    for vip in &status.vips {
        let holder = vip.holder.as_deref().unwrap_or("nobody");
        let _ = write!(out, "| {} {} on {holder} (epoch {})  ", vip.name, vip.address, vip.epoch);
    }
    out.trim_end().to_owned()
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::status::{NodeStatus, VipStatus};

    #[test]
    fn table_and_line_show_state_leader_and_holder() {
        let node = |name: &str, leader| NodeStatus {
            name: name.into(),
            state: if leader { State::Running } else { State::Stopped },
            pid: leader.then_some(42),
            http: Some("127.0.0.11:8080".into()),
            cli: None,
            stats: None,
            grpc: None,
            leader,
        };
        let vip = VipStatus { name: "web".into(), address: "127.0.0.100".into(), holder: None, epoch: 3 };
        let status = Status { nodes: vec![node("n1", true), node("n2", false)], vips: vec![vip] };
        assert_eq!(line(&status), "n1* up  n2 stopped  | web 127.0.0.100 on nobody (epoch 3)");
        let table = table(&status);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "n1 (leader)  running  42   127.0.0.11:8080  -            -      -");
        assert_eq!(lines[5], "web  127.0.0.100  -       3");
    }
}
