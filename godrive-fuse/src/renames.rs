//! Renames that meet the same rename of another mount.
//!
//! The kernel looks up both names of a rename, one after the other, and does nothing, successfully, if they lead to the same
//! inode: two names of one file. When another mount makes the same rename in between, the first lookup has found the file under
//! its old name and the second one finds it under its new name; two workers that take a job by renaming it would both believe that
//! they have it. So when a rename finds a file that has one name under another one than this mount was told, its lookup is
//! answered with ESTALE: then the kernel looks up both names again, once, and finds the first one gone.
//!
//! Other calls (mkdir for one) pass ESTALE on to their callers, and so does a rename the second time. What the caller is at, and with
//! which names, the kernel tells in /proc; where it does not, nothing is demanded.

use godrive_proto::Ino;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::time::Duration;
use tokio::time::Instant;

/// So many names are remembered; then it begins anew.
const MAX_NAMES: usize = 1 << 16;
/// A lookup is this near to the other one of its rename.
const NEAR: Duration = Duration::from_secs(10);
/// The longest that a lookup waits to know what its caller is at.
const PATIENCE: Duration = Duration::from_millis(200);
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
    /// Callers that were told to look again.
    again: HashMap<u32, Again>,
}

struct Again {
    place: Place,
    since: Instant,
    /// It looks at other names already.
    begun: bool,
}

/// The last parts of the two names of a rename.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    pub old: Vec<u8>,
    pub new: Vec<u8>,
}

fn hash(name: &[u8]) -> u64 {
    place(Ino(0), name).1
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
        match known.again.get_mut(&caller) {
            // Its first name is gone: that was its answer.
            Some(again) if again.place != place && ino.is_none() => drop(known.again.remove(&caller)),
            Some(again) => again.begun |= again.place != place,
            None => {}
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

    /// This mount has made the rename.
    pub fn made(&self, from: (Ino, &[u8]), to: (Ino, &[u8])) {
        let (from, to) = (place(from.0, from.1), place(to.0, to.1));
        let mut known = self.0.lock();
        let moved = known.names.get(&from).copied();
        known.told(from, None);
        known.told(to, moved);
    }

    /// A lookup has found an inode that has moved. True: it is that of the new name of a rename, whose old name the kernel was told to
    /// lead there, and it must look again. It asks twice without beginning anew where it had an entry for the name, which it
    /// first asks about.
    pub fn demands(&self, caller: u32, directory: Ino, name: &[u8], ino: Ino, names: &Names) -> bool {
        let place = place(directory, name);
        let mut known = self.0.lock();
        let is_old = known.leads.get(&ino).is_some_and(|((_, lead), _)| *lead == hash(&names.old));
        if names.new != name || !is_old {
            return false;
        }
        let now = Instant::now();
        known.again.retain(|_, again| now < again.since + NEAR);
        let before = known.again.remove(&caller);
        let same = names.old == names.new;
        if before.is_some_and(|again| again.place == place && (again.begun || same)) {
            // Its first name was right, then: it is another one's new name that is found here.
            known.told(place, Some(ino));
            return false;
        }
        known.again.insert(caller, Again { place, since: now, begun: false });
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

/// The names of the rename that this thread is in.
pub async fn renaming(caller: u32) -> Option<Names> {
    #[expect(
        clippy::disallowed_methods,
        reason = "what is read may have to wait for that process, and for nobody knows what"
    )]
    let looking =
        tokio::task::spawn_blocking(move || tokio::runtime::Handle::current().block_on(look_at(caller)));
    tokio::time::timeout(PATIENCE, looking).await.ok()?.ok()?
}

async fn look_at(caller: u32) -> Option<Names> {
    for _ in 0..LOOKS {
        let text = read(&format!("/proc/{caller}/syscall"))?;
        let mut words = text.split_whitespace();
        match words.next()? {
            "running" => tokio::time::sleep(Duration::from_millis(1)).await,
            number => {
                let at = NAMES_AT.iter().find(|(call, ..)| number.parse() == Ok(*call))?;
                let arguments: Vec<u64> =
                    words.filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()).collect();
                let old = last_part(caller, *arguments.get(at.1)?)?;
                return Some(Names { old, new: last_part(caller, *arguments.get(at.2)?)? });
            }
        }
    }
    None
}

#[expect(clippy::disallowed_methods, reason = "what the kernel says of a process, not a file")]
fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The last part of a path in a process's memory.
#[expect(clippy::disallowed_methods, reason = "a process's memory, not a file")]
fn last_part(caller: u32, address: u64) -> Option<Vec<u8>> {
    const PAGE: u64 = 4096;
    let memory = std::fs::File::open(format!("/proc/{caller}/mem")).ok()?;
    let mut path = Vec::new();
    while path.len() < libc::PATH_MAX as usize {
        let at = address + path.len() as u64;
        // What lies behind a page's end need not be there.
        let mut piece = [0; 256];
        let most = piece.len().min((PAGE - at % PAGE) as usize);
        let read = memory.read_at(&mut piece[..most], at).ok().filter(|read| *read > 0)?;
        path.extend_from_slice(&piece[..read]);
        if let Some(end) = path.iter().position(|byte| *byte == 0) {
            path.truncate(end);
            let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
            return parts.next_back().map(<[u8]>::to_vec);
        }
    }
    None
}

/// Which arguments of these calls are the names.
#[cfg(target_arch = "x86_64")]
const NAMES_AT: [(i64, usize, usize); 3] =
    [(libc::SYS_rename, 0, 1), (libc::SYS_renameat, 1, 3), (libc::SYS_renameat2, 1, 3)];
#[cfg(not(target_arch = "x86_64"))]
const NAMES_AT: [(i64, usize, usize); 2] = [(libc::SYS_renameat, 1, 3), (libc::SYS_renameat2, 1, 3)];

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Ino = Ino(1);
    const FILE: Ino = Ino(7);

    fn names() -> Names {
        Names { old: b"old".into(), new: b"new".into() }
    }

    #[tokio::test]
    async fn a_rename_that_finds_its_file_under_the_new_name_looks_again() {
        let renames = Renames::default();
        for file in [FILE, Ino(8), Ino(9)] {
            assert!(!renames.looks(5, ROOT, b"old", Some(file), true));
            for _ in 0..2 {
                // Of an entry that it has, the kernel asks first whether it is right.
                assert!(renames.looks(5, ROOT, b"new", Some(file), true));
                assert!(renames.demands(5, ROOT, b"new", file, &names()), "{file}");
            }
            assert!(!renames.looks(5, ROOT, b"old", None, false));
            assert!(!renames.looks(5, ROOT, b"new", Some(file), true), "the old name is known to be gone");
        }
        assert!(renames.0.lock().again.is_empty());
    }

    #[tokio::test]
    async fn a_rename_of_another_file_is_held_up_once() {
        let renames = Renames::default();
        renames.told(ROOT, b"old", Some(FILE));
        assert!(!renames.looks(5, Ino(2), b"old", Some(Ino(8)), true));
        assert!(renames.looks(5, ROOT, b"new", Some(FILE), true));
        assert!(renames.demands(5, ROOT, b"new", FILE, &names()));
        assert!(!renames.looks(5, Ino(2), b"old", Some(Ino(8)), true));
        assert!(renames.looks(5, ROOT, b"new", Some(FILE), true));
        assert!(!renames.demands(5, ROOT, b"new", FILE, &names()), "its own name is still right");
        assert!(!renames.looks(5, ROOT, b"new", Some(FILE), true));
    }

    #[tokio::test]
    async fn the_first_name_of_a_rename_and_own_renames_demand_nothing() {
        let renames = Renames::default();
        renames.told(ROOT, b"old", Some(FILE));
        // Another mount has renamed it to "new", and here that is renamed on.
        assert!(renames.looks(5, ROOT, b"new", Some(FILE), true));
        let onward = Names { old: b"new".into(), new: b"newer".into() };
        assert!(!renames.demands(5, ROOT, b"new", FILE, &onward));
        let unrelated = Names { old: b"other".into(), new: b"new".into() };
        assert!(!renames.demands(5, ROOT, b"new", FILE, &unrelated));
        renames.made((ROOT, b"old"), (ROOT, b"newest"));
        assert!(!renames.looks(5, ROOT, b"newest", Some(FILE), true));
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
    async fn a_thread_that_is_in_no_rename_has_no_names() {
        assert_eq!(renaming(0).await, None);
        assert_eq!(renaming(std::process::id()).await, None);
        let path = std::ffi::CString::new("/a/folder//name-of-it/").unwrap();
        assert_eq!(last_part(std::process::id(), path.as_ptr() as u64), Some(b"name-of-it".to_vec()));
        assert_eq!(last_part(std::process::id(), 8), None);
    }
}
