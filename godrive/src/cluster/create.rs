//! Makes what a plan asks for: the cluster's authority and identities, nodes and mounts with their configurations.

use super::layout::{Cluster, Home, Kind, NodeName};
use super::plan::Parameters;
use anyhow::{Context, Result, bail};
use godrive_proto::net::identity::Authority;
use godrive_proto::{ClusterId, NodeId, Role};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

pub const PRIVATE: u32 = 0o600;
pub const PUBLIC: u32 = 0o644;

/// Below the ports that the system gives to sockets that ask for none, so that no client takes a stopped node's port.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// Its name is what counts: see `docs/MASTER-STORE.md`.
const MAY_BEGIN: &str =
    "A new cluster may begin in this directory. Its master removes this file when it does.\n";

/// Certificates are valid for a year.
const RENEW_AFTER: Duration = Duration::from_secs(91 * 86_400);

/// Makes ids and chooses ports; seeded by the system.
pub struct Maker {
    random: StdRng,
    now_s: i64,
    address: IpAddr,
    /// [`Home::ports`] and those given since; None: not needed yet.
    given: Option<BTreeSet<u16>>,
}

impl Maker {
    pub fn new(address: IpAddr) -> Result<Self> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now_s = now.context("the clock of this machine stands before 1970")?.as_secs() as i64;
        Ok(Self { random: StdRng::from_os_rng(), now_s, address, given: None })
    }

    /// The authority, the identities of the command line, and `cluster.toml` as the last.
    pub fn cluster(&mut self, home: &Home, parameters: Parameters) -> Result<Cluster> {
        let id = ClusterId(self.random.random());
        let authority = Authority::create(id, self.now_s)?;
        write(&home.authority(), &authority.to_pem(), PRIVATE)?;
        self.identity(&authority, Role::Admin, &home.admin())?;
        self.identity(&authority, Role::Client, &home.client())?;
        let cluster = Cluster {
            version: 1,
            cluster: id.to_string(),
            masters: vec![self.free_address(home)?],
            replicas: parameters.replicas,
            min_replicas: parameters.min_replicas,
            chunk_bytes: parameters.chunk_bytes,
        };
        // Once: a master's folder that is made again, because it was lost, is not the beginning of a cluster.
        let data = home.node(NodeName { kind: Kind::Master, number: 1 }).join("data");
        std::fs::create_dir_all(&data).with_context(|| format!("creating {}", data.display()))?;
        write(&data.join("may-begin"), MAY_BEGIN, PUBLIC)?;
        write(&home.cluster_file(), &cluster.to_toml(), PUBLIC)?;
        Ok(cluster)
    }

    /// A master or slave.
    pub fn node(&mut self, home: &Home, cluster: &Cluster, name: NodeName) -> Result<()> {
        let folder = home.node(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let authority = read_authority(home)?;
        let (role, config) = match name.kind {
            Kind::Master => {
                write(&folder.join("authority.pem"), &authority.to_pem(), PRIVATE)?;
                (Role::Master, master_config(cluster)?)
            }
            Kind::Slave => (Role::Slave, slave_config(cluster, self.free_address(home)?)?),
            Kind::Mount => bail!("a mount is made by its own function"),
        };
        self.identity(&authority, role, &folder.join("identity.pem"))?;
        write(&home.config(name), &config, PUBLIC)
    }

    /// A mount, with a client's identity of its own.
    pub fn mount(&mut self, home: &Home, cluster: &Cluster, name: NodeName, path: &Path) -> Result<()> {
        let folder = home.node(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        self.identity(&read_authority(home)?, Role::Client, &folder.join("identity.pem"))?;
        let path = utf8(path)?;
        write(&folder.join("mountpoint"), &format!("{path}\n"), PUBLIC)?;
        write(&home.config(name), &mount_config(cluster, path)?, PUBLIC)
    }

    /// Issues a certificate anew, for the same id, if it is older than a quarter of its year. The nodes named must
    /// not be running: they read theirs when they start.
    pub fn renew(&self, home: &Home, stopped: &[NodeName]) -> Result<()> {
        let of_nodes = stopped.iter().map(|&name| home.node(name).join("identity.pem"));
        for file in [home.admin(), home.client()].into_iter().chain(of_nodes) {
            let meta = std::fs::metadata(&file).with_context(|| format!("looking at {}", file.display()))?;
            // A file from the future has a wrong date, so nothing is known of its age.
            if meta.modified()?.elapsed().is_ok_and(|age| age < RENEW_AFTER) {
                continue;
            }
            let old = crate::admin::load_identity(&file)?;
            let new = read_authority(home)?.issue(old.role, old.node, self.now_s)?;
            write(&file, &new.to_pem(), PRIVATE)?;
        }
        Ok(())
    }

    fn identity(&mut self, authority: &Authority, role: Role, file: &Path) -> Result<()> {
        let identity = authority.issue(role, NodeId(self.random.random()), self.now_s)?;
        write(file, &identity.to_pem(), PRIVATE)
    }

    /// An address that nobody listens on now and that no other node of the cluster, which may not run yet, was
    /// given. It stays in the configuration from then on.
    fn free_address(&mut self, home: &Home) -> Result<SocketAddr> {
        let mut given = match self.given.take() {
            Some(given) => given,
            None => home.ports()?,
        };
        let mut last = None;
        for _ in 0..200 {
            let address = SocketAddr::new(self.address, self.random.random_range(PORTS));
            if given.contains(&address.port()) {
                continue;
            }
            match UdpSocket::bind(address) {
                Ok(_) => {
                    given.insert(address.port());
                    self.given = Some(given);
                    return Ok(address);
                }
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) => Err(error).with_context(|| {
                format!("no free UDP port from {} to {} on {}", PORTS.start, PORTS.end, self.address)
            }),
            None => bail!("no port was tried"),
        }
    }
}

pub fn read_authority(home: &Home) -> Result<Authority> {
    let file = home.authority();
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!(
            "reading {}: only the machine that made the cluster has the authority; others join with a token",
            file.display()
        )
    })?;
    Authority::from_pem(&text).with_context(|| file.display().to_string())
}

fn master_config(cluster: &Cluster) -> Result<String> {
    Ok(format!(
        "# Made by `godrive up`; `godrive-master --print-config` documents every field.\n\
         listen = \"{}\"\ndirectory = \"data\"\nidentity = \"identity.pem\"\nauthority = \"authority.pem\"\n\
         chunk_bytes = {}\nreplicas = {}\nmin_replicas = {}\n",
        cluster.master()?,
        cluster.chunk_bytes,
        cluster.replicas,
        cluster.min_replicas
    ))
}

fn slave_config(cluster: &Cluster, listen: SocketAddr) -> Result<String> {
    Ok(format!(
        "# Made by `godrive up`; `godrive-slave --print-config` documents every field.\n\
         listen = \"{listen}\"\nmaster = \"{}\"\nidentity = \"identity.pem\"\ndisks = [\"disk-1\"]\n",
        cluster.master()?
    ))
}

fn mount_config(cluster: &Cluster, path: &str) -> Result<String> {
    Ok(format!(
        "# Made by `godrive mount`; `godrive-fuse --print-config` documents every field.\n\
         master = \"{}\"\nidentity = \"identity.pem\"\nmountpoint = {}\n",
        cluster.master()?,
        toml::Value::String(path.into())
    ))
}

fn utf8(path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text) if !text.contains('\n') => Ok(text),
        _ => Err(crate::Usage(format!(
            "{} cannot be a mountpoint: its name is not plain text",
            path.display()
        ))
        .into()),
    }
}

/// Writes a whole file or none of it.
pub fn write(file: &Path, text: &str, mode: u32) -> Result<()> {
    let attempt = || -> std::io::Result<()> {
        let temporary = file.with_extension("new");
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut new = std::fs::File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        std::fs::rename(&temporary, file)
    };
    attempt().with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn parameters() -> Parameters {
        Parameters { replicas: 3, min_replicas: 2, chunk_bytes: 1 << 24 }
    }

    fn empty() -> (tempfile::TempDir, Home, Maker) {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().into());
        (folder, home, Maker::new(IpAddr::from([127, 0, 0, 1])).unwrap())
    }

    #[test]
    fn a_cluster_is_laid_out_and_its_secrets_are_private() {
        let (folder, home, mut maker) = empty();
        let cluster = maker.cluster(&home, parameters()).unwrap();
        let names = ["master-1", "slave-1"].map(|name| NodeName::parse(name).unwrap());
        for name in names {
            maker.node(&home, &cluster, name).unwrap();
        }
        let mount = NodeName { kind: Kind::Mount, number: 1 };
        maker.mount(&home, &cluster, mount, Path::new("/mnt/a \"b\"")).unwrap();
        assert_eq!(home.read().unwrap(), Some(cluster.clone()));
        let may_begin = home.node(names[0]).join("data/may-begin");
        std::fs::remove_file(&may_begin).unwrap();
        maker.node(&home, &cluster, names[0]).unwrap();
        assert!(!may_begin.exists(), "a master that is made again does not begin anew");
        assert_eq!(home.nodes().unwrap(), [names[0], names[1], mount]);
        assert_eq!(home.mounts().unwrap()[&1], Path::new("/mnt/a \"b\""));
        for file in
            ["authority.pem", "admin.pem", "client.pem", "master-1/identity.pem", "master-1/authority.pem"]
        {
            let mode = std::fs::metadata(folder.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let identity = std::fs::read_to_string(home.node(names[1]).join("identity.pem")).unwrap();
        let identity = godrive_proto::net::identity::Identity::from_pem(&identity).unwrap();
        assert_eq!(identity.role, Role::Slave);
        assert_eq!(identity.cluster.to_string(), cluster.cluster);
    }

    #[test]
    fn old_certificates_are_renewed_and_keep_their_id() {
        let (_folder, home, mut maker) = empty();
        let cluster = maker.cluster(&home, parameters()).unwrap();
        let name = NodeName::parse("slave-1").unwrap();
        maker.node(&home, &cluster, name).unwrap();
        let file = home.node(name).join("identity.pem");
        let before = crate::admin::load_identity(&file).unwrap();
        maker.renew(&home, &[name]).unwrap();
        assert_eq!(crate::admin::load_identity(&file).unwrap().certificate, before.certificate);
        let old = std::time::SystemTime::now() - 2 * RENEW_AFTER;
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
        maker.renew(&home, &[name]).unwrap();
        let after = crate::admin::load_identity(&file).unwrap();
        assert_ne!(after.certificate, before.certificate);
        assert_eq!((after.node, after.role), (before.node, before.role));
    }

    #[test]
    fn a_taken_port_is_not_chosen() {
        let (_folder, home, mut maker) = empty();
        let first = maker.free_address(&home).unwrap();
        let _taken = UdpSocket::bind(first).unwrap();
        for _ in 0..50 {
            assert_ne!(maker.free_address(&home).unwrap(), first);
        }
        assert!(PORTS.contains(&first.port()));
    }

    #[test]
    fn no_two_nodes_are_given_one_port() {
        let (_folder, home, mut maker) = empty();
        let cluster = maker.cluster(&home, parameters()).unwrap();
        let draws = StdRng::seed_from_u64(1);
        for name in ["slave-1", "slave-2", "slave-3"] {
            // Each draws what the one before it drew.
            maker.random = draws.clone();
            maker.node(&home, &cluster, NodeName::parse(name).unwrap()).unwrap();
        }
        // One of the master.
        assert_eq!(home.ports().unwrap().len(), 4);
    }

    #[test]
    fn files_are_replaced_whole_and_keep_their_mode() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        write(&file, "one", PRIVATE).unwrap();
        write(&file, "two", PRIVATE).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
