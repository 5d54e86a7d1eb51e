//! Who sends a request: the identity by which rates, places and shares of the batch are counted.

use std::{net::IpAddr, sync::Arc};

/// Whom a request is counted for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Client {
    /// The process itself: a caller of the library.
    #[default]
    Local,
    /// The holder of a key, by the key's name.
    Key(Arc<str>),
    /// Whoever is behind an address, where no key is asked for: an IPv4 address, or the first of an
    /// IPv6 network of 64 bits, all of which one subscriber has.
    Network(IpAddr),
}

impl Client {
    /// The client at an address.
    pub fn at(address: IpAddr) -> Self {
        const NETWORK: u128 = !(u64::MAX as u128);
        Self::Network(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::from((address.to_bits() & NETWORK).to_be_bytes()),
            address => address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_subscriber_are_one_client() {
        let at = |text: &str| Client::at(text.parse().unwrap());
        assert_eq!(at("2001:db8:1:2::1"), at("2001:db8:1:2:ffff::9"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"), "IPv4 on an IPv6 socket");
    }
}
