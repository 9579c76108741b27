//! The condition of a profile's route, brought to "any of these route matches".
//!
//! A route match says one path, a set of methods and conditions on headers, all of which must hold. So a
//! condition is first brought into a sum of products, its negations moved down to the single matchers;
//! what a match has no field for (a further path, a negated path or method) becomes a condition on
//! `:path` or `:method`.

use std::collections::BTreeSet;

use mesh_core::policy::{
    HeaderKey, HeaderMatch, HeaderMatcher, PathMatch, Pattern, PatternRoom, RouteMatch, StringMatch, StringMatcher,
};
use regex_syntax::hir::{Class, ClassBytes, ClassBytesRange, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look};
use serde::Deserialize;

use crate::model::check::Check;
use crate::model::values::pattern;

/// Most matches one condition may expand to.
const MAX_ALTERNATIVES: usize = 64;
/// Deepest nesting.
const MAX_DEPTH: usize = 16;
/// More ranges than this are written as ASCII alone: a path carries other characters escaped.
const MAX_RANGES: usize = 16;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConditionSpec {
    method: Option<String>,
    path_regex: Option<String>,
    all: Option<Vec<ConditionSpec>>,
    any: Option<Vec<ConditionSpec>>,
    not: Option<Box<ConditionSpec>>,
}

/// Checks a condition.
pub(super) fn matches(spec: &ConditionSpec, check: &mut Check<'_>, path: &str) -> Option<Vec<RouteMatch>> {
    let products = expand(spec, false, check, path, 0)?;
    if products.is_empty() {
        check.error(path, "the parts contradict each other: nothing ever matches");
        return None;
    }
    products.iter().map(|product| product.route_match(check, path)).collect()
}

/// Matchers that must all hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Product {
    /// One of these; `None` = any.
    methods: Option<BTreeSet<String>>,
    not_methods: BTreeSet<String>,
    paths: Vec<Pattern>,
    not_paths: Vec<Pattern>,
}

fn expand(
    spec: &ConditionSpec,
    negated: bool,
    check: &mut Check<'_>,
    path: &str,
    depth: usize,
) -> Option<Vec<Product>> {
    if depth > MAX_DEPTH {
        check.error(path, "nested too deeply");
        return None;
    }
    // Each part is a sum of products; the parts of a condition must all hold.
    let mut parts = Vec::new();
    if let Some(method) = &spec.method {
        let set = BTreeSet::from([method.to_ascii_uppercase()]);
        parts.push(vec![match negated {
            true => Product { not_methods: set, ..Product::default() },
            false => Product { methods: Some(set), ..Product::default() },
        }]);
    }
    if let Some(regex) = &spec.path_regex {
        // Anchored at both ends by Linkerd; a pattern always covers the whole path.
        let list = vec![pattern(regex, check, &format!("{path}.pathRegex"))?];
        parts.push(vec![match negated {
            true => Product { not_paths: list, ..Product::default() },
            false => Product { paths: list, ..Product::default() },
        }]);
    }
    if let Some(list) = &spec.all {
        parts.push(joined(list, !negated, negated, check, &format!("{path}.all"), depth)?);
    }
    if let Some(list) = &spec.any {
        parts.push(joined(list, negated, negated, check, &format!("{path}.any"), depth)?);
    }
    if let Some(inner) = &spec.not {
        parts.push(expand(inner, !negated, check, &format!("{path}.not"), depth + 1)?);
    }
    if parts.is_empty() {
        check.error(path, "a condition needs a matcher: method, pathRegex, all, any or not");
        return None;
    }
    combined(parts, !negated, check, path)
}

/// The conditions of a list, each negated or not, as all or any of them.
fn joined(
    list: &[ConditionSpec],
    all: bool,
    negated: bool,
    check: &mut Check<'_>,
    path: &str,
    depth: usize,
) -> Option<Vec<Product>> {
    let mut parts = Vec::new();
    for (i, part) in list.iter().enumerate() {
        parts.push(expand(part, negated, check, &format!("{path}[{i}]"), depth + 1)?);
    }
    combined(parts, all, check, path)
}

/// All or any of some sums, as one.
fn combined(parts: Vec<Vec<Product>>, all: bool, check: &mut Check<'_>, path: &str) -> Option<Vec<Product>> {
    let mut sum = if all { vec![Product::default()] } else { Vec::new() };
    for part in parts {
        if all {
            sum = sum.iter().flat_map(|a| part.iter().filter_map(|b| a.and(b))).collect();
        } else {
            sum.extend(part);
        }
        if sum.len() > MAX_ALTERNATIVES {
            check.error(path, format!("expands to {} matches; at most {MAX_ALTERNATIVES}", sum.len()));
            return None;
        }
    }
    Some(sum)
}

impl Product {
    /// Both; `None` if they cannot both hold.
    fn and(&self, other: &Self) -> Option<Self> {
        let mut both = self.clone();
        both.not_methods.extend(other.not_methods.iter().cloned());
        if let Some(theirs) = &other.methods {
            both.methods = Some(match both.methods {
                Some(own) => own.intersection(theirs).cloned().collect(),
                None => theirs.clone(),
            });
        }
        if let Some(methods) = &mut both.methods {
            methods.retain(|method| !both.not_methods.contains(method));
            both.not_methods.clear();
            if methods.is_empty() {
                return None;
            }
        }
        let missing = |list: &[Pattern], more: &[Pattern]| -> Vec<Pattern> {
            more.iter().filter(|one| !list.contains(one)).cloned().collect()
        };
        both.paths.extend(missing(&self.paths, &other.paths));
        both.not_paths.extend(missing(&self.not_paths, &other.not_paths));
        let impossible = both.paths.iter().any(|path| both.not_paths.contains(path));
        (!impossible).then_some(both)
    }

    fn route_match(&self, check: &mut Check<'_>, path: &str) -> Option<RouteMatch> {
        let mut matcher = RouteMatch::any();
        let mut header = |name, pattern, invert| {
            let value = HeaderMatch::Text(StringMatcher { pattern, ignore_case: false });
            matcher.headers.push(HeaderMatcher { name, value, invert, treat_missing_as_empty: false });
        };
        let further = self.paths.iter().skip(1).map(|path| (path, false));
        for (regex, invert) in further.chain(self.not_paths.iter().map(|path| (path, true))) {
            let read = with_query(regex, &mut check.patterns);
            let with_query = check.take(path, read)?;
            header(HeaderKey::Path, StringMatch::Regex(with_query), invert);
        }
        for method in &self.not_methods {
            header(HeaderKey::Method, StringMatch::Exact(method.clone()), true);
        }
        matcher.methods = self.methods.iter().flatten().cloned().collect();
        if let Some(first) = self.paths.first() {
            matcher.path = PathMatch::Regex(first.clone());
        }
        Some(matcher)
    }
}

/// The pattern of a `:path` header, which ends in the query, whose path alone matches `path`.
fn with_query(path: &Pattern, room: &mut PatternRoom) -> Result<Pattern, String> {
    let parsed = regex_syntax::parse(path.as_str()).map_err(|error| error.to_string())?;
    let text = format!("(?:{})(?:\\?.*)?", within_path(parsed));
    room.read(&text).map_err(|error| format!("{:?} cannot be combined with others: {}", path.as_str(), error.reason))
}

/// The same expression, that no longer takes a `?` (which ends the path) and ends where the path does.
fn within_path(hir: Hir) -> Hir {
    match hir.into_kind() {
        HirKind::Literal(literal) if literal.0.contains(&b'?') => Hir::fail(),
        HirKind::Literal(literal) => Hir::literal(literal.0),
        HirKind::Class(Class::Unicode(mut class)) => {
            class.difference(&ClassUnicode::new([ClassUnicodeRange::new('?', '?')]));
            if class.ranges().len() > MAX_RANGES {
                class.intersect(&ClassUnicode::new([ClassUnicodeRange::new('\0', '\x7f')]));
            }
            Hir::class(Class::Unicode(class))
        }
        HirKind::Class(Class::Bytes(mut class)) => {
            class.difference(&ClassBytes::new([ClassBytesRange::new(b'?', b'?')]));
            Hir::class(Class::Bytes(class))
        }
        // The end of the path is the end of the expression.
        HirKind::Look(Look::End | Look::EndLF | Look::EndCRLF) | HirKind::Empty => Hir::empty(),
        HirKind::Look(look) => Hir::look(look),
        HirKind::Repetition(mut repetition) => {
            repetition.sub = Box::new(within_path(*repetition.sub));
            Hir::repetition(repetition)
        }
        HirKind::Capture(capture) => within_path(*capture.sub),
        HirKind::Concat(parts) => Hir::concat(parts.into_iter().map(within_path).collect()),
        HirKind::Alternation(parts) => Hir::alternation(parts.into_iter().map(within_path).collect()),
    }
}
