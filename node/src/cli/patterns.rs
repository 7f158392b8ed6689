//! Commands on maps and ACLs: showing them, and every change of their entries.
//!
//! A change is checked against how this node's configuration uses the set, in HAProxy's words, and
//! then proposed to the [`Authority`](super::Authority): all nodes carry it out, this one before the
//! answer goes out. A reference (`#0x…`) is a number of this node alone, so it is resolved here.

use std::fmt::Write as _;
use std::sync::Arc;

use phalanx_config::Level;
use phalanx_config::model::PatternUse;
use phalanx_config::pattern::{self, Method, Output};
use phalanx_engine::pattern::{Entry, Input, PatternSet};
use phalanx_engine::registry::patterns::{KeyChange, KeyEdit, PatternAction, PatternCommand, Place};
use phalanx_engine::registry::{Command, Reply};

use super::keyword::{Answer, Call, Keyword, Run};

const fn keyword(
    words: &'static [&'static str],
    usage: &'static str,
    text: &'static str,
    level: Level,
    run: Run,
) -> Keyword {
    Keyword { words, usage, text, level, run }
}

macro_rules! later {
    ($run:expr) => {
        Run::Later(|call| Box::pin($run(call)))
    };
}

#[rustfmt::skip]
pub(super) const KEYWORDS: &[Keyword] = &[
    keyword(&["show", "acl"], "[@<ver>] <acl>]", "report available acls or dump an acl's contents",
        Level::User, Run::Now(|call| show(call, Kind::Acl))),
    keyword(&["show", "map"], "[@ver] [map]", "report available maps or dump a map's contents",
        Level::User, Run::Now(|call| show(call, Kind::Map))),
    keyword(&["get", "acl"], "<acl> <value>", "report the patterns matching a sample for an ACL",
        Level::User, Run::Now(|call| get(call, Kind::Acl))),
    keyword(&["get", "map"], "<acl> <value>", "report the keys and values matching a sample for a map",
        Level::User, Run::Now(|call| get(call, Kind::Map))),
    keyword(&["add", "acl"], "[@<ver>] <acl> <pattern>", "add an acl entry",
        Level::Operator, later!(|call| add(call, Kind::Acl))),
    keyword(&["add", "map"], "[@<ver>] <map> <key> <val>", "add a map entry (payload supported instead of key/val)",
        Level::Operator, later!(|call| add(call, Kind::Map))),
    keyword(&["set", "map"], "<map> [<key>|#<ref>] <value>", "modify a map entry",
        Level::Operator, later!(set)),
    keyword(&["del", "acl"], "<acl> [<key>|#<ref>]", "delete acl entries matching <key>",
        Level::Operator, later!(|call| del(call, Kind::Acl))),
    keyword(&["del", "map"], "<map> [<key>|#<ref>]", "delete map entries matching <key>",
        Level::Operator, later!(|call| del(call, Kind::Map))),
    keyword(&["clear", "acl"], "[@<ver>] <acl>", "clear the contents of this acl",
        Level::Operator, later!(|call| clear(call, Kind::Acl))),
    keyword(&["clear", "map"], "[@<ver>] <map>", "clear the contents of this map",
        Level::Operator, later!(|call| clear(call, Kind::Map))),
    keyword(&["prepare", "acl"], "<acl>", "prepare a new version for atomic ACL replacement",
        Level::Operator, later!(|call| prepare(call, Kind::Acl))),
    keyword(&["prepare", "map"], "<acl>", "prepare a new version for atomic map replacement",
        Level::Operator, later!(|call| prepare(call, Kind::Map))),
    keyword(&["commit", "acl"], "@<ver> <acl>", "commit the ACL at this version",
        Level::Operator, later!(|call| commit(call, Kind::Acl))),
    keyword(&["commit", "map"], "@<ver> <map>", "commit the map at this version",
        Level::Operator, later!(|call| commit(call, Kind::Map))),
];

/// Bytes of keys and values in one proposal, roughly: far below what the log takes.
const MAX_PROPOSAL: usize = 24 << 10;

/// Whether the command says `acl` or `map`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Acl,
    Map,
}

impl Kind {
    fn unknown(self) -> Answer {
        Answer::error(match self {
            Kind::Acl => "Unknown ACL identifier. Please use #<id> or <file>.",
            Kind::Map => "Unknown map identifier. Please use #<id> or <file>.",
        })
    }

    fn missing(self, what: &str) -> Answer {
        let kind = if self == Kind::Acl { "ACL" } else { "map" };
        Answer::error(format!("Missing {kind} {what}."))
    }

    /// A map that an ACL looks into is both.
    fn has(self, set: &PatternSet) -> bool {
        match self {
            Kind::Acl => used_by_acl(set),
            Kind::Map => set.source().is_map,
        }
    }
}

/// The sets of the configuration in force that are listed, by id.
fn sets(call: &Call<'_>, kind: Kind) -> Vec<Arc<PatternSet>> {
    let plan = call.ctx.state.plan();
    let listed = |set: &&Arc<PatternSet>| set.source().is_map == (kind == Kind::Map);
    let mut sets: Vec<_> = plan.patterns.iter().filter(listed).cloned().collect();
    sets.sort_by_key(|set| set.source().id);
    sets
}

/// Whether an ACL compares with the set, and not only a map.
fn used_by_acl(set: &PatternSet) -> bool {
    let source = set.source();
    !source.is_map || source.uses.iter().any(|u| u.output.is_none())
}

/// The set called `#<id>` or by its file, if it is of the kind.
fn find(call: &Call<'_>, kind: Kind, name: &str) -> Result<Arc<PatternSet>, Answer> {
    find_any(call, kind, name).and_then(|set| if kind.has(&set) { Ok(set) } else { Err(kind.unknown()) })
}

/// The same of either kind.
fn find_any(call: &Call<'_>, kind: Kind, name: &str) -> Result<Arc<PatternSet>, Answer> {
    let plan = call.ctx.state.plan();
    let found = match name.strip_prefix('#') {
        Some(id) => {
            // HAProxy reads nothing as zero.
            let id: u32 = if id.is_empty() { 0 } else { id.parse().map_err(|_| kind.unknown())? };
            plan.patterns.iter().find(|set| set.source().id == id)
        }
        None => plan.patterns.iter().find(|set| set.source().file.as_deref() == Some(name)),
    };
    found.cloned().ok_or_else(|| kind.unknown())
}

/// A version before the other words, and those.
fn versioned<'a>(call: &Call<'a>) -> Result<(Option<u32>, &'a [String]), Answer> {
    match call.args.split_first() {
        Some((first, rest)) if first.starts_with('@') => match first[1..].parse() {
            Ok(version) => Ok((Some(version), rest)),
            Err(_) => Err(Answer::error("Version number out of range.")),
        },
        _ => Ok((None, call.args)),
    }
}

fn word(args: &[String], index: usize) -> &str {
    args.get(index).map_or("", String::as_str)
}

fn show(call: &Call<'_>, kind: Kind) -> Answer {
    let (version, args) = match versioned(call) {
        Ok(words) => words,
        Err(answer) => return answer,
    };
    let registry = call.ctx.authority.registry();
    if args.is_empty() {
        let mut out = String::from("# id (file) description\n");
        for set in &sets(call, kind) {
            let (source, changed) = (set.source(), registry.patterns().set(set.identity()));
            let prepared = changed
                .map_or(0, |c| c.prepared.values().flat_map(|k| k.iter()).map(|(_, e)| e.now.len()).sum());
            let _ = writeln!(
                out,
                "{} ({}) {}. curr_ver={} next_ver={} entry_cnt={}",
                source.id,
                source.file.as_deref().unwrap_or_default(),
                source.description,
                changed.map_or(0, |c| c.current),
                changed.map_or(0, |c| c.next),
                set.entries().len() + prepared,
            );
        }
        return Answer::dump(out);
    }
    let set = match find(call, kind, word(args, 0)) {
        Ok(set) => set,
        Err(answer) => return answer,
    };
    let changed = registry.patterns().set(set.identity());
    let current = changed.map_or(0, |c| c.current);
    let mut out = String::new();
    let mut line = |reference: u64, key: &str, value: Option<&str>| {
        let _ = match value {
            Some(value) => writeln!(out, "{reference:#x} {key} {value}"),
            None => writeln!(out, "{reference:#x} {key}"),
        };
    };
    if version.is_none_or(|version| version == current) {
        set.entries().iter().for_each(|(_, e)| line(e.reference(), e.key(), e.value()));
    } else if let Some(keys) = changed.and_then(|c| c.prepared.get(&version.unwrap_or_default())) {
        let entries = keys.iter().flat_map(|(key, e)| e.now.iter().map(move |(place, v)| (place, key, v)));
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|(place, ..)| **place);
        for (place, key, value) in entries {
            let number = match place {
                Place::File(n) => u64::from(*n),
                Place::Added(n) => *n,
            };
            line(number, key, value.as_deref());
        }
    }
    Answer::dump(out)
}

fn get(call: &Call<'_>, kind: Kind) -> Answer {
    if call.args.len() < 2 {
        return kind.missing("identifier and/or key");
    }
    // HAProxy looks into a map as into an ACL.
    let looked = if kind == Kind::Acl { find_any } else { find };
    let set = match looked(call, kind, call.arg(0)) {
        Ok(set) => set,
        Err(answer) => return answer,
    };
    let mut out = String::new();
    for usage in &set.source().uses {
        looked_up(&set, usage, call.arg(1), kind, &mut out);
    }
    Answer::dump(out)
}

/// One line: how the set is used, and what the text finds in it.
fn looked_up(set: &PatternSet, usage: &PatternUse, text: &str, kind: Kind, out: &mut String) {
    let matcher = set.matcher(usage.method, usage.ignore_case);
    let case = if usage.ignore_case { "insensitive" } else { "sensitive" };
    let _ = write!(out, "type={}, case={case}, ", usage.method.name());
    let hit = if kind == Kind::Map { "found" } else { "match" };
    let input = Input::Text(text.as_bytes());
    let told = matcher.find(&input, |entry| match kind {
        Kind::Acl => format!("pattern=\"{}\"", entry.key()),
        Kind::Map => format!("key=\"{}\", {}", entry.key(), value(entry, usage.output)),
    });
    let _ = match told {
        Some(told) => writeln!(out, "{hit}=yes, idx={}, {told}", matcher.kind()),
        None if usage.method == Method::Bool && matcher.matches(&input) => {
            writeln!(out, "{hit}=yes, idx=list, pattern=unknown")
        }
        None => writeln!(out, "{hit}=no"),
    };
}

fn value(entry: &Entry, output: Option<Output>) -> String {
    let kind = match output {
        // An ACL has no use for the value.
        None => return "value=none".to_owned(),
        Some(Output::Int) => "sint",
        Some(Output::Ip) if entry.ip().is_some_and(|ip| ip.is_ipv6()) => "ipv6",
        Some(Output::Ip) => "ipv4",
        Some(Output::Str | Output::Key | Output::Regm) => "str",
    };
    format!("value=\"{}\", type=\"{kind}\"", entry.value().unwrap_or_default())
}

/// Whether a key and a value are what the configuration's use of the set wants.
fn check(set: &PatternSet, key: &str, value: Option<&str>) -> Result<(), Answer> {
    for usage in &set.source().uses {
        let fits = pattern::check(usage.method, usage.ignore_case, key);
        let fits = fits.and_then(|()| usage.output.zip(value).map_or(Ok(()), |(output, v)| output.check(v)));
        fits.map_err(|why| Answer::error(format!("{why}.")))?;
    }
    Ok(())
}

fn command(set: &PatternSet, action: PatternAction) -> Command {
    Command::Patterns(PatternCommand { set: set.identity().to_owned(), file: set.file(), action })
}

/// Proposes; `missing` is what HAProxy says when there is no such key.
async fn propose(call: &Call<'_>, command: Command, missing: &str) -> Result<Answer, Answer> {
    match call.ctx.authority.propose(command).await {
        Ok(Reply::Ok) => Ok(Answer::done()),
        Ok(Reply::Text(text)) => Ok(Answer::info(text)),
        Ok(Reply::Refused(text)) if text == "Key not found." => Err(Answer::error(missing)),
        Ok(Reply::Refused(text)) => Err(Answer::error(text)),
        Err(reason) => Err(Answer::error(format!("Not done: {reason}."))),
    }
}

/// Proposes changes in order, as many at a time as a command may carry.
async fn propose_all(
    call: &Call<'_>,
    set: &PatternSet,
    version: Option<u32>,
    changes: Vec<(String, KeyChange)>,
    missing: &str,
) -> Result<(), Answer> {
    let (mut edits, mut size) = (Vec::new(), 0);
    let mut changes = changes.into_iter().peekable();
    while let Some((key, change)) = changes.next() {
        let file = set.in_file(&key);
        size += key.len() + 64 + file.iter().flatten().map(String::len).sum::<usize>();
        size += match &change {
            KeyChange::Add(value) | KeyChange::Put(value) => value.as_ref().map_or(0, String::len),
            KeyChange::Set(value) | KeyChange::SetAt(_, value) => value.len(),
            KeyChange::Delete | KeyChange::DeleteAt(_) | KeyChange::Forget => 0,
        };
        edits.push(KeyEdit { key, file, change });
        if size >= MAX_PROPOSAL || changes.peek().is_none() {
            let edits = std::mem::take(&mut edits);
            size = 0;
            propose(call, command(set, PatternAction::Edit { version, edits }), missing).await?;
        }
    }
    Ok(())
}

async fn add(call: &Call<'_>, kind: Kind) -> Answer {
    added(call, kind).await.unwrap_or_else(|answer| answer)
}

async fn added(call: &Call<'_>, kind: Kind) -> Result<Answer, Answer> {
    let (version, args) = versioned(call)?;
    let (name, key, value) = (word(args, 0), word(args, 1), word(args, 2));
    let payload = call.payload.filter(|_| kind == Kind::Map && args.len() == 1);
    let usage = match kind {
        Kind::Acl if args.len() < 2 => "'add acl' expects two parameters: ACL identifier and pattern.",
        Kind::Map if args.len() < 3 && payload.is_none() => {
            "'add map' expects three parameters (map identifier, key and value) or one parameter (map identifier) \
             and a payload"
        }
        _ => "",
    };
    if !usage.is_empty() {
        return Err(Answer::error(usage));
    }
    let set = if kind == Kind::Acl { find_any(call, kind, name)? } else { find(call, kind, name)? };
    if kind == Kind::Acl && set.source().is_map {
        return Err(Answer::error(
            "This ACL is shared with a map containing samples. You must use the command 'add map' to add values.",
        ));
    }
    let mut wrong = None;
    let changes = match payload {
        None => {
            let value = (kind == Kind::Map).then_some(value);
            check(&set, key, value)?;
            vec![(key.to_owned(), KeyChange::Add(value.map(str::to_owned)))]
        }
        Some(payload) => {
            // What stands before a line that is wrong is carried out, as in HAProxy.
            let lines = payload.lines().map(|line| line.trim_matches([' ', '\t']));
            let mut changes = Vec::new();
            for line in lines {
                match payload_line(&set, line) {
                    Ok(change) => changes.push(change),
                    Err(answer) => {
                        wrong = Some(answer);
                        break;
                    }
                }
            }
            changes
        }
    };
    propose_all(call, &set, version, changes, "Key not found.").await?;
    wrong.map_or_else(|| Ok(Answer::done()), Err)
}

fn payload_line(set: &PatternSet, line: &str) -> Result<(String, KeyChange), Answer> {
    let Some((key, value)) = line.split_once([' ', '\t']) else {
        return Err(Answer::error(format!("Missing value for key '{line}'.")));
    };
    let value = value.trim_start_matches([' ', '\t']);
    check(set, key, Some(value))?;
    Ok((key.to_owned(), KeyChange::Add(Some(value.to_owned()))))
}

/// The number of a reference to an entry, `#0x…`; `None` = it is a key. One that is above all numbers is
/// the largest.
///
/// # Errors
/// It is no number.
fn reference(text: &str) -> Result<Option<u64>, Answer> {
    let Some(digits) = text.strip_prefix("#0x") else { return Ok(None) };
    if digits.bytes().any(|b| !b.is_ascii_hexdigit()) {
        return Err(Answer::error("Malformed identifier. Please use #<id> or <file>."));
    }
    Ok(Some(u64::from_str_radix(digits, 16).unwrap_or(if digits.is_empty() { 0 } else { u64::MAX })))
}

async fn set(call: &Call<'_>) -> Answer {
    if call.args.len() < 3 {
        return Answer::error("'set map' expects three parameters: map identifier, key and value.");
    }
    changed(call, Kind::Map, Some(call.arg(2)), "entry not found.").await.unwrap_or_else(|answer| answer)
}

async fn del(call: &Call<'_>, kind: Kind) -> Answer {
    if call.args.len() < 2 {
        return Answer::error(match kind {
            Kind::Acl => "This command expects two parameters: ACL identifier and key.",
            Kind::Map => "This command expects two parameters: map identifier and key.",
        });
    }
    changed(call, kind, None, "Key not found.").await.unwrap_or_else(|answer| answer)
}

/// `set` with a value, `del` without.
async fn changed(call: &Call<'_>, kind: Kind, value: Option<&str>, missing: &str) -> Result<Answer, Answer> {
    let set = find(call, kind, call.arg(0))?;
    if let Some(value) = value {
        for output in set.source().uses.iter().filter_map(|u| u.output) {
            output.check(value).map_err(|why| Answer::error(format!("{why}.")))?;
        }
    }
    let gone = if value.is_some() { "key or pattern not found." } else { missing };
    let (key, at) = match reference(call.arg(1))? {
        None => (call.arg(1).to_owned(), None),
        Some(number) => {
            let (entry, at) = set.by_reference(number).ok_or_else(|| Answer::error(gone))?;
            (entry.key().to_owned(), Some(at))
        }
    };
    let change = match (value.map(str::to_owned), at) {
        (Some(value), Some(at)) => KeyChange::SetAt(at, value),
        (Some(value), None) => KeyChange::Set(value),
        (None, Some(at)) => KeyChange::DeleteAt(at),
        (None, None) => KeyChange::Delete,
    };
    propose_all(call, &set, None, vec![(key, change)], missing).await?;
    Ok(Answer::done())
}

async fn clear(call: &Call<'_>, kind: Kind) -> Answer {
    let (version, args) = match versioned(call) {
        Ok(words) => words,
        Err(answer) => return answer,
    };
    if args.is_empty() {
        return kind.missing("identifier");
    }
    match find(call, kind, word(args, 0)) {
        Ok(set) => simple(call, &set, PatternAction::Clear { version }).await,
        Err(answer) => answer,
    }
}

async fn prepare(call: &Call<'_>, kind: Kind) -> Answer {
    match find(call, kind, call.arg(0)) {
        Ok(set) => simple(call, &set, PatternAction::Prepare).await,
        Err(answer) => answer,
    }
}

async fn commit(call: &Call<'_>, kind: Kind) -> Answer {
    let (version, args) = match versioned(call) {
        Ok((Some(version), args)) => (version, args),
        Ok((None, _)) => return Answer::error("Missing version number."),
        Err(answer) => return answer,
    };
    if args.is_empty() {
        return kind.missing("identifier");
    }
    match find(call, kind, word(args, 0)) {
        Ok(set) => simple(call, &set, PatternAction::Commit { version }).await,
        Err(answer) => answer,
    }
}

async fn simple(call: &Call<'_>, set: &PatternSet, action: PatternAction) -> Answer {
    propose(call, command(set, action), "Key not found.").await.unwrap_or_else(|answer| answer)
}
