//! Formatting: colours on a terminal and none elsewhere, numbers, sizes, durations, times, and names from
//! others.

use std::fmt::Display;
use std::io::IsTerminal as _;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use clap::ColorChoice;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The value of `--color`: 0 auto, 1 always, 2 never.
static COLOR: AtomicU8 = AtomicU8::new(0);

/// Sets it for the whole process.
pub fn use_color(choice: ColorChoice) {
    let choice = match choice {
        ColorChoice::Auto => 0,
        ColorChoice::Always => 1,
        ColorChoice::Never => 2,
    };
    COLOR.store(choice, Ordering::Relaxed);
}

/// Whether to print colours: unless `--color` is given, a stream that is no terminal, `NO_COLOR` and
/// `TERM=dumb` get plain text.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// For what goes to standard output.
    pub fn stdout() -> Paint {
        Paint::wanted(std::io::stdout().is_terminal())
    }

    /// For what goes to standard error.
    pub fn stderr() -> Paint {
        Paint::wanted(std::io::stderr().is_terminal())
    }

    fn wanted(terminal: bool) -> Paint {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Paint {
            on: match COLOR.load(Ordering::Relaxed) {
                1 => true,
                2 => false,
                _ => terminal && !refused,
            },
        }
    }

    /// Whether there are colours.
    pub fn is_on(self) -> bool {
        self.on
    }

    /// Dim, for details.
    pub fn dim(self, text: impl Display) -> String {
        self.sgr("2", text)
    }

    /// Bold, for the most important text.
    pub fn bold(self, text: impl Display) -> String {
        self.sgr("1", text)
    }

    /// Green, for success.
    pub fn green(self, text: impl Display) -> String {
        self.sgr("32", text)
    }

    /// Red, for errors.
    pub fn red(self, text: impl Display) -> String {
        self.sgr("31", text)
    }

    fn sgr(self, code: &str, text: impl Display) -> String {
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }
}

/// `20,000`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 record`, `20,000 records`.
pub fn records(number: u64) -> String {
    match number {
        1 => "1 record".into(),
        _ => format!("{} records", count(number)),
    }
}

/// `1,204 entries (3.00 MiB)`, of which the bytes may be those of a part.
pub fn kept_log(entries: u64, in_bytes: u64) -> String {
    let noun = if entries == 1 { "entry" } else { "entries" };
    format!("{} {noun} ({})", count(entries), bytes(in_bytes))
}

/// `17 B`, `1.70 MiB`: three digits at least, powers of 1024.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    // A float is exact enough for three digits.
    let mut value = number as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        // A larger value would be printed as 1024.
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{} {unit}", three_digits(value))
}

/// `0.8 ms`, `85 ms`, `1.24 s`, `2 min 5 s`.
pub fn took(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.009_95 {
        format!("{:.1} ms", seconds * 1e3)
    } else if seconds < 0.999_5 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 59.95 {
        format!("{} s", three_digits(seconds))
    } else {
        let seconds = seconds.round() as u64;
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

/// `0 s ago`, `3 min ago`, `5 h ago`, `12 d ago`: how long ago something was, roughly.
pub fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", count(seconds / 86_400)),
    }
}

/// `1.70 MiB/s`: three digits, because the next would be noise.
pub fn byte_rate(number: u64, duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds <= 0.0 {
        return "at once".into();
    }
    format!("{}/s", bytes((number as f64 / seconds) as u64))
}

/// `95,200 records/s`: three digits, because the next would be noise.
pub fn rate(records: u64, duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds <= 0.0 {
        return "at once".into();
    }
    let rate = records as f64 / seconds;
    let mut step = 1.0;
    while rate / step >= 1000.0 {
        step *= 10.0;
    }
    let rounded = (rate / step).round() * step;
    format!("{} records/s", count(rounded as u64))
}

fn three_digits(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// `2026-11-20 12:09:07`, in UTC.
pub fn second(time: OffsetDateTime) -> String {
    let time = time.to_offset(time::UtcOffset::UTC);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// `2026-11-20 12:09:07.123 UTC` for milliseconds since 1970. `None` if the number is out of range: a client
/// may give its records any number as a timestamp.
pub fn moment(milliseconds: u64) -> Option<String> {
    let time =
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok()?;
    Some(format!("{}.{:03} UTC", second(time), time.millisecond()))
}

/// `2026-11-20T12:09:07.123Z` for milliseconds since 1970, for JSON. `None` if the number is out of range.
pub fn rfc3339(milliseconds: u64) -> Option<String> {
    let time =
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok()?;
    time.format(&Rfc3339).ok()
}

/// A name with its control characters escaped, so that it can neither break the line nor control the
/// terminal.
pub fn plain(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_control() {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// Columns of a terminal; `None` if it is none.
pub fn columns(stream: impl AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// A text wrapped between words at the width of a terminal. Continuation lines are indented. A word that is
/// wider stays whole. Escape sequences count as text.
pub fn wrapped(text: &str, columns: Option<usize>, indent: usize) -> String {
    let Some(columns) = columns else {
        return text.to_owned();
    };
    let lines: Vec<_> = text
        .split('\n')
        .map(|line| wrapped_line(line, columns, indent))
        .collect();
    lines.join("\n")
}

fn wrapped_line(line: &str, columns: usize, indent: usize) -> String {
    let mut out = String::with_capacity(line.len() + 16);
    let (mut width, mut has_word) = (0, false);
    for word in line.split_inclusive(' ') {
        let length = word.trim_end_matches(' ').chars().count();
        if has_word && width + length > columns {
            out.truncate(out.trim_end_matches(' ').len());
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            width = indent;
        }
        out.push_str(word);
        width += word.chars().count();
        has_word |= length > 0;
    }
    out
}

/// The same as [`plain`] for a text of several lines, which keeps its line feeds.
pub fn plain_lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(plain).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_threes() {
        let shown: Vec<_> = [0, 999, 1000, 20_000, 1_234_567].map(count).into();
        assert_eq!(shown, ["0", "999", "1,000", "20,000", "1,234,567"]);
    }

    #[test]
    fn sizes_have_three_digits_and_never_1024_of_a_unit() {
        let shown: Vec<_> = [0, 1023, 1024, 1_784_866, 1_048_575, 1 << 40]
            .map(bytes)
            .into();
        assert_eq!(
            shown,
            [
                "0 B", "1023 B", "1.00 KiB", "1.70 MiB", "1.00 MiB", "1.00 TiB"
            ]
        );
    }

    #[test]
    fn durations_are_shown_in_the_unit_that_suits_them() {
        let shown: Vec<_> = [0.000_04, 0.004_2, 0.085, 0.999_9, 12.34, 125.0]
            .map(|seconds| took(Duration::from_secs_f64(seconds)))
            .into();
        assert_eq!(
            shown,
            ["0.0 ms", "4.2 ms", "85 ms", "1.00 s", "12.3 s", "2 min 5 s"]
        );
    }

    #[test]
    fn an_age_is_rough() {
        let shown: Vec<_> = [0, 119, 120, 7199, 7200, 172_800]
            .map(|seconds| ago(Duration::from_secs(seconds)))
            .into();
        assert_eq!(
            shown,
            [
                "0 s ago",
                "119 s ago",
                "2 min ago",
                "119 min ago",
                "2 h ago",
                "2 d ago"
            ]
        );
    }

    #[test]
    fn a_rate_has_three_digits() {
        assert_eq!(rate(20_000, Duration::from_millis(210)), "95,200 records/s");
        assert_eq!(rate(5, Duration::from_secs(1)), "5 records/s");
        assert_eq!(rate(5, Duration::ZERO), "at once");
    }

    #[test]
    fn a_timestamp_that_is_no_time_is_not_shown_as_one() {
        assert_eq!(
            moment(1_763_640_547_123).as_deref(),
            Some("2025-11-20 12:09:07.123 UTC")
        );
        assert_eq!(moment(u64::MAX), None);
        assert_eq!(
            rfc3339(1_763_640_547_123).as_deref(),
            Some("2025-11-20T12:09:07.123Z")
        );
        assert_eq!(rfc3339(u64::MAX), None);
    }

    #[test]
    fn a_message_keeps_its_lines_and_cannot_drive_the_terminal() {
        assert_eq!(
            plain_lines("a\nb\x1b]0;x\x07\r"),
            "a\nb\\u{1b}]0;x\\u{7}\\r"
        );
    }

    #[test]
    fn a_long_text_goes_on_in_lines_that_are_indented_and_no_word_is_torn() {
        let text = "error [io]: cannot read the file; look at the disk";
        assert_eq!(
            wrapped(text, Some(20), 2),
            "error [io]: cannot\n  read the file;\n  look at the disk"
        );
        assert_eq!(wrapped(text, None, 2), text);
        assert_eq!(wrapped(text, Some(100), 2), text);
        assert_eq!(
            wrapped("a averylongword b", Some(5), 2),
            "a\n  averylongword\n  b"
        );
        assert_eq!(wrapped("a\nb", Some(5), 2), "a\nb");
    }

    #[test]
    fn a_name_cannot_break_the_line() {
        assert_eq!(plain("a\nb\x1b[31m é"), "a\\nb\\u{1b}[31m é");
    }
}
