//! The requests under way on one connection: when they are written, and which reply belongs to which.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use redis::Value;

use super::commands;
use super::common::Common;
use super::connect_attempt::Made;
use super::known::{Known, Wait};
use super::pace::Pace;
use super::request::{Facts, ReplyTo, Request, pack};
use super::stream::{MOST_READ_BYTES, RespStream};
use crate::environment::{Environment, Moment, Sleeping};
use crate::error::NodeError;

/// How many requests may be under way to a node at once. Further ones wait. They are dropped when the other nodes have decided
/// them or when this one falls silent.
pub(super) const MOST_IN_FLIGHT: usize = 1024;

/// How many unacknowledged releases are kept for a node that is away, or can do none now. Older ones are left to the end of
/// their lease.
pub(super) const MOST_UNACKNOWLEDGED: usize = 4 * MOST_IN_FLIGHT;

/// The same as [`MOST_IN_FLIGHT`], in bytes that the socket has not taken.
const MOST_UNSENT: usize = 1 << 22;

/// How long nothing is read from a node that has sent as much as one poll may read.
const READ_PAUSE: Duration = Duration::from_millis(4);

/// Up to this many requests in flight are written immediately instead of batched: they probably come from one task, and the
/// extra poll would only wake another worker thread.
const UNBATCHED_REQUESTS: usize = 2;

/// A release that a node cannot do now is sent again after so long, and then after twice as long.
const FIRST_POSTPONEMENT: Duration = Duration::from_millis(250);
const LONGEST_POSTPONEMENT: Duration = Duration::from_secs(8);

/// A node that does not take the scripts is not sent them again for so long.
const SCRIPTS_PAUSE: Duration = Duration::from_millis(500);

/// What is under way on one connection.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Inflight {
    environment: Arc<dyn Environment>,
    stream: RespStream,
    /// Of the node at the other end.
    pub(super) known: Known,
    pub(super) made: Moment,
    /// Its node has done something of what it was asked.
    pub(super) is_useful: bool,
    pub(super) unanswered: VecDeque<Sent>,
    /// How many conflicts of the list were known when the connection was made.
    pub(super) conflicts: u64,
    /// The handshake with its node is to be repeated.
    pub(super) is_stale: bool,
    /// An answer is overdue: nothing new is sent but releases.
    pub(super) silent: bool,
    /// Its node counts as one that refuses holds.
    pub(super) refuses_holds: bool,
    /// How many scripts are being loaded.
    loading: usize,
    /// Why the node did not take a script, and when it said so.
    refused: Option<(NodeError, Moment)>,
    /// What is to be sent waits until the next poll, so more can leave with it.
    pub(super) gathers: bool,
    alarm: Option<Sleeping>,
    pace: Pace,
    /// How many bytes may still be read in this poll.
    budget: usize,
    /// Nothing is read before this is over.
    rest: Option<Sleeping>,
    /// Releases that the node could not do, and why.
    postponed: VecDeque<(Request, NodeError)>,
    /// When they are sent again, and how long they wait the next time.
    postponement: (Option<Sleeping>, Duration),
    /// The client is gone: what is postponed is repeated soon, or not at all.
    is_closing: bool,
}

pub(super) struct Sent {
    pub(super) request: Request,
    pub(super) since: Moment,
    /// It was sent again, for want of scripts.
    pub(super) again: bool,
}

impl Inflight {
    pub(super) fn new(
        Made { stream, known, took, replaces }: Made,
        environment: Arc<dyn Environment>,
        conflicts: u64,
    ) -> Self {
        let made = environment.now();
        Self {
            environment,
            stream,
            known,
            made,
            is_useful: false,
            unanswered: VecDeque::new(),
            conflicts,
            is_stale: false,
            silent: false,
            refuses_holds: false,
            loading: 0,
            refused: None,
            gathers: false,
            alarm: None,
            pace: Pace::new(made, took, replaces),
            budget: MOST_READ_BYTES,
            rest: None,
            postponed: VecDeque::new(),
            postponement: (None, FIRST_POSTPONEMENT),
            is_closing: false,
        }
    }

    /// Begins a poll: what may be read until the next one is bounded.
    pub(super) fn begin(&mut self, cx: &mut Context<'_>) {
        self.gathers = false;
        self.budget = MOST_READ_BYTES;
        if self.rest.as_mut().is_some_and(|rest| rest.as_mut().poll(cx).is_ready()) {
            self.rest = None;
        }
    }

    /// Returns the next answer, or what the server sends unasked; `None` when that is still to come, or when the node has to wait.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Option<Value>, NodeError> {
        if self.rest.is_some() {
            return Ok(None);
        }
        let answer = self.stream.poll_read(cx, &mut self.budget)?;
        if answer.is_none() && self.budget == 0 {
            self.rest(cx);
        }
        Ok(answer)
    }

    /// Reads no more for a moment, so a node that sends without end does not take the time of the others. What it sends meanwhile
    /// waits in its own sockets.
    pub(super) fn rest(&mut self, cx: &mut Context<'_>) {
        let mut rest = self.environment.sleep(READ_PAUSE);
        match rest.as_mut().poll(cx) {
            Poll::Pending => self.rest = Some(rest),
            Poll::Ready(()) => cx.waker().wake_by_ref(),
        }
    }

    /// Returns whether the next reply is to a release.
    pub(super) fn awaits_release(&self) -> bool {
        matches!(self.unanswered.front(), Some(Sent { request: Request { reply_to: ReplyTo::Release(_), .. }, .. }))
    }

    pub(super) fn has_room(&self) -> bool {
        self.silent || (self.unanswered.len() < MOST_IN_FLIGHT && self.stream.unsent() < MOST_UNSENT)
    }

    /// Returns how long the oldest answer has been outstanding.
    pub(super) fn outstanding_for(&self, now: Moment) -> Duration {
        self.unanswered.front().map_or(Duration::ZERO, |oldest| now.since(oldest.since))
    }

    /// Sends what there is. If this gathers, all tasks that are about to run add to it first: one system call for the requests of
    /// many tasks costs client and node far less than one for each.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), NodeError> {
        if self.gathers {
            cx.waker().wake_by_ref();
            return Ok(());
        }
        self.stream.poll_write(cx)
    }

    /// Returns when the oldest request was sent whose answer is overdue.
    pub(super) fn silent_since(&self) -> Option<Moment> {
        self.unanswered.front().filter(|_| self.silent).map(|oldest| oldest.since)
    }

    /// Returns the error of a request that is not sent because the node is silent.
    pub(super) fn overdue(&self, now: Moment) -> NodeError {
        NodeError::Silent(self.outstanding_for(now))
    }

    /// Queues a request for the next write.
    pub(super) fn push(&mut self, request: Request, now: Moment, common: &Common, wait: &Wait) {
        self.gathers |= self.stream.is_sent() && self.unanswered.len() > UNBATCHED_REQUESTS;
        self.send(request, now, common, wait, false);
    }

    /// Writes a request, and behind it the argument for this node.
    fn send(&mut self, request: Request, now: Moment, common: &Common, wait: &Wait, again: bool) {
        self.stream.push(&request.command);
        match &request.reply_to {
            ReplyTo::Hold(round) => {
                let &Facts { length, ballot, .. } = round.facts();
                self.stream.push(&self.known.said_in_hold(length, ballot, common, wait, now));
            }
            ReplyTo::Release(_) => self.stream.push(self.known.said_in_release()),
            ReplyTo::Revoke(_) => self.stream.push(&self.known.said_in_revoke(common, wait, now)),
            ReplyTo::Loading => self.loading += 1,
            ReplyTo::Look(_) => {}
        }
        self.unanswered.push_back(Sent { request, since: now, again });
    }

    /// Sends the scripts and the request again to a node that has lost them (`SCRIPT FLUSH`, a restart behind a proxy), or
    /// never had them.
    ///
    /// If another client has loaded them meanwhile, what was sent behind the request is done before it. A late hold is refused
    /// by its ballot, or only says again how often a share holds what it still holds. A late release takes away its own share
    /// and no other.
    pub(super) fn reload(&mut self, request: Request, now: Moment, common: &Common, wait: &Wait) {
        common.resend();
        // Behind what is loaded already for another request.
        if self.loading == 0 {
            for command in commands::load() {
                self.push(Request { command: pack(&command), reply_to: ReplyTo::Loading }, now, common, wait);
            }
        }
        self.send(request, now, common, wait, true);
    }

    /// Records that the node refuses a script.
    pub(super) fn refuses_scripts(&mut self, error: NodeError, now: Moment) {
        self.refused = Some((error, now));
    }

    /// Returns why the node did not take a script a moment ago. It is not sent them again so soon.
    pub(super) fn refused_scripts(&self, now: Moment) -> Option<&NodeError> {
        let (error, since) = self.refused.as_ref()?;
        (now.since(*since) < SCRIPTS_PAUSE).then_some(error)
    }

    /// Records that the node has done something of what it was asked.
    pub(super) fn has_done(&mut self) {
        self.is_useful = true;
        if self.postponed.is_empty() {
            self.postponement.1 = FIRST_POSTPONEMENT;
        }
    }

    /// Keeps a release that the node cannot do now. The first one begins the wait. Returns the oldest when there are too many.
    pub(super) fn postpone(
        &mut self,
        release: Request,
        why: NodeError,
        cx: &mut Context<'_>,
    ) -> Option<(Request, NodeError)> {
        self.postponed.push_back((release, why));
        if self.postponement.0.is_none() {
            let pause = if self.is_closing { FIRST_POSTPONEMENT } else { self.postponement.1 };
            self.postponement.0 = Some(self.environment.sleep(pause));
            self.postponement.1 = (2 * self.postponement.1).min(LONGEST_POSTPONEMENT);
            cx.waker().wake_by_ref(); // To poll it.
        }
        if self.postponed.len() > MOST_UNACKNOWLEDGED { self.postponed.pop_front() } else { None }
    }

    /// Returns what is to be sent again now.
    pub(super) fn poll_postponed(&mut self, cx: &mut Context<'_>) -> VecDeque<(Request, NodeError)> {
        if self.postponement.0.as_mut().is_none_or(|wait| wait.as_mut().poll(cx).is_pending()) {
            return VecDeque::new();
        }
        self.take_postponed()
    }

    /// Returns what the node could not do, to be sent again at once.
    pub(super) fn take_postponed(&mut self) -> VecDeque<(Request, NodeError)> {
        self.postponement.0 = None;
        mem::take(&mut self.postponed)
    }

    /// Notes that the client is gone. A long wait to repeat what is postponed gets short.
    pub(super) fn closes(&mut self, cx: &mut Context<'_>) {
        if !self.is_closing && self.postponement.0.is_some() {
            self.postponement.0 = Some(self.environment.sleep(FIRST_POSTPONEMENT));
            cx.waker().wake_by_ref(); // To poll it.
        }
        self.is_closing = true;
    }

    pub(super) fn has_postponed(&self) -> bool {
        !self.postponed.is_empty()
    }

    /// Returns all that the node has not done: what it has not answered, and what it could not do.
    pub(super) fn into_undone(self) -> impl Iterator<Item = Request> {
        let postponed = self.postponed.into_iter().map(|(request, _)| request);
        postponed.chain(self.unanswered.into_iter().map(|sent| sent.request))
    }

    /// Takes the oldest request, whose reply has come.
    pub(super) fn settle(&mut self) -> Option<Sent> {
        let sent = self.unanswered.pop_front()?;
        self.loading -= usize::from(matches!(sent.request.reply_to, ReplyTo::Loading));
        Some(sent)
    }

    /// Records that a reply came now to what was sent then.
    pub(super) fn answered(&mut self, sent: Moment, now: Moment) {
        self.pace.answered(sent, now);
    }

    /// Returns how long the end of a program may wait for a reply of this node, when a majority has answered.
    pub(super) fn last_wait(&self) -> Duration {
        self.pace.last_wait()
    }

    /// Returns whether another connection is to be tried, as a reply on this one is late.
    pub(super) fn is_doubtful(&mut self, now: Moment) -> bool {
        self.unanswered.front().is_some_and(|oldest| self.pace.is_doubtful(oldest.since, now))
    }

    /// Ready, with the age of the oldest unanswered request, when it is time to look at that again.
    pub(super) fn watch(&mut self, timeout: Duration, cx: &mut Context<'_>) -> Poll<Duration> {
        let Some(oldest) = self.unanswered.front() else { return Poll::Pending };
        let next_look = || self.environment.sleep(self.pace.next_look(oldest.since, timeout));
        let alarm = self.alarm.get_or_insert_with(next_look);
        if alarm.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.alarm = None;
        let outstanding = self.outstanding_for(self.environment.now());
        self.silent = outstanding >= timeout;
        Poll::Ready(outstanding)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt as _;
    use tokio::time::advance;

    use super::super::fake::{FakeExchange, RECORD, Server};
    use super::super::pause;
    use super::*;
    use crate::environment::Fake;
    use crate::telemetry::Telemetry;

    struct Test {
        inflight: Inflight,
        server: Server,
        environment: Arc<Fake>,
        common: Common,
    }

    fn test() -> Test {
        let (environment, _) = Fake::new();
        let environment = Arc::new(environment);
        let (client, server) = tokio::io::duplex(1 << 16);
        let timeout = Duration::from_millis(500);
        let machine: Arc<dyn Environment> = environment.clone();
        let telemetry = Telemetry::silent(&machine, 1);
        let common = Common::new(machine, telemetry, Vec::new(), timeout, 600 * timeout, 20 * timeout);
        let made = Made {
            stream: RespStream::new(Box::new(client)),
            known: Known::new(RECORD, 0).expect("a record"),
            took: Duration::from_millis(2),
            replaces: false,
        };
        Test { inflight: Inflight::new(made, environment.clone(), 0), server: Server::new(server), environment, common }
    }

    impl Test {
        fn now(&self) -> Moment {
            self.environment.now()
        }

        fn exchange(&self) -> Arc<FakeExchange> {
            FakeExchange::new(self.now(), 1)
        }

        fn push(&mut self, request: Request) {
            let now = self.now();
            self.inflight.push(request, now, &self.common, &Wait::default());
        }

        /// Polls once, as a new turn of the connection.
        async fn write(&mut self) {
            poll_fn(|cx| {
                self.inflight.begin(cx);
                Poll::Ready(self.inflight.poll_write(cx))
            })
            .await
            .expect("the server listens");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_ends_with_the_argument_for_its_node() {
        let mut test = test();
        let exchange = test.exchange();
        test.push(exchange.hold());
        test.push(exchange.release());
        test.write().await;
        assert_eq!(test.server.command().await, Some(vec!["hold".to_owned(), RECORD.to_owned()]));
        let ballots_are_kept_ms = "600000".to_owned();
        assert_eq!(test.server.command().await, Some(vec!["release".to_owned(), ballots_are_kept_ms]));
    }

    #[tokio::test(start_paused = true)]
    async fn replies_belong_to_the_requests_in_their_order() {
        let mut test = test();
        let exchange = test.exchange();
        assert!(test.inflight.settle().is_none(), "no reply is due");
        test.push(exchange.hold());
        test.push(exchange.release());
        assert!(!test.inflight.awaits_release());
        let first = test.inflight.settle().expect("a request");
        assert!(matches!(first.request.reply_to, ReplyTo::Hold(_)) && test.inflight.awaits_release());
        let second = test.inflight.settle().expect("a request");
        assert!(matches!(second.request.reply_to, ReplyTo::Release(_)) && test.inflight.settle().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_behind_a_few_others_wait_for_more_to_leave_with_them() {
        let mut test = test();
        let exchange = test.exchange();
        for pushed in 0..=UNBATCHED_REQUESTS {
            test.push(exchange.hold());
            assert!(!test.inflight.gathers, "{pushed} unanswered requests");
            test.write().await;
        }
        test.push(exchange.hold());
        assert!(test.inflight.gathers);
        let written = poll_fn(|cx| Poll::Ready(test.inflight.poll_write(cx))).await;
        assert!(written.is_ok() && !test.inflight.stream.is_sent(), "it has not left");
        test.write().await;
        assert!(test.inflight.stream.is_sent());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_takes_a_bounded_number_of_requests_at_once() {
        let mut test = test();
        let exchange = test.exchange();
        for _ in 0..MOST_IN_FLIGHT {
            assert!(test.inflight.has_room());
            test.push(exchange.hold());
        }
        assert!(!test.inflight.has_room());
        test.inflight.settle();
        assert!(test.inflight.has_room());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_socket_does_not_take_leaves_no_room() {
        const LARGE: usize = MOST_UNSENT / 4;
        let mut test = test();
        for _ in 0..4 {
            assert!(test.inflight.has_room());
            let reply_to = ReplyTo::Hold(test.exchange());
            test.push(Request { command: vec![b'x'; LARGE].into(), reply_to });
            test.write().await;
        }
        assert!(test.inflight.has_room(), "the socket has taken some of it");
        let reply_to = ReplyTo::Hold(test.exchange());
        test.push(Request { command: vec![b'x'; LARGE].into(), reply_to });
        assert!(!test.inflight.has_room());
        test.inflight.silent = true;
        assert!(test.inflight.has_room(), "what may not be sent is answered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_of_no_use_is_made_again_after_a_pause() {
        let mut test = test();
        let after = |test: &Test, broken| pause::after(Duration::ZERO, &test.inflight, &broken, test.now());
        let first = pause::longer(Duration::ZERO);
        assert_eq!(after(&test, NodeError::Forgot), first, "it lasted for no time");
        advance(4 * first).await;
        assert_eq!(after(&test, NodeError::Forgot), Duration::ZERO, "it was asked nothing, and lasted");
        test.push(test.exchange().hold());
        assert_eq!(after(&test, NodeError::Forgot), first, "it has not answered");
        test.inflight.has_done();
        assert_eq!(after(&test, NodeError::Forgot), Duration::ZERO);
        assert_eq!(after(&test, NodeError::Nonsense(String::new())), first);
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_postponed_releases_the_oldest_is_given_back() {
        let mut test = test();
        let exchange = test.exchange();
        test.push(exchange.hold());
        let mut given_back = Vec::new();
        for number in 0..MOST_UNACKNOWLEDGED + 2 {
            let why = NodeError::NoAnswer(Duration::from_millis(number as u64));
            let inflight = &mut test.inflight;
            let mut release = Some((exchange.release(), why));
            given_back.extend(
                poll_fn(|cx| {
                    let (request, why) = release.take().expect("polled once");
                    Poll::Ready(inflight.postpone(request, why, cx))
                })
                .await,
            );
        }
        let reasons: Vec<NodeError> = given_back.into_iter().map(|(_, why)| why).collect();
        assert_eq!(reasons, [0, 1].map(|number| NodeError::NoAnswer(Duration::from_millis(number))));
        assert_eq!(test.inflight.into_undone().count(), MOST_UNACKNOWLEDGED + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_overdue_reply_makes_the_node_silent() {
        let mut test = test();
        let timeout = Duration::from_millis(500);
        let watch = |inflight: &mut Inflight| poll_fn(|cx| Poll::Ready(inflight.watch(timeout, cx))).now_or_never();
        assert_eq!(watch(&mut test.inflight), Some(Poll::Pending), "no request is outstanding");
        test.push(test.exchange().hold());
        assert_eq!(watch(&mut test.inflight), Some(Poll::Pending));
        advance(Duration::from_millis(250)).await;
        assert_eq!(watch(&mut test.inflight), Some(Poll::Ready(Duration::from_millis(250))));
        assert_eq!(test.inflight.silent_since(), None);
        assert_eq!(watch(&mut test.inflight), Some(Poll::Pending));
        advance(Duration::from_millis(250)).await;
        assert_eq!(watch(&mut test.inflight), Some(Poll::Ready(timeout)));
        let sent = Moment::new(Duration::from_secs(1000));
        assert_eq!((test.inflight.silent_since(), test.inflight.silent), (Some(sent), true));
        assert_eq!(test.inflight.overdue(test.now()), NodeError::Silent(timeout));
    }

    #[tokio::test(start_paused = true)]
    async fn releases_that_the_node_cannot_do_are_sent_again_later_and_later() {
        let mut test = test();
        let exchange = test.exchange();
        for pause in [FIRST_POSTPONEMENT, 2 * FIRST_POSTPONEMENT] {
            let inflight = &mut test.inflight;
            let given_back =
                poll_fn(|cx| Poll::Ready(inflight.postpone(exchange.release(), NodeError::Forgot, cx))).await;
            assert!(given_back.is_none());
            let due = poll_fn(|cx| Poll::Ready(inflight.poll_postponed(cx).len())).await;
            assert_eq!(due, 0);
            advance(pause).await;
            let due = poll_fn(|cx| Poll::Ready(inflight.poll_postponed(cx).len())).await;
            assert_eq!(due, 1, "after {pause:?}");
        }
        test.inflight.has_done();
        assert_eq!(test.inflight.postponement.1, FIRST_POSTPONEMENT, "it begins anew when the node has done something");
    }

    #[tokio::test(start_paused = true)]
    async fn lost_scripts_are_loaded_once_for_all_requests_and_leave_before_them() {
        let mut test = test();
        let exchange = test.exchange();
        let now = test.now();
        for _ in 0..2 {
            test.inflight.reload(exchange.hold(), now, &test.common, &Wait::default());
        }
        let loading = |sent: &Sent| matches!(sent.request.reply_to, ReplyTo::Loading);
        let order: Vec<bool> = test.inflight.unanswered.iter().map(loading).collect();
        assert_eq!(order, [true, true, true, false, false]);
        assert_eq!(test.common.resent(), 2);
        for _ in 0..3 {
            assert_eq!(test.inflight.settle().map(|sent| sent.again), Some(false));
        }
        assert_eq!(test.inflight.settle().map(|sent| sent.again), Some(true));
        test.inflight.reload(exchange.hold(), now, &test.common, &Wait::default());
        let order: Vec<bool> = test.inflight.unanswered.iter().map(loading).collect();
        assert_eq!(order, [false, true, true, true, false], "they were lost again");
        assert_eq!(test.inflight.into_undone().count(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_refuses_scripts_is_left_alone_for_a_moment() {
        let mut test = test();
        let now = test.now();
        assert_eq!(test.inflight.refused_scripts(now), None);
        test.inflight.refuses_scripts(NodeError::Forgot, now);
        assert_eq!(test.inflight.refused_scripts(now), Some(&NodeError::Forgot));
        assert_eq!(test.inflight.refused_scripts(now + SCRIPTS_PAUSE), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_doubted_by_how_fast_its_node_usually_answers() {
        let mut test = test();
        assert!(!test.inflight.is_doubtful(test.now()), "no reply is due");
        let sent = test.now();
        test.push(test.exchange().hold());
        let usual = test.inflight.last_wait();
        assert!(usual > Duration::ZERO && !test.inflight.is_doubtful(test.now()));
        advance(Duration::from_millis(100)).await;
        test.inflight.settle();
        test.inflight.answered(sent, test.now());
        assert!(test.inflight.last_wait() > usual, "it took longer than before");
        test.push(test.exchange().hold());
        advance(Duration::from_millis(399)).await;
        assert!(!test.inflight.is_doubtful(test.now()));
        advance(Duration::from_millis(1)).await;
        assert!(test.inflight.is_doubtful(test.now()) && !test.inflight.is_doubtful(test.now()));
    }
}
