//! Session affinity (gRFC A55).

use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession as Proto, StatefulSessionPerRoute, stateful_session_per_route::Override,
};
use envoy_types::pb::envoy::extensions::http::stateful_session::{
    cookie::v3::CookieBasedSessionState, header::v3::HeaderBasedSessionState,
};
use envoy_types::pb::envoy::r#type::http::v3::Cookie;
use http::HeaderName;
use mesh_core::policy::{FilterOverride, SessionSource, StatefulSession};

use super::common;
use super::extension::{self, url};
use super::report::{At, Report, consider};

pub(super) fn encode(session: &StatefulSession) -> Proto {
    let state = match &session.source {
        SessionSource::Cookie { name, path, ttl } => extension::typed(
            "envoy.http.stateful_session.cookie",
            url::SESSION_COOKIE,
            &CookieBasedSessionState {
                cookie: Some(Cookie {
                    name: name.clone(),
                    path: path.clone(),
                    ttl: (!ttl.is_zero()).then(|| common::duration(*ttl)),
                    ..Default::default()
                }),
            },
        ),
        SessionSource::Header(name) => extension::typed(
            "envoy.http.stateful_session.header",
            url::SESSION_HEADER,
            &HeaderBasedSessionState { name: name.as_str().to_owned() },
        ),
    };
    Proto { session_state: Some(state), strict: session.strict, ..Default::default() }
}

/// Decodes the filter; `None` without a problem is one that does nothing.
pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<StatefulSession> {
    consider!(proto, at, report, Proto {
        read: [session_state, strict],
        idle: [stat_prefix],
        status_on_strict_destination_not_found => "a strict session whose endpoint is gone is answered 503",
    });
    let state = proto.session_state.as_ref()?;
    let at = at.field("session_state");
    let Some(config) = &state.typed_config else {
        report.problem(&at.field("typed_config"), "a configuration is required");
        return None;
    };
    let source = match extension::type_of(config).as_str() {
        url::SESSION_COOKIE => {
            let state: CookieBasedSessionState = extension::unpack(config, &at, report)?;
            read_cookie(&state.cookie.unwrap_or_default(), &at.field("cookie"), report)?
        }
        url::SESSION_HEADER => {
            let state: HeaderBasedSessionState = extension::unpack(config, &at, report)?;
            let Ok(name) = HeaderName::try_from(state.name.as_str()) else {
                report.problem(&at.field("name"), format!("{:?} is not a header name", state.name));
                return None;
            };
            SessionSource::Header(name)
        }
        other => {
            report.problem(&at, format!("{other:?} is not a session state that is known (gRFC A55)"));
            return None;
        }
    };
    Some(StatefulSession { source, strict: proto.strict })
}

fn read_cookie(proto: &Cookie, at: &At<'_>, report: &mut Report) -> Option<SessionSource> {
    consider!(proto, at, report, Cookie {
        read: [name, ttl, path],
        idle: [],
        attributes => "made cookies have no further attributes",
    });
    if proto.name.is_empty() {
        report.problem(&at.field("name"), "a name is required (gRFC A55)");
        return None;
    }
    let ttl = common::opt_duration(proto.ttl.as_ref(), at, "ttl", report).unwrap_or_default();
    Some(SessionSource::Cookie { name: proto.name.clone(), path: proto.path.clone(), ttl })
}

/// Encodes how a session differs on a route.
pub(super) fn encode_per_route(session: &StatefulSession) -> StatefulSessionPerRoute {
    StatefulSessionPerRoute { r#override: Some(Override::StatefulSession(encode(session))) }
}

/// Decodes how it differs on a route.
pub(super) fn decode_per_route(
    proto: &StatefulSessionPerRoute,
    at: &At<'_>,
    report: &mut Report,
) -> Option<FilterOverride> {
    match &proto.r#override {
        Some(Override::StatefulSession(session)) if session.session_state.is_some() => {
            decode(session, &at.field("stateful_session"), report).map(FilterOverride::Session)
        }
        // Without a state it does nothing, which is what its being off does.
        Some(Override::Disabled(_) | Override::StatefulSession(_)) => Some(FilterOverride::Disabled),
        None => {
            report.problem(at, "a session, or disabled, is required");
            None
        }
    }
}
