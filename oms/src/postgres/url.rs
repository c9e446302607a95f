//! The URL of an engine.
//!
//! ```text
//! postgres://USER[:PASSWORD]@HOST[:PORT][,HOST[:PORT]...][/DATABASE][?SETTING=VALUE[&...]]
//! settings: sslmode, sslrootcert, passfile
//! default of DATABASE: USER
//! ```
//!
//! **Invariants**
//! - `Display` and `Debug` omit the password.
//! - A connection to another machine is encrypted, unless the URL has `sslmode=disable`.
//!
//! The choice of the host for a connection is in `session`.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use thiserror::Error;

use crate::postgres::password_file;
use crate::runtime::address;

/// Port of a host if the URL names none.
const DEFAULT_PORT: u16 = 5_432;
/// Maximum number of hosts in a URL. An engine has a primary and a few standbys.
const HOSTS_MAX: usize = 32;
/// Maximum length of a URL in bytes.
const URL_BYTES_MAX: usize = 8_192;
/// Characters that are percent-encoded in a user name, a password, a database name or the folder of
/// a Unix socket.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b':')
    .add(b'?')
    .add(b'@')
    .add(b',');

/// The way in which a connection is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// The connection is not encrypted.
    Off,
    /// The connection is encrypted, but the server's certificate is not checked, as with libpq's
    /// `sslmode=require`.
    Unchecked,
    /// The connection is encrypted. The server's certificate must name the host and be signed by a
    /// root certificate in the file.
    Checked {
        /// Path of the file with root certificates in PEM.
        roots: PathBuf,
    },
}

/// One host of an engine, with the password and the encryption of connections to it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// A host name, an IP address, or the folder of a Unix socket.
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) password: Option<String>,
    pub(crate) encryption: Encryption,
}

impl Host {
    /// Returns `true` if the host is a Unix socket, `localhost` or a loopback address. A connection
    /// to it stays on this machine.
    pub(crate) fn is_local(&self) -> bool {
        let ip = self.name.parse::<IpAddr>();
        self.name.starts_with('/') || self.name == "localhost" || ip.is_ok_and(address::is_loopback)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.starts_with('/') {
            write!(f, "{}:{}", utf8_percent_encode(&self.name, ESCAPED), self.port)
        } else if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

/// The URL of an engine: its hosts, a user and a database.
#[derive(Clone, PartialEq, Eq)]
pub struct EngineUrl {
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) database: String,
    /// The query string of the URL as written. It never contains a password.
    query: String,
}

/// The reason why a URL cannot be used for an engine.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}; write postgres://USER@HOST:PORT/DATABASE")]
pub struct InvalidEngineUrl(String);

/// Access to environment variables and files, from which a missing password is taken. Tests pass
/// substitutes.
struct Outside<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    read_file: &'a dyn Fn(&Path) -> std::io::Result<String>,
}

impl FromStr for EngineUrl {
    type Err = InvalidEngineUrl;

    /// Parses a URL. A missing password is taken from the environment variable `PGPASSWORD`, or
    /// else from the password file that `passfile=` or `PGPASSFILE` names.
    fn from_str(text: &str) -> Result<EngineUrl, InvalidEngineUrl> {
        let variable = |name: &str| std::env::var(name).ok();
        let outside = Outside {
            variable: &variable,
            read_file: &password_file::read,
        };
        parse(text, &outside)
    }
}

fn invalid<T>(reason: impl Into<String>) -> Result<T, InvalidEngineUrl> {
    Err(InvalidEngineUrl(reason.into()))
}

fn decoded(text: &str) -> Result<String, InvalidEngineUrl> {
    match percent_decode_str(text).decode_utf8() {
        Ok(decoded) if !decoded.contains('\0') => Ok(decoded.into_owned()),
        _ => invalid("a part of the URL is not UTF-8 text"),
    }
}

/// Splits `HOST[:PORT]` into name and port.
fn host_and_port(text: &str) -> Result<(String, u16), InvalidEngineUrl> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, "")) => (name, None),
            Some((name, port)) if port.starts_with(':') => (name, port.get(1..)),
            _ => return invalid(format!("'{text}' is not a host")),
        },
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let name = decoded(name)?;
    if name.is_empty() {
        return invalid("a host is missing");
    }
    let port = port.map_or(Ok(DEFAULT_PORT), str::parse);
    match port {
        Ok(port) if port > 0 => Ok((name, port)),
        _ => invalid(format!("the port of '{text}' is not 1 to 65535")),
    }
}

/// The settings in the query string of a URL.
#[derive(Default)]
struct Query {
    sslmode: Option<String>,
    sslrootcert: Option<String>,
    passfile: Option<String>,
}

fn query_of(text: &str) -> Result<Query, InvalidEngineUrl> {
    let mut query = Query::default();
    for part in text.split('&').filter(|part| !part.is_empty()) {
        let Some((name, value)) = part.split_once('=') else {
            return invalid(format!("'{part}' has no value"));
        };
        let value = decoded(value)?;
        match name {
            "sslmode" => query.sslmode = Some(value),
            "sslrootcert" => query.sslrootcert = Some(value),
            "passfile" => query.passfile = Some(value),
            _ => {
                return invalid(format!(
                    "there is no setting '{name}'; there are sslmode, sslrootcert and passfile"
                ));
            }
        }
    }
    Ok(query)
}

fn encryption_of(query: &Query, is_local: bool) -> Result<Encryption, InvalidEngineUrl> {
    let mode = match &query.sslmode {
        Some(mode) => mode.as_str(),
        None if query.sslrootcert.is_some() => "verify-full",
        None if is_local => "disable",
        None => "require",
    };
    match (mode, &query.sslrootcert) {
        ("disable", _) => Ok(Encryption::Off),
        ("require" | "verify-full", Some(roots)) => Ok(Encryption::Checked { roots: roots.into() }),
        ("require", None) => Ok(Encryption::Unchecked),
        ("verify-full", None) => invalid("sslmode=verify-full needs sslrootcert=FILE"),
        _ => invalid(format!(
            "sslmode={mode} is not known; it is disable, require or verify-full"
        )),
    }
}

fn parse(text: &str, outside: &Outside<'_>) -> Result<EngineUrl, InvalidEngineUrl> {
    if text.len() > URL_BYTES_MAX {
        return invalid("the URL is too long");
    }
    let rest = text
        .strip_prefix("postgres://")
        .or_else(|| text.strip_prefix("postgresql://"));
    let Some(rest) = rest else {
        return invalid("postgres:// is missing");
    };
    let (rest, query_text) = rest.split_once('?').unwrap_or((rest, ""));
    let query = query_of(query_text)?;
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let Some((login, hosts)) = authority.rsplit_once('@') else {
        return invalid("the user is missing");
    };
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (decoded(user)?, Some(decoded(password)?)),
        None => (decoded(login)?, None),
    };
    if user.is_empty() {
        return invalid("the user is missing");
    }
    let database = match decoded(database)? {
        database if database.is_empty() => user.clone(),
        database => database,
    };
    let mut parsed = EngineUrl {
        hosts: Vec::new(),
        user,
        database,
        query: query_text.to_owned(),
    };
    for host in hosts.split(',') {
        if parsed.hosts.len() == HOSTS_MAX {
            return invalid(format!("there are more than {HOSTS_MAX} hosts"));
        }
        let (name, port) = host_and_port(host)?;
        let mut host = Host {
            name,
            port,
            password: None,
            encryption: Encryption::Off,
        };
        host.encryption = encryption_of(&query, host.is_local())?;
        parsed.hosts.push(host);
    }
    // PostgreSQL's own clients also ignore a variable that is set and empty.
    let variable = |name| (outside.variable)(name).filter(|text| !text.is_empty());
    let password = password.or_else(|| variable("PGPASSWORD"));
    let passfile = query.passfile.or_else(|| variable("PGPASSFILE"));
    let lines = match (&password, &passfile) {
        (None, Some(path)) => match (outside.read_file)(Path::new(path)) {
            Ok(lines) => lines,
            Err(error) => return invalid(format!("the password file {path} cannot be read: {error}")),
        },
        _ => String::new(),
    };
    for host in &mut parsed.hosts {
        let port = host.port.to_string();
        let wanted = [
            host.name.as_str(),
            port.as_str(),
            parsed.database.as_str(),
            parsed.user.as_str(),
        ];
        host.password = password.clone().or_else(|| password_file::find(&lines, wanted));
    }
    Ok(parsed)
}

impl EngineUrl {
    /// Returns `true` if every host is a Unix socket, `localhost` or a loopback address.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.hosts.iter().all(Host::is_local)
    }

    /// Returns the URL of another database of the same engine.
    #[must_use]
    pub fn with_database(&self, database: &str) -> EngineUrl {
        let mut url = self.clone();
        database.clone_into(&mut url.database);
        url
    }

    /// Returns the URL with its password if all hosts have the same password, and otherwise without
    /// a password. The result is for the environment of a child process and must not be logged or
    /// displayed.
    #[must_use]
    pub fn with_password(&self) -> String {
        let text = self.to_string();
        let first = self.hosts.first().and_then(|host| host.password.as_ref());
        let is_common = self.hosts.iter().all(|host| host.password.as_ref() == first);
        match (first, text.split_once('@')) {
            (Some(password), Some((user, rest))) if is_common => {
                format!("{user}:{}@{rest}", utf8_percent_encode(password, ESCAPED))
            }
            _ => text,
        }
    }

    /// Returns the URL in which each host without a password has the password of the first host of
    /// `other`.
    #[must_use]
    pub(crate) fn or_password_of(mut self, other: &EngineUrl) -> EngineUrl {
        let password = other.hosts.first().and_then(|host| host.password.clone());
        for host in &mut self.hosts {
            host.password = host.password.take().or_else(|| password.clone());
        }
        self
    }

    /// Returns the name of the database.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }
}

impl fmt::Display for EngineUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        let escaped = |text| utf8_percent_encode(text, ESCAPED);
        let (user, database) = (escaped(&self.user), escaped(&self.database));
        write!(f, "postgres://{user}@{}/{database}", hosts.join(","))?;
        if !self.query.is_empty() {
            write!(f, "?{}", self.query)?;
        }
        Ok(())
    }
}

impl fmt::Debug for EngineUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EngineUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<EngineUrl, String> {
        let outside = Outside {
            variable: &|_| None,
            read_file: &|_| Err(std::io::ErrorKind::NotFound.into()),
        };
        parse(text, &outside).map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_names_hosts_user_and_database_and_hides_its_password() {
        let url =
            parsed("postgresql://ann:s%40crt@db1,[::1]:6432,%2Ftmp%2Fpg:7/shop?sslmode=require").unwrap();
        let hosts: Vec<(&str, u16)> = url
            .hosts
            .iter()
            .map(|host| (host.name.as_str(), host.port))
            .collect();
        assert_eq!(hosts, [("db1", 5_432), ("::1", 6_432), ("/tmp/pg", 7)]);
        assert_eq!(url.hosts[2].password.as_deref(), Some("s@crt"));
        let shown = "postgres://ann@db1:5432,[::1]:6432,%2Ftmp%2Fpg:7/shop?sslmode=require";
        assert_eq!(url.to_string(), shown);
        assert!(!format!("{url:?}").contains("s@crt"));
        assert_eq!(parsed(shown).unwrap().to_string(), shown);
        assert_eq!(parsed(&url.with_password()).unwrap(), url);
        assert!(url.with_password().contains("ann:s%40crt@db1"));
        assert_eq!(parsed("postgres://ann@db1").unwrap().database, "ann");
    }

    #[test]
    fn a_connection_off_this_machine_is_encrypted_by_default() {
        let encryption = |text: &str| parsed(text).map(|url| url.hosts[0].encryption.clone());
        let checked = Encryption::Checked {
            roots: "/ca.pem".into(),
        };
        for (text, expected) in [
            ("postgres://a@127.0.0.1/b", Encryption::Off),
            ("postgres://a@[::ffff:127.0.0.1]/b", Encryption::Off),
            ("postgres://a@[::ffff:10.0.0.1]/b", Encryption::Unchecked),
            ("postgres://a@localhost/b", Encryption::Off),
            ("postgres://a@%2Ftmp/b", Encryption::Off),
            ("postgres://a@10.0.0.1/b", Encryption::Unchecked),
            ("postgres://a@db1/b?sslmode=disable", Encryption::Off),
            ("postgres://a@127.0.0.1/b?sslmode=require", Encryption::Unchecked),
            ("postgres://a@db1/b?sslrootcert=/ca.pem", checked.clone()),
            (
                "postgres://a@db1/b?sslmode=verify-full&sslrootcert=%2Fca.pem",
                checked,
            ),
        ] {
            assert_eq!(encryption(text), Ok(expected), "{text}");
        }
        assert!(parsed("postgres://a@127.0.0.1,localhost/b").unwrap().is_local());
        assert!(!parsed("postgres://a@127.0.0.1,db1/b").unwrap().is_local());
    }

    #[test]
    fn an_invalid_url_is_refused_with_its_fault() {
        for (text, fault) in [
            ("mysql://a@b/c", "postgres:// is missing"),
            ("postgres://db1/c", "the user is missing"),
            ("postgres://:x@db1/c", "the user is missing"),
            ("postgres://a@/c", "a host is missing"),
            ("postgres://a@db1,/c", "a host is missing"),
            ("postgres://a@db1:0/c", "the port of 'db1:0'"),
            ("postgres://a@db1:70000/c", "the port"),
            ("postgres://a@[::1/c", "is not a host"),
            ("postgres://a@db1/c?sslmode=prefer", "sslmode=prefer is not known"),
            ("postgres://a@db1/c?sslmode=verify-full", "needs sslrootcert"),
            ("postgres://a@db1/c?options=-c", "there is no setting 'options'"),
            ("postgres://a@db1/c?sslmode", "has no value"),
            ("postgres://a%00@db1/c", "not UTF-8"),
            (
                "postgres://a@db1/c?passfile=/none",
                "the password file /none cannot be read",
            ),
        ] {
            let found = parsed(text).unwrap_err();
            assert!(found.contains(fault), "{text}: {found}");
        }
    }

    #[test]
    fn a_missing_password_comes_from_the_environment_or_the_password_file() {
        let file = |_: &Path| Ok("db2:*:*:ann:second\n*:*:*:*:other\n".to_owned());
        let no_variable = |_: &str| None;
        let url = "postgres://ann@db1,db2/shop?passfile=/p";
        let outside = Outside {
            variable: &no_variable,
            read_file: &file,
        };
        let passwords = |outside: &Outside<'_>, url: &str| {
            let url = parse(url, outside).unwrap();
            let password = |host: &Host| host.password.clone().unwrap();
            url.hosts.iter().map(password).collect::<Vec<_>>()
        };
        assert_eq!(passwords(&outside, url), ["other", "second"]);
        let variable = |name: &str| (name == "PGPASSWORD").then(|| "of-environment".to_owned());
        let outside = Outside {
            variable: &variable,
            read_file: &file,
        };
        assert_eq!(passwords(&outside, url), ["of-environment"; 2]);
        assert_eq!(passwords(&outside, "postgres://ann:url@db1/shop"), ["url"]);
        let outside = Outside {
            variable: &|_| Some(String::new()),
            read_file: &file,
        };
        assert_eq!(passwords(&outside, url), ["other", "second"]);
    }
}
