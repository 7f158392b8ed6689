//! The replicated state machine: what runtime commands have changed, the same on every node.
//!
//! It owns the servers added at run time, the configured servers deleted at run time, and the
//! overrides of server settings. The `cluster` crate feeds it committed commands in log order; a node
//! without a `cluster` section feeds its own in the same way. The engine's state is brought in line
//! by reading it ([`Registry::effective`], [`Registry::added`], [`Registry::deleted`]).
//!
//! It is pure and deterministic: no clock, no randomness, no hash order, and it never sees the
//! configuration. Nodes may run different configurations for a while; so whatever depends on the
//! configuration travels in the command, and every override remembers the configured value that it
//! replaced: once the configuration says something else for that value, the configuration wins.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize};

use phalanx_config::model;

pub use self::agents::{AgentChange, AgentEffective};
pub use self::command::{
    Admin, Base, Change, Command, CommandId, Force, Origin, Rebased, Reply, Request, Target, Weight,
};
pub use self::discovered::{Discovered, DiscoveryCommand, Found, Placed, Source};
use self::epochs::Epochs;
use self::frontends::Frontends;
use self::maintenance::Maintenance;
pub use self::maintenance::MaintenanceCommand;
pub use self::members::{MAX_MEMBERS, Member, MemberCommand, Members, NewMember, Stage};
pub use self::names::Names;
use self::patterns::Patterns;
use self::replies::Replies;
use self::spoken::Spoken;
pub use self::spoken::{Revisions, SpokenChange};

mod agents;
mod command;
mod discovered;
pub mod epochs;
pub mod frontends;
mod maintenance;
mod members;
mod names;
pub mod patterns;
mod replies;
mod spoken;

/// Servers that may be added at run time over all backends: a bound on what the log can make a node
/// remember.
pub const MAX_ADDED: usize = 65_536;

/// A server added at run time.
///
/// Like HAProxy's it starts in maintenance with its check disabled, until an override says
/// otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// Assigned by the cluster; the same on every node, and no configured server of its backend had
    /// it when the server was added.
    pub id: u32,
    /// Host name or address as it was given.
    pub host: String,
    /// The address as the node that took the command resolved it.
    pub addr: SocketAddr,
    /// The words after the address.
    pub args: Vec<String>,
    /// Tells this server from an earlier one of the same name.
    pub revision: u64,
    /// The configuration of some node has a server of this name since. Nodes that do not have it yet
    /// go on with this one; it ends when the configuration drops the server again.
    pub superseded: bool,
}

/// A forced health state: an event, carried out once per `revision`; the next check may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forced {
    /// The state.
    pub force: Force,
    /// Number of the command that forced it.
    pub revision: u64,
}

/// The overrides of a server that count against the configuration it has now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// Administrative state; `None` = as configured (added servers: maintenance).
    pub admin: Option<Admin>,
    /// Weight; `None` = as configured.
    pub weight: Option<Weight>,
    /// Address without port; `None` = as configured.
    pub ip: Option<IpAddr>,
    /// Port; `None` = as configured.
    pub port: Option<u16>,
    /// Whether the health check runs; `None` = as configured (added servers: no).
    pub check: Option<bool>,
    /// `maxconn`; `None` = as configured.
    pub maxconn: Option<u32>,
    /// Address of its checks; `None` = as configured.
    pub check_ip: Option<IpAddr>,
    /// Port of its checks; `None` = as configured.
    pub check_port: Option<u16>,
    /// The last forced health state.
    pub forced: Option<Forced>,
}

/// Everything that runtime commands have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// Commands applied so far.
    revision: u64,
    backends: BTreeMap<String, Backend>,
    replies: Replies,
    patterns: Patterns,
    epochs: Epochs,
    members: Members,
    discovered: Discovered,
    frontends: Frontends,
    /// Left out of what is stored while it is empty, as in what earlier programs wrote: see
    /// [`Registry::LAST_EMPTY`].
    #[serde(skip_serializing_if = "Late::is_empty")]
    late: Late,
}

/// What the registry has learnt to hold since its format was fixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Late {
    maintenance: Maintenance,
    /// As optional as all of it, and so is what comes last in it.
    #[serde(skip_serializing_if = "Later::is_empty", deserialize_with = "or_none")]
    later: Later,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Later {
    names: Names,
    #[serde(skip_serializing_if = "Spoken::is_empty", deserialize_with = "or_none")]
    spoken: Spoken,
}

/// The last thing of what is stored: in what earlier programs wrote it is missing.
fn or_none<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Ok(T::deserialize(input).unwrap_or_default())
}

impl Late {
    fn is_empty(&self) -> bool {
        self.maintenance.is_empty() && self.later.is_empty()
    }
}

impl Later {
    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.spoken.is_empty()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Backend {
    /// No id below this one is given to an added server: above every configured id that a node has
    /// reported.
    floor: u32,
    servers: BTreeMap<String, Record>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    added: Option<Added>,
    deleted: Option<Deleted>,
    overrides: Overrides,
}

/// The configured server is deleted, as long as its line says this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Deleted {
    base: Base,
    /// As in [`Override`].
    left: bool,
}

/// Each beside the configured value that it replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Overrides {
    admin: Option<Override<Admin, bool>>,
    weight: Option<Override<Weight, u32>>,
    ip: Option<Override<IpAddr, IpAddr>>,
    port: Option<Override<u16, u16>>,
    check: Option<Override<bool, bool>>,
    maxconn: Option<Override<u32, u32>>,
    forced: Option<Forced>,
    check_ip: Option<Override<IpAddr, Option<IpAddr>>>,
    check_port: Option<Override<u16, Option<u16>>>,
    agent: AgentEffective,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Override<T, C> {
    value: T,
    config: C,
    /// The configuration of some node has changed away from `config`. Nodes that still say it go on
    /// with the override; it ends when a configuration comes back to it.
    left: bool,
}

impl<T, C> Override<T, C> {
    fn new(value: T, config: C) -> Option<Override<T, C>> {
        Some(Override { value, config, left: false })
    }
}

impl Registry {
    /// An empty one: the configuration as it is.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Stored bytes (postcard) that end before the last field are read with these behind them.
    pub const LAST_EMPTY: &[u8] = &[0];

    /// Commands applied so far.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Applies a command once: a repeated request gets the reply of its first time.
    pub fn apply_request(&mut self, request: &Request) -> Reply {
        match self.replies.earlier(&request.id, request.done_below) {
            Some(reply) => reply,
            None => {
                let reply = self.apply(&request.command);
                self.replies.remember(&request.id, &reply, self.revision);
                reply
            }
        }
    }

    /// Applies a command. A refused command changes nothing but the revision.
    pub fn apply(&mut self, command: &Command) -> Reply {
        self.revision += 1;
        let reply = match command {
            Command::AddServer { backend, name, host, addr, args, id_hint } => {
                self.add_server(backend, name, host, *addr, args, *id_hint)
            }
            Command::DelServer { target } => self.del_server(target),
            Command::SetServer { target, change } => self.set_server(target, change.clone()),
            Command::Rebase { servers } => self.rebase(servers),
            Command::Patterns(command) => self.patterns.apply(command),
            Command::Frontend(command) => self.frontends.apply(command),
            Command::Config(command) => self.epochs.apply(command),
            Command::Member(command) => {
                let reply = self.members.apply(command, self.revision);
                self.late.maintenance.forget(&self.members);
                self.epochs.forget(&self.members);
                reply
            }
            Command::Maintenance(command) => self.late.maintenance.apply(command, &self.members),
            Command::Discovered(command) => self.discovered.apply(command, self.revision),
        };
        debug_assert!(self.consistent(), "after {command:?}: {self:?}");
        reply
    }

    /// The nodes of the cluster.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Whether a node is in maintenance.
    pub fn in_maintenance(&self, node: &str) -> bool {
        self.late.maintenance.holds(node)
    }

    /// What was agreed about servers that are found at run time.
    pub fn discovered(&self) -> &Discovered {
        &self.discovered
    }

    /// The servers added to `backend`, by name.
    ///
    /// A configured server of the same name that is not [`deleted`](Registry::deleted) takes
    /// precedence over an added one.
    pub fn added(&self, backend: &str) -> impl Iterator<Item = (&str, &Added)> {
        let servers = self.backends.get(backend).into_iter().flat_map(|b| &b.servers);
        servers.filter_map(|(name, record)| Some((name.as_str(), record.added.as_ref()?)))
    }

    /// The added server of this name.
    pub fn added_server(&self, backend: &str, name: &str) -> Option<&Added> {
        self.record(backend, name)?.added.as_ref()
    }

    /// Whether the configured server `name`, whose line says `base`, has been deleted at run time.
    pub fn deleted(&self, backend: &str, name: &str, base: &Base) -> bool {
        self.record(backend, name)
            .is_some_and(|r| r.deleted.as_ref().is_some_and(|d| d.base.same_server(base)))
    }

    /// The overrides that count for a server whose configuration (or, for an added server, its
    /// `add server` line) says `base`.
    pub fn effective(&self, backend: &str, name: &str, base: &Base) -> Effective {
        let Some(record) = self.record(backend, name) else { return Effective::default() };
        let o = &record.overrides;
        Effective {
            admin: current(&o.admin, base.disabled),
            weight: current(&o.weight, base.weight),
            ip: current(&o.ip, base.addr.ip()),
            port: current(&o.port, base.addr.port()),
            check: current(&o.check, base.check),
            maxconn: current(&o.maxconn, base.maxconn),
            check_ip: current(&o.check_ip, base.check_ip),
            check_port: current(&o.check_port, base.check_port),
            forced: o.forced,
        }
    }

    /// Digest of all that commands have changed: equal on nodes that have applied the same commands.
    pub fn digest(&self) -> u64 {
        let Registry { revision, backends, patterns, epochs, members, discovered, frontends, late, .. } =
            self;
        digest(&(revision, backends, patterns, epochs, members, discovered, frontends, late))
    }

    /// What commands have changed of frontends.
    pub fn frontends(&self) -> &Frontends {
        &self.frontends
    }

    /// The host names that commands have changed.
    pub fn names(&self) -> &Names {
        &self.late.later.names
    }

    /// The commands that last said of a server with an agent what the agent says, too.
    pub fn spoken(&self, backend: &str, name: &str) -> Revisions {
        self.late.later.spoken.of(backend, name).unwrap_or_default()
    }

    /// What commands have changed of a server's agent check.
    pub fn agent(&self, backend: &str, name: &str) -> AgentEffective {
        self.record(backend, name).map_or_else(AgentEffective::default, |r| r.overrides.agent.clone())
    }

    /// What commands have changed of maps and ACLs.
    pub fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    /// The command that tells the cluster which configured values a reload changed; `None` when it
    /// changed none that are overridden.
    ///
    /// Without it an override would come back to life when a later configuration happens to say
    /// again what the override once replaced.
    pub fn rebase_command(&self, old: &model::Config, new: &model::Config) -> Option<Command> {
        let mut servers = Vec::new();
        for (backend, b) in &self.backends {
            let (was, is) = (proxy(old, backend), proxy(new, backend));
            for name in b.servers.keys() {
                let (from, to) = (base_in(was, name), base_in(is, name));
                if from != to {
                    servers.push(Rebased { backend: backend.clone(), name: name.clone(), from, to });
                }
            }
        }
        for (backend, name) in self.late.later.names.servers().filter(|(b, s)| self.record(b, s).is_none()) {
            let (from, to) = (base_in(proxy(old, backend), name), base_in(proxy(new, backend), name));
            if from != to {
                servers.push(Rebased { backend: backend.to_owned(), name: name.to_owned(), from, to });
            }
        }
        for (backend, name) in self.late.later.spoken.servers() {
            let (from, to) = (base_in(proxy(old, backend), name), base_in(proxy(new, backend), name));
            let listed = |r: &Rebased| r.backend == backend && r.name == name;
            if from.is_some() && to.is_none() && !servers.iter().any(listed) {
                servers.push(Rebased { backend: backend.to_owned(), name: name.to_owned(), from, to });
            }
        }
        (!servers.is_empty()).then_some(Command::Rebase { servers })
    }

    /// What is agreed about the configuration.
    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    fn record(&self, backend: &str, name: &str) -> Option<&Record> {
        self.backends.get(backend)?.servers.get(name)
    }

    fn add_server(
        &mut self,
        backend: &str,
        name: &str,
        host: &str,
        addr: SocketAddr,
        args: &[String],
        id_hint: u32,
    ) -> Reply {
        if self.added_server(backend, name).is_some() {
            return Reply::refused("Already exists a server with the same name in backend.");
        }
        let count: usize = self.backends.keys().map(|b| self.added(b).count()).sum();
        if count >= MAX_ADDED {
            return Reply::refused("Too many servers were added at run time.");
        }
        let floor = self.backends.get(backend).map_or(0, |b| b.floor).max(id_hint).max(1);
        let Some(id) = self.free_id(backend, floor) else {
            return Reply::refused("No server id is left in this backend.");
        };
        let revision = self.revision;
        let b = self.backends.entry(backend.to_owned()).or_default();
        b.floor = floor;
        let record = b.servers.entry(name.to_owned()).or_default();
        record.added =
            Some(Added { id, host: host.to_owned(), addr, args: args.to_vec(), revision, superseded: false });
        // Whatever was said about an earlier server of this name is over.
        record.overrides = Overrides::default();
        self.late.later.names.forget(backend, name);
        self.late.later.spoken.forget(backend, name);
        Reply::Text("New server registered.".to_owned())
    }

    fn free_id(&self, backend: &str, floor: u32) -> Option<u32> {
        let mut used: Vec<u32> = self.added(backend).map(|(_, a)| a.id).filter(|id| *id >= floor).collect();
        used.sort_unstable();
        let mut free = floor;
        for id in used {
            if id == free {
                free = free.checked_add(1)?;
            }
        }
        // The ids are shown as signed numbers by HAProxy's tools.
        (free <= i32::MAX as u32).then_some(free)
    }

    fn del_server(&mut self, target: &Target) -> Reply {
        let Some(record) = self.target(target) else { return Reply::refused("No such server.") };
        let maint = match (current(&record.overrides.admin, target.base.disabled), target.origin) {
            (Some(admin), _) => admin == Admin::Maint,
            (None, Origin::Config) => target.base.disabled,
            (None, Origin::Added) => true,
        };
        if !maint {
            return Reply::refused("Only servers in maintenance mode can be deleted.");
        }
        let b = self.backends.entry(target.backend.clone()).or_default();
        let record = b.servers.entry(target.name.clone()).or_default();
        record.overrides = Overrides::default();
        self.late.later.names.forget(&target.backend, &target.name);
        self.late.later.spoken.forget(&target.backend, &target.name);
        // While nodes differ in whether the configuration has it, it goes on both kinds.
        let both = record.added.as_ref().is_some_and(|a| a.superseded);
        if both || target.origin == Origin::Config {
            record.deleted = Some(Deleted { base: target.base.clone(), left: false });
        }
        if both || target.origin == Origin::Added {
            record.added = None;
        }
        self.tidy(&target.backend, &target.name);
        Reply::Text("Server deleted.".to_owned())
    }

    fn set_server(&mut self, target: &Target, change: Change) -> Reply {
        if self.target(target).is_none() {
            return Reply::refused("No such server.");
        }
        let revision = self.revision;
        let is_new = !self.late.later.names.has(&target.backend, &target.name);
        if matches!(change, Change::Fqdn(_)) && is_new && self.late.later.names.len() >= MAX_ADDED {
            return Reply::refused("Too many names of servers were changed at run time.");
        }
        let change = match change {
            Change::Spoken(change) => {
                let spoken = &mut self.late.later.spoken;
                if spoken.of(&target.backend, &target.name).is_none() && spoken.len() >= MAX_ADDED {
                    return Reply::refused("Too many servers with agents were changed at run time.");
                }
                spoken.note(&target.backend, &target.name, change, revision);
                change.plain()
            }
            other => other,
        };
        let b = self.backends.entry(target.backend.clone()).or_default();
        let o = &mut b.servers.entry(target.name.clone()).or_default().overrides;
        let base = &target.base;
        match change {
            Change::Admin(value) => o.admin = Override::new(value, base.disabled),
            Change::Weight(value) => o.weight = Override::new(value, base.weight),
            Change::Addr { ip, port } => {
                o.ip = Override::new(ip, base.addr.ip());
                if let Some(value) = port {
                    o.port = Override::new(value, base.addr.port());
                }
            }
            Change::Check(value) => o.check = Override::new(value, base.check),
            Change::Maxconn(value) => o.maxconn = Override::new(value, base.maxconn),
            Change::CheckAddr { ip, port } => {
                if let Some(value) = ip {
                    o.check_ip = Override::new(value, base.check_ip);
                }
                if let Some(value) = port {
                    o.check_port = Override::new(value, base.check_port);
                }
            }
            Change::Health(force) => o.forced = Some(Forced { force, revision }),
            Change::Agent(change) => o.agent.apply(change, revision),
            Change::Fqdn(name) => self.late.later.names.set(&target.backend, &target.name, name, &base.host),
            // It has been unwrapped above.
            Change::Spoken(_) => {}
        }
        Reply::Ok
    }

    /// The record that a command means, an empty one for a configured server that nothing was said
    /// about; `None` = no such server.
    fn target(&self, target: &Target) -> Option<Record> {
        let record = self.record(&target.backend, &target.name);
        let exists = match target.origin {
            Origin::Added => record.is_some_and(|r| r.added.is_some()),
            Origin::Config => !self.deleted(&target.backend, &target.name, &target.base),
        };
        exists.then(|| record.cloned().unwrap_or_default())
    }

    /// Nodes reload one after the other, so nothing that a node with the old configuration still
    /// needs may end here. What a configuration moved away from is only marked; it ends when one comes
    /// back to it, so that an old command does not come to life again.
    fn rebase(&mut self, servers: &[Rebased]) -> Reply {
        for Rebased { backend, name, from, to } in servers {
            self.late.later.names.rebase(backend, name, from.as_ref(), to.as_ref());
            if from.is_some() && to.is_none() {
                self.late.later.spoken.forget(backend, name);
            }
            let Some(record) = self.backends.get_mut(backend).and_then(|b| b.servers.get_mut(name)) else {
                continue;
            };
            let (from, to) = (from.as_ref(), to.as_ref());
            let o = &mut record.overrides;
            rebase_override(&mut o.admin, from, to, |b| b.disabled);
            rebase_override(&mut o.weight, from, to, |b| b.weight);
            rebase_override(&mut o.ip, from, to, |b| b.addr.ip());
            rebase_override(&mut o.port, from, to, |b| b.addr.port());
            rebase_override(&mut o.check, from, to, |b| b.check);
            rebase_override(&mut o.maxconn, from, to, |b| b.maxconn);
            rebase_override(&mut o.check_ip, from, to, |b| b.check_ip);
            rebase_override(&mut o.check_port, from, to, |b| b.check_port);
            if let Some(deleted) = &mut record.deleted {
                let says = |base: Option<&Base>| base.is_some_and(|b| b.same_server(&deleted.base));
                match (says(from), says(to)) {
                    (true, false) => deleted.left = true,
                    (false, true) if deleted.left => record.deleted = None,
                    _ => {}
                }
            }
            if let Some(added) = &mut record.added {
                match (from, to) {
                    (None, Some(_)) => added.superseded = true,
                    (Some(_), None) if added.superseded => record.added = None,
                    _ => {}
                }
            }
            self.tidy(backend, name);
        }
        Reply::Ok
    }

    /// Forgets a record that says nothing.
    fn tidy(&mut self, backend: &str, name: &str) {
        let Some(b) = self.backends.get_mut(backend) else { return };
        if b.servers.get(name).is_some_and(|r| *r == Record::default()) {
            b.servers.remove(name);
        }
    }

    fn consistent(&self) -> bool {
        self.epochs.consistent()
            && self.members.consistent()
            && self.backends.values().all(|b| {
                let mut ids: Vec<u32> =
                    b.servers.values().filter_map(|r| Some(r.added.as_ref()?.id)).collect();
                let count = ids.len();
                ids.sort_unstable();
                ids.dedup();
                ids.len() == count && ids.iter().all(|id| *id > 0)
            })
    }
}

/// Digest of what a value shows of itself, the same on every node that runs this program.
pub fn digest(value: &impl std::fmt::Debug) -> u64 {
    struct Sum(u64);
    impl std::fmt::Write for Sum {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0 = crate::stick::hash::bytes(self.0, text.as_bytes());
            Ok(())
        }
    }
    let mut sum = Sum(1);
    let written = std::fmt::Write::write_fmt(&mut sum, format_args!("{value:?}"));
    debug_assert!(written.is_ok());
    sum.0
}

/// The override's value, if the configuration still says what it replaced.
fn current<T: Copy, C: PartialEq>(o: &Option<Override<T, C>>, config: C) -> Option<T> {
    o.as_ref().filter(|o| o.config == config).map(|o| o.value)
}

/// Marks an override whose value the configuration moved away from, ends one that it came back to.
fn rebase_override<T, C: PartialEq>(
    slot: &mut Option<Override<T, C>>,
    from: Option<&Base>,
    to: Option<&Base>,
    value: impl Fn(&Base) -> C,
) {
    let Some(o) = slot else { return };
    let says = |base: Option<&Base>| base.is_some_and(|b| value(b) == o.config);
    match (says(from), says(to)) {
        (true, false) => o.left = true,
        (false, true) if o.left => *slot = None,
        _ => {}
    }
}

fn proxy<'a>(config: &'a model::Config, name: &str) -> Option<&'a model::Proxy> {
    config.proxies.iter().map(|p| &**p).find(|p| p.kind.is_backend() && p.name == name)
}

fn base_in(proxy: Option<&model::Proxy>, server: &str) -> Option<Base> {
    Some(Base::of(proxy?.servers.iter().find(|s| s.name == server)?))
}

#[cfg(test)]
mod tests;
