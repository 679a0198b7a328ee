//! `put`, `get`, `ls`, `rm` and `stat`: the client library without a mount, streaming.

use crate::Usage;
use crate::cli;
use crate::cluster::layout::Home;
use crate::remote::{PIECE_BYTES, Reader, Remote, RemotePath, Source, Upload, explained};
use crate::table;
use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use godrive_proto::meta::{Attr, Kind};
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

async fn connect(access: &cli::Access) -> Result<Remote> {
    let home = Home::new(access.home.path()?);
    Remote::connect(&home, "godrive", access.deadline).await
}

fn umask() -> u16 {
    use nix::sys::stat::{Mode, umask};
    // It can only be read by setting it.
    let set = umask(Mode::empty());
    umask(set);
    set.bits() as u16
}

fn path(text: &str) -> Result<RemotePath> {
    RemotePath::plain(text.as_bytes()).map_err(|error| Usage(format!("{text}: {error}")).into())
}

/// Runs with a session and ends it whatever happens; a failure of the work comes before one of the end.
async fn with_session<T>(remote: Remote, work: impl Future<Output = Result<T>>) -> Result<T> {
    let result = work.await;
    let ended = remote.stop().await;
    let value = result?;
    ended.map(|()| value)
}

/// A file or standard input, until Ctrl-C.
struct Input {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Input {
    fn new(reader: Box<dyn AsyncRead + Send + Unpin>) -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            reader,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }
}

impl Source for Input {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let mut bytes = BytesMut::with_capacity(PIECE_BYTES);
        tokio::select! {
            _ = self.interrupt.recv() => bail!("interrupted"),
            _ = self.terminate.recv() => bail!("terminated"),
            read = self.reader.read_buf(&mut bytes) => {
                Ok(if read? == 0 { None } else { Some(bytes.freeze()) })
            }
        }
    }
}

pub async fn put(line: cli::Put) -> Result<()> {
    let standard = line.source == Path::new("-");
    let mut to = path(&line.name)?;
    let (reader, mode): (Box<dyn AsyncRead + Send + Unpin>, u32) = if standard {
        (Box::new(tokio::io::stdin()), 0o644)
    } else {
        let file =
            tokio::fs::File::open(&line.source).await.with_context(|| line.source.display().to_string())?;
        let meta = file.metadata().await?;
        if meta.is_dir() {
            return Err(
                Usage(format!("{} is a directory: put its files one by one", line.source.display())).into()
            );
        }
        (Box::new(file), meta.permissions().mode() & 0o777)
    };
    let own_name = || match line.source.file_name() {
        Some(name) if !standard => Ok(name.as_bytes()),
        _ => Err(Usage(format!("{}: say the file's name as well", line.name))),
    };
    if line.name.ends_with('/') || to.names().is_empty() {
        to = to.join(own_name()?)?;
    }
    let mut input = Input::new(reader)?;
    let remote = connect(&line.access).await?.with_umask(umask());
    with_session(remote.clone(), async {
        // As with cp: into a directory under its own name.
        if let Ok(attr) = remote.resolve(&to, true).await
            && attr.kind == Kind::Directory
        {
            to = to.join(own_name()?)?;
        }
        let upload = Upload { path: &to, mode: mode as u16, make_parents: line.parents, only_new: false };
        let stored = remote.upload(upload, &mut input).await;
        let (attr, _) = stored.with_context(|| format!("{to} was not stored; nothing of it is left"))?;
        say!("{to}: {} stored", table::size(attr.size))?;
        Ok(())
    })
    .await
}

pub async fn get(line: cli::Get) -> Result<()> {
    let from = path(&line.name)?;
    let Some((_, name)) = from.split() else {
        return Err(Usage("/ is a directory: say a file's name".into()).into());
    };
    let target = line.target.clone().unwrap_or_else(|| PathBuf::from(std::ffi::OsStr::from_bytes(name)));
    let target = if target.is_dir() { target.join(std::ffi::OsStr::from_bytes(name)) } else { target };
    // What a link leads to is written, not the link.
    let target = target.canonicalize().unwrap_or(target);
    let remote = connect(&line.access).await?;
    with_session(remote.clone(), async {
        let mut reader = remote.open(&from).await.map_err(explained)?;
        if target == Path::new("-") {
            return copy(&mut reader, tokio::io::stdout()).await.context("writing to standard output");
        }
        // A device or pipe is written to, never replaced.
        if std::fs::metadata(&target).is_ok_and(|meta| !meta.is_file()) {
            let out = tokio::fs::File::options().write(true).open(&target).await;
            let out = out.with_context(|| format!("writing {}", target.display()))?;
            return copy(&mut reader, out).await.with_context(|| format!("writing {}", target.display()));
        }
        // A temporary file beside the target, so that what has the target's name is always whole.
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let temporary = tempfile::NamedTempFile::new_in(folder)
            .with_context(|| format!("writing into {}", folder.display()))?;
        let out = tokio::fs::File::from_std(temporary.reopen()?);
        copy(&mut reader, out).await.with_context(|| format!("writing {}", target.display()))?;
        temporary.as_file().sync_all().with_context(|| format!("writing {}", target.display()))?;
        let mode = u32::from(reader.attr.mode) & 0o777;
        std::fs::set_permissions(temporary.path(), std::fs::Permissions::from_mode(mode))?;
        temporary.persist(&target).with_context(|| format!("writing {}", target.display()))?;
        say!("{}: {} fetched", target.display(), table::size(reader.attr.size))?;
        Ok(())
    })
    .await
}

async fn copy(reader: &mut Reader, mut out: impl AsyncWrite + Unpin) -> Result<()> {
    while let Some(bytes) = reader.next().await.map_err(explained)? {
        out.write_all(&bytes).await?;
    }
    Ok(out.flush().await?)
}

/// What programs see of an inode.
pub fn attr_json(name: &[u8], attr: &Attr) -> Value {
    json!({
        "name": String::from_utf8_lossy(name),
        "kind": table::kind(attr.kind),
        "size": attr.size,
        "mode": format!("{:04o}", attr.mode),
        "uid": attr.uid,
        "gid": attr.gid,
        "nlink": attr.nlink,
        "mtime": table::time(attr.mtime.0),
        "mtime_ns": attr.mtime.0,
        "inode": attr.ino.0,
    })
}

fn long(attr: &Attr, name: &str) -> Vec<String> {
    vec![
        table::mode(attr.kind, attr.mode),
        attr.nlink.to_string(),
        attr.uid.to_string(),
        attr.gid.to_string(),
        attr.size.to_string(),
        table::time(attr.mtime.0),
        name.to_owned(),
    ]
}

pub async fn ls(line: &cli::Ls) -> Result<()> {
    let path = path(&line.name)?;
    let remote = connect(&line.access).await?;
    with_session(remote.clone(), async {
        let attr = remote.resolve(&path, true).await.map_err(explained)?;
        if attr.kind != Kind::Directory {
            let name = path.split().map(|(_, name)| name.to_vec()).unwrap_or_default();
            return print_entries(line, vec![(name, attr)]);
        }
        // Page by page, so that a directory of any size takes little memory.
        let mut after = 0;
        loop {
            let page = remote.list(attr.ino, after, 1000).await.map_err(explained)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.offset;
            let mut entries = Vec::new();
            for entry in page {
                let attr = match entry.entry {
                    Some(found) => found.attr,
                    None => match remote.attr(entry.ino).await {
                        Ok(attr) => attr,
                        // Removed since it was listed.
                        Err(error) if matches!(error.errno, libc::ENOENT | libc::ESTALE) => continue,
                        Err(error) => return Err(explained(error)),
                    },
                };
                entries.push((entry.name, attr));
            }
            print_entries(line, entries)?;
        }
    })
    .await
}

fn print_entries(line: &cli::Ls, entries: Vec<(Vec<u8>, Attr)>) -> Result<()> {
    let mut text = String::new();
    if line.json {
        for (name, attr) in &entries {
            text += &format!("{}\n", attr_json(name, attr));
        }
    } else if line.long {
        let rows: Vec<_> = entries.iter().map(|(name, attr)| long(attr, &table::printable(name))).collect();
        text = table::columns(&rows, &[1, 2, 3, 4]);
    } else {
        for (name, attr) in &entries {
            let slash = if attr.kind == Kind::Directory { "/" } else { "" };
            text += &format!("{}{slash}\n", table::printable(name));
        }
    }
    table::print(&text)
}

pub async fn rm(line: &cli::Rm) -> Result<()> {
    let paths = line.names.iter().map(|name| path(name)).collect::<Result<Vec<_>>>()?;
    if paths.iter().any(|path| path.names().is_empty()) {
        return Err(Usage("/ cannot be removed".into()).into());
    }
    let remote = connect(&line.access).await?;
    with_session(remote.clone(), async {
        for path in &paths {
            let removed = if line.recursive {
                remote.remove_all(path).await
            } else if remote.resolve(path, false).await.map_err(explained)?.kind == Kind::Directory {
                bail!("{path} is a directory: add --recursive to remove it with everything in it");
            } else {
                remote.remove(path).await
            };
            removed.map_err(explained).with_context(|| path.to_string())?;
        }
        Ok(())
    })
    .await
}

pub async fn stat(line: &cli::Stat) -> Result<()> {
    let path = path(&line.name)?;
    let remote = connect(&line.access).await?;
    with_session(remote.clone(), async {
        let attr = remote.resolve(&path, false).await.map_err(explained)?;
        let name = path.split().map_or(b"/".as_slice(), |(_, name)| name);
        let target = match attr.kind {
            Kind::Symlink => Some(table::printable(&remote.read_link(attr.ino).await.map_err(explained)?)),
            _ => None,
        };
        if line.json {
            let mut value = attr_json(name, &attr);
            value["target"] = json!(target);
            say!("{value:#}")?;
            return Ok(());
        }
        say!("    name  {path}{}", target.map(|target| format!(" -> {target}")).unwrap_or_default())?;
        say!("    kind  {}, inode {}, {} links", table::kind(attr.kind), attr.ino, attr.nlink)?;
        say!("    size  {} bytes in chunks of {}", attr.size, table::size(u64::from(attr.chunk_bytes)))?;
        say!(
            "    mode  {} ({:04o}), owner {}:{}",
            table::mode(attr.kind, attr.mode),
            attr.mode,
            attr.uid,
            attr.gid
        )?;
        for (word, time) in
            [("changed", attr.mtime), ("status", attr.ctime), ("read", attr.atime), ("born", attr.btime)]
        {
            say!("{word:>8}  {} UTC", table::time(time.0))?;
        }
        Ok(())
    })
    .await
}
