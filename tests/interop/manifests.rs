//! The manifests of these tests, as text.

use std::net::SocketAddr;

use crate::backend::Backend;

/// A Service and the one endpoint behind it.
pub(crate) fn service(name: &str, backend: Option<&Backend>) -> String {
    let service = format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata: {{ name: {name}, namespace: default }}\n\
         spec:\n  ports: [{{ name: grpc, port: 9080 }}]\n"
    );
    let Some(backend) = backend else { return service };
    let (ip, port) = (backend.address.ip(), backend.address.port());
    format!(
        "{service}---\n\
         apiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\n\
         metadata:\n  name: {name}-1\n  namespace: default\n  labels: {{ kubernetes.io/service-name: {name} }}\n\
         addressType: IPv4\n\
         ports: [{{ name: grpc, port: {port} }}]\n\
         endpoints: [{{ addresses: [\"{ip}\"] }}]\n"
    )
}

/// Jason goes to v2; of the others `weight` in a hundred.
pub(crate) fn routes(weight: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: VirtualService\n\
         metadata: {{ name: reviews, namespace: default }}\n\
         spec:\n\
         \x20 hosts: [reviews]\n\
         \x20 http:\n\
         \x20   - match: [{{ headers: {{ x-user: {{ exact: jason }} }} }}]\n\
         \x20     route: [{{ destination: {{ host: reviews-v2 }} }}]\n\
         \x20   - route:\n\
         \x20       - {{ destination: {{ host: reviews-v1 }}, weight: {} }}\n\
         \x20       - {{ destination: {{ host: reviews-v2 }}, weight: {weight} }}\n",
        100 - weight
    )
}

/// Mutual TLS for all of the namespace.
pub(crate) const STRICT: &str = "apiVersion: security.istio.io/v1\n\
     kind: PeerAuthentication\n\
     metadata: { name: default, namespace: default }\n\
     spec: { mtls: { mode: STRICT } }\n";

/// A Service that processes announce themselves for.
pub(crate) fn announced(name: &str) -> String {
    service(name, None)
}

/// A host at one address that answers mutual TLS as `account`.
pub(crate) fn in_mesh(host: &str, account: &str, address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: ServiceEntry\n\
         metadata: {{ name: {host}, namespace: default }}\n\
         spec:\n\
         \x20 hosts: [{host}]\n\
         \x20 location: MESH_INTERNAL\n\
         \x20 resolution: STATIC\n\
         \x20 ports: [{{ number: 9080, name: grpc, protocol: GRPC }}]\n\
         \x20 endpoints:\n\
         \x20   - address: {ip}\n\
         \x20     ports: {{ grpc: {port} }}\n\
         \x20     labels: {{ security.istio.io/tlsMode: istio }}\n\
         \x20     serviceAccount: {account}\n"
    )
}

/// A DestinationRule.
pub(crate) fn rule(host: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: DestinationRule\n\
         metadata: {{ name: {host}, namespace: default }}\n\
         spec: {{ host: {host}, {spec} }}\n"
    )
}
