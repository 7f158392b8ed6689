//! `show sess`, `shutdown session`.

use std::fmt::Write as _;
use std::sync::Arc;

use phalanx_config::Level;
use phalanx_engine::log;
use phalanx_engine::state::sessions::{Phase, Session};

use super::basics::delay;
use super::keyword::{Answer, Call, Keyword, Run};

pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["show", "sess"],
        usage: "[<id>|all|help] [<options>*]",
        text: "report the list of current sessions or dump this exact session",
        level: Level::Operator,
        run: Run::Now(show),
    },
    Keyword {
        words: &["shutdown", "session"],
        usage: "[id]",
        text: "kill a specific session",
        level: Level::Admin,
        run: Run::Now(shutdown),
    },
];

/// What names a session as long as it lives: HAProxy prints its address.
fn id(session: &Arc<Session>) -> u64 {
    Arc::as_ptr(session) as usize as u64
}

fn parse_id(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Which sessions are wanted.
#[derive(Default)]
struct Chosen<'a> {
    backend: Option<&'a str>,
    frontend: Option<&'a str>,
    server: Option<&'a str>,
    older: Option<std::time::Duration>,
    id: Option<u64>,
    all: bool,
}

fn show(call: &Call<'_>) -> Answer {
    const HELP: &str = "Usage: show sess [<id> | all | help] [<options>*]\n\
        Dumps active sessions to the CLI. Passing an <id> or 'all' dumps details.\nOptions:\n  \
        backend <b>        only sessions attached to this backend\n  \
        frontend <f>       only sessions attached to this frontend\n  \
        server <b/s>       only sessions attached to this backend+server\n  \
        older <age>        only sessions older than <age> seconds\n  help               this help";
    let mut chosen = Chosen::default();
    let mut words = call.args.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| Answer::error(format!("'{word}' expects a value.")));
        let result = match word {
            "help" => return Answer::info(HELP),
            "all" => {
                chosen.all = true;
                Ok(())
            }
            "backend" => value().map(|v| chosen.backend = Some(v)),
            "frontend" => value().map(|v| chosen.frontend = Some(v)),
            "server" => value().map(|v| chosen.server = Some(v)),
            "older" => value().and_then(|v| match delay(v, std::time::Duration::from_secs(1)) {
                Some(age) => {
                    chosen.older = Some(age);
                    Ok(())
                }
                None => Err(Answer::error("Invalid age.")),
            }),
            word => match parse_id(word) {
                Some(id) => {
                    chosen.id = Some(id);
                    Ok(())
                }
                None => Err(Answer::error(format!("Unsupported option '{word}', try 'help' for more info."))),
            },
        };
        if let Err(answer) = result {
            return answer;
        }
    }
    let mut out = String::new();
    for session in call.ctx.state.sessions().all() {
        if wanted(call, &chosen, &session) {
            line(call, &session, chosen.all || chosen.id.is_some(), &mut out);
        }
    }
    if out.is_empty() && chosen.id.is_some() {
        return Answer::error("Session not found.");
    }
    Answer::dump(out)
}

fn wanted(call: &Call<'_>, chosen: &Chosen<'_>, session: &Arc<Session>) -> bool {
    let progress = session.progress();
    let server = progress.server.as_ref().map(|s| format!("{}/{}", s.backend_name(), s.name()));
    chosen.id.is_none_or(|wanted| wanted == id(session))
        && chosen.frontend.is_none_or(|name| **session.frontend().name() == *name)
        && chosen.backend.is_none_or(|name| progress.backend.as_deref() == Some(name))
        && chosen.server.is_none_or(|name| server.as_deref() == Some(name))
        && chosen.older.is_none_or(|age| call.now.mono.saturating_sub(session.accepted().mono) >= age)
}

fn line(call: &Call<'_>, session: &Arc<Session>, details: bool, out: &mut String) {
    let progress = session.progress();
    let proto = if session.client().is_ipv4() { "tcpv4" } else { "tcpv6" };
    let age = call.now.mono.saturating_sub(session.accepted().mono).as_secs();
    let phase = match progress.phase {
        Phase::Request => "request",
        Phase::Queue => "queue",
        Phase::Connect => "connect",
        Phase::Response => "response",
        Phase::Data | Phase::Tunnel => "data",
    };
    let backend = progress.backend.as_deref().unwrap_or("<NONE>");
    let server = progress.server.as_ref().map_or("<none>".to_owned(), |s| s.name().to_string());
    let _ = write!(
        out,
        "{:#x}: proto={proto} src={} fe={} be={backend} srv={server} age={} phase={phase} thread={}",
        id(session),
        session.client(),
        session.frontend().name(),
        human(age),
        session.worker().0 + 1,
    );
    if details {
        let mut date = Vec::new();
        log::bracketed(session.accepted().unix_us, &mut date);
        let _ = write!(out, " accepted={} local={}", String::from_utf8_lossy(&date), session.local());
        if let Some(server) = &progress.server {
            let _ = write!(out, " srv_addr={} srv_id={}", server.addr(), server.id());
        }
    }
    out.push('\n');
}

/// `1d2h`, `3m4s`, `5s`, as HAProxy prints ages.
fn human(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn shutdown(call: &Call<'_>) -> Answer {
    let Some(wanted) = parse_id(call.arg(0)) else {
        return Answer::error("Session pointer expected (use 'show sess').");
    };
    match call.ctx.state.sessions().all().iter().find(|s| id(s) == wanted) {
        Some(session) => {
            session.kill();
            Answer::done()
        }
        None => Answer::error("No such session (use 'show sess')."),
    }
}
