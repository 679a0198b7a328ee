//! The configuration file: TOML, every field documented by `--print-config`, every mistake named.

#![allow(clippy::disallowed_methods, reason = "read once at the start, before there is a disk")]

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub listen: SocketAddr,
    /// Where clients and other slaves reach this one; `listen` if absent.
    pub advertise: Option<SocketAddr>,
    pub master: SocketAddr,
    /// Relative to the configuration file's folder, like every path here.
    pub identity: PathBuf,
    /// One directory per disk.
    pub disks: Vec<PathBuf>,
    /// Failure domain, for example `rack1/host7`.
    pub domain: String,
    /// Free bytes per disk that data leaves alone. Absent: 1 GiB, or a twentieth of a small disk.
    pub reserve_bytes: Option<u64>,
    /// How fast the scrub verifies what lies on each disk; 0 turns it off.
    pub scrub_bytes_per_s: u64,
    /// Memory for the index of each disk.
    pub index_bytes: u64,
    pub log_filter: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7500)),
            advertise: None,
            master: SocketAddr::from(([127, 0, 0, 1], 7400)),
            identity: "identity.pem".into(),
            disks: vec!["disk-1".into()],
            domain: String::new(),
            reserve_bytes: None,
            scrub_bytes_per_s: 8 << 20,
            index_bytes: 256 << 20,
            log_filter: "info".into(),
        }
    }
}

/// What is wrong with a configuration file: file, place, field and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "cannot read the configuration {path}: {source}; `godrive-slave --print-config` prints a commented one"
    )]
    Unreadable { path: String, source: std::io::Error },
    #[error("{path}: {detail}")]
    Malformed { path: String, detail: String },
    #[error("{path}{line}: {field}: {detail}")]
    Invalid { path: String, line: String, field: &'static str, detail: String },
}

/// What `--print-config` prints.
pub const COMMENTED: &str = include_str!("default.toml");
const MAX_DISKS: usize = 64;
const MAX_DOMAIN_BYTES: usize = 255;

impl Config {
    /// Reads and checks a file; relative paths become relative to its folder.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.display().to_string(), source })?;
        let mut config = Self::parse(&text, &path.display().to_string())?;
        let folder = path.parent().unwrap_or(Path::new("."));
        config.identity = folder.join(&config.identity);
        for disk in &mut config.disks {
            *disk = folder.join(&*disk);
        }
        Ok(config)
    }

    /// Parses and checks a text; `path` names it in errors.
    pub fn parse(text: &str, path: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Malformed {
            path: path.into(),
            // toml's own message shows line, field and what was expected.
            detail: error.to_string().trim_end().to_string(),
        })?;
        match config.check() {
            Ok(()) => Ok(config),
            Err((field, detail)) => {
                let at = text.lines().position(|line| line.trim_start().starts_with(field));
                let line = at.map(|at| format!(", line {}", at + 1)).unwrap_or_default();
                Err(ConfigError::Invalid { path: path.into(), line, field, detail })
            }
        }
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.disks.is_empty() || self.disks.len() > MAX_DISKS {
            return Err((
                "disks",
                format!("{} directories are not allowed: 1 to {MAX_DISKS}", self.disks.len()),
            ));
        }
        for (at, disk) in self.disks.iter().enumerate() {
            if self.disks[..at].contains(disk) {
                return Err(("disks", format!("{} is there twice: one directory per disk", disk.display())));
            }
        }
        if self.domain.len() > MAX_DOMAIN_BYTES {
            return Err((
                "domain",
                format!("{} bytes are too long: at most {MAX_DOMAIN_BYTES}", self.domain.len()),
            ));
        }
        let advertised = self.advertise.unwrap_or(self.listen);
        if advertised.ip().is_unspecified() {
            let field = if self.advertise.is_some() { "advertise" } else { "listen" };
            let detail =
                format!("others cannot reach {advertised}: set `advertise` to an address of this machine");
            return Err((field, detail));
        }
        if self.index_bytes < 1 << 20 {
            return Err(("index_bytes", format!("{} is too little: at least 1048576", self.index_bytes)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_configuration_is_the_default() {
        assert_eq!(Config::parse(COMMENTED, "default.toml").unwrap(), Config::default());
        assert_eq!(Config::parse("", "empty").unwrap(), Config::default());
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| Config::parse(text, "/etc/slave.toml").unwrap_err().to_string();
        let unknown = error("lisen = \"1.2.3.4:5\"\n");
        assert!(
            unknown.contains("/etc/slave.toml") && unknown.contains("line 1") && unknown.contains("lisen"),
            "{unknown}"
        );
        assert_eq!(
            error("domain = \"a\"\ndisks = []\n"),
            "/etc/slave.toml, line 2: disks: 0 directories are not allowed: 1 to 64"
        );
        assert!(error("listen = \"0.0.0.0:7500\"").contains("set `advertise`"));
        assert!(error("disks = [\"a\", \"a\"]").contains("a is there twice"));
        assert!(error("listen = 5").contains("listen"), "{}", error("listen = 5"));
    }
}
