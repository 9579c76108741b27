//! RequestAuthentications from manifest to listener, and conditions on tokens in AuthorizationPolicies.

use std::time::Duration;

use mesh_core::jwt::KeySet;
use mesh_core::policy::{
    InboundListener, JwtAuthentication, JwtClaimHeader, JwtHeader, JwtKeys, JwtProvider, JwtRequirement, JwtRule,
    MetadataMatch, MetadataValue, Principal, RouteMatch, StringMatcher,
};

use super::authorization::inbound;
use super::*;
use crate::finding::Severity;
use crate::jwks::{Keys, Known};
use crate::model::KeySource;

const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

/// A key set, as [`PublicKeys`](crate::model::PublicKeys) writes it.
fn key_set(kid: &str) -> String {
    let written = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"{kid}","x":"{X}"}}]}}"#);
    crate::model::PublicKeys::read(&written).unwrap().text
}

fn authentication(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

/// A rule with its keys written down.
fn inline(issuer: &str) -> String {
    format!("{{issuer: '{issuer}', jwks: '{}'}}", key_set(issuer))
}

/// The listener, which is the same over the wire.
fn listener(world: &World, namespace: &str) -> InboundListener {
    let listener = inbound(world, namespace);
    let encoded = mesh_discovery::codec::encode_inbound(&listener);
    let mesh_discovery::codec::AnyListener::Inbound(decoded) =
        mesh_discovery::codec::decode_listener(&encoded).unwrap().value
    else {
        panic!("inbound")
    };
    assert_eq!(decoded.jwt, listener.jwt);
    assert_eq!(decoded.authorization, listener.authorization);
    listener
}

fn providers(world: &World, namespace: &str) -> Vec<JwtProvider> {
    let demands = listener(world, namespace).jwt;
    assert!(demands.len() <= 1, "{demands:?}");
    demands.into_iter().flat_map(|demand| demand.providers.into_values()).collect()
}

fn issuers(text: &str, namespace: &str) -> Vec<String> {
    providers(&world(text), namespace).into_iter().map(|provider| provider.issuer).collect()
}

#[test]
fn a_rule_says_where_tokens_are_and_what_becomes_of_them() {
    let rule = format!(
        "{{issuer: 'https://a.test', audiences: [shop], jwks: '{}', fromHeaders: [{{name: X-Token, prefix: 'Token '}}], \
         fromParams: [token], fromCookies: [session], outputPayloadToHeader: X-Payload, outputClaimToHeaders: \
         [{{header: X-Group, claim: realm.group}}], forwardOriginalToken: true, spaceDelimitedClaims: [roles]}}",
        key_set("a")
    );
    let text = authentication("one", "shop", &format!("{{jwtRules: [{rule}]}}"));
    let world = world(&text);
    assert!(world.findings().is_empty(), "{:?}", world.findings());
    let provider = JwtProvider {
        issuer: "https://a.test".into(),
        audiences: vec!["shop".into()],
        subjects: None,
        require_expiration: false,
        max_lifetime: None,
        keys: JwtKeys::Inline(key_set("a")),
        forward: true,
        from_headers: vec![JwtHeader { name: "x-token".parse().unwrap(), prefix: "Token ".into() }],
        from_params: vec!["token".into()],
        from_cookies: vec!["session".into()],
        payload_header: Some("x-payload".parse().unwrap()),
        pad_payload_header: false,
        claim_headers: vec![JwtClaimHeader { name: "x-group".parse().unwrap(), claim: "realm.group".into() }],
        payload_in_metadata: "payload".into(),
        space_delimited: ["permission", "roles", "scope"].map(str::to_owned).to_vec(),
        clock_skew: Duration::from_secs(60),
    };
    // A request without a token passes; of what it has, all must be good.
    let rules = vec![JwtRule { matcher: RouteMatch::any(), requirement: Some(JwtRequirement::AllowMissing) }];
    let demand = JwtAuthentication {
        name: "envoy.filters.http.jwt_authn".into(),
        providers: [("origins-0".to_owned(), provider)].into(),
        rules,
        bypass_cors_preflight: true,
    };
    assert_eq!(listener(&world, "shop").jwt, [demand]);
    assert!(listener(&world, "other").jwt.is_empty());
}

#[test]
fn s53_the_rules_of_every_object_for_a_workload_are_taken_together() {
    let rules = |issuer: &str| format!("jwtRules: [{}]", inline(issuer));
    let selecting =
        |app: &str, issuer: &str| format!("{{selector: {{matchLabels: {{app: {app}}}}}, {}}}", rules(issuer));
    let all = [
        authentication("root", "istio-system", &format!("{{{}}}", rules("root"))),
        authentication("root-a", "istio-system", &selecting("a", "root-a")),
        authentication("root-b", "istio-system", &selecting("b", "root-b")),
        authentication("all", "shop", &format!("{{{}}}", rules("shop"))),
        authentication("a", "shop", &selecting("a", "shop-a")),
        authentication("b", "shop", &selecting("b", "shop-b")),
        authentication("again", "shop", &selecting("a", "shop-a")),
        authentication("other", "other", &format!("{{{}}}", rules("other"))),
    ]
    .concat();
    // The caller of `inbound` has the label app: a.
    assert_eq!(issuers(&all, "shop"), ["root", "root-a", "shop", "shop-a"]);
    assert_eq!(issuers(&all, "other"), ["other", "root", "root-a"]);
    assert_eq!(issuers(&all, "istio-system"), ["root", "root-a"]);
    let target = |name: &str| {
        authentication("t", "shop", &format!("{{targetRefs: [{{kind: Service, name: {name}}}], {}}}", rules("t")))
    };
    assert_eq!(issuers(&(target("a") + &service("a", "shop", HTTP)), "shop"), ["t"]);
    assert_eq!(issuers(&(target("b") + &service("b", "shop", HTTP)), "shop"), [""; 0]);
    let missing = world(&target("b"));
    assert!(missing.findings()[0].message.contains("no Service \"b\""), "{:?}", missing.findings());
}

#[test]
fn s49_an_issuer_whose_keys_are_not_known_has_no_good_tokens_and_the_others_do() {
    const URL: &str = "https://a.test/keys";
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let rules = format!("{{jwtRules: [{{issuer: a, jwksUri: '{URL}'}}, {}]}}", inline("b"));
    let text = authentication("one", "shop", &rules);
    let with = |known: Option<Known>| {
        let keys: Keys = known.map(|known| (KeySource::Uri(URL.into()), known)).into_iter().collect();
        world(&text).with_keys(Arc::new(keys))
    };
    let keys_of_a = |world: &World| match &providers(world, "shop")[..] {
        [a, b] => {
            assert_eq!(b.keys, JwtKeys::Inline(key_set("b")), "the other is as it was");
            match &a.keys {
                JwtKeys::Inline(keys) if keys.contains("no key is known") => keys.clone(),
                // Servers that are cut off use them no longer than this control plane would.
                JwtKeys::Fetched { jwks, max_age } if *max_age == DAY => jwks.clone(),
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    };
    let failed = |document: Option<String>| Known {
        document: document.map(Into::into),
        failure: Some("no answer".into()),
        max_age: DAY,
    };
    let found = |world: &World| {
        let findings = world.findings().iter().map(|f| (f.severity, f.field.clone(), f.message.clone()));
        findings.collect::<Vec<_>>()
    };
    let unknown = with(None);
    // A set that servers take, and that is nobody's; an analysis that asked nobody finds nothing.
    assert!(KeySet::parse(&keys_of_a(&unknown)).is_ok() && keys_of_a(&unknown).contains("no key is known"));
    assert!(found(&unknown).is_empty());
    let known = |document: String| Known { document: Some(document.into()), failure: None, max_age: DAY };
    let fetched = with(Some(known(key_set("a"))));
    assert_eq!(keys_of_a(&fetched), key_set("a"));
    assert!(found(&fetched).is_empty());
    // Of nine keys without a name one is never tried.
    let key = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}"}}"#, "A".repeat(43));
    let nine = format!(r#"{{"keys":[{}]}}"#, vec![key; 9].join(","));
    let told = found(&with(Some(known(nine))));
    assert!(told.len() == 1 && told[0].2.contains("1 of 9 keys"), "{told:?}");
    let never = with(Some(failed(None)));
    assert_eq!(keys_of_a(&never), keys_of_a(&unknown));
    let [(Severity::Error, field, message)] = &found(&never)[..] else { panic!("{:?}", found(&never)) };
    assert!(field == "spec.jwtRules[0].jwksUri" && message.contains("no answer; until they can be"), "{message}");
    let stale = with(Some(failed(Some(key_set("a")))));
    assert_eq!(keys_of_a(&stale), key_set("a"));
    let [(Severity::Error, _, message)] = &found(&stale)[..] else { panic!("{:?}", found(&stale)) };
    assert!(message.contains("fetched last stay in force"), "{message}");
    // Nobody's keys are not those of another source.
    let other = world(&text.replace(URL, "https://c.test/keys"));
    assert_ne!(keys_of_a(&other), keys_of_a(&unknown));
}

#[test]
fn s49_an_object_that_is_not_valid_makes_every_token_bad_until_it_is_corrected() {
    let broken = authentication("one", "shop", "{jwtRules: [{issuer: a, jwks: '{}'}]}");
    let world = world(&broken);
    let finding = &world.findings()[0];
    assert!(finding.severity == Severity::Error && finding.message.contains("every token is refused"), "{finding}");
    let issuers: Vec<_> = providers(&world, "shop").into_iter().map(|p| (p.issuer, p.keys)).collect();
    let nobodys = |keys: &JwtKeys| matches!(keys, JwtKeys::Inline(text) if text.contains("no key is known"));
    assert_eq!(issuers.iter().map(|(issuer, _)| &**issuer).collect::<Vec<_>>(), ["", "a"], "anybody's");
    assert!(issuers.iter().all(|(_, keys)| nobodys(keys)), "{issuers:?}");
    // A good version before it stays instead.
    let good = authentication("one", "shop", &format!("{{jwtRules: [{}]}}", inline("a")));
    let first = Model::from_texts([("a.yaml", &*good)]);
    let manifests = crate::source::Manifests::from_texts([("a.yaml", &*broken)]);
    let kept = World::build(&Model::build(&manifests, Some(&first)), &[]);
    assert_eq!(providers(&kept, "shop")[0].keys, JwtKeys::Inline(key_set("a")));
}

fn on(path: &[&str], value: MetadataValue) -> Principal {
    let path = std::iter::once("payload").chain(path.iter().copied()).map(str::to_owned).collect();
    Principal::Metadata(MetadataMatch { filter: "envoy.filters.http.jwt_authn".into(), path, value, invert: false })
}

/// What a rule's source says, the condition being its only one.
fn principal(rule: &str) -> Principal {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: one, namespace: shop}}\nspec: {{rules: [{rule}]}}\n"
    );
    let world = world(&text);
    assert!(world.findings().is_empty(), "{rule}: {:?}", world.findings());
    let rule = listener(&world, "shop").authorization[0].rules[0].clone();
    let [principal] = &rule.principals[..] else { panic!("{rule:?}") };
    principal.clone()
}

#[test]
fn request_principals_are_conditions_on_issuer_and_subject() {
    let of = |text: &str| principal(&format!("{{from: [{{source: {{requestPrincipals: ['{text}']}}}}]}}"));
    let any = || StringMatcher {
        pattern: StringMatch::Regex(mesh_core::policy::Pattern::new(".+").unwrap()),
        ignore_case: false,
    };
    let exact = StringMatcher::exact;
    let with = |pattern| StringMatcher { pattern, ignore_case: false };
    let starts = |text: &str| with(StringMatch::Prefix(text.into()));
    let ends = |text: &str| with(StringMatch::Suffix(text.into()));
    let both = |issuer, subject| {
        Principal::And(vec![on(&["iss"], MetadataValue::Text(issuer)), on(&["sub"], MetadataValue::Text(subject))])
    };
    for (text, wanted) in [
        ("*", both(any(), any())),
        ("https://a.test/alice", both(exact("https://a.test"), exact("alice"))),
        ("https://a.test/b/alice", both(exact("https://a.test/b"), exact("alice"))),
        ("a@b.test/alice", both(exact("a@b.test"), exact("alice"))),
        ("https://a.test/*", both(exact("https://a.test"), any())),
        ("https://a.test/al*", both(exact("https://a.test"), starts("al"))),
        ("*/alice", both(any(), exact("alice"))),
        ("*.test/alice", both(ends(".test"), exact("alice"))),
        ("*ice", both(any(), ends("ice"))),
        ("a@b*", both(starts("a@b"), any())),
    ] {
        assert_eq!(of(text), wanted, "{text}");
        assert_eq!(principal(&format!("{{when: [{{key: request.auth.principal, values: ['{text}']}}]}}")), wanted);
    }
    let not = principal("{from: [{source: {notRequestPrincipals: ['*']}}]}");
    assert_eq!(not, Principal::Not(Box::new(both(any(), any()))));
}

#[test]
fn claims_are_texts_or_lists_of_them() {
    let claim = |path: &[&str], text: StringMatcher| {
        on(path, MetadataValue::OneOf(vec![MetadataValue::Text(text.clone()), MetadataValue::AnyText(text)]))
    };
    let when = |key: &str, value: &str| principal(&format!("{{when: [{{key: '{key}', values: ['{value}']}}]}}"));
    assert_eq!(when("request.auth.audiences", "shop"), claim(&["aud"], StringMatcher::exact("shop")));
    assert_eq!(when("request.auth.presenter", "app"), claim(&["azp"], StringMatcher::exact("app")));
    assert_eq!(when("request.auth.claims[group]", "admin"), claim(&["group"], StringMatcher::exact("admin")));
    let nested = StringMatcher { pattern: StringMatch::Prefix("ad".into()), ignore_case: false };
    assert_eq!(when("request.auth.claims[realm][roles]", "ad*"), claim(&["realm", "roles"], nested));
}
