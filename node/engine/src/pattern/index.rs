//! The entries of a set, arranged for one way of matching.
//!
//! Whole texts, addresses, numbers and bytes are found by hashing; networks, prefixes, suffixes and
//! words by hashing once per length that occurs in the set. Parts of texts, expressions and ranges
//! are tried one after the other, in the set's order. Immutable for readers: a change is made on a
//! copy, which shares what did not change.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use phalanx_config::pattern::{self, Method, Pattern, prefix4, prefix6};
use smallvec::SmallVec;

use super::entry::{Entry, Slot};
use super::few::Few;
use super::keys::{Bytes, Exact, Folded, Net4, Net6, Number};
use super::sharded::{Keyed, Sharded};
use super::{Input, Short};
use crate::chunked::Chunked;

/// Most parts or numbers that are few.
const MOST_TRIED: usize = 32;

/// Lengths that occur, with the number of keys that have them.
type Lengths = BTreeMap<u32, u32>;

#[derive(Clone, Debug)]
pub(crate) struct Index {
    method: Method,
    ignore_case: bool,
    /// Whole texts, prefixes and suffixes as they stand.
    exact: Sharded<Exact>,
    /// The same with `-i`.
    folded: Sharded<Folded>,
    bytes: Sharded<Bytes>,
    numbers: Sharded<Number>,
    nets4: Sharded<Net4>,
    nets6: Sharded<Net6>,
    lengths: Lengths,
    lengths6: Lengths,
    /// What is tried one after the other.
    list: Chunked<u64, (Tried, Arc<Entry>)>,
    /// All of it, where that is little: enough to say whether anything matches.
    few: Option<Few>,
}

/// A pattern that can't be hashed.
#[derive(Clone, Debug)]
enum Tried {
    Range(i64, i64),
    /// A network with a mask that is no prefix.
    Mask(u32, u32),
    /// Part of a text; in lower case with `-i`.
    Part(Arc<memchr::memmem::Finder<'static>>),
    Regex(Arc<regex::bytes::Regex>),
}

/// The first in the set's order.
fn earlier<'a>(a: Option<&'a Arc<Entry>>, b: Option<&'a Arc<Entry>>) -> Option<&'a Arc<Entry>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.order() < a.order() { b } else { a }),
        (a, b) => a.or(b),
    }
}

fn first(slot: Option<&Slot>) -> Option<&Arc<Entry>> {
    slot.map(Slot::first)
}

impl Index {
    /// An empty one, made for so many entries.
    pub(super) fn new(method: Method, ignore_case: bool, seed: u64, expected: usize) -> Index {
        let (mut texts, mut nets, mut bytes, mut numbers) = (0, 0, 0, 0);
        match method {
            Method::Str | Method::Beg | Method::End => texts = expected,
            Method::Ip => nets = expected,
            Method::Bin | Method::Dir | Method::Dom => bytes = expected,
            Method::Int | Method::Len => numbers = expected,
            Method::Found | Method::Bool | Method::Sub | Method::Reg => {}
        }
        Index {
            method,
            ignore_case,
            exact: Sharded::new(seed, if ignore_case { 0 } else { texts }),
            folded: Sharded::new(seed, if ignore_case { texts } else { 0 }),
            bytes: Sharded::new(seed, bytes),
            numbers: Sharded::new(seed, numbers),
            nets4: Sharded::new(seed, nets),
            nets6: Sharded::new(seed, nets / 4),
            lengths: Lengths::new(),
            lengths6: Lengths::new(),
            list: Chunked::default(),
            few: None,
        }
    }

    /// After entries were taken in or out, and before anybody looks.
    pub(super) fn settle(&mut self) {
        self.few = match self.method {
            Method::Str | Method::Beg | Method::End if self.ignore_case => {
                Few::texts(self.folded.keys(), self.folded.all_keys())
            }
            Method::Str | Method::Beg | Method::End => Few::texts(self.exact.keys(), self.exact.all_keys()),
            Method::Ip if self.nets6.keys() == 0 && self.list.is_empty() => {
                Few::nets(self.nets4.keys(), self.nets4.all_keys())
            }
            _ => None,
        };
    }

    /// Whether an entry matches, if that can be said without finding it.
    pub(super) fn says(&self, input: &Input<'_>) -> Option<bool> {
        match (self.few.as_ref()?, *input) {
            (Few::Texts(few), Input::Text(text)) => Some(few.matches(self.method, self.ignore_case, text)),
            (Few::Nets(few), Input::Ip(IpAddr::V4(addr))) => Some(few.matches(addr)),
            _ => None,
        }
    }

    /// All patterns, if they are few and can be compared without the rest of this.
    pub(super) fn short(&self) -> Option<Short> {
        match (&self.few, self.method) {
            (Some(Few::Texts(few)), _) => Some(Short::Texts(few.iter().map(<[u8]>::to_vec).collect())),
            (Some(Few::Nets(few)), _) => Some(Short::Nets(few.all().to_vec())),
            (None, Method::Sub) if self.list.len() <= MOST_TRIED => {
                let part = |tried: &Tried| match tried {
                    Tried::Part(finder) => String::from_utf8(finder.needle().to_vec()).ok(),
                    _ => None,
                };
                self.list.iter().map(|(_, (tried, _))| part(tried)).collect::<Option<_>>().map(Short::Parts)
            }
            (None, Method::Int) if self.list.len() + self.numbers.keys() <= MOST_TRIED => {
                let range = |tried: &Tried| match tried {
                    Tried::Range(from, to) => Some((*from, *to)),
                    _ => None,
                };
                let ranges = self.list.iter().map(|(_, (tried, _))| range(tried));
                ranges
                    .chain(self.numbers.all_keys().map(|n| Some((n, n))))
                    .collect::<Option<_>>()
                    .map(Short::Ranges)
            }
            _ => None,
        }
    }

    /// Takes an entry in. One that is no pattern for this way of matching (another node's file may
    /// say more than this one's) never matches.
    pub(super) fn insert(&mut self, entry: &Arc<Entry>) {
        self.place(entry, true);
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, entry: &Arc<Entry>) {
        self.place(entry, false);
    }

    fn place(&mut self, entry: &Arc<Entry>, add: bool) {
        if !self.method.takes_patterns() {
            return;
        }
        if matches!(self.method, Method::Str | Method::Beg | Method::End) {
            return self.place_text(entry, add);
        }
        if !add && self.list.remove(&entry.order()).is_some() {
            return;
        }
        let Ok(parsed) = pattern::parse(self.method, self.ignore_case, entry.key()) else { return };
        match parsed {
            Pattern::Range(from, to) if from == to => change(&mut self.numbers, from, entry, add),
            Pattern::Range(from, to) => self.tried(entry, Tried::Range(from, to), add),
            Pattern::Net4(addr, mask) => match u8::try_from(mask.count_ones()) {
                Ok(len) if prefix4(len) == mask => {
                    let new = change_counted(&mut self.nets4, (addr, len), entry, add);
                    count(&mut self.lengths, u32::from(len), new);
                }
                _ => self.tried(entry, Tried::Mask(addr, mask), add),
            },
            Pattern::Net6(addr, len) => {
                let new = change_counted(&mut self.nets6, (addr, len), entry, add);
                count(&mut self.lengths6, u32::from(len), new);
            }
            Pattern::Bytes(bytes) => change(&mut self.bytes, bytes.into(), entry, add),
            Pattern::Regex(regex) => self.tried(entry, Tried::Regex(Arc::new(regex)), add),
            Pattern::Text(text) => match self.delimiters() {
                Some(delimiters) => self.place_word(entry, &text, delimiters, add),
                None => {
                    let text = if self.ignore_case { text.to_ascii_lowercase() } else { text };
                    let finder = memchr::memmem::Finder::new(text.as_bytes()).into_owned();
                    self.tried(entry, Tried::Part(Arc::new(finder)), add);
                }
            },
        }
    }

    fn tried(&mut self, entry: &Arc<Entry>, tried: Tried, add: bool) {
        if add {
            self.list.insert(entry.order(), (tried, entry.clone()));
        }
    }

    fn place_text(&mut self, entry: &Arc<Entry>, add: bool) {
        let new = if self.ignore_case {
            change_counted(&mut self.folded, (), entry, add)
        } else {
            change_counted(&mut self.exact, (), entry, add)
        };
        if self.method != Method::Str {
            count(&mut self.lengths, entry.key().len() as u32, new);
        }
    }

    fn place_word(&mut self, entry: &Arc<Entry>, text: &str, delimiters: &[u8], add: bool) {
        let is = |b: &u8| delimiters.contains(b);
        let text = text.as_bytes();
        let Some(from) = text.iter().position(|b| !is(b)) else { return };
        let to = text.iter().rposition(|b| !is(b)).map_or(from, |at| at + 1);
        let mut word = text[from..to].to_vec();
        if self.ignore_case {
            word.make_ascii_lowercase();
        }
        let len = word.len() as u32;
        let new = change_counted(&mut self.bytes, word.into(), entry, add);
        count(&mut self.lengths, len, new);
    }

    /// What words are delimited by.
    fn delimiters(&self) -> Option<&'static [u8]> {
        match self.method {
            Method::Dir => Some(b"/"),
            Method::Dom => Some(b"/?.:"),
            _ => None,
        }
    }

    /// The entry that a text matches: the finest where prefixes are compared, else the first.
    pub(super) fn text(&self, text: &[u8]) -> Option<&Arc<Entry>> {
        match self.method {
            Method::Str => self.whole(text),
            Method::Beg => self.prefix(text),
            Method::End => self.suffix(text),
            Method::Bin => first(self.bytes.find(text)),
            Method::Dir | Method::Dom if self.ignore_case => self.word(&text.to_ascii_lowercase()),
            Method::Dir | Method::Dom => self.word(text),
            Method::Sub if self.ignore_case => {
                let mut lower = SmallVec::<[u8; 256]>::from_slice(text);
                lower.make_ascii_lowercase();
                self.part(&lower)
            }
            Method::Sub => self.part(text),
            Method::Reg => self.regex(text).map(|(_, entry)| entry),
            Method::Found | Method::Bool | Method::Int | Method::Ip | Method::Len => None,
        }
    }

    fn whole(&self, text: &[u8]) -> Option<&Arc<Entry>> {
        first(if self.ignore_case { self.folded.find(text) } else { self.exact.find(text) })
    }

    /// With the case it is HAProxy's tree, where the longest prefix is found; without, its list.
    fn prefix(&self, text: &[u8]) -> Option<&Arc<Entry>> {
        let fitting = self.lengths.keys().rev().map(|len| *len as usize).filter(|len| *len <= text.len());
        let mut found = fitting.filter_map(|len| self.whole(&text[..len]));
        if self.ignore_case {
            found.reduce(|a, b| if b.order() < a.order() { b } else { a })
        } else {
            found.next()
        }
    }

    fn suffix(&self, text: &[u8]) -> Option<&Arc<Entry>> {
        let fitting = self.lengths.keys().map(|len| *len as usize).take_while(|len| *len <= text.len());
        fitting.fold(None, |best, len| earlier(best, self.whole(&text[text.len() - len..])))
    }

    /// A part of the text that stands between delimiters or at an end.
    fn word(&self, text: &[u8]) -> Option<&Arc<Entry>> {
        let delimiters = self.delimiters().unwrap_or_default();
        let is = |at: usize| text.get(at).is_none_or(|b| delimiters.contains(b));
        let mut best = None;
        for from in (0..text.len()).filter(|&at| !is(at) && (at == 0 || is(at - 1))) {
            for len in self.lengths.keys().map(|len| *len as usize) {
                if from + len > text.len() {
                    break;
                }
                if is(from + len) {
                    best = earlier(best, first(self.bytes.find(&text[from..from + len])));
                }
            }
        }
        best
    }

    fn part(&self, text: &[u8]) -> Option<&Arc<Entry>> {
        self.list.iter().find_map(|(_, (tried, entry))| match tried {
            Tried::Part(finder) => finder.find(text).map(|_| entry),
            _ => None,
        })
    }

    /// The expression that a text matches, with its entry.
    pub(super) fn regex(&self, text: &[u8]) -> Option<(&regex::bytes::Regex, &Arc<Entry>)> {
        self.list.iter().find_map(|(_, (tried, entry))| match tried {
            Tried::Regex(regex) if regex.is_match(text) => Some((&**regex, entry)),
            _ => None,
        })
    }

    /// The entry that a number matches.
    pub(super) fn number(&self, number: i64) -> Option<&Arc<Entry>> {
        let exact = first(self.numbers.find(number));
        let range = self.list.iter().find_map(|(_, (tried, entry))| match tried {
            Tried::Range(from, to) if (*from..=*to).contains(&number) => Some(entry),
            _ => None,
        });
        earlier(exact, range)
    }

    /// The entry of the smallest network that an address is in; of one with a mask that is no prefix,
    /// the first. Addresses of one family are looked for in the other's networks as section 7.1.6 has it.
    pub(super) fn address(&self, addr: IpAddr) -> Option<&Arc<Entry>> {
        match addr {
            IpAddr::V4(v4) => {
                self.net4(v4).or_else(|| self.net6(v4.to_ipv6_mapped())).or_else(|| self.masked(v4))
            }
            IpAddr::V6(v6) => self.net6(v6).or_else(|| {
                let v4 = embedded(v6)?;
                self.net4(v4).or_else(|| self.masked(v4))
            }),
        }
    }

    fn net4(&self, addr: Ipv4Addr) -> Option<&Arc<Entry>> {
        let addr = u32::from(addr);
        self.lengths.keys().rev().find_map(|len| {
            let len = *len as u8;
            first(self.nets4.find((addr & prefix4(len), len)))
        })
    }

    fn net6(&self, addr: Ipv6Addr) -> Option<&Arc<Entry>> {
        let addr = u128::from(addr);
        self.lengths6.keys().rev().find_map(|len| {
            let len = *len as u8;
            first(self.nets6.find((addr & prefix6(len), len)))
        })
    }

    fn masked(&self, addr: Ipv4Addr) -> Option<&Arc<Entry>> {
        self.list.iter().find_map(|(_, (tried, entry))| match tried {
            Tried::Mask(net, mask) if u32::from(addr) & mask == *net => Some(entry),
            _ => None,
        })
    }

    /// `tree` or `list`: what HAProxy calls it where `get map` tells how an entry is found.
    pub(super) fn kind(&self) -> &'static str {
        match (self.method, self.ignore_case) {
            (Method::Str | Method::Beg, false) | (Method::Ip, _) => "tree",
            _ => "list",
        }
    }
}

/// The IPv4 address in an IPv6 one: `::ffff:a.b.c.d`, `::a.b.c.d`, `2002:a.b.c.d::`.
fn embedded(addr: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = u128::from(addr);
    match (bits >> 32, bits >> 112) {
        (0 | 0xffff, _) => Some(Ipv4Addr::from(bits as u32)),
        (_, 0x2002) => Some(Ipv4Addr::from((bits >> 80) as u32)),
        _ => None,
    }
}

/// Puts an entry in, or takes it out.
fn change<K: Keyed>(table: &mut Sharded<K>, key: K::Key, entry: &Arc<Entry>, add: bool) {
    change_counted(table, key, entry, add);
}

/// The same; says by how much the number of keys changed.
fn change_counted<K: Keyed>(table: &mut Sharded<K>, key: K::Key, entry: &Arc<Entry>, add: bool) -> i32 {
    let before = table.keys();
    if add {
        table.insert(key, entry);
    } else {
        table.remove(&key, entry);
    }
    table.keys() as i32 - before as i32
}

fn count(lengths: &mut Lengths, len: u32, change: i32) {
    let n = lengths.entry(len).or_default();
    *n = n.saturating_add_signed(change);
    if *n == 0 {
        lengths.remove(&len);
    }
}
