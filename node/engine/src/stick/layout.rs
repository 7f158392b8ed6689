//! Which data a table stores, and where: every slot of a table has the same words in the same places.
//!
//! A data type is one row of [`TYPES`]; its kind decides how it is counted, merged and read. Columns
//! are sorted by HAProxy's own numbering, so the order of words in `store` changes nothing: neither
//! `show table`, nor the content digest that nodes compare.

use std::time::Duration;

use phalanx_config::model::DataType;

/// How a data type is written, merged and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One writer at a time; the last one wins by hybrid logical clock. Words: value, clock low, high.
    Register,
    /// Only grows; read as the sum over the nodes. One word.
    Counter,
    /// A sliding window; read as the sum over the nodes. Words: tick, current, previous.
    Rate,
}

impl Kind {
    /// How many 32-bit words it takes in a slot.
    pub(crate) const fn words(self) -> usize {
        match self {
            Kind::Counter => 1,
            Kind::Register | Kind::Rate => 3,
        }
    }
}

/// One data type that tables can store.
#[derive(Debug)]
pub struct Type {
    /// As in `store`, `show table` and `data.<type>`.
    pub name: &'static str,
    /// HAProxy's number for it; also its place in `show table`.
    pub bit: u8,
    /// How it behaves.
    pub kind: Kind,
}

/// Every data type that is built.
pub const TYPES: &[Type] = &[
    Type { name: "server_id", bit: 0, kind: Kind::Register },
    Type { name: "gpc0", bit: 2, kind: Kind::Counter },
    Type { name: "conn_cnt", bit: 4, kind: Kind::Counter },
    Type { name: "conn_rate", bit: 5, kind: Kind::Rate },
    Type { name: "http_req_cnt", bit: 9, kind: Kind::Counter },
    Type { name: "http_req_rate", bit: 10, kind: Kind::Rate },
];

/// Name and, for rates, period of a stored data type.
pub fn describe(data: DataType) -> (&'static str, Option<Duration>) {
    match data {
        DataType::ServerId => ("server_id", None),
        DataType::Gpc0 => ("gpc0", None),
        DataType::ConnCnt => ("conn_cnt", None),
        DataType::ConnRate(p) => ("conn_rate", Some(p)),
        DataType::HttpReqCnt => ("http_req_cnt", None),
        DataType::HttpReqRate(p) => ("http_req_rate", Some(p)),
    }
}

/// The row of [`TYPES`] with this name.
pub fn by_name(name: &str) -> Option<&'static Type> {
    TYPES.iter().find(|t| t.name == name)
}

/// One stored data type and its place in a slot.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Name, number and kind.
    pub of: &'static Type,
    /// Period of a rate in milliseconds, else 0.
    pub period: u32,
    /// First word.
    pub(crate) at: usize,
}

impl PartialEq for Column {
    fn eq(&self, other: &Column) -> bool {
        (self.of.bit, self.period, self.at) == (other.of.bit, other.period, other.at)
    }
}

/// The columns of a table, in HAProxy's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    columns: Vec<Column>,
    stride: usize,
}

impl Layout {
    /// The layout of a `store` list.
    pub fn new(store: &[DataType]) -> Layout {
        let mut named: Vec<_> = store
            .iter()
            .filter_map(|&data| {
                let (name, period) = describe(data);
                Some((by_name(name)?, period.map_or(0, millis)))
            })
            .collect();
        named.sort_by_key(|(of, _)| of.bit);
        named.dedup_by_key(|(of, _)| of.bit);
        let mut layout = Layout::default();
        for (of, period) in named {
            layout.columns.push(Column { of, period, at: layout.stride });
            layout.stride += of.kind.words();
        }
        layout
    }

    /// The columns, in order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Index of the column with this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.of.name == name)
    }

    /// The column with HAProxy's number `bit`.
    pub(crate) fn bit(&self, bit: u8) -> Option<Column> {
        self.columns.iter().find(|c| c.of.bit == bit).copied()
    }

    /// Words in a slot.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }
}

fn millis(period: Duration) -> u32 {
    // A window longer than 2^30 ms could not be told from one in the past on a 32-bit tick.
    period.as_millis().clamp(1, 1 << 30) as u32
}

/// HAProxy's number of `server_id`.
pub(crate) const SERVER_ID: u8 = 0;
/// HAProxy's number of `gpc0`.
pub(crate) const GPC0: u8 = 2;
/// HAProxy's number of `conn_cnt`.
pub(crate) const CONN_CNT: u8 = 4;
/// HAProxy's number of `conn_rate`.
pub(crate) const CONN_RATE: u8 = 5;
/// HAProxy's number of `http_req_cnt`.
pub(crate) const HTTP_REQ_CNT: u8 = 9;
/// HAProxy's number of `http_req_rate`.
pub(crate) const HTTP_REQ_RATE: u8 = 10;
