//! What changes while somebody looks, as server-sent events.
//!
//! An answer renders a part of a page every [`INTERVAL`], less often if that takes long, and sends it if it differs
//! from what was sent before. It renders when the connection takes more, so a browser that takes nothing holds one
//! rendering at most, and the listener ends its connection after `limits.stall-timeout`. It ends with the session,
//! and when the server stops.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::stream::{self, Stream};
use http::StatusCode;
use maud::Markup;

use crate::Console;
use crate::access::Watch;
use crate::api_client::{ApiError, Caller};
use crate::layout::PageError;
use crate::viewers::{MAX_VIEWERS, NoPlace, ViewerPlace};
use crate::words::visible;

/// How often a part is rendered.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// A part that takes longer to render is rendered less often: one browser costs at most a hundredth of a core.
const SHARE: u32 = 100;
/// The longest time between two: a node that does not answer makes a rendering take two seconds, without work.
const MAX_INTERVAL: Duration = Duration::from_secs(10);
/// How often a comment is sent when nothing changes: so that a connection that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

impl From<NoPlace> for Response {
    fn from(why: NoPlace) -> Response {
        let why = match why {
            NoPlace::All => format!("{MAX_VIEWERS} live pages are open; close one of them"),
            NoPlace::OwnShare => format!(
                "too many of the {MAX_VIEWERS} live pages are open in this session, or with its token; close one of them"
            ),
        };
        (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
    }
}

/// Whether an answer that goes on does so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Turn {
    /// It does.
    GoesOn,
    /// The session is over.
    SignedOut,
    /// The server stops.
    Stopped,
}

/// A place among those who look.
pub struct Place {
    console: Console,
    watch: Watch,
    _place: ViewerPlace,
}

impl Place {
    /// A place, or the answer that there is none.
    pub fn take(console: Console, watch: Watch) -> Result<Place, NoPlace> {
        let place = console.viewers.take(watch.viewer())?;
        Ok(Place {
            console,
            watch,
            _place: place,
        })
    }

    /// Waits, and returns whether the answer goes on.
    pub async fn wait(&self, time: Duration) -> Turn {
        let stopped = self.console.stop.cancelled();
        if tokio::time::timeout(time, stopped).await.is_ok() {
            return Turn::Stopped;
        }
        match self.watch.is_on(&self.console) {
            true => Turn::GoesOn,
            false => Turn::SignedOut,
        }
    }

    /// Ends the session: its token is not valid any more.
    pub fn end_session(&self) {
        self.watch.end(&self.console);
    }

    /// What requests are sent with.
    pub fn parts(&self) -> (&Console, &Caller) {
        (&self.console, &self.watch.caller)
    }
}

/// An event with HTML for the page.
pub fn part(name: &str, markup: &Markup) -> Event {
    // Markup has no carriage returns: a field of an event cannot hold one.
    Event::default()
        .event(name)
        .data(markup.0.replace('\r', ""))
}

/// The last event of a session that is over.
pub fn signed_out() -> Event {
    Event::default().event("signed-out").data("signed out")
}

/// The event for a part that cannot be rendered; whether it is the last one.
pub fn failed(error: &PageError) -> (Event, bool) {
    if matches!(error, PageError::Api(ApiError::Unauthenticated)) {
        return (signed_out(), true);
    }
    let (heading, why) = error.explained();
    let why = format!("{heading}: {why}").replace(['\r', '\n'], " ");
    (Event::default().event("failed").data(visible(&why)), false)
}

fn hash(markup: &Markup) -> u64 {
    let mut hasher = DefaultHasher::new();
    markup.0.hash(&mut hasher);
    hasher.finish()
}

/// An answer of such events.
pub fn answer(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(events).keep_alive(keep_alive).into_response()
}

/// The answer that renders a part again and again.
pub fn repeat<R, F>(place: Place, render: R) -> Response
where
    R: Fn(Console, Caller) -> F + Send + 'static,
    F: Future<Output = Result<Markup, PageError>> + Send,
{
    struct State<R> {
        place: Place,
        render: R,
        sent: Option<u64>,
        wait: Duration,
        is_over: bool,
    }
    let state = State {
        place,
        render,
        sent: None,
        wait: Duration::ZERO,
        is_over: false,
    };
    answer(stream::unfold(state, |mut it| async move {
        loop {
            if it.is_over {
                return None;
            }
            match it.place.wait(it.wait).await {
                Turn::GoesOn => {}
                Turn::Stopped => return None,
                Turn::SignedOut => {
                    it.is_over = true;
                    return Some((Ok(signed_out()), it));
                }
            }
            let (console, caller) = it.place.parts();
            let began = tokio::time::Instant::now();
            let rendered = (it.render)(console.clone(), caller.clone()).await;
            it.wait = (began.elapsed() * SHARE).clamp(INTERVAL, MAX_INTERVAL);
            let event = match rendered {
                Ok(markup) if it.sent == Some(hash(&markup)) => continue,
                Ok(markup) => {
                    it.sent = Some(hash(&markup));
                    part("part", &markup)
                }
                Err(error) => {
                    let (event, is_over) = failed(&error);
                    it.is_over = is_over;
                    if is_over {
                        it.place.end_session();
                    }
                    event
                }
            };
            return Some((Ok(event), it));
        }
    }))
}
