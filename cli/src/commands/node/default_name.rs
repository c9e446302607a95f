//! Default name of a node, derived from the name of the host.

use imt_ring::NAME_BYTES_MAX;

/// Name of a node on a host without a usable name.
const FALLBACK: &str = "node";

/// Returns the default name of a node on this host.
pub(super) fn of_host() -> String {
    of(&gethostname::gethostname().to_string_lossy())
}

/// Converts the name of a host to lower case, and leaves out everything that the rule for names of
/// nodes forbids. Returns `node` if nothing is left.
fn of(host: &str) -> String {
    let lower = host.to_lowercase();
    let allowed = lower
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    // All remaining characters are ASCII, so `take` counts bytes.
    let name: String = allowed
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(NAME_BYTES_MAX)
        .collect();
    if name.is_empty() {
        FALLBACK.to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imt_ring::NodeName;

    #[test]
    fn the_name_of_every_host_becomes_a_name_that_the_rule_accepts() {
        for (host, name) in [
            ("alpha", "alpha"),
            ("DB1.example.com", "db1.example.com"),
            ("-alpha", "alpha"),
            ("_._rack-3", "rack-3"),
            ("my host", "myhost"),
            ("m\u{fc}nchen", "mnchen"),
            ("", "node"),
            ("-", "node"),
            ("\u{6771}\u{4eac}", "node"),
        ] {
            assert_eq!(of(host), name, "{host:?}");
            assert!(NodeName::new(name).is_ok(), "{host:?}");
        }
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        assert_eq!(of(&long), long[1..]);
        assert!(NodeName::new(of(&long)).is_ok());
    }
}
