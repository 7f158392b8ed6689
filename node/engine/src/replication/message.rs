//! What peers say to each other. `proto/peers.proto` is the same on the wire, and documents it.

use bytes::Bytes;
use phalanx_config::model::KeyType;

/// Version of the conversation; a peer with another one is refused.
pub const VERSION: u32 = 2;

/// One message between two peers.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// First on every stream, both ways.
    Hello(Hello),
    /// A table of the sender, numbered for this stream.
    Define(Define),
    /// A node's run that slots of later batches name by `id`. The sender itself is 0.
    Origin {
        /// Number on this stream.
        id: u16,
        /// Name of the node.
        node: String,
        /// Its run.
        incarnation: u64,
        /// What the sender thinks that its clock reads, in milliseconds.
        clock: u32,
    },
    /// Entries of one table.
    Batch(Batch),
    /// All batches up to this number are merged.
    Ack {
        /// Number of the last one.
        upto: u64,
    },
    /// Teach me everything that you know of this table.
    Teach {
        /// Its name.
        table: String,
        /// The sender begins from nothing: until it is taught only new changes are news to it.
        scratch: bool,
        /// Only what earlier runs of the sender counted, so that it can take it over.
        past: bool,
    },
    /// That was everything.
    Taught {
        /// Name of the table.
        table: String,
        /// Whether the sender knew all itself.
        complete: bool,
        /// It answers a [`Message::Teach`] of the past only.
        past: bool,
    },
    /// Whatever began up to `at` in a table is cleared.
    Floor {
        /// The sender's number of the table.
        table: u32,
        /// Hybrid logical clock.
        at: u64,
    },
    /// Every second.
    Heartbeat {
        /// The sender's clock in milliseconds.
        clock: u32,
        /// Content digests of the tables that were quiet, by the sender's number.
        digests: Vec<(u32, u64)>,
    },
}

/// Who is there, and what it has of the receiver.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the sender.
    pub node: String,
    /// Its run.
    pub incarnation: u64,
    /// Its clock in milliseconds.
    pub clock: u32,
    /// The run of the receiver that `had` speaks of.
    pub of: u64,
    /// How far into the receiver's update logs it has come.
    pub had: Vec<Had>,
}

/// A position in the update log of one table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Had {
    /// Name.
    pub table: String,
    /// Which table of that name.
    pub epoch: u64,
    /// By shard of the sender of the updates.
    pub shards: Vec<u64>,
}

/// A table of the sender.
#[derive(Clone, Debug, PartialEq)]
pub struct Define {
    /// Number on this stream.
    pub id: u32,
    /// Name.
    pub name: String,
    /// Key type by HAProxy's number for it.
    pub key: u32,
    /// Longest key of a string table.
    pub key_len: u32,
    /// Data types and, for rates, periods in milliseconds.
    pub columns: Vec<(String, u32)>,
    /// Its update log comes in so many shards.
    pub shards: u32,
    /// Which table of that name.
    pub epoch: u64,
    /// As [`Message::Floor`].
    pub floor: u64,
}

/// Entries of one table, merged in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Counts up from 1 on every stream.
    pub number: u64,
    /// The sender's number of the table.
    pub table: u32,
    /// Shards of the update log, each with the position that is reached in it; empty when teaching.
    pub positions: Vec<(u32, u64)>,
    /// The sender's clock in milliseconds when it cut the batch.
    pub clock: u32,
    /// How many entries.
    pub count: u32,
    /// The entries, encoded.
    pub entries: Bytes,
}

/// Number and longest key of a key type, as HAProxy's peers protocol numbers them.
pub(crate) fn key_code(key: KeyType) -> (u32, u32) {
    match key {
        KeyType::Integer => (2, 4),
        KeyType::Ip => (4, 4),
        KeyType::Ipv6 => (5, 16),
        KeyType::String(len) => (6, u32::try_from(len).unwrap_or(u32::MAX)),
        KeyType::Binary(len) => (7, u32::try_from(len).unwrap_or(u32::MAX)),
    }
}

/// The key type of a number, if it is built.
pub(crate) fn key_type(code: u32, len: u32) -> Option<KeyType> {
    match code {
        2 => Some(KeyType::Integer),
        4 => Some(KeyType::Ip),
        5 => Some(KeyType::Ipv6),
        6 => Some(KeyType::String(len as usize)),
        7 => Some(KeyType::Binary(len as usize)),
        _ => None,
    }
}
