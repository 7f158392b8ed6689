//! When commands last said what a server's agent says as well, so that who spoke last counts.
//!
//! Only of servers with an agent: for others the overrides tell all. The agent's words carry these
//! revisions as they were when it spoke (`engine/src/agent.rs`), so all nodes agree on the order, however
//! late they hear of either. Kept apart from a server's record because it came later.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Admin, Change, Weight};

/// The changes that an agent can ask for, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpokenChange {
    /// As [`Change::Admin`].
    Admin(Admin),
    /// As [`Change::Weight`].
    Weight(Weight),
    /// As [`Change::Maxconn`].
    Maxconn(u32),
}

/// The commands that last said something about a server; 0 = none did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revisions {
    /// About its administrative state.
    pub admin: u64,
    /// About its weight.
    pub weight: u64,
    /// About its `maxconn`.
    pub maxconn: u64,
}

/// Of all servers, by backend and server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spoken(BTreeMap<(String, String), Revisions>);

impl Change {
    /// The same change, of a server that has an agent.
    pub fn beside_an_agent(self) -> Change {
        match self {
            Change::Admin(admin) => Change::Spoken(SpokenChange::Admin(admin)),
            Change::Weight(weight) => Change::Spoken(SpokenChange::Weight(weight)),
            Change::Maxconn(maxconn) => Change::Spoken(SpokenChange::Maxconn(maxconn)),
            other => other,
        }
    }
}

impl SpokenChange {
    /// The change itself.
    pub(super) fn plain(self) -> Change {
        match self {
            SpokenChange::Admin(admin) => Change::Admin(admin),
            SpokenChange::Weight(weight) => Change::Weight(weight),
            SpokenChange::Maxconn(maxconn) => Change::Maxconn(maxconn),
        }
    }
}

impl Spoken {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn of(&self, backend: &str, server: &str) -> Option<Revisions> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&(backend.to_owned(), server.to_owned())).copied()
    }

    pub(super) fn servers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.keys().map(|(backend, server)| (backend.as_str(), server.as_str()))
    }

    pub(super) fn note(&mut self, backend: &str, server: &str, change: SpokenChange, revision: u64) {
        let said = self.0.entry((backend.to_owned(), server.to_owned())).or_default();
        match change {
            SpokenChange::Admin(_) => said.admin = revision,
            SpokenChange::Weight(_) => said.weight = revision,
            SpokenChange::Maxconn(_) => said.maxconn = revision,
        }
    }

    /// Whatever was said about the server is over.
    pub(super) fn forget(&mut self, backend: &str, server: &str) {
        if !self.0.is_empty() {
            self.0.remove(&(backend.to_owned(), server.to_owned()));
        }
    }
}
