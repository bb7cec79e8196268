//! What the commands about digests do when they are applied.

use esker_raft::Membership;
use prost::Message as _;

use super::comparison::Compared;
use super::replicas::ReplicaDigests;
use crate::command::{AskDigest, NoteDigests, Outcome, TrustRefusal, TrustReplica};
use crate::keys;
use crate::origin::Origin;
use crate::store::{PartitionBatch, PartitionDb, StoreError};

/// What a step asks and records. Each of the commands is in a step of its own.
#[derive(Debug, Default)]
pub(crate) struct DigestStep {
    asked: Option<(u64, AskDigest)>,
    noted: Option<(u64, NoteDigests)>,
    trusted: Option<Compared>,
}

/// The same, with what follows from the members of the group.
#[derive(Debug, Default)]
pub(crate) struct DigestsDone {
    asked: Option<(u64, AskDigest)>,
    compared: Option<Compared>,
    /// That of the state here, if it has changed.
    origin: Option<Origin>,
}

/// The last comparison that is stored.
fn last(part: &PartitionDb) -> Result<Option<Compared>, StoreError> {
    part.get::<Compared>(keys::COMPARED, "the last comparison")
}

impl DigestStep {
    pub fn ask(&mut self, lsn: u64, ask: AskDigest) -> Outcome {
        self.asked = Some((lsn, ask));
        Outcome::DigestAsked(lsn)
    }

    pub fn note(&mut self, lsn: u64, note: NoteDigests) -> Outcome {
        self.noted = Some((lsn, note));
        Outcome::DigestsNoted
    }

    /// To be called before anything of the step is written.
    pub fn trust(
        &mut self,
        trust: &TrustReplica,
        part: &PartitionDb,
    ) -> Result<Outcome, StoreError> {
        let members = part.applied()?.unwrap_or_default().membership();
        let trusted = match last(part)? {
            Some(compared) => compared.trusting(trust, &members),
            None => Err(TrustRefusal::Decided),
        };
        Ok(Outcome::ReplicaTrusted(
            trusted.map(|compared| self.trusted = Some(compared)),
        ))
    }

    /// Compares what is recorded; `members` are those as of the end of the step.
    pub fn finish(
        self,
        members: &Membership,
        part: &PartitionDb,
        digests: &ReplicaDigests,
    ) -> Result<DigestsDone, StoreError> {
        let mut done = DigestsDone {
            asked: self.asked,
            compared: self.trusted,
            origin: None,
        };
        if let Some((lsn, note)) = self.noted {
            let compared = Compared::of(&note, lsn, members, last(part)?.as_ref());
            done.origin = digests.confirmed(part.partition(), &compared, members);
            done.compared = Some(compared);
        }
        Ok(done)
    }
}

impl DigestsDone {
    pub fn add_to(&self, batch: &mut PartitionBatch) {
        if let Some(compared) = &self.compared {
            batch.put(keys::COMPARED, compared.encode_to_vec());
        }
        if let Some(origin) = &self.origin {
            batch.put(keys::ORIGIN, origin.encode_to_vec());
        }
    }

    /// To be called once the step is written, on the only thread that writes: the state is as of the entry that
    /// asks for its digest.
    pub fn carry_out(self, digests: &ReplicaDigests, part: &PartitionDb) {
        if let Some((lsn, ask)) = self.asked {
            digests.compute(part, lsn, ask.format);
        }
        if let Some(compared) = self.compared {
            digests.note(part.partition(), compared, self.origin);
        }
    }
}
