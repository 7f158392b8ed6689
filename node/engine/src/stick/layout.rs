//! Which data a table stores, and where: every slot of a table has the same words in the same places.
//!
//! A data type is one row of [`TYPES`]; its kind decides how it is counted, merged and read. An array
//! (`gpc(5)`) is so many columns of one type. Columns are sorted by HAProxy's own numbering, so the
//! order of words in `store` changes nothing: neither `show table`, nor the content digest that nodes
//! compare.

use std::time::Duration;

use phalanx_config::model::DataType;

/// How a data type is written, merged and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One writer at a time; the last one wins by hybrid logical clock. Words: value, clock low, high.
    Register,
    /// A register whose value is text: the words hold its number in the dictionary.
    Text,
    /// Only grows; read as the sum over the nodes. One word.
    Counter,
    /// The same with 64 bits. Words: low, high.
    Counter64,
    /// A sliding window; read as the sum over the nodes. Words: tick, current, previous.
    Rate,
    /// Goes up and down; read as the sum over the nodes that live. Words: value, number of changes.
    Gauge,
}

impl Kind {
    /// How many 32-bit words it takes in a slot.
    pub(crate) const fn words(self) -> usize {
        match self {
            Kind::Counter => 1,
            Kind::Counter64 | Kind::Gauge => 2,
            Kind::Register | Kind::Text | Kind::Rate => 3,
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
    /// `show table` and the CLI number its elements.
    pub array: bool,
}

const fn of(bit: u8, name: &'static str, kind: Kind) -> Type {
    Type { name, bit, kind, array: false }
}

const fn array(bit: u8, name: &'static str, kind: Kind) -> Type {
    Type { name, bit, kind, array: true }
}

/// Every data type, by HAProxy's number.
pub const TYPES: &[Type] = &[
    of(0, "server_id", Kind::Register),
    of(1, "gpt0", Kind::Register),
    of(2, "gpc0", Kind::Counter),
    of(3, "gpc0_rate", Kind::Rate),
    of(4, "conn_cnt", Kind::Counter),
    of(5, "conn_rate", Kind::Rate),
    of(6, "conn_cur", Kind::Gauge),
    of(7, "sess_cnt", Kind::Counter),
    of(8, "sess_rate", Kind::Rate),
    of(9, "http_req_cnt", Kind::Counter),
    of(10, "http_req_rate", Kind::Rate),
    of(11, "http_err_cnt", Kind::Counter),
    of(12, "http_err_rate", Kind::Rate),
    of(13, "bytes_in_cnt", Kind::Counter64),
    of(14, "bytes_in_rate", Kind::Rate),
    of(15, "bytes_out_cnt", Kind::Counter64),
    of(16, "bytes_out_rate", Kind::Rate),
    of(17, "gpc1", Kind::Counter),
    of(18, "gpc1_rate", Kind::Rate),
    of(19, "server_key", Kind::Text),
    of(20, "http_fail_cnt", Kind::Counter),
    of(21, "http_fail_rate", Kind::Rate),
    array(22, "gpt", Kind::Register),
    array(23, "gpc", Kind::Counter),
    array(24, "gpc_rate", Kind::Rate),
    of(25, "glitch_cnt", Kind::Counter),
    of(26, "glitch_rate", Kind::Rate),
];

/// Names a value of an entry: a data type and, in an array, which element.
///
/// As in HAProxy, `gpc0`, `gpc1`, their rates and `gpt0` mean the first elements where a table stores the
/// array instead; `gpc(0)` does not mean `gpc0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Data {
    bit: u8,
    index: u8,
}

impl Data {
    /// `server_id`.
    pub const SERVER_ID: Data = Data::plain(0);
    /// `gpt0`.
    pub const GPT0: Data = Data::plain(1);
    /// `gpc0`.
    pub const GPC0: Data = Data::plain(2);
    /// `gpc0_rate`.
    pub const GPC0_RATE: Data = Data::plain(3);
    /// `conn_cnt`.
    pub const CONN_CNT: Data = Data::plain(4);
    /// `conn_rate`.
    pub const CONN_RATE: Data = Data::plain(5);
    /// `conn_cur`.
    pub const CONN_CUR: Data = Data::plain(6);
    /// `sess_cnt`.
    pub const SESS_CNT: Data = Data::plain(7);
    /// `sess_rate`.
    pub const SESS_RATE: Data = Data::plain(8);
    /// `http_req_cnt`.
    pub const HTTP_REQ_CNT: Data = Data::plain(9);
    /// `http_req_rate`.
    pub const HTTP_REQ_RATE: Data = Data::plain(10);
    /// `http_err_cnt`.
    pub const HTTP_ERR_CNT: Data = Data::plain(11);
    /// `http_err_rate`.
    pub const HTTP_ERR_RATE: Data = Data::plain(12);
    /// `bytes_in_cnt`.
    pub const BYTES_IN_CNT: Data = Data::plain(13);
    /// `bytes_in_rate`.
    pub const BYTES_IN_RATE: Data = Data::plain(14);
    /// `bytes_out_cnt`.
    pub const BYTES_OUT_CNT: Data = Data::plain(15);
    /// `bytes_out_rate`.
    pub const BYTES_OUT_RATE: Data = Data::plain(16);
    /// `gpc1`.
    pub const GPC1: Data = Data::plain(17);
    /// `gpc1_rate`.
    pub const GPC1_RATE: Data = Data::plain(18);
    /// `server_key`.
    pub const SERVER_KEY: Data = Data::plain(19);
    /// `http_fail_cnt`.
    pub const HTTP_FAIL_CNT: Data = Data::plain(20);
    /// `http_fail_rate`.
    pub const HTTP_FAIL_RATE: Data = Data::plain(21);
    /// `glitch_cnt`.
    pub const GLITCH_CNT: Data = Data::plain(25);
    /// `glitch_rate`.
    pub const GLITCH_RATE: Data = Data::plain(26);
    /// What no table stores.
    const NOTHING: Data = Data::plain(u8::MAX);

    const fn plain(bit: u8) -> Data {
        Data { bit, index: 0 }
    }

    /// Element of a `gpt(n)` array.
    pub const fn gpt(index: u8) -> Data {
        Data { bit: 22, index }
    }

    /// Element of a `gpc(n)` array.
    pub const fn gpc(index: u8) -> Data {
        Data { bit: 23, index }
    }

    /// Element of a `gpc_rate(n,p)` array.
    pub const fn gpc_rate(index: u8) -> Data {
        Data { bit: 24, index }
    }

    /// The data type `name`, or element `index` of it.
    pub fn named(name: &str, index: u8) -> Option<Data> {
        by_name(name).filter(|of| of.array || index == 0).map(|of| Data { bit: of.bit, index })
    }

    /// Its data type.
    pub fn of(self) -> Option<&'static Type> {
        TYPES.get(usize::from(self.bit))
    }

    /// The rate that is counted together with a general purpose counter.
    pub(crate) fn rate_of_gpc(self) -> Data {
        match self.bit {
            2 => Data::GPC0_RATE,
            17 => Data::GPC1_RATE,
            23 => Data::gpc_rate(self.index),
            _ => Data::NOTHING,
        }
    }

    /// Where a table without it has it: the element that stands for it.
    const fn instead(self) -> Option<Data> {
        match self.bit {
            1 => Some(Data::gpt(0)),
            2 => Some(Data::gpc(0)),
            3 => Some(Data::gpc_rate(0)),
            17 => Some(Data::gpc(1)),
            18 => Some(Data::gpc_rate(1)),
            _ => None,
        }
    }
}

/// By name; an unknown one names what no table stores.
impl From<&str> for Data {
    fn from(name: &str) -> Data {
        Data::named(name, 0).unwrap_or(Data::NOTHING)
    }
}

/// The number, elements and, of rates, the period of a stored data type.
fn describe(data: DataType) -> (Data, usize, Option<Duration>) {
    let one = |data| (data, 1, None);
    let rate = |data, period| (data, 1, Some(period));
    match data {
        DataType::ServerId => one(Data::SERVER_ID),
        DataType::ServerKey => one(Data::SERVER_KEY),
        DataType::Gpt0 => one(Data::GPT0),
        DataType::Gpc0 => one(Data::GPC0),
        DataType::Gpc0Rate(p) => rate(Data::GPC0_RATE, p),
        DataType::Gpc1 => one(Data::GPC1),
        DataType::Gpc1Rate(p) => rate(Data::GPC1_RATE, p),
        DataType::Gpt(n) => (Data::gpt(0), n, None),
        DataType::Gpc(n) => (Data::gpc(0), n, None),
        DataType::GpcRate(n, p) => (Data::gpc_rate(0), n, Some(p)),
        DataType::ConnCnt => one(Data::CONN_CNT),
        DataType::ConnCur => one(Data::CONN_CUR),
        DataType::ConnRate(p) => rate(Data::CONN_RATE, p),
        DataType::SessCnt => one(Data::SESS_CNT),
        DataType::SessRate(p) => rate(Data::SESS_RATE, p),
        DataType::HttpReqCnt => one(Data::HTTP_REQ_CNT),
        DataType::HttpReqRate(p) => rate(Data::HTTP_REQ_RATE, p),
        DataType::HttpErrCnt => one(Data::HTTP_ERR_CNT),
        DataType::HttpErrRate(p) => rate(Data::HTTP_ERR_RATE, p),
        DataType::HttpFailCnt => one(Data::HTTP_FAIL_CNT),
        DataType::HttpFailRate(p) => rate(Data::HTTP_FAIL_RATE, p),
        DataType::BytesInCnt => one(Data::BYTES_IN_CNT),
        DataType::BytesInRate(p) => rate(Data::BYTES_IN_RATE, p),
        DataType::BytesOutCnt => one(Data::BYTES_OUT_CNT),
        DataType::BytesOutRate(p) => rate(Data::BYTES_OUT_RATE, p),
        DataType::GlitchCnt => one(Data::GLITCH_CNT),
        DataType::GlitchRate(p) => rate(Data::GLITCH_RATE, p),
    }
}

/// The row of [`TYPES`] with this name.
pub fn by_name(name: &str) -> Option<&'static Type> {
    TYPES.iter().find(|t| t.name == name)
}

/// One stored value and its place in a slot.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Name, number and kind.
    pub of: &'static Type,
    /// Which element, of an array.
    pub index: u8,
    /// Period of a rate in milliseconds, else 0.
    pub period: u32,
    /// How many events one step of it stands for (`brates-factor`).
    pub factor: u32,
    /// First word.
    pub(crate) at: usize,
}

impl Column {
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.at..self.at + self.of.kind.words()
    }

    /// Whether `set table` may put this number in. Servers' names are no numbers.
    pub fn holds(&self, value: u64) -> bool {
        match self.of.kind {
            Kind::Counter64 => true,
            Kind::Text => false,
            Kind::Rate => value / u64::from(self.factor) <= u64::from(u32::MAX),
            Kind::Register | Kind::Counter | Kind::Gauge => value <= u64::from(u32::MAX),
        }
    }

    /// How `set table` and filters name it.
    pub fn data(&self) -> Data {
        Data { bit: self.of.bit, index: self.index }
    }
}

/// As `show table` labels it: `gpc0_rate(10000)`, `gpt1`.
impl std::fmt::Display for Column {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.of.array, self.of.name.split_once('_')) {
            (false, _) => f.write_str(self.of.name)?,
            (true, None) => write!(f, "{}{}", self.of.name, self.index)?,
            (true, Some((name, rest))) => write!(f, "{name}{}_{rest}", self.index)?,
        }
        if self.of.kind == Kind::Rate {
            write!(f, "({})", self.period)?;
        }
        Ok(())
    }
}

impl PartialEq for Column {
    fn eq(&self, other: &Column) -> bool {
        let all = |c: &Column| (c.of.bit, c.index, c.period, c.factor, c.at);
        all(self) == all(other)
    }
}

/// The columns of a table, in HAProxy's order.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    columns: Vec<Column>,
    /// First column and number of columns by HAProxy's number.
    places: [(u16, u8); TYPES.len()],
    stride: usize,
}

impl Layout {
    /// The layout of a `store` list. `factor` is that of byte rates.
    pub fn new(store: &[DataType], factor: u32) -> Layout {
        let mut named: Vec<_> = store.iter().map(|&data| describe(data)).collect();
        named.sort_by_key(|(data, ..)| data.bit);
        named.dedup_by_key(|(data, ..)| data.bit);
        let mut layout = Layout { columns: Vec::new(), places: Default::default(), stride: 0 };
        for (data, count, period) in named {
            let bit = usize::from(data.bit);
            let (of, count) = (&TYPES[bit], count.min(MAX_ELEMENTS));
            let bytes = matches!(data, Data::BYTES_IN_RATE | Data::BYTES_OUT_RATE);
            let factor = if bytes { factor.clamp(1, MAX_FACTOR) } else { 1 };
            layout.places[bit] = (layout.columns.len() as u16, count as u8);
            for index in 0..count as u8 {
                let period = period.map_or(0, millis);
                layout.columns.push(Column { of, index, period, factor, at: layout.stride });
                layout.stride += of.kind.words();
            }
        }
        layout
    }

    /// The columns, in order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Where a value stands among the columns, in an array instead of its legacy name too.
    pub fn find(&self, data: impl Into<Data>) -> Option<usize> {
        let data = data.into();
        self.place(data).or_else(|| self.place(data.instead()?))
    }

    fn place(&self, data: Data) -> Option<usize> {
        let &(first, count) = self.places.get(usize::from(data.bit))?;
        (data.index < count).then(|| usize::from(first) + usize::from(data.index))
    }

    /// Where a value stands under exactly this name.
    pub fn find_exactly(&self, data: Data) -> Option<usize> {
        self.place(data)
    }

    /// The column of a value.
    pub fn column(&self, data: impl Into<Data>) -> Option<Column> {
        self.find(data).map(|at| self.columns[at])
    }

    /// The column under exactly this name, as peers name it.
    pub(crate) fn exactly(&self, data: Data) -> Option<Column> {
        self.place(data).map(|at| self.columns[at])
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

/// Elements of one array.
const MAX_ELEMENTS: usize = 100;
/// Greatest `brates-factor`.
const MAX_FACTOR: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_numbered_and_named_as_in_haproxy() {
        for (at, of) in TYPES.iter().enumerate() {
            assert_eq!((usize::from(of.bit), by_name(of.name).map(|t| t.bit)), (at, Some(of.bit)));
        }
        let p = Duration::from_secs(10);
        let layout = Layout::new(&[DataType::GpcRate(2, p), DataType::Gpc(2), DataType::Gpt(1)], 1);
        let labels: Vec<_> = layout.columns().iter().map(ToString::to_string).collect();
        assert_eq!(labels, ["gpt0", "gpc0", "gpc1", "gpc0_rate(10000)", "gpc1_rate(10000)"]);
        assert_eq!(layout.stride(), 3 + 2 + 6);
        assert_eq!(layout.find(Data::GPC1), Some(2), "the array's second element");
        assert_eq!(layout.find(Data::GPT0), Some(0));
        assert_eq!(
            (layout.find(Data::gpc(2)), layout.find("http_req_cnt"), layout.find("nope")),
            (None, None, None)
        );
        let legacy = Layout::new(&[DataType::Gpc0], 1);
        assert_eq!((legacy.find(Data::GPC0), legacy.find(Data::gpc(0))), (Some(0), None));
    }
}
