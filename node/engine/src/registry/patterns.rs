//! What commands have changed of maps and ACLs.
//!
//! A set is known by the name of its file (or section and ACL). Edits stand beside what the file says:
//! each key with the entries it has now, and a digest of those that the file gave it when it was
//! edited. A node whose file says something else for that key goes by its file. `clear` and `commit`
//! replace the whole: they hold as long as the file as a whole is what it was then.
//!
//! Files are never seen here: what they say comes with the commands.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use phalanx_config::model::{PatternEntry, PatternSource};
use serde::{Deserialize, Serialize};

use super::Reply;
use crate::chunked::Chunked;

/// Bytes that all edits together may take: a bound on what the log can make a node remember.
pub const MAX_BYTES: usize = 96 << 20;

/// Entries that one key may have.
pub const MAX_PER_KEY: usize = 1024;

/// Bytes of keys in one command about a reload: far below what the log takes.
const MAX_REBASED: usize = 24 << 10;

/// Versions of one set that may have entries before one is committed.
pub const MAX_VERSIONS: usize = 16;

/// A command on one set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatternCommand {
    /// Identity of the set.
    pub set: String,
    /// Digest of its file as a whole, as the node that takes the command has it.
    pub file: u64,
    /// What to do.
    pub action: PatternAction,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PatternAction {
    /// `add`, `set`, `del`, in this order; of a version in preparation if one is given. The first that
    /// is refused ends it.
    Edit {
        /// The version.
        version: Option<u32>,
        /// What changes.
        edits: Vec<KeyEdit>,
    },
    /// `clear`; of a version in preparation if one is given.
    Clear {
        /// The version.
        version: Option<u32>,
    },
    /// `prepare`.
    Prepare,
    /// `commit`.
    Commit {
        /// The version.
        version: u32,
    },
    /// A reload changed what the file says.
    Rebase {
        /// The file as a whole before.
        from: u64,
        /// Keys with digests of what the file gave them before and gives them now.
        keys: Vec<(String, u64, u64)>,
    },
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEdit {
    /// The key.
    pub key: String,
    /// The values that the file gives it; `None` for patterns without values.
    pub file: Vec<Option<String>>,
    /// What changes.
    pub change: KeyChange,
}

/// What changes of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyChange {
    /// One more entry.
    Add(Option<String>),
    /// Another value for all its entries.
    Set(String),
    /// Another value for the entry at this place among those of the key.
    SetAt(u32, String),
    /// No entries.
    Delete,
    /// Without the entry at this place among those of the key.
    DeleteAt(u32),
    /// `http-request set-map`: another value for all, or a first entry.
    Put(Option<String>),
    /// `http-request del-map`: no entries, whether or not there were any.
    Forget,
}

/// Where an entry stands in the order of its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Place {
    /// Where the file has the key for the n-th time.
    File(u32),
    /// After the file, in order of the numbers.
    Added(u64),
}

/// The entries of an edited key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edited {
    /// Digest of the values that the file gave it.
    pub file: u64,
    /// The file of some node says something else since. Nodes whose file still says it go on with
    /// the edit; it ends when a file comes back to it.
    pub left: bool,
    /// What it has now.
    pub now: Vec<(Place, Option<String>)>,
}

/// Edited keys.
pub type Keys = Chunked<String, Edited>;

/// What `clear` or `commit` put in place of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// Digest of the file as a whole that it replaced.
    pub file: u64,
    /// As in [`Edited`].
    pub left: bool,
    /// The entries.
    pub keys: Keys,
}

/// What commands have changed of one set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// The version in force.
    pub current: u32,
    /// The last version that was given out.
    pub next: u32,
    /// Edits beside the file.
    pub edited: Keys,
    /// What stands in place of the file.
    pub replaced: Option<Replaced>,
    /// Versions in preparation.
    pub prepared: BTreeMap<u32, Keys>,
    /// Number of the last added entry.
    added: u64,
}

/// What counts for a node with a certain file.
#[derive(Clone, Copy, Debug)]
pub enum Layer<'a> {
    /// The file with these edits.
    File(&'a Keys),
    /// These entries alone.
    Alone(&'a Keys),
}

impl Set {
    /// What counts where the file's digest is this.
    pub fn layer(&self, file: u64) -> Layer<'_> {
        match &self.replaced {
            Some(replaced) if replaced.file == file => Layer::Alone(&replaced.keys),
            _ => Layer::File(&self.edited),
        }
    }
}

/// What commands have changed of all sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patterns {
    sets: BTreeMap<String, Set>,
    /// What the edits take.
    bytes: u64,
}

/// Digest of the values of a key: equal for nobody else's.
pub fn digest<'a>(values: impl Iterator<Item = Option<&'a str>>) -> u64 {
    use crate::stick::hash;
    values.fold(1, |sum, value| {
        let tag = u64::from(value.is_some());
        hash::fold(hash::bytes(sum ^ tag, value.unwrap_or_default().as_bytes()), 0x9e37_79b9_7f4a_7c15)
    })
}

/// Digest of a file as a whole.
pub fn whole<'a>(entries: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> u64 {
    use crate::stick::hash;
    entries.fold(1, |sum, (key, value)| {
        let key = hash::bytes(sum, key.as_bytes());
        hash::bytes(hash::word(key, u64::from(value.is_some())), value.unwrap_or_default().as_bytes())
    })
}

const RANGE: &str = "Version number out of range.";
const NOT_FOUND: &str = "Key not found.";

impl Patterns {
    /// What commands have changed of a set.
    pub fn set(&self, identity: &str) -> Option<&Set> {
        self.sets.get(identity)
    }

    /// All sets that were changed.
    pub fn sets(&self) -> impl Iterator<Item = (&str, &Set)> {
        self.sets.iter().map(|(name, set)| (name.as_str(), set))
    }

    /// The commands that tell the cluster what a reload changed of the files, where that concerns what
    /// commands have changed. Without them an old edit would come back to life when a file happens to
    /// say again what the edit once replaced.
    pub fn rebase_commands(
        &self,
        old: &[Arc<PatternSource>],
        new: &[Arc<PatternSource>],
    ) -> Vec<PatternCommand> {
        let named = |sources: &[Arc<PatternSource>], name: &str| {
            sources.iter().find(|s| s.identity == name).map(|s| s.entries.clone())
        };
        let mut commands = Vec::new();
        for (name, set) in &self.sets {
            let (Some(was), Some(is)) = (named(old, name), named(new, name)) else { continue };
            let file =
                |entries: &[PatternEntry]| whole(entries.iter().map(|e| (&*e.key, e.value.as_deref())));
            let (from, to) = (file(&was), file(&is));
            if from == to {
                continue;
            }
            let (was, is) = (digests(&set.edited, &was), digests(&set.edited, &is));
            let differ = set.edited.iter().filter_map(|(key, _)| {
                let none = digest(std::iter::empty());
                let of = |digests: &HashMap<&str, u64>| digests.get(key.as_str()).copied().unwrap_or(none);
                let (from, to) = (of(&was), of(&is));
                (from != to).then(|| (key.clone(), from, to))
            });
            // At least one, for what stands in place of the file as a whole.
            let mut pieces = vec![Vec::new()];
            let mut size = 0;
            for key in differ {
                size += key.0.len() + 32;
                if size > MAX_REBASED {
                    pieces.push(Vec::new());
                    size = key.0.len() + 32;
                }
                pieces.last_mut().expect("never empty").push(key);
            }
            commands.extend(pieces.into_iter().map(|keys| {
                let action = PatternAction::Rebase { from, keys };
                PatternCommand { set: name.clone(), file: to, action }
            }));
        }
        commands
    }

    pub(super) fn apply(&mut self, command: &PatternCommand) -> Reply {
        let set = self.sets.entry(command.set.clone()).or_default();
        let before = self.bytes;
        let reply = match &command.action {
            PatternAction::Edit { version, edits } => {
                set.edit(command.file, *version, edits, &mut self.bytes)
            }
            PatternAction::Clear { version } => set.clear(command.file, *version, &mut self.bytes),
            PatternAction::Prepare => set.prepare(),
            PatternAction::Commit { version } => set.commit(command.file, *version, &mut self.bytes),
            PatternAction::Rebase { from, keys } => set.rebase(*from, command.file, keys, &mut self.bytes),
        };
        debug_assert!(self.bytes <= MAX_BYTES as u64 || self.bytes <= before);
        if self.sets.get(&command.set).is_some_and(|set| *set == Set::default()) {
            self.sets.remove(&command.set);
        }
        reply
    }
}

impl Set {
    fn edit(&mut self, file: u64, version: Option<u32>, edits: &[KeyEdit], bytes: &mut u64) -> Reply {
        let version = version.filter(|v| *v != self.current);
        let alone = matches!(self.layer(file), Layer::Alone(_)) || version.is_some();
        let keys = match version {
            Some(version) if !self.in_preparation(version) => return Reply::refused(RANGE),
            Some(version) if self.prepared.len() >= MAX_VERSIONS && !self.prepared.contains_key(&version) => {
                return Reply::refused("Too many versions are in preparation: commit or clear one of them.");
            }
            Some(version) => self.prepared.entry(version).or_default(),
            None => match &mut self.replaced {
                Some(replaced) if replaced.file == file => &mut replaced.keys,
                _ => &mut self.edited,
            },
        };
        for edit in edits {
            let values = if alone { &[][..] } else { &edit.file };
            if let Err(reply) = change(keys, edit, values, &mut self.added, bytes) {
                return reply;
            }
        }
        Reply::Ok
    }

    /// Whether entries may be added for this version.
    fn in_preparation(&self, version: u32) -> bool {
        version > self.current && version <= self.next
    }

    fn clear(&mut self, file: u64, version: Option<u32>, bytes: &mut u64) -> Reply {
        match version.filter(|v| *v != self.current) {
            // What is not there is empty already.
            Some(version) => forget(self.prepared.remove(&version).as_ref(), bytes),
            None => self.replace(file, Keys::default(), bytes),
        }
        Reply::Ok
    }

    fn replace(&mut self, file: u64, keys: Keys, bytes: &mut u64) {
        forget(self.replaced.take().as_ref().map(|r| &r.keys), bytes);
        forget(Some(&std::mem::take(&mut self.edited)), bytes);
        self.replaced = Some(Replaced { file, left: false, keys });
    }

    fn prepare(&mut self) -> Reply {
        match self.next.checked_add(1) {
            Some(next) => self.next = next,
            None => return Reply::refused("No version number is left."),
        }
        Reply::Text(format!("New version created: {}", self.next))
    }

    fn commit(&mut self, file: u64, version: u32, bytes: &mut u64) -> Reply {
        if !self.in_preparation(version) {
            return Reply::refused(RANGE);
        }
        let keys = self.prepared.remove(&version).unwrap_or_default();
        self.replace(file, keys, bytes);
        self.current = version;
        let later = self.prepared.split_off(&version);
        for past in std::mem::replace(&mut self.prepared, later).values() {
            forget(Some(past), bytes);
        }
        Reply::Ok
    }

    /// As for servers: nodes reload one after the other, so what a file moved away from is only
    /// marked, and ends when a file comes back to it.
    fn rebase(&mut self, from: u64, to: u64, keys: &[(String, u64, u64)], bytes: &mut u64) -> Reply {
        if let Some(replaced) = &mut self.replaced {
            match (from == replaced.file, to == replaced.file) {
                (true, false) => replaced.left = true,
                (false, true) if replaced.left => {
                    forget(self.replaced.take().as_ref().map(|r| &r.keys), bytes);
                }
                _ => {}
            }
        }
        for (key, from, to) in keys {
            let Some(edited) = self.edited.get(key) else { continue };
            match (*from == edited.file, *to == edited.file) {
                (true, false) if !edited.left => {
                    let marked = Edited { left: true, ..edited.clone() };
                    self.edited.insert(key.clone(), marked);
                }
                (false, true) if edited.left => {
                    *bytes = bytes.saturating_sub(size(key, edited));
                    self.edited.remove(key);
                }
                _ => {}
            }
        }
        Reply::Ok
    }
}

/// What a file gives the edited keys, as digests.
fn digests<'a>(edited: &Keys, entries: &'a [PatternEntry]) -> HashMap<&'a str, u64> {
    let mut values: HashMap<&str, Vec<Option<&str>>> = HashMap::new();
    for entry in entries.iter().filter(|e| edited.get(&e.key.to_string()).is_some()) {
        values.entry(&entry.key).or_default().push(entry.value.as_deref());
    }
    values.into_iter().map(|(key, values)| (key, digest(values.into_iter()))).collect()
}

/// Carries out one change, where the file gives the key these values.
fn change(
    keys: &mut Keys,
    edit: &KeyEdit,
    values: &[Option<String>],
    added: &mut u64,
    bytes: &mut u64,
) -> Result<(), Reply> {
    let file = digest(values.iter().map(Option::as_deref));
    let from_file = || values.iter().enumerate().map(|(n, v)| (Place::File(n as u32), v.clone())).collect();
    let edited = keys.get(&edit.key);
    let before = edited.map_or(0, |e| size(&edit.key, e));
    let mut now: Vec<(Place, Option<String>)> = match edited {
        Some(edited) if edited.file == file => edited.now.clone(),
        _ => from_file(),
    };
    let missing = || Reply::refused(NOT_FOUND);
    match &edit.change {
        KeyChange::Add(value) => {
            *added += 1;
            now.push((Place::Added(*added), value.clone()));
        }
        KeyChange::Put(value) if now.is_empty() => {
            *added += 1;
            now.push((Place::Added(*added), value.clone()));
        }
        KeyChange::Put(value) => now.iter_mut().for_each(|(_, v)| v.clone_from(value)),
        KeyChange::Set(_) | KeyChange::Delete if now.is_empty() => return Err(missing()),
        KeyChange::Set(value) => now.iter_mut().for_each(|(_, v)| *v = Some(value.clone())),
        KeyChange::Delete | KeyChange::Forget => now.clear(),
        KeyChange::SetAt(at, value) => {
            now.get_mut(*at as usize).ok_or_else(missing)?.1 = Some(value.clone());
        }
        KeyChange::DeleteAt(at) => {
            if *at as usize >= now.len() {
                return Err(missing());
            }
            now.remove(*at as usize);
        }
    }
    if now.len() > MAX_PER_KEY {
        return Err(Reply::refused("Too many entries of this key."));
    }
    let edited = Edited { file, left: false, now };
    let after = size(&edit.key, &edited);
    if *bytes - before + after > MAX_BYTES as u64 && after > before {
        return Err(Reply::refused("Too much was added at run time: put it into the file."));
    }
    let as_in_file: Vec<_> = from_file();
    if edited.now == as_in_file {
        keys.remove(&edit.key);
        *bytes -= before;
    } else {
        keys.insert(edit.key.clone(), edited);
        *bytes = *bytes - before + after;
    }
    Ok(())
}

/// What an edited key takes, roughly.
fn size(key: &str, edited: &Edited) -> u64 {
    let values = edited.now.iter().map(|(_, v)| 48 + v.as_ref().map_or(0, String::len)).sum::<usize>();
    (64 + key.len() + values) as u64
}

fn forget(keys: Option<&Keys>, bytes: &mut u64) {
    let gone: u64 = keys.into_iter().flat_map(Keys::iter).map(|(key, edited)| size(key, edited)).sum();
    *bytes = bytes.saturating_sub(gone);
}

#[cfg(test)]
mod tests;
