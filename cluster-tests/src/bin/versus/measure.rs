//! Cases: all proxies side by side, rounds in turn, and what each round gave.
//!
//! All proxies of a case run all the time; only one is asked at a time, and the others sleep. CPU time is
//! read around the same window in which answers are counted, from the kernel's own books.

use std::time::Duration;

use cluster_tests::Base;
use cluster_tests::bench::{Spread, ran_and_waited};

use crate::cases::{Case, ENTRIES, Load, PLAIN, Requests};
use crate::config::Security;
use crate::generator::{Generator, Script, Talk, Tls, Window};
use crate::machine::{Tools, idle_connections};
use crate::proxies::{Absent, Kind, Proxy, Started, site};
use crate::{streams, syscalls};

/// What one round gave.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// In the case's unit.
    pub(crate) throughput: f64,
    /// CPU time of the proxy, in microseconds by the case's unit.
    pub(crate) cpu_us: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    /// Parts of the time that the proxy and the load were at work.
    pub(crate) busy: Option<[f64; 2]>,
    /// More work did not come because the load had no more to give, while the proxy had.
    pub(crate) void: bool,
    /// Requests that went wrong, where that is what is measured.
    pub(crate) failed: Option<u64>,
    /// Connections that the server was sent, by answer.
    pub(crate) server_connections: Option<f64>,
}

/// What a proxy gave in a case.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) kind: Kind,
    pub(crate) outcome: Result<Vec<Sample>, Absent>,
    /// Syscalls of the proxy by the case's unit.
    pub(crate) syscalls: Option<f64>,
}

/// How long everything takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) seconds: u64,
    pub(crate) rounds: u32,
}

/// Before each measured window: connections are opened, buffers found, and a first burst is over.
const WARM: Duration = Duration::from_millis(300);

/// A proxy in a case.
struct Side<'a> {
    case: &'a Case,
    started: Result<Started, Absent>,
    cell: Cell,
}

/// Measures cases whose rounds take turns with each other: one, or what is to be compared.
///
/// # Errors
/// A proxy does not run, or answers wrongly.
pub(crate) fn cases(
    cases: &[&Case],
    proxies: &[Proxy],
    tools: &Tools,
    times: Times,
) -> Result<Vec<Vec<Cell>>, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut generator = Generator::new().map_err(|e| format!("generator: {e}"))?;
    let bases: Vec<Base> = cases.iter().map(|_| Base::free()).collect();
    let mut sides = Vec::new();
    let mut logs = Vec::new();
    for (case, base) in cases.iter().zip(&bases) {
        let dir = dir.path().join(case.id);
        let first = site(base, &dir, Kind::Phalanx, case.config.replicated)?;
        generator.serve(first.origin(), case.service).map_err(|e| format!("{}: {e}", first.origin()))?;
        // Nobody reads what is logged: what is full the kernel throws away, for all alike.
        logs.push(std::net::UdpSocket::bind(first.log()).map_err(|e| format!("{}: {e}", first.log()))?);
        for proxy in proxies {
            let started = Started::new(proxy, case, site(base, &dir, proxy.kind, case.config.replicated)?)?;
            let outcome = started.as_ref().map(|_| Vec::new()).map_err(Clone::clone);
            let cell = Cell { kind: proxy.kind, outcome, syscalls: None };
            sides.push(Side { case, started, cell });
        }
    }
    for side in &mut sides {
        side.before_rounds(&mut generator)?;
    }
    let rate = match cases[0].load {
        Load::Paced(part, _) => Some(part * maximum(&sides, &mut generator)?),
        _ => None,
    };
    for _ in 0..times.rounds {
        for side in sides.iter_mut().filter(|side| !side.case.is_memory()) {
            side.round(tools, &mut generator, Duration::from_secs(times.seconds), rate)?;
        }
    }
    for side in &mut sides {
        side.count_syscalls(tools, &mut generator, rate)?;
    }
    Ok(cases
        .iter()
        .map(|case| sides.iter().filter(|s| s.case.id == case.id).map(|s| s.cell.clone()).collect())
        .collect())
}

impl Side<'_> {
    /// Memory is measured once; tables are filled.
    fn before_rounds(&mut self, generator: &mut Generator) -> Result<(), String> {
        let (Ok(started), Ok(samples)) = (&self.started, &mut self.cell.outcome) else { return Ok(()) };
        let named = |e| explain(self.case, started, e);
        match self.case.load {
            Load::Idle => samples.push(idle(self.case, started, generator).map_err(named)?),
            Load::Entries => samples.push(entries(started, generator).map_err(named)?),
            Load::Requests(requests) if requests.sources > 0 && started.site.kind != Kind::Nginx => {
                fill(started, generator, requests).map_err(named)?;
                if self.case.config.replicated {
                    started.wait_for_peer(requests.sources).map_err(named)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn round(
        &mut self,
        tools: &Tools,
        generator: &mut Generator,
        time: Duration,
        rate: Option<f64>,
    ) -> Result<(), String> {
        let (Ok(started), Ok(samples)) = (&self.started, &mut self.cell.outcome) else { return Ok(()) };
        let sample = match self.case.load {
            Load::Streams => streams::round(started, tools, generator, time),
            Load::Reloads => reloads(self.case, started, generator, time),
            _ => round(self.case, started, generator, time, rate),
        };
        samples.push(sample.map_err(|e| explain(self.case, started, e))?);
        Ok(())
    }

    fn count_syscalls(
        &mut self,
        tools: &Tools,
        generator: &mut Generator,
        rate: Option<f64>,
    ) -> Result<(), String> {
        let Ok(started) = &self.started else { return Ok(()) };
        if self.case.is_memory() || self.case.load == Load::Reloads {
            return Ok(());
        }
        if self.case.load == Load::Streams {
            let second = Duration::from_secs(1);
            let counted = |time: Duration| {
                Ok(streams::round(started, tools, generator, second)?.throughput * time.as_secs_f64())
            };
            self.cell.syscalls = syscalls::count(tools, started.running.pid(), counted)?;
            return Ok(());
        }
        begin(self.case, started, generator, rate)?;
        generator.run(WARM)?;
        let counted = |time| Ok(work(self.case, &generator.run(time)?));
        self.cell.syscalls = syscalls::count(tools, started.running.pid(), counted)?;
        generator.end();
        Ok(())
    }
}

fn explain(case: &Case, side: &Started, e: String) -> String {
    format!("case {}, {}: {e}\n{}", case.id, side.site.kind.name(), side.running.output())
}

/// What clients say to this proxy.
pub(crate) fn script(case: &Case, side: &Started) -> Result<Script, String> {
    let mut made = said(case, side);
    if case.config.security != Security::None {
        made.tls = Some(Tls::new(case.resumes)?);
    }
    Ok(made)
}

fn said(case: &Case, side: &Started) -> Script {
    let target = side.site.web();
    let plain = |connections, exchanges, talk| Script {
        target,
        connections,
        exchanges,
        sources: 0,
        talk,
        tls: None,
        request: Box::new(|_, _, _| {}),
    };
    match case.load {
        Load::Bulk => plain(4, 0, Talk::Bulk),
        Load::Knocks => plain(64, 1, Talk::Knock),
        Load::Idle if case.config.tcp => plain(64, 0, Talk::Knock),
        Load::Idle | Load::Streams => requests(side, PLAIN),
        Load::Reloads => requests(side, Requests { exchanges: 1, ..PLAIN }),
        Load::Entries => Script {
            request: Box::new(keys),
            talk: Talk::Http { body: 2, upload: 0 },
            ..plain(64, 0, Talk::Knock)
        },
        Load::Requests(load) | Load::Paced(_, load) => requests(side, load),
    }
}

fn requests(side: &Started, load: Requests) -> Script {
    let Requests { connections, exchanges, sources, body, upload, .. } = load;
    let (method, path) = match (upload, body) {
        (1.., _) => ("POST", "/u"),
        (_, crate::generator::MIDDLE) => ("GET", "/m"),
        (_, crate::generator::LARGE) => ("GET", "/l"),
        _ => ("GET", "/s"),
    };
    let length = if upload > 0 { format!("Content-Length: {upload}\r\n") } else { String::new() };
    let rest = format!("User-Agent: versus\r\nAccept: */*\r\n{length}");
    let start = format!("{method} {path} HTTP/1.1\r\nHost: host");
    Script {
        target: side.site.web(),
        connections,
        exchanges,
        sources,
        talk: Talk::Http { body, upload },
        tls: None,
        request: Box::new(move |nth, last, out| {
            use std::io::Write;
            out.extend_from_slice(start.as_bytes());
            // Spread over the hosts of the map, in no order.
            let host = nth.wrapping_mul(2_654_435_761) % 100_000;
            let _ = write!(
                out,
                "{host}.example.com\r\n{rest}{}\r\n",
                if last { "Connection: close\r\n" } else { "" }
            );
        }),
    }
}

/// A request that makes three entries of case i's table.
fn keys(nth: u64, _: bool, out: &mut Vec<u8>) {
    use std::io::Write;
    let key = |n: u64| std::net::Ipv4Addr::from_bits(0x0a00_0000 + (n % ENTRIES) as u32);
    let first = nth * 3;
    let _ = write!(
        out,
        "GET / HTTP/1.1\r\nHost: a\r\na: {}\r\nb: {}\r\nc: {}\r\n\r\n",
        key(first),
        key(first + 1),
        key(first + 2)
    );
}

/// Units of work in a window, by which CPU time and syscalls are divided.
fn work(case: &Case, window: &Window) -> f64 {
    match case.load {
        Load::Bulk => window.bytes as f64 / 1e9,
        Load::Requests(requests) if requests.by_bytes => window.bytes as f64 / 1e9,
        _ => window.done as f64,
    }
}

/// HAProxy's rate with nothing held back, or without it our own.
fn maximum(sides: &[Side], generator: &mut Generator) -> Result<f64, String> {
    let haproxy = sides.iter().find(|side| side.cell.kind == Kind::Haproxy && side.started.is_ok());
    let side = haproxy.or(sides.first()).ok_or("nobody to measure")?;
    let Ok(started) = &side.started else { return Err("nobody to measure".into()) };
    let mut rates = Vec::new();
    for _ in 0..5 {
        rates.push(round(side.case, started, generator, Duration::from_millis(500), None)?.throughput);
    }
    Ok(Spread::of(rates.into_iter()).median)
}

fn begin(case: &Case, side: &Started, generator: &mut Generator, rate: Option<f64>) -> Result<(), String> {
    match rate {
        Some(rate) => generator.begin_paced(script(case, side)?, rate),
        None => generator.begin(script(case, side)?),
    }
}

/// From this part of the time on, a CPU is full.
pub(crate) const FULL: f64 = 0.95;
/// Less than this part of what was due is not what was asked for.
const KEPT: f64 = 0.98;

/// Whether the load was the limit: it ran or waited for its CPU all the time and the proxy did not; or,
/// with requests that are due at a time, it did not send them all though the proxy had time.
pub(crate) fn is_void(proxy: f64, load: f64, kept: Option<f64>) -> bool {
    proxy < FULL && kept.map_or(load >= FULL, |kept| kept < KEPT)
}

fn round(
    case: &Case,
    side: &Started,
    generator: &mut Generator,
    time: Duration,
    rate: Option<f64>,
) -> Result<Sample, String> {
    begin(case, side, generator, rate)?;
    good(&generator.run(WARM)?)?;
    let pid = side.running.pid().to_string();
    let before = [ran_and_waited(&pid)?, ran_and_waited("self")?];
    let window = generator.run(time)?;
    let after = [ran_and_waited(&pid)?, ran_and_waited("self")?];
    generator.end();
    // What was cut off is cleared away before the next proxy's turn.
    generator.run(Duration::from_millis(50))?;
    good(&window)?;
    let resumed = window.resumed as f64 / window.done.max(1) as f64;
    if case.resumes && resumed < 0.9 {
        return Err(format!("only {:.0} % of the handshakes were resumed", resumed * 100.0));
    }
    let done = work(case, &window);
    let seconds = window.elapsed.as_secs_f64();
    let cpu = after[0][0] - before[0][0];
    if done == 0.0 || cpu == 0.0 {
        return Err("no answers, or no CPU time in /proc/PID/task/*/schedstat".into());
    }
    let wanted = |i: usize| (after[i][0] + after[i][1] - before[i][0] - before[i][1]) / seconds;
    let http = matches!(case.load, Load::Requests(_));
    Ok(Sample {
        throughput: done / seconds,
        cpu_us: Some(cpu * 1e6 / done),
        p50_ms: window.times.quantile_ms(0.5),
        p99_ms: window.times.quantile_ms(case.tail()),
        busy: Some([0, 1].map(|i| (after[i][0] - before[i][0]) / seconds)),
        void: is_void(wanted(0), wanted(1), rate.map(|rate| done / seconds / rate)),
        failed: None,
        server_connections: http.then(|| window.accepted as f64 / window.done as f64),
    })
}

/// Requests while the proxy reloads every second.
fn reloads(case: &Case, side: &Started, generator: &mut Generator, time: Duration) -> Result<Sample, String> {
    generator.begin(script(case, side)?)?;
    good(&generator.run(WARM)?)?;
    let mut all = Window::default();
    for _ in 0..time.as_secs().max(1) {
        side.reload();
        all.add(&generator.run(Duration::from_secs(1))?);
    }
    generator.end();
    generator.run(Duration::from_millis(50))?;
    Ok(Sample {
        throughput: all.done as f64 / all.elapsed.as_secs_f64(),
        p50_ms: all.times.quantile_ms(0.5),
        p99_ms: all.times.quantile_ms(case.tail()),
        failed: Some(all.failures()),
        ..Sample::default()
    })
}

/// That nothing went wrong.
fn good(window: &Window) -> Result<(), String> {
    match window.failed.first_key_value() {
        None => Ok(()),
        Some((what, count)) => {
            Err(format!("{count} of {} requests: {what}", window.done + window.failures()))
        }
    }
}

/// A request from each source, so that the table is as large as the case says.
fn fill(side: &Started, generator: &mut Generator, requests: Requests) -> Result<(), String> {
    let load = Requests { exchanges: 1, ..requests };
    generator.begin(self::requests(side, load))?;
    good(&generator.run_until(u64::from(requests.sources), Duration::from_secs(180))?)?;
    generator.end();
    Ok(())
}

/// Memory of a connection at rest.
fn idle(case: &Case, side: &Started, generator: &mut Generator) -> Result<Sample, String> {
    // What the first connections allocate is not the later ones'.
    generator.hold(script(case, side)?, 200)?;
    let before = side.running.resident()?;
    generator.end();
    generator.run(Duration::from_millis(200))?;
    generator.hold(script(case, side)?, idle_connections() + 200)?;
    generator.run(Duration::from_secs(1))?;
    let after = side.running.resident()?;
    generator.end();
    generator.run(Duration::from_millis(200))?;
    Ok(Sample {
        throughput: after.saturating_sub(before) as f64 / idle_connections() as f64,
        ..Sample::default()
    })
}

/// Memory of an entry.
fn entries(side: &Started, generator: &mut Generator) -> Result<Sample, String> {
    let script = |skip: u64| Script {
        target: side.site.web(),
        connections: 64,
        exchanges: 0,
        sources: 0,
        talk: Talk::Http { body: 2, upload: 0 },
        tls: None,
        request: Box::new(move |nth, last, out| keys(nth - skip, last, out)),
    };
    let from = generator.asked();
    generator.begin(script(from))?;
    generator.run_until(1000, Duration::from_secs(10))?;
    let some = generator.asked() - from;
    let before = side.running.resident()?;
    generator.run_until(ENTRIES / 3 - some + 100, Duration::from_secs(180))?;
    let used = (generator.asked() - from).min(ENTRIES / 3 + 1) * 3;
    let after = side.running.resident()?;
    generator.end();
    let entries = (used - some * 3) as f64;
    Ok(Sample { throughput: after.saturating_sub(before) as f64 / entries, ..Sample::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn void_is_where_the_load_was_full_and_the_proxy_was_not() {
        assert!(is_void(0.80, 0.99, None));
        assert!(!is_void(0.99, 0.99, None), "both full: the proxy gave all it had");
        assert!(!is_void(0.99, 0.50, None));
        assert!(!is_void(0.50, 0.50, None), "nobody was full");
    }

    #[test]
    fn a_load_with_a_pace_is_void_where_it_was_not_kept() {
        assert!(!is_void(0.70, 1.0, Some(1.0)), "it spins, which is not being full");
        assert!(is_void(0.70, 1.0, Some(0.9)));
        assert!(!is_void(0.99, 1.0, Some(0.9)), "the proxy could not keep it");
    }
}
