//! POSIX ACLs with the tools that people use, and with users whom they concern.

use crate::cluster::Cluster;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

/// Runs a shell line as root; what it printed.
fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether a line succeeds as this user and group, with no other groups.
fn may(user: u32, group: u32, line: &str) -> bool {
    let ids = [format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()];
    Command::new("setpriv")
        .args(ids)
        .args(["sh", "-ec", line])
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap()
        .success()
}

/// The tests' folder is closed to others.
fn start(mounts: usize) -> Cluster {
    let cluster = Cluster::start(mounts);
    let folder = cluster.mount(1).parent().unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    cluster
}

fn acl(path: &Path) -> String {
    let all = sh(&format!("getfacl -cnp --no-effective {}", path.display()));
    all.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_named_user_is_let_in_on_every_mount() {
    let cluster = start(2);
    let (here, there) = (cluster.mount(1).join("file"), cluster.mount(2).join("file"));
    fs::write(&here, b"secret").unwrap();
    fs::set_permissions(&here, fs::Permissions::from_mode(0o600)).unwrap();
    let read = |path: &Path| format!("cat {} > /dev/null", path.display());
    assert!(!may(1000, 1000, &read(&here)) && !may(1000, 1000, &read(&there)));
    sh(&format!("setfacl -m u:1000:rw,g:2000:r {}", here.display()));
    assert_eq!(acl(&there), "user::rw- user:1000:rw- group::--- group:2000:r-- mask::rw- other::---");
    assert_eq!(mode(&there), 0o660, "the mode's group is the mask");
    assert!(may(1000, 1000, &read(&here)) && may(1000, 1000, &read(&there)));
    assert!(may(3000, 2000, &read(&there)) && !may(3000, 3000, &read(&there)));
    let write = format!("echo x >> {}", there.display());
    assert!(may(1000, 1000, &write) && !may(3000, 2000, &write));
    fs::set_permissions(&there, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(acl(&here), "user::rw- user:1000:rw- group::--- group:2000:r-- mask::r-- other::---");
    assert!(!may(1000, 1000, &format!("echo x >> {}", here.display())), "the mask limits it");
    sh(&format!("setfacl -b {}", there.display()));
    assert_eq!(acl(&here), "user::rw- group::--- other::---");
    assert!(!may(1000, 1000, &read(&here)) && !may(1000, 1000, &read(&there)));
    sh(&format!("setfacl -m u:1000:r {}", here.display()));
    cluster.remount(2);
    assert!(may(1000, 1000, &read(&there)), "it is kept");
}

#[test]
fn what_is_made_inherits() {
    let cluster = start(1);
    let folder = cluster.mount(1).join("folder");
    fs::create_dir(&folder).unwrap();
    let make = |what: &str| sh(&format!("cd {}; umask 027; {what}", folder.display()));
    make("touch plain; mkdir plain-dir");
    assert_eq!((mode(&folder.join("plain")), mode(&folder.join("plain-dir"))), (0o640, 0o750), "the umask");
    sh(&format!("setfacl -d -m u::rwx,u:1000:rwx,g::rx,o::x {}", folder.display()));
    make("touch file; mkdir dir; mknod pipe p; ln -s file link; touch dir/below");
    let inherited = "user::rw- user:1000:rwx group::r-x mask::rw- other::---";
    assert_eq!(acl(&folder.join("file")), inherited, "the umask does not count");
    assert_eq!(acl(&folder.join("dir/below")), inherited);
    assert_eq!(acl(&folder.join("pipe")), inherited);
    assert_eq!(
        acl(&folder.join("dir")),
        "user::rwx user:1000:rwx group::r-x mask::rwx other::--x default:user::rwx default:user:1000:rwx default:group::r-x \
         default:mask::rwx default:other::--x"
    );
    assert!(may(1000, 1000, &format!("echo x > {}/file", folder.display())));
    sh(&format!("setfacl -k {}; setfacl -d -m u::rw,g::r,o::- {}", folder.display(), folder.display()));
    make("touch simple");
    assert_eq!(
        (acl(&folder.join("simple")), mode(&folder.join("simple"))),
        ("user::rw- group::r-- other::---".into(), 0o640)
    );
    let copy = cluster.mount(1).join("copy");
    sh(&format!("cp -a {} {}", folder.display(), copy.display()));
    assert_eq!(acl(&copy.join("dir")), acl(&folder.join("dir")));
}

#[test]
fn what_ext4_refuses_is_refused() {
    let cluster = start(1);
    let file = cluster.mount(1).join("file");
    fs::write(&file, b"").unwrap();
    let refused = |line: &str| {
        let output = Command::new("sh").args(["-ec", line]).output().unwrap();
        assert!(!output.status.success(), "{line}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    refused(&format!("setfacl -d -m u:1000:r {}", file.display()));
    let said = refused(&format!(
        "setfattr -n system.posix_acl_access -v 0x0200000001000700ffffffff {}",
        file.display()
    ));
    assert!(said.contains("Invalid argument"), "{said}");
    let said = refused(&format!("setfattr -n system.nonsense -v x {}", file.display()));
    assert!(said.contains("not supported"), "{said}");
    // Who is not of the file's group takes the set-gid bit with a change of its ACL.
    sh(&format!("chown 1000:2000 {0}; chmod 2775 {0}", file.display()));
    assert!(may(1000, 1000, &format!("setfacl -m u:5:r {}", file.display())));
    assert_eq!(mode(&file) & 0o2000, 0);
    sh(&format!("chmod 2775 {}", file.display()));
    assert!(may(1000, 2000, &format!("setfacl -m u:6:r {}", file.display())));
    assert_eq!(mode(&file) & 0o2000, 0o2000);
}
