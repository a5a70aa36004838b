//! Bytes to and from a server: commands as redis-rs packs them, answers cut apart here and read by redis-rs.
//!
//! redis-rs's own connections would do, but answer through a task and two channels for each command, which costs more than
//! the lock itself; what is needed of them is small, as answers come in the order of the commands.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use redis::{Cmd, Value, parse_redis_value};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::introduce::{node_error, said};
use crate::environment::Stream;
use crate::error::NodeError;

/// How much is read at once; most answers are far shorter.
const READ: usize = 8192;

/// More room than this is given back once it is not needed any more.
const KEPT_ROOM: usize = 1 << 16;

pub(super) struct Wire {
    stream: Box<dyn Stream>,
    output: Vec<u8>,
    /// So much of the output the stream has taken.
    written: usize,
    is_flushed: bool,
    input: Vec<u8>,
    /// So much of the input has been read as answers.
    taken: usize,
    room: Box<[u8]>,
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        let room = vec![0; READ].into_boxed_slice();
        Self { stream, output: Vec::new(), written: 0, is_flushed: true, input: Vec::new(), taken: 0, room }
    }

    /// Puts a packed command behind all others; [`poll_write`](Self::poll_write) sends it.
    pub(super) fn push(&mut self, command: &[u8]) {
        self.output.extend_from_slice(command);
    }

    /// Is there nothing to send?
    pub(super) fn is_sent(&self) -> bool {
        self.output.is_empty()
    }

    /// Sends as much as the stream takes now.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), NodeError> {
        while self.written < self.output.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.output[self.written..]) {
                Poll::Ready(Ok(0)) => return Err(broken(&io::ErrorKind::WriteZero.into())),
                Poll::Ready(written) => self.written += written.map_err(|error| broken(&error))?,
                Poll::Pending => {
                    if self.written >= KEPT_ROOM {
                        self.output.drain(..mem::take(&mut self.written));
                    }
                    return Ok(());
                }
            }
            self.is_flushed = false;
        }
        self.output.clear();
        self.output.shrink_to(KEPT_ROOM);
        self.written = 0;
        if !self.is_flushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            flushed.map_err(|error| broken(&error))?;
            self.is_flushed = true;
        }
        Ok(())
    }

    /// The next answer, or what the server says unasked; `None` when that is still to come.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Option<Value>, NodeError> {
        loop {
            let untaken = &self.input[self.taken..];
            if let Some(length) = length(untaken)? {
                let value = match number(&untaken[..length]) {
                    Some(number) => Value::Int(number),
                    None => parse_redis_value(&untaken[..length]).map_err(|_| nonsense(untaken))?,
                };
                self.taken += length;
                return Ok(Some(value));
            }
            self.input.drain(..mem::take(&mut self.taken));
            if self.input.is_empty() {
                self.input.shrink_to(KEPT_ROOM);
            }
            let mut room = ReadBuf::new(&mut self.room);
            match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) if room.filled().is_empty() => {
                    return Err(NodeError::Disconnected("closed by the server".to_owned()));
                }
                Poll::Ready(Ok(())) => self.input.extend_from_slice(room.filled()),
                Poll::Ready(Err(error)) => return Err(broken(&error)),
                Poll::Pending => return Ok(None),
            }
        }
    }

    /// Sends the commands in one go and waits for all their answers.
    pub(super) async fn ask(&mut self, commands: &[Cmd]) -> Result<Vec<Value>, NodeError> {
        for command in commands {
            command.write_packed_command(&mut self.output);
        }
        let mut answers = Vec::with_capacity(commands.len());
        let talked = poll_fn(|cx| {
            self.poll_write(cx)?;
            while answers.len() < commands.len() {
                match self.poll_read(cx)? {
                    Some(answer) => answers.push(answer),
                    None => return Poll::Pending,
                }
            }
            Poll::Ready(Ok::<_, NodeError>(()))
        })
        .await;
        match talked {
            Ok(()) => Ok(answers),
            // A server that turns somebody away says why and hangs up.
            Err(broken) => match answers.into_iter().find_map(|answer| said(answer).err()) {
                Some(why) => Err(node_error(&why)),
                None => Err(broken),
            },
        }
    }
}

fn broken(error: &io::Error) -> NodeError {
    NodeError::Disconnected(error.to_string())
}

fn nonsense(bytes: &[u8]) -> NodeError {
    NodeError::Nonsense(String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned())
}

/// How long the first value in `bytes` is; `None` when it is not whole yet. (RESP3, as
/// <https://redis.io/docs/latest/develop/reference/protocol-spec/> describes it.)
fn length(bytes: &[u8]) -> Result<Option<usize>, NodeError> {
    let (mut at, mut missing) = (0_usize, 1_u64);
    while missing > 0 {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(end) = rest.iter().position(|byte| *byte == b'\r').filter(|end| end + 1 < rest.len()) else {
            return Ok(None);
        };
        let (kind, text) = rest[..end].split_first().ok_or_else(|| nonsense(rest))?;
        // Nothing of a length below zero follows: that is how older servers say null.
        let count = || {
            let count = std::str::from_utf8(text).ok().and_then(|text| text.parse::<i32>().ok());
            count.map(|count| u32::try_from(count).unwrap_or(0)).ok_or_else(|| nonsense(rest))
        };
        let is_null = text.starts_with(b"-");
        at += end + 2;
        missing -= 1;
        match kind {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {}
            b'$' | b'=' | b'!' if is_null => {}
            b'$' | b'=' | b'!' => at += count()? as usize + 2,
            b'*' | b'~' | b'>' => missing += u64::from(count()?),
            b'%' => missing += 2 * u64::from(count()?),
            b'|' => missing += 2 * u64::from(count()?) + 1,
            _ => return Err(nonsense(rest)),
        }
    }
    Ok((at <= bytes.len()).then_some(at))
}

/// The usual answer, without the pains of a parser for every other.
fn number(value: &[u8]) -> Option<i64> {
    let digits = value.strip_prefix(b":")?.strip_suffix(b"\r\n")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of every kind, and some within others.
    const VALUES: [&[u8]; 14] = [
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
        b">3\r\n+message\r\n$1\r\nc\r\n$2\r\n42\r\n",
    ];

    #[test]
    fn every_value_is_cut_at_its_end_and_not_before() {
        for value in VALUES {
            let followed = [value, b"+next\r\n"].concat();
            for part in 0..value.len() {
                assert_eq!(length(&followed[..part]).unwrap(), None, "{:?}", String::from_utf8_lossy(&value[..part]));
            }
            assert_eq!(length(&followed).unwrap(), Some(value.len()), "{:?}", String::from_utf8_lossy(value));
            assert!(parse_redis_value(value).is_ok(), "{:?}", String::from_utf8_lossy(value));
        }
    }

    #[test]
    fn numbers_are_what_redis_rs_reads() {
        for value in [&b":0\r\n"[..], b":-7\r\n", b":+7\r\n", b":9223372036854775807\r\n", b"+7\r\n"] {
            let parsed = parse_redis_value(value).unwrap();
            let Some(number) = number(value) else {
                assert!(!matches!(parsed, Value::Int(_)), "{parsed:?}");
                continue;
            };
            assert_eq!(parsed, Value::Int(number));
        }
    }

    #[test]
    fn what_is_not_the_protocol_is_an_error() {
        for bytes in [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"\r\n", b"$x\r\n", b"*99999999999\r\n", b"*1\r\n?\r\n"] {
            assert!(matches!(length(bytes), Err(NodeError::Nonsense(_))), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test]
    async fn answers_come_in_order_however_the_bytes_are_cut() {
        let (stream, mut server) = tokio::io::duplex(3);
        let mut wire = Wire::new(Box::new(stream));
        let serve = async {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let (commands, answers) = (b"*1\r\n$4\r\nPING\r\n".repeat(2), b"+PONG\r\n*1\r\n$3\r\nx\r\n\r\n");
            let mut heard = vec![0; commands.len()];
            server.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, commands);
            server.write_all(answers).await.unwrap();
        };
        let pings = [redis::cmd("PING"), redis::cmd("PING")];
        let (answers, ()) = tokio::join!(wire.ask(&pings), serve);
        let x = Value::BulkString(b"x\r\n".to_vec());
        assert_eq!(answers.unwrap(), [Value::SimpleString("PONG".to_owned()), Value::Array(vec![x])]);
        drop(server);
        let ended = wire.ask(&pings).await;
        assert!(matches!(ended, Err(NodeError::Disconnected(_))), "{ended:?}");
    }
}
