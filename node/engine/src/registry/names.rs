//! Host names of servers that commands have changed: `set server … fqdn`.
//!
//! As with other overrides each stands beside the name of the configuration that it replaced, and a
//! configuration that says something else wins. Kept apart from a server's record because it came
//! later: a stored registry without names is one of before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Base;

/// All names that commands have changed, by backend and server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names(BTreeMap<(String, String), Named>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Named {
    name: String,
    /// What the configuration said.
    config: String,
    /// The configuration of some node has changed away from `config`.
    left: bool,
}

impl Names {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name that counts for a server whose line says `host`, if a command set one.
    pub fn of(&self, backend: &str, server: &str, host: &str) -> Option<&str> {
        if self.0.is_empty() {
            return None;
        }
        let named = self.0.get(&(backend.to_owned(), server.to_owned()))?;
        (named.config == host).then_some(named.name.as_str())
    }

    /// Servers whose names were changed.
    pub(super) fn servers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.keys().map(|(backend, server)| (backend.as_str(), server.as_str()))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn has(&self, backend: &str, server: &str) -> bool {
        self.0.contains_key(&(backend.to_owned(), server.to_owned()))
    }

    /// A name that is the configured one again is no override.
    pub(super) fn set(&mut self, backend: &str, server: &str, name: String, config: &str) {
        let key = (backend.to_owned(), server.to_owned());
        if name == config {
            self.0.remove(&key);
        } else {
            self.0.insert(key, Named { name, config: config.to_owned(), left: false });
        }
    }

    /// Whatever was said about the server is over.
    pub(super) fn forget(&mut self, backend: &str, server: &str) {
        self.0.remove(&(backend.to_owned(), server.to_owned()));
    }

    /// A reload changed what the configuration says of a server.
    pub(super) fn rebase(&mut self, backend: &str, server: &str, from: Option<&Base>, to: Option<&Base>) {
        let key = (backend.to_owned(), server.to_owned());
        let Some(named) = self.0.get_mut(&key) else { return };
        let says = |base: Option<&Base>| base.is_some_and(|b| b.host == named.config);
        match (says(from), says(to)) {
            (true, false) => named.left = true,
            (false, true) if named.left => {
                self.0.remove(&key);
            }
            _ => {}
        }
    }
}
