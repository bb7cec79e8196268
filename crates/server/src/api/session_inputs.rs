//! Reads what an append session sends: frames, from the bytes of the request's body.
//!
//! A frame claims all of its bytes from the budget of all bodies once a sixteenth has arrived, holds them
//! until its append has been admitted, and may lag behind 16 KiB a second by `limits.header-timeout`. A
//! compressed frame claims the most that it may decompress to when it is complete. A session whose frame
//! finds no memory waits until others have released theirs, and is never refused for that: see
//! [`body_budget`](super::body_budget). Between frames a session holds nothing, and may stay silent for
//! as long as it likes.

use axum::body::{Body, BodyDataStream, Bytes};
use bytes::{Buf as _, BytesMut};
use esker_node::Client;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use s2_api::v1::stream::s2s::{FrameDecoder, SessionMessage};
use s2_api::v1::stream::{AppendInputStreamError, proto};
use s2_common::stream::AppendInput;
use tokio::time::Instant;
use tokio_util::codec::Decoder as _;

use super::ServiceError;
use super::bodies::Bodies;
use super::body_budget::{Claim, Full, of_known_length};

/// Bytes of a frame's length.
const PREFIX: usize = 3;
/// Most bytes of a frame behind its length, and of what it decompresses to, as the protocol has them.
const MAX_FRAME: usize = 2 * 1024 * 1024;
/// The bits of the flags that name a compression.
const COMPRESSION: u8 = 0b0110_0000;

const TRUNCATED: &str = "the body ends within a frame";

/// An append that was received, and the memory that it holds until it is admitted.
pub(super) struct Input {
    pub(super) append: AppendInput,
    pub(super) _claim: Claim,
}

/// Inputs as they arrive.
pub(super) type Inputs = BoxStream<'static, Result<Input, ServiceError>>;

/// The inputs of a session with this body; they end with the first error.
pub(super) fn inputs(body: Body, bodies: Bodies, client: Client) -> Inputs {
    let frames = Frames {
        body: body.into_data_stream(),
        rest: Bytes::new(),
        bodies,
        client,
    };
    stream::try_unfold(frames, |mut frames| async move {
        let input = frames.next().await?;
        Ok(input.map(|input| (input, frames)))
    })
    .boxed()
}

struct Frames {
    body: BodyDataStream,
    /// What has arrived of the next frame.
    rest: Bytes,
    bodies: Bodies,
    /// Whose memory it is.
    client: Client,
}

impl Frames {
    /// The next append; `None` at the end of the body.
    async fn next(&mut self) -> Result<Option<Input>, ServiceError> {
        let mut prefix = BytesMut::with_capacity(PREFIX);
        if !self.fill(&mut prefix, PREFIX).await? {
            return match prefix.is_empty() {
                true => Ok(None),
                false => Err(bad_frame(TRUNCATED)),
            };
        }
        let length = prefix.clone().get_uint(PREFIX) as usize;
        match length {
            0 => return Err(bad_frame("a frame has no flags")),
            1..=MAX_FRAME => {}
            _ => return Err(bad_frame("a frame has more than 2 MiB")),
        }
        let whole = PREFIX + length;
        let mut frame = prefix;
        let mut claim = self.bodies.budget.claim(self.client);
        let mut timeout = self.bodies.arrival_timeout(length);
        while frame.len() < whole {
            // The time in which the server waits for memory does not count against the client.
            let claimed = of_known_length(whole, frame.len() + 1);
            claim = extended(claim, claimed).await?;
            frame.reserve(claimed - frame.len());
            let begun = Instant::now();
            let filled = tokio::time::timeout(timeout, self.fill(&mut frame, claimed));
            match filled.await {
                Ok(Ok(true)) => timeout = timeout.saturating_sub(begun.elapsed()),
                Ok(Ok(false)) => return Err(bad_frame(TRUNCATED)),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(ServiceError::SlowBody),
            }
        }
        let claim = match frame[PREFIX] & COMPRESSION {
            0 => claim,
            _ => extended(claim, PREFIX + length + MAX_FRAME).await?,
        };
        let append = decode(frame)?;
        Ok(Some(Input {
            append,
            _claim: claim,
        }))
    }

    /// Fills a buffer up to this many bytes; false if the body ends before.
    async fn fill(&mut self, buffer: &mut BytesMut, bytes: usize) -> Result<bool, ServiceError> {
        while buffer.len() < bytes {
            if self.rest.is_empty() {
                match self.body.try_next().await {
                    Ok(Some(more)) => self.rest = more,
                    Ok(None) => return Ok(false),
                    Err(error) => return Err(bad_frame(error)),
                }
                continue;
            }
            let missing = (bytes - buffer.len()).min(self.rest.len());
            buffer.extend_from_slice(&self.rest.split_to(missing));
        }
        Ok(true)
    }
}

async fn extended(claim: Claim, bytes: usize) -> Result<Claim, ServiceError> {
    let claimed = claim.extend_without_limit(bytes).await;
    claimed.map_err(|Full| ServiceError::BodiesFull)
}

/// Decodes the append of a complete frame.
fn decode(mut frame: BytesMut) -> Result<AppendInput, ServiceError> {
    let message = FrameDecoder.decode(&mut frame);
    let message = match message.map_err(AppendInputStreamError::FrameDecode)? {
        Some(SessionMessage::Regular(message)) => message,
        Some(SessionMessage::Terminal(_)) => {
            return Err(bad_frame("Unexpected terminal frame as input"));
        }
        None => return Err(bad_frame("the frame is not whole")),
    };
    let input = message.try_into_proto::<proto::AppendInput>();
    let input = input.map_err(AppendInputStreamError::FrameDecode)?;
    let input = AppendInput::try_from(input).map_err(AppendInputStreamError::Validation)?;
    Ok(input)
}

fn bad_frame(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ServiceError {
    let error = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    AppendInputStreamError::FrameDecode(error).into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use s2_api::v1::stream::s2s::CompressionAlgorithm;

    use super::*;
    use crate::api::body_budget::STEP;

    const MIB: usize = 1024 * 1024;
    const TIMEOUT: Duration = Duration::from_millis(50);

    fn frame(compression: CompressionAlgorithm, bytes: usize) -> Bytes {
        let input = proto::AppendInput {
            records: vec![proto::AppendRecord {
                timestamp: None,
                headers: Vec::new(),
                body: vec![0; bytes].into(),
            }],
            match_seq_num: None,
            fencing_token: None,
        };
        SessionMessage::regular(compression, &input)
            .unwrap()
            .encode()
    }

    /// The inputs of a body of these pieces, which ends or stays open.
    fn of(pieces: Vec<Bytes>, ends: bool, bodies: &Bodies) -> Inputs {
        let pieces = stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
        let body = match ends {
            true => Body::from_stream(pieces),
            false => Body::from_stream(pieces.chain(stream::pending())),
        };
        inputs(body, bodies.clone(), Client::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_holds_the_frame_that_was_not_admitted_and_nothing_between_frames() {
        let bodies = Bodies::new(64 * MIB, 4 * MIB, TIMEOUT);
        let whole = frame(CompressionAlgorithm::None, MIB - 100);
        let packed = frame(CompressionAlgorithm::Zstd, MIB - 100);
        let (first, rest) = (whole.slice(..10), whole.slice(10..));
        let pieces = vec![first, rest, whole.clone(), packed.clone()];
        let mut inputs = of(pieces, false, &bodies);
        for held in [whole.len(), whole.len(), packed.len() + MAX_FRAME] {
            let input = inputs.next().await.unwrap().ok().unwrap();
            assert_eq!(bodies.held(), held);
            drop(input);
            assert_eq!(bodies.held(), 0);
        }
        // Between frames a session may be silent for as long as it likes.
        let silent = tokio::time::timeout(TIMEOUT * 4, inputs.next()).await;
        assert!(silent.is_err());
        assert_eq!(bodies.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_does_not_come_to_its_end_is_given_up_in_the_stated_time() {
        let bodies = Bodies::new(64 * MIB, 4 * MIB, TIMEOUT);
        let half = frame(CompressionAlgorithm::None, 1000).slice(..500);
        let mut slow = of(vec![half.clone()], false, &bodies);
        let error = slow.next().await.unwrap().err().unwrap();
        assert!(matches!(error, ServiceError::SlowBody), "{error}");
        assert!(slow.next().await.is_none());
        assert_eq!(bodies.held(), 0);

        let cut = of(vec![half], true, &bodies).next().await;
        let error = cut.unwrap().err().unwrap();
        assert!(matches!(error, ServiceError::AppendInput(_)), "{error}");
        assert!(of(Vec::new(), true, &bodies).next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_announce_frames_and_send_nothing_of_them_leave_others_their_memory() {
        let mut bodies = Bodies::new(8 * MIB, 4 * MIB, Duration::from_secs(3600));
        bodies.budget.timeout = TIMEOUT;
        let whole = frame(CompressionAlgorithm::None, MIB - 100);
        let mut idle = Vec::new();
        for _ in 0..20 {
            let mut session = of(vec![whole.slice(..10)], false, &bodies);
            let silent = tokio::time::timeout(TIMEOUT / 10, session.next()).await;
            assert!(silent.is_err());
            idle.push(session);
        }
        assert_eq!(bodies.held(), 20 * STEP);
        let mut session = of(vec![whole], true, &bodies);
        assert!(session.next().await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn half_sent_frames_of_all_sessions_hold_what_bodies_may_and_more_wait() {
        let mut bodies = Bodies::new(8 * MIB, 4 * MIB, Duration::from_secs(3600));
        bodies.budget.timeout = TIMEOUT;
        let half = frame(CompressionAlgorithm::None, MIB - 100).slice(..500_000);
        let mut sessions = Vec::new();
        for _ in 0..20 {
            let mut session = of(vec![half.clone()], false, &bodies);
            sessions.push(tokio::spawn(async move { session.next().await.is_some() }));
        }
        // Three quarters of four MiB are for one client, and one claim has the reserve.
        eventually(|| bodies.budget.waiting() == 16).await;
        // A request is refused in time, and the sessions still wait.
        let refused = bodies.budget.claim(Client::default()).extend(MIB).await;
        assert_eq!(refused.unwrap_err(), Full);
        assert_eq!(bodies.budget.waiting(), 16);
        assert!(bodies.held() <= 8 * MIB);
        assert!(!sessions.iter().any(tokio::task::JoinHandle::is_finished));
        // Clients that disconnect release what they hold, and their places in the queue.
        sessions.iter().for_each(tokio::task::JoinHandle::abort);
        for session in sessions {
            assert!(session.await.unwrap_err().is_cancelled());
        }
        assert_eq!((bodies.held(), bodies.budget.waiting()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_outlasts_others_whose_frames_wait_for_admission() {
        let mut bodies = Bodies::new(8 * MIB, 4 * MIB, TIMEOUT);
        bodies.budget.timeout = TIMEOUT;
        let plain = frame(CompressionAlgorithm::None, MIB - 100);
        // Compressed frames grow while they hold memory.
        let packed = frame(CompressionAlgorithm::Zstd, MIB - 100);
        let mut unadmitted = Vec::new();
        while bodies.held() < 6 * MIB {
            let mut session = of(vec![plain.clone()], false, &bodies);
            unadmitted.push(session.next().await.unwrap().ok().unwrap());
        }
        let mut waiting = Vec::new();
        for frame in [&plain, &packed, &plain, &packed] {
            let mut session = of(vec![frame.clone(), frame.clone()], true, &bodies);
            waiting.push(tokio::spawn(async move {
                let mut appends = 0;
                while let Some(input) = session.next().await {
                    input.map(drop)?;
                    appends += 1;
                }
                Ok::<_, ServiceError>(appends)
            }));
        }
        eventually(|| bodies.budget.waiting() == waiting.len()).await;
        // The disk accepts nothing for several times as long as a request may wait.
        tokio::time::sleep(TIMEOUT * 4).await;
        assert_eq!(bodies.budget.waiting(), waiting.len());
        drop(unadmitted);
        for session in waiting {
            assert_eq!(session.await.unwrap().unwrap(), 2);
        }
        assert_eq!((bodies.held(), bodies.budget.waiting()), (0, 0));
    }

    async fn eventually(mut is_so: impl FnMut() -> bool) {
        let waited = async {
            while !is_so() {
                tokio::time::sleep(TIMEOUT / 50).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waited).await;
        waited.expect("it is so in time");
    }
}
