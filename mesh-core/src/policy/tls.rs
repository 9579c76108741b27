//! Transport security towards the endpoints of a cluster (`UpstreamTlsContext`, gRFC A29; Istio `ClientTLSSettings`).

use std::sync::Arc;

use serde::Serialize;

use super::StringMatcher;

/// Transport security towards the endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamTls {
    /// Plaintext (Istio DISABLE).
    Disable,
    /// Mesh mTLS to endpoints whose metadata says `tlsMode: istio`, plaintext to the others
    /// (Istio's automatic mTLS).
    Auto(MeshTls),
    /// Mesh mTLS to all (Istio ISTIO_MUTUAL).
    Mesh(MeshTls),
    /// TLS in which we show no certificate; a certificate provider instance says whom to trust (gRFC A29).
    Roots(RootsTls),
    /// Ordinary TLS, server authentication only (Istio SIMPLE).
    Simple(OriginatedTls),
    /// Ordinary TLS with a client certificate from files (Istio MUTUAL).
    Mutual(OriginatedTls, ClientCertificate),
}

/// Mesh mTLS: our SPIFFE identity, the mesh's trust bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct MeshTls {
    /// Peer SPIFFE IDs accepted (any of); empty = any peer of the trust bundle.
    pub peer_ids: Vec<StringMatcher>,
    /// SNI sent, `outbound_.<port>_.<subset>_.<fqdn>` from Istio. None = the endpoint's address.
    pub sni: Option<String>,
    /// Whose certificate is shown and whose roots are trusted. Default: the process's own.
    #[serde(skip_serializing_if = "Instances::are_own")]
    pub instances: Instances,
}

/// Certificate provider instances of the bootstrap (gRFC A29), which may be two. None = the process's own identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Instances {
    /// Whose certificate is shown.
    pub certificate: Option<Arc<str>>,
    /// Whose roots are trusted.
    pub roots: Option<Arc<str>>,
}

impl Instances {
    /// One for both.
    pub fn one(name: Option<Arc<str>>) -> Self {
        Self { certificate: name.clone(), roots: name }
    }

    /// Whether both are the process's own.
    pub fn are_own(&self) -> bool {
        self.certificate.is_none() && self.roots.is_none()
    }
}

/// TLS by the roots of a certificate provider instance, in which we stay unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct RootsTls {
    /// DNS names, IP addresses or URIs of which the server's certificate must carry one, as in
    /// [`OriginatedTls::subject_alt_names`]; empty = whoever the roots vouch for
    /// (gRFC A29). By an instance whose roots are those of trust domains the server must have a SPIFFE ID, and this is
    /// about that.
    pub names: Vec<StringMatcher>,
    /// SNI sent. None = the dialled host.
    pub sni: Option<String>,
    /// Whose roots are trusted. None = the process's own identity's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<Arc<str>>,
}

/// TLS begun by us towards something that is not a mesh peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct OriginatedTls {
    /// SNI; None = the dialled host.
    pub sni: Option<String>,
    /// The endpoint's hostname, where it has one, is the SNI instead, whatever `sni` says (gRFC A101). Default false.
    pub auto_host_sni: bool,
    /// Names of which the certificate must carry one; empty = the SNI. An exact one is compared with DNS names in any case and by
    /// their wildcards, with URIs letter by letter, and as an address if it is one.
    pub subject_alt_names: Vec<StringMatcher>,
    /// PEM file of trusted roots; None = the system's.
    pub ca_file: Option<String>,
    /// Take any certificate (Istio `insecureSkipVerify`). Default false.
    pub insecure_skip_verify: bool,
}

/// A client certificate from files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ClientCertificate {
    /// PEM chain.
    pub certificate_file: String,
    /// PEM key.
    pub private_key_file: String,
}
