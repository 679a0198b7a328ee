//! What must hold between the tables after every record.

use crate::core::kv::{Kv, MemoryKv};
use crate::core::state::State;
use crate::core::state::keys::{self, Range};
use crate::core::state::values::*;
use godrive_proto::meta::Kind;
use godrive_proto::{ChunkId, Ino, ROOT, SessionId};
use std::collections::BTreeMap;

fn all(kv: &MemoryKv, range: &Range) -> Vec<(Vec<u8>, bytes::Bytes)> {
    let mut found = Vec::new();
    kv.scan(&range.from, &range.to, &mut |key, value| {
        found.push((key.to_vec(), value.clone()));
        true
    })
    .unwrap();
    found
}

fn tagged(tag: u8) -> Range {
    Range { from: vec![tag], to: vec![tag + 1] }
}

pub fn check(state: &State, kv: &MemoryKv) {
    let inodes: BTreeMap<Ino, Inode> = all(kv, &tagged(0x10))
        .iter()
        .map(|(key, value)| (Ino(keys::last_number(key)), Inode::decode(value).unwrap()))
        .collect();
    let counts = state.counts();
    assert_eq!(counts.inodes, inodes.len() as u64);
    check_names(kv, &inodes);
    let mut orphans = 0;
    for (ino, inode) in inodes.iter().filter(|(_, inode)| inode.nlink == 0) {
        let held = !all(kv, &keys::holders_of(*ino)).is_empty();
        orphans += u64::from(held);
        assert!(held || kv.map.contains_key(&keys::trashed(*ino)), "orphan {ino} {inode:?} has no holder");
    }
    assert_eq!(counts.orphans, orphans);
    check_trash(kv, &inodes);
    for (key, _) in all(kv, &keys::orphans()) {
        let (ino, session) = (Ino(keys::number_before(&key, 8)), SessionId(keys::last_number(&key)));
        assert_eq!(inodes[&ino].nlink, 0);
        assert!(kv.map.contains_key(&keys::session_orphan(session, ino)));
        assert!(kv.map.contains_key(&keys::session(session)));
    }
    assert_eq!(all(kv, &keys::orphans()).len(), all(kv, &tagged(0x16)).len());
    assert_eq!(counts.sessions, all(kv, &keys::sessions()).len() as u64);
    check_chunks(state, kv, &inodes);
}

fn check_trash(kv: &MemoryKv, inodes: &BTreeMap<Ino, Inode>) {
    let (mut entries, mut bytes) = (0, 0);
    for (key, value) in all(kv, &tagged(0x17)) {
        let (ino, trashed) = (Ino(keys::last_number(&key)), Trashed::decode(&value).unwrap());
        let inode = &inodes[&ino];
        assert_eq!(inode.nlink, 0, "{ino} has a name and is in the trash");
        assert!(kv.map.contains_key(&keys::trash_order(trashed.removed, ino)));
        if all(kv, &keys::holders_of(ino)).is_empty() {
            assert_eq!(trashed.bytes, inode.used_bytes, "bytes of {ino} in the trash");
        }
        entries += 1;
        bytes += trashed.bytes;
    }
    assert_eq!(all(kv, &keys::whole_trash()).len() as u64, entries);
    let trash =
        kv.map.get(keys::TRASH.as_slice()).map(|bytes| Trash::decode(bytes).unwrap()).unwrap_or_default();
    assert_eq!((trash.entries, trash.bytes), (entries, bytes));
}

fn check_names(kv: &MemoryKv, inodes: &BTreeMap<Ino, Inode>) {
    let mut links: BTreeMap<Ino, u32> = BTreeMap::new();
    let mut entries: BTreeMap<Ino, u64> = BTreeMap::new();
    for (key, value) in all(kv, &tagged(0x11)) {
        let dentry = Dentry::decode(&value).unwrap();
        let parent = Ino(u64::from_be_bytes(key[1..9].try_into().unwrap()));
        let entry = Entry::decode(&kv.map[&keys::entry(parent, dentry.position)]).unwrap();
        assert_eq!((entry.name.0.as_slice(), entry.ino, entry.kind), (&key[9..], dentry.ino, dentry.kind));
        assert!(dentry.position < inodes[&parent].next_position);
        assert_eq!(inodes[&dentry.ino].kind, dentry.kind);
        *links.entry(dentry.ino).or_default() += 1;
        *entries.entry(parent).or_default() += 1;
        if dentry.kind == Kind::Directory {
            assert_eq!(inodes[&dentry.ino].parent, parent);
            *links.entry(parent).or_default() += 1;
        }
    }
    assert_eq!(all(kv, &tagged(0x11)).len(), all(kv, &tagged(0x12)).len());
    for (ino, inode) in inodes {
        let names = links.get(ino).copied().unwrap_or(0);
        match inode.kind {
            Kind::Directory => {
                assert_eq!(inode.size, entries.get(ino).copied().unwrap_or(0), "size of directory {ino}");
                // Its own `.`; the root has no name but its `..` is itself.
                let own = u32::from(inode.nlink > 0) + u32::from(*ino == ROOT);
                assert_eq!(inode.nlink, names + own, "links of directory {ino}");
            }
            _ => assert_eq!(inode.nlink, names, "links of {ino}"),
        }
    }
}

fn check_chunks(state: &State, kv: &MemoryKv, inodes: &BTreeMap<Ino, Inode>) {
    let (mut used, mut replicas, mut open, mut unsettled, mut quarantined) = (BTreeMap::new(), 0, 0, 0, 0);
    let chunks = all(kv, &keys::chunks());
    for (key, value) in &chunks {
        let (id, chunk) = (ChunkId(keys::last_number(key)), Chunk::decode(value).unwrap());
        let slot = Slot::decode(&kv.map[&keys::slot(chunk.ino, chunk.index)]).unwrap();
        assert_eq!(slot.chunk, chunk.reference(id));
        *used.entry(chunk.ino).or_insert(0) += u64::from(chunk.used_bytes);
        for member in &chunk.members {
            assert!(kv.map.contains_key(&keys::replica(member.node, id)));
            replicas += 1;
        }
        if let Some(session) = chunk.open_by {
            assert!(kv.map.contains_key(&keys::open(session, chunk.ino, id)));
            open += 1;
        }
        if chunk.unsettled {
            assert!(kv.map.contains_key(&keys::unsettled(chunk.ino, id)));
            unsettled += 1;
        }
        quarantined += u64::from(chunk.quarantined);
    }
    let deleted = all(kv, &keys::all_deleted());
    for (key, value) in &deleted {
        for member in Deleted::decode(value).unwrap().members {
            assert!(kv.map.contains_key(&keys::replica(member.node, ChunkId(keys::last_number(key)))));
            replicas += 1;
        }
    }
    assert_eq!(all(kv, &tagged(0x22)).len(), replicas);
    assert_eq!(all(kv, &tagged(0x23)).len(), open);
    assert_eq!(all(kv, &keys::all_unsettled()).len(), unsettled);
    assert_eq!(all(kv, &tagged(0x20)).len(), chunks.len());
    for (ino, inode) in inodes {
        assert_eq!(inode.used_bytes, used.get(ino).copied().unwrap_or(0), "bytes of {ino}");
    }
    let counts = state.counts();
    assert_eq!(counts.chunks, chunks.len() as u64);
    assert_eq!(counts.deleted, deleted.len() as u64);
    assert_eq!(counts.quarantined, quarantined);
    assert_eq!(counts.used_bytes, used.values().sum::<u64>());
}
