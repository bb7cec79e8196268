//! Who is signed in: sessions in memory, each with the token that somebody signed in with.
//!
//! A browser has a cookie with the session's id, 32 random bytes. Of those only the hash is kept here. A restart of
//! the server ends all sessions. The token of a session is checked with every request, as that of every client.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::HeaderValue;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

/// How long a session lasts without a request.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// How long it lasts at most.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(12 * 3600);
/// Most sessions. One more ends the one that was unused for longest.
const MAX_SESSIONS: usize = 1000;
/// Most sessions of one token: one more ends its own least used one, so that nobody ends the sessions of others.
const MAX_SESSIONS_PER_TOKEN: usize = 50;

/// The sessions. Cheap to clone.
#[derive(Clone, Default)]
pub struct Sessions(Arc<Mutex<HashMap<[u8; 32], Session>>>);

struct Session {
    authorization: HeaderValue,
    began: Instant,
    used: Instant,
}

impl Session {
    fn is_over(&self, now: Instant) -> bool {
        now - self.used >= IDLE_TIMEOUT || now - self.began >= SESSION_TIMEOUT
    }
}

impl Sessions {
    /// Begins a session, and returns its id.
    pub fn begin(&self, authorization: HeaderValue, now: Instant) -> String {
        let id: [u8; 32] = rand::random();
        let mut sessions = self.0.lock();
        sessions.retain(|_, session| !session.is_over(now));
        let mut own = Vec::new();
        for (id, session) in sessions.iter() {
            if session.authorization == authorization {
                own.push((session.used, *id));
            }
        }
        let least_used = if own.len() >= MAX_SESSIONS_PER_TOKEN {
            own.into_iter().min().map(|(_, id)| id)
        } else if sessions.len() >= MAX_SESSIONS {
            let all = sessions.iter();
            all.min_by_key(|(_, session)| session.used)
                .map(|(id, _)| *id)
        } else {
            None
        };
        if let Some(id) = least_used {
            sessions.remove(&id);
        }
        let session = Session {
            authorization,
            began: now,
            used: now,
        };
        let id = BASE64_URL_SAFE_NO_PAD.encode(id);
        sessions.insert(hash(id.as_bytes()), session);
        id
    }

    /// The token of a session, as in the header `authorization`; `None` if it is over. This uses the session.
    pub fn token(&self, id: &str, now: Instant) -> Option<HeaderValue> {
        let mut sessions = self.0.lock();
        let session = sessions.get_mut(&hash(id.as_bytes()))?;
        if session.is_over(now) {
            sessions.remove(&hash(id.as_bytes()));
            return None;
        }
        session.used = now;
        Some(session.authorization.clone())
    }

    /// The same, without using the session: a page that is left open does not keep it.
    pub fn is_on(&self, id: &str, now: Instant) -> bool {
        let sessions = self.0.lock();
        sessions
            .get(&hash(id.as_bytes()))
            .is_some_and(|session| !session.is_over(now))
    }

    /// Ends a session.
    pub fn end(&self, id: &str) {
        self.0.lock().remove(&hash(id.as_bytes()));
    }
}

/// So that neither memory nor the time of a look-up shows an id or a token.
pub fn hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &'static str) -> HeaderValue {
        HeaderValue::from_static(text)
    }

    #[test]
    fn a_session_ends_when_it_is_unused_or_old_or_ended() {
        let (sessions, begin) = (Sessions::default(), Instant::now());
        let id = sessions.begin(token("a"), begin);
        assert_eq!(sessions.token(&id, begin), Some(token("a")));
        assert_eq!(sessions.token("another", begin), None);
        // Uses keep it, but not for ever.
        let mut at = begin;
        while at + IDLE_TIMEOUT / 2 < begin + SESSION_TIMEOUT {
            at += IDLE_TIMEOUT / 2;
            assert!(sessions.token(&id, at).is_some());
        }
        assert_eq!(sessions.token(&id, begin + SESSION_TIMEOUT), None);
        let id = sessions.begin(token("a"), begin);
        assert!(sessions.is_on(&id, begin + IDLE_TIMEOUT / 2));
        // Looking does not use it.
        assert_eq!(sessions.token(&id, begin + IDLE_TIMEOUT), None);
        let id = sessions.begin(token("a"), begin);
        sessions.end(&id);
        assert_eq!(sessions.token(&id, begin), None);
    }

    fn numbered(number: usize) -> HeaderValue {
        HeaderValue::try_from(format!("Bearer {number}")).unwrap()
    }

    #[test]
    fn sessions_are_bounded_and_the_least_used_one_makes_room() {
        let (sessions, begin) = (Sessions::default(), Instant::now());
        let first = sessions.begin(token("a"), begin);
        let second = sessions.begin(token("b"), begin);
        let later = begin + Duration::from_secs(1);
        assert!(sessions.token(&first, later).is_some());
        for number in 2..=MAX_SESSIONS {
            sessions.begin(numbered(number), later);
        }
        assert_eq!(sessions.0.lock().len(), MAX_SESSIONS);
        assert!(sessions.is_on(&first, later));
        assert!(!sessions.is_on(&second, later));
    }

    #[test]
    fn whoever_signs_in_again_and_again_ends_their_own_sessions_alone() {
        let (sessions, begin) = (Sessions::default(), Instant::now());
        let other = sessions.begin(token("other"), begin);
        let later = begin + Duration::from_secs(1);
        let first = sessions.begin(token("a"), later);
        for _ in 0..2 * MAX_SESSIONS {
            sessions.begin(token("a"), later + Duration::from_secs(1));
        }
        assert_eq!(sessions.0.lock().len(), MAX_SESSIONS_PER_TOKEN + 1);
        assert!(sessions.is_on(&other, later));
        assert!(!sessions.is_on(&first, later));
    }
}
