//! TLS to a node, by rustls.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

use super::beside::Beside;
use super::certificates::{Verification, read};
use super::tls_settings::{Tls, TlsFlaw};
use crate::sync::locked;

type Read = Result<Verification, TlsFlaw>;

/// Files are read in a thread, one for each client and kind of verification. Clients without settings of their own share one.
static READING: LazyLock<Beside<(u64, bool), Read>> = LazyLock::new(Beside::default);
static WITHOUT_SETTINGS: LazyLock<TlsClient> = LazyLock::new(|| TlsClient::new(Tls::new()));
static CLIENTS: AtomicU64 = AtomicU64::new(0);

/// How long an attempt to connect waits for them.
const READING_LIMIT: Duration = Duration::from_secs(1);

/// The settings of one client, and what was read for them.
#[derive(Clone, Debug)]
pub(crate) struct TlsClient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: u64,
    settings: Tls,
    /// What was read last: with verification of the server, and without.
    made: [Mutex<Option<Made>>; 2],
}

struct Made {
    verification: Verification,
    versions: Versions,
}

/// By what a change of the files is noticed.
type Versions = Vec<Option<Version>>;

#[derive(PartialEq, Eq)]
struct Version {
    length: u64,
    modified: Option<SystemTime>,
    inode: u64,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Made")
    }
}

impl Default for TlsClient {
    fn default() -> Self {
        WITHOUT_SETTINGS.clone()
    }
}

impl TlsClient {
    pub(crate) fn new(settings: Tls) -> Self {
        let id = CLIENTS.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Shared { id, settings, made: Default::default() }))
    }

    /// Reads what the settings name, and fails if that cannot be used. Files that hang, and a thread that cannot be started, are
    /// no flaw: attempts to connect report them.
    pub(crate) async fn check(&self) -> Result<(), TlsFlaw> {
        self.verification(false).await.map_or(Ok(()), |read| read.map(drop))
    }

    /// Returns what is to be known for a handshake. `insecure` is what `#insecure` at the end of a URL asks for.
    pub(crate) async fn ready(&self, insecure: bool) -> io::Result<Verification> {
        self.verification(insecure).await?.map_err(|flaw| io::Error::other(flaw.to_string()))
    }

    /// Reads the files if they have changed.
    async fn verification(&self, insecure: bool) -> io::Result<Read> {
        if self.0.settings.files().next().is_none()
            && let Some(made) = &*locked(self.0.made(insecure))
        {
            return Ok(Ok(made.verification.clone()));
        }
        let shared = Arc::clone(&self.0);
        let reading = READING.ask((shared.id, insecure), move || shared.current(insecure));
        let read = timeout(READING_LIMIT, reading).await;
        read.map_err(|_| io::Error::other("the files with certificates are still being read"))?
    }
}

impl Verification {
    pub(crate) async fn handshake<S>(self, stream: S, host: &str) -> io::Result<Secured<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { config, server_name, trusted, unread } = self;
        let name = server_name.map_or_else(|| ServerName::try_from(host.to_owned()).map_err(io::Error::other), Ok)?;
        let shown = name.to_str().into_owned();
        let connected = TlsConnector::from(config).connect(name, stream).await;
        connected.map(Secured).map_err(|error| explained(error, &shown, &trusted, unread.as_deref()))
    }
}

impl Shared {
    fn made(&self, insecure: bool) -> &Mutex<Option<Made>> {
        &self.made[usize::from(insecure)]
    }

    /// Reads what the settings name, unless it was read and has not changed. It may block.
    fn current(&self, insecure: bool) -> Read {
        // Before the files are read: a change meanwhile is noticed the next time.
        let versions: Versions = self.settings.files().map(|path| Version::of(path)).collect();
        if let Some(made) = &*locked(self.made(insecure))
            && made.versions == versions
        {
            return Ok(made.verification.clone());
        }
        let verification = read(&self.settings, insecure)?;
        *locked(self.made(insecure)) = Some(Made { verification: verification.clone(), versions });
        Ok(verification)
    }
}

impl Version {
    fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        Some(Self { length: file.len(), modified: file.modified().ok(), inode: file.ino() })
    }
}

/// Returns the error of a failed handshake in words. `trusted` says where the trusted certificates are from, and `unread` which of
/// them could not be read.
fn explained(error: io::Error, name: &str, trusted: &str, unread: Option<&str>) -> io::Error {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) else { return error };
    let words = match cause {
        Error::InvalidMessage(_) => {
            return io::Error::other("this port does not speak TLS: name its port for TLS, or use the scheme redis");
        }
        Error::AlertReceived(alert) => return io::Error::other(alerted(*alert)),
        // A CA that was replaced by one of the same name makes a bad signature.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            format!("its certificate is signed by none that is trusted here ({trusted})")
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!("its certificate is not for the name {name}"),
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired, by the clock of this machine".to_owned()
        }
        cause => cause.to_string(),
    };
    io::Error::other(match unread {
        Some(unread) => format!("{words}; {unread}"),
        None => words,
    })
}

/// Returns the words for what the server does not accept.
fn alerted(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "it asks for a client certificate (Tls::identity_files; --cert and --key)".to_owned()
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::DecryptError => format!("it refuses the client certificate ({alert:?})"),
        alert => format!("it ends the connection by the TLS alert {alert:?}"),
    }
}

/// A stream after the handshake. A server that does not accept the client certificate says so in the first answer.
pub(crate) struct Secured<S>(TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secured<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let in_words = |error: io::Error| match error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) {
            Some(Error::AlertReceived(alert)) => io::Error::new(error.kind(), alerted(*alert)),
            _ => error,
        };
        Pin::new(&mut self.0).poll_read(cx, buffer).map_err(in_words)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secured<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
