//! Files that one page of a directory named: what is asked for ahead of a reader who goes through them.

use godrive_proto::Ino;
use std::collections::VecDeque;

/// Files whose layouts are asked for with one that is needed.
const MANY_LAYOUTS: usize = 128;
/// Files of a directory that are read by themselves before others are read ahead.
const MANY_READS: usize = 3;
/// Files that are read ahead for each one that was read, and the most that lie ahead of their reader: who stops early
/// has not fetched much in vain.
const GROWTH: usize = 4;
const FARTHEST: usize = 128;

/// In the directory's order.
#[derive(Debug)]
pub struct Neighbours {
    /// Those whose layouts were not asked for yet.
    unplaced: VecDeque<Ino>,
    /// Those that were not given out to be read ahead.
    unread: VecDeque<Ino>,
    read: usize,
    ahead: usize,
}

impl Neighbours {
    pub fn new(files: Vec<Ino>) -> Self {
        Self { unplaced: files.clone().into(), unread: files.into(), read: 0, ahead: 0 }
    }

    /// The next ones whose layouts are asked for, each of them once.
    pub fn take_unplaced(&mut self) -> Vec<Ino> {
        let count = self.unplaced.len().min(MANY_LAYOUTS);
        self.unplaced.drain(..count).collect()
    }

    /// Another one of them was read: gives those to be read ahead now, each of them once.
    pub fn on_read(&mut self) -> Vec<Ino> {
        self.read += 1;
        if self.read < MANY_READS {
            return Vec::new();
        }
        let wanted = (self.read * GROWTH).min(self.read + FARTHEST).saturating_sub(self.ahead);
        let count = wanted.min(self.unread.len());
        self.ahead += count;
        self.unread.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inodes(range: std::ops::Range<u64>) -> Vec<Ino> {
        range.map(Ino).collect()
    }

    #[test]
    fn every_file_is_given_once_and_not_far_ahead() {
        let mut neighbours = Neighbours::new(inodes(0..1000));
        let mut ahead = Vec::new();
        for read in 1..=1000 {
            ahead.extend(neighbours.on_read());
            assert!(ahead.len() <= read + FARTHEST && ahead.len() <= read * GROWTH, "{read}");
            assert!(read < MANY_READS || ahead.len() >= (read + 1).min(1000), "{read}");
        }
        assert_eq!(ahead, inodes(0..1000));
    }

    #[test]
    fn layouts_are_asked_for_in_the_directorys_order() {
        let mut neighbours = Neighbours::new(inodes(0..300));
        assert_eq!(neighbours.take_unplaced(), inodes(0..128));
        assert_eq!(neighbours.take_unplaced(), inodes(128..256));
        assert_eq!(neighbours.take_unplaced(), inodes(256..300));
        assert_eq!(neighbours.take_unplaced(), vec![]);
    }
}
