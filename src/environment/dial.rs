//! How a TCP connection is opened: names are looked up beside the task of the connections, and their addresses race.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::pin::pin;
use std::sync::LazyLock;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::select;
use tokio::time::sleep;

use super::beside::Beside;

/// How long an address has to answer before the next one is tried beside it (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Within this time all addresses are tried, however many there are. After it a further attempt begins beside the others: the
/// operating system repeats the packets of an old attempt more and more rarely, and would find a host late that comes back.
const ALL_BEGUN: Duration = Duration::from_secs(1);

/// An idle connection is probed after this time, so that nothing between forgets it, and a host that is gone is noticed.
const IDLE: Duration = Duration::from_secs(15);
const BETWEEN_PROBES: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

/// What a lookup gave; an error as its kind and its words, as many attempts may share it.
type Found = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;

static LOOKUPS: LazyLock<Beside<(String, u16), Found>> = LazyLock::new(Beside::default);

/// Connects to a name or an address.
pub(crate) async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = race(interleaved(addresses(host, port).await?), TcpStream::connect).await?;
    stream.set_nodelay(true)?;
    // Where the system has no such probes, the connection is as good without.
    let _ = sockopt::set_socket_keepalive(&stream, true)
        .and_then(|()| sockopt::set_tcp_keepidle(&stream, IDLE))
        .and_then(|()| sockopt::set_tcp_keepintvl(&stream, BETWEEN_PROBES))
        .and_then(|()| sockopt::set_tcp_keepcnt(&stream, PROBES));
    Ok(stream)
}

async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
    let name = (host.to_owned(), port);
    let lookup = {
        let name = name.clone();
        move || -> Found {
            let found = name.to_socket_addrs().map_err(|error| (error.kind(), error.to_string()))?;
            Ok(found.collect())
        }
    };
    let found = LOOKUPS.ask(name, lookup).await?;
    found.map_err(|(kind, words)| io::Error::new(kind, words))
}

/// Orders addresses so that the families take turns, the first one first, each in its own order.
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_six = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == is_six);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut all = Vec::new();
    loop {
        let next = [first.next(), second.next()];
        if next == [None, None] {
            return all;
        }
        all.extend(next.into_iter().flatten());
    }
}

/// Begins one attempt after the other, and returns the first connection. The next attempt begins when one fails, or has taken too
/// long. Fails when all have failed.
async fn race<T, F>(addresses: Vec<SocketAddr>, connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let stagger = STAGGER.min(ALL_BEGUN / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX));
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut under_way = FuturesUnordered::new();
    let mut begun = 0;
    for address in addresses.iter().cycle() {
        under_way.push(connect(*address));
        begun += 1;
        let is_last = begun >= addresses.len();
        let mut next = pin!(sleep(if is_last { ALL_BEGUN } else { stagger }));
        loop {
            let ended = select! {
                biased;
                Some(ended) = under_way.next() => ended,
                () = &mut next => break,
            };
            match ended {
                Ok(connected) => return Ok(connected),
                Err(why) => error = why,
            }
            match is_last {
                false => break,
                true if under_way.is_empty() => return Err(error),
                true => {}
            }
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The first address of each of these never answers.
    async fn connect(to: SocketAddr) -> io::Result<u16> {
        match to.port() {
            1 => pending().await,
            2 => Err(io::ErrorKind::ConnectionRefused.into()),
            port => {
                sleep(Duration::from_millis(10)).await;
                Ok(port)
            }
        }
    }

    async fn won(ports: &[u16]) -> (io::Result<u16>, u128) {
        let start = Instant::now();
        let addresses = ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect();
        let won = race(addresses, connect).await;
        (won, start.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_address_costs_a_moment_and_a_refusal_nothing() {
        assert!(matches!(won(&[3]).await, (Ok(3), 10..=12)));
        let (winner, took) = won(&[1, 3]).await;
        assert!(winner.unwrap() == 3 && (260..=265).contains(&took), "{took} ms");
        assert!(matches!(won(&[2, 2, 3, 4]).await, (Ok(3), 10..=12)));
        let (winner, took) = won(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 3]).await;
        assert!(winner.unwrap() == 3 && took < 1000, "{took} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_comes_back_is_found_soon() {
        let start = Instant::now();
        let answers = |_| async move {
            let begun = start.elapsed();
            if begun < Duration::from_millis(1500) { pending().await } else { Ok(begun) }
        };
        let won = race(vec![address("127.0.0.1:1")], answers).await.unwrap();
        assert!((2000..2010).contains(&won.as_millis()), "{won:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_told_when_all_have_failed() {
        let (refused, _) = won(&[2, 2]).await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(won(&[]).await.0.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn families_take_turns() {
        let six = ["[::1]:1", "[::1]:2", "[::1]:3"].map(address);
        let four = ["127.0.0.1:4", "127.0.0.1:5"].map(address);
        assert_eq!(interleaved([&six[..], &four].concat()), [six[0], four[0], six[1], four[1], six[2]]);
        assert_eq!(interleaved(vec![four[0], six[0]]), [four[0], six[0]]);
        assert_eq!(interleaved(vec![]), []);
    }

    #[tokio::test]
    async fn names_and_addresses_are_found() {
        assert_eq!(addresses("::1", 7).await.unwrap(), [address("[::1]:7")]);
        assert!(addresses("localhost", 7).await.unwrap().iter().all(|found| found.ip().is_loopback()));
        assert!(addresses("no-such-name.invalid", 7).await.is_err());
    }
}
