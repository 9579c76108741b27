//! What refuses an AuthorizationPolicy and a RequestAuthentication.

use mesh_core::policy::OF_PEER;

use super::*;

#[test]
fn authorization_policy_rejections() {
    let policy = |spec: &str| object("security.istio.io/v1", "AuthorizationPolicy", "a", spec);
    let bad = |spec: &str, field: &str, message: &str| rejects(&policy(spec), field, message);
    bad("{action: ALLOWED}", "spec.action", "not one of");
    bad("{action: DENY}", "spec.rules", "rules: [{}]");
    bad("{action: DENY, rules: []}", "spec.rules", "rules: [{}]");
    bad("{action: CUSTOM, rules: [{}]}", "spec.provider.name", "needs the name");
    bad("{provider: {name: x}}", "spec.provider", "only CUSTOM");
    bad("{targetRefs: [{kind: Pod, name: g}]}", "spec.targetRefs[0]", "a target is a Service");
    bad("{targetRef: {kind: Service, name: a, namespace: b}}", "spec.targetRef.namespace", "own namespace");
    bad(
        "{targetRefs: [{kind: Service, name: a}], selector: {matchLabels: {a: b}}}",
        "spec.selector",
        "excludes targets",
    );
    accepts(&policy("{targetRefs: [{kind: Service, name: a}]}"));
    bad("{rules: [null]}", "spec.rules[0]", "needed");
    bad("{rules: [{from: []}]}", "spec.rules[0].from", "empty");
    bad("{rules: [{to: []}]}", "spec.rules[0].to", "empty");
    bad("{rules: [{from: [{}]}]}", "spec.rules[0].from[0].source", "at least one");
    bad("{rules: [{to: [{operation: {}}]}]}", "spec.rules[0].to[0].operation", "at least one");
    bad("{rules: [{to: [{operation: {path: [/a]}}]}]}", "spec.rules[0].to[0].operation.path", "did you mean paths");
    let source = |field: &str, at: &str, message: &str| {
        bad(
            &format!("{{rules: [{{from: [{{source: {{{field}}}}}]}}]}}"),
            &format!("spec.rules[0].from[0].source.{at}"),
            message,
        );
    };
    source("principals: ['']", "principals[0]", "empty");
    source("principals: ['spiffe://a/ns/b/sa/c']", "principals[0]", "without spiffe://");
    source("principals: ['a*b']", "principals[0]", "beginning or at the end");
    source("namespaces: ['Bad_Name']", "namespaces[0]", "not a namespace");
    source("serviceAccounts: ['a*']", "serviceAccounts[0]", "not a service account");
    source("serviceAccounts: [a], namespaces: [b]", "serviceAccounts", "neither principals nor namespaces");
    source("trustDomains: ['a/b']", "trustDomains[0]", "not a trust domain");
    source("requestPrincipals: [alice]", "requestPrincipals[0]", "no slash");
    source("requestPrincipals: ['https://a.test/']", "requestPrincipals[0]", "no subject");
    source("requestPrincipals: ['https://a.test*']", "requestPrincipals[0]", "ends at the last slash");
    source("notRequestPrincipals: ['a*/b*']", "notRequestPrincipals[0]", "beginning or at the end");
    source("ipBlocks: ['300.0.0.1']", "ipBlocks[0]", "neither an IP address");
    source("notRemoteIpBlocks: ['10.0.0.0/33']", "notRemoteIpBlocks[0]", "neither an IP address");
    let operation = |field: &str, at: &str, message: &str| {
        bad(
            &format!("{{rules: [{{to: [{{operation: {{{field}}}}}]}}]}}"),
            &format!("spec.rules[0].to[0].operation.{at}"),
            message,
        );
    };
    operation("ports: ['0']", "ports[0]", "65535");
    operation("ports: [http]", "ports[0]", "not a port");
    operation("paths: [admin]", "paths[0]", "begin with a slash");
    operation("paths: ['/a//b']", "paths[0]", "write \"/a/b\"");
    operation("paths: ['/a/../b*']", "paths[0]", "write \"/b\"");
    operation("paths: ['/a?x=1']", "paths[0]", "without their query");
    operation("paths: ['/a%3Ab']", "paths[0]", "write \"/a:b\"");
    operation("paths: ['/%61dmin/{*}']", "paths[0]", "normal form");
    operation("paths: ['/a/../admin/{**}']", "paths[0]", "normal form");
    operation("paths: ['*/%61dmin']", "paths[0]", "normal form");
    operation("paths: ['*//admin']", "paths[0]", "normal form");
    operation("paths: ['/a/{id}']", "paths[0]", "{id}");
    operation("paths: ['/{**}/{*}']", "paths[0]", "last of its wildcards");
    let when = |spec: &str, at: &str, message: &str| {
        bad(&format!("{{rules: [{{when: [{{{spec}}}]}}]}}"), &format!("spec.rules[0].when[0]{at}"), message);
    };
    when("values: [a]", ".key", "key is needed");
    when("key: source.ip", "", "values or notValues");
    when("key: destination.labels, values: [a]", ".key", "retired");
    when("key: request.header, values: [a]", ".key", "request.headers[name]");
    when("key: 'request.headers[grpc-timeout]', values: [a]", ".key", "A41");
    when("key: 'request.headers[a b]', values: [a]", ".key", "not a header name");
    for name in OF_PEER.into_iter().chain(["te", "x-a-bin", "x_forwarded_client_cert", "Client_Cert"]) {
        when(&format!("key: 'request.headers[{name}]', values: [a]"), ".key", "never seen by a rule");
    }
    for (text, normal) in [("/files/a%3Ab*", "/files/a:b"), ("/x%5by", "/x%5By"), ("/a//b?x=1", "/a/b")] {
        when(&format!("key: 'request.headers[:path]', values: ['{text}']"), ".values[0]", &format!("write {normal:?}"));
        when(&format!("key: 'request.headers[:path]', notValues: ['{text}']"), ".notValues[0]", "normal form");
    }
    // What a path ends in may be its query.
    let ends = "'*%3A', '*//x', '*=http://evil.test', '*/..'";
    accepts(&policy(&format!(
        "{{rules: [{{when: [{{key: 'request.headers[:path]', values: ['*', '/a?x=%3A*', '*.js?v=//', '/.*', {ends}],
        notValues: [{ends}]}}]}}]}}"
    )));
    let dry = |value: &str, action: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, annotations: {{istio.io/dry-run: '{value}'}}}}\n\
             spec: {{action: {action}, rules: [{{}}]}}\n"
        )
    };
    rejects(&dry("maybe", "ALLOW"), "metadata.annotations.istio.io/dry-run", "neither");
    rejects(&dry("true", "AUDIT"), "metadata.annotations.istio.io/dry-run", "only ALLOW and DENY");
    accepts(&dry("true", "DENY"));
    accepts(&policy("{}"));
    accepts(&policy(
        "{rules: [{from: [{source: {requestPrincipals: ['*']}}], to: [{operation: {paths: ['/a/{*}/{**}']}}]}]}",
    ));
    accepts(&policy(
        "{action: CUSTOM, provider: {name: opa}, rules: [{when: [{key: 'request.auth.claims[a][b]', values: [c]}]}]}",
    ));
}

#[test]
fn request_authentication_rejections() {
    let object = |spec: &str| object("security.istio.io/v1", "RequestAuthentication", "a", spec);
    let rule = |rule: &str| object(&format!("{{jwtRules: [{{{rule}}}]}}"));
    let bad = |text: &str, at: &str, message: &str| rejects(&rule(text), &format!("spec.jwtRules[0]{at}"), message);
    const GOOD: &str = "issuer: 'https://a.test', jwksUri: 'https://a.test/keys'";
    let also = |field: &str, at: &str, message: &str| bad(&format!("{GOOD}, {field}"), at, message);
    bad("audiences: [a]", "", "an issuer or a jwksUri is needed");
    bad("issuer: a@b.test", "", "the issuer cannot be asked");
    bad("issuer: 'https://', audiences: [a]", "", "the issuer cannot be asked");
    bad("issuer: a, jwksUri: /keys", "", "does not begin with https://");
    bad("issuer: a, jwksUri: 'ftp://a.test/keys'", "", "does not begin with https://");
    bad("issuer: a, jwksUri: 'https://user:word@a.test/keys'", "", "names and passwords");
    bad("issuer: a, jwks: '{\"keys\": []}'", "", "none of its keys");
    bad("issuer: a, jwks: 'no json'", "", "jwks");
    bad("issuer: a, jwks: '{\"keys\": [{\"kty\": \"oct\", \"k\": \"c2VjcmV0\"}]}'", "", "none of its keys");
    bad(&format!("{GOOD}, jwks: '{{\"keys\": []}}'"), "", "exclude each other");
    bad("jwks: '{\"keys\": []}'", "", "need the issuer");
    also("audiences: ['']", ".audiences[0]", "an empty text");
    also("fromParams: ['']", ".fromParams[0]", "an empty text");
    also("fromCookies: ['']", ".fromCookies[0]", "an empty text");
    also("spaceDelimitedClaims: ['']", ".spaceDelimitedClaims[0]", "an empty text");
    also("fromHeaders: [{prefix: a}]", ".fromHeaders[0].name", "not a header name");
    also("fromHeaders: [{name: 'a b'}]", ".fromHeaders[0].name", "not a header name");
    also("outputPayloadToHeader: ':path'", ".outputPayloadToHeader", "not a header name");
    also("outputClaimToHeaders: [{header: x-a}]", ".outputClaimToHeaders[0].claim", "needed");
    also("outputClaimToHeaders: [{claim: a}]", ".outputClaimToHeaders[0].header", "not a header name");
    for name in ["Host", "content-length", "Transfer-Encoding", "connection", "te", "X-Forwarded-Client-Cert"] {
        also(&format!("outputPayloadToHeader: {name}"), ".outputPayloadToHeader", "take another header");
        let claims = format!("outputClaimToHeaders: [{{claim: a, header: x-a}}, {{claim: a, header: {name}}}]");
        also(&claims, ".outputClaimToHeaders[1].header", "take another header");
    }
    also("timeout: 0s", ".timeout", "no time");
    also("timeout: soon", ".timeout", "not a duration");
    also("audience: [a]", ".audience", "did you mean audiences");
    rejects(
        &object("{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: a}]}"),
        "spec.selector",
        "excludes",
    );
    rejects(&object("{targetRef: {kind: Pod, name: a}}"), "spec.targetRef", "a target is a Service");
    accepts(&rule(GOOD));
    accepts(&rule(&GOOD.replace("jwksUri", "jwks_uri")));
    accepts(&rule("jwksUri: 'https://a.test/keys'"));
    accepts(&rule("issuer: 'https://a.test'"));
    let warned = |text: &str, field: &str, message: &str| {
        accepts(text);
        let found = findings(text);
        let said = found.iter().any(|f| f.field == field && f.message.contains(message));
        assert!(said, "{found:?}");
    };
    warned(&object("{}"), "spec.jwtRules", "no effect");
    warned(&rule(&format!("{GOOD}, timeout: 11s")), "spec.jwtRules[0].timeout", "within 10s");
    assert!(findings(&rule(&format!("{GOOD}, timeout: 10s"))).is_empty());
    let private =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","d":"nWGxne"}]}"#;
    warned(&rule(&format!("issuer: a, jwks: '{private}'")), "spec.jwtRules[0].jwks", "private keys");
    let nameless = |n: usize| {
        let key = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}"}}"#, "A".repeat(43));
        rule(&format!("issuer: a, jwks: '{{\"keys\":[{}]}}'", vec![key; n].join(",")))
    };
    warned(&nameless(9), "spec.jwtRules[0].jwks", "1 of 9 keys");
    assert!(findings(&nameless(8)).is_empty(), "the control: each of eight is tried");
}
