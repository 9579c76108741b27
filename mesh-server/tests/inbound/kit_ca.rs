//! A certificate authority for tests.

use std::sync::Arc;

use mesh_core::id::{SpiffeId, TrustDomain};
use mesh_core::identity::{Identity, TrustBundle, TrustBundles};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

pub(crate) struct TestCa {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { root, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn identity(&self, namespace: &str, account: &str) -> Arc<Identity> {
        self.identity_trusting(namespace, account, self)
    }

    pub(crate) fn identity_trusting(&self, namespace: &str, account: &str, trusted: &Self) -> Arc<Identity> {
        let domain = TrustDomain::new("cluster.local").unwrap();
        let id = SpiffeId::for_service_account(&domain, namespace, account).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let bundles = TrustBundles::single(domain, TrustBundle::new([trusted.root.clone()]).unwrap());
        Arc::new(Identity::new(CertifiedKey::new(vec![leaf], key), bundles, 1).unwrap())
    }
}
