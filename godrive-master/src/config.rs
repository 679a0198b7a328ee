//! The configuration file: TOML, every field documented by `--print-config`, every mistake named.

use godrive_proto::lease::LeaseTiming;
use godrive_proto::limits::{DEFAULT_CHUNK_BYTES, LEAF_BYTES, MAX_CHUNK_BYTES, MAX_MEMBERS, MIN_CHUNK_BYTES};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What `--print-config` prints; its values are the defaults.
pub const DOCUMENTED_DEFAULT: &str = include_str!("default.toml");

/// Slower, a drain would not end within a lifetime.
const MIN_REPAIR_BYTES_PER_S: u64 = 1 << 16;

/// How nodes are chosen for new replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    /// One after the other, failure domains first.
    RoundRobin,
    /// By free space, failure domains first.
    Capacity,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub listen: SocketAddr,
    /// Where others reach this master, if that is not `listen`; it goes into join tokens.
    pub advertise: Option<SocketAddr>,
    /// Log and state. Relative to the configuration file's folder, like every path here.
    pub directory: PathBuf,
    pub identity: PathBuf,
    /// The cluster's certificate authority; only the first master has the file.
    pub authority: PathBuf,
    /// Chunk size of new files; taken from here when the cluster is created, afterwards from the log.
    pub chunk_bytes: u32,
    pub replicas: u8,
    /// Default: `replicas` up to 2, else `replicas - 1`.
    pub min_replicas: Option<u8>,
    pub selector: Selector,
    pub log_filter: String,
    pub leases: Leases,
    pub nodes: Nodes,
    pub trash: Trash,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Leases {
    pub renew_every_ms: u32,
    pub holder_stops_after_ms: u32,
    pub revoked_after_ms: u32,
    /// A contended lease is held at least this long.
    pub held_at_least_ms: u32,
    /// A session that nobody waits for is dropped after this long without a renewal.
    pub forgotten_after_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nodes {
    pub heartbeat_every_ms: u32,
    /// No new placement on a node that was not heard for so long.
    pub suspect_after_ms: u32,
    /// Its replicas are repaired elsewhere after so long.
    pub dead_after_ms: u32,
    /// How long an epoch change waits for a member's answer.
    pub seal_deadline_ms: u32,
    /// Copies that run at one time, in all and per node.
    pub repairs: u32,
    pub repairs_per_node: u32,
    /// For copies of what is not endangered, of and to each slave; 0: no limit.
    pub repair_bytes_per_s: u64,
    /// Disks are brought level when their fullness differs by more than so many points; 0: never.
    pub rebalance_above_percent: u32,
}

/// What is removed can be had back for some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trash {
    /// 0: nothing is kept.
    pub keep_s: u64,
    /// What lived for less than this when it was removed is not kept.
    pub min_age_s: u32,
    /// More than so many entries: the oldest go.
    pub max_entries: u64,
}

impl Default for Trash {
    fn default() -> Self {
        Self { keep_s: 86_400, min_age_s: 10, max_entries: 1_000_000 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            advertise: None,
            directory: "data".into(),
            identity: "identity.pem".into(),
            authority: "authority.pem".into(),
            chunk_bytes: DEFAULT_CHUNK_BYTES,
            replicas: 3,
            min_replicas: None,
            selector: Selector::RoundRobin,
            log_filter: "info".into(),
            leases: Leases::default(),
            nodes: Nodes::default(),
            trash: Trash::default(),
        }
    }
}

impl Default for Leases {
    fn default() -> Self {
        let timing = LeaseTiming::default();
        Self {
            renew_every_ms: timing.renew_every_ms,
            holder_stops_after_ms: timing.holder_stops_after_ms,
            revoked_after_ms: timing.revoked_after_ms,
            held_at_least_ms: 10,
            forgotten_after_ms: 3_600_000,
        }
    }
}

impl Leases {
    pub fn timing(&self) -> LeaseTiming {
        LeaseTiming {
            renew_every_ms: self.renew_every_ms,
            holder_stops_after_ms: self.holder_stops_after_ms,
            revoked_after_ms: self.revoked_after_ms,
        }
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            heartbeat_every_ms: 1_000,
            suspect_after_ms: 3_000,
            dead_after_ms: 10_000,
            seal_deadline_ms: 1_000,
            repairs: 8,
            repairs_per_node: 2,
            repair_bytes_per_s: 64 << 20,
            rebalance_above_percent: 10,
        }
    }
}

/// What is wrong with a configuration file: file, place, field and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "cannot read the configuration {path}: {source}; `godrive-master --print-config` prints a commented one"
    )]
    Unreadable { path: String, source: std::io::Error },
    #[error("{path}: {detail}")]
    Malformed { path: String, detail: String },
    #[error("{path}{line}: {field}: {detail}")]
    Invalid { path: String, line: String, field: &'static str, detail: String },
}

impl Config {
    /// Reads and checks a file; relative paths become relative to its folder.
    #[allow(
        clippy::disallowed_methods,
        reason = "the configuration is not part of the world that it describes"
    )]
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.display().to_string(), source })?;
        let mut config = Self::parse(&text, &path.display().to_string())?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for field in [&mut config.directory, &mut config.identity, &mut config.authority] {
            *field = folder.join(&*field);
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
                let line = line_of(text, field).map(|line| format!(", line {line}")).unwrap_or_default();
                Err(ConfigError::Invalid { path: path.into(), line, field, detail })
            }
        }
    }

    pub fn min_replicas(&self) -> u8 {
        self.min_replicas.unwrap_or(if self.replicas <= 2 { self.replicas } else { self.replicas - 1 })
    }

    /// What types cannot say. Names the field and what is allowed.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let group = LEAF_BYTES * godrive_proto::limits::GROUP_LEAVES;
        debug_assert!(MIN_CHUNK_BYTES.is_multiple_of(group));
        if !self.chunk_bytes.is_power_of_two()
            || !(MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&self.chunk_bytes)
        {
            return Err((
                "chunk_bytes",
                format!(
                    "{} is not allowed: a power of two from {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}",
                    self.chunk_bytes
                ),
            ));
        }
        if self.replicas == 0 || usize::from(self.replicas) > MAX_MEMBERS {
            return Err(("replicas", format!("{} is not allowed: 1 to {MAX_MEMBERS}", self.replicas)));
        }
        if self.min_replicas() == 0 || self.min_replicas() > self.replicas {
            return Err((
                "min_replicas",
                format!("{} is not allowed: 1 to replicas ({})", self.min_replicas(), self.replicas),
            ));
        }
        self.leases.check()?;
        self.nodes.check()
    }
}

impl Leases {
    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.renew_every_ms == 0 || self.holder_stops_after_ms < 2 * self.renew_every_ms {
            return Err((
                "holder_stops_after_ms",
                format!(
                    "{} is not allowed: at least twice renew_every_ms ({})",
                    self.holder_stops_after_ms, self.renew_every_ms
                ),
            ));
        }
        // Clocks may drift apart by one per cent.
        let least = u64::from(self.holder_stops_after_ms) * 102 / 100;
        if u64::from(self.revoked_after_ms) <= least {
            return Err((
                "revoked_after_ms",
                format!(
                    "{} is not allowed: more than holder_stops_after_ms plus 2 % ({least})",
                    self.revoked_after_ms
                ),
            ));
        }
        if self.held_at_least_ms >= self.renew_every_ms {
            return Err((
                "held_at_least_ms",
                format!(
                    "{} is not allowed: less than renew_every_ms ({})",
                    self.held_at_least_ms, self.renew_every_ms
                ),
            ));
        }
        if self.forgotten_after_ms < self.revoked_after_ms {
            return Err((
                "forgotten_after_ms",
                format!(
                    "{} is not allowed: at least revoked_after_ms ({})",
                    self.forgotten_after_ms, self.revoked_after_ms
                ),
            ));
        }
        Ok(())
    }
}

impl Nodes {
    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.heartbeat_every_ms == 0 || self.suspect_after_ms <= self.heartbeat_every_ms {
            return Err((
                "suspect_after_ms",
                format!(
                    "{} is not allowed: more than heartbeat_every_ms ({}), which is at least 1",
                    self.suspect_after_ms, self.heartbeat_every_ms
                ),
            ));
        }
        if self.dead_after_ms <= self.suspect_after_ms {
            return Err((
                "dead_after_ms",
                format!(
                    "{} is not allowed: more than suspect_after_ms ({})",
                    self.dead_after_ms, self.suspect_after_ms
                ),
            ));
        }
        if self.seal_deadline_ms == 0 {
            return Err(("seal_deadline_ms", "0 is not allowed: at least 1".into()));
        }
        if self.repairs == 0 {
            return Err(("repairs", "0 is not allowed: at least 1".into()));
        }
        if self.repairs_per_node == 0 {
            return Err(("repairs_per_node", "0 is not allowed: at least 1".into()));
        }
        if (1..MIN_REPAIR_BYTES_PER_S).contains(&self.repair_bytes_per_s) {
            let detail = format!(
                "{} is not allowed: 0 for no limit, or at least {MIN_REPAIR_BYTES_PER_S}",
                self.repair_bytes_per_s
            );
            return Err(("repair_bytes_per_s", detail));
        }
        if self.rebalance_above_percent > 90 {
            let detail = format!("{} is not allowed: 0 to 90", self.rebalance_above_percent);
            return Err(("rebalance_above_percent", detail));
        }
        Ok(())
    }
}

fn line_of(text: &str, field: &str) -> Option<usize> {
    let named = |line: &str| {
        line.trim_start().strip_prefix(field).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    text.lines().position(named).map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Config::parse(text, "master.toml").unwrap_err().to_string()
    }

    #[test]
    fn the_printed_configuration_is_the_default() {
        assert_eq!(Config::parse(DOCUMENTED_DEFAULT, "default.toml").unwrap(), Config::default());
        assert_eq!(Config::parse("", "empty.toml").unwrap(), Config::default());
    }

    #[test]
    fn mistakes_are_named_with_file_line_and_what_is_allowed() {
        for (text, parts) in [
            ("replicas = 2\nreplica = 3", ["master.toml", "line 2", "unknown field `replica`", "replicas"]),
            ("replicas = 'x'", ["master.toml", "line 1", "invalid type", "u8"]),
            ("selector = 'random'", ["master.toml", "line 1", "random", "round-robin"]),
            ("listen = 'here'", ["master.toml", "line 1", "listen", "socket address"]),
            ("\nchunk_bytes = 5", ["master.toml", "line 2", "chunk_bytes: 5 is not allowed", "power of two"]),
            (
                "replicas = 2\nmin_replicas = 3",
                ["master.toml", "line 2", "min_replicas: 3", "1 to replicas (2)"],
            ),
            ("[leases]\nrevoked_after_ms = 6000", ["master.toml", "line 2", "revoked_after_ms: 6000", "2 %"]),
            (
                "[nodes]\nrepair_bytes_per_s = 9",
                ["master.toml", "line 2", "repair_bytes_per_s: 9 is not allowed", "at least 65536"],
            ),
            (
                "[nodes]\nrebalance_above_percent = 91",
                ["master.toml", "line 2", "rebalance_above_percent: 91", "0 to 90"],
            ),
            (
                "[nodes]\ndead_after_ms = 10",
                ["master.toml", "line 2", "dead_after_ms: 10", "suspect_after_ms (3000)"],
            ),
        ] {
            let error = refused(text);
            for part in parts {
                assert!(error.contains(part), "{part:?} is missing from: {error}");
            }
        }
    }

    #[test]
    fn min_replicas_follows_replicas() {
        for (replicas, expected) in [(1, 1), (2, 2), (3, 2), (5, 4)] {
            assert_eq!(Config { replicas, ..Config::default() }.min_replicas(), expected);
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test writes the file it reads")]
    fn paths_are_relative_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("master.toml");
        std::fs::write(&file, "directory = 'd'\nidentity = '/etc/i.pem'").unwrap();
        let config = Config::load(&file).unwrap();
        assert_eq!(config.directory, folder.path().join("d"));
        assert_eq!(config.identity, Path::new("/etc/i.pem"));
        let missing = Config::load(&folder.path().join("none.toml")).unwrap_err().to_string();
        assert!(missing.contains("none.toml") && missing.contains("--print-config"), "{missing}");
    }
}
