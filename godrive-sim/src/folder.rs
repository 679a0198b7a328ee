//! A folder of a client's own, which it fills and empties file by file while the others list it.
//!
//! Its contents are a register for the oracle: each file made or removed is a write, and a listing, which is one
//! moment's, tells by the files' names which write was the last. A round makes [`FILES`] files, removes the one that the
//! round before has left, and then its own but the last: so no two states look alike, and a listing with a gap shows that
//! the order of the changes was not kept.
//!
//! After anything that may take back what was not fsynced, and after an error, the client leaves the folder as it is
//! and goes on in another.

use crate::stamp::{Found, Stamp};
use std::collections::{BTreeMap, BTreeSet};

/// Enough that the last ones are removed under leases.
pub const FILES: u64 = 8;

/// One change of the folder, in the order of the stamps' sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Make { name: Name },
    Remove { name: Name },
}

/// A file of the round whose stamps begin behind `base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    base: u64,
    index: u64,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.base, self.index)
    }
}

impl Name {
    fn parse(name: &[u8]) -> Option<Self> {
        let (base, index) = std::str::from_utf8(name).ok()?.split_once('-')?;
        Some(Self { base: base.parse().ok()?, index: index.parse().ok()? })
    }
}

/// The changes of one round, with their stamps' sequences; `left` is the file that the round before has left.
pub fn round(base: u64, left: Option<Name>) -> Vec<(u64, Change)> {
    let name = |index| Name { base, index };
    let first = left.is_none();
    let makes = (1..=FILES).map(|index| {
        // Where nothing is left to remove, the full folder looks as it does after that removal.
        let sequence = base + index + u64::from(first && index == FILES);
        (sequence, Change::Make { name: name(index) })
    });
    let other = left.map(|left| (base + FILES + 1, Change::Remove { name: left }));
    let removes = (1..FILES).map(|index| (base + FILES + 1 + index, Change::Remove { name: name(index) }));
    makes.chain(other).chain(removes).collect()
}

/// The base of the next round.
pub fn after(base: u64) -> u64 {
    base + 2 * FILES
}

/// What a round leaves.
pub fn left(base: u64) -> Name {
    Name { base, index: FILES }
}

/// The write after which the folder of this client looks so.
pub fn read(client: u16, names: &[Vec<u8>]) -> Found {
    let Some(names) = names.iter().map(|name| Name::parse(name)).collect::<Option<Vec<_>>>() else {
        return Found::Torn;
    };
    let mut rounds: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for name in names {
        rounds.entry(name.base).or_default().insert(name.index);
    }
    let Some((base, present)) = rounds.pop_last() else { return Found::Nothing };
    let (lowest, highest) =
        (present.first().copied().unwrap_or_default(), present.last().copied().unwrap_or_default());
    let gap = present.len() as u64 != highest - lowest + 1;
    let sequence = match rounds.pop_last() {
        Some((_, before)) if before != BTreeSet::from([FILES]) || lowest != 1 => return Found::Torn,
        Some(_) => base + highest,
        None if lowest == 1 && highest < FILES => base + highest,
        None if highest == FILES => base + FILES + lowest,
        None => return Found::Torn,
    };
    match gap || !rounds.is_empty() {
        true => Found::Torn,
        false => Found::Written(Stamp { client, sequence }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &BTreeSet<Name>) -> Vec<Vec<u8>> {
        names.iter().map(|name| name.to_string().into_bytes()).collect()
    }

    #[test]
    fn every_state_tells_the_change_that_led_to_it() {
        let mut names = BTreeSet::new();
        assert_eq!(read(3, &listing(&names)), Found::Nothing);
        let (mut base, mut over) = (1000, None);
        for _ in 0..3 {
            for (sequence, change) in round(base, over) {
                assert!(sequence < after(base) + 1);
                match change {
                    Change::Make { name } => assert!(names.insert(name)),
                    Change::Remove { name } => assert!(names.remove(&name)),
                }
                let stamp = Stamp { client: 3, sequence };
                assert_eq!(read(3, &listing(&names)), Found::Written(stamp), "{change:?} {names:?}");
            }
            over = Some(left(base));
            base = after(base);
        }
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn what_no_order_of_changes_gives_is_torn() {
        let name = |base, index| Name { base, index }.to_string().into_bytes();
        for names in [
            vec![name(10, 1), name(10, 3)],
            vec![name(10, 2), name(10, 3)],
            vec![name(10, FILES - 1), name(50, 1)],
            vec![name(10, FILES), name(50, 2)],
            vec![name(10, FILES), name(30, FILES), name(50, 1)],
            vec![b"x".to_vec()],
        ] {
            assert_eq!(read(1, &names), Found::Torn, "{names:?}");
        }
    }
}
