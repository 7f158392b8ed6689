//! The kinds of keys that indexes have.

use super::entry::Entry;
use super::sharded::Keyed;
use crate::stick::hash;

/// The text of the entry itself.
#[derive(Debug)]
pub(super) enum Exact {}

/// The text of the entry itself, upper and lower case alike.
#[derive(Debug)]
pub(super) enum Folded {}

/// Bytes that are not the entry's text.
#[derive(Debug)]
pub(super) enum Bytes {}

/// A number.
#[derive(Debug)]
pub(super) enum Number {}

/// An IPv4 prefix: address and length.
#[derive(Debug)]
pub(super) enum Net4 {}

/// An IPv6 prefix: address and length.
#[derive(Debug)]
pub(super) enum Net6 {}

impl Keyed for Exact {
    type Key = ();
    type Ask<'a> = &'a [u8];

    fn ask<'a>((): &'a (), first: &'a Entry) -> &'a [u8] {
        first.key_bytes()
    }

    fn hash(ask: &[u8], seed: u64) -> u64 {
        hash::text(seed, ask)
    }

    fn same(a: &[u8], b: &[u8]) -> bool {
        a == b
    }
}

impl Keyed for Folded {
    type Key = ();
    type Ask<'a> = &'a [u8];

    fn ask<'a>((): &'a (), first: &'a Entry) -> &'a [u8] {
        first.key_bytes()
    }

    fn hash(ask: &[u8], seed: u64) -> u64 {
        let mut lower = [0; 128];
        match lower.get_mut(..ask.len()) {
            Some(lower) => {
                lower.copy_from_slice(ask);
                lower.make_ascii_lowercase();
                hash::text(seed, lower)
            }
            None => hash::text(seed, &ask.to_ascii_lowercase()),
        }
    }

    fn same(a: &[u8], b: &[u8]) -> bool {
        a.eq_ignore_ascii_case(b)
    }
}

impl Keyed for Bytes {
    type Key = Box<[u8]>;
    type Ask<'a> = &'a [u8];

    fn ask<'a>(key: &'a Box<[u8]>, _: &'a Entry) -> &'a [u8] {
        key
    }

    fn hash(ask: &[u8], seed: u64) -> u64 {
        hash::text(seed, ask)
    }

    fn same(a: &[u8], b: &[u8]) -> bool {
        a == b
    }
}

impl Keyed for Number {
    type Key = i64;
    type Ask<'a> = i64;

    fn ask<'a>(key: &'a i64, _: &'a Entry) -> i64 {
        *key
    }

    fn hash(ask: i64, seed: u64) -> u64 {
        hash::word(seed, ask as u64)
    }

    fn same(a: i64, b: i64) -> bool {
        a == b
    }
}

impl Keyed for Net4 {
    type Key = (u32, u8);
    type Ask<'a> = (u32, u8);

    fn ask<'a>(key: &'a (u32, u8), _: &'a Entry) -> (u32, u8) {
        *key
    }

    fn hash((addr, len): (u32, u8), seed: u64) -> u64 {
        hash::word(seed, u64::from(addr) << 8 | u64::from(len))
    }

    fn same(a: (u32, u8), b: (u32, u8)) -> bool {
        a == b
    }
}

impl Keyed for Net6 {
    type Key = (u128, u8);
    type Ask<'a> = (u128, u8);

    fn ask<'a>(key: &'a (u128, u8), _: &'a Entry) -> (u128, u8) {
        *key
    }

    fn hash((addr, len): (u128, u8), seed: u64) -> u64 {
        hash::word(hash::word(seed ^ u64::from(len), (addr >> 64) as u64), addr as u64)
    }

    fn same(a: (u128, u8), b: (u128, u8)) -> bool {
        a == b
    }
}
