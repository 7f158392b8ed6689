//! Everything that outlives a configuration: the plan in force, process counters, sessions.
//!
//! Created once by the program and shared by workers and control plane. A reload goes through
//! [`State::load`], which carries frontends, backends and servers over by name, so counters, queues,
//! health and what was set at run time stay; what the new configuration changed wins.

pub mod sessions;

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use phalanx_config::model::{self, Config};

use crate::backend::{Backend, Effects};
use crate::counters::{Counters, Padded};
use crate::frontend::{Frontend, Status};
use crate::pattern::{self, Sets};
use crate::plan::{Plan, ProxyPlan};
use crate::registry::{Added, Registry};
use crate::stick::Tables;
use crate::time::Now;

use self::sessions::{Kill, Sessions};

/// What the program knows and the configuration does not.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Worker threads.
    pub workers: usize,
    /// For everything random.
    pub seed: u64,
    /// `maxconn` of the process where the configuration gives none (from the descriptor limit).
    pub default_maxconn: u32,
    /// Name of this node.
    pub node: String,
}

/// Counters and limits of the process.
#[derive(Debug)]
pub struct Process {
    /// When it started.
    pub started: Now,
    counters: Counters,
    maxconn: AtomicU32,
    conns: Padded<AtomicU32>,
    /// Times a connection had to wait for `maxconn`.
    pub maxconn_reached: AtomicU64,
    /// Bytes sent to clients without passing through user space.
    pub spliced: AtomicU64,
    /// Pipes for splicing.
    pub pipes: Pipes,
    /// Messages captured for `show errors`.
    pub captured: AtomicU64,
    stopping: AtomicBool,
}

/// The pipes of all workers (`maxpipes`), counted.
#[derive(Debug, Default)]
pub struct Pipes {
    max: AtomicU32,
    all: AtomicU32,
    used: AtomicU32,
}

impl Pipes {
    /// Sets how many there may be.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Relaxed);
    }

    /// How many there may be.
    pub fn max(&self) -> u32 {
        self.max.load(Relaxed)
    }

    /// How many hold bytes.
    pub fn used(&self) -> u32 {
        self.used.load(Relaxed)
    }

    /// How many are open and hold none.
    pub fn free(&self) -> u32 {
        self.all.load(Relaxed).saturating_sub(self.used())
    }

    /// One more is opened, and taken at once; false when there may be no more.
    pub fn open(&self) -> bool {
        let max = self.max();
        let opened = self.all.fetch_update(Relaxed, Relaxed, |n| (n < max).then_some(n + 1)).is_ok();
        if opened {
            self.taken();
        }
        opened
    }

    /// An open one is taken.
    pub fn taken(&self) {
        self.used.fetch_add(1, Relaxed);
    }

    /// One that was taken is given back.
    pub fn given(&self) {
        self.used.fetch_sub(1, Relaxed);
    }

    /// So many that nobody has taken are closed.
    pub fn closed(&self, n: usize) {
        self.all.fetch_sub(n as u32, Relaxed);
    }
}

impl Process {
    /// Connections, requests and rates of all frontends.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Limit of frontend connections in force.
    pub fn maxconn(&self) -> u32 {
        self.maxconn.load(Relaxed)
    }

    /// `set maxconn global`.
    pub fn set_maxconn(&self, maxconn: u32) {
        self.maxconn.store(maxconn, Relaxed);
    }

    /// Frontend connections now.
    pub fn conns(&self) -> u32 {
        self.conns.load(Relaxed)
    }

    /// Takes a place for a connection, which must [`leave`](Process::leave); `false` when the process is
    /// full.
    #[must_use]
    pub fn enter(&self) -> bool {
        let max = self.maxconn();
        let entered = self.conns.fetch_update(SeqCst, SeqCst, |n| (n < max).then_some(n + 1)).is_ok();
        if !entered {
            self.maxconn_reached.fetch_add(1, Relaxed);
        }
        entered
    }

    /// Gives the place of a connection back.
    pub fn leave(&self) {
        self.conns.fetch_sub(1, SeqCst);
    }

    /// Whether a graceful stop has begun.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Acquire)
    }

    /// Begins a graceful stop.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Release);
    }
}

/// What a reload did.
#[derive(Debug, Default)]
#[must_use]
pub struct LoadReport {
    /// Log lines and check changes, by backend.
    pub effects: Vec<(Arc<Backend>, Effects)>,
    /// Names of proxies that are new.
    pub added: Vec<String>,
    /// Names of proxies that are gone.
    pub removed: Vec<String>,
}

/// The state of the node's forwarding plane.
#[derive(Debug)]
pub struct State {
    plan: ArcSwap<Plan>,
    /// That of `plan`, for workers that look whether theirs is still the one in force.
    epoch: AtomicU64,
    setup: Setup,
    process: Arc<Process>,
    sessions: Sessions,
    tables: Arc<Tables>,
    patterns: Sets,
    pattern_edits: pattern::Queue,
    /// What runtime commands have changed, as of the last [`State::reconcile`]. Its lock serialises
    /// reloads and reconciliations.
    registry: Mutex<Registry>,
}

impl State {
    /// The state of a freshly started process.
    pub fn new(config: Config, setup: Setup, tables: Arc<Tables>, now: Now) -> Arc<State> {
        let config = Arc::new(config);
        tables.configure(&config, now);
        let process = Process {
            started: now,
            counters: Counters::new(setup.workers),
            maxconn: AtomicU32::new(config.global.maxconn.unwrap_or(setup.default_maxconn)),
            conns: Padded::default(),
            maxconn_reached: AtomicU64::new(0),
            spliced: AtomicU64::new(0),
            pipes: Pipes::default(),
            captured: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        };
        let patterns = Sets::new(setup.seed);
        let build =
            Build { setup: &setup, tables: &tables, patterns: &patterns, registry: &Registry::new(), now };
        let (plan, _) = build.plan(&config, None);
        Arc::new(State {
            epoch: AtomicU64::new(plan.epoch),
            plan: ArcSwap::from_pointee(plan),
            process: Arc::new(process),
            sessions: Sessions::new(setup.workers),
            setup,
            tables,
            patterns,
            pattern_edits: pattern::Queue::default(),
            registry: Mutex::default(),
        })
    }

    /// The plan in force.
    pub fn plan(&self) -> Guard<Arc<Plan>> {
        self.plan.load()
    }

    /// Epoch of the plan in force; cheaper than [`State::plan`].
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Acquire)
    }

    /// The plan in force, to keep.
    pub fn plan_owned(&self) -> Arc<Plan> {
        self.plan.load_full()
    }

    /// Process-wide counters and limits.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// The stick tables.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Changes of maps and ACLs that rules ask for.
    pub fn pattern_edits(&self) -> &pattern::Queue {
        &self.pattern_edits
    }

    /// The sessions of all workers.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Worker threads.
    pub fn workers(&self) -> usize {
        self.setup.workers
    }

    /// Seed for everything random.
    pub fn seed(&self) -> u64 {
        self.setup.seed
    }

    /// Limit of connections that the configuration or the descriptor limit gives; `set maxconn
    /// global` moves below it.
    pub fn hard_maxconn(&self) -> u32 {
        self.plan.load().config.global.maxconn.unwrap_or(self.setup.default_maxconn)
    }

    /// Name of this node.
    pub fn node(&self) -> &str {
        &self.setup.node
    }

    /// Takes a new configuration into force. Sessions keep the plan they began with; sessions on
    /// servers that are gone finish there. What runtime commands changed stays, except where the
    /// configuration changed the same value.
    pub fn load(&self, config: Config, now: Now) -> LoadReport {
        let registry = self.registry.lock();
        let config = Arc::new(config);
        let old = self.plan.load_full();
        if config.global.maxconn != old.config.global.maxconn {
            self.process.set_maxconn(config.global.maxconn.unwrap_or(self.setup.default_maxconn));
        }
        self.tables.configure(&config, now);
        let build = Build {
            setup: &self.setup,
            tables: &self.tables,
            patterns: &self.patterns,
            registry: &registry,
            now,
        };
        let (plan, report) = build.plan(&config, Some(&old));
        let epoch = plan.epoch;
        self.plan.store(Arc::new(plan));
        self.epoch.store(epoch, Release);
        report.effects.iter().for_each(|(_, effects)| self.end_sessions(effects));
        report
    }

    /// Brings servers, frontends, maps and ACLs in line with what runtime commands have changed: after every committed
    /// command and at start. Idempotent. The caller logs the effects.
    #[must_use]
    pub fn reconcile(&self, registry: &Registry, now: Now) -> Vec<(Arc<Backend>, Effects)> {
        let mut held = self.registry.lock();
        held.clone_from(registry);
        self.patterns.follow(registry.patterns());
        let plan = self.plan.load_full();
        let global = plan.config.global.maxconn.unwrap_or(self.setup.default_maxconn);
        for frontend in plan.proxies.iter().filter_map(|p| p.frontend.as_ref()) {
            frontend.follow(registry, frontend_maxconn(&frontend.config(), global));
        }
        let backends = plan.proxies.iter().filter_map(|p| p.backend.as_ref());
        backends
            .map(|backend| {
                let config = backend.config().clone();
                let effects = backend.apply(&config, backend.fullconn(), registry, &added_line, now);
                self.end_sessions(&effects);
                (backend.clone(), effects)
            })
            .collect()
    }

    /// Ends the sessions on servers that went down with `on-marked-down shutdown-sessions`.
    /// [`State::load`] and [`State::reconcile`] have done it for what they return.
    pub fn end_sessions(&self, effects: &Effects) {
        for server in &effects.ended {
            self.sessions.kill_on(server, Kill::Down);
        }
    }

    /// `clear counters`, or `clear counters all`.
    pub fn clear_counters(&self, all: bool) {
        for proxy in &self.plan().proxies {
            if let Some(frontend) = &proxy.frontend {
                if all { frontend.clear_all() } else { frontend.clear_max() }
            }
            if let Some(backend) = &proxy.backend {
                if all { backend.clear_all() } else { backend.clear_max() }
            }
        }
        if all { self.process.counters.clear_all() } else { self.process.counters.clear_max() }
    }
}

/// What a plan is built from, beside the configuration.
struct Build<'a> {
    setup: &'a Setup,
    tables: &'a Tables,
    patterns: &'a Sets,
    registry: &'a Registry,
    now: Now,
}

impl Build<'_> {
    fn plan(&self, config: &Arc<Config>, old: Option<&Plan>) -> (Plan, LoadReport) {
        let mut report = LoadReport::default();
        let patterns = self.patterns.load(&config.patterns, self.registry.patterns());
        let mut proxies = Vec::with_capacity(config.proxies.len());
        for section in &config.proxies {
            let before = old.and_then(|plan| plan.proxy(&section.name));
            if old.is_some() && before.is_none() {
                report.added.push(section.name.clone());
            }
            let frontend = section.kind.is_frontend().then(|| self.frontend(config, section, before));
            let backend =
                section.kind.is_backend().then(|| self.backend(config, section, before, &mut report));
            proxies.push(ProxyPlan::new(section.clone(), frontend, backend, self.tables));
        }
        let plan = Plan::new(old.map_or(1, |o| o.epoch + 1), config.clone(), proxies, patterns);
        for gone in old.iter().flat_map(|o| &o.proxies).filter(|p| plan.index(&p.config.name).is_none()) {
            report.removed.push(gone.config.name.clone());
            if let Some(frontend) = &gone.frontend {
                frontend.set_status(Status::Stopped);
            }
        }
        (plan, report)
    }

    fn frontend(
        &self,
        config: &Config,
        section: &Arc<model::Proxy>,
        before: Option<&ProxyPlan>,
    ) -> Arc<Frontend> {
        let maxconn = frontend_maxconn(section, self.global_maxconn(config));
        let kept = before.and_then(|b| b.frontend.clone());
        let new = || Arc::new(Frontend::new(section.clone(), maxconn, self.setup.workers));
        let frontend = kept.unwrap_or_else(new);
        frontend.set_config(section.clone());
        frontend.follow(self.registry, maxconn);
        frontend
    }

    fn backend(
        &self,
        config: &Config,
        section: &Arc<model::Proxy>,
        before: Option<&ProxyPlan>,
        report: &mut LoadReport,
    ) -> Arc<Backend> {
        let fullconn = fullconn(config, section, self.global_maxconn(config));
        let kept = before.and_then(|b| b.backend.clone());
        let backend = kept.unwrap_or_else(|| {
            Arc::new(Backend::new(section.clone(), fullconn, self.setup.workers, self.now))
        });
        let effects = backend.apply(section, fullconn, self.registry, &added_line, self.now);
        report.effects.push((backend.clone(), effects));
        backend
    }

    fn global_maxconn(&self, config: &Config) -> u32 {
        config.global.maxconn.unwrap_or(self.setup.default_maxconn)
    }
}

/// The `server` line that an `add server` command amounts to. `default-server` does not apply to it,
/// as in HAProxy; its address was resolved by the node that took the command.
fn added_line(name: &str, added: &Added) -> Result<model::Server, String> {
    let words: Vec<&str> = added.args.iter().map(String::as_str).collect();
    let address = added.addr.to_string();
    // Each node for itself might find another address.
    let resolve = |host: &str| Err(format!("host name '{host}': an address is needed here"));
    let defaults = model::ServerOptions::default();
    let mut line = phalanx_config::server_from_args(name, &address, &words, &defaults, &resolve)?;
    line.id = added.id;
    line.host.clone_from(&added.host);
    line.addr = added.addr;
    Ok(line)
}

fn frontend_maxconn(section: &model::Proxy, global: u32) -> u32 {
    section.maxconn.filter(|&n| n > 0).unwrap_or(global)
}

/// `fullconn`, by default a tenth of what the frontends that lead here by name may bring.
fn fullconn(config: &Config, section: &model::Proxy, global_maxconn: u32) -> u32 {
    let derived = || {
        let leads_here = |p: &&Arc<model::Proxy>| {
            p.kind.is_frontend()
                && (p.default_backend.as_deref() == Some(&*section.name)
                    || (p.name == section.name && p.default_backend.is_none()))
        };
        let sum: u64 = config
            .proxies
            .iter()
            .filter(leads_here)
            .map(|p| u64::from(frontend_maxconn(p, global_maxconn)))
            .sum();
        u32::try_from(sum.div_ceil(10)).unwrap_or(u32::MAX)
    };
    section.fullconn.filter(|&n| n > 0).unwrap_or_else(derived).max(1)
}

#[cfg(test)]
mod discovery_tests;
#[cfg(test)]
mod tests;
