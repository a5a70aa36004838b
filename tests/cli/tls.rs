//! The flags and variables for TLS.

use quorlock_testkit::Cluster;
#[cfg(feature = "tls")]
use quorlock_testkit::tls::{Authority, TlsServer};

use crate::sandbox::Sandbox;
#[cfg(feature = "tls")]
use crate::sandbox::finish;

/// The command in the lock looks at the nodes with the settings of the outer one, also from another folder.
#[cfg(feature = "tls")]
#[test]
fn a_nested_run_has_the_settings_for_tls() {
    let authority = Authority::new();
    let Some(server) = TlsServer::start(&authority, "redis.internal", true) else { return };
    let (certificate, key) = authority.issue("client");
    let files = [server.file("ca.pem"), server.write("client.pem", &certificate), server.write("client.key", &key)];
    let [ca, certificate, key] = files.each_ref().map(String::as_str);
    let sandbox = Sandbox::around(server.cluster);
    let script = "cd /; \"$QUORLOCK\" run --try --node-timeout 5s job -- sh -c 'echo $QUORLOCK_CACERT $QUORLOCK_CERT $QUORLOCK_KEY $QUORLOCK_SNI'";
    let expected = format!("{ca} {certificate} {key} redis.internal\n");
    let tls = ["--cacert", ca, "--cert", certificate, "--key", key, "--sni", "redis.internal"];
    let args = [&["run", "--nodes", &server.url][..], &tls, &["job", "--", "sh", "-c", script]].concat();
    let ended = sandbox.end(&args);
    assert_eq!((ended.code, &ended.stdout), (Some(0), &expected), "{ended:?}");

    // By variables, with a relative path.
    let mut command = sandbox.quorlock(&["run", "job", "--", "sh", "-c", script]);
    let folder = std::path::Path::new(ca).parent().expect("a folder");
    command.env("QUORLOCK_NODES", &server.url).env("QUORLOCK_CACERT", "ca.pem").env("QUORLOCK_CERT", certificate);
    command.env("QUORLOCK_KEY", key).env("QUORLOCK_SNI", "redis.internal").current_dir(folder);
    let ended = finish(command.spawn().expect("quorlock"));
    assert_eq!((ended.code, &ended.stdout), (Some(0), &expected), "{ended:?}");

    let args = [&["run", "--no-export", "--nodes", &server.url][..], &tls, &["job", "--", "sh", "-c"]].concat();
    let ended = sandbox.end(&[&args[..], &["echo \"[$QUORLOCK_CACERT$QUORLOCK_KEY]\""]].concat());
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "[]\n"), "{ended:?}");

    for command in ["inspect", "list", "status", "doctor"] {
        let names: &[&str] = if command == "inspect" { &["job"] } else { &[] };
        let ended = sandbox.end(&[&[command, "--nodes", &server.url][..], &tls, names].concat());
        assert!(ended.code != Some(64) && !ended.stdout.contains("certificate"), "{command}: {ended:?}");
        let refused = sandbox.end(&[&[command, "--nodes", &server.url][..], &tls[..2], names].concat());
        assert!(format!("{refused:?}").contains("not for the name localhost"), "{command}: {refused:?}");
    }
}

#[cfg(feature = "tls")]
#[test]
fn settings_for_tls_that_cannot_be_used_are_a_usage_error() {
    let sandbox = Sandbox::around(Cluster::start(1));
    for (args, words) in [
        (&["--cacert", "missing.pem"][..], "the CA certificate file /"),
        (&["--cert", "missing.pem"], "give --cert and --key (or QUORLOCK_CERT and QUORLOCK_KEY), or neither"),
        (&["--key", "missing.key"], "give --cert and --key (or QUORLOCK_CERT and QUORLOCK_KEY), or neither"),
        (&["--sni", "a b"], "the server name \"a b\" cannot be used"),
    ] {
        let ended = sandbox.end(&[&["inspect"], args, &["job"]].concat());
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert!(ended.stderr.contains(words), "{words}: {}", ended.stderr);
    }
    let mut command = sandbox.quorlock(&["run", "job", "--", "true"]);
    let empty = ["CACERT", "CERT", "KEY", "SNI"].map(|name| (format!("QUORLOCK_{name}"), ""));
    let ended = finish(command.envs(empty).spawn().expect("quorlock"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[cfg(not(feature = "tls"))]
#[test]
fn settings_for_tls_need_the_feature() {
    let sandbox = Sandbox::around(Cluster::start(1));
    let ended = sandbox.end(&["inspect", "--cacert", "ca.pem", "job"]);
    assert_eq!(ended.code, Some(64), "{ended:?}");
    assert!(ended.stderr.contains("need quorlock built with its feature `tls`"), "{}", ended.stderr);
}
