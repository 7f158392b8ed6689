//! Keys of stick tables: how a sample becomes one, how it is stored, shown and hashed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use phalanx_config::model::KeyType;

use super::hash;
use super::rows::Rows;

/// A key, of its table's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key<'a> {
    /// `type ip`.
    V4(u32),
    /// `type ipv6`.
    V6(u128),
    /// `type integer`.
    Int(u32),
    /// `type string`, `type binary`.
    Str(&'a [u8]),
}

/// A key that outlives where it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnKey {
    /// One without bytes of its own.
    Plain(Key<'static>),
    /// `type string`, `type binary`.
    Bytes(Box<[u8]>),
}

impl OwnKey {
    /// A copy.
    pub fn of(key: &Key<'_>) -> OwnKey {
        match *key {
            Key::V4(n) => OwnKey::Plain(Key::V4(n)),
            Key::V6(n) => OwnKey::Plain(Key::V6(n)),
            Key::Int(n) => OwnKey::Plain(Key::Int(n)),
            Key::Str(bytes) => OwnKey::Bytes(bytes.into()),
        }
    }

    /// The key.
    pub fn borrow(&self) -> Key<'_> {
        match self {
            OwnKey::Plain(key) => *key,
            OwnKey::Bytes(bytes) => Key::Str(bytes),
        }
    }
}

/// A sample value on its way to becoming a key.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// An address.
    Ip(IpAddr),
    /// A number.
    Int(i64),
    /// Text.
    Bytes(&'a [u8]),
}

/// Room for a key whose text had to be made (an address or a number in a string table).
#[derive(Debug, Default)]
pub struct Scratch(Vec<u8>);

impl Scratch {
    fn write(&mut self, text: fmt::Arguments<'_>) -> &[u8] {
        self.0.clear();
        let _ = std::io::Write::write_fmt(&mut self.0, text);
        &self.0
    }

    fn copy(&mut self, bytes: &[u8]) -> &[u8] {
        self.0.clear();
        self.0.extend_from_slice(bytes);
        &self.0
    }
}

impl<'a> Key<'a> {
    /// Casts a sample to the table's type, as HAProxy casts samples; `None` when it cannot be.
    pub fn cast(kind: KeyType, input: Input<'a>, scratch: &'a mut Scratch) -> Option<Key<'a>> {
        match kind {
            KeyType::Ip => v4(input).map(Key::V4),
            KeyType::Ipv6 => v6(input).map(Key::V6),
            KeyType::Integer => int(input).map(Key::Int),
            KeyType::String(len) => {
                let text = match input {
                    Input::Bytes(text) => text,
                    Input::Ip(ip) => scratch.write(format_args!("{ip}")),
                    Input::Int(n) => scratch.write(format_args!("{n}")),
                };
                // The C string that HAProxy would keep ends at the first NUL.
                let text = &text[..text.len().min(len)];
                Some(Key::Str(text.split(|&b| b == 0).next().unwrap_or_default()))
            }
            KeyType::Binary(len) => {
                match input {
                    Input::Bytes(bytes) if bytes.len() >= len => return Some(Key::Str(&bytes[..len])),
                    Input::Bytes(bytes) => scratch.copy(bytes),
                    // As HAProxy casts them: in network order, a number as 64 bits.
                    Input::Ip(IpAddr::V4(ip)) => scratch.copy(&ip.octets()),
                    Input::Ip(IpAddr::V6(ip)) => scratch.copy(&ip.octets()),
                    Input::Int(n) => scratch.copy(&n.to_be_bytes()),
                };
                scratch.0.resize(len, 0);
                Some(Key::Str(&scratch.0))
            }
        }
    }

    /// Whether it may stand in a table of this type.
    pub(crate) fn fits(&self, kind: KeyType) -> bool {
        match (self, kind) {
            (Key::V4(_), KeyType::Ip) | (Key::V6(_), KeyType::Ipv6) | (Key::Int(_), KeyType::Integer) => true,
            (Key::Str(text), KeyType::String(len)) => text.len() <= len,
            (Key::Str(bytes), KeyType::Binary(len)) => bytes.len() == len,
            _ => false,
        }
    }

    /// Hash under a seed.
    pub(crate) fn hash(&self, seed: u64) -> u64 {
        match *self {
            Key::V4(n) | Key::Int(n) => hash::word(seed, u64::from(n)),
            Key::V6(n) => hash::word(hash::word(seed, n as u64), (n >> 64) as u64),
            Key::Str(text) => hash::bytes(seed, text),
        }
    }
}

fn text(input: &[u8]) -> Option<&str> {
    std::str::from_utf8(input).ok().map(str::trim)
}

fn v4(input: Input) -> Option<u32> {
    let ip = match input {
        Input::Ip(ip) => ip,
        Input::Int(n) => return Some(n as u32),
        Input::Bytes(b) => text(b)?.parse().ok()?,
    };
    match ip {
        IpAddr::V4(ip) => Some(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_ipv4_mapped().map(Ipv4Addr::to_bits),
    }
}

fn v6(input: Input) -> Option<u128> {
    let ip = match input {
        Input::Ip(ip) => ip,
        Input::Int(n) => IpAddr::V4(Ipv4Addr::from_bits(n as u32)),
        Input::Bytes(b) => text(b)?.parse().ok()?,
    };
    Some(match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    })
}

fn int(input: Input) -> Option<u32> {
    match input {
        Input::Int(n) => Some(n as u32),
        Input::Ip(IpAddr::V4(ip)) => Some(ip.to_bits()),
        Input::Ip(IpAddr::V6(_)) => None,
        Input::Bytes(b) => text(b)?.parse::<i64>().ok().map(|n| n as u32),
    }
}

/// As `show table` prints it.
impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Key::V4(n) => Ipv4Addr::from_bits(n).fmt(f),
            Key::V6(n) => Ipv6Addr::from_bits(n).fmt(f),
            Key::Int(n) => n.fmt(f),
            Key::Str(text) => {
                for chunk in text.utf8_chunks() {
                    for c in chunk.valid().chars() {
                        match c {
                            ' ' => f.write_str("\\ ")?,
                            '\\' => f.write_str("\\\\")?,
                            c if c.is_control() => write!(f, "\\x{:02x}", c as u32)?,
                            c => write!(f, "{c}")?,
                        }
                    }
                    for b in chunk.invalid() {
                        write!(f, "\\x{b:02x}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// The keys of one shard by entry index, each kind as small as it goes.
#[derive(Debug)]
pub(crate) enum Keys {
    V4(Rows<u32>),
    V6(Rows<u128>),
    Int(Rows<u32>),
    Str(Rows<Box<[u8]>>),
}

impl Keys {
    pub(crate) fn new(kind: KeyType) -> Keys {
        match kind {
            KeyType::Ip => Keys::V4(Rows::new()),
            KeyType::Ipv6 => Keys::V6(Rows::new()),
            KeyType::Integer => Keys::Int(Rows::new()),
            KeyType::String(_) | KeyType::Binary(_) => Keys::Str(Rows::new()),
        }
    }

    pub(crate) fn get(&self, at: u32) -> Key<'_> {
        let at = at as usize;
        match self {
            Keys::V4(v) => Key::V4(v[at]),
            Keys::V6(v) => Key::V6(v[at]),
            Keys::Int(v) => Key::Int(v[at]),
            Keys::Str(v) => Key::Str(&v[at]),
        }
    }

    /// Stores `key` at an index in use before, or at the next new one.
    pub(crate) fn put(&mut self, at: u32, key: &Key) {
        match (self, *key) {
            (Keys::V4(v), Key::V4(n)) | (Keys::Int(v), Key::Int(n)) => put(v, at, n),
            (Keys::V6(v), Key::V6(n)) => put(v, at, n),
            (Keys::Str(v), Key::Str(text)) => put(v, at, text.into()),
            _ => unreachable!("the table checked that the key fits its type"),
        }
    }

    /// Gives back what a removed key holds on the heap.
    pub(crate) fn free(&mut self, at: u32) {
        if let Keys::Str(v) = self {
            v[at as usize] = Box::default();
        }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Keys::V4(v) | Keys::Int(v) => v.capacity() * 4,
            Keys::V6(v) => v.capacity() * 16,
            Keys::Str(v) => v.capacity() * 16 + v.iter().map(|k| k.len()).sum::<usize>(),
        }
    }
}

fn put<T>(v: &mut Rows<T>, at: u32, value: T) {
    match v.get_mut(at as usize) {
        Some(place) => *place = value,
        None => v.push(value),
    }
}
