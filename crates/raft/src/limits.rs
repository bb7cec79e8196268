//! Limits that two layers have to agree on.

/// Most bytes of messages of consensus that a transport queues for one peer. One message is always queued,
/// however large it is. Of commands of up to 1 MiB, the engine sends no more unacknowledged bytes to a peer than
/// a quarter of it; larger ones travel one in a message, up to 16 messages.
pub const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;
