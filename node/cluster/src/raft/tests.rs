//! openraft's conformance suite over the durable log and the state machine.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::log::LogStore;
use super::log::tests::Disk;
use super::machine::Machine;
use super::types::Types;

struct Build;

impl StoreBuilder<Types, LogStore, Machine, TempDir> for Build {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let log = Disk::default().open();
        let machine = Machine::open(dir.path(), None, Box::new(|_| {})).unwrap();
        Ok((dir, log, machine))
    }
}

#[tokio::test]
async fn log_and_state_machine_conform() {
    Suite::test_all(Build).await.unwrap();
}
