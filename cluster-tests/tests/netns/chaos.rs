//! A short run of chaos, of which `cargo run --release -p cluster-tests --bin chaos` is the long one.

use std::sync::PoisonError;
use std::time::Duration;

use cluster_tests::chaos::{Options, run};
use cluster_tests::{lab, seed};

use super::TURN;

#[test]
fn a_minute_of_chaos_breaks_no_promise() {
    if let Err(why) = lab::possible() {
        eprintln!("not run: {why}");
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let options = Options {
        seed: seed(),
        nodes: 3,
        length: Duration::from_secs(45),
        only: Vec::new(),
        per_round: 6,
        verbose: true,
    };
    let report = run(&options).unwrap();
    println!("{}", report.text());
    assert!(report.good(), "SEED={}\n{}", report.seed, report.text());
}
