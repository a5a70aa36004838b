//! Any bytes that a node sends, cut into any pieces: no panic, bounded memory, and no byte looked at twice.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use proptest::collection::vec;
use proptest::prelude::*;
use redis::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::scan::{Most, VALUES};
use super::stream::{READ_BYTES, RespStream};
use crate::error::NodeError;

/// How many inputs there are, if it is not the usual number.
const INPUTS: &str = "QUORLOCK_REPLY_INPUTS";

/// Gives a piece at each second read, and takes nothing.
#[derive(Debug)]
struct Pieces {
    left: VecDeque<Vec<u8>>,
    waits: bool,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.waits = !self.waits;
        if self.waits || self.left.is_empty() {
            return Poll::Pending;
        }
        let Some(mut piece) = self.left.pop_front() else { return Poll::Pending };
        if piece.len() > buffer.remaining() {
            self.left.push_front(piece.split_off(buffer.remaining()));
        }
        buffer.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

/// What a value takes, in bytes.
fn size(value: &Value) -> usize {
    let of = |values: &[Value]| values.iter().map(size).sum::<usize>();
    let pairs = |pairs: &[(Value, Value)]| pairs.iter().map(|(key, value)| size(key) + size(value)).sum::<usize>();
    size_of::<Value>()
        + match value {
            Value::BulkString(bytes) | Value::BigNumber(bytes) => bytes.capacity(),
            Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.capacity(),
            Value::Array(values) | Value::Set(values) | Value::Push { data: values, .. } => of(values),
            Value::Map(map) => pairs(map),
            Value::Attribute { data, attributes } => size(data) + pairs(attributes),
            _ => 0,
        }
}

/// Reads all there is. Gives the answers, how it ended, and how many bytes were looked at, but for one at each call.
fn read(pieces: Vec<Vec<u8>>, most: Most, budget: usize) -> (Vec<Value>, Option<NodeError>, usize) {
    let polls = 4 + 4 * pieces.iter().map(|piece| 1 + piece.len() / READ_BYTES.min(budget)).sum::<usize>();
    let mut stream = RespStream::new(Box::new(Pieces { left: pieces.into(), waits: false }));
    stream.allow(most);
    let (mut answers, mut calls) = (Vec::new(), 0);
    let cx = &mut Context::from_waker(futures::task::noop_waker_ref());
    for _ in 0..polls {
        let mut left = budget;
        loop {
            calls += 1;
            let read = stream.poll_read(cx, &mut left);
            assert!(stream.memory() <= 3 * (most.bytes + 2 * READ_BYTES), "{} bytes are kept", stream.memory());
            match read {
                Ok(Some(answer)) => {
                    let taken = size(&answer);
                    assert!(taken <= most.bytes + (most.values + 2) * size_of::<Value>(), "{taken} bytes: {answer:?}");
                    answers.push(answer);
                }
                Ok(None) => break,
                Err(error) => return (answers, Some(error), stream.looked().saturating_sub(2 * calls)),
            }
        }
    }
    (answers, None, stream.looked().saturating_sub(2 * calls))
}

/// Something of the protocol, or not.
fn token() -> impl Strategy<Value = Vec<u8>> {
    let head = (prop::sample::select(b"+-:_#,($=!*~>%|".to_vec()), any::<i64>(), 0..4_u8);
    let head = head.prop_map(|(kind, number, how)| {
        let number = match how {
            0 => number,
            1 => number % 5,
            2 => number % 100,
            _ => number % (1 << 33),
        };
        format!("{}{number}\r\n", char::from(kind)).into_bytes()
    });
    prop_oneof![
        4 => prop::sample::select(VALUES.to_vec()).prop_map(<[u8]>::to_vec),
        3 => head,
        1 => vec(any::<u8>(), 0..20),
        1 => (any::<u8>(), 0..600_usize).prop_map(|(byte, times)| vec![byte; times]),
        1 => Just(b"\r\n".to_vec()),
    ]
}

/// Tokens, some of whose bytes are then changed, lost or put in between.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..3_u8);
    (vec(token(), 0..8), vec(change, 0..3)).prop_map(|(tokens, changes)| {
        let mut bytes = tokens.concat();
        for (place, byte, how) in changes {
            let place = place.index(bytes.len() + 1);
            match how {
                0 => bytes.insert(place, byte),
                1 if place < bytes.len() => bytes[place] = byte,
                _ if place < bytes.len() => drop(bytes.remove(place)),
                _ => {}
            }
        }
        bytes
    })
}

fn cut(mut bytes: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    for size in sizes.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at((*size).min(bytes.len()));
        pieces.push(piece.to_vec());
        bytes = rest;
    }
    pieces
}

fn cases() -> u32 {
    std::env::var(INPUTS).map_or(2000, |inputs| inputs.parse().unwrap_or_else(|_| panic!("{INPUTS} is no number")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replies_cost_what_they_may_and_mean_the_same_in_any_pieces(
        bytes in input(),
        sizes in vec(1..40_usize, 1..5),
        (most_bytes, most_values) in (16..400_usize, 2..20_usize),
        budget in 1..100_usize,
    ) {
        for most in [Most::USUAL, Most { bytes: most_bytes, values: most_values }] {
            let pieces = cut(&bytes, &sizes);
            let (answers, error, looked) = read(pieces, most, budget);
            prop_assert!(looked <= bytes.len(), "{looked} of {} bytes looked at", bytes.len());
            prop_assert!(
                matches!(error, None | Some(NodeError::Nonsense(_) | NodeError::TooLarge { .. })),
                "{error:?}"
            );
            let (whole, other, _) = read(cut(&bytes, &[usize::MAX]), most, usize::MAX);
            prop_assert_eq!(format!("{answers:?}"), format!("{whole:?}"));
            prop_assert_eq!(error.is_some(), other.is_some(), "{:?} {:?}", error, other);
        }
    }
}
