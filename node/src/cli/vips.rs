//! Commands about floating IPs: `show vip`, `move vip` (and its older name `failover vip`),
//! `maintenance node`.

use std::fmt::Write as _;

use phalanx_cluster::Cluster;
use phalanx_cluster::vip::{VipStatus, Vips};
use phalanx_config::Level;
use phalanx_engine::log;
use phalanx_engine::registry::{Command, MaintenanceCommand, Reply};
use serde_json::json;

use super::keyword::{Answer, Call, Keyword, Run};
use super::membership::{NO_CLUSTER, align, one_line};

pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["show", "vip"],
        usage: "[json]",
        text: "report the floating IPs, who holds them and who could",
        level: Level::User,
        run: Run::Now(show_vip),
    },
    Keyword {
        words: &["move", "vip"],
        usage: "<vip> [<node>]",
        text: "move a floating IP to another node",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(move_vip(call, "move vip"))),
    },
    Keyword {
        words: &["failover", "vip"],
        usage: "<vip> [<node>]",
        text: "move a floating IP to another node",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(move_vip(call, "failover vip"))),
    },
    Keyword {
        words: &["maintenance", "node"],
        usage: "<node> on [force]|off",
        text: "move the floating IPs off a node and keep them off, or no longer",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(maintenance(call))),
    },
];

const NO_VIP: &str = "The configuration has no 'vip' line.";

fn show_vip(call: &Call<'_>) -> Answer {
    let as_json = match call.arg(0) {
        "" => false,
        "json" => true,
        other => return Answer::error(format!("'show vip' expects nothing or 'json', not '{other}'.")),
    };
    let vips = call.ctx.authority.cluster().and_then(Cluster::vips).map(Vips::status).unwrap_or_default();
    if as_json {
        let vips: Vec<_> = vips.iter().map(vip_json).collect();
        return Answer::dump(json!({ "vips": vips }).to_string());
    }
    if vips.is_empty() {
        return Answer::info("The configuration has no 'vip' line.");
    }
    let header = ["# name", "address", "announce", "holder", "epoch", "lease", "candidates", "unfit"];
    let mut rows = vec![header.map(str::to_owned)];
    for vip in &vips {
        let fit: Vec<&str> = vip.nodes.iter().filter(|n| n.eligible).map(|n| n.node.as_str()).collect();
        let unfit = vip.nodes.iter().filter(|n| !n.eligible);
        let unfit: Vec<String> =
            unfit.map(|n| format!("{} ({})", n.node, one_line(&n.reasons.join("; ")))).collect();
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        rows.push([
            vip.name.clone(),
            format!("{}/{}", vip.addr, vip.prefix),
            vip.announce.to_owned(),
            vip.holder.clone().unwrap_or_else(|| "-".to_owned()),
            vip.epoch.to_string(),
            format!("{}ms{}", vip.left.as_millis(), if vip.kept { " without a majority" } else { "" }),
            or_dash(fit.join(",")),
            or_dash(unfit.join(", ")),
        ]);
    }
    let mut out = String::new();
    align(&rows, &mut out);
    if let Some(why) = vips.iter().find_map(|v| v.waiting.as_ref()) {
        let _ = writeln!(out, "# leases have not begun on this node: {}", one_line(why));
    }
    for (vip, draining) in vips.iter().flat_map(|v| v.draining.iter().map(move |d| (v, d))) {
        let (name, node, count) = (&vip.name, &draining.node, draining.connections);
        let _ = writeln!(out, "# {name} drains on {node}: {count} connections of epoch {}", draining.epoch);
    }
    for vip in vips.iter().filter(|v| !v.moves.is_empty()) {
        let _ = writeln!(out, "# moves of {}:", vip.name);
        for change in &vip.moves {
            let mut date = Vec::new();
            log::bracketed(change.unix_us, &mut date);
            let name = |node: &Option<String>| node.clone().unwrap_or_else(|| "-".to_owned());
            let _ = writeln!(
                out,
                "#   {} {} -> {} epoch {}: {}",
                String::from_utf8_lossy(&date),
                name(&change.from),
                name(&change.to),
                change.epoch,
                one_line(&change.reason)
            );
        }
    }
    for vip in vips.iter().filter(|v| !v.notices.is_empty()) {
        let _ = writeln!(out, "# noticed on this node about {}:", vip.name);
        for notice in &vip.notices {
            let mut date = Vec::new();
            log::bracketed(notice.unix_us, &mut date);
            let _ = writeln!(out, "#   {} {}", String::from_utf8_lossy(&date), one_line(&notice.text));
        }
    }
    Answer::dump(out)
}

fn vip_json(vip: &VipStatus) -> serde_json::Value {
    let nodes: Vec<_> = vip
        .nodes
        .iter()
        .map(|n| json!({"node": n.node, "eligible": n.eligible, "reasons": n.reasons}))
        .collect();
    let draining: Vec<_> = vip
        .draining
        .iter()
        .map(|d| json!({"node": d.node, "epoch": d.epoch, "connections": d.connections}))
        .collect();
    let moves: Vec<_> = vip
        .moves
        .iter()
        .map(|m| {
            json!({"unix_us": m.unix_us, "from": m.from, "to": m.to, "epoch": m.epoch, "reason": m.reason})
        })
        .collect();
    let notices: Vec<_> = vip.notices.iter().map(|n| json!({"unix_us": n.unix_us, "text": n.text})).collect();
    json!({
        "name": vip.name,
        "address": vip.addr.to_string(),
        "prefix": vip.prefix,
        "announce": vip.announce,
        "holder": vip.holder,
        "epoch": vip.epoch,
        "left_ms": vip.left.as_millis() as u64,
        "kept": vip.kept,
        "nodes": nodes,
        "draining": draining,
        "moves": moves,
        "notices": notices,
        "waiting": vip.waiting,
    })
}

async fn move_vip(call: &Call<'_>, command: &str) -> Answer {
    if call.arg(0).is_empty() {
        return Answer::error(format!("'{command}' expects the name of a vip, and may be given a node."));
    }
    let Some(vips) = call.ctx.authority.cluster().and_then(Cluster::vips) else {
        return Answer::error(NO_VIP);
    };
    let to = Some(call.arg(1)).filter(|node| !node.is_empty());
    // The holder may not have heard yet.
    if let Some(node) = to.filter(|node| call.ctx.authority.registry().in_maintenance(node)) {
        return Answer::error(format!(
            "node '{node}' is not eligible for vip '{}': maintenance",
            call.arg(0)
        ));
    }
    match vips.failover(call.arg(0), to).await {
        Ok((holder, epoch)) => {
            Answer::notice(format!("vip '{}' is now held by '{holder}' (epoch {}).", call.arg(0), epoch.0))
        }
        Err(why) => Answer::error(one_line(&why.to_string())),
    }
}

/// Moves what the node holds, one by one and with a new holder each, then says that it takes no more.
async fn maintenance(call: &Call<'_>) -> Answer {
    let Some(cluster) = call.ctx.authority.cluster() else { return Answer::error(NO_CLUSTER) };
    let node = call.arg(0);
    let (on, force) = match (call.arg(1), call.arg(2)) {
        ("on", "") => (true, false),
        ("on", "force") => (true, true),
        ("off", "") => (false, false),
        _ => {
            return Answer::error(
                "'maintenance node' expects the name of a node, and 'on', 'on force' or 'off'.",
            );
        }
    };
    let registry = call.ctx.authority.registry();
    if registry.members().get(node).is_none() {
        return Answer::error(registry.members().unknown(node));
    }
    let mut moved = Vec::new();
    let vips = cluster.vips().filter(|_| on);
    for vip in vips.map(Vips::status).unwrap_or_default() {
        if vip.holder.as_deref() != Some(node) {
            continue;
        }
        let outcome = match vips {
            Some(vips) => vips.failover(&vip.name, None).await,
            None => continue,
        };
        match outcome {
            Ok((holder, _)) => moved.push(format!("vip '{}' is now held by '{holder}'", vip.name)),
            Err(why) if force => moved.push(format!("vip '{}' is given up ({why})", vip.name)),
            Err(why) => {
                let done =
                    if moved.is_empty() { String::new() } else { format!("; before, {}", moved.join(", ")) };
                return Answer::error(one_line(&format!(
                    "Not done: {why}{done}. 'maintenance node {node} on force' gives the vip up."
                )));
            }
        }
    }
    let command = Command::Maintenance(MaintenanceCommand { node: node.to_owned(), on });
    match call.ctx.authority.propose(command).await {
        Ok(Reply::Refused(why)) | Err(why) => Answer::error(one_line(&why)),
        Ok(_) if on => {
            moved.insert(0, format!("Node '{node}' is in maintenance: it takes no vip"));
            Answer::notice(one_line(&format!("{}.", moved.join("; "))))
        }
        Ok(_) => Answer::notice(format!("Node '{node}' is out of maintenance: it may take vips again.")),
    }
}
