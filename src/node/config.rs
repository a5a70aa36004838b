//! A node as typed settings.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

use super::address::{NEEDS_TLS, NodeAddress, info_of};
use super::password::PasswordSource;
use crate::secrets::hidden;

/// One Redis master; given to [`Builder::node_configs`](crate::Builder::node_configs). No character of a password or a path has to
/// be escaped.
///
/// Its `Debug` shows no password.
///
/// ```
/// use quorlock::{NodeConfig, Quorlock};
///
/// let node = |host| NodeConfig::tcp(host, 6379).user("quorlock").password_file("/run/secrets/redis");
/// let builder = Quorlock::builder().node_configs(["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(node));
/// ```
#[derive(Clone)]
#[must_use = "the settings do nothing until Builder::node_configs has them"]
pub struct NodeConfig {
    server: Server,
    tls: Option<bool>,
    database: Option<i64>,
    user: Option<String>,
    password: Option<Password>,
}

#[derive(Clone)]
enum Server {
    Url(String),
    Tcp(String, u16),
    Unix(PathBuf),
}

#[derive(Clone)]
enum Password {
    Fixed(String),
    Asked(PasswordSource),
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address().map_or_else(|_| self.hidden(), |address| address.name))
    }
}

impl NodeConfig {
    /// The server at this host name or address, and port.
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self::new(Server::Tcp(host.into(), port))
    }

    /// The server at this unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::new(Server::Unix(path.into()))
    }

    /// The server at this URL, as [`Builder::nodes`](crate::Builder::nodes) takes it. Other settings replace what the URL says.
    pub fn url(url: impl Into<String>) -> Self {
        Self::new(Server::Url(url.into()))
    }

    fn new(server: Server) -> Self {
        Self { server, tls: None, database: None, user: None, password: None }
    }

    /// Whether the connection uses TLS. It needs the feature `tls`; `Builder::tls` has the settings.
    ///
    /// Defaults to `false`, or to what the scheme of the URL says.
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The number of the database.
    ///
    /// Defaults to 0, or to the URL's.
    pub fn database(mut self, database: u32) -> Self {
        self.database = Some(database.into());
        self
    }

    /// The name of the ACL user. It needs a password.
    ///
    /// Defaults to `default`, or to the URL's.
    pub fn user(mut self, name: impl Into<String>) -> Self {
        self.user = Some(name.into());
        self
    }

    /// The password, as it is.
    ///
    /// Defaults to none, or to the URL's.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(Password::Fixed(password.into()));
        self
    }

    /// Reads the password from this file for each new connection, in a thread, so a rotated password needs no restart. The end of
    /// the line is no part of it. A file that cannot be read costs only the vote of this node, and its state says why. Connections
    /// in use go on.
    ///
    /// Defaults to none, or to the URL's.
    pub fn password_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.password = Some(Password::Asked(PasswordSource::file(path.into())));
        self
    }

    /// Calls this function for each new connection, once the server has accepted it, and uses the password that it returns. It runs
    /// in a thread of its own, and may block for up to two seconds. While the server refuses the password, it is called up to some
    /// times a second: let it remember what is expensive to find out.
    ///
    /// An error costs only the vote of this node. Its words are shown in the state of the node, so they must hold no password.
    ///
    /// Defaults to none, or to the URL's.
    pub fn password_with<E>(mut self, password: impl Fn() -> Result<String, E> + Send + Sync + 'static) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.password = Some(Password::Asked(PasswordSource::function(password)));
        self
    }

    /// Returns the address, or what is wrong.
    pub(crate) fn address(&self) -> Result<NodeAddress, String> {
        let info = self.info()?;
        let addr = with_tls(info.addr().clone(), self.tls)?;
        let mut settings = info.redis_settings().clone();
        if let Some(database) = self.database {
            settings = settings.set_db(database);
        }
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(Password::Fixed(password)) = &self.password {
            settings = settings.set_password(password);
        }
        let source = match &self.password {
            Some(Password::Asked(source)) => Some(source.clone()),
            _ => None,
        };
        let has_user = self.user.as_deref().is_some_and(|user| !user.is_empty());
        if has_user && source.is_none() && settings.password().is_none() {
            return Err("it has a user and no password".to_owned());
        }
        NodeAddress::new(info.set_addr(addr).set_redis_settings(settings), source)
    }

    fn info(&self) -> Result<ConnectionInfo, String> {
        let addr = match &self.server {
            Server::Url(url) => return info_of(url),
            Server::Tcp(host, _) if !is_host(host) => {
                return Err("the host must be a name or an address alone, without port and brackets".to_owned());
            }
            Server::Tcp(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
            Server::Unix(path) => ConnectionAddr::Unix(path.clone()),
        };
        addr.into_connection_info().map_err(|_| "it is no address".to_owned())
    }

    /// Returns what may be shown if the settings cannot be used.
    pub(crate) fn hidden(&self) -> String {
        match &self.server {
            Server::Url(url) => hidden(url),
            // A host that was refused may be a URL.
            Server::Tcp(..) if self.info().is_err() => "…".to_owned(),
            Server::Tcp(host, port) => format!("{host}:{port}"),
            Server::Unix(path) => path.display().to_string(),
        }
    }
}

/// Returns whether this may be a name or an address, and no part of a URL.
fn is_host(host: &str) -> bool {
    let is_foreign = |c: char| "@/[]".contains(c) || c.is_whitespace();
    !host.is_empty() && !host.contains(is_foreign) && host.matches(':').count() != 1
}

fn with_tls(addr: ConnectionAddr, tls: Option<bool>) -> Result<ConnectionAddr, String> {
    match (addr, tls) {
        (_, Some(true)) if cfg!(not(feature = "tls")) => Err(NEEDS_TLS.to_owned()),
        (ConnectionAddr::Tcp(host, port), Some(true)) => {
            Ok(ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None })
        }
        (ConnectionAddr::TcpTls { host, port, .. }, Some(false)) => Ok(ConnectionAddr::Tcp(host, port)),
        (ConnectionAddr::Unix(_), Some(true)) => Err("a unix socket has no TLS".to_owned()),
        (addr, _) => Ok(addr),
    }
}
