//! The statistics page: `stats uri` of an HTTP proxy, as HTML, CSV or JSON.
//!
//! The session hands over the URI and the `Authorization` header and sends what comes back. The
//! page only reads; everything in it that came from outside is escaped.

use base64::Engine as _;
use phalanx_config::{Proxy, Stats};
use phalanx_engine::errors_page;
use phalanx_engine::state::State;
use phalanx_engine::stats::{Filter, Row, csv, json, rows};
use phalanx_engine::time::Now;

mod html;
#[cfg(test)]
mod tests;

/// An answer to be sent; the session adds `content-length` and whatever the connection needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Reason phrase.
    pub reason: &'static str,
    /// Headers, names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// Body; not sent for HEAD.
    pub body: Vec<u8>,
}

/// Whether a request for `uri` is for the statistics page. Like HAProxy's, a prefix match on
/// everything after the authority, query included.
pub fn matches(stats: &Stats, uri: &[u8]) -> bool {
    relative(uri).starts_with(stats.uri.as_bytes())
}

/// Answers a request that [`matches`].
pub fn respond(
    state: &State,
    stats: &Stats,
    proxy: &Proxy,
    uri: &[u8],
    authorization: Option<&[u8]>,
    now: Now,
) -> Response {
    if !authorized(stats, authorization) {
        return unauthorized(stats);
    }
    let flags = Flags::of(relative(uri).get(stats.uri.len()..).unwrap_or_default());
    let details = stats.show_legends;
    let shown = |row: &Row| {
        let name = row.get(phalanx_engine::stats::Column::Pxname).to_string();
        stats.scope.is_empty() || stats.scope.iter().any(|s| *s == name || (s == "." && name == proxy.name))
    };
    let filter = Filter { up: flags.up, no_maint: flags.no_maint, details, ..Filter::default() };
    let rows: Vec<Row> = rows(state, &filter, now).into_iter().filter(shown).collect();
    let mut body = String::new();
    let content = match flags.format {
        Format::Csv => {
            csv(&rows, &mut body);
            "text/plain"
        }
        Format::Json => {
            json(&rows, &mut body);
            "application/json"
        }
        Format::Html => {
            let refresh = !flags.norefresh && stats.refresh.is_some();
            html::page(state, stats, &rows, refresh, now, &mut body);
            "text/html; charset=utf-8"
        }
    };
    let mut headers = vec![("cache-control", "no-cache".to_owned()), ("content-type", content.to_owned())];
    if let Some(every) = stats.refresh.filter(|_| !flags.norefresh) {
        headers.push(("refresh", every.as_secs().max(1).to_string()));
    }
    if flags.format == Format::Html {
        let policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";
        headers.push(("content-security-policy", policy.to_owned()));
    }
    Response { status: 200, reason: "OK", headers, body: body.into_bytes() }
}

/// The URI without scheme and authority.
fn relative(uri: &[u8]) -> &[u8] {
    if uri.starts_with(b"/") {
        return uri;
    }
    let Some(scheme) = uri.windows(3).position(|w| w == b"://") else { return uri };
    let rest = &uri[scheme + 3..];
    rest.iter().position(|b| *b == b'/').map_or(b"/", |path| &rest[path..])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Html,
    Csv,
    Json,
}

/// What follows the configured URI: `;csv`, `;norefresh`, …
struct Flags {
    format: Format,
    norefresh: bool,
    up: bool,
    no_maint: bool,
}

impl Flags {
    fn of(rest: &[u8]) -> Flags {
        let has = |word: &[u8]| rest.split(|b| matches!(b, b';' | b'?' | b'&')).any(|w| w == word);
        let format = match (has(b"csv"), has(b"json")) {
            (true, _) => Format::Csv,
            (_, true) => Format::Json,
            _ => Format::Html,
        };
        Flags { format, norefresh: has(b"norefresh"), up: has(b"up"), no_maint: has(b"no-maint") }
    }
}

fn authorized(stats: &Stats, header: Option<&[u8]>) -> bool {
    if stats.auth.is_empty() {
        return true;
    }
    let Some(given) = header.and_then(credentials) else { return false };
    let mut found = false;
    for (user, password) in &stats.auth {
        let wanted = [user.as_bytes(), b":", password.as_bytes()].concat();
        // Every pair is compared to its end, so that the time tells nothing about a near miss.
        found |= same(&wanted, &given);
    }
    found
}

fn credentials(header: &[u8]) -> Option<Vec<u8>> {
    let (scheme, rest) = header.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    base64::engine::general_purpose::STANDARD.decode(rest.trim_ascii()).ok()
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

fn unauthorized(stats: &Stats) -> Response {
    let page = errors_page::page(401);
    let realm: String = stats.realm.chars().filter(|c| !c.is_control() && *c != '"' && *c != '\\').collect();
    Response {
        status: page.status,
        reason: page.reason,
        headers: vec![
            ("cache-control", "no-cache".to_owned()),
            ("content-type", "text/html".to_owned()),
            ("www-authenticate", format!("Basic realm=\"{realm}\"")),
        ],
        body: page.body.as_bytes().to_vec(),
    }
}
