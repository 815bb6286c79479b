//! Addresses as the operator writes them, parsed into types that cannot be wrong.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// An address with the prefix length of its network, fit to be managed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: Ipv4Addr,
    prefix_length: u8,
}

impl Cidr {
    /// The address.
    pub const fn address(self) -> Ipv4Addr {
        self.address
    }

    /// 1..=32.
    pub const fn prefix_length(self) -> u8 {
        self.prefix_length
    }
}

/// Why what was written is no address that arpwarden can manage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AddressError {
    /// Not an IPv4 address at all.
    Syntax {
        /// What was written.
        text: String,
    },
    /// IPv6; arpwarden is for ARP.
    Ipv6 {
        /// What was written.
        text: String,
    },
    /// No `/LEN`.
    NoPrefixLength {
        /// What was written.
        text: String,
    },
    /// A `/LEN` where the bare address is wanted.
    PrefixLengthNotWanted {
        /// What was written.
        text: String,
    },
    /// `/LEN` is not 1..=32.
    PrefixLength {
        /// What was written.
        text: String,
    },
    /// An address of a class that no host can own.
    Class {
        /// The address.
        address: Ipv4Addr,
        /// The class, with its block.
        class: &'static str,
    },
    /// The first address of its prefix.
    Network {
        /// The address and its prefix length.
        text: String,
    },
    /// The last address of its prefix.
    Broadcast {
        /// The address and its prefix length.
        text: String,
    },
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { text } => write!(f, "'{text}' is not an IPv4 address; write it as 192.0.2.10/24"),
            Self::Ipv6 { text } => write!(f, "'{text}' is an IPv6 address; arpwarden manages IPv4 only"),
            Self::NoPrefixLength { text } => {
                write!(
                    f,
                    "'{text}' has no prefix length; write {text}/24, or {text}/32 for the address alone"
                )
            }
            Self::PrefixLengthNotWanted { text } => {
                write!(f, "'{text}' has a prefix length; this command takes the bare address")
            }
            Self::PrefixLength { text } => write!(f, "the prefix length of '{text}' is not between 1 and 32"),
            Self::Class { address, class } => {
                write!(f, "{address} is {class}: no host can own it; choose another")
            }
            Self::Network { text } => write!(
                f,
                "{text} is the network address of its prefix: no host can own it; check the prefix length"
            ),
            Self::Broadcast { text } => write!(
                f,
                "{text} is the broadcast address of its prefix: no host can own it; check the prefix length"
            ),
        }
    }
}

impl std::error::Error for AddressError {}

/// Parses a bare address of a class that a host can own.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_bare(text: &str) -> Result<Ipv4Addr, AddressError> {
    let address = match text.parse::<Ipv4Addr>() {
        Ok(address) => address,
        Err(_) if text.contains('/') => {
            return Err(AddressError::PrefixLengthNotWanted { text: text.to_owned() });
        }
        Err(_) if text.parse::<std::net::Ipv6Addr>().is_ok() => {
            return Err(AddressError::Ipv6 { text: text.to_owned() });
        }
        Err(_) => return Err(AddressError::Syntax { text: text.to_owned() }),
    };
    match class(address) {
        Some(class) => Err(AddressError::Class { address, class }),
        None => Ok(address),
    }
}

/// The class of an address that no host can own on a link (RFC 6890), if it is one.
const fn class(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("in 0.0.0.0/8, \"this network\" (RFC 1122)"),
        [127, ..] => Some("in 127.0.0.0/8, loopback"),
        [169, 254, ..] => Some("in 169.254.0.0/16, link-local (RFC 3927)"),
        [224..=239, ..] => Some("in 224.0.0.0/4, multicast"),
        [240..=255, ..] => Some("in 240.0.0.0/4, reserved and broadcast"),
        _ => None,
    }
}

impl FromStr for Cidr {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some((address_text, length_text)) = text.split_once('/') else {
            parse_bare(text)?;
            return Err(AddressError::NoPrefixLength { text: text.to_owned() });
        };
        let address = parse_bare(address_text)?;
        let digits = !length_text.is_empty() && length_text.bytes().all(|b| b.is_ascii_digit());
        let prefix_length = match length_text.parse::<u8>() {
            Ok(length) if digits && (1..=32).contains(&length) => length,
            Ok(_) | Err(_) => return Err(AddressError::PrefixLength { text: text.to_owned() }),
        };
        // A /31 and a /32 have neither a network nor a broadcast address (RFC 3021).
        if prefix_length < 31 {
            let host = u32::MAX >> prefix_length;
            match u32::from(address) & host {
                0 => return Err(AddressError::Network { text: text.to_owned() }),
                all if all == host => return Err(AddressError::Broadcast { text: text.to_owned() }),
                _ => {}
            }
        }
        Ok(Self { address, prefix_length })
    }
}

impl TryFrom<String> for Cidr {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> AddressError {
        text.parse::<Cidr>().expect_err(text)
    }

    #[test]
    fn an_address_with_its_prefix_length_is_taken_as_written() {
        for text in
            ["192.0.2.10/24", "10.0.0.0/31", "10.0.0.1/31", "10.0.0.0/32", "10.255.255.255/32", "1.0.0.1/8"]
        {
            assert_eq!(text.parse::<Cidr>().map(|cidr| cidr.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn every_class_that_no_host_can_own_is_refused_by_name() {
        for text in [
            "0.1.2.3/24",
            "127.0.0.2/8",
            "169.254.3.4/16",
            "224.0.0.1/24",
            "240.0.0.1/24",
            "255.255.255.255/32",
        ] {
            assert!(matches!(error(text), AddressError::Class { .. }), "{text}");
        }
    }

    #[test]
    fn network_and_broadcast_addresses_are_told_apart() {
        assert!(matches!(error("192.0.2.0/24"), AddressError::Network { .. }));
        assert!(matches!(error("192.0.2.255/24"), AddressError::Broadcast { .. }));
        assert!(matches!(error("192.0.2.3/30"), AddressError::Broadcast { .. }));
    }

    #[test]
    fn a_missing_or_wrong_prefix_length_is_named() {
        assert!(matches!(error("192.0.2.10"), AddressError::NoPrefixLength { .. }));
        for text in [
            "192.0.2.10/",
            "192.0.2.10/0",
            "192.0.2.10/33",
            "192.0.2.10/+24",
            "192.0.2.10/24/24",
            "192.0.2.10/x",
        ] {
            assert!(matches!(error(text), AddressError::PrefixLength { .. }), "{text}");
        }
        assert!(matches!(parse_bare("192.0.2.10/24"), Err(AddressError::PrefixLengthNotWanted { .. })));
    }

    #[test]
    fn what_is_no_ipv4_address_is_named_as_such() {
        assert!(matches!(error("2001:db8::1/64"), AddressError::Ipv6 { .. }));
        for text in ["", "web", "192.0.2/24", "192.0.2.256/24", "192.0.2.1.1/24", "/24"] {
            assert!(matches!(error(text), AddressError::Syntax { .. }), "{text}");
        }
    }
}
