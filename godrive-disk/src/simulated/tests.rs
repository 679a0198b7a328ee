use super::*;
use rand::SeedableRng;

fn rng(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}

fn read(disk: &SimulatedDisk, path: &str) -> Option<Vec<u8>> {
    let file = disk.open(path, false).ok()?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

#[test]
fn synced_bytes_and_names_survive_and_unsynced_ones_vary() {
    let (mut lost, mut kept, mut torn, mut nameless) = (0, 0, 0, 0);
    for seed in 0..200 {
        let disk = SimulatedDisk::new(1 << 20);
        let file = disk.open("a", true).unwrap();
        file.write_at(&[&[1; 8192]], 0).unwrap();
        file.sync().unwrap();
        disk.sync_directory("").unwrap();
        file.write_at(&[&[2; 8192]], 0).unwrap();
        disk.open("b", true).unwrap().sync().unwrap();
        disk.crash(&mut rng(seed));
        assert!(file.len().is_err(), "a handle from before the crash");
        let bytes = read(&disk, "a").unwrap();
        match (bytes.iter().all(|b| *b == 1), bytes.iter().all(|b| *b == 2)) {
            (true, _) => lost += 1,
            (_, true) => kept += 1,
            _ => {
                assert!(bytes.chunks(512).all(|sector| sector.iter().all(|b| *b == sector[0] && *b > 0)));
                torn += 1;
            }
        }
        nameless += usize::from(read(&disk, "b").is_none());
    }
    assert!(lost > 20 && kept > 20 && torn > 20 && nameless > 50, "{lost} {kept} {torn} {nameless}");
}

#[test]
fn what_lies_in_a_directory_goes_with_its_name() {
    let mut left = BTreeSet::new();
    for seed in 0..50 {
        let disk = SimulatedDisk::new(1 << 20);
        disk.create_directory("d").unwrap();
        crate::write_small(&disk, "d/a", b"synced").unwrap();
        disk.crash(&mut rng(seed));
        assert_eq!(disk.exists("d").unwrap(), disk.exists("d/a").unwrap());
        left.insert(disk.exists("d").unwrap());
        disk.create_directory("d").unwrap();
        disk.sync_directory("").unwrap();
        crate::write_small(&disk, "d/a", b"synced").unwrap();
        disk.crash(&mut rng(seed));
        assert_eq!(read(&disk, "d/a").unwrap(), b"synced");
    }
    assert_eq!(left.len(), 2);
}

#[test]
fn renames_are_atomic_and_ordered() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let disk = SimulatedDisk::new(1 << 20);
        crate::write_small(&disk, "a", b"old").unwrap();
        let file = disk.open("a.new", true).unwrap();
        file.write_at(&[b"new"], 0).unwrap();
        file.sync().unwrap();
        disk.rename("a.new", "a").unwrap();
        disk.crash(&mut rng(seed));
        seen.insert(read(&disk, "a").unwrap());
    }
    assert_eq!(seen, BTreeSet::from([b"old".to_vec(), b"new".to_vec()]));
}

#[test]
fn a_failed_sync_is_never_made_good() {
    let disk = SimulatedDisk::new(1 << 20);
    crate::write_small(&disk, "a", b"old").unwrap();
    let file = disk.open("a", false).unwrap();
    file.write_at(&[b"new"], 0).unwrap();
    disk.set_faults(Faults { syncs: true, ..Faults::default() });
    assert!(file.sync().is_err());
    disk.set_faults(Faults::default());
    file.sync().unwrap();
    assert_eq!(read(&disk, "a").unwrap(), b"new");
    disk.crash(&mut rng(1));
    assert_eq!(read(&disk, "a").unwrap(), b"old");
}

/// As on Linux: the pages are clean, and hold what the medium lacks until the system drops them.
#[test]
fn after_a_failed_sync_a_dropped_cache_shows_what_the_medium_has() {
    let disk = SimulatedDisk::new(1 << 20);
    crate::write_small(&disk, "a", &[b'o'; 12_288]).unwrap();
    let file = disk.open("a", false).unwrap();
    file.write_at(&[b"new"], 4096).unwrap();
    file.punch(8192, 4096).unwrap();
    disk.set_faults(Faults { syncs: true, ..Faults::default() });
    assert!(file.drop_cache().is_err());
    assert_eq!(&read(&disk, "a").unwrap()[4096..4099], b"new", "nothing is dropped where the sync failed");
    disk.set_faults(Faults::default());
    disk.kill();
    let file = disk.open("a", false).unwrap();
    file.write_at(&[b"later"], 0).unwrap();
    assert_eq!(&read(&disk, "a").unwrap()[4096..4099], b"new", "another process reads it");
    file.drop_cache().unwrap();
    let shown = read(&disk, "a").unwrap();
    assert_eq!(shown, [&b"later"[..], &[b'o'; 12_283]].concat());
    disk.crash(&mut rng(1));
    assert_eq!(read(&disk, "a").unwrap(), shown);
}

#[test]
fn a_full_disk_refuses_and_a_punch_makes_room() {
    let disk = SimulatedDisk::new(3 * PAGE);
    let file = disk.open("a", true).unwrap();
    file.write_at(&[&[1; 12_288]], 0).unwrap();
    assert_eq!(file.write_at(&[&[1; 1]], 12_288).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.punch(0, 4096).unwrap();
    file.write_at(&[&[1; 1]], 12_288).unwrap();
    assert_eq!(disk.space().unwrap().free_bytes, 0);
    file.set_len(100).unwrap();
    assert_eq!(read(&disk, "a").unwrap(), [0; 100]);
    assert_eq!(disk.space().unwrap().free_bytes, 3 * PAGE);
}

#[test]
fn it_stops_in_the_middle_and_bits_flip() {
    let disk = SimulatedDisk::new(1 << 20);
    crate::write_small(&disk, "a", b"abc").unwrap();
    assert!(disk.flip("a", 1));
    assert_eq!(read(&disk, "a").unwrap(), b"arc");
    let file = disk.open("a", false).unwrap();
    disk.stop_after(1);
    file.write_at(&[b"x"], 0).unwrap();
    assert!(file.write_at(&[b"y"], 0).is_err());
    assert!(file.sync().is_err());
    disk.kill();
    assert_eq!(read(&disk, "a").unwrap(), b"xrc");
}

#[test]
fn zeros_are_written_wholly_or_not_at_all() {
    let disk = SimulatedDisk::new(1 << 20);
    let file = disk.open("f", true).unwrap();
    file.write_at(&[&[7; 100]], 0).unwrap();
    crate::write_zeros(&*file, 100, 10_000).unwrap();
    let mut back = vec![1; 10_100];
    file.read_at(&mut back, 0).unwrap();
    assert_eq!(back, [vec![7; 100], vec![0; 10_000]].concat());
    disk.set_capacity(20_000);
    assert!(crate::write_zeros(&*file, 10_100, 100_000).is_err());
    assert_eq!(file.len().unwrap(), 10_100);
}

#[test]
fn damage_is_on_the_medium_and_in_what_is_read() {
    let disk = SimulatedDisk::new(1 << 20);
    let file = disk.open("a", true).unwrap();
    file.write_at(&[&[1; 4096], &[2; 4096]], 0).unwrap();
    let before = disk.copy();
    assert!(disk.exchange(("a", 0), ("a", 1)));
    let first = |disk: &SimulatedDisk| disk.block(("a", 0)).map(|bytes| bytes[0]);
    assert_eq!(first(&disk), Some(2));
    assert!(disk.misplace(("a", 1), ("a", 0)) && !disk.misplace(("a", 7), ("a", 0)));
    assert_eq!(first(&disk), Some(1));
    disk.sync_directory("").unwrap();
    disk.crash(&mut SmallRng::seed_from_u64(1));
    assert_eq!(first(&disk), Some(1), "it was on the medium at once");
    assert!(disk.cut("a", 4000));
    assert_eq!(disk.files(), [("a".to_owned(), 4000)]);
    disk.open("b", true).unwrap();
    assert!(disk.set_back_file("a", &before) && disk.set_back_file("b", &before));
    assert_eq!(disk.files(), [("a".to_owned(), 8192)]);
    disk.replace();
    assert_eq!(disk.files(), []);
    disk.set_back(&before);
    assert_eq!(first(&disk), Some(1));
    assert!(file.read_at(&mut [0; 1], 0).is_err(), "handles from before fail");
}

#[tokio::test]
async fn a_slow_disk_keeps_those_waiting_who_sync() {
    let disk = SimulatedDisk::new(1 << 20);
    disk.set_sync_takes(std::time::Duration::from_millis(30));
    let (file, slow) = (disk.open("a", true).unwrap(), disk.clone());
    let group = crate::GroupSync::over(file, true).taking(move || slow.sync_takes());
    let began = tokio::time::Instant::now();
    group.sync().await.unwrap();
    assert!(began.elapsed() >= std::time::Duration::from_millis(30));
}
