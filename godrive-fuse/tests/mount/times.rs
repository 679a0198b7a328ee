//! Times: what changes them, and what does not.

use crate::cluster::{Cluster, eventually};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

fn atime(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().accessed().unwrap()
}

/// A time before every change.
fn set_atime_back(path: &Path) -> SystemTime {
    let back = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_accessed(back)).unwrap();
    back
}

#[test]
fn reading_sets_the_access_time_as_relatime_does() {
    let cluster = Cluster::start(2);
    let (here, there) = (cluster.mount(1).join("file"), cluster.mount(2).join("file"));
    fs::write(&here, b"text").unwrap();
    let back = set_atime_back(&here);
    assert_eq!((atime(&here), atime(&there)), (back, back));
    let noatime = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(&here).unwrap();
    noatime.read_at(&mut [0; 4], 0).unwrap();
    drop(noatime);
    assert_eq!(atime(&here), back, "O_NOATIME");
    let before = fs::metadata(&there).unwrap();
    assert_eq!(fs::read(&there).unwrap(), b"text");
    let read = atime(&there);
    assert!(
        read > before.modified().unwrap()
            && fs::metadata(&there).unwrap().ctime_nsec() == before.ctime_nsec()
    );
    // The other mount may show what it knew for as long as an hour; a new one asks.
    eventually("the master was told", || {
        cluster.remount(1);
        atime(&here) == read
    });
    fs::read(&there).unwrap();
    fs::read(&here).unwrap();
    assert_eq!((atime(&here), atime(&there)), (read, read), "it is behind the last change already");
    fs::write(&here, b"more").unwrap();
    fs::read(&here).unwrap();
    assert!(atime(&here) > read, "the first read after a change counts again");
    let back = set_atime_back(&here);
    assert_eq!((atime(&here), atime(&there)), (back, back), "what a program sets is set");
    cluster.remount(1);
    assert_eq!(atime(&here), back);
    let folder = cluster.mount(1).join("folder");
    fs::create_dir(&folder).unwrap();
    File::create(folder.join("x")).unwrap();
    let changed = fs::metadata(&folder).unwrap().modified().unwrap();
    assert!(atime(&folder) <= changed);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    assert!(atime(&folder) > changed);
    let last = atime(&folder);
    cluster.remount(1);
    assert_eq!(atime(&folder), last, "it was told at the unmount");
}
