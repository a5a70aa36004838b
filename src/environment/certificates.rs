//! Certificates and keys as they are read: those of the settings, and those that the operating system trusts.

use std::env;
use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock, OnceLock};

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, InconsistentKeys, RootCertStore, SignatureScheme,
};

use super::tls_settings::{Given, Identity, Source, Tls, TlsFlaw};

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

/// The operating system's certificates. They are read once for the process: hundreds of files, on a disk that may hang.
static INSTALLED: OnceLock<Installed> = OnceLock::new();

#[derive(Clone)]
struct Installed {
    roots: Arc<RootCertStore>,
    /// Which certificates could not be read.
    unread: Option<String>,
}

/// What is to be known for handshakes.
#[derive(Clone)]
pub(crate) struct Verification {
    pub(super) config: Arc<ClientConfig>,
    /// In place of the host.
    pub(super) server_name: Option<ServerName<'static>>,
    /// Where the trusted certificates are from, in words.
    pub(super) trusted: String,
    /// Which trusted certificates could not be read.
    pub(super) unread: Option<String>,
}

/// Reads what the settings name. It may block. `insecure` is what `#insecure` at the end of a URL asks for: any certificate of the
/// server will do.
pub(super) fn read(settings: &Tls, insecure: bool) -> Result<Verification, TlsFlaw> {
    let server_name = settings.server_name.as_deref().map(named).transpose()?;
    if let Some(Given(config)) = &settings.given {
        let (config, trusted) = (Arc::clone(config), "the program's configuration of rustls decides".to_owned());
        return Ok(Verification { config, server_name, trusted, unread: None });
    }
    let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| flaw("TLS", &error))?;
    let (builder, trusted, unread) = if insecure {
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate));
        (builder, String::new(), None)
    } else {
        let (roots, trusted, unread) = roots(settings)?;
        (builder.with_root_certificates(roots), trusted, unread)
    };
    let config = match &settings.identity {
        Some(identity) => {
            let (chain, key) = (chain(identity)?, key(identity)?);
            builder.with_client_auth_cert(chain, key).map_err(|error| mismatched(identity, &error))?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Verification { config: Arc::new(config), server_name, trusted, unread })
}

fn named(name: &str) -> Result<ServerName<'static>, TlsFlaw> {
    let what = || format!("the server name {name:?}");
    ServerName::try_from(name.to_owned()).map_err(|_| flaw(what(), &"it is neither a host name nor an IP address"))
}

/// Returns the trusted certificates, in words where they are from, and what could not be read.
fn roots(settings: &Tls) -> Result<(Arc<RootCertStore>, String, Option<String>), TlsFlaw> {
    if settings.authorities.is_empty() {
        let Installed { roots, unread } = installed()?;
        let others = "Tls::ca_file, --cacert or SSL_CERT_FILE names a file of others";
        return Ok((roots, others.to_owned(), unread));
    }
    let (mut roots, mut unread) = (RootCertStore::empty(), None);
    if settings.with_system_roots {
        let installed = installed()?;
        roots.extend(installed.roots.roots.iter().cloned());
        unread = installed.unread;
    }
    for source in &settings.authorities {
        for certificate in certificates("CA certificate", source)? {
            let unfit = |_| flaw(said("CA certificate", source), &"it has a certificate that cannot be read");
            roots.add(certificate).map_err(unfit)?;
        }
    }
    let mut from: Vec<String> = settings.authorities.iter().map(|source| said("CA certificate", source)).collect();
    from.extend(settings.with_system_roots.then(|| "those of the operating system".to_owned()));
    Ok((Arc::new(roots), format!("trusted are {}", from.join(", ")), unread))
}

fn installed() -> Result<Installed, TlsFlaw> {
    if let Some(installed) = INSTALLED.get() {
        return Ok(installed.clone());
    }
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    let unread = found.errors.first().map(unread);
    if roots.is_empty() {
        let why = unread.unwrap_or_else(|| "none are installed".to_owned());
        return Err(flaw("the operating system's list of trusted certificates", &why));
    }
    Ok(INSTALLED.get_or_init(|| Installed { roots: Arc::new(roots), unread }).clone())
}

/// Returns what kept trusted certificates from being read.
fn unread(error: &rustls_native_certs::Error) -> String {
    let file = env::var_os("SSL_CERT_FILE").map(|file| Path::new(&file).display().to_string());
    match file.filter(|file| !error.to_string().contains(file)) {
        Some(file) => format!("{error} (SSL_CERT_FILE is {file})"),
        None => error.to_string(),
    }
}

/// The client's certificate, and those between it and its CA.
fn chain(identity: &Identity) -> Result<Vec<CertificateDer<'static>>, TlsFlaw> {
    certificates("client certificate", &identity.certificate)
}

/// Returns the certificates of a text or a file: at least one.
fn certificates(kind: &str, source: &Source) -> Result<Vec<CertificateDer<'static>>, TlsFlaw> {
    let text = text(kind, source)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match read {
        Ok(found) if found.is_empty() => Err(flaw(said(kind, source), &"it has no certificate in PEM format")),
        Ok(found) => Ok(found),
        Err(error) => Err(flaw(said(kind, source), &unparsed(&error))),
    }
}

fn key(identity: &Identity) -> Result<PrivateKeyDer<'static>, TlsFlaw> {
    let (kind, source) = ("client key", &identity.key);
    let text = text(kind, source)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let is_encrypted = text.windows(9).any(|part| part == b"ENCRYPTED");
        let reason = match error {
            _ if is_encrypted => "it is encrypted; give a key without a passphrase",
            pem::Error::NoItemsFound => "it has no private key in PEM format",
            error => unparsed(&error),
        };
        flaw(said(kind, source), &reason)
    })
}

fn text(kind: &str, source: &Source) -> Result<Vec<u8>, TlsFlaw> {
    match source {
        Source::Pem(text) => Ok(text.clone()),
        Source::File(path) => fs::read(path).map_err(|error| flaw(said(kind, source), &error)),
    }
}

/// Returns a part of the settings in words.
fn said(kind: &str, source: &Source) -> String {
    match source {
        Source::Pem(_) => format!("the {kind} given as PEM"),
        Source::File(path) => format!("the {kind} file {}", path.display()),
    }
}

/// Returns the words for a text that is not PEM. They quote nothing of it: it may be a key.
fn unparsed(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section of it has no END line",
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line of it is malformed",
        pem::Error::Base64Decode(_) => "a section of it is not base64",
        _ => "it is not in PEM format",
    }
}

/// Returns the words for a certificate that rustls does not take with this key.
fn mismatched(identity: &Identity, error: &Error) -> TlsFlaw {
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            flaw(said("client key", &identity.key), &"the certificate belongs to another key")
        }
        Error::InvalidCertificate(_) => {
            flaw(said("client certificate", &identity.certificate), &"it has a certificate that cannot be read")
        }
        _ => flaw(
            said("client key", &identity.key),
            &"it is damaged, or of no kind that is supported (RSA, ECDSA, Ed25519)",
        ),
    }
}

fn flaw(what: impl Into<String>, reason: &dyn std::fmt::Display) -> TlsFlaw {
    TlsFlaw { what: what.into(), reason: reason.to_string() }
}

#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}
