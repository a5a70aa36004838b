//! Where an answer ends. A node decides what it sends, so each answer is bounded, and none of its bytes is looked at twice,
//! however small the pieces are in which it comes. (RESP3, as <https://redis.io/docs/latest/develop/reference/protocol-spec/>
//! describes it.)

use std::mem;

use crate::error::NodeError;
use crate::text::readable;

/// What an answer may be at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) bytes: usize,
    /// How many values it may have, nested ones too: in memory a value takes some ten times its bytes.
    pub(super) values: usize,
}

impl Most {
    /// More than any answer that a client asks for.
    pub(super) const USUAL: Self = Self { bytes: 1 << 20, values: 1 << 14 };
    /// What Redis itself takes for a value: for reading what other clients have stored.
    #[cfg(feature = "cli")]
    pub(super) const OF_REDIS: Self = Self { bytes: 1 << 29, values: 1 << 20 };
}

/// How deep an answer may be nested.
const MOST_LEVELS: usize = 16;

/// How far an answer has been looked through.
#[derive(Debug)]
pub(super) struct Scan {
    most: Most,
    /// Where the next value begins; further than what has come when a string is not whole yet.
    at: usize,
    /// No line ends before this.
    searched: usize,
    /// All values so far, those that are announced too.
    values: usize,
    /// How many values are missing, level by level.
    missing: [usize; MOST_LEVELS],
    /// How many levels are open.
    level: usize,
    /// How many bytes were looked at to find the ends of lines.
    #[cfg(test)]
    pub(super) looked: usize,
}

impl Scan {
    pub(super) fn new(most: Most) -> Self {
        Self {
            most,
            at: 0,
            searched: 0,
            values: 0,
            missing: [0; MOST_LEVELS],
            level: 0,
            #[cfg(test)]
            looked: 0,
        }
    }

    /// Returns the length of the answer at the beginning of `bytes`; `None` when it is not whole yet. From call to call `bytes`
    /// may only grow, until the answer is found.
    ///
    /// # Errors
    ///
    /// When this is not the protocol, or no answer that quorlock asks for is so large.
    pub(super) fn length(&mut self, bytes: &[u8]) -> Result<Option<usize>, NodeError> {
        if self.values == 0 {
            self.open(1)?;
        }
        while self.level > 0 {
            if self.missing[self.level - 1] == 0 {
                self.level -= 1;
                continue;
            }
            let from = self.at.max(self.searched);
            let found = line_end(bytes, from)?;
            #[cfg(test)]
            {
                self.looked += found.map_or(bytes.len(), |end| end + 2).saturating_sub(from);
            }
            let Some(end) = found else {
                self.searched = from.max(bytes.len().saturating_sub(1));
                return if bytes.len() > self.most.bytes { Err(self.too_large()) } else { Ok(None) };
            };
            self.missing[self.level - 1] -= 1;
            self.at = end + 2 + self.value(&bytes[self.at..end])?;
        }
        if self.at > self.most.bytes {
            return Err(self.too_large());
        }
        if self.at > bytes.len() {
            return Ok(None);
        }
        let next = Self {
            #[cfg(test)]
            looked: self.looked,
            ..Self::new(self.most)
        };
        Ok(Some(mem::replace(self, next).at))
    }

    /// Takes the first line of a value. Returns how many bytes of the value follow it.
    fn value(&mut self, line: &[u8]) -> Result<usize, NodeError> {
        let (kind, text) = line.split_first().ok_or_else(|| nonsense(line))?;
        let count = || {
            let count = std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
            // Nothing of a length below zero follows: that is how older servers say null.
            let count = usize::try_from(count.ok_or_else(|| nonsense(line))?.max(0)).unwrap_or(usize::MAX);
            if count > self.most.bytes { Err(self.too_large()) } else { Ok(count) }
        };
        match kind {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {}
            b'$' | b'=' | b'!' if text.starts_with(b"-") => {}
            b'$' | b'=' | b'!' => return Ok(count()? + 2),
            b'*' | b'~' | b'>' => self.open(count()?)?,
            b'%' => self.open(2 * count()?)?,
            b'|' => self.open(2 * count()? + 1)?,
            _ => return Err(nonsense(line)),
        }
        Ok(0)
    }

    /// Opens a level of so many values.
    fn open(&mut self, values: usize) -> Result<(), NodeError> {
        self.values += values;
        if self.values > self.most.values || self.level == MOST_LEVELS {
            return Err(self.too_large());
        }
        self.missing[self.level] = values;
        self.level += 1;
        Ok(())
    }

    fn too_large(&self) -> NodeError {
        NodeError::TooLarge { most_bytes: self.most.bytes, most_values: self.most.values, most_levels: MOST_LEVELS }
    }
}

/// Returns where the line ends. No end was found before `from`.
fn line_end(bytes: &[u8], from: usize) -> Result<Option<usize>, NodeError> {
    let rest = bytes.get(from..).unwrap_or_default();
    match rest.iter().position(|byte| *byte == b'\r') {
        Some(end) if end + 1 < rest.len() && rest[end + 1] != b'\n' => Err(nonsense(rest)),
        Some(end) if end + 1 < rest.len() => Ok(Some(from + end)),
        _ => Ok(None),
    }
}

pub(super) fn nonsense(bytes: &[u8]) -> NodeError {
    NodeError::Nonsense(readable(bytes))
}

/// Of every kind, and some within others.
#[cfg(test)]
pub(super) const VALUES: [&[u8]; 17] = [
    b"+OK\r\n",
    b"-ERR no such thing\r\n",
    b":-7\r\n",
    b"$5\r\na\r\nbc\r\n",
    b"$0\r\n\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"_\r\n",
    b"#t\r\n",
    b",1.5\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"*3\r\n:1\r\n*2\r\n+a\r\n$1\r\nb\r\n_\r\n",
    b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n:2\r\n",
    b"%1\r\n+a\r\n:1\r\n",
    b"%3\r\n+a\r\n:1\r\n+b\r\n:2\r\n+c\r\n:3\r\n",
    b"|1\r\n+a\r\n:1\r\n+b\r\n",
    b">3\r\n+message\r\n$1\r\nc\r\n$2\r\n42\r\n",
];

#[cfg(test)]
mod tests {
    use redis::parse_redis_value;

    use super::*;

    #[test]
    fn every_value_is_cut_at_its_end_and_not_before() {
        for value in VALUES {
            let followed = [value, b"+next\r\n"].concat();
            let mut scan = Scan::new(Most::USUAL);
            for part in 0..value.len() {
                let found = scan.length(&followed[..part]).unwrap();
                assert_eq!(found, None, "{:?}", String::from_utf8_lossy(&value[..part]));
            }
            assert_eq!(scan.length(&followed).unwrap(), Some(value.len()), "{:?}", String::from_utf8_lossy(value));
            assert_eq!(scan.length(&followed).unwrap(), Some(value.len()), "it begins anew");
            assert!(parse_redis_value(value).is_ok(), "{:?}", String::from_utf8_lossy(value));
        }
    }

    #[test]
    fn what_is_not_the_protocol_is_an_error() {
        for bytes in [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"\r\n", b"$x\r\n", b"+a\rb\r\n", b"*1\r\n?\r\n"] {
            let found = Scan::new(Most::USUAL).length(bytes);
            assert!(matches!(found, Err(NodeError::Nonsense(_))), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn what_is_larger_than_any_answer_is_refused_when_it_is_announced() {
        let levels = b"*1\r\n".repeat(MOST_LEVELS);
        let attributes = b"|0\r\n".repeat(MOST_LEVELS);
        let nested = b"*2\r\n*9000\r\n".repeat(2);
        let within = format!("*2\r\n${}\r\n", Most::USUAL.bytes - 10);
        for bytes in [
            &b"*2147483647\r\n"[..],
            b"$2147483647\r\n",
            b"%9223372036854775807\r\n",
            b"|9223372036854775807\r\n",
            b"=1048577\r\n",
            &levels,
            &attributes,
            &nested,
        ] {
            let found = Scan::new(Most::USUAL).length(bytes);
            assert!(
                matches!(found, Err(NodeError::TooLarge { .. })),
                "{:?}: {found:?}",
                String::from_utf8_lossy(bytes)
            );
        }
        assert_eq!(Scan::new(Most::USUAL).length(within.as_bytes()).unwrap(), None);
        let line = vec![b'+'; Most::USUAL.bytes + 1];
        assert!(matches!(Scan::new(Most::USUAL).length(&line), Err(NodeError::TooLarge { .. })));
    }

    #[test]
    fn an_answer_may_have_just_as_many_bytes_and_values_as_are_allowed() {
        let most = Most { bytes: 17, values: 4 };
        let length = |bytes: &[u8]| Scan::new(most).length(bytes);
        assert_eq!(length(b"$10\r\n1234567890\r\n"), Ok(Some(17)));
        assert!(matches!(length(b"$11\r\n12345678901\r\n"), Err(NodeError::TooLarge { .. })));
        assert_eq!(length(b"*3\r\n:1\r\n:2\r\n:3\r\n"), Ok(Some(16)));
        assert!(matches!(length(b"*4\r\n"), Err(NodeError::TooLarge { .. })));
        assert_eq!(length(b"+1234567890123456"), Ok(None));
        assert!(matches!(length(b"+12345678901234567"), Err(NodeError::TooLarge { .. })));
    }

    #[test]
    fn a_line_ends_with_both_of_its_bytes() {
        let mut scan = Scan::new(Most::USUAL);
        assert_eq!(scan.length(b"+a\r"), Ok(None));
        assert!(matches!(scan.length(b"+a\rb\r\n"), Err(NodeError::Nonsense(_))));
    }

    #[test]
    fn each_byte_of_a_line_is_looked_at_once() {
        let mut scan = Scan::new(Most::USUAL);
        for answers in 1..3 {
            assert_eq!(scan.length(b"+OK\r\n"), Ok(Some(5)));
            assert_eq!(scan.looked, 5 * answers);
        }
    }
}
