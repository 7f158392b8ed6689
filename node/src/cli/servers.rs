//! Commands on servers: showing them, and every change of them.
//!
//! A change is checked against this node's state, in HAProxy's words, and then proposed to the
//! [`Authority`](super::Authority): all nodes carry it out, this one before the answer goes out.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use phalanx_config::model::Discovery;
use phalanx_config::{Level, ServerOptions};
use phalanx_engine::backend::Backend;
use phalanx_engine::registry::{
    Admin, AgentChange, Base, Change, Command, Force, Origin, Placed, Reply, Target, Weight,
};
use phalanx_engine::server::{self, Server};
use phalanx_engine::state::sessions::Kill;
use phalanx_engine::{balance, discovery};

use super::Context;
use super::keyword::{Answer, Call, Keyword, Run};

mod show;

/// A command that makes one change of a server.
macro_rules! switch {
    ($words:expr, $text:literal, $change:expr) => {
        Keyword {
            words: &$words,
            usage: "<bk>/<srv>",
            text: $text,
            level: Level::Admin,
            run: Run::Later(|call| Box::pin(change(call, $change))),
        }
    };
}

pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["show", "backend"],
        usage: "",
        text: "list backends in the current running config",
        level: Level::User,
        run: Run::Now(show::backends),
    },
    Keyword {
        words: &["show", "servers", "state"],
        usage: "[<backend>]",
        text: "dump volatile server information (all or for a single backend)",
        level: Level::User,
        run: Run::Now(show::state),
    },
    Keyword {
        words: &["show", "servers", "conn"],
        usage: "[<backend>]",
        text: "dump server connections status (all or for a single backend)",
        level: Level::User,
        run: Run::Now(show::conn),
    },
    Keyword {
        words: &["show", "checks"],
        usage: "[<backend>]",
        text: "report which node checks which server, and what this node alone cannot reach",
        level: Level::User,
        run: Run::Now(show::checks),
    },
    Keyword {
        words: &["show", "places"],
        usage: "[<backend>]",
        text: "report this node's part of 'maxconn <n> cluster'",
        level: Level::User,
        run: Run::Now(show::places),
    },
    Keyword {
        words: &["get", "weight"],
        usage: "<bk>/<srv>",
        text: "report a server's current weight",
        level: Level::User,
        run: Run::Now(get_weight),
    },
    Keyword {
        words: &["add", "server"],
        usage: "<bk>/<srv> <addr> [opts]*",
        text: "create a new server",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(add(call))),
    },
    Keyword {
        words: &["add", "server", "help"],
        usage: "",
        text: "list the options that a new server may have",
        level: Level::User,
        run: Run::Now(|_| Answer::info(add_help())),
    },
    Keyword {
        words: &["del", "server"],
        usage: "<bk>/<srv>",
        text: "remove a server",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(del(call))),
    },
    switch!(["enable", "server"], "enable a disabled server", Change::Admin(Admin::Ready)),
    switch!(["disable", "server"], "disable a server for maintenance", Change::Admin(Admin::Maint)),
    switch!(["enable", "health"], "enable health checks", Change::Check(true)),
    switch!(["disable", "health"], "disable health checks", Change::Check(false)),
    switch!(["enable", "agent"], "enable agent checks", Change::Agent(AgentChange::Enabled(true))),
    switch!(["disable", "agent"], "disable agent checks", Change::Agent(AgentChange::Enabled(false))),
    Keyword {
        words: &["set", "weight"],
        usage: "<bk>/<srv> <weight>[%]",
        text: "change a server's weight",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(set_weight(call))),
    },
    Keyword {
        words: &["set", "maxconn", "server"],
        usage: "<bk>/<srv> <value>",
        text: "change a server's maxconn setting",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(set_maxconn(call))),
    },
    Keyword {
        words: &["set", "server"],
        usage: "<bk>/<srv> [opts]",
        text: "change a server's state, weight, address or health",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(set(call))),
    },
    Keyword {
        words: &["shutdown", "sessions", "server"],
        usage: "<bk>/<srv>",
        text: "kill sessions on a server",
        level: Level::Admin,
        run: Run::Now(shutdown_sessions),
    },
];

/// How long `del server` waits for pooled connections that are being closed.
const POOL_DRAIN: Duration = Duration::from_millis(2500);

/// A backend and a server of it.
pub(super) type Found = (Arc<Backend>, Arc<Server>);

/// The server called `backend/server`.
///
/// # Errors
/// In HAProxy's words.
pub(super) fn find(ctx: &Context, name: &str) -> Result<Found, &'static str> {
    let (backend, name) = split(name)?;
    let backend = ctx.state.plan().backend(backend).cloned().ok_or("No such backend.")?;
    let server = backend.server(name).ok_or("No such server.")?;
    Ok((backend, server))
}

fn split(name: &str) -> Result<(&str, &str), &'static str> {
    name.split_once('/').filter(|(_, server)| !server.is_empty()).ok_or("Require 'backend/server'.")
}

/// Why a server cannot be deleted now.
pub(super) enum Kept {
    /// Waiting does not help.
    Never(&'static str),
    /// Connections have to end first; whether only idle ones are left.
    Busy(bool),
}

const BUSY: &str = "Server still has connections attached to it, cannot remove it.";

/// Whether `del server` would accept this one, as far as this node knows.
pub(super) fn removable(ctx: &Context, name: &str) -> Result<Found, Kept> {
    let (backend, server) = find(ctx, name).map_err(Kept::Never)?;
    if !server.admin().maint() {
        return Err(Kept::Never("Only servers in maintenance mode can be deleted."));
    }
    let sessions = server.served() > 0 || server.queued() > 0;
    if sessions || server.idle.load(Relaxed) > 0 {
        return Err(Kept::Busy(!sessions));
    }
    Ok((backend, server))
}

fn target(backend: &Backend, server: &Server) -> Target {
    Target {
        backend: backend.name().to_string(),
        name: server.name().to_string(),
        origin: match server.origin() {
            server::Origin::Config => Origin::Config,
            server::Origin::Runtime => Origin::Added,
        },
        base: Base::of(&server.config()),
    }
}

async fn propose(ctx: &Context, command: Command) -> Answer {
    match ctx.authority.propose(command).await {
        Ok(Reply::Ok) => Answer::done(),
        Ok(Reply::Text(text)) => Answer::notice(text),
        Ok(Reply::Refused(text)) => Answer::error(text),
        Err(reason) => Answer::error(format!("Not done: {reason}.")),
    }
}

async fn add(call: &Call<'_>) -> Answer {
    let (backend, name) = match split(call.arg(0)) {
        Ok(parts) => parts,
        Err(why) => return Answer::error(why),
    };
    let Some(backend) = call.ctx.state.plan().backend(backend).cloned() else {
        return Answer::error("No such backend.");
    };
    if !balance::is_dynamic(&backend.config()) {
        return Answer::error("Backend must use a dynamic load balancing to support dynamic servers.");
    }
    if backend.server(name).is_some() {
        return Answer::error("Already exists a server with the same name in backend.");
    }
    let (address, args) = (call.arg(1).to_owned(), call.args.get(2..).unwrap_or_default().to_vec());
    let parsed = {
        // The name may have to be looked up, and the system's resolver blocks.
        let (name, address, args, resolve) = (name.to_owned(), address, args.clone(), call.ctx.resolve);
        tokio::task::spawn_blocking(move || {
            let words: Vec<&str> = args.iter().map(String::as_str).collect();
            phalanx_config::server_from_args(&name, &address, &words, &ServerOptions::default(), &resolve)
        })
        .await
    };
    let server = match parsed {
        Ok(Ok(server)) => server,
        Ok(Err(why)) => return Answer::error(why),
        Err(_) => return Answer::error("The server's words could not be read."),
    };
    let id_hint = backend.config().servers.iter().map(|s| s.id).max().unwrap_or(0).saturating_add(1);
    let command = Command::AddServer {
        backend: backend.name().to_string(),
        name: name.to_owned(),
        host: server.host,
        addr: server.addr,
        args,
        id_hint,
    };
    propose(call.ctx, command).await
}

/// The options of the configuration's own table that a server may have that is added at run time.
fn add_help() -> String {
    let refused = |option: &str| {
        let parsed = phalanx_config::server_from_args(
            "s",
            "127.0.0.1:1",
            &[option],
            &ServerOptions::default(),
            &|_| Err(String::new()),
        );
        parsed.is_err_and(|why| why.contains("not accepted for dynamic server"))
    };
    let mut out = String::from("List of keywords supported for dynamic servers:\n");
    for option in phalanx_config::option_keywords().filter(|o| o.of == "server" && !refused(o.name)) {
        let _ = writeln!(out, "\t{}", format!("{} {}", option.name, option.usage).trim_end());
    }
    out
}

async fn del(call: &Call<'_>) -> Answer {
    let end = tokio::time::Instant::now() + POOL_DRAIN;
    loop {
        match removable(call.ctx, call.arg(0)) {
            Ok((backend, server)) => {
                let target = target(&backend, &server);
                return propose(call.ctx, Command::DelServer { target }).await;
            }
            Err(Kept::Never(why)) => return Answer::error(why),
            // Pooled connections of a server in maintenance are closed by themselves.
            Err(Kept::Busy(true)) if tokio::time::Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(Kept::Busy(_)) => return Answer::error(BUSY),
        }
    }
}

async fn change(call: &Call<'_>, change: Change) -> Answer {
    match find(call.ctx, call.arg(0)) {
        Ok(found) => set_server(call.ctx, &found, change).await,
        Err(why) => Answer::error(why),
    }
}

async fn set_server(ctx: &Context, (backend, server): &Found, change: Change) -> Answer {
    if change == Change::Check(true) && !server.check().configured {
        return Answer::error("Health check was not configured on this server, cannot enable.");
    }
    if change == Change::Agent(AgentChange::Enabled(true)) && !server.agent().configured {
        return Answer::error("Agent was not configured on this server, cannot enable.");
    }
    let change = if server.agent().configured { change.beside_an_agent() } else { change };
    let target = target(backend, server);
    propose(ctx, Command::SetServer { target, change }).await
}

fn get_weight(call: &Call<'_>) -> Answer {
    match find(call.ctx, call.arg(0)) {
        Ok((_, server)) => Answer::info(format!("{} (initial {})", server.weight(), server.initial_weight())),
        Err(why) => Answer::error(why),
    }
}

async fn set_weight(call: &Call<'_>) -> Answer {
    match find(call.ctx, call.arg(0)) {
        Ok(found) => weight(call.ctx, &found, call.arg(1)).await,
        Err(why) => Answer::error(why),
    }
}

async fn weight(ctx: &Context, found: &Found, text: &str) -> Answer {
    let (backend, server) = found;
    let weight = match parse_weight(text) {
        Ok(weight) => weight,
        Err(why) => return Answer::error(why),
    };
    let value = weight.of(server.initial_weight());
    if !balance::is_dynamic(&backend.config()) && value != 0 && value != server.initial_weight() {
        return Answer::error(
            "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'.",
        );
    }
    set_server(ctx, found, Change::Weight(weight)).await
}

fn parse_weight(text: &str) -> Result<Weight, &'static str> {
    if text.is_empty() {
        return Err("Require <weight> or <weight%>.");
    }
    let (digits, percent) = match text.strip_suffix('%') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    let number = match digits.parse::<i64>() {
        Ok(number) => number,
        Err(_) if digits.starts_with(|c: char| c.is_ascii_digit()) => {
            return Err("Trailing garbage in weight string.");
        }
        Err(_) => return Err("Empty weight string empty or preceded by garbage"),
    };
    match (percent, u32::try_from(number)) {
        (true, Ok(number)) => Ok(Weight::Percent(number)),
        (true, Err(_)) => Err("Relative weight must be positive."),
        (false, Ok(number)) if number <= 256 => Ok(Weight::Absolute(number)),
        (false, _) => Err("Absolute weight can only be between 0 and 256 inclusive."),
    }
}

async fn set_maxconn(call: &Call<'_>) -> Answer {
    let found = match find(call.ctx, call.arg(0)) {
        Ok(found) => found,
        Err(why) => return Answer::error(why),
    };
    match call.arg(1) {
        "" => Answer::error("Require <maxconn>."),
        text => match text.parse::<u32>() {
            Ok(maxconn) => set_server(call.ctx, &found, Change::Maxconn(maxconn)).await,
            Err(_) if text.starts_with('-') => Answer::error("Value out of range."),
            Err(_) => Answer::error("maxconn string empty or preceded by garbage"),
        },
    }
}

async fn set(call: &Call<'_>) -> Answer {
    const USAGE: &str = "usage: set server <backend>/<server> addr | agent | agent-addr | agent-port | \
        agent-send | check-addr | check-port | fqdn | health | ssl | state | weight";
    let found = match find(call.ctx, call.arg(0)) {
        Ok(found) => found,
        Err(why) => return Answer::error(why),
    };
    let ctx = call.ctx;
    match call.arg(1) {
        "weight" => weight(ctx, &found, call.arg(2)).await,
        "state" => match call.arg(2) {
            "ready" => set_server(ctx, &found, Change::Admin(Admin::Ready)).await,
            "drain" => set_server(ctx, &found, Change::Admin(Admin::Drain)).await,
            "maint" => set_server(ctx, &found, Change::Admin(Admin::Maint)).await,
            _ => Answer::error("'set server <srv> state' expects 'ready', 'drain' and 'maint'."),
        },
        "health" => match call.arg(2) {
            "up" => set_server(ctx, &found, Change::Health(Force::Up)).await,
            "stopping" => set_server(ctx, &found, Change::Health(Force::Stopping)).await,
            "down" => set_server(ctx, &found, Change::Health(Force::Down)).await,
            _ => Answer::error("'set server <srv> health' expects 'up', 'stopping', or 'down'."),
        },
        "addr" => set_addr(call, &found).await,
        "agent" | "agent-send" if !found.1.agent_runs() => {
            Answer::error("agent checks are not enabled on this server.")
        }
        "agent-port" if call.arg(2).is_empty() => {
            Answer::error("set server <b>/<s> agent-port requires a port.")
        }
        "agent-addr" | "agent-port" if !found.1.agent_runs() => {
            Answer::error("agent checks are not enabled on this server")
        }
        "agent" => match call.arg(2) {
            "up" => set_server(ctx, &found, Change::Agent(AgentChange::Force(true))).await,
            "down" => set_server(ctx, &found, Change::Agent(AgentChange::Force(false))).await,
            _ => Answer::error("'set server <srv> agent' expects 'up' or 'down'."),
        },
        "agent-addr" => set_agent_addr(call, &found).await,
        "agent-port" => match check_port(call.arg(2)) {
            Ok(port) => {
                let change = AgentChange::Addr { ip: None, port: Some(port) };
                set_server(ctx, &found, Change::Agent(change)).await
            }
            Err(why) => Answer::error(why),
        },
        "agent-send" => {
            let change = AgentChange::Send(call.arg(2).to_owned());
            set_server(ctx, &found, Change::Agent(change)).await
        }
        "check-addr" if call.arg(2).is_empty() => {
            Answer::error("set server <b>/<s> check-addr requires an address and optionally a port.")
        }
        "check-port" if call.arg(2).is_empty() => {
            Answer::error("set server <b>/<s> check-port requires a port.")
        }
        "check-addr" | "check-port" if !found.1.check().configured => {
            Answer::error("health checks are not enabled on this server")
        }
        "check-addr" => set_check_addr(call, &found).await,
        "check-port" => match check_port(call.arg(2)) {
            Ok(port) => set_server(ctx, &found, Change::CheckAddr { ip: None, port: Some(port) }).await,
            Err(why) => Answer::error(why),
        },
        "fqdn" => set_fqdn(call, &found).await,
        "ssl" => {
            Answer::error("'set server <srv> ssl' cannot be set.  default-server should define ssl settings")
        }
        _ => Answer::error(USAGE),
    }
}

async fn set_addr(call: &Call<'_>, found: &Found) -> Answer {
    const BY: &str = "by 'stats socket command'";
    let old = found.1.addr();
    if call.arg(2).is_empty() {
        return Answer::error("set server <b>/<s> addr requires an address and optionally a port.");
    }
    let Ok(ip) = call.arg(2).parse::<IpAddr>() else {
        return Answer::error(format!("Invalid addr '{}' {BY}", call.arg(2)));
    };
    let port = match (call.arg(3), call.arg(4)) {
        ("", _) => None,
        ("port", "") => return Answer::error("set server <b>/<s> addr requires a port after 'port'."),
        ("port", text) if text.starts_with(['+', '-']) => {
            return Answer::error(format!("port maps ('{text}') cannot be set at run time."));
        }
        ("port", text) => match text.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            _ => return Answer::error(format!("provided port is not valid ('{text}') {BY}")),
        },
        (other, _) => {
            return Answer::error(format!("'set server <b>/<s> addr' expects 'port', not '{other}'."));
        }
    };
    let mut message = if ip == old.ip() {
        "no need to change the addr".to_owned()
    } else {
        format!("IP changed from '{}' to '{ip}'", old.ip())
    };
    match port {
        Some(port) if port == old.port() => message.push_str(", no need to change the port"),
        Some(port) => {
            let _ = write!(message, ", port changed from '{}' to '{port}'", old.port());
        }
        None => {}
    }
    let registry = call.ctx.authority.registry();
    if let Some(source) = discovery::source(&found.1.config(), found.0.name(), registry.names()) {
        let placed = registry.discovered().place(&source.to_string(), found.0.name(), found.1.name());
        if placed != Placed::Unknown {
            let why =
                format!("The address of this server is found at run time, by {source}: it is not set here.");
            return Answer::error(why);
        }
    }
    let answer = set_server(call.ctx, found, Change::Addr { ip, port }).await;
    if answer == Answer::done() { Answer::notice(format!("{message} {BY}")) } else { answer }
}

/// The name by which the address of a server is found. What is found for it follows by itself.
async fn set_fqdn(call: &Call<'_>, found: &Found) -> Answer {
    const BY: &str = "by 'stats socket command'";
    let ((backend, server), name) = (found, call.arg(2));
    let config = server.config();
    let failed = |why: &str| Answer::error(format!("set server <b>/<s> fqdn {why}."));
    if name.is_empty() {
        return failed("requires a FQDN");
    }
    match config.discovered.as_deref() {
        None => return failed("failed because no resolution is configured"),
        Some(Discovery::Consul { .. }) => return failed("failed because its address comes from Consul"),
        Some(source) if source.is_srv() => return failed("failed because SRV resolution is configured"),
        Some(_) => {}
    }
    if let Some(c) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(*c)) {
        tracing::debug!("'{}' in a host name", c.escape_default());
        return Answer::error(format!("invalid fqdn '{name}' {BY}"));
    }
    let (who, labels) = (format!("{}/{}", backend.name(), server.name()), name.trim_end_matches('.'));
    let lengths_fit = labels.len() <= 253 && labels.split('.').all(|label| (1..=63).contains(&label.len()));
    if !lengths_fit || labels.starts_with('_') {
        return Answer::error(format!("could not update {who} FQDN {BY}"));
    }
    let registry = call.ctx.authority.registry();
    let old = registry.names().of(backend.name(), server.name(), &config.host).unwrap_or(&config.host);
    if old == name {
        return Answer::notice(format!("no need to change the FDQN {BY}"));
    }
    let message = format!("{who} changed its FQDN from {old} to {name} {BY}");
    let answer = set_server(call.ctx, found, Change::Fqdn(name.to_owned())).await;
    if answer == Answer::done() { Answer::notice(message) } else { answer }
}

async fn set_agent_addr(call: &Call<'_>, found: &Found) -> Answer {
    if call.arg(2).is_empty() {
        return Answer::error("set server <b>/<s> agent-addr requires an address and optionally a port.");
    }
    let (text, resolve) = (call.arg(2).to_owned(), call.ctx.resolve);
    // The name may have to be looked up, and the system's resolver blocks.
    let ip = match tokio::task::spawn_blocking(move || text.parse().or_else(|_| resolve(&text))).await {
        Ok(Ok(ip)) => ip,
        _ => return Answer::error(format!("invalid addr '{}'", call.arg(2))),
    };
    let port = match (call.arg(3), call.arg(4)) {
        ("", _) => None,
        ("port", text) => match check_port(text) {
            Ok(port) => Some(port),
            Err(why) => return Answer::error(why),
        },
        (other, _) => {
            return Answer::error(format!("'set server <b>/<s> agent-addr' expects 'port', not '{other}'."));
        }
    };
    set_server(call.ctx, found, Change::Agent(AgentChange::Addr { ip: Some(ip), port })).await
}

async fn set_check_addr(call: &Call<'_>, found: &Found) -> Answer {
    let Ok(ip) = call.arg(2).parse::<IpAddr>() else {
        return Answer::error(format!("invalid addr '{}'", call.arg(2)));
    };
    let port = match (call.arg(3), call.arg(4)) {
        ("", _) => None,
        ("port", text) => match check_port(text) {
            Ok(port) => Some(port),
            Err(why) => return Answer::error(why),
        },
        (other, _) => {
            return Answer::error(format!("'set server <b>/<s> check-addr' expects 'port', not '{other}'."));
        }
    };
    set_server(call.ctx, found, Change::CheckAddr { ip: Some(ip), port }).await
}

fn check_port(text: &str) -> Result<u16, &'static str> {
    match text.parse::<u32>() {
        Ok(port @ 1..=65_535) => Ok(port as u16),
        Ok(_) => Err("provided port is invalid"),
        Err(_) if text.strip_prefix('-').is_some_and(|n| n.parse::<u32>().is_ok()) => {
            Err("provided port is invalid")
        }
        Err(_) => Err("provided port is not an integer"),
    }
}

fn shutdown_sessions(call: &Call<'_>) -> Answer {
    match find(call.ctx, call.arg(0)) {
        Ok((_, server)) => {
            call.ctx.state.sessions().kill_on(&server, Kill::Admin);
            Answer::done()
        }
        Err(why) => Answer::error(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_absolute_or_relative_and_bounded() {
        for (text, want) in [
            ("0", Ok(Weight::Absolute(0))),
            ("256", Ok(Weight::Absolute(256))),
            ("50%", Ok(Weight::Percent(50))),
            ("300%", Ok(Weight::Percent(300))),
            ("257", Err("Absolute weight can only be between 0 and 256 inclusive.")),
            ("-1", Err("Absolute weight can only be between 0 and 256 inclusive.")),
            ("-1%", Err("Relative weight must be positive.")),
            ("", Err("Require <weight> or <weight%>.")),
            ("abc", Err("Empty weight string empty or preceded by garbage")),
            ("5x", Err("Trailing garbage in weight string.")),
            ("%", Err("Empty weight string empty or preceded by garbage")),
        ] {
            assert_eq!(parse_weight(text), want, "{text}");
        }
    }
}
