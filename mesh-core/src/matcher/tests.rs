use std::collections::BTreeMap;

use http::HeaderValue;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::id::ClusterName;
use crate::policy::{
    Domain, Forward, HeaderKey, HeaderMatch, HeaderMatcher, HeaderPolicy, PathMatch, PathRewrite, Pattern, QueryMatch,
    QueryMatcher, RouteAction, StringMatch, StringMatcher,
};

/// An owned request for [`RequestView`].
#[derive(Clone, Debug)]
struct Request {
    authority: &'static str,
    method: Method,
    path: String,
    headers: HeaderMap,
    draw: u32,
}

impl Request {
    fn get(authority: &'static str, path: &str) -> Self {
        Self { authority, method: Method::GET, path: path.to_owned(), headers: HeaderMap::new(), draw: 0 }
    }

    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.append(name, HeaderValue::from_static(value));
        self
    }

    fn see<T>(&self, look: impl FnOnce(&RequestView<'_>) -> T) -> T {
        look(&RequestView {
            authority: self.authority,
            method: &self.method,
            path_and_query: &self.path,
            scheme: "http",
            headers: &self.headers,
            draw: &|| self.draw,
        })
    }
}

fn route(name: &str, matcher: RouteMatch) -> Route {
    let action = RouteAction::Forward(Box::new(Forward::to(ClusterName::new(name))));
    Route { name: name.to_owned(), ..Route::new(matcher, action) }
}

fn host(domains: &[&str], routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: domains[0].to_owned(),
        domains: domains.iter().map(|d| Domain::new(d).unwrap()).collect(),
        routes,
        headers: HeaderPolicy::default(),
        retry: None,
    }
}

fn config(virtual_hosts: Vec<VirtualHost>) -> Arc<RouteConfiguration> {
    let headers = HeaderPolicy::default();
    Arc::new(RouteConfiguration { name: "routes".to_owned(), virtual_hosts, headers, retry_budget: None })
}

fn caller() -> Workload {
    let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    Workload { namespace: "default".to_owned(), labels, ..Workload::default() }
}

fn compile(virtual_hosts: Vec<VirtualHost>) -> RouteTable {
    RouteTable::compile(&config(virtual_hosts), 80, &caller())
}

/// Whether a table of one route takes the request.
fn takes(matcher: RouteMatch, request: &Request) -> bool {
    let table = compile(vec![host(&["*"], vec![route("only", matcher)])]);
    request.see(|view| table.route(view).is_some())
}

fn with_path(path: PathMatch) -> RouteMatch {
    RouteMatch { path, ..RouteMatch::any() }
}

fn with_header(name: &str, value: HeaderMatch) -> HeaderMatcher {
    HeaderMatcher { name: HeaderKey::parse(name).unwrap(), value, invert: false, treat_missing_as_empty: false }
}

fn takes_header(header: &HeaderMatcher, request: &Request) -> bool {
    takes(RouteMatch { headers: vec![header.clone()], ..RouteMatch::any() }, request)
}

fn exact(text: &str) -> HeaderMatch {
    HeaderMatch::Text(StringMatcher::exact(text))
}

#[test]
fn the_most_specific_domain_wins_whatever_the_order() {
    let domains =
        ["*", "a*", "api.*", "*.com", "*.example.com", "api.example.com", "api.example.com:8080", "*.org:81", "[::1]"];
    let table = compile(domains.iter().map(|d| host(&[d], vec![route(d, RouteMatch::any())])).collect());
    for (authority, want) in [
        ("api.example.com", "api.example.com"),
        ("API.Example.COM", "api.example.com"),
        // With dot and port it is another text, and one without them is what is left.
        ("api.example.com.", "api.*"),
        ("api.example.com:9090", "api.*"),
        ("www.example.com.", "*.example.com"),
        ("www.example.com.:9090", "*.example.com"),
        ("api.example.com:8080", "api.example.com:8080"),
        ("www.example.com", "*.example.com"),
        ("www.example.com:80", "*.example.com"),
        // A star is at least one character.
        (".example.com", "*.com"),
        ("x.com", "*.com"),
        ("api.dev", "api.*"),
        ("api.", "a*"),
        ("abc", "a*"),
        ("a", "*"),
        ("x.org:81", "*.org:81"),
        ("x.org:82", "*"),
        ("[::1]:443", "[::1]"),
        ("[::1]", "[::1]"),
        ("::1", "*"),
        ("", "*"),
    ] {
        let found = Request::get(authority, "/").see(|view| table.route(view).map(|r| r.virtual_host().name.clone()));
        assert_eq!(found.as_deref(), Some(want), "{authority}");
    }
}

#[test]
fn a_domain_that_fits_the_authority_with_its_port_wins_over_any_that_fits_it_without() {
    let with_port = ["foo.bar:*", "*:8080", "*.bar:8080", "foo.bar:8080", "foo.*"];
    for specific in with_port {
        for without in ["foo.bar", "*.bar", "*"] {
            let hosts = [without, specific].map(|d| host(&[d], vec![route(d, RouteMatch::any())]));
            let table = compile(hosts.to_vec());
            let found = |authority: &'static str| {
                let request = Request::get(authority, "/");
                request.see(|view| table.route(view).map(|r| r.virtual_host().name.clone()))
            };
            for authority in ["foo.bar:8080", "FOO.bar:8080"] {
                assert_eq!(found(authority).as_deref(), Some(specific), "{authority} beside {without}");
            }
            // The control: what fits the name alone is found where nothing fits both.
            if specific.ends_with("8080") {
                assert_eq!(found("foo.bar:9090").as_deref(), Some(without), "{specific}");
            }
        }
    }
}

#[test]
fn without_a_domain_that_fits_there_is_no_route() {
    let table = compile(vec![host(&["reviews"], vec![route("all", RouteMatch::any())])]);
    assert!(Request::get("ratings", "/").see(|view| table.route(view).is_none()));
    let decision = Request::get("ratings", "/").see(|view| table.explain(view).decision);
    assert_eq!(decision, Decision::NoVirtualHost);
}

#[test]
fn paths() {
    let regex = |text| PathMatch::Regex(Pattern::new(text).unwrap());
    let separated = |text: &str| PathMatch::PathSeparatedPrefix(text.to_owned());
    for (path, request, want) in [
        (PathMatch::Exact("/a".into()), "/a?x=1", true),
        (PathMatch::Exact("/a".into()), "/a/", false),
        (PathMatch::Prefix("/a".into()), "/abc", true),
        (PathMatch::Prefix("/a".into()), "/", false),
        (PathMatch::Prefix("/".into()), "/", true),
        (separated("/a"), "/a", true),
        (separated("/a"), "/a?x", true),
        (separated("/a"), "/a/b", true),
        (separated("/a/"), "/a", true),
        (separated("/a"), "/abc", false),
        (separated("/"), "/anything", true),
        (regex("/a|/ab"), "/ab", true),
        (regex("/a"), "/ab", false),
        (regex("/[0-9]+"), "/42?q", true),
        (regex("a"), "/a", false),
    ] {
        assert_eq!(takes(with_path(path.clone()), &Request::get("h", request)), want, "{path:?} {request}");
    }
}

#[test]
fn case_counts_in_paths_unless_said_otherwise_and_always_in_a_regex() {
    let regex = PathMatch::Regex(Pattern::new("/AB").unwrap());
    for path in [PathMatch::Exact("/Ab".into()), PathMatch::Prefix("/A".into()), regex] {
        let folds = !matches!(path, PathMatch::Regex(_));
        let request = Request::get("h", "/ab");
        assert!(!takes(with_path(path.clone()), &request), "{path:?}");
        assert_eq!(takes(RouteMatch { case_sensitive: false, ..with_path(path.clone()) }, &request), folds, "{path:?}");
    }
}

#[test]
fn an_alternation_cannot_escape_the_anchors_of_a_pattern() {
    assert!(Pattern::new("a)|(?:b").is_err(), "no pattern by itself, though one between our brackets");
    assert!(!Pattern::new("a|b").unwrap().compiled().is_match("ax"));
}

#[test]
fn an_absent_header_fails_every_value_condition_even_an_inverted_one() {
    let (with, without) = (Request::get("h", "/").header("x", "1"), Request::get("h", "/"));
    let range = HeaderMatch::Range { start: 1, end: 2 };
    for value in [exact("1"), range] {
        let plain = with_header("x", value);
        let invert = HeaderMatcher { invert: true, ..plain.clone() };
        let missing = HeaderMatcher { treat_missing_as_empty: true, ..invert.clone() };
        assert!(takes_header(&plain, &with) && !takes_header(&plain, &without), "{plain:?}");
        assert!(!takes_header(&invert, &with) && !takes_header(&invert, &without), "{invert:?}");
        assert!(!takes_header(&missing, &with) && takes_header(&missing, &without), "{missing:?}");
    }
    for (wanted, invert) in [(true, false), (true, true), (false, false), (false, true)] {
        let present = HeaderMatcher { invert, ..with_header("x", HeaderMatch::Present(wanted)) };
        assert_eq!(takes_header(&present, &with), wanted != invert, "{present:?}");
        assert_eq!(takes_header(&present, &without), wanted == invert, "{present:?}");
    }
}

#[test]
fn several_values_of_a_header_are_one_joined_by_commas() {
    let request = Request::get("h", "/").header("x", "a").header("x", "b");
    for (want, holds) in [("a,b", true), ("a", false), ("b", false)] {
        assert_eq!(takes_header(&with_header("x", exact(want)), &request), holds, "{want}");
    }
}

#[test]
fn binary_headers_count_as_absent() {
    let request = Request::get("h", "/").header("x-bin", "AA==");
    assert!(!takes_header(&with_header("x-bin", HeaderMatch::Present(true)), &request));
    assert!(takes_header(&with_header("x-bin", HeaderMatch::Present(false)), &request));
    assert!(!takes_header(&with_header("x-bin", exact("AA==")), &request));
}

#[test]
fn pseudo_headers_are_those_of_the_request() {
    let request = Request::get("Reviews:80", "/a?b");
    for (name, value) in [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "Reviews:80"),
        ("host", "Reviews:80"),
        (":path", "/a?b"),
    ] {
        assert!(takes_header(&with_header(name, exact(value)), &request), "{name}");
        assert!(!takes_header(&with_header(name, exact("else")), &request), "{name}");
    }
}

#[test]
fn a_header_range_excludes_its_end_and_takes_integers_only() {
    let range = with_header("x", HeaderMatch::Range { start: -5, end: 10 });
    for (value, want) in [
        ("-5", true),
        ("9", true),
        ("10", false),
        ("-6", false),
        ("1.0", false),
        ("", false),
        ("99999999999999999999", false),
    ] {
        assert_eq!(takes_header(&range, &Request::get("h", "/").header("x", value)), want, "{value}");
    }
}

#[test]
fn header_values_that_are_not_utf8_match_as_bytes() {
    let mut request = Request::get("h", "/");
    request.headers.insert("x", HeaderValue::from_bytes(b"abc\xff").unwrap());
    let text = |pattern| with_header("x", HeaderMatch::Text(StringMatcher { pattern, ignore_case: true }));
    assert!(takes_header(&text(StringMatch::Prefix("ABC".into())), &request));
    assert!(takes_header(&text(StringMatch::Contains("bC".into())), &request));
    assert!(!takes_header(&text(StringMatch::Exact("abc".into())), &request));
    assert!(!takes_header(&text(StringMatch::Regex(Pattern::new("abc.").unwrap())), &request));
}

#[test]
fn the_first_value_of_a_query_parameter_counts_percent_decoded() {
    let query = |name: &str, value: QueryMatch| RouteMatch {
        query: vec![QueryMatcher { name: name.into(), value }],
        ..RouteMatch::any()
    };
    let request = Request::get("h", "/?a=x%20y&a=z&flag&%62=1");
    let text = |text: &str| QueryMatch::Text(StringMatcher::exact(text));
    for (name, value, want) in [
        ("a", text("x y"), true),
        ("a", text("z"), false),
        ("flag", QueryMatch::Present(true), true),
        ("flag", QueryMatch::Present(false), false),
        ("flag", text(""), true),
        ("b", text("1"), true),
        ("c", QueryMatch::Present(true), false),
        ("c", QueryMatch::Present(false), true),
        ("c", text(""), false),
    ] {
        let matcher = query(name, value);
        assert_eq!(takes(matcher.clone(), &request), want, "{matcher:?}");
    }
    assert!(takes(query("c", QueryMatch::Present(false)), &Request::get("h", "/")), "without a query");
}

#[test]
fn methods_and_shares() {
    let get = RouteMatch { methods: vec!["POST".into(), "GET".into()], ..RouteMatch::any() };
    assert!(takes(get.clone(), &Request::get("h", "/")));
    assert!(!takes(get, &Request { method: Method::PUT, ..Request::get("h", "/") }));

    let tenth = RouteMatch { fraction: Some(PerMillion::new(100_000)), ..RouteMatch::any() };
    assert!(takes(tenth.clone(), &Request { draw: 99_999, ..Request::get("h", "/") }));
    assert!(!takes(tenth, &Request { draw: 100_000, ..Request::get("h", "/") }));
}

#[test]
fn the_share_is_drawn_only_when_all_else_holds() {
    let path = PathMatch::Exact("/a".into());
    let matcher = RouteMatch { fraction: Some(PerMillion::ALL), ..with_path(path) };
    let table = compile(vec![host(&["*"], vec![route("share", matcher)])]);
    let draws = std::cell::Cell::new(0);
    let draw = || {
        draws.set(draws.get() + 1);
        0
    };
    for path in ["/b", "/a"] {
        Request::get("h", path).see(|view| table.route(&RequestView { draw: &draw, ..*view }).is_some());
    }
    assert_eq!(draws.get(), 1);
}

#[test]
fn routes_for_other_callers_and_ports_are_left_out_and_explained() {
    let labels = |value: &str| BTreeMap::from([("app".to_owned(), value.to_owned())]);
    let table = compile(vec![host(
        &["reviews"],
        vec![
            route("port", RouteMatch { port: Some(81), ..RouteMatch::any() }),
            route("namespace", RouteMatch { source_namespace: Some("prod".into()), ..RouteMatch::any() }),
            route("path", with_path(PathMatch::Exact("/a".into()))),
            route("labels", RouteMatch { source_labels: labels("other"), ..RouteMatch::any() }),
            route("mine", RouteMatch { source_labels: labels("web"), port: Some(80), ..RouteMatch::any() }),
            route("never", RouteMatch::any()),
        ],
    )]);
    let request = Request::get("reviews:80", "/");
    assert_eq!(table.routes().len(), 3);
    request.see(|view| {
        let found = table.route(view).unwrap();
        assert_eq!((found.route().name.as_str(), found.index(), found.id()), ("mine", 4, 1));
        let explained = serde_json::to_value(table.explain(view)).unwrap();
        assert_eq!(
            explained,
            serde_json::json!({
                "route_configuration": "routes",
                "authority": "reviews:80",
                "virtual_host": { "name": "reviews", "domain": "reviews" },
                "tried": [
                    { "index": 0, "name": "port", "failed": "it is for port 81; the request is dialled to port 80" },
                    { "index": 1, "name": "namespace",
                      "failed": "it is for callers in namespace \"prod\"; this one is in \"default\"" },
                    { "index": 2, "name": "path", "failed": "path \"/\" is not \"/a\"" },
                    { "index": 3, "name": "labels",
                      "failed": "it is for callers with label app=other; this one has app=web" },
                    { "index": 4, "name": "mine", "failed": null },
                ],
                "decision": { "route": { "index": 4, "name": "mine", "id": 1 } },
            })
        );
    });
}

#[test]
fn an_explanation_names_the_condition_and_keeps_header_values_to_itself() {
    let header = with_header("authorization", exact("Bearer right"));
    let matcher = RouteMatch { headers: vec![header], ..RouteMatch::any() };
    let table = compile(vec![host(&["*"], vec![route("secret", matcher)])]);
    let request = Request::get("h", "/").header("authorization", "Bearer s3cret");
    let explained = request.see(|view| table.explain(view));
    assert_eq!(explained.decision, Decision::NoRoute);
    assert_eq!(
        explained.tried[0].failed.as_deref(),
        Some("header \"authorization\" is not as asked: \"Bearer right\"")
    );
}

#[test]
fn the_rewrite_belongs_to_the_route_that_matched() {
    let mut forward = Forward::to(ClusterName::new("c"));
    forward.rewrite.path = Some(PathRewrite::Prefix("/v1".into()));
    let mut rewriting = route("rewriting", with_path(PathMatch::Prefix("/API".into())));
    rewriting.matcher.case_sensitive = false;
    rewriting.action = RouteAction::Forward(Box::new(forward));
    let table = compile(vec![host(&["*"], vec![rewriting, route("plain", RouteMatch::any())])]);
    let rewritten = |path| Request::get("h", path).see(|view| table.route(view).unwrap().rewrite_path(path));
    assert_eq!(rewritten("/api/x?y").as_deref(), Some("/v1/x?y"));
    assert_eq!(rewritten("/other"), None);
}

// Few letters, so that generated tables and requests meet often.
const TEXTS: [&str; 8] = ["", "a", "A", "ab", "b", "a,b", "1", "-3"];
const PATTERNS: [&str; 6] = ["a|ab", ".*", "[ab]+", "a?b?", "(?i)ab", "/a(/.*)?"];
const PATHS: [&str; 9] = ["/", "/a", "/A", "/ab", "/a/", "/a/b", "/b?a=b", "/a?a=a%2Cb&a=1", "/?b&A=ab"];
const AUTHORITIES: [&str; 9] = ["a", "A:80", "b.a", "ab.a:80", "a.b", ".a", "b.a.", "", "c"];
const DOMAINS: [&str; 11] = ["*", "a", "a:80", "*.a", "*a", "b*", "a.*", "*.a:80", "ab.a", "a:*", "*:80"];

fn text() -> impl Strategy<Value = StringMatcher> {
    let texts = || select(&TEXTS[..]).prop_map(str::to_owned);
    let pattern = prop_oneof![
        texts().prop_map(StringMatch::Exact),
        texts().prop_map(StringMatch::Prefix),
        texts().prop_map(StringMatch::Suffix),
        texts().prop_map(StringMatch::Contains),
        select(&PATTERNS[..]).prop_map(|p| StringMatch::Regex(Pattern::new(p).unwrap())),
    ];
    (pattern, any::<bool>()).prop_map(|(pattern, ignore_case)| StringMatcher { pattern, ignore_case })
}

fn header() -> impl Strategy<Value = HeaderMatcher> {
    let names = select(&["x", "y", "x-bin", ":method", ":path", ":scheme"][..]);
    let value = prop_oneof![
        3 => text().prop_map(HeaderMatch::Text),
        1 => any::<bool>().prop_map(HeaderMatch::Present),
        1 => (-4_i64..2, 0_i64..3).prop_map(|(start, end)| HeaderMatch::Range { start, end }),
    ];
    (names, value, any::<bool>(), any::<bool>()).prop_map(|(name, value, invert, treat_missing_as_empty)| {
        HeaderMatcher { name: HeaderKey::parse(name).unwrap(), value, invert, treat_missing_as_empty }
    })
}

fn path() -> impl Strategy<Value = PathMatch> {
    let plain = || select(&PATHS[..6]).prop_map(str::to_owned);
    prop_oneof![
        plain().prop_map(PathMatch::Exact),
        plain().prop_map(PathMatch::Prefix),
        plain().prop_map(PathMatch::PathSeparatedPrefix),
        select(&PATTERNS[..]).prop_map(|p| PathMatch::Regex(Pattern::new(p).unwrap())),
    ]
}

fn route_match() -> impl Strategy<Value = RouteMatch> {
    let value = prop_oneof![text().prop_map(QueryMatch::Text), any::<bool>().prop_map(QueryMatch::Present)];
    let query =
        (select(&["a", "b", "A"][..]), value).prop_map(|(name, value)| QueryMatcher { name: name.to_owned(), value });
    let caller = (
        proptest::option::weighted(0.1, select(&[80_u16, 81][..])),
        proptest::option::weighted(0.1, select(&["default", "other"][..])),
        proptest::option::weighted(0.1, select(&["web", "db"][..])),
    );
    (
        path(),
        any::<bool>(),
        subsequence(vec!["GET", "POST"], 0..=2),
        proptest::collection::vec(header(), 0..2),
        proptest::collection::vec(query, 0..2),
        proptest::option::weighted(0.2, 0_u32..3),
        caller,
    )
        .prop_map(|(path, case_sensitive, methods, headers, query, share, (port, namespace, app))| RouteMatch {
            path,
            case_sensitive,
            methods: methods.into_iter().map(str::to_owned).collect(),
            headers,
            query,
            cookies: Vec::new(),
            fraction: share.map(PerMillion::new),
            port,
            source_labels: app.map(|app| ("app".to_owned(), app.to_owned())).into_iter().collect(),
            source_namespace: namespace.map(str::to_owned),
        })
}

fn hosts() -> impl Strategy<Value = Vec<VirtualHost>> {
    let one = (subsequence(DOMAINS.to_vec(), 1..4), proptest::collection::vec(route_match(), 0..12));
    proptest::collection::vec(one, 0..4).prop_map(|hosts| {
        let routes = |matchers: Vec<RouteMatch>| matchers.into_iter().map(|m| route("r", m)).collect();
        hosts.into_iter().map(|(domains, matchers)| host(&domains, routes(matchers))).collect()
    })
}

fn request() -> impl Strategy<Value = Request> {
    let value = || select(&TEXTS[..]);
    let headers = proptest::collection::vec((select(&["x", "y", "x-bin"][..]), value()), 0..4);
    (select(&AUTHORITIES[..]), any::<bool>(), select(&PATHS[..]), headers, 0_u32..3).prop_map(
        |(authority, get, path, headers, draw)| {
            let method = if get { Method::GET } else { Method::POST };
            let request = Request { method, draw, ..Request::get(authority, path) };
            headers.into_iter().fold(request, |request, (name, value)| request.header(name, value))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_table_routes_as_the_plain_matcher_does_and_explains_what_it_does(
        hosts in hosts(),
        requests in proptest::collection::vec(request(), 1..8),
    ) {
        let config = config(hosts);
        let table = RouteTable::compile(&config, 80, &caller());
        for request in requests {
            request.see(|view| {
                let found = table.route(view);
                let position = found.map(|r| (r.virtual_host, r.index));
                prop_assert_eq!(position, reference::route(&config, 80, &caller(), view), "{:?}", request);

                let explained = table.explain(view);
                let decided = match &explained.decision {
                    Decision::Route { index, id, .. } => Some((*index, *id)),
                    Decision::NoRoute | Decision::NoVirtualHost => None,
                };
                prop_assert_eq!(decided, found.map(|r| (r.index(), r.id())));
                let choices = table.choices(view);
                prop_assert_eq!(choices.route.map(CompiledRoute::id), found.map(CompiledRoute::id));
                prop_assert!(found.is_none_or(|found| choices.possible.iter().any(|other| other.id() == found.id())));
                let order: Vec<_> = explained.tried.iter().map(|t| t.index).collect();
                prop_assert!(order.iter().copied().eq(0..order.len()), "every route in order: {:?}", order);
                prop_assert_eq!(explained.tried.iter().filter(|t| t.failed.is_none()).count(), usize::from(found.is_some()));
                Ok(())
            })?;
        }
    }
}

#[test]
fn a_route_that_is_chosen_by_joined_values_is_one_of_those_that_are_possible() {
    let value = HeaderMatch::Text(StringMatcher {
        pattern: StringMatch::Regex(Pattern::new("[ab]+").unwrap()),
        ignore_case: false,
    });
    let name = HeaderKey::parse("x").unwrap();
    let policy = HeaderMatcher { name, value, invert: true, treat_missing_as_empty: false };
    let condition = HeaderCondition::new(&policy);
    let part = Part::Header(&condition);
    for (values, chosen, surely) in [(&["a", "a"][..], true, false), (&["a"], false, false), (&["c"], true, true)] {
        let request = values.iter().fold(Request::get("a", "/"), |request, value| request.header("x", value));
        request.see(|view| {
            assert_eq!(part.holds(view, ""), chosen, "{values:?}");
            assert_eq!(part.choices(view, ""), (surely, chosen, chosen), "{values:?}");
        });
    }
}

#[test]
fn spaces_around_a_value_hide_it_from_no_rule_that_denies() {
    let policy = HeaderMatcher {
        name: HeaderKey::parse("x-role").unwrap(),
        value: HeaderMatch::Text(StringMatcher { pattern: StringMatch::Exact("admin".into()), ignore_case: false }),
        invert: false,
        treat_missing_as_empty: false,
    };
    let condition = HeaderCondition::for_rbac(&policy);
    for (value, readings) in
        [("admin", (true, true)), ("admin ", (false, true)), ("\tadmin", (false, true)), ("adm in", (false, false))]
    {
        Request::get("a", "/")
            .header("x-role", value)
            .see(|view| assert_eq!(condition.readings(view), readings, "{value:?}"));
    }
}
