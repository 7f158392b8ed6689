//! Servers that are found at run time: one node reads DNS and Consul, and proposes what it found.
//!
//! The reader is the leader of the cluster, so that a proposal is a local affair and there is always
//! one reader as soon as anything can be agreed; a node without a cluster reads for itself. One task
//! per source reads (`dns`, `consul`) and leaves what it found; [`tend`] compares that with what was
//! agreed and proposes the difference. Servers are changed by nobody here: the registry assigns, and
//! `State::reconcile` carries out, on every node alike.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_config::model::{Config, Consul, Discovery, Resolvers};
use phalanx_engine::discovery::{Instance, User, canonical, same, users};
use phalanx_engine::registry::{Command, DiscoveryCommand, Found, Names, Registry, Reply};
use phalanx_sys::clock::Clock;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::cli;

mod consul;
mod dns;
mod status;
mod tls;

pub(crate) use status::{Nameserver, SourceStatus};

/// How often what was found is compared with what was agreed, when nothing asks for it sooner.
const TICK: Duration = Duration::from_millis(200);

/// Shortest time between two proposals for one source.
const PROPOSE_EVERY: Duration = Duration::from_millis(100);

/// Until a proposal that could not be decided is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// A source that no configuration has is forgotten after this: nodes reload one after the other.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// What discovery shows of itself. A cheap handle.
#[derive(Clone, Default)]
pub(crate) struct Handle(Arc<Shared>);

#[derive(Default)]
struct Shared {
    wake: Notify,
    sources: Mutex<BTreeMap<String, SourceStatus>>,
    nameservers: Mutex<BTreeMap<(String, String), Arc<Nameserver>>>,
}

impl Handle {
    /// What this node has to say of a source; it has read it if it is the reader, or was.
    pub(crate) fn source(&self, name: &str) -> Option<SourceStatus> {
        self.0.sources.lock().get(name).cloned()
    }

    /// The counters of a name server.
    pub(crate) fn nameserver(&self, section: &str, name: &str) -> Arc<Nameserver> {
        let key = (section.to_owned(), name.to_owned());
        self.0.nameservers.lock().entry(key).or_default().clone()
    }
}

/// What a reader works with.
struct Job {
    /// Name of the source.
    name: String,
    /// What was agreed before, if anything.
    known: Option<Vec<Instance>>,
    handle: Handle,
    report: Arc<Mutex<Option<Report>>>,
    clock: Clock,
}

/// What a reader found last.
#[derive(Clone, Debug)]
struct Report {
    instances: Vec<Instance>,
    index: u64,
    why: Option<String>,
}

impl Job {
    fn now(&self) -> Duration {
        self.clock.now().0
    }

    /// Leaves what is to be agreed on.
    fn publish(&self, report: Report) {
        *self.report.lock() = Some(report);
        self.handle.0.wake.notify_one();
    }

    /// Notes a success: the outage, if there was one, is over.
    fn succeeded(&self, index: u64) {
        let now = self.now();
        let recovered = {
            let mut sources = self.handle.0.sources.lock();
            let status = sources.entry(self.name.clone()).or_default();
            status.queries += 1;
            (status.index, status.succeeded_at) = (index, Some(now));
            status.error.take()
        };
        if recovered.is_some() {
            tracing::info!("discovery of {} works again", self.name);
        }
    }

    /// Notes a failure: once per outage for people, in full for `show discovery`.
    fn failed(&self, why: &str) {
        let first = {
            let mut sources = self.handle.0.sources.lock();
            let status = sources.entry(self.name.clone()).or_default();
            status.queries += 1;
            status.errors += 1;
            status.error.replace(why.to_owned()).is_none()
        };
        if first {
            tracing::warn!("discovery of {} fails: {why}", self.name);
        }
    }
}

/// The section that a source is read by.
#[derive(Clone, PartialEq)]
enum Section {
    Dns(Arc<Resolvers>),
    Consul(Arc<Consul>),
}

fn section(config: &Config, source: &Discovery) -> Option<Section> {
    match source {
        Discovery::Dns { resolvers, .. } => {
            config.resolvers.iter().find(|r| r.name == *resolvers).cloned().map(Section::Dns)
        }
        Discovery::Consul { consul, .. } => {
            config.consuls.iter().find(|c| c.name == *consul).cloned().map(Section::Consul)
        }
    }
}

/// One source that is being read. Dropped, it is no longer.
struct Reading {
    task: JoinHandle<()>,
    section: Section,
    report: Arc<Mutex<Option<Report>>>,
    not_before: Instant,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads when this node is to, and proposes what is found. Never ends.
pub(crate) async fn tend(context: Arc<cli::Context>) {
    let mut tender = Tender { context, readings: BTreeMap::new(), sources: None, unknown: BTreeMap::new() };
    loop {
        let _ = timeout(TICK, tender.context.discovery.0.wake.notified()).await;
        tender.step().await;
    }
}

type Sources = BTreeMap<String, (Discovery, Vec<User>)>;

struct Tender {
    context: Arc<cli::Context>,
    readings: BTreeMap<String, Reading>,
    /// Of the configuration in force, with that configuration and the names that commands changed.
    sources: Option<(Arc<Config>, Names, Arc<Sources>)>,
    /// Agreed sources that the configuration does not have, and since when.
    unknown: BTreeMap<String, Instant>,
}

impl Tender {
    async fn step(&mut self) {
        let registry = self.context.authority.registry();
        let sources = self.sources(registry.names());
        let Some(term) = self.term() else {
            self.readings.clear();
            self.unknown.clear();
            return;
        };
        self.follow(&sources, &registry);
        for (name, (_, users)) in sources.iter() {
            self.propose(name, users, term, &registry).await;
        }
        self.forget(&sources, &registry).await;
    }

    /// The sources of the configuration.
    fn sources(&mut self, names: &Names) -> Arc<Sources> {
        let config = self.context.state.plan().config.clone();
        match &self.sources {
            Some((of, given, sources)) if Arc::ptr_eq(of, &config) && given == names => sources.clone(),
            _ => {
                let sources = Arc::new(users(&config, names));
                self.sources = Some((config, names.clone(), sources.clone()));
                sources
            }
        }
    }

    /// In which term this node is the reader; `None` if another one is.
    fn term(&self) -> Option<u64> {
        let Some(cluster) = self.context.authority.cluster() else { return Some(0) };
        let status = cluster.status();
        (status.leader.as_ref() == Some(&status.node)).then_some(status.term)
    }

    /// Starts and ends reading as the configuration says.
    fn follow(&mut self, sources: &Sources, registry: &Registry) {
        let Some((config, ..)) = self.sources.clone() else { return };
        self.readings.retain(|name, reading| {
            let wanted = sources.get(name).and_then(|(source, _)| section(&config, source));
            wanted.as_ref() == Some(&reading.section) && !reading.task.is_finished()
        });
        for (name, (source, _)) in sources {
            if self.readings.contains_key(name) {
                continue;
            }
            let Some(section) = section(&config, source) else { continue };
            let report = Arc::new(Mutex::new(None));
            let job = Job {
                name: name.clone(),
                known: registry.discovered().source(name).map(|s| s.found.instances.clone()),
                handle: self.context.discovery.clone(),
                report: report.clone(),
                clock: self.context.clock,
            };
            let task = match (source.clone(), section.clone()) {
                (Discovery::Dns { name, prefer, .. }, Section::Dns(section)) => {
                    tokio::spawn(dns::read(job, section, name, prefer))
                }
                (Discovery::Consul { service, tags, health, .. }, Section::Consul(section)) => {
                    tokio::spawn(consul::read(job, section, consul::Service { name: service, tags, health }))
                }
                _ => continue,
            };
            let reading = Reading { task, section, report, not_before: Instant::now() };
            self.readings.insert(name.clone(), reading);
        }
    }

    /// Proposes what differs from what was agreed.
    async fn propose(&mut self, name: &str, users: &[User], term: u64, registry: &Registry) {
        let Some(reading) = self.readings.get_mut(name).filter(|r| r.not_before <= Instant::now()) else {
            return;
        };
        let report = reading.report.lock().clone();
        let agreed = registry.discovered().source(name).map(|source| &source.found);
        let keep_order = matches!(&reading.section, Section::Consul(consul) if consul.near.is_some());
        let Report { instances, index, why } = match (report, agreed) {
            (Some(report), _) => report,
            // Nothing new is known, but other servers are to be filled.
            (None, Some(found)) => {
                Report { instances: found.instances.clone(), index: found.index, why: found.why.clone() }
            }
            (None, None) => return,
        };
        let instances = canonical(instances, keep_order);
        let stands = agreed.is_some_and(|found| {
            found.term == term
                && found.why == why
                && found.users == users
                && same(&found.instances, &instances)
        });
        if stands {
            return;
        }
        let found = Found {
            source: name.to_owned(),
            reader: self.context.state.node().to_owned(),
            term,
            index,
            found_at: self.context.clock.now().1,
            why,
            instances,
            users: users.to_vec(),
        };
        let pause = self.say(name, DiscoveryCommand::Found(found)).await;
        if let Some(reading) = self.readings.get_mut(name) {
            reading.not_before = Instant::now() + pause;
        }
    }

    /// Proposes; how long the next proposal for the source has to wait.
    async fn say(&self, name: &str, command: DiscoveryCommand) -> Duration {
        let outcome = self.context.authority.propose(Command::Discovered(command)).await;
        let mut sources = self.context.discovery.0.sources.lock();
        let status = sources.entry(name.to_owned()).or_default();
        status.proposals += 1;
        match outcome {
            Ok(Reply::Ok | Reply::Text(_)) => {
                status.refused = None;
                PROPOSE_EVERY
            }
            Ok(Reply::Refused(why)) | Err(why) => {
                if status.refused.replace(why.clone()).is_none() {
                    tracing::warn!("what was found of {name} could not be agreed on: {why}");
                }
                RETRY
            }
        }
    }

    /// Forgets what no server asks for any more.
    async fn forget(&mut self, sources: &Sources, registry: &Registry) {
        self.unknown.retain(|name, _| !sources.contains_key(name));
        let now = Instant::now();
        for (name, _) in registry.discovered().sources().filter(|(name, _)| !sources.contains_key(*name)) {
            let since = *self.unknown.entry(name.to_owned()).or_insert(now);
            if now.duration_since(since) >= FORGET_AFTER {
                self.say(name, DiscoveryCommand::Forget { source: name.to_owned() }).await;
                self.unknown.remove(name);
                self.context.discovery.0.sources.lock().remove(name);
            }
        }
    }
}
