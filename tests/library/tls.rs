//! Settings for TLS: a CA of one's own, client certificates, the server's name, and files that change.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use quorlock::{ConfigError, Quorlock, Tls};
use quorlock_testkit::{Cluster, eventually, within};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const LIMIT: Duration = Duration::from_secs(30);

/// A CA. All have the same name.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// Returns a certificate for this name, and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

/// A folder with certificates, and one server with TLS.
struct Secured {
    folder: TempDir,
    cluster: Cluster,
    url: String,
}

impl Secured {
    /// Starts a server with a certificate for `name`. With `asks` every client needs a certificate of the same CA.
    fn start(authority: &Authority, name: &str, asks: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        install(&folder, authority, name);
        let file = |name| path(&folder, name);
        let probe = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = probe.local_addr().expect("its address").port().to_string();
        drop(probe);
        let options = [
            ["--tls-port", &port],
            ["--tls-cert-file", &file("server.pem")],
            ["--tls-key-file", &file("server.key")],
            ["--tls-ca-cert-file", &file("server-ca.pem")],
            ["--tls-auth-clients", if asks { "yes" } else { "no" }],
            ["--appendonly", "yes"],
            ["--appendfsync", "always"],
        ];
        let cluster = Cluster::with_options(1, &options.concat());
        Self { folder, cluster, url: format!("rediss://localhost:{port}") }
    }

    fn file(&self, name: &str) -> String {
        path(&self.folder, name)
    }

    async fn client(&self, tls: Tls) -> Quorlock {
        let builder = Quorlock::builder().nodes([&self.url]).tls(tls).node_timeout(Duration::from_secs(2));
        builder.connect().await.expect("settings that work")
    }

    /// Acquires and releases a lock.
    async fn works(&self, tls: Tls) {
        let locks = self.client(tls).await;
        works(&locks).await.expect("a free lock");
    }

    /// Waits until the state of the node has these words.
    async fn is_refused(&self, tls: Tls, words: &str) {
        let locks = self.client(tls).await;
        says(&locks, words).await;
    }
}

fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().expect("a plain path").to_owned()
}

/// Writes the certificates of the server.
fn install(folder: &TempDir, authority: &Authority, name: &str) {
    let (certificate, key) = authority.issue(name);
    for (name, text) in [("server.pem", certificate), ("server.key", key), ("server-ca.pem", authority.pem())] {
        fs::write(path(folder, name), text).expect("a file");
    }
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
    let server = Secured::start(&authority, "localhost", false);
    let file = server.file("server-ca.pem");
    server.works(Tls::new().ca_file(&file)).await;
    server.works(Tls::new().ca_pem(authority.pem())).await;
    server.works(Tls::new().ca_pem(other.pem()).ca_pem(authority.pem())).await;
    server.works(Tls::new().ca_file(&file).with_system_roots()).await;
    fs::write(server.file("other.pem"), other.pem()).expect("a file");
    let words = format!(
        "its certificate is signed by none that is trusted here (trusted are the CA certificate file {})",
        server.file("other.pem")
    );
    server.is_refused(Tls::new().ca_file(server.file("other.pem")), &words).await;
    server.is_refused(Tls::new(), "Tls::ca_file, --cacert or SSL_CERT_FILE names a file of others").await;
}

#[tokio::test]
async fn a_configuration_of_the_program_is_used_as_it_is() {
    let authority = Authority::new();
    let server = Secured::start(&authority, "localhost", false);
    let config = |authority: &Authority| {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("PEM")).expect("a certificate");
        Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    };
    server.works(Tls::from_rustls(config(&authority))).await;
    server.is_refused(Tls::from_rustls(config(&Authority::new())), "the program's configuration of rustls").await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_node_that_asks() {
    let authority = Authority::new();
    let server = Secured::start(&authority, "localhost", true);
    let trusting = || Tls::new().ca_file(server.file("server-ca.pem"));
    let (certificate, key) = authority.issue("client");
    server.works(trusting().identity_pem(certificate.clone(), key.clone())).await;
    fs::write(server.file("client.pem"), certificate).expect("a file");
    fs::write(server.file("client.key"), key).expect("a file");
    server.works(trusting().identity_files(server.file("client.pem"), server.file("client.key"))).await;
    server.is_refused(trusting(), "it asks for a client certificate (Tls::identity_files; --cert and --key)").await;
    let (certificate, key) = Authority::new().issue("client");
    server.is_refused(trusting().identity_pem(certificate, key), "it refuses the client certificate").await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_node_that_is_not_verified() {
    let authority = Authority::new();
    let server = Secured::start(&authority, "localhost", true);
    let (certificate, key) = authority.issue("client");
    let tls = Tls::new().identity_pem(certificate, key);
    let builder = Quorlock::builder().nodes([format!("{}/#insecure", server.url)]).tls(tls);
    works(&builder.connect().await.expect("settings that work")).await.expect("a free lock");
}

#[tokio::test]
async fn the_server_name_is_asked_for_and_verified() {
    let authority = Authority::new();
    let server = Secured::start(&authority, "redis.internal", false);
    let trusting = || Tls::new().ca_pem(authority.pem());
    server.works(trusting().server_name("redis.internal")).await;
    server.is_refused(trusting(), "its certificate is not for the name localhost").await;
    let named = trusting().server_name("redis.example");
    server.is_refused(named, "its certificate is not for the name redis.example").await;
}

#[tokio::test]
async fn a_changed_file_is_used_by_the_next_connection() {
    let old = Authority::new();
    let mut server = Secured::start(&old, "localhost", false);
    let trusted = server.file("trusted.pem");
    fs::write(&trusted, old.pem()).expect("a file");
    let locks = server.client(Tls::new().ca_file(&trusted)).await;
    works(&locks).await.expect("a free lock");

    let new = Authority::new();
    install(&server.folder, &new, "localhost");
    server.cluster.restart(0, false);
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
    let missing = path(&folder, "missing.pem");
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
