//! All snapshots in a stream.
