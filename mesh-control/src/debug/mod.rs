//! The debug port: what an operator asks a running control plane, over plain HTTP on loopback.
//!
//! | Path | Answer |
//! |---|---|
//! | `/healthz` | `ok` as long as the process answers |
//! | `/readyz` | `ok` while configuration is served, 503 once it is stopping, or a task that has to run as long as it does has ended |
//! | `/findings` | what is wrong with the manifests, JSON; `?format=text` a line each |
//! | `/status` | what `mesh status` shows: the revision, the number of findings, and `/sync`, JSON |
//! | `/sync` | every connected client: sent, accepted and refused versions, JSON; `?node=ID` only those; `?resources=true` with every name |
//! | `/load` | the last load report of each client for each cluster and locality, JSON |
//! | `/jwks` | the sources from which keys of token issuers are fetched, whether there are some, and why there are no newer ones, JSON |
//! | `/registrations` | the announced endpoints, JSON |
//! | `/metrics` | Prometheus text |
//!
//! It only reads: nothing can be changed or stopped here. Refuses to answer pages of other hosts: the
//! `Host` must be loopback, or a browser could be talked into asking (DNS rebinding).

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::{Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::uri::Authority;
use http::{StatusCode, header};
use mesh_core::drain::DrainWatch;
use mesh_core::source::Watched;

use crate::finding::{Finding, Severity};
use crate::jwks::Keys;
use crate::load::{LoadBook, Totals};
use crate::registry::{Registrations, sorted};
use crate::runtime::{Refusals, ServerCertificate, Vital};
use crate::xds::{Cache, Nodes};

/// What the debug port reads.
#[derive(Clone)]
pub(crate) struct Debug {
    pub(crate) findings: Watched<Vec<Finding>>,
    pub(crate) keys: Watched<Keys>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) registrations: Watched<Registrations>,
    pub(crate) nodes: Arc<Nodes>,
    /// Streams of load reports and of roots.
    pub(crate) other_streams: [Arc<Nodes>; 2],
    pub(crate) load: Arc<LoadBook>,
    pub(crate) certificate: Arc<ServerCertificate>,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) drain: DrainWatch,
    pub(crate) vital: Arc<Vital>,
}

/// Which clients, and how much of each.
#[derive(serde::Deserialize)]
struct Which {
    node: Option<String>,
    #[serde(default)]
    resources: bool,
}

#[derive(serde::Deserialize)]
struct Format {
    #[serde(default)]
    format: String,
}

/// The routes of the debug port.
pub(crate) fn routes(debug: Debug) -> axum::Router {
    axum::Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/findings", get(findings))
        .route("/status", get(status))
        .route("/sync", get(sync))
        .route("/load", get(|State(debug): State<Debug>| async move { Json(debug.load.reports()) }))
        .route("/jwks", get(jwks))
        .route("/registrations", get(registrations))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn(loopback_host_only))
        .with_state(debug)
}

async fn loopback_host_only(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(Authority::as_str));
    if host.is_some_and(is_loopback) {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "the debug port answers to localhost only\n").into_response()
}

fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn ready(State(debug): State<Debug>) -> Response {
    if debug.drain.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    let ended = debug.vital.ended();
    if !ended.is_empty() {
        let text = format!("ended by a bug, restart it: {}\n", ended.join(", "));
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    "ok\n".into_response()
}

async fn findings(State(debug): State<Debug>, Query(format): Query<Format>) -> Response {
    let findings = debug.findings.load_full();
    if format.format == "text" {
        return findings.iter().map(|finding| format!("{finding}\n")).collect::<String>().into_response();
    }
    Json(&*findings).into_response()
}

async fn sync(State(debug): State<Debug>, Query(which): Query<Which>) -> Response {
    Json(debug.nodes.list(which.node.as_deref(), which.resources)).into_response()
}

async fn status(State(debug): State<Debug>, Query(which): Query<Which>) -> Response {
    let findings = debug.findings.load_full();
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    Json(serde_json::json!({
        "version": &*debug.cache.version(),
        "findings": {
            "error": count(Severity::Error),
            "warning": count(Severity::Warning),
            "info": count(Severity::Info),
        },
        "nodes": debug.nodes.list(which.node.as_deref(), which.resources),
    }))
    .into_response()
}

async fn jwks(State(debug): State<Debug>) -> Response {
    let keys = debug.keys.load_full();
    let rows = keys.iter().map(|(source, known)| {
        serde_json::json!({ "source": source, "keys": known.document.is_some(), "failure": known.failure })
    });
    Json(rows.collect::<Vec<_>>()).into_response()
}

async fn registrations(State(debug): State<Debug>) -> Response {
    Json(sorted(&debug.registrations.load())).into_response()
}

async fn metrics(State(debug): State<Debug>) -> Response {
    let findings = debug.findings.load_full();
    let nodes = &debug.nodes;
    let mut text = String::new();
    let mut one = |name: &str, kind: &str, help: &str, value: u64| {
        // Writing to a string cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    };
    one("mesh_control_streams", "gauge", "Open configuration streams.", nodes.streams() as u64);
    one("mesh_control_pushes_total", "counter", "Responses sent to clients.", nodes.pushes.load(Ordering::Relaxed));
    one("mesh_control_acks_total", "counter", "Responses accepted by clients.", nodes.acks.load(Ordering::Relaxed));
    one("mesh_control_nacks_total", "counter", "Responses refused by clients.", nodes.nacks.load(Ordering::Relaxed));
    let refused = std::iter::once(nodes).chain(&debug.other_streams).map(|nodes| nodes.refused.load(Ordering::Relaxed));
    let help = "Streams and subscriptions refused because of a limit.";
    one("mesh_control_refused_total", "counter", help, refused.sum());
    let (resources, bytes) = debug.cache.size();
    one("mesh_control_resources", "gauge", "Resources that clients subscribe to.", resources as u64);
    one("mesh_control_resource_bytes", "gauge", "Their bytes, each content once.", bytes as u64);
    one("mesh_control_evaluations_total", "counter", "Resources made or checked.", debug.cache.evaluated());
    one("mesh_control_registrations", "gauge", "Announced endpoints.", debug.registrations.load().len() as u64);
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    text.push_str(
        "# HELP mesh_control_findings What is wrong with the manifests.\n# TYPE mesh_control_findings gauge\n",
    );
    for severity in [Severity::Error, Severity::Warning, Severity::Info] {
        let _ = writeln!(text, "mesh_control_findings{{severity=\"{severity}\"}} {}", count(severity));
    }
    load_metrics(&debug.load, &mut text);
    debug.certificate.metrics(&mut text);
    debug.refusals.metrics(&mut text);
    let version = debug.cache.version();
    let _ = writeln!(
        text,
        "# HELP mesh_control_revision_info The configuration served.\n# TYPE mesh_control_revision_info gauge\n\
         mesh_control_revision_info{{version=\"{version}\"}} 1"
    );
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

fn load_metrics(book: &LoadBook, text: &mut String) {
    type Value = fn(&Totals) -> u64;
    let families: [(&str, &str, &str, Value); 5] = [
        ("issued_total", "counter", "Requests begun, as clients report.", |totals| totals.issued),
        ("successful_total", "counter", "Requests that succeeded, as clients report.", |totals| totals.successful),
        ("failed_total", "counter", "Requests that failed, as clients report.", |totals| totals.failed),
        ("dropped_total", "counter", "Requests dropped by clients, as they report.", |totals| totals.dropped),
        ("in_progress", "gauge", "Requests not finished, as clients report.", |totals| totals.in_progress),
    ];
    let totals = book.totals();
    if totals.is_empty() {
        return;
    }
    for (name, kind, help, value) in families {
        let name = format!("mesh_control_load_requests_{name}");
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (cluster, totals) in &totals {
            let cluster = cluster.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = writeln!(text, "{name}{{cluster=\"{cluster}\"}} {}", value(totals));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_loopback_hosts_are_answered() {
        for host in ["localhost", "LOCALHOST:15014", "127.0.0.1:1", "127.8.8.8", "[::1]:15014"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "example.com", "localhost.example.com", "10.0.0.1:1", "[::]:1", "127.0.0.1.nip.io", "a b"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
