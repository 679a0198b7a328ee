//! Two mounts of one cluster: each sees at once what the other did.

use crate::cluster::Cluster;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Error, ErrorKind, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[test]
fn alternate_writes_are_seen_at_once_in_both_directions() {
    let cluster = Cluster::start(2);
    let open = |number: usize| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(cluster.mount(number).join("file"))
            .unwrap()
    };
    let files = [open(1), open(2)];
    for round in 0..1000_u64 {
        let (writer, reader) = if round % 2 == 0 { (&files[0], &files[1]) } else { (&files[1], &files[0]) };
        let text = format!("round {round:08}");
        writer.write_all_at(text.as_bytes(), 5000).unwrap();
        let mut seen = vec![0; text.len()];
        reader.read_exact_at(&mut seen, 5000).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&seen),
            text,
            "written without close, read through an open handle"
        );
    }
}

#[test]
fn lengths_names_and_removals_are_seen_at_once() {
    let cluster = Cluster::start(2);
    let paths = [cluster.mount(1), cluster.mount(2)];
    for round in 0..200 {
        let (here, there) = (paths[round % 2], paths[(round + 1) % 2]);
        let name = format!("name-{round}");
        assert_eq!(fs::metadata(there.join(&name)).unwrap_err().kind(), ErrorKind::NotFound);
        fs::write(here.join(&name), vec![b'x'; round]).unwrap();
        assert_eq!(fs::metadata(there.join(&name)).unwrap().len(), round as u64);
        assert_eq!(fs::read(there.join(&name)).unwrap().len(), round);
        let moved = format!("moved-{round}");
        fs::rename(there.join(&name), there.join(&moved)).unwrap();
        assert_eq!(fs::metadata(here.join(&name)).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(fs::read_dir(here).unwrap().any(|entry| entry.unwrap().file_name().to_str() == Some(&moved)));
        fs::remove_file(here.join(&moved)).unwrap();
        assert_eq!(fs::metadata(there.join(&moved)).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn two_mounts_append_to_one_log_without_lost_or_torn_lines() {
    const LINES: usize = 500;
    let cluster = Cluster::start(2);
    File::create(cluster.mount(1).join("log")).unwrap();
    std::thread::scope(|scope| {
        for number in 1..=2 {
            let path = cluster.mount(number).join("log");
            scope.spawn(move || {
                let mut log = OpenOptions::new().append(true).open(path).unwrap();
                for line in 0..LINES {
                    let filler = "-".repeat(line % 90);
                    log.write_all(format!("<{number} {line} {filler}>\n").as_bytes()).unwrap();
                }
            });
        }
    });
    for number in 1..=2 {
        let text = fs::read_to_string(cluster.mount(number).join("log")).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let expected: BTreeSet<_> = (1..=2)
            .flat_map(|writer| {
                (0..LINES).map(move |line| format!("<{writer} {line} {}>", "-".repeat(line % 90)))
            })
            .collect();
        let seen: BTreeSet<_> = lines.iter().map(|line| (*line).to_owned()).collect();
        let missing: Vec<_> = expected.difference(&seen).take(5).collect();
        let torn: Vec<_> = seen.difference(&expected).take(5).collect();
        assert!(missing.is_empty() && torn.is_empty(), "mount {number}: missing {missing:?}, torn {torn:?}");
        assert_eq!(lines.len(), 2 * LINES);
    }
}

#[test]
fn both_create_in_one_directory() {
    const FILES: usize = 100;
    let cluster = Cluster::start(2);
    fs::create_dir(cluster.mount(1).join("shared")).unwrap();
    std::thread::scope(|scope| {
        for number in 1..=2 {
            let folder = cluster.mount(number).join("shared");
            scope.spawn(move || {
                for file in 0..FILES {
                    fs::write(folder.join(format!("{number}-{file}")), format!("{number} {file}")).unwrap();
                }
            });
        }
    });
    for number in 1..=2 {
        let folder = cluster.mount(number).join("shared");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2 * FILES);
        for writer in 1..=2 {
            for file in 0..FILES {
                assert_eq!(
                    fs::read_to_string(folder.join(format!("{writer}-{file}"))).unwrap(),
                    format!("{writer} {file}")
                );
            }
        }
    }
}

/// Its kernel takes what it makes for its own and looks at no permission: what another mount has made a moment before is no such file.
#[test]
fn who_comes_second_with_making_a_file_opens_what_it_may_open() {
    const FILES: usize = 400;
    const NOBODY: u32 = 65_534;
    let cluster = Cluster::start(2);
    fs::create_dir(cluster.mount(1).join("shared")).unwrap();
    fs::set_permissions(cluster.mount(1).join("shared"), Permissions::from_mode(0o777)).unwrap();
    let ours = cluster.mount(1).join("shared");
    // By their descriptors: only root may look into the folder of the test.
    let folders = [1, 2].map(|number| File::open(cluster.mount(number).join("shared")).unwrap());
    let together = Barrier::new(2);
    let make = |folder: &File, file: usize| {
        let (name, flags) =
            (CString::new(file.to_string()).unwrap(), libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC);
        together.wait();
        // SAFETY: the name is a string, and the descriptor becomes the file's own.
        match unsafe { libc::openat(folder.as_raw_fd(), name.as_ptr(), flags, 0o600) } {
            -1 => Err(Error::last_os_error()),
            file => Ok(unsafe { File::from_raw_fd(file) }),
        }
    };
    let mut second = [0; 2];
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            // SAFETY: plain numbers. The call itself changes this thread alone.
            let done = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            assert_eq!(done, 0);
            (0..FILES).map(|file| make(&folders[1], file)).collect::<Vec<_>>()
        });
        let own: Vec<_> = (0..FILES).map(|file| make(&folders[0], file)).collect();
        let other = other.join().unwrap();
        for (file, (own, other)) in own.into_iter().zip(other).enumerate() {
            own.unwrap_or_else(|error| panic!("root, file {file}: {error}"));
            let owner = fs::metadata(ours.join(file.to_string())).unwrap().uid();
            let found = other.map(|file| file.metadata().unwrap().uid()).map_err(|error| error.kind());
            let expected = if owner == NOBODY { Ok(NOBODY) } else { Err(ErrorKind::PermissionDenied) };
            assert_eq!(found, expected, "file {file} belongs to {owner}");
            second[usize::from(owner == NOBODY)] += 1;
        }
    });
    assert!(second.iter().all(|times| *times > 0), "each came second now and then: {second:?}");
}

/// As programs do with lock files.
#[test]
fn a_file_that_comes_and_goes_elsewhere_can_be_made_or_opened() {
    let cluster = Cluster::start(2);
    let [here, there] = [1, 2].map(|number| cluster.mount(number).join("lock"));
    // A file that is gone each time when it was found: the kernel looks twice.
    let is_stale = |opened: &io::Result<File>| {
        opened.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ESTALE))
    };
    let open = |path: &Path| {
        let begun = Instant::now();
        loop {
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            if !is_stale(&opened) || begun.elapsed() > Duration::from_secs(20) {
                return opened;
            }
        }
    };
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while done.load(Ordering::SeqCst) == 0 {
                open(&here).expect("made or opened");
                // The other one may have been quicker.
                let _ = fs::remove_file(&here);
            }
        });
        for round in 0..300 {
            // And what was opened lives, though its name may be gone before it was: longer than removals are told of.
            let used = || {
                let file = open(&there).map_err(|error| ("open", error))?;
                file.write_all_at(b"mine", 0).map_err(|error| ("write", error))?;
                file.sync_all().map_err(|error| ("fsync", error))?;
                std::thread::sleep(Duration::from_millis(round % 16 / 15 * 400));
                let mut read = [0; 4];
                file.read_exact_at(&mut read, 0).map_err(|error| ("read", error))?;
                assert_eq!(&read, b"mine");
                file.sync_all().map_err(|error| ("fsync at the end", error))
            };
            if let Err((what, error)) = used() {
                done.store(1, Ordering::SeqCst);
                panic!("round {round}, {what}: {error}");
            }
            let _ = fs::remove_file(&there);
        }
        done.store(1, Ordering::SeqCst);
    });
}

#[test]
fn a_file_removed_on_one_mount_lives_on_while_the_other_has_it_open() {
    let cluster = Cluster::start(2);
    let mut file =
        File::options().read(true).write(true).create_new(true).open(cluster.mount(1).join("file")).unwrap();
    file.write_all(b"still here").unwrap();
    fs::remove_file(cluster.mount(2).join("file")).unwrap();
    assert_eq!(fs::metadata(cluster.mount(1).join("file")).unwrap_err().kind(), ErrorKind::NotFound);
    let mut read = [0; 10];
    file.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"still here");
    file.write_all(b", and grows").unwrap();
    file.sync_all().unwrap();
}

#[test]
fn two_writers_in_one_page_do_not_wait_for_each_other_for_ever() {
    const ROUNDS: usize = 100;
    let cluster = Cluster::start(2);
    fs::write(cluster.mount(1).join("page"), vec![b'.'; 200]).unwrap();
    std::thread::scope(|scope| {
        for number in 1..=2_usize {
            let path = cluster.mount(number).join("page");
            scope.spawn(move || {
                let file = OpenOptions::new().write(true).open(path).unwrap();
                for round in 0..ROUNDS {
                    let byte = [b'a' + (round % 26) as u8];
                    file.write_all_at(&byte, (2 * round + number - 1) as u64).unwrap();
                }
            });
        }
    });
    let expected: Vec<u8> = (0..ROUNDS).flat_map(|round| [b'a' + (round % 26) as u8; 2]).collect();
    for number in 1..=2 {
        assert_eq!(fs::read(cluster.mount(number).join("page")).unwrap(), expected);
    }
}

/// Files removed one after the other are removed under leases, ahead of the master.
#[test]
fn what_one_mount_removes_in_a_row_is_gone_on_the_other_at_once() {
    const FILES: usize = 600;
    let cluster = Cluster::start(2);
    let paths = [cluster.mount(1), cluster.mount(2)].map(|mount| mount.join("tree"));
    let file = |number: usize| format!("d{}/f{number}", number / 100);
    fs::create_dir(&paths[0]).unwrap();
    for number in 0..FILES {
        if number % 100 == 0 {
            fs::create_dir(paths[0].join(format!("d{}", number / 100))).unwrap();
        }
        fs::write(paths[0].join(file(number)), b"x").unwrap();
    }
    let count = |path: &std::path::Path| fs::read_dir(path).unwrap().count();
    assert_eq!((0..FILES / 100).map(|d| count(&paths[1].join(format!("d{d}")))).sum::<usize>(), FILES);
    // A file goes when `begun` passes it, and is gone when `ended` does.
    let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..FILES - 100 {
                begun.store(number + 1, Ordering::SeqCst);
                fs::remove_file(paths[0].join(file(number))).unwrap();
                ended.store(number + 1, Ordering::SeqCst);
            }
        });
        let mut number = 7;
        while ended.load(Ordering::SeqCst) < FILES - 100 {
            number = (number * 31 + 17) % FILES;
            let before = ended.load(Ordering::SeqCst);
            let seen = fs::metadata(paths[1].join(file(number))).is_ok();
            let after = begun.load(Ordering::SeqCst);
            assert!(seen || number < after, "{number} is missing, {after} were begun");
            assert!(!seen || number >= before, "{number} is still there, {before} are removed");
            std::thread::sleep(Duration::from_millis(number as u64 % 4));
        }
    });
    fs::remove_dir_all(&paths[0]).unwrap();
    assert_eq!(fs::metadata(&paths[1]).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(count(cluster.mount(2)), 0);
    fs::create_dir(&paths[1]).expect("the name is free");
}

/// A worker that takes a job by renaming it must know that nobody else has taken it.
#[test]
fn of_two_equal_renames_one_succeeds() {
    const ROUNDS: usize = 200;
    let cluster = Cluster::start(3);
    let job = |number: usize| cluster.mount(number).join("job");
    let taken = |number: usize| cluster.mount(number).join("taken");
    let ended = std::sync::atomic::AtomicBool::new(false);
    // Where others change the directory all the time, each lookup asks the master.
    let noise = || {
        let path = cluster.mount(3).join("noise");
        while !ended.load(Ordering::SeqCst) {
            fs::write(&path, b"x").and_then(|()| fs::remove_file(&path)).unwrap();
        }
    };
    let (turn, won) = (std::sync::Barrier::new(3), AtomicUsize::new(0));
    // The same two workers in all rounds.
    let worker = |number: usize| {
        for _ in 0..ROUNDS {
            turn.wait();
            match fs::rename(job(number), taken(number)) {
                Ok(()) => won.fetch_add(1, Ordering::SeqCst),
                Err(error) if error.kind() == ErrorKind::NotFound => 0,
                Err(error) => panic!("{error}"),
            };
            turn.wait();
        }
    };
    let mut twice = 0;
    std::thread::scope(|scope| {
        scope.spawn(noise);
        scope.spawn(|| worker(1));
        scope.spawn(|| worker(2));
        for round in 0..ROUNDS {
            fs::write(job(1), b"x").unwrap();
            if round % 2 == 0 {
                // Both kernels have an entry for the target.
                fs::write(taken(1), b"x").and_then(|()| fs::metadata(taken(2))).unwrap();
            }
            won.store(0, Ordering::SeqCst);
            turn.wait();
            turn.wait();
            twice += usize::from(won.load(Ordering::SeqCst) != 1);
            fs::remove_file(taken(2)).unwrap();
        }
        ended.store(true, Ordering::SeqCst);
    });
    assert_eq!(twice, 0, "rounds in which not exactly one mount has renamed it");
}

/// What another mount has written behind the end is there for who reads it, however often the file changes hands.
#[test]
fn a_file_that_grows_elsewhere_is_read_to_its_end() {
    const RECORD: usize = 700;
    let cluster = Cluster::start(2);
    let open = |number: usize| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(cluster.mount(number).join("file")).unwrap()
    };
    let (writer, reader) = (open(1), open(2));
    let written = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for record in 0..400 {
                writer.write_all_at(&[1; RECORD], (record * 2 * RECORD) as u64).unwrap();
                written.store(record + 1, Ordering::SeqCst);
                writer.sync_all().unwrap();
            }
        });
        let mut round = 0;
        while written.load(Ordering::SeqCst) < 400 {
            // Takes the file away from the writer now and then.
            if round % 3 == 0 {
                reader.write_all_at(b"x", (RECORD + round % 100) as u64).unwrap();
            }
            round += 1;
            let records = written.load(Ordering::SeqCst);
            let Some(last) = records.checked_sub(1) else { continue };
            let mut bytes = [0; RECORD];
            let read = reader.read_at(&mut bytes, (last * 2 * RECORD) as u64).unwrap();
            assert!(
                read == RECORD && bytes.iter().all(|byte| *byte == 1),
                "record {last}, round {round}: {read} bytes"
            );
        }
    });
}
