//! Who this process is: a key made in memory, a certificate from the control plane's CA, renewed
//! before it ends (`istio.v1.auth.IstioCertificateService`, which istiod speaks too); or certificate, key and roots out
//! of files that somebody else renews (the certificate provider `file_watcher` of gRFC A29); or from an agent on the
//! node (the SPIFFE Workload API).
//!
//! From the CA: the first request is proved by a token, renewals by the certificate of the moment and, if the token is one
//! of Kubernetes, by that too. Other roots and federated trust domains are taken up as the CA tells of them, or as
//! the root file does beside one that does not. A valid
//! certificate is kept through every failure. The key never leaves memory and is never printed; each certificate has a key of
//! its own.
//!
//! ```text
//! no certificate ──token──▶ valid ──half of its life──▶ renewing ──▶ valid …
//!      ▲  └─retry 500 ms … 30 s                            └─retry, the old one stays
//!      └──────────────── ended (token again, if there is one) ◀──┘
//! ```

mod bundle_map;
mod files;
mod issue;
mod lists;
mod mounted;
mod reading;
mod schedule;
#[cfg(test)]
mod tests;
mod worker;
mod workload;

pub use self::bundle_map::{InvalidBundleMap, read_bundle_map};
pub(crate) use self::files::{read_now, tell_exposed};
pub use self::issue::{CertificateAuthorityClient, CertificateRefused};
pub(crate) use self::reading::Reading;
pub use self::worker::{FromFiles, spawn, spawn_files, spawn_workload_api};
pub use self::workload::{InvalidEndpoint, WorkloadApi};
pub use crate::clock::Clock;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::TrustDomain;
use mesh_core::source::Watched;
use mesh_core::telemetry::Renewals;
use zeroize::Zeroizing;

use crate::clock;

/// Why the last attempt brought no identity, as text; `None` if it did.
pub type Refusal = Watched<Option<Arc<str>>>;

/// What [`spawn`] needs to know beside the way to the CA.
#[derive(Clone)]
pub struct SecretConfig {
    /// Proof for the first certificate. None = the CA asks for none.
    pub token: Option<JoinToken>,
    /// Life asked for. Default 24 h; the CA may give less.
    pub validity: Duration,
    /// Trust domain that the certificate must be of. None = whatever the CA says.
    pub trust_domain: Option<TrustDomain>,
    /// Further names of that trust domain, as Istio's `trustDomainAliases`. Default: none.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// The clock: of certificates, that of the CA's server among them. Default: the system's.
    pub clock: Clock,
    /// Where failures are counted. Default: nobody reads them.
    pub renewals: Arc<Renewals>,
}

impl SecretConfig {
    /// The defaults with this proof.
    pub fn new(token: Option<JoinToken>) -> Self {
        let validity = Duration::from_secs(24 * 3600);
        Self {
            token,
            validity,
            trust_domain: None,
            trust_domain_aliases: Vec::new(),
            clock: clock::system(),
            renewals: Arc::default(),
        }
    }
}

impl fmt::Debug for SecretConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretConfig")
            .field("token", &self.token)
            .field("validity", &self.validity)
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

/// The reads of token files, by their paths: one client may be asked with several tokens.
type TokenFiles = Reading<Zeroizing<Vec<u8>>, PathBuf>;

/// A join token: proof for the first certificate. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum JoinToken {
    /// The token itself.
    Text(String),
    /// A file with it, read anew for each use, because such tokens rotate.
    File(PathBuf),
}

impl JoinToken {
    /// The token of the moment, with the reads of who asks.
    async fn read(&self, files: &TokenFiles) -> Result<String, CertificateRefused> {
        match self {
            Self::Text(text) => Ok(text.trim().to_owned()),
            Self::File(path) => {
                let refused = |reason: String| CertificateRefused::Token { path: path.clone(), reason };
                let file = path.clone();
                let read = move || read_now(file).map(|(content, _)| content).map_err(|e| e.to_string());
                let content = files.of_file(path.clone(), read).await.map_err(refused)?;
                let text = std::str::from_utf8(&content).map_err(|e| refused(e.to_string()))?;
                Ok(text.trim().to_owned())
            }
        }
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(***)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}
