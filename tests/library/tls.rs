//! Settings for TLS: a CA of one's own, client certificates, the server's name, and files that change.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use quorlock::{ConfigError, Quorlock, Tls};
use quorlock_testkit::tls::{Authority, TlsServer};
use quorlock_testkit::{eventually, within};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const LIMIT: Duration = Duration::from_secs(30);

async fn client(server: &TlsServer, tls: Tls) -> Quorlock {
    let builder = Quorlock::builder().nodes([&server.url]).tls(tls).node_timeout(Duration::from_secs(2));
    builder.connect().await.expect("settings that work")
}

/// Acquires and releases a lock at this server.
async fn is_accepted(server: &TlsServer, tls: Tls) {
    works(&client(server, tls).await).await.expect("a free lock");
}

/// Waits until the state of the node has these words.
async fn is_refused(server: &TlsServer, tls: Tls, words: &str) {
    says(&client(server, tls).await, words).await;
}

async fn works(locks: &Quorlock) -> Result<(), String> {
    let guard = locks.lock("x").try_acquire().await.map_err(|error| error.to_string())?;
    guard.release().await.map(drop).map_err(|error| error.to_string())
}

async fn says(locks: &Quorlock, words: &str) {
    eventually(LIMIT, words, || locks.known().to_string().contains(words)).await;
}

#[tokio::test]
async fn a_private_authority_is_trusted_instead_of_the_installed_ones() {
    let (authority, other) = (Authority::new(), Authority::new());
    let Some(server) = TlsServer::start(&authority, "localhost", false) else { return };
    let file = server.file("ca.pem");
    is_accepted(&server, Tls::new().ca_file(&file)).await;
    is_accepted(&server, Tls::new().ca_pem(authority.pem())).await;
    is_accepted(&server, Tls::new().ca_pem(other.pem()).ca_pem(authority.pem())).await;
    is_accepted(&server, Tls::new().ca_file(&file).with_system_roots()).await;
    let file = server.write("other.pem", &other.pem());
    let words = format!("signed by none that is trusted here (trusted are the CA certificate file {file})");
    is_refused(&server, Tls::new().ca_file(file), &words).await;
    is_refused(&server, Tls::new(), "Tls::ca_file, --cacert or SSL_CERT_FILE names a file of others").await;
}

#[tokio::test]
async fn a_configuration_of_the_program_is_used_as_it_is() {
    let authority = Authority::new();
    let Some(server) = TlsServer::start(&authority, "localhost", false) else { return };
    let config = |authority: &Authority| {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("PEM")).expect("a certificate");
        Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    };
    is_accepted(&server, Tls::from_rustls(config(&authority))).await;
    is_refused(&server, Tls::from_rustls(config(&Authority::new())), "the program's configuration of rustls").await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_node_that_asks() {
    let authority = Authority::new();
    let Some(server) = TlsServer::start(&authority, "localhost", true) else { return };
    let trusting = || Tls::new().ca_file(server.file("ca.pem"));
    let (certificate, key) = authority.issue("client");
    is_accepted(&server, trusting().identity_pem(certificate.clone(), key.clone())).await;
    let files = (server.write("client.pem", &certificate), server.write("client.key", &key));
    is_accepted(&server, trusting().identity_files(files.0, files.1)).await;
    is_refused(&server, trusting(), "it asks for a client certificate (Tls::identity_files; --cert and --key)").await;
    let (certificate, key) = Authority::new().issue("client");
    is_refused(&server, trusting().identity_pem(certificate, key), "it refuses the client certificate").await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_node_that_is_not_verified() {
    let authority = Authority::new();
    let Some(server) = TlsServer::start(&authority, "localhost", true) else { return };
    let (certificate, key) = authority.issue("client");
    let tls = Tls::new().identity_pem(certificate, key);
    let builder = Quorlock::builder().nodes([format!("{}/#insecure", server.url)]).tls(tls);
    let builder = builder.node_timeout(Duration::from_secs(2));
    works(&builder.connect().await.expect("settings that work")).await.expect("a free lock");
}

#[tokio::test]
async fn the_server_name_is_asked_for_and_verified() {
    let authority = Authority::new();
    let Some(server) = TlsServer::start(&authority, "redis.internal", false) else { return };
    let trusting = || Tls::new().ca_pem(authority.pem());
    is_accepted(&server, trusting().server_name("redis.internal")).await;
    is_refused(&server, trusting(), "its certificate is not for the name localhost").await;
    let named = trusting().server_name("redis.example");
    is_refused(&server, named, "its certificate is not for the name redis.example").await;
}

#[tokio::test]
async fn a_changed_file_is_used_by_the_next_connection() {
    let old = Authority::new();
    let Some(mut server) = TlsServer::start(&old, "localhost", false) else { return };
    let trusted = server.write("trusted.pem", &old.pem());
    let locks = client(&server, Tls::new().ca_file(&trusted)).await;
    works(&locks).await.expect("a free lock");

    let new = Authority::new();
    server.restart(&new, "localhost");
    says(&locks, "its certificate is signed by none that is trusted here").await;
    // As an operator replaces it who makes a mistake first.
    fs::write(&trusted, "no certificate").expect("a file");
    says(&locks, "it has no certificate in PEM format").await;
    fs::write(&trusted, new.pem()).expect("a file");
    within(LIMIT, "the new CA is trusted", async || works(&locks).await.is_ok()).await;
    // The file is of no importance to a connection in use.
    fs::remove_file(&trusted).expect("a file");
    works(&locks).await.expect("a free lock");
}

#[tokio::test]
async fn certificates_and_keys_that_cannot_be_used_are_refused_at_connect() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("client");
    let (_, other) = authority.issue("client");
    let broken = key.replacen("-----END", "hunter2!\n-----END", 1);
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing.pem").display().to_string();
    let identity = |key: &str| Tls::new().identity_pem(certificate.clone(), key);
    for (tls, words) in [
        (Tls::new().ca_file(&missing), &*format!("the CA certificate file {missing} cannot be used: No such file")),
        (Tls::new().ca_pem("text"), "the CA certificate given as PEM cannot be used: it has no certificate"),
        (Tls::new().ca_pem(key.clone()), "the CA certificate given as PEM cannot be used: it has no certificate"),
        (Tls::new().ca_pem(&authority.pem()[..200]), "a section of it has no END line"),
        (Tls::new().identity_files(&missing, "k"), &format!("the client certificate file {missing} cannot be used")),
        (identity(""), "the client key given as PEM cannot be used: it has no private key in PEM format"),
        (identity(&certificate), "the client key given as PEM cannot be used: it has no private key"),
        (identity(&broken), "the client key given as PEM cannot be used: a section of it is not base64"),
        (identity(&encrypted), "give a key without a passphrase"),
        (identity(&other), "the client key given as PEM cannot be used: the certificate belongs to another key"),
        (Tls::new().server_name("a b"), "the server name \"a b\" cannot be used"),
    ] {
        let builder = Quorlock::builder().nodes(["rediss://localhost:1"]).tls(tls);
        let shown = format!("{builder:?}");
        let error = builder.connect().await.expect_err("it cannot be used");
        assert!(matches!(error, ConfigError::Tls { .. }), "{error:?}");
        let shown = format!("{shown} {error} {error:?}");
        assert!(shown.contains(words), "{words}: {error}");
        let secret = key.lines().nth(1).expect("a line of the key");
        assert!(!shown.contains("hunter2") && !shown.contains(secret), "{shown}");
    }
}
