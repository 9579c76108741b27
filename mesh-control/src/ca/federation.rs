//! Whose peers are let in beside our own: the trust domains that an operator federates the mesh with, and what the other
//! side needs of ours.
//!
//! ```text
//! federated-bundles.json            a SPIFFE trust bundle map, without our own domain; may be absent
//! federated-bundles-last-good.json  what was good of it last, for a start while it is not
//! ```
//!
//! It is for members alone. The control plane's port goes by the authority's own roots: a federated peer gets no
//! certificate and no configuration there.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use mesh_core::identity::TrustBundles;
use mesh_core::source::{Publisher, Watched};
use mesh_discovery::proto::trust::FederatedBundle;
use mesh_discovery::secret::read_bundle_map;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::public_key::PublicKey;

use super::material::{check_authority, parse};
use super::{CertificateAuthority, ROOT_FILE};
use crate::state_dir::{StateDir, StateError};

const FILE: &str = "federated-bundles.json";
const LAST_GOOD: &str = "federated-bundles-last-good.json";
/// Bytes of the file: every certificate brings all of it along.
const MOST: usize = 1 << 20;

/// The trust domains that members trust beside their own.
pub(crate) struct Federation {
    dir: StateDir,
    authority: Arc<CertificateAuthority>,
    own_names: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    looked: Mutex<Option<Look>>,
    trusted: Publisher<TrustBundles>,
}

/// Everything that the verdict on the file depends on.
#[derive(PartialEq)]
struct Look {
    content: Option<Vec<u8>>,
    own_names: Vec<String>,
    own: Vec<CertificateDer<'static>>,
}

impl Federation {
    /// Reads the file in the authority's state directory. `own_names` tells our trust domain and its aliases, of which
    /// nobody else may vouch. A file that cannot be used keeps nobody from starting: what was good last is in force.
    pub(crate) fn open(
        authority: Arc<CertificateAuthority>,
        own_names: impl Fn() -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        let (dir, own_names, trusted) =
            (authority.dir.clone(), Box::new(own_names), Watched::channel(<_>::default()).0);
        let federation = Self { dir, authority, own_names, looked: Mutex::default(), trusted };
        if let Err(error) = federation.reload() {
            if federation.look(FILE).is_ok_and(|look| look.verdict().is_ok()) {
                let what =
                    "what is good now of federated trust domains is in force, and cannot be kept for a later start";
                tracing::error!(target: "mesh::ca", %error, "{what}");
                return federation;
            }
            tracing::error!(target: "mesh::ca", %error, "what was good last of federated trust domains is in force");
            match federation.look(LAST_GOOD).map(|look| look.verdict()) {
                Ok(Ok(bundles)) => federation.trust(bundles),
                Ok(Err(reason)) => tracing::error!(target: "mesh::ca", reason, "nor is that of use: there are none"),
                Err(error) => tracing::error!(target: "mesh::ca", %error, "nor is that of use: there are none"),
            }
        }
        federation
    }

    /// Reads the file again if it, our names or our own certificates have changed; whether members are told something
    /// new. A file that cannot be used leaves everything as it was, but for what has become one of our own names.
    pub(crate) fn reload(&self) -> Result<bool, StateError> {
        let now = self.look(FILE)?;
        let mut looked = self.looked.lock();
        if looked.as_ref() == Some(&now) {
            return Ok(false);
        }
        let before = self.bundles();
        let verdict = match now.verdict() {
            Ok(bundles) => {
                self.trust(bundles);
                // Where it cannot be kept it has not been looked at: it is tried again.
                self.keep(now.content.as_deref())?;
                Ok(before != self.bundles())
            }
            Err(reason) => {
                self.trust(without(&before, &now.own_names));
                Err(StateError::Content { path: self.dir.path(FILE), reason })
            }
        };
        *looked = Some(now);
        verdict
    }

    /// The bundles of other trust domains.
    pub(crate) fn bundles(&self) -> TrustBundles {
        self.trusted().as_ref().clone()
    }

    /// The same, shared.
    pub(super) fn trusted(&self) -> Arc<TrustBundles> {
        self.trusted.load_full()
    }

    /// Beside those of our own domain.
    pub(crate) fn beside(&self, mut own: TrustBundles) -> TrustBundles {
        for (domain, bundle) in self.trusted.load_full().iter() {
            own.insert(domain.clone(), bundle.clone());
        }
        own
    }

    /// The same as members are told of it.
    pub(crate) fn told(&self) -> Vec<FederatedBundle> {
        let one = |(domain, bundle): (&_, &mesh_core::identity::TrustBundle)| FederatedBundle {
            trust_domain: ToString::to_string(domain),
            roots: bundle.roots().iter().map(|root| root.to_vec()).collect(),
        };
        self.trusted.load_full().iter().map(one).collect()
    }

    /// Tells when they are others.
    pub(crate) fn watch(&self) -> Watched<TrustBundles> {
        self.trusted.watch()
    }

    fn look(&self, file: &str) -> Result<Look, StateError> {
        Ok(Look { content: self.dir.read(file)?, own_names: (self.own_names)(), own: self.authority.certificates() })
    }

    fn trust(&self, bundles: TrustBundles) {
        if *self.trusted.load_full() != bundles {
            let domains: Vec<_> = bundles.iter().map(|(domain, _)| domain.as_str()).collect();
            tracing::info!(target: "mesh::ca", ?domains, "other federated trust domains");
            self.trusted.publish(bundles);
        }
    }

    fn keep(&self, content: Option<&[u8]>) -> Result<(), StateError> {
        match content {
            None => self.dir.remove(LAST_GOOD),
            Some(content) if self.dir.read(LAST_GOOD)?.as_deref() == Some(content) => Ok(()),
            Some(content) => self.dir.write(LAST_GOOD, content),
        }
    }
}

impl Look {
    /// Whom to trust, or why the file is of no use.
    fn verdict(&self) -> Result<TrustBundles, String> {
        let Some(content) = &self.content else { return Ok(TrustBundles::default()) };
        if content.len() > MOST {
            return Err(format!("it has {} bytes; at most {MOST} can be told to members", content.len()));
        }
        let bundles = read_bundle_map(content).map_err(|e| e.to_string())?;
        let mut keys = HashMap::new();
        for certificate in &self.own {
            keys.insert(key_of(certificate)?, "this mesh's own authority");
        }
        for (domain, bundle) in bundles.iter() {
            if self.own_names.iter().any(|name| name == domain.as_str()) {
                return Err(format!(
                    "{domain} is the trust domain of this mesh or an alias of it, of which its own authority alone \
                     vouches; take that entry out"
                ));
            }
            for root in bundle.roots() {
                check_authority(root, &domain.clone().into())
                    .map_err(|reason| format!("a root of {domain}: {reason}"))?;
                let other = keys.insert(key_of(root)?, domain.as_str());
                if let Some(other) = other.filter(|other| *other != domain.as_str()) {
                    return Err(format!(
                        "a root of {domain} has the key of {other}: who holds it could give names of both. Where one root \
                         is above several trust domains, write the authority below it that signs for {domain} alone"
                    ));
                }
            }
        }
        Ok(bundles)
    }
}

/// All but those of these names.
fn without(bundles: &TrustBundles, names: &[String]) -> TrustBundles {
    let mut others = TrustBundles::default();
    for (domain, bundle) in bundles.iter().filter(|(domain, _)| !names.iter().any(|name| name == domain.as_str())) {
        others.insert(domain.clone(), bundle.clone());
    }
    others
}

impl CertificateAuthority {
    /// The roots to trust now as a SPIFFE trust bundle map with one entry, for the other side of a federation: JSON.
    ///
    /// # Errors
    /// The key of a root is neither RSA nor on a curve of NIST's; such a map holds no others.
    pub fn bundle_map(&self) -> Result<String, StateError> {
        let unusable = |reason| StateError::Content { path: self.dir.path(ROOT_FILE), reason };
        let keys = self.bundle().roots().iter().map(|root| web_key(root)).collect::<Result<Vec<_>, _>>();
        let map = json!({ "trust_domains": { self.trust_domain().as_str(): { "keys": keys.map_err(unusable)? } } });
        Ok(format!("{map:#}"))
    }

    /// Everything that signs here and that is trusted.
    fn certificates(&self) -> Vec<CertificateDer<'static>> {
        let material = self.material.load_full();
        material.bundle.roots().iter().chain(&material.intermediates).cloned().collect()
    }
}

fn key_of<'c>(certificate: &'c CertificateDer<'_>) -> Result<&'c [u8], String> {
    Ok(parse(certificate)?.tbs_certificate.subject_pki.raw)
}

/// A root as a JSON Web Key (RFC 7517, SPIFFE trust domain and bundle 4.2).
fn web_key(root: &CertificateDer<'_>) -> Result<Value, String> {
    let (certificate, text) = (parse(root)?, |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes));
    let mut key = match certificate.public_key().parsed().map_err(|e| e.to_string())? {
        PublicKey::RSA(rsa) => {
            let bare = |number: &[u8]| text(&number[number.iter().take_while(|byte| **byte == 0).count()..]);
            json!({ "kty": "RSA", "n": bare(rsa.modulus), "e": bare(rsa.exponent) })
        }
        PublicKey::EC(point) => {
            // 4, and both coordinates at their full length.
            let Some((4, both)) = point.data().split_first().map(|(form, both)| (*form, both)) else {
                return Err("the point of its key is not written out".to_owned());
            };
            let curve = match both.len() {
                64 => "P-256",
                96 => "P-384",
                132 => "P-521",
                _ => return Err("its key is on a curve that JSON Web Keys do not know".to_owned()),
            };
            let (x, y) = both.split_at(both.len() / 2);
            json!({ "kty": "EC", "crv": curve, "x": text(x), "y": text(y) })
        }
        _ => return Err("its key is neither RSA nor EC".to_owned()),
    };
    key["use"] = "x509-svid".into();
    key["x5c"] = json!([BASE64_STANDARD.encode(root)]);
    Ok(key)
}

#[cfg(test)]
mod tests;
