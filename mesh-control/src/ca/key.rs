//! Private keys of authorities and of files for others, and their PEM. What this holds of one is wiped with it, and it is never in
//! a buffer that grows; what signs is aws-lc's, which wipes what it frees.
//!
//! Refuses to know what is signed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh_core::identity::private_key;
use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use zeroize::Zeroizing;

/// A private key.
pub(super) struct Key(Zeroizing<KeyPair>);

/// Bytes of a line of PEM, decoded.
const LINE: usize = 48;

impl Key {
    /// A new one: ECDSA P-256.
    pub(super) fn generate() -> Result<Self, rcgen::Error> {
        Ok(Self(Zeroizing::new(KeyPair::generate()?)))
    }

    /// The first private key in a text: PKCS#8, or as OpenSSL wrote it before (SEC1, PKCS#1).
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = Zeroizing::new(private_key(pem)?);
        let key = KeyPair::try_from(der.secret_der()).map_err(|e| format!("it holds no private key ({e})"))?;
        Ok(Self(Zeroizing::new(key)))
    }

    /// PKCS#8, of one that was generated.
    pub(super) fn to_pem(&self) -> Zeroizing<String> {
        const LABELS: [&str; 2] = ["-----BEGIN PRIVATE KEY-----\n", "-----END PRIVATE KEY-----\n"];
        let der = self.0.serialized_der();
        let lines = der.len().div_ceil(LINE) * (LINE / 3 * 4 + 1);
        let mut pem = Zeroizing::new(String::with_capacity(LABELS[0].len() + lines + LABELS[1].len()));
        pem.push_str(LABELS[0]);
        for line in der.chunks(LINE) {
            STANDARD.encode_string(line, &mut pem);
            pem.push('\n');
        }
        pem.push_str(LABELS[1]);
        pem
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&*self.0)
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_openssl_writes_it() {
        let fresh = Key::generate().unwrap();
        let pem = fresh.to_pem();
        assert!(pem.capacity() - pem.len() < LINE * 4 / 3, "there was room");
        let by_rcgen = KeyPair::from_pem(&pem).unwrap();
        assert_eq!(by_rcgen.der_bytes(), fresh.der_bytes());
        assert_eq!(*pem, by_rcgen.serialize_pem().replace("\r\n", "\n"));
        // SEC1 lies within PKCS#8.
        let section = |label: &str, der: &[u8]| {
            format!("-----BEGIN {label}-----\r\n{}\r\n-----END {label}-----\r\n", STANDARD.encode(der))
        };
        for text in [&*pem, &section("EC PRIVATE KEY", &by_rcgen.serialized_der()[29..])] {
            assert_eq!(Key::from_pem(text.as_bytes()).unwrap().der_bytes(), fresh.der_bytes(), "{text}");
        }
        let refused = Key::from_pem(section("PRIVATE KEY", b"x").as_bytes()).err().unwrap();
        assert!(refused.contains("no private key"), "{refused}");
    }

    /// The test holds what it looks for only masked.
    #[cfg(target_os = "linux")]
    mod memory {
        use mesh_core::id::TrustDomain;
        use mesh_testkit::memory::{copies, masked};

        use super::super::*;
        use crate::ca::{CertificateAuthority, CertificateLife};
        use crate::clock::Clock;
        use crate::state_dir::StateDir;

        #[test]
        fn of_a_key_that_was_made_written_read_and_used_nothing_is_left() {
            let home = tempfile::tempdir().unwrap();
            let domain = TrustDomain::new("cluster.local").unwrap();
            let open = || {
                CertificateAuthority::open(home.path(), domain.clone(), CertificateLife::default(), Clock::system())
                    .unwrap()
            };
            let authority = open();
            let dir = StateDir::open(home.path()).unwrap();
            let key = Key::from_pem(&dir.read_secret("ca-key.pem").unwrap().unwrap()).unwrap();
            // The number itself in PKCS#8, and a line of the text.
            let (number, line) = (masked(&key.0.serialized_der()[36..68]), masked(&key.to_pem().as_bytes()[92..124]));
            assert!(copies(&number) >= 2, "the control: two hold it");
            drop(key);
            authority
                .issue_files(
                    &"spiffe://cluster.local/ns/default/sa/edge".parse().unwrap(),
                    None,
                    &home.path().join("edge"),
                )
                .unwrap();
            std::fs::write(home.path().join("root-cert.pem"), authority.material.load_full().roots_pem.clone() + "\n")
                .unwrap();
            assert!(authority.reload().unwrap());
            assert!(copies(&number) >= 1, "the control: one signs");
            drop(authority);
            assert_eq!((copies(&number), copies(&line)), (0, 0));
        }
    }
}
