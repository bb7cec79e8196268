//! The metadata file of a snapshot: its manifest, which has the checksums of the data, and a checksum of
//! the manifest.
//!
//! ```text
//! "ESKRSNP1"  xxh3-128 of the rest, big-endian  an envelope with an offer, as peers get it
//! ```
//!
//! The envelope names cluster, group and lineage, so the directory of another group is detected.

use crate::message::{Envelope, Identity, MAX_ENVELOPE_BYTES, Payload};
use crate::transfer::{Checksum, InvalidManifest, Manifest};

use super::StoreError;

const MAGIC: &[u8; 8] = b"ESKRSNP1";
const HEAD: usize = MAGIC.len() + 16;

pub(super) fn encode(identity: Identity, manifest: &Manifest) -> Result<Vec<u8>, StoreError> {
    let invalid = |why: String| StoreError::Manifest(why);
    manifest.validate().map_err(|e| invalid(e.to_string()))?;
    let offer = Payload::Offer(Box::new(manifest.clone()));
    let offer = identity.seal(identity.node, offer).encode();
    if offer.len() > MAX_ENVELOPE_BYTES {
        return Err(invalid(format!(
            "its file names take {} bytes, more than {MAX_ENVELOPE_BYTES}",
            offer.len()
        )));
    }
    let mut bytes = Vec::with_capacity(HEAD + offer.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&Checksum::of(&offer).0.to_be_bytes());
    bytes.extend_from_slice(&offer);
    Ok(bytes)
}

pub(super) fn decode(identity: Identity, bytes: &[u8]) -> Result<Manifest, String> {
    let (head, offer) = bytes.split_at_checked(HEAD).ok_or("it is cut short")?;
    let (magic, sum) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err("it is not the metadata of a snapshot, or of a newer format".to_owned());
    }
    if sum != Checksum::of(offer).0.to_be_bytes() {
        return Err("its checksum is wrong".to_owned());
    }
    let envelope = Envelope::decode(offer.to_vec()).map_err(|e| e.to_string())?;
    let sender = envelope.sender;
    if (sender.cluster, sender.group) != (identity.cluster, identity.group) {
        return Err("it belongs to another cluster or group".to_owned());
    }
    if sender.lineage != identity.lineage {
        return Err("it belongs to another lineage".to_owned());
    }
    match envelope.payload {
        Payload::Offer(manifest) => Ok(*manifest),
        Payload::NewerOffer(newer) => Err(InvalidManifest::NewerFormat(newer.format).to_string()),
        _ => Err("it holds no manifest".to_owned()),
    }
}
