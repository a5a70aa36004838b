//! What is behind a [`Node`](super::Node), in the one task of all connections: connects and reconnects (`away`), sends in order
//! (`turn`), delivers answers (`answers`).
//!
//! It has the stream to itself, so a request crosses one task on its way out and one on its way back, for any number of
//! requests under way.

mod answers;
mod away;
mod turn;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::mpsc::UnboundedReceiver;

use super::address::NodeAddress;
use super::backlog::Backlog;
use super::common::Common;
use super::condition::Condition;
use super::connect_attempt::{ConnectAttempt, Made, panicked};
use super::inflight::Inflight;
use super::known::Wait;
use super::pause;
use super::request::{Message, Request};
use crate::environment::{Environment, Moment};
use crate::error::{ClientError, NodeError};

/// The least time for which a connection may be silent before it is closed.
const LEAST_SILENCE_LIMIT: Duration = Duration::from_secs(1);

/// How the use of a connection ends.
enum End {
    /// The client is gone, and all is done.
    Done,
    Broken(NodeError),
    /// Another connection works, and this one is silent.
    Replaced(Box<Made>),
}

pub(super) struct Connection {
    index: usize,
    name: Arc<str>,
    address: NodeAddress,
    environment: Arc<dyn Environment>,
    common: Arc<Common>,
    /// For the end of the node's quarantine.
    wait: Wait,
    requests: UnboundedReceiver<Message>,
    /// What the client knows of the node.
    condition: Arc<Condition>,
    /// What came before the first connection was made or refused.
    early: Backlog,
    /// Releases that the node has not acknowledged, in order, and what else was under way on a connection that broke, until the
    /// first attempt to make another has ended.
    unacknowledged: VecDeque<Request>,
    /// The next connection, when it is already being made.
    attempt: Option<ConnectAttempt>,
    /// Why there is no connection; `None` until the first attempt ends, also after a connection that was good.
    down: Option<NodeError>,
    /// How long to wait before the next attempt.
    pause: Duration,
    /// Since when the client is gone.
    closing: Option<Moment>,
}

impl Connection {
    pub(super) fn new(
        index: usize,
        name: Arc<str>,
        address: NodeAddress,
        environment: Arc<dyn Environment>,
        common: Arc<Common>,
        requests: UnboundedReceiver<Message>,
        condition: Arc<Condition>,
    ) -> Self {
        Self {
            index,
            name,
            address,
            environment,
            wait: Wait::default(),
            common,
            requests,
            condition,
            early: Backlog::new(index),
            unacknowledged: VecDeque::new(),
            attempt: None,
            down: None,
            pause: Duration::ZERO,
            closing: None,
        }
    }

    /// Runs until the client or its runtime ends.
    pub(super) async fn run(mut self) {
        while let Some(made) = self.connect().await {
            let mut end = self.serve(made).await;
            while let End::Replaced(made) = end {
                end = self.serve(*made).await;
            }
            if let End::Done = end {
                return;
            }
        }
        self.requests.close();
        while let Ok(message) = self.requests.try_recv() {
            match message {
                Message::Request(request) => self.early.push(request, || NodeError::Connecting),
                Message::Then(next) => next(),
                Message::Close => {}
            }
        }
        for request in self.early.take().into_iter().chain(mem::take(&mut self.unacknowledged)) {
            request.reply_to.answer(self.index, Err(ClientError::RuntimeEnded.into()));
        }
    }

    /// Notes that the client is gone: what was sent to the connection is seen through.
    fn close(&mut self) {
        self.closing = Some(self.environment.now());
    }

    fn silence_limit(&self) -> Duration {
        LEAST_SILENCE_LIMIT.max(2 * self.common.timeout)
    }

    fn begin(&self) -> ConnectAttempt {
        ConnectAttempt::begin(self.index, &self.name, &self.address, &self.environment, &self.common)
    }

    /// Drops the attempt beside the connection in use.
    fn abandon(&mut self) {
        if self.attempt.take().is_some() {
            self.common.abandoned(self.index);
        }
    }

    /// Sends and delivers until the connection ends.
    async fn serve(&mut self, made: Made) -> End {
        self.common.connected(self.index);
        self.common.telemetry.connected(self.index);
        let mut inflight = Inflight::new(made, Arc::clone(&self.environment), self.common.conflicts());
        let mut waiting = Backlog::new(self.index);
        waiting.append(mem::take(&mut self.unacknowledged));
        waiting.append(self.early.take());
        self.down = None;
        let now = self.environment.now();
        self.condition.is_up(now, inflight.known.quarantine(now));
        self.common.has_quarantine(self.index, inflight.known.forgot(now));
        self.common.waits_for(self.index, inflight.last_wait());
        // Should the code panic, this connection has ended, and no other.
        let used = AssertUnwindSafe(poll_fn(|cx| self.turn(&mut inflight, &mut waiting, cx))).catch_unwind().await;
        self.common.disconnected(self.index);
        let end = used.unwrap_or_else(|panic| End::Broken(NodeError::Disconnected(panicked(panic.as_ref()))));
        match &end {
            End::Done => return end,
            End::Replaced(_) => {}
            End::Broken(broken) => {
                self.pause = pause::after(self.pause, &inflight, broken, self.environment.now());
                self.condition.is_down(broken.clone());
                let is_passing = matches!(broken, NodeError::Disconnected(_) | NodeError::Forgot);
                self.down = (!is_passing || !self.pause.is_zero()).then(|| broken.clone());
            }
        }
        for request in inflight.into_undone() {
            self.take_back(request, &end);
        }
        for request in waiting.take() {
            if self.down.is_some() {
                self.turn_away(request);
            } else {
                self.early.push(request, || NodeError::Connecting);
            }
        }
        end
    }
}

#[cfg(test)]
mod tests {
    mod answers;
    mod conflicts;
    mod ends;
    mod limits;

    use std::sync::atomic::Ordering;

    use redis::Value;
    use tokio::io::DuplexStream;
    use tokio::sync::mpsc::{UnboundedReceiver as Receiver, UnboundedSender, unbounded_channel};
    use tokio::task::JoinHandle;
    use tokio::time::{sleep, timeout};

    use super::super::fake::{Event, FakeExchange, Server};
    use super::super::inflight::{MOST_IN_FLIGHT, MOST_UNACKNOWLEDGED};
    use super::super::request::ReplyTo;
    use super::turn::MOST_TAKEN;
    use super::*;
    use crate::environment::{Fake, Moment};
    use crate::telemetry::Telemetry;

    const TIMEOUT: Duration = Duration::from_millis(500);

    struct Test<T = JoinHandle<()>> {
        queue: UnboundedSender<Message>,
        streams: Receiver<DuplexStream>,
        condition: Arc<Condition>,
        common: Arc<Common>,
        environment: Arc<Fake>,
        running: T,
    }

    /// The connection to a list of one node.
    fn test() -> Test {
        test_of(1)
    }

    /// The connection to the first node of a list of so many.
    fn test_of(nodes: usize) -> Test {
        run(nodes, |connection| tokio::spawn(connection.run()))
    }

    /// The same, run as the caller decides.
    fn run<T>(nodes: usize, start: impl FnOnce(Connection) -> T) -> Test<T> {
        let (environment, streams) = Fake::new();
        let environment = Arc::new(environment);
        let seconds = Duration::from_secs;
        let machine: Arc<dyn Environment> = environment.clone();
        let telemetry = Telemetry::silent(&machine, nodes);
        let condition = Arc::new(Condition::new(0, Arc::clone(&telemetry)));
        let common = Common::new(machine, telemetry, Vec::new(), TIMEOUT, seconds(300), seconds(10));
        let common = Arc::new(common);
        let (queue, requests) = unbounded_channel();
        let connection = Connection::new(
            0,
            "node".into(),
            NodeAddress::parse("redis://node").expect("an address"),
            environment.clone(),
            Arc::clone(&common),
            requests,
            Arc::clone(&condition),
        );
        Test { queue, streams, condition, common, environment, running: start(connection) }
    }

    impl<T> Test<T> {
        fn send(&self, request: Request) {
            assert!(self.queue.send(Message::Request(request)).is_ok(), "it runs");
        }

        fn exchange(&self, lease: u64) -> Arc<FakeExchange> {
            FakeExchange::new(self.environment.now(), lease)
        }

        /// The server's end of the next connection, greeted.
        async fn server(&mut self) -> Server {
            self.server_of(1).await
        }

        /// The same, of a server that knows of a list of so many nodes.
        async fn server_of(&mut self, nodes: usize) -> Server {
            let mut server = Server::new(self.streams.recv().await.expect("it connects"));
            server.greet(nodes).await;
            server
        }

        fn trouble(&self) -> Option<NodeError> {
            self.condition.trouble(self.environment.now())
        }
    }

    async fn name(server: &mut Server) -> String {
        server.command().await.expect("a command").swap_remove(0)
    }

    /// Until everything that can be done now is done.
    async fn settled() {
        sleep(Duration::from_millis(1)).await;
    }

    fn agreed() -> Event {
        Event::Answered(Ok(Value::Int(1)))
    }

    #[tokio::test(start_paused = true)]
    async fn requests_before_the_first_connection_leave_on_it_in_order() {
        let mut test = test();
        let exchange = test.exchange(1);
        test.send(exchange.hold());
        test.send(exchange.release());
        assert_eq!(test.trouble(), Some(NodeError::Connecting));
        let mut server = test.server().await;
        assert_eq!([name(&mut server).await, name(&mut server).await], ["hold", "release"]);
        assert_eq!(exchange.events(), [Event::Sent, Event::Sent]);
        server.reply(":1\r\n:1\r\n").await;
        settled().await;
        assert_eq!((exchange.events(), test.trouble()), (vec![agreed(), agreed()], None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_of_what_was_never_sent_does_not_leave() {
        let mut test = test();
        let (released, held) = (test.exchange(1), test.exchange(2));
        let mut server = test.server().await;
        test.send(released.release());
        test.send(held.hold());
        assert_eq!(name(&mut server).await, "hold");
        assert_eq!(released.events(), [Event::NothingSent]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_still_wanted_is_sent_again_on_the_next_connection() {
        let mut test = test();
        let [wanted, moot] = [1, 2].map(|lease| test.exchange(lease));
        let mut server = test.server().await;
        for request in [wanted.hold(), moot.hold(), moot.release()] {
            test.send(request);
            name(&mut server).await;
        }
        moot.is_moot.store(true, Ordering::Relaxed);
        server.reply(":1\r\n").await;
        settled().await;
        assert_eq!(wanted.events(), [Event::Sent, agreed()]);
        test.send(wanted.hold());
        name(&mut server).await;
        drop(server);
        let mut server = test.server().await;
        assert_eq!([name(&mut server).await, name(&mut server).await], ["release", "hold"]);
        assert_eq!(wanted.events(), [Event::Sent, Event::Resent, Event::Sent]);
        let events = moot.events();
        assert!(matches!(&events[2], Event::Answered(Err(NodeError::Disconnected(_)))), "{events:?}");
        assert_eq!((&events[..2], &events[3..]), (&[Event::Sent, Event::Sent][..], &[Event::Resent, Event::Sent][..]));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_connection_holds_fail_at_once_and_releases_are_kept() {
        let mut test = test();
        let (held, released) = (test.exchange(1), test.exchange(2));
        released.may_hold_state.store(true, Ordering::Relaxed);
        drop(test.streams.recv().await);
        settled().await;
        test.send(held.hold());
        test.send(released.release());
        settled().await;
        assert!(matches!(held.events()[..], [Event::Answered(Err(NodeError::Disconnected(_)))]));
        assert_eq!(released.events(), []);
        let mut server = test.server().await;
        assert_eq!(name(&mut server).await, "release");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_gets_releases_only_and_then_another_connection() {
        let mut test = test();
        let [first, second] = [1, 2].map(|lease| test.exchange(lease));
        let mut server = test.server().await;
        test.send(first.hold());
        name(&mut server).await;
        sleep(TIMEOUT + Duration::from_millis(100)).await;
        assert!(matches!(test.trouble(), Some(NodeError::Silent(_))));
        test.send(second.hold());
        test.send(first.release());
        assert_eq!(name(&mut server).await, "release");
        assert!(matches!(second.events()[..], [Event::Answered(Err(NodeError::Silent(_)))]));
        // Another connection was begun beside the silent one. It works, so it takes over.
        let mut server = test.server().await;
        assert_eq!(name(&mut server).await, "release");
        server.reply(":1\r\n").await;
        settled().await;
        assert_eq!(first.events().last(), Some(&agreed()));
        assert_eq!(test.trouble(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_client_waits_for_what_was_sent() {
        let mut test = test();
        let exchange = test.exchange(1);
        let mut server = test.server().await;
        test.send(exchange.hold());
        test.send(exchange.release());
        assert!(test.queue.send(Message::Close).is_ok());
        assert_eq!([name(&mut server).await, name(&mut server).await], ["hold", "release"]);
        settled().await;
        assert!(!test.running.is_finished());
        server.reply(":1\r\n:1\r\n").await;
        timeout(Duration::from_millis(10), test.running).await.expect("it ends").expect("no panic");
        assert_eq!(exchange.events(), [Event::Sent, Event::Sent, agreed(), agreed()]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_nothing_ends_the_connection() {
        let mut test = test();
        let mut server = test.server().await;
        server.reply(":1\r\n").await;
        settled().await;
        assert!(matches!(test.trouble(), Some(NodeError::Nonsense(_))));
        assert_eq!(server.command().await, None);
        let began = test.environment.now();
        test.server().await;
        assert!(test.environment.now().since(began) > Duration::ZERO, "the next connection is not made at once");
        let _: Moment = began;
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_record_ends_the_connection_and_the_next_reads_it() {
        let mut test = test();
        let exchange = test.exchange(1);
        let mut server = test.server().await;
        test.send(exchange.hold());
        name(&mut server).await;
        server.reply("*2\r\n:10\r\n:1790000000000000\r\n").await;
        assert_eq!(server.command().await, None);
        assert_eq!(exchange.events(), [Event::Sent, Event::Answered(Err(NodeError::Forgot))]);
        let _server = test.server().await;
        settled().await;
        assert_eq!(test.trouble(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_has_lost_the_scripts_gets_them_before_the_request() {
        let mut test = test();
        let exchange = test.exchange(1);
        let mut server = test.server().await;
        test.send(exchange.hold());
        name(&mut server).await;
        server.reply("-NOSCRIPT No matching script.\r\n").await;
        let mut names = Vec::new();
        for _ in 0..4 {
            names.push(timeout(TIMEOUT, name(&mut server)).await.expect("a command"));
        }
        assert_eq!(names, ["SCRIPT", "SCRIPT", "SCRIPT", "hold"]);
        server.reply(&("$1\r\nx\r\n".repeat(3) + ":1\r\n")).await;
        settled().await;
        assert_eq!(exchange.events(), [Event::Sent, agreed()]);
    }
}
