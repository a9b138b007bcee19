//! Where the broker is, as people write it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// Used when neither the builder nor the environment names an address.
pub(crate) const DEFAULT: &str = "dns:///127.0.0.1:50051";

/// The address of a broker, or of several behind one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// All addresses that a name has.
    Name {
        /// Without the brackets of an IPv6 address.
        host: String,
        port: u16,
    },
}

impl Address {
    /// Parses `unix:///absolute/path`, `dns:///host:port` or `host:port`; the error names the forms.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("the broker's address {text:?} is not unix:///absolute/path, dns:///host:port or host:port");
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') && path.len() > 1 { Ok(Self::Unix(path.into())) } else { Err(wrong()) };
        }
        let name = text.strip_prefix("dns:///").unwrap_or(text);
        let (host, port) = name.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0);
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(inner) => inner.parse::<IpAddr>().ok().filter(IpAddr::is_ipv6).map(|_| inner),
            None => is_host(host).then_some(host),
        };
        match (host, port) {
            (Some(host), Some(port)) => Ok(Self::Name { host: host.to_owned(), port }),
            _ => Err(wrong()),
        }
    }

    /// Whether what is sent there without TLS stays on this machine.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Name { host, .. } => {
                host.eq_ignore_ascii_case("localhost")
                    || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }

    /// The host that the broker's certificate is expected to name.
    #[cfg(feature = "tls")]
    pub(crate) fn host(&self) -> &str {
        match self {
            Self::Unix(_) => "localhost",
            Self::Name { host, .. } => host,
        }
    }

    /// What stands as `:authority` in calls.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Name { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Name { host, port } => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix://{}", path.display()),
            Self::Name { .. } => write!(formatter, "dns:///{}", self.authority()),
        }
    }
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(host: &str, port: u16) -> Address {
        Address::Name { host: host.to_owned(), port }
    }

    #[test]
    fn the_three_forms_are_understood() {
        assert_eq!(Address::parse("unix:///run/broker.sock"), Ok(Address::Unix("/run/broker.sock".into())));
        assert_eq!(Address::parse("dns:///broker.internal:443"), Ok(name("broker.internal", 443)));
        assert_eq!(Address::parse("127.0.0.1:50051"), Ok(name("127.0.0.1", 50051)));
        assert_eq!(Address::parse("dns:///[::1]:1"), Ok(name("::1", 1)));
        assert_eq!(Address::parse("[::1]:1").map(|address| address.authority()), Ok("[::1]:1".to_owned()));
    }

    #[test]
    fn anything_else_is_refused_with_a_message_that_names_the_forms() {
        for text in [
            "",
            "broker",
            "broker:",
            ":1",
            "broker:0",
            "broker:70000",
            "unix:",
            "unix:relative",
            "unix://relative",
            "unix:///",
            "https://broker:443",
            "dns://8.8.8.8/broker:1",
            "dns:broker:1",
            "broker:1/path",
            "::1:50051",
            "[broker]:1",
            "a,b:1",
            "user@broker:1",
            "broker :1",
        ] {
            let message = Address::parse(text).expect_err(text);
            for form in ["unix:///absolute/path", "dns:///host:port", "host:port"] {
                assert!(message.contains(form), "{message}");
            }
        }
    }

    #[test]
    fn only_this_machine_is_local() {
        for text in ["unix:///a", "localhost:1", "LOCALHOST:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1"] {
            assert!(Address::parse(text).unwrap().is_local(), "{text}");
        }
        for text in ["broker:1", "10.0.0.1:1", "localhost.example.com:1", "127.0.0.1.example.com:1", "[fe80::1]:1"] {
            assert!(!Address::parse(text).unwrap().is_local(), "{text}");
        }
    }
}
