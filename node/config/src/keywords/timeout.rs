//! `timeout …` lines (manual section 4.2).

use std::time::Duration;

use super::global::time;
use crate::draft;
use crate::keyword::{Apply, Arity, BACK, FRONT, Keyword, PROXY};
use crate::line::{Args, Fault};
use crate::model::Timeouts;
use crate::parser::Parser;

const fn kw(
    name: &'static str,
    sections: crate::keyword::Sections,
    doc: &'static str,
    apply: Apply,
) -> Keyword {
    Keyword::new(name, "<time>", sections, Arity::Exact(1), doc, apply)
}

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    kw("timeout client", FRONT, "Inactivity on the client side.", |p, a| set(p, a, |t| &mut t.client)),
    kw("timeout server", BACK, "Inactivity on the server side.", |p, a| set(p, a, |t| &mut t.server)),
    kw("timeout connect", BACK, "Time to connect to a server.", |p, a| set(p, a, |t| &mut t.connect)),
    kw("timeout queue", BACK, "Time to wait for a free place on a server.", |p, a| {
        set(p, a, |t| &mut t.queue)
    }),
    kw("timeout check", BACK, "Additional time of a health check.", |p, a| set(p, a, |t| &mut t.check)),
    kw("timeout http-request", PROXY, "Time to receive a whole request head.", |p, a| {
        set(p, a, |t| &mut t.http_request)
    }),
    kw("timeout http-keep-alive", PROXY, "Time to wait for the next request.", |p, a| {
        set(p, a, |t| &mut t.http_keep_alive)
    }),
    kw("timeout tunnel", BACK, "Inactivity of tunnels, on both sides.", |p, a| set(p, a, |t| &mut t.tunnel)),
    kw("timeout client-fin", FRONT, "Inactivity of a half-closed client side.", |p, a| {
        set(p, a, |t| &mut t.client_fin)
    }),
    kw("timeout server-fin", BACK, "Inactivity of a half-closed server side.", |p, a| {
        set(p, a, |t| &mut t.server_fin)
    }),
    kw("timeout tarpit", PROXY, "Time for which tarpitted requests are held.", |p, a| {
        set(p, a, |t| &mut t.tarpit)
    }),
];

fn set(
    parser: &mut Parser<'_>,
    args: &Args<'_>,
    field: fn(&mut Timeouts) -> &mut Option<Duration>,
) -> Result<(), Fault> {
    *field(&mut parser.settings().timeouts) = draft::timeout(time(args)?);
    Ok(())
}
