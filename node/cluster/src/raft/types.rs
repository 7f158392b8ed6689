//! What openraft is told about our types, and how they are stored and sent: postcard.
//!
//! postcard stores by position. Whoever changes a type that ends up in the log, in a snapshot or in
//! a [`Payload`](phalanx_wire::raft::Payload) changes [`FORMAT`] or [`PROTOCOL`](crate::PROTOCOL).

use std::fmt;
use std::io;

use openraft::type_config::alias::{
    EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf,
};
use phalanx_engine::registry;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of what is on the disk.
pub(crate) const FORMAT: u32 = 6;

openraft::declare_raft_types!(
    /// openraft's view of the cluster.
    pub(crate) Types:
        D = registry::Request,
        R = registry::Reply,
        NodeId = u64,
        Node = Member,
);

/// A member of the cluster as the log knows it. Where it is reached is each node's own configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Its name.
    pub(crate) name: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

pub(crate) type Entry = EntryOf<Types>;
pub(crate) type LogId = LogIdOf<Types>;
pub(crate) type Vote = VoteOf<Types>;
pub(crate) type Membership = StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = SnapshotMetaOf<Types>;
/// Snapshots are small: the registry of one cluster.
pub(crate) type SnapshotData = bytes::Bytes;
pub(crate) type Snapshot = SnapshotOf<Types, SnapshotData>;

/// Serializes.
pub(crate) fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(io::Error::other)
}

/// Deserializes; all bytes have to be used.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(invalid(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(invalid(error.to_string())),
    }
}

/// An error about bytes that do not mean anything.
pub(crate) fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
