//! Health checks: one task per checked server on the control runtime.
//!
//! [`Checker`] keeps the tasks in line with the state: a server that comes, goes, enters maintenance
//! or has its check switched gets or loses its task. A task probes ([`probe`]), hands the result to
//! the engine, which decides about up and down, and logs what the engine says. The workers are never
//! involved. The checker also drives `slowstart`, which needs somebody with a clock.

mod probe;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use phalanx_config::model::LogTarget;
use phalanx_engine::backend::{Backend, Effects};
use phalanx_engine::server::Server;
use phalanx_engine::state::State;
use phalanx_engine::time::Now;
use phalanx_sys::clock::Clock;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

/// Where log lines go: targets, level, line.
pub type Log = Arc<dyn Fn(&[LogTarget], u8, &str) + Send + Sync>;

/// The running health checks; dropping it ends them.
pub struct Checker {
    changed: Arc<Notify>,
    supervisor: JoinHandle<()>,
}

impl Checker {
    /// Starts checking every server that is to be checked. To be called on the control runtime.
    pub fn start(state: Arc<State>, clock: Clock, log: Log) -> Checker {
        let changed = Arc::new(Notify::new());
        let supervisor = Supervisor { state, clock, log, tasks: HashMap::new(), running: JoinSet::new() };
        let supervisor = tokio::spawn(supervisor.run(changed.clone()));
        Checker { changed, supervisor }
    }

    /// Looks again at what is to be checked: after a reload or a runtime command.
    pub fn refresh(&self) {
        self.changed.notify_one();
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

/// Logs what a change of servers has to say, to the log targets of their backend.
pub fn announce(backend: &Backend, effects: &Effects, log: &Log) {
    if !effects.notices.is_empty() {
        let config = backend.config();
        for notice in &effects.notices {
            log(&config.logs, notice.level, &notice.text);
        }
    }
}

struct Supervisor {
    state: Arc<State>,
    clock: Clock,
    log: Log,
    /// By address of the server, which its task keeps alive.
    tasks: HashMap<usize, AbortHandle>,
    /// Dropped with the supervisor, and every check with it.
    running: JoinSet<()>,
}

impl Supervisor {
    async fn run(mut self, changed: Arc<Notify>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = true;
        loop {
            self.sync(std::mem::take(&mut first));
            tokio::select! {
                () = changed.notified() => {}
                _ = tick.tick() => self.advance_ramps(),
            }
            while self.running.try_join_next().is_some() {}
        }
    }

    /// Starts and ends tasks. At the start of the process the first checks are spread over the
    /// shortest interval, later ones begin at once.
    fn sync(&mut self, spread: bool) {
        let mut wanted: Vec<(Arc<Backend>, Arc<Server>)> = Vec::new();
        let plan = self.state.plan();
        let active = plan.proxies.iter().filter(|p| !p.config.disabled);
        for backend in active.filter_map(|p| p.backend.as_ref()) {
            let checked = backend.servers().iter().filter(|s| s.check_runs()).cloned().collect::<Vec<_>>();
            wanted.extend(checked.into_iter().map(|server| (backend.clone(), server)));
        }
        self.tasks.retain(|&key, task| {
            let keep = wanted.iter().any(|(_, server)| key_of(server) == key) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        let shortest = wanted.iter().map(|(_, s)| s.options().inter).min().unwrap_or_default();
        let step = shortest.min(MAX_SPREAD) / wanted.len().max(1) as u32;
        for (index, (backend, server)) in wanted.into_iter().enumerate() {
            self.tasks.entry(key_of(&server)).or_insert_with(|| {
                let delay = if spread { step * index as u32 } else { Duration::ZERO };
                let spread_percent = self.state.plan().config.global.spread_checks;
                let jitter = Jitter { percent: spread_percent, state: self.state.seed() ^ index as u64 };
                let (state, log) = (self.state.clone(), self.log.clone());
                let check = Check { state, backend, server, clock: self.clock, log, jitter };
                self.running.spawn(check.run(delay))
            });
        }
    }

    fn advance_ramps(&self) {
        for backend in self.state.plan().proxies.iter().filter_map(|p| p.backend.as_ref()) {
            backend.advance_ramps(now(&self.clock));
        }
    }
}

/// The checks of one server.
struct Check {
    state: Arc<State>,
    backend: Arc<Backend>,
    server: Arc<Server>,
    clock: Clock,
    log: Log,
    jitter: Jitter,
}

impl Check {
    async fn run(mut self, delay: Duration) {
        let mut due = Instant::now() + delay;
        while !self.server.is_removed() {
            tokio::time::sleep_until(due).await;
            let began = Instant::now();
            let report = probe::run(&self.backend, &self.server).await;
            let effects = self.backend.check_result(&self.server, report, now(&self.clock));
            self.state.end_sessions(&effects);
            announce(&self.backend, &effects, &self.log);
            let interval = self.server.check().health.interval(&self.server.options());
            // From start to start, as long as the check itself is shorter.
            due = (began + self.jitter.spread(interval)).max(Instant::now());
        }
    }
}

/// `spread-checks`: moves intervals by up to so many percent either way.
struct Jitter {
    percent: u32,
    state: u64,
}

impl Jitter {
    fn spread(&mut self, interval: Duration) -> Duration {
        if self.percent == 0 {
            return interval;
        }
        // A linear congruential generator: neighbours should differ, nobody guards a secret with it.
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let range = interval * self.percent / 100;
        let moved = range * 2 * ((self.state >> 48) as u32) / (1 << 16);
        interval + moved - range
    }
}

fn key_of(server: &Arc<Server>) -> usize {
    Arc::as_ptr(server) as usize
}

fn now(clock: &Clock) -> Now {
    let (mono, unix_us) = clock.now();
    Now { mono, unix_us }
}

/// Steps of `slowstart`, and the longest that a missed [`Checker::refresh`] can go unnoticed.
const TICK: Duration = Duration::from_secs(1);
/// First checks are not put off further than this.
const MAX_SPREAD: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
