//! A log: everyone appends records of their own and reads it whole.

use super::{O_APPEND, O_RDWR, Outcome, Shareable, Worker};
use crate::histories::Object;
use crate::linear::log::{Answer, Call, Contents, Log};
use crate::stamp::{self, Found, Stamp};
use godrive_client::fs::Handle;
use rand::Rng;

/// Leaves and records share no borders.
const RECORD_BYTES: usize = 50;
/// More than a generation's records take; one chunk, so that an append is atomic.
const WHOLE_BYTES: usize = 64 << 10;

pub(super) struct Records {
    object: Object,
    handle: Handle,
}

impl Records {
    fn place(&self) -> u64 {
        (u64::from(self.object.lane.1) << 48) | u64::from(self.object.generation)
    }

    async fn append(&self, worker: &mut Worker) -> Outcome<()> {
        let record = worker.value();
        let stamp = Stamp { client: worker.client.id, sequence: record };
        let bytes = stamp::block(stamp, self.place(), RECORD_BYTES);
        let ticket = worker.begin::<Log>(self.object, Call::Append(record));
        worker.fs().write(self.handle, 0, bytes, false).await?;
        worker.settle(self.handle).await?;
        worker.end::<Log>(ticket, Answer::Appended, worker.now());
        Ok(())
    }

    async fn read(&self, worker: &Worker) -> Outcome<()> {
        let ticket = worker.begin::<Log>(self.object, Call::Read);
        let (bytes, moment) = worker.read_file(self.handle, 0, WHOLE_BYTES).await?;
        let records = bytes.chunks(RECORD_BYTES).map(|record| match stamp::read(record, self.place()) {
            Found::Written(stamp) if record.len() == RECORD_BYTES => Some(stamp.sequence),
            _ => None,
        });
        match records.collect::<Option<Contents>>() {
            Some(contents) => worker.end::<Log>(ticket, Answer::Contents(contents), moment),
            None => {
                let (client, object) = (worker.client.id, self.object);
                worker.client.shared.problem(format!("client {client} read a broken record in {object}"));
            }
        }
        Ok(())
    }
}

impl Shareable for Records {
    async fn open(worker: &Worker, generation: u32) -> Outcome<Self> {
        let object = Object { lane: worker.lane, generation, part: 0 };
        let handle = worker.open_file(&object.name(), O_RDWR | O_APPEND).await?;
        Ok(Self { object, handle })
    }

    fn object(&self) -> Object {
        self.object
    }

    async fn step(&mut self, worker: &mut Worker) -> Outcome<()> {
        if worker.rng.random_bool(0.5) { self.read(worker).await } else { self.append(worker).await }
    }

    async fn look(&mut self, worker: &mut Worker) -> Outcome<()> {
        self.read(worker).await
    }

    async fn sync(&mut self, worker: &Worker) -> Outcome<()> {
        worker.fs().fsync(self.handle, false).await
    }

    async fn close(self, worker: &Worker) {
        worker.close_file(self.handle).await;
    }
}
