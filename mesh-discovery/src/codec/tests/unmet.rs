//! Conditions of a server's listener that no request ever meets: a DENY with one would be stepped round, a narrow route
//! passed by for a wide one, in silence.

use std::sync::Arc;

use mesh_core::policy::*;

use super::conformance::{Says, says};
use super::refusals_cluster::inbound;
use crate::codec;

const AT: &str = "filter_chains[0].filters[0].http_filters[0].rules.policies[\"r\"]";

fn regex(text: &str) -> Pattern {
    Pattern::new(text).unwrap()
}

fn header(name: &str, pattern: StringMatch) -> HeaderMatcher {
    let value = HeaderMatch::Text(StringMatcher { pattern, ignore_case: false });
    HeaderMatcher { name: HeaderKey::parse(name).unwrap(), value, invert: false, treat_missing_as_empty: false }
}

/// A listener that denies this.
fn deny(permission: Permission) -> InboundListener {
    let rule = AuthorizationRule { name: "r".into(), permissions: vec![permission], principals: vec![Principal::Any] };
    let policy = AuthorizationPolicy {
        name: "p".into(),
        action: AuthorizationAction::Deny,
        dry_run: false,
        rules: vec![rule],
        audit: AuditCondition::default(),
    };
    InboundListener { authorization: vec![policy], ..inbound() }
}

#[test]
fn a_rule_for_a_path_that_no_request_has_in_normal_form_is_refused() {
    let path = |pattern: &str| Permission::Path(PathMatch::Regex(regex(pattern)));
    let target = |pattern: StringMatch| Permission::Header(header(":path", pattern));
    let principal = |permission: Permission| {
        let Permission::Path(path) = permission else { panic!("a path") };
        let mut listener = deny(Permission::Any);
        listener.authorization[0].rules[0].principals = vec![Principal::Path(path)];
        listener
    };
    for (case, listener, refused) in [
        ("a pattern with a needless escape", deny(path("/files/%3A.*")), Some("permissions[0].url_path")),
        ("of a principal", principal(path("/files/%3A.*")), Some("principals[0].url_path")),
        ("a needed escape", deny(path("/files/%22.*")), None),
        (
            "an empty element",
            deny(Permission::Path(PathMatch::Prefix("/a//b".into()))),
            Some("permissions[0].url_path"),
        ),
        // A text is decoded.
        ("a text", deny(Permission::Path(PathMatch::Exact("/files/%3A".into()))), None),
        ("a target", deny(target(StringMatch::Regex(regex("/files/%3A.*")))), Some("permissions[0].header")),
        ("its beginning", deny(target(StringMatch::Prefix("/x%5by".into()))), Some("permissions[0].header")),
        ("its query", deny(target(StringMatch::Exact("/x?a=%5b//".into()))), None),
    ] {
        let at = refused.map(|field| format!("{AT}.{field}"));
        let at: Vec<&str> = at.iter().map(String::as_str).collect();
        let want = if at.is_empty() { Says::Taken } else { Says::Refused(&at) };
        says(case, codec::decode_listener(&codec::encode_inbound(&listener)), &want);
    }
}

#[test]
fn what_nothing_meets_is_taken_where_it_opens_nothing_and_told_of() {
    let path = |pattern: &str| Permission::Path(PathMatch::Regex(regex(pattern)));
    let never = || path("/files/%3A.*");
    let not = |permission: Permission| Permission::Not(Box::new(permission));
    let either = || Permission::Or(vec![Permission::Path(PathMatch::Exact("/a".into())), never()]);
    let inverted = || {
        let target = header(":path", StringMatch::Regex(regex("/files/%3A.*")));
        Permission::Header(HeaderMatcher { invert: true, ..target })
    };
    let custom = || AuthorizationAction::Custom(AuthorizerProvider::named("opa"));
    let (allow, deny_all) = (AuthorizationAction::Allow, AuthorizationAction::Deny);
    for (case, action, dry_run, permission, field, refused) in [
        ("ALLOW", allow.clone(), false, never(), "url_path", false),
        ("one of two of ALLOW", allow.clone(), false, either(), "or_rules.rules[1].url_path", false),
        ("what observes", AuthorizationAction::Audit, false, never(), "url_path", false),
        ("a dry run", deny_all.clone(), true, never(), "url_path", false),
        // All that nothing meets not is all there is.
        ("the rest of ALLOW", allow.clone(), false, not(never()), "not_rule.url_path", true),
        ("the rest of a header", allow.clone(), false, inverted(), "header", true),
        ("DENY", deny_all.clone(), false, never(), "url_path", true),
        ("one of two of DENY", deny_all.clone(), false, either(), "or_rules.rules[1].url_path", true),
        ("CUSTOM", custom(), false, never(), "url_path", true),
        // Of an alternative of a pattern it is told, and the rest holds.
        ("an alternative", allow, false, path("/(a|%3A)"), "url_path", false),
        ("an alternative of DENY", deny_all, false, path("/(a|%3A)"), "url_path", false),
    ] {
        let mut listener = deny(permission);
        (listener.authorization[0].action, listener.authorization[0].dry_run) = (action, dry_run);
        let at = if dry_run { AT.replace(".rules.", ".shadow_rules.") } else { AT.to_owned() };
        let at = format!("{at}.permissions[0].{field}");
        let want = if refused { Says::Refused(&[&at]) } else { Says::Reported(&[&at]) };
        says(case, codec::decode_listener(&codec::encode_inbound(&listener)), &want);
    }
}

#[test]
fn what_looking_at_the_conditions_of_a_listener_costs_is_bounded_and_what_is_not_looked_at_told_once() {
    let dear = |n: usize| Permission::Path(PathMatch::Regex(regex(&format!("/[a-z]{{200}}/{n}"))));
    let decoded = |n: usize| {
        let mut listener = deny(Permission::Any);
        listener.authorization[0].rules[0].permissions = (0..n).map(dear).collect();
        codec::decode_listener(&codec::encode_inbound(&listener)).unwrap().unenforced.len()
    };
    assert_eq!([decoded(5), decoded(700)], [0, 1]);
}

#[test]
fn a_route_for_a_path_that_no_request_has_in_normal_form_is_refused() {
    let listener = |path: PathMatch| {
        let matcher = RouteMatch { path, ..RouteMatch::any() };
        let route = |matcher| InboundRoute { name: String::new(), matcher, serves: Some(Arc::default()) };
        let routes = vec![route(matcher), route(RouteMatch::any())];
        let host = InboundHost { name: "h".into(), domains: vec![Domain::new("*").unwrap()], routes };
        InboundListener { routes: InboundRoutes::Listed(Arc::from([host])), ..inbound() }
    };
    let said = |path: PathMatch| codec::decode_listener(&codec::encode_inbound(&listener(path))).map(drop);
    for path in [PathMatch::Regex(regex("/files/%3A.*")), PathMatch::Prefix("/a//b".into())] {
        let error = said(path).unwrap_err();
        assert!(error.problems[0].field.ends_with("virtual_hosts[0].routes[0].match"), "{error}");
        assert!(error.problems[0].reason.contains("normal form"), "{error}");
    }
    for path in [PathMatch::Regex(regex("/files/:.*")), PathMatch::Exact("/files/%3A".into())] {
        assert_eq!(said(path), Ok(()));
    }
}

#[test]
fn a_rule_for_a_header_that_counts_as_absent_is_reported() {
    let at = format!("{AT}.permissions[0].header.name");
    let at: &str = &at;
    for (name, is_reported) in [("x-role-bin", true), ("te", true), ("x-role", false)] {
        let want = if is_reported { Says::Reported(std::slice::from_ref(&at)) } else { Says::Taken };
        let listener = deny(Permission::Header(header(name, StringMatch::Exact("admin".into()))));
        says(name, codec::decode_listener(&codec::encode_inbound(&listener)), &want);
    }
}
