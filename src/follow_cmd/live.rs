//! The state on a terminal, redrawn as it changes, and the follower's status.
//!
//! It is drawn in place at most four times a second, and less often where rendering a large state takes long.
//! What was on the screen before is not erased.

use std::io::Write as _;
use std::time::{Duration, Instant};

use esker_follow::{Endpoint as _, Status, View};

use super::fold::{Folded, State};
use super::following::Following;
use super::render::{by_count, json_line};
use super::report;
use super::stop::Stop;
use crate::failure::Failure;
use crate::json::escaped;
use crate::output::{Written, written};
use crate::term::{Paint, bytes, count, plain, rate};

/// Shortest pause between two draws.
const EVERY: Duration = Duration::from_millis(250);
/// Drawing takes at most one part in this many of the time.
const SHARE: u32 = 10;
/// Time over which a rate is measured.
const WINDOW: Duration = Duration::from_secs(2);
/// Interval between requests for the tail while the state is behind it.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for the tail.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// Size that is assumed for a screen whose size is unknown: columns and lines.
const SIZE: (usize, usize) = (80, 24);

pub async fn run(mut following: Following<'_>, stop: &mut Stop) -> Result<(), Failure> {
    if following.catch_up(stop, None).await? {
        draw_until(&following, stop).await?;
    }
    following.end(stop).await
}

/// Draws until it is interrupted.
async fn draw_until(following: &Following<'_>, stop: &mut Stop) -> Result<(), Failure> {
    let mut screen = Screen::default();
    let mut rates = Rate::default();
    let mut tail = Tail::default();
    let mut view: Option<View<Folded>> = None;
    loop {
        let begun = Instant::now();
        let status = following.follower.status();
        tail.look(following, &status).await;
        if view
            .as_ref()
            .is_none_or(|view| view.cursor != status.cursor)
        {
            let newer = following.follower.view().await;
            view = Some(newer.map_err(|e| following.failure(&e))?);
        }
        rates.note(status.applied);
        let (width, height) = size();
        let mut lines = header(following, &status, &tail, &rates);
        if let Some(view) = &view {
            lines.push(Line::plain(String::new()));
            // The last line of the screen is where the cursor is.
            let rest = height.saturating_sub(lines.len() + 2);
            lines.extend(body(&view.state, rest, width));
        }
        lines.truncate(height.saturating_sub(1));
        if screen.draw(&lines, width)? == Written::NobodyReads {
            return Ok(());
        }
        let pause = EVERY.max(begun.elapsed() * SHARE);
        tokio::select! {
            () = stop.asked() => return Ok(()),
            error = following.follower.ended() => return Err(following.failure(&error)),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The tail of a stream, requested while no record arrives that would show it.
#[derive(Default)]
struct Tail {
    asked: Option<Instant>,
    heard: Option<u64>,
    is_silent: bool,
}

impl Tail {
    async fn look(&mut self, following: &Following<'_>, status: &Status) {
        if status.caught_up {
            *self = Tail::default();
            return;
        }
        if self.asked.is_some_and(|at| at.elapsed() < ASK_EVERY) {
            return;
        }
        let tail = tokio::time::timeout(ASK_LIMIT, following.endpoint.tail()).await;
        self.asked = Some(Instant::now());
        self.is_silent = !matches!(tail, Ok(Ok(_)));
        if let Ok(Ok(tail)) = tail {
            self.heard = Some(tail);
        }
    }

    fn behind(&self, status: &Status) -> u64 {
        let tail = self.heard.unwrap_or(0).max(report::tail(status));
        tail - status.cursor
    }
}

/// Records per second, over the last [`WINDOW`].
#[derive(Default)]
struct Rate {
    samples: std::collections::VecDeque<(Instant, u64)>,
}

impl Rate {
    fn note(&mut self, applied: u64) {
        let now = Instant::now();
        self.samples.push_back((now, applied));
        while self.samples.len() > 2 && now - self.samples[1].0 >= WINDOW {
            self.samples.pop_front();
        }
    }

    fn shown(&self) -> String {
        match (self.samples.front(), self.samples.back()) {
            (Some((from, before)), Some((to, after))) if to > from => {
                rate(after.saturating_sub(*before), *to - *from)
            }
            _ => rate(0, WINDOW),
        }
    }
}

fn header(following: &Following<'_>, status: &Status, tail: &Tail, rates: &Rate) -> Vec<Line> {
    let mut lines = vec![Line::title(format!(
        "{}  {} at {}",
        following.stream,
        plain(esker_follow::Fold::name(&following.fold)),
        following.server.address(),
    ))];
    let behind = match tail.behind(status) {
        0 if status.caught_up => "the tail".to_owned(),
        0 => "looking for the tail".to_owned(),
        n => format!("{} behind the tail", count(n)),
    };
    let silent = match tail.is_silent {
        true => "; the server does not answer",
        false => "",
    };
    let skipped = match status.skipped {
        0 => String::new(),
        n => format!(", {} malformed skipped", count(n)),
    };
    let mut facts = vec![
        ("position", format!("{}, {behind}{silent}", status.cursor)),
        (
            "rate",
            format!(
                "{}, {} applied{skipped}",
                rates.shown(),
                count(status.applied)
            ),
        ),
    ];
    let snapshot = match &status.newest {
        Some(info) => format!(
            "{} at {}, {}, {}; {} since",
            info.kind,
            info.cursor,
            bytes(info.bytes),
            report::age(info),
            crate::term::records(status.since_snapshot),
        ),
        None => format!(
            "none; {} since the beginning",
            crate::term::records(status.since_snapshot)
        ),
    };
    facts.push(("snapshot", snapshot));
    let replay = match status.predicted_replay {
        Some(predicted) => format!("{}, if this were restarted now", report::about(predicted)),
        None => "not measured yet".to_owned(),
    };
    facts.push(("replay", replay));
    if let Some(why) = &status.waits_for {
        facts.push(("waits", format!("trying again: {}", plain(why))));
    }
    if let Some(why) = &status.last_failure {
        facts.push(("trouble", format!("no snapshot was taken: {}", plain(why))));
    }
    let fact = |(name, fact)| Line::plain(format!("{name:<9} {fact}"));
    lines.extend(facts.into_iter().map(fact));
    lines
}

/// The state, in at most `height` lines.
fn body(fold: &Folded, height: usize, width: usize) -> Vec<Line> {
    let more = |number: usize, what: &str| {
        let number = count(number as u64);
        Line::dim(format!("… {number} more {what}"))
    };
    let mut lines = Vec::new();
    match &fold.state {
        State::Latest(latest) if latest.is_empty() => lines.push(Line::dim("no key yet")),
        State::Count(counts) if counts.is_empty() => lines.push(Line::dim("no key yet")),
        State::Latest(latest) => {
            let mut keys = fold.recent();
            // Fewer keys have changed than there are lines: others fill the screen.
            if keys.len() < height {
                let others = latest.iter().map(|(key, _)| key.to_owned());
                let known: std::collections::HashSet<_> = keys.iter().cloned().collect();
                let others = others.filter(|key| !known.contains(key));
                keys.extend(others.take(height - keys.len()).collect::<Vec<_>>());
            }
            keys.truncate(height);
            let widest = keys.iter().map(|key| plain(key).chars().count()).max();
            let column = widest.unwrap_or(0).min(width / 3);
            for key in &keys {
                let body = latest
                    .get(key)
                    .map_or_else(String::new, |body| json_line(body));
                let key = cut(&plain(key), column);
                lines.push(Line::plain(format!("{key:<column$}  {body}")));
            }
            if latest.len() > lines.len() {
                lines.push(more(latest.len() - lines.len(), "keys; these changed last"));
            }
        }
        State::Count(counts) => {
            let entries = by_count(counts);
            let column = entries.first().map_or(0, |(_, most)| count(*most).len());
            for (key, number) in entries.iter().take(height) {
                let number = count(*number);
                lines.push(Line::plain(format!("{number:>column$}  {}", plain(key))));
            }
            if entries.len() > lines.len() {
                lines.push(more(entries.len() - lines.len(), "keys"));
            }
        }
        State::Merge(merge) => {
            let text = serde_json::to_string_pretty(merge.document()).unwrap_or_default();
            let text = escaped(&text);
            let all = text.lines().count();
            let shown = text.lines().take(height);
            lines.extend(shown.map(|line| Line::plain(line.to_owned())));
            if all > lines.len() {
                lines.push(more(all - lines.len(), "lines"));
            }
        }
    }
    lines
}

/// At most `width` characters of a text.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain(std::iter::once('…')).collect()
}

/// A line on the screen.
struct Line {
    text: String,
    paint: fn(Paint, String) -> String,
}

impl Line {
    fn plain(text: String) -> Line {
        let paint = |_, text| text;
        Line { text, paint }
    }

    fn dim(text: impl Into<String>) -> Line {
        let paint = |paint: Paint, text| paint.dim(text);
        Line {
            text: text.into(),
            paint,
        }
    }

    fn title(text: String) -> Line {
        let paint = |paint: Paint, text| paint.bold(text);
        Line { text, paint }
    }
}

/// What was drawn.
#[derive(Default)]
struct Screen {
    lines: usize,
}

impl Screen {
    /// Draws over what was drawn before.
    fn draw(&mut self, lines: &[Line], width: usize) -> Result<Written, Failure> {
        let paint = Paint::stdout();
        // Wrapping is off while a frame is drawn, because characters wider than one column could otherwise
        // break a line.
        let mut picture = String::from("\x1b[?7l");
        if self.lines > 0 {
            picture += &format!("\x1b[{}A", self.lines);
        }
        for line in lines {
            let text = (line.paint)(paint, cut(&line.text, width));
            picture += &format!("\r{text}\x1b[K\n");
        }
        picture += "\x1b[J\x1b[?7h";
        self.lines = lines.len();
        let mut out = std::io::stdout().lock();
        written(out.write_all(picture.as_bytes()).and_then(|()| out.flush()))
    }
}

/// Columns and lines of the screen.
fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            (usize::from(size.ws_col), usize::from(size.ws_row))
        }
        _ => SIZE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_cut_and_says_so() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("äöüß", 3), "äö…");
    }
}
