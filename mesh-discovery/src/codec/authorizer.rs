//! Where a CUSTOM policy's authorizer is asked: our metadata beside its filter ⇄ policy.

use std::num::NonZeroU32;

use http::{HeaderName, HeaderValue};
use mesh_core::policy::{
    AuthorizerProtocol, AuthorizerProvider, AuthorizerService, CheckedBody, HeaderAction, HeaderWrite, HttpCheck,
    NamePattern,
};

use super::common;
use super::report::{At, Report};
use crate::proto::policy::{AuthorizationExtra, GrpcAuthorizer, HeaderText, HttpAuthorizer};

pub(super) fn encode_grpc(provider: &AuthorizerProvider) -> Option<GrpcAuthorizer> {
    let service = provider.service.as_ref()?;
    (service.protocol == AuthorizerProtocol::Grpc).then(|| encode(service))
}

pub(super) fn encode_http(provider: &AuthorizerProvider) -> Option<HttpAuthorizer> {
    let service = provider.service.as_ref()?;
    let AuthorizerProtocol::Http(how) = &service.protocol else { return None };
    let names = |patterns: &[NamePattern]| patterns.iter().map(|pattern| pattern.as_str().to_owned()).collect();
    let added = how
        .added_headers
        .iter()
        .map(|write| HeaderText { name: write.name.as_str().to_owned(), value: write.value.as_bytes().to_vec() });
    Some(HttpAuthorizer {
        service: Some(encode(service)),
        path_prefix: how.path_prefix.clone(),
        request_headers: names(&how.request_headers),
        added_headers: added.collect(),
        upstream_on_allow: names(&how.upstream_on_allow),
        downstream_on_allow: names(&how.downstream_on_allow),
        downstream_on_deny: names(&how.downstream_on_deny),
    })
}

fn encode(service: &AuthorizerService) -> GrpcAuthorizer {
    GrpcAuthorizer {
        target: service.target.clone(),
        timeout: Some(common::duration(service.timeout)),
        fail_open: service.fail_open,
        status_on_error: service.status_on_error.into(),
        max_body_bytes: service.body.map_or(0, |body| body.max_bytes.get()),
        partial_body: service.body.is_some_and(|body| body.allow_partial),
        body_as_bytes: service.body.is_some_and(|body| body.as_bytes),
    }
}

/// The service, if one is named; the outer `None` = it is named and cannot be read.
pub(super) fn decode(
    extra: &AuthorizationExtra,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Option<AuthorizerService>> {
    match (&extra.grpc, &extra.http) {
        (None, None) => Some(None),
        (Some(grpc), None) => decode_service(grpc, "grpc", AuthorizerProtocol::Grpc, at, report).map(Some),
        (None, Some(http)) => {
            let Some(service) = &http.service else {
                report.problem(&at.field("http.service"), "it is required");
                return None;
            };
            let how = AuthorizerProtocol::Http(Box::new(decode_check(http, at, report)?));
            decode_service(service, "http.service", how, at, report).map(Some)
        }
        (Some(_), Some(_)) => {
            report.problem(at, "the metadata has two external authorizers for one policy");
            None
        }
    }
}

fn decode_service(
    proto: &GrpcAuthorizer,
    name: &str,
    protocol: AuthorizerProtocol,
    at: &At<'_>,
    report: &mut Report,
) -> Option<AuthorizerService> {
    let timeout = common::nonzero_duration(proto.timeout.as_ref(), at, &format!("{name}.timeout"), report);
    let status = u16::try_from(proto.status_on_error).ok().filter(|status| (200..600).contains(status));
    if proto.max_body_bytes > CheckedBody::MOST {
        let reason = format!("{} is more than {} bytes, the most of a body", proto.max_body_bytes, CheckedBody::MOST);
        report.problem(&at.field(&format!("{name}.max_body_bytes")), reason);
        return None;
    }
    let read = timeout.zip(status).map(|(timeout, status_on_error)| AuthorizerService {
        protocol,
        target: proto.target.clone(),
        timeout,
        fail_open: proto.fail_open,
        status_on_error,
        body: NonZeroU32::new(proto.max_body_bytes).map(|max_bytes| CheckedBody {
            max_bytes,
            allow_partial: proto.partial_body,
            as_bytes: proto.body_as_bytes,
        }),
    });
    if read.is_none() {
        report.problem(at, "the metadata's external authorizer needs a time limit and an HTTP status");
    }
    read
}

fn decode_check(proto: &HttpAuthorizer, at: &At<'_>, report: &mut Report) -> Option<HttpCheck> {
    let mut names = |list: &[String], name: &str| -> Option<Vec<NamePattern>> {
        let read: Result<Vec<_>, _> = list.iter().map(|text| text.parse::<NamePattern>()).collect();
        read.map_err(|error| report.problem(&at.field(&format!("http.{name}")), error.to_string())).ok()
    };
    let request_headers = names(&proto.request_headers, "request_headers");
    let upstream_on_allow = names(&proto.upstream_on_allow, "upstream_on_allow");
    let downstream_on_allow = names(&proto.downstream_on_allow, "downstream_on_allow");
    let downstream_on_deny = names(&proto.downstream_on_deny, "downstream_on_deny");
    let added: Option<Vec<_>> = proto.added_headers.iter().map(read_header).collect();
    if added.is_none() {
        report.problem(&at.field("http.added_headers"), "one of them is no header");
    }
    Some(HttpCheck {
        path_prefix: proto.path_prefix.clone(),
        request_headers: request_headers?,
        added_headers: added?,
        upstream_on_allow: upstream_on_allow?,
        downstream_on_allow: downstream_on_allow?,
        downstream_on_deny: downstream_on_deny?,
    })
}

fn read_header(proto: &HeaderText) -> Option<HeaderWrite> {
    let name: HeaderName = proto.name.parse().ok()?;
    let value = HeaderValue::from_bytes(&proto.value).ok()?;
    Some(HeaderWrite { name, value, action: HeaderAction::Overwrite })
}
