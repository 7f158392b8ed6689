//! Phalanx beside HAProxy and nginx: what each costs, case by case, with equal configurations.
//!
//! `cargo run --release -p cluster-tests --bin versus`. Each proxy has one worker on CPU 0; clients and
//! servers are this process, on CPU 1. Rounds alternate, A B C A B C, so that whatever else the machine
//! does hits all; shown are medians with least and most, and our CPU time by the best peer's.
//! `cluster-tests/README.md` has the method and what came out.

mod cases;
mod config;
mod floor;
mod generator;
mod machine;
mod measure;
mod proxies;
mod report;
mod streams;
mod svg;
mod syscalls;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use cluster_tests::phalanx;

use crate::cases::{CASES, Case};
use crate::machine::Tools;
use crate::measure::Times;
use crate::proxies::{Kind, Proxy};

/// Measures Phalanx beside HAProxy and nginx with equal configurations.
#[derive(Debug, Parser)]
struct Args {
    /// Length of one measurement
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Measurements of each proxy in each case
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Cases by their names, or by the letters that these begin with
    #[arg(long, value_delimiter = ',', value_parser = known)]
    only: Vec<String>,
    /// Says which cases there are
    #[arg(long)]
    list: bool,
    /// Writes the figures to a file too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes a picture
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Writes them as a table for a README
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// The HAProxy to compare with, in place of the one in PATH
    #[arg(long)]
    haproxy: Option<PathBuf>,
    /// Measures the least that a proxy can do on this kernel, too, in a, b1, b2 and d-connect
    #[arg(long)]
    floor: bool,
    /// Is that proxy
    #[arg(long, hide = true, num_args = 3, value_names = ["CASE", "WEB", "ORIGIN"])]
    be_floor: Option<Vec<String>>,
}

impl Args {
    /// Whether a case is to be measured.
    fn wants(&self, case: &Case) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| names(word, case))
    }
}

/// Whether a word of `--only` names a case.
fn known(word: &str) -> Result<String, String> {
    if CASES.iter().any(|case| names(word, case)) {
        return Ok(word.to_owned());
    }
    let all: Vec<_> = CASES.iter().map(|case| case.id).collect();
    Err(format!("the cases are {}", all.join(" ")))
}

/// A case's own name, or its letter.
fn names(word: &str, case: &Case) -> bool {
    case.id == word || (word.len() == 1 && case.id.starts_with(word))
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for case in CASES {
            println!("{:<14} {}", case.id, case.what);
        }
        return ExitCode::SUCCESS;
    }
    let done = match &args.be_floor {
        Some(words) => floor::run(words),
        None => run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("versus: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let (tools, missing) = Tools::look(args.haproxy.as_deref())?;
    let ours = phalanx();
    let limits = machine::prepare()?;
    let _first = machine::FirstSession::new();
    for what in missing.iter().chain(&limits) {
        eprintln!("versus: {what}");
    }
    if cfg!(debug_assertions) {
        eprintln!("versus: this is a debug build: the figures mean little, use --release");
    }
    let mut proxies = proxies(ours, &tools);
    if args.floor {
        let program = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
        proxies.push(Proxy { kind: Kind::Floor, program });
    }
    println!("{}", machine::description());
    for proxy in &proxies {
        println!("{:<8} {}", proxy.kind.name(), proxy.version());
    }
    println!(
        "{} rounds of {} s each in turn; proxies on CPU {} with one worker, load and servers on CPU {}\n",
        args.rounds,
        args.seconds,
        machine::PROXY_CPU,
        machine::LOAD_CPU
    );
    let times = Times { seconds: args.seconds, rounds: args.rounds };
    let began = std::time::Instant::now();
    let mut all = Vec::new();
    let mut failed = Vec::new();
    let chosen: Vec<&Case> = CASES.iter().filter(|case| args.wants(case)).collect();
    for group in chosen.chunk_by(|before, case| case.beside(before)) {
        match measure::cases(group, &proxies, &tools, times) {
            Ok(cells) => {
                let mut rows: Vec<_> =
                    group.iter().zip(&cells).map(|(c, cells)| report::rows(c, cells)).collect();
                if let [without, with] = rows.as_mut_slice() {
                    report::compare(with, without);
                }
                for (case, rows) in group.iter().zip(rows) {
                    println!("{}", report::text(case, &rows));
                    all.push((*case, rows));
                }
            }
            // The others may go well all the same.
            Err(e) => {
                eprintln!("versus: {e}\n");
                failed.extend(group.iter().map(|case| case.id));
            }
        }
    }
    println!("took {} s", began.elapsed().as_secs());
    write(args, &all)?;
    if failed.is_empty() { Ok(()) } else { Err(format!("no figures in case {}", failed.join(", "))) }
}

fn proxies(ours: &Path, tools: &Tools) -> Vec<Proxy> {
    let peers = [(Kind::Haproxy, &tools.haproxy), (Kind::Nginx, &tools.nginx)];
    let peers =
        peers.into_iter().filter_map(|(kind, program)| Some(Proxy { kind, program: program.clone()? }));
    std::iter::once(Proxy { kind: Kind::Phalanx, program: ours.to_owned() }).chain(peers).collect()
}

fn write(args: &Args, all: &[(&Case, Vec<report::Row>)]) -> Result<(), String> {
    let rows: Vec<_> = all.iter().flat_map(|(_, rows)| rows.iter().cloned()).collect();
    let to = |path: &Option<PathBuf>, text: String| match path {
        Some(path) => {
            std::fs::write(path, text).map_err(|e| format!("cannot write '{}': {e}", path.display()))
        }
        None => Ok(()),
    };
    to(&args.json, format!("{:#}\n", report::json(&rows)))?;
    let subtitle =
        format!("{}; {} rounds of {} s in turn", machine::description(), args.rounds, args.seconds);
    to(&args.svg, svg::draw(all, &subtitle))?;
    to(&args.markdown, report::markdown(all))
}
