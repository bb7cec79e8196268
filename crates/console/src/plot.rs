//! Small plots of the last hour, as SVG.

use maud::{Markup, html};
use time::OffsetDateTime;

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 60.0;
/// How long a plot reaches back, in seconds.
const SPAN: f64 = 3600.0;
/// Samples that are further apart than this are not joined: in between the node was stopped.
const GAP: f64 = 60.0;

/// A figure over the last hour. `show` writes a value with its unit.
pub fn plot(
    name: &str,
    now: OffsetDateTime,
    values: &[(OffsetDateTime, Option<f64>)],
    show: impl Fn(f64) -> String,
) -> Markup {
    let known = values
        .iter()
        .filter_map(|(at, value)| Some((*at, (*value)?)));
    let known: Vec<(OffsetDateTime, f64)> = known.collect();
    let largest = known.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let last = known.last().map(|(_, value)| show(*value));
    let last = last.unwrap_or_else(|| "–".to_owned());
    let most = match known.is_empty() {
        true => "no samples yet".to_owned(),
        false => format!("at most {}", show(largest)),
    };
    let words = format!("{name}: {last} now, {most} in the last hour");
    html! {
        figure.plot {
            figcaption { (name) " " strong { (last) } }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(words) {
                line.axis x1="0" x2=(WIDTH) y1=(HEIGHT - 1.0) y2=(HEIGHT - 1.0) {}
                path d=(line(now, &known, largest)) {}
            }
            p.scale { span { "1 h ago" } span { (most) } span { "now" } }
        }
    }
}

/// The commands of the path.
fn line(now: OffsetDateTime, values: &[(OffsetDateTime, f64)], largest: f64) -> String {
    let mut path = String::new();
    let mut before: Option<f64> = None;
    for (at, value) in values {
        let age = (now - *at).as_seconds_f64();
        if !(0.0..=SPAN).contains(&age) {
            continue;
        }
        let x = WIDTH * (1.0 - age / SPAN);
        let share = if largest > 0.0 { value / largest } else { 0.0 };
        let y = (HEIGHT - 2.0) * (1.0 - share) + 1.0;
        let joined = before.is_some_and(|before| before - age <= GAP);
        let command = if joined { 'L' } else { 'M' };
        path.push_str(&format!("{command}{x:.1} {y:.1}"));
        before = Some(age);
    }
    path
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_is_broken_where_there_are_no_samples() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let at = |ago: u64| now - Duration::from_secs(ago);
        let values = [
            (at(4000), 9.0),
            (at(120), 1.0),
            (at(110), 2.0),
            (at(10), 0.0),
        ];
        let path = line(now, &values, 2.0);
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert_eq!(path.matches('L').count(), 1, "{path}");
        assert!(!line(now, &[(at(1), 0.0)], 0.0).contains("NaN"));
    }

    #[test]
    fn what_is_not_known_is_not_zero() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let shown = plot("p99", now, &[(now, None)], |it| format!("{it} ms")).0;
        assert!(shown.contains("<strong>–</strong>"), "{shown}");
    }
}
