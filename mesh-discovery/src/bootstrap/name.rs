//! Names of xDS resources: plain ones, and URIs of the `xdstp` scheme (xRFC TP1, gRFC A47):
//! `xdstp://authority/type/id?parameters`.
//!
//! Two spellings of one `xdstp` name are one resource: the order of the context parameters and needless
//! percent-encoding mean nothing. Compare and store names in the form that [`normalise`] gives.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

pub(super) const SCHEME: &str = "xdstp://";

/// A name of the `xdstp` scheme, its parts percent-decoded. Shown in its canonical spelling.
///
/// ```
/// use mesh_discovery::bootstrap::name::XdstpName;
/// let name: XdstpName = "xdstp://a/envoy.config.listener.v3.Listener/web?zone=b&env=prod#x".parse()?;
/// assert_eq!((name.kind.as_str(), name.id.as_str()), ("envoy.config.listener.v3.Listener", "web"));
/// assert_eq!(name.to_string(), "xdstp://a/envoy.config.listener.v3.Listener/web?env=prod&zone=b");
/// # Ok::<(), mesh_discovery::bootstrap::name::InvalidName>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct XdstpName {
    /// Who speaks for the resource; a key of the bootstrap's `authorities`. May be empty.
    pub authority: String,
    /// Type of the resource without `type.googleapis.com/`, such as `envoy.config.listener.v3.Listener`.
    pub kind: String,
    /// The rest of the path.
    pub id: String,
    /// Context parameters; of several with one key the last counts.
    pub parameters: BTreeMap<String, String>,
}

impl FromStr for XdstpName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = |reason| InvalidName { input: text.chars().take(256).collect(), reason };
        let decoded = |part| decode(part).ok_or_else(|| invalid("its percent-encoding does not give UTF-8"));
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| invalid("it must begin with xdstp://"))?;
        // A directive (`#…`) says how to fetch the resource, not which one it is.
        let rest = rest.split_once('#').map_or(rest, |(name, _)| name);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = path.split_once('/').ok_or_else(|| invalid("a type and an id are needed"))?;
        let (kind, id) = path.split_once('/').ok_or_else(|| invalid("an id is needed after the type"))?;
        if kind.is_empty() || id.is_empty() {
            return Err(invalid("neither type nor id may be empty"));
        }
        let mut parameters = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            parameters.insert(decoded(key)?, decoded(value)?);
        }
        Ok(Self { authority: decoded(authority)?, kind: decoded(kind)?, id: decoded(id)?, parameters })
    }
}

impl fmt::Display for XdstpName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = encode(&self.kind, is_segment);
        write!(f, "{SCHEME}{}/{kind}/{}", encode(&self.authority, is_segment), encode_path(&self.id))?;
        for (i, (key, value)) in self.parameters.iter().enumerate() {
            let mark = if i == 0 { '?' } else { '&' };
            write!(f, "{mark}{}={}", encode(key, is_parameter), encode(value, is_parameter))?;
        }
        Ok(())
    }
}

/// Whether a name is of the `xdstp` scheme.
pub fn is_xdstp(name: &str) -> bool {
    name.starts_with(SCHEME)
}

/// The one spelling of a resource's name. A plain name, and an `xdstp` name that is malformed, is its own.
pub fn normalise(name: &str) -> Cow<'_, str> {
    if !is_xdstp(name) {
        return Cow::Borrowed(name);
    }
    match name.parse::<XdstpName>() {
        Ok(parsed) => {
            let canonical = parsed.to_string();
            if canonical == name { Cow::Borrowed(name) } else { Cow::Owned(canonical) }
        }
        Err(_) => Cow::Borrowed(name),
    }
}

/// The authority of an `xdstp` name, which may be empty; `None` for a plain name.
pub fn authority(name: &str) -> Option<Cow<'_, str>> {
    let rest = name.strip_prefix(SCHEME)?;
    let raw = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if !raw.contains('%') {
        return Some(Cow::Borrowed(raw));
    }
    Some(decode(raw).map_or(Cow::Borrowed(raw), Cow::Owned))
}

/// The type that an `xdstp` name says; `None` for a plain name and for one that is malformed.
pub(crate) fn kind(name: &str) -> Option<String> {
    is_xdstp(name).then(|| name.parse().ok().map(|name: XdstpName| name.kind)).flatten()
}

/// `template` with `%s` replaced by `text`, percent-encoded where the template gives an `xdstp` name.
pub(super) fn fill(template: &str, text: &str) -> String {
    if !is_xdstp(template) {
        return template.replace("%s", text);
    }
    let name = template.replace("%s", &encode_path(text));
    normalise(&name).into_owned()
}

/// The template of an authority that has none of its own (gRFC A47).
pub(super) fn default_template(authority: &str) -> String {
    format!("{SCHEME}{}/envoy.config.listener.v3.Listener/%s", encode(authority, is_segment))
}

fn encode_path(text: &str) -> Cow<'_, str> {
    encode(text, |b| is_segment(b) || b == b'/')
}

/// Percent-encodes every byte that is not `plain`.
fn encode(text: &str, plain: impl Fn(u8) -> bool) -> Cow<'_, str> {
    if text.bytes().all(&plain) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            for half in [byte >> 4, byte & 15] {
                encoded.push(char::from_digit(half.into(), 16).unwrap_or('0').to_ascii_uppercase());
            }
        }
    }
    Cow::Owned(encoded)
}

/// `None` if a percent sign is not followed by two hexadecimal digits or the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
            decoded.push(high << 4 | low);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// RFC 3986's `pchar`, what may stand in a segment of a path.
fn is_segment(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte)
}

fn is_parameter(byte: u8) -> bool {
    (is_segment(byte) || b"/?".contains(&byte)) && !b"&=".contains(&byte)
}

/// A text that is not a name of the `xdstp` scheme.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not an xdstp resource name: {reason}")]
pub struct InvalidName {
    input: String,
    reason: &'static str,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn x3_two_spellings_of_an_xdstp_name_are_one() {
        for (spelling, canonical) in [
            ("reviews:9080", "reviews:9080"),
            ("outbound|80||a.b", "outbound|80||a.b"),
            ("xdstp://a/t/x", "xdstp://a/t/x"),
            ("xdstp:///t/x", "xdstp:///t/x"),
            ("xdstp://a/t/x?", "xdstp://a/t/x"),
            ("xdstp://a/t/x?b=2&a=1", "xdstp://a/t/x?a=1&b=2"),
            ("xdstp://a/t/x?a=1&b=2&a=3", "xdstp://a/t/x?a=3&b=2"),
            ("xdstp://a/t/x?flag", "xdstp://a/t/x?flag="),
            ("xdstp://a/t/x#directive", "xdstp://a/t/x"),
            ("xdstp://a/t/%78/y%2fz", "xdstp://a/t/x/y/z"),
            ("xdstp://a/t/%5b::1%5d:80", "xdstp://a/t/%5B::1%5D:80"),
            ("xdstp://a/t/[::1]:80", "xdstp://a/t/%5B::1%5D:80"),
            ("xdstp://%61/%74/x?%62=%26%3d", "xdstp://a/t/x?b=%26%3D"),
            // Malformed names are left alone: they are nobody's.
            ("xdstp://a/t", "xdstp://a/t"),
            ("xdstp://a/t/", "xdstp://a/t/"),
            ("xdstp://a//x", "xdstp://a//x"),
            ("xdstp://", "xdstp://"),
            ("xdstp://a/t/%7", "xdstp://a/t/%7"),
            ("xdstp://a/t/%+7", "xdstp://a/t/%+7"),
            ("xdstp://a/t/%ff", "xdstp://a/t/%ff"),
        ] {
            assert_eq!(normalise(spelling), canonical, "{spelling}");
            assert_eq!(normalise(canonical), canonical);
        }
    }

    #[test]
    fn x18_a_name_gives_its_authority_and_type() {
        let name: XdstpName = "xdstp://a%3a1/envoy.config.cluster.v3.Cluster/x/y?k=v".parse().unwrap();
        assert_eq!((name.authority.as_str(), name.kind.as_str()), ("a:1", "envoy.config.cluster.v3.Cluster"));
        assert_eq!((name.id.as_str(), name.parameters["k"].as_str()), ("x/y", "v"));
        assert_eq!(authority("xdstp://a%3a1/t/x").as_deref(), Some("a:1"));
        assert_eq!(authority("xdstp:///t/x").as_deref(), Some(""));
        assert_eq!(authority("xdstp://a?b").as_deref(), Some("a"));
        assert_eq!(authority("cluster_0"), None);
        assert!(is_xdstp("xdstp://") && !is_xdstp("xdstp:a") && !is_xdstp("cluster_0"));
    }

    proptest! {
        #[test]
        fn any_text_has_one_normal_form(text in any::<String>(), tail in "[a/%?&=#2fF]{0,24}") {
            for name in [text.clone(), format!("xdstp://{text}"), format!("xdstp://a/t/{tail}")] {
                let once = normalise(&name).into_owned();
                prop_assert_eq!(normalise(&once), once.as_str());
                let _ = authority(&name);
            }
        }

        #[test]
        fn what_is_shown_is_read_back(
            authority in any::<String>(), kind in "[^/?#%]{1,9}", id in "[^?#%]{1,9}",
            parameters in prop::collection::btree_map(".{0,4}", ".{0,4}", 0..3),
        ) {
            // A slash in an authority or a type cannot be told from the one that ends it.
            let authority = authority.replace('/', "");
            let name = XdstpName { authority, kind, id, parameters };
            prop_assert_eq!(name.to_string().parse::<XdstpName>().unwrap(), name);
        }
    }
}
