//! gRPC's rules for server listeners, case by case (S: security, V: server side), and what is demanded of
//! callers. See `conformance.rs`.

use envoy_types::pb::envoy::config::core::v3::{HttpProtocolOptions, HttpUri};
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener as Proto, filter};
use envoy_types::pb::envoy::config::rbac::v3::{
    self as rbac, rbac::AuditLoggingOptions, rbac::audit_logging_options::AuditLoggerConfig,
};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher as HeaderProto;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtAuthentication as JwtProto, JwtClaimToHeader, JwtProvider as ProviderProto, JwtRequirement as RequirementProto,
    PerRouteConfig, RemoteJwks, RequirementRule, jwt_provider::JwksSourceSpecifier, jwt_requirement::RequiresType,
    per_route_config::RequirementSpecifier, requirement_rule::RequirementType,
};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as LimitProto;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as RbacProto;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext,
    certificate_validation_context::{SystemRootCerts, TrustChainVerification},
    common_tls_context::ValidationContextType,
};
use envoy_types::pb::envoy::r#type::v3::TokenBucket as BucketProto;
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration};
use mesh_core::policy::*;
use prost::Message;

use super::conformance::{Says, says};
use super::refusals::{changed, number};
use super::refusals_cluster::inbound;
use crate::codec::{self, AnyListener, extension, extension::url};

fn server(case: &str, change: impl FnOnce(&mut Proto), want: &Says<'_>) {
    says(case, codec::decode_listener(&changed(codec::encode_inbound(&inbound()), change)), want);
}

pub(super) fn with_manager(change: impl FnOnce(&mut HttpConnectionManager)) -> Any {
    changed::<Proto>(codec::encode_inbound(&inbound()), |proto| {
        let filter = &mut proto.filter_chains[0].filters[0];
        let Some(filter::ConfigType::TypedConfig(any)) = filter.config_type.take() else { panic!("our encoding") };
        filter.config_type = Some(filter::ConfigType::TypedConfig(changed(any, change)));
    })
}

pub(super) fn with_filter(type_url: &str, config: &impl Message) -> Any {
    let filter = codec::filter::encode("f", extension::pack(type_url, config), false);
    with_manager(|m| m.http_filters.insert(0, filter))
}

pub(super) fn decoded(resource: &Any) -> InboundListener {
    match codec::decode_listener(resource).unwrap().value {
        AnyListener::Inbound(listener) => listener,
        other => panic!("{other:?}"),
    }
}

const FILTER: &str = "filter_chains[0].filters[0].http_filters[0]";

#[test]
fn v2_what_a_servers_listener_may_not_have_a36() {
    server("as encoded", |_| {}, &Says::Taken);
    server("listener filters", |l| l.listener_filters.push(Default::default()), &Says::Refused(&["listener_filters"]));
    let original = |l: &mut Proto| l.use_original_dst = Some(BoolValue { value: true });
    server("use_original_dst", original, &Says::Refused(&["use_original_dst"]));
    server("v1: no address", |l| l.address = None, &Says::Refused(&["address"]));
    server("no chain", |l| l.filter_chains.clear(), &Says::Refused(&["filter_chains"]));
    let filters = "filter_chains[0].filters";
    server("no network filter", |l| l.filter_chains[0].filters.clear(), &Says::Refused(&[filters]));
    let unknown = |l: &mut Proto| {
        let any = Any { type_url: "type.googleapis.com/some.Network".into(), value: Vec::new() };
        l.filter_chains[0].filters[0].config_type = Some(filter::ConfigType::TypedConfig(any));
    };
    server("an unknown network filter", unknown, &Says::Refused(&[filters]));
    let twice = |l: &mut Proto| l.filter_chains.push(l.filter_chains[0].clone());
    server("two chains for the same", twice, &Says::Refused(&["filter_chains"]));
    let fault = with_filter(url::FAULT, &RbacProto::default());
    says("a filter of the other side", codec::decode_listener(&fault), &Says::Refused(&[FILTER]));
}

#[test]
fn v3_conditions_of_chains_that_cannot_be_told_are_refused_a36() {
    let with = |condition| move |l: &mut Proto| l.filter_chains[0].filter_chain_match = Some(condition);
    let at = "filter_chains[0].filter_chain_match";
    let plain = FilterChainMatch::default;
    for (name, condition) in [
        ("port", FilterChainMatch { destination_port: number(80), ..plain() }),
        ("prefix", FilterChainMatch { prefix_ranges: vec![Default::default()], ..plain() }),
        ("server name", FilterChainMatch { server_names: vec!["a".into()], ..plain() }),
        ("alpn", FilterChainMatch { application_protocols: vec!["h2".into()], ..plain() }),
        ("source", FilterChainMatch { source_type: 1, ..plain() }),
    ] {
        server(name, with(condition), &Says::Refused(&[at]));
    }
    let transport = format!("{at}.transport_protocol");
    let quic = FilterChainMatch { transport_protocol: "quic".into(), ..plain() };
    server("quic", with(quic), &Says::Refused(&[&transport, "filter_chains"]));
    let by_default = |l: &mut Proto| {
        let chain: FilterChain = l.filter_chains.remove(0);
        l.default_filter_chain = Some(chain);
    };
    server("the default chain", by_default, &Says::Taken);
}

#[test]
fn s3_tls_of_a_server_a29() {
    let with = |change: fn(&mut DownstreamTlsContext)| {
        move |l: &mut Proto| {
            let socket = l.filter_chains[0].transport_socket.as_mut().unwrap();
            use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
            let Some(ConfigType::TypedConfig(any)) = socket.config_type.take() else { panic!("strict") };
            socket.config_type = Some(ConfigType::TypedConfig(changed(any, change)));
        }
    };
    let at = |name: &str| format!("filter_chains[0].transport_socket.{name}");
    server("no context", with(|c| c.common_tls_context = None), &Says::Refused(&[&at("common_tls_context")]));
    let no_client = with(|c| c.require_client_certificate = None);
    server("callers without a certificate", no_client, &Says::Refused(&[&at("require_client_certificate")]));
    let sni = with(|c| c.require_sni = Some(BoolValue { value: true }));
    server("SNI demanded", sni, &Says::Refused(&[&at("require_sni")]));
    server("OCSP", with(|c| c.ocsp_staple_policy = 1), &Says::Refused(&[&at("ocsp_staple_policy")]));
    let tickets = with(|c| c.disable_stateless());
    server("session settings", tickets, &Says::Taken);

    // What would say otherwise who we are or whom we trust than the providers do.
    let own = with(|c| c.common().tls_certificates.push(Default::default()));
    server("a certificate beside a provider", own, &Says::Refused(&[&at("common_tls_context.tls_certificates")]));
    let roots = with(|c| c.validation().trusted_ca = Some(Default::default()));
    let validation = |name: &str| at(&format!("common_tls_context.validation_context.{name}"));
    server("roots beside a provider", roots, &Says::Refused(&[&validation("trusted_ca")]));
    let anybody = with(|c| c.validation().set_trust_chain_verification(TrustChainVerification::AcceptUntrusted));
    server("callers of any root", anybody, &Says::Refused(&[&validation("trust_chain_verification")]));
    // The control: of these a provider has precedence (gRFC A82).
    let system = with(|c| c.validation().system_root_certs = Some(SystemRootCerts {}));
    server("system roots beside a provider", system, &Says::Taken);
}

trait Parts {
    fn common(&mut self) -> &mut CommonTlsContext;
    fn validation(&mut self) -> &mut CertificateValidationContext;
    fn disable_stateless(&mut self);
}

impl Parts for DownstreamTlsContext {
    fn common(&mut self) -> &mut CommonTlsContext {
        self.common_tls_context.as_mut().unwrap()
    }

    fn validation(&mut self) -> &mut CertificateValidationContext {
        match self.common().validation_context_type.as_mut() {
            Some(ValidationContextType::CombinedValidationContext(combined)) => {
                combined.default_validation_context.as_mut().unwrap()
            }
            other => panic!("{other:?}"),
        }
    }

    fn disable_stateless(&mut self) {
        self.disable_stateful_session_resumption = true;
        self.session_timeout = Some(Duration { seconds: 5, nanos: 0 });
    }
}

pub(super) fn rules(audit: Option<AuditLoggingOptions>) -> RbacProto {
    RbacProto {
        rules: Some(rbac::Rbac { action: 0, audit_logging_options: audit, ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn s9_rbac_filters_a41() {
    let rbac = |proto: RbacProto| codec::decode_listener(&with_filter(url::RBAC, &proto));
    says("rules", rbac(rules(None)), &Says::Taken);
    says("no rules", rbac(RbacProto::default()), &Says::Taken);
    let shadow = RbacProto { shadow_rules: rules(None).rules, ..Default::default() };
    let listener = decoded(&with_filter(url::RBAC, &shadow));
    assert!(listener.authorization[0].dry_run);
    let matcher = RbacProto { matcher: Some(Default::default()), ..Default::default() };
    says("a matcher tree", rbac(matcher), &Says::Refused(&[&format!("{FILTER}.matcher")]));
    let mut cel = rules(None);
    let policy = rbac::Policy {
        permissions: vec![rbac::Permission { rule: Some(rbac::permission::Rule::Any(true)) }],
        principals: vec![rbac::Principal { identifier: Some(rbac::principal::Identifier::Any(true)) }],
        condition: Some(Default::default()),
        ..Default::default()
    };
    cel.rules.as_mut().unwrap().policies.insert("p".into(), policy);
    says("CEL", rbac(cel), &Says::Refused(&[&format!("{FILTER}.rules.policies[\"p\"].condition")]));
    let at = format!("{FILTER}.rules.policies[\"p\"].permissions[0].header.name");
    let at: &str = &at;
    let reported = OF_PEER.map(|name| (name, Says::Reported(std::slice::from_ref(&at))));
    for (name, want) in reported.into_iter().chain([("x-role", Says::Taken)]) {
        let mut of_peer = rules(None);
        let header = rbac::permission::Rule::Header(HeaderProto { name: name.into(), ..Default::default() });
        let policy = rbac::Policy {
            permissions: vec![rbac::Permission { rule: Some(header) }],
            principals: vec![rbac::Principal { identifier: Some(rbac::principal::Identifier::Any(true)) }],
            ..Default::default()
        };
        of_peer.rules.as_mut().unwrap().policies.insert("p".into(), policy);
        says(name, rbac(of_peer), &want);
    }
    let unknown = RbacProto { rules: Some(rbac::Rbac { action: 9, ..Default::default() }), ..Default::default() };
    says("an unknown action", rbac(unknown), &Says::Refused(&[&format!("{FILTER}.rules.action")]));
}

#[test]
fn s54_a_filter_that_asks_an_external_authorizer_is_not_passed_over() {
    let with = |type_url: &str, is_optional| {
        let filter = codec::filter::encode("f", extension::pack(type_url, &LimitProto::default()), is_optional);
        codec::decode_listener(&with_manager(|m| m.http_filters.insert(0, filter)))
    };
    for is_optional in [false, true] {
        says("ext_authz", with(url::EXT_AUTHZ, is_optional), &Says::Refused(&[FILTER]));
    }
    // The control: another filter that nobody knows.
    assert!(with("type.googleapis.com/a.b.C", true).is_ok());
}

#[test]
fn s10_the_audit_log_a59() {
    let audit = |type_url: &str, is_optional| {
        let any = Any { type_url: type_url.into(), value: Vec::new() };
        let config = envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig {
            name: "l".into(),
            typed_config: Some(any),
        };
        let logger = AuditLoggerConfig { audit_logger: Some(config), is_optional };
        rules(Some(AuditLoggingOptions { audit_condition: 1, logger_configs: vec![logger] }))
    };
    let listener = decoded(&with_filter(url::RBAC, &audit(url::STDOUT_AUDIT, false)));
    assert_eq!(listener.authorization[0].audit, AuditCondition::OnDeny);
    let at = format!("{FILTER}.rules.audit_logging_options.logger_configs[0]");
    let unknown = |optional| codec::decode_listener(&with_filter(url::RBAC, &audit("some.Logger", optional)));
    says("an unknown logger", unknown(false), &Says::Refused(&[&at]));
    says("an optional one", unknown(true), &Says::Reported(&[&at]));
}

pub(super) fn demand(requirement: RequiresType) -> JwtProto {
    use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
    let keys = DataSource { specifier: Some(Specifier::InlineString("{\"keys\":[]}".into())), ..Default::default() };
    let provider =
        ProviderProto { jwks_source_specifier: Some(JwksSourceSpecifier::LocalJwks(keys)), ..Default::default() };
    JwtProto {
        providers: [("p".to_owned(), provider)].into(),
        rules: vec![RequirementRule {
            r#match: Some(codec::route::encode_match(&RouteMatch::any())),
            requirement_type: Some(RequirementType::Requires(RequirementProto { requires_type: Some(requirement) })),
        }],
        ..Default::default()
    }
}

/// Tokens are asked for before RBAC, and the filter that does it takes headers away and adds some: a list in the other order
/// is refused where it would decide otherwise.
#[test]
fn rbac_before_tokens_looks_at_nothing_that_the_token_filter_changes() {
    let header = HeaderMatcher {
        name: HeaderKey::parse("authorization").unwrap(),
        value: HeaderMatch::Present(true),
        invert: false,
        treat_missing_as_empty: false,
    };
    let method = HeaderMatcher { name: HeaderKey::Method, ..header.clone() };
    let path = HeaderMatcher { name: HeaderKey::Path, ..header.clone() };
    let claim = MetadataMatch {
        filter: MetadataMatch::JWT_AUTHN.into(),
        path: vec!["payload".into()],
        value: MetadataValue::Present(true),
        invert: false,
    };
    let of = |permission: Permission, principal: Principal, dry_run| {
        let rule = AuthorizationRule { name: "r".into(), permissions: vec![permission], principals: vec![principal] };
        let policy = AuthorizationPolicy::new("f", AuthorizationAction::Deny);
        let policy = AuthorizationPolicy { rules: vec![rule], dry_run, ..policy };
        codec::authorization::encode([&policy], Default::default()).remove(0).filter
    };
    let read = |rbac: &RbacProto, tokens_first| {
        let rbac = codec::filter::encode("f", extension::pack(url::RBAC, rbac), false);
        let jwt = demand(RequiresType::ProviderName("p".into()));
        let mut both = vec![rbac, codec::filter::encode("jwt", extension::pack(url::JWT, &jwt), false)];
        if tokens_first {
            both.reverse();
        }
        codec::decode_listener(&with_manager(|m| _ = m.http_filters.splice(0..0, both)))
    };
    let deep = || Permission::Not(Box::new(Permission::And(vec![Permission::Any, Permission::Header(header.clone())])));
    for (case, rbac) in [
        ("a header", of(Permission::Any, Principal::Header(header.clone()), false)),
        ("a header within", of(deep(), Principal::Any, false)),
        ("a query that may be a token", of(Permission::Header(path), Principal::Any, false)),
        ("a claim", of(Permission::Metadata(claim.clone()), Principal::Any, false)),
        ("a claim of who asks", of(Permission::Any, Principal::Metadata(claim), false)),
    ] {
        says(case, read(&rbac, false), &Says::Refused(&[FILTER]));
        says(case, read(&rbac, true), &Says::Taken);
    }
    for (case, rbac) in [
        ("rules that are only tried", of(deep(), Principal::Any, true)),
        ("what no token changes", of(Permission::Header(method), Principal::Authenticated(None), false)),
    ] {
        says(case, read(&rbac, false), &Says::Taken);
    }
}

#[test]
fn demands_on_tokens_are_understood_or_refused() {
    let jwt = |proto: JwtProto| codec::decode_listener(&with_filter(url::JWT, &proto));
    let named = || demand(RequiresType::ProviderName("p".into()));
    says("a provider", jwt(named()), &Says::Taken);
    let mut elsewhere = named();
    let uri = "https://issuer.test/keys".to_owned();
    let http_uri = Some(HttpUri { uri, timeout: Some(Duration { seconds: 5, nanos: 0 }), ..Default::default() });
    let remote = RemoteJwks { http_uri, ..Default::default() };
    elsewhere.providers.get_mut("p").unwrap().jwks_source_specifier = Some(JwksSourceSpecifier::RemoteJwks(remote));
    says("keys behind a URL", jwt(elsewhere), &Says::Reported(&["jwt.providers.keys.remote"]));
    let at = |name: &str| format!("{FILTER}.{name}");
    let nobody = demand(RequiresType::ProviderName("x".into()));
    says("no such provider", jwt(nobody), &Says::Refused(&[&at("rules[0].requires")]));
    let nothing = demand(RequiresType::RequiresAny(Default::default()));
    says("any of none", jwt(nothing), &Says::Refused(&[&at("rules[0].requires.requires_any.requirements")]));
    let unchecked = demand(RequiresType::ExtractOnlyWithoutValidation(Default::default()));
    says("unchecked tokens", jwt(unchecked), &Says::Refused(&[&at("rules[0].requires")]));
    let state = JwtProto { filter_state_rules: Some(Default::default()), ..named() };
    says("filter state", jwt(state), &Says::Refused(&[&at("filter_state_rules")]));
    let mut keyless = named();
    keyless.providers.get_mut("p").unwrap().jwks_source_specifier = None;
    says("no keys", jwt(keyless), &Says::Refused(&[&at("providers[\"p\"]")]));
    let fixed = ["host", "Content-Length", "transfer-encoding", "connection", "client_cert"];
    for name in fixed.into_iter().chain(OF_PEER) {
        let mut payload = named();
        payload.providers.get_mut("p").unwrap().forward_payload_header = name.to_owned();
        says(name, jwt(payload), &Says::Refused(&[&at("providers[\"p\"].forward_payload_header")]));
        let mut claim = named();
        let tell = JwtClaimToHeader { header_name: name.into(), claim_name: "sub".into(), ..Default::default() };
        claim.providers.get_mut("p").unwrap().claim_to_headers.push(tell);
        says(name, jwt(claim), &Says::Refused(&[&at("providers[\"p\"].claim_to_headers[0].header_name")]));
    }
    let mut everywhere = named();
    let inner = RequirementProto { requires_type: Some(RequiresType::AllowMissing(Default::default())) };
    everywhere.requirement_map.insert("lax".into(), inner);
    let resource = with_manager(|m| {
        m.http_filters.insert(0, codec::filter::encode("f", extension::pack(url::JWT, &everywhere), false));
        let Some(RouteSpecifier::RouteConfig(routes)) = &mut m.route_specifier else { panic!("inline") };
        let config =
            PerRouteConfig { requirement_specifier: Some(RequirementSpecifier::RequirementName("lax".into())) };
        let any = extension::pack(url::JWT_PER_ROUTE, &config);
        routes.virtual_hosts[0].typed_per_filter_config.insert("f".into(), any);
    });
    assert_eq!(decoded(&resource).jwt[0].rules[0].requirement, Some(JwtRequirement::AllowMissing));
}

#[test]
fn local_rate_limits_have_buckets_that_fill() {
    let limit = |max_tokens, millis: i64| LimitProto {
        token_bucket: Some(BucketProto {
            max_tokens,
            tokens_per_fill: None,
            fill_interval: Some(Duration { seconds: millis / 1000, nanos: (millis % 1000) as i32 * 1_000_000 }),
        }),
        ..Default::default()
    };
    let decode = |proto: LimitProto| codec::decode_listener(&with_filter(url::RATE_LIMIT, &proto));
    says("a bucket", decode(limit(10, 1000)), &Says::Taken);
    says("no bucket", decode(LimitProto::default()), &Says::Taken);
    let at = |name: &str| format!("{FILTER}.token_bucket.{name}");
    says("no tokens", decode(limit(0, 1000)), &Says::Refused(&[&at("max_tokens")]));
    says("too quick", decode(limit(10, 49)), &Says::Refused(&[&at("fill_interval")]));
    let descriptors = LimitProto { descriptors: vec![Default::default()], ..limit(10, 1000) };
    says("descriptors", decode(descriptors), &Says::Reported(&[&format!("{FILTER}.descriptors")]));
}

#[test]
fn a_limit_holds_before_tokens_and_policies_if_its_filter_stands_before_theirs() {
    let limit =
        |name: &str| codec::filter::encode(name, extension::pack(url::RATE_LIMIT, &LimitProto::default()), false);
    let jwt = || codec::filter::encode("jwt", extension::pack(url::JWT, &JwtProto::default()), false);
    let rbac = || codec::filter::encode("rbac", extension::pack(url::RBAC, &RbacProto::default()), false);
    for (filters, before, after) in [
        (vec![limit("a"), jwt(), limit("b"), rbac(), limit("c")], &["a"][..], &["b", "c"][..]),
        (vec![limit("a"), limit("b"), rbac()], &["a", "b"], &[]),
        (vec![jwt(), limit("a")], &[], &["a"]),
        (vec![limit("a")], &[], &["a"]),
    ] {
        let listener = decoded(&with_manager(|m| drop(m.http_filters.splice(0..0, filters))));
        let names = |filters: &[HttpFilter]| filters.iter().map(|filter| filter.name.clone()).collect::<Vec<_>>();
        assert_eq!((&*names(&listener.before), &*names(&listener.filters)), (&*strings(before), &*strings(after)));
        assert_eq!(decoded(&codec::encode_inbound(&listener)), listener, "in that order again");
    }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// What keeps requests out is obeyed or refused, and not listed as something that does not happen.
#[test]
fn what_of_a_manager_keeps_requests_out_is_obeyed_or_refused() {
    let common = |action: i32| {
        let options = HttpProtocolOptions { headers_with_underscores_action: action, ..Default::default() };
        with_manager(|m| m.common_http_protocol_options = Some(options))
    };
    for (action, means) in [(0, Underscores::Allow), (1, Underscores::Reject), (2, Underscores::Drop)] {
        let resource = common(action);
        says("of underscores", codec::decode_listener(&resource), &Says::Taken);
        assert_eq!(decoded(&resource).limits.underscores, means);
    }
    let at = |name: &str| format!("filter_chains[0].filters[0].{name}");
    let unknown = at("common_http_protocol_options.headers_with_underscores_action");
    says("of underscores", codec::decode_listener(&common(3)), &Says::Refused(&[&unknown]));
    let demand = |demanded: i32| {
        with_manager(|m| {
            let Some(RouteSpecifier::RouteConfig(routes)) = &mut m.route_specifier else { panic!("inline") };
            routes.virtual_hosts[0].require_tls = demanded;
        })
    };
    says("TLS of nobody", codec::decode_listener(&demand(0)), &Says::Taken);
    let host = at("route_config.virtual_hosts[0].require_tls");
    for demanded in [1, 2, 3] {
        says("TLS", codec::decode_listener(&demand(demanded)), &Says::Refused(&[&host]));
    }
}

/// A server brings paths and authorities to one form whatever it is told: what says the same is obeyed.
#[test]
fn of_the_forms_of_targets_only_what_a_server_does_otherwise_is_reported() {
    let at = |name: &str| format!("filter_chains[0].filters[0].{name}");
    let manager = |change: fn(&mut HttpConnectionManager)| codec::decode_listener(&with_manager(change));
    let obeyed = |m: &mut HttpConnectionManager| {
        m.normalize_path = Some(BoolValue { value: true });
        (m.merge_slashes, m.strip_trailing_host_dot, m.path_with_escaped_slashes_action) = (true, true, 2);
    };
    says("as it is done", manager(obeyed), &Says::Taken);
    let kept = |m: &mut HttpConnectionManager| m.normalize_path = Some(BoolValue { value: false });
    says("as it came", manager(kept), &Says::Reported(&[&at("normalize_path")]));
    let slashes = |m: &mut HttpConnectionManager| m.path_with_escaped_slashes_action = 1;
    says("encoded slashes", manager(slashes), &Says::Reported(&[&at("path_with_escaped_slashes_action")]));
}

#[test]
fn an_external_authorizer_is_told_no_more_of_a_body_than_can_be_held() {
    let told = |max_bytes: u32| {
        let max_bytes = std::num::NonZeroU32::new(max_bytes).unwrap();
        let service = AuthorizerService {
            protocol: AuthorizerProtocol::Grpc,
            target: "opa.auth:9191".into(),
            timeout: std::time::Duration::from_secs(1),
            fail_open: false,
            status_on_error: 403,
            body: Some(CheckedBody { max_bytes, allow_partial: false, as_bytes: false }),
        };
        let provider = AuthorizerProvider { name: "opa".into(), service: Some(service) };
        let rule = AuthorizationRule {
            name: "r".into(),
            permissions: vec![Permission::Any],
            principals: vec![Principal::Any],
        };
        let action = AuthorizationAction::Custom(Box::new(provider));
        let policy = AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("one", action) };
        let listener = InboundListener { authorization: vec![policy], ..inbound() };
        codec::decode_listener(&codec::encode_inbound(&listener)).map(|_| ())
    };
    assert_eq!(told(CheckedBody::MOST).map_err(|error| error.to_string()), Ok(()));
    for more in [CheckedBody::MOST + 1, u32::MAX] {
        let refused = told(more).unwrap_err().to_string();
        assert!(refused.contains("max_body_bytes") && refused.contains(&more.to_string()), "{refused}");
    }
}
