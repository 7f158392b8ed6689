//! The load of a chaos run: clients that are counted, and people who change things.
//!
//! Everything is paused for the checks and goes on afterwards. Nothing is sent twice: an answer that
//! did not come leaves the request *unknown*.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::counters::{Ack, Ledger};
use super::linear::{Action, Op};
use crate::lab::enter;
use crate::{Client, try_api};

/// Keys that are counted, anew in each round.
const KEYS: u32 = 24;
/// Longest wait of a client.
const PATIENCE: Duration = Duration::from_millis(800);
/// Longest wait for a command: without a majority it is refused within 2 s.
const COMMAND: Duration = Duration::from_secs(4);

/// What the load knows of the cluster.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Namespace of the clients.
    pub client: String,
    /// Where counted requests go: the floating address first, then each node's own.
    pub counted: Vec<SocketAddr>,
    /// The nodes' Runtime APIs.
    pub sockets: Vec<PathBuf>,
    /// Names of the nodes, which they answer with.
    pub nodes: Vec<String>,
    /// The map that is written to.
    pub map: String,
    /// The moment from which times are counted.
    pub origin: Instant,
}

/// A register: a command that writes it and one that reads it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Register {
    /// A key of the map.
    Map(String),
    /// The weight of a server.
    Weight(String),
}

/// All registers that are written.
pub(super) fn registers() -> Vec<Register> {
    let maps = (0..4).map(|k| Register::Map(format!("k{k}")));
    maps.chain((1..=2).map(|s| Register::Weight(format!("changed/s{s}")))).collect()
}

impl Register {
    fn write(&self, map: &str, number: u64) -> (String, String) {
        match self {
            Register::Map(key) => (format!("set map {map} {key} v{number}"), format!("v{number}")),
            Register::Weight(server) => {
                let weight = number % 250 + 1;
                (format!("set weight {server} {weight}"), weight.to_string())
            }
        }
    }

    /// Its value on a node.
    ///
    /// # Errors
    /// It does not say.
    pub(super) fn read(&self, socket: &str, map: &str) -> Result<String, String> {
        let ask = |command: &str| try_api(socket, command, COMMAND).map_err(|e| e.to_string());
        let found = match self {
            Register::Map(key) => {
                let text = ask(&format!("show map {map}"))?;
                let row = text.lines().find_map(|l| l.split_once(&format!(" {key} ")));
                row.map(|(_, value)| value.trim().to_owned()).ok_or(text)
            }
            Register::Weight(server) => {
                let text = ask(&format!("get weight {server}"))?;
                text.split_whitespace()
                    .next()
                    .filter(|w| w.parse::<u32>().is_ok())
                    .map(str::to_owned)
                    .ok_or(text)
            }
        };
        found.map_err(|text| format!("{self:?}: '{}'", text.trim()))
    }
}

#[derive(Debug, Default)]
struct Shared {
    paused: AtomicBool,
    stop: AtomicBool,
    round: AtomicU32,
    busy: AtomicU32,
    ledger: Mutex<Ledger>,
    history: Mutex<Vec<(Register, Op)>>,
    refused: AtomicU32,
}

/// Running load.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts it, paused.
    pub(super) fn start(place: &Place, seed: u64) -> Load {
        let shared = Arc::new(Shared::default());
        shared.paused.store(true, Relaxed);
        let mut threads = Vec::new();
        for number in 0..2 {
            let (place, shared) = (place.clone(), shared.clone());
            threads.push(std::thread::spawn(move || client(&place, &shared, seed ^ number)));
        }
        for number in 0..place.nodes.len() {
            let (place, shared) = (place.clone(), shared.clone());
            threads.push(std::thread::spawn(move || writer(&place, &shared, number, seed)));
        }
        Load { shared, threads }
    }

    /// Lets it go on, with counters of a new round.
    pub(super) fn go(&self) {
        self.shared.round.fetch_add(1, Relaxed);
        self.shared.paused.store(false, Relaxed);
    }

    /// Pauses it, and waits for what is under way.
    pub(super) fn pause(&self) {
        self.shared.paused.store(true, Relaxed);
        let deadline = Instant::now() + COMMAND + Duration::from_secs(1);
        while self.shared.busy.load(Relaxed) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What clients and writers saw since the last call.
    pub(super) fn take(&self) -> (Ledger, Vec<(Register, Op)>) {
        (
            std::mem::take(&mut *locked(&self.shared.ledger)),
            std::mem::take(&mut *locked(&self.shared.history)),
        )
    }

    /// Commands that were refused or not answered so far.
    pub(super) fn refused(&self) -> u32 {
        self.shared.refused.load(Relaxed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Runs `f` again and again while the load is not paused.
    fn each(&self, pace: Duration, mut f: impl FnMut()) {
        while !self.stop.load(Relaxed) {
            self.busy.fetch_add(1, Relaxed);
            if !self.paused.load(Relaxed) {
                f();
            }
            self.busy.fetch_sub(1, Relaxed);
            std::thread::sleep(pace);
        }
    }
}

fn client(place: &Place, shared: &Shared, seed: u64) {
    enter(&place.client);
    let mut rng = StdRng::seed_from_u64(seed);
    shared.each(Duration::from_millis(8), || {
        let key = format!("r{}-{}", shared.round.load(Relaxed), rng.random_range(0..KEYS));
        // Half of them by the floating address.
        let target = if rng.random_bool(0.5) { 0 } else { rng.random_range(1..place.counted.len()) };
        *locked(&shared.ledger).sent.entry(key.clone()).or_default() += 1;
        let asked = Client::with_limit(&place.counted[target].to_string(), PATIENCE)
            .and_then(|mut c| c.get("/", &[("X-User", &key), ("Connection", "close")]));
        let Ok(response) = asked else { return };
        let text = response.text();
        if let (200, Some(node)) = (response.status, place.nodes.iter().position(|n| n == text.trim())) {
            locked(&shared.ledger).acks.push(Ack { key, node, at: place.origin.elapsed() });
        }
    });
}

fn writer(place: &Place, shared: &Shared, number: usize, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed ^ (0x77 + number as u64));
    let registers = registers();
    let socket = place.sockets[number].display().to_string();
    let mut serial = number as u64;
    shared.each(Duration::from_millis(60), || {
        let register = &registers[rng.random_range(0..registers.len())];
        let (command, value) = register.write(&place.map, serial);
        serial += place.nodes.len() as u64;
        let call = place.origin.elapsed();
        let answer = try_api(&socket, &command, COMMAND);
        // Without an answer, or with an error, it may still take effect.
        let acknowledged = answer.is_ok_and(|a| a == "\n");
        if !acknowledged {
            shared.refused.fetch_add(1, Relaxed);
        }
        let done = acknowledged.then(|| place.origin.elapsed());
        locked(&shared.history).push((register.clone(), Op { call, done, action: Action::Write(value) }));
    });
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
