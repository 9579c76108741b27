//! Trees of conditions (gRFC A106): `xds.type.matcher.v3.Matcher` ⇄ [`MatcherTree`].
//!
//! Refuses to know what a tree decides about: its ends are read next door, in `composite`.

use std::collections::{BTreeMap, HashMap, HashSet};

use envoy_types::pb::envoy::r#type::matcher::v3::HttpRequestHeaderMatchInput;
use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::predicate::{
    MatchType, PredicateList, SinglePredicate, single_predicate,
};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::{FieldMatcher as FieldProto, Predicate};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_tree::{MatchMap, TreeType};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{
    MatcherList, MatcherTree as TreeProto, MatcherType, OnMatch as OnMatchProto, on_match,
};
use envoy_types::pb::xds::r#type::matcher::v3::{
    RegexMatcher, StringMatcher as TextProto, string_matcher::MatchPattern,
};
use mesh_core::matcher::target_is_met;
use mesh_core::policy::{
    FieldMatcher, HeaderKey, HeaderMatch, HeaderMatcher, MatchPredicate, MatcherRule, MatcherTree, OnMatch,
    StringMatch, StringMatcher,
};

use super::composite::{self, Side, Within};
use super::extension::{self, url};
use super::report::{At, Report};

pub(super) use envoy_types::pb::xds::r#type::matcher::v3::Matcher as Proto;

/// Longest name of a header (gRFC A106).
const LONGEST_NAME: usize = 16_384;

pub(super) fn encode(tree: &MatcherTree) -> Proto {
    let on_no_match = tree.on_no_match.as_ref().map(|end| Box::new(encode_on_match(end)));
    let map = |map: &BTreeMap<String, OnMatch>| MatchMap {
        map: map.iter().map(|(key, end)| (key.clone(), encode_on_match(end))).collect(),
    };
    let of = |input: &HeaderKey, tree_type| {
        MatcherType::MatcherTree(TreeProto { input: Some(encode_input(input)), tree_type: Some(tree_type) })
    };
    let matcher_type = match &tree.rule {
        MatcherRule::List(list) if list.is_empty() => None,
        MatcherRule::List(list) => Some(MatcherType::MatcherList(MatcherList {
            matchers: list
                .iter()
                .map(|field| FieldProto {
                    predicate: Some(encode_predicate(&field.predicate)),
                    on_match: Some(encode_on_match(&field.on_match)),
                })
                .collect(),
        })),
        MatcherRule::Exact { input, map: exact } => Some(of(input, TreeType::ExactMatchMap(map(exact)))),
        MatcherRule::Prefix { input, map: prefix } => Some(of(input, TreeType::PrefixMatchMap(map(prefix)))),
    };
    Proto { on_no_match, matcher_type }
}

fn encode_on_match(end: &OnMatch) -> OnMatchProto {
    let action = |action| {
        let name = "action".to_owned();
        on_match::OnMatch::Action(TypedExtensionConfig { name, typed_config: Some(action) })
    };
    let end = match end {
        OnMatch::Matcher(tree) => on_match::OnMatch::Matcher(Box::new(encode(tree))),
        OnMatch::Skip => action(composite::encode_action(None)),
        OnMatch::Execute(filters) => action(composite::encode_action(Some(filters))),
    };
    OnMatchProto { keep_matching: false, on_match: Some(end) }
}

fn encode_input(key: &HeaderKey) -> TypedExtensionConfig {
    let input = HttpRequestHeaderMatchInput { header_name: key.as_str().to_owned() };
    let input = extension::pack(url::HEADER_INPUT, &input);
    TypedExtensionConfig { name: "request-headers".to_owned(), typed_config: Some(input) }
}

fn encode_predicate(predicate: &MatchPredicate) -> Predicate {
    let all = |list: &[MatchPredicate]| PredicateList { predicate: list.iter().map(encode_predicate).collect() };
    let match_type = match predicate {
        MatchPredicate::Header { input, value } => MatchType::SinglePredicate(SinglePredicate {
            input: Some(encode_input(input)),
            matcher: Some(single_predicate::Matcher::ValueMatch(encode_text(value))),
        }),
        MatchPredicate::And(list) => MatchType::AndMatcher(all(list)),
        MatchPredicate::Or(list) => MatchType::OrMatcher(all(list)),
        MatchPredicate::Not(inner) => MatchType::NotMatcher(Box::new(encode_predicate(inner))),
    };
    Predicate { match_type: Some(match_type) }
}

fn encode_text(text: &StringMatcher) -> TextProto {
    let pattern = match &text.pattern {
        StringMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        StringMatch::Prefix(text) => MatchPattern::Prefix(text.clone()),
        StringMatch::Suffix(text) => MatchPattern::Suffix(text.clone()),
        StringMatch::Contains(text) => MatchPattern::Contains(text.clone()),
        StringMatch::Regex(pattern) => {
            MatchPattern::SafeRegex(RegexMatcher { regex: pattern.as_str().to_owned(), ..Default::default() })
        }
    };
    TextProto { ignore_case: text.ignore_case, match_pattern: Some(pattern) }
}

/// Decodes a tree. How deep protobuf's own limit lets it be is less than what a stack holds.
pub(super) fn decode(proto: &Proto, within: Within, at: &At<'_>, report: &mut Report) -> Option<MatcherTree> {
    read_tree(proto, (within, 1), at, report)
}

/// Where a tree is, and how many it lies in, itself included.
type Place = (Within, usize);

fn read_tree(proto: &Proto, place: Place, at: &At<'_>, report: &mut Report) -> Option<MatcherTree> {
    if place.1 > MatcherTree::MAX_DEPTH {
        let most = MatcherTree::MAX_DEPTH;
        report.problem(at, format!("matchers are nested more than {most} deep (gRFC A106)"));
        return None;
    }
    let otherwise = proto.on_no_match.as_deref().map(|end| read_end(end, place, &at.field("on_no_match"), report));
    let rule = match &proto.matcher_type {
        Some(MatcherType::MatcherList(list)) => read_list(list, place, &at.field("matcher_list"), report),
        Some(MatcherType::MatcherTree(tree)) => read_map(tree, place, &at.field("matcher_tree"), report),
        None if otherwise.is_some() => Some(MatcherRule::List(Vec::new())),
        None => {
            report.problem(at, "matcher_list, matcher_tree or on_no_match is required");
            None
        }
    };
    // An end that is refused is none that is left out.
    let on_no_match = match otherwise {
        Some(end) => Some(end?),
        None => None,
    };
    Some(MatcherTree { rule: rule?, on_no_match })
}

fn read_list(proto: &MatcherList, place: Place, at: &At<'_>, report: &mut Report) -> Option<MatcherRule> {
    if proto.matchers.is_empty() {
        report.problem(&at.field("matchers"), "at least one is required");
        return None;
    }
    let each = proto.matchers.iter().enumerate().map(|(i, field)| {
        let at = at.item("matchers", i);
        let predicate = read_predicate(field.predicate.as_ref(), place, &at.field("predicate"), report);
        let at = at.field("on_match");
        let Some(end) = &field.on_match else {
            report.problem(&at, "it is required");
            return None;
        };
        let on_match = read_end(end, place, &at, report);
        Some(FieldMatcher { predicate: predicate?, on_match: on_match? })
    });
    // All of them are read, so that every problem is told.
    let all: Vec<Option<FieldMatcher>> = each.collect();
    all.into_iter().collect::<Option<_>>().map(MatcherRule::List)
}

fn read_map(proto: &TreeProto, place: Place, at: &At<'_>, report: &mut Report) -> Option<MatcherRule> {
    let input = read_input(proto.input.as_ref(), place.0.side, &at.field("input"), report);
    match &proto.tree_type {
        Some(TreeType::ExactMatchMap(exact)) => {
            let map =
                read_entries(&exact.map, (input.as_ref(), StringMatch::Exact), place, (at, "exact_match_map"), report);
            Some(MatcherRule::Exact { map: map?, input: input? })
        }
        Some(TreeType::PrefixMatchMap(prefix)) => {
            let map = read_entries(
                &prefix.map,
                (input.as_ref(), StringMatch::Prefix),
                place,
                (at, "prefix_match_map"),
                report,
            );
            Some(MatcherRule::Prefix { map: map?, input: input? })
        }
        Some(TreeType::CustomMatch(_)) => {
            report.problem(&at.field("custom_match"), "maps of other kinds are not supported (gRFC A106)");
            None
        }
        None => {
            report.problem(at, "exact_match_map or prefix_match_map is required");
            None
        }
    }
}

fn read_entries(
    proto: &HashMap<String, OnMatchProto>,
    (input, text): (Option<&HeaderKey>, fn(String) -> StringMatch),
    place: Place,
    (at, name): (&At<'_>, &str),
    report: &mut Report,
) -> Option<BTreeMap<String, OnMatch>> {
    if proto.is_empty() {
        report.problem(&at.field(name), "at least one entry is required");
        return None;
    }
    let mut seen = HashSet::new();
    // In the order of the keys, so that reports don't change from one decoding to the next.
    let each = proto.iter().collect::<BTreeMap<_, _>>().into_iter().map(|(key, end)| {
        let at = at.key(name, key);
        if input == Some(&HeaderKey::Authority) && !seen.insert(key.trim_end_matches('.').to_ascii_lowercase()) {
            report.problem(&at, "the same authority is another key, in other letters or with a dot");
        }
        let value = StringMatcher { pattern: text(key.clone()), ignore_case: false };
        let is_met = input.is_some_and(|input| is_met(input, &value, place, &at, report));
        let end = read_end(end, place, &at, report);
        is_met.then_some((key.clone(), end?))
    });
    let all: Vec<Option<_>> = each.collect();
    all.into_iter().collect()
}

fn read_end(proto: &OnMatchProto, place: Place, at: &At<'_>, report: &mut Report) -> Option<OnMatch> {
    if proto.keep_matching {
        report.problem(&at.field("keep_matching"), "a composite filter has one word for each request (gRFC A103)");
    }
    let (within, depth) = place;
    match &proto.on_match {
        Some(on_match::OnMatch::Matcher(tree)) => {
            let tree = read_tree(tree, (within, depth + 1), &at.field("matcher"), report)?;
            Some(OnMatch::Matcher(Box::new(tree)))
        }
        Some(on_match::OnMatch::Action(action)) => {
            let at = at.field("action");
            let Some(config) = &action.typed_config else {
                report.problem(&at.field("typed_config"), "it is required");
                return None;
            };
            composite::decode_action(config, within, &at, report)
        }
        None => {
            report.problem(at, "matcher or action is required");
            None
        }
    }
}

fn read_predicate(proto: Option<&Predicate>, place: Place, at: &At<'_>, report: &mut Report) -> Option<MatchPredicate> {
    match proto.and_then(|proto| proto.match_type.as_ref()) {
        Some(MatchType::SinglePredicate(single)) => read_single(single, place, &at.field("single_predicate"), report),
        Some(MatchType::OrMatcher(list)) => {
            read_predicates(list, place, &at.field("or_matcher"), report).map(MatchPredicate::Or)
        }
        Some(MatchType::AndMatcher(list)) => {
            read_predicates(list, place, &at.field("and_matcher"), report).map(MatchPredicate::And)
        }
        Some(MatchType::NotMatcher(inner)) => {
            let inner = read_predicate(Some(inner), place, &at.field("not_matcher"), report)?;
            Some(MatchPredicate::Not(Box::new(inner)))
        }
        None => {
            report.problem(at, "a condition is required");
            None
        }
    }
}

fn read_predicates(
    proto: &PredicateList,
    place: Place,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Vec<MatchPredicate>> {
    if proto.predicate.is_empty() {
        report.problem(&at.field("predicate"), "at least one is required");
        return None;
    }
    let each = proto.predicate.iter().enumerate();
    let all: Vec<_> = each.map(|(i, p)| read_predicate(Some(p), place, &at.item("predicate", i), report)).collect();
    all.into_iter().collect()
}

fn read_single(proto: &SinglePredicate, place: Place, at: &At<'_>, report: &mut Report) -> Option<MatchPredicate> {
    let input = read_input(proto.input.as_ref(), place.0.side, &at.field("input"), report);
    let value = match &proto.matcher {
        Some(single_predicate::Matcher::ValueMatch(text)) => read_text(text, &at.field("value_match"), report),
        Some(single_predicate::Matcher::CustomMatch(_)) => {
            let reason = "matchers of other kinds, such as CEL, are not supported; value_match is (gRFC A106)";
            report.problem(&at.field("custom_match"), reason);
            None
        }
        None => {
            report.problem(&at.field("value_match"), "it is required");
            None
        }
    };
    let (input, value) = (input?, value?);
    is_met(&input, &value, place, at, report).then_some(MatchPredicate::Header { input, value })
}

/// Whether a request may meet it, of a server, which brings paths to their normal form before it looks at them: an end that
/// none comes to may be the one that shuts.
fn is_met(input: &HeaderKey, value: &StringMatcher, (within, _): Place, at: &At<'_>, report: &mut Report) -> bool {
    if within.side != Side::Server {
        return true;
    }
    let (name, value) = (input.clone(), HeaderMatch::Text(value.clone()));
    let header = HeaderMatcher { name, value, invert: false, treat_missing_as_empty: false };
    report.is_met(at, |effort| target_is_met(&header, effort))
}

fn read_input(proto: Option<&TypedExtensionConfig>, side: Side, at: &At<'_>, report: &mut Report) -> Option<HeaderKey> {
    let Some(config) = proto.and_then(|proto| proto.typed_config.as_ref()) else {
        report.problem(&at.field("typed_config"), "it is required");
        return None;
    };
    let kind = extension::type_of(config);
    if kind != url::HEADER_INPUT {
        let reason = format!("{kind:?} is not supported; HttpRequestHeaderMatchInput is (gRFC A106)");
        report.problem(&at.field("typed_config"), reason);
        return None;
    }
    let input: HttpRequestHeaderMatchInput = composite::unpack(config, at, report)?;
    let (at, name) = (at.field("header_name"), &input.header_name);
    if name.len() >= LONGEST_NAME || name.bytes().any(|b| b.is_ascii_uppercase()) {
        report.problem(&at, "it must be in small letters, and shorter than 16,384 bytes (gRFC A106)");
        return None;
    }
    let key = report.checked(&at, HeaderKey::parse(name))?;
    if matches!(&key, HeaderKey::Header(name) if *name == http::header::TE || name.as_str().ends_with("-bin")) {
        let reason = "the header counts as absent (gRFC A41), whatever a request has there";
        match side {
            // No request would come to an end that may be the one that shuts.
            Side::Server => report.problem(&at, reason),
            Side::Client | Side::Either => report.unenforced(&at, reason),
        }
    }
    Some(key)
}

fn read_text(proto: &TextProto, at: &At<'_>, report: &mut Report) -> Option<StringMatcher> {
    let part = |text: &String, report: &mut Report| {
        if text.is_empty() {
            report.problem(at, "a beginning, an end or a part of a text may not be empty");
        }
        text.clone()
    };
    let pattern = match &proto.match_pattern {
        Some(MatchPattern::Exact(text)) => StringMatch::Exact(text.clone()),
        Some(MatchPattern::Prefix(text)) => StringMatch::Prefix(part(text, report)),
        Some(MatchPattern::Suffix(text)) => StringMatch::Suffix(part(text, report)),
        Some(MatchPattern::Contains(text)) => StringMatch::Contains(part(text, report)),
        Some(MatchPattern::SafeRegex(regex)) => {
            let at = at.field("safe_regex");
            StringMatch::Regex(report.pattern(&at.field("regex"), &regex.regex)?)
        }
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
