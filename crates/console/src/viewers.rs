//! Places of live pages: each costs an open answer and the rendering of its page again and again.
//!
//! Whoever looks decides how long a place is kept, so places are shared. A token has three times as many as are free at
//! most, and of what its token may have, a session has three times what is left: one session leaves some to others who
//! have signed in with the same token, and one token leaves some to other tokens.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Most live pages at a time, in how many browser tabs whatsoever. Each costs an open answer and one rendering of its
/// page every other second.
pub const MAX_VIEWERS: usize = 50;
/// Most places that one has, as a multiple of what is free.
const MAX_OVER_FREE: usize = 3;

/// Who looks: the hashes of their token and of their session.
#[derive(Clone, Copy, Debug)]
pub struct Viewer {
    pub token: [u8; 32],
    pub session: [u8; 32],
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// All are taken.
    All,
    /// The session or its token has its share.
    OwnShare,
}

/// The places. Cheap to clone.
#[derive(Clone, Default)]
pub struct Viewers(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    places: usize,
    of_tokens: HashMap<[u8; 32], usize>,
    of_sessions: HashMap<[u8; 32], usize>,
}

/// A place, until this is dropped.
pub struct ViewerPlace {
    viewers: Viewers,
    viewer: Option<Viewer>,
}

impl Viewers {
    /// A place for whoever looks. Where nobody signs in, nothing tells them apart, and they have all places.
    ///
    /// # Errors
    ///
    /// There is none for them.
    pub fn take(&self, viewer: Option<Viewer>) -> Result<ViewerPlace, NoPlace> {
        let mut taken = self.0.lock();
        let free = MAX_VIEWERS.saturating_sub(taken.places);
        if free == 0 {
            return Err(NoPlace::All);
        }
        if let Some(Viewer { token, session }) = viewer {
            let of_token = taken.of_tokens.get(&token).copied().unwrap_or(0);
            let of_session = taken.of_sessions.get(&session).copied().unwrap_or(0);
            if left(left(free, of_token), of_session) == 0 {
                return Err(NoPlace::OwnShare);
            }
            *taken.of_tokens.entry(token).or_default() += 1;
            *taken.of_sessions.entry(session).or_default() += 1;
        }
        taken.places += 1;
        drop(taken);
        Ok(ViewerPlace {
            viewers: self.clone(),
            viewer,
        })
    }
}

/// How many more one may have that has `held`: after that, it has three times what is free then at most. One that has
/// nothing may have one in any case.
fn left(free: usize, held: usize) -> usize {
    let share = (MAX_OVER_FREE * free).saturating_sub(held) / (MAX_OVER_FREE + 1);
    match held {
        0 => share.max(1).min(free),
        _ => share,
    }
}

impl Drop for ViewerPlace {
    fn drop(&mut self) {
        let mut taken = self.viewers.0.lock();
        taken.places = taken.places.saturating_sub(1);
        if let Some(Viewer { token, session }) = self.viewer {
            release(&mut taken.of_tokens, token);
            release(&mut taken.of_sessions, session);
        }
    }
}

fn release(held: &mut HashMap<[u8; 32], usize>, of: [u8; 32]) {
    if let Some(count) = held.get_mut(&of) {
        *count -= 1;
        if *count == 0 {
            held.remove(&of);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn viewer(token: u8, session: u8) -> Option<Viewer> {
        Some(Viewer {
            token: [token; 32],
            session: [session; 32],
        })
    }

    /// All places that they can get.
    fn all(viewers: &Viewers, viewer: Option<Viewer>) -> Vec<ViewerPlace> {
        std::iter::from_fn(|| viewers.take(viewer).ok()).collect()
    }

    #[test]
    fn one_session_leaves_live_pages_to_others_of_its_token_and_one_token_to_other_tokens() {
        let viewers = Viewers::default();
        let first = all(&viewers, viewer(1, 1));
        assert_eq!(first.len(), 27);
        assert_eq!(viewers.take(viewer(1, 1)).err(), Some(NoPlace::OwnShare));
        // A colleague with the same token, and as many sessions as somebody likes to begin.
        let second = all(&viewers, viewer(1, 2));
        assert!(!second.is_empty());
        let more: Vec<_> = (3..200)
            .flat_map(|it| all(&viewers, viewer(1, it)))
            .collect();
        let of_token = first.len() + second.len() + more.len();
        assert_eq!(of_token, MAX_VIEWERS / 4 * 3 + 1);
        let other = all(&viewers, viewer(2, 201));
        assert_eq!(other.len(), 6);
        drop((first, second, more, other));
        let taken = viewers.0.lock();
        assert_eq!(taken.places, 0);
        assert!(taken.of_tokens.is_empty() && taken.of_sessions.is_empty());
    }

    #[test]
    fn whoever_has_none_finds_one_while_any_is_left_and_without_tokens_all_are_for_all() {
        let viewers = Viewers::default();
        let held: Vec<_> = (0..MAX_VIEWERS as u8)
            .map(|it| viewers.take(viewer(it, it)).expect("one is left"))
            .collect();
        assert_eq!(viewers.take(viewer(99, 99)).err(), Some(NoPlace::All));
        drop(held);
        assert_eq!(all(&viewers, None).len(), MAX_VIEWERS);
    }
}
