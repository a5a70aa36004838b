//! Rows 07, 08 and 09: the identity of owners, and releases by the owner only.

use std::collections::HashSet;
use std::process::Command;
use std::time::Duration;

use quorlock::Owner;
use quorlock_testkit::Cluster;
use quorlock_testkit::worker::Worker;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn acc_07_no_task_or_thread_reenters_by_accident() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let guard = locks.lock("mine").acquire().await.expect("the lock");
    let refused = |locks: quorlock::Quorlock| async move {
        locks.lock("mine").try_acquire().await.is_err_and(|error| error.is_held())
    };
    assert!(refused(locks.clone()).await, "the very task that holds it did not ask to re-enter");
    for _ in 0..200 {
        assert!(tokio::spawn(refused(locks.clone())).await.expect("a task"), "a task re-entered");
    }
    let runtime = tokio::runtime::Handle::current();
    for _ in 0..200 {
        let (runtime, locks) = (runtime.clone(), locks.clone());
        let asked = tokio::task::spawn_blocking(move || {
            std::thread::spawn(move || runtime.block_on(refused(locks))).join().expect("a thread")
        });
        assert!(asked.await.expect("a thread"), "a thread re-entered");
    }
    guard.release().await.expect("a release");
}

#[tokio::test]
async fn acc_07_owners_are_128_random_bits() {
    let owners: HashSet<u128> =
        (0..10_000).map(|_| u128::from_str_radix(&Owner::new().id(), 16).expect("hexadecimal")).collect();
    assert_eq!(owners.len(), 10_000);
    for bit in 0..128 {
        let ones = owners.iter().filter(|id| *id >> bit & 1 == 1).count();
        assert!((4500..5500).contains(&ones), "bit {bit} is set in {ones} of 10,000 owners");
    }
}

#[tokio::test]
async fn acc_07_the_same_process_number_in_two_namespaces_is_two_owners() {
    let cluster = Cluster::start(5);
    let urls = cluster.urls().join(",");
    let own_namespace = ["-U", "-r", "-p", "-f"];
    if !Command::new("unshare").args(own_namespace).arg("true").status().is_ok_and(|status| status.success()) {
        println!("skipped: this machine gives no user and pid namespaces (unshare -Urpf)");
        return;
    }
    let mut holder =
        Worker::spawn_in(&["unshare", "-U", "-r", "-p", "-f", "--kill-child"], &["hold", &urls, "x", "10000"]);
    let exported = holder.next().expect("it holds");
    assert!(exported.contains(":1;"), "it should be process 1 of its namespace: {exported}");
    let asker = Worker::spawn_in(&["unshare", "-U", "-r", "-p", "-f", "--kill-child"], &["try", &urls, "x"]);
    assert_eq!(asker.finish(), ["refused true"]);
}

#[tokio::test]
async fn acc_08_a_second_or_foreign_release_changes_nothing_and_says_so() {
    let cluster = Cluster::start(5);
    let locks = cluster.builder().lease(SECOND).auto_extend(false).connect().await.expect("settings that work");
    let stale = locks.lock("theirs").acquire().await.expect("the lock");
    let second = locks.lock("theirs").owner(stale.owner()).acquire().await.expect("a re-entry");
    let exported = stale.export();
    stale.lost().await;

    let other = cluster.client(10 * SECOND).await;
    let theirs = other.lock("theirs").wait(5 * SECOND).acquire().await.expect("free after the lease");
    other.flush().await;
    let dump = |cluster: &Cluster| {
        let key = Cluster::lock_key("theirs");
        let values: Vec<Vec<u8>> = cluster.each(redis::cmd("GET").arg(&key));
        let ballots: Vec<String> = cluster.each(redis::cmd("GET").arg(format!("quorlock:ballot:{key}")));
        (values, ballots)
    };
    let (values, _) = dump(&cluster);
    for guard in [second, stale] {
        let error = guard.release().await.expect_err("it is not held");
        assert!(error.to_string().starts_with("not held"), "{error}");
    }
    assert!(locks.join(&exported).await.expect_err("it is not held").is_lost());
    locks.flush().await;
    assert_eq!(dump(&cluster).0, values);
    assert_eq!(values.len(), 5);
    assert!(!theirs.is_lost());
    theirs.extend().await.expect("the lease can still be extended");
    theirs.release().await.expect("a release");
}

#[tokio::test]
async fn acc_09_a_release_leaves_anothers_lock_alone() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let guard = locks.lock("swapped").acquire().await.expect("the lock");
    locks.flush().await;
    let swapped: Vec<String> =
        cluster.each(redis::cmd("SET").arg(Cluster::lock_key("swapped")).arg("another's").arg("PX").arg(60_000));
    assert_eq!(swapped.len(), 5);
    let error = guard.release().await.expect_err("another owner holds it");
    assert!(error.is_lost(), "{error}");
    let left: Vec<String> = cluster.each(redis::cmd("GET").arg(Cluster::lock_key("swapped")));
    assert_eq!(left, ["another's"; 5]);
}
