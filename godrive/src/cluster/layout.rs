//! Where things lie under a cluster's folder:
//!
//! ```text
//! cluster.toml  authority.pem  admin.pem  client.pem
//! master-1/   config.toml identity.pem authority.pem pid log data/
//! slave-N/    config.toml identity.pem pid log disk-1/
//! mount-N/    config.toml identity.pem pid log mountpoint
//! gateway/    token ca.pem certificate.pem
//! ```
//!
//! A node exists when its `config.toml` does: that file is written last, so a creation that was interrupted is
//! simply done again.

use crate::Usage;
use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// `cluster.toml`: what the cluster was made with.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Of this file; 1.
    pub version: u32,
    /// The cluster's id, 32 hexadecimal digits.
    pub cluster: String,
    pub masters: Vec<SocketAddr>,
    pub replicas: u8,
    pub min_replicas: u8,
    pub chunk_bytes: u32,
}

impl Cluster {
    pub fn master(&self) -> Result<SocketAddr> {
        self.masters.first().copied().context("cluster.toml names no master")
    }

    pub fn to_toml(&self) -> String {
        let masters: Vec<String> = self.masters.iter().map(|address| format!("\"{address}\"")).collect();
        format!(
            "# Made by `godrive up`. The master's log holds what counts; this is what `up` compares with.\n\
             version = {}\ncluster = \"{}\"\nmasters = [{}]\nreplicas = {}\nmin_replicas = {}\nchunk_bytes = {}\n",
            self.version,
            self.cluster,
            masters.join(", "),
            self.replicas,
            self.min_replicas,
            self.chunk_bytes
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Master,
    Slave,
    Mount,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Master, Self::Slave, Self::Mount];

    pub fn word(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Slave => "slave",
            Self::Mount => "mount",
        }
    }

    /// The daemon's program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Master => "godrive-master",
            Self::Slave => "godrive-slave",
            Self::Mount => "godrive-fuse",
        }
    }
}

/// A node or mount of this folder: `slave-2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeName {
    pub kind: Kind,
    pub number: u32,
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.kind.word(), self.number)
    }
}

impl NodeName {
    pub fn parse(text: &str) -> Option<Self> {
        let (word, number) = text.split_once('-')?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.word() == word)?;
        let parsed: u32 = number.parse().ok()?;
        // `slave-01` or `slave-+1` are not ours.
        (parsed >= 1 && parsed.to_string() == number).then_some(Self { kind, number: parsed })
    }
}

/// A cluster's folder. It need not exist yet.
#[derive(Clone, Debug)]
pub struct Home {
    pub dir: PathBuf,
}

impl Home {
    pub fn new(dir: PathBuf) -> Self {
        // A path without links, if it exists: it names the daemons' configurations in /proc.
        Self { dir: dir.canonicalize().unwrap_or(dir) }
    }

    pub fn cluster_file(&self) -> PathBuf {
        self.dir.join("cluster.toml")
    }

    pub fn authority(&self) -> PathBuf {
        self.dir.join("authority.pem")
    }

    pub fn admin(&self) -> PathBuf {
        self.dir.join("admin.pem")
    }

    /// The identity of the commands that move files.
    pub fn client(&self) -> PathBuf {
        self.dir.join("client.pem")
    }

    pub fn gateway(&self) -> PathBuf {
        self.dir.join("gateway")
    }

    pub fn node(&self, name: NodeName) -> PathBuf {
        self.dir.join(name.to_string())
    }

    pub fn config(&self, name: NodeName) -> PathBuf {
        self.node(name).join("config.toml")
    }

    pub fn log(&self, name: NodeName) -> PathBuf {
        self.node(name).join("log")
    }

    pub fn pid(&self, name: NodeName) -> PathBuf {
        self.node(name).join("pid")
    }

    /// `cluster.toml`, or None where there is no cluster yet.
    pub fn read(&self) -> Result<Option<Cluster>> {
        let file = self.cluster_file();
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
        };
        let cluster: Cluster = toml::from_str(&text).with_context(|| file.display().to_string())?;
        if cluster.version != 1 {
            anyhow::bail!(
                "{}: version {} is not known to this godrive, which writes version 1",
                file.display(),
                cluster.version
            );
        }
        Ok(Some(cluster))
    }

    /// The cluster that must be there.
    pub fn cluster(&self) -> Result<Cluster> {
        self.read()?.ok_or_else(|| {
            Usage(format!(
                "there is no cluster in {0}: make one with `godrive up --dir {0}`, or say --dir of one that exists",
                self.dir.display()
            ))
            .into()
        })
    }

    /// Every node and mount with a configuration, in order.
    pub fn nodes(&self) -> Result<Vec<NodeName>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("reading {}", self.dir.display())),
        };
        let mut nodes = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("reading {}", self.dir.display()))?;
            let name = entry.file_name().to_str().and_then(NodeName::parse);
            if let Some(name) = name
                && self.config(name).is_file()
            {
                nodes.push(name);
            }
        }
        nodes.sort();
        Ok(nodes)
    }

    /// The mounts and where each mounts.
    pub fn mounts(&self) -> Result<BTreeMap<u32, PathBuf>> {
        let mut mounts = BTreeMap::new();
        for name in self.nodes()?.into_iter().filter(|name| name.kind == Kind::Mount) {
            mounts.insert(name.number, mountpoint_of(&self.config(name))?);
        }
        Ok(mounts)
    }

    /// The ports at which the master and the slaves of this folder listen and are looked for.
    pub fn ports(&self) -> Result<BTreeSet<u16>> {
        let masters = self.read()?.map_or(Vec::new(), |cluster| cluster.masters);
        let mut ports: BTreeSet<u16> = masters.iter().map(SocketAddr::port).collect();
        for name in self.nodes()?.into_iter().filter(|name| name.kind != Kind::Mount) {
            ports.extend(listen_of(&self.config(name))?.map(|address| address.port()));
        }
        Ok(ports)
    }

    /// Holds off every other command that changes this folder; it ends with the file.
    pub fn lock(&self) -> Result<File> {
        let path = self.dir.join(".lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        if let Err(error) = file.try_lock() {
            match error {
                std::fs::TryLockError::WouldBlock => {
                    eprintln!("godrive: waiting for another godrive that works on {}", self.dir.display())
                }
                std::fs::TryLockError::Error(error) => {
                    return Err(error).with_context(|| format!("locking {}", path.display()));
                }
            }
            file.lock().with_context(|| format!("locking {}", path.display()))?;
        }
        Ok(file)
    }
}

/// Where a mount's configuration says that it mounts.
pub fn mountpoint_of(config: &Path) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Mountpoint {
        mountpoint: PathBuf,
    }
    let parsed: Mountpoint = parse(config)?;
    Ok(config.parent().unwrap_or(Path::new("/")).join(parsed.mountpoint))
}

/// Where a slave's configuration says that it listens, if it does.
fn listen_of(config: &Path) -> Result<Option<SocketAddr>> {
    #[derive(Deserialize)]
    struct Listen {
        listen: Option<SocketAddr>,
    }
    Ok(parse::<Listen>(config)?.listen)
}

fn parse<T: DeserializeOwned>(config: &Path) -> Result<T> {
    let text = std::fs::read_to_string(config).with_context(|| format!("reading {}", config.display()))?;
    toml::from_str(&text).with_context(|| config.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names() {
        let name = NodeName { kind: Kind::Slave, number: 12 };
        assert_eq!(name.to_string(), "slave-12");
        assert_eq!(NodeName::parse("slave-12"), Some(name));
        for bad in ["slave", "slave-", "slave-0", "slave-01", "slave-+1", "slave-1x", "gateway-1", "disk-1"] {
            assert_eq!(NodeName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn cluster_toml_is_read_as_written() {
        let cluster = Cluster {
            version: 1,
            cluster: "0f".repeat(16),
            masters: vec!["127.0.0.1:7000".parse().unwrap()],
            replicas: 3,
            min_replicas: 2,
            chunk_bytes: 1 << 24,
        };
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().into());
        assert_eq!(home.read().unwrap(), None);
        std::fs::write(home.cluster_file(), cluster.to_toml()).unwrap();
        assert_eq!(home.read().unwrap(), Some(cluster.clone()));
        std::fs::write(home.cluster_file(), cluster.to_toml().replace("version = 1", "version = 2")).unwrap();
        assert!(home.read().unwrap_err().to_string().contains("version 2"));
        std::fs::write(home.cluster_file(), "version = 1\nunknown = 2\n").unwrap();
        assert!(format!("{:#}", home.read().unwrap_err()).contains("unknown"));
    }

    #[test]
    fn a_node_without_a_configuration_does_not_exist() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().into());
        std::fs::create_dir(folder.path().join("slave-1")).unwrap();
        std::fs::create_dir(folder.path().join("mount-2")).unwrap();
        std::fs::write(
            folder.path().join("mount-2/config.toml"),
            "mountpoint = \"/mnt/x\"\nmaster = \"m\"\n",
        )
        .unwrap();
        assert_eq!(home.nodes().unwrap(), [NodeName { kind: Kind::Mount, number: 2 }]);
        assert_eq!(home.mounts().unwrap(), BTreeMap::from([(2, PathBuf::from("/mnt/x"))]));
    }
}
