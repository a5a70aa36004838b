//! Whether a server answers, directly or through a link: the effect of the faults that silence it.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::effect::Proof;

/// A server that nothing keeps from it answers within this time. It is short beside every fault.
const ANSWERING: Duration = Duration::from_millis(40);

/// How often a server that should be silent is asked: a signal needs a moment to stop its process.
const TRIES: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(10);

const CONNECTING: Duration = Duration::from_millis(100);
/// How long a connection may take to break after a reset.
const BREAKING: Duration = Duration::from_millis(500);

/// Asks on this port, and returns the connection if there was an answer within the limit.
async fn ask(port: u16, password: &str, limit: Duration) -> Option<TcpStream> {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        // A server in CLIENT PAUSE refuses what is sent without a password, and answers nothing else.
        stream.write_all(format!("AUTH {password}\r\n").as_bytes()).await?;
        let read = stream.read(&mut [0; 64]).await?;
        Ok::<_, std::io::Error>((read > 0).then_some(stream))
    };
    timeout(limit, asked).await.ok()?.ok()?
}

/// Proves that nothing answers on this port.
pub async fn silence(port: u16, password: &str) -> Proof {
    for _ in 0..TRIES {
        if ask(port, password, ANSWERING).await.is_none() {
            return Proof::Seen;
        }
        sleep(BETWEEN_TRIES).await;
    }
    Proof::Failed("the node still answers".to_owned())
}

/// Proves that no answer comes on this port within the delay.
pub async fn delay(port: u16, password: &str, delay: Duration) -> Proof {
    match ask(port, password, delay.min(ANSWERING).mul_f64(0.9)).await {
        None => Proof::Seen,
        Some(_) => Proof::Failed("the node answers without a delay".to_owned()),
    }
}

/// Returns a connection that works, on the first of these ports where there can be one now.
pub async fn connection(ports: impl Iterator<Item = u16>, password: &str) -> Option<TcpStream> {
    for port in ports {
        let connection = ask(port, password, CONNECTING).await;
        if connection.is_some() {
            return connection;
        }
    }
    None
}

/// Proves that this connection breaks.
pub async fn end(connection: Option<TcpStream>) -> Proof {
    let Some(mut stream) = connection else {
        return Proof::Failed("no connection could be made before, because of another fault".to_owned());
    };
    match timeout(BREAKING, stream.read(&mut [0; 64])).await {
        Ok(Ok(0) | Err(_)) => Proof::Seen,
        Ok(Ok(_)) | Err(_) => Proof::Failed("the connections go on".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers to what is sent after a while, or never.
    async fn server(answers_after: Option<Duration>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 64]).await;
                    match answers_after {
                        Some(after) => sleep(after).await,
                        None => std::future::pending().await,
                    }
                    let _ = stream.write_all(b"+OK\r\n").await;
                    sleep(Duration::from_millis(100)).await;
                });
            }
        });
        port
    }

    /// On a busy machine an answer may take too long, so it may take several tries to find out that there is one.
    async fn fails_sooner_or_later(prove: impl AsyncFn() -> Proof) {
        for _ in 0..100 {
            if matches!(prove().await, Proof::Failed(_)) {
                return;
            }
        }
        panic!("an answer is never noticed");
    }

    #[tokio::test]
    async fn only_a_server_that_does_not_answer_is_silent() {
        assert_eq!(silence(server(None).await, "secret").await, Proof::Seen);
        let port = server(Some(Duration::ZERO)).await;
        fails_sooner_or_later(async || silence(port, "secret").await).await;
        let closed =
            TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("an address").port();
        assert_eq!(silence(closed, "secret").await, Proof::Seen);
    }

    #[tokio::test]
    async fn a_delay_is_no_less_than_it_should_be() {
        let after = |ms| Some(Duration::from_millis(ms));
        let wanted = Duration::from_millis(20);
        assert_eq!(delay(server(after(60)).await, "secret", wanted).await, Proof::Seen);
        let port = server(after(0)).await;
        fails_sooner_or_later(async || delay(port, "secret", wanted).await).await;
    }

    #[tokio::test]
    async fn a_connection_that_goes_on_was_not_reset() {
        let port = server(Some(Duration::ZERO)).await;
        let ports = std::iter::once(server(None).await).chain([port; 20]);
        let broken = connection(ports, "secret").await;
        assert!(broken.is_some());
        assert_eq!(end(broken).await, Proof::Seen, "the server closes it after 100 ms");
        assert!(matches!(end(None).await, Proof::Failed(_)));
    }
}
