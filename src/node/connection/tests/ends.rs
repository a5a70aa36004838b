//! What a connection leaves behind when it ends, and what happens until there is another one.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::*;

/// A question of a caller, and where its answer goes.
fn look() -> (Request, oneshot::Receiver<Result<Value, NodeError>>) {
    let (reply_to, answer) = oneshot::channel();
    (Request { command: b"*1\r\n$4\r\nlook\r\n".to_vec().into(), reply_to: ReplyTo::Look(reply_to) }, answer)
}

impl Test {
    fn close(&self) {
        assert!(self.queue.send(Message::Close).is_ok(), "it runs");
    }

    /// How long it goes on.
    async fn ends_after(self) -> Duration {
        let began = Instant::now();
        timeout(10 * TIMEOUT, self.running).await.expect("it ends").expect("no panic");
        began.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_nothing_to_send_ends_before_it_is_connected() {
    let mut test = test();
    let _stream = test.streams.recv().await.expect("it connects");
    test.close();
    assert_eq!(test.ends_after().await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ends_sends_what_waits_for_its_first_connection() {
    let mut test = test();
    let stream = test.streams.recv().await.expect("it connects");
    test.send(test.exchange(1).hold());
    test.close();
    settled().await;
    let mut server = Server::new(stream);
    server.greet(1).await;
    assert_eq!(name(&mut server).await, "hold");
    server.reply(":1\r\n").await;
    assert!(test.ends_after().await < TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ends_waits_for_its_first_connection_no_longer_than_for_an_answer() {
    let mut test = test();
    let _stream = test.streams.recv().await.expect("it connects");
    test.send(test.exchange(1).hold());
    test.close();
    assert_eq!(test.ends_after().await, TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ends_does_not_wait_for_a_node_that_is_down() {
    let mut test = test();
    drop(test.streams.recv().await);
    settled().await;
    let _next = async { test.streams.recv().await.expect("it connects again") }.await;
    test.send(test.owed(1).release());
    settled().await;
    test.close();
    assert_eq!(test.ends_after().await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_release_of_what_was_never_sent_is_done_without_a_connection() {
    let mut test = test();
    drop(test.streams.recv().await);
    settled().await;
    let exchange = test.exchange(1);
    test.send(exchange.release());
    settled().await;
    assert_eq!(exchange.events(), [Event::NothingSent]);
}

#[tokio::test(start_paused = true)]
async fn the_first_pause_is_between_half_and_all_of_its_length() {
    let mut test = test();
    let first = pause::longer(Duration::ZERO);
    drop(test.streams.recv().await);
    let began = Instant::now();
    let _next = test.streams.recv().await.expect("it connects again");
    assert!(first / 2 <= began.elapsed() && began.elapsed() <= first, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn after_a_connection_that_was_of_no_use_holds_fail_until_the_next_one() {
    let mut test = test();
    drop(test.server().await);
    settled().await;
    let exchange = test.exchange(1);
    test.send(exchange.hold());
    settled().await;
    assert!(matches!(exchange.events()[..], [Event::Answered(Err(NodeError::Disconnected(_)))]));
}

#[tokio::test(start_paused = true)]
async fn an_answer_ends_the_attempt_beside_the_connection() {
    let mut test = test();
    let mut server = test.server().await;
    test.send(test.exchange(1).hold());
    name(&mut server).await;
    let beside = timeout(TIMEOUT, test.streams.recv()).await.expect("an attempt begins").expect("it connects");
    server.reply(":1\r\n").await;
    settled().await;
    let mut beside = Server::new(beside);
    let closed = async { while beside.command().await.is_some() {} };
    timeout(TIMEOUT, closed).await.expect("the attempt is dropped");
    test.send(test.exchange(2).hold());
    assert_eq!(name(&mut server).await, "hold", "the connection is still in use");
}

#[tokio::test(start_paused = true)]
async fn a_question_is_asked_again_on_the_next_connection_while_its_caller_waits() {
    let mut test = test();
    let mut server = test.useful_server().await;
    let ((abandoned, no_answer), (wanted, answer)) = (look(), look());
    for request in [abandoned, wanted] {
        test.send(request);
        name(&mut server).await;
    }
    drop((no_answer, server));
    let mut server = test.server().await;
    assert_eq!(name(&mut server).await, "look");
    server.reply(":7\r\n").await;
    assert_eq!(answer.await, Ok(Ok(Value::Int(7))));
    assert!(timeout(Duration::from_millis(1), server.command()).await.is_err(), "no caller waits for the other answer");
}

#[tokio::test(start_paused = true)]
async fn a_question_fails_with_a_connection_that_is_not_made_again_at_once() {
    let mut test = test();
    let mut server = test.server().await;
    let (request, mut answer) = look();
    test.send(request);
    name(&mut server).await;
    drop(server);
    settled().await;
    assert!(matches!(answer.try_recv(), Ok(Err(NodeError::Disconnected(_)))));
}

/// What a node answers that cannot write just now.
const FULL: &str = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";

/// A connection whose node cannot do a release just now, the server's end, and the release.
async fn with_a_postponed_release() -> (Test, Server, Arc<FakeExchange>) {
    let mut test = test();
    let release = test.owed(1);
    let mut server = test.server().await;
    test.send(release.release());
    name(&mut server).await;
    server.reply(FULL).await;
    settled().await;
    (test, server, release)
}

/// Answers everything as a node that goes on being full.
async fn stays_full(server: &mut Server) {
    while let Some(_again) = server.command().await {
        server.reply(FULL).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_the_node_cannot_do_is_sent_again_later() {
    let (_test, mut server, release) = with_a_postponed_release().await;
    assert_eq!(release.events(), [Event::Sent, Event::Resent]);
    assert_eq!(timeout(TIMEOUT, name(&mut server)).await.expect("it is sent again"), "release");
    server.reply(":1\r\n").await;
    settled().await;
    assert_eq!(release.events(), [Event::Sent, agreed()]);
}

#[tokio::test(start_paused = true)]
async fn a_closing_connection_repeats_what_the_node_cannot_do_for_the_node_timeout() {
    let (test, mut server, release) = with_a_postponed_release().await;
    assert!(test.queue.send(Message::Close).is_ok(), "it runs");
    assert_eq!(timeout(TIMEOUT, name(&mut server)).await.expect("it is sent again"), "release");
    server.reply(":1\r\n").await;
    timeout(TIMEOUT, test.running).await.expect("all is done").expect("no panic");
    assert_eq!(release.events().last(), Some(&agreed()));

    let (test, mut server, _) = with_a_postponed_release().await;
    assert!(test.queue.send(Message::Close).is_ok(), "it runs");
    let both = futures::future::join(test.running, stays_full(&mut server));
    let ended = timeout(4 * TIMEOUT, both).await.expect("it ends");
    ended.0.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_closing_connection_does_not_wait_as_long_as_a_node_that_has_been_full_for_long() {
    let (test, mut server, _) = with_a_postponed_release().await;
    let closes = async {
        sleep(20 * TIMEOUT).await;
        assert!(test.queue.send(Message::Close).is_ok(), "it runs");
        let closed = tokio::time::Instant::now();
        test.running.await.expect("no panic");
        closed.elapsed()
    };
    let (took, ()) = futures::future::join(closes, stays_full(&mut server)).await;
    assert!(took <= 2 * TIMEOUT, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_runtime_sends_a_postponed_release_once_more() {
    let (test, mut server, _) = with_a_postponed_release().await;
    test.common.life.end();
    // The end of the runtime polls each connection once more.
    test.send(test.owed(2).release());
    let names = async { [name(&mut server).await, name(&mut server).await] };
    assert_eq!(timeout(TIMEOUT, names).await.expect("both leave"), ["release", "release"]);
}

#[tokio::test(start_paused = true)]
async fn a_postponed_release_of_what_has_expired_is_not_sent_again() {
    let (_test, mut server, release) = with_a_postponed_release().await;
    release.is_expired.store(true, Ordering::Relaxed);
    assert!(timeout(4 * TIMEOUT, server.command()).await.is_err());
    assert!(matches!(
        release.events()[..],
        [Event::Sent, Event::Resent, Event::Answered(Err(NodeError::Redis { .. }))]
    ));
}

#[tokio::test(start_paused = true)]
async fn after_the_end_of_the_runtime_releases_leave_and_holds_do_not() {
    let mut test = test();
    let mut server = test.server().await;
    settled().await;
    let (held, released) = (test.exchange(1), test.owed(2));
    test.common.life.end();
    test.send(held.hold());
    test.send(released.release());
    assert_eq!(name(&mut server).await, "release");
    let ended = Event::Answered(Err(ClientError::RuntimeEnded.into()));
    assert_eq!((held.events(), released.events()), (vec![ended.clone()], vec![Event::Sent, ended]));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_replaced_a_silent_one_is_not_replaced_before_it_has_answered() {
    let mut test = test();
    let _silent = test.server().await;
    test.send(test.owed(1).release());
    let mut second = test.server().await;
    assert_eq!(name(&mut second).await, "release");
    assert!(timeout(TIMEOUT, test.streams.recv()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn only_a_late_hold_whose_leases_are_over_is_not_sent() {
    let mut test = test();
    let mut server = test.server().await;
    let [moot, wanted] = [1, 2].map(|lease| test.exchange(lease));
    moot.is_moot.store(true, Ordering::Relaxed);
    for late in [false, true] {
        for exchange in [&moot, &wanted] {
            test.send(exchange.hold());
            settled().await;
            let is_sent = exchange.events() == [Event::Sent];
            assert_eq!(is_sent, !late || Arc::ptr_eq(exchange, &wanted));
            if is_sent {
                name(&mut server).await;
                server.reply(":1\r\n").await;
                settled().await;
                exchange.events();
            }
        }
        sleep(TIMEOUT).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_that_hangs_up_may_be_one_for_tls() {
    let mut test = test();
    drop(test.streams.recv().await);
    settled().await;
    let why = test.trouble().expect("it is down").to_string();
    assert!(why.contains("needs the scheme rediss"), "{why}");
}
