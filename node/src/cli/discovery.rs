//! Commands about servers that are found at run time: `show resolvers`, `show discovery`.

use std::fmt::Write as _;
use std::time::Duration;

use phalanx_config::Level;
use phalanx_config::model::Resolvers;
use phalanx_engine::discovery::{Instance, users};
use phalanx_engine::registry::Source;
use serde_json::json;

use super::Context;
use super::keyword::{Answer, Call, Keyword, Run};
use super::membership::{align, one_line};
use crate::discovery::SourceStatus;

pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["show", "resolvers"],
        usage: "[id]",
        text: "dumps counters from all resolvers section and associated name servers",
        level: Level::User,
        run: Run::Now(show_resolvers),
    },
    Keyword {
        words: &["show", "discovery"],
        usage: "[json]",
        text: "report what was found of servers, by whom, and what was agreed",
        level: Level::User,
        run: Run::Now(show_discovery),
    },
];

fn show_resolvers(call: &Call<'_>) -> Answer {
    let config = call.ctx.state.plan().config.clone();
    let wanted = call.arg(0);
    let sections: Vec<&Resolvers> =
        config.resolvers.iter().map(|r| &**r).filter(|r| wanted.is_empty() || r.name == wanted).collect();
    if sections.is_empty() && !wanted.is_empty() {
        return Answer::error("Can't find that resolvers section");
    }
    let mut out = String::new();
    for section in sections {
        let _ = writeln!(out, "Resolvers section {}", section.name);
        for server in &section.nameservers {
            let _ = writeln!(out, " nameserver {}:", server.name);
            for (name, value) in call.ctx.discovery.nameserver(&section.name, &server.name).rows() {
                let _ = writeln!(out, "  {:<12} {value}", format!("{name}:"));
            }
        }
    }
    Answer::dump(out)
}

/// One source, as this node knows it.
struct Row<'a> {
    name: String,
    /// Servers that it fills here.
    servers: usize,
    reader: Option<String>,
    agreed: Option<&'a Source>,
    /// If this node has read it.
    read: Option<SourceStatus>,
}

fn show_discovery(call: &Call<'_>) -> Answer {
    let as_json = match call.arg(0) {
        "" => false,
        "json" => true,
        other => return Answer::error(format!("'show discovery' expects nothing or 'json', not '{other}'.")),
    };
    let ctx = call.ctx;
    let registry = ctx.authority.registry();
    let config = ctx.state.plan().config.clone();
    let sources = users(&config, registry.names());
    let reader = reader(ctx);
    let mut names: Vec<String> = sources.keys().cloned().collect();
    names.extend(
        registry.discovered().sources().map(|(n, _)| n.to_owned()).filter(|n| !sources.contains_key(n)),
    );
    let rows = names.into_iter().map(|name| Row {
        servers: sources.get(&name).map_or(0, |(_, users)| users.iter().map(|u| u.slots.len()).sum()),
        reader: reader.clone(),
        agreed: registry.discovered().source(&name),
        // What a former reader remembers is out of date.
        read: ctx.discovery.source(&name).filter(|_| reader.as_deref() == Some(ctx.state.node())),
        name,
    });
    let rows: Vec<Row<'_>> = rows.collect();
    if as_json {
        let sources: Vec<_> = rows.iter().map(|row| json_of(row, call)).collect();
        return Answer::dump(
            json!({ "node": ctx.state.node(), "reader": reader, "sources": sources }).to_string(),
        );
    }
    if rows.is_empty() {
        return Answer::info("No server of the configuration is found at run time.");
    }
    Answer::dump(table_of(&rows, call))
}

/// The node that reads, if there is one.
fn reader(ctx: &Context) -> Option<String> {
    match ctx.authority.cluster() {
        Some(cluster) => cluster.status().leader,
        None => Some(ctx.state.node().to_owned()),
    }
}

fn age(call: &Call<'_>, at: Option<Duration>) -> Option<u64> {
    at.map(|at| call.now.mono.saturating_sub(at).as_millis() as u64)
}

fn agreed_ago(call: &Call<'_>, source: &Source) -> u64 {
    call.now.unix_us.saturating_sub(source.found.found_at) / 1000
}

fn filled(source: &Source) -> usize {
    source.places.values().map(|servers| servers.values().flatten().filter(|p| p.ip.is_some()).count()).sum()
}

fn address(instance: &Instance) -> String {
    let ips: Vec<String> = instance.ips.iter().map(ToString::to_string).collect();
    let ips = if ips.is_empty() { "-".to_owned() } else { ips.join("|") };
    let port = if instance.port > 0 { format!(":{}", instance.port) } else { String::new() };
    if instance.host.is_empty() { format!("{ips}{port}") } else { format!("{}({ips}){port}", instance.host) }
}

fn json_of(row: &Row<'_>, call: &Call<'_>) -> serde_json::Value {
    let agreed = row.agreed.map(|source| {
        let instances: Vec<_> = source
            .found
            .instances
            .iter()
            .map(|i| json!({"host": i.host, "ips": i.ips, "port": i.port, "weight": i.weight}))
            .collect();
        json!({
            "reader": source.found.reader,
            "term": source.found.term,
            "index": source.found.index,
            "revision": source.revision,
            "ago_ms": agreed_ago(call, source),
            "why_empty": source.found.why,
            "instances": instances,
            "places": source.places,
        })
    });
    let read = row.read.as_ref().map(|read| {
        json!({
            "queries": read.queries,
            "errors": read.errors,
            "error": read.error,
            "success_ago_ms": age(call, read.succeeded_at),
            "index": read.index,
            "proposals": read.proposals,
            "refused": read.refused,
        })
    });
    json!({
        "source": row.name,
        "servers": row.servers,
        "reader": row.reader,
        "agreed": agreed,
        "read_here": read,
    })
}

fn table_of(rows: &[Row<'_>], call: &Call<'_>) -> String {
    let dash = || "-".to_owned();
    let ms = |ms: Option<u64>| ms.map_or_else(dash, |ms| format!("{ms}ms"));
    let header = [
        "# source",
        "servers",
        "filled",
        "instances",
        "reader",
        "index",
        "agreed",
        "success",
        "queries",
        "errors",
        "error",
    ];
    let mut table = vec![header.map(str::to_owned)];
    for row in rows {
        let read = row.read.as_ref();
        let problem = read.and_then(|r| r.error.as_ref().or(r.refused.as_ref()));
        table.push([
            row.name.clone(),
            row.servers.to_string(),
            row.agreed.map_or_else(dash, |s| filled(s).to_string()),
            row.agreed.map_or_else(dash, |s| s.found.instances.len().to_string()),
            row.reader.clone().unwrap_or_else(dash),
            row.agreed.map_or_else(dash, |s| s.found.index.to_string()),
            ms(row.agreed.map(|s| agreed_ago(call, s))),
            ms(read.and_then(|r| age(call, r.succeeded_at))),
            read.map_or_else(dash, |r| r.queries.to_string()),
            read.map_or_else(dash, |r| r.errors.to_string()),
            problem.map_or_else(dash, |p| one_line(p)),
        ]);
    }
    let mut out = String::new();
    align(&table, &mut out);
    for row in rows {
        let Some(source) = row.agreed else { continue };
        let why = source.found.why.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
        let list: Vec<String> = source.found.instances.iter().map(address).collect();
        let list = if list.is_empty() { "none".to_owned() } else { list.join(" ") };
        let _ = writeln!(out, "# {}: {}{why}", row.name, one_line(&list));
    }
    out
}
