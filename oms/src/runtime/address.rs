//! Classification of IP addresses. The class of an address decides if connections are encrypted,
//! and if other machines can reach the address.
//!
//! **Invariants**
//! - An IPv4 address has the same class in its IPv6 form, as in `::ffff:127.0.0.1`.

use std::net::IpAddr;

/// Returns `true` for a loopback address. Connections to or from it stay on this machine.
pub(crate) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Returns `true` for the address that stands for every interface, such as `0.0.0.0`.
pub(crate) fn is_every_interface(ip: IpAddr) -> bool {
    ip.to_canonical().is_unspecified()
}
