//! Parsers of the values of flags, which come from the command line, the environment, the context
//! (`contexts`) or the file of settings (`config`).
//!
//! Invariants:
//! - A value that a parser refuses ends the command with exit code 2, before anything starts.
//! - Each error message has an example of a value that is accepted.

use clap::builder::{PathBufValueParser, TypedValueParser};
use imt_ring::{NodeName, ZoneName};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Minimum of the flags that set an interval, such as the time between two reads of a database. A
/// shorter interval would keep a processor busy.
pub(crate) const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// Parses a duration.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; for example 30s, 1m or 500ms"))
}

/// Parses a duration above 0.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    match duration.is_zero() {
        true => Err("must be above 0, for example 30s, 1m or 500ms".to_owned()),
        false => Ok(duration),
    }
}

/// Parses an interval, such as the time between two reads of a database. Refuses an interval below
/// [`INTERVAL_MIN`].
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    match interval < INTERVAL_MIN {
        true => Err(format!(
            "must be at least {INTERVAL_MIN:?}, for example 500ms or 2s"
        )),
        false => Ok(interval),
    }
}

/// Parses a moment: a duration before now, or a date in UTC, which may have a time. Returns
/// milliseconds since 1970.
pub(crate) fn moment(text: &str) -> Result<u64, String> {
    let wrong = || "must be a time before now or a date, for example 10m or 2026-01-31T17:45:00Z".to_owned();
    let time = match humantime::parse_duration(text) {
        Ok(ago) => SystemTime::now().checked_sub(ago),
        Err(_) => humantime::parse_rfc3339_weak(text)
            .or_else(|_| humantime::parse_rfc3339_weak(&format!("{text} 00:00:00")))
            .ok(),
    };
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map(|since| since.as_millis() as u64).ok_or_else(wrong)
}

/// Parses the address on which a server listens. A host name is resolved to an IP address.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let number: Option<u16> = port.parse().ok();
    let Some(number) = number else {
        return Err("must be HOST:PORT, for example 127.0.0.1:9090 or localhost:9090".to_owned());
    };
    if host.is_empty() {
        return Err(format!(
            "the host is missing; for example 127.0.0.1:{number} for this machine alone, or 0.0.0.0:{number} for every network"
        ));
    }
    let found = (host, number).to_socket_addrs().map_err(|error| {
        format!(
            "the host {host:?} is not known ({error}); for example 127.0.0.1:{number} or localhost:{number}"
        )
    })?;
    let mut found: Vec<SocketAddr> = found.collect();
    // IPv4 addresses come first. `localhost` often has addresses of both families, and the defaults
    // of other settings are IPv4 addresses.
    found.sort_by_key(SocketAddr::is_ipv6);
    let first = found.first().copied();
    first.ok_or_else(|| format!("the host {host:?} has no address; for example 127.0.0.1:{number}"))
}

/// Parses the name of a node.
pub(crate) fn node_name(text: &str) -> Result<NodeName, String> {
    NodeName::new(text).map_err(|_| name_rule("alpha or node-1"))
}

/// Parses the name of a context. It follows the rule for the name of a node.
pub(crate) fn context_name(text: &str) -> Result<String, String> {
    let name = NodeName::new(text).map_err(|_| name_rule("prod or local"))?;
    Ok(name.to_string())
}

/// Parses the name of a zone.
pub(crate) fn zone_name(text: &str) -> Result<ZoneName, String> {
    ZoneName::new(text).map_err(|_| name_rule("north or rack-3"))
}

fn name_rule(example: &str) -> String {
    format!(
        "must be 1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit; for example {example}"
    )
}

/// Parses the path of a folder, which need not exist. The path of a file is refused.
pub(crate) fn folder() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(check_folder)
}

fn check_folder(path: PathBuf) -> Result<PathBuf, String> {
    match std::fs::metadata(&path) {
        Ok(found) if !found.is_dir() => {
            let file = path.display();
            Err(format!("{file} is a file; name a folder, for example data"))
        }
        _ => Ok(path),
    }
}

/// Parses the location of a frame in a log: the id of the segment and the offset in bytes.
pub(crate) fn frame(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once(':');
    let numbers = parts.and_then(|(id, offset)| Some((id.parse().ok()?, offset.parse().ok()?)));
    numbers.ok_or_else(|| "must be SEGMENT:OFFSET, for example 3:96".to_owned())
}

/// Parses the seed of random choices.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    let wrong = |_| format!("must be a whole number from 0 to {}, for example 7", u64::MAX);
    text.parse().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_an_example_that_is_accepted() {
        let check = |refused: &[&str], accepted: &[&str], parse: &dyn Fn(&str) -> Result<(), String>| {
            for text in refused {
                let error = parse(text).unwrap_err();
                assert!(error.contains("for example"), "{text:?}: {error}");
            }
            for text in accepted {
                assert_eq!(parse(text), Ok(()), "{text:?}");
            }
        };
        check(&["", "10", "soon", "-5s"], &["30s", "1m", "500ms", "0s"], &|t| {
            duration(t).map(drop)
        });
        check(&["0s", "0ms"], &["30s", "1m", "500ms"], &|t| {
            positive_duration(t).map(drop)
        });
        check(&["0s", "49ms", "x"], &["500ms", "2s", "50ms"], &|t| {
            interval(t).map(drop)
        });
        check(
            &["", "soon", "2026-13-01"],
            &["10m", "2026-01-31T17:45:00Z", "2026-01-31 17:45:00", "2026-01-31"],
            &|t| moment(t).map(drop),
        );
        check(
            &[
                "",
                ":9090",
                "9090",
                "localhost",
                "localhost:x",
                "a b:9090",
                "localhost:70000",
            ],
            &["127.0.0.1:9090", "localhost:9090", "0.0.0.0:9090", "[::1]:0"],
            &|t| listen(t).map(drop),
        );
        check(&["", "a/b", "-a", "ä"], &["alpha", "node-1"], &|t| {
            node_name(t).map(drop)
        });
        check(&["", "a b"], &["north", "rack-3"], &|t| zone_name(t).map(drop));
        check(&["/dev/null"], &["data", "/", "/nonexistent/x"], &|t| {
            check_folder(t.into()).map(drop)
        });
        check(&["", "3", "3:", "x:96"], &["3:96"], &|t| frame(t).map(drop));
        check(&["", "-1", "1.5"], &["7", "0"], &|t| seed(t).map(drop));
    }

    #[test]
    fn a_host_with_both_kinds_of_address_gets_the_older_kind() {
        assert!(listen("localhost:9090").unwrap().is_ipv4());
    }
}
