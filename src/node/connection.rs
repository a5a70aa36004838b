//! What is behind a [`Node`](super::Node), in the one task of all connections: connects, sends in order, delivers answers,
//! reconnects.
//!
//! It has the stream to itself, so a request crosses one task on its way out and one on its way back, for any number of
//! requests under way.

mod answers;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::select;
use tokio::sync::mpsc::UnboundedReceiver;

use super::address::NodeAddress;
use super::backlog::Backlog;
use super::common::Common;
use super::condition::Condition;
use super::connect_attempt::{ConnectAttempt, Made, panicked};
use super::inflight::{Inflight, MOST_IN_FLIGHT, MOST_UNACKNOWLEDGED};
use super::known::Wait;
use super::pause;
use super::request::{Message, ReplyTo, Request};
use crate::environment::{Environment, random_time, within};
use crate::error::{ClientError, NodeError};

/// How many requests are taken in one poll: callers that keep one node busy must not starve the others.
const MOST_TAKEN: usize = 256;

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
    closing: bool,
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
            closing: false,
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

    /// Notes that there is no connection, and why.
    fn is_down(&mut self, why: NodeError) {
        self.condition.is_down(why.clone());
        self.down = Some(why);
    }

    /// Notes that there is no connection, and answers what waits for one.
    fn is_away(&mut self, why: NodeError) {
        self.is_down(why);
        for request in mem::take(&mut self.unacknowledged).into_iter().chain(self.early.take()) {
            self.turn_away(request);
        }
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

    /// Tries until there is a connection; `None` when the client is gone and nothing is left to send.
    async fn connect(&mut self) -> Option<Made> {
        loop {
            if !self.pause.is_zero() {
                let pause = random_time(self.environment.as_ref(), self.pause / 2..self.pause);
                self.meanwhile(self.environment.sleep(pause)).await?;
            }
            let mut attempt = self.attempt.take().unwrap_or_else(|| self.begin());
            let environment = Arc::clone(&self.environment);
            let soon = within(environment.as_ref(), self.silence_limit(), &mut attempt);
            let made = if let Some(made) = self.meanwhile(soon).await? {
                made
            } else {
                // Nodes that are far away may need longer. No request waits for that.
                if self.down.is_none() {
                    self.is_away(NodeError::Connecting);
                }
                self.meanwhile(attempt).await?
            };
            let refused = match made {
                Ok(made) => return Some(made),
                Err(error) => error,
            };
            if !refused.is_about_list() {
                self.common.unreachable(self.index);
            }
            self.common.waits_for(self.index, Duration::ZERO);
            self.is_away(refused);
            self.pause = pause::longer(self.pause);
        }
    }

    /// Waits for something while there is no connection; `None` when the client is gone and there is no more to be done.
    async fn meanwhile<T>(&mut self, awaited: impl Future<Output = T>) -> Option<T> {
        let mut awaited = pin!(awaited);
        loop {
            let may_send = self.down.is_none() && !(self.unacknowledged.is_empty() && self.early.is_empty());
            if self.closing && !may_send {
                return None;
            }
            select! {
                biased;
                () = self.common.life.ended() => return None,
                done = &mut awaited => return Some(done),
                () = self.environment.sleep(self.common.timeout), if self.closing => return None,
                message = self.requests.recv(), if !self.closing => self.while_away(message),
            }
        }
    }

    fn while_away(&mut self, message: Option<Message>) {
        match message {
            // A release is taken although there is no room: the hold that it follows may be among these requests.
            Some(Message::Request(request))
                if self.down.is_none()
                    && (self.early.len() < MOST_IN_FLIGHT || matches!(request.reply_to, ReplyTo::Release(_))) =>
            {
                self.early.push(request, || NodeError::Connecting);
            }
            Some(Message::Request(request)) => self.turn_away(request),
            Some(Message::Then(next)) => next(),
            Some(Message::Close) | None => self.closing = true,
        }
    }

    /// Answers a request without a connection, unless it is a release that the node must still get.
    fn turn_away(&mut self, request: Request) {
        match &request.reply_to {
            ReplyTo::Release(round) if round.may_hold_state(self.index) => self.keep(request),
            ReplyTo::Release(round) => round.nothing_sent(self.index),
            _ => {
                let why = self.down.clone().unwrap_or(NodeError::Connecting);
                request.reply_to.answer(self.index, Err(why));
            }
        }
    }

    fn keep(&mut self, request: Request) {
        if self.unacknowledged.len() == MOST_UNACKNOWLEDGED
            && let Some(oldest) = self.unacknowledged.pop_front()
        {
            oldest.reply_to.answer(self.index, Err(self.down.clone().unwrap_or(NodeError::Connecting)));
        }
        self.unacknowledged.push_back(request);
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

    /// Takes back what was under way when the connection ended. What is still wanted is sent again on the next connection, if that
    /// is made at once. A message that a node gets twice has the effect of one.
    fn take_back(&mut self, request: Request, end: &End) {
        let (now, limit) = (self.environment.now(), self.common.timeout);
        let is_wanted = match &request.reply_to {
            ReplyTo::Release(_) => true,
            ReplyTo::Hold(round) => self.down.is_none() && !round.is_moot() && now.since(round.facts().started) < limit,
            ReplyTo::Look(reply_to) | ReplyTo::Revoke(reply_to) => self.down.is_none() && !reply_to.is_closed(),
            ReplyTo::Loading => false,
        };
        if is_wanted {
            if let ReplyTo::Hold(round) | ReplyTo::Release(round) = &request.reply_to {
                round.mark_resent(self.index);
            }
            return self.keep(request);
        }
        let why = match end {
            // What the next request will be told as well.
            End::Broken(broken @ (NodeError::Replica | NodeError::Nonsense(_) | NodeError::TooLarge { .. })) => {
                broken.clone()
            }
            End::Broken(broken) => NodeError::Disconnected(broken.to_string()),
            End::Done | End::Replaced(_) => NodeError::Disconnected("it was silent".to_owned()),
        };
        request.reply_to.answer(self.index, Err(why));
    }

    /// Does what there is to do now: takes requests, sends, delivers.
    fn turn(&mut self, inflight: &mut Inflight, waiting: &mut Backlog, cx: &mut Context<'_>) -> Poll<End> {
        let is_last = self.common.life.has_ended();
        if !is_last {
            inflight.begin(cx);
            self.take_postponed(inflight, waiting, cx);
        }
        let mut taken = 0;
        loop {
            // In the end nothing may be left behind for want of room.
            while (self.closing || is_last || inflight.has_room())
                && let Some(request) = waiting.pop(|| inflight.overdue(self.environment.now()))
            {
                self.accept(inflight, request);
            }
            self.take_requests(inflight, waiting, &mut taken, cx);
            if is_last {
                return self.send_last(inflight, cx).map(End::Broken);
            }
            if inflight.is_stale {
                return Poll::Ready(End::Broken(NodeError::Forgot));
            }
            let written = inflight.poll_write(cx);
            // Also when that failed: what was answered before counts.
            let settled = match self.settle(inflight, cx).and_then(|settled| written.map(|()| settled)) {
                Ok(settled) => settled,
                Err(broken) => return Poll::Ready(End::Broken(broken)),
            };
            if self.closing && inflight.unanswered.is_empty() && waiting.is_empty() {
                return Poll::Ready(End::Done);
            }
            if settled == 0 {
                match self.watch(inflight, waiting.is_empty(), cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(end)) => return Poll::Ready(end),
                    Poll::Ready(None) => {}
                }
            }
        }
    }

    /// Takes requests from the queue. Their number is bounded, except in the last turn.
    fn take_requests(
        &mut self,
        inflight: &mut Inflight,
        waiting: &mut Backlog,
        taken: &mut usize,
        cx: &mut Context<'_>,
    ) {
        let is_last = self.common.life.has_ended();
        while !self.closing {
            if *taken == MOST_TAKEN && !is_last {
                cx.waker().wake_by_ref();
                break;
            }
            *taken += 1;
            match self.requests.poll_recv(cx) {
                Poll::Ready(Some(Message::Request(request))) if is_last || inflight.has_room() => {
                    self.accept(inflight, request);
                }
                Poll::Ready(Some(Message::Request(request))) => {
                    waiting.push(request, || inflight.overdue(self.environment.now()));
                }
                Poll::Ready(Some(Message::Then(next))) => next(),
                Poll::Ready(Some(Message::Close) | None) => self.closing = true,
                Poll::Pending => break,
            }
        }
    }

    /// Sends once more what the node could not do before, unless that is over by itself.
    fn take_postponed(&self, inflight: &mut Inflight, waiting: &mut Backlog, cx: &mut Context<'_>) {
        let now = self.environment.now();
        for (release, why) in inflight.poll_postponed(cx) {
            match &release.reply_to {
                ReplyTo::Release(round) if round.is_expired(now) => release.reply_to.answer(self.index, Err(why)),
                _ => waiting.push(release, || inflight.overdue(now)),
            }
        }
    }

    /// Checks whether a reply is overdue. `None` when it is to check again.
    ///
    /// A connection that is silent for longer than usual may have been forgotten by what lies between, without a word. So
    /// another one is made beside it. That takes over if it works while the reply on this one is still due.
    fn watch(&mut self, inflight: &mut Inflight, nothing_waits: bool, cx: &mut Context<'_>) -> Poll<Option<End>> {
        if let Some(attempt) = &mut self.attempt {
            match Pin::new(attempt).poll(cx) {
                Poll::Ready(made) => {
                    if let Ok(made) = made {
                        self.attempt = None;
                        return Poll::Ready(Some(End::Replaced(Box::new(Made { replaces: true, ..made }))));
                    }
                    self.abandon();
                }
                Poll::Pending => {}
            }
        }
        let Poll::Ready(outstanding) = inflight.watch(self.common.timeout, cx) else {
            return Poll::Pending;
        };
        self.condition.is_silent(inflight.silent_since());
        if outstanding >= self.silence_limit() {
            return Poll::Ready(Some(End::Broken(NodeError::NoAnswer(outstanding))));
        }
        // Not before what was gathered has left.
        if self.closing && !inflight.gathers && outstanding >= self.common.timeout && nothing_waits {
            return Poll::Ready(Some(End::Done));
        }
        if self.attempt.is_none() && inflight.is_doubtful(self.environment.now()) {
            self.attempt = Some(self.begin());
        }
        Poll::Ready(None)
    }

    /// The runtime has ended: the releases leave, as far as the socket takes them, and no answer is read any more.
    fn send_last(&self, inflight: &mut Inflight, cx: &mut Context<'_>) -> Poll<NodeError> {
        inflight.gathers = false;
        let written = inflight.poll_write(cx);
        for sent in inflight.unanswered.drain(..) {
            sent.request.reply_to.answer(self.index, Err(ClientError::RuntimeEnded.into()));
        }
        written.map_or_else(Poll::Ready, |()| Poll::Pending)
    }

    /// Sends a request, or answers it if it is not to be sent.
    fn accept(&mut self, inflight: &mut Inflight, request: Request) {
        let index = self.index;
        let now = self.environment.now();
        match &request.reply_to {
            ReplyTo::Hold(_) | ReplyTo::Look(_) | ReplyTo::Revoke(_) if self.common.life.has_ended() => {
                request.reply_to.answer(index, Err(ClientError::RuntimeEnded.into()));
            }
            ReplyTo::Hold(_) | ReplyTo::Look(_) | ReplyTo::Revoke(_)
                if inflight.silent || request.reply_to.is_late(now, self.common.timeout) =>
            {
                request.reply_to.answer(index, Err(inflight.overdue(now)));
            }
            ReplyTo::Release(round) if !round.may_hold_state(index) => round.nothing_sent(index),
            ReplyTo::Hold(round) => {
                if let Some(conflict) = self.common.conflict(index).filter(|_| round.facts().acquires) {
                    // The nodes may have changed since they were asked: an idle client would not learn of that otherwise.
                    inflight.is_stale |= inflight.conflicts < self.common.conflicts();
                    request.reply_to.answer(index, Err(conflict));
                } else {
                    round.mark_sent(index);
                    inflight.push(request, now, &self.common, &self.wait);
                }
            }
            ReplyTo::Release(round) => {
                round.mark_sent(index);
                inflight.push(request, now, &self.common, &self.wait);
            }
            ReplyTo::Revoke(_) => match self.common.conflict(index) {
                Some(conflict) => {
                    inflight.is_stale |= inflight.conflicts < self.common.conflicts();
                    request.reply_to.answer(index, Err(conflict));
                }
                None => inflight.push(request, now, &self.common, &self.wait),
            },
            ReplyTo::Look(_) | ReplyTo::Loading => inflight.push(request, now, &self.common, &self.wait),
        }
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
