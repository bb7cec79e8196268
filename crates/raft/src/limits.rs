//! Limits that two layers have to agree on.

/// Most bytes of messages of consensus that a transport queues for one peer. One message is always queued,
/// however large it is. The engine sends no more unacknowledged entries to a peer than a quarter of it.
pub const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;
