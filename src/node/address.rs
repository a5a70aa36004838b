//! The address of a node, taken from its URL.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use redis::{ConnectionAddr, ConnectionInfo};

use super::password::PasswordSource;
use crate::text::Printable;

/// Where a node is, and the user, password and database of the handshake.
#[derive(Clone)]
pub(crate) struct NodeAddress {
    /// For people: no user, no password.
    pub(crate) name: String,
    /// The server without the database: two of these are one failure.
    pub(crate) server: String,
    pub(crate) info: ConnectionInfo,
    /// Where the password is from, if it is asked for at each connection. It replaces that of `info`.
    pub(super) password: Option<PasswordSource>,
}

impl fmt::Debug for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl NodeAddress {
    #[cfg(test)]
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        Self::new(info_of(url)?, None)
    }

    /// `password` is where the password is from, if not from `info`.
    pub(super) fn new(info: ConnectionInfo, password: Option<PasswordSource>) -> Result<Self, String> {
        let settings = info.redis_settings();
        if password.is_none()
            && settings.username().is_some_and(|user| !user.is_empty())
            && settings.password().is_none()
        {
            return Err(
                "it has a user and no password: write redis://user:password@host, or redis://:password@host for \
                        a password without a user"
                    .to_owned(),
            );
        }
        let server = match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                format!("{}:{port}", host.to_ascii_lowercase())
            }
            ConnectionAddr::Unix(path) => path.display().to_string(),
            other => return Err(format!("{other:?} is not supported")),
        };
        let server = Printable(&server).to_string();
        let name = match settings.db() {
            0 => server.clone(),
            db => format!("{server}/{db}"),
        };
        Ok(Self { name, server, info, password })
    }

    /// Returns whether the password crosses a network without encryption.
    pub(crate) fn shows_password(&self) -> bool {
        let ConnectionAddr::Tcp(host, _) = self.info.addr() else { return false };
        let ip: Option<IpAddr> = host.parse().ok();
        let is_here = ip.map_or(host.eq_ignore_ascii_case("localhost"), |ip| ip.to_canonical().is_loopback());
        !is_here && (self.password.is_some() || self.info.redis_settings().password().is_some())
    }
}

/// Takes a URL apart.
pub(super) fn info_of(url: &str) -> Result<ConnectionInfo, String> {
    if url.trim().is_empty() {
        return Err("it is empty: is a variable not set?".to_owned());
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(
            "it has no scheme: write it as a URL, redis://host:port (and %2C for a comma in a password)".to_owned()
        );
    };
    let tail = rest.find(['/', '?', '#']).map_or("", |end| &rest[end..]);
    if tail.contains('@') && !scheme.ends_with("unix") {
        return Err(format!("an @ stands behind what is taken for the host: {ESCAPES}"));
    }
    if cfg!(not(feature = "tls")) && (url.starts_with("rediss:") || url.starts_with("valkeys:")) {
        return Err(NEEDS_TLS.to_owned());
    }
    ConnectionInfo::from_str(url).map_err(|error| {
            // The crate's words never quote the URL. Where it has none of its own, it could not take the URL apart.
            match error.to_string().split(" - ").next() {
                None | Some("Redis URL did not parse") => {
                    format!(
                        "write it as redis://[user:password@]host[:port][/database], the port a number up to 65535; {ESCAPES}"
                    )
                }
                Some(reason) => reason.to_lowercase(),
            }
    })
}

pub(super) const NEEDS_TLS: &str = "TLS needs quorlock built with its feature `tls`";

/// How a password is written in a URL.
const ESCAPES: &str = "in a password write %23 for #, %3F for ?, %2F for /, %40 for @, %2C for a comma and %25 for %";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_crosses_a_network_unless_it_is_encrypted_or_stays_on_the_machine() {
        for (url, expected) in [
            ("redis://:secret@10.0.0.1", true),
            ("valkey://me:secret@db", true),
            ("redis://db", false),
            ("redis://:secret@127.1.2.3:7001", false),
            ("redis://:secret@[::1]:7001", false),
            ("redis://:secret@LocalHost", false),
            ("redis://:secret@127.example", true),
            ("redis+unix:///run/redis.sock?pass=secret", false),
            #[cfg(feature = "tls")]
            ("rediss://:secret@db", false),
        ] {
            assert_eq!(NodeAddress::parse(url).map(|node| node.shows_password()), Ok(expected), "{url}");
        }
    }

    #[test]
    fn an_empty_url_is_called_empty() {
        for url in ["", " "] {
            let error = NodeAddress::parse(url).map(|node| node.name);
            assert_eq!(error.as_deref().map_err(String::as_str), Err("it is empty: is a variable not set?"), "{url:?}");
        }
        let error = NodeAddress::parse("host:6379").map(|node| node.name);
        assert!(error.is_err_and(|why| why.starts_with("it has no scheme")));
    }

    #[test]
    fn names_show_server_and_database() {
        let name = |url: &str| NodeAddress::parse(url).map(|node| node.name);
        assert_eq!(name("redis://u:p@Host:7000/2").as_deref(), Ok("host:7000/2"));
        assert_eq!(name("redis://[::1]:7000").as_deref(), Ok("[::1]:7000"));
        assert_eq!(name("redis+unix:///run/redis.sock?db=1").as_deref(), Ok("/run/redis.sock/1"));
    }
}
