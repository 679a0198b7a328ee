//! Which disk this is: a small file that names disk, cluster, format and the secret of its records, written once when the disk is
//! made ready.

use crate::core::record::{Secret, Stamps};
use godrive_disk::Disk;
use godrive_proto::{ClusterId, DiskId};
use serde::{Deserialize, Serialize};
use std::io;

pub const FILE: &str = "disk.toml";
/// The version of everything on the disk; see `docs/STORE.md`. Format 1 has no secret.
pub const FORMAT: u32 = 2;
const MAX_BYTES: u64 = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: u32,
    disk: String,
    cluster: String,
    secret: Option<String>,
    since: Option<u32>,
}

/// The disk's id, and its secret unless it is of format 1; None if the disk was never made ready.
pub fn load(disk: &dyn Disk, cluster: ClusterId) -> io::Result<Option<(DiskId, Option<Stamps>)>> {
    if !disk.exists(FILE)? {
        return Ok(None);
    }
    let bad = |text: String| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {text}"));
    let bytes = godrive_disk::read_small(disk, FILE, MAX_BYTES)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| bad(error.to_string()))?;
    let text: Text = toml::from_str(text).map_err(|error| bad(error.to_string()))?;
    if ![1, FORMAT].contains(&text.format) {
        return Err(bad(format!("format {}; this program knows 1 and {FORMAT}", text.format)));
    }
    let of: ClusterId =
        text.cluster.parse().map_err(|_| bad(format!("`{}` is no cluster id", text.cluster)))?;
    if of != cluster {
        return Err(bad(format!(
            "the disk belongs to cluster {of}, this slave to {cluster}: use an empty directory"
        )));
    }
    let secret = text.secret.map(|secret| u128::from_str_radix(&secret, 16)).transpose();
    let secret = secret.map_err(|_| bad("the secret is no number".to_owned()))?.map(Secret);
    let stamps = match (text.format, secret, text.since) {
        (1, None, None) => None,
        (FORMAT, Some(secret), Some(since)) => Some(Stamps { secret, since }),
        _ => return Err(bad(format!("the secret does not go with format {}", text.format))),
    };
    let id = text.disk.parse().map_err(|_| bad(format!("`{}` is no disk id", text.disk)))?;
    Ok(Some((id, stamps)))
}

pub fn store(disk: &dyn Disk, id: DiskId, cluster: ClusterId, stamps: Stamps) -> io::Result<()> {
    let Stamps { secret: Secret(secret), since } = stamps;
    let text = format!(
        "format = {FORMAT}\ndisk = \"{id}\"\ncluster = \"{cluster}\"\nsecret = \"{secret:032x}\"\nsince = {since}\n"
    );
    godrive_disk::write_small(disk, FILE, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_disk::SimulatedDisk;

    /// The texts of each format. A change here is a new format with a migration.
    #[test]
    fn golden_texts() {
        let disk = SimulatedDisk::new(1 << 20);
        let stamps = Stamps { secret: Secret(0x3c), since: 4 };
        store(&disk, DiskId(0x1a), ClusterId(0x2b), stamps).unwrap();
        let text = "format = 2\ndisk = \"0000000000000000000000000000001a\"\n\
            cluster = \"0000000000000000000000000000002b\"\nsecret = \"0000000000000000000000000000003c\"\nsince = 4\n";
        assert_eq!(godrive_disk::read_small(&disk, FILE, MAX_BYTES).unwrap(), text.as_bytes());
        assert_eq!(load(&disk, ClusterId(0x2b)).unwrap(), Some((DiskId(0x1a), Some(stamps))));
        let text = "format = 1\ndisk = \"0000000000000000000000000000001a\"\n\
            cluster = \"0000000000000000000000000000002b\"\n";
        godrive_disk::write_small(&disk, FILE, text.as_bytes()).unwrap();
        assert_eq!(load(&disk, ClusterId(0x2b)).unwrap(), Some((DiskId(0x1a), None)));
        for wrong in [text.replace("format = 1", "format = 2"), format!("{text}secret = \"3c\"\n")] {
            godrive_disk::write_small(&disk, FILE, wrong.as_bytes()).unwrap();
            let error = load(&disk, ClusterId(0x2b)).unwrap_err().to_string();
            assert!(error.contains("the secret does not go with"), "{error}");
        }
    }

    #[test]
    fn a_disk_of_another_cluster_or_format_is_refused() {
        let disk = SimulatedDisk::new(1 << 20);
        assert_eq!(load(&disk, ClusterId(1)).unwrap(), None);
        store(&disk, DiskId(7), ClusterId(1), Stamps { secret: Secret(1), since: 0 }).unwrap();
        let error = load(&disk, ClusterId(2)).unwrap_err().to_string();
        assert!(error.contains("belongs to cluster 00000000000000000000000000000001"), "{error}");
        godrive_disk::write_small(&disk, FILE, b"format = 3\ndisk = \"7\"\ncluster = \"1\"\n").unwrap();
        assert!(load(&disk, ClusterId(1)).unwrap_err().to_string().contains("format 3"));
    }
}
