//! The target of a request, and hosts.

use std::net::Ipv6Addr;

/// The target of a request (RFC 9112 section 3.2).
pub(crate) struct Target<'a> {
    /// Path and query; `*` for the server as a whole; or, for CONNECT, host and port.
    pub(crate) url: String,
    /// The host and port of an absolute target, which take the place of the Host header field.
    pub(crate) authority: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Parses the target of a request with this method; `None` if it is malformed.
    pub(crate) fn parse(method: &str, text: &'a str) -> Option<Target<'a>> {
        if !text.is_ascii() {
            return None;
        }
        let is_relative = match method {
            "CONNECT" => is_host(text.as_bytes()),
            "OPTIONS" if text == "*" => true,
            _ => text.starts_with('/'),
        };
        if is_relative {
            return Some(Target { url: text.to_owned(), authority: None });
        }
        let (scheme, rest) = text.split_once("://").filter(|_| method != "CONNECT")?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let has_host = !authority.is_empty() && !authority.starts_with(':') && is_host(authority.as_bytes());
        let is_http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
        let url = match path {
            "" if method == "OPTIONS" => "*".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            query => format!("/{query}"),
        };
        (has_host && is_http).then_some(Target { url, authority: Some(authority) })
    }
}

/// `uri-host [ ":" port ]` (RFC 9110 section 7.2, RFC 3986 section 3.2.2); either may be empty.
pub(crate) fn is_host(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, ""),
    };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => is_name(host.as_bytes()),
    };
    is_host && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// `*( unreserved / pct-encoded / sub-delims )`, of which an IPv4 address is a case.
fn is_name(mut bytes: &[u8]) -> bool {
    loop {
        bytes = match bytes {
            [] => return true,
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(byte) => rest,
            _ => return false,
        }
    }
}
