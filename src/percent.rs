//! Bytes as text, in which some of them are written as `%XX`.

/// Text in which each byte that is not plain is written as `%XX`. Those that are must be ASCII.
pub(crate) fn encoded(bytes: &[u8], is_plain: impl Fn(u8) -> bool) -> String {
    let encode =
        |&byte: &u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    bytes.iter().map(encode).collect()
}

/// One word of printable ASCII.
pub(crate) fn word(bytes: &[u8]) -> String {
    encoded(bytes, |byte| matches!(byte, b'!'..=b'~') && byte != b'%')
}

/// The bytes that [`word`] has made this of.
pub(crate) fn decoded(text: &str) -> Option<Vec<u8>> {
    let (first, rest) = text.split_once('%').unwrap_or((text, ""));
    let mut bytes = first.as_bytes().to_vec();
    for piece in rest.split('%').filter(|piece| !piece.is_empty()) {
        bytes.push(u8::from_str_radix(piece.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    Some(bytes)
}
