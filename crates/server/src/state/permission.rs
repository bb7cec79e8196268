//! The state store, for those whose token permits it.

use esker_node::state::{Committed, Expected, Permitted};
use esker_node::{Client, StateError, StateStore};
use tonic::{Request, Status};

use super::Calls;
use super::status::{no_access, status};
use crate::auth::operation::Effect;
use crate::auth::{Access, AccessError, error};

/// What the sender of a call may do.
pub(super) fn access<T>(request: &Request<T>) -> Result<Access, Status> {
    Access::of_call(request.extensions()).map_err(refused)
}

fn refused(refusal: AccessError) -> Status {
    error::count_refusal(&refusal);
    no_access(&refusal)
}

impl Calls {
    /// For reads or writes of an agent's keys.
    pub(super) fn of_agent(
        &self,
        access: &Access,
        effect: Effect,
        namespace: &str,
        agent: &str,
    ) -> Result<&StateStore, Status> {
        let granted = access.agent(effect, namespace, agent).map_err(refused)?;
        Ok(self.store.open(&granted))
    }

    /// For what concerns all agents.
    pub(super) fn of_all(&self, access: &Access, effect: Effect) -> Result<&StateStore, Status> {
        let granted = access.whole_state(effect).map_err(refused)?;
        Ok(self.store.open(&granted))
    }

    /// For reads of an agent, or of all of them.
    pub(super) fn of_agent_or_all(
        &self,
        access: &Access,
        agent: Option<&(String, String)>,
    ) -> Result<&StateStore, Status> {
        match agent {
            Some((namespace, agent)) => self.of_agent(access, Effect::Read, namespace, agent),
            None => self.of_all(access, Effect::Read),
        }
    }

    /// For a new transaction, which has nothing yet.
    pub(super) fn of_transactions(&self, access: &Access) -> Result<&StateStore, Status> {
        let granted = access.any_state(Effect::Write).map_err(refused)?;
        Ok(self.store.open(&granted))
    }

    /// Commits a transaction. Every agent of which something is staged in it, or expected, has to be permitted.
    pub(super) async fn commit_as(
        &self,
        access: &Access,
        transaction: &str,
        expected: Vec<Expected>,
        client: Client,
    ) -> Result<Committed, Status> {
        let store = self.of_transactions(access)?;
        for Expected { key, .. } in &expected {
            self.of_agent(access, Effect::Write, &key.namespace, &key.agent_id)?;
        }
        let writes = |namespace: &str, agent: &str| writes(access, namespace, agent);
        let committed = store.commit(transaction, expected, client, permitted(access, &writes));
        committed.await.map_err(|error| not_ended(access, error))
    }

    /// Drops a transaction, with the same permission: whoever knows the id of another's transaction can neither
    /// commit nor drop what they could not write.
    pub(super) fn abort_as(&self, access: &Access, transaction: &str) -> Result<(), Status> {
        let store = self.of_transactions(access)?;
        let writes = |namespace: &str, agent: &str| writes(access, namespace, agent);
        let aborted = store.abort(transaction, permitted(access, &writes));
        aborted.map_err(|error| not_ended(access, error))
    }
}

fn writes(access: &Access, namespace: &str, agent: &str) -> bool {
    access.agent(Effect::Write, namespace, agent).is_ok()
}

/// The check of what is staged, for those whose permission is restricted or may end.
fn permitted<'a>(
    access: &Access,
    writes: &'a (dyn Fn(&str, &str) -> bool + Sync),
) -> Permitted<'a> {
    access.has_token().then_some(writes)
}

fn not_ended(access: &Access, error: StateError) -> Status {
    match error {
        // As if something of that agent was to be written, or the token has ended.
        StateError::NotPermitted => refused(match access.lease().check() {
            Ok(()) => AccessError::Forbidden("state.write here".into()),
            Err(ended) => ended,
        }),
        other => status(&other),
    }
}
