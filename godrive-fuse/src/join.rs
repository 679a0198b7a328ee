//! `--join TOKEN --dir DIR --mountpoint PATH`: from one line to a mount on a machine that the cluster does not know yet.

use anyhow::{Context, Result, bail};
use godrive_proto::Role;
use godrive_proto::net::Sockets;
use godrive_proto::net::identity::Identity;
use godrive_proto::net::token::{self, JoinToken};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Asks the token's master for a certificate and writes `identity.pem` (0600) and `config.toml` into `dir`.
/// Returns the configuration's path. A folder that has one already is not joined again: each join uses the token up.
pub async fn join(
    sockets: &Arc<dyn Sockets>,
    text: &str,
    dir: &Path,
    mountpoint: Option<&Path>,
) -> Result<PathBuf> {
    let file = dir.join("config.toml");
    if file.exists() {
        bail!("{0} exists: this folder has joined already; mount with --config {0}", file.display());
    }
    let token: JoinToken = text.trim().parse().context("the join token (`godrive token` prints one)")?;
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let identity = token::join(sockets, &token, Role::Client)
        .await
        .with_context(|| format!("joining the cluster of the master {}", token.master))?;
    write_new(&dir.join("identity.pem"), &identity.to_pem(), 0o600)?;
    let mountpoint = match mountpoint {
        Some(path) => std::path::absolute(path)?,
        None => PathBuf::from("mountpoint"),
    };
    write_new(&file, &config(&token, &mountpoint)?, 0o644)?;
    Ok(file)
}

fn config(token: &JoinToken, mountpoint: &Path) -> Result<String> {
    let path =
        mountpoint.to_str().context("the mountpoint's path is not valid UTF-8, so TOML cannot hold it")?;
    let mountpoint = toml::Value::String(path.into());
    Ok(format!(
        "# Made by godrive-fuse --join; `godrive-fuse --print-config` documents every field.\n\
         master = \"{}\"\nidentity = \"identity.pem\"\nmountpoint = {mountpoint}\n",
        token.master
    ))
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .with_context(|| format!("writing {}", path.display()))
}

/// The identity file, with what to do if it cannot be used.
pub fn load_identity(path: &Path) -> Result<Identity> {
    #[expect(clippy::disallowed_methods, reason = "the mount's start is an adapter: it reads its own file")]
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "the identity {}: copy it there, or join the cluster: godrive-fuse --join TOKEN --dir DIR",
            path.display()
        )
    })?;
    let identity = Identity::from_pem(&text).with_context(|| format!("the identity {}", path.display()))?;
    if identity.role != Role::Client {
        bail!("the identity {} is that of a {:?}; a mount needs a client's", path.display(), identity.role);
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_configuration_made_by_joining_is_valid_also_with_odd_paths() {
        let token =
            JoinToken { master: "10.0.0.1:7000".parse().unwrap(), ca_hash: [1; 32], id: 1, secret: [2; 16] };
        let text = config(&token, Path::new("/mnt/a \"quoted\" \\ path")).unwrap();
        let parsed = Config::parse("made", &text).unwrap();
        assert_eq!(parsed.mountpoint, Path::new("/mnt/a \"quoted\" \\ path"));
        assert_eq!(parsed.master, token.master);
    }

    #[test]
    fn files_are_never_overwritten_and_the_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("identity.pem");
        write_new(&file, "secret", 0o600).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write_new(&file, "other", 0o600).is_err());
    }
}
