//! The configuration file of a mount: TOML, every field known, every mistake named with its file and line.
//!
//! Paths in the file are relative to the folder it lies in, so that a cluster's folder can be moved.

use nix::unistd::SysconfVar;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What `--print-config` prints: every field with its default and its meaning.
pub const DOCUMENTED_DEFAULT: &str = include_str!("default.toml");

const MIB: u64 = 1 << 20;

/// When `close` returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Close {
    /// After the bytes are held by every replica and the master knows the length.
    #[default]
    Held,
    /// At once; the bytes are held within a second and a failure is reported as an error after close.
    Queued,
}

/// The file as written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the master listens.
    pub master: SocketAddr,
    /// This client's certificate, key and CA in one file.
    #[serde(default = "default_identity")]
    pub identity: PathBuf,
    pub mountpoint: PathBuf,
    #[serde(default = "default_cache_bytes")]
    pub cache_bytes: u64,
    #[serde(default = "default_write_buffer_bytes")]
    pub write_buffer_bytes: u64,
    #[serde(default = "default_deadline_s")]
    pub deadline_s: u64,
    #[serde(default)]
    pub hard: bool,
    #[serde(default)]
    pub close: Close,
    #[serde(default)]
    pub read_only: bool,
    /// None: true for root, false for others.
    #[serde(default)]
    pub allow_other: Option<bool>,
    #[serde(default = "default_log_filter")]
    pub log_filter: String,
    /// Options of the kernel's mount, for example `noatime` or `suid`; see [`crate::options`].
    #[serde(default)]
    pub mount_options: Vec<String>,
}

fn default_identity() -> PathBuf {
    "identity.pem".into()
}

/// A sixteenth of the machine's memory, from 64 MiB to 1 GiB.
fn default_cache_bytes() -> u64 {
    let sysconf =
        |name| nix::unistd::sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok());
    let (pages, page_bytes) = (sysconf(SysconfVar::_PHYS_PAGES), sysconf(SysconfVar::PAGE_SIZE));
    let memory_bytes = pages.unwrap_or(0).saturating_mul(page_bytes.unwrap_or(0));
    (memory_bytes / 16).clamp(64 * MIB, 1024 * MIB)
}

fn default_write_buffer_bytes() -> u64 {
    128 * MIB
}

fn default_deadline_s() -> u64 {
    30
}

fn default_log_filter() -> String {
    "info".into()
}

/// Why a configuration cannot be used. The message names the file and, where there is one, the line and the field.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{file}: cannot be read: {cause}")]
    Unreadable { file: String, cause: std::io::Error },
    #[error("{file}: {message}")]
    Syntax { file: String, message: String },
    #[error("{file}, line {line}: `{field}` is {found}; allowed is {allowed}")]
    Value { file: String, line: usize, field: &'static str, found: String, allowed: String },
}

impl Config {
    /// Reads and checks a file; relative paths in it are resolved against its folder.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let name = file.display().to_string();
        #[expect(
            clippy::disallowed_methods,
            reason = "the mount's start is an adapter: it reads its own file"
        )]
        let text = std::fs::read_to_string(file)
            .map_err(|cause| ConfigError::Unreadable { file: name.clone(), cause })?;
        let mut config = Self::parse(&name, &text)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        config.identity = folder.join(&config.identity);
        config.mountpoint = folder.join(&config.mountpoint);
        Ok(config)
    }

    /// Parses and checks a text; `name` is how errors call it.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax { file: name.into(), message: located(&error, text) })?;
        config.check(name, text)?;
        Ok(config)
    }

    fn check(&self, name: &str, text: &str) -> Result<(), ConfigError> {
        let refuse = |field: &'static str, found: String, allowed: &str| {
            Err(ConfigError::Value {
                file: name.into(),
                line: line_of(text, field),
                field,
                found,
                allowed: allowed.into(),
            })
        };
        if self.cache_bytes < MIB {
            return refuse("cache_bytes", self.cache_bytes.to_string(), "1048576 (1 MiB) or more");
        }
        if self.write_buffer_bytes < 8 * MIB {
            return refuse(
                "write_buffer_bytes",
                self.write_buffer_bytes.to_string(),
                "8388608 (8 MiB) or more",
            );
        }
        if !(1..=86_400).contains(&self.deadline_s) {
            return refuse("deadline_s", self.deadline_s.to_string(), "1 to 86400 seconds");
        }
        if self.master.port() == 0 || self.master.ip().is_unspecified() {
            return refuse(
                "master",
                self.master.to_string(),
                "an address that can be reached, as 10.0.0.1:7000",
            );
        }
        for option in &self.mount_options {
            if let Err(error) = crate::options::kernel_option(option) {
                return refuse("mount_options", format!("`{option}`"), &error);
            }
        }
        Ok(())
    }

    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_s)
    }
}

/// The parser's message in one line, led by where it points.
fn located(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().replace('\n', " ");
    match error.span() {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or(text);
            format!("line {}: {message}", before.matches('\n').count() + 1)
        }
        None => message,
    }
}

/// The line that sets `field`; 1 if it is a default.
fn line_of(text: &str, field: &str) -> usize {
    let sets = |line: &str| {
        line.trim_start().strip_prefix(field).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    text.lines().position(sets).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests make their own files")]
    use super::*;

    const SMALL: &str = "master = \"127.0.0.1:7000\"\nmountpoint = \"mnt\"\n";

    #[test]
    fn the_documented_default_is_valid_and_states_the_defaults() {
        let documented = Config::parse("default.toml", DOCUMENTED_DEFAULT).unwrap();
        let mut small = Config::parse("small", SMALL).unwrap();
        small.mountpoint = documented.mountpoint.clone();
        assert_eq!(documented, small, "default.toml must state exactly the built-in defaults");
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        std::fs::write(&file, SMALL).unwrap();
        let config = Config::load(&file).unwrap();
        assert_eq!(config.mountpoint, folder.path().join("mnt"));
        assert_eq!(config.identity, folder.path().join("identity.pem"));
    }

    #[test]
    fn an_unknown_field_names_file_line_and_what_is_known() {
        let error =
            Config::parse("a/config.toml", &format!("{SMALL}\ncache_byte = 1\n")).unwrap_err().to_string();
        assert!(error.starts_with("a/config.toml: line 4: "), "{error}");
        assert!(error.contains("cache_byte") && error.contains("cache_bytes"), "{error}");
    }

    #[test]
    fn a_wrong_type_names_its_line() {
        let error = Config::parse("c", &format!("{SMALL}hard = 3\n")).unwrap_err().to_string();
        assert!(error.starts_with("c: line 3: "), "{error}");
    }

    #[test]
    fn a_wrong_word_names_the_allowed_ones() {
        let error = Config::parse("c", &format!("{SMALL}close = \"later\"\n")).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("held") && error.contains("queued"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_range() {
        let error = Config::parse("c", &format!("{SMALL}deadline_s = 0\n")).unwrap_err().to_string();
        assert_eq!(error, "c, line 3: `deadline_s` is 0; allowed is 1 to 86400 seconds");
        let error = Config::parse("c", &format!("{SMALL}cache_bytes = 7\n")).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("1 MiB"), "{error}");
        let error =
            Config::parse("c", &format!("{SMALL}mount_options = [\"fast\"]\n")).unwrap_err().to_string();
        assert!(error.contains("`fast`") && error.contains("noatime"), "{error}");
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = Config::parse("c", "mountpoint = \"m\"\n").unwrap_err().to_string();
        assert!(error.contains("master"), "{error}");
    }
}
