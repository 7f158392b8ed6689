//! Changes of members: the leader takes one step after the other, as the engine's
//! [`membership`](phalanx_engine::membership) decides; commands ask for changes and wait for them.
//!
//! Nothing here is remembered: what is under way stands in the registry, so any leader goes on with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use openraft::{ChangeMembers, ServerState};
use phalanx_engine::membership::{Adopted, Step, View, next_step, quorum_without};
use phalanx_engine::registry::{Command, MemberCommand, Members, NewMember, Reply, Stage};
use phalanx_wire::raft::HelloReply;
use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;
use tracing::{info, warn};

use super::lost::{End, Said, Standing, Voter};
use super::types::Member;
use super::{Metrics, PROPOSE_WITHIN, ProposeError, Raft};
use crate::identity::node_id;

/// How far a node that becomes a voter may be behind.
const BEHIND: u64 = 64;

/// How long a node that leaves may take to give up its floating IPs and its places on servers.
const LET_GO_WITHIN: Duration = Duration::from_secs(10);

/// Between two looks at a change that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the leader remembers of a change between two steps: for people, and to be patient.
#[derive(Default)]
pub(crate) struct Progress {
    /// What it waits for.
    pub(super) waits: Option<String>,
    leaving: BTreeMap<String, Instant>,
    said: String,
}

/// What a node sees of the others.
struct Seen<'a> {
    metrics: &'a Metrics,
    hellos: BTreeMap<String, HelloReply>,
    patience: BTreeSet<String>,
}

impl Raft {
    /// Takes the next step of a change if this node leads.
    pub(super) async fn lead(&self) {
        let metrics = self.metrics();
        let mut progress = self.0.progress.lock().await;
        if metrics.state != ServerState::Leader || self.stopped().is_some() {
            *progress = Progress::default();
            return;
        }
        let registry = self.registry();
        let members = registry.members();
        if !members.founded() {
            self.found_members(&metrics).await;
            return;
        }
        progress.leaving.retain(|name, _| members.get(name).is_some_and(|m| m.stage == Stage::Leaving));
        for (name, _) in members.iter().filter(|(_, m)| m.stage == Stage::Leaving) {
            progress.leaving.entry(name.to_owned()).or_insert_with(Instant::now);
        }
        let late = progress.leaving.iter().filter(|(_, since)| since.elapsed() > LET_GO_WITHIN);
        let patience = late.map(|(name, _)| name.clone()).collect();
        let seen = Seen { metrics: &metrics, hellos: self.hellos(), patience };
        let step = next_step(members, &self.0.settings.node, &seen, self.0.settings.settle_wait());
        progress.waits = match &step {
            Step::Nothing => None,
            Step::Wait(why) => Some(why.clone()),
            step => Some(format!("{step:?}")),
        };
        if let Err(why) = self.carry_out(step, members).await
            && progress.said != why
        {
            warn!("cluster {}: changing the members: {why}", self.0.settings.name);
            progress.said = why;
        }
    }

    /// The first leader writes down who belongs to the cluster, and draws its id.
    async fn found_members(&self, metrics: &Metrics) {
        let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
        let nodes = self.0.settings.nodes.iter().filter(|n| voters.contains(&node_id(&n.name)));
        let nodes =
            nodes.map(|n| NewMember { name: n.name.clone(), addr: n.addr.clone(), witness: n.witness });
        // Never 0, which stands for none; and it fits a number of JSON.
        let id = rand::random_range(1..1_u64 << 53);
        let command = Command::Member(MemberCommand::Found { id, nodes: nodes.collect() });
        if let Err(error) = self.propose(command).await {
            warn!("cluster {}: founding it: {error}", self.0.settings.name);
        }
    }

    async fn carry_out(&self, step: Step, members: &Members) -> Result<(), String> {
        let core = &self.0.core;
        let member = |name: &str| Member { name: name.to_owned() };
        let change = match step {
            Step::Nothing | Step::Wait(_) => return Ok(()),
            Step::Commit(command) => {
                return match self.propose(Command::Member(command)).await {
                    Ok(Reply::Refused(why)) => Err(why),
                    Ok(_) => Ok(()),
                    Err(error) => Err(error.to_string()),
                };
            }
            Step::HandOver(name) => {
                info!("cluster {}: '{name}' is to lead, this node leaves", self.0.settings.name);
                return core.trigger().transfer_leader(node_id(&name)).await.map_err(|e| e.to_string());
            }
            Step::AddLearner(name) => {
                ChangeMembers::AddNodes(BTreeMap::from([(node_id(&name), member(&name))]))
            }
            Step::DropLearner(name) => ChangeMembers::RemoveNodes(BTreeSet::from([node_id(&name)])),
            Step::SetVoters(names) => {
                debug_assert!(names.iter().all(|n| members.get(n).is_some()));
                ChangeMembers::ReplaceAllVoters(names.iter().map(|n| node_id(n)).collect())
            }
        };
        match timeout(PROPOSE_WITHIN, core.change_membership(change, false)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no majority confirmed it in time".to_owned()),
        }
    }

    /// What each node last said of itself, this one included.
    fn hellos(&self) -> BTreeMap<String, HelloReply> {
        let others = self.0.peers.iter().filter(|p| p.reachable());
        let mut hellos: BTreeMap<String, HelloReply> =
            others.filter_map(|p| Some((p.name().to_string(), p.known().hello?))).collect();
        hellos.insert(self.0.settings.node.clone(), self.hello());
        hellos
    }

    /// Has a node join, and waits until it is a member.
    ///
    /// # Errors
    /// Why it does not, or what it waits for after `patience`.
    pub(crate) async fn join(
        &self,
        node: NewMember,
        replaces: Option<String>,
        patience: Duration,
    ) -> Result<String, String> {
        check_new(&node)?;
        let began = Instant::now();
        let name = node.name.clone();
        let joins = || {
            self.registry().members().get(&name).is_some_and(|m| {
                m.stage == Stage::Joining
                    && m.addr == node.addr
                    && m.witness == node.witness
                    && m.replaces == replaces
            })
        };
        // Asked again, it is waited for.
        if !joins() {
            if let Some(old) = &replaces {
                self.may_leave(old, Some(&name))?;
            }
            let witness = node.witness;
            let command = MemberCommand::Join { node: node.clone(), replaces: replaces.clone() };
            // It may have been asked before, by a command that this node had not carried out yet.
            self.command(command).await.or_else(|why| if joins() { Ok(()) } else { Err(why) })?;
            info!(
                "cluster {}: node '{name}' is to join{}",
                self.0.settings.name,
                if witness { " as witness" } else { "" }
            );
        }
        let done = |members: &Members| {
            let votes = members.get(&name).is_some_and(|m| m.votes());
            votes && replaces.as_ref().is_none_or(|old| members.get(old).is_none())
        };
        self.wait_for(&format!("node '{name}' joins"), began, patience, done).await?;
        let members = self.registry().members().voters().count();
        let took = began.elapsed().as_millis();
        Ok(match replaces {
            Some(old) => format!("Node '{name}' has replaced '{old}' after {took} ms; {members} nodes vote."),
            None => format!("Node '{name}' is a member after {took} ms; {members} nodes vote."),
        })
    }

    /// Has a node leave, and waits until it is gone.
    ///
    /// # Errors
    /// Why it does not, or what it waits for after `patience`.
    pub(crate) async fn leave(&self, name: &str, patience: Duration) -> Result<String, String> {
        let began = Instant::now();
        if self.registry().members().founded() && self.registry().members().get(name).is_none() {
            return Err(self.registry().members().unknown(name));
        }
        let leaves = || {
            let registry = self.registry();
            let members = registry.members();
            members.founded() && members.get(name).is_none_or(|m| m.stage == Stage::Leaving)
        };
        if !leaves() {
            self.may_leave(name, None)?;
            let asked = self.command(MemberCommand::Leave { name: name.to_owned() }).await;
            // As for one that joins.
            asked.or_else(|why| if leaves() { Ok(()) } else { Err(why) })?;
        }
        self.wait_for(&format!("node '{name}' leaves"), began, patience, |m| m.get(name).is_none()).await?;
        let members = self.registry().members().voters().count();
        Ok(format!("Node '{name}' has left after {} ms; {members} nodes vote.", began.elapsed().as_millis()))
    }

    /// Whether the cluster could go on without a node, as this node sees it.
    fn may_leave(&self, name: &str, successor: Option<&str>) -> Result<(), String> {
        let registry = self.registry();
        let members = registry.members();
        if members.get(name).is_none_or(|m| !m.votes()) || successor.is_some() {
            return Ok(());
        }
        let metrics = self.metrics();
        let seen = Seen { metrics: &metrics, hellos: self.hellos(), patience: BTreeSet::new() };
        quorum_without(members, name, &seen).map_err(|why| format!("Refused: {why}."))
    }

    async fn command(&self, command: MemberCommand) -> Result<(), String> {
        match self.propose(Command::Member(command)).await {
            Ok(Reply::Refused(why)) => Err(why),
            Ok(_) => Ok(()),
            Err(ProposeError::Refused(why)) => Err(format!("Refused: {why}.")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether those who vote in raft are those who are agreed on, and a majority of them knows it: until
    /// then, what the change took away still counts in majorities. A node that has no vote itself may
    /// never hear of it.
    fn votes_follow(&self) -> bool {
        let registry = self.registry();
        let agreed: BTreeSet<u64> = registry.members().voters().map(|(name, _)| node_id(name)).collect();
        let metrics = self.metrics();
        let configs = metrics.membership_config.membership().get_joint_config();
        let committed = *metrics.membership_config.log_id() <= metrics.local_committed;
        !agreed.contains(&self.0.id) || (committed && matches!(&configs[..], [only] if *only == agreed))
    }

    async fn wait_for(
        &self,
        what: &str,
        began: Instant,
        patience: Duration,
        done: impl Fn(&Members) -> bool,
    ) -> Result<(), String> {
        while !done(self.registry().members()) || !self.votes_follow() {
            if began.elapsed() >= patience {
                let waits = self.status().change.unwrap_or_else(|| "the leader is at it".to_owned());
                return Err(format!(
                    "After {} s {what} still: {waits}. It goes on; see show cluster.",
                    patience.as_secs()
                ));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// Whether a node could be called by this name at this address.
fn check_new(node: &NewMember) -> Result<(), String> {
    if node.name.is_empty() || !node.name.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!("'{}' is no name of a node.", node.name));
    }
    let port = node.addr.rsplit_once(':').and_then(|(host, port)| {
        Some(port.parse::<u16>().ok()?).filter(|port| *port > 0 && !host.is_empty())
    });
    if port.is_none() || Endpoint::from_shared(format!("http://{}", node.addr)).is_err() {
        return Err(format!("Invalid address '{}', expects host:port.", node.addr));
    }
    Ok(())
}

impl View for Seen<'_> {
    fn reachable(&self, node: &str) -> bool {
        self.hellos.contains_key(node)
    }

    fn adopted(&self, node: &str) -> Option<Adopted> {
        let hello = self.hellos.get(node)?;
        Some(Adopted { config: hello.lease_config, age: Duration::from_millis(hello.lease_config_ms) })
    }

    fn caught_up(&self, node: &str) -> bool {
        let id = node_id(node);
        let last = self.metrics.last_log_index.unwrap_or(0);
        let matched = self.metrics.replication.as_ref().and_then(|r| r.get(&id).cloned().flatten());
        matched.is_some_and(|m| m.index + BEHIND >= last)
    }

    fn keeps(&self, node: &str) -> Option<&'static str> {
        let hello = self.hellos.get(node).filter(|_| !self.patience.contains(node))?;
        match hello {
            h if h.holds > 0 => Some("floating IPs"),
            // The others pass packets on to members only.
            h if h.drains > 0 => Some("connections of floating IPs"),
            // It may not even know yet that it leaves.
            h if !h.gave_places_back => Some("places on servers"),
            _ => None,
        }
    }

    fn voters(&self) -> Option<BTreeSet<String>> {
        let membership = self.metrics.membership_config.membership();
        let [config] = &membership.get_joint_config()[..] else { return None };
        let name = |id: &u64| membership.get_node(id).map(|m| m.name.clone());
        Some(config.iter().filter_map(name).collect())
    }

    fn learners(&self) -> BTreeSet<String> {
        let membership = self.metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let learners = membership.nodes().filter(|(id, _)| !voters.contains(id));
        learners.map(|(_, m)| m.name.clone()).collect()
    }
}

impl Raft {
    /// How this node knows the other voters to stand, for one that has lost its disk and is asked for its
    /// vote.
    pub(super) fn standing(&self) -> Standing {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let registry = self.registry();
        let members = registry.members();
        let leaves = |name: &str| {
            members.founded()
                && (members.get(name).is_none_or(|m| m.stage == Stage::Leaving)
                    || members.iter().any(|(_, m)| m.replaces.as_deref() == Some(name)))
        };
        let voter = |id: u64| {
            let name = membership.get_node(&id).map(|m| m.name.clone()).unwrap_or_default();
            let peer = self.0.peers.by_id(id).filter(|p| p.reachable());
            let said = peer.and_then(|p| {
                let known = p.known();
                let (hello, seen) = (known.hello?, known.seen?);
                Some(Said {
                    ago_ms: u64::try_from(seen.elapsed().as_millis()).unwrap_or(u64::MAX),
                    whole: hello.whole,
                    leads: hello.state == "leader",
                    term: hello.term,
                    last: End { term: hello.last_term, next: hello.next_log },
                })
            });
            Voter { id, leaves: leaves(&name), name, said }
        };
        let others = membership.voter_ids().filter(|id| *id != self.0.id);
        let others = others.collect::<BTreeSet<u64>>().into_iter().map(voter).collect();
        Standing { whole: self.0.log.proven(), others }
    }

    /// What a change of members waits for, as the leader says.
    pub(super) fn waits(&self, leader: Option<u64>) -> Option<String> {
        if leader == Some(self.0.id) {
            return self.0.progress.try_lock().ok()?.waits.clone();
        }
        let hello = self.0.peers.by_id(leader?)?.known().hello?;
        Some(hello.change).filter(|change| !change.is_empty())
    }
}
