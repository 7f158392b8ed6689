//! What came of a run: figures for programs, a text and a picture for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::Options;
use super::timeline::{Picture, Verdict};
use crate::lab::Rig;
use crate::probe::overlaps;

/// Everything that was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Seed of the run.
    pub seed: u64,
    /// Faults that were done.
    pub faults: usize,
    /// Rounds that were compared.
    pub rounds: u32,
    /// Reloads under load.
    pub reloads: u32,
    /// Counted requests.
    pub requests: u64,
    /// Requests to nodes' own addresses, forwarded to a server.
    pub forwarded: usize,
    /// Commands that changed something.
    pub commands: usize,
    /// Those of them that were refused or not answered.
    pub refused: u32,
    /// Acknowledged changes that were lost.
    pub lost_acked: usize,
    /// Registers whose history was too hard.
    pub undecided: usize,
    /// Counters that are wrong.
    pub counter_errors: usize,
    /// Answered requests that went with a node that was killed.
    pub forgiven: u64,
    /// Times that nodes did not agree.
    pub diverged: usize,
    /// Longest silence of the floating address in each fault.
    pub gaps: Vec<Duration>,
    /// How long two kernels had the address.
    pub overlap: Duration,
    /// Logs that a node refused after they were torn.
    pub wiped: usize,
    /// Times that the machine of the laboratory itself stood still.
    pub stalls: usize,
    /// What is wrong, by what should be.
    pub failures: BTreeMap<String, Vec<String>>,
    /// For the page.
    pub picture: Picture,
}

/// For programs: the first fields are a promise.
#[derive(Serialize)]
struct Figures<'a> {
    faults: usize,
    vip_overlap_ms: f64,
    lost_acked: usize,
    counter_errors: usize,
    diverged: usize,
    gaps_ms: Vec<f64>,
    seed: u64,
    seconds: f64,
    nodes: usize,
    rounds: u32,
    reloads: u32,
    requests: u64,
    forwarded: usize,
    commands: usize,
    commands_refused: u32,
    counts_lost_with_killed_nodes: u64,
    undecided: usize,
    wiped: usize,
    stalls: usize,
    memory_mb: Vec<f64>,
    failures: &'a BTreeMap<String, Vec<String>>,
}

/// What must be true, in the order in which it is shown.
const PROMISES: [(&str, &str); 11] = [
    ("one holder", "at no time two kernels have the floating address"),
    ("no acknowledged change is lost", "the values of maps and weights fit a single order of all commands"),
    ("counters are conserved", "the cluster's sums lie between the answered and the sent requests"),
    ("tables converge", "after each round every node shows the same stick table"),
    ("changes converge", "after each round every node shows the same maps and weights"),
    ("same decision", "a client is sent to the same server by whatever node it asks"),
    ("forwarding goes on", "each node that can be reached answers, with and without a majority"),
    ("no request is lost on reload", "every node reloads under load after each round"),
    ("reload", "each of those reloads is taken"),
    ("comes back", "all nodes are fit again within 45 s after everything is undone"),
    ("bounded memory", "the nodes do not grow"),
];

/// Memory may grow by so much in a run, from the first quarter of it on.
const GROWTH: f64 = 1.5;
const SLACK_MB: f64 = 24.0;

impl Report {
    pub(super) fn new(options: &Options, nodes: &[String]) -> Report {
        let picture = Picture {
            title: format!("Phalanx under chaos: {} nodes, seed {}", nodes.len(), options.seed),
            nodes: nodes.to_vec(),
            memory: vec![Vec::new(); nodes.len()],
            ..Picture::default()
        };
        Report { seed: options.seed, picture, ..Report::default() }
    }

    /// Notes something that should not be.
    pub(super) fn wrong(&mut self, promise: &str, text: String) {
        self.failures.entry(promise.to_owned()).or_default().push(text);
    }

    /// Whether all was as it should be.
    pub fn good(&self) -> bool {
        self.failures.is_empty()
    }

    pub(super) fn summary(&self) -> String {
        let bad: usize = self.failures.values().map(Vec::len).sum();
        format!(
            "{} faults, {} requests, {} commands, {bad} things wrong",
            self.faults, self.requests, self.commands
        )
    }

    pub(super) fn conclude(&mut self, rig: &Rig, ready: Duration, wiped: usize) {
        self.wiped = wiped;
        self.picture.length = rig.now();
        self.picture.held = rig.held();
        self.picture.shots = rig.prober.since(ready);
        let doubled = overlaps(&self.picture.held);
        self.overlap = doubled.iter().map(|o| o.span.to - o.span.from).sum();
        for overlap in doubled.iter().take(20) {
            let (a, b) = overlap.nodes;
            let (from, to) = (overlap.span.from, overlap.span.to);
            let during = self.picture.events.iter().rev().find(|e| e.from <= from);
            let text = format!(
                "{} and {} for {:?} at {:.3} s, after {}",
                self.picture.nodes[a],
                self.picture.nodes[b],
                to - from,
                from.as_secs_f64(),
                during.map_or("nothing", |e| &e.what)
            );
            self.wrong("one holder", text);
        }
        for (node, growth) in self.picture.memory.iter().map(|m| grown(m)).enumerate().collect::<Vec<_>>() {
            if let Some((before, after)) = growth {
                let name = &self.picture.nodes[node];
                let text = format!("{name}: {before:.0} MB at first, {after:.0} MB at the end");
                self.wrong("bounded memory", text);
            }
        }
        let verdict = |&(promise, meaning): &(&'static str, &'static str)| Verdict {
            promise,
            meaning,
            found: self.found(promise),
            good: !self.failures.contains_key(promise),
        };
        self.picture.verdicts = PROMISES.iter().map(verdict).collect();
    }

    fn found(&self, promise: &str) -> String {
        if let Some(wrong) = self.failures.get(promise) {
            let first: String = wrong[0].chars().take(300).collect();
            return format!("{} times wrong, first: {first}", wrong.len());
        }
        match promise {
            "one holder" => format!("{} faults, 0 ms of two holders", self.faults),
            "no acknowledged change is lost" => {
                format!(
                    "{} commands, {} of them refused or unknown, {} histories undecided",
                    self.commands, self.refused, self.undecided
                )
            }
            "counters are conserved" => {
                format!("{} requests, {} counts went with a killed node", self.requests, self.forgiven)
            }
            "forwarding goes on" => format!(
                "{} requests to the nodes' own addresses; {} times the machine itself stood still",
                self.forwarded, self.stalls
            ),
            "no request is lost on reload" => format!("{} reloads under load", self.reloads),
            "bounded memory" => format!("{:.0} MB at most", self.memory().into_iter().fold(0.0, f64::max)),
            _ => format!("{} times", self.rounds),
        }
    }

    fn memory(&self) -> Vec<f64> {
        let most = |samples: &Vec<(Duration, f64)>| samples.iter().map(|(_, mb)| *mb).fold(0.0, f64::max);
        self.picture.memory.iter().map(most).collect()
    }

    /// Silences in milliseconds, the shortest first.
    fn sorted_gaps(&self) -> Vec<f64> {
        let mut gaps: Vec<f64> = self.gaps.iter().map(|g| g.as_secs_f64() * 1e3).collect();
        gaps.sort_by(f64::total_cmp);
        gaps
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!(
            "\nseed {}, {:.0} s, {} faults, {} logs had to be wiped\n\n",
            self.seed,
            self.picture.length.as_secs_f64(),
            self.faults,
            self.wiped
        );
        for Verdict { promise, found, good, .. } in &self.picture.verdicts {
            let _ = writeln!(out, "  {}  {promise:<32}{found}", if *good { "ok " } else { "BAD" });
        }
        let gaps = self.sorted_gaps();
        if !gaps.is_empty() {
            let at = |q: f64| gaps[((gaps.len() - 1) as f64 * q) as usize];
            let _ = writeln!(
                out,
                "\n  silence of the floating address in a fault: p50 {:.0} ms, p90 {:.0} ms, p99 {:.0} ms, longest {:.0} ms",
                at(0.5),
                at(0.9),
                at(0.99),
                at(1.0)
            );
        }
        for (promise, wrong) in &self.failures {
            let _ = writeln!(out, "\n{promise}:");
            for line in wrong.iter().take(8) {
                let _ = writeln!(out, "  {line}");
            }
        }
        out
    }

    /// For programs.
    ///
    /// # Panics
    /// Never: figures are numbers and texts.
    pub fn json(&self) -> String {
        let gaps_ms = self.gaps.iter().map(|g| (g.as_secs_f64() * 1e4).round() / 10.0).collect();
        let figures = Figures {
            faults: self.faults,
            vip_overlap_ms: self.overlap.as_secs_f64() * 1e3,
            lost_acked: self.lost_acked,
            counter_errors: self.counter_errors,
            diverged: self.diverged,
            gaps_ms,
            seed: self.seed,
            seconds: self.picture.length.as_secs_f64(),
            nodes: self.picture.nodes.len(),
            rounds: self.rounds,
            reloads: self.reloads,
            requests: self.requests,
            forwarded: self.forwarded,
            commands: self.commands,
            commands_refused: self.refused,
            counts_lost_with_killed_nodes: self.forgiven,
            undecided: self.undecided,
            wiped: self.wiped,
            stalls: self.stalls,
            memory_mb: self.memory(),
            failures: &self.failures,
        };
        serde_json::to_string(&figures).expect("figures are numbers and texts") + "\n"
    }
}

/// Median of the first and of the last quarter, where the last is much more. The first is of nodes that
/// have just started, so a short run says nothing.
fn grown(samples: &[(Duration, f64)]) -> Option<(f64, f64)> {
    let quarter = samples.len() / 4;
    let median = |part: &[(Duration, f64)]| {
        let mut sorted: Vec<f64> = part.iter().map(|(_, mb)| *mb).collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    };
    let (before, after) = (median(samples.get(quarter..quarter * 2)?)?, median(samples.get(quarter * 3..)?)?);
    (after > before * GROWTH + SLACK_MB).then_some((before, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_grows_is_caught() {
        let samples =
            |f: fn(u64) -> f64| (0..400).map(|i| (Duration::from_secs(i), f(i))).collect::<Vec<_>>();
        assert!(grown(&samples(|_| 60.0)).is_none());
        assert!(grown(&samples(|i| 60.0 + (i % 7) as f64 * 3.0)).is_none());
        assert!(grown(&samples(|i| 60.0 + i as f64)).is_some());
    }

    #[test]
    fn the_promised_fields_come_first() {
        let json = Report { faults: 3, ..Report::default() }.json();
        let promised = r#"{"faults":3,"vip_overlap_ms":0.0,"lost_acked":0,"counter_errors":0,"diverged":0,"gaps_ms":[],"#;
        assert!(json.starts_with(promised), "{json}");
    }
}
