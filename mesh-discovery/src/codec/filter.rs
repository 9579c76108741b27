//! The HTTP filters of a connection manager (gRFC A39): the rules that hold on both sides.

use std::collections::HashSet;

use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter::ConfigType,
};
use envoy_types::pb::google::protobuf::Any;

use super::extension::{self, url};
use super::report::{At, Report};

/// Usual instance name of the router.
pub(super) const ROUTER_FILTER: &str = "envoy.filters.http.router";

/// A filter with its configuration.
pub(super) fn encode(name: &str, config: Any, is_optional: bool) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        is_optional,
        config_type: Some(ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// The router, which ends every list.
pub(super) fn router() -> HttpFilter {
    encode(ROUTER_FILTER, extension::pack(url::ROUTER, &Router::default()), false)
}

/// One filter before the router.
pub(super) struct Filter<'a> {
    pub(super) name: &'a str,
    pub(super) type_url: String,
    pub(super) config: &'a Any,
    pub(super) is_optional: bool,
    pub(super) index: usize,
}

/// Checks the list: names unique and not empty, every filter with a configuration, exactly one router,
/// at the end. Gives the filters before it; disabled ones are left out.
pub(super) fn decode<'a>(hcm: &'a HttpConnectionManager, at: &At<'_>, report: &mut Report) -> Vec<Filter<'a>> {
    let mut names = HashSet::new();
    let mut filters = Vec::with_capacity(hcm.http_filters.len());
    let mut routers = 0;
    for (index, proto) in hcm.http_filters.iter().enumerate() {
        let at = at.item("http_filters", index);
        if proto.name.is_empty() || !names.insert(proto.name.as_str()) {
            report.problem(&at.field("name"), format!("{:?} is empty or used twice", proto.name));
        }
        let Some(ConfigType::TypedConfig(config)) = &proto.config_type else {
            if proto.is_optional {
                report.unenforced(&at, "a filter without a configuration of its own is skipped");
            } else {
                report.problem(&at.field("typed_config"), "a configuration is required; ECDS is not supported");
            }
            continue;
        };
        let type_url = extension::type_of(config);
        if type_url == url::ROUTER {
            routers += 1;
            if index + 1 != hcm.http_filters.len() {
                report.problem(&at, "the router must be the last filter");
            }
        } else if proto.disabled {
            report.unenforced(&at.field("disabled"), "a disabled filter stays off on every route");
        } else {
            filters.push(Filter { name: &proto.name, type_url, config, is_optional: proto.is_optional, index });
        }
    }
    if routers == 0 {
        report.problem(&at.field("http_filters"), "the last filter must be the router");
    }
    filters
}

/// Refuses a filter that is not known on this side, unless it is optional. Gives whether it is skipped.
pub(super) fn skip(filter: &Filter<'_>, at: &At<'_>, report: &mut Report) -> bool {
    let at = at.item("http_filters", filter.index);
    if filter.is_optional {
        report.unenforced(&at, "an optional filter that is not known is skipped");
    } else {
        let reason = format!("the filter type {:?} is not supported here and not optional", filter.type_url);
        report.problem(&at, reason);
    }
    filter.is_optional
}

/// gRFC A41: settings that would change what the caller's address is.
pub(super) fn check_addresses(hcm: &HttpConnectionManager, at: &At<'_>, report: &mut Report) {
    if hcm.xff_num_trusted_hops != 0 {
        report.problem(&at.field("xff_num_trusted_hops"), "only 0 is supported (gRFC A41)");
    }
    if !hcm.original_ip_detection_extensions.is_empty() {
        report.problem(&at.field("original_ip_detection_extensions"), "none is supported (gRFC A41)");
    }
}
