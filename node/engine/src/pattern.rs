//! Sets of patterns at run time: what ACLs and maps look samples up in.
//!
//! A [`PatternSet`] is one file (or the patterns of one ACL) with what commands have changed of it; a
//! [`Matcher`] is one way of looking into it. Workers read a matcher without a lock; the control plane
//! replaces what it reads after every agreed change, and changes only what that change touches.
//! [`State`](crate::state::State) owns the sets and calls [`Sets::load`] and [`Sets::follow`].

mod entry;
mod few;
mod index;
mod keys;
mod queue;
mod sharded;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, fence};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use parking_lot::Mutex;
use phalanx_config::model::{PatternEntry, PatternSource, PatternUse};
use phalanx_config::pattern::Method;

pub use self::entry::Entry;
use self::index::Index;
use self::keys::Exact;
pub use self::queue::{Asked, Edit, Queue};
use self::sharded::Sharded;
use crate::chunked::Chunked;
use crate::near::{self, Shelf};
use crate::registry::patterns::{self, Keys, Layer, Patterns, Place};

/// A sample that is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// A boolean.
    Bool(bool),
    /// A number.
    Int(i64),
    /// An address.
    Ip(IpAddr),
    /// A string or bytes.
    Text(&'a [u8]),
}

/// One way of looking into a set.
#[derive(Debug)]
pub struct Matcher {
    method: Method,
    ignore_case: bool,
    /// No other matcher of this process has it.
    number: u64,
    index: ArcSwap<Index>,
    /// Grows after every change of `index`.
    version: AtomicU64,
    /// Somebody has made something of its [`Short`] patterns.
    is_read: AtomicBool,
}

/// All patterns of a matcher that has few.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// Whole texts, beginnings or ends.
    Texts(Vec<Vec<u8>>),
    /// Parts of texts; in lower case where case is ignored.
    Parts(Vec<String>),
    /// IPv4 networks with their masks.
    Nets(Vec<(u32, u32)>),
    /// Numbers, from and to.
    Ranges(Vec<(i64, i64)>),
}

thread_local! {
    pub(crate) static INDEXES: Shelf<Index> = const { Shelf::new(Vec::new()) };
}

static SHORT_CHANGES: AtomicU64 = AtomicU64::new(0);

/// Changes after every change of a matcher that was asked for its [`Short`] patterns.
pub(crate) fn short_changes() -> u64 {
    SHORT_CHANGES.load(Acquire)
}

impl Matcher {
    fn new(method: Method, ignore_case: bool, index: Index) -> Matcher {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let (index, version) = (ArcSwap::from_pointee(index), AtomicU64::new(0));
        let (number, is_read) = (NUMBER.fetch_add(1, Relaxed), AtomicBool::new(false));
        Matcher { method, ignore_case, number, index, version, is_read }
    }

    fn replace(&self, index: Index) {
        self.index.store(Arc::new(index));
        self.version.fetch_add(1, Release);
        // With the fence of `short`: either who reads sees this index, or this sees that it reads.
        fence(SeqCst);
        if self.is_read.load(Relaxed) {
            SHORT_CHANGES.fetch_add(1, Release);
        }
    }

    /// All its patterns, if they are few; [`short_changes`] tells when they are others.
    pub(crate) fn short(&self) -> Option<Short> {
        self.is_read.store(true, Relaxed);
        fence(SeqCst);
        self.index.load().short()
    }

    /// Calls `with` with the index as it is.
    fn look<R>(&self, with: impl FnOnce(&Index) -> R) -> R {
        // Read before the index is: that may then be a later one, which the next look replaces.
        let version = self.version.load(Acquire);
        near::look(&INDEXES, (self.number, version), || self.index.load_full(), with)
    }

    /// How it compares.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Whether upper and lower case are alike.
    pub fn ignore_case(&self) -> bool {
        self.ignore_case
    }

    /// `tree` or `list`, as `get map` has it.
    pub fn kind(&self) -> &'static str {
        self.index.load().kind()
    }

    /// Whether the sample matches.
    pub fn matches(&self, input: &Input<'_>) -> bool {
        match self.method {
            Method::Found => true,
            Method::Bool => match input {
                Input::Bool(is) => *is,
                Input::Int(n) => *n != 0,
                Input::Text(text) => number(text).is_some_and(|n| n != 0),
                Input::Ip(_) => false,
            },
            _ => self.look(|index| index.says(input).unwrap_or_else(|| self.find_in(index, input).is_some())),
        }
    }

    /// What `with` makes of the entry that the sample matches; of several the finest in a tree, else
    /// the first.
    pub fn find<R>(&self, input: &Input<'_>, with: impl FnOnce(&Entry) -> R) -> Option<R> {
        self.look(|index| self.find_in(index, input).map(|entry| with(entry)))
    }

    /// The value of the expression that the text matches, with `\0` to `\9` replaced by what its groups
    /// matched (`map_regm`).
    pub fn expand(&self, input: &Input<'_>) -> Option<Vec<u8>> {
        let index = self.index.load();
        let mut space = Space { bytes: [0; 48], len: 0 };
        let text = space.text(input);
        let (regex, entry) = index.regex(text)?;
        let groups = regex.captures(text)?;
        let mut out = Vec::new();
        let mut value = entry.value()?.bytes();
        while let Some(byte) = value.next() {
            match byte {
                b'\\' => match value.next() {
                    Some(digit @ b'0'..=b'9') => {
                        let group = groups.get(usize::from(digit - b'0'));
                        out.extend_from_slice(group.map_or(b"", |g| g.as_bytes()));
                    }
                    Some(other) => out.push(other),
                    None => out.push(b'\\'),
                },
                byte => out.push(byte),
            }
        }
        Some(out)
    }

    fn find_in<'i>(&self, index: &'i Index, input: &Input<'_>) -> Option<&'i Arc<Entry>> {
        let mut space = Space { bytes: [0; 48], len: 0 };
        match (self.method, *input) {
            (Method::Int, Input::Bool(is)) => index.number(i64::from(is)),
            (Method::Int, Input::Int(n)) => index.number(n),
            (Method::Int, Input::Text(text)) => index.number(number(text)?),
            (Method::Int, Input::Ip(_)) => None,
            (Method::Ip, Input::Ip(addr)) => index.address(addr),
            (Method::Ip, Input::Text(text)) => index.address(std::str::from_utf8(text).ok()?.parse().ok()?),
            (Method::Ip, _) => None,
            (Method::Len, input) => index.number(space.text(&input).len() as i64),
            (_, Input::Text(text)) => index.text(text),
            (_, input) => index.text(space.text(&input)),
        }
    }
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Room for a number or an address as text.
struct Space {
    bytes: [u8; 48],
    len: usize,
}

impl Space {
    fn text<'s>(&'s mut self, input: &Input<'s>) -> &'s [u8] {
        let fits = match input {
            Input::Text(text) => return text,
            Input::Bool(is) => write!(self, "{}", u8::from(*is)),
            Input::Int(n) => write!(self, "{n}"),
            Input::Ip(addr) => write!(self, "{addr}"),
        };
        debug_assert!(fits.is_ok());
        &self.bytes[..self.len]
    }
}

impl std::fmt::Write for Space {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// First order of added entries: above those of any file.
const ADDED: u64 = 1 << 40;

/// One file, or the patterns of one ACL, with what commands have changed of it.
#[derive(Debug)]
pub struct PatternSet {
    identity: String,
    seed: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: Arc<PatternSource>,
    /// Digest of the file as a whole.
    file: u64,
    /// What the file says, by key.
    in_file: Sharded<Exact>,
    /// What counts, by key and in order.
    by_key: Sharded<Exact>,
    entries: Chunked<u64, Arc<Entry>>,
    /// The edits that `entries` has been brought in line with; whether they stand alone.
    alone: bool,
    keys: Keys,
    matchers: Vec<Arc<Matcher>>,
    /// The matchers have not been told of `entries` as a whole yet.
    behind: bool,
}

impl PatternSet {
    fn new(source: Arc<PatternSource>, seed: u64) -> PatternSet {
        let inner = Inner {
            file: 0,
            in_file: Sharded::new(seed, 0),
            by_key: Sharded::new(seed, 0),
            entries: Chunked::default(),
            alone: false,
            keys: Keys::default(),
            matchers: Vec::new(),
            behind: false,
            source: source.clone(),
        };
        let set = PatternSet { identity: source.identity.clone(), seed, inner: Mutex::new(inner) };
        set.inner.lock().read(seed);
        set
    }

    /// What it is known by beyond one configuration.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What the configuration says of it.
    pub fn source(&self) -> Arc<PatternSource> {
        self.inner.lock().source.clone()
    }

    /// Digest of its file.
    pub fn file(&self) -> u64 {
        self.inner.lock().file
    }

    /// The values that its file gives a key.
    pub fn in_file(&self, key: &str) -> Vec<Option<String>> {
        values(&self.inner.lock().in_file, key)
    }

    /// All entries, in order.
    pub fn entries(&self) -> Chunked<u64, Arc<Entry>> {
        self.inner.lock().entries.clone()
    }

    /// The entry of this number, with its place among those of its key.
    pub fn by_reference(&self, reference: u64) -> Option<(Arc<Entry>, u32)> {
        let inner = self.inner.lock();
        let entry = inner.entries.iter().map(|(_, e)| e).find(|e| e.reference() == reference)?.clone();
        let same = inner.by_key.find(entry.key().as_bytes())?;
        let at = same.all().iter().position(|e| e.reference() == reference)?;
        Some((entry, at as u32))
    }

    /// The values that a key has now.
    pub fn values(&self, key: &str) -> Vec<Option<String>> {
        values(&self.inner.lock().by_key, key)
    }

    /// Digest of what counts: equal on nodes that have the same entries in the same order.
    pub fn digest(&self) -> u64 {
        patterns::whole(self.entries().iter().map(|(_, e)| (e.key(), e.value())))
    }

    /// A way of looking into it; the same one for the same question.
    pub fn matcher(&self, method: Method, ignore_case: bool) -> Arc<Matcher> {
        let mut inner = self.inner.lock();
        let same = |m: &&Arc<Matcher>| m.method == method && m.ignore_case == ignore_case;
        if let Some(matcher) = inner.matchers.iter().find(same) {
            return matcher.clone();
        }
        let index = inner.index(method, ignore_case, self.seed);
        let matcher = Arc::new(Matcher::new(method, ignore_case, index));
        inner.matchers.push(matcher.clone());
        matcher
    }

    fn load(&self, source: &Arc<PatternSource>, patterns: &Patterns) {
        let mut inner = self.inner.lock();
        let same = inner.source.entries == source.entries;
        inner.source = source.clone();
        if !same {
            inner.read(self.seed);
        }
        // Those of former configurations that nobody asks for any more.
        inner.matchers.retain(|m| Arc::strong_count(m) > 1);
        inner.follow(patterns.set(&self.identity), self.seed);
    }

    fn follow(&self, patterns: &Patterns) {
        self.inner.lock().follow(patterns.set(&self.identity), self.seed);
    }
}

impl Inner {
    /// Takes over what the source says; edits are for [`Inner::follow`].
    fn read(&mut self, seed: u64) {
        let said = self.source.entries.clone();
        self.file = file_digest(&said);
        self.in_file = Sharded::new(seed, said.len());
        let entries = said.iter().enumerate().map(|(order, e)| {
            let entry = Entry::new(order as u64, &e.key, e.value.as_deref());
            self.in_file.insert((), &entry);
            (order as u64, entry)
        });
        self.entries = Chunked::from_sorted(entries);
        self.by_key = self.in_file.clone();
        self.alone = false;
        self.keys = Keys::default();
        self.behind = true;
    }

    fn index(&self, method: Method, ignore_case: bool, seed: u64) -> Index {
        let mut index = Index::new(method, ignore_case, seed, self.entries.len());
        self.entries.iter().for_each(|(_, entry)| index.insert(entry));
        index.settle();
        index
    }

    fn index_all(&self, seed: u64) {
        for matcher in &self.matchers {
            matcher.replace(self.index(matcher.method, matcher.ignore_case, seed));
        }
    }

    /// Brings the entries in line with what commands have changed.
    fn follow(&mut self, set: Option<&patterns::Set>, seed: u64) {
        let none = Keys::default();
        let (alone, keys) = match set.map(|set| set.layer(self.file)) {
            Some(Layer::Alone(keys)) => (true, keys),
            Some(Layer::File(keys)) => (false, keys),
            None => (false, &none),
        };
        let keys = keys.clone();
        if alone != self.alone {
            self.start_over(alone, seed);
        }
        let differing = keys.differing(&self.keys);
        self.keys = keys;
        let mut changes = Vec::new();
        for key in &differing {
            self.bring_in_line(key, &mut changes);
        }
        if std::mem::take(&mut self.behind) {
            return self.index_all(seed);
        }
        if changes.is_empty() {
            return;
        }
        for matcher in &self.matchers {
            let mut index = Index::clone(&matcher.index.load());
            for (entry, added) in &changes {
                if *added { index.insert(entry) } else { index.remove(entry) }
            }
            index.settle();
            matcher.replace(index);
        }
    }

    /// From the file, or from nothing. Workers see nothing of it until all edits are in.
    fn start_over(&mut self, alone: bool, seed: u64) {
        self.alone = alone;
        self.keys = Keys::default();
        if alone {
            self.entries = Chunked::default();
            self.by_key = Sharded::new(seed, 0);
        } else {
            let mut entries: Vec<(u64, Arc<Entry>)> =
                self.in_file.iter().map(|entry| (entry.order(), entry.clone())).collect();
            entries.sort_by_key(|(order, _)| *order);
            self.entries = Chunked::from_sorted(entries);
            self.by_key = self.in_file.clone();
        }
        self.behind = true;
    }

    /// Gives one key the entries that it is to have; says which went and which came.
    fn bring_in_line(&mut self, key: &str, changes: &mut Vec<(Arc<Entry>, bool)>) {
        let slot = self.by_key.find(key.as_bytes());
        let have: Vec<Arc<Entry>> = slot.map(|slot| slot.all().to_vec()).unwrap_or_default();
        let want = self.wanted(key);
        let stays = |list: &[Arc<Entry>], e: &Entry| {
            list.iter().any(|o| o.order() == e.order() && o.value() == e.value())
        };
        for entry in have.iter().filter(|e| !stays(&want, e)) {
            self.by_key.remove(&(), entry);
            self.entries.remove(&entry.order());
            changes.push((entry.clone(), false));
        }
        for entry in want.iter().filter(|e| !stays(&have, e)) {
            self.by_key.insert((), entry);
            self.entries.insert(entry.order(), entry.clone());
            changes.push((entry.clone(), true));
        }
    }

    fn wanted(&self, key: &str) -> Vec<Arc<Entry>> {
        let said: &[Arc<Entry>] = match self.in_file.find(key.as_bytes()) {
            Some(slot) if !self.alone => slot.all(),
            _ => &[],
        };
        let edited = self.keys.get(&key.to_owned());
        let digest = || patterns::digest(said.iter().map(|e| e.value()));
        let Some(edited) = edited.filter(|e| e.file == digest()) else { return said.to_vec() };
        let entry = |(place, value): &(Place, Option<String>)| {
            let order = match place {
                Place::Added(n) => ADDED + n,
                Place::File(n) => {
                    let said = said.get(*n as usize)?;
                    if said.value() == value.as_deref() {
                        return Some(said.clone());
                    }
                    said.order()
                }
            };
            Some(Entry::new(order, key, value.as_deref()))
        };
        edited.now.iter().filter_map(entry).collect()
    }
}

fn values(table: &Sharded<Exact>, key: &str) -> Vec<Option<String>> {
    let entries = table.find(key.as_bytes()).into_iter().flat_map(|slot| slot.all());
    entries.map(|e| e.value().map(str::to_owned)).collect()
}

/// Digest of what a source says.
fn file_digest(entries: &[PatternEntry]) -> u64 {
    patterns::whole(entries.iter().map(|e| (&*e.key, e.value.as_deref())))
}

/// The sets of a node.
#[derive(Debug, Default)]
pub struct Sets {
    seed: u64,
    sets: Mutex<HashMap<String, Arc<PatternSet>>>,
}

impl Sets {
    /// None yet. The seed keeps others from aiming keys at one place of an index.
    pub(crate) fn new(seed: u64) -> Sets {
        Sets { seed, sets: Mutex::default() }
    }

    /// The sets of a configuration, in its order; those that exist already follow their files, and
    /// what commands have changed goes on where the file did not change it.
    pub(crate) fn load(&self, sources: &[Arc<PatternSource>], patterns: &Patterns) -> Vec<Arc<PatternSet>> {
        let mut known = self.sets.lock();
        let mut kept = HashMap::new();
        let sets = sources.iter().map(|source| {
            let set = match known.remove(&source.identity) {
                Some(set) => {
                    set.load(source, patterns);
                    set
                }
                None => {
                    let set = Arc::new(PatternSet::new(source.clone(), self.seed));
                    set.follow(patterns);
                    set
                }
            };
            kept.insert(source.identity.clone(), set.clone());
            set
        });
        let sets = sets.collect();
        *known = kept;
        sets
    }

    /// Brings the sets in line with what commands have changed.
    pub(crate) fn follow(&self, patterns: &Patterns) {
        self.sets.lock().values().for_each(|set| set.follow(patterns));
    }
}

/// The way of looking that a line of the configuration asks for.
pub fn matcher(sets: &[Arc<PatternSet>], usage: &PatternUse) -> Option<Arc<Matcher>> {
    Some(sets.get(usage.set)?.matcher(usage.method, usage.ignore_case))
}

#[cfg(test)]
mod tests;
