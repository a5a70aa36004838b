//! Bytes to and from a server: commands as redis-rs packs them, answers cut apart here and read by redis-rs.
//!
//! redis-rs's own connections would do, but answer through a task and two channels for each command, which costs more than
//! the lock itself; what is needed of them is small, as answers come in the order of the commands.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use redis::{Cmd, PushKind, Value, parse_redis_value};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::scan::{Most, Scan, nonsense};
use super::server_error::{node_error, said};
use crate::environment::Stream;
use crate::error::NodeError;

/// How much is read at once; most answers are far shorter.
pub(super) const READ_BYTES: usize = 8192;

/// How many bytes are read from one node before the others have their turn.
pub(super) const MOST_READ_BYTES: usize = 1 << 16;

/// A buffer larger than this is given back once it is not needed any more.
const KEPT_BUFFER_BYTES: usize = 1 << 16;

pub(super) struct RespStream {
    stream: Box<dyn Stream>,
    output: Vec<u8>,
    /// How much of the output the stream has taken.
    written: usize,
    is_flushed: bool,
    input: Vec<u8>,
    /// How much of the input has been read as answers.
    taken: usize,
    /// Of what follows.
    scan: Scan,
    buffer: Box<[u8]>,
}

impl RespStream {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        Self {
            stream,
            output: Vec::new(),
            written: 0,
            is_flushed: true,
            input: Vec::new(),
            taken: 0,
            scan: Scan::new(Most::USUAL),
            buffer,
        }
    }

    /// Sets how large answers may be, from the next one on.
    #[cfg(any(test, feature = "cli"))]
    pub(super) fn allow(&mut self, most: Most) {
        self.scan = Scan::new(most);
    }

    /// Puts a packed command behind all others; [`poll_write`](Self::poll_write) sends it.
    pub(super) fn push(&mut self, command: &[u8]) {
        self.output.extend_from_slice(command);
    }

    /// Returns how many bytes the stream has not taken yet.
    pub(super) fn unsent(&self) -> usize {
        self.output.len() - self.written
    }

    /// Returns whether there is nothing to send.
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
                    if self.written >= KEPT_BUFFER_BYTES {
                        self.output.drain(..mem::take(&mut self.written));
                    }
                    return Ok(());
                }
            }
            self.is_flushed = false;
        }
        self.output.clear();
        self.output.shrink_to(KEPT_BUFFER_BYTES);
        self.written = 0;
        if !self.is_flushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            flushed.map_err(|error| broken(&error))?;
            self.is_flushed = true;
        }
        Ok(())
    }

    /// Returns the next answer, or what the server sends unasked; `None` when that is still to come, or when the budget is used up.
    /// What is read is taken off the budget, in bytes. The last read may exceed it.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, budget: &mut usize) -> Result<Option<Value>, NodeError> {
        loop {
            let untaken = &self.input[self.taken..];
            if let Some(length) = self.scan.length(untaken)? {
                let value = match number(&untaken[..length]) {
                    Some(number) => Value::Int(number),
                    None => parse_redis_value(&untaken[..length]).map_err(|_| nonsense(untaken))?,
                };
                self.taken += length;
                return Ok(Some(value));
            }
            self.input.drain(..mem::take(&mut self.taken));
            if self.input.is_empty() {
                self.input.shrink_to(KEPT_BUFFER_BYTES);
            }
            if *budget == 0 {
                return Ok(None);
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    return Err(NodeError::Disconnected("closed by the server".to_owned()));
                }
                Poll::Ready(Ok(())) => {
                    *budget = budget.saturating_sub(buffer.filled().len());
                    self.input.extend_from_slice(buffer.filled());
                }
                Poll::Ready(Err(error)) => return Err(broken(&error)),
                Poll::Pending => return Ok(None),
            }
        }
    }

    /// How many bytes the input takes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.input.capacity()
    }

    /// How many bytes of the input were looked at for the ends of lines.
    #[cfg(test)]
    pub(super) fn looked(&self) -> usize {
        self.scan.looked
    }

    /// Sends the commands in one go and waits for all their answers.
    pub(super) async fn ask(&mut self, commands: &[Cmd]) -> Result<Vec<Value>, NodeError> {
        for command in commands {
            command.write_packed_command(&mut self.output);
        }
        let mut answers = Vec::with_capacity(commands.len());
        let talked = poll_fn(|cx| {
            self.poll_write(cx)?;
            let mut budget = MOST_READ_BYTES;
            while answers.len() < commands.len() {
                let Some(answer) = self.poll_read(cx, &mut budget)? else {
                    if budget == 0 {
                        cx.waker().wake_by_ref();
                    }
                    return Poll::Pending;
                };
                // A call for a waiting request, on a channel that these commands have subscribed to.
                if !matches!(answer, Value::Push { kind: PushKind::Message, .. }) {
                    answers.push(answer);
                }
            }
            Poll::Ready(Ok::<_, NodeError>(()))
        })
        .await;
        match talked {
            Ok(()) => Ok(answers),
            // A server that refuses a client sends the reason and closes the connection.
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

/// Reads the usual answer, a number, faster than the parser for all kinds.
fn number(value: &[u8]) -> Option<i64> {
    let digits = value.strip_prefix(b":")?.strip_suffix(b"\r\n")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[tokio::test]
    async fn answers_come_in_order_however_the_bytes_are_cut() {
        let (stream, mut server) = tokio::io::duplex(3);
        let mut stream = RespStream::new(Box::new(stream));
        let serve = async {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let (commands, answers) =
                (b"*1\r\n$4\r\nPING\r\n".repeat(2), b"+PONG\r\n>3\r\n+message\r\n+a\r\n+1\r\n*1\r\n$3\r\nx\r\n\r\n");
            let mut received = vec![0; commands.len()];
            server.read_exact(&mut received).await.unwrap();
            assert_eq!(received, commands);
            server.write_all(answers).await.unwrap();
        };
        let pings = [redis::cmd("PING"), redis::cmd("PING")];
        let (answers, ()) = tokio::join!(stream.ask(&pings), serve);
        let x = Value::BulkString(b"x\r\n".to_vec());
        assert_eq!(answers.unwrap(), [Value::SimpleString("PONG".to_owned()), Value::Array(vec![x])]);
        drop(server);
        let ended = stream.ask(&pings).await;
        assert!(matches!(ended, Err(NodeError::Disconnected(_))), "{ended:?}");
    }

    #[tokio::test]
    async fn what_the_stream_has_not_taken_is_unsent() {
        let (stream, _server) = tokio::io::duplex(3);
        let mut stream = RespStream::new(Box::new(stream));
        stream.push(b"1234567");
        poll_fn(|cx| Poll::Ready(stream.poll_write(cx))).await.unwrap();
        assert_eq!((stream.unsent(), stream.is_sent()), (4, false));
    }
}
