//! Disks that hold something else than what was written to them, and what people do about it.

use crate::cluster::{Bay, MASTERS, Node, Parts};
use godrive_disk::SimulatedDisk;
use godrive_proto::time::Timestamp;
use godrive_slave::store::{Options, fsck};
use rand::Rng;
use rand::rngs::SmallRng;
use std::sync::Arc;
use turmoil::Sim;

const BLOCK: u64 = 4096;

/// Of a slave, in the segments that hold its chunks, if nothing else is said; of the master, in any of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// So many bits flip.
    Flip(u16),
    /// One does in every block.
    FlipAll,
    /// So many bits flip in the slave's index.
    FlipIndex(u16),
    /// So many pairs of blocks change places.
    Exchange(u16),
    /// So many blocks lie where others should.
    Misplace(u16),
    /// A file ends before its end.
    Cut,
    /// The whole disk is as it was when it was remembered; of a slave with several all of them, or one.
    SetBack,
    /// One file of it is.
    SetBackFile,
}

impl Damage {
    pub fn name(self) -> &'static str {
        match self {
            Self::Flip(_) => "bits flipped",
            Self::FlipAll => "every block flipped",
            Self::FlipIndex(_) => "index flipped",
            Self::Exchange(_) => "blocks exchanged",
            Self::Misplace(_) => "blocks misplaced",
            Self::Cut => "file cut",
            Self::SetBack => "disk set back",
            Self::SetBackFile => "file set back",
        }
    }
}

/// A block before and after it was damaged.
pub struct Damaged {
    bay: Bay,
    path: String,
    block: u64,
    before: Vec<u8>,
    after: Vec<u8>,
}

/// What the master had before its directory was damaged.
pub struct Undamaged {
    image: SimulatedDisk,
    record: (u64, u64),
    /// What it can be opened as since, if it can.
    left: Result<(u64, u64), String>,
}

impl Parts {
    pub(crate) fn damage(&mut self, node: Node, damage: Damage) {
        let Some(bay) = self.some_bay(node) else { return };
        let disk = self.disks[&bay].clone();
        self.may_refuse.insert(node);
        let undamaged = (node == Node::Master).then(|| (disk.copy(), self.audit().master()));
        let data = |path: &str| node == Node::Master || path.starts_with("segments/");
        match damage {
            Damage::Flip(bits) => {
                for _ in 0..bits {
                    if let Some((path, block)) = some_block(&disk, data, &mut self.dice) {
                        self.flip(bay, &path, block);
                    }
                }
            }
            Damage::FlipAll => {
                for bay in self.bays(node) {
                    for (path, len) in self.disks[&bay].files().into_iter().filter(|(path, _)| data(path)) {
                        (0..len.div_ceil(BLOCK)).for_each(|block| self.flip(bay, &path, block));
                    }
                }
            }
            Damage::FlipIndex(bits) => {
                for _ in 0..bits {
                    if let Some((path, block)) = some_block(&disk, |path| !data(path), &mut self.dice) {
                        disk.flip(&path, block * BLOCK + self.dice.random_range(0..BLOCK));
                    }
                }
            }
            Damage::Exchange(pairs) | Damage::Misplace(pairs) => {
                for _ in 0..pairs {
                    let one = some_block(&disk, data, &mut self.dice);
                    let other = some_block(&disk, data, &mut self.dice);
                    let (Some((one, at)), Some((other, there))) = (one, other) else { continue };
                    match damage {
                        Damage::Exchange(_) => disk.exchange((&one, at), (&other, there)),
                        _ => disk.misplace((&one, at), (&other, there)),
                    };
                }
            }
            Damage::Cut => {
                if let Some((path, block)) = some_block(&disk, data, &mut self.dice) {
                    disk.cut(&path, block * BLOCK + self.dice.random_range(0..BLOCK));
                }
            }
            Damage::SetBack => {
                let bays = self.bays(node);
                let all = bays.len() > 1 && self.dice.random();
                let back = bays.into_iter().filter(|one| all || *one == bay);
                back.for_each(|bay| self.disks[&bay].set_back(&self.remembered[&bay]));
            }
            Damage::SetBackFile => {
                let image = &self.remembered[&bay];
                let files = disk.files();
                let (path, _) = &files[self.dice.random_range(0..files.len())];
                disk.set_back_file(path, image);
            }
        }
        if let Some((image, record)) = undamaged {
            let left = self.audit().master();
            match record {
                Ok(record) => {
                    if let Ok(now) = &left
                        && now.0 >= record.0
                        && *now != record
                    {
                        self.shared.problem(format!(
                            "a damaged master opens as if nothing were the matter, with another state: {damage:?}"
                        ));
                    }
                    self.undamaged = Some(Undamaged { image, record, left });
                }
                Err(error) => self.shared.problem(format!("the master before its damage: {error}")),
            }
        }
    }

    fn flip(&mut self, bay: Bay, path: &str, block: u64) {
        let disk = &self.disks[&bay];
        let Some(before) = disk.block((path, block)) else { return };
        disk.flip(path, block * BLOCK + self.dice.random_range(0..BLOCK));
        let after = disk.block((path, block)).unwrap_or_default();
        self.damaged.push(Damaged { bay, path: path.to_owned(), block, before, after });
    }

    /// The last damage first, as a block may have been hit twice.
    pub(crate) fn undamage(&mut self) {
        for Damaged { bay, path, block, before, after } in std::mem::take(&mut self.damaged).into_iter().rev()
        {
            let disk = &self.disks[&bay];
            if disk.block((&path, block)).is_some_and(|now| now == after) {
                disk.set_block((&path, block), &before);
            }
        }
    }

    pub(crate) fn mend(&mut self, sim: &mut Sim<'_>, node: Node) {
        let refused = self.shared.with(|notes| notes.refused.contains_key(&node));
        match node {
            Node::Master => {
                let Some(Undamaged { image, record, left }) = self.undamaged.take() else { return };
                let shorter = left.as_ref().is_ok_and(|left| left.0 < record.0);
                // What serves changes; what changed may not be set back.
                let idle =
                    self.audit().master().is_ok_and(|now| left.as_ref().is_ok_and(|left| left.1 == now.1));
                if left.is_err() && !refused {
                    self.shared.problem("a master whose directory cannot be opened has started");
                }
                tracing::info!(refused, shorter, idle, "the damaged master");
                if refused || shorter && idle {
                    self.kill(sim, node);
                    self.disks[&MASTERS].set_back(&image);
                    self.start(sim, node);
                    *self.faults.entry("master refused").or_default() += 1;
                }
            }
            _ => {
                let options = Options::new(self.cluster);
                let is_bad = |bay: &Bay| {
                    let disk = Arc::new(self.disks[bay].copy());
                    fsck::check(disk, options, Timestamp(0)).is_err()
                };
                let bays = self.bays(node);
                let mut bad: Vec<Bay> = bays.iter().copied().filter(is_bad).collect();
                if refused && bad.is_empty() {
                    bad = bays;
                }
                if !bad.is_empty() {
                    tracing::info!(%node, refused, ?bad, "gets an empty disk");
                    self.kill(sim, node);
                    bad.iter().for_each(|bay| self.disks[bay].replace());
                    self.start(sim, node);
                    *self.faults.entry("slave refused").or_default() += 1;
                }
            }
        }
    }
}

/// A block of one of the files that `which` picks.
fn some_block(
    disk: &SimulatedDisk,
    which: impl Fn(&str) -> bool,
    dice: &mut SmallRng,
) -> Option<(String, u64)> {
    let blocks = |(path, len): (String, u64)| {
        let there = (0..len / BLOCK).filter(|block| disk.block((&path, *block)).is_some());
        let there: Vec<u64> = there.collect();
        (!there.is_empty()).then_some((path, there))
    };
    let files: Vec<_> = disk.files().into_iter().filter(|(path, _)| which(path)).filter_map(blocks).collect();
    let (path, blocks) = files.get(dice.random_range(0..files.len().max(1)))?;
    Some((path.clone(), blocks[dice.random_range(0..blocks.len())]))
}

/// Anywhere on the disk.
pub(crate) fn flip_anywhere(disk: &SimulatedDisk, flips: u16, dice: &mut SmallRng) {
    let files: Vec<_> = disk.files().into_iter().filter(|(_, len)| *len > 0).collect();
    for _ in 0..flips {
        if files.is_empty() {
            return;
        }
        let (path, len) = &files[dice.random_range(0..files.len())];
        disk.flip(path, dice.random_range(0..*len));
    }
}
