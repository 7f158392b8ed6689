//! Rule sets (manual sections 4.3 and 4.4): their `track-sc` actions, the ones that are built.

use super::stick;
use crate::draft::{Placed, ProxyDraft};
use crate::keyword::{Apply, Arity, BACKEND, FRONTEND, Keyword, LISTEN};
use crate::line::{Args, Fault};
use crate::model::TrackRule;
use crate::parser::Parser;

const USAGE: &str = "<key> [table <table>]";

const fn rule(name: &'static str, sections: crate::keyword::Sections, apply: Apply) -> Keyword {
    Keyword::new(name, USAGE, sections, Arity::AtLeast(1), "Counts under a key of a stick table.", apply)
}

const ANY: crate::keyword::Sections = FRONTEND | LISTEN | BACKEND;

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    rule("tcp-request connection track-sc0", FRONTEND | LISTEN, |p, a| connection(p, a, 0)),
    rule("tcp-request connection track-sc1", FRONTEND | LISTEN, |p, a| connection(p, a, 1)),
    rule("tcp-request connection track-sc2", FRONTEND | LISTEN, |p, a| connection(p, a, 2)),
    rule("tcp-request content track-sc0", ANY, |p, a| track(p, a, 0, |d| &mut d.tcp_content_rules)),
    rule("tcp-request content track-sc1", ANY, |p, a| track(p, a, 1, |d| &mut d.tcp_content_rules)),
    rule("tcp-request content track-sc2", ANY, |p, a| track(p, a, 2, |d| &mut d.tcp_content_rules)),
    rule("http-request track-sc0", ANY, |p, a| track(p, a, 0, |d| &mut d.http_request_rules)),
    rule("http-request track-sc1", ANY, |p, a| track(p, a, 1, |d| &mut d.http_request_rules)),
    rule("http-request track-sc2", ANY, |p, a| track(p, a, 2, |d| &mut d.http_request_rules)),
];

fn connection(parser: &mut Parser<'_>, args: &Args<'_>, counter: u8) -> Result<(), Fault> {
    let (expr, _) = stick::key_and_table(args)?;
    // The request has not been read when these rules run.
    if expr.fetch.needs_http() {
        let what = "extracts information from 'HTTP request headers', none of which is available here";
        return Err(args.named(0, format!(": fetch method '{}' {what}", expr.text)));
    }
    track(parser, args, counter, |draft| &mut draft.tcp_connection_rules)
}

fn track(
    parser: &mut Parser<'_>,
    args: &Args<'_>,
    counter: u8,
    rules: fn(&mut ProxyDraft) -> &mut Vec<Placed<TrackRule>>,
) -> Result<(), Fault> {
    let (expr, table) = stick::key_and_table(args)?;
    let pos = parser.pos();
    let proxy = parser.proxy();
    let table = table.unwrap_or_else(|| proxy.name.clone());
    rules(proxy).push(Placed { value: TrackRule { counter, expr, table }, pos });
    Ok(())
}
