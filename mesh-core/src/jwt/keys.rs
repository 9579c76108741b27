//! A JSON Web Key Set (RFC 7517) as keys that can check signatures. Keys for other uses and of other types are left
//! out, as the RFC asks; secrets (`oct`) are never keys here, so no token can be checked with what is public.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{self, RsaParameters, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::verified::{Verified, fingerprint};
use super::{Refusal, base64url};

/// How a token is signed (RFC 7518, RFC 8037). `none` and the `HS` algorithms are not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    const ALL: [Self; 10] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::Es256 | Self::Es384 | Self::Es512 | Self::EdDsa => return None,
        })
    }
}

/// The keys of one issuer. Clones share which tokens were found good.
#[derive(Clone)]
pub struct KeySet {
    keys: Box<[Key]>,
    verified: Arc<Verified>,
    /// Signatures that were worked out.
    #[cfg(test)]
    pub(super) checked: Arc<std::sync::atomic::AtomicUsize>,
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// A document that is no key set, or one without a key that could check a signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("JSON Web Key Set: {why}")]
pub struct InvalidKeySet {
    why: String,
    has_no_key: bool,
}

impl InvalidKeySet {
    fn because(why: String) -> Self {
        Self { why, has_no_key: false }
    }

    /// Whether it is a key set all the same, in which no key can check a signature: its issuer says that no token is good.
    pub fn has_no_key(&self) -> bool {
        self.has_no_key
    }
}

#[derive(Clone, Debug)]
struct Key {
    id: Option<Box<str>>,
    // The only algorithm it is for; `None` = those of its type.
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Clone, Debug)]
enum Material {
    Rsa { n: Box<[u8]>, e: Box<[u8]> },
    P256(Box<[u8]>),
    P384(Box<[u8]>),
    P521(Box<[u8]>),
    Ed25519(Box<[u8]>),
}

/// Most bytes of a key set.
const MOST_BYTES: usize = 1 << 20;
/// Most keys of a set.
const MOST_KEYS: usize = 100;
/// With how many keys a token is tried: more of them, with a caller who is nobody yet, would be work for little.
const MOST_TRIED: usize = 8;

#[derive(Deserialize)]
struct SetSpec {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct KeySpec {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a document.
    ///
    /// # Errors
    /// It is no key set, is over 1 MiB, has over 100 keys, or none of its keys can check a signature.
    pub fn parse(text: &str) -> Result<Self, InvalidKeySet> {
        if text.len() > MOST_BYTES {
            return Err(InvalidKeySet::because(format!("it has {} bytes, over {MOST_BYTES}", text.len())));
        }
        let spec: SetSpec = serde_json::from_str(text).map_err(|error| InvalidKeySet::because(error.to_string()))?;
        if spec.keys.len() > MOST_KEYS {
            return Err(InvalidKeySet::because(format!("it has {} keys, over {MOST_KEYS}", spec.keys.len())));
        }
        let keys: Box<[Key]> = spec.keys.into_iter().filter_map(Key::read).collect();
        if keys.is_empty() {
            let why = "none of its keys can check a signature (RSA, P-256, P-384, P-521, Ed25519)".to_owned();
            return Err(InvalidKeySet { why, has_no_key: true });
        }
        let verified = Arc::default();
        Ok(Self {
            keys,
            verified,
            #[cfg(test)]
            checked: Arc::default(),
        })
    }

    /// What is to be said of keys that no token is ever tried with, if there are some: without a `kid` they are found by trying,
    /// and that ends after eight.
    pub fn beyond_reach(&self) -> Option<String> {
        let nameless = |algorithm: Algorithm| {
            self.keys.iter().filter(move |key| key.id.is_none() && key.is_for(algorithm)).count()
        };
        let most = Algorithm::ALL.into_iter().map(nameless).max().filter(|most| *most > MOST_TRIED)?;
        Some(format!(
            "{} of {most} keys for the same algorithm that have no kid are never used, because a token is tried with {MOST_TRIED} \
             of them and no more: give each key a kid, and let the tokens name it",
            most - MOST_TRIED
        ))
    }

    /// Whether one of the keys made a token's signature; of one that was found good before the signature is not worked out again.
    pub(super) fn verify_token(&self, id: Option<&str>, algorithm: Algorithm, token: &str) -> Result<Verdict, Refusal> {
        let fingerprint = fingerprint(token);
        if self.verified.contains(&fingerprint) {
            return Ok(Verdict::Good);
        }
        #[cfg(test)]
        self.checked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (signed, signature) = token.rsplit_once('.').ok_or(Refusal::Form)?;
        let verdict = self.verify(id, algorithm, signed.as_bytes(), &base64url(signature)?);
        if verdict == Verdict::Good {
            self.verified.insert(fingerprint);
        }
        Ok(verdict)
    }

    /// The same without a memory. A token that names a key is checked with that key, and then with those that
    /// have no name, as Envoy does, and one that names none with all; but with [`MOST_TRIED`] that fit its algorithm and no more.
    fn verify(&self, id: Option<&str>, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Verdict {
        let (mut known, mut tried) = (false, 0);
        let is_named = |key: &&Key| id.is_some() && key.id.as_deref() == id;
        let may_be = |key: &&Key| id.is_none() || key.id.is_none();
        for key in self.keys.iter().filter(is_named).chain(self.keys.iter().filter(may_be)) {
            known = true;
            let Some(is_good) = key.verify(algorithm, message, signature) else { continue };
            if is_good {
                return Verdict::Good;
            }
            tried += 1;
            if tried == MOST_TRIED {
                break;
            }
        }
        if known { Verdict::Bad } else { Verdict::NoKey }
    }
}

/// What a set says of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    Bad,
    /// The key that is named is not in the set.
    NoKey,
}

impl Key {
    fn read(value: serde_json::Value) -> Option<Self> {
        let spec: KeySpec = serde_json::from_value(value).ok()?;
        if spec.usage.as_deref().is_some_and(|usage| usage != "sig")
            || spec.key_ops.as_ref().is_some_and(|ops| !ops.iter().any(|op| op == "verify"))
        {
            return None;
        }
        let algorithm = match &spec.alg {
            Some(name) => Some(Algorithm::parse(name)?),
            None => None,
        };
        let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        let point = |size: usize| {
            let (x, y) = (bytes(&spec.x)?, bytes(&spec.y)?);
            // Uncompressed form (SEC 1, 2.3.3).
            (x.len() == size && y.len() == size).then(|| [&[4], x.as_slice(), y.as_slice()].concat().into())
        };
        let material = match (spec.kty.as_str(), spec.crv.as_deref()) {
            ("RSA", _) => {
                let n = bytes(&spec.n)?;
                let n = &n[n.iter().position(|b| *b != 0)?..];
                Material::Rsa { n: n.into(), e: bytes(&spec.e)?.into() }
            }
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("EC", Some("P-521")) => Material::P521(point(66)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(&spec.x).filter(|x| x.len() == 32)?.into()),
            _ => return None,
        };
        Some(Self { id: spec.kid.map(Into::into), algorithm, material })
    }

    fn is_for(&self, algorithm: Algorithm) -> bool {
        self.algorithm.is_none_or(|only| only == algorithm)
            && match self.material {
                Material::Rsa { .. } => algorithm.rsa().is_some(),
                Material::P256(_) => algorithm == Algorithm::Es256,
                Material::P384(_) => algorithm == Algorithm::Es384,
                Material::P521(_) => algorithm == Algorithm::Es512,
                Material::Ed25519(_) => algorithm == Algorithm::EdDsa,
            }
    }

    /// `None` = the key is not for this algorithm.
    fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Option<bool> {
        if !self.is_for(algorithm) {
            return None;
        }
        let verified = match &self.material {
            Material::Rsa { n, e } => {
                signature::RsaPublicKeyComponents { n, e }.verify(algorithm.rsa()?, message, signature)
            }
            Material::P256(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            Material::P384(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point).verify(message, signature)
            }
            Material::P521(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P521_SHA512_FIXED, point).verify(message, signature)
            }
            Material::Ed25519(key) => UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature),
        };
        Some(verified.is_ok())
    }
}
