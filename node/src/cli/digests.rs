//! `show cluster digests`: what nodes should have in common, as digests to compare.
//!
//! One line per frontend, backend, map or ACL and stick table, and one for everything that commands
//! have changed. A digest is over content alone: equal on two nodes when they have the same. `@all show
//! cluster digests` shows those of all nodes.

use phalanx_config::Level;
use phalanx_engine::registry::digest;
use serde_json::json;

use super::Context;
use super::keyword::{Answer, Call, Keyword, Run};
use super::membership::align;

pub(super) const KEYWORDS: &[Keyword] = &[Keyword {
    words: &["show", "cluster", "digests"],
    usage: "[json]",
    text: "report digests of what all nodes should have in common",
    level: Level::User,
    run: Run::Now(show),
}];

/// A part of the state.
struct Part {
    kind: &'static str,
    name: String,
    /// How many servers, entries, …
    entries: usize,
    digest: u64,
}

fn show(call: &Call<'_>) -> Answer {
    let registry = call.ctx.authority.registry();
    let mut parts = vec![Part {
        kind: "commands",
        name: "-".to_owned(),
        entries: usize::try_from(registry.revision()).unwrap_or(usize::MAX),
        digest: registry.digest(),
    }];
    parts.extend(proxies(call.ctx));
    parts.extend(patterns(call.ctx));
    for table in call.ctx.tables().list() {
        let (name, digest) = (table.name().to_string(), table.digest(call.now));
        parts.push(Part { kind: "table", name, entries: table.used(), digest });
    }
    match call.arg(0) {
        "" => {
            let header = ["# kind", "name", "entries", "digest"].map(str::to_owned);
            let row = |p: &Part| {
                [
                    p.kind.to_owned(),
                    p.name.replace(' ', "_"),
                    p.entries.to_string(),
                    format!("{:016x}", p.digest),
                ]
            };
            let rows: Vec<_> = std::iter::once(header).chain(parts.iter().map(row)).collect();
            let mut out = String::new();
            align(&rows, &mut out);
            Answer::dump(out)
        }
        "json" => {
            let part = |p: &Part| {
                let digest = format!("{:016x}", p.digest);
                json!({"kind": p.kind, "name": p.name, "entries": p.entries, "digest": digest})
            };
            let parts: Vec<_> = parts.iter().map(part).collect();
            let node = call.ctx.state.node();
            Answer::dump(json!({"node": node, "revision": registry.revision(), "digests": parts}).to_string())
        }
        other => Answer::error(format!("'show cluster digests' expects nothing or 'json', not '{other}'.")),
    }
}

fn proxies(ctx: &Context) -> Vec<Part> {
    let mut parts = Vec::new();
    for proxy in &ctx.state.plan().proxies {
        let name = proxy.config.name.clone();
        if let Some(frontend) = &proxy.frontend {
            let digest = digest(&(frontend.status(), frontend.maxconn()));
            parts.push(Part {
                kind: "frontend",
                name: name.clone(),
                entries: proxy.config.binds.len(),
                digest,
            });
        }
        if let Some(backend) = &proxy.backend {
            let servers = backend.servers();
            // What each node sees for itself, as health and times, is no part of it.
            let state: Vec<_> = servers
                .iter()
                .map(|s| {
                    (s.id(), s.name().clone(), s.addr(), s.weight(), s.admin().maint(), s.admin().drain())
                })
                .collect();
            parts.push(Part { kind: "servers", name, entries: servers.len(), digest: digest(&state) });
        }
    }
    parts
}

fn patterns(ctx: &Context) -> Vec<Part> {
    let plan = ctx.state.plan();
    let part = |set: &std::sync::Arc<phalanx_engine::pattern::PatternSet>| {
        let kind = if set.source().is_map { "map" } else { "acl" };
        Part { kind, name: set.identity().to_owned(), entries: set.entries().len(), digest: set.digest() }
    };
    let mut parts: Vec<Part> = plan.patterns.iter().map(part).collect();
    parts.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    parts
}
