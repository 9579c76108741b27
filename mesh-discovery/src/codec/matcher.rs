//! Conditions on texts, headers and query parameters.

use envoy_types::pb::envoy::config::route::v3::{self as xds, header_matcher, query_parameter_matcher};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatchAndSubstitute, RegexMatcher, StringMatcher as StringProto, string_matcher::MatchPattern,
};
use envoy_types::pb::envoy::r#type::v3::Int64Range;
use mesh_core::policy::{
    CookieMatcher, HeaderKey, HeaderMatch, HeaderMatcher, Pattern, QueryMatch, QueryMatcher, StringMatch, StringMatcher,
};

use super::report::{At, Report};

/// A pattern.
pub(super) fn regex(pattern: &Pattern) -> RegexMatcher {
    RegexMatcher { regex: pattern.as_str().to_owned(), ..Default::default() }
}

/// Reads a pattern.
pub(super) fn read_regex(proto: &RegexMatcher, at: &At<'_>, report: &mut Report) -> Option<Pattern> {
    report.pattern(&at.field("regex"), &proto.regex)
}

/// A find-and-replace.
pub(super) fn substitution(pattern: &Pattern, text: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute { pattern: Some(regex(pattern)), substitution: text.to_owned() }
}

/// Reads a find-and-replace.
pub(super) fn read_substitution(
    proto: &RegexMatchAndSubstitute,
    at: &At<'_>,
    report: &mut Report,
) -> Option<(Pattern, String)> {
    let Some(pattern) = &proto.pattern else {
        report.problem(&at.field("pattern"), "a pattern is required");
        return None;
    };
    Some((read_regex(pattern, &at.field("pattern"), report)?, proto.substitution.clone()))
}

/// A text condition.
pub(super) fn string(matcher: &StringMatcher) -> StringProto {
    let pattern = match &matcher.pattern {
        StringMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        StringMatch::Prefix(text) => MatchPattern::Prefix(text.clone()),
        StringMatch::Suffix(text) => MatchPattern::Suffix(text.clone()),
        StringMatch::Contains(text) => MatchPattern::Contains(text.clone()),
        StringMatch::Regex(pattern) => MatchPattern::SafeRegex(regex(pattern)),
    };
    StringProto { ignore_case: matcher.ignore_case, match_pattern: Some(pattern) }
}

/// Reads a text condition.
pub(super) fn read_string(proto: &StringProto, at: &At<'_>, report: &mut Report) -> Option<StringMatcher> {
    let pattern = match &proto.match_pattern {
        Some(MatchPattern::Exact(text)) => StringMatch::Exact(text.clone()),
        Some(MatchPattern::Prefix(text)) => StringMatch::Prefix(text.clone()),
        Some(MatchPattern::Suffix(text)) => StringMatch::Suffix(text.clone()),
        Some(MatchPattern::Contains(text)) => StringMatch::Contains(text.clone()),
        Some(MatchPattern::SafeRegex(regex)) => StringMatch::Regex(read_regex(regex, &at.field("safe_regex"), report)?),
        Some(MatchPattern::Custom(_)) => {
            report.problem(&at.field("custom"), "custom string matchers are not supported");
            return None;
        }
        None => {
            report.problem(at, "a pattern is required");
            return None;
        }
    };
    Some(StringMatcher { pattern, ignore_case: proto.ignore_case })
}

/// Reads a list of text conditions.
pub(super) fn read_strings(protos: &[StringProto], at: &At<'_>, name: &str, report: &mut Report) -> Vec<StringMatcher> {
    protos.iter().enumerate().filter_map(|(i, m)| read_string(m, &at.item(name, i), report)).collect()
}

/// A header condition.
pub(super) fn header(matcher: &HeaderMatcher) -> xds::HeaderMatcher {
    use header_matcher::HeaderMatchSpecifier as Specifier;
    let specifier = match &matcher.value {
        HeaderMatch::Text(text) => Specifier::StringMatch(string(text)),
        HeaderMatch::Range { start, end } => Specifier::RangeMatch(Int64Range { start: *start, end: *end }),
        HeaderMatch::Present(present) => Specifier::PresentMatch(*present),
    };
    xds::HeaderMatcher {
        name: matcher.name.as_str().to_owned(),
        invert_match: matcher.invert,
        treat_missing_header_as_empty: matcher.treat_missing_as_empty,
        header_match_specifier: Some(specifier),
    }
}

/// Reads a header condition; none given means present, as in Envoy.
pub(super) fn read_header(proto: &xds::HeaderMatcher, at: &At<'_>, report: &mut Report) -> Option<HeaderMatcher> {
    use header_matcher::HeaderMatchSpecifier as Specifier;
    let text = |pattern| HeaderMatch::Text(StringMatcher { pattern, ignore_case: false });
    let name = report.checked(&at.field("name"), HeaderKey::parse(&proto.name));
    let value = match &proto.header_match_specifier {
        Some(Specifier::ExactMatch(want)) => Some(text(StringMatch::Exact(want.clone()))),
        Some(Specifier::PrefixMatch(want)) => Some(text(StringMatch::Prefix(want.clone()))),
        Some(Specifier::SuffixMatch(want)) => Some(text(StringMatch::Suffix(want.clone()))),
        Some(Specifier::ContainsMatch(want)) => Some(text(StringMatch::Contains(want.clone()))),
        Some(Specifier::SafeRegexMatch(want)) => {
            read_regex(want, &at.field("safe_regex_match"), report).map(|p| text(StringMatch::Regex(p)))
        }
        Some(Specifier::StringMatch(want)) => {
            read_string(want, &at.field("string_match"), report).map(HeaderMatch::Text)
        }
        Some(Specifier::RangeMatch(range)) => Some(HeaderMatch::Range { start: range.start, end: range.end }),
        Some(Specifier::PresentMatch(present)) => Some(HeaderMatch::Present(*present)),
        None => Some(HeaderMatch::Present(true)),
    };
    Some(HeaderMatcher {
        name: name?,
        value: value?,
        invert: proto.invert_match,
        treat_missing_as_empty: proto.treat_missing_header_as_empty,
    })
}

/// Reads a list of header conditions.
pub(super) fn read_headers(
    protos: &[xds::HeaderMatcher],
    at: &At<'_>,
    name: &str,
    report: &mut Report,
) -> Vec<HeaderMatcher> {
    protos.iter().enumerate().filter_map(|(i, m)| read_header(m, &at.item(name, i), report)).collect()
}

/// A query condition.
pub(super) fn query(matcher: &QueryMatcher) -> xds::QueryParameterMatcher {
    use query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    let specifier = match &matcher.value {
        QueryMatch::Text(text) => Specifier::StringMatch(string(text)),
        QueryMatch::Present(present) => Specifier::PresentMatch(*present),
    };
    xds::QueryParameterMatcher { name: matcher.name.clone(), query_parameter_match_specifier: Some(specifier) }
}

/// Reads a query condition; none given means present, as in Envoy.
pub(super) fn read_query(proto: &xds::QueryParameterMatcher, at: &At<'_>, report: &mut Report) -> Option<QueryMatcher> {
    use query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    if proto.name.is_empty() {
        report.problem(&at.field("name"), "a name is required");
    }
    let value = match &proto.query_parameter_match_specifier {
        Some(Specifier::StringMatch(text)) => QueryMatch::Text(read_string(text, &at.field("string_match"), report)?),
        Some(Specifier::PresentMatch(present)) => QueryMatch::Present(*present),
        None => QueryMatch::Present(true),
    };
    Some(QueryMatcher { name: proto.name.clone(), value })
}

/// A cookie condition.
pub(super) fn cookie(matcher: &CookieMatcher) -> xds::CookieMatcher {
    xds::CookieMatcher {
        name: matcher.name.clone(),
        string_match: Some(string(&matcher.value)),
        invert_match: matcher.invert,
    }
}

/// Reads a cookie condition.
pub(super) fn read_cookie(proto: &xds::CookieMatcher, at: &At<'_>, report: &mut Report) -> Option<CookieMatcher> {
    if proto.name.is_empty() {
        report.problem(&at.field("name"), "a name is required");
    }
    let Some(text) = &proto.string_match else {
        report.problem(&at.field("string_match"), "a condition is required");
        return None;
    };
    let value = read_string(text, &at.field("string_match"), report)?;
    Some(CookieMatcher { name: proto.name.clone(), value, invert: proto.invert_match })
}

/// An exact text condition, by hand.
pub(super) fn exact(text: &str) -> StringProto {
    StringProto { match_pattern: Some(MatchPattern::Exact(text.to_owned())), ..Default::default() }
}

/// A pattern condition, by hand.
pub(super) fn safe_regex(regex: String) -> StringProto {
    let regex = RegexMatcher { regex, ..Default::default() };
    StringProto { match_pattern: Some(MatchPattern::SafeRegex(regex)), ..Default::default() }
}
