//! The Redis protocol, as far as a node needs it.

#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Okay,
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
    /// A push of RESP3, or the confirmation of a subscription.
    Push(Vec<Reply>),
    /// Names and values in turn.
    Map(Vec<Reply>),
}

impl Reply {
    pub fn bulk(text: impl Into<Vec<u8>>) -> Self {
        Self::Bulk(text.into())
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Okay => out.extend_from_slice(b"+OK\r\n"),
            Self::Simple(text) => line(out, b'+', text.as_bytes()),
            Self::Error(text) => line(out, b'-', text.as_bytes()),
            Self::Int(number) => line(out, b':', number.to_string().as_bytes()),
            Self::Nil => out.extend_from_slice(b"$-1\r\n"),
            Self::Bulk(bytes) => {
                line(out, b'$', bytes.len().to_string().as_bytes());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Self::Array(items) => all(out, b'*', items.len(), items),
            Self::Push(items) => all(out, b'>', items.len(), items),
            Self::Map(items) => all(out, b'%', items.len() / 2, items),
        }
    }
}

fn all(out: &mut Vec<u8>, kind: u8, count: usize, items: &[Reply]) {
    line(out, kind, count.to_string().as_bytes());
    items.iter().for_each(|item| item.encode(out));
}

fn line(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    out.push(kind);
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// The first command in `bytes` and its length; `None` when it is not complete yet.
pub fn parse_command(bytes: &[u8]) -> Option<(Vec<&[u8]>, usize)> {
    let (count, mut at) = header(bytes, 0, b'*')?;
    let mut args = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, start) = header(bytes, at, b'$')?;
        args.push(bytes.get(start..start + length)?);
        at = start + length + 2;
        if bytes.len() < at {
            return None;
        }
    }
    Some((args, at))
}

/// Returns the number behind `kind` on the line that starts at `at`, and where the next line starts.
fn header(bytes: &[u8], at: usize, kind: u8) -> Option<(usize, usize)> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|byte| *byte == b'\r').filter(|end| rest.len() > end + 1)?;
    assert_eq!(rest[0], kind, "a request that is not an array of bulk strings");
    let number = rest[1..end].iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
    Some((number, at + end + 2))
}
