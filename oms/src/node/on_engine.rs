//! The entry of a process into a cluster on an engine: the address that the process publishes for
//! the other nodes, and the cluster's secret.
//!
//! **Invariants**
//! - An address that other nodes surely cannot reach is not published. An address that stands for
//!   every interface (`0.0.0.0` or `::`) is always refused. A loopback address is refused if the
//!   engine is on another machine.
//!
//! Deliberately absent: the joining itself (`cluster::engine`).

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use imt_ring::Member;

use crate::cluster::engine::{EngineCluster, Joining};
use crate::config::NodeConfig;
use crate::error::NodeError;
use crate::postgres::EngineUrl;
use crate::runtime::{address, regular_file};

/// Maximum size in bytes of a file with the cluster's secret.
const SECRET_BYTES_MAX: u64 = 4_096;
/// Minimum length of a secret from a file, in characters.
const SECRET_LENGTH_MIN: usize = 16;

fn invalid(setting: &'static str, reason: impl Into<String>) -> NodeError {
    NodeError::Config {
        setting,
        reason: reason.into(),
    }
}

/// Joins the cluster that has its state in the engine at `url`.
pub(super) async fn join(
    config: &NodeConfig,
    url: &EngineUrl,
    member: Member,
) -> Result<EngineCluster, NodeError> {
    let secret = config.secret_file.as_deref().map(read_secret_file).transpose()?;
    let data = std::path::absolute(&config.data).map_err(|source| NodeError::Folder {
        action: "find",
        path: config.data.clone(),
        source,
    })?;
    let joining = Joining::on_postgres(Arc::new(url.clone()), data, member, secret);
    joining.join().await
}

/// Reads the file with the cluster's secret, by which nodes prove that they belong together.
///
/// # Errors
/// Returns an error if the file cannot be read, or if the secret is too short or has a character
/// that is not visible ASCII.
pub fn read_secret_file(path: &Path) -> Result<String, NodeError> {
    let bytes = regular_file::read(path, SECRET_BYTES_MAX).map_err(|source| NodeError::Folder {
        action: "read the secret file",
        path: path.to_owned(),
        source,
    })?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let is_plain = text.chars().all(|character| character.is_ascii_graphic());
    if text.len() < SECRET_LENGTH_MIN || !is_plain {
        return Err(invalid(
            "secret file",
            format!(
                "{} must have one line of at least {SECRET_LENGTH_MIN} letters and digits, such as the output of openssl rand -hex 32",
                path.display()
            ),
        ));
    }
    Ok(text)
}

/// Returns the address that this node publishes: the first address of `advertise` if it is given,
/// otherwise the address on which the node listens. Fails if `advertise` has no address, or if
/// `check_address` refuses the address.
pub(super) async fn address(
    config: &NodeConfig,
    url: &EngineUrl,
    listening: SocketAddr,
) -> Result<SocketAddr, NodeError> {
    let advertised = match &config.advertise {
        None => listening,
        Some(text) => {
            let found = tokio::net::lookup_host(text.as_str()).await;
            let found = found.map(|mut addresses| addresses.next());
            match found {
                Ok(Some(address)) => address,
                Ok(None) => return Err(invalid("advertise", format!("'{text}' has no address"))),
                Err(error) => {
                    return Err(invalid(
                        "advertise",
                        format!("'{text}' is not HOST:PORT of this machine: {error}"),
                    ));
                }
            }
        }
    };
    check_address(advertised, url.is_local())?;
    Ok(advertised)
}

fn check_address(advertised: SocketAddr, is_local: bool) -> Result<(), NodeError> {
    if address::is_every_interface(advertised.ip()) {
        return Err(invalid(
            "advertise",
            format!(
                "is missing: {advertised} is every interface; give the address at which the other nodes reach this one"
            ),
        ));
    }
    if address::is_loopback(advertised.ip()) && !is_local {
        return Err(invalid(
            "advertise",
            format!(
                "cannot be {advertised}: the engine is on another machine, so other nodes may be, and they cannot reach a loopback address; give --listen and --advertise an address of this machine"
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_other_machines_cannot_reach_is_refused() {
        let check = |address: &str, is_local| check_address(address.parse().unwrap(), is_local);
        assert!(check("10.0.0.1:9090", false).is_ok());
        assert!(check("127.0.0.1:9090", true).is_ok());
        for (address, is_local, named) in [
            ("127.0.0.1:9090", false, "127.0.0.1:9090"),
            ("[::1]:9090", false, "loopback"),
            ("[::ffff:127.0.0.1]:9090", false, "loopback"),
            ("[::ffff:0.0.0.0]:9090", true, "every interface"),
            ("0.0.0.0:9090", true, "every interface"),
            ("[::]:9090", false, "every interface"),
        ] {
            let error = check(address, is_local).unwrap_err().to_string();
            assert!(error.contains(named), "{address}: {error}");
        }
    }

    #[test]
    fn a_short_secret_is_refused_and_a_line_break_is_no_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        assert_eq!(read_secret_file(&path).unwrap(), "0123456789abcdef");
        for wrong in ["short\n", "has a space inside it\n", ""] {
            std::fs::write(&path, wrong).unwrap();
            let error = read_secret_file(&path).unwrap_err().to_string();
            assert!(error.contains("at least 16"), "{error}");
        }
    }
}
