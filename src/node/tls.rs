//! TLS to a node, by rustls, trusting the certificates that the operating system trusts (`SSL_CERT_FILE` and
//! `SSL_CERT_DIR` name others).

use std::io;
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
    ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, WantsVerifier,
};

use crate::beside::Beside;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

/// What trusts the installed certificates. They are read once for the process: hundreds of files, on a disk that may hang.
static TRUSTING: OnceLock<Arc<ClientConfig>> = OnceLock::new();
static READING: LazyLock<Beside<(), Result<Arc<ClientConfig>, String>>> = LazyLock::new(Beside::default);

/// For so long an attempt to connect waits for them.
const READING_LIMIT: Duration = Duration::from_secs(1);

/// What is to be known for a handshake.
pub(crate) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// `insecure` is what `#insecure` at the end of a URL asks for: any certificate will do.
    pub(crate) async fn new(insecure: bool) -> io::Result<Self> {
        if insecure {
            let config = builder().map_err(io::Error::other)?;
            let config = config.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate));
            return Ok(Self(Arc::new(config.with_no_client_auth())));
        }
        if let Some(config) = TRUSTING.get() {
            return Ok(Self(Arc::clone(config)));
        }
        let read = timeout(READING_LIMIT, READING.ask((), read)).await;
        let config = read.map_err(|_| io::Error::other("the trusted certificates are still being read"))??;
        config.map(Self).map_err(io::Error::other)
    }

    pub(crate) async fn handshake<S>(self, stream: S, host: &str) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(self.0).connect(name, stream).await
    }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(Arc::clone(&PROVIDER)).with_safe_default_protocol_versions()
}

fn read() -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "none are installed".to_owned(), ToString::to_string);
        return Err(format!("no trusted certificates were found: {why}"));
    }
    let config = builder().map_err(|error| error.to_string())?;
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    Ok(Arc::clone(TRUSTING.get_or_init(|| config)))
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
