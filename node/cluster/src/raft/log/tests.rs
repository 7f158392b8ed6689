//! The log over a disk that crashes and fails at will.

use std::sync::Arc;

use openraft::entry::RaftEntry;
use openraft::storage::RaftLogStorageExt;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, vote::leader_id_adv::LeaderId};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;

use super::*;

/// A disk in memory that knows what would be left of it after a crash.
#[derive(Clone, Debug, Default)]
pub(in crate::raft) struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
pub(in crate::raft) struct Platter {
    /// As the program sees it.
    now: Vec<u8>,
    /// As it was at the last sync.
    synced: Vec<u8>,
    /// What was written since.
    since: Vec<Unsynced>,
    syncs: usize,
    broken: bool,
}

#[derive(Debug)]
enum Unsynced {
    Len(usize),
    Write(usize, Vec<u8>),
}

impl Unsynced {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Unsynced::Len(len) => bytes.resize(*len, 0),
            Unsynced::Write(at, data) => {
                if bytes.len() < at + data.len() {
                    bytes.resize(at + data.len(), 0);
                }
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
        }
    }
}

impl Disk {
    /// What is left after a crash: everything synced, and any part of what was not.
    fn crash(&self, rng: &mut StdRng) -> Disk {
        let platter = self.0.lock();
        let mut left = platter.synced.clone();
        for write in &platter.since {
            if rng.random_bool(0.5) {
                write.apply(&mut left);
            }
        }
        Disk(Arc::new(Mutex::new(Platter { now: left.clone(), synced: left, ..Platter::default() })))
    }

    pub(in crate::raft) fn open(&self) -> LogStore {
        LogStore::over(Database::builder().create_with_backend(self.clone()).unwrap(), "test").unwrap()
    }

    fn write_op(&self, write: Unsynced) -> io::Result<()> {
        let mut platter = self.0.lock();
        if platter.broken {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device"));
        }
        let Platter { now, since, .. } = &mut *platter;
        write.apply(now);
        since.push(write);
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock();
        let end = offset as usize + out.len();
        let bytes = platter.now.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write_op(Unsynced::Len(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock();
        if platter.broken {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device"));
        }
        platter.synced = platter.now.clone();
        platter.since.clear();
        platter.syncs += 1;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_op(Unsynced::Write(offset as usize, data.to_vec()))
    }
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId::new(term, 1), index }
}

fn entry(term: u64, index: u64) -> Entry {
    Entry { log_id: log_id(term, index), payload: EntryPayload::Blank }
}

/// Everything that the log says it has.
async fn content(log: &mut LogStore) -> (Option<Vote>, Option<LogId>, Vec<LogId>) {
    let purged = log.get_log_state().await.unwrap().last_purged_log_id;
    let entries = log.try_get_log_entries(..).await.unwrap();
    (log.read_vote().await.unwrap(), purged, entries.iter().map(RaftEntry::log_id).collect())
}

#[tokio::test]
async fn whatever_was_reported_done_survives_a_crash() {
    for seed in 0..30 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut disk = Disk::default();
        let mut log = disk.open();
        let (mut first, mut next, mut term) = (0, 0, 1);
        for step in 0..60 {
            match rng.random_range(0..12) {
                0..2 => {
                    term += 1;
                    log.save_vote(&Vote::new(term, rng.random_range(1..4))).await.unwrap();
                }
                2..8 => {
                    let upto = next + rng.random_range(1..5);
                    log.blocking_append((next..upto).map(|i| entry(term, i))).await.unwrap();
                    next = upto;
                }
                8 => {
                    next = rng.random_range(first..=next);
                    let last = next.checked_sub(1).map(|i| log_id(term, i));
                    log.truncate_after(last).await.unwrap();
                }
                9 if first < next => {
                    first = rng.random_range(first..next) + 1;
                    log.purge(log_id(term, first - 1)).await.unwrap();
                }
                _ => {
                    let before = content(&mut log).await;
                    let left = disk.crash(&mut rng);
                    drop(log);
                    disk = left;
                    log = disk.open();
                    assert_eq!(content(&mut log).await, before, "seed {seed}, step {step}");
                }
            }
        }
    }
}

#[tokio::test]
async fn writes_that_wait_together_share_a_sync() {
    let disk = Disk::default();
    let log = disk.open();
    let before = disk.0.lock().syncs;
    let writes = (0..200).map(|n| {
        let mut log = log.clone();
        tokio::spawn(async move { log.save_vote(&Vote::new(n, 1)).await })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap().unwrap();
    }
    let syncs = disk.0.lock().syncs - before;
    assert!((1..100).contains(&syncs), "{syncs} syncs for 200 writes");
}

#[tokio::test]
async fn after_a_disk_error_every_write_fails_and_reads_go_on() {
    let disk = Disk::default();
    let mut log = disk.open();
    log.blocking_append([entry(1, 0)]).await.unwrap();
    disk.0.lock().broken = true;
    let error = log.save_vote(&Vote::new(2, 1)).await.unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(log.blocking_append([entry(1, 1)]).await.is_err());
    // Also once there would be room again: what was not written is missing from the middle.
    disk.0.lock().broken = false;
    assert!(log.save_vote(&Vote::new(3, 1)).await.is_err());
    assert_eq!(log.read_vote().await.unwrap(), None, "a vote that was not stored was not cast");
    assert_eq!(log.try_get_log_entries(0..1).await.unwrap().len(), 1);
}
