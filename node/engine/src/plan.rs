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

/// A configuration, resolved.
#[derive(Debug)]
pub struct Plan {
    /// Counts the loads, from 1.
    pub epoch: u64,
    /// The whole configuration.
    pub config: Arc<Config>,
    /// Its proxies, in its order.
    pub proxies: Vec<ProxyPlan>,
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
}

impl Plan {
    pub(crate) fn new(epoch: u64, config: Arc<Config>, mut proxies: Vec<ProxyPlan>) -> Plan {
        let by_name: HashMap<String, usize> =
            proxies.iter().enumerate().map(|(index, p)| (p.config.name.clone(), index)).collect();
        for (index, proxy) in proxies.iter_mut().enumerate() {
            let named = proxy.config.default_backend.as_deref();
            proxy.default_backend = match named.and_then(|name| by_name.get(name)) {
                Some(&index) => Some(index),
                None => proxy.backend.is_some().then_some(index),
            };
        }
        Plan { epoch, config, proxies, by_name }
    }

    /// Index of the proxy of this name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The proxy of this name.
    pub fn proxy(&self, name: &str) -> Option<&ProxyPlan> {
        self.index(name).map(|index| &self.proxies[index])
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
