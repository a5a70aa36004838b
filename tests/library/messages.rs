//! The texts of errors: the state of each node, the reason of a loss, and the holder of a lock, without its secrets.

use std::time::Duration;

use quorlock_testkit::{Cluster, Setup, eventually, within};

use quorlock::{
    AcquireError, Answer, ErrorKind, ExtendError, Holder, NodeError, OwnHold, Owner, Quorlock, ReleaseError,
};

const SECOND: Duration = Duration::from_secs(1);

fn trouble(answer: &Answer) -> Option<&NodeError> {
    if let Answer::Failed(error) = answer { Some(error) } else { None }
}

#[tokio::test]
async fn no_quorum_shows_the_state_of_each_node() {
    let mut cluster = Setup::new(5).longest(60 * SECOND).start();
    let locks = cluster.client(10 * SECOND).await;
    cluster.kill(0);
    cluster.kill(1);
    cluster.restart(2, true);
    let known = |node: usize| locks.known().0[node].answer.clone();
    let is_quarantined = |answer: &Answer| matches!(trouble(answer), Some(NodeError::Quarantined { .. }));
    eventually(10 * SECOND, "all is known", || {
        let is_away = |node| trouble(&known(node)).is_some_and(|error| error.state() == "unreachable");
        is_away(0) && is_away(1) && is_quarantined(&known(2))
    })
    .await;
    // The third node got no request yet: its state comes from its record.
    for wait in [None, Some(Duration::from_micros(1)), Some(SECOND / 3)] {
        let request = locks.lock("x");
        let error = match wait {
            None => request.try_acquire().await,
            Some(wait) => request.wait(wait).acquire().await,
        };
        let error = error.expect_err("two of five");
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::NoQuorum, true), "{error}");
        let states: Vec<&str> =
            error.nodes().iter().map(|node| trouble(&node.answer).map_or("", NodeError::state)).collect();
        assert_eq!(states, ["unreachable", "unreachable", "quarantined", "", ""], "{error}");
        for node in &error.nodes()[3..] {
            assert!(matches!(node.answer, Answer::Up | Answer::Agreed), "{error}");
        }
        assert!(error.to_string().contains(": quarantined for "), "{error}");
    }
}

#[tokio::test]
async fn a_new_client_shows_its_nodes_as_connecting() {
    let cluster = Cluster::start(1);
    let locks = cluster.builder().connect().await.expect("settings that work");
    assert_eq!(locks.known().0[0].answer, Answer::Failed(NodeError::Connecting));
    let is_up = async || locks.known().0[0].answer == Answer::Up;
    within(10 * SECOND, "it is up", is_up).await;
    assert_eq!(locks.known().to_string(), format!("127.0.0.1:{}: up", cluster.ports()[0]));
}

/// A user with a wrong password, a user without permissions, and no user where the node requires one.
#[tokio::test]
async fn a_refused_login_differs_from_an_unreachable_node() {
    let cluster = Cluster::start(1);
    let acl = |words: &[&str]| cluster.each::<()>(redis::cmd("ACL").arg("SETUSER").arg(words));
    acl(&["weak", "on", ">secret", "~*", "+@all", "-evalsha", "-eval"]);
    let port = cluster.ports()[0];
    for (user, state) in
        [("me:wrong@", "refuses the password"), ("weak:secret@", "forbids it"), ("", "wants a password")]
    {
        if user.is_empty() {
            acl(&["default", ">secret", "resetpass", ">other"]);
        }
        let locks = Quorlock::builder().nodes([format!("redis://{user}127.0.0.1:{port}")]);
        let locks = locks.connect().await.expect("settings that work");
        let error = locks.lock("x").try_acquire().await.expect_err("it is not let in");
        let node = trouble(&error.nodes()[0].answer).expect("a refusal");
        assert_eq!((node.state(), error.is_retryable()), (state, false), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_loss_shows_the_answers_of_the_nodes() {
    let mut cluster = Cluster::start(3);
    let locks = cluster.client(3 * SECOND).await;
    let guard = locks.lock("x").acquire().await.expect("a free lock");
    cluster.kill(0);
    cluster.pause(1);
    guard.endangered().await;
    let known = guard.reports();
    assert!(trouble(&known.0[0].answer).is_some(), "{known}");
    guard.lost().await;
    let lost = guard.protect(std::future::pending::<()>()).await.expect_err("it is lost");
    assert_eq!((lost.kind(), lost.is_retryable()), (ErrorKind::Lost, false));
    assert_eq!(trouble(&locks.known().0[1].answer).map(NodeError::state), Some("silent"));
    // Later answers of the nodes do not change the reasons.
    cluster.resume(1);
    cluster.restart(0, false);
    let state = |node: usize| trouble(&locks.known().0[node].answer).map(NodeError::state);
    eventually(10 * SECOND, "all nodes are back", || state(0) != Some("unreachable") && state(1).is_none()).await;
    let ExtendError::Lost(extended) = guard.ensure(SECOND / 2).await.expect_err("it is lost") else { panic!() };
    assert_eq!(extended, lost);
    let again = locks.lock("x").owner(guard.owner()).try_acquire().await.expect_err("it is lost");
    assert_eq!(again.kind(), ErrorKind::Lost);
    let released = guard.release().await.expect_err("it was lost");
    let ReleaseError::NotHeld { nodes, .. } = &released else { panic!("{released}") };
    for reports in [&lost.nodes.0[..], again.nodes(), &nodes.0] {
        let states: Vec<&str> = reports.iter().map(|node| trouble(&node.answer).map_or("", NodeError::state)).collect();
        assert_eq!(states, ["unreachable", "silent", ""], "{lost}");
    }
    assert!(released.to_string().contains(": cannot connect: "), "{released}");
}

/// The reasons describe the loss, and not the later state of the nodes.
#[tokio::test]
async fn the_reasons_of_a_loss_do_not_change() {
    let mut cluster = Cluster::start(3);
    let locks = cluster.client(3 * SECOND).await;
    let guard = locks.lock("x").acquire().await.expect("a free lock");
    locks.flush().await;
    (0..3).for_each(|node| cluster.pause(node));
    guard.lost().await;
    let lost = guard.protect(std::future::pending::<()>()).await.expect_err("it is lost");
    assert!(lost.nodes.0.iter().all(|node| trouble(&node.answer).is_some()), "{lost}");
    (0..3).for_each(|node| cluster.resume(node));
    let is_up = || locks.known().0.iter().all(|node| node.answer == Answer::Up);
    eventually(10 * SECOND, "all nodes are back", is_up).await;
    locks.flush().await;
    assert_eq!(guard.protect(std::future::pending::<()>()).await, Err(lost));
}

#[tokio::test]
async fn a_loss_to_another_owner_names_it() {
    let cluster = Cluster::start(3);
    let locks = cluster.client(2 * SECOND).await;
    let guard = locks.lock("x").acquire().await.expect("a free lock");
    locks.flush().await;
    cluster.each::<()>(redis::cmd("SET").arg(Cluster::lock_key("x")).arg("another client's"));
    guard.lost().await;
    let lost = guard.protect(std::future::pending::<()>()).await.expect_err("it is lost");
    let taken = lost.nodes.0.iter().filter(|node| matches!(node.answer, Answer::Held { by: Holder::Foreign, .. }));
    assert!(taken.count() >= 2, "{lost}");
}

#[tokio::test]
async fn an_error_for_the_callers_own_lock_explains_reentry() {
    let cluster = Cluster::start(3);
    let (first, second) = (cluster.client(10 * SECOND).await, cluster.client(10 * SECOND).await);
    let guard = first.lock("x").acquire().await.expect("a free lock");
    let own = |error: &AcquireError| match error {
        AcquireError::Held { own, .. } => *own,
        AcquireError::TimedOut { last, .. } => match &**last {
            AcquireError::Held { own, .. } => *own,
            _ => None,
        },
        _ => None,
    };
    for locks in [&first, &second] {
        let error = locks.lock("x").try_acquire().await.expect_err("it is held");
        assert_eq!(own(&error), Some(OwnHold::Process), "{error}");
        assert!(error.to_string().contains("pass the owner"), "{error}");
        let error = locks.lock("x").wait(SECOND / 5).acquire().await.expect_err("it is held");
        assert_eq!(own(&error), Some(OwnHold::Process), "{error}");
    }
    let error = second.lock("x").owner(guard.owner()).try_acquire().await.expect_err("another client has it");
    assert_eq!(own(&error), Some(OwnHold::Owner), "{error}");
    // Another process, and a key of another client.
    let value = "ql1 7 0123456789abcdef0123456789abcdef elsewhere:1 a/1:1";
    cluster.each::<()>(redis::cmd("SET").arg(Cluster::lock_key("y")).arg(value).arg("PX").arg(10_000));
    let error = second.lock("y").try_acquire().await.expect_err("it is held");
    assert_eq!((own(&error), error.kind()), (None, ErrorKind::Held), "{error}");
    assert!(error.to_string().starts_with("y is held by elsewhere:1 (token 7), for 10s more"), "{error}");
}

/// An error or the output of `inspect` is not enough to forge an export.
#[tokio::test]
async fn errors_and_inspect_do_not_reveal_an_export() {
    let cluster = Cluster::start(3);
    let (first, second) = (cluster.client(10 * SECOND).await, cluster.client(10 * SECOND).await);
    let guard = first.lock("x").acquire().await.expect("a free lock");
    let error = second.lock("x").try_acquire().await.expect_err("it is held");
    let seen = second.inspect("x").await.expect("a name");
    let AcquireError::Held { by: Holder::Owner { id, label, token, .. }, .. } = &error else { panic!("{error}") };
    assert_eq!(**id, *guard.owner().fingerprint());
    let shown = format!("{error} {error:?} {seen:?} {:?} {guard:?}", guard.owner());
    assert!(!shown.contains(&guard.owner().id()), "{shown}");
    let share = guard.export().rsplit(';').next().expect("its share").to_owned();
    let export = format!("quorlock1;{id};{label};quorlock:lock:x;{token};{token};{share}");
    let forged = second.join(&export).await.expect_err("another owner's");
    assert!(forged.is_lost() || forged.is_held(), "{forged}");
    // The key itself contains the id that the fingerprint hides.
    let export = export.replace(&**id, &guard.owner().id());
    second.join(&export).await.expect("a join").release().await.expect("a release");
}

#[tokio::test]
async fn an_imported_label_has_the_same_length_limit() {
    let cluster = Cluster::start(1);
    let locks = cluster.client(10 * SECOND).await;
    let longest = Owner::labelled(&"x".repeat(500));
    let guard = locks.lock("x").owner(&longest).acquire().await.expect("a free lock");
    let export = guard.export();
    assert!(Owner::import(&export).is_ok());
    let long = export.replace(longest.label(), &"y".repeat(100_000));
    assert!(Owner::import(&long).is_err());
}

#[tokio::test]
async fn a_wrong_deployment_is_not_retryable() {
    let cluster = Cluster::with_options(1, &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let locks = cluster.client(SECOND).await;
    let error = locks.lock("x").try_acquire().await.expect_err("no vote");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Misconfigured, false), "{error}");
    assert_eq!(trouble(&error.nodes()[0].answer).map(NodeError::state), Some("evicts"));
    let error = locks.lock("x").lease(Duration::ZERO).try_acquire().await.expect_err("no lease");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Usage, false), "{error}");
}
