//! What bounds a connection: in number, in time, and in what it does before the other nodes have their turn.

use futures::poll;
use tokio::task::{unconstrained, yield_now};
use tokio::time::advance;

use super::*;

/// A call of a waiter that does not exist.
const CALL: &str = ">3\r\n$7\r\nmessage\r\n$15\r\nquorlock:call:0\r\n$1\r\n7\r\n";

/// Longer than any timer of a connection waits, in the paused clock.
const LONG: Duration = Duration::from_secs(60);

impl<T> Test<T> {
    /// The server's end of a connection that has been of use, so the next one is made at once when it breaks.
    pub(super) async fn useful_server(&mut self) -> Server {
        let mut server = self.server().await;
        self.send(self.exchange(0).hold());
        name(&mut server).await;
        server.reply(":1\r\n").await;
        settled().await;
        server
    }

    /// A release whose node may hold what it takes away.
    pub(super) fn owed(&self, lease: u64) -> Arc<FakeExchange> {
        let exchange = self.exchange(lease);
        exchange.may_hold_state.store(true, Ordering::Relaxed);
        exchange
    }
}

async fn names(server: &mut Server, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(name(server).await);
    }
    names
}

/// Whether nothing more arrives before the clock has to go on.
async fn is_idle(server: &mut Server) -> bool {
    timeout(Duration::from_millis(1), server.command()).await.is_err()
}

fn refused(events: &[Event]) -> bool {
    matches!(events, [Event::Answered(Err(_))])
}

#[tokio::test(start_paused = true)]
async fn requests_without_room_wait_and_leave_on_the_next_connection() {
    let mut test = test();
    let mut server = test.useful_server().await;
    let (first, waits) = (test.exchange(1), test.owed(2));
    (0..MOST_IN_FLIGHT).for_each(|_| test.send(first.hold()));
    test.send(waits.release());
    assert!(names(&mut server, MOST_IN_FLIGHT).await.iter().all(|name| name == "hold"));
    assert!(is_idle(&mut server).await && waits.events().is_empty(), "there is no room for the release");
    drop(server);
    let mut server = test.server().await;
    assert!(names(&mut server, MOST_IN_FLIGHT).await.iter().all(|name| name == "hold"));
    assert!(is_idle(&mut server).await, "there is no room here either");
    server.reply(":1\r\n").await;
    assert_eq!(name(&mut server).await, "release");
    assert_eq!(waits.events(), [Event::Sent]);
}

#[tokio::test(start_paused = true)]
async fn requests_of_the_broken_connection_leave_before_later_ones() {
    let mut test = test();
    let mut server = test.useful_server().await;
    let (old, new) = (test.exchange(1), test.owed(2));
    test.send(old.hold());
    name(&mut server).await;
    drop(server);
    let mut server = Server::new(test.streams.recv().await.expect("it connects again"));
    test.send(new.release());
    settled().await;
    server.greet(1).await;
    assert_eq!(names(&mut server, 2).await, ["hold", "release"]);
}

#[tokio::test(start_paused = true)]
async fn before_the_first_connection_a_bounded_number_of_holds_waits() {
    let mut test = test();
    let (first, late) = (test.exchange(1), test.exchange(2));
    let stream = test.streams.recv().await.expect("it connects");
    (0..MOST_IN_FLIGHT).for_each(|_| test.send(first.hold()));
    test.send(late.hold());
    test.send(first.release());
    settled().await;
    assert_eq!((first.events(), late.events()), (vec![], vec![Event::Answered(Err(NodeError::Connecting))]));
    let mut server = Server::new(stream);
    server.greet(1).await;
    assert!(names(&mut server, MOST_IN_FLIGHT).await.iter().all(|name| name == "hold"));
    server.reply(":1\r\n").await;
    assert_eq!(name(&mut server).await, "release", "it may take away what these holds leave");
}

#[tokio::test(start_paused = true)]
async fn the_oldest_of_too_many_releases_is_answered_and_not_kept() {
    let mut test = test();
    drop(test.streams.recv().await);
    settled().await;
    let [oldest, second, others] = [1, 2, 3].map(|lease| test.owed(lease));
    test.send(oldest.release());
    test.send(second.release());
    (2..MOST_UNACKNOWLEDGED).for_each(|_| test.send(others.release()));
    settled().await;
    assert_eq!(oldest.events(), []);
    test.send(others.release());
    settled().await;
    assert!(refused(&oldest.events()));
    assert_eq!((second.events(), others.events()), (vec![], vec![]));
    let mut server = test.server().await;
    name(&mut server).await;
    settled().await;
    assert_eq!(second.events(), [Event::Sent], "the order is kept");
}

#[tokio::test(start_paused = true)]
async fn one_poll_takes_a_bounded_number_of_requests() {
    let mut test = run(1, |connection| Box::pin(unconstrained(connection.run())));
    assert!(poll!(&mut test.running).is_pending());
    let mut server = Server::new(test.streams.try_recv().expect("it connects"));
    let greeted = tokio::spawn(async move {
        server.greet(1).await;
        server
    });
    while test.trouble().is_some() {
        assert!(poll!(&mut test.running).is_pending());
        yield_now().await;
    }
    let released = test.exchange(1);
    (0..MOST_TAKEN + 44).for_each(|_| test.send(released.release()));
    assert!(poll!(&mut test.running).is_pending());
    assert_eq!(released.events().len(), MOST_TAKEN);
    drop(greeted.await.expect("no panic"));
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_bound_of_one_poll_need_no_further_event() {
    // Without tokio's own bound, which would wake the task as well.
    let mut test = run(1, |connection| tokio::spawn(unconstrained(connection.run())));
    let _server = test.server().await;
    settled().await;
    let released = test.exchange(1);
    (0..MOST_TAKEN + 44).for_each(|_| test.send(released.release()));
    settled().await;
    assert_eq!(released.events().len(), MOST_TAKEN + 44);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_for_a_moment_after_many_calls() {
    let mut test = test();
    let mut server = test.server().await;
    let exchange = test.exchange(1);
    test.send(exchange.hold());
    name(&mut server).await;
    server.reply(&(CALL.repeat(100) + ":1\r\n")).await;
    settled().await;
    assert_eq!(exchange.events(), [Event::Sent]);
    advance(Duration::from_millis(20)).await;
    settled().await;
    assert_eq!(exchange.events(), [agreed()]);
}

#[tokio::test(start_paused = true)]
async fn a_few_calls_delay_no_answer() {
    let mut test = test();
    let mut server = test.server().await;
    let exchange = test.exchange(1);
    test.send(exchange.hold());
    name(&mut server).await;
    server.reply(&(CALL.repeat(10) + ":1\r\n")).await;
    settled().await;
    assert_eq!(exchange.events(), [Event::Sent, agreed()]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_client_waits_for_a_silent_node_no_longer_than_its_timeout() {
    let mut test = test();
    let exchange = test.exchange(1);
    let mut server = test.server().await;
    test.send(exchange.hold());
    name(&mut server).await;
    let began = test.environment.now();
    assert!(test.queue.send(Message::Close).is_ok());
    timeout(LONG, test.running).await.expect("it ends").expect("no panic");
    let took = test.environment.now().since(began);
    assert!(TIMEOUT <= took && took < LEAST_SILENCE_LIMIT, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_stays_silent_is_closed() {
    let mut test = test();
    let mut server = test.server().await;
    test.send(test.exchange(1).hold());
    name(&mut server).await;
    let closed = timeout(2 * LEAST_SILENCE_LIMIT, server.command()).await;
    assert_eq!(closed.expect("no server keeps a client that long"), None);
}

#[tokio::test(start_paused = true)]
async fn another_connection_is_tried_before_the_reply_is_overdue() {
    let mut test = test();
    let mut server = test.server().await;
    test.send(test.exchange(1).hold());
    name(&mut server).await;
    let second = timeout(TIMEOUT.saturating_sub(Duration::from_millis(1)), test.streams.recv()).await;
    assert!(second.is_ok_and(|stream| stream.is_some()));
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_that_answers_after_all_gets_requests_again() {
    let mut test = test();
    let mut server = test.server().await;
    let [late, refused_one, next] = [1, 2, 3].map(|lease| test.exchange(lease));
    test.send(late.hold());
    name(&mut server).await;
    sleep(TIMEOUT + Duration::from_millis(100)).await;
    assert!(matches!(test.trouble(), Some(NodeError::Silent(_))));
    test.send(refused_one.hold());
    settled().await;
    assert!(refused(&refused_one.events()));
    server.reply(":1\r\n").await;
    settled().await;
    assert_eq!((late.events(), test.trouble()), (vec![Event::Sent, agreed()], None));
    test.send(next.hold());
    settled().await;
    assert_eq!(next.events(), [Event::Sent]);
    assert_eq!(name(&mut server).await, "hold");
}

#[tokio::test(start_paused = true)]
async fn releases_without_room_leave_when_the_client_ends() {
    let mut test = test();
    let mut server = test.useful_server().await;
    let (first, waits) = (test.exchange(1), test.owed(2));
    (0..MOST_IN_FLIGHT).for_each(|_| test.send(first.hold()));
    test.send(waits.release());
    names(&mut server, MOST_IN_FLIGHT).await;
    assert!(is_idle(&mut server).await);
    assert!(test.queue.send(Message::Close).is_ok());
    assert_eq!(timeout(TIMEOUT / 2, name(&mut server)).await.expect("it leaves"), "release");
}
