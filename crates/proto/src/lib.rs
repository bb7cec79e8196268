//! The state service on the wire.
//!
//! | module | what it holds |
//! |---|---|
//! | [`statehouse::v1`] | messages, server and client of the service that clients of Statehouse use |
//! | [`state::v1`] | the same for what Esker adds |
//! | [`value`] | `google.protobuf.Struct` as JSON, and back |
//! | [`codec`] | the codec, and the answer to a message that cannot be decoded |
//!
//! The protocol files are in `proto/`; `scripts/proto` generates `src/generated/` from them. This crate
//! depends on no other crate of Esker, so any client of an Esker can use it.

pub mod codec;
pub mod value;

/// The service that clients of Statehouse use.
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

    /// The protocol files from which the code was generated; `scripts/proto` writes it.
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
