//! The state service on the wire.
//!
//! | module | what it holds |
//! |---|---|
//! | [`statehouse::v1`] | messages, server and client of the service that Statehouse's clients know |
//! | [`state::v1`] | the same of what Esker adds |
//! | [`value`] | `google.protobuf.Struct` as JSON, and back |
//! | [`codec`] | how a message that cannot be decoded is answered |
//!
//! The protocol files are in `proto/`; `scripts/proto` makes `src/generated/` of them. This crate knows
//! nothing of the others: whoever talks to an Esker can use it.

pub mod codec;
pub mod value;

/// What Statehouse's clients know.
pub mod statehouse {
    /// Package `statehouse.v1`.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        include!("generated/statehouse.v1.rs");
    }
}

/// What Esker adds.
pub mod state {
    /// Package `esker.state.v1`.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        include!("generated/esker.state.v1.rs");
    }
}

pub use prost_types::{Any, FileDescriptorSet, ListValue, Struct, Value, value::Kind};

/// The protocol files, compiled: a `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// What the generated code was made of; `scripts/proto` writes it.
    const MADE_OF: &[(&str, &str)] = &[
        (
            include_str!("../proto/statehouse/v1/statehouse.proto"),
            include_str!("generated/statehouse.v1.proto"),
        ),
        (
            include_str!("../proto/esker/state/v1/state.proto"),
            include_str!("generated/esker.state.v1.proto"),
        ),
    ];

    #[test]
    fn the_generated_code_is_of_these_protocol_files() {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("proto").is_dir());
        for (now, then) in MADE_OF {
            assert!(
                now == then,
                "a protocol file has changed; run scripts/proto"
            );
        }
    }
}
