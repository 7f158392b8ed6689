//! Log-format strings as rules use them.

use std::io::Write;

use chrono::{DateTime, Utc};
use phalanx_config::{Format, LogVar, Piece};

use super::value::printable;
use super::{Context, evaluate, http};
use crate::log::{self, decimal};

/// Appends what a log-format string says at the moment. What does not exist leaves nothing; a line end in
/// what a client sent is written as `%0A`, so that no header can be smuggled in.
pub fn render(format: &Format, at: &Context<'_>, out: &mut Vec<u8>) {
    for piece in &format.pieces {
        match piece {
            Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
            Piece::Expr { expr, quoted } => {
                let value = evaluate(expr, at);
                quote(*quoted, out, |out| {
                    if let Some(value) = &value {
                        value.write(out);
                    }
                });
            }
            Piece::Var { var, quoted } => quote(*quoted, out, |out| variable(*var, at, out)),
        }
    }
}

fn quote(quoted: bool, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    if quoted {
        out.push(b'"');
    }
    write(out);
    if quoted {
        out.push(b'"');
    }
}

fn variable(var: LogVar, at: &Context<'_>, out: &mut Vec<u8>) {
    let target = || at.request.map(|(buf, head)| head.target(buf));
    let text = |text: Option<&[u8]>, out: &mut Vec<u8>| printable(text.unwrap_or(b""), out);
    match var {
        LogVar::ClientIp => log::ip(at.src.ip().to_canonical(), out),
        LogVar::ClientPort => decimal(u64::from(at.src.port()), out),
        LogVar::FrontIp => log::ip(at.dst.ip().to_canonical(), out),
        LogVar::FrontPort => decimal(u64::from(at.dst.port()), out),
        LogVar::Frontend => text(at.world.map(|w| w.front.config.name.as_bytes()), out),
        LogVar::Backend => {
            let backend = at.world.map(|w| w.backend.map_or(w.front.config.name.as_str(), |b| b.name()));
            out.extend_from_slice(backend.unwrap_or("").as_bytes());
        }
        LogVar::Server => {
            let server = at.world.and_then(|world| world.server);
            out.extend_from_slice(server.map_or("<NOSRV>", |server| server.name()).as_bytes());
        }
        LogVar::Hostname => out.extend_from_slice(at.world.map_or("", |w| w.state.node()).as_bytes()),
        LogVar::Method => text(at.request.map(|(buf, head)| head.method(buf)), out),
        LogVar::Path => text(target().and_then(http::path), out),
        LogVar::PathOnly => text(target().and_then(http::path), out),
        LogVar::Query => {
            if let Some(query) = target().and_then(http::query) {
                out.push(b'?');
                printable(query, out);
            }
        }
        LogVar::Uri => text(target(), out),
        LogVar::Version => text(at.request.map(|(buf, head)| head.start.third.of(buf)), out),
        LogVar::RequestLine => {
            if let Some((buf, head)) = at.request {
                let start = &head.start;
                let parts = [start.first.of(buf), start.second.of(buf), start.third.of(buf)];
                printable(&parts.join(&b' '), out);
            }
        }
        LogVar::Pid => decimal(u64::from(std::process::id()), out),
        LogVar::RequestCounter => {
            let total = at.world.map_or(0, |w| w.state.process().counters().sum(at.now).req_tot);
            decimal(total, out);
        }
        LogVar::Gmt => {
            let when = DateTime::<Utc>::from_timestamp((at.now.unix_us / 1_000_000) as i64, 0);
            if let Some(when) = when {
                drop(write!(out, "{}", when.format("%d/%b/%Y:%H:%M:%S +0000")));
            }
        }
        LogVar::Timestamp => decimal(at.now.unix_us / 1_000_000, out),
        LogVar::Milliseconds => drop(write!(out, "{:03}", at.now.unix_us / 1_000 % 1_000)),
        LogVar::Status => {
            if let Some((_, head)) = at.response {
                decimal(u64::from(head.start.status), out);
            }
        }
    }
}
