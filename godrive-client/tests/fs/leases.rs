//! The model's lease table.

use godrive_proto::lease::{ByteRange, Lease, Mode, RecallRequest};
use godrive_proto::{Ino, LeaseId};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Share,
    /// No other client may hold it meanwhile.
    Alone,
}

#[derive(Default)]
pub struct Leases {
    held: BTreeMap<(Ino, u64), (LeaseId, Mode)>,
    last: u64,
    pub recalls: u64,
}

impl Leases {
    pub fn conflicts(
        &mut self,
        client: u64,
        needs: &[(Ino, Need)],
        _now: Duration,
    ) -> Vec<(u64, RecallRequest)> {
        let mut recalls = Vec::new();
        for (ino, need) in needs {
            for ((_, holder), (id, mode)) in self.held.range((*ino, 0)..=(*ino, u64::MAX)) {
                let conflicts = *need == Need::Alone || *mode == Mode::Exclusive;
                if *holder != client && conflicts {
                    let may_keep = (*need == Need::Share).then_some(Mode::Shared);
                    recalls.push((*holder, RecallRequest { ino: *ino, id: *id, may_keep }));
                }
            }
        }
        self.recalls += recalls.len() as u64;
        recalls
    }

    pub fn grant(&mut self, client: u64, ino: Ino, mode: Mode) -> Option<Lease> {
        let foreign = self.held.range((ino, 0)..=(ino, u64::MAX)).any(|((_, holder), (_, held))| {
            *holder != client && (mode == Mode::Exclusive || *held == Mode::Exclusive)
        });
        if foreign {
            return None;
        }
        self.last += 1;
        let id = LeaseId(self.last);
        let mode = self.held.get(&(ino, client)).map_or(mode, |(_, held)| mode.max(*held));
        self.held.insert((ino, client), (id, mode));
        Some(Lease { ino, id, mode, range: ByteRange::WHOLE })
    }

    /// False: it was granted anew meanwhile.
    pub fn released(&mut self, client: u64, id: LeaseId, keeps: Option<Mode>, ino: Ino) -> bool {
        let Some((held, mode)) = self.held.get_mut(&(ino, client)) else { return false };
        if *held > id {
            return false;
        }
        match keeps {
            Some(keeps) => *mode = keeps.min(*mode),
            None => {
                self.held.remove(&(ino, client));
            }
        }
        true
    }

    pub fn is_exclusive(&self, client: u64, ino: Ino) -> bool {
        self.held.get(&(ino, client)).is_some_and(|(_, mode)| *mode == Mode::Exclusive)
    }

    pub fn holds(&self, client: u64, ino: Ino) -> bool {
        self.held.contains_key(&(ino, client))
    }

    pub fn current(&self, client: u64, ino: Ino) -> Option<Lease> {
        let (id, mode) = *self.held.get(&(ino, client))?;
        Some(Lease { ino, id, mode, range: ByteRange::WHOLE })
    }

    pub fn lower(&mut self, client: u64, ino: Ino) {
        if let Some((_, mode)) = self.held.get_mut(&(ino, client)) {
            *mode = Mode::Shared;
        }
    }
}
