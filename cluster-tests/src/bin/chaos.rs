//! A cluster under load and a seeded nemesis, with everything checked.
//!
//! `cargo run --release -p cluster-tests --bin chaos -- --minutes 30 --seed N`, as root. Ends with 1 when
//! something was found that must not be; the same seed does the same things again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use cluster_tests::chaos::{Options, run};

/// Does everything to a cluster that can go wrong, and checks that it keeps its promises.
#[derive(Debug, Parser)]
struct Args {
    /// How long
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Seed of the faults; a fresh one by default
    #[arg(long)]
    seed: Option<u64>,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=5))]
    nodes: u8,
    /// Only these faults
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Faults before everything is compared
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..))]
    per_round: u8,
    /// Write the figures here
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a page with the timeline here
    #[arg(long)]
    html: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let options = Options {
        seed,
        nodes: args.nodes.into(),
        length: Duration::from_secs_f64(args.minutes.max(0.1) * 60.0),
        only: args.only,
        per_round: args.per_round.into(),
        verbose: true,
    };
    let report = match run(&options) {
        Ok(report) => report,
        Err(e) => {
            eprintln!("chaos: {e}\nchaos: seed {seed}");
            return ExitCode::from(2);
        }
    };
    print!("{}", report.text());
    let mut written = true;
    for (path, text) in [(args.json, report.json()), (args.html, report.picture.html())] {
        written &= path.is_none_or(|path| write(&path, &text));
    }
    if report.good() && written { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write(path: &Path, text: &str) -> bool {
    let done = std::fs::write(path, text);
    if let Err(e) = &done {
        eprintln!("chaos: cannot write '{}': {e}", path.display());
    }
    done.is_ok()
}
