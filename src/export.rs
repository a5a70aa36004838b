use std::fmt::{self, Write as _};
use std::str::FromStr;

use crate::error::ExportError;
use crate::protocol::{Ballot, Share, Token};
use crate::resource::Resource;
use crate::text::LONGEST_LABEL;

const VERSION: &str = "quorlock1";

/// A lease as it is handed to another process: owner, label, and for each resource its lock key, token,
/// ballot, and the share of the client that exports it.
///
/// Written as `quorlock1 OWNER LABEL KEY TOKEN BALLOT SHARE [KEY TOKEN BALLOT SHARE]… [+ KEY TOKEN BALLOT SHARE…]` with `;`
/// between, keys percent-encoded. Behind the `+` stands what the owner has inherited itself: it may be entered on the way, but who joins
/// the export does not hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    pub(crate) owner: u128,
    pub(crate) label: String,
    pub(crate) leases: Vec<ExportedLease>,
    pub(crate) inherited: Vec<ExportedLease>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExportedLease {
    pub(crate) lock_key: Vec<u8>,
    pub(crate) token: Token,
    pub(crate) known: Ballot,
    pub(crate) share: Share,
}

impl Export {
    pub(crate) fn all(&self) -> impl Iterator<Item = &ExportedLease> {
        self.leases.iter().chain(&self.inherited)
    }

    pub(crate) fn lease(&self, resource: &Resource) -> Option<&ExportedLease> {
        self.all().find(|lease| lease.lock_key == resource.lock_key())
    }
}

impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION};{:032x};{}", self.owner, encode(self.label.as_bytes()))?;
        for (i, lease) in self.all().enumerate() {
            if i == self.leases.len() {
                f.write_str(";+")?;
            }
            write!(f, ";{};{};{};{}", encode(&lease.lock_key), lease.token, lease.known, lease.share)?;
        }
        Ok(())
    }
}

impl FromStr for Export {
    type Err = ExportError;

    fn from_str(text: &str) -> Result<Self, ExportError> {
        parse(text).ok_or(ExportError)
    }
}

fn parse(text: &str) -> Option<Export> {
    let mut fields = text.trim().split(';');
    if fields.next()? != VERSION {
        return None;
    }
    let owner = u128::from_str_radix(fields.next().filter(|id| id.len() == 32)?, 16).ok()?;
    let label = String::from_utf8(decode(fields.next()?)?).ok()?;
    // It goes into lock keys and ballot keys, between spaces.
    let is_word = !label.is_empty() && label != "|" && label.bytes().all(|b| b.is_ascii_graphic());
    if !is_word || label.len() > LONGEST_LABEL {
        return None;
    }
    let (mut leases, mut inherited) = (Vec::new(), None);
    while let Some(key) = fields.next() {
        if key == "+" && inherited.is_none() {
            inherited = Some(Vec::new());
            continue;
        }
        let number = |text: Option<&str>| Ballot::from_wire(text?.parse().ok()?).filter(|n| *n > Ballot::ZERO);
        let token = number(fields.next())?;
        let known = number(fields.next())?;
        let share = fields.next()?.parse().ok()?;
        let lease = ExportedLease { lock_key: decode(key)?, token: token.into(), known, share };
        inherited.as_mut().unwrap_or(&mut leases).push(lease);
    }
    (!leases.is_empty()).then_some(Export { owner, label, leases, inherited: inherited.unwrap_or_default() })
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b':' | b'/' => text.push(char::from(*byte)),
            byte => drop(write!(text, "%{byte:02x}")), // Writing to a string cannot fail.
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_survives_the_journey() {
        let all_bytes: Vec<u8> = (0..=255).collect();
        for lock_key in [b"quorlock:lock:account:42".to_vec(), Vec::new(), all_bytes, b"%;;%".to_vec(), b"+".to_vec()] {
            let token = Ballot::from_wire(17).unwrap();
            let share = Share { client: 0x5e, lease: 0xd1 };
            let lease = ExportedLease { lock_key, token: token.into(), known: token.next(), share };
            let export = Export {
                owner: u128::MAX - 5,
                label: "host:1:a;b%".to_owned(),
                leases: vec![lease.clone(), lease.clone()],
                inherited: vec![lease],
            };
            let text = export.to_string();
            assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{text}");
            assert_eq!(text.parse(), Ok(export));
        }
    }

    #[test]
    fn what_is_not_an_export_is_refused() {
        let (owner, share) = ("0123456789abcdef0123456789abcdef", "0123456789abcdef/1");
        assert!(format!("quorlock1;{owner};label;key;1;2;{share}").parse::<Export>().is_ok());
        for text in [
            String::new(),
            "quorlock1".to_owned(),
            format!("quorlock2;{owner};label;key;1;2"),
            format!("quorlock1;{owner};label"),
            format!("quorlock1;{owner};;key;1;2;{share}"),
            format!("quorlock1;{owner};a%20b;key;1;2;{share}"),
            format!("quorlock1;{owner};{};key;1;2;{share}", "a".repeat(LONGEST_LABEL + 1)),
            format!("quorlock1;{owner};label;key;1"),
            format!("quorlock1;{owner};label;key;1;2"),
            format!("quorlock1;{owner};label;key;1;2;{share} x:1"),
            format!("quorlock1;{owner};label;key;0;2;{share}"),
            format!("quorlock1;{owner};label;key;1;9007199254740992;{share}"),
            format!("quorlock1;{owner};label;key%;1;2;{share}"),
            format!("quorlock1;{owner};label;+;key;1;2;{share}"),
            format!("quorlock1;{owner};label;key;1;2;{share};+;key;1;2;{share};+"),
            format!("quorlock1;{};label;key;1;2;{share}", &owner[1..]),
        ] {
            assert_eq!(text.parse::<Export>(), Err(ExportError), "{text}");
        }
    }
}
