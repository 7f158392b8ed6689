//! The part of the registry that discovery fills: for each source the list that its reader found, and
//! which server of which backend stands for what.
//!
//! One node reads a source and proposes what it found; the assignment to servers is made here, when
//! the command is applied, so that it is the same on every node and lasts over reloads, restarts and
//! changes of the reader. A reader that has been replaced is told apart by its term.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Reply;
use crate::discovery::{Instance, Place, User, assign};

/// What discovery tells the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiscoveryCommand {
    /// A source has other instances, or fills other servers, than what was agreed.
    Found(Found),
    /// No configuration has the source any more.
    Forget {
        /// Its name.
        source: String,
    },
}

/// What the reader of a source found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Name of the source.
    pub source: String,
    /// Name of the node that reads it.
    pub reader: String,
    /// Grows whenever another node becomes the reader.
    pub term: u64,
    /// Consul's index; 0 for others.
    pub index: u64,
    /// When it was found, in microseconds since the Unix epoch.
    pub found_at: u64,
    /// Why there is nothing, if that is not what the source itself says.
    pub why: Option<String>,
    /// The list.
    pub instances: Vec<Instance>,
    /// The servers that it fills.
    pub users: Vec<User>,
}

/// What was agreed about one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What was found.
    pub found: Found,
    /// By backend, then by server: every server that it fills, `None` where there is nothing for it.
    pub places: BTreeMap<String, BTreeMap<String, Option<Place>>>,
    /// Number of the command.
    pub revision: u64,
}

/// What was agreed about one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed<'a> {
    /// Nothing yet: its source was never read.
    Unknown,
    /// It stands for nothing; why, if the source did not say so itself.
    Nothing(Option<&'a str>),
    /// It stands for this.
    At(&'a Place),
}

/// Everything that was agreed about discovered servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovered {
    sources: BTreeMap<String, Source>,
}

/// Sources, and instances of one: bounds on what the log can make a node remember.
pub(super) const MAX_SOURCES: usize = 4096;
/// See [`MAX_SOURCES`].
pub(super) const MAX_INSTANCES: usize = 10_000;

impl Discovered {
    /// What was agreed about a source.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.get(name)
    }

    /// All sources.
    pub fn sources(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.sources.iter().map(|(name, source)| (name.as_str(), source))
    }

    /// What a server of a backend stands for, whose line names this source.
    pub fn place(&self, source: &str, backend: &str, server: &str) -> Placed<'_> {
        let Some(source) = self.sources.get(source) else { return Placed::Unknown };
        match source.places.get(backend).and_then(|servers| servers.get(server)) {
            Some(Some(place)) => Placed::At(place),
            Some(None) => Placed::Nothing(source.found.why.as_deref()),
            // The reader's configuration does not have the server.
            None => Placed::Unknown,
        }
    }

    pub(super) fn apply(&mut self, command: &DiscoveryCommand, revision: u64) -> Reply {
        match command {
            DiscoveryCommand::Found(found) => self.found(found, revision),
            DiscoveryCommand::Forget { source } => {
                self.sources.remove(source);
                Reply::Ok
            }
        }
    }

    fn found(&mut self, found: &Found, revision: u64) -> Reply {
        let before = self.sources.get(&found.source);
        if before.is_some_and(|source| source.found.term > found.term) {
            return Reply::refused("Another node reads this source.");
        }
        if before.is_none() && self.sources.len() >= MAX_SOURCES {
            return Reply::refused("Too many sources of servers.");
        }
        if found.instances.len() > MAX_INSTANCES {
            return Reply::refused("Too many instances of one source.");
        }
        let places = found.users.iter().map(|user| {
            let before = before.and_then(|source| source.places.get(&user.backend)).into_iter().flatten();
            let before = before.filter_map(|(name, place)| Some((name.clone(), place.clone()?))).collect();
            let mut taken = assign(&user.slots, &found.instances, &before);
            let servers = user.slots.iter().map(|slot| (slot.name.clone(), taken.remove(&slot.name)));
            (user.backend.clone(), servers.collect())
        });
        let source = Source { places: places.collect(), found: found.clone(), revision };
        self.sources.insert(found.source.clone(), source);
        Reply::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Slot;
    use crate::registry::{Command, Registry};

    fn found(term: u64, ips: &[u8], servers: &[&str]) -> Command {
        let slot = |name: &&str| Slot {
            name: (*name).to_owned(),
            prefer_v4: false,
            nets: Vec::new(),
            allow_dup: false,
            initial: None,
        };
        Command::Discovered(DiscoveryCommand::Found(Found {
            source: "consul(c)/web".to_owned(),
            reader: format!("n{term}"),
            term,
            index: 1,
            found_at: 0,
            why: None,
            instances: ips.iter().map(|n| Instance::at([10, 0, 0, *n].into(), 80, None)).collect(),
            users: vec![User { backend: "b".to_owned(), slots: servers.iter().map(slot).collect() }],
        }))
    }

    fn at(registry: &Registry, server: &str) -> Option<u8> {
        match registry.discovered().place("consul(c)/web", "b", server) {
            Placed::At(place) => match place.ip? {
                std::net::IpAddr::V4(ip) => Some(ip.octets()[3]),
                std::net::IpAddr::V6(_) => None,
            },
            _ => None,
        }
    }

    #[test]
    fn a_new_reader_takes_over_without_moving_anything() {
        let mut registry = Registry::new();
        assert_eq!(registry.discovered().place("consul(c)/web", "b", "w1"), Placed::Unknown);
        assert_eq!(registry.apply(&found(1, &[1, 2], &["w1", "w2", "w3"])), Reply::Ok);
        assert_eq!((at(&registry, "w1"), at(&registry, "w2"), at(&registry, "w3")), (Some(1), Some(2), None));
        assert_eq!(registry.discovered().place("consul(c)/web", "b", "w3"), Placed::Nothing(None));
        assert_eq!(registry.apply(&found(2, &[3, 2], &["w1", "w2", "w3"])), Reply::Ok);
        assert_eq!((at(&registry, "w1"), at(&registry, "w2")), (Some(3), Some(2)));
        // The one that it replaced is late.
        assert!(matches!(registry.apply(&found(1, &[1], &["w1"])), Reply::Refused(_)));
        assert_eq!((at(&registry, "w1"), at(&registry, "w2")), (Some(3), Some(2)));
        // Another number of servers.
        registry.apply(&found(2, &[3, 2], &["w2"]));
        assert_eq!((at(&registry, "w1"), at(&registry, "w2")), (None, Some(2)));
        assert_eq!(registry.discovered().place("consul(c)/web", "b", "w1"), Placed::Unknown);
        let forget = DiscoveryCommand::Forget { source: "consul(c)/web".to_owned() };
        registry.apply(&Command::Discovered(forget));
        assert_eq!(registry.discovered().sources().count(), 0);
    }

    #[test]
    fn the_log_cannot_make_a_node_remember_without_bound() {
        let mut registry = Registry::new();
        let many: Vec<u8> = vec![1; MAX_INSTANCES + 1];
        assert!(matches!(registry.apply(&found(1, &many, &["w1"])), Reply::Refused(_)));
    }

    #[test]
    fn it_survives_being_stored() {
        let mut registry = Registry::new();
        registry.apply(&found(1, &[1, 2], &["w1", "w2"]));
        let mut bytes = postcard::to_stdvec(&registry).unwrap();
        bytes.extend_from_slice(Registry::LAST_EMPTY);
        assert_eq!(postcard::from_bytes::<Registry>(&bytes).unwrap(), registry);
    }
}
