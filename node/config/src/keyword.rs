//! What a keyword is: one entry of a table, which the parser, its messages and the reference listing
//! all read.
//!
//! A keyword is added by writing an entry in the file of its section under `keywords/`; nothing else
//! knows its name.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::keywords::TABLES;
use crate::line::{Args, Fault};
use crate::parser::Parser;

/// A bit set of sections.
pub(crate) type Sections = u16;

/// `global`.
pub(crate) const GLOBAL: Sections = 1;
/// `defaults`.
pub(crate) const DEFAULTS: Sections = 2;
/// `frontend`.
pub(crate) const FRONTEND: Sections = 4;
/// `listen`.
pub(crate) const LISTEN: Sections = 8;
/// `backend`.
pub(crate) const BACKEND: Sections = 16;
/// `cluster`.
pub(crate) const CLUSTER: Sections = 32;
/// `resolvers`.
pub(crate) const RESOLVERS: Sections = 64;
/// `consul`.
pub(crate) const CONSUL: Sections = 128;
/// `peers`.
pub(crate) const PEERS: Sections = 256;
/// Settings of the side that accepts.
pub(crate) const FRONT: Sections = DEFAULTS | FRONTEND | LISTEN;
/// Settings of the side that has servers.
pub(crate) const BACK: Sections = DEFAULTS | LISTEN | BACKEND;
/// Settings of both.
pub(crate) const PROXY: Sections = FRONT | BACK;

/// How many arguments a keyword takes after its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arity {
    /// Exactly so many.
    Exact(usize),
    /// At least the first, at most the second.
    Between(usize, usize),
    /// At least so many; the keyword looks at each.
    AtLeast(usize),
}

/// How a keyword takes effect.
pub(crate) type Apply = fn(&mut Parser<'_>, &Args<'_>) -> Result<(), Fault>;

/// A keyword of a section.
pub struct Keyword {
    /// Its words, such as `timeout client`.
    pub name: &'static str,
    /// What follows it.
    pub usage: &'static str,
    /// One sentence for the reference.
    pub doc: &'static str,
    /// Bit set of the sections it may stand in.
    pub(crate) sections: Sections,
    pub(crate) arity: Arity,
    /// Whether `no` and `default` may precede it.
    pub(crate) negatable: bool,
    pub(crate) apply: Apply,
}

impl Keyword {
    pub(crate) const fn new(
        name: &'static str,
        usage: &'static str,
        sections: Sections,
        arity: Arity,
        doc: &'static str,
        apply: Apply,
    ) -> Keyword {
        Keyword { name, usage, doc, sections, arity, negatable: false, apply }
    }

    /// The same keyword, also with `no` and `default` before it.
    pub(crate) const fn negatable(mut self) -> Keyword {
        self.negatable = true;
        self
    }

    /// Names of the sections it may stand in.
    pub fn sections(&self) -> impl Iterator<Item = &'static str> {
        let mask = self.sections;
        section_names(mask)
    }

    /// Whether `no` may precede it.
    pub fn takes_no(&self) -> bool {
        self.negatable
    }
}

/// Names of the sections in a bit set.
pub(crate) fn section_names(mask: Sections) -> impl Iterator<Item = &'static str> {
    let all = [
        (GLOBAL, "global"),
        (DEFAULTS, "defaults"),
        (FRONTEND, "frontend"),
        (LISTEN, "listen"),
        (BACKEND, "backend"),
        (CLUSTER, "cluster"),
        (RESOLVERS, "resolvers"),
        (CONSUL, "consul"),
        (PEERS, "peers"),
    ];
    all.into_iter().filter(move |(bit, _)| mask & bit != 0).map(|(_, name)| name)
}

/// Every keyword of every section, in order of the tables: the reference is made from it.
pub fn keywords() -> impl Iterator<Item = &'static Keyword> {
    TABLES.iter().flat_map(|table| table.iter())
}

/// The keywords whose first word is this.
pub(crate) fn family(first: &str) -> &'static [&'static Keyword] {
    static INDEX: OnceLock<HashMap<&'static str, Vec<&'static Keyword>>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        let mut index: HashMap<&'static str, Vec<&'static Keyword>> = HashMap::new();
        for keyword in keywords() {
            let first = keyword.name.split(' ').next().unwrap_or_default();
            index.entry(first).or_default().push(keyword);
        }
        index
    });
    index.get(first).map_or(&[], Vec::as_slice)
}

/// The keyword with the most words that these words begin with, and how many words it has. A name
/// may stand in several tables (`description`): one that fits the section wins.
pub(crate) fn find(words: &[&str], section: Sections) -> Option<(&'static Keyword, usize)> {
    let first = words.first()?;
    let matching = family(first).iter().filter_map(|keyword| {
        let mut length = 0;
        for part in keyword.name.split(' ') {
            if words.get(length) != Some(&part) {
                return None;
            }
            length += 1;
        }
        Some((*keyword, length))
    });
    matching.max_by_key(|(keyword, length)| (*length, keyword.sections & section != 0))
}
