//! A compiled [`MatcherTree`] (gRFC A106): from a request's headers to what is to be done with it.
//!
//! Refuses to know what that is: whoever compiles a tree gives what stands for each of its ends. A walk allocates nothing.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use smallvec::SmallVec;

use super::header::{HeaderCondition, HeaderInput};
use super::{RequestView, authority};
use crate::policy::{
    ExecuteFilters, FieldMatcher, HeaderKey, HeaderMatch, HeaderMatcher, MatchPredicate, MatcherRule, MatcherTree,
    OnMatch, StringMatch, StringMatcher,
};

/// A [`MatcherTree`] whose patterns are compiled, with an `A` at each end.
#[derive(Debug)]
pub struct MatchTree<A> {
    rule: Rule<A>,
    otherwise: Option<End<A>>,
}

/// A request of which two readers would find different ends: it has a header more than once, or under two names that are
/// the same to many an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwoReadings;

#[derive(Debug)]
enum Rule<A> {
    List(Box<[(Predicate, End<A>)]>),
    Map(Map<A>),
}

#[derive(Debug)]
enum End<A> {
    Tree(Box<MatchTree<A>>),
    Action(A),
}

/// Values or beginnings of a header, sorted.
#[derive(Debug)]
struct Map<A> {
    input: HeaderInput,
    entries: Box<[Entry<A>]>,
    prefixes: bool,
}

#[derive(Debug)]
struct Entry<A> {
    key: Box<[u8]>,
    /// Where the longest of the others is that it begins with.
    shorter: Option<usize>,
    end: End<A>,
}

#[derive(Debug)]
enum Predicate {
    Header(HeaderCondition),
    And(Box<[Predicate]>),
    Or(Box<[Predicate]>),
    Not(Box<Predicate>),
}

/// How a request with two readings is taken.
#[derive(Clone, Copy)]
enum Reading {
    /// As gRPC does: several values are one list.
    Joined,
    /// Not at all, if they lead to different ends.
    Every,
}

impl<A> MatchTree<A> {
    /// Compiles a tree. `action` gives what stands for some filters, `None` being the word to skip them.
    pub fn new(policy: &MatcherTree, action: &mut dyn FnMut(Option<&ExecuteFilters>) -> A) -> Self {
        let rule = match &policy.rule {
            MatcherRule::List(list) => {
                let each = |FieldMatcher { predicate, on_match }: &FieldMatcher| {
                    (Predicate::new(predicate), End::new(on_match, action))
                };
                Rule::List(list.iter().map(each).collect())
            }
            MatcherRule::Exact { input, map } => Rule::Map(Map::new(input, map, false, action)),
            MatcherRule::Prefix { input, map } => Rule::Map(Map::new(input, map, true, action)),
        };
        Self { rule, otherwise: policy.on_no_match.as_ref().map(|end| End::new(end, action)) }
    }

    /// What is to be done with a request; of a header that is there more than once all values count, joined. `None` =
    /// nothing is found.
    pub fn find(&self, request: &RequestView<'_>) -> Option<&A> {
        self.walk(request, Reading::Joined).unwrap_or_default()
    }

    /// The same where it must be the same to whoever reads the request.
    ///
    /// # Errors
    /// It is not.
    pub fn find_alike(&self, request: &RequestView<'_>) -> Result<Option<&A>, TwoReadings> {
        self.walk(request, Reading::Every)
    }

    fn walk(&self, request: &RequestView<'_>, reading: Reading) -> Result<Option<&A>, TwoReadings> {
        let found = match &self.rule {
            Rule::List(list) => {
                let mut found = None;
                for (predicate, end) in list {
                    if predicate.holds(request, reading)? {
                        found = end.walk(request, reading)?;
                    }
                    if found.is_some() {
                        break;
                    }
                }
                found
            }
            Rule::Map(map) => map.walk(request, reading)?,
        };
        match (found, &self.otherwise) {
            (None, Some(end)) => end.walk(request, reading),
            (found, _) => Ok(found),
        }
    }
}

impl<A> End<A> {
    fn new(policy: &OnMatch, action: &mut dyn FnMut(Option<&ExecuteFilters>) -> A) -> Self {
        match policy {
            OnMatch::Matcher(tree) => Self::Tree(Box::new(MatchTree::new(tree, action))),
            OnMatch::Skip => Self::Action(action(None)),
            OnMatch::Execute(filters) => Self::Action(action(Some(filters))),
        }
    }

    fn walk(&self, request: &RequestView<'_>, reading: Reading) -> Result<Option<&A>, TwoReadings> {
        match self {
            Self::Tree(tree) => tree.walk(request, reading),
            Self::Action(action) => Ok(Some(action)),
        }
    }
}

impl<A> Map<A> {
    fn new(
        input: &HeaderKey,
        map: &BTreeMap<String, OnMatch>,
        prefixes: bool,
        action: &mut dyn FnMut(Option<&ExecuteFilters>) -> A,
    ) -> Self {
        let input = HeaderInput::new(input);
        let key = |text: &String| match (input.ignores_case(), prefixes) {
            (true, false) => {
                let exact = StringMatcher { pattern: StringMatch::Exact(text.clone()), ignore_case: true };
                match authority::in_normal_form(&exact).pattern {
                    StringMatch::Exact(text) => text.to_ascii_lowercase(),
                    _ => text.to_ascii_lowercase(),
                }
            }
            (true, true) => text.to_ascii_lowercase(),
            (false, _) => text.clone(),
        };
        let ends = map.iter().map(|(text, end)| (key(text).into_bytes().into(), End::new(end, action)));
        let mut sorted: Vec<(Box<[u8]>, End<A>)> = ends.collect();
        sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
        // What is the same in small letters: the first counts.
        sorted.dedup_by(|(later, _), (first, _)| later == first);
        let mut entries: Vec<Entry<A>> = Vec::with_capacity(sorted.len());
        for (key, end) in sorted {
            let mut shorter = entries.len().checked_sub(1);
            while let Some(at) = shorter.filter(|at| !key.starts_with(&entries[*at].key)) {
                shorter = entries[at].shorter;
            }
            entries.push(Entry { key, shorter, end });
        }
        Self { input, entries: entries.into(), prefixes }
    }

    fn walk(&self, request: &RequestView<'_>, reading: Reading) -> Result<Option<&A>, TwoReadings> {
        let mut at = self.input.look(request, |value| self.first(value));
        if matches!(reading, Reading::Every) && self.input.has_readings(request) {
            let mut differs = false;
            self.input.look_at_readings(request, |value| differs |= self.first(value) != at);
            if differs {
                return Err(TwoReadings);
            }
        }
        while let Some(entry) = at.map(|at| &self.entries[at]) {
            if let Some(found) = entry.end.walk(request, reading)? {
                return Ok(Some(found));
            }
            at = entry.shorter.filter(|_| self.prefixes);
        }
        Ok(None)
    }

    /// The entry that is looked at first.
    fn first(&self, value: Option<&[u8]>) -> Option<usize> {
        let value = value?;
        if !self.input.ignores_case() {
            return self.first_of(value);
        }
        let mut small = SmallVec::<[u8; 256]>::from_slice(value);
        small.make_ascii_lowercase();
        self.first_of(&small)
    }

    /// What is sorted right before a text begins with its longest beginning, if it has any.
    fn first_of(&self, value: &[u8]) -> Option<usize> {
        let after = self.entries.partition_point(|entry| *entry.key <= *value);
        let mut at = after.checked_sub(1);
        if !self.prefixes {
            return at.filter(|at| *self.entries[*at].key == *value);
        }
        while let Some(far) = at.filter(|at| !value.starts_with(&self.entries[*at].key)) {
            at = self.entries[far].shorter;
        }
        at
    }
}

impl Predicate {
    fn new(policy: &MatchPredicate) -> Self {
        let all = |list: &[MatchPredicate]| list.iter().map(Self::new).collect();
        match policy {
            MatchPredicate::Header { input, value } => Self::Header(HeaderCondition::for_rbac(&HeaderMatcher {
                name: input.clone(),
                value: HeaderMatch::Text(value.clone()),
                invert: false,
                treat_missing_as_empty: false,
            })),
            MatchPredicate::And(list) => Self::And(all(list)),
            MatchPredicate::Or(list) => Self::Or(all(list)),
            MatchPredicate::Not(inner) => Self::Not(Box::new(Self::new(inner))),
        }
    }

    fn holds(&self, request: &RequestView<'_>, reading: Reading) -> Result<bool, TwoReadings> {
        match reading {
            Reading::Joined => Ok(self.holds_joined(request)),
            Reading::Every => match self.readings(request) {
                (every, some) if every == some => Ok(some),
                _ => Err(TwoReadings),
            },
        }
    }

    fn holds_joined(&self, request: &RequestView<'_>) -> bool {
        match self {
            Self::Header(condition) => condition.holds(request),
            Self::And(list) => list.iter().all(|each| each.holds_joined(request)),
            Self::Or(list) => list.iter().any(|each| each.holds_joined(request)),
            Self::Not(inner) => !inner.holds_joined(request),
        }
    }

    /// Whether it holds in every reading, and whether in some.
    fn readings(&self, request: &RequestView<'_>) -> (bool, bool) {
        match self {
            Self::Header(condition) if condition.has_readings(request) => condition.readings(request),
            Self::Header(condition) => {
                let holds = condition.holds(request);
                (holds, holds)
            }
            Self::And(list) => list.iter().fold((true, true), |(every, some), each| {
                let (all, any) = each.readings(request);
                (every && all, some && any)
            }),
            Self::Or(list) => list.iter().fold((false, false), |(every, some), each| {
                let (all, any) = each.readings(request);
                (every || all, some || any)
            }),
            Self::Not(inner) => {
                let (every, some) = inner.readings(request);
                (!some, !every)
            }
        }
    }
}

/// Shows each chain that a tree may lead to with its place, in the order in which [`MatchTree::new`] asks for what stands
/// for them. `root` is the tree's own place.
///
/// A place is made of the conditions that lead there, not of how many stand before them: what is added to a tree beside
/// a chain leaves its place as it is. Two chains have one place where their conditions are the same.
pub fn each_chain<'t>(tree: &'t MatcherTree, root: u64, see: &mut dyn FnMut(u64, &'t Arc<ExecuteFilters>)) {
    let mut to = |place: u64, on_match: &'t OnMatch| match on_match {
        OnMatch::Matcher(tree) => each_chain(tree, place, see),
        OnMatch::Skip => {}
        OnMatch::Execute(filters) => see(place, filters),
    };
    match &tree.rule {
        MatcherRule::List(list) => {
            list.iter().for_each(|field| to(place_within(root, &field.predicate), &field.on_match));
        }
        MatcherRule::Exact { input, map } => {
            map.iter().for_each(|(key, end)| to(place_within(root, &("exact", input, key)), end));
        }
        MatcherRule::Prefix { input, map } => {
            map.iter().for_each(|(key, end)| to(place_within(root, &("prefix", input, key)), end));
        }
    }
    tree.on_no_match.iter().for_each(|end| to(place_within(root, &"otherwise"), end));
}

/// The place of `step` within that of `root`; a number, because names of places would be as long as a tree is deep. The same
/// in every process of one build.
pub fn place_within(root: u64, step: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (root, step).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, Method};
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{HttpFilter, HttpFilterKind};

    fn header(name: &str) -> HeaderKey {
        HeaderKey::parse(name).unwrap()
    }

    fn exact(name: &str, value: &str) -> MatchPredicate {
        let value = StringMatcher { pattern: StringMatch::Exact(value.to_owned()), ignore_case: false };
        MatchPredicate::Header { input: header(name), value }
    }

    /// An end of this name.
    fn end(name: &str) -> OnMatch {
        let filter = HttpFilter { name: name.to_owned(), kind: HttpFilterKind::Fault(None) };
        OnMatch::Execute(Arc::new(ExecuteFilters::all(vec![filter])))
    }

    fn list(fields: Vec<(MatchPredicate, OnMatch)>, on_no_match: Option<OnMatch>) -> MatcherTree {
        let fields = fields.into_iter().map(|(predicate, on_match)| FieldMatcher { predicate, on_match });
        MatcherTree { rule: MatcherRule::List(fields.collect()), on_no_match }
    }

    fn map(keys: &[(&str, OnMatch)]) -> BTreeMap<String, OnMatch> {
        keys.iter().map(|(key, end)| ((*key).to_owned(), end.clone())).collect()
    }

    fn compiled(tree: &MatcherTree) -> MatchTree<String> {
        MatchTree::new(tree, &mut |filters| filters.map_or("skip".to_owned(), |chain| chain.filters[0].name.clone()))
    }

    /// `:authority` and `:path` among the headers are what they are.
    fn with<R>(headers: &[(&str, &str)], see: impl FnOnce(&RequestView<'_>) -> R) -> R {
        let (mut authority, mut path, mut map) = ("a.example", "/s/m", HeaderMap::new());
        for (name, value) in headers {
            match *name {
                ":authority" => authority = value,
                ":path" => path = value,
                name => {
                    map.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(*value).unwrap());
                }
            }
        }
        see(&RequestView {
            authority,
            method: &Method::POST,
            path_and_query: path,
            scheme: "http",
            headers: &map,
            draw: &|| 0,
        })
    }

    fn found(tree: &MatcherTree, headers: &[(&str, &str)]) -> Option<String> {
        let tree = compiled(tree);
        with(headers, |request| tree.find(request).cloned())
    }

    fn found_alike(tree: &MatcherTree, headers: &[(&str, &str)]) -> Result<Option<String>, TwoReadings> {
        let tree = compiled(tree);
        with(headers, |request| tree.find_alike(request).map(Option::<&String>::cloned))
    }

    #[test]
    fn a106_the_first_condition_that_leads_somewhere_counts() {
        let dead_end = OnMatch::Matcher(Box::new(list(vec![(exact("b", "1"), end("inner"))], None)));
        let tree = list(
            vec![(exact("a", "1"), dead_end), (exact("a", "1"), end("second")), (exact("c", "1"), OnMatch::Skip)],
            Some(end("otherwise")),
        );
        assert_eq!(found(&tree, &[("a", "1"), ("b", "1")]).as_deref(), Some("inner"));
        assert_eq!(found(&tree, &[("a", "1")]).as_deref(), Some("second"));
        assert_eq!(found(&tree, &[("c", "1")]).as_deref(), Some("skip"));
        assert_eq!(found(&tree, &[]).as_deref(), Some("otherwise"));
        assert_eq!(found(&MatcherTree { on_no_match: None, ..tree }, &[]), None);
    }

    #[test]
    fn a106_conditions_are_joined_and_turned_round() {
        let not = |inner| MatchPredicate::Not(Box::new(inner));
        let of = |predicate| list(vec![(predicate, end("yes"))], None);
        let both = of(MatchPredicate::And(vec![exact("a", "1"), exact("b", "1")]));
        let one = of(MatchPredicate::Or(vec![exact("a", "1"), exact("b", "1")]));
        let neither = of(not(MatchPredicate::Or(vec![exact("a", "1"), exact("b", "1")])));
        for (headers, want) in [
            (&[("a", "1"), ("b", "1")][..], [true, true, false]),
            (&[("a", "1")][..], [false, true, false]),
            (&[][..], [false, false, true]),
        ] {
            assert_eq!([&both, &one, &neither].map(|tree| found(tree, headers).is_some()), want, "{headers:?}");
            let alike = [&both, &one, &neither].map(|tree| found_alike(tree, headers).unwrap().is_some());
            assert_eq!(alike, want, "{headers:?}");
        }
        // What is not there has no value, not even an empty one.
        assert_eq!(found(&of(exact("a", "")), &[]), None);
        // Nor have what is no text, and `te` (gRFC A41).
        for absent in ["x-bin", "te"] {
            assert_eq!(found(&of(exact(absent, "1")), &[(absent, "1")]), None, "{absent}");
        }
    }

    #[test]
    fn a106_a_map_has_whole_values_or_beginnings() {
        let keys = map(&[("/s/", end("service")), ("/s/m", end("method")), ("", end("any"))]);
        let path = || header(":path");
        let tree = |rule| MatcherTree { rule, on_no_match: None };
        let exact = tree(MatcherRule::Exact { input: path(), map: keys.clone() });
        let prefix = tree(MatcherRule::Prefix { input: path(), map: keys.clone() });
        let at = |tree, path| found(tree, &[(":path", path)]);
        assert_eq!(at(&exact, "/s/m").as_deref(), Some("method"));
        assert_eq!(at(&exact, "/s/other"), None);
        assert_eq!(at(&prefix, "/s/m2").as_deref(), Some("method"));
        assert_eq!(at(&prefix, "/s/other").as_deref(), Some("service"));
        assert_eq!(at(&prefix, "/t").as_deref(), Some("any"));
        // A header that is not there is not empty.
        let by_header = tree(MatcherRule::Prefix { input: header("x"), map: keys });
        assert_eq!((found(&by_header, &[]), found(&by_header, &[("x", "")]).as_deref()), (None, Some("any")));
        // Where the longest leads nowhere, the next one counts, and what follows in the end.
        let dead_end = OnMatch::Matcher(Box::new(list(vec![], None)));
        let rule = MatcherRule::Prefix { input: path(), map: map(&[("/s/m", dead_end), ("/s", end("short"))]) };
        let backwards = MatcherTree { rule, on_no_match: Some(end("otherwise")) };
        assert_eq!(at(&backwards, "/s/m").as_deref(), Some("short"));
        assert_eq!(at(&backwards, "/t").as_deref(), Some("otherwise"));
        // An authority has no case.
        let input = header(":authority");
        let rule = MatcherRule::Exact { input, map: map(&[("A.Example", end("host"))]) };
        assert_eq!(found(&tree(rule), &[(":authority", "a.EXAMPLE")]).as_deref(), Some("host"));
    }

    fn places(tree: &MatcherTree) -> Vec<(String, u64)> {
        let mut places = Vec::new();
        each_chain(tree, 7, &mut |place, chain| places.push((chain.filters[0].name.clone(), place)));
        places
    }

    #[test]
    fn a_place_is_not_moved_by_what_comes_before_it() {
        let inner = |keys: &[(&str, OnMatch)]| {
            let rule = MatcherRule::Exact { input: header("x"), map: map(keys) };
            OnMatch::Matcher(Box::new(MatcherTree { rule, on_no_match: Some(end("inner")) }))
        };
        let before =
            list(vec![(exact("a", "1"), inner(&[("b", end("b"))])), (exact("c", "1"), end("c"))], Some(end("o")));
        let after = list(
            vec![
                (exact("new", "1"), end("new")),
                (exact("a", "1"), inner(&[("a", end("a")), ("b", end("b"))])),
                (exact("c", "1"), end("c")),
            ],
            Some(end("o")),
        );
        let (before, after) = (places(&before), places(&after));
        let kept: Vec<_> = after.iter().filter(|(name, _)| !["new", "a"].contains(&name.as_str())).cloned().collect();
        assert_eq!(before, kept);
        // Each has its own.
        let own: std::collections::HashSet<u64> = after.iter().map(|(_, place)| *place).collect();
        assert_eq!((own.len(), after.len()), (6, 6));
        // A tree elsewhere has others.
        let rule = MatcherRule::Prefix { input: header("x"), map: map(&[("b", end("b"))]) };
        let prefix =
            list(vec![(exact("a", "1"), OnMatch::Matcher(MatcherTree { rule, on_no_match: None }.into()))], None);
        assert_ne!(places(&prefix)[0], before[0]);
    }

    #[test]
    fn chains_are_shown_in_the_order_in_which_they_are_compiled() {
        let keys = map(&[("b", end("1")), ("B", OnMatch::Skip), ("c", end("2")), ("C", end("3"))]);
        // Capitals come first, and two keys of an authority are one: both are asked for.
        let rule = MatcherRule::Exact { input: header(":authority"), map: keys };
        let inner = MatcherTree { rule, on_no_match: Some(end("4")) };
        let tree =
            list(vec![(exact("a", "1"), OnMatch::Matcher(inner.into())), (exact("c", "1"), end("5"))], Some(end("6")));
        let mut asked = Vec::new();
        MatchTree::new(&tree, &mut |chain| asked.extend(chain.map(|chain| chain.filters[0].name.clone())));
        let shown: Vec<String> = places(&tree).into_iter().map(|(name, _)| name).collect();
        assert_eq!((shown, asked.len()), (asked.clone(), 6));
    }

    #[test]
    fn several_values_are_one_list_and_two_readings() {
        let by_list = list(vec![(exact("x-role", "a,b"), end("list"))], Some(OnMatch::Skip));
        let rule = MatcherRule::Exact { input: header("x-role"), map: map(&[("a,b", end("list"))]) };
        let by_map = MatcherTree { rule, on_no_match: Some(OnMatch::Skip) };
        let two: &[_] = &[("x-role", "a"), ("x-role", "b")];
        for tree in [&by_list, &by_map] {
            assert_eq!(found(tree, two).as_deref(), Some("list"));
            assert_eq!(found_alike(tree, two), Err(TwoReadings));
            // One value has one reading, whatever it is.
            assert_eq!(found_alike(tree, &[("x-role", "a,b")]).unwrap().as_deref(), Some("list"));
            assert_eq!(found_alike(tree, &[]).unwrap().as_deref(), Some("skip"));
            // To many an application the other name is the same.
            assert_eq!(found_alike(tree, &[("x_role", "a,b")]), Err(TwoReadings));
            // All the same to this tree.
            assert_eq!(found_alike(tree, &[("x-role", "c"), ("x-role", "d")]).unwrap().as_deref(), Some("skip"));
        }
    }

    #[test]
    fn a_walk_allocates_nothing() {
        let keys = map(&[("a", end("short")), ("a,b", end("long"))]);
        let inner = MatcherTree { rule: MatcherRule::Prefix { input: header("x-role"), map: keys }, on_no_match: None };
        let tree = compiled(&list(
            vec![(MatchPredicate::Not(exact("x-other", "1").into()), OnMatch::Matcher(Box::new(inner)))],
            None,
        ));
        with(&[("x-role", "a"), ("x-role", "b"), (":authority", "A.example")], |request| {
            let cost = allocation_counter::measure(|| {
                assert_eq!(tree.find(request).map(String::as_str), Some("long"));
                assert_eq!(tree.find_alike(request), Err(TwoReadings));
            });
            assert_eq!(cost.count_total, 0);
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_longest_beginning_is_found(keys in prop::collection::btree_set("[ab]{0,5}", 1..12), value in "[ab]{0,7}") {
            let ends: Vec<(&str, OnMatch)> = keys.iter().map(|key| (key.as_str(), end(&format!("<{key}>")))).collect();
            let rule = MatcherRule::Prefix { input: header("x"), map: map(&ends) };
            let tree = MatcherTree { rule, on_no_match: None };
            let want = keys.iter().filter(|key| value.starts_with(key.as_str())).max_by_key(|key| key.len());
            prop_assert_eq!(found(&tree, &[("x", &value)]), want.map(|key| format!("<{key}>")));
        }
    }
}
