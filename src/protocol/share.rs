use std::fmt;
use std::str::FromStr;

/// One client's part in one lease: a word that is never used twice, so a client that joins a lease once more has a new share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Random, of the client.
    pub(crate) client: u64,
    /// Of the client's leases.
    pub(crate) lease: u64,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}/{:x}", self.client, self.lease)
    }
}

impl FromStr for Share {
    type Err = ();

    /// Takes only what [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| u64::from_str_radix(text, 16).map_err(drop);
        let (client, lease) = text.split_once('/').ok_or(())?;
        let share = Self { client: number(client)?, lease: number(lease)? };
        if share.to_string() == text { Ok(share) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_read_as_it_is_written() {
        for share in [Share { client: 0, lease: 0 }, Share { client: u64::MAX, lease: 0x1f }] {
            assert_eq!(share.to_string().parse(), Ok(share));
        }
        let client = "0123456789abcdef";
        for text in ["", "/", "1/2", "0123456789abcdeF/1", "+123456789abcdef/1"].map(str::to_owned) {
            assert_eq!(text.parse::<Share>(), Err(()), "{text}");
        }
        for text in [format!("{client}/"), format!("{client}/01"), format!("{client}/1/"), format!("{client}/1 ")] {
            assert_eq!(text.parse::<Share>(), Err(()), "{text}");
        }
    }
}
