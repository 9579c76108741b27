//! Istio Gateway: parsed and validated; ports of an ingress are not served by a library.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::check::Check;
use super::kinds::Kind;
use super::values::{is_host, port};

/// A Gateway.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    /// Hosts of all servers, without their namespace part.
    pub(crate) hosts: Vec<String>,
}

#[derive(Deserialize)]
pub(crate) struct GatewaySpec {
    #[serde(default)]
    servers: Vec<ServerSpec>,
    #[serde(default)]
    #[allow(dead_code)]
    selector: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ServerSpec {
    port: Option<PortSpec>,
    #[allow(dead_code)]
    bind: Option<String>,
    #[serde(default)]
    hosts: Vec<String>,
    tls: Option<TlsSpec>,
    #[serde(default)]
    name: String,
    #[serde(rename = "defaultEndpoint")]
    #[allow(dead_code)]
    default_endpoint: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortSpec {
    #[serde(default)]
    number: i64,
    #[serde(default)]
    name: String,
    #[serde(default)]
    protocol: String,
    #[allow(dead_code)]
    target_port: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code)]
struct TlsSpec {
    mode: Option<String>,
    #[serde(default)]
    https_redirect: bool,
    server_certificate: Option<String>,
    private_key: Option<String>,
    ca_certificates: Option<String>,
    ca_crl: Option<String>,
    credential_name: Option<String>,
    #[serde(default)]
    credential_names: Vec<String>,
    #[serde(default)]
    tls_certificates: Vec<IgnoredAny>,
    ca_cert_credential_name: Option<String>,
    subject_alt_names: Option<IgnoredAny>,
    verify_certificate_spki: Option<IgnoredAny>,
    verify_certificate_hash: Option<IgnoredAny>,
    min_protocol_version: Option<String>,
    max_protocol_version: Option<String>,
    cipher_suites: Option<IgnoredAny>,
}

impl Kind for Gateway {
    const GROUP: &'static str = "networking.istio.io";
    const KIND: &'static str = "Gateway";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1", "v1alpha3"];
    type Spec = GatewaySpec;

    fn validate(spec: GatewaySpec, check: &mut Check<'_>) -> Self {
        if spec.servers.is_empty() {
            check.error("spec.servers", "at least one server is needed");
        }
        let mut hosts = Vec::new();
        let mut names = BTreeSet::new();
        for (i, server) in spec.servers.iter().enumerate() {
            check_server(server, check, &format!("spec.servers[{i}]"), &mut hosts, &mut names);
        }
        check.info("", "accepted; not served by this version: leave this object to an ingress gateway");
        Self { hosts }
    }
}

fn check_server<'a>(
    spec: &'a ServerSpec,
    check: &mut Check<'_>,
    path: &str,
    hosts: &mut Vec<String>,
    names: &mut BTreeSet<&'a str>,
) {
    if spec.hosts.is_empty() {
        check.error(&format!("{path}.hosts"), "at least one host is needed");
    }
    for (i, host) in spec.hosts.iter().enumerate() {
        let (namespace, name) = host.split_once('/').unwrap_or(("*", host));
        let is_ip = name.parse::<std::net::IpAddr>().is_ok();
        if namespace.is_empty() || !(is_host(name) || is_ip) {
            let message = format!("{host:?}: write a host, or namespace/host with '.' and '*' for own and any");
            check.error(&format!("{path}.hosts[{i}]"), message);
        }
        hosts.push(name.to_ascii_lowercase());
    }
    if !spec.name.is_empty() && !names.insert(&spec.name) {
        check.error(&format!("{path}.name"), format!("{:?} is used twice", spec.name));
    }
    let Some(listen) = &spec.port else {
        check.error(&format!("{path}.port"), "a port is needed");
        return;
    };
    check.take(&format!("{path}.port.number"), port(listen.number));
    if listen.name.is_empty() {
        check.error(&format!("{path}.port.name"), "a name is needed");
    }
    let protocol = listen.protocol.to_ascii_uppercase();
    let (tls, plain) = (["HTTPS", "TLS"], ["HTTP", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "TCP"]);
    if !tls.contains(&protocol.as_str()) && !plain.contains(&protocol.as_str()) {
        check.error(&format!("{path}.port.protocol"), format!("{:?} is not a known protocol", listen.protocol));
    }
    match &spec.tls {
        None if tls.contains(&protocol.as_str()) => {
            check.error(&format!("{path}.tls"), format!("{protocol} needs tls"))
        }
        None => {}
        Some(tls) => check_tls(tls, check, &format!("{path}.tls"), &protocol),
    }
}

fn check_tls(spec: &TlsSpec, check: &mut Check<'_>, path: &str, protocol: &str) {
    let file = spec.server_certificate.is_some() || spec.private_key.is_some();
    let sources =
        [file, spec.credential_name.is_some(), !spec.credential_names.is_empty(), !spec.tls_certificates.is_empty()];
    let given = sources.iter().filter(|given| **given).count();
    if protocol == "HTTP" && given > 0 {
        check.error(path, "an HTTP server has no certificate; only httpsRedirect is possible");
    }
    if given > 1 {
        check.error(path, "certificates from more than one source");
    }
    if spec.credential_names.len() > 2 || spec.tls_certificates.len() > 2 {
        check.error(path, "at most two certificates");
    }
    let needs_certificate = match spec.mode.as_deref() {
        None | Some("SIMPLE") => protocol != "HTTP",
        Some("MUTUAL" | "OPTIONAL_MUTUAL") => {
            let from_secret = spec.credential_name.is_some() || !spec.credential_names.is_empty();
            let ca = spec.ca_certificates.is_some() || spec.ca_cert_credential_name.is_some();
            if !ca && !from_secret {
                check.error(&format!("{path}.caCertificates"), "mutual TLS needs a CA");
            }
            true
        }
        Some("PASSTHROUGH" | "AUTO_PASSTHROUGH" | "ISTIO_MUTUAL") => false,
        Some(other) => {
            check.error(&format!("{path}.mode"), format!("{other:?} is not a TLS mode"));
            false
        }
    };
    if needs_certificate && given == 0 {
        check.error(path, "a certificate is needed: credentialName, or serverCertificate and privateKey");
    }
}
