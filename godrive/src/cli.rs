//! The command line: subcommands, their options, and how sizes and times are written.

use clap::{Args, Parser, Subcommand, ValueEnum};
use godrive_proto::Role;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Parser, Debug)]
#[command(
    name = "godrive",
    version,
    about = "One directory, served by several machines, that outlives any of them",
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong use.\n\
        Start with:  godrive up --mount ~/godrive/mnt\n\
        Then:        godrive status"
)]
pub struct Line {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a cluster if there is none yet, start what is not running, mount
    Up(Up),
    /// Unmount and stop everything; the data stays
    Down(Home),
    /// Mount the cluster once more, with a client process of its own
    Mount(Mount),
    /// Unmount cleanly: everything written is flushed first
    Umount(Umount),
    /// Nodes, capacity, health of the chunks, mounts and repair
    Status(Status),
    /// Which files have data that cannot be read or written now, and why
    Damaged(Damaged),
    /// Print a token with which another machine joins
    Token(Token),
    /// What was removed: show it, have it back, or remove it for good
    Trash(Trash),
    /// Empty a slave, or one disk of it: its replicas move to others, and nothing new goes there
    #[command(
        after_help = "Examples:\n  godrive drain slave-2 --wait\n  godrive drain 5f3a91c0      a disk, as `godrive status` names it\n\n\
        Then it can be stopped, repaired or replaced without a chunk missing a replica."
    )]
    Drain(Drain),
    /// End a drain: it serves as before
    #[command(after_help = "Example:\n  godrive undrain slave-2")]
    Undrain(Target),
    /// Retire a slave for good: drain it, and when nothing is left there, forget it
    #[command(after_help = "Example:\n  godrive decommission slave-2 --wait\n\n\
        Afterwards its id and its disks are refused: stop it and remove its folder.")]
    Decommission(Drain),
    /// Take a decommissioned slave back, or end its decommission
    #[command(after_help = "Example:\n  godrive recommission slave-2")]
    Recommission(Target),
    /// Store a file without a mount
    Put(Put),
    /// Fetch a file without a mount
    Get(Get),
    /// List a directory without a mount
    Ls(Ls),
    /// Remove files and directories without a mount
    Rm(Rm),
    /// Show one file or directory without a mount
    Stat(Stat),
    /// Serve the files over HTTPS, in the foreground
    Gateway(Gateway),
    /// Print the completions of a shell
    Completions { shell: clap_complete::Shell },
    /// Print the manual page, or write one per subcommand
    Man {
        /// Write godrive.1, godrive-up.1, ... into this folder
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

#[derive(Args, Debug, Clone)]
pub struct Home {
    /// The cluster's folder [default: ~/godrive]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Home {
    /// The folder, absolute.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        let dir = match (&self.dir, std::env::var_os("HOME")) {
            (Some(dir), _) => dir.clone(),
            (None, Some(home)) => PathBuf::from(home).join("godrive"),
            (None, None) => return Err(crate::Usage("HOME is not set: say --dir DIR".into()).into()),
        };
        Ok(std::path::absolute(dir)?)
    }
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    godrive up --mount ~/godrive/mnt            one master, three slaves, three replicas\n  \
    godrive up --dir /srv/gd --slaves 5 --replicas 3 --min-replicas 2\n  \
    godrive up --dir /srv/gd --slaves 6         a sixth slave for that cluster\n\n\
    Running it again is harmless: it starts what is not running. Nodes run in the background on loopback, each with\n\
    pid, log and config.toml in DIR/<master|slave|mount>-<n>/.")]
pub struct Up {
    #[command(flatten)]
    pub home: Home,
    /// Masters (one, for now)
    #[arg(long, value_name = "N")]
    pub masters: Option<u32>,
    /// Slaves in all [default of a new cluster: 3, or as many as replicas]
    #[arg(long, value_name = "N")]
    pub slaves: Option<u32>,
    /// Copies of each chunk [default of a new cluster: 3]
    #[arg(long, value_name = "R")]
    pub replicas: Option<u8>,
    /// Fewest copies with which a write succeeds [default: R up to 2, else R - 1]
    #[arg(long, value_name = "W")]
    pub min_replicas: Option<u8>,
    /// Size of a chunk, a power of two, for example 16MiB [default of a new cluster: 16MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub chunk_size: Option<u64>,
    /// Where new nodes listen; an address of this machine that others reach lets other machines join
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub address: IpAddr,
    /// Mount the cluster here
    #[arg(long, value_name = "PATH")]
    pub mount: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  godrive mount --dir /srv/gd /mnt/gd")]
pub struct Mount {
    #[command(flatten)]
    pub home: Home,
    /// Where the cluster appears; created if missing
    pub path: PathBuf,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  godrive umount /mnt/gd\n  godrive umount /mnt/gd --force --patience 0")]
pub struct Umount {
    /// The mountpoint
    pub path: PathBuf,
    /// Also if programs use it, or if it hangs: they keep what they have open until all is flushed or the patience is
    /// over, then get errors
    #[arg(long)]
    pub force: bool,
    /// How long --force lets the mount flush, seconds
    #[arg(long = "patience", value_name = "SECONDS", default_value_t = 10, requires = "force")]
    pub patience_s: u64,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  godrive status\n  godrive status --dir /srv/gd --json | jq .chunks")]
pub struct Status {
    #[command(flatten)]
    pub home: Home,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Target {
    #[command(flatten)]
    pub home: Home,
    /// A slave (slave-2, or the beginning of its id), or of a disk the beginning of its id, as in `godrive status`
    pub target: String,
}

#[derive(Args, Debug)]
pub struct Drain {
    #[command(flatten)]
    pub target: Target,
    /// Wait until nothing is left there
    #[arg(long)]
    pub wait: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenRole {
    Slave,
    Client,
}

impl TokenRole {
    pub fn role(self) -> Role {
        match self {
            Self::Slave => Role::Slave,
            Self::Client => Role::Client,
        }
    }
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  godrive token --role slave --valid-for 1d --uses 3\n\n\
    The token alone goes to standard output, how to use it to standard error. Whoever has it may join: keep it secret.")]
pub struct Token {
    #[command(flatten)]
    pub home: Home,
    /// What the joining machine becomes
    #[arg(long, value_enum)]
    pub role: TokenRole,
    /// How long the token works: 90s, 30m, 1h, 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub valid_for: Duration,
    /// How often it works
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: u32,
}

#[derive(Args, Debug)]
#[command(after_help = "Each line is a part of a file:\n  \
    quarantined   no replica is known to be what was written: reads of it fail until one that is comes back\n  \
    rotten        each replica left has damaged blocks: reads of what is damaged in all of them fail\n  \
    unreachable   no slave that has a replica is running: reads of it fail until one does\n  \
    read-only     too few slaves that have a replica are running: writes of it fail until more do\n\n\
    Nothing is overwritten meanwhile. Start the slaves that are named, or mend their disks and restart them.\n\
    What was removed or replaced is listed, too, as long as it is in the trash.")]
pub struct Damaged {
    #[command(flatten)]
    pub home: Home,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    godrive trash ls                              everything, the oldest first\n  \
    godrive trash ls /papers --json\n  \
    godrive trash restore /papers/report.pdf      the newest of that name\n  \
    godrive trash restore /papers --to /papers-of-yesterday\n  \
    godrive trash restore --inode 1234 --to /papers/old-report.pdf\n  \
    godrive trash empty --older-than 1h\n\n\
    What is removed or replaced is kept for a day; the master's configuration says how long ([trash]).")]
pub struct Trash {
    #[command(flatten)]
    pub home: Home,
    #[command(subcommand)]
    pub command: TrashCommand,
}

#[derive(Subcommand, Debug)]
pub enum TrashCommand {
    /// List what can be restored, with the path that it had
    Ls(TrashLs),
    /// Give files and directories their names again
    Restore(TrashRestore),
    /// Remove for good, to have the room at once
    Empty(TrashEmpty),
}

#[derive(Args, Debug)]
pub struct TrashLs {
    /// Only what was at this path or below it
    #[arg(default_value = "/")]
    pub name: String,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct TrashRestore {
    /// What was at this path and below it; of several with one path, the newest
    #[arg(required_unless_present = "inode")]
    pub name: Option<String>,
    /// One entry by its number
    #[arg(long, value_name = "N", conflicts_with = "name")]
    pub inode: Option<u64>,
    /// Restore it under this path instead
    #[arg(long, value_name = "PATH")]
    pub to: Option<String>,
}

#[derive(Args, Debug)]
pub struct TrashEmpty {
    /// Only what was at these paths or below them
    pub names: Vec<String>,
    /// Only what was removed so long ago: 90s, 30m, 1h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub older_than: Option<Duration>,
}

/// What every command that moves files has.
#[derive(Args, Debug, Clone)]
pub struct Access {
    #[command(flatten)]
    pub home: Home,
    /// Give up after this long without progress
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub deadline: Duration,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    godrive put report.pdf /papers/report.pdf\n  \
    godrive put report.pdf /papers/             keeps its name\n  \
    tar c src | godrive put -p - /backups/src.tar\n\n\
    The name appears when all bytes are stable on all replicas; nothing is left behind by a failure.")]
pub struct Put {
    #[command(flatten)]
    pub access: Access,
    /// A local file, or - for standard input
    pub source: PathBuf,
    /// The name in the cluster; with a / at its end, the directory to put it into
    pub name: String,
    /// Make missing directories
    #[arg(short, long)]
    pub parents: bool,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  godrive get /papers/report.pdf\n  godrive get /backups/src.tar - | tar x"
)]
pub struct Get {
    #[command(flatten)]
    pub access: Access,
    /// The name in the cluster
    pub name: String,
    /// A local file, or - for standard output [default: the same name, here]
    pub target: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Ls {
    #[command(flatten)]
    pub access: Access,
    /// A directory or file in the cluster
    #[arg(default_value = "/")]
    pub name: String,
    /// Mode, owner, size and time of each entry
    #[arg(short, long)]
    pub long: bool,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Rm {
    #[command(flatten)]
    pub access: Access,
    /// Names in the cluster
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Directories too, with everything in them
    #[arg(short, long)]
    pub recursive: bool,
}

#[derive(Args, Debug)]
pub struct Stat {
    #[command(flatten)]
    pub access: Access,
    /// A name in the cluster
    pub name: String,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  \
    godrive gateway &\n  \
    cd ~/godrive/gateway\n  \
    curl --cacert ca.pem -H \"Authorization: Bearer $(cat token)\" -T FILE https://localhost:8443/dir/FILE\n\n\
    PUT stores, GET fetches (with Range), GET DIR?list lists as JSON, HEAD looks, DELETE removes a file or an\n\
    empty directory. The first start makes the token and the certificate.")]
pub struct Gateway {
    #[command(flatten)]
    pub access: Access,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
    pub listen: SocketAddr,
    /// The file with the bearer token [default: DIR/gateway/token, made if missing]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// More names for the certificate, besides localhost and the address
    #[arg(long, value_name = "HOST")]
    pub host: Vec<String>,
    /// Requests served at one time; more are answered with 503
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_requests: u32,
}

/// `16777216`, `16384KiB`, `16M`, `16MiB`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err(format!("`{unit}` is not a unit: write bytes, or K, M, G (powers of 1024)")),
    };
    let number: u64 =
        number.parse().map_err(|_| "a number of bytes is needed, for example 16MiB".to_string())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is too large".to_string())
}

/// `90s`, `30m`, `1h`, `7d`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a time: write 90s, 30m, 1h or 7d");
    let unit = text.chars().last().ok_or_else(bad)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    match number.checked_mul(seconds) {
        Some(total) if (1..=u64::from(u32::MAX)).contains(&total) => Ok(Duration::from_secs(total)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Line::command().debug_assert();
    }

    #[test]
    fn the_contracts_forms_are_accepted() {
        for line in [
            "godrive up --dir D --masters 1 --slaves 4 --replicas 3 --min-replicas 2 --mount P --chunk-size 1MiB",
            "godrive down --dir D",
            "godrive mount --dir D P",
            "godrive umount P",
            "godrive umount P --force",
            "godrive status --dir D --json",
            "godrive token --dir D --role slave --valid-for 1h --uses 1",
            "godrive gateway --dir D --listen 127.0.0.1:8443 --token-file F",
            "godrive trash --dir D ls / --json",
            "godrive trash restore /a --to /b",
            "godrive trash restore --inode 7 --to /b",
            "godrive trash empty --older-than 1h",
            "godrive drain --dir D slave-2 --wait",
            "godrive undrain slave-2",
            "godrive decommission slave-2",
            "godrive recommission --dir D 5f3a",
            "godrive put --dir D - /a",
            "godrive get --dir D /a -",
        ] {
            Line::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn wrong_use_is_refused() {
        for line in [
            "godrive",
            "godrive token",
            "godrive token --role admin",
            "godrive trash restore",
            "godrive trash restore /a --inode 7",
            "godrive up --slaves many",
            "godrive mount",
        ] {
            assert_eq!(Line::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("16777216"), Ok(16 << 20));
        assert_eq!(parse_bytes("16MiB"), Ok(16 << 20));
        assert_eq!(parse_bytes("2g"), Ok(2 << 30));
        for bad in ["", "M", "1.5M", "-1", "16X", "99999999999999999999", "99999999999G"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "s", "0s", "1", "1y", "-1s", "1µ", "99999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
