//! The durable log: entries, vote and committed position in one redb file.
//!
//! One thread owns the file. It takes whatever is waiting, writes it in one transaction, and reports
//! each part done after the one fsync of its commit: nothing that raft may rely on (a vote, an
//! appended entry) is reported before it is on the disk. The log is short (what snapshots do not yet
//! cover), so a copy in memory serves all reads.
//!
//! After a disk error every later write fails with it: raft stops on this node, commands are refused,
//! and the forwarding plane does not notice. The `seat` opens the log anew when the disk works again.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::RwLock;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::types::{Entry, FORMAT, LogId, Types, Vote, decode, encode, invalid};

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

const FILE: &str = "raft.redb";

/// Writes waiting for the thread; more wait at the sender.
const WAITING: usize = 1024;

/// Writes in one transaction.
const BATCH: usize = 256;

/// redb's own default is a gigabyte.
const CACHE: usize = 4 << 20;

/// Handle of the log; reader and writer at once.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    copy: Arc<RwLock<Copy>>,
    writes: mpsc::Sender<Write>,
}

/// What is, or is about to be, in the file.
#[derive(Debug, Default)]
struct Copy {
    log: BTreeMap<u64, Entry>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    proven: bool,
}

/// One write, and whom to tell when it is on the disk.
enum Write {
    Meta(&'static str, Vec<u8>, Done),
    Append(Vec<(u64, Vec<u8>)>, IOFlushed<Types>),
    /// Removes the entries from this index on.
    Truncate(u64, Done),
    /// Removes the entries up to this index; what was purged last.
    Purge(u64, Vec<u8>, Done),
}

type Done = Option<oneshot::Sender<io::Result<()>>>;

impl LogStore {
    /// Opens or creates the log in `dir`, for the node `owner` only.
    ///
    /// # Errors
    /// The directory cannot be used, or it is another node's.
    pub(crate) fn open(dir: &Path, owner: &str) -> io::Result<LogStore> {
        fs::create_dir_all(dir)?;
        let path = dir.join(FILE);
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        let db = builder.create(&path).map_err(disk)?;
        // redb syncs the file but not the directory's entry for it.
        File::open(dir)?.sync_all()?;
        LogStore::over(db, owner)
    }

    fn over(db: Database, owner: &str) -> io::Result<LogStore> {
        prepare(&db, owner)?;
        let copy = Arc::new(RwLock::new(read(&db)?));
        let (writes, waiting) = mpsc::channel(WAITING);
        thread::Builder::new().name("raft-log".into()).spawn(move || write_all(&db, waiting))?;
        Ok(LogStore { copy, writes })
    }

    /// Whether this node is known to have had everything that the cluster had committed. Not so for
    /// a node whose disk was lost: its vote must not help to elect a leader.
    pub(crate) fn proven(&self) -> bool {
        self.copy.read().proven
    }

    /// Its last entry, on the disk or about to be.
    pub(crate) fn last(&self) -> Option<LogId> {
        let copy = self.copy.read();
        copy.log.last_key_value().map(|(_, entry)| entry.log_id()).or(copy.purged)
    }

    /// Stores that it has.
    pub(crate) async fn prove(&self) -> io::Result<()> {
        self.meta("proven", &true).await?;
        self.copy.write().proven = true;
        Ok(())
    }

    async fn meta<T: serde::Serialize>(&self, key: &'static str, value: &T) -> io::Result<()> {
        let bytes = encode(value)?;
        self.wait(|done| Write::Meta(key, bytes, done)).await
    }

    async fn wait(&self, write: impl FnOnce(Done) -> Write) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.writes.send(write(Some(done))).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        // An empty range, however it is written; BTreeMap would panic on it.
        let start = match range.start_bound() {
            Bound::Included(i) => *i,
            Bound::Excluded(i) => i.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let copy = self.copy.read();
        Ok(copy.log.range(start..).take_while(|(i, _)| range.contains(i)).map(|(_, e)| e.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.copy.read().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let (last, purged) = (self.last(), self.copy.read().purged);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.meta("vote", vote).await?;
        self.copy.write().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // Not waited for: losing it costs a wait for the leader after a restart, and nothing else.
        let write = Write::Meta("committed", encode(&committed)?, None);
        self.writes.send(write).await.map_err(|_| gone())?;
        self.copy.write().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.copy.read().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let encoded = entries.iter().map(|e| Ok((e.log_id().index, encode(e)?)));
        let encoded = encoded.collect::<io::Result<Vec<_>>>()?;
        self.copy.write().log.extend(entries.into_iter().map(|e| (e.log_id().index, e)));
        self.writes.send(Write::Append(encoded, callback)).await.map_err(|_| gone())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |id| id.index + 1);
        self.copy.write().log.split_off(&from);
        self.wait(|done| Write::Truncate(from, done)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        {
            let mut copy = self.copy.write();
            copy.purged = copy.purged.max(Some(upto));
            copy.log = copy.log.split_off(&(upto.index + 1));
        }
        let purged = encode(&Some(upto))?;
        self.wait(|done| Write::Purge(upto.index, purged, done)).await
    }
}

/// The thread: writes what is waiting until every handle is gone.
fn write_all(db: &Database, mut waiting: mpsc::Receiver<Write>) {
    let mut failed: Option<io::Error> = None;
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(first) = waiting.blocking_recv() {
        batch.push(first);
        while batch.len() < BATCH
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        if failed.is_none()
            && let Err(error) = commit(db, &batch)
        {
            error!("the raft log cannot be written: {error}");
            failed = Some(error);
        }
        for write in batch.drain(..) {
            let result = match &failed {
                None => Ok(()),
                Some(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            match write {
                Write::Append(_, flushed) => flushed.io_completed(result),
                Write::Meta(_, _, done) | Write::Truncate(_, done) | Write::Purge(_, _, done) => {
                    // Whoever asked may be gone.
                    let _ = done.map(|done| done.send(result));
                }
            }
        }
    }
}

fn commit(db: &Database, batch: &[Write]) -> io::Result<()> {
    let mut txn = db.begin_write().map_err(disk)?;
    txn.set_durability(Durability::Immediate).map_err(disk)?;
    {
        let mut log = txn.open_table(LOG).map_err(disk)?;
        let mut meta = txn.open_table(META).map_err(disk)?;
        for write in batch {
            match write {
                Write::Meta(key, value, _) => {
                    meta.insert(*key, value.as_slice()).map_err(disk)?;
                }
                Write::Append(entries, _) => {
                    for (index, entry) in entries {
                        log.insert(index, entry.as_slice()).map_err(disk)?;
                    }
                }
                Write::Truncate(from, _) => log.retain_in::<u64, _>(*from.., |_, _| false).map_err(disk)?,
                Write::Purge(upto, purged, _) => {
                    log.retain_in::<u64, _>(..=*upto, |_, _| false).map_err(disk)?;
                    meta.insert("purged", purged.as_slice()).map_err(disk)?;
                }
            }
        }
    }
    txn.commit().map_err(disk)
}

/// Creates the tables, and makes sure that the file is this node's.
fn prepare(db: &Database, owner: &str) -> io::Result<()> {
    let txn = db.begin_write().map_err(disk)?;
    {
        txn.open_table(LOG).map_err(disk)?;
        let mut meta = txn.open_table(META).map_err(disk)?;
        let ours = encode(&(FORMAT, owner))?;
        let theirs = meta.get("owner").map_err(disk)?.map(|v| v.value().to_vec());
        match theirs {
            None => {
                meta.insert("owner", ours.as_slice()).map_err(disk)?;
            }
            Some(theirs) if theirs == ours => {}
            Some(theirs) => {
                let reason = match decode::<(u32, String)>(&theirs) {
                    Ok((FORMAT, name)) => format!("it belongs to {name}, not to {owner}"),
                    Ok((format, _)) => format!("it has format {format}, this program writes {FORMAT}"),
                    Err(error) => format!("its owner cannot be read: {error}"),
                };
                return Err(invalid(reason));
            }
        }
    }
    txn.commit().map_err(disk)
}

fn read(db: &Database) -> io::Result<Copy> {
    let txn = db.begin_read().map_err(disk)?;
    let meta = txn.open_table(META).map_err(disk)?;
    let log = txn.open_table(LOG).map_err(disk)?;
    let get = |key: &str| -> io::Result<Option<Vec<u8>>> {
        Ok(meta.get(key).map_err(disk)?.map(|v| v.value().to_vec()))
    };
    let mut copy = Copy::default();
    if let Some(bytes) = get("vote")? {
        copy.vote = Some(decode(&bytes)?);
    }
    if let Some(bytes) = get("purged")? {
        copy.purged = decode(&bytes)?;
    }
    if let Some(bytes) = get("committed")? {
        copy.committed = decode(&bytes)?;
    }
    if let Some(bytes) = get("proven")? {
        copy.proven = decode(&bytes)?;
    }
    for item in log.iter().map_err(disk)? {
        let (index, bytes) = item.map_err(disk)?;
        copy.log.insert(index.value(), decode(bytes.value())?);
    }
    Ok(copy)
}

/// redb's error as what the system said, where it was the system.
fn disk(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

fn gone() -> io::Error {
    io::Error::other("the log's thread has ended")
}

#[cfg(test)]
pub(super) mod tests;
