//! Who probes which server for the whole cluster, and what the other nodes take over from it.
//!
//! Every node runs one [`Verdicts`]. For each [`Subject`] the nodes that are heard from are ranked by
//! rendezvous hash; the first probes, and tells the others what it finds in a [`Claim`]. The next in
//! order takes over when it falls silent, from the state that it told last. A node that finds that it
//! alone cannot reach a server stands *apart*: it is no candidate for that server until it can again.
//!
//! Messages may be lost, doubled, delayed and reordered: claims are numbered, acknowledged and sent
//! again, and nothing is taken from an earlier run of a node. The machine never probes and never
//! touches a server; the check tasks of the proxy do, and ask it what their duty is.

mod board;
mod message;
#[cfg(test)]
mod simulation;

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use self::board::Board;
pub use self::message::{Claim, Kind, Message, Stance, Subject, Verdict};
use crate::time::Now;

/// Name of a node.
pub type NodeName = Arc<str>;

/// What a node is to do about a subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duty {
    /// Nothing yet: others may be about to tell.
    #[default]
    Wait,
    /// Probe it, and tell with [`Verdicts::observe`].
    Probe,
    /// Another node probes it.
    Follow,
}

/// Often enough that [`DEAD`] is several of them.
const BEAT: Duration = Duration::from_millis(250);
/// Unacknowledged claims are sent again.
const RETRY: Duration = Duration::from_millis(500);
/// A node that is not heard from for so long probes nothing any more, as far as others know.
pub const DEAD: Duration = Duration::from_millis(1500);
/// How long a started node waits to be taught before it probes.
const START: Duration = Duration::from_millis(1500);
/// How long a better candidate that is alive may take to claim: its configuration may not have the
/// server, or not the same check.
const PATIENCE: Duration = Duration::from_secs(2);
/// Claims in one message.
const CHUNK: usize = 500;

/// One node's part in sharing out probes.
#[derive(Debug)]
pub struct Verdicts {
    me: NodeName,
    incarnation: u64,
    started: Duration,
    peers: BTreeMap<NodeName, Peer>,
    mine: BTreeMap<Subject, Mine>,
    /// Of the last change of a claim of this node; 1 = none yet.
    version: u64,
    /// Versions up to here may be missing from `mine`: subjects that are gone.
    pruned: u64,
    outputs: VecDeque<(NodeName, Message)>,
    changed: bool,
}

/// Another node.
#[derive(Debug, Default)]
struct Peer {
    incarnation: u64,
    heard: Option<Duration>,
    /// Its claims are known up to this version; 0 = not at all.
    known: u64,
    claims: BTreeMap<Subject, Claim>,
    /// What it has of ours.
    acked: u64,
    sent: u64,
    sent_at: Duration,
    beat_at: Option<Duration>,
    /// It waits for an acknowledgement.
    owed: bool,
}

impl Peer {
    fn lives(&self, now: Duration) -> bool {
        self.heard.is_some_and(|heard| now < heard + DEAD)
    }

    fn claim(&self, subject: &Subject, stance: Stance) -> Option<&Claim> {
        self.claims.get(subject).filter(|c| c.stance == stance)
    }
}

/// A subject of this node.
#[derive(Debug, Default)]
struct Mine {
    wanted: bool,
    stance: Stance,
    verdict: Verdict,
    version: u64,
    duty: Duty,
    /// Since when a better candidate has been awaited.
    vacant: Option<Duration>,
}

impl Verdicts {
    /// The machine of node `me`; `incarnation` is larger than that of every earlier run.
    pub fn new(me: &str, incarnation: u64, now: Now) -> Verdicts {
        Verdicts {
            me: me.into(),
            incarnation,
            started: now.mono,
            peers: BTreeMap::new(),
            mine: BTreeMap::new(),
            version: 1,
            pruned: 0,
            outputs: VecDeque::new(),
            changed: false,
        }
    }

    /// The other nodes, as they are now.
    pub fn set_peers<'a>(&mut self, names: impl Iterator<Item = &'a str>, now: Now) {
        let names: Vec<NodeName> = names.filter(|n| **n != *self.me).map(Into::into).collect();
        self.peers.retain(|name, _| names.contains(name));
        for name in names {
            self.peers.entry(name).or_default();
        }
        self.decide(now);
    }

    /// What this node would probe if it were alone.
    pub fn set_subjects(&mut self, subjects: impl Iterator<Item = Subject>, now: Now) {
        self.mine.values_mut().for_each(|mine| mine.wanted = false);
        for subject in subjects {
            self.mine.entry(subject).or_default().wanted = true;
        }
        for mine in self.mine.values_mut().filter(|m| !m.wanted) {
            (mine.duty, mine.vacant) = (Duty::Wait, None);
            if std::mem::take(&mut mine.stance) != Stance::Idle {
                self.version += 1;
                mine.version = self.version;
            }
        }
        self.prune();
        self.decide(now);
    }

    /// What to do about a subject.
    pub fn duty(&self, subject: &Subject) -> Duty {
        self.mine.get(subject).map_or(Duty::Wait, |m| m.duty)
    }

    /// The claim of the node that probes a subject, when it is another.
    pub fn claim(&self, subject: &Subject, now: Now) -> Option<(&NodeName, &Claim)> {
        let claims = self.peers.iter().filter(|(_, p)| p.lives(now.mono));
        claims
            .filter_map(|(name, p)| Some((name, p.claim(subject, Stance::Probing)?)))
            .min_by_key(|(name, _)| rank(subject, name))
    }

    /// Tells what this node knows of a subject that is its duty: at first what it takes over, then
    /// what its probes find.
    pub fn observe(&mut self, subject: &Subject, verdict: Verdict) {
        let Some(mine) = self.mine.get_mut(subject).filter(|m| m.duty == Duty::Probe) else { return };
        let news = mine.stance != Stance::Probing || !mine.verdict.is_like(&verdict);
        mine.stance = Stance::Probing;
        mine.verdict = verdict;
        if news {
            self.version += 1;
            mine.version = self.version;
        }
    }

    /// This node alone cannot reach the server, or can again.
    pub fn set_apart(&mut self, subject: &Subject, apart: bool, now: Now) {
        let Some(mine) = self.mine.get_mut(subject).filter(|m| m.wanted) else { return };
        let stance = if apart { Stance::Apart } else { Stance::Idle };
        if mine.stance != stance {
            mine.stance = stance;
            self.version += 1;
            mine.version = self.version;
            self.decide(now);
        }
    }

    /// The node to ask before a server counts as down.
    pub fn second(&self, subject: &Subject, now: Now) -> Option<NodeName> {
        let able = self.peers.iter().filter(|(_, p)| p.lives(now.mono));
        let able = able.filter(|(_, p)| p.claim(subject, Stance::Apart).is_none());
        able.map(|(name, _)| name).min_by_key(|name| rank(subject, name)).cloned()
    }

    /// Whether the verdicts of the others are known as far as they can be.
    pub fn is_taught(&self, now: Now) -> bool {
        now.mono >= self.started + START || self.peers.values().all(|p| p.known > 0)
    }

    /// Names of the nodes that are heard from.
    pub fn live(&self, now: Now) -> impl Iterator<Item = &NodeName> {
        self.peers.iter().filter(move |(_, p)| p.lives(now.mono)).map(|(name, _)| name)
    }

    /// Takes a message of node `from`, in its run `incarnation`.
    pub fn handle(&mut self, from: &str, incarnation: u64, message: Message, now: Now) {
        let Some(peer) = self.peers.get_mut(from).filter(|p| p.incarnation <= incarnation) else { return };
        if peer.incarnation < incarnation {
            *peer = Peer { incarnation, beat_at: peer.beat_at, ..Peer::default() };
        }
        peer.heard = Some(now.mono);
        match message {
            Message::Beat { of, acked, .. } if of == self.incarnation => peer.acked = acked.min(self.version),
            Message::Beat { .. } => {}
            Message::Claims { base, upto, claims } => {
                peer.owed = true;
                if upto > peer.known && base <= peer.known {
                    if base == 0 {
                        peer.claims.clear();
                    }
                    for claim in claims {
                        match claim.stance {
                            Stance::Idle => _ = peer.claims.remove(&claim.subject),
                            _ => _ = peer.claims.insert(claim.subject.clone(), claim),
                        }
                    }
                    peer.known = upto;
                    self.changed = true;
                }
            }
        }
        self.tick(now);
    }

    /// Lets time pass; to be called several times a [`BEAT`], and after changes.
    pub fn tick(&mut self, now: Now) {
        self.decide(now);
        for (name, peer) in &mut self.peers {
            let from = match now.mono >= peer.sent_at + RETRY {
                false if peer.sent > peer.acked => peer.sent,
                _ if peer.acked < self.pruned => 0,
                _ => peer.acked,
            };
            if from < self.version {
                let mut news: Vec<_> = self.mine.iter().filter(|(_, m)| m.version > from).collect();
                news.sort_unstable_by_key(|(_, m)| m.version);
                let upto = news.get(CHUNK).map_or(self.version, |(_, next)| next.version - 1);
                let claims = news.into_iter().take(CHUNK).map(|(subject, m)| Claim {
                    subject: subject.clone(),
                    stance: m.stance,
                    verdict: m.verdict.clone(),
                    version: m.version,
                });
                let message = Message::Claims { base: from, upto, claims: claims.collect() };
                self.outputs.push_back((name.clone(), message));
                (peer.sent, peer.sent_at) = (upto, now.mono);
            }
            if std::mem::take(&mut peer.owed) || peer.beat_at.is_none_or(|at| now.mono >= at + BEAT) {
                peer.beat_at = Some(now.mono);
                let beat = Message::Beat { version: self.version, of: peer.incarnation, acked: peer.known };
                self.outputs.push_back((name.clone(), beat));
            }
        }
        self.check_invariants(now);
    }

    /// The next message to send, and to whom. One that can't be sent may be dropped.
    pub fn poll_output(&mut self) -> Option<(NodeName, Message)> {
        self.outputs.pop_front()
    }

    /// Whether a duty or somebody's claim changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn decide(&mut self, now: Now) {
        let ready = self.is_taught(now);
        for (subject, mine) in self.mine.iter_mut().filter(|(_, m)| m.wanted) {
            let duty = if ready { decide(&self.me, &self.peers, subject, mine, now) } else { Duty::Wait };
            if duty != Duty::Probe && mine.stance == Stance::Probing {
                mine.stance = Stance::Idle;
                self.version += 1;
                mine.version = self.version;
            }
            self.changed |= duty != mine.duty;
            mine.duty = duty;
        }
    }

    /// Forgets subjects that are gone and that every peer knows to be gone; when there are too many,
    /// all of them: who misses that gets everything anew.
    fn prune(&mut self) {
        let all_know = self.peers.values().map(|p| p.acked).min().unwrap_or(u64::MAX);
        let gone = self.mine.values().filter(|m| !m.wanted).count();
        let upto = if gone > CHUNK { u64::MAX } else { all_know };
        let pruned = &mut self.pruned;
        self.mine.retain(|_, m| {
            let keep = m.wanted || m.version > upto;
            if !keep {
                *pruned = (*pruned).max(m.version);
            }
            keep
        });
    }

    fn check_invariants(&self, now: Now) {
        if !cfg!(debug_assertions) {
            return;
        }
        assert!(self.mine.values().all(|m| m.version <= self.version));
        for (subject, mine) in &self.mine {
            assert!(mine.stance != Stance::Probing || mine.duty == Duty::Probe, "{subject:?}");
            let better = self.claim(subject, now).is_some_and(|(name, _)| before(subject, name, &self.me));
            assert!(!(mine.duty == Duty::Probe && better), "{subject:?}: two probe knowingly");
        }
    }
}

/// The duty of node `me`.
fn decide(
    me: &NodeName,
    peers: &BTreeMap<NodeName, Peer>,
    subject: &Subject,
    mine: &mut Mine,
    now: Now,
) -> Duty {
    let live = || peers.iter().filter(|(_, p)| p.lives(now.mono));
    let is_apart = |p: &Peer| p.claim(subject, Stance::Apart).is_some();
    let apart = mine.stance == Stance::Apart;
    let claimed = |(name, p): (&NodeName, &Peer)| {
        p.claim(subject, Stance::Probing).is_some() && (apart || before(subject, name, me))
    };
    if live().any(claimed) {
        mine.vacant = None;
        return Duty::Follow;
    }
    // When no node can reach the server, that is what is known of it, and the first says so.
    let nobody = apart && live().all(|(_, p)| is_apart(p));
    if apart && !nobody {
        return Duty::Follow;
    }
    let better = live().filter(|(name, p)| (nobody || !is_apart(p)) && before(subject, name, me)).count();
    let since = *mine.vacant.get_or_insert(now.mono);
    if better == 0 || mine.stance == Stance::Probing || now.mono >= since + PATIENCE * better as u32 {
        mine.vacant = None;
        return Duty::Probe;
    }
    Duty::Wait
}

/// Whether `a` is to probe rather than `b`.
fn before(subject: &Subject, a: &NodeName, b: &NodeName) -> bool {
    rank(subject, a) < rank(subject, b)
}

/// Rendezvous: the node with the highest score comes first. Not by how the server is checked, so
/// that a change of that does not move it.
fn rank<'a>(subject: &Subject, node: &'a NodeName) -> (Reverse<u64>, &'a NodeName) {
    let words = [subject.backend.as_bytes(), b"/", subject.server.as_bytes(), b"@", node.as_bytes()];
    let bytes = words.into_iter().flatten();
    let mut h =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    // FNV mixes upwards only; the finalizer of splitmix64 spreads every bit.
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (Reverse(h ^ (h >> 31)), node)
}
