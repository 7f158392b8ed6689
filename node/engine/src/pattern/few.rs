//! A few patterns in one small piece of memory, compared one after the other.
//!
//! Most ACLs have one or two patterns. Hashing a text for them, and following pointers to each, costs
//! more than comparing it with all. Only says whether one matches, which is all that an ACL asks;
//! [`Index`](super::index::Index) knows which.

use std::net::Ipv4Addr;

use phalanx_config::pattern::{Method, prefix4};

/// Most patterns that are compared one after the other.
const MOST: usize = 8;

#[derive(Clone, Debug)]
pub(super) enum Few {
    Texts(Texts),
    Nets(Nets),
}

/// Texts, each behind its length.
#[derive(Clone, Debug)]
pub(super) struct Texts(Box<[u8]>);

/// Networks with their masks.
#[derive(Clone, Debug)]
pub(super) struct Nets(Box<[(u32, u32)]>);

impl Few {
    /// So many texts, if they are few and none is long.
    pub(super) fn texts<'t>(count: usize, texts: impl Iterator<Item = &'t [u8]>) -> Option<Few> {
        if count > MOST {
            return None;
        }
        let mut all = Vec::new();
        for text in texts {
            all.push(u8::try_from(text.len()).ok()?);
            all.extend_from_slice(text);
        }
        Some(Few::Texts(Texts(all.into())))
    }

    /// So many networks, if they are few: address and length of the prefix.
    pub(super) fn nets(count: usize, nets: impl Iterator<Item = (u32, u8)>) -> Option<Few> {
        (count <= MOST).then(|| Few::Nets(Nets(nets.map(|(addr, len)| (addr, prefix4(len))).collect())))
    }
}

impl Texts {
    /// Them all.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (&len, more) = rest.split_first()?;
            let (pattern, others) = more.split_at_checked(usize::from(len))?;
            rest = others;
            Some(pattern)
        })
    }

    /// Whether one is the text, or its beginning, or its end.
    pub(super) fn matches(&self, method: Method, ignore_case: bool, text: &[u8]) -> bool {
        self.iter().any(|pattern| {
            let part = match method {
                Method::Beg => text.get(..pattern.len()),
                Method::End => text.len().checked_sub(pattern.len()).and_then(|from| text.get(from..)),
                _ => Some(text),
            };
            part.is_some_and(|part| match ignore_case {
                true => part.eq_ignore_ascii_case(pattern),
                false => part == pattern,
            })
        })
    }
}

impl Nets {
    /// Them all, with their masks.
    pub(super) fn all(&self) -> &[(u32, u32)] {
        &self.0
    }

    /// Whether the address is in one.
    pub(super) fn matches(&self, addr: Ipv4Addr) -> bool {
        self.0.iter().any(|(net, mask)| addr.to_bits() & mask == *net)
    }
}
