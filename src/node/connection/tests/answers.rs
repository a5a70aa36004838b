//! What an answer means for the connection on which it comes.

use super::super::super::fake::RECORD;
use super::*;

const LOST: &str = "-NOSCRIPT No matching script.\r\n";
const LOADING: &str = "-LOADING Redis is loading the dataset in memory\r\n";
const REPLICA: &str = "-READONLY You can't write against a read only replica.\r\n";
const FULL: &str = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";
const OTHER: &str = "-ERR of another kind\r\n";

/// What the server gets next; `None` when the connection has ended.
async fn next(server: &mut Server) -> Option<String> {
    timeout(TIMEOUT / 5, server.command()).await.expect("something happens").map(|mut command| command.swap_remove(0))
}

/// Whether the connection is kept, and nothing is sent.
async fn is_idle(server: &mut Server) -> bool {
    timeout(TIMEOUT / 5, server.command()).await.is_err()
}

/// Gives this answer to one request.
async fn answer(test: &mut Test, request: Request, answer: &str) -> Server {
    let mut server = test.server().await;
    test.send(request);
    assert!(next(&mut server).await.is_some());
    server.reply(answer).await;
    settled().await;
    server
}

fn error(events: &[Event]) -> Option<NodeError> {
    match events {
        [Event::Sent, Event::Answered(Err(error))] => Some(error.clone()),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_hold_is_its_answer() {
    for said in [LOADING, FULL, OTHER] {
        let mut test = test();
        let exchange = test.exchange(1);
        let mut server = answer(&mut test, exchange.hold(), said).await;
        let events = exchange.events();
        assert!(matches!(error(&events), Some(NodeError::Redis { .. })), "{said}: {events:?}");
        assert!(is_idle(&mut server).await, "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_answers_a_hold_with_an_error_is_in_trouble_until_the_next_answer() {
    const HELD: &str = "*5\r\n:2\r\n:1790000000000000\r\n:1\r\n:1500\r\n$1\r\nx\r\n";
    for proper in [":1\r\n", HELD] {
        let mut test = test();
        let exchange = test.exchange(1);
        let mut server = answer(&mut test, exchange.hold(), FULL).await;
        assert!(matches!(test.trouble(), Some(NodeError::Redis { code, .. }) if code == "OOM"));
        test.send(exchange.hold());
        assert!(next(&mut server).await.is_some());
        server.reply(proper).await;
        settled().await;
        assert_eq!(test.trouble(), None, "{proper}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_quarantine_takes_the_place_of_a_refusal() {
    let mut test = test();
    let exchange = test.exchange(1);
    let mut server = answer(&mut test, exchange.hold(), FULL).await;
    test.send(exchange.hold());
    assert!(next(&mut server).await.is_some());
    server.reply("*3\r\n:9\r\n:1790000000000000\r\n:7000\r\n").await;
    settled().await;
    assert!(matches!(test.trouble(), Some(NodeError::Quarantined { .. })));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_release_that_is_for_good_is_its_answer() {
    let mut test = test();
    let release = test.owed(1);
    let server = answer(&mut test, release.release(), OTHER).await;
    assert!(matches!(error(&release.events()), Some(NodeError::Redis { .. })));
    assert_eq!(test.trouble(), None);
    drop(server);
    settled().await;
    let held = test.exchange(2);
    test.send(held.hold());
    settled().await;
    let events = held.events();
    assert!(matches!(events[..], [Event::Answered(Err(_))]), "the connection was of no use: {events:?}");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_is_answered_does_not_make_a_connection_useful() {
    let mut test = test();
    let (reply_to, said) = tokio::sync::oneshot::channel();
    let look = Request { command: b"*1\r\n$4\r\nlook\r\n".to_vec().into(), reply_to: ReplyTo::Look(reply_to) };
    drop(answer(&mut test, look, ":7\r\n").await);
    assert_eq!(said.await, Ok(Ok(Value::Int(7))));
    settled().await;
    let held = test.exchange(2);
    test.send(held.hold());
    settled().await;
    assert!(matches!(held.events()[..], [Event::Answered(Err(_))]));
}

#[tokio::test(start_paused = true)]
async fn a_release_that_is_done_makes_a_connection_useful() {
    let mut test = test();
    let release = test.owed(1);
    drop(answer(&mut test, release.release(), ":1\r\n").await);
    settled().await;
    let held = test.exchange(2);
    test.send(held.hold());
    let mut server = test.server().await;
    assert_eq!(next(&mut server).await.as_deref(), Some("hold"), "the next connection is made at once");
}

#[tokio::test(start_paused = true)]
async fn a_quarantine_is_over_for_a_client_when_its_wall_clock_has_passed_the_end() {
    const WALL: u64 = 1_790_000_000_000; // ms, by the fake
    for (end, is_over) in [(WALL, true), (WALL + 60_000, false)] {
        let mut test = test();
        let exchange = test.exchange(1);
        let record = RECORD.replace(" 0 0 ", &format!(" 1 {end} "));
        let granted = format!("*2\r\n:1\r\n${}\r\n{record}\r\n", record.len());
        let mut server = answer(&mut test, exchange.hold(), &granted).await;
        test.send(exchange.hold());
        let said = server.command().await.expect("a command").swap_remove(1);
        assert_eq!(said == record, is_over, "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_is_sent_again_on_the_next_connection_when_its_server_cannot_do_it_yet() {
    for said in [LOADING, REPLICA] {
        let mut test = test();
        let release = test.owed(1);
        let mut server = answer(&mut test, release.release(), said).await;
        assert_eq!(next(&mut server).await, None, "{said}");
        assert_eq!(release.events(), [Event::Sent, Event::Resent]);
        let mut server = test.server().await;
        assert_eq!(next(&mut server).await.as_deref(), Some("release"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_become_a_replica_is_left() {
    let mut test = test();
    let exchange = test.exchange(1);
    let mut server = answer(&mut test, exchange.hold(), REPLICA).await;
    assert_eq!(next(&mut server).await, None);
    assert_eq!(test.trouble(), Some(NodeError::Replica));
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_unasked_and_is_no_call_ends_the_connection() {
    let mut test = test();
    let mut server = test.server().await;
    server.reply(">2\r\n$10\r\ninvalidate\r\n*0\r\n").await;
    assert_eq!(next(&mut server).await, None);
    assert!(matches!(test.trouble(), Some(NodeError::Nonsense(_))));
}

#[tokio::test(start_paused = true)]
async fn a_hold_whose_leases_are_over_is_not_sent_again_for_want_of_scripts() {
    let mut test = test();
    let exchange = test.exchange(1);
    exchange.is_moot.store(true, Ordering::Relaxed);
    let mut server = answer(&mut test, exchange.hold(), LOST).await;
    assert!(error(&exchange.events()).is_some());
    assert!(is_idle(&mut server).await);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_loses_the_scripts_again_at_once_is_left() {
    let mut test = test();
    let exchange = test.exchange(1);
    let mut server = answer(&mut test, exchange.hold(), LOST).await;
    for expected in ["SCRIPT", "SCRIPT", "SCRIPT", "hold"] {
        assert_eq!(next(&mut server).await.as_deref(), Some(expected));
    }
    server.reply(&("$1\r\nx\r\n".repeat(3) + LOST)).await;
    assert_eq!(next(&mut server).await, None);
    let events = exchange.events();
    assert!(matches!(error(&events), Some(NodeError::Disconnected(_))), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn a_release_waits_for_another_connection_when_its_node_refuses_the_scripts() {
    let mut test = test();
    let (held, release) = (test.exchange(1), test.owed(2));
    let mut server = answer(&mut test, held.hold(), LOST).await;
    for _ in 0..4 {
        next(&mut server).await;
    }
    server.reply(&("-NOPERM no scripts\r\n".repeat(3) + LOST)).await;
    settled().await;
    assert!(matches!(error(&held.events()), Some(NodeError::Redis { code, .. }) if code == "NOPERM"));
    assert!(matches!(test.trouble(), Some(NodeError::Redis { code, .. }) if code == "NOPERM"));
    test.send(release.release());
    assert_eq!(next(&mut server).await.as_deref(), Some("release"));
    server.reply(LOST).await;
    assert_eq!(next(&mut server).await, None);
    assert_eq!(release.events(), [Event::Sent, Event::Resent]);
}

#[tokio::test(start_paused = true)]
async fn a_record_by_which_a_node_grants_is_learnt() {
    let mut test = test();
    let exchange = test.exchange(1);
    let record = RECORD.replace(" 10000 ", " 20000 ");
    let granted = format!("*2\r\n:1\r\n${}\r\n{record}\r\n", record.len());
    let mut server = answer(&mut test, exchange.hold(), &granted).await;
    assert!(matches!(exchange.events()[..], [Event::Sent, Event::Answered(Ok(_))]));
    assert_eq!(test.common.learnt_lease(), Duration::from_secs(20));
    test.send(exchange.hold());
    assert_eq!(server.command().await, Some(vec!["hold".to_owned(), record]));
    server.reply("*2\r\n:1\r\n$1\r\nx\r\n").await;
    assert_eq!(next(&mut server).await, None);
    assert!(matches!(error(&exchange.events()), Some(NodeError::Nonsense(_))));
}

#[tokio::test(start_paused = true)]
async fn an_answer_makes_room_for_the_next_request_at_once() {
    let mut test = test();
    let (first, waits) = (test.exchange(1), test.exchange(2));
    let mut server = test.server().await;
    (0..MOST_IN_FLIGHT).for_each(|_| test.send(first.hold()));
    test.send(waits.hold());
    for _ in 0..MOST_IN_FLIGHT {
        name(&mut server).await;
    }
    assert_eq!(waits.events(), []);
    server.reply(":1\r\n").await;
    settled().await;
    assert_eq!(waits.events(), [Event::Sent]);
}
