//! One parse for everyone: what a request's target means, brought to one form before anybody decides on it.
//! Policy, router and application then see the same text, so that none of them can be talked round with a form
//! that another one reads differently.
//!
//! Pure; refuses to know who asks. Applying it twice gives what applying it once gave.

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

use std::borrow::Cow;
use std::net::Ipv6Addr;

use http::header::HOST;
use http::{HeaderMap, HeaderValue};

/// What becomes of an encoded slash or backslash (`%2F`, `%5C`) in a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EncodedSlash {
    /// The request is refused: whether it divides elements is a matter of taste (CVE-2021-29492). Default.
    #[default]
    Refuse,
    /// It stays encoded and divides nothing. For applications that take it as data.
    Keep,
}

/// Why a target is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedTarget {
    /// Not beginning with `/`.
    #[error("the path does not begin with a slash")]
    Relative,
    /// `%` without two hexadecimal digits.
    #[error("a percent sign in the path is not followed by two hexadecimal digits")]
    Escape,
    /// `%2F` or `%5C`.
    #[error("the path has an encoded slash or backslash")]
    EncodedSlash,
    /// NUL, a line end or another control character, plain or encoded.
    #[error("the path has a control character")]
    Control,
    /// Bytes beyond ASCII that are not encoded.
    #[error("the path has characters beyond ASCII that are not percent-encoded")]
    NotAscii,
    /// An authority that is no plain `host` or `host:port`.
    #[error("the authority is not a host with or without a port")]
    Authority,
}

/// Brings a path (without its query) to its normal form: dot segments resolved, with `;` parameters or without;
/// runs of slashes merged; `\` read as `/`; what need not be encoded in a path decoded (letters, digits and
/// `-._~!$&'()*+,;=:@`), and the other escapes in upper case (RFC 3986 section 6.2.2, and Istio's MERGE_SLASHES). An
/// ordinary path costs one look along it.
///
/// `%3A` and `:` are one, though RFC 3986 lets them differ: applications decode both to the same, so a rule for one of
/// them must not be blind to the other.
///
/// # Errors
/// The path has no single meaning; see [`MalformedTarget`].
pub fn normalize_path(path: &str, slash: EncodedSlash) -> Result<Cow<'_, str>, MalformedTarget> {
    if is_plain(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path.as_bytes(), slash)?;
    let normal = resolve(&decoded);
    Ok(if normal == path { Cow::Borrowed(path) } else { Cow::Owned(normal) })
}

/// Decodes in a path, or a part of one, the escapes that its normal form has decoded, and changes nothing else: what a
/// rule says, in the words of the requests that it is compared with.
pub fn unescape_path(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        match escaped(after.as_bytes()) {
            Some(value) if needs_no_escape(value) => out.push(value.into()),
            Some(value) => push_escape(&mut out, value),
            None => {
                out.push('%');
                rest = after;
                continue;
            }
        }
        rest = &after[2..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The first `Host`. By a walk: it is nearly always the first of few headers, and a look-up costs as much as ten of them.
#[inline]
pub fn host(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.iter().find(|(name, _)| **name == HOST).map(|(_, value)| value)
}

/// Brings an authority to its normal form: a name in lower case and without the dot at its end, an IPv4 address, or an IPv6
/// address in brackets in its shortest form; each with or without a port, which has no leading zeros. A port stays, that of
/// the scheme too: rules and applications name it. Names consist of letters, digits, `-`, `.`, `_` and `~`, and no label of
/// one is empty. User information, zones and escapes are refused. An ordinary authority costs one look along it.
///
/// # Errors
/// It is anything else.
pub fn normalize_authority(authority: &str) -> Result<Cow<'_, str>, MalformedTarget> {
    let v6 = authority.strip_prefix('[').map(|inside| {
        let (address, _) = inside.split_once(']')?;
        Some((address.len() + 2, address.parse::<Ipv6Addr>().ok()?))
    });
    let (end, is_plain, v6) = match v6 {
        Some(v6) => v6.map(|(end, address)| (end, false, Some(address))),
        None => name(authority.as_bytes()).map(|(end, is_plain)| (end, is_plain, None)),
    }
    .ok_or(MalformedTarget::Authority)?;
    let (host, rest) = authority.split_at(end);
    let port = match rest.strip_prefix(':') {
        Some(port) if port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()) => port,
        None if rest.is_empty() => "",
        Some(_) | None => return Err(MalformedTarget::Authority),
    };
    if is_plain && (rest.is_empty() || !port.is_empty() && !port.starts_with('0')) {
        return Ok(Cow::Borrowed(authority));
    }
    let port = port.trim_start_matches('0');
    let mut normal = match v6 {
        Some(address) => format!("[{address}]"),
        None => host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(),
    };
    if !port.is_empty() {
        normal.extend([":", port]);
    }
    Ok(if normal == authority { Cow::Borrowed(authority) } else { Cow::Owned(normal) })
}

/// An authority without its port; `None` if it has none.
pub(crate) fn without_port(authority: &str) -> Option<&str> {
    let (host, port) = authority.rsplit_once(':')?;
    // A bare IPv6 address has several colons and no port.
    (port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']'))).then_some(host)
}

/// Where a name at the beginning ends, and whether it is in normal form. One walk, for this is asked of every request.
fn name(authority: &[u8]) -> Option<(usize, bool)> {
    // `a.test.` is a full name; `a.test..` is what a rule for `a.test` does not expect and a resolver may take for it.
    let (mut before, mut lower, mut end) = (b'.', true, authority.len());
    for (at, &b) in authority.iter().enumerate() {
        match b {
            b':' => {
                end = at;
                break;
            }
            b'.' if before == b'.' => return None,
            b'-' | b'.' | b'_' | b'~' => {}
            b'A'..=b'Z' => lower = false,
            _ if b.is_ascii_alphanumeric() => {}
            _ => return None,
        }
        before = b;
    }
    (end > 0).then_some((end, lower && before != b'.'))
}

/// Whether a path is in normal form by the look of it. All of it is looked at, without a branch for each byte: nearly
/// always it is.
fn is_plain(path: &[u8]) -> bool {
    let (mut any, mut pairs, mut before) = (0, 0, 0);
    for &b in path {
        let kind = KINDS[usize::from(b)];
        any |= kind;
        pairs |= before << 1 & kind;
        before = kind;
    }
    any & ODD == 0 && pairs & BEHIND_SLASH == 0 && path.first() == Some(&b'/')
}

/// What bytes are in a path.
static KINDS: [u8; 256] = {
    let mut kinds = [ODD; 256];
    let mut b = b'!';
    while b <= b'~' {
        kinds[b as usize] = match b {
            b'%' | b'\\' => ODD,
            b'/' => SLASH | BEHIND_SLASH,
            b'.' => BEHIND_SLASH,
            _ => 0,
        };
        b += 1;
    }
    kinds
};
/// Whatever stands around it, it needs a closer look.
const ODD: u8 = 1;
const SLASH: u8 = 2;
/// It needs one behind a slash: the next bit, for they are compared by a shift.
const BEHIND_SLASH: u8 = SLASH << 1;

fn decode(path: &[u8], slash: EncodedSlash) -> Result<String, MalformedTarget> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let [b, tail @ ..] = rest {
        rest = tail;
        match *b {
            b'%' => {
                let value = escaped(tail).ok_or(MalformedTarget::Escape)?;
                rest = &tail[2..];
                match value {
                    0..0x20 | 0x7f => return Err(MalformedTarget::Control),
                    b'/' | b'\\' if slash == EncodedSlash::Refuse => return Err(MalformedTarget::EncodedSlash),
                    _ if needs_no_escape(value) => out.push(value.into()),
                    _ => push_escape(&mut out, value),
                }
            }
            b'\\' => out.push('/'),
            0..=0x20 | 0x7f => return Err(MalformedTarget::Control),
            0x80.. => return Err(MalformedTarget::NotAscii),
            other => out.push(other.into()),
        }
    }
    if out.starts_with('/') { Ok(out) } else { Err(MalformedTarget::Relative) }
}

/// The byte that two hexadecimal digits at the beginning stand for.
fn escaped(digits: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let [high, low, ..] = digits else { return None };
    Some(digit(*high)? << 4 | digit(*low)?)
}

/// The characters of a path element: unreserved ones, sub-delimiters, `:` and `@` (RFC 3986, `pchar`).
pub(crate) fn needs_no_escape(value: u8) -> bool {
    value.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&value)
}

fn push_escape(out: &mut String, value: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.extend(['%', HEX[usize::from(value >> 4)].into(), HEX[usize::from(value & 15)].into()]);
}

/// Removes dot segments and empty ones; `..` at the root stays there.
fn resolve(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut open = true;
    for segment in path.split('/').skip(1) {
        let name = segment.split(';').next().unwrap_or_default();
        open = true;
        match name {
            "." => {}
            ".." => drop(kept.pop()),
            _ if segment.is_empty() => {}
            _ => {
                kept.push(segment);
                open = false;
            }
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if open {
        out.push('/');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(path: &str) -> Result<String, MalformedTarget> {
        normalize_path(path, EncodedSlash::Refuse).map(Cow::into_owned)
    }

    #[test]
    fn paths_come_to_one_form() {
        for (path, want) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/public/../admin", "/admin"),
            ("/public/./admin", "/public/admin"),
            ("/public/%2e%2e/admin", "/admin"),
            ("/public/%2E./admin", "/admin"),
            ("/../../admin", "/admin"),
            ("/admin/..", "/"),
            ("/admin/.", "/admin/"),
            ("/a/..;/admin", "/admin"),
            ("/a/..;x=1/admin", "/admin"),
            ("/a/.;x/admin", "/a/admin"),
            ("//admin", "/admin"),
            ("/a///b//", "/a/b/"),
            ("/public\\admin", "/public/admin"),
            ("/public\\..\\admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/a%7eb", "/a~b"),
            ("/admin%23x", "/admin%23x"),
            ("/a%3ab", "/a:b"),
            ("/a%40b%21%24%26%27%28%29%2a%2b%2c%3d", "/a@b!$&'()*+,="),
            ("/public/..%3bx/admin", "/admin"),
            ("/a%5bb", "/a%5Bb"),
            ("/%2561dmin", "/%2561dmin"),
            ("/%c0%ae%c0%ae/admin", "/%C0%AE%C0%AE/admin"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/admin;x", "/admin;x"),
            ("/ADMIN", "/ADMIN"),
        ] {
            assert_eq!(normal(path).as_deref(), Ok(want), "{path}");
        }
    }

    #[test]
    fn paths_of_two_meanings_are_refused() {
        for (path, why) in [
            ("", MalformedTarget::Relative),
            ("pkg.Svc/Method", MalformedTarget::Relative),
            ("*", MalformedTarget::Relative),
            ("/admin%2fusers", MalformedTarget::EncodedSlash),
            ("/%5cadmin", MalformedTarget::EncodedSlash),
            ("/public%2f..%2fadmin", MalformedTarget::EncodedSlash),
            ("/admin%00", MalformedTarget::Control),
            ("/admin%0d%0aX: y", MalformedTarget::Control),
            ("/a\u{7f}", MalformedTarget::Control),
            ("/%", MalformedTarget::Escape),
            ("/%2", MalformedTarget::Escape),
            ("/%2%35", MalformedTarget::Escape),
            ("/%+1", MalformedTarget::Escape),
            ("/админ", MalformedTarget::NotAscii),
        ] {
            assert_eq!(normal(path), Err(why), "{path}");
        }
        // The opt-out: it stays data, in one spelling.
        let keep = |path| normalize_path(path, EncodedSlash::Keep).map(Cow::into_owned);
        assert_eq!(keep("/a%2fb/../c%5C").as_deref(), Ok("/c%5C"));
        assert_eq!(keep("/public%2f..%2fadmin").as_deref(), Ok("/public%2F..%2Fadmin"));
    }

    #[test]
    fn a_rules_path_is_put_in_the_words_of_requests() {
        for (rule, want) in
            [("/a%3ab", "/a:b"), ("/a%5bb", "/a%5Bb"), ("/a/.", "/a/."), ("/%2", "/%2"), ("/%%41", "/%A")]
        {
            assert_eq!(unescape_path(rule), want, "{rule}");
        }
    }

    #[test]
    fn an_authority_is_a_host_with_or_without_a_port_in_one_form() {
        for (given, normal) in [
            ("a.test", "a.test"),
            ("A.test:80", "a.test:80"),
            ("a_b.test.", "a_b.test"),
            ("a.TEST.:0080", "a.test:80"),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("[::1]", "[::1]"),
            ("[0:0::1]:80", "[::1]:80"),
            ("[FE80::A]:", "[fe80::a]"),
            ("a:", "a"),
            ("a:0", "a"),
            ("xn--e1afmkfd.test", "xn--e1afmkfd.test"),
        ] {
            let got = normalize_authority(given);
            assert_eq!(got.as_deref(), Ok(normal), "{given}");
            assert_eq!(matches!(got, Ok(Cow::Borrowed(_))), given == normal, "{given}");
            assert_eq!(normalize_authority(normal).as_deref(), Ok(normal));
        }
        for (authority, host) in
            [("a.test:80", Some("a.test")), ("[::1]:80", Some("[::1]")), ("[::1]", None), ("a", None)]
        {
            assert_eq!(without_port(authority), host, "{authority}");
        }
        for bad in [
            "",
            ":80",
            "u@a.test",
            "a.test@b.test",
            "a%2etest",
            "[fe80::1%25eth0]:80",
            "[::1",
            "[::1]x",
            "fe80::1",
            "a.test:x",
            "a.test:123456",
            "a test",
            "a.test/b",
            "a,b",
            "приклад.test",
            "secret.test..",
            "secret..test",
            ".secret.test",
            ".",
            "..",
            "..:80",
        ] {
            assert_eq!(normalize_authority(bad), Err(MalformedTarget::Authority), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn normalizing_twice_is_normalizing_once(
            pieces in proptest::collection::vec(
                proptest::sample::select(vec![
                    "/", "\\", ".", "..", ";", "%2e", "%2F", "%5c", "%25", "%41", "%c0", "a", "admin", "%3b", "?", "=", "%7e", "%3A", ":", "%40",
                ]),
                0..24,
            ),
            keep in any::<bool>(),
        ) {
            let path = format!("/{}", pieces.concat());
            let slash = if keep { EncodedSlash::Keep } else { EncodedSlash::Refuse };
            if let Ok(once) = normalize_path(&path, slash) {
                let twice = normalize_path(&once, slash);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
                prop_assert!(!once.contains("//") && !once.contains("/../") && !once.contains("/./"), "{}", once);
                prop_assert!(once.starts_with('/') && !once.contains('\\'));
            }
        }

        #[test]
        fn no_text_makes_it_panic(path in "\\PC*") {
            let _ = unescape_path(&path);
            let _ = normalize_path(&path, EncodedSlash::Keep);
            if let Ok(once) = normalize_authority(&path) {
                let twice = normalize_authority(&once);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
            }
        }
    }
}
