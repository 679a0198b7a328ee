//! The command line, and how it overrides the configuration file.

use crate::config::{Close, Config};
use clap::Parser;
use fuser::MountOption;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Words that `-o` knows, for its error messages.
const KNOWN: &str = "ro, rw, close=held, close=queued, hard, soft, deadline_s=N, allow_other, noallow_other, \
                     cache_bytes=N, write_buffer_bytes=N, noatime, nodev, dev, nosuid, suid, noexec, exec, sync, dirsync";

#[derive(Debug, Parser)]
#[command(
    name = "godrive-fuse",
    version,
    about = "Mounts a GoDrive cluster as a directory and serves it until it is unmounted",
    long_about = "Mounts a GoDrive cluster as a directory and serves it until it is unmounted.\n\n\
        It stays in the foreground, logs to standard error and tells systemd (sd_notify) when the mount is usable. \
        It consists of two processes: a daemon that serves, and its keeper (godrive-keeper), which starts another daemon \
        if that one is killed. SIGUSR1 to the daemon logs what it has done so far. \
        SIGTERM, SIGINT or an unmount from outside end it after everything written was flushed; \
        the exit code is 1 if something could not be.",
    after_help = "Examples:\n  \
        godrive-fuse --config mount-1/config.toml\n  \
        godrive-fuse --config mount-1/config.toml -o ro,noatime\n  \
        godrive-fuse --join gd1.… --dir ~/.godrive --mountpoint /mnt/godrive\n  \
        godrive-fuse --print-config > config.toml"
)]
pub struct CommandLine {
    /// The mount's configuration file.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["join", "print_config"])]
    pub config: Option<PathBuf>,
    /// Join a cluster with a token (`godrive token`): writes identity and configuration into --dir, then mounts.
    #[arg(long, value_name = "TOKEN", requires = "dir", conflicts_with = "config")]
    pub join: Option<String>,
    /// Where --join keeps this client's identity.pem and config.toml.
    #[arg(long, value_name = "DIR", requires = "join")]
    pub dir: Option<PathBuf>,
    /// Where the cluster appears; overrides the configuration file.
    #[arg(long, value_name = "PATH")]
    pub mountpoint: Option<PathBuf>,
    /// Mount options, separated by commas; they override the configuration file. For example `ro,close=queued,hard`.
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Print a documented configuration file and exit.
    #[arg(long)]
    pub print_config: bool,
}

impl CommandLine {
    /// What a daemon is started with, now or after a crash: a token is used once only.
    pub fn daemon_arguments(&self, config: &Path) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--config".into(), config.into()];
        if let Some(mountpoint) = &self.mountpoint {
            arguments.extend(["--mountpoint".into(), mountpoint.into()]);
        }
        if !self.options.is_empty() {
            arguments.extend(["-o".into(), self.options.join(",").into()]);
        }
        arguments
    }

    /// Applies what was said on the command line.
    pub fn override_config(&self, config: &mut Config) -> Result<(), String> {
        if let Some(mountpoint) = &self.mountpoint {
            config.mountpoint = mountpoint.clone();
        }
        for option in self.options.iter().filter(|option| !option.is_empty()) {
            apply(config, option)?;
        }
        Ok(())
    }
}

/// Applies one word of `-o`.
pub fn apply(config: &mut Config, option: &str) -> Result<(), String> {
    let number = |text: &str, least: u64| match text.parse::<u64>() {
        Ok(number) if number >= least => Ok(number),
        _ => Err(format!("option `{option}`: `{text}` is not a number of {least} or more")),
    };
    match option.split_once('=').unwrap_or((option, "")) {
        ("ro", "") => config.read_only = true,
        ("rw", "") => config.read_only = false,
        ("hard", "") => config.hard = true,
        ("soft", "") => config.hard = false,
        ("allow_other", "") => config.allow_other = Some(true),
        ("noallow_other", "") => config.allow_other = Some(false),
        ("close", "held") => config.close = Close::Held,
        ("close", "queued") => config.close = Close::Queued,
        ("deadline_s", text) => config.deadline_s = number(text, 1)?,
        ("cache_bytes", text) => config.cache_bytes = number(text, 1 << 20)?,
        ("write_buffer_bytes", text) => config.write_buffer_bytes = number(text, 8 << 20)?,
        _ if kernel_option(option).is_ok() => config.mount_options.push(option.into()),
        _ => return Err(format!("unknown mount option `{option}`; known are {KNOWN}")),
    }
    Ok(())
}

/// An option that the kernel's mount understands. The error says which are allowed.
pub fn kernel_option(option: &str) -> Result<MountOption, String> {
    Ok(match option {
        "noatime" => MountOption::NoAtime,
        "nodev" => MountOption::NoDev,
        "dev" => MountOption::Dev,
        "nosuid" => MountOption::NoSuid,
        "suid" => MountOption::Suid,
        "noexec" => MountOption::NoExec,
        "exec" => MountOption::Exec,
        "sync" => MountOption::Sync,
        "dirsync" => MountOption::DirSync,
        _ => return Err("noatime, nodev, dev, nosuid, suid, noexec, exec, sync, dirsync".into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::parse("c", "master = \"127.0.0.1:7000\"\nmountpoint = \"m\"\n").unwrap()
    }

    #[test]
    fn words_override_the_file() {
        let line =
            CommandLine::parse_from(["godrive-fuse", "--config", "c", "-o", "ro,close=queued,hard,noatime"]);
        let mut config = config();
        line.override_config(&mut config).unwrap();
        assert!(config.read_only && config.hard);
        assert_eq!(config.close, Close::Queued);
        assert_eq!(config.mount_options, ["noatime"]);
    }

    #[test]
    fn unknown_words_and_bad_numbers_are_refused_with_what_is_known() {
        let error = apply(&mut config(), "fast").unwrap_err();
        assert!(error.contains("`fast`") && error.contains("close=queued"), "{error}");
        let error = apply(&mut config(), "deadline_s=soon").unwrap_err();
        assert!(error.contains("soon"), "{error}");
        assert!(apply(&mut config(), "close=now").is_err());
        assert!(apply(&mut config(), "ro=1").is_err());
    }

    #[test]
    fn either_a_file_or_a_token_is_needed() {
        assert!(CommandLine::try_parse_from(["godrive-fuse"]).is_err());
        assert!(CommandLine::try_parse_from(["godrive-fuse", "--join", "t"]).is_err());
        assert!(CommandLine::try_parse_from(["godrive-fuse", "--join", "t", "--dir", "d"]).is_ok());
        assert!(CommandLine::try_parse_from(["godrive-fuse", "--print-config"]).is_ok());
    }
}
