//! Blocks of one file, each a register.

use super::{O_RDWR, Outcome, Shareable, Worker};
use crate::histories::{Lane, Object};
use crate::linear::register::{Answer, Call, Register};
use crate::stamp::{self, Found, Stamp};
use godrive_client::fs::Handle;
use rand::Rng;

const BLOCKS: u64 = 6;
/// Not a multiple of a leaf, so that deltas are partial.
const BLOCK_BYTES: usize = 3000;
/// They lie in two chunks and cross no border: only within one chunk is a write atomic.
const STRIDE: u64 = 300_000;

pub(super) struct Blocks {
    lane: Lane,
    generation: u32,
    handle: Handle,
}

impl Blocks {
    fn block(&self, block: u64) -> Object {
        Object { lane: self.lane, generation: self.generation, part: block }
    }

    /// A stamp's place: blocks of other files do not pass for these.
    fn place(&self, block: u64) -> u64 {
        (u64::from(self.lane.1) << 48) | (u64::from(self.generation) << 16) | block
    }

    async fn read(&self, worker: &Worker, block: u64) -> Outcome<()> {
        let ticket = worker.begin::<Register>(self.block(block), Call::Read);
        let (mut bytes, moment) = worker.read_file(self.handle, block * STRIDE, BLOCK_BYTES).await?;
        bytes.resize(BLOCK_BYTES, 0);
        let value = match stamp::read(&bytes, self.place(block)) {
            Found::Nothing => 0,
            Found::Written(stamp) => stamp.sequence,
            Found::Torn => {
                let (client, block) = (worker.client.id, self.block(block));
                worker.client.shared.problem(format!("client {client} read a mixture in {block}"));
                return Ok(());
            }
        };
        worker.end::<Register>(ticket, Answer::Value(value), moment);
        Ok(())
    }

    async fn write(&self, worker: &mut Worker, block: u64) -> Outcome<()> {
        let value = worker.value();
        let stamp = Stamp { client: worker.client.id, sequence: value };
        let bytes = stamp::block(stamp, self.place(block), BLOCK_BYTES);
        let ticket = worker.begin::<Register>(self.block(block), Call::Write(value));
        worker.fs().write(self.handle, block * STRIDE, bytes, false).await?;
        worker.settle(self.handle).await?;
        worker.end::<Register>(ticket, Answer::Written, worker.now());
        Ok(())
    }
}

impl Shareable for Blocks {
    async fn open(worker: &Worker, generation: u32) -> Outcome<Self> {
        let name = Object { lane: worker.lane, generation, part: 0 }.name();
        let handle = worker.open_file(&name, O_RDWR).await?;
        Ok(Self { lane: worker.lane, generation, handle })
    }

    fn object(&self) -> Object {
        self.block(0)
    }

    async fn step(&mut self, worker: &mut Worker) -> Outcome<()> {
        let block = worker.rng.random_range(0..BLOCKS);
        if worker.rng.random_bool(0.6) {
            self.read(worker, block).await
        } else {
            self.write(worker, block).await
        }
    }

    async fn look(&mut self, worker: &mut Worker) -> Outcome<()> {
        for block in 0..BLOCKS {
            self.read(worker, block).await?;
        }
        Ok(())
    }

    async fn sync(&mut self, worker: &Worker) -> Outcome<()> {
        worker.fs().fsync(self.handle, false).await
    }

    async fn close(self, worker: &Worker) {
        worker.close_file(self.handle).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_block_crosses_a_chunk() {
        let chunk = u64::from(godrive_proto::limits::MIN_CHUNK_BYTES);
        let chunk_of = |at: u64| at / chunk;
        for start in (0..BLOCKS).map(|block| block * STRIDE) {
            assert_eq!(chunk_of(start), chunk_of(start + BLOCK_BYTES as u64 - 1));
        }
        assert!(chunk_of((BLOCKS - 1) * STRIDE) > 0, "all of them lie in one chunk");
    }
}
