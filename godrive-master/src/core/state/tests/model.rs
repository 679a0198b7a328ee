//! A POSIX tree as simply as it can be said, to compare the state with. It shares no code with it.

use godrive_proto::Code;
use godrive_proto::meta::{RenameMode, SetXattrMode};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    File,
    Directory,
    Symlink,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub shape: Shape,
    pub mode: u16,
    pub size: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub children: BTreeMap<String, usize>,
    pub parent: usize,
    /// Without a name: whether somebody has it open, and whether it is in the trash.
    pub left: Option<(bool, bool)>,
    /// Removed, closed, and not in the trash.
    pub gone: bool,
}

/// Nodes are never taken out of the list; the root is the first.
#[derive(Clone)]
pub struct Model {
    pub nodes: Vec<Node>,
}

type Done<T = ()> = Result<T, Code>;

impl Model {
    pub fn new() -> Self {
        let mut model = Self { nodes: Vec::new() };
        model.add(Shape::Directory, 0o755, 0);
        model
    }

    fn add(&mut self, shape: Shape, mode: u16, parent: usize) -> usize {
        let (xattrs, children) = (BTreeMap::new(), BTreeMap::new());
        self.nodes.push(Node { shape, mode, size: 0, xattrs, children, parent, left: None, gone: false });
        self.nodes.len() - 1
    }

    /// How many names lead to a node.
    pub fn names(&self, node: usize) -> u32 {
        let all = self.nodes.iter().flat_map(|directory| directory.children.values());
        all.filter(|child| **child == node).count() as u32
    }

    pub fn nlink(&self, node: usize) -> u32 {
        if self.nodes[node].shape != Shape::Directory {
            return self.names(node);
        }
        if node != 0 && self.names(node) == 0 {
            return 0;
        }
        let below = self.nodes[node].children.values();
        2 + below.filter(|child| self.nodes[**child].shape == Shape::Directory).count() as u32
    }

    fn exists(&self, node: usize) -> Done {
        if self.nodes[node].gone { Err(Code::Stale) } else { Ok(()) }
    }

    fn directory(&self, node: usize) -> Done {
        self.exists(node)?;
        if self.nodes[node].shape != Shape::Directory { Err(Code::NotDirectory) } else { Ok(()) }
    }

    fn takes_names(&self, node: usize) -> Done {
        self.directory(node)?;
        if self.nlink(node) == 0 { Err(Code::NotFound) } else { Ok(()) }
    }

    pub fn child(&self, directory: usize, name: &str) -> Option<usize> {
        self.nodes[directory].children.get(name).copied()
    }

    pub fn create(&mut self, directory: usize, name: &str, exclusive: bool) -> Done<usize> {
        self.takes_names(directory)?;
        match self.child(directory, name) {
            Some(_) if exclusive => Err(Code::Exists),
            Some(found) if self.nodes[found].shape == Shape::Directory => Err(Code::IsDirectory),
            Some(found) => Ok(found),
            None => self.make(directory, name, Shape::File),
        }
    }

    pub fn make(&mut self, directory: usize, name: &str, shape: Shape) -> Done<usize> {
        self.takes_names(directory)?;
        if self.child(directory, name).is_some() {
            return Err(Code::Exists);
        }
        let mode = match shape {
            Shape::File => 0o644,
            // The set-gid bit is inherited.
            Shape::Directory => 0o755 | self.nodes[directory].mode & 0o2000,
            Shape::Symlink => 0o777,
        };
        let node = self.add(shape, mode, directory);
        self.nodes[directory].children.insert(name.to_owned(), node);
        Ok(node)
    }

    pub fn link(&mut self, node: usize, directory: usize, name: &str) -> Done {
        self.exists(node)?;
        self.takes_names(directory)?;
        if self.child(directory, name).is_some() {
            return Err(Code::Exists);
        }
        if self.nodes[node].shape == Shape::Directory {
            return Err(Code::NotPermitted);
        }
        if self.names(node) == 0 {
            return Err(Code::NotFound);
        }
        self.nodes[directory].children.insert(name.to_owned(), node);
        Ok(())
    }

    pub fn remove(&mut self, directory: usize, name: &str, rmdir: bool) -> Done {
        self.directory(directory)?;
        let child = self.child(directory, name).ok_or(Code::NotFound)?;
        match (self.nodes[child].shape == Shape::Directory, rmdir) {
            (true, false) => return Err(Code::IsDirectory),
            (false, true) => return Err(Code::NotDirectory),
            (true, true) if !self.nodes[child].children.is_empty() => return Err(Code::NotEmpty),
            _ => {}
        }
        self.nodes[directory].children.remove(name);
        Ok(())
    }

    /// Each a directory, a name in it and whether it is a directory's: all of them go, or none.
    pub fn remove_all(&mut self, steps: &[(usize, String, bool)]) -> Done {
        let mut after = self.clone();
        for (directory, name, rmdir) in steps {
            after.child(*directory, name).ok_or(Code::NotFound)?;
            after.remove(*directory, name, *rmdir)?;
        }
        *self = after;
        Ok(())
    }

    fn above(&self, ancestor: usize, mut node: usize) -> bool {
        while node != ancestor && node != 0 {
            node = self.nodes[node].parent;
        }
        node == ancestor
    }

    pub fn rename(&mut self, from: (usize, &str), to: (usize, &str), mode: RenameMode) -> Done {
        self.directory(from.0)?;
        self.takes_names(to.0)?;
        let source = self.child(from.0, from.1).ok_or(Code::NotFound)?;
        let target = self.child(to.0, to.1);
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Code::Exists),
            (RenameMode::Exchange, None) => return Err(Code::NotFound),
            _ => {}
        }
        let is_directory = |node: usize| self.nodes[node].shape == Shape::Directory;
        if is_directory(source) && self.above(source, to.0) {
            return Err(Code::Invalid);
        }
        if let Some(target) = target.filter(|target| is_directory(*target))
            && self.above(target, from.0)
        {
            return Err(if mode == RenameMode::Exchange { Code::Invalid } else { Code::NotEmpty });
        }
        if target == Some(source) {
            return Ok(());
        }
        if let Some(target) = target.filter(|_| mode == RenameMode::Replace) {
            match (is_directory(source), is_directory(target)) {
                (true, false) => return Err(Code::NotDirectory),
                (false, true) => return Err(Code::IsDirectory),
                (true, true) if !self.nodes[target].children.is_empty() => return Err(Code::NotEmpty),
                _ => {}
            }
        }
        self.nodes[from.0].children.remove(from.1);
        self.nodes[to.0].children.insert(to.1.to_owned(), source);
        self.nodes[source].parent = to.0;
        if let Some(target) = target.filter(|_| mode == RenameMode::Exchange) {
            self.nodes[from.0].children.insert(from.1.to_owned(), target);
            self.nodes[target].parent = from.0;
        }
        Ok(())
    }

    pub fn chmod(&mut self, node: usize, mode: u16) -> Done {
        self.exists(node)?;
        self.nodes[node].mode = mode;
        Ok(())
    }

    /// Exactly this long, or at least.
    pub fn resize(&mut self, node: usize, size: u64, shrink: bool) -> Done {
        self.exists(node)?;
        match self.nodes[node].shape {
            Shape::File => {}
            Shape::Directory => return Err(Code::IsDirectory),
            Shape::Symlink => return Err(Code::Invalid),
        }
        let old = self.nodes[node].size;
        self.nodes[node].size = if shrink { size } else { size.max(old) };
        Ok(())
    }

    pub fn set_xattr(&mut self, node: usize, name: &[u8], value: &[u8], mode: SetXattrMode) -> Done {
        self.exists(node)?;
        let xattrs = &mut self.nodes[node].xattrs;
        match (mode, xattrs.contains_key(name)) {
            (SetXattrMode::Create, true) => return Err(Code::Exists),
            (SetXattrMode::Replace, false) => return Err(Code::NoAttribute),
            _ => {}
        }
        xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    pub fn remove_xattr(&mut self, node: usize, name: &[u8]) -> Done {
        self.exists(node)?;
        self.nodes[node].xattrs.remove(name).map(drop).ok_or(Code::NoAttribute)
    }

    /// After each operation: what has lost its last name is open, and kept if the trash is on.
    pub fn notice(&mut self, kept: bool) {
        for node in 0..self.nodes.len() {
            let named = self.nlink(node) > 0;
            let left = &mut self.nodes[node].left;
            *left = if named { None } else { Some(left.unwrap_or((true, kept))) };
        }
    }

    pub fn close(&mut self, node: usize) {
        self.leave(node, |left| left.0 = false);
    }

    pub fn empty(&mut self, node: usize) {
        self.leave(node, |left| left.1 = false);
    }

    fn leave(&mut self, node: usize, change: impl FnOnce(&mut (bool, bool))) {
        let node = &mut self.nodes[node];
        if let Some(left) = &mut node.left {
            change(left);
            node.gone = *left == (false, false);
        }
    }

    pub fn restore(&mut self, node: usize, directory: usize, name: &str) -> Done {
        self.takes_names(directory)?;
        if self.child(directory, name).is_some() {
            return Err(Code::Exists);
        }
        if !self.nodes[node].left.is_some_and(|(_, trashed)| trashed) {
            return Err(Code::NotFound);
        }
        self.nodes[directory].children.insert(name.to_owned(), node);
        self.nodes[node].parent = directory;
        Ok(())
    }
}
