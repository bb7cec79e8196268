//! The names of a key of the state store, their encoding, and its order.
//!
//! A key has a namespace, an agent and a key, each of any characters. The encoding of each is its bytes,
//! with `00` written as `00 FF`, and then `00 01`. So encoded names sort as the names do, none is a
//! prefix of another, and the end of each is unambiguous.

/// Longest namespace, agent id or key, in bytes.
pub const MAX_NAME_BYTES: usize = 4096;

const ZERO: [u8; 2] = [0x00, 0xFF];
const END: [u8; 2] = [0x00, 0x01];

/// The names of a key of the state store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateKey {
    /// The namespace.
    pub namespace: String,
    /// The agent.
    pub agent_id: String,
    /// The key.
    pub key: String,
}

impl StateKey {
    /// A key, by its names.
    pub fn new(
        namespace: impl Into<String>,
        agent_id: impl Into<String>,
        key: impl Into<String>,
    ) -> StateKey {
        StateKey {
            namespace: namespace.into(),
            agent_id: agent_id.into(),
            key: key.into(),
        }
    }

    /// Checks the lengths of the names.
    ///
    /// # Errors
    ///
    /// A name is longer than [`MAX_NAME_BYTES`].
    pub fn check(&self) -> Result<(), String> {
        let names = [
            ("namespace", &self.namespace),
            ("agent_id", &self.agent_id),
            ("key", &self.key),
        ];
        for (what, name) in names {
            if name.len() > MAX_NAME_BYTES {
                return Err(format!(
                    "{what} has {} bytes; at most {MAX_NAME_BYTES} are allowed",
                    name.len()
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut names = agent_names(&self.namespace, &self.agent_id);
        push(&mut names, &self.key);
        names.extend_from_slice(&END);
        names
    }

    pub(crate) fn decode(names: &[u8]) -> Option<StateKey> {
        let (namespace, rest) = take(names)?;
        let (agent_id, rest) = take(rest)?;
        let (key, rest) = take(rest)?;
        rest.is_empty().then_some(StateKey {
            namespace,
            agent_id,
            key,
        })
    }
}

/// The prefix of encoded names that all keys of an agent share.
pub(crate) fn agent_names(namespace: &str, agent_id: &str) -> Vec<u8> {
    let mut names = Vec::with_capacity(namespace.len() + agent_id.len() + 4);
    push(&mut names, namespace);
    names.extend_from_slice(&END);
    push(&mut names, agent_id);
    names.extend_from_slice(&END);
    names
}

/// The prefix of encoded names that those keys of an agent share which begin with `prefix`.
pub(crate) fn prefix_names(namespace: &str, agent_id: &str, prefix: &str) -> Vec<u8> {
    let mut names = agent_names(namespace, agent_id);
    push(&mut names, prefix);
    names
}

fn push(names: &mut Vec<u8>, name: &str) {
    for byte in name.bytes() {
        match byte {
            0 => names.extend_from_slice(&ZERO),
            other => names.push(other),
        }
    }
}

fn take(names: &[u8]) -> Option<(String, &[u8])> {
    let mut name = Vec::new();
    let mut rest = names;
    loop {
        let (byte, after) = rest.split_first()?;
        rest = after;
        if *byte != 0 {
            name.push(*byte);
            continue;
        }
        let (second, after) = rest.split_first()?;
        rest = after;
        match [0, *second] {
            ZERO => name.push(0),
            END => return Some((String::from_utf8(name).ok()?, rest)),
            _ => return None,
        }
    }
}

/// The smallest bytes that sort after everything that begins with `prefix`.
pub(crate) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = StateKey> {
        let name = || "[\0-\u{2}a:%\u{ff}é]{0,4}";
        (name(), name(), name()).prop_map(|(n, a, k)| StateKey::new(n, a, k))
    }

    proptest! {
        #[test]
        fn names_of_any_characters_read_back_and_sort_as_they_do(one in key(), other in key()) {
            let (a, b) = (one.encode(), other.encode());
            prop_assert_eq!(StateKey::decode(&a), Some(one.clone()));
            prop_assert_eq!(a.cmp(&b), one.cmp(&other));
        }

        #[test]
        fn a_prefix_finds_those_keys_of_the_agent_that_begin_so(one in key(), prefix in "[\0-\u{2}a:]{0,2}") {
            let from = prefix_names(&one.namespace, &one.agent_id, &prefix);
            let names = one.encode();
            let found = names >= from && names < after(&from);
            prop_assert_eq!(found, one.key.starts_with(&prefix));
        }

        #[test]
        fn names_that_are_damaged_are_no_names(mut bytes in prop::collection::vec(0u8..4, 0..12)) {
            if let Some(key) = StateKey::decode(&bytes) {
                prop_assert_eq!(key.encode(), bytes);
            } else {
                bytes.clear();
            }
        }
    }

    #[test]
    fn a_name_that_is_too_long_is_refused_with_its_length() {
        let key = StateKey::new("n", "a".repeat(4097), "k");
        let why = key.check().unwrap_err();
        assert_eq!(why, "agent_id has 4097 bytes; at most 4096 are allowed");
    }
}
