//! What sessions look at: one configuration with the runtime objects of its proxies.
//!
//! Immutable. [`State::load`](crate::state::State::load) builds a new one for every reload; a
//! session keeps the one it began with. The frontends, backends and servers in it are shared with
//! the plans before and after.

use std::sync::Arc;

use hashbrown::HashMap;
use phalanx_config::model::{self, Config};

use crate::backend::Backend;
use crate::frontend::Frontend;
use crate::pattern::{self, Matcher, PatternSet};
use crate::rules::Guards;
use crate::stick::{Table, Tables};

/// A configuration, resolved.
#[derive(Debug)]
pub struct Plan {
    /// Counts the loads, from 1.
    pub epoch: u64,
    /// The whole configuration.
    pub config: Arc<Config>,
    /// Its proxies, in its order.
    pub proxies: Vec<ProxyPlan>,
    /// What ACLs and maps look into, as in [`Config::patterns`].
    pub patterns: Vec<Arc<PatternSet>>,
    /// The ways of looking into each of them.
    matchers: Vec<Vec<Arc<Matcher>>>,
    by_name: HashMap<String, usize>,
}

/// One proxy of a plan.
#[derive(Debug)]
pub struct ProxyPlan {
    /// Its section.
    pub config: Arc<model::Proxy>,
    /// Its front side.
    pub frontend: Option<Arc<Frontend>>,
    /// Its back side.
    pub backend: Option<Arc<Backend>>,
    /// Index of the proxy whose back side takes what no rule sends elsewhere: that of
    /// `default_backend`, or itself for a `listen`.
    pub default_backend: Option<usize>,
    /// Its own stick table.
    pub table: Option<Arc<Table>>,
    /// `stick …` lines with their tables, in order.
    pub stick_rules: Vec<Stick>,
    /// What the conditions of `http-request` rules look for.
    pub(crate) guards: Guards,
}

/// A `stick` line with its table.
#[derive(Clone, Debug)]
pub struct Stick {
    /// The line.
    pub rule: model::StickRule,
    /// Its table.
    pub table: Arc<Table>,
}

impl ProxyPlan {
    pub(crate) fn new(
        config: Arc<model::Proxy>,
        frontend: Option<Arc<Frontend>>,
        backend: Option<Arc<Backend>>,
        tables: &Tables,
    ) -> ProxyPlan {
        // The configuration is checked: every rule names a proxy with a table.
        let stick =
            |rule: &model::StickRule| Some(Stick { rule: rule.clone(), table: tables.get(&rule.table)? });
        ProxyPlan {
            frontend,
            backend,
            default_backend: None,
            table: tables.get(&config.name),
            stick_rules: config.stick_rules.iter().filter_map(stick).collect(),
            guards: Guards::new(&config.rules.http_request, &config.acls),
            config,
        }
    }
}

impl Plan {
    pub(crate) fn new(
        epoch: u64,
        config: Arc<Config>,
        mut proxies: Vec<ProxyPlan>,
        patterns: Vec<Arc<PatternSet>>,
    ) -> Plan {
        let by_name: HashMap<String, usize> =
            proxies.iter().enumerate().map(|(index, p)| (p.config.name.clone(), index)).collect();
        for (index, proxy) in proxies.iter_mut().enumerate() {
            let named = proxy.config.default_backend.as_deref();
            proxy.default_backend = match named.and_then(|name| by_name.get(name)) {
                Some(&index) => Some(index),
                None => proxy.backend.is_some().then_some(index),
            };
        }
        let uses = config.patterns.iter().map(|source| source.uses.iter());
        let matchers = uses.map(|uses| uses.filter_map(|u| pattern::matcher(&patterns, u)).collect());
        let matchers = matchers.collect();
        Plan { epoch, config, proxies, patterns, matchers, by_name }
    }

    /// Index of the proxy of this name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The proxy of this name.
    pub fn proxy(&self, name: &str) -> Option<&ProxyPlan> {
        self.index(name).map(|index| &self.proxies[index])
    }

    /// The proxy that a link of this configuration leads to. By its place; by name if it has none.
    pub fn linked(&self, link: &model::Link) -> Option<&ProxyPlan> {
        match link.place() {
            Some(place) => self.proxies.get(place),
            None => self.proxy(link.name()),
        }
    }

    /// What an ACL or a map looks into.
    pub fn matcher(&self, usage: &model::PatternUse) -> Option<&Matcher> {
        let same = |m: &&Arc<Matcher>| m.method() == usage.method && m.ignore_case() == usage.ignore_case;
        self.matchers.get(usage.set)?.iter().find(same).map(Arc::as_ref)
    }

    /// The backend (or back side of a `listen`) of this name.
    pub fn backend(&self, name: &str) -> Option<&Arc<Backend>> {
        self.proxy(name)?.backend.as_ref()
    }

    /// The frontend (or front side of a `listen`) of this name.
    pub fn frontend(&self, name: &str) -> Option<&Arc<Frontend>> {
        self.proxy(name)?.frontend.as_ref()
    }
}
