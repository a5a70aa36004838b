//! TLS to the nodes, under the names that `redis-cli` has for it.

use std::ffi::{OsStr, OsString};
use std::path;

use clap::Args;
use quorlock::Builder;

use crate::child::Variables;
use crate::exit::{Exit, Failure};
use crate::messages::quoted;

const CA_VARIABLE: &str = "QUORLOCK_CACERT";
const CERTIFICATE_VARIABLE: &str = "QUORLOCK_CERT";
const KEY_VARIABLE: &str = "QUORLOCK_KEY";
const NAME_VARIABLE: &str = "QUORLOCK_SNI";

/// An empty variable is none.
#[derive(Args)]
pub struct TlsFlags {
    /// Trust the CA certificates in this PEM file for rediss:// nodes, instead of those of the operating system.
    #[arg(long, value_name = "FILE", env = CA_VARIABLE)]
    cacert: Option<OsString>,

    /// Show rediss:// nodes the client certificate in this PEM file.
    #[arg(long, value_name = "FILE", env = CERTIFICATE_VARIABLE)]
    cert: Option<OsString>,

    /// The PEM file with the key of --cert, without a passphrase.
    #[arg(long, value_name = "FILE", env = KEY_VARIABLE)]
    key: Option<OsString>,

    /// Ask rediss:// nodes for the certificate of this name, and verify it for this name instead of the host.
    #[arg(long, value_name = "NAME", env = NAME_VARIABLE)]
    sni: Option<String>,
}

/// The settings, checked. The paths are absolute.
pub struct TlsFiles {
    pub authority: Option<OsString>,
    pub certificate: Option<OsString>,
    pub key: Option<OsString>,
    pub name: Option<String>,
}

impl TlsFlags {
    pub fn check(self) -> Result<TlsFiles, Failure> {
        let files = TlsFiles {
            authority: absolute(self.cacert)?,
            certificate: absolute(self.cert)?,
            key: absolute(self.key)?,
            name: self.sni.filter(|name| !name.is_empty()),
        };
        if files.certificate.is_some() != files.key.is_some() {
            return Err(Failure::new(
                Exit::Usage,
                "a client certificate needs its key: give --cert and --key (or QUORLOCK_CERT and QUORLOCK_KEY), or neither",
            ));
        }
        if cfg!(not(feature = "tls")) && files.are_set() {
            return Err(Failure::new(
                Exit::Usage,
                "--cacert, --cert, --key, --sni and their variables need quorlock built with its feature `tls`",
            ));
        }
        Ok(files)
    }
}

fn absolute(file: Option<OsString>) -> Result<Option<OsString>, Failure> {
    let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(None) };
    let failure = |error| Failure::new(Exit::Usage, format!("the current folder cannot be found: {error}"));
    Ok(Some(path::absolute(file).map_err(failure)?.into()))
}

impl TlsFiles {
    fn are_set(&self) -> bool {
        self.authority.is_some() || self.certificate.is_some() || self.name.is_some()
    }

    #[cfg(feature = "tls")]
    pub fn apply(&self, builder: Builder) -> Builder {
        if !self.are_set() {
            return builder;
        }
        let mut tls = quorlock::Tls::new();
        if let Some(authority) = &self.authority {
            tls = tls.ca_file(authority);
        }
        if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
            tls = tls.identity_files(certificate, key);
        }
        if let Some(name) = &self.name {
            tls = tls.server_name(name);
        }
        builder.tls(tls)
    }

    #[cfg(not(feature = "tls"))]
    #[expect(clippy::unused_self, reason = "as with `tls`")]
    pub fn apply(&self, builder: Builder) -> Builder {
        builder
    }

    /// The same settings as flags of `redis-cli`, a space before each.
    pub fn for_redis_cli(&self) -> String {
        let name = self.name.as_ref().map(OsString::from);
        let flags = [("cacert", &self.authority), ("cert", &self.certificate), ("key", &self.key), ("sni", &name)];
        let flag = |(flag, value): (&str, &Option<OsString>)| {
            Some(format!(" --{flag} {}", quoted(&value.as_ref()?.to_string_lossy())))
        };
        flags.into_iter().filter_map(flag).collect()
    }

    /// What a `quorlock run` inside the command needs.
    pub fn variables(&self) -> Variables {
        let value = |value: &Option<OsString>| value.clone();
        let name = self.name.as_ref().map(|name| OsStr::new(name).to_owned());
        vec![
            (CA_VARIABLE, value(&self.authority)),
            (CERTIFICATE_VARIABLE, value(&self.certificate)),
            (KEY_VARIABLE, value(&self.key)),
            (NAME_VARIABLE, name),
        ]
    }

    /// Takes all that away from the command.
    pub fn no_variables() -> Variables {
        [CA_VARIABLE, CERTIFICATE_VARIABLE, KEY_VARIABLE, NAME_VARIABLE].map(|name| (name, None)).into()
    }
}
