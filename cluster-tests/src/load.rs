//! HTTP load in the background, and what became of each request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Client, Response};

/// What became of one request.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// When it ended, from the start of the load.
    pub at: Duration,
    /// The response's status, or why there was none.
    pub result: Result<u16, String>,
}

/// Threads that send requests, one after the other each.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Outcome>>>,
    began: Instant,
}

impl Load {
    /// Starts `threads` that GET `path` at `addr`, each on a kept connection, made anew after an
    /// error. `limit` bounds each request.
    pub fn start(addr: &str, path: &str, threads: usize, limit: Duration) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let began = Instant::now();
        let worker = |_| {
            let (addr, path, stop) = (addr.to_owned(), path.to_owned(), stop.clone());
            std::thread::spawn(move || run(&addr, &path, limit, &stop, began))
        };
        Load { threads: (0..threads).map(worker).collect(), stop, began }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Stops and returns all outcomes in order of time.
    pub fn finish(self) -> Vec<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.threads.into_iter().map(|t| t.join().expect("a load thread does not panic"));
        let mut all: Vec<Outcome> = joined.flatten().collect();
        all.sort_by_key(|o| o.at);
        all
    }
}

/// How many requests ended in what way, for messages.
pub fn summary(outcomes: &[Outcome]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in outcomes {
        let what = outcome.result.as_ref().map_or_else(Clone::clone, ToString::to_string);
        *counts.entry(what).or_default() += 1;
    }
    format!("{counts:?}")
}

fn run(addr: &str, path: &str, limit: Duration, stop: &AtomicBool, began: Instant) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut client: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        let result = request(&mut client, addr, path, limit);
        if result.is_err() {
            client = None;
            // Nobody listens: a client that spins would take the CPU from those who are to.
            std::thread::sleep(Duration::from_millis(5));
        }
        let result = result.map(|r| r.status).map_err(|e| e.to_string());
        outcomes.push(Outcome { at: began.elapsed(), result });
    }
    outcomes
}

fn request(
    client: &mut Option<Client>,
    addr: &str,
    path: &str,
    limit: Duration,
) -> std::io::Result<Response> {
    if client.is_none() {
        *client = Some(Client::with_limit(addr, limit)?);
    }
    let connected = client.as_mut().expect("it was just made");
    let response = connected.get(path, &[])?;
    if response.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")) {
        *client = None;
    }
    Ok(response)
}
