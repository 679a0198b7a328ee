//! Maps of changes that lie over each other and over what redb has.

use crate::core::kv::{Batch, Key, StoreError, Visit};
use bytes::Bytes;
use std::iter::Peekable;
use std::ops::Bound;

/// What an entry costs in memory, about.
pub fn cost(key_bytes: usize, value: Option<&Bytes>) -> usize {
    96 + key_bytes + value.map_or(0, Bytes::len)
}

type Pairs<'a> = Peekable<std::collections::btree_map::Range<'a, Key, Option<Bytes>>>;

/// Visits the union of all layers, ascending. Where several have a key, the first layer decides; the bottom is last.
pub fn merge(
    layers: [Option<&Batch>; 2],
    from: &[u8],
    to: &[u8],
    bottom: impl Iterator<Item = Result<(Key, Bytes), StoreError>>,
    visit: Visit<'_>,
) -> Result<(), StoreError> {
    let bounds = (Bound::Included(from), Bound::Excluded(to));
    let mut layers: Vec<Pairs<'_>> =
        layers.into_iter().flatten().map(|layer| layer.range::<[u8], _>(bounds).peekable()).collect();
    let mut bottom = bottom.peekable();
    loop {
        let above = layers.iter_mut().filter_map(|layer| layer.peek().map(|(key, _)| *key)).min();
        let below = match bottom.peek() {
            Some(Ok((key, _))) => Some(key),
            Some(Err(error)) => return Err(error.clone()),
            None => None,
        };
        let (key, value) = match (above, below) {
            (None, None) => return Ok(()),
            (Some(above), below) if below.is_none_or(|below| above <= below) => {
                let above = above.clone();
                bottom.next_if(|pair| matches!(pair, Ok((key, _)) if *key == above));
                match take(&mut layers, &above) {
                    Some(value) => (above, value),
                    None => continue,
                }
            }
            _ => match bottom.next() {
                Some(pair) => pair?,
                None => return Ok(()),
            },
        };
        if !visit(&key, &value) {
            return Ok(());
        }
    }
}

/// The value of the first layer that has the key; all layers move past it.
fn take(layers: &mut [Pairs<'_>], key: &Key) -> Option<Bytes> {
    let mut found = None;
    for layer in layers {
        if let Some((_, value)) = layer.next_if(|(own, _)| *own == key) {
            found.get_or_insert(value);
        }
    }
    found.and_then(Clone::clone)
}
