//! A comparison of replicas that differ is decided without a majority: an operator names the right one, or only one is
//! left.

use std::time::Duration;

use esker_partition::command::{Kind, Outcome, TrustRefusal, TrustReplica};
use esker_raft::NodeId;
use esker_raft::transport::grpc::CallError;

use super::wire::READS_ORIGINS;
use crate::core::Inner;

/// How long the named replica may take to lead.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the replica here is the only one that is left of those that differed, there is nothing that it could differ
/// from.
pub(super) async fn close_for_sole_member(inner: &Inner, partition: u64) {
    let members = inner.group(partition).membership();
    let is_sole = members.members().count() == 1;
    if !is_sole || inner.member_not_reading(partition, READS_ORIGINS).is_some() {
        return;
    }
    if let Some(open) = inner.replicas.open_check(partition) {
        let me = inner.identity.node_id;
        let trusted = inner.propose_trust(partition, open.noted_at, me).await;
        if let Err(why) = trusted {
            tracing::debug!(partition, %why, "a comparison of replicas stays open");
        }
    }
}

impl Inner {
    /// Takes a replica of a partition that this node leads for the right one of those that differ, and gives it the
    /// leadership: from then on others may have its state, and the next comparison stops those that differ from it, if
    /// they are the minority.
    pub(crate) async fn trust(
        &self,
        partition: u64,
        noted_at: u64,
        node: u64,
    ) -> Result<(), CallError> {
        self.check_leads(partition)?;
        self.propose_trust(partition, noted_at, node).await?;
        tracing::warn!(
            partition,
            node,
            "an operator takes this replica for the right one of those that differ"
        );
        let group = self.group(partition);
        group.withhold_snapshots(self.is_withheld(partition));
        if node != self.identity.node_id {
            let transfer = group.transfer_leadership(NodeId(node));
            let given = tokio::time::timeout(TRANSFER_TIMEOUT, transfer).await;
            if !matches!(given, Ok(Ok(()))) {
                tracing::warn!(
                    partition,
                    node,
                    "the leadership was not taken over: let the replica lead that is right"
                );
            }
        }
        // The next leader gets that, too.
        self.replicas.checks.want(partition);
        Ok(())
    }

    async fn propose_trust(
        &self,
        partition: u64,
        noted_at: u64,
        node: u64,
    ) -> Result<(), CallError> {
        if let Some(old) = self.member_not_reading(partition, READS_ORIGINS) {
            return Err(CallError::Refused(format!(
                "node {old} runs a release that does not know of this: upgrade it"
            )));
        }
        let trust = Kind::TrustReplica(TrustReplica { noted_at, node });
        let answer = self.execute(self.group(partition), trust).await;
        let answer = answer.map_err(|e| CallError::Unavailable(e.to_string()))?;
        let Outcome::ReplicaTrusted(trusted) = answer else {
            return Err(CallError::Unavailable(format!("the answer was {answer:?}")));
        };
        trusted.map_err(|refusal| {
            CallError::Refused(match refusal {
                TrustRefusal::Decided => format!(
                    "no replicas of partition {partition} are known to differ, or it is decided which is right"
                ),
                TrustRefusal::Another(lsn) => format!(
                    "the replicas of partition {partition} were compared again meanwhile, at LSN {lsn}: look at `esker \
                     cluster check` again"
                ),
                TrustRefusal::NoAnswer => format!(
                    "the replica of node {node} was not compared with the others: bring the node back, or name one of \
                     those that were"
                ),
            })
        })
    }
}
