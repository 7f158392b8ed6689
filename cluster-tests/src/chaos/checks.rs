//! What is compared at the end of a round, when everything is undone and the load is paused.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::counters::{self, Ledger, Loss};
use super::linear::{self, Action, Op, Verdict};
use super::load::{Place, Register, registers};
use super::report::Report;
use super::timeline::Event;
use super::{FORWARDED, HASHED, stalled};
use crate::lab::{Rig, inside};
use crate::probe::Prober;
use crate::{Client, try_api};

/// What is known of a register: its value, and writes that may still take effect.
#[derive(Clone, Debug)]
pub(super) struct Known {
    value: String,
    unknown: Vec<Op>,
}

/// A round that is over.
pub(super) struct Round<'a> {
    pub from: Duration,
    pub ledger: Ledger,
    pub history: Vec<(Register, Op)>,
    pub losses: &'a [Loss],
    pub events: &'a [Event],
    pub place: &'a Place,
    pub direct: &'a [Prober],
    /// When the machine stood still.
    pub stalls: &'a [(Duration, Duration)],
    pub rig: &'a Rig,
}

/// Longest until all nodes say the same.
const CONVERGES: Duration = Duration::from_secs(15);
/// How long a node that is let go again may need.
const RETURNS: Duration = Duration::from_secs(20);

impl Round<'_> {
    /// Compares everything.
    pub(super) fn check(&self, known: &mut BTreeMap<Register, Known>, report: &mut Report) {
        report.requests += self.ledger.sent.values().sum::<u64>();
        report.commands += self.history.len();
        self.tables(report);
        self.registers(known, report);
        self.decisions(report);
        self.forwarding(report);
    }

    /// Tables converge to the same content, and counters are conserved.
    fn tables(&self, report: &mut Report) {
        let all = || self.each_node(|socket| table(socket, "counted"));
        let Some(table) = self.agreed(report, "tables converge", all) else { return };
        let round = self.ledger.sent.keys().next().and_then(|k| k.split('-').next()).unwrap_or("none");
        let ours = table.into_iter().filter(|(key, _)| key.split('-').next() == Some(round)).collect();
        let (wrong, forgiven) = counters::check(&self.ledger, &ours, self.losses);
        report.forgiven += forgiven;
        report.counter_errors += wrong.len();
        for line in wrong {
            report.wrong("counters are conserved", line);
        }
    }

    /// No acknowledged change is lost.
    fn registers(&self, known: &mut BTreeMap<Register, Known>, report: &mut Report) {
        for register in registers() {
            let call = self.rig.now();
            let all = || self.each_node(|socket| register.read(socket, &self.place.map));
            let Some(value) = self.agreed(report, "changes converge", all) else { continue };
            let written = self.history.iter().filter(|(r, _)| *r == register).map(|(_, op)| op.clone());
            let before = known.get(&register);
            let mut ops: Vec<Op> = before.map(|k| k.unknown.clone()).unwrap_or_default();
            ops.extend(written);
            let unknown = ops.iter().filter(|o| o.done.is_none()).cloned().collect();
            let initial = before.map_or_else(|| initial(&register).to_owned(), |k| k.value.clone());
            ops.push(Op { call, done: Some(self.rig.now()), action: Action::Read(value.clone()) });
            match linear::check(&initial, &ops) {
                Verdict::Linear => {}
                Verdict::Undecided => report.undecided += 1,
                Verdict::Broken => {
                    report.lost_acked += 1;
                    let last: Vec<String> =
                        ops.iter().rev().skip(1).take(4).map(|o| format!("{o:?}")).collect();
                    report.wrong(
                        "no acknowledged change is lost",
                        format!("{register:?} is '{value}' after {last:?}"),
                    );
                }
            }
            known.insert(register, Known { value, unknown });
        }
    }

    /// The same key goes to the same server, whatever node is asked.
    fn decisions(&self, report: &mut Report) {
        let ask = |port: u16| {
            inside(&self.place.client, || {
                self.each_node_index(|node| {
                    let addr = SocketAddr::new(self.rig.network.addr(node), port).to_string();
                    (0..20)
                        .map(|key| server(&addr, &format!("d{}-{key}", self.from.as_millis())))
                        .collect::<Result<Vec<_>, _>>()
                })
            })
        };
        for (port, what) in [(HASHED, "hash"), (FORWARDED, "stick table")] {
            if port == FORWARDED {
                // The first node asked decides; the others learn it.
                let first = SocketAddr::new(self.rig.network.addr(0), port).to_string();
                inside(&self.place.client, || {
                    for key in 0..20 {
                        let _ = server(&first, &format!("d{}-{key}", self.from.as_millis()));
                    }
                });
                std::thread::sleep(Duration::from_millis(300));
            }
            match ask(port) {
                Ok(said) if said.windows(2).all(|w| w[0] == w[1]) => {}
                Ok(said) => {
                    report.diverged += 1;
                    report.wrong("same decision", format!("{what}: {said:?}"));
                }
                Err(e) => report.wrong("same decision", format!("{what}: {e}")),
            }
        }
    }

    /// Every node that could be reached has forwarded, with and without a majority.
    fn forwarding(&self, report: &mut Report) {
        for (node, prober) in self.direct.iter().enumerate() {
            let shots = prober.since(self.from);
            let excused: Vec<(Duration, Duration)> = self
                .events
                .iter()
                .filter(|e| (e.everywhere || e.node == node) && silences(&e.what))
                .map(|e| {
                    let back = shots.iter().find(|s| s.sent > e.to && s.body().is_some());
                    let back = back.map_or(e.to + RETURNS, |s| s.ended);
                    if back > e.to + RETURNS {
                        report.wrong("comes back", format!("{} after {}", self.place.nodes[node], e.what));
                    }
                    // What was under way when it began fails with it; a SYN that was lost comes again.
                    (e.from.saturating_sub(Duration::from_secs(1)), back + Duration::from_millis(300))
                })
                .collect();
            report.forwarded += shots.len();
            let lost = |s: &&crate::probe::Shot| {
                s.body().is_none() && !stalled(&excused, s.sent) && !stalled(self.stalls, s.sent)
            };
            for shot in shots.iter().filter(lost).take(3) {
                let during = self.events.iter().find(|e| (e.from..=e.to).contains(&shot.sent));
                let text = format!(
                    "{} at {:.2} s: {:?} during {}",
                    self.place.nodes[node],
                    shot.sent.as_secs_f64(),
                    shot.answer,
                    during.map_or("nothing", |e| &e.what)
                );
                report.wrong("forwarding goes on", text);
            }
        }
    }

    /// Asks until all nodes say the same.
    fn agreed<T: PartialEq + Clone + std::fmt::Debug>(
        &self,
        report: &mut Report,
        what: &str,
        ask: impl Fn() -> Result<Vec<T>, String>,
    ) -> Option<T> {
        let deadline = Instant::now() + CONVERGES;
        loop {
            let said = ask();
            if let Ok(all) = &said
                && all.windows(2).all(|w| w[0] == w[1])
            {
                return all.first().cloned();
            }
            if Instant::now() > deadline {
                report.diverged += 1;
                let text = format!("{said:?}");
                report.wrong(what, format!("not within {CONVERGES:?}: {}", &text[..text.len().min(1500)]));
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn each_node<T>(&self, ask: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
        self.place.sockets.iter().map(|s| ask(&s.display().to_string())).collect()
    }

    fn each_node_index<T>(&self, ask: impl Fn(usize) -> Result<T, String>) -> Result<Vec<T>, String> {
        (0..self.place.nodes.len()).map(ask).collect()
    }
}

/// What the configuration says.
fn initial(register: &Register) -> &'static str {
    match register {
        Register::Map(_) => "v",
        Register::Weight(_) => "1",
    }
}

/// Whether a fault may keep a node's own address from answering.
fn silences(what: &str) -> bool {
    const SILENT: [&str; 10] = [
        "kill-worker",
        "kill-node",
        "stop-worker",
        "stop-node",
        "unplug",
        "isolate",
        "loss",
        "throttle",
        "torn-log",
        "rolling-restart",
    ];
    what == "kill-all" || SILENT.iter().any(|s| what.starts_with(s))
}

/// The counters of a table.
fn table(socket: &str, name: &str) -> Result<BTreeMap<String, u64>, String> {
    let text =
        try_api(socket, &format!("show table {name}"), Duration::from_secs(5)).map_err(|e| e.to_string())?;
    let word = |line: &str, name: &str| {
        line.split_whitespace().find_map(|w| w.strip_prefix(name).map(str::to_owned))
    };
    let row = |line: &str| Some((word(line, "key=")?, word(line, "http_req_cnt=")?.parse().ok()?));
    Ok(text.lines().filter_map(row).collect())
}

/// The server that a key goes to.
fn server(addr: &str, key: &str) -> Result<String, String> {
    let response =
        Client::with_limit(addr, Duration::from_secs(3)).and_then(|mut c| c.get("/", &[("X-User", key)]));
    response.map(|r| r.server().to_owned()).map_err(|e| format!("{addr}: {e}"))
}
