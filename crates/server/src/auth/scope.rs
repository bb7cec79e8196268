//! What a scope permits, and whether one is within another.

use esker_node::{NameSet, Names, OPERATIONS, TokenScope};
use s2_common::access::Operation;

use super::operation::{self, Effect, Group};

/// Whether a scope has an operation, on whatever resources.
pub(crate) fn has(scope: &TokenScope, operation: Operation) -> bool {
    scope.ops.contains(&(operation as u32))
        || operation::has(&scope.op_groups, operation::group(operation))
}

/// Whether a scope permits nothing at all.
pub(crate) fn is_empty(scope: &TokenScope) -> bool {
    let more = [
        scope.state_read,
        scope.state_write,
        scope.admin_read,
        scope.admin_write,
    ];
    !more.contains(&true) && !OPERATIONS.into_iter().any(|it| has(scope, it))
}

/// Whether a scope has a permission on the state store, on whatever agents.
pub(crate) fn has_state(scope: &TokenScope, effect: Effect) -> bool {
    match effect {
        Effect::Read => scope.state_read,
        Effect::Write => scope.state_write,
    }
}

/// Whether a scope has a permission on the admin API.
pub(crate) fn has_admin(scope: &TokenScope, effect: Effect) -> bool {
    match effect {
        Effect::Read => scope.admin_read,
        Effect::Write => scope.admin_write,
    }
}

/// Whether a set has every name.
pub(crate) fn is_everything(set: &NameSet) -> bool {
    matches!(&set.names, Some(Names::Prefix(prefix)) if prefix.is_empty())
}

/// The first part of `inner` that is not within `outer`; `None` if all of it is. What `inner` permits is then
/// permitted by `outer`.
///
/// A group is within another scope only if that has the group too: operations that a later version adds to it
/// would be permitted by the inner scope alone otherwise.
pub(crate) fn exceeding(outer: &TokenScope, inner: &TokenScope) -> Option<String> {
    let sets = [
        ("basins", &outer.basins, &inner.basins),
        ("streams", &outer.streams, &inner.streams),
        ("access_tokens", &outer.access_tokens, &inner.access_tokens),
        ("state.namespaces", &outer.namespaces, &inner.namespaces),
        ("state.agents", &outer.agents, &inner.agents),
    ];
    for (name, outer, inner) in sets {
        if !outer.includes(inner) {
            return Some(name.to_owned());
        }
    }
    for (name, group) in [
        ("account", Group::Account),
        ("basin", Group::Basin),
        ("stream", Group::Stream),
    ] {
        for (kind, effect) in [("read", Effect::Read), ("write", Effect::Write)] {
            let (of, other) = (&inner.op_groups, &outer.op_groups);
            if operation::has(of, (group, effect)) && !operation::has(other, (group, effect)) {
                return Some(format!("op_groups.{name}.{kind}"));
            }
        }
    }
    // Numbers that this build does not know, too.
    for number in &inner.ops {
        let known = OPERATIONS.into_iter().find(|it| *it as u32 == *number);
        match known {
            Some(known) if has(outer, known) => {}
            Some(known) => return Some(format!("ops: {}", operation::name(known))),
            None if outer.ops.contains(number) => {}
            None => return Some(format!("ops: number {number}")),
        }
    }
    let flags = [
        ("state.read", outer.state_read, inner.state_read),
        ("state.write", outer.state_write, inner.state_write),
        ("admin.read", outer.admin_read, inner.admin_read),
        ("admin.write", outer.admin_write, inner.admin_write),
    ];
    let flag = flags.into_iter().find(|(_, outer, inner)| *inner && !outer);
    flag.map(|(name, ..)| name.to_owned())
}

/// Names in a set that are to be listed.
#[derive(Debug, PartialEq)]
pub(crate) enum Visible {
    /// None of the set.
    Nothing,
    /// Those with this prefix, after this name.
    Prefixed { prefix: String, start_after: String },
    /// This one alone, if it is there.
    One(String),
}

/// Which names of `set` begin with `prefix` and come after `start_after`.
pub(crate) fn visible(set: &NameSet, prefix: &str, start_after: &str) -> Visible {
    match &set.names {
        None => Visible::Nothing,
        Some(Names::Exact(name)) if name.starts_with(prefix) && name.as_str() > start_after => {
            Visible::One(name.clone())
        }
        Some(Names::Exact(_)) => Visible::Nothing,
        Some(Names::Prefix(own)) => {
            let prefix = match (prefix.starts_with(own.as_str()), own.starts_with(prefix)) {
                (true, _) => prefix,
                (false, true) => own,
                (false, false) => return Visible::Nothing,
            };
            Visible::Prefixed {
                prefix: prefix.to_owned(),
                start_after: start_after.to_owned(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
