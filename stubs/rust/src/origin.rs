//! Where headers may go: scheme, host and port.

use std::fmt;

use http::Uri;

/// The origin of a URL, by the one parser that also reads the requests: `http::Uri`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    scheme: &'static str,
    host: String,
    port: u16,
}

impl Origin {
    /// Returns the origin of an absolute `http` or `https` URL.
    pub(crate) fn of(url: &Uri) -> Option<Self> {
        let (scheme, usual) = match url.scheme_str()? {
            "http" => ("http", 80),
            "https" => ("https", 443),
            _ => return None,
        };
        let host = url.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        // `http::Uri` gives no port both where there is none and where it is no number.
        let authority = url.authority()?.as_str();
        let bare = authority.rsplit_once('@').map_or(authority, |(_, bare)| bare);
        let port = if bare.len() == host.len() { usual } else { url.port_u16()? };
        Some(Self { scheme, host, port })
    }

    /// What a target is remembered as: its origin. What has none is for the broker to refuse.
    pub(crate) fn text_of(url: &str) -> String {
        if url.is_empty() {
            return String::new();
        }
        let origin = url.parse().ok().and_then(|url| Self::of(&url));
        origin.map_or_else(|| url.to_owned(), |origin| origin.to_string())
    }

    /// Parses the origin that an adapter is made for, for example `https://backend.example.com`.
    #[cfg(feature = "tower")]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let url: Uri = text.parse().ok()?;
        let bare = matches!(url.path(), "" | "/") && url.query().is_none() && !url.authority()?.as_str().contains('@');
        if bare { Self::of(&url) } else { None }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<String> {
        Origin::of(&text.parse().unwrap()).map(|origin| origin.to_string())
    }

    #[test]
    fn scheme_host_and_port_count_and_nothing_else() {
        for text in ["https://a.example", "https://A.example:443/x?y#z", "HTTPS://a.example/", "https://u:p@a.example"]
        {
            assert_eq!(of(text).as_deref(), Some("https://a.example:443"), "{text}");
        }
        assert_eq!(of("http://[::1]:8080/").as_deref(), Some("http://[::1]:8080"));
        assert_eq!(of("http://a.example").as_deref(), Some("http://a.example:80"));
        for text in ["https://a.example:444", "http://a.example:443", "https://b.example", "https://a.example.evil"] {
            assert_ne!(of(text).as_deref(), Some("https://a.example:443"), "{text}");
        }
    }

    #[test]
    fn what_has_no_origin_has_none() {
        for text in ["/path", "a.example:443", "ftp://a.example", "https://a.example:99999"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn a_target_is_its_origin() {
        assert_eq!(Origin::text_of("https://A.example/path?query"), "https://a.example:443");
        assert_eq!(Origin::text_of("no url"), "no url");
        assert_eq!(Origin::text_of(""), "");
    }

    #[cfg(feature = "tower")]
    #[test]
    fn an_adapter_takes_a_bare_origin() {
        assert!(Origin::parse("https://a.example/").is_some());
        for text in ["https://a.example/x", "https://a.example?x", "https://u@a.example", "a.example", ""] {
            assert_eq!(Origin::parse(text), None, "{text}");
        }
    }
}
