//! Lease messages to protobuf and back. Names on the wire, numbers inside: a name that is not a node
//! of this cluster makes a message void.

use std::collections::BTreeMap;
use std::time::Duration;

use phalanx_engine::lease::{Ballot, Message, NodeId, Refusal};
use phalanx_wire::cluster as pb;
use phalanx_wire::cluster::refused::Why;
use phalanx_wire::cluster::vip_message::Step;

/// Names of the members, and the numbers that they have.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    ids: BTreeMap<String, NodeId>,
    /// Those of nodes that have left too, for messages.
    names: BTreeMap<NodeId, String>,
    me: Option<NodeId>,
}

impl Names {
    /// The members, of which this node is `me`; `before` knew those that have left.
    pub(super) fn of<'a>(
        members: impl Iterator<Item = (&'a str, NodeId)>,
        me: &str,
        before: &Names,
    ) -> Names {
        let ids: BTreeMap<String, NodeId> = members.map(|(name, id)| (name.to_owned(), id)).collect();
        let mut names = before.names.clone();
        names.extend(ids.iter().map(|(name, id)| (*id, name.clone())));
        let me = ids.get(me).copied();
        Names { ids, names, me }
    }

    /// This node, when it is a member.
    pub(super) fn me(&self) -> Option<NodeId> {
        self.me
    }

    pub(super) fn id(&self, name: &str) -> Option<NodeId> {
        self.ids.get(name).copied()
    }

    pub(super) fn name(&self, id: NodeId) -> &str {
        self.names.get(&id).map_or("?", String::as_str)
    }

    /// Names of the members in alphabetical order.
    pub(super) fn all(&self) -> Vec<String> {
        self.ids.keys().cloned().collect()
    }

    /// Numbers of the members in the order of their names.
    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.ids.values().copied().collect()
    }

    pub(super) fn ballot_out(&self, ballot: Ballot) -> pb::Ballot {
        let node = self.name(ballot.node).to_owned();
        pb::Ballot { counter: ballot.counter, node, incarnation: ballot.incarnation }
    }

    pub(super) fn ballot_in(&self, ballot: Option<pb::Ballot>) -> Option<Ballot> {
        let ballot = ballot?;
        Some(Ballot {
            counter: ballot.counter,
            node: self.id(&ballot.node)?,
            incarnation: ballot.incarnation,
        })
    }

    pub(super) fn message_out(&self, vip: &str, message: Message) -> pb::VipMessage {
        let step = match message {
            Message::Prepare { .. } => Step::Prepare(pb::Prepare {}),
            Message::Promise { .. } => Step::Promise(pb::Promise {}),
            Message::Propose { round, term, held, .. } => {
                Step::Propose(pb::Propose { round, term_us: micros(term), held })
            }
            Message::Accepted { round, .. } => Step::Accepted(pb::Accepted { round }),
            Message::Refused { why, .. } => Step::Refused(pb::Refused { why: Some(self.refusal_out(why)) }),
            Message::Release { to, .. } => {
                let to = to.map(|to| self.name(to).to_owned()).unwrap_or_default();
                Step::Release(pb::Release { to })
            }
        };
        let config = match message {
            Message::Prepare { config, .. } | Message::Propose { config, .. } => config,
            _ => 0,
        };
        let ballot = Some(self.ballot_out(message.ballot()));
        pb::VipMessage { vip: vip.to_owned(), ballot, step: Some(step), config }
    }

    pub(super) fn message_in(&self, message: pb::VipMessage) -> Option<Message> {
        let ballot = self.ballot_in(message.ballot)?;
        let config = message.config;
        Some(match message.step? {
            Step::Prepare(_) => Message::Prepare { ballot, config },
            Step::Promise(_) => Message::Promise { ballot },
            Step::Propose(p) => Message::Propose {
                ballot,
                config,
                round: p.round,
                term: Duration::from_micros(p.term_us),
                held: p.held,
            },
            Step::Accepted(a) => Message::Accepted { ballot, round: a.round },
            Step::Refused(r) => Message::Refused { ballot, why: self.refusal_in(r.why?)? },
            Step::Release(r) => Message::Release { ballot, to: self.id(&r.to) },
        })
    }

    fn refusal_out(&self, why: Refusal) -> Why {
        match why {
            Refusal::Starting { left } => Why::StartingUs(micros(left)),
            Refusal::Outranked { counter } => Why::Outranked(counter),
            Refusal::Held { by, left } => {
                Why::Held(pb::Held { by: Some(self.ballot_out(by)), left_us: micros(left) })
            }
            Refusal::TooLong { longest } => Why::LongestUs(micros(longest)),
            Refusal::Outdated { config } => Why::Outdated(config),
        }
    }

    fn refusal_in(&self, why: Why) -> Option<Refusal> {
        Some(match why {
            Why::StartingUs(us) => Refusal::Starting { left: Duration::from_micros(us) },
            Why::Outranked(counter) => Refusal::Outranked { counter },
            Why::Held(held) => {
                Refusal::Held { by: self.ballot_in(held.by)?, left: Duration::from_micros(held.left_us) }
            }
            Why::LongestUs(us) => Refusal::TooLong { longest: Duration::from_micros(us) },
            Why::Outdated(config) => Refusal::Outdated { config },
        })
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let ids = [("n2", NodeId(1)), ("n1", NodeId(0))];
        let names = Names::of(ids.into_iter(), "n1", &Names::default());
        assert_eq!(names.id("n1"), Some(NodeId(0)));
        let ballot = Ballot { counter: 7, node: NodeId(1), incarnation: 3 };
        let us = Duration::from_micros;
        for message in [
            Message::Prepare { ballot, config: 3 },
            Message::Promise { ballot },
            Message::Propose { ballot, config: 3, round: 4, term: us(600_000), held: true },
            Message::Accepted { ballot, round: 4 },
            Message::Refused { ballot, why: Refusal::Starting { left: us(5) } },
            Message::Refused { ballot, why: Refusal::Outranked { counter: 9 } },
            Message::Refused { ballot, why: Refusal::Held { by: ballot, left: us(6) } },
            Message::Refused { ballot, why: Refusal::TooLong { longest: us(8) } },
            Message::Refused { ballot, why: Refusal::Outdated { config: 9 } },
            Message::Release { ballot, to: None },
            Message::Release { ballot, to: Some(NodeId(0)) },
        ] {
            assert_eq!(names.message_in(names.message_out("web", message)), Some(message));
        }
        let mut stranger = names.message_out("web", Message::Prepare { ballot, config: 3 });
        stranger.ballot.as_mut().unwrap().node = "n9".into();
        assert_eq!(names.message_in(stranger), None);
    }
}
