//! JWT filters. What is not understood of a demand refuses the listener: it is never passed over.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{
    DataSource, HttpUri, data_source::Specifier, http_uri::HttpUpstreamType,
};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtAuthentication as Proto, JwtClaimToHeader, JwtHeader as HeaderProto, JwtProvider as ProviderProto,
    JwtRequirement as RequirementProto, JwtRequirementAndList, JwtRequirementOrList, ProviderWithAudiences, RemoteJwks,
    RequirementRule,
    jwt_provider::{JwksSourceSpecifier, NormalizePayload},
    jwt_requirement::RequiresType,
    requirement_rule::RequirementType,
};
use http::HeaderName;
use mesh_core::id::ClusterName;
use mesh_core::policy::{
    JwtAuthentication, JwtClaimHeader, JwtHeader, JwtKeys, JwtProvider, JwtRequirement, JwtRule, RouteMatch,
};

use super::report::{At, Report, consider};
use super::{common, matcher, route};
use crate::proto::policy::{FetchedKeys, RoutePolicy};

/// Allowance for clocks when nothing is said.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// How long fetched keys hold when nothing is said.
const CACHE: Duration = Duration::from_secs(600);

pub(super) fn encode(jwt: &JwtAuthentication) -> Proto {
    let rules = jwt.rules.iter().map(|rule| RequirementRule {
        r#match: Some(route::encode_match(&rule.matcher)),
        requirement_type: rule.requirement.as_ref().map(|r| RequirementType::Requires(encode_requirement(r))),
    });
    Proto {
        providers: jwt.providers.iter().map(|(name, provider)| (name.clone(), encode_provider(provider))).collect(),
        rules: rules.collect(),
        bypass_cors_preflight: jwt.bypass_cors_preflight,
        ..Default::default()
    }
}

/// Which keys of filters were fetched, which the filters cannot say.
pub(super) fn encode_fetched<'a>(filters: impl IntoIterator<Item = &'a JwtAuthentication>) -> Vec<FetchedKeys> {
    let providers = filters.into_iter().flat_map(|jwt| jwt.providers.iter().map(|named| (&jwt.name, named)));
    let fetched = providers.filter_map(|(filter, (name, provider))| match provider.keys {
        JwtKeys::Fetched { max_age, .. } => Some(FetchedKeys {
            filter: filter.clone(),
            provider: name.clone(),
            max_age: Some(common::duration(max_age)),
        }),
        _ => None,
    });
    fetched.collect()
}

/// The same of the filter `name`, which has been read.
pub(super) fn decode_fetched(
    name: &str,
    fetched: &[FetchedKeys],
    jwt: &mut JwtAuthentication,
    at: &At<'_>,
    report: &mut Report,
) {
    for said in fetched.iter().filter(|said| said.filter == name) {
        let Some(provider) = jwt.providers.get_mut(&said.provider) else { continue };
        let at = at.key("providers", &said.provider);
        match common::nonzero_duration(said.max_age.as_ref(), &at, "max_age", report) {
            Some(max_age) => {
                if let JwtKeys::Inline(jwks) = &mut provider.keys {
                    provider.keys = JwtKeys::Fetched { jwks: std::mem::take(jwks), max_age };
                }
            }
            None => {
                report.problem(&at.field("max_age"), "keys that were fetched need a time above 0 for which they hold")
            }
        }
    }
}

/// Refuses to choose the route of a request anew once its tokens are read. Here it has one route, whose guards look at its
/// tokens: a header that the filter takes away would choose the guards that let its sender pass.
pub(super) fn check_route(proto: &Proto, at: &At<'_>, report: &mut Report) {
    for (name, provider) in proto.providers.iter().collect::<BTreeMap<_, _>>() {
        if provider.clear_route_cache {
            report.problem(
                &at.key("providers", name).field("clear_route_cache"),
                "a request's route is chosen once, before its tokens are read: take it out, or give all requests one route",
            );
        }
    }
}

/// Decodes the filter `name`; `everywhere` names the requirement that routes put in the place of its
/// rules.
pub(super) fn decode(
    name: &str,
    proto: &Proto,
    everywhere: Option<&str>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<JwtAuthentication> {
    consider!(
        proto,
        at,
        report,
        Proto {
            read: [providers, rules, filter_state_rules, bypass_cors_preflight, requirement_map],
            idle: [stat_prefix],
            strip_failure_response => "the answer to who is refused says which demand was not met",
        }
    );
    if proto.filter_state_rules.is_some() {
        report.problem(&at.field("filter_state_rules"), "demands chosen by filter state are not supported");
    }
    let mut providers = BTreeMap::new();
    for (name, provider) in proto.providers.iter().collect::<BTreeMap<_, _>>() {
        let decoded = decode_provider(provider, &at.key("providers", name), report);
        providers.extend(decoded.map(|provider| (name.clone(), provider)));
    }
    let known = Known { providers: &proto.providers, requirements: &proto.requirement_map };
    let rules = match everywhere {
        Some(name) => {
            let requirement = known.named(name, at, report)?;
            vec![JwtRule { matcher: RouteMatch::any(), requirement: Some(requirement) }]
        }
        None => {
            let rules = proto.rules.iter().enumerate();
            rules
                .map(|(i, rule)| decode_rule(rule, &known, &at.item("rules", i), report))
                .collect::<Option<Vec<_>>>()?
        }
    };
    Some(JwtAuthentication {
        name: name.to_owned(),
        providers,
        rules,
        bypass_cors_preflight: proto.bypass_cors_preflight,
    })
}

/// What requirements may name.
struct Known<'p> {
    providers: &'p HashMap<String, ProviderProto>,
    requirements: &'p HashMap<String, RequirementProto>,
}

impl Known<'_> {
    fn named(&self, name: &str, at: &At<'_>, report: &mut Report) -> Option<JwtRequirement> {
        let Some(proto) = self.requirements.get(name) else {
            report.problem(&at.key("requirement_map", name), "no such requirement is listed");
            return None;
        };
        decode_requirement(proto, self, &at.key("requirement_map", name), report)
    }
}

fn decode_rule(proto: &RequirementRule, known: &Known<'_>, at: &At<'_>, report: &mut Report) -> Option<JwtRule> {
    let matcher = match &proto.r#match {
        Some(matcher) => route::decode_inbound_match(matcher, &RoutePolicy::default(), &at.field("match"), report),
        None => {
            report.problem(&at.field("match"), "a match is required");
            None
        }
    };
    let requirement = match &proto.requirement_type {
        // No demand at all, and one that is empty, are how a rule exempts requests.
        None | Some(RequirementType::Requires(RequirementProto { requires_type: None })) => None,
        Some(RequirementType::Requires(requirement)) => {
            Some(decode_requirement(requirement, known, &at.field("requires"), report)?)
        }
        Some(RequirementType::RequirementName(name)) => Some(known.named(name, at, report)?),
    };
    Some(JwtRule { matcher: matcher?, requirement })
}

fn encode_requirement(requirement: &JwtRequirement) -> RequirementProto {
    let list = |list: &[JwtRequirement]| list.iter().map(encode_requirement).collect();
    RequirementProto {
        requires_type: Some(match requirement {
            JwtRequirement::Provider { name, audiences } if audiences.is_empty() => {
                RequiresType::ProviderName(name.clone())
            }
            JwtRequirement::Provider { name, audiences } => RequiresType::ProviderAndAudiences(ProviderWithAudiences {
                provider_name: name.clone(),
                audiences: audiences.clone(),
            }),
            JwtRequirement::Any(any) => RequiresType::RequiresAny(JwtRequirementOrList { requirements: list(any) }),
            JwtRequirement::All(all) => RequiresType::RequiresAll(JwtRequirementAndList { requirements: list(all) }),
            JwtRequirement::AllowMissing => RequiresType::AllowMissing(Default::default()),
            JwtRequirement::AllowMissingOrFailed => RequiresType::AllowMissingOrFailed(Default::default()),
        }),
    }
}

/// Decodes a demand. Depth is bounded by protobuf's own limit on nesting.
fn decode_requirement(
    proto: &RequirementProto,
    known: &Known<'_>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<JwtRequirement> {
    let provider = |name: &String, audiences: &[String], report: &mut Report| {
        if !known.providers.contains_key(name) {
            report.problem(at, format!("no provider {name:?} is listed"));
        }
        JwtRequirement::Provider { name: name.clone(), audiences: audiences.to_vec() }
    };
    let list = |protos: &[RequirementProto], name: &str, report: &mut Report| {
        if protos.is_empty() {
            report.problem(&at.field(name), "at least one requirement is required");
        }
        let protos = protos.iter().enumerate();
        protos
            .map(|(i, r)| decode_requirement(r, known, &at.item(name, i), report))
            .collect::<Option<Vec<JwtRequirement>>>()
    };
    match &proto.requires_type {
        Some(RequiresType::ProviderName(name)) => Some(provider(name, &[], report)),
        Some(RequiresType::ProviderAndAudiences(both)) => Some(provider(&both.provider_name, &both.audiences, report)),
        Some(RequiresType::RequiresAny(any)) => {
            list(&any.requirements, "requires_any.requirements", report).map(JwtRequirement::Any)
        }
        Some(RequiresType::RequiresAll(all)) => {
            list(&all.requirements, "requires_all.requirements", report).map(JwtRequirement::All)
        }
        Some(RequiresType::AllowMissing(_)) => Some(JwtRequirement::AllowMissing),
        Some(RequiresType::AllowMissingOrFailed(_)) => Some(JwtRequirement::AllowMissingOrFailed),
        Some(RequiresType::ExtractOnlyWithoutValidation(_)) => {
            report.problem(at, "tokens that nobody checks are not supported");
            None
        }
        None => {
            report.problem(at, "a requirement is required");
            None
        }
    }
}

fn encode_provider(provider: &JwtProvider) -> ProviderProto {
    let inline = |text: &str| {
        JwksSourceSpecifier::LocalJwks(DataSource {
            specifier: Some(Specifier::InlineString(text.to_owned())),
            ..Default::default()
        })
    };
    let keys = match &provider.keys {
        JwtKeys::Inline(text) | JwtKeys::Fetched { jwks: text, .. } => inline(text),
        JwtKeys::Outdated { .. } => inline(r#"{"keys":[]}"#),
        JwtKeys::Remote { uri, cluster, timeout, cache } => JwksSourceSpecifier::RemoteJwks(RemoteJwks {
            http_uri: Some(HttpUri {
                uri: uri.clone(),
                timeout: Some(common::duration(*timeout)),
                http_upstream_type: Some(HttpUpstreamType::Cluster(cluster.to_string())),
            }),
            cache_duration: Some(common::duration(*cache)),
            ..Default::default()
        }),
    };
    let headers = provider.from_headers.iter();
    let headers = headers.map(|h| HeaderProto { name: h.name.as_str().to_owned(), value_prefix: h.prefix.clone() });
    let claims = provider.claim_headers.iter().map(|h| JwtClaimToHeader {
        header_name: h.name.as_str().to_owned(),
        claim_name: h.claim.clone(),
        ..Default::default()
    });
    ProviderProto {
        issuer: provider.issuer.clone(),
        audiences: provider.audiences.clone(),
        subjects: provider.subjects.as_ref().map(matcher::string),
        require_expiration: provider.require_expiration,
        max_lifetime: provider.max_lifetime.map(common::duration),
        forward: provider.forward,
        from_headers: headers.collect(),
        from_params: provider.from_params.clone(),
        from_cookies: provider.from_cookies.clone(),
        forward_payload_header: provider.payload_header.as_ref().map(ToString::to_string).unwrap_or_default(),
        pad_forward_payload_header: provider.pad_payload_header,
        payload_in_metadata: provider.payload_in_metadata.clone(),
        normalize_payload_in_metadata: (!provider.space_delimited.is_empty())
            .then(|| NormalizePayload { space_delimited_claims: provider.space_delimited.clone() }),
        clock_skew_seconds: u32::try_from(provider.clock_skew.as_secs()).unwrap_or(u32::MAX),
        claim_to_headers: claims.collect(),
        jwks_source_specifier: Some(keys),
        ..Default::default()
    }
}

fn decode_provider(proto: &ProviderProto, at: &At<'_>, report: &mut Report) -> Option<JwtProvider> {
    consider!(proto, at, report, ProviderProto {
        read: [
            issuer, audiences, subjects, require_expiration, max_lifetime, forward, from_headers, from_params,
            from_cookies, forward_payload_header, pad_forward_payload_header, payload_in_metadata,
            normalize_payload_in_metadata, clock_skew_seconds, claim_to_headers, jwks_source_specifier,
        ],
        // Where requests have different routes `check_route` looks at it; checks are remembered as the server likes.
        idle: [jwt_cache_config, clear_route_cache],
        header_in_metadata => "the token's header is not kept",
        failed_status_in_metadata => "why a token failed is not kept",
    });
    let keys = decode_keys(proto.jwks_source_specifier.as_ref(), at, report);
    let subjects = match &proto.subjects {
        Some(text) => Some(matcher::read_string(text, &at.field("subjects"), report)?),
        None => None,
    };
    let mut from_headers = Vec::with_capacity(proto.from_headers.len());
    for (i, header) in proto.from_headers.iter().enumerate() {
        let name = read_name(&header.name, &at.item("from_headers", i), report);
        from_headers.extend(name.map(|name| JwtHeader { name, prefix: header.value_prefix.clone() }));
    }
    let mut claim_headers = Vec::with_capacity(proto.claim_to_headers.len());
    for (i, header) in proto.claim_to_headers.iter().enumerate() {
        let at = at.item("claim_to_headers", i);
        if header.claim_name.is_empty() || !header.claim_path.is_empty() {
            report.problem(&at.field("claim_name"), "the name of a claim is required, with dots and not as a path");
        }
        let name = told_name(&header.header_name, &at.field("header_name"), report);
        claim_headers.extend(name.map(|name| JwtClaimHeader { name, claim: header.claim_name.clone() }));
    }
    let payload_header = match proto.forward_payload_header.as_str() {
        "" => None,
        name => Some(told_name(name, &at.field("forward_payload_header"), report)?),
    };
    Some(JwtProvider {
        issuer: proto.issuer.clone(),
        audiences: proto.audiences.clone(),
        subjects,
        require_expiration: proto.require_expiration,
        max_lifetime: common::nonzero_duration(proto.max_lifetime.as_ref(), at, "max_lifetime", report),
        keys: keys?,
        forward: proto.forward,
        from_headers,
        from_params: proto.from_params.clone(),
        from_cookies: proto.from_cookies.clone(),
        payload_header,
        pad_payload_header: proto.pad_forward_payload_header,
        claim_headers,
        payload_in_metadata: proto.payload_in_metadata.clone(),
        space_delimited: match &proto.normalize_payload_in_metadata {
            Some(NormalizePayload { space_delimited_claims }) => space_delimited_claims.clone(),
            None => Vec::new(),
        },
        clock_skew: match proto.clock_skew_seconds {
            0 => CLOCK_SKEW,
            seconds => Duration::from_secs(seconds.into()),
        },
    })
}

fn decode_keys(proto: Option<&JwksSourceSpecifier>, at: &At<'_>, report: &mut Report) -> Option<JwtKeys> {
    match proto {
        Some(JwksSourceSpecifier::LocalJwks(source)) => {
            let at = at.field("local_jwks");
            let text = match &source.specifier {
                Some(Specifier::InlineString(text)) => Some(text.clone()),
                Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.clone()).ok(),
                Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) | None => {
                    let reason = "a control plane may not make this process read its files or environment";
                    report.problem(&at, reason);
                    return None;
                }
            };
            let set = text.filter(|text| serde_json::from_str::<KeySet>(text).is_ok());
            if set.is_none() {
                report.problem(&at, "a JSON Web Key Set, an object with \"keys\", is required");
            }
            set.map(JwtKeys::Inline)
        }
        Some(JwksSourceSpecifier::RemoteJwks(remote)) => {
            let at = at.field("remote_jwks");
            let RemoteJwks {
                http_uri,
                cache_duration,
                // When and how keys are fetched is the server's own affair.
                async_fetch: _,
                retry_policy: _,
            } = remote;
            let Some(HttpUri { uri, timeout, http_upstream_type }) = http_uri.as_ref().filter(|u| !u.uri.is_empty())
            else {
                report.problem(&at.field("http_uri"), "a URL is required");
                return None;
            };
            let Some(timeout) = common::nonzero_duration(timeout.as_ref(), &at, "http_uri.timeout", report) else {
                report.problem(&at.field("http_uri.timeout"), "a timeout above 0 is required");
                return None;
            };
            let cluster = match http_upstream_type {
                Some(HttpUpstreamType::Cluster(name)) => ClusterName::from(name.as_str()),
                None => ClusterName::from(""),
            };
            let cache = common::nonzero_duration(cache_duration.as_ref(), &at, "cache_duration", report);
            Some(JwtKeys::Remote { uri: uri.clone(), cluster, timeout, cache: cache.unwrap_or(CACHE) })
        }
        None => {
            report.problem(at, "local_jwks or remote_jwks is required");
            None
        }
    }
}

/// As much of a key set as is checked here; who uses it reads the keys.
#[derive(serde::Deserialize)]
struct KeySet {
    #[serde(rename = "keys")]
    _keys: Vec<serde::de::IgnoredAny>,
}

fn read_name(text: &str, at: &At<'_>, report: &mut Report) -> Option<HeaderName> {
    let name = HeaderName::try_from(text).ok();
    if name.is_none() {
        report.problem(at, format!("{text:?} is not a header name"));
    }
    name
}

/// The name of a header that tells the application something.
fn told_name(text: &str, at: &At<'_>, report: &mut Report) -> Option<HeaderName> {
    let name = read_name(text, at, report)?;
    if !JwtProvider::may_tell_in(&name) {
        let reason = "frames requests, says where they go or who sent them: what a token says cannot stand there";
        report.problem(at, format!("{text:?} {reason}"));
        return None;
    }
    Some(name)
}
