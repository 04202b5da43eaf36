//! The settings of the server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::log::Format;

/// The settings of the server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen.
    pub address: SocketAddr,
    /// Keys, one of which each request needs; empty for none.
    pub api_keys: Vec<String>,
    /// Whether listening for other machines without keys is intended.
    pub no_auth: bool,
    /// Origins of web pages that may use the server, such as `http://localhost:3000`; `*` for all.
    pub cors_origins: Vec<String>,
    /// Names by which the server is reached, besides those of the loopback interface and its address.
    pub hosts: Vec<String>,
    /// Whether requests may name models that there are not, if there is only one, which is then used.
    pub any_model_name: bool,
    /// Whether requests have to name a model, as those to OpenAI have.
    pub needs_model_name: bool,
    /// The most bytes of a body.
    pub max_body_bytes: usize,
    /// The most bytes of all bodies that are being read at a time.
    pub max_bodies_bytes: usize,
    /// The most bytes of the headers.
    pub max_header_bytes: usize,
    /// The most headers.
    pub max_headers: usize,
    /// The most messages, tools, texts or other items in a list of a request.
    pub max_items: usize,
    /// The most connections; more wait to be accepted.
    pub max_connections: usize,
    /// How long a client may take for the headers of a request. Idle connections are closed after it, too.
    pub header_timeout: Duration,
    /// How long a client may take for the body of a request.
    pub body_timeout: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub write_timeout: Duration,
    /// How long an answer may take; `None` for as long as it needs.
    pub request_timeout: Option<Duration>,
    /// How often a stream in which nothing comes says that it is alive.
    pub keep_alive: Duration,
    /// How long answers may go on after the server was told to stop.
    pub shutdown_timeout: Duration,
    /// The most answers that `/v1/responses` keeps.
    pub max_stored_responses: usize,
    /// The most bytes of them.
    pub max_stored_bytes: usize,
    /// The form of the log.
    pub log_format: Format,
    /// Whether `/slots` may be asked for.
    pub slots: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            api_keys: Vec::new(),
            no_auth: false,
            cors_origins: Vec::new(),
            hosts: Vec::new(),
            any_model_name: false,
            needs_model_name: false,
            max_body_bytes: 32 << 20,
            max_bodies_bytes: 256 << 20,
            max_header_bytes: 64 << 10,
            max_headers: 100,
            max_items: 10_000,
            max_connections: 4096,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            request_timeout: None,
            keep_alive: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(10),
            max_stored_responses: 1000,
            max_stored_bytes: 256 << 20,
            log_format: Format::Text,
            slots: true,
        }
    }
}

/// Why the server does not start with these settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Anybody in the network could use it.
    #[error("other machines can reach {0}, and no key is set: anybody there could use the server")]
    Open(SocketAddr),
    /// A key that cannot be sent.
    #[error("a key must not be empty, and consists of printable ASCII characters without spaces")]
    Key,
    /// An origin that no browser sends.
    #[error("'{0}' is not the origin of a web page; expected one such as http://localhost:3000, or *")]
    Origin(String),
}

impl Options {
    /// Checks that it is safe to start with them.
    ///
    /// # Errors
    /// If other machines could use the server without a key and that is not said to be intended, or a key or an origin
    /// is not one.
    pub fn check(&self) -> Result<(), OptionsError> {
        if self.api_keys.iter().any(|key| key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(OptionsError::Key);
        }
        let is_origin = |origin: &str| match origin.split_once("://") {
            Some(("http" | "https", host)) => !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']),
            _ => origin == "*",
        };
        if let Some(wrong) = self.cors_origins.iter().find(|origin| !is_origin(origin)) {
            return Err(OptionsError::Origin(wrong.clone()));
        }
        if !self.address.ip().is_loopback() && self.api_keys.is_empty() && !self.no_auth {
            return Err(OptionsError::Open(self.address));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_for_other_machines_needs_a_key_or_the_word_that_it_needs_none() {
        let at = |address: &str| Options { address: address.parse().unwrap(), ..Options::default() };
        let key = |options: Options, key: &str| Options { api_keys: vec![key.to_string()], ..options };
        assert!(at("127.0.0.1:0").check().is_ok() && at("[::1]:0").check().is_ok());
        for open in ["0.0.0.0:8080", "192.168.1.2:80", "[::]:80", "[2001:db8::1]:80"] {
            assert_eq!(at(open).check(), Err(OptionsError::Open(open.parse().unwrap())));
            assert!(key(at(open), "k").check().is_ok());
            assert!(Options { no_auth: true, ..at(open) }.check().is_ok());
        }
        for wrong in ["", "a b", "ä", "a\n"] {
            assert_eq!(key(at("127.0.0.1:0"), wrong).check(), Err(OptionsError::Key));
        }
        let origin = |origin: &str| Options { cors_origins: vec![origin.to_string()], ..Options::default() };
        assert!(origin("http://localhost:3000").check().is_ok() && origin("*").check().is_ok());
        for wrong in ["localhost", "http://", "http://a/", "file://x", "null"] {
            assert!(origin(wrong).check().is_err(), "{wrong}");
        }
    }
}
