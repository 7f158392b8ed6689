//! The control plane of a node: what runs beside the forwarding plane, and the signals that steer
//! both.
//!
//! [`run`] starts the parts in the order in which they need each other and then waits for signals
//! and reload requests. A reload is all or nothing: a file with errors, or an address that can't be
//! bound, leaves everything as it was.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_cluster::control::Commands;
use phalanx_cluster::vip::GuardianCommand;
use phalanx_cluster::{Cluster, Settings};
use phalanx_config::model::{self, Pos};
use phalanx_config::{Config, Env, Level, StatsAddr, StatsSocket};
use phalanx_engine::backend::{Backend, Effects};
use phalanx_engine::registry::{Command, Registry};
use phalanx_engine::state::State;
use phalanx_engine::time::Now;
use phalanx_proxy::Forwarder;
use phalanx_proxy::check::{self, Checker};
use phalanx_proxy::log::Sink;
use phalanx_sys::clock::Clock;
use phalanx_sys::process;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::rollout::{ApplyRequest, Rollout};
use super::vips::Floating;
use super::watchdog::Watchdog;
use super::{checks, edits, places};
use crate::args::Options;
use crate::cli;
use crate::epochs::{Held, Text};
use crate::load::{Loaded, System};
use crate::notify::Notifier;

/// Everything that exists before the control plane runs.
pub(super) struct Start {
    pub held: Arc<Held>,
    pub options: Options,
    pub state: Arc<State>,
    pub logs: Sink,
    pub clock: Clock,
    pub sockets: Vec<cli::Listener>,
    pub cluster: Option<Settings>,
    pub guardian: GuardianCommand,
    pub notifier: Arc<Notifier>,
    /// What the parser said at the start.
    pub said: super::Said,
}

/// Reloads that may wait: each takes the files as they are when its turn comes.
const RELOADS: usize = 16;

/// How often expired entries of stick tables are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// How long the last log lines may take to be written to standard output.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How long requests that are under way may take to be answered when the process ends at once.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// What changes of servers and configurations have to tell.
#[derive(Clone)]
struct Plane {
    state: Arc<State>,
    logs: Sink,
    clock: Clock,
    log: check::Log,
    checker: Arc<OnceLock<Checker>>,
    /// Frontends may accept or not, or have other limits.
    frontends: Arc<Notify>,
}

impl Plane {
    fn now(&self) -> Now {
        let (mono, unix_us) = self.clock.now();
        Now { mono, unix_us }
    }

    /// Takes over what runtime commands have changed.
    fn reconcile(&self, registry: &Registry) {
        self.announce(&self.state.reconcile(registry, self.now()));
        self.frontends.notify_one();
    }

    /// Logs what changes have to say and has the checks follow.
    fn announce(&self, effects: &[(Arc<Backend>, Effects)]) {
        for (backend, effects) in effects {
            check::announce(backend, effects, &self.log);
        }
        if let Some(checker) = self.checker.get() {
            checker.refresh();
        }
    }
}

/// Starts everything, calls `ready`, and stays until a signal ends it.
pub(super) async fn run(start: Start, ready: impl FnOnce()) -> Result<(), String> {
    let mut signals = Signals::new().map_err(|e| format!("cannot catch signals: {e}"))?;
    let Start { held, options, state, logs, clock, sockets, cluster, guardian, notifier, said } = start;
    let sink = logs.clone();
    let log: check::Log = Arc::new(move |targets, level, line| sink.send(targets, level, line.as_bytes()));
    let plane = Plane {
        state: state.clone(),
        logs: logs.clone(),
        clock,
        log,
        checker: Arc::default(),
        frontends: Arc::default(),
    };

    let floating = match &cluster {
        Some(settings) => Floating::start(&state.plan().config, settings, guardian)?,
        None => None,
    };
    let incarnation = cluster.as_ref().map_or(0, |settings| settings.incarnation);
    let cluster = match cluster {
        Some(settings) => {
            let vips = floating.as_ref().map(Floating::handle);
            let following = plane.clone();
            let (floating, me) = (vips.clone(), settings.node.clone());
            let on_registry = Box::new(move |registry: &Registry| {
                if let Some(vips) = &floating {
                    vips.set_maintenance(registry.in_maintenance(&me));
                }
                following.reconcile(registry);
            });
            let started = Cluster::start(settings, state.tables().clone(), clock, vips, on_registry).await;
            Some(started.map_err(|e| e.to_string())?)
        }
        None => None,
    };
    // Starting it blocks: it builds runtimes and waits for the workers.
    let (for_workers, sink) = (state.clone(), logs.clone());
    let forwarder = tokio::task::spawn_blocking(move || Forwarder::start(for_workers, clock, sink))
        .await
        .map_err(|e| format!("cannot start the workers: {e}"))?
        .map_err(|e| e.to_string())?;
    let forwarder = Arc::new(forwarder);
    let sharing = cluster.as_ref().map(checks::sharing);
    let _ = plane.checker.set(Checker::start(state.clone(), clock, plane.log.clone(), sharing));
    tokio::spawn(places::count(state.clone(), cluster.clone(), clock));
    if let Some(cluster) = &cluster {
        checks::answer(cluster, &plane.checker);
    }
    if let (Some(floating), Some(cluster)) = (&floating, &cluster) {
        floating.ready(&forwarder, cluster, state.tables(), &held);
    }
    // Sessions end when its sender goes, at the end of this function.
    let (_sessions, ended) = tokio::sync::watch::channel(false);
    let node_name = state.node().to_owned();
    let haproxys = super::peers::start(&state.plan().config, &node_name, state.tables(), clock, &ended);
    if cluster.is_none() {
        tokio::spawn(sweep(plane.clone()));
    }

    let (apply, mut applies) = mpsc::channel::<ApplyRequest>(1);
    if let Some(cluster) = &cluster {
        let rollout = Rollout {
            cluster: cluster.clone(),
            held: held.clone(),
            apply,
            state: state.clone(),
            forwarder: forwarder.clone(),
            vips: floating.as_ref().map(|f| (f.handle(), f.caught_up())),
            clock,
            incarnation,
        };
        tokio::spawn(rollout.run());
    }
    let (reload, mut reloads) = mpsc::channel::<cli::ReloadRequest>(RELOADS);
    let listeners = forwarder.clone();
    let context = Arc::new(cli::Context {
        state,
        authority: match &cluster {
            Some(cluster) => cli::Authority::Cluster(cluster.clone()),
            None => {
                let following = plane.clone();
                cli::Authority::Local(cli::Local::new(move |registry| following.reconcile(registry)))
            }
        },
        clock,
        logs,
        reload,
        apply_listeners: Box::new(move || {
            listeners.room_changed();
            listeners.apply().map_err(|e| e.to_string())
        }),
        startup_logs: Arc::new(Mutex::new(said.messages)),
        resolve,
        load: cli::Load::default(),
        haproxys,
        warnings: AtomicU64::new(said.warnings),
        discovery: crate::discovery::Handle::default(),
        held: held.clone(),
    });
    let for_others: Arc<dyn Commands> = Arc::new(cli::ForOthers(context.clone()));
    if let Some(cluster) = &cluster {
        cluster.take_commands(&for_others);
    }
    tokio::spawn(crate::discovery::tend(context.clone()));
    tokio::spawn(follow_frontends(plane.clone(), forwarder.clone()));
    tokio::spawn(edits::carry(context.state.clone(), context.clone()));
    let mut api = Api { context, open: Vec::new() };
    for socket in sockets {
        api.serve(socket);
    }
    let watchdog =
        Watchdog { notifier: notifier.clone(), forwarder: forwarder.clone(), cluster: cluster.clone() };
    let mut node = Node { held, options, plane, forwarder, cluster, floating, api, notifier };

    // Listeners are open, the cluster's port and the Runtime API answer.
    node.notifier.ready();
    tokio::spawn(watchdog.run());
    ready();
    node.signal_old_processes();
    loop {
        tokio::select! {
            event = signals.next() => match event {
                Event::Reload => node.reload_logged().await,
                Event::Finish => return node.finish(&mut signals).await,
                Event::Terminate => return node.terminate().await,
            },
            Some(answer) = reloads.recv() => {
                let outcome = node.reload().await;
                // Whoever asked may be gone; the reload is done all the same.
                let _ = answer.send(outcome);
            }
            Some(ApplyRequest { text, answer }) = applies.recv() => {
                let outcome = node.apply(text).await;
                let _ = answer.send(outcome);
            }
        }
    }
}

/// Opens and closes listeners after commands on frontends, wherever they were given.
async fn follow_frontends(plane: Plane, forwarder: Arc<Forwarder>) {
    let states = |state: &State| -> Vec<_> {
        let plan = state.plan();
        let frontends = plan.proxies.iter().filter_map(|p| p.frontend.as_ref());
        frontends.map(|f| (f.name().clone(), f.status(), f.maxconn())).collect()
    };
    // The listeners were opened by what was known then, which may have been less.
    let mut followed = Vec::new();
    loop {
        let now = states(&plane.state);
        if now != followed {
            followed = now;
            let forwarder = forwarder.clone();
            let done = tokio::task::spawn_blocking(move || {
                forwarder.room_changed();
                forwarder.apply()
            });
            if let Ok(Err(e)) = done.await {
                tracing::error!("cannot bring the listeners in line with commands on frontends: {e}");
            }
        }
        plane.frontends.notified().await;
    }
}

/// Removes what has expired from the stick tables; in a cluster the replication does it.
async fn sweep(plane: Plane) {
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        plane.state.tables().sweep(plane.now());
    }
}

/// Resolves a host name for a runtime command.
fn resolve(host: &str) -> Result<std::net::IpAddr, String> {
    System { ignore_resolve: false }.resolve(host)
}

/// The Runtime API's sockets.
struct Api {
    context: Arc<cli::Context>,
    /// With the level of new connections; `None` closes the socket.
    open: Vec<(StatsSocket, watch::Sender<Option<Level>>)>,
}

impl Api {
    fn serve(&mut self, listener: cli::Listener) {
        let (level, levels) = watch::channel(Some(listener.config().level));
        self.open.push((listener.config().clone(), level));
        tokio::spawn(cli::serve(listener, self.context.clone(), levels));
    }

    /// Opens the sockets that a configuration has anew. Those of the file system last: a new one
    /// takes the name of the old one.
    ///
    /// # Errors
    /// Which could not be opened, and why.
    fn reserve(&self, wanted: &[StatsSocket]) -> Result<Vec<cli::Listener>, String> {
        let (unix, tcp): (Vec<_>, Vec<_>) = wanted.iter().partition(|w| matches!(w.addr, StatsAddr::Unix(_)));
        let new = tcp.into_iter().chain(unix).filter(|w| !self.open.iter().any(|(o, _)| same_place(w, o)));
        new.map(|socket| cli::listen(socket).map_err(|e| e.to_string())).collect()
    }

    /// Brings the sockets in line with a reloaded configuration, for which `new` were opened. Those
    /// that are gone answer what was asked and end.
    fn follow(&mut self, wanted: &[StatsSocket], new: Vec<cli::Listener>) {
        self.open.retain_mut(|(open, level)| {
            let stays = wanted.iter().find(|w| same_place(w, open));
            level.send_replace(stays.map(|w| w.level));
            stays.inspect(|w| open.clone_from(w)).is_some()
        });
        new.into_iter().for_each(|listener| self.serve(listener));
    }
}

/// Whether an open socket can go on as the wanted one.
fn same_place(a: &StatsSocket, b: &StatsSocket) -> bool {
    (&a.addr, a.mode, a.uid, a.gid) == (&b.addr, b.mode, b.uid, b.gid)
}

/// The parts that reloads and the end concern.
struct Node {
    held: Arc<Held>,
    options: Options,
    plane: Plane,
    forwarder: Arc<Forwarder>,
    cluster: Option<Cluster>,
    floating: Option<Floating>,
    api: Api,
    notifier: Arc<Notifier>,
}

impl Node {
    /// `-sf` and `-st`.
    fn signal_old_processes(&self) {
        for (pids, signal) in
            [(&self.options.finish, process::SIGUSR1), (&self.options.terminate, process::SIGTERM)]
        {
            for &pid in pids {
                if let Err(e) = process::signal(pid.unsigned_abs(), signal) {
                    tracing::warn!("cannot signal process {pid}: {e}");
                }
            }
        }
    }

    async fn reload_logged(&mut self) {
        match self.reload().await {
            Ok(text) => tracing::info!("{text}"),
            Err(text) => tracing::error!("{text}"),
        }
    }

    /// Applies the files as they are now; what there is to say of it is kept for `show startup-logs`.
    ///
    /// # Errors
    /// Why nothing was changed: the parser's messages, or the address that can't be bound.
    async fn reload(&mut self) -> Result<String, String> {
        self.notifier.reloading();
        let outcome = self.try_reload().await;
        // Also when nothing was changed: it serves as it did.
        self.notifier.ready();
        let text = outcome.as_ref().map_or_else(String::clone, String::clone);
        *self.api.context.startup_logs.lock() = text;
        outcome
    }

    async fn try_reload(&mut self) -> Result<String, String> {
        let held = self.held.clone();
        let failed = |e: String| format!("Reload failed, nothing changed: {e}");
        let chosen = tokio::task::spawn_blocking(move || Ok(held.choose(held.read()?)))
            .await
            .map_err(|e| failed(e.to_string()))?
            .map_err(failed)?;
        let mut text = self.take(chosen.loaded).await?;
        if let Some(note) = chosen.note {
            text = format!("{note}\n{text}");
        }
        if let Some(epoch) = chosen.declined {
            let held = self.held.clone();
            let _ = tokio::task::spawn_blocking(move || held.decline(epoch)).await;
        }
        Ok(text)
    }

    /// Applies an epoch of the cluster's configuration.
    ///
    /// # Errors
    /// As [`Node::reload`].
    async fn apply(&mut self, text: Text) -> Result<String, String> {
        let held = self.held.clone();
        let failed = |e: String| format!("cannot be applied: {e}");
        let loaded = tokio::task::spawn_blocking(move || held.load(&text))
            .await
            .map_err(|e| failed(e.to_string()))?
            .map_err(failed)?;
        let outcome = self.take(loaded).await;
        let text = outcome.as_ref().map_or_else(String::clone, String::clone);
        *self.api.context.startup_logs.lock() = text;
        outcome
    }

    /// Puts a checked configuration in force.
    ///
    /// # Errors
    /// As [`Node::reload`].
    async fn take(&mut self, loaded: Loaded) -> Result<String, String> {
        self.api.context.warnings.fetch_add(loaded.warnings(), Relaxed);
        let mut said: Vec<&str> = loaded.messages.iter().map(|m| m.text.as_str()).collect();
        let Some(mut config) = loaded.config else {
            said.push("Reload failed, nothing changed.");
            return Err(said.join("\n"));
        };
        self.options.override_in(&mut config);
        let Plane { state, logs, .. } = &self.plane;
        let old = state.plan().config.clone();
        let kept = at_next_start(&old, &config);
        if let Err(e) = self.forwarder.reserve(&config) {
            said.push("Reload failed, nothing changed:");
            return Err(format!("{} {e}", said.join("\n")));
        }
        let sockets = match self.api.reserve(&config.global.stats_sockets) {
            Ok(sockets) => sockets,
            Err(e) => {
                said.push("Reload failed, nothing changed:");
                return Err(format!("{} {e}", said.join("\n")));
            }
        };
        let report = state.load(config.clone(), self.plane.now());
        if let Err(e) = self.forwarder.apply() {
            let back = state.load((*old).clone(), self.plane.now());
            self.plane.announce(&back.effects);
            if let Err(e) = self.forwarder.apply() {
                tracing::error!("cannot return to the listeners of the former configuration: {e}");
            }
            said.push("Reload failed, nothing changed:");
            return Err(format!("{} {e}", said.join("\n")));
        }
        logs.reload(&config.global);
        if let (Some(running), Some(new)) = (self.cluster.as_ref().and_then(Cluster::tls), &loaded.tls) {
            running.replace(new);
        }
        self.plane.announce(&report.effects);
        let mut text = said.join("\n");
        let registry = self.api.context.authority.registry();
        let files = registry.patterns().rebase_commands(&old.patterns, &config.patterns);
        let files = files.into_iter().map(Command::Patterns);
        let frontends =
            registry.frontends().rebase_commands(&old, &config).into_iter().map(Command::Frontend);
        let servers = registry.rebase_command(&old, &config).into_iter();
        for command in servers.chain(frontends).chain(files) {
            if let Err(e) = self.api.context.authority.propose(command).await {
                text.push_str(&format!("\nThe cluster could not be told of the changed values: {e}"));
                break;
            }
        }
        self.api.follow(&config.global.stats_sockets, sockets);
        for what in kept {
            text.push_str(&format!("\nNote: the change of {what} takes effect at the next start."));
        }
        if let Some(floating) = &self.floating {
            floating.follow(&config);
        }
        self.held.in_force(loaded.sources);
        for line in self.differences(&config) {
            text.push_str(&format!("\nNote: {line}."));
        }
        text.push_str("\nReload done.");
        Ok(text.trim_start().to_owned())
    }

    /// Where the `cluster` section differs from the members that the nodes have agreed on.
    fn differences(&self, config: &Config) -> Vec<String> {
        let (Some(cluster), Some(section)) = (&self.cluster, &config.cluster) else { return Vec::new() };
        cluster.differences(nodes(section))
    }

    /// SIGUSR1: no new connections, those that exist end by themselves. Floating IPs are moved to other nodes
    /// as by plan; their connections go on here like all others.
    async fn finish(self, signals: &mut Signals) -> Result<(), String> {
        self.notifier.stopping();
        let limit = self.plane.state.plan().config.global.hard_stop_after;
        let forwarder = self.forwarder.clone();
        let ended = async {
            // New connections go to another node before there are no listeners here.
            if let Some(floating) = &self.floating {
                floating.depart(true).await;
            }
            let _ = tokio::task::spawn_blocking(move || forwarder.stop(limit)).await;
            if let Some(floating) = &self.floating {
                floating.drained().await;
            }
        };
        tokio::select! {
            () = ended => {}
            () = signals.terminate() => {}
        }
        self.leave().await;
        Ok(())
    }

    /// SIGTERM, SIGINT: requests under way are answered, also those to a floating IP that is another node's
    /// by then; sessions end now.
    async fn terminate(self) -> Result<(), String> {
        self.notifier.stopping();
        if let Some(floating) = &self.floating {
            floating.depart(false).await;
        }
        self.leave().await;
        Ok(())
    }

    async fn leave(&self) {
        // What is counted after the last word to the peers would be lost. Other sessions end with the process.
        let forwarder = self.forwarder.clone();
        let _ = tokio::task::spawn_blocking(move || forwarder.finish_requests(LAST_REQUESTS)).await;
        if let Some(floating) = &self.floating {
            floating.leave().await;
        }
        if let Some(cluster) = &self.cluster {
            cluster.shutdown().await;
        }
        let logs = self.plane.logs.clone();
        let _ = tokio::task::spawn_blocking(move || logs.flush(LAST_LINES)).await;
    }
}

/// What a reload can't change in a running process, among what differs.
pub(crate) fn at_next_start(old: &Config, new: &Config) -> Vec<&'static str> {
    let (o, n) = (&old.global, &new.global);
    let mut kept = Vec::new();
    let mut differs = |changed: bool, what| {
        if changed {
            kept.push(what);
        }
    };
    differs(o.nbthread != n.nbthread, "'nbthread'");
    differs((o.uid, o.gid) != (n.uid, n.gid), "'user' or 'group'");
    differs(o.chroot != n.chroot, "'chroot'");
    differs(o.ulimit_n != n.ulimit_n, "'ulimit-n'");
    differs(o.daemon != n.daemon, "'daemon'");
    differs(o.pidfile != n.pidfile, "'pidfile'");
    differs(whole_cluster(old) != whole_cluster(new), "the 'cluster' section");
    differs(sections(old) != sections(new), "a 'peers' section");
    kept
}

/// The `cluster` section, wherever it stands in the file; but for its certificates and `vip-drain`, which are
/// taken over at once, and its nodes: what is agreed counts, and where they differ is told by itself.
fn whole_cluster(config: &Config) -> Option<model::Cluster> {
    let mut cluster = config.cluster.clone()?;
    cluster.pos = Pos::default();
    (cluster.nodes, cluster.join, cluster.vip_drain) = (Vec::new(), false, None);
    cluster.vips.iter_mut().for_each(|vip| vip.pos = Pos::default());
    cluster.peers.iter_mut().for_each(|peer| peer.pos = Pos::default());
    if let Some(ssl) = &mut cluster.ssl {
        *ssl = model::ClusterSsl { crt: PathBuf::new(), ca_file: None, verify: false, pos: Pos::default() };
    }
    Some(cluster)
}

/// The `peers` sections, wherever they stand in the file.
fn sections(config: &Config) -> Vec<model::Peers> {
    let mut sections = config.peers.clone();
    for section in &mut sections {
        section.pos = Pos::default();
        section.peers.iter_mut().for_each(|peer| peer.pos = Pos::default());
    }
    sections
}

/// What a signal asks for.
enum Event {
    Reload,
    Finish,
    Terminate,
}

struct Signals {
    hup: Signal,
    usr1: Signal,
    usr2: Signal,
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
            usr2: signal(SignalKind::user_defined2())?,
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.hup.recv() => Event::Reload,
            _ = self.usr2.recv() => Event::Reload,
            _ = self.usr1.recv() => Event::Finish,
            _ = self.term.recv() => Event::Terminate,
            _ = self.int.recv() => Event::Terminate,
        }
    }

    async fn terminate(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// The cluster settings of this node; `None` without a `cluster` section, or when this node is not
/// listed there: then it runs alone and says so.
pub(super) fn settings(config: &Config, node: &str, incarnation: u64) -> Option<Settings> {
    let cluster = config.cluster.as_ref()?;
    if !cluster.nodes.iter().any(|n| n.name == node) {
        let names: Vec<&str> = cluster.nodes.iter().map(|n| n.name.as_str()).collect();
        tracing::warn!(
            "cluster '{}': no line for this node '{node}', so it runs alone; use -L with one of: {}",
            cluster.name,
            names.join(", ")
        );
        return None;
    }
    Some(Settings {
        name: cluster.name.clone(),
        node: node.to_owned(),
        nodes: nodes(cluster),
        data_dir: cluster.data_dir.clone(),
        incarnation,
        tls: None,
        haproxys: cluster.peers.iter().filter_map(|p| Some((p.name.clone(), p.addr.clone()?))).collect(),
        join: cluster.join,
        vip_lease: cluster.vip_lease,
        pretends: None,
        cluster_id: Arc::default(),
        members: Arc::default(),
    })
}

/// The `node` lines of a `cluster` section.
fn nodes(cluster: &phalanx_config::model::Cluster) -> Vec<phalanx_cluster::Node> {
    let node = |n: &phalanx_config::model::ClusterNode| phalanx_cluster::Node {
        name: n.name.clone(),
        addr: n.addr.clone(),
        witness: n.witness,
    };
    cluster.nodes.iter().map(node).collect()
}
