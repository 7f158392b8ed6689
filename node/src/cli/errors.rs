//! `show errors`: the last refused request of each frontend, byte for byte.

use std::fmt::Write as _;

use phalanx_config::Level;
use phalanx_engine::frontend::{CapturedError, Frontend};
use phalanx_engine::log;

use super::keyword::{Answer, Call, Keyword, Run};

pub(super) const KEYWORDS: &[Keyword] = &[Keyword {
    words: &["show", "errors"],
    usage: "[<px>] [request|response]",
    text: "report last request and/or response errors for each proxy",
    level: Level::Operator,
    run: Run::Now(show),
}];

fn show(call: &Call<'_>) -> Answer {
    let plan = call.ctx.state.plan_owned();
    let (mut wanted, mut requests) = (None, true);
    for word in call.args {
        match word.as_str() {
            "request" => requests = true,
            // Only refused requests are kept.
            "response" => requests = false,
            "-1" => {}
            name => {
                let id = name.parse::<u32>().ok();
                let found = plan.proxies.iter().find(|p| p.config.name == *name || Some(p.config.id) == id);
                let Some(proxy) = found else { return Answer::error("No such proxy.") };
                wanted = Some(proxy.config.id);
            }
        }
    }
    let frontends = plan.proxies.iter().filter_map(|p| p.frontend.as_ref());
    let captured: Vec<(&std::sync::Arc<Frontend>, CapturedError)> = frontends
        .filter(|f| requests && wanted.is_none_or(|id| id == f.id()))
        .filter_map(|f| Some((f, f.last_error.lock().clone()?)))
        .collect();
    let total = captured.iter().map(|(_, e)| e.event + 1).max().unwrap_or(0);
    let mut out = format!("Total events captured on {} : {total}\n", date(call.now.unix_us));
    for (frontend, error) in captured {
        event(frontend, &error, &mut out);
    }
    Answer::dump(out)
}

fn date(unix_us: u64) -> String {
    let mut out = Vec::new();
    log::bracketed(unix_us, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn event(frontend: &Frontend, error: &CapturedError, out: &mut String) {
    let backend = error.backend.as_deref().unwrap_or("<NONE>");
    let server = error.server.as_deref().unwrap_or("<NONE>");
    let client = error.client.map_or("unknown".to_owned(), |c| c.to_string());
    let _ = writeln!(
        out,
        " \n{} frontend {} (#{}): invalid request",
        date(error.unix_us),
        frontend.name(),
        frontend.id()
    );
    let _ = writeln!(out, "  backend {backend}, server {server}, event #{}, src {client}", error.event);
    let _ = writeln!(out, "  len {}, error at position {}:\n  ", error.bytes.len(), error.position);
    dump(&error.bytes, out);
}

/// Bytes that one line shows at most.
const WIDTH: usize = 70;

/// The bytes as text, escaped as in C; a line ends at a line feed, `+` marks one that goes on.
fn dump(bytes: &[u8], out: &mut String) {
    let (mut at, mut continued) = (0, false);
    while at < bytes.len() {
        let _ = write!(out, "  {at:05}{} ", if continued { '+' } else { ' ' });
        let mut width = 0;
        let mut ended = false;
        while at < bytes.len() && width < WIDTH && !ended {
            let b = bytes[at];
            let before = out.len();
            match b {
                b'\n' => {
                    out.push_str("\\n");
                    ended = true;
                }
                b'\r' => out.push_str("\\r"),
                b'\t' => out.push_str("\\t"),
                b'\\' => out.push_str("\\\\"),
                32..=126 => out.push(b as char),
                _ => {
                    let _ = write!(out, "\\x{b:02X}");
                }
            }
            width += out.len() - before;
            at += 1;
        }
        continued = !ended;
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dump_shows_every_byte_and_where_lines_go_on() {
        let mut out = String::new();
        dump(b"GET /a\"b HTTP/1.1\r\nUser-Agent: x\t\x80\\\r\n\r\n", &mut out);
        assert_eq!(
            out,
            "  00000  GET /a\"b HTTP/1.1\\r\\n\n  00019  User-Agent: x\\t\\x80\\\\\\r\\n\n  00037  \\r\\n\n"
        );
        let mut out = String::new();
        dump(&[b'a'; 100], &mut out);
        assert_eq!(out, format!("  00000  {}\n  00070+ {}\n", "a".repeat(70), "a".repeat(30)));
    }
}
