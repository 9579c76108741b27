//! What a rule says of an authority, in which case says nothing: a server knows it in small letters alone.

use std::borrow::Cow;

use regex_automata::meta::Regex;
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind};

use super::TextCondition;
use crate::policy::{Pattern, StringMatch, StringMatcher};
use crate::target::normalize_authority;

/// A matcher, in the words of requests whose authority is in normal form.
pub(super) fn condition(text: &StringMatcher) -> TextCondition {
    TextCondition::compiled(&in_normal_form(text), regex)
}

pub(super) fn in_normal_form(text: &StringMatcher) -> StringMatcher {
    let pattern = match &text.pattern {
        StringMatch::Exact(exact) => {
            StringMatch::Exact(normalize_authority(exact).map_or(exact.clone(), Cow::into_owned))
        }
        StringMatch::Suffix(end) if end.len() > 1 => {
            StringMatch::Suffix(end.strip_suffix('.').unwrap_or(end).to_owned())
        }
        other => other.clone(),
    };
    StringMatcher { pattern, ignore_case: true }
}

fn regex(pattern: &Pattern) -> Regex {
    pattern.compiled_as(in_any_case)
}

/// The same expression, to which the two cases of a letter are one. `(?i)` before it would say something else: it is read
/// before `[^A-Z]` is, which then takes no letter at all, and a `(?-i)` takes it back. So it is done to the classes that
/// the expression comes to: of what is written as it would be sent in small letters nothing is lost, and nothing is taken that
/// could not have been sent in some case that the expression takes as it is.
pub(super) fn in_any_case(hir: Hir) -> Hir {
    let each = |parts: Vec<Hir>| parts.into_iter().map(in_any_case).collect();
    match hir.into_kind() {
        HirKind::Literal(literal) => Hir::concat(literal.0.iter().map(|b| letter(*b)).collect()),
        HirKind::Class(class) => of_class(class),
        HirKind::Empty => Hir::empty(),
        HirKind::Look(look) => Hir::look(look),
        HirKind::Repetition(mut repetition) => {
            repetition.sub = Box::new(in_any_case(*repetition.sub));
            Hir::repetition(repetition)
        }
        HirKind::Capture(capture) => in_any_case(*capture.sub),
        HirKind::Concat(parts) => Hir::concat(each(parts)),
        HirKind::Alternation(parts) => Hir::alternation(each(parts)),
    }
}

fn letter(b: u8) -> Hir {
    if b.is_ascii_alphabetic() { in_both_cases(range(b.into(), b.into())) } else { Hir::literal([b]) }
}

fn of_class(class: Class) -> Hir {
    let class = match class {
        Class::Unicode(class) => Some(class),
        Class::Bytes(class) => class.to_unicode_class(),
    };
    // Bytes that are no text are not in a pattern.
    let Some(mut class) = class else { return Hir::fail() };
    // One that names what it does not take names no capital: `[^a-z]` takes no letter, as of all that is sent in small ones.
    if class.ranges().last().is_some_and(|range| range.end() == char::MAX) {
        class.difference(&range('A', 'Z'));
    }
    in_both_cases(class)
}

fn in_both_cases(mut class: ClassUnicode) -> Hir {
    // All that an authority consists of. It keeps small what is small, too.
    class.intersect(&range('\0', '\x7f'));
    class.case_fold_simple();
    class.intersect(&range('\0', '\x7f'));
    Hir::class(Class::Unicode(class))
}

fn range(first: char, last: char) -> ClassUnicode {
    ClassUnicode::new([ClassUnicodeRange::new(first, last)])
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::super::{HeaderCondition, RequestView};
    use super::*;
    use crate::policy::{HeaderKey, HeaderMatch, HeaderMatcher};

    fn pattern(text: &str) -> StringMatcher {
        StringMatcher { pattern: StringMatch::Regex(Pattern::new(text).unwrap()), ignore_case: false }
    }

    /// Whether a rule that denies holds, and one that allows.
    fn rules(text: &str, authority: &str) -> (bool, bool) {
        let value = HeaderMatch::Text(pattern(text));
        let matcher = HeaderMatcher { name: HeaderKey::Authority, value, invert: false, treat_missing_as_empty: false };
        let request = RequestView {
            authority,
            method: &Method::GET,
            path_and_query: "/",
            scheme: "http",
            headers: &HeaderMap::new(),
            draw: &|| 0,
        };
        let (every, some) = HeaderCondition::for_rbac(&matcher).readings(&request);
        (some, every)
    }

    #[test]
    fn an_expression_takes_an_authority_in_any_case() {
        let long = format!("Admin|{}", "b".repeat(1018));
        for (text, authority, want) in [
            (r"Admin\.Test", "admin.test", true),
            (r"(?-i)Admin\.test", "admin.test", true),
            (r"(?-i:A)dmin[.]\w+", "admin.test", true),
            (r"[^A-Z]dmin\.Test", "admin.test", true),
            ("[^A-Z]+", "admin.test", true),
            (r"[[:upper:]]+\.test", "admin.test", true),
            (r"\p{Lu}+\.test", "admin.test", true),
            (r"\P{Lu}+", "admin.test", true),
            ("[^[:upper:]]+", "admin.test", true),
            ("[A-M]dmin.*", "admin.test", true),
            (&long, "admin", true),
            // It is for names without letters.
            ("[^a-z]+", "admin.test", false),
            (r"\P{Ll}+", "admin.test", false),
            ("[^a-z]+", "10.0.0.1:80", true),
            ("(?i)[^a-z]+", "admin.test", false),
            ("[[:^alpha:]]+", "admin.test", false),
            ("[B-Z]dmin.*", "admin.test", false),
            (r"Admin\.test", "admin.test.other", false),
            (r"Admin\.test", "admin", false),
        ] {
            assert_eq!(rules(text, authority), (want, want), "{text:?} {authority}");
            // What routes of a client compare is as the application wrote it.
            assert_eq!(rules(text, &authority.to_uppercase()), (want, want), "{text:?}, {authority} in capitals");
        }
        // The control: what `(?i)` before it says, so that what denies is stepped round.
        for stepped in [r"[^A-Z]dmin\.Test", "[^A-Z]+", r"(?-i)Admin\.test", "[^[:upper:]]+"] {
            assert!(!pattern(&format!("(?i){stepped}")).matches("admin.test"), "{stepped}");
        }
        assert!(Pattern::new(&format!("(?i){long}")).is_err(), "and this one is too long for it");
    }

    /// In small letters what the expression says as it is holds, and nothing does of which it takes no case.
    #[test]
    fn what_denies_loses_nothing_and_what_allows_takes_nothing_that_it_does_not_name() {
        let words = (0..4).fold(vec![String::new()], |words, _| {
            let longer = words.iter().flat_map(|word| ["", "a", "b", "A", "B", "1"].map(|b| format!("{word}{b}")));
            longer.collect()
        });
        for text in [
            "A",
            "a*",
            "(?i)ab",
            "aB|[^a]1",
            "[^A-Z]+",
            "[^a-z]*",
            "[^aB]+",
            "[A&&[^B]].*",
            "(A|b)+",
            "[[:upper:]]{2}",
            r"\bA\b.*",
            r"\W?b",
            "(?-u)[A-Z]+",
            "(?-i)Ab?(?i)b",
            "[^A]B|B[^a]",
            ".A",
            r"(?:\PL|B)+",
        ] {
            let (condition, written) = (condition(&pattern(text)), Pattern::new(text).unwrap().compiled());
            let holds = |word: &str| condition.holds(word.as_bytes());
            let small = |word: &str| word.to_ascii_lowercase();
            for word in &words {
                assert_eq!(holds(word), holds(&small(word)), "{text:?} {word:?}: case says something");
                if written.is_match(small(word).as_str()) {
                    assert!(holds(word), "{text:?} {word:?}: it holds, and is missed");
                }
                let in_some_case = || words.iter().any(|other| small(other) == small(word) && written.is_match(other));
                assert!(!holds(word) || in_some_case(), "{text:?} {word:?}: it is taken, and in no case meant");
            }
        }
    }

    #[test]
    fn an_expression_as_large_as_may_be_is_read_in_any_case_too() {
        for unit in ["a", "A", "[A-Y]", "[^A-Y]", "[ACEGIKMOQSUWY]", r"\w", "(?i:k)", "aBcDeFgH"] {
            let of = |n: u32| Pattern::new(&format!("(?:{unit}){{0,{n}}}"));
            let largest = (0..20).map(|n| of(1 << n)).take_while(Result::is_ok).last().unwrap().unwrap();
            assert!(condition(&StringMatcher { pattern: StringMatch::Regex(largest), ignore_case: false }).holds(b""));
        }
    }
}
