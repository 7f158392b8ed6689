//! The state machine under raft: the registry in memory, its snapshots as files.
//!
//! openraft drives it. After every batch of committed commands it hands the registry to the engine,
//! and only then answers the commands: whoever has the answer finds the node's state changed. A
//! snapshot is one file, replaced as a whole (written beside, synced, renamed, directory synced).

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use phalanx_engine::registry::{Registry, Reply};
use phalanx_sys::files;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::error;

use super::types::{
    FORMAT, LogId, Membership, Snapshot, SnapshotData, SnapshotMeta, Types, decode, encode, invalid,
};
use crate::identity::fnv1a;
use crate::roster::Roster;

const FILE: &str = "snapshot";
const MAGIC: &[u8] = b"PHXSNAP\n";

/// Called with the registry after it changed.
pub type OnRegistry = Box<dyn Fn(&Registry) + Send + Sync>;

/// Handle of the state machine.
#[derive(Clone)]
pub(crate) struct Machine(Arc<Shared>);

struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    on_registry: OnRegistry,
    /// Told of the members before anybody else; `None` in tests of the log alone.
    roster: Option<Roster>,
    /// Index of the last applied entry plus one.
    next: watch::Sender<u64>,
}

struct State {
    registry: Arc<Registry>,
    applied: Option<LogId>,
    membership: Membership,
    snapshot: Option<(SnapshotMeta, SnapshotData)>,
}

impl Machine {
    /// The state of the last snapshot in `dir`.
    ///
    /// # Errors
    /// The snapshot cannot be read. What it held is nowhere else on this node, so it is not skipped.
    pub(crate) fn open(dir: &Path, roster: Option<Roster>, on_registry: OnRegistry) -> io::Result<Machine> {
        let mut state = State {
            registry: Arc::default(),
            applied: None,
            membership: Membership::default(),
            snapshot: load(&dir.join(FILE))?,
        };
        if let Some((meta, data)) = &state.snapshot {
            state.registry = Arc::new(registry_of(data)?);
            state.applied = meta.last_log_id;
            state.membership = meta.last_membership.clone();
        }
        let next = watch::Sender::new(state.applied.map_or(0, |id| id.index + 1));
        let machine = Machine(Arc::new(Shared {
            dir: dir.to_owned(),
            state: Mutex::new(state),
            on_registry,
            roster,
            next,
        }));
        machine.announce();
        Ok(machine)
    }

    /// The registry as it is now.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        self.0.state.lock().registry.clone()
    }

    /// Index of the last applied entry plus one, and its changes.
    pub(crate) fn next(&self) -> watch::Receiver<u64> {
        self.0.next.subscribe()
    }

    /// Hands the registry to the engine, then lets those go on who wait for it.
    fn announce(&self) {
        let (registry, applied) = {
            let state = self.0.state.lock();
            (state.registry.clone(), state.applied)
        };
        // A fault in what others do with it must not end the agreement of this node.
        if catch_unwind(AssertUnwindSafe(|| (self.0.on_registry)(&registry))).is_err() {
            error!("bringing the state in line with the cluster's failed at command {}", registry.revision());
        }
        self.0.next.send_replace(applied.map_or(0, |id| id.index + 1));
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        let state = self.0.state.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut state = self.0.state.lock();
            let reply = match entry.payload {
                EntryPayload::Normal(request) => Arc::make_mut(&mut state.registry).apply_request(&request),
                EntryPayload::Membership(membership) => {
                    state.membership = Membership::new(Some(entry.log_id), membership);
                    Reply::Ok
                }
                EntryPayload::Blank => Reply::Ok,
            };
            state.applied = Some(entry.log_id);
            if let Some(responder) = responder {
                answers.push((responder, reply));
            }
        }
        self.take_members().await?;
        self.announce();
        for (responder, reply) in answers {
            responder.send(reply);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let state = self.0.state.lock();
        Builder {
            machine: self.clone(),
            registry: state.registry.clone(),
            meta: SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() },
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let registry = registry_of(&snapshot)?;
        self.keep(meta.clone(), snapshot).await?;
        {
            let mut state = self.0.state.lock();
            state.registry = Arc::new(registry);
            state.applied = meta.last_log_id;
            state.membership = meta.last_membership.clone();
        }
        self.take_members().await?;
        self.announce();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let state = self.0.state.lock();
        Ok(state.snapshot.clone().map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

impl Machine {
    /// Hands on who belongs to the cluster, which is stored before it counts.
    async fn take_members(&self) -> io::Result<()> {
        let registry = self.registry();
        match &self.0.roster {
            Some(roster) if registry.members().founded() => roster.take(registry.members()).await,
            _ => Ok(()),
        }
    }

    /// Makes this the current snapshot, on the disk first.
    async fn keep(&self, meta: SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        let dir = self.0.dir.clone();
        let (file_meta, file_data) = (meta.clone(), data.clone());
        spawn_blocking(move || store(&dir, &file_meta, &file_data)).await.map_err(io::Error::other)??;
        self.0.state.lock().snapshot = Some((meta, data));
        Ok(())
    }
}

/// A view of the state that becomes a snapshot.
pub(crate) struct Builder {
    machine: Machine,
    registry: Arc<Registry>,
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let snapshot = Bytes::from(encode(&*self.registry)?);
        self.machine.keep(self.meta.clone(), snapshot.clone()).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot })
    }
}

/// Replaces the snapshot file in `dir`.
fn store(dir: &Path, meta: &SnapshotMeta, data: &[u8]) -> io::Result<()> {
    let mut body = encode(&(FORMAT, meta))?;
    let head = (body.len() as u64).to_le_bytes();
    body.extend_from_slice(data);
    let sum = fnv1a(&body).to_le_bytes();
    files::replace(dir, FILE, &[MAGIC, &sum, &head, &body], false)
}

/// The registry of a snapshot, also of one that an earlier program wrote.
pub(super) fn registry_of(bytes: &[u8]) -> io::Result<Registry> {
    decode(bytes).or_else(|error| decode(&[bytes, Registry::LAST_EMPTY].concat()).map_err(|_| error))
}

/// The snapshot in the file, if there is one.
fn load(path: &Path) -> io::Result<Option<(SnapshotMeta, SnapshotData)>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let damaged = || invalid(format!("snapshot '{}' is damaged", path.display()));
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let (sum, rest) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
    let (head, body) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
    let head = usize::try_from(u64::from_le_bytes(*head)).map_err(|_| damaged())?;
    if fnv1a(body) != u64::from_le_bytes(*sum) || head > body.len() {
        return Err(damaged());
    }
    let (format, meta): (u32, SnapshotMeta) = decode(&body[..head])?;
    if format != FORMAT {
        return Err(invalid(format!("snapshot has format {format}, this program writes {FORMAT}")));
    }
    Ok(Some((meta, bytes.slice_ref(&body[head..]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_of_a_program_without_maintenance_is_read() {
        use phalanx_engine::registry::{Command, MaintenanceCommand};
        let mut registry = Registry::new();
        let plain = encode(&registry).unwrap();
        assert_eq!(registry_of(&plain).unwrap(), registry);
        let command = MaintenanceCommand { node: "n1".into(), on: true };
        registry.apply(&Command::Maintenance(command));
        let full = encode(&registry).unwrap();
        assert_eq!(registry_of(&full).unwrap(), registry);
        assert_eq!(full.len(), plain.len() + 4, "nothing is stored of what is empty");
        assert!(registry_of(&plain[..plain.len() - 1]).is_err());
    }

    #[test]
    fn a_snapshot_file_is_read_back_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(load(&path).unwrap().is_none());
        let meta = SnapshotMeta { last_log_id: None, last_membership: Membership::default() };
        store(dir.path(), &meta, b"registry").unwrap();
        let (read, data) = load(&path).unwrap().unwrap();
        assert_eq!((read, &data[..]), (meta, &b"registry"[..]));
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
}
