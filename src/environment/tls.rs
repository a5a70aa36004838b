//! TLS to a node, by rustls, trusting the certificates that the operating system trusts (`SSL_CERT_FILE` and
//! `SSL_CERT_DIR` name others).

use std::env;
use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    WantsVerifier,
};

use super::beside::Beside;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

/// The configuration that trusts the installed certificates. They are read once for the process: hundreds of files, on a disk that
/// may hang.
static TRUSTING: OnceLock<Tls> = OnceLock::new();
static READING: LazyLock<Beside<(), Result<Tls, String>>> = LazyLock::new(Beside::default);

/// How long an attempt to connect waits for them.
const READING_LIMIT: Duration = Duration::from_secs(1);

/// What is to be known for a handshake.
#[derive(Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    /// Which trusted certificates could not be read.
    untrusted: Option<String>,
}

impl Tls {
    /// `insecure` is what `#insecure` at the end of a URL asks for: any certificate will do.
    pub(crate) async fn new(insecure: bool) -> io::Result<Self> {
        if insecure {
            let config = builder().map_err(io::Error::other)?;
            let config = config.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate));
            return Ok(Self { config: Arc::new(config.with_no_client_auth()), untrusted: None });
        }
        if let Some(trusting) = TRUSTING.get() {
            return Ok(trusting.clone());
        }
        let read = timeout(READING_LIMIT, READING.ask((), read)).await;
        let trusting = read.map_err(|_| io::Error::other("the trusted certificates are still being read"))??;
        trusting.map_err(io::Error::other)
    }

    pub(crate) async fn handshake<S>(self, stream: S, host: &str) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connected = TlsConnector::from(self.config).connect(name, stream).await;
        connected.map_err(|error| explained(error, host, self.untrusted.as_deref()))
    }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(Arc::clone(&PROVIDER)).with_safe_default_protocol_versions()
}

fn read() -> Result<Tls, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    let untrusted = found.errors.first().map(unread);
    if roots.is_empty() {
        let why = untrusted.unwrap_or_else(|| "none are installed".to_owned());
        return Err(format!("no trusted certificates were found: {why}"));
    }
    let config = builder().map_err(|error| error.to_string())?;
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    Ok(TRUSTING.get_or_init(|| Tls { config, untrusted }).clone())
}

/// Returns what kept trusted certificates from being read.
fn unread(error: &rustls_native_certs::Error) -> String {
    let file = env::var_os("SSL_CERT_FILE").map(|file| Path::new(&file).display().to_string());
    match file.filter(|file| !error.to_string().contains(file)) {
        Some(file) => format!("{error} (SSL_CERT_FILE is {file})"),
        None => error.to_string(),
    }
}

/// Returns the error of a failed handshake in words. `untrusted` says which trusted certificates could not be read.
fn explained(error: io::Error, host: &str, untrusted: Option<&str>) -> io::Error {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) else { return error };
    let words = match cause {
        Error::InvalidMessage(_) => {
            return io::Error::other("this port does not speak TLS: name its port for TLS, or use the scheme redis");
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is signed by none that is trusted here (SSL_CERT_FILE names a file of others)".to_owned()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!("its certificate is not for the name {host}"),
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired, by the clock of this machine".to_owned()
        }
        cause => cause.to_string(),
    };
    io::Error::other(match untrusted {
        Some(untrusted) => format!("{words}; {untrusted}"),
        None => words,
    })
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
