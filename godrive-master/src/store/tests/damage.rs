//! A small state behind its log in which each byte of the store is damaged in turn, and which is cut off at each length.
//! The master starts with all that was acknowledged, or does not start and says what to do.

use super::*;
use godrive_proto::LogIndex;

struct Small {
    files: Vec<(String, Vec<u8>)>,
    expected: MemoryKv,
    records: u64,
}

/// Some records in a checkpoint, some behind it in the log, from which those of the checkpoint are cut.
fn small() -> Small {
    let history = history(33);
    let expected = expected(&history).pop().unwrap();
    let disk = Arc::new(SimulatedDisk::new(1 << 30));
    let Recovered { mut state, mut log, .. } = reopen(&disk).unwrap();
    for (at, record) in history.iter().enumerate() {
        drive(&mut log, &mut state, record).unwrap();
        log.sync_point().run().unwrap();
        if at == 30 {
            checkpoint(&mut state).unwrap();
            log.cut_below(state.applied()).run().unwrap();
        }
    }
    assert!(log.first() > LogIndex(1));
    drop((state, log));
    let mut names: Vec<String> = disk.list("log").unwrap().iter().map(|name| format!("log/{name}")).collect();
    names.push("state.redb".into());
    let read = |name: String| {
        let file = disk.open(&name, false).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut bytes, 0).unwrap();
        (name, bytes)
    };
    Small { files: names.into_iter().map(read).collect(), expected, records: history.len() as u64 }
}

impl Small {
    fn store(&self) -> &[u8] {
        &self.files.last().unwrap().1
    }

    /// What is wrong with a start on these bytes of the store. True: it is refused.
    fn start(&self, store: &[u8]) -> Result<bool, String> {
        let disk = Arc::new(SimulatedDisk::new(1 << 30));
        disk.create_directory("log").unwrap();
        let (_, logs) = self.files.split_last().unwrap();
        for (path, bytes) in
            logs.iter().map(|(path, bytes)| (path.as_str(), &bytes[..])).chain([("state.redb", store)])
        {
            disk.open(path, true).unwrap().write_at(&[bytes], 0).unwrap();
        }
        let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let recovered = reopen(&disk).map_err(|error| error.to_string())?;
            let applied = recovered.state.applied().0;
            Ok::<_, String>((applied, dump_state(&recovered.state) == self.expected))
        }));
        match started {
            Ok(Ok((applied, true))) if applied == self.records => Ok(false),
            Ok(Ok((applied, same))) => {
                Err(format!("started with record {applied} of {}, the same state: {same}", self.records))
            }
            Ok(Err(refused)) if refused.contains("backup") => Ok(true),
            Ok(Err(refused)) => Err(format!("does not say what to do: {refused}")),
            Err(_) => Err("panicked".into()),
        }
    }
}

#[test]
fn each_byte_of_the_store() {
    let small = small();
    assert_eq!(small.start(small.store()), Ok(false));
    let (mut refused, mut wrong) = (0, Vec::new());
    for (at, _) in small.store().iter().enumerate().filter(|(at, byte)| **byte != 0 || at % 1021 == 0) {
        let mut damaged = small.store().to_vec();
        damaged[at] ^= 1 << (at % 8);
        match small.start(&damaged) {
            Ok(is_refused) => refused += u32::from(is_refused),
            Err(error) => wrong.push(format!("byte {at}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{} wrong, {refused} refused: {wrong:#?}", wrong.len());
    assert!(refused > 100, "{refused}");
}

#[test]
fn each_length_of_the_store() {
    let small = small();
    let mut wrong = Vec::new();
    for length in (0..small.store().len()).filter(|length| length % 512 == 0 || length % 4096 < 2) {
        if let Err(error) = small.start(&small.store()[..length]) {
            wrong.push(format!("{length} bytes: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
}
