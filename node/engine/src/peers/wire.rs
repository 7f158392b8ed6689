//! Bytes of HAProxy's peers protocol 2.1: numbers, messages and table definitions.
//!
//! Source: HAProxy's `doc/peers.txt` and `doc/peers-v2.0.txt`; the numbers of acknowledgements (132) and
//! of updates with their time left (133, 134), which those leave out or have differently, were read off
//! a running HAProxy 2.6. Reading trusts nothing: a message that is cut short, too long or impossible
//! ends the session.

/// Longest message that is taken, in bytes: a key of 16 kB and some.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Longest table or key that a definition may name.
const MAX_NAME: usize = 1 << 10;

/// Class of control messages.
pub const CONTROL: u8 = 0;
/// Class of errors.
pub const ERROR: u8 = 1;
/// Class of stick-table messages.
pub const TABLE: u8 = 10;

/// What a control message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Control {
    /// Teach me everything.
    ResyncRequest = 0,
    /// That was everything, and I know what there is to know.
    ResyncFinished = 1,
    /// That was everything that I know.
    ResyncPartial = 2,
    /// Answer to the two before.
    ResyncConfirm = 3,
    /// Still there.
    Heartbeat = 4,
}

/// Types of stick-table messages.
pub mod kind {
    /// An entry with its update number.
    pub const UPDATE: u8 = 128;
    /// An entry whose update number is the next one.
    pub const INCREMENTAL: u8 = 129;
    /// The table that the entries that follow belong to.
    pub const DEFINE: u8 = 130;
    /// The same for one that was defined before.
    pub const SWITCH: u8 = 131;
    /// Acknowledgement.
    pub const ACK: u8 = 132;
    /// [`UPDATE`] with the milliseconds that the entry has left.
    pub const UPDATE_TIMED: u8 = 133;
    /// [`INCREMENTAL`] with the milliseconds that the entry has left.
    pub const INCREMENTAL_TIMED: u8 = 134;
}

/// The bytes are not what the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Appends a number: one byte below 240, else the low four bits and then seven at a time.
pub fn put_number(out: &mut Vec<u8>, value: u64) {
    if value < 0xf0 {
        out.push(value as u8);
        return;
    }
    out.push(value as u8 | 0xf0);
    let mut value = (value - 0xf0) >> 4;
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value = (value - 0x80) >> 7;
    }
    out.push(value as u8);
}

/// Appends a stick-table message whose body `body` writes.
pub fn put_message(out: &mut Vec<u8>, kind: u8, scratch: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    scratch.clear();
    body(scratch);
    out.extend_from_slice(&[TABLE, kind]);
    put_number(out, scratch.len() as u64);
    out.extend_from_slice(scratch);
}

/// A cursor over received bytes.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// Four bytes, big endian.
    pub fn word(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(4)?.try_into().ok()?))
    }

    /// A number as [`put_number`] writes it. Bits beyond 64 are lost, as there.
    pub fn number(&mut self) -> Option<u64> {
        let first = self.byte()?;
        let mut value = u64::from(first);
        if first < 0xf0 {
            return Some(value);
        }
        let mut shift = 4;
        loop {
            let byte = self.byte()?;
            if shift < 64 {
                value = value.wrapping_add(u64::from(byte) << shift);
            } else if shift > 77 {
                return None;
            }
            if byte < 0x80 {
                return Some(value);
            }
            shift += 7;
        }
    }

    /// A number no greater than `max`.
    pub fn length(&mut self, max: usize) -> Option<usize> {
        usize::try_from(self.number()?).ok().filter(|&n| n <= max)
    }
}

/// One message cut out of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Class and type of a message of two bytes.
    Short(u8, u8),
    /// Type and body of a stick-table message.
    Table(u8, &'a [u8]),
    /// A message of a class that is not known, to be skipped.
    Other,
}

/// Cuts the next message off `input`: it and how many bytes it took, or `None` when more must come.
///
/// # Errors
/// When a message is longer than [`MAX_MESSAGE`], or its length cannot be read.
pub fn cut(input: &[u8]) -> Result<Option<(Message<'_>, usize)>, Malformed> {
    let &[class, kind, ref rest @ ..] = input else { return Ok(None) };
    if kind < 128 {
        return Ok(Some((Message::Short(class, kind), 2)));
    }
    let mut reader = Reader(rest);
    let Some(len) = reader.number() else {
        return if rest.len() >= 10 { Err(Malformed("a length that does not read")) } else { Ok(None) };
    };
    if len > MAX_MESSAGE as u64 {
        return Err(Malformed("a message above 64 kB"));
    }
    let Some(body) = reader.bytes(len as usize) else { return Ok(None) };
    let used = input.len() - reader.0.len();
    Ok(Some((if class == TABLE { Message::Table(kind, body) } else { Message::Other }, used)))
}

/// How the values of a data type stand in an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One number.
    Number,
    /// Age of the current window in milliseconds, its events, those of the window before.
    Rate,
    /// An entry of the sender's dictionary.
    Text,
}

/// Shape of HAProxy's data type `bit`, and whether it is an array; `None` for one that is not known.
pub fn shape(bit: u8) -> Option<(Shape, bool)> {
    Some(match bit {
        0..=2 | 4 | 6 | 7 | 9 | 11 | 13 | 15 | 17 | 20 | 25 => (Shape::Number, false),
        3 | 5 | 8 | 10 | 12 | 14 | 16 | 18 | 21 | 26 => (Shape::Rate, false),
        19 => (Shape::Text, false),
        22 | 23 => (Shape::Number, true),
        24 => (Shape::Rate, true),
        _ => return None,
    })
}

/// One data type of a definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// HAProxy's number of the data type.
    pub bit: u8,
    /// How many values: 1 unless it is an array.
    pub count: usize,
    /// Milliseconds of a rate, else 0.
    pub period: u32,
}

/// A table as its owner defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Define {
    /// The sender's number of the table.
    pub id: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// Key type: 2 integer, 4 IPv4, 5 IPv6, 6 string, 7 binary.
    pub key: u64,
    /// Bytes of a key; of a string the longest, with its end.
    pub key_len: usize,
    /// Data types by number.
    pub fields: Vec<Field>,
    /// Milliseconds that an entry lives; 0 for ever.
    pub expire: u64,
}

impl Define {
    /// Appends the message.
    pub fn put(&self, out: &mut Vec<u8>, scratch: &mut Vec<u8>) {
        put_message(out, kind::DEFINE, scratch, |out| {
            put_number(out, self.id);
            put_number(out, self.name.len() as u64);
            out.extend_from_slice(&self.name);
            put_number(out, self.key);
            put_number(out, self.key_len as u64);
            put_number(out, self.fields.iter().fold(0, |bits, f| bits | 1 << f.bit));
            put_number(out, self.expire);
            for field in &self.fields {
                match shape(field.bit) {
                    Some((shape, true)) => {
                        put_number(out, u64::from(field.bit));
                        put_number(out, field.count as u64);
                        if shape == Shape::Rate {
                            put_number(out, u64::from(field.period));
                        }
                    }
                    Some((Shape::Rate, false)) => {
                        put_number(out, u64::from(field.bit));
                        put_number(out, u64::from(field.period));
                    }
                    _ => {}
                }
            }
        });
    }

    /// Reads the body of the message. `Ok(None)`: it stores a data type that is not known, so that its
    /// entries cannot be read.
    ///
    /// # Errors
    /// When it is cut short or out of bounds.
    pub fn read(body: &[u8]) -> Result<Option<Define>, Malformed> {
        Define::read_known(body).ok_or(Malformed("a table definition that does not read"))
    }

    fn read_known(body: &[u8]) -> Option<Option<Define>> {
        let mut input = Reader(body);
        let id = input.number()?;
        let len = input.length(MAX_NAME)?;
        let name = input.bytes(len)?.to_vec();
        let key = input.number()?;
        let key_len = input.length(MAX_MESSAGE)?;
        let bits = input.number()?;
        let expire = input.number().unwrap_or(0);
        let mut fields = Vec::new();
        for bit in (0..64).filter(|bit| bits & 1 << bit != 0) {
            let Some((shape, array)) = shape(bit) else { return Some(None) };
            let mut field = Field { bit, count: 1, period: 0 };
            if array || shape == Shape::Rate {
                if input.number()? != u64::from(bit) {
                    return None;
                }
                if array {
                    field.count = input.length(100)?;
                }
                if shape == Shape::Rate {
                    field.period = u32::try_from(input.number()?).ok()?;
                }
            }
            fields.push(field);
        }
        Some(Some(Define { id, name, key, key_len, fields, expire }))
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn numbers_are_written_as_the_document_shows() {
        let mut out = Vec::new();
        put_number(&mut out, 0x1234);
        assert_eq!(out, [0xf4, 0x94, 0x01]);
        for value in
            [0, 1, 239, 240, 2_287, 2_288, 264_431, 264_432, 33_818_864, u64::from(u32::MAX), u64::MAX]
        {
            out.clear();
            put_number(&mut out, value);
            let mut reader = Reader(&out);
            assert_eq!((reader.number(), reader.0.len()), (Some(value), 0), "{value}");
            for len in 0..out.len() {
                assert_eq!(Reader(&out[..len]).number(), None, "{value} cut at {len}");
            }
        }
    }

    #[test]
    fn definitions_of_haproxy_read_and_write_back_the_same() {
        // As HAProxy 2.6 sends: type string len 20, server_id,http_req_cnt,server_key,gpt(2),gpc(3),
        // gpc_rate(2,10s), expire 10m.
        let seen = [
            0x0a, 0x82, 0x16, 0x02, 0x01, 0x73, 0x06, 0x15, 0xf1, 0x91, 0xff, 0x70, 0xf0, 0xed, 0xa3, 0x01,
            0x16, 0x02, 0x17, 0x03, 0x18, 0x02, 0xf0, 0xe2, 0x03,
        ];
        let (message, used) = cut(&seen).unwrap().unwrap();
        assert_eq!(used, seen.len());
        let Message::Table(kind::DEFINE, body) = message else { panic!("{message:?}") };
        let define = Define::read(body).unwrap().unwrap();
        assert_eq!((define.id, &*define.name, define.key, define.key_len), (2, &b"s"[..], 6, 21));
        assert_eq!(define.expire, 600_000);
        let field = |bit, count, period| Field { bit, count, period };
        let fields = [
            field(0, 1, 0),
            field(9, 1, 0),
            field(19, 1, 0),
            field(22, 2, 0),
            field(23, 3, 0),
            field(24, 2, 10_000),
        ];
        assert_eq!(define.fields, fields);
        let mut out = Vec::new();
        define.put(&mut out, &mut Vec::new());
        assert_eq!(out, seen);
    }

    #[test]
    fn nothing_that_comes_panics() {
        let seed = std::env::var("PHALANX_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..20_000 {
            let len = rng.random_range(0..40);
            let mut bytes: Vec<u8> = (0..len).map(|_| rng.random()).collect();
            if bytes.len() > 2 && rng.random_bool(0.7) {
                (bytes[0], bytes[1], bytes[2]) = (TABLE, rng.random_range(128..136), len as u8);
            }
            if let Ok(Some((Message::Table(_, body), used))) = cut(&bytes) {
                assert!(used <= bytes.len());
                let _ = Define::read(body);
            }
        }
    }
}
