//! Certificate authorities, and a server with TLS.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::program::serves_tls;
use crate::server::free_port;

/// A certificate authority. All have the same name.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// Makes one with a key of its own.
    #[expect(clippy::new_without_default, reason = "each one is different")]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate"))
    }

    /// Returns its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Returns a certificate for this name, and its key.
    pub fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

/// One server with TLS, which keeps its votes over a restart, and a folder with certificates.
pub struct TlsServer {
    folder: TempDir,
    /// The server, by its port without TLS.
    pub cluster: Cluster,
    /// Its `rediss://` URL.
    pub url: String,
}

impl TlsServer {
    /// Starts a server with a certificate for `name`. With `asks` every client needs a certificate of the same authority.
    /// Returns `None`, and prints the reason, where the server program has no TLS.
    pub fn start(authority: &Authority, name: &str, asks: bool) -> Option<Self> {
        if !serves_tls() {
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        install(&folder, authority, name);
        let file = |name| path(&folder, name);
        let port = free_port().expect("a free port").to_string();
        let options = [
            ["--tls-port", &port],
            ["--tls-cert-file", &file("server.pem")],
            ["--tls-key-file", &file("server.key")],
            ["--tls-ca-cert-file", &file("ca.pem")],
            ["--tls-auth-clients", if asks { "yes" } else { "no" }],
            ["--appendonly", "yes"],
            ["--appendfsync", "always"],
        ];
        let cluster = Cluster::with_options(1, &options.concat());
        Some(Self { folder, cluster, url: format!("rediss://localhost:{port}") })
    }

    /// Returns the path of a file in its folder. `ca.pem` is the certificate of its authority.
    pub fn file(&self, name: &str) -> String {
        path(&self.folder, name)
    }

    /// Writes a file into its folder, and returns its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.file(name);
        fs::write(&path, text).expect("a file");
        path
    }

    /// Restarts the server with a certificate of this authority.
    pub fn restart(&mut self, authority: &Authority, name: &str) {
        install(&self.folder, authority, name);
        self.cluster.restart(0, false);
    }
}

fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().expect("a plain path").to_owned()
}

fn install(folder: &TempDir, authority: &Authority, name: &str) {
    let (certificate, key) = authority.issue(name);
    for (name, text) in [("server.pem", certificate), ("server.key", key), ("ca.pem", authority.pem())] {
        fs::write(path(folder, name), text).expect("a file");
    }
}
