//! Decoders meet arbitrary bytes, and good frames with one byte changed: they refuse, or decode something; they never
//! panic, and never allocate for what a peer merely announces.

mod samples;

use godrive_proto::frame::{self, FrameError, ReplyHeader, RequestHeader};
use godrive_proto::limits::MAX_BODY_BYTES;
use godrive_proto::net::identity::{Authority, Identity};
use godrive_proto::net::token::JoinToken;
use godrive_proto::{Operation, admin, cluster, data, lease, meta};
use proptest::prelude::*;

/// Decodes `bytes` as the header and body of every operation, in both directions.
fn decode_as_everything(bytes: &[u8]) {
    macro_rules! each {
        ($($module:ident: $($operation:ident)+;)+) => {$($(
            type Op = $module::$operation;
            body::<Op>(bytes);
        )+)+};
    }
    macro_rules! scoped {
        ($($module:ident: $($operation:ident)+;)+) => {$($({ each!($module: $operation;); })+)+};
    }
    fn body<O: Operation>(bytes: &[u8]) {
        let _ = frame::decode_body::<O::Request>(bytes);
        let _ = frame::decode_body::<O::Reply>(bytes);
        if let Ok((_, rest)) = frame::decode_header::<RequestHeader>(bytes) {
            let _ = frame::decode_body::<O::Request>(rest);
        }
        if let Ok((_, rest)) = frame::decode_header::<ReplyHeader>(bytes) {
            let _ = frame::decode_body::<O::Reply>(rest);
        }
    }
    scoped! {
        meta: Lookup ReadDirectory ReadSymlink ReadXattrs StatFs Create MakeNode Link Unlink Rename SetAttr
            Truncate Commit SetXattr RemoveXattr Barrier Batch;
        lease: OpenSession Renew Resume CloseSession Ended Slaves Acquire GetLayout OpenChunks Releases Report GetLayouts
            Own Recall;
        data: Delta Sync Read CopyRange GetSums Fetch;
        cluster: Register Inventory Heartbeat Seal Install Copy Delete Quarantine;
        admin: Join MakeToken GetStatus Ping;
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        decode_as_everything(&bytes);
    }

    #[test]
    fn damaged_frames_are_harmless(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), to: u8) {
        let samples = samples::all();
        let sample = which.get(&samples);
        for frame in [&sample.request, &sample.reply] {
            let mut bytes = frame[4..].to_vec();
            let index = at.index(bytes.len());
            bytes[index] = to;
            decode_as_everything(&bytes);
            decode_as_everything(&bytes[..index]);
        }
    }

    #[test]
    fn lengths_beyond_the_limit_are_refused(prefix: [u8; 4]) {
        let length = u32::from_le_bytes(prefix) as usize;
        prop_assert_eq!(frame::body_length(prefix).is_ok(), length <= MAX_BODY_BYTES);
    }

    #[test]
    fn tokens_and_pem_files_are_harmless(text in "(gd1\\.)?[A-Za-z0-9_ .:-]{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = text.parse::<JoinToken>();
        let _ = Identity::from_pem(&text);
        let _ = Identity::new(bytes.clone(), bytes.clone(), bytes.clone());
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        let _ = Identity::from_pem(&pem);
        let _ = Authority::from_pem(&pem);
    }
}

#[test]
fn a_list_that_announces_more_than_it_has_is_refused() {
    // 2^60 elements in ten bytes.
    let mut bytes = vec![0xff; 8];
    bytes.extend([0x7f, 0, 0]);
    assert!(frame::decode_body::<Vec<data::Layout>>(&bytes).is_err());
    assert!(frame::decode_body::<Vec<u64>>(&bytes).is_err());
}

#[test]
fn bytes_behind_a_body_are_refused() {
    let bytes = frame::encode(&ReplyHeader::default(), &7u64).unwrap();
    let (_, body) = frame::decode_header::<ReplyHeader>(&bytes[4..]).unwrap();
    assert_eq!(frame::decode_body::<u64>(body), Ok(7));
    assert_eq!(frame::decode_body::<u64>(&[body, &[0]].concat()), Err(FrameError::Trailing(1)));
}
