//! The one place that makes text fit to be shown: on a terminal, in a line of a log.
//!
//! Labels, keys, messages of nodes and names are written by others. Raw, they could forge lines, colour or move the cursor.

use std::fmt;
use std::time::Duration;

use humantime::format_duration;

/// The longest label that an owner may have: a machine's name, a process number and a name for people.
pub(crate) const LONGEST_LABEL: usize = 120;
/// So much of a name is shown.
const LONGEST_NAME: usize = 80;
/// So much of a text that a node sent is kept.
pub(crate) const LONGEST_EXCERPT: usize = 300;

/// Returns `1 node`, or `N nodes`.
#[must_use]
pub fn counted_nodes(count: usize) -> String {
    if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") }
}

/// Text of others on one line: control characters, line ends and marks that turn the direction of writing are escaped.
///
/// What is printable stays as it is, so escaping twice is escaping once.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The standard library knows what is printable. It escapes these as well, which are no danger.
        const HARMLESS: [char; 3] = ['\\', '\'', '"'];
        for part in self.0.split_inclusive(HARMLESS) {
            let text = part.strip_suffix(HARMLESS).unwrap_or(part);
            write!(f, "{}{}", text.escape_debug(), &part[text.len()..])?;
        }
        Ok(())
    }
}

/// Text of several lines: as [`Printable`], but line ends stay.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(|line| Printable(line).to_string()).collect::<Vec<_>>().join("\n")
}

/// JSON text in which everything that is not printable is escaped the way that JSON does it. The values stay the same.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        // Outside of its strings JSON is ASCII.
        if c == '\n' || c.is_ascii_graphic() || c == ' ' || !c.escape_debug().to_string().starts_with('\\') {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // A String takes everything.
            let _ = fmt::Write::write_fmt(&mut text, format_args!("\\u{unit:04x}"));
        }
    }
    text
}

/// A name of any bytes, on one line, and cut when it is long. A backslash is doubled, so two names do not look the same.
#[must_use]
pub fn readable(name: &[u8]) -> String {
    let text = match std::str::from_utf8(name) {
        Ok(name) => name.escape_debug().collect::<String>(),
        Err(_) => name.escape_ascii().to_string(),
    };
    cut(text, LONGEST_NAME)
}

/// The beginning of a text that a node sent, on one line.
pub(crate) fn excerpt(text: &str) -> String {
    let kept = text.chars().take(LONGEST_EXCERPT + 1).collect::<String>();
    cut(Printable(&kept).to_string(), LONGEST_EXCERPT)
}

fn cut(mut text: String, longest: usize) -> String {
    if let Some((cut, _)) = text.char_indices().nth(longest) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// A word that stands between spaces in keys: what is not a printable ASCII character becomes `_`, and a long one is cut.
pub(crate) fn word(text: &str, longest: usize) -> String {
    text.chars().take(longest).map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect()
}

/// A measured duration, as exact as people need it: `7s`, `1.5s`, `263ms`, `2m 5s`.
#[derive(Clone, Copy, Debug)]
pub struct Rounded(pub Duration);

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (seconds, tenths) = (millis.saturating_add(500) / 1000, millis.saturating_add(50) / 100);
        match millis {
            0 => f.write_str("less than 1ms"),
            1..1000 => write!(f, "{millis}ms"),
            1000..9950 if tenths % 10 == 0 => write!(f, "{}s", tenths / 10),
            1000..9950 => write!(f, "{}.{}s", tenths / 10, tenths % 10),
            _ => write!(f, "{}", format_duration(Duration::from_secs(seconds))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_count_of_nodes_is_grammatical() {
        assert_eq!([0, 1, 3].map(counted_nodes), ["0 nodes", "1 node", "3 nodes"]);
    }

    #[test]
    fn text_of_others_is_escaped_and_what_is_printable_stays() {
        for (raw, shown) in [
            ("\u{1b}[31mred\r\nquorlock: forged", "\\u{1b}[31mred\\r\\nquorlock: forged"),
            ("abc\u{202e}cba\u{2066}\u{200f}\u{61c}", "abc\\u{202e}cba\\u{2066}\\u{200f}\\u{61c}"),
            ("\u{9b}2J\u{7f}\u{2028}\u{feff}", "\\u{9b}2J\\u{7f}\\u{2028}\\u{feff}"),
            ("can't \"say\" C:\\dir", "can't \"say\" C:\\dir"),
            ("naïve 日本 e\u{301}", "naïve 日本 e\u{301}"),
        ] {
            assert_eq!(Printable(raw).to_string(), shown);
        }
        assert_eq!(printable_lines("a\n\u{1b}b\n"), "a\n\\u{1b}b\n");
    }

    #[test]
    fn json_keeps_its_values() {
        let json = "{\n  \"a\": \"é\u{9b}\u{202e}\u{e0001}\"\n}";
        let shown = printable_json(json);
        assert_eq!(shown, "{\n  \"a\": \"é\\u009b\\u202e\\udb40\\udc01\"\n}");
    }

    #[test]
    fn names_are_printed_on_one_short_line() {
        assert_eq!(readable(b"a\nb\xc3\xa9"), "a\\nb\u{e9}");
        assert_eq!(readable(b"\xff\x00"), "\\xff\\x00");
        assert_eq!(readable("é".repeat(500).as_bytes()).chars().count(), 81);
    }

    #[test]
    fn durations_are_rounded_for_people() {
        for (micros, shown) in [
            (169, "less than 1ms"),
            (263_426, "263ms"),
            (1_000_000, "1s"),
            (1_480_000, "1.5s"),
            (6_980_000, "7s"),
            (9_960_000, "10s"),
            (125_400_000, "2m 5s"),
        ] {
            assert_eq!(Rounded(Duration::from_micros(micros)).to_string(), shown);
        }
        assert!(!Rounded(Duration::MAX).to_string().is_empty());
    }

    proptest! {
        #[test]
        fn nothing_that_moves_a_cursor_or_ends_a_line_is_left(text in any::<String>()) {
            let shown = Printable(&text).to_string();
            prop_assert!(!shown.contains(char::is_control), "{shown:?}");
            prop_assert_eq!(Printable(&shown).to_string(), shown);
        }
    }
}
