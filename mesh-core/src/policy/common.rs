//! Small validated values that listeners, routes and clusters share.

use std::fmt;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use regex_automata::dfa::{StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax::Config as Syntax;
use regex_syntax::hir::{Hir, HirKind, Look, Repetition};
use serde::{Serialize, Serializer};

use crate::context::RETRIED;

/// A policy value that cannot be accepted: which field, why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InvalidPolicy {
    /// Path of the field inside its resource, such as `virtual_hosts[0].routes[2].match.regex`.
    pub field: String,
    /// Why it is refused.
    pub reason: String,
}

impl InvalidPolicy {
    /// An error at `field`.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }

    /// The same error seen from one level further out.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = if self.field.is_empty() { outer.to_owned() } else { format!("{outer}.{}", self.field) };
        self
    }
}

/// What a share is counted in (the denominator of Envoy's `FractionalPercent`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareUnit {
    /// Hundredths.
    #[default]
    Hundred,
    /// Ten-thousandths.
    TenThousand,
    /// Millionths.
    Million,
}

impl ShareUnit {
    /// So many of this unit; more than everything is everything.
    pub const fn share(self, count: u32) -> PerMillion {
        PerMillion::new(count.saturating_mul(self.millionths()))
    }

    /// How many of this unit a share is, rounded down.
    pub const fn count(self, share: PerMillion) -> u32 {
        share.get() / self.millionths()
    }

    const fn millionths(self) -> u32 {
        match self {
            Self::Hundred => 10_000,
            Self::TenThousand => 100,
            Self::Million => 1,
        }
    }
}

/// A share in millionths (Envoy's `FractionalPercent` brought to one denominator): 0 to 1,000,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PerMillion(u32);

impl PerMillion {
    /// Everything.
    pub const ALL: Self = Self(1_000_000);
    /// Nothing.
    pub const NONE: Self = Self(0);

    /// Takes millionths; more than a million is cut to a million, as Envoy does.
    pub const fn new(millionths: u32) -> Self {
        Self(if millionths > 1_000_000 { 1_000_000 } else { millionths })
    }

    /// Takes a percentage from 0 to 100.
    ///
    /// # Errors
    /// The number is not finite, negative or above 100.
    pub fn from_percent(percent: f64) -> Result<Self, InvalidPolicy> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(InvalidPolicy::new("percentage", format!("{percent} is not between 0 and 100")));
        }
        // In range by the check above, so the conversion keeps the value.
        Ok(Self((percent * 10_000.0).round() as u32))
    }

    /// The value in millionths.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The share of a limit, rounded down; one at least, unless the limit or the share is nothing.
    pub const fn of(self, limit: u32) -> u32 {
        if self.0 >= 1_000_000 || limit == 0 {
            return limit;
        }
        // Below the limit, so it fits.
        let share = (limit as u64 * self.0 as u64 / 1_000_000) as u32;
        if share == 0 && self.0 > 0 { 1 } else { share }
    }

    /// Whether a uniform draw from `0..1_000_000` falls inside the share.
    pub const fn hit(self, draw: u32) -> bool {
        draw < self.0
    }
}

/// A regular expression (RE2 syntax) that compiles within bounds and is matched against the **whole**
/// input, as Envoy's `safe_regex` and Istio's `regex` are.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Pattern(Arc<str>);

/// Longest accepted pattern, in bytes. Istio refuses longer ones too.
pub const MAX_PATTERN_LEN: usize = 1024;
/// Bound on a pattern as a table, in bytes.
const MAX_TABLE: usize = 16 << 10;
/// Bound on a compiled pattern, in bytes, so that `(a{1000}){1000}` is an error and not an outage.
const MAX_COMPILED: usize = 1 << 20;

impl Pattern {
    /// Checks a pattern.
    ///
    /// # Errors
    /// It is empty, longer than [`MAX_PATTERN_LEN`], not valid syntax, or too large once compiled.
    pub fn new(text: &str) -> Result<Self, InvalidPolicy> {
        Self::measured(text).map(|(pattern, _)| pattern)
    }

    /// Checks a pattern and says how many bytes it takes once compiled.
    fn measured(text: &str) -> Result<(Self, usize), InvalidPolicy> {
        if text.is_empty() || text.len() > MAX_PATTERN_LEN {
            return Err(InvalidPolicy::new("regex", format!("a pattern has 1 to {MAX_PATTERN_LEN} bytes")));
        }
        // First by itself: `a)|(b` is no pattern, but would be one between our brackets.
        let compiled = compile(text)
            .and_then(|_| compile(&whole(text)))
            .map_err(|error| InvalidPolicy::new("regex", in_words(text, &error)))?;
        Ok((Self(text.into()), compiled.memory_usage()))
    }

    /// A pattern for just this text: RE2's special characters escaped.
    #[must_use]
    pub fn escape(text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            if r"\.+*?()|[]{}^$".contains(c) {
                out.push('\\');
            }
            out.push(c);
        }
        out
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The compiled form; matches must cover the whole input.
    #[must_use]
    pub fn compiled(&self) -> regex_automata::meta::Regex {
        compile(&whole(&self.0)).expect("checked when the pattern was made")
    }

    /// The compiled form of what `form` makes of the pattern, which must not be many times as large; matches must cover the
    /// whole input.
    pub(crate) fn compiled_as(&self, form: impl FnOnce(Hir) -> Hir) -> regex_automata::meta::Regex {
        let parsed = regex_syntax::parse(&self.0).expect("checked when the pattern was made");
        let whole = Hir::concat(vec![Hir::look(Look::Start), form(parsed), Hir::look(Look::End)]);
        builder(None).build_from_hir(&whole).expect("it has no bound to exceed")
    }

    /// The compiled form as one table, several times as fast as [`compiled`](Self::compiled); matches must cover the
    /// whole input, so a search has to be anchored. `None` if it would be large.
    #[must_use]
    pub fn table(&self) -> Option<dense::DFA<Vec<u32>>> {
        self.table_with(Syntax::new())
    }

    /// The same for texts of ASCII alone: classes such as `\w` are small then.
    pub(crate) fn ascii_table(&self) -> Option<dense::DFA<Vec<u32>>> {
        // One that names characters beyond cannot be read in this way.
        self.table_with(Syntax::new().unicode(false).utf8(false)).or_else(|| self.table())
    }

    /// Of each place in it where one of several alternatives is taken, what is left of the pattern with each of them alone:
    /// as tables, for texts of ASCII. At most so many.
    pub(crate) fn ascii_alternatives(&self, most: usize) -> impl Iterator<Item = Option<dense::DFA<Vec<u32>>>> {
        let parse = |unicode: bool| {
            let mut parser = regex_syntax::ParserBuilder::new();
            parser.unicode(unicode).utf8(unicode).build().parse(&self.0).ok().map(|parsed| (parsed, unicode))
        };
        let (parsed, unicode) = parse(false).or_else(|| parse(true)).unwrap_or((Hir::empty(), true));
        let mut alone = Vec::new();
        alternatives(&parsed, &mut alone, most, &|hir| hir);
        alone.into_iter().map(move |hir| {
            let whole = Hir::concat(vec![Hir::look(Look::Start), hir, Hir::look(Look::End)]);
            let nfa = thompson::Compiler::new()
                .configure(thompson::Config::new().utf8(unicode).nfa_size_limit(Some(MAX_COMPILED)))
                .build_from_hir(&whole);
            dense::Builder::new().configure(small()).build_from_nfa(&nfa.ok()?).ok()
        })
    }

    fn table_with(&self, syntax: Syntax) -> Option<dense::DFA<Vec<u32>>> {
        let nfa = thompson::Config::new().utf8(syntax.get_utf8());
        dense::Builder::new().configure(small()).syntax(syntax).thompson(nfa).build(&whole(&self.0)).ok()
    }

    /// The compiled form that finds matches anywhere in the input, for rewriting.
    #[must_use]
    pub fn searcher(&self) -> regex_automata::meta::Regex {
        compile(&self.0).expect("checked when the pattern was made")
    }
}

/// Room for the patterns of one resource: [`Pattern::new`] bounds each of them, and this how many there are and how many bytes
/// they take together once compiled, so that a resource of many is an error and not an outage.
#[derive(Clone, Debug)]
pub struct PatternRoom {
    patterns: usize,
    bytes: usize,
}

/// Most patterns in one resource.
pub const MAX_PATTERNS: usize = 5_000;
/// Bytes that the patterns of one resource may take once compiled.
const MAX_PATTERN_BYTES: usize = 64 << 20;

impl Default for PatternRoom {
    fn default() -> Self {
        Self { patterns: MAX_PATTERNS, bytes: MAX_PATTERN_BYTES }
    }
}

impl PatternRoom {
    /// Checks one more pattern of the resource.
    ///
    /// # Errors
    /// It is none ([`Pattern::new`]), or there is no room for it, nor for any after it: those are not looked at any more.
    pub fn read(&mut self, text: &str) -> Result<Pattern, InvalidPolicy> {
        let full = || {
            let bytes = MAX_PATTERN_BYTES >> 20;
            let limit = format!("at most {MAX_PATTERNS} regular expressions, and {bytes} MiB of them once compiled");
            InvalidPolicy::new("regex", format!("one resource may have {limit}; divide it, or write simpler ones"))
        };
        if self.patterns == 0 {
            return Err(full());
        }
        let read = Pattern::measured(text);
        // To see that one is too large costs as much as the largest that is not.
        let bytes = read.as_ref().map_or(MAX_COMPILED, |(_, bytes)| *bytes);
        let fits = bytes <= self.bytes;
        self.bytes -= bytes.min(self.bytes);
        self.patterns = if fits { self.patterns - 1 } else { 0 };
        let (pattern, _) = read?;
        if fits { Ok(pattern) } else { Err(full()) }
    }
}

/// Why a pattern is none, in one line.
fn in_words(text: &str, error: &regex_automata::meta::BuildError) -> String {
    if let Some(limit) = error.size_limit() {
        return format!("the regular expression {text:?} is too large: compiled it exceeds {limit} bytes");
    }
    let said = error.syntax_error().map_or_else(|| error.to_string(), ToString::to_string);
    // A syntax error shows the pattern, marks the place below it and ends in what is wrong.
    let what = said.lines().last().unwrap_or_default().trim_start_matches("error: ");
    format!("{text:?} is not a regular expression: {what}")
}

/// Of a table that is small, and made in little time.
fn small() -> dense::Config {
    let limits = dense::Config::new().dfa_size_limit(Some(MAX_TABLE)).determinize_size_limit(Some(4 * MAX_TABLE));
    limits.start_kind(StartKind::Anchored)
}

/// Of each alternation in a part of a pattern, the pattern with each alternative alone. `within` puts what stands in the place
/// of the part into the pattern.
fn alternatives(part: &Hir, into: &mut Vec<Hir>, most: usize, within: &dyn Fn(Hir) -> Hir) {
    match part.kind() {
        HirKind::Alternation(all) => {
            for one in all.iter().take(most.saturating_sub(into.len())) {
                into.push(within(one.clone()));
            }
            all.iter().for_each(|one| alternatives(one, into, most, within));
        }
        HirKind::Concat(all) => {
            for (at, one) in all.iter().enumerate() {
                alternatives(one, into, most, &|hir| {
                    let mut all = all.clone();
                    all[at] = hir;
                    within(Hir::concat(all))
                });
            }
        }
        HirKind::Capture(capture) => alternatives(&capture.sub, into, most, within),
        // As often as it has to be there, and once if it need not.
        HirKind::Repetition(repetition) => alternatives(&repetition.sub, into, most, &|hir| {
            within(Hir::repetition(Repetition { min: repetition.min.max(1), sub: Box::new(hir), ..repetition.clone() }))
        }),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => {}
    }
}

fn whole(text: &str) -> String {
    format!("^(?:{text})$")
}

fn compile(text: &str) -> Result<regex_automata::meta::Regex, Box<regex_automata::meta::BuildError>> {
    builder(Some(MAX_COMPILED)).build(text).map_err(Box::new)
}

fn builder(max: Option<usize>) -> regex_automata::meta::Builder {
    use regex_automata::meta::{Config, Regex};
    let mut builder = Regex::builder();
    builder.configure(Config::new().nfa_size_limit(max).onepass_size_limit(Some(MAX_COMPILED)).dfa(false));
    builder
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.0)
    }
}

/// How a text is compared (`envoy.type.matcher.v3.StringMatcher`, Istio `StringMatch`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StringMatch {
    /// Equal.
    Exact(String),
    /// Begins with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Holds.
    Contains(String),
    /// The whole text matches.
    Regex(Pattern),
}

/// A [`StringMatch`] with its case rule. `ignore_case` has no effect on a regex (gRFC A63).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct StringMatcher {
    /// The comparison.
    pub pattern: StringMatch,
    /// Compare without regard to ASCII case. Default false.
    pub ignore_case: bool,
}

impl StringMatcher {
    /// A case-sensitive exact match.
    pub fn exact(text: impl Into<String>) -> Self {
        Self { pattern: StringMatch::Exact(text.into()), ignore_case: false }
    }
}

impl StringMatcher {
    /// Whether `text` matches. Compiles a regex each time: for the request path use the compiled
    /// matchers.
    pub fn matches(&self, text: &str) -> bool {
        let fold = self.ignore_case;
        let eq = |a: &str, b: &str| if fold { a.eq_ignore_ascii_case(b) } else { a == b };
        match &self.pattern {
            StringMatch::Exact(want) => eq(text, want),
            StringMatch::Prefix(want) => text.get(..want.len()).is_some_and(|head| eq(head, want)),
            StringMatch::Suffix(want) => {
                text.len().checked_sub(want.len()).and_then(|at| text.get(at..)).is_some_and(|tail| eq(tail, want))
            }
            StringMatch::Contains(want) if fold => text.to_ascii_lowercase().contains(&want.to_ascii_lowercase()),
            StringMatch::Contains(want) => text.contains(want.as_str()),
            StringMatch::Regex(pattern) => pattern.compiled().is_match(text),
        }
    }
}

/// One header as policy names it; serialised as its lower-case name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HeaderKey {
    /// An ordinary header.
    Header(HeaderName),
    /// `:method`.
    Method,
    /// `:scheme`.
    Scheme,
    /// `:authority`: the `Host` header or the URI's authority.
    Authority,
    /// `:path`: path with query.
    Path,
}

impl HeaderKey {
    /// Reads a header name or one of the four request pseudo-headers.
    ///
    /// # Errors
    /// The text is not a header name.
    pub fn parse(name: &str) -> Result<Self, InvalidPolicy> {
        Ok(match name {
            ":method" => Self::Method,
            ":scheme" => Self::Scheme,
            ":authority" => Self::Authority,
            ":path" => Self::Path,
            other => Self::Header(
                HeaderName::try_from(other)
                    .map_err(|_| InvalidPolicy::new("name", format!("{other:?} is not a header name")))?,
            ),
        })
    }

    /// The name as xDS writes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Header(name) => name.as_str(),
            Self::Method => ":method",
            Self::Scheme => ":scheme",
            Self::Authority => ":authority",
            Self::Path => ":path",
        }
    }
}

impl Serialize for HeaderKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What happens when an added header is already there (`HeaderValueOption.append_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderAction {
    /// Append a further value (Istio `add`).
    Append,
    /// Replace all values (Istio `set`).
    Overwrite,
    /// Only if absent.
    AddIfAbsent,
    /// Only if present.
    OverwriteIfPresent,
}

/// One header to write. Values are literal; Envoy's `%...%` operators are refused at the door until
/// they are performed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HeaderWrite {
    /// Header to write.
    #[serde(serialize_with = "as_text")]
    pub name: HeaderName,
    /// Its value.
    #[serde(serialize_with = "value_as_text")]
    pub value: HeaderValue,
    /// What to do with values already there.
    pub action: HeaderAction,
}

/// Headers to write and remove in one direction. Removals come first, as in Envoy; then the writes in
/// listed order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct HeaderOps {
    /// Headers to write.
    pub write: Vec<HeaderWrite>,
    /// Headers to remove.
    #[serde(serialize_with = "all_as_text")]
    pub remove: Vec<HeaderName>,
}

impl HeaderOps {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.write.is_empty() && self.remove.is_empty()
    }

    /// Performs the operations.
    pub fn apply(&self, headers: &mut http::HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for op in &self.write {
            let present = headers.contains_key(&op.name);
            match op.action {
                HeaderAction::Append => {
                    headers.append(op.name.clone(), op.value.clone());
                }
                HeaderAction::AddIfAbsent if present => {}
                HeaderAction::OverwriteIfPresent if !present => {}
                HeaderAction::Overwrite | HeaderAction::AddIfAbsent | HeaderAction::OverwriteIfPresent => {
                    headers.insert(op.name.clone(), op.value.clone());
                }
            }
        }
    }
}

/// Header operations of both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct HeaderPolicy {
    /// On the request, before it is sent.
    pub request: HeaderOps,
    /// On the response, before the application sees it.
    pub response: HeaderOps,
}

impl HeaderPolicy {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

fn as_text<S: Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

fn value_as_text<S: Serializer>(value: &HeaderValue, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(value.as_bytes()))
}

fn all_as_text<S: Serializer>(names: &[HeaderName], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(HeaderName::as_str))
}

/// A part of policy that was accepted and is not enforced by this version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Unenforced {
    /// The resource, such as `cluster outbound|9080||reviews.default.svc.cluster.local`.
    pub resource: String,
    /// Path of the field inside the resource.
    pub field: String,
    /// What this means for traffic.
    pub effect: &'static str,
    /// How many fields this stands for: mostly 1, and in the last line of a resource all that are not listed.
    #[serde(skip_serializing_if = "is_one")]
    pub fields: usize,
}

impl Unenforced {
    /// One field.
    pub fn new(resource: impl Into<String>, field: impl Into<String>, effect: &'static str) -> Self {
        Self { resource: resource.into(), field: field.into(), effect, fields: 1 }
    }

    /// So many more fields of a resource, which nobody lists.
    pub fn more(resource: impl Into<String>, fields: usize) -> Self {
        let effect = "they are accepted and not enforced either; so many of one resource are not listed";
        Self { resource: resource.into(), field: format!("and {fields} more"), effect, fields }
    }
}

fn is_one(fields: &usize) -> bool {
    *fields == 1
}

/// Headers with which a hop inside a mesh tells the next one who the peer is: identity (`x-forwarded-client-cert`,
/// CVE-2024-45806; those of RFC 9440; Linkerd's), and Istio's metadata exchange. Here the certificate is the only word about
/// it: a server takes them away before a rule or the application could trust them, and nothing else writes one
/// ([`is_reserved_header`]).
pub const OF_PEER: [&str; 6] = [
    "client-cert",
    "client-cert-chain",
    "l5d-client-id",
    "x-envoy-peer-metadata",
    "x-envoy-peer-metadata-id",
    "x-forwarded-client-cert",
];

/// Whether a header is [`OF_PEER`], also with `_` for `-`: to what reads headers as CGI does it is the same name.
#[inline]
pub fn is_of_peer(name: &HeaderName) -> bool {
    let name = name.as_str();
    OF_PEER.iter().any(|known| is_called(name, known))
}

/// With `_` for `-` or without.
#[inline]
fn is_called(name: &str, known: &str) -> bool {
    let same = |(known, b): (u8, u8)| known == b || (known == b'-' && b == b'_');
    known.len() == name.len() && known.bytes().zip(name.bytes()).all(same)
}

/// Whether neither a token nor an authorizer has a say in a header of a request: those that are fixed
/// ([`is_fixed_header`]), that tell of the peer ([`OF_PEER`]), and the mesh's mark of a retry, also with `_` for `-`.
pub fn is_reserved_header(name: &HeaderName) -> bool {
    is_fixed_header(name) || is_of_peer(name) || is_called(name.as_str(), RETRIED.as_str())
}

/// Whether a header frames a message, is of one hop alone, or says where the message goes. Nothing on the way writes
/// one: what was judged must be what is served.
pub fn is_fixed_header(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "host"
            | "connection"
            | "content-length"
            | "transfer-encoding"
            | "te"
            | "trailer"
            | "upgrade"
            | "keep-alive"
            | "proxy-connection"
            | "http2-settings"
    )
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn removals_come_before_writes() {
        let write =
            |action| HeaderWrite { name: HeaderName::from_static("x"), value: HeaderValue::from_static("new"), action };
        for (action, remove, before, want) in [
            (HeaderAction::Append, false, &[("x", "old")][..], &[("x", "old"), ("x", "new")][..]),
            (HeaderAction::Append, true, &[("x", "old")], &[("x", "new")]),
            (HeaderAction::Overwrite, false, &[("x", "a"), ("x", "b")], &[("x", "new")]),
            (HeaderAction::AddIfAbsent, false, &[("x", "old")], &[("x", "old")]),
            (HeaderAction::AddIfAbsent, true, &[("x", "old")], &[("x", "new")]),
            (HeaderAction::OverwriteIfPresent, false, &[("x", "old")], &[("x", "new")]),
            (HeaderAction::OverwriteIfPresent, false, &[], &[]),
        ] {
            let remove = if remove { vec![HeaderName::from_static("x")] } else { Vec::new() };
            let mut got = headers(before);
            HeaderOps { write: vec![write(action)], remove }.apply(&mut got);
            assert_eq!(got, headers(want), "{action:?} on {before:?}");
        }
    }

    #[test]
    fn a_pattern_that_is_none_is_told_why_in_one_line() {
        for (text, why) in [
            ("(", "\"(\" is not a regular expression: unclosed group"),
            ("a)|(?:b", "\"a)|(?:b\" is not a regular expression: unopened group"),
            ("[a", "\"[a\" is not a regular expression: unclosed character class"),
            ("a{1000}{1000}{1000}", "is too large: compiled it exceeds 1048576 bytes"),
        ] {
            let reason = Pattern::new(text).unwrap_err().reason;
            assert!(reason.ends_with(why) && !reason.contains('\n'), "{reason}");
        }
    }

    #[test]
    fn a_pattern_is_valid_by_itself_and_covers_the_whole_text() {
        for bad in ["", "(", "a)|(?:b", "(a{1000}){1000}", &"a".repeat(MAX_PATTERN_LEN + 1)] {
            assert!(Pattern::new(bad).is_err(), "{bad:.20}");
        }
        for (pattern, text, whole) in
            [("a|ab", "ab", true), ("a", "ab", false), ("^a$", "a", true), ("a", "a\n", false)]
        {
            let pattern = Pattern::new(pattern).unwrap();
            assert_eq!(pattern.compiled().is_match(text), whole, "{pattern:?} {text:?}");
            assert!(pattern.searcher().is_match(text) || text == "ab");
        }
    }

    #[test]
    fn the_patterns_of_one_resource_have_a_common_bound() {
        let mut room = PatternRoom::default();
        assert!(room.read("(").is_err() && room.read("a{10}").is_ok(), "after one that is none there is room");
        // Each of these is within its own bound.
        let large = r"\pL{20}";
        let taken = (0..1000).take_while(|_| room.read(large).is_ok()).count();
        assert!((8..1000).contains(&taken), "{taken}");
        assert!(room.read("a").unwrap_err().reason.contains("64 MiB"), "nor is there room for another one");
        // What is none is not looked at without end either.
        let mut refused = PatternRoom::default();
        assert!((0..100).all(|_| refused.read("(").is_err()) && refused.read("a").is_err());
        // The control: another resource has its own.
        assert!(PatternRoom::default().read(large).is_ok());
    }
}
