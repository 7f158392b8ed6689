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
    text: Text,
    key_len: u32,
    has_value: bool,
}

/// Short ones lie in the entry itself: who looks one up has its cache line already.
#[derive(Debug)]
enum Text {
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

/// Most host names and paths with what maps say of them; the entry is then 64 bytes.
const SHORT: usize = 38;

impl Text {
    fn new(text: &[u8]) -> Text {
        let mut short = [0; SHORT];
        match short.get_mut(..text.len()) {
            Some(place) => {
                place.copy_from_slice(text);
                Text::Short(text.len() as u8, short)
            }
            None => Text::Long(text.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Text::Short(len, bytes) => bytes.get(..usize::from(*len)).unwrap_or(bytes),
            Text::Long(bytes) => bytes,
        }
    }
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
            text: Text::new(text.as_bytes()),
            // Lines of the configuration, of files and of the Runtime API are far shorter.
            key_len: u32::try_from(key.len()).unwrap_or(u32::MAX),
            has_value: value.is_some(),
        })
    }

    /// The pattern.
    pub fn key(&self) -> &str {
        std::str::from_utf8(self.key_bytes()).unwrap_or_default()
    }

    /// The pattern's bytes, for who looks often.
    pub fn key_bytes(&self) -> &[u8] {
        let text = self.text.bytes();
        text.get(..self.key_len as usize).unwrap_or(text)
    }

    /// What a map gives for it.
    pub fn value(&self) -> Option<&str> {
        std::str::from_utf8(self.value_bytes()?).ok()
    }

    /// The bytes of what a map gives for it, for who looks often.
    pub fn value_bytes(&self) -> Option<&[u8]> {
        if self.has_value { self.text.bytes().get(self.key_len as usize..) } else { None }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_what_it_was_given_however_long() {
        assert_eq!(size_of::<Entry>(), 64);
        for len in [0, 1, SHORT - 4, SHORT - 3, SHORT - 2, 300] {
            let key = "é".repeat(len / 2);
            let entry = Entry::new(1, &key, Some("ü1"));
            assert_eq!((entry.key(), entry.value()), (&*key, Some("ü1")));
            assert_eq!(Entry::new(1, &key, None).value(), None);
        }
    }
}
