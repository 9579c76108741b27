//! Who counts as one where places are given out by address.

use std::net::{IpAddr, Ipv6Addr};

/// The host that an address is counted for: of IPv6 all of one /64, which one host can have whole, are one. An IPv4 address
/// written as IPv6 is itself.
///
/// ```
/// use mesh_core::limit::host;
/// let of = |address: &str| host(address.parse().unwrap());
/// assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
/// assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
/// assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
/// assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
/// ```
pub fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into()
        }
        address => address,
    }
}
