//! What a program or an operator sets for TLS.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::ClientConfig;

/// How a client verifies its `rediss://` nodes, and what it shows them; given to [`Builder::tls`](crate::Builder::tls).
///
/// Without a CA certificate the client trusts those of the operating system (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others).
/// A CA certificate replaces them, unless [`with_system_roots`](Self::with_system_roots) adds them again.
///
/// PEM texts and files are read at [`connect`](crate::Builder::connect), which fails if they cannot be used. Files are looked at
/// again for each new connection, in a thread, and read again when they have changed. If a changed file cannot be used, no new
/// connection is made until it can, and connections in use go on. Replace files that belong together at once, or the key before
/// it is used: a certificate with the key of another one is refused.
///
/// `#insecure` at the end of a node's URL turns the verification off for that node. The client certificate is still shown.
///
/// ```
/// use quorlock::{Quorlock, Tls};
///
/// let tls = Tls::new().ca_file("/etc/quorlock/ca.pem").identity_files("/etc/quorlock/client.pem", "/etc/quorlock/client.key");
/// let builder = Quorlock::builder().nodes(["rediss://10.0.0.1", "rediss://10.0.0.2", "rediss://10.0.0.3"]).tls(tls);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "the settings do nothing until Builder::tls has them"]
pub struct Tls {
    pub(super) authorities: Vec<Source>,
    pub(super) identity: Option<Identity>,
    pub(super) server_name: Option<String>,
    pub(super) with_system_roots: bool,
    pub(super) given: Option<Given>,
}

/// Where a certificate or a key is.
#[derive(Clone)]
pub(super) enum Source {
    /// Its text.
    Pem(Vec<u8>),
    File(PathBuf),
}

/// The client's certificate, with those between it and its CA, and its key.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) certificate: Source,
    pub(super) key: Source,
}

/// A configuration that the program made.
#[derive(Clone)]
pub(super) struct Given(pub(super) Arc<ClientConfig>);

/// What is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFlaw {
    /// The part of the settings that cannot be used.
    pub(crate) what: String,
    /// Why. No part of a key is shown.
    pub(crate) reason: String,
}

impl Tls {
    /// Starts with the operating system's certificates and without a client certificate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses this configuration of rustls 0.23 as it is, for what these settings cannot say.
    ///
    /// Certificates that are added by other methods, and `#insecure` in a URL, have no effect then.
    /// [`server_name`](Self::server_name) has one.
    pub fn from_rustls(config: Arc<ClientConfig>) -> Self {
        Self { given: Some(Given(config)), ..Self::default() }
    }

    /// Trusts the CA certificates in this PEM text, beside those of other calls.
    ///
    /// Defaults to those of the operating system.
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities.push(Source::Pem(pem.into()));
        self
    }

    /// Trusts the CA certificates in this PEM file, beside those of other calls.
    ///
    /// Defaults to those of the operating system.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.authorities.push(Source::File(path.into()));
        self
    }

    /// Trusts the operating system's certificates also where CA certificates are given.
    pub fn with_system_roots(mut self) -> Self {
        self.with_system_roots = true;
        self
    }

    /// Shows the nodes a client certificate. Both are PEM texts: the certificate, with those between it and its CA behind it, and
    /// its key without a passphrase.
    ///
    /// Defaults to none.
    pub fn identity_pem(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        let (certificate, key) = (Source::Pem(certificate.into()), Source::Pem(key.into()));
        self.identity = Some(Identity { certificate, key });
        self
    }

    /// Shows the nodes the client certificate in these PEM files, as [`identity_pem`](Self::identity_pem).
    ///
    /// Defaults to none.
    pub fn identity_files(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        let (certificate, key) = (Source::File(certificate.into()), Source::File(key.into()));
        self.identity = Some(Identity { certificate, key });
        self
    }

    /// Asks every node for the certificate of this name (SNI), and verifies it for this name.
    ///
    /// Defaults to the host of the node's URL.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Returns the files that are to be read.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let identity = self.identity.iter().flat_map(|identity| [&identity.certificate, &identity.key]);
        self.authorities.iter().chain(identity).filter_map(|source| match source {
            Source::File(path) => Some(path),
            Source::Pem(_) => None,
        })
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pem(_) => f.write_str("PEM"),
            Self::File(path) => fmt::Debug::fmt(path, f),
        }
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientConfig")
    }
}

impl fmt::Display for TlsFlaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be used: {}", self.what, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_a_key_is_shown() {
        let tls = Tls::new().ca_pem("authority").identity_pem("certificate", "hunter2").server_name("redis.internal");
        let shown = format!("{tls:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("104, 117"), "{shown}");
        assert!(shown.contains("redis.internal"), "{shown}");
        let shown = format!("{:?}", tls.identity_files("c.pem", "k.pem"));
        assert!(shown.contains("k.pem"), "{shown}");
    }
}
