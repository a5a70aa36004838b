//! What a connection does when the servers at the places of the list do not belong together.

use super::super::super::health::Health;
use super::*;
use crate::protocol::Process;

/// A server that knows of a list of so many nodes, as it is seen at the second place of the list.
fn see(test: &Test, listed: usize) -> Result<(), NodeError> {
    let process = Process::new("other", 0, false, false);
    let health = Health { run_id: "other".to_owned(), process, record: None, listed: Some(listed), clock: 0 };
    test.common.reached(1, &"second".into(), &health).map(drop)
}

fn refused_for_the_second() -> [Event; 1] {
    [Event::Answered(Err(NodeError::NotAsked { node: "second".to_owned() }))]
}

#[tokio::test(start_paused = true)]
async fn a_conflict_at_another_place_refuses_new_leases_and_lets_held_ones_go_on() {
    let mut test = test_of(2);
    let mut server = test.server_of(2).await;
    settled().await;
    let other = NodeError::OtherList { ours: 2, theirs: 5 };
    assert_eq!(see(&test, 5), Err(other));
    let (acquires, goes_on) = (test.exchange(1), FakeExchange::extension(test.environment.now(), 2));
    test.send(goes_on.hold());
    assert_eq!(name(&mut server).await, "hold");
    server.reply(":1\r\n").await;
    settled().await;
    assert_eq!(goes_on.events(), [Event::Sent, agreed()]);

    test.send(acquires.hold());
    let closed = timeout(TIMEOUT, server.command()).await.expect("the conflict is newer than the connection");
    assert_eq!(closed, None);
    assert_eq!(acquires.events(), refused_for_the_second());
    let mut server = test.server_of(2).await;
    settled().await;
    test.send(acquires.hold());
    settled().await;
    assert_eq!(acquires.events(), refused_for_the_second());
    assert_eq!(see(&test, 2), Ok(()));
    test.send(acquires.hold());
    assert_eq!(name(&mut server).await, "hold", "the connection was not made once more");
    assert_eq!(acquires.events(), [Event::Sent]);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_lasts_until_the_server_cannot_be_reached() {
    let mut test = test_of(2);
    let conflict = |test: &Test| test.common.conflict(1);
    let mut server = Server::new(test.streams.recv().await.expect("it connects"));
    server.greet(5).await;
    settled().await;
    assert_eq!(conflict(&test), Some(NodeError::NotAsked { node: "node".to_owned() }));
    assert_eq!(test.trouble(), Some(NodeError::OtherList { ours: 2, theirs: 5 }));
    drop(test.streams.recv().await);
    settled().await;
    assert_eq!(conflict(&test), None);
}

/// The longest lease is never lowered, and is written to every node.
#[tokio::test(start_paused = true)]
async fn a_server_of_another_list_teaches_no_longest_lease() {
    let mut test = test_of(2);
    let before = test.common.learnt_lease();
    let mut server = Server::new(test.streams.recv().await.expect("it connects"));
    server.greet(5).await;
    settled().await;
    assert_eq!(test.common.learnt_lease(), before);
    drop(server);
    let _server = test.server_of(2).await;
    settled().await;
    assert!(test.common.learnt_lease() > before, "one of the list does");
}
