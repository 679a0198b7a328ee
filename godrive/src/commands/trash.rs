//! `godrive trash`: what was removed, and how to have it back.

use crate::Usage;
use crate::admin::Admin;
use crate::cli::{self, TrashCommand};
use crate::cluster::layout::Home;
use crate::remote::{Remote, RemotePath, explained};
use crate::table;
use anyhow::{Context, Result, bail};
use godrive_proto::Ino;
use godrive_proto::admin::{ListTrashRequest, TrashEntry};
use godrive_proto::limits::MAX_TRASH_PAGE;
use godrive_proto::meta::Kind;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub async fn run(line: &cli::Trash) -> Result<()> {
    let home = Home::new(line.home.path()?);
    let admin = Admin::connect(&home, Duration::from_secs(30)).await?;
    let result = match &line.command {
        TrashCommand::Ls(ls) => list(&admin, ls).await,
        TrashCommand::Restore(restore) => bring_back(&admin, &home, restore).await,
        TrashCommand::Empty(empty) => drop_all(&admin, empty).await,
    };
    admin.close().await;
    result
}

/// Calls `each` with every entry, the oldest first.
async fn walk(admin: &Admin, mut each: impl FnMut(TrashEntry) -> Result<()>) -> Result<()> {
    let mut request = ListTrashRequest { after: None, limit: MAX_TRASH_PAGE as u32 };
    loop {
        let page = admin.trash(request).await?;
        request.after = page.entries.last().map(|entry| (entry.removed, entry.ino)).or(request.after);
        page.entries.into_iter().try_for_each(&mut each)?;
        if page.end {
            return Ok(());
        }
    }
}

fn path(text: &str) -> Result<RemotePath> {
    RemotePath::plain(text.as_bytes()).map_err(|error| Usage(format!("{text}: {error}")).into())
}

/// Where an entry was, if that can still be told.
fn place(entry: &TrashEntry) -> Option<RemotePath> {
    entry.path.as_ref().and_then(|path| RemotePath::plain(path).ok())
}

fn is_below(entry: &TrashEntry, top: &RemotePath) -> bool {
    place(entry).is_some_and(|path| path.names().starts_with(top.names()))
}

fn shown(entry: &TrashEntry) -> String {
    let slash = if entry.kind == Kind::Directory { "/" } else { "" };
    match place(entry) {
        Some(path) => format!("{path}{slash}"),
        None => format!("(its directory is gone)/{}{slash}", table::printable(&entry.name.0)),
    }
}

async fn list(admin: &Admin, line: &cli::TrashLs) -> Result<()> {
    let top = path(&line.name)?;
    let all = top.names().is_empty();
    let mut rows = vec![["REMOVED (UTC)", "SIZE", "INODE", "WAS"].map(String::from).to_vec()];
    walk(admin, |entry| {
        if !all && !is_below(&entry, &top) {
            return Ok(());
        }
        if line.json {
            let path = entry.path.as_ref().map(|path| format!("/{}", String::from_utf8_lossy(path)));
            return say!(
                "{}",
                json!({
                    "path": path, "name": String::from_utf8_lossy(&entry.name.0), "kind": table::kind(entry.kind),
                    "size": entry.size, "mode": format!("{:04o}", entry.mode), "uid": entry.uid, "gid": entry.gid,
                    "removed": table::time(entry.removed.0), "removed_ns": entry.removed.0, "inode": entry.ino.0,
                })
            );
        }
        let removed = table::time(entry.removed.0);
        rows.push(vec![removed, table::size(entry.size), entry.ino.to_string(), shown(&entry)]);
        Ok(())
    })
    .await?;
    match (line.json, rows.len()) {
        (true, _) => Ok(()),
        (false, 1) => say!("nothing that was removed is kept{}", if all { "" } else { " of that" }),
        (false, _) => table::print(&table::columns(&rows, &[1, 2])),
    }
}

/// What is to be restored, by the path that each had: the newest of several.
#[derive(Default)]
struct Chosen(BTreeMap<Vec<Vec<u8>>, TrashEntry>);

impl Chosen {
    fn take(&mut self, entry: TrashEntry) {
        if let Some(path) = place(&entry) {
            self.0.insert(path.names().to_vec(), entry);
        }
    }
}

async fn bring_back(admin: &Admin, home: &Home, line: &cli::TrashRestore) -> Result<()> {
    let top = line.name.as_deref().map(path).transpose()?;
    let to = line.to.as_deref().map(path).transpose()?;
    if top.as_ref().is_some_and(|top| top.names().is_empty()) && to.is_some() {
        return Err(Usage("--to needs one file or directory, not /".into()).into());
    }
    let (mut chosen, mut above, mut one) = (Chosen::default(), Chosen::default(), None);
    walk(admin, |entry| {
        match (&top, line.inode) {
            (_, Some(inode)) if entry.ino == Ino(inode) => one = Some(entry),
            (Some(top), None) if is_below(&entry, top) => chosen.take(entry),
            (_, None | Some(_)) if entry.kind == Kind::Directory => above.take(entry),
            _ => {}
        }
        Ok(())
    })
    .await?;
    let remote = Remote::connect(home, "godrive trash", Duration::from_secs(30)).await?;
    let result = match (one, line.inode, top) {
        (Some(entry), ..) => {
            let target = to.or_else(|| place(&entry));
            let target = target.with_context(|| {
                format!("the directory of inode {} is gone: say where to put it with --to", entry.ino)
            })?;
            restore_all(&remote, vec![(target, entry)], &above).await
        }
        (None, Some(inode), _) => {
            Err(anyhow::anyhow!("inode {inode} is not in the trash (`godrive trash ls`)"))
        }
        (None, None, Some(top)) => {
            let moved = |names: &[Vec<u8>]| match &to {
                Some(to) => to.names().iter().chain(&names[top.names().len()..]).cloned().collect(),
                None => names.to_vec(),
            };
            let list = chosen.0.into_iter().map(|(names, entry)| {
                let target = RemotePath::plain(&moved(&names).join(&b'/'));
                Ok((target.map_err(|error| Usage(error.to_string()))?, entry))
            });
            match list.collect::<Result<Vec<_>>>() {
                Ok(list) if list.is_empty() => {
                    Err(anyhow::anyhow!("{top} is not in the trash (`godrive trash ls` shows what is)"))
                }
                Ok(list) => restore_all(&remote, list, &above).await,
                Err(error) => Err(error),
            }
        }
        (None, None, None) => Err(Usage("say what to restore: a path, or --inode".into()).into()),
    };
    let ended = remote.stop().await;
    result.and(ended)
}

/// Directories come before what was in them, as their paths sort so.
async fn restore_all(remote: &Remote, list: Vec<(RemotePath, TrashEntry)>, above: &Chosen) -> Result<()> {
    let (mut restored, mut refused, mut changed) = (0_u64, Vec::new(), BTreeSet::new());
    for (target, entry) in list {
        match restore_one(remote, &target, &entry, above, &mut changed).await {
            Ok(true) => {
                restored += 1;
                say!("{target}")?;
            }
            Ok(false) => {}
            Err(error) => refused.push(format!("{target}: {error:#}")),
        }
    }
    for directory in changed {
        remote.settle(directory).await.map_err(explained)?;
    }
    if refused.is_empty() {
        return say!("{restored} restored");
    }
    bail!("{restored} restored, these not:\n  {}", refused.join("\n  "))
}

/// False: a directory that is there again already.
async fn restore_one(
    remote: &Remote,
    target: &RemotePath,
    entry: &TrashEntry,
    above: &Chosen,
    changed: &mut BTreeSet<Ino>,
) -> Result<bool> {
    for folder in target.ancestors() {
        if remote.exists(&folder).await.map_err(explained)?.is_some() {
            continue;
        }
        changed.insert(match above.0.get(folder.names()) {
            Some(removed) => remote.restore(removed.ino, &folder).await.map_err(explained)?,
            None => remote.make_directory(&folder).await.map_err(explained)?,
        });
    }
    match remote.exists(target).await.map_err(explained)? {
        Some(Kind::Directory) if entry.kind == Kind::Directory => return Ok(false),
        Some(_) => {
            bail!("there is something of that name now: move it away, or restore to another name with --to")
        }
        None => {}
    }
    changed.insert(remote.restore(entry.ino, target).await.map_err(explained)?);
    Ok(true)
}

async fn drop_all(admin: &Admin, line: &cli::TrashEmpty) -> Result<()> {
    let tops = line.names.iter().map(|name| path(name)).collect::<Result<Vec<_>>>()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let before = now.saturating_sub(line.older_than.unwrap_or_default()).as_nanos();
    let mut going = Vec::new();
    walk(admin, |entry| {
        let old = line.older_than.is_none() || u128::try_from(entry.removed.0).is_ok_and(|at| at <= before);
        if old && (tops.is_empty() || tops.iter().any(|top| is_below(&entry, top))) {
            going.push(entry.ino);
        }
        Ok(())
    })
    .await?;
    let mut dropped = 0_u64;
    for page in going.chunks(MAX_TRASH_PAGE) {
        dropped += u64::from(admin.empty_trash(page.to_vec()).await?);
    }
    say!("{dropped} removed for good")
}
