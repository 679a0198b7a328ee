//! The leaf map of one replica: for each 4 KiB leaf its sum and the place of its bytes, kept in groups of 64 as
//! the checksum tree has them, so that a chunk with one leaf costs one group.

use godrive_proto::limits::GROUP_LEAVES;
use godrive_proto::{ChunkId, Digest, sums};

const LEAVES: usize = GROUP_LEAVES as usize;
/// A chunk of 64 MiB has 256 groups.
const MAX_GROUPS: usize = 256;

/// A 4 KiB block of a segment file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    pub segment: u32,
    pub block: u32,
}

/// A new state of one leaf: its sum, [`sums::HOLE`] if it becomes a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafSum {
    pub leaf: u32,
    pub sum: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub sums: [u64; LEAVES],
    /// Meaningful where the sum is not 0.
    pub locations: [Location; LEAVES],
}

impl Group {
    pub const HOLES: Self =
        Self { sums: [sums::HOLE; LEAVES], locations: [Location { segment: 0, block: 0 }; LEAVES] };
}

/// A set of groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupSet([u64; MAX_GROUPS / 64]);

impl GroupSet {
    pub const ALL: Self = Self([u64::MAX; MAX_GROUPS / 64]);

    pub fn extend(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(own, word)| *own |= word);
    }

    pub fn insert(&mut self, group: usize) {
        if let Some(word) = self.0.get_mut(group / 64) {
            *word |= 1 << (group % 64);
        }
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_GROUPS).filter(move |group| self.0[group / 64] >> (group % 64) & 1 == 1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafMap {
    chunk: ChunkId,
    chunk_bytes: u32,
    groups: Vec<Option<Box<Group>>>,
    group_sums: Vec<u64>,
    digest: Digest,
    used: u32,
}

/// What a change of leaves left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    pub groups: GroupSet,
    /// Places that nothing refers to any more.
    pub superseded: Vec<Location>,
}

impl LeafMap {
    /// All holes.
    pub fn new(chunk: ChunkId, chunk_bytes: u32) -> Self {
        let groups = sums::groups_in(chunk_bytes).min(MAX_GROUPS as u32) as usize;
        Self {
            chunk,
            chunk_bytes,
            groups: vec![None; groups],
            group_sums: vec![sums::HOLE; groups],
            digest: sums::empty_digest(chunk, chunk_bytes),
            used: 0,
        }
    }

    /// From stored groups, as (index, group).
    pub fn from_groups(
        chunk: ChunkId,
        chunk_bytes: u32,
        stored: impl Iterator<Item = (usize, Group)>,
    ) -> Self {
        let mut map = Self::new(chunk, chunk_bytes);
        for (index, group) in stored {
            if index < map.groups.len() {
                map.used += group.sums.iter().filter(|sum| **sum != sums::HOLE).count() as u32;
                map.group_sums[index] = sums::group(&group.sums);
                map.groups[index] = Some(Box::new(group));
            }
        }
        map.digest = sums::digest(chunk, &map.group_sums);
        map
    }

    pub fn chunk_bytes(&self) -> u32 {
        self.chunk_bytes
    }

    pub fn leaves(&self) -> u32 {
        sums::leaves_in(self.chunk_bytes)
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn group_sums(&self) -> &[u64] {
        &self.group_sums
    }

    /// Leaves that are not holes.
    pub fn used_leaves(&self) -> u32 {
        self.used
    }

    pub fn group(&self, index: usize) -> Option<&Group> {
        self.groups.get(index)?.as_deref()
    }

    /// Sum and place; None for a hole.
    pub fn leaf(&self, leaf: u32) -> Option<(u64, Location)> {
        let (group, at) = split(leaf);
        let group = self.group(group)?;
        (group.sums[at] != sums::HOLE).then(|| (group.sums[at], group.locations[at]))
    }

    pub fn sum(&self, leaf: u32) -> u64 {
        self.leaf(leaf).map_or(sums::HOLE, |(sum, _)| sum)
    }

    /// All leaf sums of the groups from `first` to `last`, in order.
    pub fn sums_of_groups(&self, first: usize, last: usize) -> Vec<u64> {
        let holes = [sums::HOLE; LEAVES];
        (first..=last).flat_map(|index| *self.group(index).map_or(&holes, |group| &group.sums)).collect()
    }

    /// Places of everything that is not a hole.
    pub fn locations(&self) -> impl Iterator<Item = (u32, u64, Location)> + '_ {
        (0..self.leaves()).filter_map(|leaf| self.leaf(leaf).map(|(sum, location)| (leaf, sum, location)))
    }

    /// The digest as it will be after the changes.
    pub fn digest_after(&self, changes: &[LeafSum]) -> Digest {
        let mut group_sums = self.group_sums.clone();
        for run in changes.chunk_by(|a, b| split(a.leaf).0 == split(b.leaf).0) {
            let index = split(run[0].leaf).0;
            let mut leaves = self.group(index).map_or([sums::HOLE; LEAVES], |group| group.sums);
            for change in run {
                leaves[split(change.leaf).1] = change.sum;
            }
            if let Some(sum) = group_sums.get_mut(index) {
                *sum = sums::group(&leaves);
            }
        }
        sums::digest(self.chunk, &group_sums)
    }

    /// Sets leaves (ascending, within bounds); each that is not a hole takes the next place, counted from `data`.
    pub fn apply(&mut self, changes: &[LeafSum], data: Location) -> Changed {
        let Changed { groups: mut touched, mut superseded } = Changed::default();
        let mut next = data;
        for change in changes {
            let (index, at) = split(change.leaf);
            let Some(slot) = self.groups.get_mut(index) else { continue };
            let group = slot.get_or_insert_with(|| Box::new(Group::HOLES));
            if group.sums[at] != sums::HOLE {
                superseded.push(group.locations[at]);
                self.used -= 1;
            }
            group.sums[at] = change.sum;
            if change.sum != sums::HOLE {
                group.locations[at] = next;
                next.block += 1;
                self.used += 1;
            }
            touched.insert(index);
        }
        for index in touched.iter() {
            let sum = self.groups[index].as_ref().map_or(sums::HOLE, |group| sums::group(&group.sums));
            self.group_sums[index] = sum;
            if sum == sums::HOLE {
                self.groups[index] = None;
            }
        }
        self.digest = sums::digest(self.chunk, &self.group_sums);
        Changed { groups: touched, superseded }
    }

    /// Memory that it takes, roughly.
    pub fn memory_bytes(&self) -> usize {
        let groups = self.groups.iter().filter(|group| group.is_some()).count();
        groups * size_of::<Group>() + self.groups.len() * 16
    }
}

fn split(leaf: u32) -> (usize, usize) {
    ((leaf / GROUP_LEAVES) as usize, (leaf % GROUP_LEAVES) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: ChunkId = ChunkId(7);
    const BYTES: u32 = 1 << 20;

    fn at(block: u32) -> Location {
        Location { segment: 1, block }
    }

    #[test]
    fn an_empty_map_has_the_empty_digest() {
        let map = LeafMap::new(CHUNK, BYTES);
        assert_eq!(map.digest(), sums::empty_digest(CHUNK, BYTES));
        assert_eq!(map.leaf(3), None);
        assert_eq!(map.sums_of_groups(0, 3), [0; 256]);
    }

    #[test]
    fn changes_supersede_places_and_foretell_the_digest() {
        let mut map = LeafMap::new(CHUNK, BYTES);
        let first =
            [LeafSum { leaf: 1, sum: 11 }, LeafSum { leaf: 63, sum: 12 }, LeafSum { leaf: 64, sum: 13 }];
        let foretold = map.digest_after(&first);
        let changed = map.apply(&first, at(10));
        assert_eq!(changed.superseded, []);
        assert_eq!(changed.groups.iter().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(map.digest(), foretold);
        assert_eq!(map.leaf(64), Some((13, at(12))));
        assert_eq!(map.used_leaves(), 3);

        let second = [LeafSum { leaf: 1, sum: 21 }, LeafSum { leaf: 64, sum: 0 }];
        let foretold = map.digest_after(&second);
        assert_eq!(map.apply(&second, at(20)).superseded, [at(10), at(12)]);
        assert_eq!(map.digest(), foretold);
        assert_eq!(map.used_leaves(), 2);
        assert!(map.group(1).is_none(), "a group of holes takes no memory");
        let stored = (0..4).filter_map(|i| Some((i, map.group(i)?.clone())));
        assert_eq!(LeafMap::from_groups(CHUNK, BYTES, stored), map);
    }
}
