//! Nodes in maintenance: they hold no floating IP, until they are taken out of it again.
//!
//! Agreed, so that it outlives a restart of the node and can be said on any node of one that is down.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{MAX_MEMBERS, Members, Reply};

/// `maintenance node NODE on|off`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceCommand {
    /// Which.
    pub node: String,
    /// Whether it is from now on.
    pub on: bool,
}

/// Names of the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Maintenance(BTreeSet<String>);

impl Maintenance {
    pub(super) fn apply(&mut self, command: &MaintenanceCommand, members: &Members) -> Reply {
        let MaintenanceCommand { node, on } = command;
        if members.founded() && members.get(node).is_none() {
            return Reply::Refused(members.unknown(node));
        }
        // Before there are members, any name is one.
        if *on && !self.0.contains(node) && self.0.len() >= MAX_MEMBERS {
            return Reply::Refused(format!("There can't be more than {MAX_MEMBERS} nodes in maintenance."));
        }
        match on {
            true => self.0.insert(node.clone()),
            false => self.0.remove(node),
        };
        Reply::Ok
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn holds(&self, node: &str) -> bool {
        self.0.contains(node)
    }

    /// A node that left is another when it comes back.
    pub(super) fn forget(&mut self, members: &Members) {
        self.0.retain(|node| members.get(node).is_some());
    }
}

#[cfg(test)]
mod tests {
    use crate::registry::{Command, MemberCommand, NewMember, Registry, Reply};

    use super::*;

    #[test]
    fn a_node_is_in_maintenance_until_it_is_not_or_has_left() {
        let mut registry = Registry::new();
        let new = |name: &str| NewMember { name: name.into(), addr: format!("{name}:1"), witness: false };
        let nodes = ["n1", "n2"].map(new).to_vec();
        registry.apply(&Command::Member(MemberCommand::Found { id: 7, nodes }));
        let set = |registry: &mut Registry, node: &str, on| {
            registry.apply(&Command::Maintenance(MaintenanceCommand { node: node.into(), on }))
        };
        let before = registry.digest();
        assert_eq!(set(&mut registry, "n2", true), Reply::Ok);
        assert_ne!(registry.digest(), before);
        assert!(registry.in_maintenance("n2") && !registry.in_maintenance("n1"));
        assert_eq!(set(&mut registry, "n9", true), Reply::Refused("No node 'n9', there are: n1, n2.".into()));
        assert_eq!(set(&mut registry, "n2", true), Reply::Ok, "said twice, it is the same");
        assert_eq!(set(&mut registry, "n2", false), Reply::Ok);
        assert!(!registry.in_maintenance("n2"));
        set(&mut registry, "n2", true);
        registry.apply(&Command::Member(MemberCommand::Leave { name: "n2".into() }));
        registry.apply(&Command::Member(MemberCommand::Remove { name: "n2".into(), config: 1 }));
        assert!(!registry.in_maintenance("n2"));
    }

    #[test]
    fn names_of_nodes_that_are_none_do_not_pile_up() {
        let mut registry = Registry::new();
        let set = |registry: &mut Registry, node: usize, on| {
            registry.apply(&Command::Maintenance(MaintenanceCommand { node: format!("n{node}"), on }))
        };
        for node in 0..MAX_MEMBERS {
            assert_eq!(set(&mut registry, node, true), Reply::Ok);
        }
        assert!(matches!(set(&mut registry, MAX_MEMBERS, true), Reply::Refused(_)));
        assert_eq!(set(&mut registry, 0, true), Reply::Ok, "it is there already");
        assert_eq!(set(&mut registry, 0, false), Reply::Ok);
        assert_eq!(set(&mut registry, MAX_MEMBERS, true), Reply::Ok);
    }
}
