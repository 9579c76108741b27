//! Values that several kinds share: durations, quantities, percentages, names, visibility, string
//! matches, port protocols.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use mesh_core::policy::{Pattern, PerMillion, StringMatch, StringMatcher};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

use super::check::Check;
pub(crate) use crate::source::is_label;

/// A scalar that may be written as text or as a number (Kubernetes IntOrString, quantities).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loose(pub(crate) String);

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor)
    }
}

struct LooseVisitor;

impl Visitor<'_> for LooseVisitor {
    type Value = Loose;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or text")
    }

    fn visit_i64<E>(self, value: i64) -> Result<Loose, E> {
        Ok(Loose(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Loose, E> {
        Ok(Loose(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Loose, E> {
        Ok(Loose(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Loose, E> {
        Ok(Loose(value.to_owned()))
    }
}

/// Reads Go's duration grammar (`1h2m3.5s`, `300ms`); negative ones are refused.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write it like 10s, 250ms or 1m30s");
    if text.starts_with('-') {
        return Err(format!("{text:?} is negative"));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let nanos: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(wrong()),
        };
        total = total.checked_add(scaled(number, nanos).ok_or_else(wrong)?).ok_or_else(wrong)?;
        rest = tail;
    }
    // Go's durations end at 2^63 nanoseconds, 292 years.
    let total = u64::try_from(total).ok().filter(|total| *total <= i64::MAX as u64).ok_or_else(wrong)?;
    Ok(Duration::from_nanos(total))
}

/// A decimal number times `unit`, cut to a whole number. At most 18 digits on either side.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.len() <= 18 && s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    Some(whole * unit + part * unit / 10u128.pow(u32::try_from(fraction.len()).ok()?))
}

/// Reads a Kubernetes quantity in units of a tenth of a thousandth (Linkerd's resolution for weights):
/// `900m` is 9000, `1` is 10,000.
pub(crate) fn quantity(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is not a quantity; write it like 900m, 1 or 0.5");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    if text.starts_with('-') {
        return Err(format!("{text:?} is negative"));
    }
    // In billionths first, so that the small suffixes keep their value.
    let unit: u128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => 1_000_000_000,
        "k" => 1_000_000_000_000,
        "Ki" => 1_024_000_000_000,
        "M" => 1_000_000_000_000_000,
        "Mi" => 1_048_576_000_000_000,
        _ => return Err(wrong()),
    };
    let billionths = scaled(number.trim_start_matches('+'), unit).ok_or_else(wrong)?;
    u32::try_from(billionths / 100_000).map_err(|_| format!("{text:?} is too large for a weight"))
}

/// An Istio percentage: `{value: 0.1}`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PercentSpec {
    #[serde(default)]
    value: f64,
}

/// Reads a percentage from 0 to 100; one that is above 0 must be at least 0.0001, xDS' resolution.
pub(crate) fn percent(spec: &PercentSpec) -> Result<PerMillion, String> {
    let value = spec.value;
    if value > 0.0 && value < 0.0001 {
        return Err(format!("{value} percent is too small; the least is 0.0001"));
    }
    PerMillion::from_percent(value).map_err(|error| error.reason)
}

/// Istio's StringMatch as written.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct StringMatchSpec {
    pub(crate) exact: Option<String>,
    pub(crate) prefix: Option<String>,
    pub(crate) regex: Option<String>,
}

/// A StringMatch: `None` inside means "present" (no member given, or the regex `*`).
pub(crate) fn string_match(spec: &StringMatchSpec, check: &mut Check<'_>, path: &str) -> Option<Option<StringMatch>> {
    match (&spec.exact, &spec.prefix, &spec.regex) {
        (None, None, None) => Some(None),
        (Some(text), None, None) => Some(Some(StringMatch::Exact(text.clone()))),
        (None, Some(text), None) if text.is_empty() => {
            check.error(&format!("{path}.prefix"), "an empty prefix matches everything; leave the match out instead");
            None
        }
        (None, Some(text), None) => Some(Some(StringMatch::Prefix(text.clone()))),
        (None, None, Some(text)) if text == "*" => Some(None),
        (None, None, Some(text)) => pattern(text, check, &format!("{path}.regex")).map(|p| Some(StringMatch::Regex(p))),
        _ => {
            check.error(path, "only one of exact, prefix and regex may be given");
            None
        }
    }
}

/// A StringMatch that must have a value.
pub(crate) fn string_matcher(spec: &StringMatchSpec, check: &mut Check<'_>, path: &str) -> Option<StringMatcher> {
    let Some(pattern) = string_match(spec, check, path)? else {
        check.error(path, "one of exact, prefix and regex is needed");
        return None;
    };
    Some(StringMatcher { pattern, ignore_case: false })
}

/// Reads a regular expression.
pub(crate) fn pattern(text: &str, check: &mut Check<'_>, path: &str) -> Option<Pattern> {
    let read = check.patterns.read(text);
    check.take(path, read.map_err(|error| error.reason))
}

/// Checks a DNS name of one or more labels, without regard to case; `_` is let through, as in SRV names.
pub(crate) fn is_dns_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|part| is_label(&part.to_ascii_lowercase().replace('_', "a")))
}

/// Checks a host that may begin with a wildcard label: `*`, `*.example.com`, `reviews`.
pub(crate) fn is_host(text: &str) -> bool {
    text == "*" || is_dns_name(text.strip_prefix("*.").or_else(|| text.strip_prefix("*-")).unwrap_or(text))
}

/// Checks a port number of any width.
pub(crate) fn port(number: i64) -> Result<u16, String> {
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| format!("{number} is not a port; use 1 to 65535"))
}

/// Labels as `MESH_LABELS` has them.
pub(crate) fn labels_in_words(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if pairs.is_empty() { "(none)".to_owned() } else { pairs.join(",") }
}

/// Who may see an object (Istio `exportTo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ExportTo {
    /// Everybody: `*`, and the default.
    All,
    /// Nobody: `~`.
    Nobody,
    /// These namespaces; `.` has become the object's own.
    Namespaces(BTreeSet<String>),
}

impl ExportTo {
    /// Reads a list, reporting what is wrong with it.
    pub(crate) fn read(list: &[String], check: &mut Check<'_>, path: &str) -> Self {
        let own = check.document().namespace.clone();
        let mut namespaces = BTreeSet::new();
        for (i, entry) in list.iter().enumerate() {
            let path = format!("{path}[{i}]");
            match entry.as_str() {
                "*" | "~" if list.len() > 1 => check.error(&path, format!("{entry:?} stands alone or not at all")),
                "." | "*" | "~" => {}
                name if is_label(name) => {}
                name => check.error(&path, format!("{name:?} is not a namespace, '.', '*' or '~'")),
            }
            let name = if entry == "." { own.clone() } else { entry.clone() };
            if !namespaces.insert(name) {
                check.error(&path, format!("{entry:?} is listed twice"));
            }
        }
        match list {
            [] => Self::All,
            list if list.iter().any(|e| e == "*") => Self::All,
            list if list.iter().any(|e| e == "~") => Self::Nobody,
            _ => Self::Namespaces(namespaces),
        }
    }

    /// Whether a client in `namespace` sees the object.
    pub(crate) fn visible_to(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Nobody => false,
            Self::Namespaces(names) => names.contains(namespace),
        }
    }

    /// Which tier of visibility a client of `namespace` sees it in: 0 private, 1 exported by name, 2 public.
    pub(crate) fn tier(&self, namespace: &str, own: &str) -> u8 {
        match self {
            Self::Namespaces(names) if own == namespace && names.len() == 1 && names.contains(own) => 0,
            Self::Namespaces(_) => 1,
            _ => 2,
        }
    }
}

/// What is spoken on a port (Istio's protocol words).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PortProtocol {
    /// HTTP/1.1, and gRPC-Web, which is HTTP/1.1 towards the server.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// TLS begun by the application; HTTP inside.
    Https,
    /// TLS begun by the application.
    Tls,
    /// Bytes: `tcp`, `mongo`, `redis`, `mysql` and the well-known ports.
    Tcp,
    /// Datagrams.
    Udp,
    /// Not said: the caller knows whether it speaks HTTP.
    Unspecified,
}

impl PortProtocol {
    /// Reads one of Istio's protocol words.
    pub(crate) fn word(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().as_str() {
            "http" | "grpc-web" => Self::Http,
            "http2" => Self::Http2,
            "grpc" => Self::Grpc,
            "https" => Self::Https,
            "tls" => Self::Tls,
            "tcp" | "mongo" | "redis" | "mysql" => Self::Tcp,
            "udp" => Self::Udp,
            _ => return None,
        })
    }

    /// Decides the protocol of a Kubernetes port: `appProtocol`, then the name up to its first `-`, then
    /// well-known numbers.
    pub(crate) fn of_port(app_protocol: Option<&str>, name: &str, number: u16, transport: &str) -> Self {
        if transport.eq_ignore_ascii_case("UDP") {
            return Self::Udp;
        }
        let from_app = app_protocol.and_then(|word| match word {
            "kubernetes.io/h2c" => Some(Self::Http2),
            "kubernetes.io/ws" => Some(Self::Http),
            "kubernetes.io/wss" => Some(Self::Https),
            other => Self::word(other),
        });
        let from_name = || {
            if name.starts_with("grpc-web") {
                Some(Self::Http)
            } else {
                Self::word(name.split('-').next().unwrap_or(""))
            }
        };
        from_app.or_else(from_name).unwrap_or(match number {
            25 | 53 | 3306 | 27017 => Self::Tcp,
            _ => Self::Unspecified,
        })
    }

    /// Whether HTTP routes apply to the port. An unspecified one counts: whoever calls it through an HTTP
    /// client speaks HTTP.
    pub(crate) fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::Unspecified)
    }

    /// Whether HTTP/2 is spoken.
    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}
