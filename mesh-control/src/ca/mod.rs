//! The mesh's own certificate authority: one root per trust domain, leaf certificates that say who a
//! workload is and nothing else.
//!
//! Of a signing request only the public key is used: names, validity and extensions in it are never
//! looked at. Who the requester is comes from [`JoinTokens`] or from the certificate it has. Refuses to
//! know transports.

mod files;
mod request;
mod service;
mod token;

pub use self::files::FilesError;
pub use self::request::{CsrRefused, RequestedKey};
pub(crate) use self::service::CertificateService;
pub use self::token::{JoinClaims, JoinTokens, MAX_TOKEN_TTL, MintError, TokenRefused};

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use mesh_core::id::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::clock::Clock;
use crate::state_dir::{StateDir, StateError};

const KEY_FILE: &str = "ca-key.pem";
/// File name of the root certificate inside the state directory.
pub const ROOT_FILE: &str = "root-cert.pem";
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
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

/// Signs certificates for one trust domain.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_pem: String,
    root_path: PathBuf,
    root_not_after: u64,
    domain: TrustDomain,
    life: CertificateLife,
    clock: Clock,
}

/// A certificate just signed.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The leaf.
    pub leaf: CertificateDer<'static>,
    /// PEM of leaf and root, leaf first.
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
    /// A name for the control plane's certificate that is not a DNS name.
    #[error("certificate name {0:?} is not a DNS name or an IP address")]
    Name(String),
    /// Signing failed.
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
    /// made on first use.
    ///
    /// # Errors
    /// The key can be read by others, key and certificate do not belong together, or the directory
    /// belongs to another trust domain.
    pub fn open(
        state_dir: &Path,
        domain: TrustDomain,
        life: CertificateLife,
        clock: Clock,
    ) -> Result<Self, StateError> {
        let dir = StateDir::open(state_dir)?;
        let root_path = dir.path(ROOT_FILE);
        let unusable = |reason: String| StateError::Content { path: root_path.clone(), reason };
        let key = match (dir.read_secret(KEY_FILE)?, dir.read(ROOT_FILE)?) {
            (Some(pem), _) => read_key(&dir, &pem)?,
            (None, None) => generate_key(&dir)?,
            (None, Some(_)) => {
                return Err(unusable(format!(
                    "its key {KEY_FILE} is missing; restore it, or remove the certificate too"
                )));
            }
        };
        let root_pem = match dir.read(ROOT_FILE)? {
            Some(pem) => String::from_utf8(pem).map_err(|_| unusable("it is not PEM".to_owned()))?,
            None => {
                // A root made anew from the same key and name is the same trust anchor to every peer.
                let pem = self_signed_root(&key, &domain, &clock).map_err(|e| unusable(e.to_string()))?;
                dir.write(ROOT_FILE, pem.as_bytes())?;
                pem
            }
        };
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes()).map_err(|e| unusable(e.to_string()))?;
        let root_not_after = check_root(&root, &key, &domain).map_err(unusable)?;
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(|e| unusable(e.to_string()))?;
        Ok(Self { issuer, root, root_pem, root_path, root_not_after, domain, life, clock })
    }

    /// Signs a workload certificate: one URI name (`id`), empty subject, for client and server use. The
    /// life is `wished`, kept within [`CertificateLife`].
    ///
    /// # Errors
    /// `id` is of another trust domain.
    pub fn issue(&self, key: &RequestedKey, id: &SpiffeId, wished: Option<Duration>) -> Result<Issued, IssueError> {
        self.sign(key, id, Vec::new(), wished)
    }

    /// Signs the control plane's own certificate, which also carries the names and addresses (`names`)
    /// under which stock clients verify it.
    ///
    /// # Errors
    /// A name is neither a DNS name nor an IP address, or `id` is of another trust domain.
    pub(crate) fn issue_server(&self, key: &KeyPair, id: &SpiffeId, names: &[String]) -> Result<Issued, IssueError> {
        let names = names.iter().map(|name| server_name(name)).collect::<Result<_, _>>()?;
        self.sign(key, id, names, None)
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        names: Vec<SanType>,
        wished: Option<Duration>,
    ) -> Result<Issued, IssueError> {
        if id.trust_domain() != self.domain {
            return Err(IssueError::ForeignDomain { id: id.clone(), domain: self.domain.clone() });
        }
        let failed = |reason: String| IssueError::Signing { id: id.clone(), reason };
        let ttl = self.life.clamp(wished);
        let now = self.clock.unix_seconds();
        let not_after = now.saturating_add(ttl.as_secs()).min(self.root_not_after);
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
        let leaf = params.signed_by(key, &self.issuer).map_err(|e| failed(e.to_string()))?;
        let chain_pem = vec![leaf.pem(), self.root_pem.clone()];
        let life = Duration::from_secs(not_after.saturating_sub(now));
        Ok(Issued { leaf: leaf.into(), chain_pem, not_after, life, serial: format!("{serial:032x}") })
    }

    /// The root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Where the root certificate lies.
    pub fn root_path(&self) -> &Path {
        &self.root_path
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }
}

fn read_key(dir: &StateDir, pem: &[u8]) -> Result<KeyPair, StateError> {
    let unusable = |reason: String| StateError::Content { path: dir.path(KEY_FILE), reason };
    let pem = std::str::from_utf8(pem).map_err(|_| unusable("it is not PEM".to_owned()))?;
    KeyPair::from_pem(pem).map_err(|e| unusable(format!("it holds no private key ({e})")))
}

fn generate_key(dir: &StateDir) -> Result<KeyPair, StateError> {
    let fresh = KeyPair::generate()
        .map_err(|e| StateError::Content { path: dir.path(KEY_FILE), reason: format!("no key can be made: {e}") })?;
    let pem = dir.write_once(KEY_FILE, fresh.serialize_pem().as_bytes())?;
    read_key(dir, &pem)
}

fn self_signed_root(key: &KeyPair, domain: &TrustDomain, clock: &Clock) -> Result<String, rcgen::Error> {
    let now = clock.unix_seconds();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, domain.as_str());
    params.distinguished_name.push(DnType::CommonName, "mesh root CA");
    // X.509-SVID 4.1: a signing certificate's SPIFFE ID has no path.
    params.subject_alt_names = vec![SanType::URI(root_uri(domain).as_str().try_into()?)];
    set_validity(&mut params, now.saturating_sub(BACK_DATE.as_secs()), now + ROOT_LIFE.as_secs());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key)?.pem())
}

fn root_uri(domain: &TrustDomain) -> String {
    format!("spiffe://{domain}")
}

/// Checks that a root is the key's, a CA and of the trust domain; gives its end of validity.
fn check_root(root: &CertificateDer<'_>, key: &KeyPair, domain: &TrustDomain) -> Result<u64, String> {
    let (_, cert) = X509Certificate::from_der(root).map_err(|e| format!("it cannot be read: {e}"))?;
    if cert.public_key().raw != key.subject_public_key_info() {
        return Err(format!("it does not belong to the key in {KEY_FILE}; restore the pair"));
    }
    if !cert.is_ca() {
        return Err("it may not sign certificates (cA is false)".to_owned());
    }
    let names = cert.subject_alternative_name().map_err(|e| e.to_string())?;
    for name in names.iter().flat_map(|names| names.value.general_names.iter()) {
        if let GeneralName::URI(uri) = name
            && *uri != root_uri(domain)
        {
            return Err(format!("it is for {uri}, not for the trust domain {domain}; use another state directory"));
        }
    }
    u64::try_from(cert.validity().not_after.timestamp()).map_err(|_| "its validity cannot be read".to_owned())
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
mod tests;
