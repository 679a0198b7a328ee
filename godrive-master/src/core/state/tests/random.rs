//! Random operations on the state and on the model: the same answers, and after each the same tree.

use super::model::{Model, Shape};
use super::*;
use godrive_proto::ROOT;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Create { directory: usize, name: u8, exclusive: bool },
    Make { directory: usize, name: u8, shape: u8 },
    Link { node: usize, directory: usize, name: u8 },
    Remove { directory: usize, name: u8, rmdir: bool },
    Batch { steps: Vec<(usize, u8, bool)>, then_directory: bool },
    Rename { from: (usize, u8), to: (usize, u8), mode: u8 },
    Chmod { node: usize, mode: u16 },
    Resize { node: usize, size: u64, shrink: bool },
    SetXattr { node: usize, name: u8, value: u8, mode: u8 },
    RemoveXattr { node: usize, name: u8 },
    Close { node: usize },
    Restore { node: usize, directory: usize, name: u8 },
    Empty { node: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let (node, name) = (0..12usize, 0..4u8);
    let place = (node.clone(), name.clone());
    prop_oneof![
        3 => (place.clone(), any::<bool>())
            .prop_map(|((directory, name), exclusive)| Op::Create { directory, name, exclusive }),
        5 => (place.clone(), 0..4u8).prop_map(|((directory, name), shape)| Op::Make { directory, name, shape }),
        2 => (node.clone(), place.clone())
            .prop_map(|(node, (directory, name))| Op::Link { node, directory, name }),
        4 => (place.clone(), any::<bool>())
            .prop_map(|((directory, name), rmdir)| Op::Remove { directory, name, rmdir }),
        4 => (prop::collection::vec((node.clone(), name.clone(), any::<bool>()), 1..3), any::<bool>())
            .prop_map(|(steps, then_directory)| Op::Batch { steps, then_directory }),
        6 => (place.clone(), place.clone(), 0..4u8).prop_map(|(from, to, mode)| Op::Rename { from, to, mode }),
        1 => (node.clone(), 0..0o10000u16).prop_map(|(node, mode)| Op::Chmod { node, mode }),
        2 => (node.clone(), 0..9_000_000u64, any::<bool>())
            .prop_map(|(node, size, shrink)| Op::Resize { node, size, shrink }),
        2 => (node.clone(), name.clone(), any::<u8>(), 0..3u8)
            .prop_map(|(node, name, value, mode)| Op::SetXattr { node, name, value, mode }),
        1 => (node.clone(), name).prop_map(|(node, name)| Op::RemoveXattr { node, name }),
        2 => node.clone().prop_map(|node| Op::Close { node }),
        3 => (node.clone(), place).prop_map(|(node, (directory, name))| Op::Restore { node, directory, name }),
        1 => node.prop_map(|node| Op::Empty { node }),
    ]
}

/// The state, the model, and which inode is which node.
struct Pair {
    bench: Bench,
    model: Model,
    inos: Vec<Ino>,
    kept: bool,
}

fn text(name: u8) -> String {
    format!("n{name}")
}

impl Pair {
    fn new(kept: bool) -> Self {
        let mut bench = Bench::new();
        if kept {
            bench.own(Body::TrashKept { keep_s: 60, min_age_s: 0 }).unwrap();
        }
        Self { bench, model: Model::new(), inos: vec![ROOT], kept }
    }

    /// Low numbers are used often, so that operations meet each other; all are nodes that exist or existed.
    fn node(&self, number: usize) -> usize {
        number % self.inos.len()
    }

    /// Both made or found a node, or both refused.
    fn made(&mut self, ours: Result<Ino, Code>, theirs: Result<usize, Code>) {
        match (ours, theirs) {
            (Ok(ino), Ok(node)) if node == self.inos.len() => self.inos.push(ino),
            (Ok(ino), Ok(node)) => assert_eq!(ino, self.inos[node]),
            (ours, theirs) => assert_eq!(ours.err(), theirs.err()),
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Create { directory, name, exclusive } => {
                let node = self.node(directory);
                let ours = self.create(self.inos[node], &text(name), exclusive);
                let theirs = self.model.create(node, &text(name), exclusive);
                self.made(ours, theirs);
            }
            Op::Make { directory, name, shape } => {
                let node = self.node(directory);
                let (new, shape) = match shape {
                    0 => (NewNode::Symlink(b"t".to_vec()), Shape::Symlink),
                    _ => (NewNode::Directory, Shape::Directory),
                };
                let ours = self.bench.make(self.inos[node], &text(name), new);
                let theirs = self.model.make(node, &text(name), shape);
                self.made(ours, theirs);
            }
            Op::Link { node, directory, name } => {
                let (node, directory) = (self.node(node), self.node(directory));
                let ours = self.bench.link(self.inos[node], self.inos[directory], &text(name));
                assert_eq!(ours.map(drop), self.model.link(node, directory, &text(name)));
            }
            Op::Remove { directory, name, rmdir } => {
                let node = self.node(directory);
                let ours = self.bench.remove(self.inos[node], &text(name), rmdir);
                assert_eq!(ours.map(drop), self.model.remove(node, &text(name), rmdir));
            }
            Op::Batch { steps, then_directory } => self.batch(&steps, then_directory),
            Op::Rename { from, to, mode } => {
                let mode =
                    [RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]
                        [usize::from(mode)];
                let (a, b) = (self.node(from.0), self.node(to.0));
                let (old, new) = (text(from.1), text(to.1));
                let ours = self.bench.rename((self.inos[a], &old), (self.inos[b], &new), mode);
                assert_eq!(ours.map(drop), self.model.rename((a, &old), (b, &new), mode));
            }
            other => self.run_on_inode(other),
        }
    }

    fn batch(&mut self, steps: &[(usize, u8, bool)], then_directory: bool) {
        let mut steps: Vec<_> =
            steps.iter().map(|(node, name, rmdir)| (self.node(*node), text(*name), *rmdir)).collect();
        let first = steps[0].0;
        let nodes = self.model.nodes.iter().enumerate();
        let names =
            nodes.flat_map(|(node, found)| found.children.iter().map(move |(name, at)| (node, name, *at)));
        let above = names.into_iter().find(|(_, _, child)| *child == first);
        if let Some((parent, name, _)) = above.filter(|_| then_directory) {
            steps.push((parent, name.clone(), true));
        }
        let taken = steps.iter().map(|(node, name, rmdir)| {
            let ino = self.model.child(*node, name).map_or(ROOT, |child| self.inos[child]);
            taken(self.inos[*node], name, *rmdir, ino)
        });
        let ours = self.bench.batch(taken.collect());
        assert_eq!(ours.as_ref().map(drop).map_err(|code| *code), self.model.remove_all(&steps));
        for view in ours.into_iter().flatten() {
            assert_eq!(view.attr, self.bench.attr(view.attr.ino));
        }
    }

    fn run_on_inode(&mut self, op: Op) {
        match op {
            Op::Chmod { node, mode } => {
                let node = self.node(node);
                let changes = AttrChanges { mode: Some(mode), ..Default::default() };
                assert_eq!(
                    self.bench.set_attr(self.inos[node], changes).map(drop),
                    self.model.chmod(node, mode)
                );
            }
            Op::Resize { node, size, shrink } => {
                let node = self.node(node);
                let ino = self.inos[node];
                let ours = match shrink {
                    true => self.bench.truncate(ino, size).map(drop),
                    false => self.bench.commit(CommitRequest { size: Some(size), ..nothing(ino) }).map(drop),
                };
                assert_eq!(ours, self.model.resize(node, size, shrink));
            }
            Op::SetXattr { node, name, value, mode } => {
                let node = self.node(node);
                let mode =
                    [SetXattrMode::Set, SetXattrMode::Create, SetXattrMode::Replace][usize::from(mode)];
                let (name, value) = (text(name), [value]);
                let ours = self.bench.set_xattr_as(self.inos[node], name.as_bytes(), &value, mode);
                assert_eq!(ours, self.model.set_xattr(node, name.as_bytes(), &value, mode));
            }
            Op::RemoveXattr { node, name } => {
                let (node, name) = (self.node(node), text(name));
                let ours = self.bench.remove_xattr(self.inos[node], name.as_bytes());
                assert_eq!(ours, self.model.remove_xattr(node, name.as_bytes()));
            }
            Op::Close { node } => {
                let node = self.node(node);
                let (session, inodes) = (self.bench.session, vec![self.inos[node]]);
                self.bench.own(Body::OrphansClosed { session, inodes }).unwrap();
                self.model.close(node);
            }
            Op::Restore { node, directory, name } => {
                let (node, directory) = (self.node(node), self.node(directory));
                let ours = self.bench.restore(self.inos[node], self.inos[directory], &text(name));
                assert_eq!(ours.map(drop), self.model.restore(node, directory, &text(name)));
            }
            Op::Empty { node } => {
                let node = self.node(node);
                self.bench.own(Body::TrashDropped { inodes: vec![self.inos[node]] }).unwrap();
                self.model.empty(node);
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn create(&mut self, parent: Ino, text: &str, exclusive: bool) -> Result<Ino, Code> {
        let Mutation::Create { request, members } = create(parent, text, false) else { unreachable!() };
        let request = CreateRequest { exclusive, ..request };
        match self.bench.mutate(Mutation::Create { request, members })? {
            Reply::Created(created) => Ok(created.entry.attr.ino),
            other => panic!("{other:?}"),
        }
    }

    fn compare(&self) {
        for (node, theirs) in self.model.nodes.iter().enumerate() {
            let ino = self.inos[node];
            if theirs.gone {
                assert_eq!(self.bench.state.attr(ino).unwrap_err().code, Code::Stale);
                continue;
            }
            let (attr, xattrs) = self.bench.state.xattrs(ino).unwrap();
            assert_eq!((attr.mode, attr.nlink), (theirs.mode, self.model.nlink(node)), "inode {ino}");
            assert_eq!(xattrs.into_iter().collect::<std::collections::BTreeMap<_, _>>(), theirs.xattrs);
            match theirs.shape {
                Shape::File => assert_eq!((attr.kind, attr.size), (Kind::File, theirs.size)),
                Shape::Symlink => assert_eq!((attr.kind, attr.size), (Kind::Symlink, 1)),
                Shape::Directory => {
                    assert_eq!((attr.kind, attr.size), (Kind::Directory, theirs.children.len() as u64));
                    let page = self.bench.state.read_directory(ino, 0, 1000).unwrap();
                    let mut ours: Vec<_> =
                        page.entries.into_iter().map(|(_, entry)| (entry.name.0, entry.ino)).collect();
                    ours.sort();
                    let theirs = theirs.children.iter();
                    let theirs: Vec<_> =
                        theirs.map(|(name, child)| (name.clone().into_bytes(), self.inos[*child])).collect();
                    assert_eq!(ours, theirs);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_state_is_a_posix_tree(kept in any::<bool>(), ops in prop::collection::vec(op(), 1..80)) {
        let mut pair = Pair::new(kept);
        for op in ops {
            pair.run(op);
            pair.model.notice(pair.kept);
            pair.compare();
        }
        pair.bench.check();
    }
}
