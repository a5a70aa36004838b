//! Row 44: all clients must list the same nodes.

use std::time::Duration;

use quorlock::{AcquireError, Answer, NodeError, Outage, Quorlock};
use quorlock_testkit::{Cluster, Setup};

const SECOND: Duration = Duration::from_secs(1);

async fn client(urls: &[String]) -> Quorlock {
    let locks = Quorlock::builder()
        .nodes(urls)
        .lease(SECOND)
        .node_timeout(SECOND / 2)
        .connect()
        .await
        .expect("settings that work");
    locks.flush().await;
    locks
}

/// The numbers of nodes in the lists that do not agree: the client's and a node's.
fn lists(error: &AcquireError) -> Vec<(usize, usize)> {
    let list = |answer: &Answer| match answer {
        Answer::Failed(NodeError::OtherList { ours, theirs }) => Some((*ours, *theirs)),
        _ => None,
    };
    error.nodes().iter().filter_map(|report| list(&report.answer)).collect()
}

#[tokio::test]
async fn acc_44_a_client_that_lists_some_of_the_nodes_is_refused() {
    let cluster = Cluster::start(5);
    let urls = cluster.urls();
    let all = client(&urls).await;
    for count in [3, 4] {
        let some = client(&urls[..count]).await;
        for is_held in [false, true, false] {
            let guard = if is_held { Some(all.lock("x").acquire().await.expect("the lock")) } else { None };
            let error = some.lock("x").try_acquire().await.expect_err("it lists too few nodes");
            assert!(error.is_no_quorum(), "{error}");
            assert_eq!(lists(&error), vec![(count, 5); count], "{error}");
            for words in [&format!("{count} nodes are listed here"), "one of 5", "set-list"] {
                assert!(error.to_string().contains(words), "{error}");
            }
            some.flush().await;
            let keys = cluster.count_keys(&Cluster::lock_key("x"));
            assert!(is_held || keys == 0, "{keys} nodes have been asked for the lock");
            if let Some(guard) = guard {
                guard.release().await.expect("it is not disturbed");
                all.flush().await;
            }
        }
    }
}

#[tokio::test]
async fn acc_44_a_client_that_lists_a_node_of_another_cluster_is_refused() {
    let cluster = Setup::new(5).spare(1).start();
    cluster.declare_elsewhere(5, 5);
    let urls = cluster.urls();
    let all = client(&urls[..5]).await;
    for place in [0, 2, 4] {
        let mut mixed = urls[..5].to_vec();
        mixed[place] = urls[5].clone();
        let locks = client(&mixed).await;
        let error = locks.lock("x").try_acquire().await.expect_err("one node is of another cluster");
        assert!(error.is_no_quorum(), "{error}");
        let stranger = urls[5].trim_start_matches("redis://");
        let names_both = error.nodes().iter().any(|report| match &report.answer {
            Answer::Failed(NodeError::OtherCluster { other }) => (report.node == stranger) != (other == stranger),
            _ => false,
        });
        assert!(names_both, "{error}");
        locks.flush().await;
        assert_eq!(cluster.count_keys(&Cluster::lock_key("x")), 0);
        all.lock("x").acquire().await.expect("it is free").release().await.expect("a release");
        all.flush().await;
    }
}

#[tokio::test]
async fn acc_44_new_nodes_keep_their_first_list() {
    let cluster = Setup::new(5).undeclared().start();
    let urls = cluster.urls();
    let first = client(&urls[..3]).await;
    let guard = first.lock("x").wait(60 * SECOND).outage(Outage::Wait).acquire().await;
    let guard = guard.expect("when the quarantine of the new nodes is over");
    let other = client(&urls).await;
    for is_held in [true, false] {
        let error = other.lock("x").wait(2 * SECOND).acquire().await.expect_err("another list");
        assert!(error.is_no_quorum(), "held: {is_held}, {error}");
        let lists = lists(&error);
        assert!(!lists.is_empty() && lists.iter().all(|list| *list == (5, 3)), "{error}");
        if is_held {
            guard.extend().await.expect("it is not disturbed");
            drop(first.lock("y").acquire().await.expect("another lock"));
        }
    }
    guard.release().await.expect("a release");
}

#[tokio::test]
async fn acc_44_of_two_concurrent_lists_at_most_one_is_accepted() {
    for _ in 0..3 {
        let cluster = Setup::new(5).undeclared().start();
        let urls = cluster.urls();
        let ask = async |urls: &[String]| {
            let locks = client(urls).await;
            locks.lock("x").wait(6 * SECOND).acquire().await.map(std::mem::forget)
        };
        let (three, five) = futures::join!(ask(&urls[..3]), ask(&urls));
        assert!(three.is_err() || five.is_err(), "two majorities: {three:?}, {five:?}");
        for error in [three, five].into_iter().filter_map(Result::err) {
            assert!(error.is_no_quorum() && !lists(&error).is_empty(), "{error}");
        }
    }
}
