//! Numbers, sizes and times as people read them.

use std::fmt::Write as _;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A number with three significant digits: `4.12`, `41.2`, `412`.
fn significant(value: f64) -> String {
    match value {
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// A number of bytes: `4.12 KiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", significant(value), UNITS[unit])
}

/// A count with separators: `20,000`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How many of a thing there are: `1 file`, `2 files`.
pub fn several(number: u64, one: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {one}{ending}", count(number))
}

/// How many entries of a log there are.
pub fn entries(number: u64) -> String {
    match number {
        1 => "1 entry".to_owned(),
        number => format!("{} entries", count(number)),
    }
}

/// A duration: `262 ms`, `1.11 s`, `4 min`, `3 h`, `12 d`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        it if it <= 0.0 => "0 s".to_owned(),
        it if it < 0.000_999_5 => format!("{} µs", significant(it * 1e6)),
        it if it < 0.999_5 => format!("{} ms", significant(it * 1e3)),
        it if it < 120.0 => format!("{} s", significant(it)),
        it if it < 2.0 * 3600.0 => format!("{:.0} min", it / 60.0),
        it if it < 48.0 * 3600.0 => format!("{:.0} h", it / 3600.0),
        it => format!("{:.0} d", it / 86_400.0),
    }
}

/// How long ago, in whole units: `just now`, `35 s ago`, `3 min ago`. Coarse, so that a page that is rendered
/// every two seconds is mostly the same as before.
pub fn ago(at: OffsetDateTime, now: OffsetDateTime) -> String {
    let since = (now - at).whole_seconds();
    match since {
        since if since < -1 => format!("in {}", seconds(since.unsigned_abs() as f64)),
        since if since < 5 => "just now".to_owned(),
        since if since < 60 => format!("{} s ago", since / 5 * 5),
        since if since < 2 * 3600 => format!("{} min ago", since / 60),
        since if since < 48 * 3600 => format!("{} h ago", since / 3600),
        since => format!("{} d ago", since / 86_400),
    }
}

/// A moment, in UTC, to the second.
pub fn moment(at: OffsetDateTime) -> String {
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// A moment given in milliseconds since the epoch, to the millisecond.
pub fn moment_ms(ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    match at.map(|at| at.format(&Rfc3339)) {
        Ok(Ok(text)) => text,
        _ => format!("{ms} ms"),
    }
}

/// Bytes as text, if they are UTF-8. Characters that a reader cannot see, or that change the direction of what
/// follows, are written as escapes.
pub fn text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    Some(visible(text))
}

/// A text with its invisible characters written as escapes.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => shown.push(character),
            it if is_invisible(it) => {
                // Writing to a string cannot fail.
                let _ = write!(shown, "\\u{{{:x}}}", u32::from(it));
            }
            it => shown.push(it),
        }
    }
    shown
}

/// Whether a reader cannot see a character, or it changes what follows.
pub fn is_invisible(it: char) -> bool {
    it.is_control() || is_formatting(it)
}

/// Characters without a width, and marks that change the direction of text.
fn is_formatting(it: char) -> bool {
    matches!(it,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A name that comes from outside, in a list: visible, and not too long.
pub fn label(name: &str) -> String {
    const BYTES: usize = 300;
    shortened(&visible(name), BYTES)
}

/// Bytes as hexadecimal digits, 16 a line, with what of them is ASCII.
pub fn hex(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len() * 5);
    for (at, line) in bytes.chunks(16).enumerate() {
        let _ = write!(shown, "{:08x} ", at * 16);
        for place in 0..16 {
            let _ = match line.get(place) {
                Some(byte) => write!(shown, " {byte:02x}"),
                None => write!(shown, "   "),
            };
        }
        let ascii = line.iter().map(|byte| match byte {
            0x20..=0x7e => char::from(*byte),
            _ => '.',
        });
        let _ = writeln!(shown, "  {}", ascii.collect::<String>());
    }
    shown
}

/// As much of a text as takes at most this many bytes in a page, where some characters are escaped; and whether
/// that is not all.
pub fn cut(text: &str, bytes: usize) -> (&str, bool) {
    let mut taken = 0;
    for (at, character) in text.char_indices() {
        taken += match character {
            '&' => 5,
            '<' | '>' => 4,
            '"' => 6,
            it => it.len_utf8(),
        };
        if taken > bytes {
            return (&text[..at], true);
        }
    }
    (text, false)
}

/// The same, with a mark where it was cut.
pub fn shortened(text: &str, bytes: usize) -> String {
    match cut(text, bytes) {
        (shown, true) => format!("{shown}…"),
        (shown, false) => shown.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_counts_and_times_have_three_digits() {
        for (given, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4219, "4.12 KiB"),
            (1 << 20, "1.00 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(given), expected);
        }
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(several(1, "file"), "1 file");
        for (given, expected) in [
            (0.0, "0 s"),
            (0.000_05, "50.0 µs"),
            (0.262, "262 ms"),
            (1.113, "1.11 s"),
            (119.0, "119 s"),
            (240.0, "4 min"),
            (86_400.0, "24 h"),
            (8.64e5, "10 d"),
        ] {
            assert_eq!(seconds(given), expected);
        }
    }

    #[test]
    fn what_cannot_be_seen_is_written_out() {
        assert_eq!(
            visible("a\u{202e}b\0\u{feff}c\n"),
            "a\\u{202e}b\\u{0}\\u{feff}c\n"
        );
        assert_eq!(visible("né ﷺ"), "né ﷺ");
        assert_eq!(text(&[0xff]), None);
        let shown = hex(b"Esker\n\xff");
        assert!(
            shown.starts_with("00000000  45 73 6b 65 72 0a ff"),
            "{shown}"
        );
        assert!(shown.ends_with("Esker..\n"), "{shown}");
    }

    #[test]
    fn ages_are_whole_and_coarse() {
        let at = OffsetDateTime::UNIX_EPOCH;
        let after = |seconds: i64| ago(at, at + time::Duration::seconds(seconds));
        for (given, expected) in [
            (0, "just now"),
            (4, "just now"),
            (5, "5 s ago"),
            (39, "35 s ago"),
            (61, "1 min ago"),
            (7199, "119 min ago"),
            (7200, "2 h ago"),
            (172_800, "2 d ago"),
            (-10, "in 10.0 s"),
        ] {
            assert_eq!(after(given), expected, "{given}");
        }
    }

    #[test]
    fn a_text_is_cut_between_characters_and_by_what_it_takes_in_a_page() {
        assert_eq!(cut("é€x", 5), ("é€", true));
        assert_eq!(cut("é€x", 6), ("é€x", false));
        // `&lt;` and `&quot;`.
        assert_eq!(cut("<<\"", 8), ("<<", true));
        assert_eq!(cut("<<\"", 14), ("<<\"", false));
        assert_eq!(shortened("abc", 2), "ab…");
        for text in ["<\">&'é\u{10ffff}", "plain"] {
            let escaped = maud::html! { (text) }.0.len();
            assert!(!cut(text, escaped).1, "{text}");
            assert!(cut(text, escaped - 1).1, "{text}");
        }
    }
}
