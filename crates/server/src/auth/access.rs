//! What the sender of a request may do.
//!
//! Handlers ask [`Access`], with the names that they have parsed, and get a [`Granted`] or a [`StreamAccess`],
//! without which a [`Guarded`] node does not open.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use esker_node::TokenScope;
use http::Extensions;
use http::request::Parts;
use s2_common::access::Operation;
use s2_common::basin::BasinName;
use s2_common::record::{CommandRecord, Record};
use s2_common::stream::{AppendInput, StreamName};

use super::authority::Authority;
use super::catalog_check::InUse;
use super::error::AccessError;
use super::lease::Lease;
use super::operation::{self, Effect};
use super::principal::Principal;
use super::scope::{self, Visible};

/// Shows that a check has passed. Only checks make one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Granted(());

/// What is reached with a [`Granted`] alone.
#[derive(Clone)]
pub(crate) struct Guarded<T>(T);

impl<T> Guarded<T> {
    pub(crate) fn new(of: T) -> Guarded<T> {
        Guarded(of)
    }

    /// What is guarded.
    pub(crate) fn open(&self, _: &Granted) -> &T {
        &self.0
    }
}

/// A stream that the sender may access, under the name that the node knows.
#[derive(Clone, Debug)]
pub(crate) struct StreamAccess {
    /// The permission.
    pub(crate) granted: Granted,
    /// The whole name, with the prefix of the token.
    pub(crate) name: StreamName,
    prefix: usize,
}

impl StreamAccess {
    /// The bytes of the name that the token has put before what the sender uses.
    pub(crate) fn prefix(&self) -> usize {
        self.prefix
    }
}

/// Names to be listed.
pub(crate) struct Listing {
    /// The permission.
    pub(crate) granted: Granted,
    /// Which names.
    pub(crate) visible: Visible,
    /// What is to be removed from the beginning of each name.
    pub(crate) prefix: usize,
}

/// What the sender of a request may do. It is in the request's extensions; without it there, a request is
/// refused.
#[derive(Clone)]
pub(crate) struct Access {
    authority: Arc<Authority>,
    principal: Principal,
    in_use: Option<Arc<InUse>>,
}

impl<S: Sync> FromRequestParts<S> for Access {
    type Rejection = AccessError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Access, AccessError> {
        Access::of(&parts.extensions)
    }
}

impl Access {
    /// The access of a principal.
    pub(crate) fn new(authority: Arc<Authority>, principal: Principal) -> Access {
        Access {
            in_use: authority.begin(&principal),
            authority,
            principal,
        }
    }

    /// The access of the request that has these extensions.
    ///
    /// # Errors
    ///
    /// Nobody has looked who sends it.
    pub(crate) fn of(extensions: &Extensions) -> Result<Access, AccessError> {
        let access = extensions.get::<Access>().cloned();
        access.ok_or(AccessError::Unauthenticated)
    }

    /// The same of a call over gRPC.
    ///
    /// # Errors
    ///
    /// Nobody has looked who sends it.
    pub(crate) fn of_call(extensions: &tonic::Extensions) -> Result<Access, AccessError> {
        let access = extensions.get::<Access>().cloned();
        access.ok_or(AccessError::Unauthenticated)
    }

    /// Whether it is by a token, which may end.
    pub(crate) fn has_token(&self) -> bool {
        matches!(self.principal, Principal::Token(_) | Principal::Root(_))
    }

    /// Who it is.
    pub(crate) fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The permission to go on with what takes long.
    pub(crate) fn lease(&self) -> Lease {
        Lease {
            authority: self.authority.clone(),
            principal: self.principal.clone(),
            _in_use: self.in_use.clone(),
        }
    }

    /// An operation on the account.
    pub(crate) fn account(&self, operation: Operation) -> Result<Granted, AccessError> {
        self.grant(
            |scope| scope::has(scope, operation),
            operation::name(operation),
        )
    }

    /// An operation on a basin.
    pub(crate) fn basin(
        &self,
        operation: Operation,
        basin: &BasinName,
    ) -> Result<Granted, AccessError> {
        let permitted =
            |scope: &TokenScope| scope::has(scope, operation) && scope.basins.contains(basin);
        self.grant(permitted, operation::name(operation))
    }

    /// An operation on a stream.
    pub(crate) fn stream(
        &self,
        operation: Operation,
        basin: &BasinName,
        stream: StreamName,
    ) -> Result<StreamAccess, AccessError> {
        self.stream_any(&[operation], basin, stream)
    }

    /// Any of some operations on a stream.
    pub(crate) fn stream_any(
        &self,
        operations: &[Operation],
        basin: &BasinName,
        stream: StreamName,
    ) -> Result<StreamAccess, AccessError> {
        let (name, prefix) = self.whole_name(stream)?;
        let permitted = |scope: &TokenScope| {
            operations.iter().any(|it| scope::has(scope, *it))
                && scope.basins.contains(basin)
                && scope.streams.contains(&name)
        };
        let what = operations.first().map_or("it", |it| operation::name(*it));
        let granted = self.grant(permitted, what)?;
        Ok(StreamAccess {
            granted,
            name,
            prefix,
        })
    }

    /// Another operation on a stream that may be accessed.
    pub(crate) fn again(
        &self,
        operation: Operation,
        basin: &BasinName,
        stream: &StreamAccess,
    ) -> Result<(), AccessError> {
        let permitted = |scope: &TokenScope| {
            scope::has(scope, operation)
                && scope.basins.contains(basin)
                && scope.streams.contains(&stream.name)
        };
        self.grant(permitted, operation::name(operation))
            .map(|_| ())
    }

    /// A batch that is appended to a stream that may be accessed: what it has of data and commands.
    ///
    /// # Errors
    ///
    /// One of them is not permitted; nothing of the batch may be appended.
    pub(crate) fn append(&self, input: &AppendInput) -> Result<(), AccessError> {
        let Some(scope) = self.principal.scope() else {
            return Ok(());
        };
        for record in input.records.iter() {
            let operation = match &*record.parts().record {
                Record::Envelope(_) => Operation::Append,
                Record::Command(CommandRecord::Trim(_)) => Operation::Trim,
                Record::Command(CommandRecord::Fence(_)) => Operation::Fence,
            };
            if !scope::has(scope, operation) {
                return self
                    .grant(|_| false, operation::name(operation))
                    .map(|_| ());
            }
        }
        Ok(())
    }

    /// An operation on an access token.
    pub(crate) fn token(&self, operation: Operation, id: &str) -> Result<Granted, AccessError> {
        let permitted =
            |scope: &TokenScope| scope::has(scope, operation) && scope.access_tokens.contains(id);
        self.grant(permitted, operation::name(operation))
    }

    /// What is permitted to the holder of the root token alone.
    pub(crate) fn root(&self) -> Result<Granted, AccessError> {
        self.grant(|_| false, "what is reserved to the root token")
    }

    /// What every principal may do.
    pub(crate) fn any(&self) -> Granted {
        Granted(())
    }

    /// The admin API. Reading it does not depend on contact with the catalog's leader, without which the status is
    /// needed most.
    pub(crate) fn admin(&self, effect: Effect) -> Result<Granted, AccessError> {
        let permitted = |scope: &TokenScope| scope::has_admin(scope, effect);
        match effect {
            Effect::Read => {
                self.permit(permitted, "admin.read")?;
                self.authority.check_here(&self.principal)?;
                Ok(Granted(()))
            }
            Effect::Write => self.grant(permitted, "admin.write"),
        }
    }

    /// The position of a stream: to those who may read the stream, or the status of the server.
    pub(crate) fn position(
        &self,
        basin: &BasinName,
        stream: StreamName,
    ) -> Result<StreamAccess, AccessError> {
        if let Some(scope) = self.principal.scope()
            && scope::has_admin(scope, Effect::Read)
        {
            let granted = self.admin(Effect::Read)?;
            let (name, prefix) = self.whole_name(stream)?;
            return Ok(StreamAccess {
                granted,
                name,
                prefix,
            });
        }
        self.stream(Operation::Read, basin, stream)
    }

    /// Keys of an agent of the state store.
    pub(crate) fn agent(
        &self,
        effect: Effect,
        namespace: &str,
        agent: &str,
    ) -> Result<Granted, AccessError> {
        let permitted = |scope: &TokenScope| {
            scope::has_state(scope, effect)
                && scope.namespaces.contains(namespace)
                && scope.agents.contains(agent)
        };
        self.grant(permitted, state_name(effect))
    }

    /// The state store, whatever its agents: no data of theirs.
    pub(crate) fn any_state(&self, effect: Effect) -> Result<Granted, AccessError> {
        self.grant(|scope| scope::has_state(scope, effect), state_name(effect))
    }

    /// All of the state store.
    pub(crate) fn whole_state(&self, effect: Effect) -> Result<Granted, AccessError> {
        let permitted = |scope: &TokenScope| {
            scope::has_state(scope, effect)
                && scope::is_everything(&scope.namespaces)
                && scope::is_everything(&scope.agents)
        };
        let what = match effect {
            Effect::Read => "state.read on all namespaces and agents",
            Effect::Write => "state.write on all namespaces and agents",
        };
        self.grant(permitted, what)
    }

    /// The permission to go on, of the holder of the root token alone: whether an issued token is valid is checked
    /// by the node that answers.
    pub(crate) fn root_lease(&self) -> Option<Lease> {
        matches!(self.principal, Principal::Root(_)).then(|| self.lease())
    }

    /// The name that the node knows a stream by. It is no permission.
    ///
    /// # Errors
    ///
    /// The prefix of the token makes it too long.
    pub(crate) fn known_name(&self, stream: StreamName) -> Result<StreamName, AccessError> {
        Ok(self.whole_name(stream)?.0)
    }

    /// Basins to list.
    pub(crate) fn basins(&self, prefix: &str, start_after: &str) -> Result<Listing, AccessError> {
        let granted = self.account(Operation::ListBasins)?;
        let set = self.principal.scope().map(|scope| &scope.basins);
        Ok(Listing {
            granted,
            visible: visible(set, prefix, start_after),
            prefix: 0,
        })
    }

    /// Whether a basin is in the scope, so that its name may be answered.
    pub(crate) fn sees_basin(&self, basin: &str) -> bool {
        let scope = self.principal.scope();
        scope.is_none_or(|scope| scope.basins.contains(basin))
    }

    /// Streams of a basin to list. The names are those that the sender uses.
    pub(crate) fn streams(
        &self,
        basin: &BasinName,
        prefix: &str,
        start_after: &str,
    ) -> Result<Listing, AccessError> {
        let granted = self.basin(Operation::ListStreams, basin)?;
        let set = self.principal.scope().map(|scope| &scope.streams);
        let (visible, prefix) = match self.auto_prefix() {
            // The stream whose name is the prefix has no name for the sender, and is not after it.
            Some(own) => (
                Visible::Prefixed {
                    prefix: format!("{own}{prefix}"),
                    start_after: format!("{own}{start_after}"),
                },
                own.len(),
            ),
            None => (visible(set, prefix, start_after), 0),
        };
        Ok(Listing {
            granted,
            visible,
            prefix,
        })
    }

    /// Access tokens to list.
    pub(crate) fn tokens(&self, prefix: &str, start_after: &str) -> Result<Listing, AccessError> {
        let granted = self.account(Operation::ListAccessTokens)?;
        let set = self.principal.scope().map(|scope| &scope.access_tokens);
        Ok(Listing {
            granted,
            visible: visible(set, prefix, start_after),
            prefix: 0,
        })
    }

    /// Whether tokens can be issued at all.
    ///
    /// # Errors
    ///
    /// No authentication is configured.
    pub(crate) fn issues_tokens(&self) -> Result<(), AccessError> {
        match self.authority.is_on() {
            true => Ok(()),
            false => Err(AccessError::Off),
        }
    }

    /// What is put before the names of streams that the sender uses.
    pub(crate) fn auto_prefix(&self) -> Option<&str> {
        self.principal.auto_prefix()
    }

    /// The name that the node knows a stream by, and the length of what was put before it.
    fn whole_name(&self, stream: StreamName) -> Result<(StreamName, usize), AccessError> {
        let Some(prefix) = self.auto_prefix() else {
            return Ok((stream, 0));
        };
        let whole = format!("{prefix}{}", &*stream);
        let name = whole.parse().map_err(|error| {
            AccessError::Invalid(format!(
                "the stream's name with the prefix of the access token before it is not valid: {error}"
            ))
        })?;
        Ok((name, prefix.len()))
    }

    fn grant(
        &self,
        permitted: impl FnOnce(&TokenScope) -> bool,
        what: &str,
    ) -> Result<Granted, AccessError> {
        self.permit(permitted, what)?;
        // The body may have come long after the head, by which the token was found: whoever holds one back
        // must not issue another token, or write, after a revocation.
        self.authority.check(&self.principal)?;
        Ok(Granted(()))
    }

    fn permit(
        &self,
        permitted: impl FnOnce(&TokenScope) -> bool,
        what: &str,
    ) -> Result<(), AccessError> {
        match self.principal.scope() {
            // The answer is the same whether what the names are of exists or not: nothing was looked up.
            Some(scope) if !permitted(scope) => Err(AccessError::Forbidden(format!("{what} here"))),
            _ => Ok(()),
        }
    }
}

fn visible(set: Option<&esker_node::NameSet>, prefix: &str, start_after: &str) -> Visible {
    match set {
        Some(set) => scope::visible(set, prefix, start_after),
        None => Visible::Prefixed {
            prefix: prefix.to_owned(),
            start_after: start_after.to_owned(),
        },
    }
}

fn state_name(effect: Effect) -> &'static str {
    match effect {
        Effect::Read => "state.read",
        Effect::Write => "state.write",
    }
}

#[cfg(test)]
impl Access {
    /// The access of everybody, where no authentication is configured.
    pub(crate) fn unrestricted() -> Access {
        let off = super::authority::tests::authority(None, &Default::default());
        Access::new(Arc::new(off), Principal::anonymous(None))
    }
}
