//! `show table`, `set table`, `clear table`.

use std::fmt::Write as _;
use std::sync::Arc;

use phalanx_config::{KeyType, Level};
use phalanx_engine::stick::{
    self, Cleared, Data, Input, Key, Kind, OwnKey, PartKind, Row, Scratch, SetError, Table,
};
use phalanx_engine::time::Now;

use super::keyword::{Answer, Call, Keyword, Run};

pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["show", "table"],
        usage: "<table> [detail] [<filter>]*",
        text: "report table usage stats or dump this table's contents (filter: data/key/ptr)",
        level: Level::User,
        run: Run::Now(show),
    },
    Keyword {
        words: &["set", "table"],
        usage: "<table> {key <k>|ptr <p>} [data.* <v>]*",
        text: "update or create a table entry's data",
        level: Level::Admin,
        run: Run::Now(set),
    },
    Keyword {
        words: &["clear", "table"],
        usage: "<table> [<filter>]*",
        text: "remove an entry from a table (filter: data/key/ptr)",
        level: Level::Admin,
        run: Run::Now(clear),
    },
];

/// `data.<type>` filters that one command may have.
const MAX_FILTERS: usize = 4;

fn find(call: &Call<'_>) -> Result<Arc<Table>, Answer> {
    call.ctx.tables().get(call.arg(0)).ok_or_else(|| Answer::error("No such table"))
}

fn show(call: &Call<'_>) -> Answer {
    let mut out = String::new();
    if call.args.is_empty() {
        for table in call.ctx.tables().list() {
            header(&table, &mut out);
        }
        return Answer::dump(out);
    }
    let table = match find(call) {
        Ok(table) => table,
        Err(answer) => return answer,
    };
    let detail = call.arg(1) == "detail";
    let selection = match Selection::parse(
        &table,
        &call.args[if detail { 2 } else { 1 }..],
        "Optional argument only supports \"data.<store_data_type>\" <operator> <value> and key <key>",
    ) {
        Ok(selection) => selection,
        Err(answer) => return answer,
    };
    if call.level < Level::Operator && (detail || !matches!(selection, Selection::All)) {
        return Answer::error("Permission denied");
    }
    match selection {
        Selection::Key(text) => {
            let mut scratch = Scratch::default();
            let Some(key) = key(&table, text, &mut scratch) else { return invalid_key(&table) };
            show_one(&table, &key, detail, call.now, &mut out);
        }
        Selection::Ptr(ptr) => {
            if let Some(key) = at(&table, ptr, call.now) {
                show_one(&table, &key.borrow(), detail, call.now, &mut out);
            }
        }
        Selection::All if call.level < Level::Operator => {
            header(&table, &mut out);
            out.push_str("# contents not dumped due to insufficient privileges\n");
        }
        Selection::All if detail => dump_detail(&table, &[], call.now, &mut out),
        Selection::Filters(filters) if detail => dump_detail(&table, &filters, call.now, &mut out),
        Selection::All => {
            header(&table, &mut out);
            table.dump(call.now, |row| entry(&table, &row, &mut out));
        }
        Selection::Filters(filters) => {
            header(&table, &mut out);
            table.dump(call.now, |row| {
                if filters.iter().all(|f| f.matches(&row)) {
                    entry(&table, &row, &mut out);
                }
            });
        }
    }
    Answer::dump(out)
}

fn show_one(table: &Table, key: &Key<'_>, detail: bool, now: Now, out: &mut String) {
    let mut lines = String::new();
    if table.show(key, now, |row| entry(table, &row, &mut lines)) {
        header(table, out);
        out.push_str(&lines);
        if detail {
            parts(table, key, now, out);
        }
    }
}

/// The key of the entry that `show table` shows with this address.
fn at(table: &Table, ptr: u64, now: Now) -> Option<OwnKey> {
    let mut found = None;
    table.dump(now, |row| {
        if row.ptr == ptr {
            found = Some(OwnKey::of(&row.key));
        }
    });
    found
}

fn header(table: &Table, out: &mut String) {
    let _ = writeln!(
        out,
        "# table: {}, type: {}, size:{}, used:{}",
        table.name(),
        table.type_name(),
        table.size(),
        table.used()
    );
}

/// Every entry that fits with each node's part of it. The lines are made first: a part is looked up by
/// key, which must not happen while the table is being walked.
fn dump_detail(table: &Table, filters: &[Filter], now: Now, out: &mut String) {
    header(table, out);
    let mut entries: Vec<(String, OwnKey)> = Vec::new();
    table.dump(now, |row| {
        if filters.iter().all(|f| f.matches(&row)) {
            let mut line = String::new();
            entry(table, &row, &mut line);
            entries.push((line, OwnKey::of(&row.key)));
        }
    });
    for (line, key) in entries {
        out.push_str(&line);
        parts(table, &key.borrow(), now, out);
    }
}

/// Each node's part of an entry, one a line.
fn parts(table: &Table, key: &Key<'_>, now: Now, out: &mut String) {
    for part in table.detail(key, now) {
        let state = match part.kind {
            PartKind::Live => "live",
            PartKind::Dead => "dead",
            PartKind::Set => "set",
        };
        let _ = write!(out, "  node={} run={} state={state}", part.node, part.incarnation);
        values(table, &part.values, out);
        out.push('\n');
    }
}

fn entry(table: &Table, row: &Row<'_>, out: &mut String) {
    let exp = row.exp.map_or(0, |exp| exp.as_millis());
    let _ = write!(out, "{:#x}: key={} use={} exp={exp} shard=0", row.ptr, Shown(&row.key), row.uses);
    values(table, row.values, out);
    out.push('\n');
}

fn values(table: &Table, values: &[u64], out: &mut String) {
    for (column, value) in table.layout().columns().iter().zip(values) {
        if column.of.kind == Kind::Text {
            let text = table.text(*value);
            let _ = write!(out, " {column}={}", text.as_deref().unwrap_or("-"));
        } else {
            let _ = write!(out, " {column}={value}");
        }
    }
}

/// A key that cannot break the line it stands in, whatever a client put into it.
struct Shown<'a, 'k>(&'a Key<'k>);

impl std::fmt::Display for Shown<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Key::Str(text) = self.0 else { return write!(f, "{}", self.0) };
        for &b in *text {
            match b {
                b' ' | b'\\' | b'=' => write!(f, "\\{}", b as char)?,
                33..=126 => write!(f, "{}", b as char)?,
                b'\n' => f.write_str("\\n")?,
                b'\r' => f.write_str("\\r")?,
                b'\t' => f.write_str("\\t")?,
                _ => write!(f, "\\x{b:02x}")?,
            }
        }
        Ok(())
    }
}

/// Which entries are meant.
enum Selection<'a> {
    All,
    Key(&'a str),
    Ptr(u64),
    Filters(Vec<Filter>),
}

/// `data.<type> <operator> <value>`.
struct Filter {
    column: usize,
    operator: fn(&u64, &u64) -> bool,
    value: u64,
}

impl Filter {
    fn matches(&self, row: &Row<'_>) -> bool {
        row.values.get(self.column).is_some_and(|value| (self.operator)(value, &self.value))
    }
}

impl<'a> Selection<'a> {
    fn parse(table: &Table, args: &'a [String], usage: &str) -> Result<Selection<'a>, Answer> {
        match args.first().map(String::as_str) {
            None => return Ok(Selection::All),
            Some("key") => {
                return match args.get(1) {
                    Some(key) if args.len() == 2 => Ok(Selection::Key(key)),
                    Some(_) => Err(Answer::error("Only one key may be given.")),
                    None => Err(Answer::error("Key value expected")),
                };
            }
            Some("ptr") => {
                return match args.get(1) {
                    Some(ptr) if args.len() == 2 => pointer(ptr).map(Selection::Ptr),
                    Some(_) => Err(Answer::error("Only one pointer may be given.")),
                    None => Err(Answer::error("Pointer value expected")),
                };
            }
            Some(_) => {}
        }
        let mut filters = Vec::new();
        for (index, words) in args.chunks(3).enumerate() {
            let fault = |text: &str| Answer::error(format!("Filter entry #{}: {text}", index + 1));
            let Some(name) = words[0].strip_prefix("data.") else { return Err(Answer::error(usage)) };
            if index >= MAX_FILTERS {
                return Err(Answer::error(format!("At most {MAX_FILTERS} filters are supported.")));
            }
            let data = data(name).ok_or_else(|| fault("Unknown data type"))?;
            let column = table.layout().find_exactly(data);
            let column = column.ok_or_else(|| fault("Data type not stored in this table"))?;
            let operator: fn(&u64, &u64) -> bool = match words.get(1).map(String::as_str) {
                Some("eq") => u64::eq,
                Some("ne") => u64::ne,
                Some("le") => u64::le,
                Some("ge") => u64::ge,
                Some("lt") => u64::lt,
                Some("gt") => u64::gt,
                _ => {
                    return Err(fault(
                        "Require and operator among \"eq\", \"ne\", \"le\", \"ge\", \"lt\", \"gt\"",
                    ));
                }
            };
            let value = words.get(2).and_then(|v| v.parse().ok());
            let value = value.ok_or_else(|| fault("Require a valid integer value to compare against"))?;
            filters.push(Filter { column, operator, value });
        }
        Ok(Selection::Filters(filters))
    }
}

/// An entry's address as `show table` writes it.
fn pointer(text: &str) -> Result<u64, Answer> {
    let ptr = text.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    ptr.ok_or_else(|| Answer::error("Invalid pointer value, it is written 0xffff as 'show table' shows it."))
}

/// `gpc0`, or `gpt[1]`, an element of an array.
fn data(name: &str) -> Option<Data> {
    match name.strip_suffix(']').and_then(|n| n.split_once('[')) {
        None => Data::named(name, 0),
        Some((name, index)) => {
            let array = stick::by_name(name)?.array;
            Data::named(name, index.parse().ok()?).filter(|_| array)
        }
    }
}

/// A key of the table's type from the word that names it.
fn key<'a>(table: &Table, text: &'a str, scratch: &'a mut Scratch) -> Option<Key<'a>> {
    let input = match table.key_type() {
        KeyType::Ip | KeyType::Ipv6 => Input::Ip(text.parse().ok()?),
        KeyType::Integer => Input::Int(text.parse().ok()?),
        KeyType::String(_) => Input::Bytes(text.as_bytes()),
        // As in HAProxy, such a key can't be given as a word.
        KeyType::Binary(_) => return None,
    };
    table.key(input, scratch)
}

fn invalid_key(table: &Table) -> Answer {
    if matches!(table.key_type(), KeyType::Binary(_)) {
        return Answer::error("Keys of tables of type 'binary' cannot be given by name.");
    }
    Answer::error(format!("Invalid key value, the table's keys are of type '{}'.", table.type_name()))
}

fn set(call: &Call<'_>) -> Answer {
    const USAGE: &str =
        "Required arguments: <table> { key <key> | ptr <ptr> } [data.<store_data_type> <value>]*";
    if call.args.is_empty() {
        return Answer::error(USAGE);
    }
    let table = match find(call) {
        Ok(table) => table,
        Err(answer) => return answer,
    };
    match (call.arg(1), call.arg(2)) {
        ("key", "") => return Answer::error("Key value expected"),
        ("ptr", "") => return Answer::error("Pointer value expected"),
        ("key" | "ptr", _) => {}
        _ => return Answer::error(USAGE),
    }
    let mut scratch = Scratch::default();
    let pointed;
    let key = if call.arg(1) == "ptr" {
        let ptr = match pointer(call.arg(2)) {
            Ok(ptr) => ptr,
            Err(answer) => return answer,
        };
        pointed = at(&table, ptr, call.now);
        let Some(key) = &pointed else { return Answer::error("No entry has this pointer.") };
        key.borrow()
    } else {
        let Some(key) = key(&table, call.arg(2), &mut scratch) else { return invalid_key(&table) };
        key
    };
    let mut wishes = Vec::new();
    for pair in call.args[3..].chunks(2) {
        let Some(name) = pair[0].strip_prefix("data.") else {
            return Answer::error("\"data.<type>\" followed by a value expected");
        };
        let Some(data) = data(name) else { return Answer::error("Unknown data type") };
        let Some(column) = table.layout().find_exactly(data).map(|at| table.layout().columns()[at]) else {
            return Answer::error("Data type not stored in this table");
        };
        let value = pair.get(1).and_then(|v| v.parse::<u64>().ok()).filter(|&v| column.holds(v));
        let Some(value) = value else { return Answer::error("Require a valid integer value to store") };
        wishes.push((data, value));
    }
    match table.set(&key, &wishes, call.now) {
        Ok(()) => Answer::done(),
        Err(SetError::NotStored(_)) => Answer::error("Data type not stored in this table"),
        Err(SetError::Full) => Answer::error("Unable to allocate a new entry"),
    }
}

fn clear(call: &Call<'_>) -> Answer {
    const USAGE: &str =
        "Required arguments: <table> \"data.<store_data_type>\" <operator> <value> or <table> key <key>";
    if call.args.is_empty() {
        return Answer::error(USAGE);
    }
    let table = match find(call) {
        Ok(table) => table,
        Err(answer) => return answer,
    };
    match Selection::parse(&table, &call.args[1..], USAGE) {
        Err(answer) => answer,
        Ok(Selection::All) => {
            table.clear(call.now);
            Answer::done()
        }
        Ok(Selection::Key(text)) => {
            let mut scratch = Scratch::default();
            let Some(key) = key(&table, text, &mut scratch) else { return invalid_key(&table) };
            clear_one(&table, &key, call.now)
        }
        Ok(Selection::Ptr(ptr)) => match at(&table, ptr, call.now) {
            Some(key) => clear_one(&table, &key.borrow(), call.now),
            None => Answer::done(),
        },
        Ok(Selection::Filters(filters)) => {
            table.clear_where(call.now, |row| filters.iter().all(|f| f.matches(row)));
            Answer::done()
        }
    }
}

fn clear_one(table: &Table, key: &Key<'_>, now: Now) -> Answer {
    match table.clear_key(key, now) {
        Cleared::InUse => Answer::error("Entry currently in use, cannot remove"),
        Cleared::Removed | Cleared::Absent => Answer::done(),
    }
}
