//! One entry of a set, and the place of one or several in an index.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// A key with its value, as `show map` lists it.
#[derive(Debug)]
pub struct Entry {
    /// Place in the order of the set; entries of the file come before those that were added.
    order: u64,
    /// Its number in this process, never given twice: the reference that commands may use.
    serial: u64,
    /// Key and value in one piece.
    text: Box<str>,
    key_len: u32,
    has_value: bool,
}

static SERIAL: AtomicU64 = AtomicU64::new(0x1000);

impl Entry {
    pub(super) fn new(order: u64, key: &str, value: Option<&str>) -> Arc<Entry> {
        let mut text = String::with_capacity(key.len() + value.map_or(0, str::len));
        text.push_str(key);
        text.push_str(value.unwrap_or_default());
        Arc::new(Entry {
            order,
            serial: SERIAL.fetch_add(1, Relaxed),
            text: text.into(),
            // Lines of the configuration, of files and of the Runtime API are far shorter.
            key_len: u32::try_from(key.len()).unwrap_or(u32::MAX),
            has_value: value.is_some(),
        })
    }

    /// The pattern.
    pub fn key(&self) -> &str {
        self.text.get(..self.key_len as usize).unwrap_or(&self.text)
    }

    /// What a map gives for it.
    pub fn value(&self) -> Option<&str> {
        if self.has_value { self.text.get(self.key_len as usize..) } else { None }
    }

    /// The value as a number.
    pub fn int(&self) -> Option<i64> {
        phalanx_config::pattern::integer(self.value()?)
    }

    /// The value as an address.
    pub fn ip(&self) -> Option<IpAddr> {
        self.value()?.parse().ok()
    }

    /// The number that commands may name it by.
    pub fn reference(&self) -> u64 {
        self.serial
    }

    pub(super) fn order(&self) -> u64 {
        self.order
    }
}

/// The entries of one key, in order. Nearly always one.
#[derive(Clone, Debug)]
pub(super) enum Slot {
    One(Arc<Entry>),
    Many(Arc<Vec<Arc<Entry>>>),
}

impl Slot {
    pub(super) fn first(&self) -> &Arc<Entry> {
        match self {
            Slot::One(entry) => entry,
            Slot::Many(entries) => &entries[0],
        }
    }

    pub(super) fn all(&self) -> &[Arc<Entry>] {
        match self {
            Slot::One(entry) => std::slice::from_ref(entry),
            Slot::Many(entries) => entries,
        }
    }

    pub(super) fn add(&mut self, entry: &Arc<Entry>) {
        match self {
            Slot::One(one) => {
                let mut both = vec![one.clone(), entry.clone()];
                both.sort_by_key(|e| e.order);
                *self = Slot::Many(Arc::new(both));
            }
            Slot::Many(entries) => {
                let at = entries.partition_point(|e| e.order < entry.order);
                Arc::make_mut(entries).insert(at, entry.clone());
            }
        }
    }

    /// Takes an entry out; `false` when it was the last one and is still there.
    pub(super) fn remove(&mut self, order: u64) -> bool {
        match self {
            Slot::One(one) => one.order != order,
            Slot::Many(entries) => {
                if let Ok(at) = entries.binary_search_by_key(&order, |e| e.order) {
                    Arc::make_mut(entries).remove(at);
                }
                if let [one] = &entries[..] {
                    *self = Slot::One(one.clone());
                }
                true
            }
        }
    }
}
