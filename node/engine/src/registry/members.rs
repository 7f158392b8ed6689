//! Who belongs to the cluster: the agreed list of nodes, and the changes of it that are under way.
//!
//! The `cluster` section founds the list once; from then on it changes by these commands alone. One
//! node at a time becomes a voter or ceases to be one, and each such step has a number, [`Members::config`].
//! Whoever makes a step says which number it saw settled, and is refused when another step came
//! between: the safety of leases rests on that, see [`crate::membership`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Reply;
use crate::lease::NodeId;

/// Nodes that a cluster may have: a [`NodeId`] has a byte.
pub const MAX_MEMBERS: usize = 64;

/// A node as the commands name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMember {
    /// Unique in the cluster.
    pub name: String,
    /// `host:port`, resolved when connecting.
    pub addr: String,
    /// Votes, but takes no traffic and holds no floating IP.
    pub witness: bool,
}

/// What changes the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberCommand {
    /// The cluster begins, with these. Counts once: whoever comes second is told that it exists.
    Found {
        /// Drawn at random: tells this cluster from another of the same name.
        id: u64,
        /// All of them voters at once.
        nodes: Vec<NewMember>,
    },
    /// A node is to become a voter once it has caught up.
    Join {
        /// Which.
        node: NewMember,
        /// The node that leaves when this one votes.
        replaces: Option<String>,
    },
    /// A node is to leave once it holds nothing; one that still joins is forgotten.
    Leave {
        /// Which.
        name: String,
    },
    /// A node that joins is a voter from here on.
    Promote {
        /// Which.
        name: String,
        /// The settled configuration that this follows.
        config: u64,
    },
    /// A node that leaves is gone from here on.
    Remove {
        /// Which.
        name: String,
        /// The settled configuration that this follows.
        config: u64,
    },
}

/// How far a node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It learns, and has no vote yet.
    Joining,
    /// It votes.
    Voter,
    /// It votes, and is to leave.
    Leaving,
}

/// A node of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `host:port`.
    pub addr: String,
    /// Only votes.
    pub witness: bool,
    /// Its number in leases. Not given to another node before all others were given.
    pub seat: u8,
    /// The command that brought it in.
    pub since: u64,
    /// How far it has come.
    pub stage: Stage,
    /// Who leaves when it votes.
    pub replaces: Option<String>,
}

impl Member {
    /// Whether its vote counts.
    pub fn votes(&self) -> bool {
        self.stage != Stage::Joining
    }

    /// Its number in leases.
    pub fn id(&self) -> NodeId {
        NodeId(self.seat)
    }
}

/// The agreed list of nodes; empty until the cluster is founded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    id: u64,
    version: u64,
    config: u64,
    next_seat: u8,
    nodes: BTreeMap<String, Member>,
}

impl Members {
    /// What tells this cluster from another of the same name; 0 = not founded.
    pub fn cluster_id(&self) -> u64 {
        self.id
    }

    /// Whether there is a list.
    pub fn founded(&self) -> bool {
        self.id != 0
    }

    /// Rises with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Rises with every change of the voting set.
    pub fn config(&self) -> u64 {
        self.config
    }

    /// Each node, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Member)> {
        self.nodes.iter().map(|(name, member)| (name.as_str(), member))
    }

    /// The node of this name.
    pub fn get(&self, name: &str) -> Option<&Member> {
        self.nodes.get(name)
    }

    /// Those whose vote counts.
    pub fn voters(&self) -> impl Iterator<Item = (&str, &Member)> {
        self.iter().filter(|(_, m)| m.votes())
    }

    pub(super) fn apply(&mut self, command: &MemberCommand, revision: u64) -> Reply {
        let done = match command {
            MemberCommand::Found { id, nodes } => self.found(*id, nodes, revision),
            _ if !self.founded() => Err("The cluster is not founded yet.".to_owned()),
            MemberCommand::Join { node, replaces } => self.join(node, replaces.as_deref(), revision),
            MemberCommand::Leave { name } => self.leave(name),
            MemberCommand::Promote { name, config } => self.promote(name, *config),
            MemberCommand::Remove { name, config } => self.remove(name, *config),
        };
        match done {
            Ok(()) => {
                self.version += 1;
                Reply::Ok
            }
            Err(why) => Reply::Refused(why),
        }
    }

    fn found(&mut self, id: u64, nodes: &[NewMember], revision: u64) -> Result<(), String> {
        if self.founded() {
            return Err("The cluster is founded already.".to_owned());
        }
        if id == 0 || nodes.is_empty() || nodes.len() > MAX_MEMBERS {
            return Err("No nodes to found a cluster with.".to_owned());
        }
        let mut sorted: Vec<&NewMember> = nodes.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        for node in sorted {
            let seat = self.free_seat();
            self.nodes.insert(node.name.clone(), member(node, seat, revision, Stage::Voter, None));
        }
        (self.id, self.config) = (id, 1);
        Ok(())
    }

    fn join(&mut self, node: &NewMember, replaces: Option<&str>, revision: u64) -> Result<(), String> {
        let name = &node.name;
        if let Some(there) = self.nodes.get(name) {
            return Err(match there.stage {
                Stage::Joining => format!("Node '{name}' at {} is joining already.", there.addr),
                Stage::Voter => format!("Node '{name}' is a member already, at {}.", there.addr),
                Stage::Leaving => format!("Node '{name}' is leaving; it can join again when it has left."),
            });
        }
        if let Some((other, _)) = self.iter().find(|(_, m)| m.addr == node.addr) {
            return Err(format!("Node '{other}' has the address {}.", node.addr));
        }
        if self.nodes.len() >= MAX_MEMBERS {
            return Err(format!("A cluster has {MAX_MEMBERS} nodes at most."));
        }
        if let Some(old) = replaces {
            match self.nodes.get(old) {
                None => return Err(self.unknown(old)),
                Some(m) if m.stage != Stage::Voter => return Err(format!("Node '{old}' is no voter.")),
                Some(_) => {}
            }
        }
        let seat = self.free_seat();
        let joining = member(node, seat, revision, Stage::Joining, replaces.map(str::to_owned));
        self.nodes.insert(name.clone(), joining);
        Ok(())
    }

    fn leave(&mut self, name: &str) -> Result<(), String> {
        let stays = self.nodes.values().filter(|m| m.stage == Stage::Voter).count();
        let Some(member) = self.nodes.get_mut(name) else { return Err(self.unknown(name)) };
        match member.stage {
            Stage::Joining => _ = self.nodes.remove(name),
            Stage::Voter if stays <= 1 => {
                return Err(format!("Node '{name}' is the last one: a cluster has one voter at least."));
            }
            Stage::Voter => member.stage = Stage::Leaving,
            Stage::Leaving => return Err(format!("Node '{name}' is leaving already.")),
        }
        Ok(())
    }

    fn promote(&mut self, name: &str, config: u64) -> Result<(), String> {
        self.follows(config)?;
        let Some(member) = self.nodes.get_mut(name).filter(|m| m.stage == Stage::Joining) else {
            return Err(format!("Node '{name}' is not joining."));
        };
        member.stage = Stage::Voter;
        let old = member.replaces.take();
        if let Some(old) = old.and_then(|old| self.nodes.get_mut(&old))
            && old.stage == Stage::Voter
        {
            old.stage = Stage::Leaving;
        }
        self.config += 1;
        Ok(())
    }

    fn remove(&mut self, name: &str, config: u64) -> Result<(), String> {
        self.follows(config)?;
        if self.nodes.get(name).is_none_or(|m| m.stage != Stage::Leaving) {
            return Err(format!("Node '{name}' is not leaving."));
        }
        self.nodes.remove(name);
        self.config += 1;
        Ok(())
    }

    fn follows(&self, config: u64) -> Result<(), String> {
        match self.config == config {
            true => Ok(()),
            false => {
                Err(format!("The members have changed: configuration {} follows {config}.", self.config))
            }
        }
    }

    fn free_seat(&mut self) -> u8 {
        // The last one stands for a node that is no member.
        while self.next_seat == u8::MAX || self.nodes.values().any(|m| m.seat == self.next_seat) {
            self.next_seat = self.next_seat.wrapping_add(1);
        }
        let seat = self.next_seat;
        self.next_seat = seat.wrapping_add(1);
        seat
    }

    /// What to say of a name that nobody has.
    pub fn unknown(&self, name: &str) -> String {
        let known: Vec<&str> = self.nodes.keys().map(String::as_str).collect();
        format!("No node '{name}', there are: {}.", known.join(", "))
    }

    pub(super) fn consistent(&self) -> bool {
        let seats: BTreeSet<u8> = self.nodes.values().map(|m| m.seat).collect();
        seats.len() == self.nodes.len()
            && (!self.founded() || self.nodes.values().any(|m| m.stage == Stage::Voter))
    }
}

fn member(node: &NewMember, seat: u8, since: u64, stage: Stage, replaces: Option<String>) -> Member {
    Member { addr: node.addr.clone(), witness: node.witness, seat, since, stage, replaces }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str) -> NewMember {
        NewMember { name: name.into(), addr: format!("{name}:7100"), witness: false }
    }

    fn founded(names: &[&str]) -> Members {
        let mut members = Members::default();
        let nodes = names.iter().map(|n| new(n)).collect();
        assert_eq!(members.apply(&MemberCommand::Found { id: 7, nodes }, 1), Reply::Ok);
        members
    }

    fn refused(members: &mut Members, command: MemberCommand) -> String {
        let before = members.clone();
        match members.apply(&command, 9) {
            Reply::Refused(why) => {
                assert_eq!(*members, before, "a refused command changes nothing");
                why
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    fn done(members: &mut Members, command: MemberCommand) {
        assert_eq!(members.apply(&command, 9), Reply::Ok, "{command:?}");
        assert!(members.consistent(), "{members:?}");
    }

    fn join(name: &str, replaces: Option<&str>) -> MemberCommand {
        MemberCommand::Join { node: new(name), replaces: replaces.map(str::to_owned) }
    }

    #[test]
    fn a_node_joins_and_leaves_in_numbered_steps() {
        let mut m = founded(&["n2", "n1", "n3"]);
        assert_eq!(
            m.voters().map(|(n, m)| (n, m.seat)).collect::<Vec<_>>(),
            [("n1", 0), ("n2", 1), ("n3", 2)]
        );
        done(&mut m, join("n4", None));
        assert_eq!((m.config(), m.voters().count()), (1, 3), "it has no vote yet");
        let why = refused(&mut m, MemberCommand::Promote { name: "n4".into(), config: 0 });
        assert_eq!(why, "The members have changed: configuration 1 follows 0.");
        done(&mut m, MemberCommand::Promote { name: "n4".into(), config: 1 });
        assert_eq!((m.config(), m.voters().count()), (2, 4));
        done(&mut m, MemberCommand::Leave { name: "n1".into() });
        assert_eq!((m.config(), m.voters().count()), (2, 4), "it votes until it is removed");
        done(&mut m, MemberCommand::Remove { name: "n1".into(), config: 2 });
        assert_eq!((m.config(), m.voters().count()), (3, 3));
        done(&mut m, join("n1", None));
        assert_eq!(m.get("n1").map(|m| m.seat), Some(4), "a number is not used again at once");
    }

    #[test]
    fn a_replaced_node_leaves_when_its_successor_votes() {
        let mut m = founded(&["n1", "n2", "n3"]);
        done(&mut m, join("n6", Some("n3")));
        assert_eq!(m.get("n3").map(|m| m.stage), Some(Stage::Voter));
        done(&mut m, MemberCommand::Promote { name: "n6".into(), config: 1 });
        assert_eq!(m.get("n3").map(|m| m.stage), Some(Stage::Leaving));
        done(&mut m, MemberCommand::Remove { name: "n3".into(), config: 2 });
        assert!(m.get("n3").is_none());
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let mut m = founded(&["n1"]);
        let leave = |name: &str| MemberCommand::Leave { name: name.into() };
        let why = refused(&mut m, leave("n1"));
        assert_eq!(why, "Node 'n1' is the last one: a cluster has one voter at least.");
        assert_eq!(refused(&mut m, leave("n9")), "No node 'n9', there are: n1.");
        assert_eq!(refused(&mut m, join("n1", None)), "Node 'n1' is a member already, at n1:7100.");
        assert_eq!(refused(&mut m, join("n2", Some("n8"))), "No node 'n8', there are: n1.");
        let same = NewMember { addr: "n1:7100".into(), ..new("n2") };
        let why = refused(&mut m, MemberCommand::Join { node: same, replaces: None });
        assert_eq!(why, "Node 'n1' has the address n1:7100.");
        refused(&mut m, MemberCommand::Remove { name: "n1".into(), config: 1 });
        refused(&mut m, MemberCommand::Found { id: 8, nodes: vec![new("x")] });
        done(&mut m, join("n2", None));
        done(&mut m, leave("n2"));
        assert!(m.get("n2").is_none(), "one that joins is just forgotten");
    }
}
