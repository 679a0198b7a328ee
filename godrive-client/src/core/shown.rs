//! Which names of a directory the caller was last told to lead where, beyond the end of the lease under which it was told.
//!
//! A kernel looks up both names of a rename, one after the other, and does nothing, successfully, if they lead to the same
//! inode. When another mount makes the same rename between the two, the first lookup has found the inode under its old name and
//! the second one finds it under its new name. So an inode with one name that is found under another one than the caller was told
//! is answered with a demand to look up everything again (ESTALE, which the kernel follows once).
//!
//! A kernel that has an entry for the name asks twice: whether that entry is still right, and, as it is not, for the new one. Only
//! the second answer counts, so the demand waits for it. An entry from before all names were expired at once (a number counts
//! how often that was, the epoch) it does not ask about.

use godrive_proto::Ino;
use godrive_proto::meta::Name;
use std::collections::{BTreeMap, BTreeSet};

/// More names than that are not remembered: to go wrong, a rename has to meet the same rename elsewhere within the time of a
/// lookup, and it must have been told of the name before.
const MAX_NAMES: usize = 1024;

#[derive(Debug, Default)]
pub struct Shown {
    /// And in which epoch.
    names: BTreeMap<Name, (Ino, u64)>,
    /// The last of each inode's names.
    leads: BTreeMap<Ino, Name>,
    /// The next answer for these is the demand.
    due: BTreeSet<Name>,
}

impl Shown {
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The caller knows what this name leads to: it was told, or did it itself.
    pub fn set(&mut self, name: &Name, ino: Option<Ino>, epoch: u64) {
        if let Some((before, _)) = self.names.remove(name)
            && self.leads.get(&before) == Some(name)
        {
            self.leads.remove(&before);
        }
        self.due.remove(name);
        let Some(ino) = ino else { return };
        if self.names.len() >= MAX_NAMES {
            *self = Self::default();
        }
        self.names.insert(name.clone(), (ino, epoch));
        self.leads.insert(ino, name.clone());
    }

    /// The same for what was told under a lease, when nobody noted it.
    pub fn keep(&mut self, name: &Name, ino: Option<Ino>, epoch: u64) {
        if self.names.get(name).map(|(known, _)| *known) != ino {
            self.set(name, ino, epoch);
        }
    }

    /// The caller looks this name up, and it leads there. `single`: no other name does. True: it must look up everything again.
    pub fn found(&mut self, name: &Name, ino: Ino, single: bool, epoch: u64) -> bool {
        let due = self.due.remove(name);
        let before = self.names.get(name).copied();
        let moved = single && self.leads.get(&ino).is_some_and(|old| old != name);
        if moved && let Some(old) = self.leads.get(&ino).cloned() {
            self.set(&old, None, epoch);
        }
        self.set(name, Some(ino), epoch);
        let asks_again = before.is_some_and(|(before, then)| before != ino && then == epoch);
        if moved && asks_again {
            self.due.insert(name.clone());
            return false;
        }
        moved || due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name(text.into())
    }

    #[test]
    fn an_inode_that_moved_is_looked_up_again_once() {
        let (a, b) = (name("a"), name("b"));
        let mut shown = Shown::default();
        assert!(!shown.found(&a, Ino(2), true, 0));
        assert!(shown.found(&b, Ino(2), true, 0), "a is no longer right");
        assert!(!shown.found(&b, Ino(2), true, 0));
        assert!(shown.found(&a, Ino(2), true, 0), "and back");
    }

    #[test]
    fn where_the_kernel_has_an_entry_the_second_answer_counts() {
        let (a, b) = (name("a"), name("b"));
        let mut shown = Shown::default();
        shown.set(&a, Some(Ino(2)), 0);
        shown.set(&b, Some(Ino(3)), 0);
        assert!(!shown.found(&b, Ino(2), true, 0), "it finds that its entry is wrong, and asks again");
        assert!(shown.found(&b, Ino(2), true, 0));
        assert!(!shown.found(&b, Ino(2), true, 0));
    }

    #[test]
    fn an_entry_from_before_all_names_were_expired_is_not_asked_about() {
        let (a, b) = (name("a"), name("b"));
        let mut shown = Shown::default();
        shown.set(&a, Some(Ino(2)), 4);
        shown.set(&b, Some(Ino(3)), 4);
        shown.keep(&b, Some(Ino(3)), 5);
        assert!(shown.found(&b, Ino(2), true, 5));
        assert!(!shown.found(&b, Ino(2), true, 5));
    }

    #[test]
    fn own_changes_and_hard_links_demand_nothing() {
        let (a, b) = (name("a"), name("b"));
        let mut shown = Shown::default();
        shown.set(&a, Some(Ino(2)), 0);
        shown.set(&a, None, 0);
        shown.set(&b, Some(Ino(2)), 0);
        assert!(!shown.found(&b, Ino(2), true, 0), "renamed here");
        assert!(!shown.found(&a, Ino(2), false, 0), "two names");
        assert!(!shown.found(&b, Ino(2), false, 0));
        for number in 0..10_000 {
            shown.set(&name(&number.to_string()), Some(Ino(10 + number)), 0);
            assert!(shown.names.len() <= MAX_NAMES && shown.leads.len() <= MAX_NAMES);
        }
    }
}
