//! The cluster itself: its first record, terms, nodes and join tokens.

use super::keys;
use super::transaction::{Result, Transaction, refuse};
use super::values::{Cluster, Inode, Intent, Node, Token};
use crate::core::record::Purpose;
use godrive_proto::lease::ClusterParameters;
use godrive_proto::limits::{MAX_CHUNK_BYTES, MAX_MEMBERS, MIN_CHUNK_BYTES};
use godrive_proto::meta::Kind;
use godrive_proto::time::Timestamp;
use godrive_proto::{BootId, ClusterId, Code, DiskId, NodeId, ROOT, Role, Term};
use std::net::SocketAddr;

/// Position 1 and 2 are left to `.` and `..`, so that clients can use positions as they are.
pub const FIRST_POSITION: u64 = 3;

impl Transaction<'_> {
    pub fn bootstrap(
        &mut self,
        id: ClusterId,
        parameters: ClusterParameters,
        feature_level: u16,
    ) -> Result<()> {
        if let Some(cluster) = self.meta.cluster {
            return refuse(Code::Exists, format!("the cluster {} was bootstrapped before", cluster.id));
        }
        let ClusterParameters { chunk_bytes, replicas, min_replicas } = parameters;
        let whole =
            (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&chunk_bytes) && chunk_bytes.is_power_of_two();
        let enough = (1..=replicas).contains(&min_replicas) && usize::from(replicas) <= MAX_MEMBERS;
        if !whole || !enough {
            return refuse(Code::Invalid, format!("impossible cluster parameters: {parameters:?}"));
        }
        self.meta.cluster = Some(Cluster { id, parameters, feature_level });
        self.meta.last_ino = ROOT;
        self.meta.counts.inodes = 1;
        let mut root = self.fresh_inode(Kind::Directory, 0o755, 0, 0);
        root.nlink = 2;
        root.parent = ROOT;
        self.put(keys::inode(ROOT), &root)
    }

    /// An inode as of now, without a name or a number.
    pub fn fresh_inode(&self, kind: Kind, mode: u16, uid: u32, gid: u32) -> Inode {
        let chunk_bytes = self.meta.cluster.map_or(0, |cluster| cluster.parameters.chunk_bytes);
        Inode {
            kind,
            mode: mode & 0o7777,
            nlink: 1,
            uid,
            gid,
            rdev: 0,
            size: 0,
            used_bytes: 0,
            chunk_bytes,
            atime: self.now,
            mtime: self.now,
            ctime: self.now,
            btime: self.now,
            change: self.index.0,
            birth: self.index.0,
            parent: ROOT,
            subtree: 0,
            next_position: FIRST_POSITION,
            xattrs: 0,
            xattr_bytes: 0,
            xattr_list_bytes: 0,
            trim_pending: false,
        }
    }

    pub fn start_term(&mut self, term: Term) -> Result<()> {
        if term <= self.meta.term {
            return refuse(Code::WrongTerm, format!("term {term} does not follow term {}", self.meta.term));
        }
        self.meta.term = term;
        Ok(())
    }

    pub fn skip_ids(&mut self, count: u64) -> Result<()> {
        let ino = self.meta.last_ino.0.checked_add(count);
        let chunk = self.meta.last_chunk.0.checked_add(count);
        let (Some(ino), Some(chunk)) = (ino, chunk) else {
            return refuse(Code::NoSpace, format!("{count} more ids do not exist"));
        };
        (self.meta.last_ino.0, self.meta.last_chunk.0) = (ino, chunk);
        Ok(())
    }

    pub fn register_node(
        &mut self,
        id: NodeId,
        address: SocketAddr,
        domain: &str,
        disks: &[DiskId],
        boot: BootId,
    ) -> Result<()> {
        if self.intent(id)?.purpose == Purpose::Retired {
            return refuse(Code::Forbidden, format!("node {id} was decommissioned"));
        }
        let before = self.value::<Node>(&keys::node(id))?.filter(|node| node.boot == boot);
        let booted_at = before.map_or(self.index, |node| node.booted_at);
        let node = Node { address, domain: domain.to_owned(), disks: disks.to_vec(), boot, booted_at };
        self.put(keys::node(id), &node)
    }

    pub fn intent(&self, id: NodeId) -> Result<Intent> {
        Ok(self.value(&keys::intent(id))?.unwrap_or_default())
    }

    pub fn intend(&mut self, id: NodeId, purpose: Purpose, disks: &[DiskId]) -> Result<()> {
        let intent = Intent { purpose, disks: disks.to_vec() };
        if intent == Intent::default() {
            self.delete(keys::intent(id));
            return Ok(());
        }
        self.put(keys::intent(id), &intent)
    }

    /// Never with a replica left there, of a deleted chunk either.
    pub fn retire(&mut self, id: NodeId) -> Result<()> {
        let Some(node) = self.value::<Node>(&keys::node(id))? else {
            return refuse(Code::NotFound, format!("node {id} is not known"));
        };
        if self.intent(id)?.purpose != Purpose::Decommission {
            return refuse(Code::Invalid, format!("node {id} is not being decommissioned"));
        }
        if !self.scan(&keys::replicas_of(id), 1)?.is_empty() {
            return refuse(Code::Busy, format!("node {id} still has replicas"));
        }
        self.delete(keys::node(id));
        self.put(keys::intent(id), &Intent { purpose: Purpose::Retired, disks: node.disks })
    }

    pub fn make_token(
        &mut self,
        role: Role,
        secret_hash: [u8; 32],
        expires: Timestamp,
        uses: u32,
    ) -> Result<u64> {
        self.meta.last_token += 1;
        let id = self.meta.last_token;
        self.put(keys::token(id), &Token { role, secret_hash, expires, uses_left: uses })?;
        Ok(id)
    }

    pub fn use_token(&mut self, id: u64) -> Result<()> {
        let Some(mut token) = self.value::<Token>(&keys::token(id))? else {
            return refuse(Code::Forbidden, format!("join token {id} is unknown or used up: make a new one"));
        };
        if self.now > token.expires || token.uses_left == 0 {
            return refuse(Code::Forbidden, format!("join token {id} has expired: make a new one"));
        }
        token.uses_left -= 1;
        if token.uses_left == 0 {
            self.delete(keys::token(id));
            return Ok(());
        }
        self.put(keys::token(id), &token)
    }
}
