//! What is known of a directory under its lease: names (also missing ones) and its listing in the directory's order.

use godrive_proto::Ino;
use godrive_proto::meta::{DirectoryEntry, Kind, Name};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Directory {
    names: BTreeMap<Name, Option<Ino>>,
    /// There are no other names than those.
    all_names: bool,
    listing: Listing,
    /// Names that changes on their way to the master are about, and how many. Others may have seen such a change
    /// before its answer is here, so until then what is known of the name may be old.
    changing: BTreeMap<Name, u32>,
    /// The inode of `..`, once a page of the listing told it.
    pub parent: Option<Ino>,
}

/// Pages of the listing that follow each other from the start.
#[derive(Debug, Default)]
struct Listing {
    entries: BTreeMap<u64, (Name, Ino, Kind)>,
    /// Everything up to this position is in `entries`.
    known_until: u64,
    complete: bool,
}

impl Directory {
    /// Some(None): it is known that the name is missing.
    pub fn look_up(&self, name: &Name) -> Option<Option<Ino>> {
        if self.changing.contains_key(name) {
            return None;
        }
        self.names.get(name).copied().or(self.all_names.then_some(None))
    }

    /// A change of this name is on its way.
    pub fn change_begins(&mut self, name: Name) {
        *self.changing.entry(name).or_default() += 1;
    }

    /// Its answer was taken in, or never comes.
    pub fn change_ends(&mut self, name: &Name) {
        if let Some(changes) = self.changing.get_mut(name) {
            *changes -= 1;
            if *changes == 0 {
                self.changing.remove(name);
            }
        }
    }

    /// The directory was made just now, under the lease that is held: it is empty.
    pub fn born(&mut self) {
        self.all_names = true;
    }

    /// After pages whose names were all learned.
    pub fn learned_all(&mut self) {
        let listing = &self.listing;
        self.all_names |= listing.complete
            && listing.entries.values().all(|(name, ..)| matches!(self.names.get(name), Some(Some(_))));
    }

    pub fn knows_all(&self) -> bool {
        self.all_names
    }

    /// True if the name is new here, for the account of names.
    pub fn learn(&mut self, name: Name, ino: Option<Ino>) -> bool {
        self.names.insert(name, ino).is_none()
    }

    /// A local mutation: the listing has no position for it, so it is read anew.
    pub fn change(&mut self, name: Name, ino: Option<Ino>) -> bool {
        self.listing = Listing::default();
        self.learn(name, ino)
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.names.keys()
    }

    /// What is known to exist among so many names, from this one on and round to it.
    pub fn named_from(&self, name: &Name, names: usize) -> impl Iterator<Item = Ino> {
        let (before, from) = (self.names.range::<Name, _>(..name), self.names.range::<Name, _>(name..));
        from.chain(before).take(names).filter_map(|(_, ino)| *ino)
    }

    /// Forgets everything; gives the names, which the kernel may have cached.
    pub fn clear(&mut self) -> Vec<Name> {
        let changing = std::mem::take(&mut self.changing);
        let old = std::mem::replace(self, Self { changing, ..Self::default() });
        old.names.into_keys().collect()
    }

    /// Takes a page of the listing in that follows position `after`.
    pub fn learn_page(&mut self, after: u64, entries: &[DirectoryEntry], end: bool) {
        if after > self.listing.known_until {
            return;
        }
        for entry in entries {
            self.listing.entries.insert(entry.position, (entry.name.clone(), entry.ino, entry.kind));
            self.listing.known_until = self.listing.known_until.max(entry.position);
        }
        self.listing.complete |= end;
    }

    /// Up to `max` entries behind position `after`, if the listing is known there. Empty: the end.
    pub fn list(&self, after: u64, max: usize) -> Option<Vec<(u64, &Name, Ino, Kind)>> {
        let unknown = !self.listing.complete && after >= self.listing.known_until;
        if unknown || !self.changing.is_empty() {
            return None;
        }
        let behind =
            self.listing.entries.range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
        Some(behind.take(max).map(|(at, (name, ino, kind))| (*at, name, *ino, *kind)).collect())
    }

    /// Learns the names of what [`Self::list`] gives; says how many are new here.
    pub fn learn_listed(&mut self, after: u64, max: usize) -> u64 {
        let behind =
            self.listing.entries.range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
        let mut new = 0;
        for (name, ino, _) in behind.take(max).map(|(_, entry)| entry) {
            if !self.names.contains_key(name) {
                self.names.insert(name.clone(), Some(*ino));
                new += 1;
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn entry(position: u64) -> DirectoryEntry {
        DirectoryEntry {
            position,
            name: name(&format!("n{position}")),
            ino: Ino(position + 100),
            kind: Kind::File,
            view: None,
        }
    }

    #[test]
    fn missing_names_are_known_too() {
        let mut directory = Directory::default();
        assert_eq!(directory.look_up(&name("a")), None);
        assert!(directory.learn(name("a"), None));
        assert_eq!(directory.look_up(&name("a")), Some(None));
        assert!(!directory.change(name("a"), Some(Ino(3))));
        assert_eq!(directory.look_up(&name("a")), Some(Some(Ino(3))));
    }

    #[test]
    fn what_is_being_changed_is_not_known() {
        let mut directory = Directory::default();
        directory.learn_page(0, &[entry(1)], true);
        directory.learn(name("n1"), Some(Ino(101)));
        directory.learned_all();
        directory.change_begins(name("n1"));
        directory.change_begins(name("n1"));
        directory.change_ends(&name("n1"));
        assert_eq!(directory.look_up(&name("n1")), None);
        assert_eq!(directory.look_up(&name("b")), Some(None));
        assert!(directory.list(0, 10).is_none());
        directory.clear();
        directory.learn(name("n1"), Some(Ino(101)));
        assert_eq!(directory.look_up(&name("n1")), None, "it was forgotten that the name is being changed");
        directory.change_ends(&name("n1"));
        assert_eq!(directory.look_up(&name("n1")), Some(Some(Ino(101))));
    }

    #[test]
    fn where_all_names_are_known_the_others_are_missing() {
        let mut directory = Directory::default();
        directory.born();
        assert_eq!(directory.look_up(&name("a")), Some(None));
        directory.change(name("a"), Some(Ino(3)));
        assert_eq!(directory.look_up(&name("a")), Some(Some(Ino(3))));
        assert_eq!(directory.look_up(&name("b")), Some(None));
        directory.clear();
        assert_eq!(directory.look_up(&name("b")), None);
        directory.learn_page(0, &[entry(1), entry(4)], true);
        directory.learn(name("n1"), Some(Ino(101)));
        directory.learned_all();
        assert_eq!(directory.look_up(&name("b")), None, "one of the listed names was not learned");
        directory.learn(name("n4"), Some(Ino(104)));
        directory.learned_all();
        assert_eq!(directory.look_up(&name("b")), Some(None));
    }

    #[test]
    fn a_listing_answers_only_where_it_is_known() {
        let mut directory = Directory::default();
        assert!(directory.list(0, 10).is_none());
        directory.learn_page(0, &[entry(1), entry(4)], false);
        let positions = |list: Vec<(u64, &Name, Ino, Kind)>| list.iter().map(|e| e.0).collect::<Vec<_>>();
        assert_eq!(directory.list(0, 10).map(positions), Some(vec![1, 4]));
        assert_eq!(directory.list(1, 10).map(positions), Some(vec![4]));
        assert!(directory.list(4, 10).is_none(), "what follows is not known yet");
        directory.learn_page(9, &[entry(12)], true);
        assert!(directory.list(4, 10).is_none(), "a page with a gap before it is not taken");
        directory.learn_page(4, &[entry(9)], true);
        assert_eq!(directory.list(4, 10).map(positions), Some(vec![9]));
        assert_eq!(directory.list(9, 10).map(positions), Some(vec![]));
        assert_eq!(directory.learn_listed(1, 1), 1);
        assert_eq!(directory.learn_listed(0, 10), 2, "one is known already");
        assert_eq!(directory.look_up(&name("n9")), Some(Some(Ino(109))));
        directory.change(name("new"), Some(Ino(9)));
        assert!(directory.list(0, 10).is_none());
    }
}
