//! The page cache, the read plan and the read-ahead.

use bytes::Bytes;
use godrive_client::core::page_cache::{PAGE_BYTES, PageCache, Tag};
use godrive_client::core::read_plan::{ReadAhead, Span, around, lay_over, missing, spans};
use godrive_proto::limits::LEAF_BYTES;
use proptest::prelude::*;

fn runs(max: u32) -> impl Strategy<Value = Vec<(u32, Bytes)>> {
    proptest::collection::vec((0..50u32, 1..40u32, any::<u8>()), 0..12).prop_map(move |gaps| {
        let mut at = 0;
        let mut runs = Vec::new();
        for (gap, len, byte) in gaps {
            let start = at + gap;
            if start + len > max {
                break;
            }
            runs.push((start, Bytes::from(vec![byte; len as usize])));
            at = start + len;
        }
        runs
    })
}

fn paint(canvas: &mut [Option<u8>], runs: &[(u32, Bytes)]) {
    for (at, bytes) in runs {
        for (i, byte) in bytes.iter().enumerate() {
            canvas[*at as usize + i] = Some(*byte);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_lies_over_wins(above in runs(400), below in runs(400)) {
        let mut expected = vec![None; 400];
        paint(&mut expected, &below);
        paint(&mut expected, &above);
        let laid = lay_over(above, below);
        let mut last = 0;
        for (at, bytes) in &laid {
            prop_assert!(*at >= last && !bytes.is_empty());
            last = at + bytes.len() as u32;
        }
        let mut seen = vec![None; 400];
        paint(&mut seen, &laid);
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn missing_leaves_cover_exactly_what_is_not_there(have in runs(400), scale in 1..60u32) {
        let have: Vec<(u32, Bytes)> = have
            .into_iter()
            .map(|(at, bytes)| (at * scale, Bytes::from(vec![1; bytes.len() * scale as usize])))
            .collect();
        let (start, end) = (0, 400 * scale);
        let mut wanted = std::collections::BTreeSet::new();
        let mut at = start;
        for (offset, bytes) in have.iter().chain([&(end, Bytes::new())]) {
            if at < *offset {
                wanted.extend(at / LEAF_BYTES..=(offset - 1) / LEAF_BYTES);
            }
            at = offset + bytes.len() as u32;
        }
        let runs = missing(start, end, &have);
        let found: Vec<u32> = runs.iter().flat_map(|(first, leaves)| *first..first + leaves).collect();
        prop_assert_eq!(found, wanted.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn the_cache_gives_what_was_put_in_last_and_stays_in_bounds(
        puts in proptest::collection::vec((1..4u64, 0..300_000u32, 1..90_000u32, any::<u8>()), 1..40),
        passes in proptest::collection::vec((1..4u64, 0..300_000u32, 1..90_000u32), 0..40),
        limit in prop_oneof![Just(16u64 << 20), Just(400_000u64)],
        passing in any::<bool>(),
    ) {
        let cache = PageCache::new(limit);
        let mut model = vec![vec![None; 400_000]; 4];
        let mut passes = passes.into_iter();
        for (tag, offset, len, byte) in puts {
            cache.insert(Tag(tag), offset, &Bytes::from(vec![byte; len as usize]));
            model[tag as usize][offset as usize..(offset + len) as usize].fill(Some(byte));
            prop_assert!(cache.cost() <= limit, "{} over {limit}", cache.cost());
            if let Some((tag, offset, len)) = passes.next().filter(|_| passing) {
                cache.pass(Tag(tag), offset, offset + len);
                cache.read(Tag(tag), offset + len / 2, offset + len);
            }
        }
        for tag in 1..4u64 {
            let mut seen = 0;
            for (at, bytes) in cache.read(Tag(tag), 0, 400_000) {
                let expected = &model[tag as usize][at as usize..at as usize + bytes.len()];
                prop_assert!(expected.iter().copied().eq(bytes.iter().map(|byte| Some(*byte))));
                seen += bytes.len();
            }
            let put = model[tag as usize].iter().flatten().count();
            prop_assert!(seen == put || passing || limit < 16 << 20, "nothing is dropped while there is room");
        }
    }

    #[test]
    fn spans_cover_a_range_once(start in 0..1u64 << 40, len in 0..5_000_000u64) {
        let chunk_bytes = 1 << 20;
        let mut at = start;
        for Span { index, start, end } in spans(start..at + len, chunk_bytes) {
            prop_assert_eq!(u64::from(index) * u64::from(chunk_bytes) + u64::from(start), at);
            prop_assert!(end <= chunk_bytes && start < end);
            at += u64::from(end - start);
        }
        prop_assert_eq!(at, start + len);
    }
}

#[test]
fn holes_take_no_room() {
    let cache = PageCache::new(16 << 20);
    cache.insert_hole(Tag(1), 100, 10 * PAGE_BYTES);
    assert!(cache.cost() < 11 * 1024);
    let read = cache.read(Tag(1), 100, 100 + 10 * PAGE_BYTES);
    assert_eq!(read.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), 10 * PAGE_BYTES as usize);
    assert!(read.iter().all(|(_, bytes)| bytes.iter().all(|byte| *byte == 0)));
}

#[test]
fn what_a_stream_went_past_goes_first_unless_it_is_asked_for_again() {
    const PAGES: u32 = 200;
    let whole = |tag: u64, pages: u32| Bytes::from(vec![tag as u8; (pages * PAGE_BYTES) as usize]);
    let held = |cache: &PageCache, tag| -> u32 {
        let pages = 0..PAGES;
        pages
            .filter(|page| !cache.read(Tag(tag), page * PAGE_BYTES, page * PAGE_BYTES + 1).is_empty())
            .count() as u32
    };
    let limit = u64::from(2 * PAGES * PAGE_BYTES);
    let cache = PageCache::new(limit);
    cache.insert(Tag(1), 0, &whole(1, 20));
    for page in 0..PAGES {
        cache.insert(Tag(2), page * PAGE_BYTES, &whole(2, 1));
        cache.pass(Tag(2), page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
        assert!(cache.cost() < limit / 8, "{} of page {page}", cache.cost());
    }
    assert_eq!(held(&cache, 1), 20, "the stream pushed out nothing");

    let cache = PageCache::new(8 * limit);
    cache.insert(Tag(3), 0, &whole(3, 4));
    cache.pass(Tag(3), 0, 4 * PAGE_BYTES);
    assert_eq!(held(&cache, 3), 4, "asked for again");
    cache.insert(Tag(4), 0, &whole(4, PAGES));
    cache.pass(Tag(4), 0, PAGES * PAGE_BYTES);
    assert_eq!(held(&cache, 3), 4);
    let left = held(&cache, 4);
    assert!((PAGES / 4..=PAGES / 2).contains(&left), "{left}");

    cache.insert(Tag(5), 0, &whole(5, 1));
    cache.pass(Tag(5), 1, PAGE_BYTES);
    assert!(cache.read(Tag(5), 0, 1) == [(0, Bytes::from_static(&[5]))], "part of a page is not passed");
}

#[test]
fn only_a_long_stream_goes_past() {
    let mut ahead = ReadAhead::default();
    let mib = |n: u64| n << 20..(n + 1) << 20;
    for n in 0..64 {
        ahead.on_read(mib(n), 1 << 30);
        assert_eq!(ahead.goes_past(), n >= 3, "after {n} MiB");
    }
    ahead.on_read(mib(500), 1 << 30);
    assert!(!ahead.goes_past());
}

#[test]
fn a_stream_is_found_and_its_window_grows() {
    let mut ahead = ReadAhead::default();
    let size = 1 << 30;
    let mut asked = Vec::new();
    for i in 0..200u64 {
        asked.extend(ahead.on_read(i * 131_072..(i + 1) * 131_072, size));
    }
    assert!(!asked.is_empty());
    for pair in asked.windows(2) {
        assert_eq!(pair[0].end, pair[1].start, "nothing is asked for twice and nothing left out");
    }
    let widest = asked.iter().map(|range| range.end - range.start).max().unwrap();
    assert!(widest >= 4 << 20, "{widest}");
}

#[test]
fn random_reads_fetch_nothing_ahead() {
    let mut ahead = ReadAhead::default();
    let mut at = 7u64;
    let mut asked = 0u64;
    for _ in 0..1000 {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (at >> 20) % (1 << 36) / 4096 * 4096;
        asked += ahead.on_read(offset..offset + 4096, 1 << 36).map_or(0, |range| range.end - range.start);
    }
    assert!(asked < 1000 * 4096, "{asked}");
}

#[test]
fn a_stream_ends_with_its_file() {
    let mut ahead = ReadAhead::default();
    assert_eq!(ahead.on_read(0..131_072, 200_000), Some(131_072..200_000));
    assert_eq!(ahead.on_read(131_072..200_000, 200_000), None);
}

#[test]
fn a_read_is_widened_to_whole_blocks_and_not_beyond_the_end() {
    let span = |start, end| Span { index: 3, start, end };
    assert_eq!(around(span(70_000, 71_000), 1 << 20), span(65_536, 131_072));
    assert_eq!(around(span(65_536, 131_072), 1 << 20), span(65_536, 131_072));
    assert_eq!(around(span(60_000, 70_000), 100_000), span(0, 100_000));
    // A leaf that the file's end cuts is read whole.
    assert_eq!(around(span(98_304, 102_400), 100_000), span(65_536, 102_400));
}
