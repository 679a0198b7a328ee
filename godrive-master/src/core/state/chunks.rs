//! Chunks as files use them: placed, opened for writing, closed, freed.

use super::keys;
use super::transaction::{Result, Transaction, refuse};
use super::values::{Chunk, Deleted, Inode, Slot, Value};
use crate::core::record::Placed;
use godrive_proto::data::{Contents, Layout, LayoutTag, Member};
use godrive_proto::limits::MAX_MEMBERS;
use godrive_proto::meta::Kind;
use godrive_proto::{ChunkId, Code, Epoch, Ino, SessionId, Version, sums};

/// How a writer came to own a file no longer, and what is known of its chunks by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Its last commit named all that it had written: a chunk of which no version is known is a hole.
    Committed,
    /// It gave the lease back. The commit of a chunk's first version may have been lost with the master's power: where none is known, an
    /// epoch change finds out.
    GivenBack,
    /// It may not have committed all: its chunks need an epoch change, and bytes may lie behind the end of the file.
    Revoked,
}

impl Transaction<'_> {
    /// An inode that must be a regular file.
    pub fn file(&self, ino: Ino) -> Result<Inode> {
        let inode = self.inode(ino)?;
        match inode.kind {
            Kind::File => Ok(inode),
            Kind::Directory => refuse(Code::IsDirectory, format!("inode {ino} is a directory")),
            _ => refuse(Code::Invalid, format!("inode {ino} is not a regular file")),
        }
    }

    pub fn slot(&self, ino: Ino, index: u32) -> Result<Option<ChunkId>> {
        Ok(self.value::<Slot>(&keys::slot(ino, index))?.map(|slot| slot.chunk.id))
    }

    /// A new chunk, empty on all members: they need not know of it before the first delta.
    pub fn place(&mut self, ino: Ino, index: u32, chunk_bytes: u32, members: &[Member]) -> Result<ChunkId> {
        if members.is_empty() || members.len() > MAX_MEMBERS {
            return refuse(Code::NoSpace, format!("no members for chunk {index} of inode {ino}"));
        }
        self.meta.last_chunk = self.meta.last_chunk.next();
        self.meta.counts.chunks += 1;
        let id = self.meta.last_chunk;
        let empty = Contents { version: Version(0), digest: sums::empty_digest(id, chunk_bytes) };
        let chunk = Chunk {
            ino,
            index,
            references: 1,
            chunk_bytes,
            layout: LayoutTag::Replicated,
            birth: self.index.0,
            epoch: Epoch(1),
            pending: None,
            members: members.to_vec(),
            held: empty,
            held_at: self.index,
            stable: empty,
            open_by: None,
            unsettled: false,
            used_bytes: 0,
            quarantined: false,
        };
        self.put(keys::chunk(id), &chunk)?;
        self.put(keys::slot(ino, index), &Slot { chunk: chunk.reference(id) })?;
        for member in members {
            self.mark(keys::replica(member.node, id));
        }
        Ok(id)
    }

    /// Notes that the asking session may write the chunk from now on.
    pub fn open_chunk(&mut self, id: ChunkId) -> Result<Layout> {
        let mut chunk: Chunk = self.promised(&keys::chunk(id))?;
        if chunk.quarantined {
            return refuse(Code::Quarantined, format!("chunk {id} has no correct copy that can be elected"));
        }
        if chunk.unsettled {
            return refuse(
                Code::Busy,
                format!("chunk {id} waits for an epoch change, its writer was revoked"),
            );
        }
        match chunk.open_by {
            Some(other) if other != self.session => {
                return refuse(Code::Busy, format!("chunk {id} is open for writing by session {other}"));
            }
            Some(_) => {}
            None => {
                chunk.open_by = Some(self.session);
                self.put(keys::chunk(id), &chunk)?;
                self.mark(keys::open(self.session, chunk.ino, id));
            }
        }
        self.layout_of(id)
    }

    pub fn open_chunks(&mut self, ino: Ino, indexes: &[u32], placed: &[Placed]) -> Result<Vec<Layout>> {
        self.session_of(self.session)?;
        let inode = self.file(ino)?;
        let mut layouts = Vec::with_capacity(indexes.len());
        for index in indexes {
            let id = match self.slot(ino, *index)? {
                Some(id) => id,
                None => {
                    let members = placed.iter().find(|placed| placed.index == *index);
                    self.place(ino, *index, inode.chunk_bytes, members.map_or(&[], |placed| &placed.members))?
                }
            };
            layouts.push(self.open_chunk(id)?);
        }
        Ok(layouts)
    }

    /// The session's chunks of this file are no longer open. The inode's size says what counts: a chunk behind it
    /// was placed ahead and not used (or never committed) and goes.
    pub fn close_chunks(&mut self, session: SessionId, ino: Ino, how: Closing) -> Result<()> {
        let open = self.scan(&keys::open_in(session, ino), usize::MAX)?;
        if open.is_empty() {
            return Ok(());
        }
        let mut inode = self.inode(ino)?;
        let before = inode.clone();
        for (key, _) in open {
            let id = ChunkId(keys::last_number(&key));
            let mut chunk: Chunk = self.promised(&keys::chunk(id))?;
            let start = u64::from(chunk.index) * u64::from(chunk.chunk_bytes);
            let is_first = chunk.held.version.0 == 0;
            if start >= inode.size || (is_first && how == Closing::Committed) {
                self.free_slot(ino, &mut inode, chunk.index, id)?;
                continue;
            }
            chunk.open_by = None;
            self.delete(key);
            if is_first || how == Closing::Revoked {
                chunk.unsettled = true;
                self.mark(keys::unsettled(ino, id));
                self.effects.unsettled.insert(id);
            }
            if how == Closing::Revoked {
                inode.trim_pending |= inode.size < start + u64::from(chunk.chunk_bytes);
            }
            self.put(keys::chunk(id), &chunk)?;
        }
        if inode != before {
            self.change(ino, &mut inode)?;
        }
        Ok(())
    }

    /// Takes every chunk from this index on out of the file. The caller writes the inode.
    pub fn free_slots(&mut self, ino: Ino, inode: &mut Inode, from: u32) -> Result<()> {
        for (key, value) in self.scan(&keys::slots_from(ino, from), usize::MAX)? {
            let index = key.last_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes));
            self.free_slot(ino, inode, index, Slot::decode(&value)?.chunk.id)?;
        }
        Ok(())
    }

    fn free_slot(&mut self, ino: Ino, inode: &mut Inode, index: u32, id: ChunkId) -> Result<()> {
        self.delete(keys::slot(ino, index));
        let mut chunk: Chunk = self.promised(&keys::chunk(id))?;
        inode.used_bytes = inode.used_bytes.saturating_sub(u64::from(chunk.used_bytes));
        if chunk.references > 1 {
            chunk.references -= 1;
            return self.put(keys::chunk(id), &chunk);
        }
        self.delete(keys::chunk(id));
        if let Some(session) = chunk.open_by {
            self.delete(keys::open(session, chunk.ino, id));
        }
        if chunk.unsettled {
            self.delete(keys::unsettled(chunk.ino, id));
            self.effects.unsettled.remove(&id);
            self.effects.settled.insert(chunk.ino);
        }
        let counts = &mut self.meta.counts;
        counts.chunks -= 1;
        counts.deleted += 1;
        counts.quarantined -= u64::from(chunk.quarantined);
        counts.used_bytes = counts.used_bytes.saturating_sub(u64::from(chunk.used_bytes));
        let epoch = chunk.pending.unwrap_or(chunk.epoch);
        // The index by node stays until the replicas are confirmed as gone.
        self.put(keys::deleted(id), &Deleted { epoch, members: chunk.members, time: self.now })?;
        self.effects.freed.insert(id);
        Ok(())
    }

    /// Accounts for a chunk's new use of space. Returns true if it changed the inode, which the caller writes.
    pub fn use_bytes(&mut self, chunk: &mut Chunk, inode: &mut Inode, used_bytes: u32) -> bool {
        let (old, new) = (u64::from(chunk.used_bytes), u64::from(used_bytes));
        chunk.used_bytes = used_bytes;
        inode.used_bytes = inode.used_bytes.saturating_sub(old) + new;
        let total = &mut self.meta.counts.used_bytes;
        *total = total.saturating_sub(old) + new;
        old != new
    }
}
