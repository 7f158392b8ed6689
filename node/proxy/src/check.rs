//! Health checks: one task per checked server on the control runtime.
//!
//! [`Checker`] keeps the tasks in line with the state: a server that comes, goes, enters maintenance
//! or has its check switched gets or loses its task. A task probes ([`probe`]), hands the result to
//! the engine, which decides about up and down, and logs what the engine says. The workers are never
//! involved. In a cluster the nodes share the probes out ([`shared`]); without one, or with `option
//! per-node-checks`, every server has a task here. The checker also drives `slowstart`, which needs
//! somebody with a clock.

mod probe;
mod shared;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use phalanx_config::model::LogTarget;
use phalanx_engine::backend::{Backend, Effects};
use phalanx_engine::health::Report;
use phalanx_engine::server::{OpState, Server};
use phalanx_engine::state::State;
use phalanx_engine::time::Now;
use phalanx_engine::verdict::{Claim, Duty, Kind, NodeName, Subject};
use phalanx_sys::clock::Clock;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

pub use self::shared::{Ask, Sharing, agent_subject, subject};
use self::shared::{ForAll, Local};

/// Where log lines go: targets, level, line.
pub type Log = Arc<dyn Fn(&[LogTarget], u8, &str) + Send + Sync>;

/// The running health checks; dropping it ends them.
pub struct Checker {
    state: Arc<State>,
    changed: Arc<Notify>,
    supervisor: JoinHandle<()>,
}

impl Checker {
    /// Starts checking every server that is to be checked, or, with `sharing`, this node's share of
    /// them. To be called on the control runtime.
    pub fn start(state: Arc<State>, clock: Clock, log: Log, sharing: Option<Sharing>) -> Checker {
        let changed = Arc::new(Notify::new());
        if let Some(sharing) = &sharing {
            let woken = changed.clone();
            sharing.board.wake_prober(move || woken.notify_one());
        }
        let supervisor = Supervisor {
            state: state.clone(),
            clock,
            log,
            sharing,
            changed: changed.clone(),
            subjects: Vec::new(),
            entries: HashMap::new(),
            running: JoinSet::new(),
        };
        let supervisor = tokio::spawn(supervisor.run(changed.clone()));
        Checker { state, changed, supervisor }
    }

    /// Looks again at what is to be checked: after a reload or a runtime command.
    pub fn refresh(&self) {
        self.changed.notify_one();
    }

    /// Probes once, for another node; `None` = this node does not check that.
    pub fn probe(&self, subject: Subject) -> impl Future<Output = Option<Report>> + Send + use<> {
        shared::probe_for_another(self.state.clone(), subject)
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

/// A server that is to be checked.
struct Entry {
    mode: Mode,
    task: Option<AbortHandle>,
    local: Local,
    /// What was taken over last, and from whom.
    applied: Option<(NodeName, Claim)>,
}

/// Who probes a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// This node, for itself.
    Own,
    /// This node, for all.
    ForAll,
    /// Another; this one as well, because it may be the only one that cannot reach it.
    Look,
    /// Another.
    Follow,
}

struct Wanted {
    backend: Arc<Backend>,
    server: Arc<Server>,
    kind: Kind,
    /// When the check is shared out.
    subject: Option<Subject>,
}

struct Supervisor {
    state: Arc<State>,
    clock: Clock,
    log: Log,
    sharing: Option<Sharing>,
    changed: Arc<Notify>,
    /// What the board was told last.
    subjects: Vec<Subject>,
    /// By address of the server, which its task keeps alive.
    entries: HashMap<(usize, Kind), Entry>,
    /// Dropped with the supervisor, and every check with it.
    running: JoinSet<()>,
}

impl Supervisor {
    async fn run(mut self, changed: Arc<Notify>) {
        let mut tick = tokio::time::interval(if self.sharing.is_some() { LOOK } else { TICK });
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut advanced = Instant::now();
        let mut first = true;
        loop {
            self.sync(std::mem::take(&mut first));
            tokio::select! {
                () = changed.notified() => {}
                _ = tick.tick() => {}
            }
            if advanced.elapsed() >= TICK {
                advanced = Instant::now();
                self.advance_ramps();
            }
            while self.running.try_join_next().is_some() {}
        }
    }

    /// Starts and ends tasks. At the start of the process the first checks are spread over the
    /// shortest interval, later ones begin at once.
    fn sync(&mut self, spread: bool) {
        let wanted = self.wanted();
        let keys: HashSet<_> = wanted.iter().map(|w| (key_of(&w.server), w.kind)).collect();
        self.entries.retain(|key, entry| {
            let keep = keys.contains(key);
            if !keep {
                entry.end();
            }
            keep
        });
        let shortest = wanted.iter().map(|w| w.server.options().inter).min().unwrap_or_default();
        let step = shortest.min(MAX_SPREAD) / wanted.len().max(1) as u32;
        for (index, wanted) in wanted.into_iter().enumerate() {
            let delay = if spread { step * index as u32 } else { Duration::ZERO };
            self.follow(wanted, index as u64, delay);
        }
    }

    fn wanted(&mut self) -> Vec<Wanted> {
        let plan = self.state.plan();
        let mut wanted = Vec::new();
        for backend in plan.proxies.iter().filter(|p| !p.config.disabled).filter_map(|p| p.backend.as_ref()) {
            let shares = self.sharing.is_some() && !backend.config().per_node_checks;
            for server in backend.servers().iter() {
                let mut want = |kind, subject| {
                    wanted.push(Wanted { backend: backend.clone(), server: server.clone(), kind, subject });
                };
                if server.agent_runs() {
                    want(Kind::Agent, shares.then(|| shared::agent_subject(backend, server)));
                }
                if server.check_runs() {
                    want(Kind::Health, shares.then(|| shared::subject(backend, server)));
                } else if server.check().apart.is_some() {
                    let _ = backend.stand_by(server, false, now(&self.clock));
                }
            }
        }
        if let Some(sharing) = &self.sharing {
            let subjects: Vec<Subject> = wanted.iter().filter_map(|w| w.subject.clone()).collect();
            if subjects != self.subjects {
                sharing.board.set_subjects(subjects.iter().cloned(), now(&self.clock));
                self.subjects = subjects;
            }
        }
        wanted
    }

    /// Has the task of a server do what is this node's duty now.
    fn follow(&mut self, wanted: Wanted, index: u64, delay: Duration) {
        let Wanted { backend, server, kind, subject } = wanted;
        let entry = self.entries.entry((key_of(&server), kind)).or_insert_with(|| Entry {
            mode: Mode::Follow,
            task: None,
            local: shared::local(&server),
            applied: None,
        });
        let at = now(&self.clock);
        let mode = match (&self.sharing, &subject) {
            (Some(sharing), Some(subject)) => match sharing.board.duty(subject) {
                Duty::Probe => Mode::ForAll,
                Duty::Wait | Duty::Follow => {
                    if let Some(claim) = sharing.board.claim(subject, at)
                        && entry.applied.as_ref() != Some(&claim)
                        && let Some(effects) = match kind {
                            Kind::Health => backend.apply_verdict(&server, &claim.1.verdict, at),
                            Kind::Agent => backend.apply_agent(&server, &claim.1.verdict, at),
                        }
                    {
                        entry.applied = Some(claim);
                        self.state.end_sessions(&effects);
                        announce(&backend, &effects, &self.log);
                    }
                    let apart = server.check().apart.is_some();
                    let suspect = server.connect_failures() >= shared::SUSPICIOUS
                        && server.op_state() != OpState::Stopped;
                    if kind == Kind::Health && (apart || suspect) { Mode::Look } else { Mode::Follow }
                }
            },
            _ => Mode::Own,
        };
        if entry.mode == mode && entry.task.as_ref().is_some_and(|t| !t.is_finished()) {
            return;
        }
        entry.end();
        entry.mode = mode;
        if mode == Mode::Follow {
            return;
        }
        let percent = self.state.plan().config.global.spread_checks;
        let jitter = Jitter { percent, state: self.state.seed() ^ index };
        let (state, log) = (self.state.clone(), self.log.clone());
        let check =
            Check { state, backend, server, clock: self.clock, log, jitter, changed: self.changed.clone() };
        let task = match (mode, self.sharing.clone().zip(subject)) {
            (Mode::Look, Some((sharing, subject))) => {
                if check.server.check().apart.is_none() {
                    entry.local.lock().force(true);
                }
                self.running.spawn(shared::look(check, sharing, subject, entry.local.clone()))
            }
            (Mode::ForAll, Some((sharing, subject))) if kind == Kind::Agent => {
                entry.applied = None;
                sharing.board.observe(&subject, check.server.agent_verdict());
                self.running.spawn(check.ask(delay, Some((sharing, subject))))
            }
            (_, _) if kind == Kind::Agent => self.running.spawn(check.ask(delay, None)),
            (Mode::ForAll, Some((sharing, subject))) => {
                entry.applied = None;
                // What it alone saw so far is what counts from now on.
                let _ = check.backend.stand_by(&check.server, true, at);
                sharing.board.observe(&subject, check.server.verdict());
                let part = ForAll { sharing, subject, local: entry.local.clone() };
                self.running.spawn(check.run(delay, Some(part)))
            }
            _ => {
                let _ = check.backend.stand_by(&check.server, true, at);
                self.running.spawn(check.run(delay, None))
            }
        };
        entry.task = Some(task);
    }

    fn advance_ramps(&self) {
        for backend in self.state.plan().proxies.iter().filter_map(|p| p.backend.as_ref()) {
            backend.advance_ramps(now(&self.clock));
        }
    }
}

impl Entry {
    fn end(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
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
    changed: Arc<Notify>,
}

impl Check {
    async fn run(mut self, delay: Duration, for_all: Option<ForAll>) {
        let mut due = Instant::now() + delay;
        while !self.server.is_removed() {
            tokio::time::sleep_until(due).await;
            let began = Instant::now();
            let report = match &for_all {
                None => probe::run(&self.backend, &self.server).await,
                Some(part) => match part.probe(&self).await {
                    (report, None) => report,
                    (report, Some(reached_by)) => return part.leave(&self, report, reached_by),
                },
            };
            let effects = self.backend.check_result(&self.server, report, now(&self.clock));
            if let Some(part) = &for_all {
                part.sharing.board.observe(&part.subject, self.server.verdict());
            }
            self.state.end_sessions(&effects);
            announce(&self.backend, &effects, &self.log);
            let interval = self.server.check().health.interval(&self.server.options());
            // From start to start, as long as the check itself is shorter.
            due = (began + self.jitter.spread(interval)).max(Instant::now());
        }
    }
}

impl Check {
    /// Asks the server's agent, for this node or for all.
    async fn ask(mut self, delay: Duration, for_all: Option<(Sharing, Subject)>) {
        let mut due = Instant::now() + delay;
        while !self.server.is_removed() {
            tokio::time::sleep_until(due).await;
            let began = Instant::now();
            let (said, report) = probe::agent(&self.backend, &self.server).await;
            let effects = self.backend.agent_result(&self.server, said.as_ref(), report, now(&self.clock));
            if let Some((sharing, subject)) = &for_all {
                sharing.board.observe(subject, self.server.agent_verdict());
            }
            self.state.end_sessions(&effects);
            announce(&self.backend, &effects, &self.log);
            if effects.checks {
                // Maintenance ends the health check, and its end begins it.
                self.changed.notify_one();
            }
            let interval = self.server.options().agent_inter;
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
/// How soon a change of duty that comes with time is followed.
const LOOK: Duration = Duration::from_millis(100);
/// First checks are not put off further than this.
const MAX_SPREAD: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
