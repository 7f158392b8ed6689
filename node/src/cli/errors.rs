//! `show errors`: the last refused request of each frontend and response of each backend, byte
//! for byte.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use phalanx_config::Level;
use phalanx_engine::frontend::CapturedError;
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
    // A number need not be that of a proxy, a negative one is all; what else is said is not looked at.
    let wanted = match call.arg(0) {
        "" => None,
        name => match plan.proxies.iter().find(|p| p.config.name == *name) {
            Some(proxy) => Some(i64::from(proxy.config.id)),
            None => match leading_number(name) {
                0 => return Answer::error("No such proxy."),
                number => Some(number).filter(|number| *number > 0),
            },
        },
    };
    let (requests, responses) = (call.arg(1) != "response", call.arg(1) != "request");
    let total = call.ctx.state.process().captured.load(Relaxed);
    let mut out = format!("Total events captured on {} : {total}\n", date(call.now.unix_us));
    for proxy in &plan.proxies {
        let (name, id) = (&proxy.config.name, proxy.config.id);
        // A proxy is named as either side.
        let asked = |e: &CapturedError| {
            let is = |id: u32| wanted == Some(i64::from(id));
            wanted.is_none() || is(id) || e.other.as_ref().is_some_and(|(_, other)| is(*other))
        };
        let request = proxy.frontend.as_ref().filter(|_| requests).and_then(|f| f.last_error.lock().clone());
        if let Some(error) = request.filter(asked) {
            let what = format!("frontend {name} (#{id}): invalid request\n  backend");
            event(&what, &error, &mut out);
        }
        let response = proxy.backend.as_ref().filter(|_| responses).and_then(|b| b.last_error.lock().clone());
        if let Some(error) = response.filter(asked) {
            let what = format!("backend {name} (#{id}): invalid response\n  frontend");
            event(&what, &error, &mut out);
        }
    }
    Answer::dump(out)
}

/// The number that a word begins with, 0 if it does not.
fn leading_number(word: &str) -> i64 {
    let digits = word.strip_prefix('-').unwrap_or(word);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let number = digits[..end].parse::<u32>().map_or(0, i64::from);
    if digits.len() < word.len() { -number } else { number }
}

fn date(unix_us: u64) -> String {
    let mut out = Vec::new();
    log::bracketed(unix_us, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn event(what: &str, error: &CapturedError, out: &mut String) {
    let named = |object: &Option<(Arc<str>, u32)>| match object {
        Some((name, id)) => format!("{name} (#{id})"),
        None => "<NONE> (#-1)".to_owned(),
    };
    let client = error.client.map_or("unknown".to_owned(), |c| c.to_string());
    let (other, server) = (named(&error.other), named(&error.server));
    let _ = writeln!(
        out,
        " \n{} {what} {other}, server {server}, event #{}, src {client}",
        date(error.unix_us),
        error.event
    );
    let len = error.bytes.len();
    let free = BUFFER.saturating_sub(len);
    let _ = writeln!(out, "  buffer starts at 0 (including 0 out), {free} free,");
    let _ = writeln!(out, "  len {len}, wraps at {}, error at position {}:\n  ", len + free, error.position);
    dump(&error.bytes, out);
}

/// Size of a buffer, as `tune.bufsize` has it by default.
const BUFFER: usize = 16_384;

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
