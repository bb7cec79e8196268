//! Manifests, receivers and senders, each alone.

mod keeping;
mod manifest;
mod receiver;
mod sender;
mod slow;

use bytes::Bytes;

use super::*;
use crate::engine::Membership;
use crate::ids::{CheckpointId, Lsn, NodeId, Term};
use crate::message::{Chunk, EndReason, Ended, Fetch};

const SOURCE: NodeId = NodeId(1);

/// The content of a file: no two of its parts are the same.
fn content(file: usize, size: usize) -> Vec<u8> {
    let byte = |n: usize| (n as u8).wrapping_mul(31) ^ (n >> 8) as u8 ^ file as u8;
    (0..size).map(byte).collect()
}

fn manifest(sizes: &[usize]) -> Manifest {
    let entry = |(n, size): (usize, &usize)| FileEntry {
        name: format!("{n:06}.sst"),
        size: *size as u64,
        checksum: Checksum::of(&content(n, *size)),
    };
    Manifest {
        format: OFFER_FORMAT,
        checkpoint: CheckpointId([9; 16]),
        source: SOURCE,
        last_included_index: Lsn(10),
        term: Term(1),
        peers: Membership {
            voters: vec![NodeId(1), NodeId(2)],
            ..Membership::default()
        },
        content: Content::Files(sizes.iter().enumerate().map(entry).collect()),
    }
}

fn chunk_of(fetch: Fetch) -> Chunk {
    let from = fetch.offset as usize;
    let all = content(fetch.file as usize, from + fetch.length as usize);
    let bytes = Bytes::from(all[from..].to_vec());
    Chunk {
        checkpoint: fetch.checkpoint,
        file: fetch.file,
        offset: fetch.offset,
        checksum: Checksum::of(&bytes),
        bytes,
    }
}
