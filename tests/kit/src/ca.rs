//! A certificate authority for one test.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationList, CertificateRevocationListParams,
    CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use mesh_core::id::{SpiffeId, TrustDomain};
use mesh_core::identity::{Identity, SpiffeClientVerifier, SpiffeServerVerifier, TrustBundle, TrustBundles};
use mesh_core::source::{Watched, WatchedIdentity};

/// The crypto provider of the tests.
pub fn crypto() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A root of trust and what it signs.
pub struct TestCa {
    domain: TrustDomain,
    root: CertificateDer<'static>,
    root_pem: String,
    issuer: Issuer<'static, KeyPair>,
    issued: AtomicU64,
}

/// What a certificate says. The default is a correct workload certificate without a name.
#[derive(Clone, Debug, Default)]
pub struct CertificateSpec {
    /// URI names.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Ended in 2020.
    pub expired: bool,
    /// Marked as a certificate authority.
    pub is_ca: bool,
    /// Number by which it may be revoked; none = by chance.
    pub serial: Option<u64>,
}

impl Default for TestCa {
    fn default() -> Self {
        Self::new()
    }
}

impl TestCa {
    /// A root of the trust domain `cluster.local`.
    pub fn new() -> Self {
        Self::in_domain("cluster.local")
    }

    /// A root of the named trust domain.
    pub fn in_domain(domain: &str) -> Self {
        let key = KeyPair::generate().expect("a P-256 key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("test root of {domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).expect("the parameters are complete");
        Self {
            domain: TrustDomain::new(domain).expect("a trust domain"),
            root: root.der().clone(),
            root_pem: root.pem(),
            issuer: Issuer::new(params, key),
            issued: AtomicU64::new(0),
        }
    }

    /// The authority whose root certificate and key are these PEM texts: a control plane's, say.
    pub fn of_pem(domain: &str, root: &str, key: &str) -> Self {
        let key = KeyPair::from_pem(key).expect("a key");
        Self {
            domain: TrustDomain::new(domain).expect("a trust domain"),
            root: CertificateDer::from_pem_slice(root.as_bytes()).expect("a certificate"),
            root_pem: root.to_owned(),
            issuer: Issuer::from_ca_cert_pem(root, key).expect("a root certificate"),
            issued: AtomicU64::new(0),
        }
    }

    /// Chain and key of a service account as PEM, for those who read files.
    pub fn pem(&self, namespace: &str, account: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a P-256 key");
        let params = CertificateSpec::of(&self.id(namespace, account)).params();
        let leaf = params.signed_by(&key, &self.issuer).expect("the parameters are complete");
        (leaf.pem(), key.serialize_pem())
    }

    /// What is asked for (PEM), in this name and good from and until these seconds since the Unix epoch.
    pub fn sign(&self, request: &str, id: &SpiffeId, (begins, ends): (u64, u64)) -> Certificate {
        let mut request = CertificateSigningRequestParams::from_pem(request).expect("a request to sign");
        let at = |seconds: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        request.params = CertificateSpec::of(id).params();
        (request.params.not_before, request.params.not_after) = (at(begins), at(ends));
        request.signed_by(&self.issuer).expect("the parameters are complete")
    }

    /// The identity of a service account; every call issues a new certificate of a higher generation.
    pub fn identity(&self, namespace: &str, account: &str) -> Arc<Identity> {
        self.identity_from(&CertificateSpec::of(&self.id(namespace, account)))
    }

    /// The same, as a client or server takes it.
    pub fn watched(&self, namespace: &str, account: &str) -> WatchedIdentity {
        Watched::fixed(Some(self.identity(namespace, account)))
    }

    /// An identity whose certificate ended in 2020.
    pub fn expired(&self, namespace: &str, account: &str) -> Arc<Identity> {
        self.identity_from(&CertificateSpec { expired: true, ..CertificateSpec::of(&self.id(namespace, account)) })
    }

    /// An identity that this root signed and that names the trust domain `elsewhere.test`. It trusts
    /// this root's domain, so that only the other side refuses.
    pub fn wrong_domain(&self, namespace: &str, account: &str) -> Arc<Identity> {
        let elsewhere = TrustDomain::new("elsewhere.test").expect("a trust domain");
        let id = SpiffeId::for_service_account(&elsewhere, namespace, account).expect("a SPIFFE ID");
        self.identity_from(&CertificateSpec::of(&id))
    }

    /// An identity as `spec` says; it must have exactly one SPIFFE ID. For others see
    /// [`certified`](Self::certified).
    pub fn identity_from(&self, spec: &CertificateSpec) -> Arc<Identity> {
        let generation = self.issued.load(Ordering::Relaxed) + 1;
        let identity = Identity::new(self.certified(spec), self.bundles(), generation);
        Arc::new(identity.expect("one SPIFFE ID and its key"))
    }

    /// A certificate and key as `spec` says, however wrong.
    pub fn certified(&self, spec: &CertificateSpec) -> CertifiedKey {
        self.issued.fetch_add(1, Ordering::Relaxed);
        let key = KeyPair::generate().expect("a P-256 key");
        let leaf = spec.params().signed_by(&key, &self.issuer).expect("the parameters are complete");
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        CertifiedKey::from_der(vec![leaf.der().clone()], key, &crypto()).expect("the key of the certificate")
    }

    /// The same from nobody: under so many authorities of one name, each signed by the next one and the last by the first,
    /// that may be put together in any order.
    pub fn tangled(spec: &CertificateSpec, authorities: usize) -> CertifiedKey {
        let all: Vec<Self> = (0..authorities).map(|_| Self::new()).collect();
        let signers = all.iter().skip(1).chain(&all[..1]);
        let above = all.iter().zip(signers).map(|(of, by)| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, format!("test root of {}", of.domain));
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let signed = params.signed_by(of.issuer.key(), &by.issuer).expect("the parameters are complete");
            signed.der().clone()
        });
        let mut certified = all[0].certified(spec);
        certified.cert.extend(above);
        certified
    }

    /// A TLS client that shows any certificate, however wrong, and takes every server of this mesh.
    /// `None` shows none.
    pub fn client_showing(&self, certificate: Option<CertifiedKey>, alpn: &[&[u8]]) -> ClientConfig {
        let verifier = SpiffeServerVerifier::new(self.bundles(), Vec::new(), crypto());
        let builder = ClientConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match certificate {
            Some(key) => builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config
    }

    /// A TLS server that shows any certificate, however wrong; clients may stay anonymous.
    pub fn server_showing(&self, certificate: CertifiedKey, alpn: &[&[u8]]) -> ServerConfig {
        let verifier = SpiffeClientVerifier::new(self.bundles(), false, crypto());
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certificate)));
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config
    }

    /// The SPIFFE ID of a service account in this root's domain.
    pub fn id(&self, namespace: &str, account: &str) -> SpiffeId {
        SpiffeId::for_service_account(&self.domain, namespace, account).expect("a SPIFFE ID")
    }

    /// Trust in this root, for its own domain.
    pub fn bundles(&self) -> TrustBundles {
        let bundle = TrustBundle::new([self.root.clone()]).expect("the root is a certificate");
        TrustBundles::single(self.domain.clone(), bundle)
    }

    /// The same, but not in the certificates of these numbers: with a revocation list that is good for an hour.
    pub fn bundles_revoking(&self, serials: &[u64]) -> TrustBundles {
        let list = self.revoking(serials).der().to_vec();
        let bundle = TrustBundle::new([self.root.clone()]).expect("the root is a certificate");
        let bundle = bundle.with_revocation_lists(vec![list]).expect("a list that was just made");
        TrustBundles::single(self.domain.clone(), bundle)
    }

    /// That list as PEM.
    pub fn revocation_list(&self, serials: &[u64]) -> String {
        self.revoking(serials).pem().expect("a list that was just made")
    }

    fn revoking(&self, serials: &[u64]) -> CertificateRevocationList {
        let now = UnixTime::now().as_secs();
        let at = |seconds: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: at(now),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: at(now - 60),
            next_update: at(now + 3_600),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("the root may sign lists")
    }

    /// The root.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The root as PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }
}

impl CertificateSpec {
    /// A correct certificate of `id`.
    pub fn of(id: &SpiffeId) -> Self {
        Self { uris: vec![id.to_string()], ..Self::default() }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        let uris = self.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().expect("ASCII")));
        let dns = self.dns.iter().map(|name| SanType::DnsName(name.as_str().try_into().expect("ASCII")));
        let ips = self.ips.iter().map(|address| SanType::IpAddress(*address));
        params.subject_alt_names = uris.chain(dns).chain(ips).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if self.expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 1, 2));
        }
        params.serial_number = self.serial.map(SerialNumber::from);
        if self.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params
    }
}

impl std::fmt::Debug for TestCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestCa").field("domain", &self.domain).finish_non_exhaustive()
    }
}
