//! Operations of the S2 API, and the groups that a token may be given as a whole.
//!
//! The groups are those of the API's services: of the account (basins, access tokens, locations), of a basin
//! (its streams), and of a stream (its records). In each, operations that change nothing are *read*.

use esker_node::{OpGroups, ReadWrite};
use s2_common::access::Operation;

/// A group of operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Group {
    Account,
    Basin,
    Stream,
}

/// Whether an operation changes something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Effect {
    Read,
    Write,
}

/// The group that an operation is in.
pub(crate) fn group(operation: Operation) -> (Group, Effect) {
    use Effect::{Read, Write};
    use Group::{Account, Basin, Stream};
    match operation {
        Operation::ListBasins
        | Operation::GetBasinConfig
        | Operation::ListAccessTokens
        | Operation::AccountMetrics
        | Operation::ListLocations
        | Operation::GetDefaultLocation => (Account, Read),
        Operation::CreateBasin
        | Operation::DeleteBasin
        | Operation::ReconfigureBasin
        | Operation::IssueAccessToken
        | Operation::RevokeAccessToken
        | Operation::SetDefaultLocation => (Account, Write),
        Operation::ListStreams | Operation::GetStreamConfig | Operation::BasinMetrics => {
            (Basin, Read)
        }
        Operation::CreateStream | Operation::DeleteStream | Operation::ReconfigureStream => {
            (Basin, Write)
        }
        Operation::CheckTail | Operation::Read | Operation::StreamMetrics => (Stream, Read),
        Operation::Append | Operation::Trim | Operation::Fence => (Stream, Write),
    }
}

/// Whether a group's permission is among these.
pub(crate) fn has(groups: &OpGroups, (group, effect): (Group, Effect)) -> bool {
    let ReadWrite { read, write } = match group {
        Group::Account => groups.account,
        Group::Basin => groups.basin,
        Group::Stream => groups.stream,
    };
    match effect {
        Effect::Read => read,
        Effect::Write => write,
    }
}

/// Its name on the wire.
pub(crate) fn name(operation: Operation) -> &'static str {
    match operation {
        Operation::ListBasins => "list-basins",
        Operation::CreateBasin => "create-basin",
        Operation::DeleteBasin => "delete-basin",
        Operation::ReconfigureBasin => "reconfigure-basin",
        Operation::GetBasinConfig => "get-basin-config",
        Operation::IssueAccessToken => "issue-access-token",
        Operation::RevokeAccessToken => "revoke-access-token",
        Operation::ListAccessTokens => "list-access-tokens",
        Operation::ListStreams => "list-streams",
        Operation::CreateStream => "create-stream",
        Operation::DeleteStream => "delete-stream",
        Operation::GetStreamConfig => "get-stream-config",
        Operation::ReconfigureStream => "reconfigure-stream",
        Operation::CheckTail => "check-tail",
        Operation::Append => "append",
        Operation::Read => "read",
        Operation::Trim => "trim",
        Operation::Fence => "fence",
        Operation::AccountMetrics => "account-metrics",
        Operation::BasinMetrics => "basin-metrics",
        Operation::StreamMetrics => "stream-metrics",
        Operation::ListLocations => "list-locations",
        Operation::GetDefaultLocation => "get-default-location",
        Operation::SetDefaultLocation => "set-default-location",
    }
}

#[cfg(test)]
mod tests {
    use esker_node::OPERATIONS;

    use super::*;

    #[test]
    fn names_are_those_of_the_api() {
        for operation in OPERATIONS {
            let wire = s2_api::v1::access::Operation::from(operation);
            let wire = serde_json::to_value(wire).unwrap();
            assert_eq!(wire, name(operation));
        }
    }
}
