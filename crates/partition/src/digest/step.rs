//! What the commands about digests do when they are applied.

use esker_raft::Membership;
use prost::Message as _;

use super::comparison::Compared;
use super::replicas::ReplicaDigests;
use crate::command::{AskDigest, NoteDigests, Outcome};
use crate::keys;
use crate::store::{PartitionBatch, PartitionDb, StoreError};

/// What a step asks and records. Each of the two commands is in a step of its own.
#[derive(Debug, Default)]
pub(crate) struct DigestStep {
    asked: Option<(u64, AskDigest)>,
    noted: Option<(u64, NoteDigests)>,
}

/// The same, with what follows from the members of the group.
#[derive(Debug, Default)]
pub(crate) struct DigestsDone {
    asked: Option<(u64, AskDigest)>,
    compared: Option<Compared>,
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

    /// Compares what is recorded; `members` are those as of the end of the step.
    pub fn finish(
        self,
        members: &Membership,
        part: &PartitionDb,
    ) -> Result<DigestsDone, StoreError> {
        let compared = match self.noted {
            Some((lsn, note)) => {
                let before = part.get::<Compared>(keys::COMPARED, "the last comparison")?;
                Some(Compared::of(&note, lsn, members, before.as_ref()))
            }
            None => None,
        };
        Ok(DigestsDone {
            asked: self.asked,
            compared,
        })
    }
}

impl DigestsDone {
    pub fn add_to(&self, batch: &mut PartitionBatch) {
        if let Some(compared) = &self.compared {
            batch.put(keys::COMPARED, compared.encode_to_vec());
        }
    }

    /// To be called once the step is written, on the only thread that writes: the state is as of the entry that
    /// asks for its digest.
    pub fn carry_out(self, digests: &ReplicaDigests, part: &PartitionDb) {
        if let Some((lsn, ask)) = self.asked {
            digests.compute(part, lsn, ask.format);
        }
        if let Some(compared) = self.compared {
            digests.note(part.partition(), compared);
        }
    }
}
