//! Floating addresses: how long they are silent when something fails, and whether two nodes ever have
//! one, beside Debian's keepalived.
//!
//! `cargo run --release -p cluster-tests --bin vip`, as root. Every cluster has a laboratory of its own
//! (network namespaces on a bridge); a client asks through the address every 5 ms, each time on a new
//! connection, and a witness beside each node asks its kernel for the address every 2 ms on a link that
//! no fault touches. `--faults N` does N random faults to a Phalanx cluster and counts the milliseconds
//! in which two kernels answered.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use cluster_tests::lab::{Rig, Spec};
use cluster_tests::nemesis::{Nemesis, Schedule};
use cluster_tests::probe::{longest_gap, overlap, overlaps};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Measures gaps and double ownership of floating addresses beside keepalived.
#[derive(Debug, Parser)]
struct Args {
    /// How often each thing fails
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Random faults to do instead of measuring gaps
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    faults: Option<u32>,
    /// Seed of the random faults; a fresh one by default
    #[arg(long)]
    seed: Option<u64>,
    /// Only these: of the clusters (default, fast, keepalived…) and the cases (kill, gone, link, part, move),
    /// or of the random faults
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Lines of the `cluster` section for the fastest safe timers
    #[arg(long, default_value = "vip-lease 100ms")]
    fast: String,
    /// Write the figures here too
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = if args.faults.is_some() { random_faults(&args) } else { gaps(&args) };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("vip: {e}");
            ExitCode::FAILURE
        }
    }
}

/// A kind of cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Phalanx { fast: bool },
    Keepalived { advert_ms: u64 },
}

const KINDS: [(&str, Kind); 5] = [
    ("default", Kind::Phalanx { fast: false }),
    ("fast", Kind::Phalanx { fast: true }),
    ("keepalived-1s", Kind::Keepalived { advert_ms: 1000 }),
    ("keepalived-50ms", Kind::Keepalived { advert_ms: 50 }),
    ("keepalived-10ms", Kind::Keepalived { advert_ms: 10 }),
];

/// A way to lose the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Kill,
    Gone,
    Link,
    Part,
    Move,
}

const CASES: [(&str, Case); 5] = [
    ("kill", Case::Kill),
    ("gone", Case::Gone),
    ("link", Case::Link),
    ("part", Case::Part),
    ("move", Case::Move),
];

/// What was measured of one kind in one case.
#[derive(Debug, Default)]
struct Figures {
    gaps: Vec<f64>,
    overlaps: Vec<f64>,
    failed: usize,
    /// Rounds that did not end: nobody took the address.
    stuck: usize,
}

fn gaps(args: &Args) -> Result<bool, String> {
    let named = |name: &str| args.only.iter().any(|o| o == name);
    let some_kind = KINDS.iter().any(|(name, _)| named(name));
    let some_case = CASES.iter().any(|(name, _)| named(name));
    let known = |o: &String| KINDS.iter().any(|(n, _)| n == o) || CASES.iter().any(|(n, _)| n == o);
    if let Some(unknown) = args.only.iter().find(|o| !known(o)) {
        return Err(format!("no cluster or case '{unknown}'"));
    }
    let mut rows = Vec::new();
    let mut held = true;
    println!(
        "{:<18}{:<6}{:>7}{:>10}{:>10}{:>10}{:>14}{:>8}",
        "cluster", "case", "rounds", "gap p50", "p99", "max", "two owners", "failed"
    );
    for (name, kind) in KINDS.into_iter().filter(|(name, _)| !some_kind || named(name)) {
        if kind == (Kind::Phalanx { fast: true }) && args.fast.is_empty() {
            println!("{name:<18}left out: --fast is empty");
            continue;
        }
        let mut rig = start(kind, args)?;
        for (case_name, case) in CASES.into_iter().filter(|(name, _)| !some_case || named(name)) {
            if matches!(kind, Kind::Keepalived { .. }) && case == Case::Move {
                continue;
            }
            let mut figures = Figures::default();
            for _ in 0..args.rounds {
                if let Err(e) = round(&mut rig, kind, case, &mut figures) {
                    println!("{e}");
                    figures.stuck += 1;
                    held = false;
                    drop(rig);
                    rig = start(kind, args)?;
                }
            }
            let worst = figures.overlaps.iter().copied().fold(0.0, f64::max);
            held &= matches!(kind, Kind::Keepalived { .. }) || worst == 0.0;
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|q| quantile(&figures.gaps, q));
            println!(
                "{name:<18}{case_name:<6}{:>7}{p50:>10.0}{p99:>10.0}{max:>10.0}{worst:>11.0} ms{:>8}",
                figures.gaps.len(),
                figures.failed
            );
            rows.push(json!({
                "cluster": name, "case": case_name, "gaps_ms": figures.gaps, "overlaps_ms": figures.overlaps,
                "p50_ms": p50, "p99_ms": p99, "max_ms": max, "failed_requests": figures.failed,
                "stuck": figures.stuck,
            }));
        }
    }
    println!(
        "gaps in ms without any answer, 5 ms between probes; two owners: longest, in ms within a round;"
    );
    println!("failed: requests refused, reset or without answer in all rounds (expected but for 'move')");
    write(args, &json!({ "rounds": args.rounds, "results": rows }))?;
    Ok(held)
}

fn start(kind: Kind, args: &Args) -> Result<Rig, String> {
    let rig = match kind {
        Kind::Phalanx { fast } => {
            let cluster =
                if fast { format!("    {}", args.fast.replace(';', "\n    ")) } else { String::new() };
            Rig::phalanx(&Spec { cluster, ..Spec::default() })?
        }
        Kind::Keepalived { advert_ms } => Rig::keepalived(3, Duration::from_millis(advert_ms))?,
    };
    recovered(&rig, kind)?;
    Ok(rig)
}

/// Waits until a next fault finds all nodes able.
fn recovered(rig: &Rig, kind: Kind) -> Result<usize, String> {
    if let Kind::Keepalived { advert_ms } = kind {
        // It says nothing of this kind: long enough for a backup to have heard the master.
        std::thread::sleep(Duration::from_millis(4 * advert_ms + 500));
        // After a partition the client may remember the one of two masters that has given up.
        rig.network.forget_neighbours();
    } else {
        rig.all_fit(Duration::from_secs(30))?;
    }
    rig.settle(Duration::from_millis(500), Duration::from_secs(30))
}

/// How long a second owner is looked for after the first answer of another.
const AFTER: Duration = Duration::from_secs(1);

fn round(rig: &mut Rig, kind: Kind, case: Case, figures: &mut Figures) -> Result<(), String> {
    let holder = recovered(rig, kind)?;
    let from = rig.now();
    // The children are found while their parent lives.
    rig.stations[holder].children();
    match case {
        Case::Kill => {
            // keepalived's own child would end in an orderly way when its parent dies.
            let both = matches!(kind, Kind::Keepalived { .. });
            rig.stations[holder].signal(Signal::SIGKILL, true, both);
        }
        Case::Gone => {
            rig.network.isolate(holder)?;
            rig.stations[holder].kill_all();
            // A machine that is gone has no kernel that would answer a witness.
            rig.network.forget_address(holder);
        }
        Case::Link => rig.network.unplug(holder)?,
        Case::Part => rig.network.part(holder)?,
        Case::Move => {
            let said = rig.stations[holder].api("failover vip web", Duration::from_secs(10));
            said.map_err(|e| format!("failover: {e}"))?;
        }
    }
    let limit = from + Duration::from_secs(20);
    while !rig
        .prober
        .since(from)
        .iter()
        .any(|s| s.body().and_then(|b| rig.index(b)).is_some_and(|n| n != holder))
    {
        if rig.now() > limit {
            return Err(format!(
                "nobody took the address from node {} ({case:?})\n{}",
                holder + 1,
                rig.logs(30)
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(AFTER);
    let shots = rig.prober.since(from.saturating_sub(Duration::from_millis(20)));
    figures.gaps.push(longest_gap(&shots, rig.now()).as_secs_f64() * 1e3);
    figures.failed += shots.iter().filter(|s| s.body().is_none()).count();
    figures.overlaps.push(overlap(&rig.held(), from, rig.now()).as_secs_f64() * 1e3);
    if case != Case::Move {
        if case == Case::Kill && matches!(kind, Kind::Keepalived { .. }) {
            // Its address stays for ever otherwise; it comes back as after a start of the machine.
            rig.network.forget_address(holder);
        }
        Nemesis::default().undo(rig)?;
    }
    Ok(())
}

/// Of at least one value, by the nearest rank.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

fn random_faults(args: &Args) -> Result<bool, String> {
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let mut rig = Rig::phalanx(&Spec { disks: true, ..Spec::default() })?;
    rig.all_fit(Duration::from_secs(30))?;
    let mut nemesis = Nemesis::default();
    let mut counts = std::collections::BTreeMap::<&str, (u32, f64)>::new();
    let wanted = args.faults.unwrap_or(1);
    for (number, step) in
        Schedule::new(seed, rig.stations.len(), &args.only)?.take(wanted as usize).enumerate()
    {
        let from = rig.now();
        let node = nemesis.begin(&mut rig, &step)?;
        std::thread::sleep(step.lasts);
        nemesis.undo(&mut rig)?;
        std::thread::sleep(step.pause);
        // A cluster that nobody holds has no second holder either: it must come back.
        rig.settle(Duration::from_millis(100), Duration::from_secs(30))
            .map_err(|e| format!("after fault {number}, {} at node {}: {e}", step.fault, node + 1))?;
        let doubled = overlap(&rig.held(), from, rig.now()).as_secs_f64() * 1e3;
        let count = counts.entry(step.fault.name()).or_default();
        *count = (count.0 + 1, count.1 + doubled);
        if doubled > 0.0 {
            println!(
                "fault {number}, {} at node {} for {:?}: {doubled} ms of two owners",
                step.fault,
                node + 1,
                step.lasts
            );
        }
    }
    let all = overlaps(&rig.held());
    let total = all.iter().map(|o| (o.span.to - o.span.from).as_secs_f64() * 1e3).fold(0.0, |a, b| a + b);
    println!("{:<18}{:>7}{:>16}", "fault", "times", "two owners, ms");
    for (name, (times, doubled)) in &counts {
        println!("{name:<18}{times:>7}{doubled:>16.1}");
    }
    let spans: usize = rig.held().iter().map(Vec::len).sum();
    println!(
        "{wanted} faults, {spans} spans of ownership seen in {:.0} s, {total:.1} ms of two owners, {} logs had to be wiped",
        rig.now().as_secs_f64(),
        nemesis.wiped
    );
    let kinds: Value =
        counts.iter().map(|(n, (t, d))| json!({ "fault": n, "times": t, "overlap_ms": d })).collect();
    write(args, &json!({ "seed": seed, "faults": wanted, "vip_overlap_ms": total, "kinds": kinds }))?;
    Ok(total == 0.0)
}

fn write(args: &Args, value: &Value) -> Result<(), String> {
    let Some(path) = &args.json else { return Ok(()) };
    std::fs::write(path, format!("{value:#}\n"))
        .map_err(|e| format!("cannot write '{}': {e}", path.display()))
}
