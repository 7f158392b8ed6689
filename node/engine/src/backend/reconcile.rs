//! Bringing a backend in line with its section and with what runtime commands have changed.
//!
//! [`Backend::apply`] computes what every server should be from both, and changes what differs. It
//! is idempotent, and the one way for a reload, a committed command and a restart, so all three end
//! in the same state on every node. An override counts only while the configured value that it
//! replaced is unchanged: the registry decides that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use phalanx_config::model;

use crate::health::Health;
use crate::registry::{self, Added, Base, Effective, Registry};
use crate::server::{Admin, OpState, Origin, Server, Start};
use crate::time::Now;

use super::{Backend, Effects, agents, lines, resolve};

/// Reads the words of an `add server` command.
pub(crate) type ParseLine<'a> = &'a dyn Fn(&str, &Added) -> Result<model::Server, String>;

impl Backend {
    /// Takes over a section and the registry's changes to it. Servers are kept by name and id;
    /// sessions on one that is gone finish there, who waits for it chooses again.
    pub(crate) fn apply(
        &self,
        config: &Arc<model::Proxy>,
        fullconn: u32,
        registry: &Registry,
        parse: ParseLine<'_>,
        now: Now,
    ) -> Effects {
        let mut standing = self.control.lock();
        let mut effects = Effects::default();
        let old = self.servers.load_full();
        self.id.store(config.id, Relaxed);
        self.fullconn.store(fullconn, Relaxed);
        let next = self.wanted(config, &old, registry, parse, now, &mut effects);
        let same_list = next.len() == old.len() && next.iter().zip(&**old).all(|(n, o)| Arc::ptr_eq(n, o));
        let mut changed = !same_list || !Arc::ptr_eq(config, &self.config.load());
        for server in &next {
            changed |= self.settle(server, registry);
        }
        let gone: Vec<_> = old.iter().filter(|s| !next.iter().any(|n| Arc::ptr_eq(n, s))).collect();
        for server in &gone {
            server.set_removed();
            server.set_in_farm(false);
        }
        if changed {
            self.config.store(config.clone());
            self.servers.store(Arc::new(next.clone()));
            self.publish(&mut standing, now, &mut effects);
        }
        for server in &gone {
            self.redistribute(server);
        }
        for server in &next {
            let eff = registry.effective(&self.name, server.name(), &Base::of(&server.config()));
            self.resolve(server, registry, &eff, &mut standing, now, &mut effects);
            self.change_admin(server, wanted_admin(server, &eff), &mut standing, now, &mut effects);
            if let Some(forced) = eff.forced
                && std::mem::replace(&mut server.control.lock().forced, forced.revision) < forced.revision
            {
                self.change_health(server, forced.force, &mut standing, now, &mut effects);
            }
            self.switch_agent(server, &mut standing, now, &mut effects);
            if let Some(forced) = registry.agent(&self.name, server.name()).forced {
                self.force_agent(server, forced, &mut standing, now, &mut effects);
            }
        }
        self.announce_if_empty(&mut standing, &mut effects);
        drop(standing);
        self.check_queue_invariants();
        effects
    }

    /// The servers there should be: those of the section that are not deleted, in its order, then
    /// those added, by id.
    fn wanted(
        &self,
        config: &model::Proxy,
        old: &[Arc<Server>],
        registry: &Registry,
        parse: ParseLine<'_>,
        now: Now,
        effects: &mut Effects,
    ) -> Vec<Arc<Server>> {
        let mut next: Vec<Arc<Server>> = Vec::with_capacity(config.servers.len());
        for line in &config.servers {
            if registry.deleted(&self.name, &line.name, &Base::of(line)) {
                continue;
            }
            // By name: numbers follow the order of the file and may shift. A server added at run time
            // that the file now has as well becomes the file's.
            next.push(match old.iter().find(|s| **s.name() == *line.name) {
                Some(server) => {
                    server.adopt(line, now);
                    server.clone()
                }
                None => self.create(Start::configured(line.clone()), registry, now),
            });
        }
        let mut added: Vec<(&str, &Added)> = registry
            .added(&self.name)
            .filter(|(name, _)| !next.iter().any(|s| **s.name() == **name))
            .collect();
        added.sort_by_key(|(_, added)| added.id);
        for (name, added) in added {
            let known = old.iter().find(|s| {
                **s.name() == *name && s.origin() == Origin::Runtime && s.revision() == added.revision
            });
            match (known, parse(name, added)) {
                (Some(server), _) => next.push(server.clone()),
                (None, Ok(line)) => {
                    let start = Start::added(Arc::new(line), added.revision);
                    next.push(self.create(start, registry, now));
                }
                (None, Err(error)) => {
                    let text = format!("server {}/{name} cannot be added on this node: {error}", self.name);
                    effects.line(lines::ALERT, text);
                }
            }
        }
        next
    }

    /// A new server, in the administrative state that the registry gives it from the start.
    fn create(&self, start: Start, registry: &Registry, now: Now) -> Arc<Server> {
        let base = Base::of(&start.config);
        let eff = registry.effective(&self.name, &start.config.name, &base);
        let admin = eff.admin.map_or(start.admin, |change| start.admin.after(change));
        let (start, addr) = Start { admin, ..start }.placed(registry, &self.name, &eff);
        let server = Server::new(self.name.clone(), start, self.workers, now);
        if let Some(addr) = addr {
            server.set_addr(addr);
        }
        Arc::new(server)
    }

    /// Weight, limits, address and checks: the override if it counts, else the configuration.
    /// Returns whether something changed.
    fn settle(&self, server: &Server, registry: &Registry) -> bool {
        let line = server.config();
        let spoken = registry.spoken(&self.name, server.name());
        agents::settle(server, &registry.agent(&self.name, server.name()), spoken);
        let mut eff = registry.effective(&self.name, server.name(), &Base::of(&line));
        agents::over(server, &mut eff);
        let o = &line.options;
        let placed = resolve::placed(registry, &self.name, &line);
        let weight = match (eff.weight, resolve::weight(placed, &line)) {
            (Some(weight), _) => weight.of(o.weight),
            (None, found) => found.unwrap_or(o.weight),
        };
        let mut changed = server.weight() != weight.min(256);
        server.set_weight(weight);
        let maxconn = eff.maxconn.unwrap_or(o.maxconn);
        // A minconn equal to maxconn means a fixed limit, and follows it.
        let minconn = if o.minconn == o.maxconn { maxconn } else { o.minconn };
        changed |= server.set_limits(maxconn, minconn, o.maxqueue);
        let ip = eff.ip.unwrap_or(line.addr.ip());
        let addr = SocketAddr::new(ip, eff.port.unwrap_or(line.addr.port()));
        // One that is found at run time follows in `resolve`.
        if placed.is_none() && server.addr() != addr {
            server.set_addr(addr);
        }
        {
            let check = &mut server.control.lock().check;
            check.ip = eff.check_ip.or(o.check_addr);
            check.port = eff.check_port.or(o.check_port);
        }
        let by_default = o.check && server.origin() == Origin::Config;
        let enabled = o.check && eff.check.unwrap_or(by_default);
        changed |= std::mem::replace(&mut server.control.lock().check.enabled, enabled) != enabled;
        changed
    }
}

/// Ready, drain or maintenance as the override says, else as configured.
fn wanted_admin(server: &Server, eff: &Effective) -> registry::Admin {
    let in_maintenance = match server.origin() {
        Origin::Config => server.options().disabled,
        Origin::Runtime => true,
    };
    let configured = if in_maintenance { registry::Admin::Maint } else { registry::Admin::Ready };
    let mut eff = *eff;
    agents::over(server, &mut eff);
    eff.admin.unwrap_or(configured)
}

impl Server {
    /// Takes over its changed line; weight, limits, address and state follow in
    /// [`Backend::apply`].
    fn adopt(&self, line: &Arc<model::Server>, now: Now) {
        let old = self.config().clone();
        if Arc::ptr_eq(&old, line) || *old == **line {
            self.set_config(line.clone());
            return;
        }
        let (was, is) = (&old.options, &line.options);
        let mut control = self.control.lock();
        let check = &mut control.check;
        check.configured = is.check;
        if was.check != is.check {
            check.health = Health::new(is.rise, is.fall);
            check.last = None;
        } else if (was.rise, was.fall) != (is.rise, is.fall) {
            let up = check.health.is_up();
            check.health = Health::new(is.rise, is.fall);
            check.health.force(up);
        }
        drop(control);
        if was.check && !is.check && !self.admin().maint() && self.op_state() == OpState::Stopped {
            // Nobody would ever find it up again.
            self.set_op(OpState::Running);
            self.control.lock().last_change = now;
        }
        if was.disabled != is.disabled {
            let admin = self.admin().0 & !Admin::CMAINT;
            self.set_admin(Admin(if is.disabled { admin | Admin::CMAINT } else { admin }));
        }
        self.set_config(line.clone());
    }
}
