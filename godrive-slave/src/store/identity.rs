//! Which disk this is: a small file that names disk, cluster and format, written once when the disk is made ready.

use godrive_disk::Disk;
use godrive_proto::{ClusterId, DiskId};
use serde::{Deserialize, Serialize};
use std::io;

pub const FILE: &str = "disk.toml";
/// The version of everything on the disk; see `docs/STORE.md`.
pub const FORMAT: u32 = 1;
const MAX_BYTES: u64 = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: u32,
    disk: String,
    cluster: String,
}

/// The disk's id; None if the disk was never made ready.
pub fn load(disk: &dyn Disk, cluster: ClusterId) -> io::Result<Option<DiskId>> {
    if !disk.exists(FILE)? {
        return Ok(None);
    }
    let bad = |text: String| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {text}"));
    let bytes = godrive_disk::read_small(disk, FILE, MAX_BYTES)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| bad(error.to_string()))?;
    let text: Text = toml::from_str(text).map_err(|error| bad(error.to_string()))?;
    if text.format != FORMAT {
        return Err(bad(format!("format {}; this program knows {FORMAT}", text.format)));
    }
    let of: ClusterId =
        text.cluster.parse().map_err(|_| bad(format!("`{}` is no cluster id", text.cluster)))?;
    if of != cluster {
        return Err(bad(format!(
            "the disk belongs to cluster {of}, this slave to {cluster}: use an empty directory"
        )));
    }
    Ok(Some(text.disk.parse().map_err(|_| bad(format!("`{}` is no disk id", text.disk)))?))
}

pub fn store(disk: &dyn Disk, id: DiskId, cluster: ClusterId) -> io::Result<()> {
    let text = Text { format: FORMAT, disk: id.to_string(), cluster: cluster.to_string() };
    let text = toml_text(&text);
    godrive_disk::write_small(disk, FILE, text.as_bytes())
}

fn toml_text(text: &Text) -> String {
    format!("format = {}\ndisk = \"{}\"\ncluster = \"{}\"\n", text.format, text.disk, text.cluster)
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_disk::SimulatedDisk;

    #[test]
    fn golden_text() {
        let disk = SimulatedDisk::new(1 << 20);
        store(&disk, DiskId(0x1a), ClusterId(0x2b)).unwrap();
        let text = "format = 1\ndisk = \"0000000000000000000000000000001a\"\n\
            cluster = \"0000000000000000000000000000002b\"\n";
        assert_eq!(godrive_disk::read_small(&disk, FILE, MAX_BYTES).unwrap(), text.as_bytes());
    }

    #[test]
    fn a_disk_of_another_cluster_or_format_is_refused() {
        let disk = SimulatedDisk::new(1 << 20);
        assert_eq!(load(&disk, ClusterId(1)).unwrap(), None);
        store(&disk, DiskId(7), ClusterId(1)).unwrap();
        assert_eq!(load(&disk, ClusterId(1)).unwrap(), Some(DiskId(7)));
        let error = load(&disk, ClusterId(2)).unwrap_err().to_string();
        assert!(error.contains("belongs to cluster 00000000000000000000000000000001"), "{error}");
        godrive_disk::write_small(&disk, FILE, b"format = 2\ndisk = \"7\"\ncluster = \"1\"\n").unwrap();
        assert!(load(&disk, ClusterId(1)).unwrap_err().to_string().contains("format 2"));
    }
}
