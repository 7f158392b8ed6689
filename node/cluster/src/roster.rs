//! Who belongs to the cluster, as this node knows it: what is agreed, or the configuration before that.
//!
//! The state machine hands over each list that was committed ([`Roster::take`]); it is stored in the
//! data directory before anybody acts on it, because a node must not fall back to an older one when
//! it restarts (see [`phalanx_engine::membership`]). From here it goes to the connections to the
//! peers, to the guard of the port and to the leases. Leases count over it only when this node knows
//! that it has all that was committed before it came ([`Roster::allow`]).

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;
use phalanx_engine::membership::Adopted;
use phalanx_engine::permits::{Desk, Part};
use phalanx_engine::registry::{Members, Stage};
use phalanx_sys::files;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::identity::{Guard, fnv1a};
use crate::peer::Peers;
use crate::raft::types::{FORMAT, decode, encode, invalid};
use crate::vip::Vips;
use crate::{Node, Settings};

const FILE: &str = "members";
const MAGIC: &[u8] = b"PHXMEMB\n";

/// Handle of the list.
#[derive(Clone)]
pub(crate) struct Roster(Arc<Inner>);

struct Inner {
    settings: Arc<Settings>,
    peers: Peers,
    guard: Guard,
    vips: Option<Vips>,
    desk: Arc<Desk>,
    state: Mutex<State>,
}

struct State {
    members: Arc<Members>,
    /// Whether leases count over it.
    allowed: bool,
    /// Since when this node has this configuration.
    since: Instant,
}

impl Roster {
    /// The list that this node knew last.
    ///
    /// # Errors
    /// The file is there, but cannot be used.
    pub(crate) fn open(
        settings: Arc<Settings>,
        peers: Peers,
        guard: Guard,
        vips: Option<Vips>,
        desk: Arc<Desk>,
    ) -> io::Result<Roster> {
        let (members, allowed) = load(&settings.data_dir.join(FILE))?.unwrap_or_default();
        let state = State { members: Arc::new(members), allowed, since: Instant::now() };
        let state = Mutex::new(state);
        let roster = Roster(Arc::new(Inner { settings, peers, guard, vips, desk, state }));
        roster.spread();
        roster.compare();
        Ok(roster)
    }

    /// What is agreed, as far as this node knows.
    pub(crate) fn members(&self) -> Arc<Members> {
        self.0.state.lock().members.clone()
    }

    /// All nodes: what is agreed, or what the configuration says before that.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        nodes_of(&self.members(), &self.0.settings)
    }

    /// Whether this node was a member and is none any more.
    pub(crate) fn left(&self) -> bool {
        let members = self.members();
        members.founded() && members.get(&self.0.settings.node).is_none()
    }

    /// What this node's leases have left behind.
    pub(crate) fn adopted(&self) -> Adopted {
        if let Some(vips) = &self.0.vips {
            return vips.adopted();
        }
        let state = self.0.state.lock();
        match state.allowed {
            true => Adopted { config: state.members.config(), age: state.since.elapsed() },
            false => Adopted::default(),
        }
    }

    /// How many floating IPs this node holds.
    pub(crate) fn holds(&self) -> usize {
        self.0.vips.as_ref().map_or(0, Vips::held)
    }

    /// How many it has moved away, whose connections go on here.
    pub(crate) fn drains(&self) -> usize {
        self.0.vips.as_ref().map_or(0, Vips::draining)
    }

    /// Who may use how many places.
    pub(crate) fn desk(&self) -> &Arc<Desk> {
        &self.0.desk
    }

    /// Tells the desk who is there, and what this node is among them: to be called several times a second.
    /// A node that leaves keeps its places until its floating IPs are elsewhere, for those that come over
    /// them.
    pub(crate) fn share_out(&self) {
        let (members, node) = (self.members(), &self.0.settings.node);
        let part = match members.get(node) {
            _ if !members.founded() => Part::Outside,
            Some(m) if m.stage == Stage::Leaving && self.holds() == 0 => Part::Leaving,
            Some(_) => Part::Member,
            None => Part::Gone,
        };
        let nodes = nodes_of(&members, &self.0.settings);
        self.0.desk.follow(nodes.iter().filter(|n| !n.witness).map(|n| &*n.name), part);
    }

    /// Whether this node leaves, and has no places on servers any more.
    pub(crate) fn has_given_back(&self) -> bool {
        self.0.desk.has_given_back()
    }

    /// Takes over a list that was committed.
    ///
    /// # Errors
    /// It cannot be stored; then it is not used either.
    pub(crate) async fn take(&self, members: &Members) -> io::Result<()> {
        let (known, allowed) = {
            let state = self.0.state.lock();
            (state.members.clone(), state.allowed)
        };
        // A log that is opened again begins with its snapshot.
        if members.version() <= known.version() {
            return Ok(());
        }
        self.store(members.clone(), allowed).await?;
        {
            let mut state = self.0.state.lock();
            if state.members.config() != members.config() {
                state.since = Instant::now();
            }
            state.members = Arc::new(members.clone());
        }
        self.report(&known, members);
        self.spread();
        if !known.founded() {
            self.compare();
        }
        Ok(())
    }

    /// This node has all that was committed before it came: its leases count over the list from now on,
    /// and over each later one.
    pub(crate) async fn allow(&self) {
        let members = {
            let state = self.0.state.lock();
            if state.allowed || !state.members.founded() {
                return;
            }
            state.members.clone()
        };
        if let Err(error) = self.store(Members::clone(&members), true).await {
            warn!("cluster {}: the list of members cannot be stored: {error}", self.0.settings.name);
            self.set_waiting(&format!("the list of members cannot be stored: {error}"));
            return;
        }
        {
            let mut state = self.0.state.lock();
            (state.allowed, state.since) = (true, Instant::now());
        }
        self.spread();
    }

    /// Why leases do not count over the list yet, for people.
    pub(crate) fn set_waiting(&self, why: &str) {
        let allowed = self.0.state.lock().allowed;
        if let (Some(vips), false) = (&self.0.vips, allowed) {
            vips.set_waiting(Some(why.to_owned()));
        }
    }

    async fn store(&self, members: Members, allowed: bool) -> io::Result<()> {
        let dir = self.0.settings.data_dir.clone();
        spawn_blocking(move || store(&dir, &members, allowed)).await.map_err(io::Error::other)?
    }

    /// Tells everybody here.
    fn spread(&self) {
        let Inner { settings, peers, guard, vips, state, .. } = &*self.0;
        let (members, allowed) = {
            let state = state.lock();
            (state.members.clone(), state.allowed)
        };
        settings.cluster_id.store(members.cluster_id(), Ordering::Relaxed);
        settings.members.store(members.version(), Ordering::Relaxed);
        let nodes = nodes_of(&members, settings);
        guard.follow(&nodes, members.founded());
        peers.follow(settings, &nodes);
        if let Some(vips) = vips {
            let leaving = members.get(&settings.node).is_some_and(|m| m.stage == Stage::Leaving);
            vips.set_leaving(leaving);
            if allowed {
                vips.set_waiting(None);
                vips.follow(&members);
            }
        }
    }

    fn report(&self, before: &Members, after: &Members) {
        let cluster = &self.0.settings.name;
        let stage = |members: &Members, name: &str| members.get(name).map(|m| m.stage);
        let mut names: Vec<&str> = before.iter().chain(after.iter()).map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let what = match (stage(before, name), stage(after, name)) {
                (was, is) if was == is => continue,
                (_, Some(Stage::Joining)) => "joins",
                (_, Some(Stage::Voter)) => "is a member",
                (_, Some(Stage::Leaving)) => "is to leave",
                (_, None) => "is no member any more",
            };
            info!("cluster {cluster}: node '{name}' {what}");
        }
        if before.get(&self.0.settings.node).is_some() && after.get(&self.0.settings.node).is_none() {
            warn!(
                "cluster {cluster}: this node has left; it forwards on with what it knows, takes no runtime \
                 commands and holds no floating IP"
            );
        }
    }

    /// Says where the configuration differs from what is agreed, and what to do about it.
    pub(crate) fn compare(&self) {
        for line in differences(&self.members(), &self.0.settings) {
            warn!("cluster {}: {line}", self.0.settings.name);
        }
    }
}

/// Where the `cluster` section differs from what is agreed.
pub(crate) fn differences(members: &Members, settings: &Settings) -> Vec<String> {
    let mut lines = Vec::new();
    if !members.founded() {
        return lines;
    }
    for node in &settings.nodes {
        let (name, addr) = (&node.name, &node.addr);
        let role = if node.witness { " witness" } else { "" };
        match members.get(name) {
            None => lines.push(format!(
                "node '{name}' of the 'cluster' section is no member: 'cluster join {name} {addr}{role}' makes it one"
            )),
            Some(m) if m.addr != *addr || m.witness != node.witness => lines.push(format!(
                "node '{name}' is a member at {}{}, the 'cluster' section says {addr}{role}: what is agreed counts; \
                 'cluster leave {name}' and 'cluster join {name} {addr}{role}' change it",
                m.addr,
                if m.witness { " as witness" } else { "" },
            )),
            Some(_) => {}
        }
    }
    for (name, m) in members.iter() {
        if !settings.nodes.iter().any(|n| n.name == name) {
            lines.push(format!(
                "member '{name}' at {} is not in the 'cluster' section: what is agreed counts; \
                 'cluster leave {name}' removes it",
                m.addr
            ));
        }
    }
    lines
}

fn nodes_of(members: &Members, settings: &Settings) -> Vec<Node> {
    if !members.founded() {
        return settings.nodes.clone();
    }
    let node = |(name, m): (&str, &phalanx_engine::registry::Member)| Node {
        name: name.to_owned(),
        addr: m.addr.clone(),
        witness: m.witness,
    };
    members.iter().map(node).collect()
}

fn store(dir: &Path, members: &Members, allowed: bool) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let body = encode(&(FORMAT, members, allowed))?;
    files::replace(dir, FILE, &[MAGIC, &fnv1a(&body).to_le_bytes(), &body], false)
}

fn load(path: &Path) -> io::Result<Option<(Members, bool)>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let damaged = || invalid(format!("list of members '{}' is damaged", path.display()));
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let (sum, body) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
    if fnv1a(body) != u64::from_le_bytes(*sum) {
        return Err(damaged());
    }
    let (format, members, allowed): (u32, Members, bool) = decode(body).map_err(|_| damaged())?;
    if format != FORMAT {
        return Err(invalid(format!("list of members has format {format}, this program writes {FORMAT}")));
    }
    Ok(Some((members, allowed)))
}

#[cfg(test)]
mod tests {
    use phalanx_engine::registry::{Command, MemberCommand, NewMember, Registry};

    use super::*;

    fn members(names: &[&str]) -> Members {
        let new = |n: &&str| NewMember { name: (*n).into(), addr: format!("{n}:1"), witness: false };
        let nodes = names.iter().map(new).collect();
        let mut registry = Registry::new();
        registry.apply(&Command::Member(MemberCommand::Found { id: 5, nodes }));
        registry.members().clone()
    }

    #[test]
    fn the_list_is_read_back_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(load(&path).unwrap().is_none());
        let list = members(&["n1", "n2"]);
        store(dir.path(), &list, true).unwrap();
        assert_eq!(load(&path).unwrap(), Some((list, true)));
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(load(&path).is_err(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(load(&path).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_section_that_differs_is_told_with_the_command_that_helps() {
        let node = |name: &str, addr: &str| Node { name: name.into(), addr: addr.into(), witness: false };
        let nodes = vec![node("n1", "n1:1"), node("n2", "other:1"), node("n4", "n4:1")];
        let settings = Settings { nodes, ..Settings::default() };
        assert_eq!(differences(&Members::default(), &settings), [""; 0]);
        let lines = differences(&members(&["n1", "n2", "n3"]), &settings);
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(lines[0].contains("n2") && lines[0].contains("what is agreed counts"), "{}", lines[0]);
        assert!(lines[1].contains("'cluster join n4 n4:1' makes it one"), "{}", lines[1]);
        assert!(lines[2].contains("'cluster leave n3' removes it"), "{}", lines[2]);
    }
}
