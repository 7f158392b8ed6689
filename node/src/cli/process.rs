//! Commands about the process: `show info`, `show stat`, `show version`, `show env`, `reload`, …

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use phalanx_config::Level;
use phalanx_engine::stats::{self, Filter, info};
use tokio::sync::oneshot;

use super::basics::level_name;
use super::keyword::{Answer, Call, Keyword, Run};
use super::{Context, Load, socket};

pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["show", "info"],
        usage: "[desc|json|typed|float]*",
        text: "report information about the running process",
        level: Level::User,
        run: Run::Now(show_info),
    },
    Keyword {
        words: &["show", "stat"],
        usage: "[desc|json|no-maint|typed|up]*",
        text: "report counters for each proxy and server",
        level: Level::User,
        run: Run::Now(show_stat),
    },
    Keyword {
        words: &["show", "version"],
        usage: "",
        text: "show version of the current process",
        level: Level::User,
        run: Run::Now(|_| Answer::info(info::VERSION)),
    },
    Keyword {
        words: &["show", "activity"],
        usage: "[-1|0|thread_num]",
        text: "show per-thread activity stats (for support/developers)",
        level: Level::Operator,
        run: Run::Now(show_activity),
    },
    Keyword {
        words: &["show", "libs"],
        usage: "",
        text: "show loaded object files and libraries",
        level: Level::Operator,
        run: Run::Now(show_libs),
    },
    Keyword {
        words: &["show", "env"],
        usage: "[var]",
        text: "dump environment variables known to the process",
        level: Level::Operator,
        run: Run::Now(show_env),
    },
    Keyword {
        words: &["show", "cli", "sockets"],
        usage: "",
        text: "dump list of cli sockets",
        level: Level::Operator,
        run: Run::Now(show_cli_sockets),
    },
    Keyword {
        words: &["show", "startup-logs"],
        usage: "",
        text: "report logs emitted during startup or the last reload",
        level: Level::Operator,
        run: Run::Now(|call| Answer::dump(said(&call.ctx.startup_logs.lock()))),
    },
    Keyword {
        words: &["reload"],
        usage: "",
        text: "read the configuration again and apply it",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(reload(call))),
    },
];

/// Longest time that a reload may take until it is answered.
const RELOAD: Duration = Duration::from_secs(60);

fn show_info(call: &Call<'_>) -> Answer {
    let has = |word: &str| call.args.iter().any(|a| a == word);
    let process = process(call.ctx);
    let fields = info::fields(&call.ctx.state, &process, call.now);
    let mut out = String::new();
    if has("json") {
        info::json(&fields, &mut out);
    } else if has("typed") {
        info::typed(&fields, has("desc"), &mut out);
    } else {
        info::plain(&fields, has("desc"), &mut out);
    }
    Answer::dump(out)
}

fn process(ctx: &Context) -> info::Process {
    let (active_peers, connected_peers) = super::membership::peer_counts(ctx);
    let binds: usize = {
        let plan = ctx.state.plan();
        plan.proxies.iter().filter(|p| p.frontend.is_some()).map(|p| p.config.binds.len()).sum()
    };
    info::Process {
        pid: std::process::id(),
        ulimit_n: phalanx_sys::process::nofile().map_or(0, |(soft, _)| soft),
        memory: resident_bytes(),
        idle_pct: ctx.load.idle_percent(ctx.state.workers()),
        listeners: u32::try_from(binds).unwrap_or(u32::MAX),
        active_peers,
        connected_peers,
        dropped_logs: ctx.logs.dropped(),
        warnings: u32::try_from(ctx.warnings.load(Relaxed)).unwrap_or(u32::MAX),
        build: format!("phalanx {} {}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH),
    }
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

/// Processor time used so far, from `/proc`: fields 14 and 15 in hundredths of a second.
fn processor_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 10))
}

impl Load {
    /// Percent of the workers' time that was not used since the last call.
    fn idle_percent(&self, workers: usize) -> Option<u32> {
        let (now, used) = (Instant::now(), processor_time()?);
        let (then, before) = self.0.lock().replace((now, used)).unwrap_or((now, used));
        let available = now.duration_since(then).as_secs_f64() * workers.max(1) as f64;
        let busy = used.saturating_sub(before).as_secs_f64();
        Some(if available > 0.0 { (100.0 - 100.0 * busy / available).clamp(0.0, 100.0) as u32 } else { 100 })
    }
}

fn show_stat(call: &Call<'_>) -> Answer {
    let mut filter = Filter { details: call.level >= Level::Operator, ..Filter::default() };
    let mut words = call.args.iter().map(String::as_str).peekable();
    if words.next_if_eq(&"domain").is_some() {
        match words.next() {
            Some("proxy") => {}
            // There are no resolvers, so there is nothing to tell about them.
            Some("resolvers") => return Answer::done(),
            _ => return Answer::error("Invalid statistics domain."),
        }
    }
    let (mut typed, mut json, mut desc) = (false, false, false);
    let mut position = 0;
    for word in words {
        match word {
            "typed" => typed = true,
            "json" => json = true,
            "desc" => desc = true,
            "up" => filter.up = true,
            "no-maint" => filter.no_maint = true,
            _ => {
                if let Err(answer) = positional(call, &mut filter, position, word) {
                    return answer;
                }
                position += 1;
            }
        }
    }
    let rows = stats::rows(&call.ctx.state, &filter, call.now);
    let mut out = String::new();
    if json {
        stats::json(&rows, &mut out);
    } else if typed {
        stats::typed(&rows, desc, &mut out);
    } else {
        stats::csv(&rows, &mut out);
    }
    Answer::dump(out)
}

/// `{<iid>|<proxy>} <type> <sid>`.
fn positional(call: &Call<'_>, filter: &mut Filter, position: usize, word: &str) -> Result<(), Answer> {
    let number = word.parse::<i64>();
    match (position, number) {
        (0, Ok(id)) => filter.proxy = u32::try_from(id).ok(),
        (0, Err(_)) => {
            let plan = call.ctx.state.plan();
            let proxy = plan.proxy(word).ok_or_else(|| Answer::error("No such proxy."))?;
            filter.proxy = Some(proxy.config.id);
        }
        (1, Ok(mask)) => filter.kinds = if mask < 0 { u32::MAX } else { mask as u32 },
        (2, Ok(id)) => filter.server = u32::try_from(id).ok(),
        _ => return Err(Answer::error(format!("'show stat' does not know '{word}'."))),
    }
    Ok(())
}

fn show_activity(call: &Call<'_>) -> Answer {
    let ctx = call.ctx;
    let workers = ctx.state.workers();
    let sessions = ctx.state.sessions().all();
    let mut per_worker = vec![0u64; workers.max(1)];
    for session in &sessions {
        if let Some(count) = per_worker.get_mut(session.worker().0) {
            *count += 1;
        }
    }
    let mut out = String::new();
    let _ = writeln!(out, "thread_id: 1 (1..{workers})");
    let (seconds, micros) = (call.now.unix_us / 1_000_000, call.now.unix_us % 1_000_000);
    let _ = writeln!(out, "date_now: {seconds}.{micros:06}");
    let up = call.now.mono.saturating_sub(ctx.state.process().started.mono);
    let _ = writeln!(out, "uptime_now: {:.6}", up.as_secs_f64());
    let list: Vec<String> = per_worker.iter().map(u64::to_string).collect();
    let _ = writeln!(out, "curr_sess: {} [ {} ]", sessions.len(), list.join(" "));
    let sum = ctx.state.process().counters().sum(call.now);
    let _ = writeln!(out, "accepted: {}", sum.conn_tot);
    let used = processor_time().unwrap_or_default();
    let _ = writeln!(out, "cpust_ms_tot: {}", used.as_millis());
    Answer::dump(out)
}

/// The mapped objects, one line each: first and last address, size, path.
fn show_libs(_: &Call<'_>) -> Answer {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut objects: Vec<(&str, u64, u64)> = Vec::new();
    for line in maps.lines() {
        let Some(at) = line.find('/') else { continue };
        let Some((from, to)) = line.split(' ').next().and_then(|r| r.split_once('-')) else { continue };
        let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)) else {
            continue;
        };
        match objects.last_mut() {
            Some(last) if last.0 == &line[at..] => last.2 = to,
            _ => objects.push((&line[at..], from, to)),
        }
    }
    let mut out = String::new();
    for (path, from, to) in objects {
        let _ = writeln!(out, "{from:#014x}-{:#014x} ({:#09x}) {path}", to - 1, to - from);
    }
    Answer::dump(out)
}

fn show_env(call: &Call<'_>) -> Answer {
    let wanted = call.arg(0);
    let mut out = String::new();
    for (name, value) in std::env::vars_os() {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        if wanted.is_empty() || name == wanted {
            let line = format!("{name}={value}").replace(['\n', '\r'], " ");
            let _ = writeln!(out, "{line}");
        }
    }
    if out.is_empty() && !wanted.is_empty() {
        return Answer::error("Variable not found");
    }
    Answer::dump(out)
}

fn show_cli_sockets(call: &Call<'_>) -> Answer {
    let mut out = String::from("# socket lvl processes\n");
    for socket in &call.ctx.state.plan().config.global.stats_sockets {
        let _ = writeln!(out, "{} {} all", socket::address(&socket.addr), level_name(socket.level));
    }
    Answer::dump(out)
}

async fn reload(call: &Call<'_>) -> Answer {
    let (reply, answer) = oneshot::channel();
    if call.ctx.reload.try_send(reply).is_err() {
        return Answer::error("Success=0\n--\nA reload is already under way.");
    }
    match tokio::time::timeout(RELOAD, answer).await {
        Ok(Ok(Ok(text))) => Answer::info(format!("Success=1\n--\n{}", said(&text))),
        Ok(Ok(Err(text))) => Answer::error(format!("Success=0\n--\n{}", said(&text))),
        Ok(Err(_)) => Answer::error("Success=0\n--\nThe process is stopping."),
        Err(_) => Answer::error("Success=0\n--\nThe reload is still under way."),
    }
}

/// Without empty lines: one would end the answer.
fn said(text: &str) -> String {
    text.lines().filter(|l| !l.trim().is_empty()).collect::<Vec<_>>().join("\n")
}
