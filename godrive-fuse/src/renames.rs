//! Renames that meet the same rename of another mount.
//!
//! The kernel looks up both names of a rename, one after the other, and does nothing, successfully, if they lead to the same
//! inode: two names of one file. When another mount makes the same rename in between, the first lookup has found the file under
//! its old name and the second one finds it under its new name; two workers that take a job by renaming it would both believe that
//! they have it. So when a rename finds a file that has one name under another one than this mount was told, its lookup is
//! answered with ESTALE: then the kernel looks up both names again, once, and finds the first one gone.
//!
//! Other calls (mkdir for one) pass ESTALE on to their callers. What the caller is at, the kernel tells in /proc; where it does not,
//! nothing is demanded.

use godrive_proto::Ino;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use tokio::time::Instant;

/// So many names are remembered; then it begins anew.
const MAX_NAMES: usize = 1 << 16;
/// A lookup is this near to the other one of its rename.
const NEAR: Duration = Duration::from_secs(10);
/// A caller that waits for an answer is soon seen to wait.
const LOOKS: u32 = 20;

/// A directory and the hash of a name in it.
type Place = (Ino, u64);

/// What the kernel was told of names.
#[derive(Default)]
pub struct Renames(Mutex<Known>);

#[derive(Default)]
struct Known {
    names: HashMap<Place, Ino>,
    /// The last name of each inode; and since when it is known to have another one.
    leads: HashMap<Ino, (Place, Option<Instant>)>,
    /// Callers that were told to look again, where, and whether they have begun to.
    again: HashMap<u32, (Place, bool)>,
}

fn place(directory: Ino, name: &[u8]) -> Place {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    (directory, hasher.finish())
}

impl Renames {
    /// The name leads there, or nowhere.
    pub fn told(&self, directory: Ino, name: &[u8], ino: Option<Ino>) {
        self.0.lock().told(place(directory, name), ino);
    }

    /// A caller looks this name up; it leads there, or nowhere. `single`: no other name leads there. True: the kernel was told
    /// another one.
    pub fn looks(&self, caller: u32, directory: Ino, name: &[u8], ino: Option<Ino>, single: bool) -> bool {
        let place = place(directory, name);
        let mut known = self.0.lock();
        if let Some((asked, begun)) = known.again.get_mut(&caller) {
            *begun |= *asked != place;
        }
        if let Some(ino) = ino
            && single
            && known.has_moved(place, ino, Instant::now())
        {
            return true;
        }
        known.told(place, ino);
        false
    }

    /// A rename has found an inode that has moved. True: it must look again. It asks twice without beginning anew where it
    /// had an entry for the name, which it first asks about.
    pub fn demands(&self, caller: u32, directory: Ino, name: &[u8], ino: Ino) -> bool {
        let place = place(directory, name);
        let mut known = self.0.lock();
        if known.again.remove(&caller).is_some_and(|(asked, begun)| begun && asked == place) {
            // Its first name was right, then: it is another one's new name that is found here.
            known.told(place, Some(ino));
            return false;
        }
        known.again.insert(caller, (place, false));
        true
    }
}

impl Known {
    fn told(&mut self, place: Place, ino: Option<Ino>) {
        if let Some(before) = self.names.remove(&place)
            && self.leads.get(&before).is_some_and(|(lead, _)| *lead == place)
        {
            self.leads.remove(&before);
        }
        let Some(ino) = ino else { return };
        if self.names.len() >= MAX_NAMES {
            *self = Self::default();
        }
        self.names.insert(place, ino);
        self.leads.insert(ino, (place, None));
    }

    fn has_moved(&mut self, place: Place, ino: Ino, now: Instant) -> bool {
        match self.leads.get_mut(&ino) {
            Some((lead, since)) if *lead != place => now < *since.get_or_insert(now) + NEAR,
            _ => false,
        }
    }
}

/// Whether this thread is in a rename.
pub async fn is_renaming(caller: u32) -> bool {
    for _ in 0..LOOKS {
        let path = format!("/proc/{caller}/syscall");
        #[expect(clippy::disallowed_methods, reason = "what the kernel says of a process, not a file")]
        let Ok(text) = std::fs::read_to_string(path) else { return false };
        match text.split_whitespace().next() {
            Some("running") => tokio::time::sleep(Duration::from_millis(1)).await,
            Some(number) => return number.parse().is_ok_and(|number: i64| RENAMES.contains(&number)),
            None => return false,
        }
    }
    false
}

#[cfg(target_arch = "x86_64")]
const RENAMES: [i64; 3] = [libc::SYS_rename, libc::SYS_renameat, libc::SYS_renameat2];
#[cfg(not(target_arch = "x86_64"))]
const RENAMES: [i64; 2] = [libc::SYS_renameat, libc::SYS_renameat2];

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Ino = Ino(1);
    const FILE: Ino = Ino(7);

    #[tokio::test]
    async fn a_rename_that_finds_its_file_under_the_new_name_looks_again() {
        let renames = Renames::default();
        assert!(!renames.looks(5, ROOT, b"old", Some(FILE), true));
        for _ in 0..2 {
            // Of an entry that it has, the kernel asks first whether it is right.
            assert!(renames.looks(5, ROOT, b"new", Some(FILE), true));
            assert!(renames.demands(5, ROOT, b"new", FILE));
        }
        assert!(!renames.looks(5, ROOT, b"old", None, false));
        assert!(!renames.looks(5, ROOT, b"new", Some(FILE), true), "the old name is known to be gone");
    }

    #[tokio::test]
    async fn a_rename_of_another_file_is_held_up_once() {
        let renames = Renames::default();
        renames.told(ROOT, b"old", Some(FILE));
        assert!(!renames.looks(5, Ino(2), b"another", Some(Ino(8)), true));
        assert!(renames.looks(5, ROOT, b"new", Some(FILE), true));
        assert!(renames.demands(5, ROOT, b"new", FILE));
        assert!(!renames.looks(5, Ino(2), b"another", Some(Ino(8)), true));
        assert!(renames.looks(5, ROOT, b"new", Some(FILE), true));
        assert!(!renames.demands(5, ROOT, b"new", FILE), "its own name is still right");
        assert!(!renames.looks(5, ROOT, b"new", Some(FILE), true));
    }

    #[tokio::test(start_paused = true)]
    async fn hard_links_new_names_and_what_is_long_ago_are_let_be() {
        let renames = Renames::default();
        renames.told(ROOT, b"old", Some(FILE));
        assert!(!renames.looks(5, ROOT, b"second", Some(FILE), false));
        assert!(renames.looks(5, ROOT, b"third", Some(FILE), true));
        tokio::time::sleep(NEAR).await;
        assert!(!renames.looks(5, ROOT, b"third", Some(FILE), true));
        for number in 0..MAX_NAMES as u64 + 10 {
            renames.told(Ino(number), b"name", Some(Ino(number)));
        }
        let known = renames.0.lock();
        assert!(known.names.len() <= MAX_NAMES && known.leads.len() <= MAX_NAMES);
    }

    #[tokio::test]
    async fn a_thread_that_sleeps_is_in_no_rename() {
        assert!(!is_renaming(0).await);
        assert!(!is_renaming(std::process::id()).await);
    }
}
