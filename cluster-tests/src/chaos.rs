//! A run of chaos: a cluster under load, a seeded nemesis, and everything that must be true meanwhile
//! and afterwards.
//!
//! A run is made of rounds. In each, the nemesis does a few things to the cluster while clients are
//! counted and people change servers and maps; then all is undone, every node reloads under load, the
//! load pauses, and `checks` compares what the nodes say with what clients and writers saw. Between the
//! rounds and through all of them, witnesses watch for two holders of the floating address.

mod checks;
pub mod counters;
pub mod linear;
mod load;
pub mod report;
pub mod timeline;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use self::checks::Round;
use self::counters::Loss;
use self::load::{Load, Place};
pub use self::report::Report;
use self::timeline::Event;
use crate::lab::{Program, Rig, Spec, Station};
use crate::nemesis::{Fault, Nemesis, Schedule, Step};
use crate::phalanx;
use crate::probe::{Prober, Shot, longest_gap};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything random follows from it.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// How long, about: the last round is finished.
    pub length: Duration,
    /// Only these faults; all where none is named.
    pub only: Vec<String>,
    /// Faults in a round.
    pub per_round: usize,
    /// Whether to say what happens.
    pub verbose: bool,
}

/// Runs it. What the cluster did wrong is in the report.
///
/// # Errors
/// The laboratory cannot be made or a tool of it failed.
pub fn run(options: &Options) -> Result<Report, String> {
    let mut chaos = Chaos::start(options)?;
    let mut schedule = Schedule::new(options.seed, options.nodes, &options.only)?;
    while chaos.rig.now() < options.length || chaos.report.faults == 0 {
        let alive = chaos.round(&mut schedule)?;
        if !alive {
            break;
        }
    }
    Ok(chaos.finish())
}

/// Counted requests are answered by the node itself, forwarded ones by a server behind it.
const COUNTED: u16 = 8082;
const FORWARDED: u16 = 8083;
const HASHED: u16 = 8084;
const SERVERS: [(&str, u16); 3] = [("s1", 9801), ("s2", 9802), ("s3", 9803)];
/// Longest that a cluster of which everything was undone may need.
const BACK: Duration = Duration::from_secs(45);

/// How often that is waited for where the machine stood still meanwhile.
const PATIENCES: u32 = 4;

struct Chaos<'a> {
    options: &'a Options,
    load: Load,
    /// By each node's own address, forwarded to a server.
    direct: Vec<Prober>,
    /// A server itself, past all nodes: nothing is done to it.
    control: Prober,
    place: Place,
    rig: Rig,
    _servers: Station,
    nemesis: Nemesis,
    report: Report,
    registers: std::collections::BTreeMap<load::Register, checks::Known>,
    losses: Vec<Loss>,
    /// When all was up.
    ready: Duration,
    /// Since when what a node counts may not have reached the others.
    unheard: Duration,
}

impl<'a> Chaos<'a> {
    fn start(options: &'a Options) -> Result<Chaos<'a>, String> {
        let spec = Spec { nodes: options.nodes, disks: true, sections: sections(), ..Spec::default() };
        let rig = Rig::phalanx_with(&spec, |dir| {
            let rows: String = (0..4).map(|k| format!("k{k} v\n")).collect();
            std::fs::write(dir.join("changed.map"), rows).map_err(|e| e.to_string())
        })?;
        let servers = servers(&rig)?;
        let nodes = rig.network.nodes().to_vec();
        let own = |port| (0..nodes.len()).map(move |n| (n, port));
        let at = |(n, port)| SocketAddr::new(rig.network.addr(n), port);
        let place = Place {
            client: rig.network.client(),
            counted: std::iter::once(SocketAddr::new(rig.network.vip(), COUNTED))
                .chain(own(COUNTED).map(at))
                .collect(),
            sockets: nodes.iter().map(|n| rig.dir().join(format!("{n}.sock"))).collect(),
            nodes: nodes.clone(),
            map: rig.dir().join("changed.map").display().to_string(),
            origin: rig.origin(),
        };
        rig.all_fit(BACK)?;
        rig.settle(Duration::from_millis(500), BACK)?;
        let load = Load::start(&place, options.seed);
        let every = Duration::from_millis(25);
        let direct =
            own(FORWARDED).map(|n| Prober::start(&place.client, at(n), every, rig.origin())).collect();
        let control = SocketAddr::new(rig.network.servers(), SERVERS[0].1);
        let control = Prober::start(&place.client, control, every, rig.origin());
        let report = Report::new(options, &nodes);
        let registers = std::collections::BTreeMap::new();
        let (nemesis, losses) = (Nemesis::default(), Vec::new());
        let unheard = Duration::ZERO;
        let mut chaos = Chaos {
            options,
            load,
            direct,
            control,
            place,
            rig,
            _servers: servers,
            nemesis,
            report,
            registers,
            losses,
            unheard,
            ready: Duration::ZERO,
        };
        chaos.say("cluster, load and witnesses run");
        // The servers must be up on every node before anything is asked of them.
        chaos.wait_forwarding()?;
        chaos.ready = chaos.rig.now();
        Ok(chaos)
    }

    fn say(&self, text: &str) {
        if self.options.verbose {
            let at = self.rig.now().as_secs();
            println!("{:>3}:{:02} {text}", at / 60, at % 60);
        }
    }

    fn wait_forwarding(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + BACK;
        while !self
            .direct
            .iter()
            .all(|p| p.last(self.rig.now().saturating_sub(Duration::from_millis(200))).is_some())
        {
            if Instant::now() > deadline {
                return Err(format!("not every node forwards\n{}", self.rig.logs(20)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// One round. False when the cluster did not come back, so that there is no point in going on.
    fn round(&mut self, schedule: &mut Schedule) -> Result<bool, String> {
        let from = self.rig.now();
        let first_event = self.report.picture.events.len();
        self.losses.clear();
        self.load.go();
        for step in schedule.take(self.options.per_round) {
            self.step(&step)?;
            if self.rig.now() >= self.options.length {
                break;
            }
        }
        if let Err(e) = self.recovered() {
            self.report.wrong("comes back", e);
            return Ok(false);
        }
        self.reload()?;
        self.load.pause();
        let (ledger, history) = self.load.take();
        let excuses = self.report.picture.events[first_event..].to_vec();
        let mut control = self.control.since(from);
        // Lost packets are a fault of ours, and forgiven as such.
        let losses = excuses.iter().filter(|e| e.what.starts_with("loss"));
        for (from, to) in losses.map(|e| (e.from.saturating_sub(STALL_REACH), e.to + STALL_REACH)) {
            control.retain(|shot| !(from..=to).contains(&shot.sent));
        }
        let stalls = stalls(&control);
        self.report.stalls += stalls.len();
        Round {
            from,
            ledger,
            history,
            losses: &self.losses,
            events: &excuses,
            place: &self.place,
            direct: &self.direct,
            stalls: &stalls,
            rig: &self.rig,
        }
        .check(&mut self.registers, &mut self.report);
        self.report.picture.checks.push(self.rig.now());
        self.report.refused = self.load.refused();
        self.report.rounds += 1;
        self.say(&format!("round {} compared: {}", self.report.rounds, self.report.summary()));
        Ok(true)
    }

    fn recovered(&mut self) -> Result<(), String> {
        let mut patience = PATIENCES;
        loop {
            let from = self.rig.now();
            let back = self.rig.all_fit(BACK);
            let back = back.and_then(|()| self.rig.settle(Duration::from_millis(300), BACK));
            let back = back.and_then(|_| self.wait_forwarding());
            patience -= 1;
            // Leases of a few hundred milliseconds cannot be kept while the machine stands still for longer.
            let stalls = stalls(&self.control.since(from));
            let still: Duration = stalls.iter().map(|(from, to)| *to - *from).sum();
            if back.is_ok() || patience == 0 || still < BACK / 4 {
                return back;
            }
            self.say(&format!("not back yet, but the machine stood still for {still:.1?}: waiting again"));
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        self.sample_memory();
        let from = self.rig.now();
        let node = self.nemesis.begin(&mut self.rig, step)?;
        let struck = self.rig.now();
        let all = matches!(step.fault, Fault::KillAll | Fault::RollingRestart | Fault::Lose(_));
        self.say(&format!(
            "{} at {} for {:?}",
            step.fault,
            if all { "all" } else { &self.place.nodes[node] },
            step.lasts
        ));
        self.note_losses(step.fault, node, from, struck);
        std::thread::sleep(step.lasts);
        self.nemesis.undo(&mut self.rig)?;
        let to = self.rig.now();
        std::thread::sleep(step.pause);
        // So that every fault finds a cluster to disturb; how long it takes is in the gap.
        let _ = self.rig.settle(Duration::from_millis(100), Duration::from_secs(15));
        let shots = self.rig.prober.since(from.saturating_sub(Duration::from_millis(20)));
        let gap = longest_gap(&shots, self.rig.now());
        let what = step.fault.to_string();
        self.report.picture.events.push(Event { from, to, node, everywhere: all, what, gap });
        self.report.faults += 1;
        self.report.gaps.push(gap.min(self.rig.now()));
        // What was counted while a node was not heard reaches the others soon after.
        self.unheard = to;
        self.sample_memory();
        Ok(())
    }

    /// Remembers what may be missing from the counters: what a node counted and could not yet tell.
    fn note_losses(&mut self, fault: Fault, node: usize, from: Duration, struck: Duration) {
        let killed = match fault {
            Fault::KillWorker | Fault::KillNode | Fault::TearLog => node..node + 1,
            Fault::KillAll => 0..self.place.nodes.len(),
            _ => return,
        };
        for node in killed {
            // All gone at once: what was replicated went too.
            let from = match fault {
                Fault::KillAll => Duration::ZERO,
                // The links of the step before may only now be made again.
                _ => from.min(self.unheard.max(from.saturating_sub(HEARD))).saturating_sub(HEARD),
            };
            self.losses.push(Loss { node, from, to: struck + Duration::from_millis(50) });
        }
    }

    fn sample_memory(&mut self) {
        let at = self.rig.now();
        for index in 0..self.rig.stations.len() {
            if let Some(mb) = self.rig.stations[index].worker().and_then(resident) {
                self.report.picture.memory[index].push((at, mb));
            }
        }
    }

    /// Every node reloads in turn, with nothing else disturbed: no request may be lost.
    fn reload(&mut self) -> Result<(), String> {
        let from = self.rig.now();
        for index in 0..self.rig.stations.len() {
            let said = self.rig.stations[index].api("reload", Duration::from_secs(10));
            if !said.as_ref().is_ok_and(|s| s.contains("Reload done")) {
                self.report.wrong("reload", format!("{}: {said:?}", self.place.nodes[index]));
            }
        }
        std::thread::sleep(Duration::from_millis(300));
        let to = self.rig.now();
        // Patience of a probe.
        std::thread::sleep(Duration::from_millis(950));
        let stalls = stalls(&self.control.since(from.saturating_sub(STALL_REACH)));
        let lost = |s: &&Shot| s.sent < to && s.body().is_none() && !stalled(&stalls, s.sent);
        let probers = self.direct.iter().chain([&self.rig.prober]);
        let lost: usize = probers.map(|p| p.since(from).iter().filter(lost).count()).sum();
        self.report.reloads += self.rig.stations.len() as u32;
        if lost > 0 {
            self.report.wrong(
                "no request is lost on reload",
                format!("{lost} requests at {:.1} s", from.as_secs_f64()),
            );
        }
        Ok(())
    }

    fn finish(mut self) -> Report {
        drop(self.load);
        self.report.conclude(&self.rig, self.ready, self.nemesis.wiped);
        self.report
    }
}

/// After so long, what a node counted has reached the others.
const HEARD: Duration = Duration::from_millis(500);

/// A server that nothing is done to, asked past all nodes, and that answers later than this: the machine of
/// the laboratory stood still, and what nodes do not answer then says nothing of them.
const STALL: Duration = Duration::from_millis(250);
/// A request that passes a node needs several turns of a CPU where the server's own needs one: so long around
/// a stall it may come too late as well.
const STALL_REACH: Duration = Duration::from_secs(1);

/// When the machine stood still, by what a server itself answered; those that touch are one.
fn stalls(control: &[Shot]) -> Vec<(Duration, Duration)> {
    let mut stalls: Vec<(Duration, Duration)> = Vec::new();
    for shot in control.iter().filter(|s| s.body().is_none() || s.ended - s.sent > STALL) {
        let (from, to) = (shot.sent.saturating_sub(STALL_REACH), shot.ended + STALL_REACH);
        match stalls.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => stalls.push((from, to)),
        }
    }
    stalls
}

fn stalled(stalls: &[(Duration, Duration)], at: Duration) -> bool {
    stalls.iter().any(|(from, to)| (*from..=*to).contains(&at))
}

/// Megabytes that a process has in memory.
fn resident(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let row = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    Some(row.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

fn servers(rig: &Rig) -> Result<Station, String> {
    let mut args = vec!["demo".to_owned()];
    args.extend(SERVERS.map(|(name, port)| format!("--http={name}={}:{port}", rig.network.servers())));
    let log = rig.dir().join("servers.log");
    let program = Program::new(&rig.network.hub(), Path::new(phalanx()), &args, log);
    let mut station = Station::new("servers", vec![program], None);
    station.start()?;
    Ok(station)
}

fn sections() -> String {
    let servers: String = SERVERS
        .iter()
        .map(|(name, port)| format!("    server {name} \"${{SERVER_ADDR}}:{port}\"\n"))
        .collect();
    let listen = |name: &str, port: u16, lines: &str| {
        format!(
            "listen {name}\n    bind \"${{NODE_ADDR}}:{port}\"\n    bind \"${{VIP_ADDR}}:{port}\"\n{lines}"
        )
    };
    let counted = "    stick-table type string len 32 size 200k expire 2h store http_req_cnt peers lab\n\
                   \x20   http-request track-sc0 req.hdr(X-User)\n\
                   \x20   http-request return status 200 content-type text/plain string \"${NODE}\"\n";
    let stuck = "    balance roundrobin\n\
                 \x20   stick-table type string len 32 size 200k expire 2h peers lab\n\
                 \x20   stick on req.hdr(X-User)\n";
    let hashed = "    balance hdr(X-User)\n    hash-type consistent\n";
    let changed = "    http-request deny if { path,map(\"${DIR}/changed.map\") -m str deny }\n";
    [
        listen("counted", COUNTED, counted),
        listen("stuck", FORWARDED, &format!("{stuck}{servers}")),
        listen("hashed", HASHED, &format!("{hashed}{servers}")),
        format!("backend changed\n{changed}{servers}"),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Answer;

    #[test]
    fn a_machine_that_stands_still_is_told_from_nodes_that_do() {
        let ms = Duration::from_millis;
        let shot = |sent, ended| Shot { sent: ms(sent), ended: ms(ended), answer: Answer::Body("s1".into()) };
        let silent = Shot { answer: Answer::Silence, ..shot(9_000, 9_900) };
        let control = [shot(100, 101), shot(5_000, 5_200), shot(7_000, 7_251), shot(7_025, 7_251), silent];
        let stalls = stalls(&control);
        assert_eq!(stalls, [(ms(6_000), ms(10_900))]);
        assert!(stalled(&stalls, ms(6_500)) && !stalled(&stalls, ms(5_900)) && !stalled(&stalls, ms(11_000)));
    }
}
