//! Where a worker is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// The port of workers, if none is given.
pub const PORT: u16 = 7117;

/// A host and a port: `192.168.1.7`, `desk:7117`, `[fe80::1]:7117`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name, or the number of an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has to be a host and a port, as in 192.168.1.7:{PORT}, desk or [fd00::1]:{PORT}")]
pub struct NoAddress;

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0).ok_or(NoAddress);
        let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']').ok_or(NoAddress)).transpose()? {
            Some((host, rest)) if host.parse::<Ipv6Addr>().is_ok() => match rest.strip_prefix(':') {
                Some(given) => (host, port(given)?),
                None if rest.is_empty() => (host, PORT),
                None => return Err(NoAddress),
            },
            Some(_) => return Err(NoAddress),
            None if text.parse::<Ipv6Addr>().is_ok() => (text, PORT),
            None => match text.split_once(':') {
                Some((host, given)) => (host, port(given)?),
                None => (text, PORT),
            },
        };
        let is_name = |c: char| c.is_alphanumeric() || "-._:".contains(c);
        if host.is_empty() || !host.chars().all(is_name) {
            return Err(NoAddress);
        }
        Ok(Self { host: host.to_string(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Address {
    /// Returns the addresses that the host has, in the system's order.
    ///
    /// # Errors
    /// If the system knows no such host.
    pub fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        Ok((self.host.as_str(), self.port).to_socket_addrs()?.collect())
    }
}

/// Returns whether an address is of this machine or of a private network, the ones that providers share among customers and
/// that virtual networks use included. "All addresses" is not.
///
/// Source: RFC 1918, 3927, 4193, 4291 and 6598.
pub fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || (ip.to_bits() >> 22 == SHARED.to_bits() >> 22)
        }
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => is_private(IpAddr::V4(ip)),
            None => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
        },
    }
}

/// 100.64.0.0/10.
const SHARED: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_perhaps_a_port() {
        let parsed = |text: &str| text.parse::<Address>().map(|address| (address.host.clone(), address.port));
        assert_eq!(parsed("desk"), Ok(("desk".into(), PORT)));
        assert_eq!(parsed("192.168.1.7:80"), Ok(("192.168.1.7".into(), 80)));
        assert_eq!(parsed("fd00::1"), Ok(("fd00::1".into(), PORT)));
        assert_eq!(parsed("[fd00::1]"), Ok(("fd00::1".into(), PORT)));
        assert_eq!(parsed("[fd00::1]:9"), Ok(("fd00::1".into(), 9)));
        for wrong in
            ["", ":80", "a:", "a:0", "a:99999", "a:b", "[a]:1", "[fd00::1", "[::1]x", "http://a", "a b", "a:1:2"]
        {
            assert_eq!(parsed(wrong), Err(NoAddress), "{wrong}");
        }
        for text in ["desk:7117", "[fd00::1]:9"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("127.0.0.1:5".parse::<Address>().unwrap().resolve().unwrap(), ["127.0.0.1:5".parse().unwrap()]);
    }

    #[test]
    fn private_networks_are_told_from_the_rest() {
        let private = |text: &str| is_private(text.parse().unwrap());
        for ip in ["127.0.0.1", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.0.9", "169.254.1.1"] {
            assert!(private(ip), "{ip}");
        }
        for ip in ["100.64.0.1", "100.127.255.255", "::1", "fd12::1", "fe80::1", "::ffff:192.168.0.1"] {
            assert!(private(ip), "{ip}");
        }
        for ip in
            ["0.0.0.0", "8.8.8.8", "172.32.0.1", "100.63.255.255", "100.128.0.0", "::", "2001:db8::1", "::ffff:8.8.8.8"]
        {
            assert!(!private(ip), "{ip}");
        }
    }
}
