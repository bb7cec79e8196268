//! Where one message of a body ends and the next begins.
//!
//! A body that is passed on comes in pieces of any size, and it can be ended in order only between two messages.
//! Nothing is kept of what passes: only how much of a message is missing.

/// Bytes of the head of a message of a session: its length, which has three bytes, and its flags.
const SESSION_HEAD: usize = 4;
/// Bytes of the head of a message of a call: a flag, and its length, which has four bytes.
const CALL_HEAD: usize = 5;
/// The flag of the message that ends a session.
const TERMINAL: u8 = 0b1000_0000;

/// The position in a body that consists of messages.
#[derive(Clone, Debug)]
pub(super) enum Framing {
    /// `s2s/proto`.
    Session(Messages<SESSION_HEAD>),
    /// gRPC.
    Call(Messages<CALL_HEAD>),
    /// Server-sent events, each with an empty line behind it.
    Events {
        /// Line ends since anything else, up to two.
        line_ends: u8,
    },
}

/// The position in messages that begin with a head of this length.
#[derive(Clone, Debug)]
pub(super) struct Messages<const HEAD: usize> {
    head: [u8; HEAD],
    /// Bytes of the head that have passed.
    in_head: usize,
    /// Bytes that are missing of the message, behind its head.
    missing: usize,
}

impl<const HEAD: usize> Default for Messages<HEAD> {
    fn default() -> Self {
        Messages {
            head: [0; HEAD],
            in_head: 0,
            missing: 0,
        }
    }
}

impl<const HEAD: usize> Messages<HEAD> {
    fn is_between(&self) -> bool {
        self.in_head == 0 && self.missing == 0
    }

    /// Passes the rest of the present message, or as much of it as there is.
    fn pass_one(&mut self, data: &[u8], length: impl Fn(&[u8; HEAD]) -> usize) -> usize {
        let mut passed = 0;
        if self.missing == 0 {
            let of_head = (HEAD - self.in_head).min(data.len());
            self.head[self.in_head..self.in_head + of_head].copy_from_slice(&data[..of_head]);
            self.in_head += of_head;
            passed = of_head;
            if self.in_head < HEAD {
                return passed;
            }
            self.in_head = 0;
            self.missing = length(&self.head);
        }
        let rest = self.missing.min(data.len() - passed);
        self.missing -= rest;
        passed + rest
    }
}

impl Framing {
    /// At the beginning of a body of this type; `None` if it does not consist of messages.
    pub(super) fn of(content_type: &str) -> Option<Framing> {
        match content_type {
            "s2s/proto" => Some(Framing::Session(Messages::default())),
            "text/event-stream" => Some(Framing::Events { line_ends: 2 }),
            kind if kind.starts_with("application/grpc") => {
                Some(Framing::Call(Messages::default()))
            }
            _ => None,
        }
    }

    /// Whether a message has ended and no other has begun.
    pub(super) fn is_between(&self) -> bool {
        match self {
            Framing::Session(messages) => messages.is_between(),
            Framing::Call(messages) => messages.is_between(),
            Framing::Events { line_ends } => *line_ends == 2,
        }
    }

    /// Whether the message that has ended last ends the session.
    pub(super) fn has_terminal(&self) -> bool {
        match self {
            Framing::Session(messages) => {
                messages.is_between() && messages.head[SESSION_HEAD - 1] & TERMINAL != 0
            }
            Framing::Call(_) | Framing::Events { .. } => false,
        }
    }

    /// Notes that all of this passes.
    pub(super) fn pass(&mut self, data: &[u8]) {
        let mut passed = 0;
        while passed < data.len() {
            passed += self.pass_message(&data[passed..]);
        }
    }

    /// Notes that this passes up to the end of the present message, and returns how much that is: nothing between
    /// messages.
    pub(super) fn pass_to_end_of_message(&mut self, data: &[u8]) -> usize {
        let mut passed = 0;
        while !self.is_between() && passed < data.len() {
            passed += self.pass_message(&data[passed..]);
        }
        passed
    }

    /// Passes the rest of the present message, or of the next one. Of data that is not empty, at least one byte.
    fn pass_message(&mut self, data: &[u8]) -> usize {
        match self {
            Framing::Session(messages) => messages.pass_one(data, |head| {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                // The flags count as part of the message.
                (length as usize).saturating_sub(1)
            }),
            Framing::Call(messages) => messages.pass_one(data, |head| {
                u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize
            }),
            Framing::Events { line_ends } => {
                for (at, byte) in data.iter().enumerate() {
                    let was_between = *line_ends == 2;
                    *line_ends = match byte {
                        b'\n' if !was_between => *line_ends + 1,
                        // Another empty line changes nothing.
                        b'\n' => 2,
                        _ => 0,
                    };
                    if *line_ends == 2 {
                        return at + 1;
                    }
                }
                data.len()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use s2_api::v1::stream::s2s::{CompressionAlgorithm, SessionMessage, TerminalMessage};

    use super::*;

    fn session_message(bytes: usize) -> Vec<u8> {
        let ack = s2_api::v1::stream::proto::AppendRecord {
            timestamp: None,
            headers: Vec::new(),
            body: vec![b'\n'; bytes].into(),
        };
        let message = SessionMessage::regular(CompressionAlgorithm::None, &ack).unwrap();
        message.encode().to_vec()
    }

    /// Bodies of each kind: their messages.
    fn bodies() -> Vec<(&'static str, Vec<Vec<u8>>)> {
        let call = |bytes: usize| {
            let length = u32::try_from(bytes).unwrap().to_be_bytes();
            [&[0][..], &length, &vec![1; bytes]].concat()
        };
        let event = |text: &str| text.as_bytes().to_vec();
        vec![
            (
                "s2s/proto",
                vec![
                    session_message(1),
                    session_message(70_000),
                    session_message(0),
                ],
            ),
            ("application/grpc", vec![call(0), call(300), call(1)]),
            (
                "text/event-stream",
                vec![
                    event("data: a\nid: 1\n\n"),
                    event(": comment\n\n"),
                    event("event: x\n\n"),
                ],
            ),
        ]
    }

    #[test]
    fn in_pieces_of_any_size_the_ends_of_messages_are_found() {
        for (kind, messages) in bodies() {
            let ends: Vec<usize> = messages
                .iter()
                .scan(0, |sum, message| {
                    *sum += message.len();
                    Some(*sum)
                })
                .collect();
            let body = messages.concat();
            for piece in [1, 2, 3, 7, 1000, body.len()] {
                let mut framing = Framing::of(kind).unwrap();
                assert!(framing.is_between(), "{kind}");
                let mut passed = 0;
                for piece in body.chunks(piece) {
                    framing.pass(piece);
                    passed += piece.len();
                    assert_eq!(
                        framing.is_between(),
                        ends.contains(&passed),
                        "{kind} {passed}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_body_is_cut_behind_the_message_that_has_begun() {
        for (kind, messages) in bodies() {
            let body = messages.concat();
            let first = messages[0].len();
            let second = first + messages[1].len();
            let mut framing = Framing::of(kind).unwrap();
            assert_eq!(framing.pass_to_end_of_message(&body), 0, "{kind}");
            framing.pass(&body[..first + 3]);
            let rest = framing.pass_to_end_of_message(&body[first + 3..]);
            assert_eq!(first + 3 + rest, second, "{kind}");
            assert!(framing.is_between());
        }
    }

    #[test]
    fn the_message_that_ends_a_session_is_known() {
        let mut framing = Framing::of("s2s/proto").unwrap();
        framing.pass(&session_message(5));
        assert!(!framing.has_terminal());
        let end = SessionMessage::from(TerminalMessage {
            status: 503,
            body: "{}".to_owned(),
        });
        let end = end.encode();
        framing.pass(&end[..6]);
        assert!(!framing.has_terminal());
        framing.pass(&end[6..]);
        assert!(framing.has_terminal());
    }

    #[test]
    fn answers_that_are_no_messages_have_no_framing() {
        assert!(Framing::of("application/json").is_none());
        assert!(Framing::of("").is_none());
    }
}
