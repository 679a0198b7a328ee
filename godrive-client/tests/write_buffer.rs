//! The write buffer against an array of bytes: whatever is written, punched, cut, taken, landed or given back, a read
//! sees what the array says, deltas carry right sums, and nothing is lost.

use bytes::Bytes;
use godrive_client::core::write_buffer::{Taken, WriteBuffer};
use godrive_proto::data::Fill;
use godrive_proto::limits::LEAF_BYTES;
use godrive_proto::{ChunkId, sums};
use proptest::prelude::*;

const CHUNK: u32 = 10 * LEAF_BYTES;
const ID: ChunkId = ChunkId(77);

#[derive(Clone, Debug)]
enum Step {
    Write { offset: u32, len: u32, byte: u8 },
    Punch { offset: u32, len: u32 },
    Cut { offset: u32 },
    Take,
    Landed,
    GiveBack,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..CHUNK, prop_oneof![1..200u32, 1..3 * LEAF_BYTES])
        .prop_map(|(offset, len)| (offset, len.min(CHUNK - offset)));
    prop_oneof![
        6 => (range.clone(), 1..=255u8).prop_map(|((offset, len), byte)| Step::Write { offset, len, byte }),
        2 => range.prop_map(|(offset, len)| Step::Punch { offset, len }),
        1 => (0..CHUNK).prop_map(|offset| Step::Cut { offset }),
        2 => Just(Step::Take),
        2 => Just(Step::Landed),
        1 => Just(Step::GiveBack),
    ]
}

/// What a replica holds after a delta. Every sum is checked on the way.
fn apply(taken: &Taken, replica: &mut [u8]) {
    let payload: Vec<u8> = taken.payload.concat();
    let (mut at, mut sum, mut end) = (0usize, 0usize, 0u32);
    for extent in &taken.extents {
        assert!(extent.offset >= end && extent.len > 0, "extents ascend and do not overlap");
        end = extent.offset + extent.len;
        let range = extent.offset as usize..end as usize;
        match extent.fill {
            Fill::Hole => replica[range].fill(0),
            Fill::Bytes => {
                let bytes = &payload[at..at + extent.len as usize];
                for (leaf, from, to) in sums::pieces(extent.offset, extent.len) {
                    assert_eq!(
                        taken.sums[sum],
                        sums::piece(ID, leaf, &bytes[from..to]),
                        "the sum of leaf {leaf}"
                    );
                    sum += 1;
                }
                replica[range].copy_from_slice(bytes);
                at += extent.len as usize;
            }
        }
    }
    assert_eq!((at, sum), (payload.len(), taken.sums.len()), "nothing is left over");
}

/// What a read sees: the overlay over the replica.
fn seen(buffer: &WriteBuffer, replica: &[u8], start: u32, end: u32) -> Vec<u8> {
    let mut bytes = replica[start as usize..end as usize].to_vec();
    let mut last = start;
    for (at, len, data) in buffer.overlay(0, start, end) {
        assert!(
            at >= last && len > 0 && at + len <= end,
            "segments ascend, do not overlap and stay in the range"
        );
        last = at + len;
        let into = &mut bytes[(at - start) as usize..(at + len - start) as usize];
        match data {
            Some(data) => into.copy_from_slice(&data),
            None => into.fill(0),
        }
    }
    bytes
}

proptest! {
    #[test]
    fn it_behaves_like_an_array(steps in proptest::collection::vec(step(), 1..60)) {
        let mut buffer = WriteBuffer::default();
        let mut model = vec![0u8; CHUNK as usize];
        let mut replica = model.clone();
        let mut in_flight: Option<Taken> = None;
        for step in steps {
            match step {
                Step::Write { offset, len, byte } => {
                    model[offset as usize..(offset + len) as usize].fill(byte);
                    buffer.write(0, ID, offset, &Bytes::from(vec![byte; len as usize])).unwrap();
                }
                Step::Punch { offset, len } => {
                    model[offset as usize..(offset + len) as usize].fill(0);
                    buffer.punch(0, ID, offset, len).unwrap();
                }
                // Only while nothing is in flight; what was dirty there is gone, the replica's bytes show again.
                Step::Cut { offset } => if in_flight.is_none() {
                    model[offset as usize..].copy_from_slice(&replica[offset as usize..]);
                    buffer.cut(0, offset).unwrap();
                },
                Step::Take => match in_flight {
                    Some(_) => prop_assert!(buffer.take(0, 0).is_none(), "one delta at a time"),
                    None => in_flight = buffer.take(0, 0),
                },
                Step::Landed => if let Some(taken) = in_flight.take() {
                    apply(&taken, &mut replica);
                    buffer.landed(0);
                },
                Step::GiveBack => if in_flight.take().is_some() {
                    buffer.give_back(0).unwrap();
                },
            }
            prop_assert_eq!(&seen(&buffer, &replica, 0, CHUNK), &model);
            prop_assert_eq!(seen(&buffer, &replica, 4000, 9000), model[4000..9000].to_vec());
        }
        if let Some(taken) = in_flight.take() {
            apply(&taken, &mut replica);
            buffer.landed(0);
        }
        while let Some(taken) = buffer.take(0, 0) {
            apply(&taken, &mut replica);
            buffer.landed(0);
        }
        prop_assert_eq!(&replica, &model);
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(buffer.cost(), 0);
    }
}

#[test]
fn a_delta_is_bounded_and_the_rest_follows() {
    let mut buffer = WriteBuffer::default();
    let bytes = Bytes::from(vec![3u8; 9 << 20]);
    buffer.write(0, ID, 0, &bytes).unwrap();
    assert!(buffer.fills_a_delta(0));
    let mut sizes = Vec::new();
    while let Some(taken) = buffer.take(0, 0) {
        assert_eq!(taken.extents.len(), 1, "what lies together is one extent");
        sizes.push(taken.payload.iter().map(Bytes::len).sum::<usize>() >> 20);
        buffer.landed(0);
    }
    assert_eq!(sizes, [4, 4, 1]);
}

#[test]
fn scattered_pieces_are_bounded_in_number_and_in_cost() {
    let mut buffer = WriteBuffer::default();
    for i in 0..5000u32 {
        buffer.write(0, ID, i * 8, &Bytes::from_static(b"abcd")).unwrap();
    }
    assert!(buffer.cost() >= 5000 * 4, "{}", buffer.cost());
    assert_eq!(buffer.take(0, 0).unwrap().extents.len(), 4096);
    buffer.landed(0);
    assert_eq!(buffer.take(0, 0).unwrap().extents.len(), 904);
}

#[test]
fn small_appends_become_one_piece_per_leaf() {
    let mut buffer = WriteBuffer::default();
    for i in 0..82u32 {
        buffer.write(0, ID, i * 100, &Bytes::from(vec![i as u8; 100])).unwrap();
    }
    let taken = buffer.take(0, 0).unwrap();
    assert_eq!((taken.extents.len(), taken.sums.len()), (1, 3));
}

/// Also where a write joins what it has not reached yet with what lies before it.
#[test]
fn a_pass_takes_what_was_dirty_when_it_began_and_ends_whoever_goes_on_writing() {
    let mut buffer = WriteBuffer::default();
    let mut replica = vec![0; 64 << 10];
    for i in 0..5000u32 {
        buffer.write(0, ID, i * 8, &Bytes::from_static(b"abcd")).unwrap();
    }
    let mut from = 0;
    let mut ends = Vec::new();
    while let Some(taken) = buffer.take(0, from) {
        from = taken.end;
        apply(&taken, &mut replica);
        buffer.write(0, ID, 0, &Bytes::from_static(b"again")).unwrap();
        if ends.is_empty() {
            buffer.write(0, ID, from - 2, &Bytes::from_static(b"xxxxxxxx")).unwrap();
        }
        buffer.landed(0);
        ends.push(from);
    }
    assert_eq!(ends, [4095 * 8 + 4, 4999 * 8 + 4]);
    assert_eq!(replica[..12], *b"abcd\0\0\0\0abcd");
    assert_eq!(replica[4095 * 8..][..12], *b"abxxxxxxxxcd");
    assert_eq!(replica[4999 * 8..][..4], *b"abcd");
    assert!(buffer.has(0), "what came behind it is the next one's");
}

#[test]
fn a_hole_beneath_leaves_what_was_written() {
    let mut buffer = WriteBuffer::default();
    let mut replica = vec![7; 8192];
    for (at, bytes) in [(100, b"flight"), (5000, b"second")] {
        buffer.write(0, ID, at, &Bytes::from_static(bytes)).unwrap();
        if at == 100 {
            apply(&buffer.take(0, 0).unwrap(), &mut replica);
        }
    }
    buffer.punch_beneath(0, ID, 50, 6000).unwrap();
    buffer.landed(0);
    apply(&buffer.take(0, 0).unwrap(), &mut replica);
    let mut expected = vec![7; 8192];
    expected[50..6050].fill(0);
    expected[100..106].copy_from_slice(b"flight");
    expected[5000..5006].copy_from_slice(b"second");
    assert!(replica == expected);
}
