//! The mesh's own certificate authority: leaf certificates that say who a workload is and nothing else, signed by a
//! root of its own or by an operator's intermediate, and the roots to trust.
//!
//! Of a signing request only the public key is used: names, validity and extensions in it are never
//! looked at. Who the requester is comes from [`JoinTokens`], from a [`TokenReviewer`] or from the certificate it has.
//! Refuses to know transports.

mod asking;
mod federation;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod joined;
mod key;
mod limit;
mod live;
mod material;
mod request;
mod review;
mod revoked;
mod rotate;
mod service;
mod token;
mod trust;

pub(crate) use self::federation::Federation;
pub use self::files::FilesError;
pub(crate) use self::joined::is_marked as is_joined;
pub(crate) use self::material::not_after;
pub use self::request::{CsrRefused, RequestedKey};
pub use self::review::{
    DEFAULT_AUDIENCE, PodRef, Review, ReviewFailed, ReviewRefused, Reviewing, ServiceAccountTokens, TokenReviewer,
};
pub use self::rotate::{RootRotation, RotateError, RotationState, RotationStep};
pub(crate) use self::service::CertificateService;
pub use self::token::{JoinClaims, JoinTokens, MAX_TOKEN_TTL, MintError, TokenRefused, TokenUse};
pub(crate) use self::trust::TrustService;

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use mesh_core::id::{SpiffeId, TrustDomain};
use mesh_core::identity::{TrustBundle, root_name};
use mesh_core::source::{Publisher, Watched};
use mesh_discovery::proto::trust::TrustBundle as WatchedBundle;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;

use self::live::LiveLeaves;
use self::material::Material;
use crate::clock::Clock;
use crate::state_dir::{StateDir, StateError};

/// File name of the root certificates inside the state directory.
pub const ROOT_FILE: &str = "root-cert.pem";
/// How far a certificate's start lies in the past, for peers whose clock is behind.
const BACK_DATE: Duration = Duration::from_secs(300);

/// How long leaf certificates live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateLife {
    /// When the request does not say. Default 24 h.
    pub default: Duration,
    /// Shorter wishes are raised to it. Default 5 min.
    pub minimum: Duration,
    /// Longer wishes are cut to it. Default 24 h.
    pub maximum: Duration,
}

impl Default for CertificateLife {
    fn default() -> Self {
        let day = Duration::from_secs(86_400);
        Self { default: day, minimum: Duration::from_secs(300), maximum: day }
    }
}

impl CertificateLife {
    /// Every certificate lives `ttl` unless a shorter life is asked for; the minimum gives way when
    /// `ttl` is below it.
    pub fn at_most(ttl: Duration) -> Self {
        let usual = Self::default();
        Self { default: ttl, minimum: usual.minimum.min(ttl), maximum: ttl }
    }

    fn clamp(&self, wished: Option<Duration>) -> Duration {
        wished.unwrap_or(self.default).clamp(self.minimum, self.maximum)
    }
}

/// The trust domain that an authority signs for, and its former names: roots that say that they are of one of those may
/// stand among the roots to trust, and sign on, while a mesh is renamed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomains {
    own: TrustDomain,
    aliases: Vec<TrustDomain>,
}

impl TrustDomains {
    /// `aliases` as Istio's `trustDomainAliases`.
    pub fn new(own: TrustDomain, aliases: Vec<TrustDomain>) -> Self {
        Self { own, aliases }
    }
}

/// Without aliases.
impl From<TrustDomain> for TrustDomains {
    fn from(own: TrustDomain) -> Self {
        Self::new(own, Vec::new())
    }
}

/// Signs certificates for one trust domain.
pub struct CertificateAuthority {
    dir: StateDir,
    material: Publisher<Material>,
    live: LiveLeaves,
    root_path: PathBuf,
    domains: TrustDomains,
    life: CertificateLife,
    clock: Clock,
}

/// A certificate just signed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Issued {
    /// The leaf.
    pub leaf: CertificateDer<'static>,
    /// What it is presented with beside itself: the authority's own certificate, unless that is a root.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// PEM: the leaf, what it is presented with, and all roots to trust in one text.
    pub chain_pem: Vec<String>,
    /// End of validity, seconds since the Unix epoch.
    pub not_after: u64,
    /// How long that is from now.
    pub life: Duration,
    /// Serial number, hexadecimal.
    pub serial: String,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The identity is of a trust domain this authority does not speak for.
    #[error("certificate for {id}: this authority signs for the trust domain {domain} only")]
    ForeignDomain {
        /// Who asked.
        id: SpiffeId,
        /// Our trust domain.
        domain: TrustDomain,
    },
    /// What signs ends before the shortest certificate would.
    #[error(
        "no certificate is signed: what signs ends at {not_after} (Unix time), and the shortest certificate lives {least:?}; \
         change the root (mesh cert rotate-root), or replace an operator's ca-cert.pem, cert-chain.pem and root-cert.pem by \
         ones that live"
    )]
    IssuerEnds {
        /// When the first ends of the signing certificate and those above it, seconds since the Unix epoch.
        not_after: u64,
        /// Life of the shortest certificate.
        least: Duration,
    },
    /// A name for the control plane's certificate that is not a DNS name.
    #[error("certificate name {0:?} is not a DNS name or an IP address")]
    Name(String),
    /// Signing failed, or the certificate could not be noted down.
    #[error("certificate for {id}: {reason}")]
    Signing {
        /// For whom.
        id: SpiffeId,
        /// What failed.
        reason: String,
    },
}

impl CertificateAuthority {
    /// Opens the authority of a state directory; key (ECDSA P-256) and root certificate (10 years) are
    /// made on first use. An operator's own root stays out of it: `ca-key.pem`, `ca-cert.pem`, `cert-chain.pem` and
    /// `root-cert.pem` as in Istio's secret `cacerts` make an intermediate sign.
    ///
    /// # Errors
    /// The key can be read by others, key and certificate do not belong together, or the directory
    /// belongs to another trust domain.
    pub fn open(
        state_dir: &Path,
        domains: impl Into<TrustDomains>,
        life: CertificateLife,
        clock: Clock,
    ) -> Result<Self, StateError> {
        let (dir, domains) = (StateDir::open(state_dir)?, domains.into());
        let existed = dir.path(ROOT_FILE).exists();
        let material = Material::open(&dir, &domains, &clock)?;
        if let Err(error) = material.check_lists(&[], &dir, clock.unix_seconds()) {
            // Not a reason to stay away: they are taken up as they come, and nobody is let in without.
            tracing::error!(target: "mesh::ca", %error, "peers refuse everybody until then");
        }
        let (live, fresh) = LiveLeaves::open(&dir)?;
        if existed && fresh {
            // Leaves of before are recorded nowhere: as if one had been signed just now.
            let until = clock.unix_seconds().saturating_add(life.maximum.as_secs());
            live.note(&material.root, until, 0).map_err(|e| live.failed("write", e))?;
        }
        let root_path = dir.path(ROOT_FILE);
        Ok(Self { dir, material: Watched::channel(material).0, live, root_path, domains, life, clock })
    }

    /// Where the key of a root is that signs by itself, and not an operator's intermediate.
    pub(crate) fn key_of_root(&self) -> Option<PathBuf> {
        self.material.load_full().intermediates.is_empty().then(|| self.dir.path(material::KEY_FILE))
    }

    /// Reads the files of the state directory again if they have changed; whether they have. What cannot be used
    /// leaves everything as it was, and so do roots without one under which leaves live.
    pub(crate) fn reload(&self) -> Result<bool, StateError> {
        let before = self.material.load_full();
        if !before.is_stale(&self.dir)? {
            return Ok(false);
        }
        let material = Material::read(&self.dir, &self.domains)?;
        material.check_lists(before.bundle.revocation_lists(), &self.dir, self.now())?;
        self.check_roots(&before.bundle, &material.bundle)?;
        self.material.publish(material);
        Ok(true)
    }

    /// A root that is left out too soon cuts those off whose certificates are under it: whoever has changed it (the command
    /// of a change of roots, or an operator's hand) is to wait, or to say that it is meant.
    fn check_roots(&self, before: &TrustBundle, after: &TrustBundle) -> Result<(), StateError> {
        for (root, anchor) in before.roots().iter().zip(before.anchors()) {
            // One made anew of the same name and key is the same.
            if after.anchors().contains(anchor) {
                continue;
            }
            let until = self.live.until(root).map_err(|e| self.live.failed("read", e))?;
            if until > self.now() {
                let (name, records) = (root_name(root), self.live.records_of(root));
                let reason = format!(
                    "it leaves out the root {name}, and certificates under it live until {until} (Unix time): put it back \
                     until then, or remove {} and cut their owners off",
                    records.display()
                );
                return Err(StateError::Content { path: self.root_path.clone(), reason });
            }
        }
        Ok(())
    }

    /// Whether a certificate can be signed now that is good for as long as the shortest ones are.
    ///
    /// # Errors
    /// What signs has ended, or does too soon.
    pub(crate) fn check_issuer(&self) -> Result<(), IssueError> {
        let (not_after, least) = (self.material.load_full().not_after, self.life.minimum);
        match not_after.saturating_sub(self.now()) < least.as_secs() {
            true => Err(IssueError::IssuerEnds { not_after, least }),
            false => Ok(()),
        }
    }

    /// Tells when [`reload`](Self::reload) has found something new.
    pub(crate) fn changes(&self) -> Changes {
        Changes(self.material.watch())
    }

    /// Signs a workload certificate: one URI name (`id`), empty subject, for client and server use. The
    /// life is `wished`, kept within [`CertificateLife`].
    ///
    /// # Errors
    /// `id` is of another trust domain, or what signs ends too soon.
    pub fn issue(&self, key: &RequestedKey, id: &SpiffeId, wished: Option<Duration>) -> Result<Issued, IssueError> {
        self.sign(key, id, Vec::new(), wished, false)
    }

    /// The same for somebody who joined with a join token, so that the certificate alone can be renewed.
    pub(crate) fn issue_joined(
        &self,
        key: &RequestedKey,
        id: &SpiffeId,
        wished: Option<Duration>,
    ) -> Result<Issued, IssueError> {
        self.sign(key, id, Vec::new(), wished, true)
    }

    /// Signs the control plane's own certificate, which also carries the names and addresses (`names`)
    /// under which stock clients verify it.
    ///
    /// # Errors
    /// A name is neither a DNS name nor an IP address, or `id` is of another trust domain.
    pub(crate) fn issue_server(&self, key: &KeyPair, id: &SpiffeId, names: &[String]) -> Result<Issued, IssueError> {
        let names = names.iter().map(|name| server_name(name)).collect::<Result<_, _>>()?;
        self.sign(key, id, names, None, false)
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        names: Vec<SanType>,
        wished: Option<Duration>,
        joined: bool,
    ) -> Result<Issued, IssueError> {
        if id.trust_domain() != self.domains.own {
            return Err(IssueError::ForeignDomain { id: id.clone(), domain: self.domains.own.clone() });
        }
        self.check_issuer()?;
        let failed = |reason: String| IssueError::Signing { id: id.clone(), reason };
        let ttl = self.life.clamp(wished);
        let now = self.now();
        let material = self.material.load_full();
        let not_after = now.saturating_add(ttl.as_secs()).min(material.not_after);
        // Before it is signed: a rollover must know of every leaf there may be.
        let spare = self.life.maximum.as_secs() / 4;
        self.live
            .note(&material.root, not_after, spare)
            .map_err(|e| failed(format!("it cannot be noted down: {e}")))?;
        // At most a quarter of the life, so that half of the whole validity is never already past.
        let not_before = now.saturating_sub(BACK_DATE.min(ttl / 4).as_secs());

        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = id.as_str().try_into().map_err(|e: rcgen::Error| failed(e.to_string()))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.subject_alt_names.extend(names);
        set_validity(&mut params, not_before, not_after);
        let serial = random_serial().ok_or_else(|| failed("no random numbers".to_owned()))?;
        params.serial_number = Some(SerialNumber::from_slice(&serial.to_be_bytes()));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.custom_extensions.extend(joined.then(joined::mark));
        let leaf = params.signed_by(key, &material.issuer).map_err(|e| failed(e.to_string()))?;
        let intermediates = material.intermediates.clone();
        let mut chain_pem = vec![leaf.pem()];
        chain_pem.extend(intermediates.iter().map(|der| pem_of(der)));
        chain_pem.push(material.roots_pem.clone());
        let life = Duration::from_secs(not_after.saturating_sub(now));
        let serial = format!("{serial:032x}");
        Ok(Issued { leaf: leaf.into(), intermediates, chain_pem, not_after, life, serial })
    }

    /// The roots to trust now; during a change of roots there are two.
    pub fn bundle(&self) -> TrustBundle {
        self.material.load_full().bundle.clone()
    }

    /// The same as members are told of it; of other trust domains it knows nothing.
    pub(crate) fn watched_bundle(&self) -> WatchedBundle {
        let material = self.material.load_full();
        WatchedBundle {
            trust_domain: self.domains.own.to_string(),
            roots: material.roots_pem.clone(),
            revocation_lists: material.bundle.revocation_lists().to_vec(),
            federated: Vec::new(),
        }
    }

    /// The time, seconds since the Unix epoch.
    pub(crate) fn now(&self) -> u64 {
        self.clock.unix_seconds()
    }

    /// What tells the time.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Where the root certificates lie.
    pub fn root_path(&self) -> &Path {
        &self.root_path
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domains.own
    }

    /// The former names of it.
    pub(crate) fn former_domains(&self) -> &[TrustDomain] {
        &self.domains.aliases
    }
}

/// Waits for other keys or roots of an authority.
pub(crate) struct Changes(Watched<Material>);

impl Changes {
    pub(crate) async fn changed(&mut self) {
        self.0.changed().await;
    }
}

/// DER as PEM.
fn pem_of(der: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn server_name(name: &str) -> Result<SanType, IssueError> {
    if let Ok(address) = name.parse() {
        return Ok(SanType::IpAddress(address));
    }
    let invalid = || IssueError::Name(name.to_owned());
    rustls_pki_types::DnsName::try_from(name).map_err(|_| invalid())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_| invalid())?))
}

/// Random and positive, as RFC 5280 wants it.
fn random_serial() -> Option<u128> {
    let mut serial = [0_u8; 16];
    SystemRandom::new().fill(&mut serial).ok()?;
    Some(u128::from_be_bytes(serial) >> 1 | 1 << 126)
}

/// Start and end as seconds since the Unix epoch.
fn set_validity(params: &mut CertificateParams, not_before: u64, not_after: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(not_before);
    params.not_after = epoch + Duration::from_secs(not_after);
}

#[cfg(test)]
pub(crate) mod tests;
