//! The state store, for those whose token permits it.

use esker_node::StateStore;
use tonic::{Request, Status};

use super::Calls;
use super::status::no_access;
use crate::auth::operation::Effect;
use crate::auth::{Access, AccessError, error};

/// What the sender of a call may do.
pub(super) fn access<T>(request: &Request<T>) -> Result<Access, Status> {
    Access::of_call(request.extensions()).map_err(refused)
}

fn refused(refusal: AccessError) -> Status {
    if let Some(reason) = refusal.reason() {
        error::count(reason);
    }
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

    /// For the end of a transaction: every agent of which something is staged in it has to be permitted.
    /// Whoever knows the id of another's transaction can neither commit nor drop what they could not write.
    pub(super) fn of_transaction(
        &self,
        access: &Access,
        transaction: &str,
    ) -> Result<&StateStore, Status> {
        let store = self.of_transactions(access)?;
        if access.is_restricted() {
            for (namespace, agent) in store.staged_agents(transaction) {
                self.of_agent(access, Effect::Write, &namespace, &agent)?;
            }
        }
        Ok(store)
    }
}
