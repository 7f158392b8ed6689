//! An ordered map that is cheap to copy: a change copies one chunk of it and shares the others.
//!
//! For state of which readers or earlier versions keep a copy while single entries change. What
//! differs between two copies is found by looking only at the chunks that they don't share.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Entries of a full chunk.
const FULL: usize = 256;

/// The map.
pub struct Chunked<K, V> {
    /// None is empty; in order.
    chunks: Vec<Arc<Vec<(K, V)>>>,
    len: usize,
}

impl<K, V> Default for Chunked<K, V> {
    fn default() -> Self {
        Chunked { chunks: Vec::new(), len: 0 }
    }
}

impl<K, V> Clone for Chunked<K, V> {
    fn clone(&self) -> Self {
        Chunked { chunks: self.chunks.clone(), len: self.len }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Chunked<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Chunked<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Eq, V: Eq> Eq for Chunked<K, V> {}

impl<K, V> Chunked<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|(k, v)| (k, v))
    }
}

impl<K: Ord + Clone, V: Clone> Chunked<K, V> {
    /// From entries that are in order, each key once.
    pub fn from_sorted(entries: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut map = Chunked::default();
        let mut chunk = Vec::new();
        for entry in entries {
            debug_assert!(chunk.last().is_none_or(|(last, _)| *last < entry.0));
            chunk.push(entry);
            if chunk.len() == FULL {
                map.close(&mut chunk);
            }
        }
        map.close(&mut chunk);
        map
    }

    fn close(&mut self, chunk: &mut Vec<(K, V)>) {
        let mut chunk = std::mem::take(chunk);
        if !chunk.is_empty() {
            chunk.shrink_to_fit();
            self.len += chunk.len();
            self.chunks.push(Arc::new(chunk));
        }
    }

    /// The chunk that has the key, or would.
    fn chunk(&self, key: &K) -> usize {
        let after = self.chunks.partition_point(|chunk| chunk[0].0 <= *key);
        after.saturating_sub(1)
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let chunk = self.chunks.get(self.chunk(key))?;
        let at = chunk.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        Some(&chunk[at].1)
    }

    /// Sets the value of a key; gives the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let index = self.chunk(&key);
        let Some(shared) = self.chunks.get_mut(index) else {
            self.chunks.push(Arc::new(vec![(key, value)]));
            self.len += 1;
            return None;
        };
        let at = match shared.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => return Some(std::mem::replace(&mut Arc::make_mut(shared)[at].1, value)),
            Err(at) => at,
        };
        self.len += 1;
        if shared.len() < FULL {
            Arc::make_mut(shared).insert(at, (key, value));
        } else if at == FULL {
            // In order of arrival: chunks stay full.
            self.chunks.insert(index + 1, Arc::new(vec![(key, value)]));
        } else {
            let chunk = Arc::make_mut(shared);
            let mut second = chunk.split_off(FULL / 2);
            match at.checked_sub(FULL / 2) {
                Some(at) if at > 0 => second.insert(at, (key, value)),
                _ => chunk.insert(at, (key, value)),
            }
            self.chunks.insert(index + 1, Arc::new(second));
        }
        None
    }

    /// Removes a key; gives its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let index = self.chunk(key);
        let shared = self.chunks.get_mut(index)?;
        let at = shared.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        self.len -= 1;
        if shared.len() == 1 {
            let chunk = self.chunks.remove(index);
            return Some(chunk[0].1.clone());
        }
        Some(Arc::make_mut(shared).remove(at).1)
    }

    /// The keys whose values may differ between the two, in order, each once.
    pub fn differing(&self, other: &Self) -> Vec<K> {
        if self.chunks.len() == other.chunks.len()
            && self.chunks.iter().zip(&other.chunks).all(|(a, b)| Arc::ptr_eq(a, b))
        {
            return Vec::new();
        }
        let addresses = |map: &Self| map.chunks.iter().map(Arc::as_ptr).collect::<HashSet<_>>();
        let (ours, theirs) = (addresses(self), addresses(other));
        let of = |map: &Self, others: &HashSet<_>| {
            let own = map.chunks.iter().filter(|c| !others.contains(&Arc::as_ptr(c)));
            own.flat_map(|c| c.iter()).map(|(k, _)| k.clone()).collect::<Vec<K>>()
        };
        let mut keys = of(self, &theirs);
        keys.extend(of(other, &ours));
        keys.sort();
        keys.dedup();
        keys
    }
}

impl<K: Serialize, V: Serialize> Serialize for Chunked<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeSeq;
        let mut seq = serializer.serialize_seq(Some(self.len))?;
        for entry in self.iter() {
            seq.serialize_element(&entry)?;
        }
        seq.end()
    }
}

impl<'de, K, V> Deserialize<'de> for Chunked<K, V>
where
    K: Ord + Clone + Deserialize<'de>,
    V: Clone + Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = Vec::<(K, V)>::deserialize(deserializer)?;
        if !entries.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(serde::de::Error::custom("entries are not in order"));
        }
        Ok(Chunked::from_sorted(entries))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    #[test]
    fn behaves_as_an_ordered_map_and_finds_differences() {
        for seed in 0..8 {
            let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
            let (mut map, mut model) = (Chunked::default(), BTreeMap::new());
            let (mut kept, mut kept_model) = (map.clone(), model.clone());
            for step in 0..6000u32 {
                let key = if seed % 2 == 0 { rng.random_range(0..2000u32) } else { step };
                if rng.random_range(0..3) == 0 {
                    assert_eq!(map.remove(&key), model.remove(&key), "seed {seed}");
                } else {
                    assert_eq!(map.insert(key, step), model.insert(key, step), "seed {seed}");
                }
                if step % 500 == 7 {
                    let differing = map.differing(&kept);
                    for key in model.keys().chain(kept_model.keys()) {
                        let same = model.get(key) == kept_model.get(key);
                        assert!(same || differing.binary_search(key).is_ok(), "seed {seed} key {key}");
                        assert_eq!(kept.get(key), kept_model.get(key), "a copy changed, seed {seed}");
                    }
                    (kept, kept_model) = (map.clone(), model.clone());
                    assert!(map.differing(&kept).is_empty());
                }
            }
            assert!(map.iter().eq(model.iter()), "seed {seed}");
            assert_eq!(map.len(), model.len());
            let bytes = postcard::to_stdvec(&map).unwrap();
            assert_eq!(postcard::from_bytes::<Chunked<u32, u32>>(&bytes).unwrap(), map);
        }
    }
}
