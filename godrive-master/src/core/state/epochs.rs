//! Chunks as their replicas know them: epochs, stability, quarantine, and being forgotten.

use super::keys;
use super::transaction::{Result, Transaction, refuse};
use super::values::{Chunk, Deleted};
use crate::core::record::Purpose;
use godrive_proto::data::{Contents, Member};
use godrive_proto::limits::MAX_MEMBERS;
use godrive_proto::{ChunkId, Code, Epoch};

impl Transaction<'_> {
    fn chunk(&self, id: ChunkId) -> Result<Chunk> {
        match self.value(&keys::chunk(id))? {
            Some(chunk) => Ok(chunk),
            None => refuse(Code::NoChunk, format!("chunk {id} does not exist (any longer)")),
        }
    }

    /// Each attempt at an epoch change takes a new number, as members may be sealed for the last one.
    pub fn begin_epoch(&mut self, id: ChunkId, epoch: Epoch) -> Result<()> {
        let mut chunk = self.chunk(id)?;
        if epoch <= chunk.pending.unwrap_or(chunk.epoch) {
            return refuse(Code::WrongEpoch, format!("epoch {epoch} of chunk {id} is not a new one"));
        }
        chunk.pending = Some(epoch);
        self.put(keys::chunk(id), &chunk)
    }

    pub fn install_epoch(
        &mut self,
        id: ChunkId,
        epoch: Epoch,
        members: &[Member],
        contents: Contents,
        stable: bool,
        used_bytes: u32,
    ) -> Result<()> {
        if members.is_empty() || members.len() > MAX_MEMBERS {
            return refuse(
                Code::Invalid,
                format!("epoch {epoch} of chunk {id} has {} members", members.len()),
            );
        }
        for member in members {
            if self.intent(member.node)?.purpose == Purpose::Retired {
                return refuse(Code::Invalid, format!("node {} was decommissioned", member.node));
            }
        }
        if let Some(deleted) = self.value::<Deleted>(&keys::deleted(id))? {
            return self.install_deleted(id, deleted, epoch, members);
        }
        let mut chunk = self.chunk(id)?;
        // Only the answers to the seal say whether all had restarted.
        let numbers = chunk.pending.map(|pending| [pending, pending.after_restarts()]);
        if !numbers.is_some_and(|numbers| numbers.contains(&epoch)) {
            return refuse(Code::WrongEpoch, format!("epoch {epoch} of chunk {id} is not the pending one"));
        }
        for old in &chunk.members {
            self.delete(keys::replica(old.node, id));
        }
        for new in members {
            self.mark(keys::replica(new.node, id));
        }
        if chunk.unsettled {
            self.delete(keys::unsettled(chunk.ino, id));
        }
        self.meta.counts.quarantined -= u64::from(chunk.quarantined);
        chunk.epoch = epoch;
        chunk.pending = None;
        chunk.members = members.to_vec();
        chunk.unsettled = false;
        chunk.quarantined = false;
        let mut inode = self.inode(chunk.ino)?;
        let before = inode.clone();
        if contents.version < chunk.held.version {
            // A hole that cut the file's end off may be among what is lost.
            let start = u64::from(chunk.index) * u64::from(chunk.chunk_bytes);
            let has_the_end = start < inode.size && inode.size < start + u64::from(chunk.chunk_bytes);
            inode.trim_pending |= has_the_end;
        }
        chunk.held = contents;
        chunk.held_at = self.index;
        if stable || chunk.stable.version > contents.version {
            chunk.stable = contents;
        }
        self.use_bytes(&mut chunk, &mut inode, used_bytes);
        if inode != before {
            self.change(chunk.ino, &mut inode)?;
        }
        self.put(keys::chunk(id), &chunk)
    }

    /// The file was removed while the epoch changed: the joiners have replicas to delete, too.
    fn install_deleted(
        &mut self,
        id: ChunkId,
        mut deleted: Deleted,
        epoch: Epoch,
        members: &[Member],
    ) -> Result<()> {
        deleted.epoch = deleted.epoch.max(epoch);
        for member in members {
            if !deleted.members.iter().any(|old| (old.node, old.disk) == (member.node, member.disk)) {
                deleted.members.push(*member);
                self.mark(keys::replica(member.node, id));
            }
        }
        self.effects.freed.insert(id);
        self.put(keys::deleted(id), &deleted)
    }

    /// What a slave reports late, of another epoch or version, says nothing of the present and is passed over.
    pub fn stabilise(&mut self, chunks: &[(ChunkId, Epoch, Contents)]) -> Result<()> {
        for (id, epoch, contents) in chunks {
            let Some(mut chunk) = self.value::<Chunk>(&keys::chunk(*id))? else { continue };
            let differs = contents.version == chunk.held.version && contents.digest != chunk.held.digest;
            if *epoch != chunk.epoch || differs || contents.version <= chunk.stable.version {
                continue;
            }
            // All members have it: it is held, though the commit that says so is still on its way.
            if contents.version > chunk.held.version {
                chunk.held = *contents;
                chunk.held_at = self.index;
            }
            chunk.stable = *contents;
            self.put(keys::chunk(*id), &chunk)?;
        }
        Ok(())
    }

    pub fn quarantine(&mut self, id: ChunkId) -> Result<()> {
        let mut chunk = self.chunk(id)?;
        self.meta.counts.quarantined += u64::from(!chunk.quarantined);
        chunk.quarantined = true;
        self.put(keys::chunk(id), &chunk)
    }

    pub fn forget(&mut self, chunks: &[ChunkId]) -> Result<()> {
        for id in chunks {
            let Some(deleted) = self.value::<Deleted>(&keys::deleted(*id))? else { continue };
            for member in &deleted.members {
                self.delete(keys::replica(member.node, *id));
            }
            self.delete(keys::deleted(*id));
            self.meta.counts.deleted -= 1;
        }
        Ok(())
    }
}
