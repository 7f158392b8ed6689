//! `show backend`, `show servers state`, `show servers conn`.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use phalanx_config::model::Discovery;
use phalanx_engine::backend::Backend;
use phalanx_engine::discovery::source;
use phalanx_engine::health::{CheckResult, Report};
use phalanx_engine::permits::Key;
use phalanx_engine::registry::{Placed, Registry};
use phalanx_engine::server::{OpState, Server};
use phalanx_engine::verdict::{Duty, Subject};
use phalanx_proxy::check;

use crate::cli::keyword::{Answer, Call};

const STATE_HEADER: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state \
    srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health \
    srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl \
    srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n";

pub(super) fn backends(call: &Call<'_>) -> Answer {
    let mut out = String::from("# name\n");
    for backend in call.ctx.state.plan().proxies.iter().filter_map(|p| p.backend.as_ref()) {
        let _ = writeln!(out, "{}", backend.name());
    }
    Answer::dump(out)
}

fn chosen(call: &Call<'_>) -> Result<Vec<Arc<Backend>>, Answer> {
    let plan = call.ctx.state.plan_owned();
    match call.arg(0) {
        "" => Ok(plan.proxies.iter().filter_map(|p| p.backend.clone()).collect()),
        name => match plan.backend(name) {
            Some(backend) => Ok(vec![backend.clone()]),
            None => Err(Answer::error("Can't find backend.")),
        },
    }
}

pub(super) fn state(call: &Call<'_>) -> Answer {
    let backends = match chosen(call) {
        Ok(backends) => backends,
        Err(answer) => return answer,
    };
    let mut out = String::from(STATE_HEADER);
    let registry = call.ctx.authority.registry();
    for backend in backends {
        for server in backend.servers().iter() {
            state_line(call, &registry, &backend, server, &mut out);
        }
    }
    Answer::dump(out)
}

fn state_line(call: &Call<'_>, registry: &Registry, backend: &Backend, server: &Server, out: &mut String) {
    let (check, addr) = (server.check(), server.addr());
    let since = call.now.mono.saturating_sub(server.last_change().mono).as_secs();
    let last = check.apart.as_ref().map(|a| &a.report).or(check.last.as_ref());
    let (status, result, health) = match (check.configured, last) {
        // Without checks: as if risen, until maintenance takes that away.
        (false, _) => (1, CheckResult::Unknown as u8, if server.admin().maint() { 0 } else { 2 }),
        (true, None) => (1, CheckResult::Unknown as u8, check.health.value()),
        (true, Some(last)) if check.apart.is_some() => (last.status as u8, last.status.result() as u8, 0),
        (true, Some(last)) => (last.status as u8, last.status.result() as u8, check.health.value()),
    };
    // Bits: 2 configured, 4 enabled, 8 paused by maintenance, or for a line that says `disabled` without
    // `check`, which nothing ever ends.
    let paused = match check.configured {
        true => check.enabled && server.admin().maint(),
        false => server.options().disabled,
    };
    let bits = [(check.configured, 2), (check.enabled, 4), (paused, 8)];
    let state: u8 = bits.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum();
    let op = server.op_state() as u8;
    debug_assert!(op <= OpState::Stopping as u8);
    let (fqdn, record) = names(registry, backend, server);
    let agent = server.agent();
    // As above; 16 tells an agent.
    let agent_state: u8 = match (agent.configured, agent.enabled) {
        (false, _) => 0,
        (true, enabled) => 2 + 16 + if enabled { 4 } else { 0 },
    };
    let (agent_addr, agent_port) = (agent.ip.map_or("-".to_owned(), |a| a.to_string()), agent.port);
    let check_port = check.port.unwrap_or(0);
    let check_addr = check.ip.map_or("-".to_owned(), |a| a.to_string());
    let _ = writeln!(
        out,
        "{} {} {} {} {} {op} {} {} {} {since} {status} {result} {health} {state} {agent_state} 0 0 {fqdn} {} \
         {record} 0 {check_port} {check_addr} {agent_addr} {agent_port}",
        backend.id(),
        backend.name(),
        server.id(),
        server.name(),
        shown(addr.ip()),
        server.admin().0,
        server.weight(),
        server.initial_weight(),
        addr.port(),
    );
}

/// Who checks what, and which servers this node alone cannot reach.
pub(super) fn checks(call: &Call<'_>) -> Answer {
    let backends = match chosen(call) {
        Ok(backends) => backends,
        Err(answer) => return answer,
    };
    let board = call.ctx.authority.cluster().map(|cluster| cluster.share().board());
    let mut out = String::from("# be_name srv_name kind prober status last_check here\n");
    for backend in backends {
        let shared = board.filter(|_| !backend.config().per_node_checks);
        let prober = |subject: &Subject| match shared.map(|b| (b.duty(subject), b.claim(subject, call.now))) {
            None | Some((Duty::Probe, _)) => call.ctx.state.node().to_owned(),
            Some((_, Some((node, _)))) => node.to_string(),
            Some((_, None)) => "-".to_owned(),
        };
        for server in backend.servers().iter() {
            let mut row = |kind: &str, prober: String, up: bool, last: Option<Report>, here: &str| {
                let (word, last) = (if up { "UP" } else { "DOWN" }, last.map_or("INI", |l| l.status.code()));
                let names = (backend.name(), server.name());
                let _ = writeln!(out, "{} {} {kind} {prober} {word} {last} {here}", names.0, names.1);
            };
            if server.check_runs() {
                let check = server.check();
                let here =
                    check.apart.map_or("agrees".to_owned(), |a| format!("apart:{}", a.report.status.code()));
                let prober = prober(&check::subject(&backend, server));
                row("health", prober, check.health.is_up(), check.last, &here);
            }
            if server.agent_runs() {
                let agent = server.agent();
                let prober = prober(&check::agent_subject(&backend, server));
                row("agent", prober, !agent.view.down, agent.last, "agrees");
            }
        }
    }
    Answer::dump(out)
}

/// An address as HAProxy shows it: a dash for none.
fn shown(ip: IpAddr) -> String {
    if ip.is_unspecified() { "-".to_owned() } else { ip.to_string() }
}

/// Name of the host that a server stands for, and the SRV label that it comes from.
fn names(registry: &Registry, backend: &Backend, server: &Server) -> (String, String) {
    let (config, dash) = (server.config(), || "-".to_owned());
    let Some(source) = source(&config, backend.name(), registry.names()) else {
        let host = config.host.rsplit_once(':').map_or(&*config.host, |(host, _)| host);
        let literal = host.parse::<IpAddr>().is_ok() || host.starts_with('[') || host.is_empty();
        return (if literal { dash() } else { host.to_owned() }, dash());
    };
    let place = registry.discovered().place(&source.to_string(), backend.name(), server.name());
    let host = match place {
        Placed::At(place) if !place.host.is_empty() => place.host.clone(),
        _ => dash(),
    };
    let given = registry.names().of(backend.name(), server.name(), &config.host);
    match &*source {
        Discovery::Dns { name, .. } if source.is_srv() => (host, name.clone()),
        Discovery::Dns { .. } => (given.unwrap_or(&config.host).to_owned(), dash()),
        Discovery::Consul { .. } => (host, dash()),
    }
}

/// Servers that share their places among the nodes, as this node sees them.
pub(super) fn places(call: &Call<'_>) -> Answer {
    let backends = match chosen(call) {
        Ok(backends) => backends,
        Err(answer) => return answer,
    };
    let Some(cluster) = call.ctx.authority.cluster() else {
        return Answer::info("The configuration has no 'cluster' section.");
    };
    let (arbiter, missing) = cluster.share().desk().look(|machine| {
        let arbiter = machine.arbiter(call.now).map_or("-".to_owned(), |node| node.to_string());
        (arbiter, machine.missing(call.now).map(|node| node.to_string()).collect::<Vec<_>>())
    });
    let advice = missing.iter().map(|node| {
        format!("# node '{node}' is waited for: start it, or take it out with 'cluster leave {node}'\n")
    });
    let advice: String = advice.collect();
    let missing = if missing.is_empty() { "-".to_owned() } else { missing.join(",") };
    let mut out = format!(
        "# arbiter: {arbiter}, reserved for nodes that are not heard from: {missing}\n\
         {advice}\
         # be_name srv_name maxconn own usable in_use waiting\n"
    );
    for backend in backends {
        for server in backend.servers().iter().filter(|s| s.shares_places()) {
            let key = Key { backend: backend.name().clone(), server: server.name().clone() };
            let (own, usable, _) = cluster.share().desk().look(|machine| machine.view(&key));
            let _ = writeln!(
                out,
                "{} {} {} {own} {usable} {} {}",
                backend.name(),
                server.name(),
                server.maxconn(),
                server.served(),
                server.queued() + backend.queued(),
            );
        }
    }
    Answer::dump(out)
}

pub(super) fn conn(call: &Call<'_>) -> Answer {
    let backends = match chosen(call) {
        Ok(backends) => backends,
        Err(answer) => return answer,
    };
    let mut out = String::from(
        "# bkname/svname bkid/svid addr port - purge_delay served used_cur used_max need_est idle_sess \
         unsafe_nb safe_nb idle_lim idle_cur idle_per_thr[0]\n",
    );
    for backend in backends {
        for server in backend.servers().iter() {
            let (options, addr) = (server.options(), server.addr());
            let (idle, served) = (server.idle.load(Relaxed), server.served());
            let limit = options.pool_max_conn.map_or(-1, i64::from);
            let _ = writeln!(
                out,
                "{0}/{1} {2}/{3} {4} {5} - {6} {served} {served} {7} {served} 0 0 {idle} {limit} {idle}",
                backend.name(),
                server.name(),
                backend.id(),
                server.id(),
                shown(addr.ip()),
                addr.port(),
                options.pool_purge_delay.as_millis(),
                server.served_max(),
            );
        }
    }
    Answer::dump(out)
}
