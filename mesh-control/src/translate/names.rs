//! Resource names and the forms in which a host is dialled.

use super::Options;

/// Prefix of the names of inbound listeners (istiod's convention for proxyless gRPC).
pub(super) const INBOUND: &str = "xds.istio.io/grpc/lds/inbound/";
/// First part of the names made for hosts that nothing defines.
const PASSTHROUGH: &str = "passthrough";

/// The parts of a routes, cluster or endpoints name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    /// Made for a host that nothing defines.
    pub(super) passthrough: bool,
    pub(super) port: u16,
    pub(super) subset: &'a str,
    pub(super) host: &'a str,
}

/// Takes `outbound|<port>|<subset>|<host>` apart (or `passthrough|<port>||<host>`).
pub(super) fn parse(name: &str) -> Option<Parts<'_>> {
    let mut parts = name.split('|');
    let passthrough = match parts.next()? {
        "outbound" => false,
        PASSTHROUGH => true,
        _ => return None,
    };
    let port = parts.next()?.parse().ok().filter(|port| *port > 0)?;
    let (subset, host) = (parts.next()?, parts.next()?);
    parts.next().is_none().then_some(Parts { passthrough, port, subset, host })
}

/// The name of a host's resource.
pub(super) fn outbound(port: u16, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// The name of the resource made for a host that nothing defines.
pub(super) fn passthrough(port: u16, host: &str) -> String {
    format!("{PASSTHROUGH}|{port}||{host}")
}

/// Splits `host:port` as dialled; the host in lower case, without a trailing dot.
pub(super) fn dialled(name: &str) -> Option<(String, u16)> {
    let (host, port) = name.rsplit_once(':')?;
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let port = port.parse().ok().filter(|port| *port > 0)?;
    (!host.is_empty() && !host.contains(['|', '/', '*'])).then_some((host, port))
}

/// The full name of a Kubernetes service.
pub(super) fn fqdn(name: &str, namespace: &str, options: &Options) -> String {
    format!("{name}.{namespace}.svc.{}", options.domain)
}

/// A host as a rule of `namespace` writes it: a short name is completed, a name with a dot is literal.
pub(super) fn complete(host: &str, namespace: &str, options: &Options) -> String {
    if host.contains('.') || host.contains('*') { host.to_owned() } else { fqdn(host, namespace, options) }
}

/// `(service, namespace)` of a dialled name in one of Kubernetes' longer forms: `name.ns`,
/// `name.ns.svc`, the full name.
pub(super) fn kubernetes_form<'a>(host: &'a str, options: &Options) -> Option<(&'a str, &'a str)> {
    let base = host.strip_suffix(options.domain.as_str()).and_then(|rest| rest.strip_suffix(".svc."));
    let base = base.or_else(|| host.strip_suffix(".svc")).unwrap_or(host);
    let (name, namespace) = base.rsplit_once('.')?;
    (!name.is_empty() && !namespace.is_empty()).then_some((name, namespace))
}

/// Whether a host can only mean something inside the cluster.
pub(super) fn is_cluster_local(host: &str, options: &Options) -> bool {
    !host.contains('.') || host.ends_with(".svc") || host.ends_with(&format!(".svc.{}", options.domain))
}
