//! Stick tables: the `stick-table` line.

use std::time::Duration;

use super::Pos;

/// `stick-table` (section 11.1).
#[derive(Clone, Debug, PartialEq)]
pub struct StickTable {
    /// `type`.
    pub key: KeyType,
    /// `size`: entries.
    pub size: usize,
    /// `expire`.
    pub expire: Option<Duration>,
    /// `nopurge`.
    pub nopurge: bool,
    /// `peers`: name of the `cluster` section that replicates it.
    pub peers: Option<String>,
    /// `store`, in the order written, without duplicates.
    pub store: Vec<DataType>,
    /// `write-to`: name of the table that peers' registers go to as well.
    pub write_to: Option<String>,
    /// `recv-only`.
    pub recv_only: bool,
    /// `srvkey`: what `server_key` holds.
    pub server_key: ServerKey,
    /// `brates-factor`: bytes that `bytes_*_rate` count as one.
    pub brates_factor: u32,
    /// Where it was declared.
    pub pos: Pos,
}

/// What stands for a server in `server_key`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerKey {
    /// Its name.
    #[default]
    Name,
    /// Its address and port.
    Address,
}

/// Key type of a stick table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// `ip`, `ipv4`.
    Ip,
    /// `ipv6`.
    Ipv6,
    /// `integer`.
    Integer,
    /// `string [len n]`; longest key in bytes.
    String(usize),
    /// `binary [len n]`; keys of exactly so many bytes, padded with zeroes.
    Binary(usize),
}

/// Data stored with a key; rates carry their period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    /// Server id of stickiness.
    ServerId,
    /// Server name or address of stickiness.
    ServerKey,
    /// General purpose tag.
    Gpt0,
    /// General purpose tags.
    Gpt(usize),
    /// First general purpose counter.
    Gpc0,
    /// Its increments per period.
    Gpc0Rate(Duration),
    /// Second general purpose counter.
    Gpc1,
    /// Its increments per period.
    Gpc1Rate(Duration),
    /// General purpose counters.
    Gpc(usize),
    /// Increments of general purpose counters per period.
    GpcRate(usize, Duration),
    /// Connections.
    ConnCnt,
    /// Connections right now.
    ConnCur,
    /// Connections per period.
    ConnRate(Duration),
    /// Sessions: connections that the layer 4 rules accepted.
    SessCnt,
    /// Sessions per period.
    SessRate(Duration),
    /// HTTP requests.
    HttpReqCnt,
    /// HTTP requests per period.
    HttpReqRate(Duration),
    /// HTTP errors that the client caused.
    HttpErrCnt,
    /// HTTP errors that the client caused, per period.
    HttpErrRate(Duration),
    /// HTTP failures of the server.
    HttpFailCnt,
    /// HTTP failures of the server per period.
    HttpFailRate(Duration),
    /// Bytes from client to server.
    BytesInCnt,
    /// Bytes from client to server per period.
    BytesInRate(Duration),
    /// Bytes from server to client.
    BytesOutCnt,
    /// Bytes from server to client per period.
    BytesOutRate(Duration),
    /// Glitches of the front connection.
    GlitchCnt,
    /// Glitches of the front connection per period.
    GlitchRate(Duration),
}
