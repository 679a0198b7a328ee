//! Recently used values (and absences) of redb, bounded in bytes.

use super::overlay::cost;
use crate::core::kv::Key;
use bytes::Bytes;
use lru::LruCache;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

pub struct Cache {
    values: LruCache<Key, Option<Bytes>, Xxh3DefaultBuilder>,
    bytes: usize,
    limit: usize,
}

impl Cache {
    pub fn new(limit: usize) -> Self {
        Self { values: LruCache::unbounded_with_hasher(Xxh3DefaultBuilder::new()), bytes: 0, limit }
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn get(&mut self, key: &[u8]) -> Option<Option<Bytes>> {
        self.values.get(key).cloned()
    }

    pub fn put(&mut self, key: &[u8], value: Option<Bytes>) {
        self.bytes += cost(key.len(), value.as_ref());
        if let Some(old) = self.values.put(key.to_vec(), value) {
            self.bytes -= cost(key.len(), old.as_ref());
        }
        while self.bytes > self.limit {
            let Some((key, value)) = self.values.pop_lru() else { break };
            self.bytes -= cost(key.len(), value.as_ref());
        }
    }

    pub fn remove(&mut self, key: &[u8]) {
        if let Some(value) = self.values.pop(key) {
            self.bytes -= cost(key.len(), value.as_ref());
        }
    }
}
