//! Entries on the wire: which of our tables and columns one of a HAProxy's goes into, and how ours are written
//! for it. No state; what has been heard and sent is the session's business.

use std::collections::HashMap;
use std::sync::Arc;

use super::heard::{Heard, Sent};
use super::wire::{self, Define, Field, Reader, Shape};
use super::{Arrived, Into, Mine, Session};
use crate::stick::foreign::Value;
use crate::stick::{Table, Tables};
use crate::time::Now;

/// Says which table the entries that follow belong to: before every batch, as HAProxy does.
pub(super) fn tell(session: &mut Session, id: usize, mine: &Mine, out: &mut Vec<u8>) {
    let (key, key_len) = mine.table.foreign_key();
    let define = Define {
        id: id as u64 + 1,
        name: mine.table.name().as_bytes().to_vec(),
        key,
        key_len,
        fields: fields(&mine.table),
        expire: mine.table.expire().map_or(0, |expire| expire.as_millis() as u64),
    };
    define.put(out, &mut session.scratch);
}

/// The data types of a table that are sent.
pub(super) fn fields(table: &Table) -> Vec<Field> {
    let mut fields: Vec<Field> = Vec::new();
    for column in table.foreign_columns() {
        match fields.last_mut() {
            Some(last) if last.bit == column.bit => last.count += 1,
            _ => fields.push(Field { bit: column.bit, count: 1, period: column.period }),
        }
    }
    fields
}

/// Finds the table of ours that one of theirs goes into, and what its values are there.
pub(super) fn resolve(
    tables: &Tables,
    section: Option<&str>,
    define: &Define,
) -> (Option<Into>, Option<String>) {
    let name = String::from_utf8_lossy(&define.name).into_owned();
    let not = |why: &str| (None, Some(format!("table '{}' is not learned: {why}", name.escape_debug())));
    let Some(table) = tables.get(&name).filter(|t| t.is_shared_in(section)) else {
        return not("no table of this name is shared with it here");
    };
    let (key, key_len) = table.foreign_key();
    if key != define.key || (matches!(key, 4 | 5 | 7) && key_len != define.key_len) {
        return not(&format!("its keys are not of type '{}' as here", table.type_name()));
    }
    let ours = table.foreign_columns();
    let mut places = Vec::new();
    for field in &define.fields {
        for element in 0..field.count {
            let same = ours.iter().filter(|c| c.bit == field.bit && c.period == field.period).nth(element);
            places.push(same.map(|c| c.place));
        }
    }
    (Some(Into { table, places }), None)
}

/// Remembers what a HAProxy has of a key, beside what the sums here are.
pub(super) fn note(heard: &mut Heard, arrived: &Arrived, now: Now) {
    let table = &arrived.table;
    let have = table.foreign_sums(&arrived.key, now);
    let value = |column: crate::stick::foreign::ForeignColumn| {
        let (_, value) = arrived.values.iter().find(|(place, _)| *place == column.place)?;
        Some(if column.register { value.clone().register() } else { value.clone() })
    };
    let values = table.foreign_columns().into_iter().map(value).collect();
    let mut key = Vec::with_capacity(arrived.key.len() + 2);
    // As it stands on the wire, where a string follows its length.
    if table.foreign_key().0 == 6 {
        wire::put_number(&mut key, arrived.key.len() as u64);
    }
    key.extend_from_slice(&arrived.key);
    heard.note(table.epoch(), key.into(), values, &have, now.mono);
}

/// The periods of the columns that travel.
pub(super) fn periods(table: &Table) -> Vec<u32> {
    table.foreign_columns().iter().map(|column| column.period).collect()
}

/// An entry with the values that may be sent, if any is to be.
pub(super) fn corrected<'a>(sent: &'a Sent, entry: Entry<'a>) -> Option<Entry<'a>> {
    match sent {
        Sent::Same => Some(entry),
        Sent::Instead(values) => Some(Entry { values, ..entry }),
        Sent::Nothing => None,
    }
}

/// Reads one value; `Some(None)` when there is none.
pub(super) fn read_value(
    input: &mut Reader,
    bit: u8,
    dictionary: &mut HashMap<u64, Arc<str>>,
) -> Option<Option<Value>> {
    let (shape, _) = wire::shape(bit)?;
    Some(match shape {
        Shape::Number => Some(Value::Number(input.number()?)),
        Shape::Rate => {
            let age = input.number()?;
            let saturated = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            let (current, previous) = (saturated(input.number()?), saturated(input.number()?));
            // An idle counter's age is its distance from zero: nothing is said by it.
            Some(Value::Rate { age: saturated(age & 0xffff_ffff), current, previous })
        }
        Shape::Text => {
            let len = input.length(wire::MAX_MESSAGE)?;
            if len == 0 {
                return Some(None);
            }
            let mut entry = Reader(input.bytes(len)?);
            let id = entry.number()?;
            if entry.0.is_empty() {
                return Some(dictionary.get(&id).cloned().map(Value::Text));
            }
            let len = entry.length(1024)?;
            let text: Arc<str> = String::from_utf8_lossy(entry.bytes(len)?).into();
            // HAProxy's own dictionaries have 128 entries.
            if dictionary.len() < 4096 || dictionary.contains_key(&id) {
                dictionary.insert(id, text.clone());
            }
            Some(Value::Text(text))
        }
    })
}

/// An entry on its way out.
pub(crate) struct Entry<'a> {
    /// Its place in the shard.
    pub(crate) at: u32,
    /// Its position in the log.
    pub(crate) seq: u64,
    /// The key's bytes as they stand on the wire.
    pub(crate) key: &'a [u8],
    /// Milliseconds left.
    pub(crate) life: u32,
    /// One for each of [`Table::foreign_columns`].
    pub(crate) values: &'a [Value],
}

pub(super) fn put_update(
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    kind: u8,
    update: Option<u32>,
    life: Option<u32>,
    entry: &Entry,
) {
    wire::put_message(out, kind, scratch, |out| {
        out.extend(update.iter().flat_map(|n| n.to_be_bytes()));
        out.extend(life.iter().flat_map(|n| n.to_be_bytes()));
        out.extend_from_slice(entry.key);
        for value in entry.values {
            match value {
                Value::Number(n) | Value::Register(n) => wire::put_number(out, *n),
                Value::Rate { age, current, previous } => {
                    wire::put_number(out, u64::from(*age));
                    wire::put_number(out, u64::from(*current));
                    wire::put_number(out, u64::from(*previous));
                }
                Value::Text(text) => {
                    let text = text.as_bytes();
                    // Always spelled out under number 1: nothing need be remembered of what was sent.
                    if text.is_empty() {
                        out.push(0);
                    } else {
                        let mut entry = Vec::with_capacity(text.len() + 3);
                        wire::put_number(&mut entry, 1);
                        wire::put_number(&mut entry, text.len() as u64);
                        entry.extend_from_slice(text);
                        wire::put_number(out, entry.len() as u64);
                        out.extend_from_slice(&entry);
                    }
                }
            }
        }
    });
}
