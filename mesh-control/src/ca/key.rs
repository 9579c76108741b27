//! Private keys of authorities and of files for others, and their PEM. What this holds of one is wiped with it, and it is never in
//! a buffer that grows; what signs is aws-lc's, which wipes what it frees.
//!
//! Refuses to know what is signed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
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
        let mut rest = std::str::from_utf8(pem).map_err(|_| "it is not PEM".to_owned())?;
        let cut = || "it is not PEM: a section has no end".to_owned();
        while let Some((_, section)) = rest.split_once("-----BEGIN ") {
            let (label, section) = section.split_once("-----").ok_or_else(cut)?;
            let (body, after) = section.split_once("-----END ").ok_or_else(cut)?;
            match label {
                "PRIVATE KEY" | "EC PRIVATE KEY" | "RSA PRIVATE KEY" => return Self::from_base64(body),
                "ENCRYPTED PRIVATE KEY" => return Err("it is encrypted; decrypt it (openssl pkey)".to_owned()),
                // OpenSSL writes the name of a curve before its key.
                _ => rest = after,
            }
        }
        Err("it holds no private key".to_owned())
    }

    fn from_base64(body: &str) -> Result<Self, String> {
        let mut packed = Zeroizing::new(Vec::with_capacity(body.len()));
        packed.extend(body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
        let mut der = Zeroizing::new(vec![0; base64::decoded_len_estimate(packed.len())]);
        let length = STANDARD.decode_slice(&packed, &mut der).map_err(|e| format!("it is not PEM: {e}"))?;
        let key = KeyPair::try_from(&der[..length]).map_err(|e| format!("it holds no private key ({e})"))?;
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
        let sec1 = section("EC PRIVATE KEY", &by_rcgen.serialized_der()[29..]);
        let curve = section("EC PARAMETERS", &[6, 8, 42, 134, 72, 206, 61, 3, 1, 7]);
        for text in [&*pem, &sec1, &format!("{curve}{sec1}"), &format!("certificates\n{}", *pem)] {
            assert_eq!(Key::from_pem(text.as_bytes()).unwrap().der_bytes(), fresh.der_bytes(), "{text}");
        }
        for (bad, why) in [
            ("", "no private key"),
            (&*curve, "no private key"),
            (&section("ENCRYPTED PRIVATE KEY", b"x"), "encrypted"),
            (&section("PRIVATE KEY", b"x"), "no private key"),
            (&pem[..pem.len() - 40], "no end"),
            ("-----BEGIN PRIVATE KEY", "no end"),
            ("-----BEGIN PRIVATE KEY-----\n?\n-----END ", "not PEM"),
        ] {
            let refused = Key::from_pem(bad.as_bytes()).err().unwrap();
            assert!(refused.contains(why), "{bad}: {refused}");
        }
        assert!(Key::from_pem(&[0xff]).is_err());
    }

    /// The test holds what it looks for only masked.
    #[cfg(target_os = "linux")]
    mod memory {
        use std::fs::File;
        use std::io::Read;
        use std::os::unix::fs::FileExt;

        use mesh_core::id::TrustDomain;

        use super::super::*;
        use crate::ca::{CertificateAuthority, CertificateLife};
        use crate::clock::Clock;
        use crate::state_dir::StateDir;

        const MASK: u8 = 0x5a;

        fn masked(secret: &[u8]) -> Vec<u8> {
            secret.iter().map(|byte| byte ^ MASK).collect()
        }

        /// How often it lies in what this process can write to, freed memory among it.
        fn copies(masked: &[u8]) -> usize {
            let (memory, mut maps) = (File::open("/proc/self/mem").unwrap(), String::new());
            File::open("/proc/self/maps").unwrap().read_to_string(&mut maps).unwrap();
            // What is looked through is a copy: it is wiped, and may be seen more than once.
            let (mut found, mut chunk) = (0, Zeroizing::new(vec![0; 1 << 20]));
            for line in maps.lines().filter(|line| line.contains(" rw")) {
                let (begin, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
                let at = |text| u64::from_str_radix(text, 16).unwrap();
                let (mut at, end) = (at(begin), at(end));
                while at + (masked.len() as u64) <= end {
                    let most = usize::try_from(end - at).unwrap().min(chunk.len());
                    // Gone meanwhile, or a device's.
                    let Ok(read) = memory.read_at(&mut chunk[..most], at) else { break };
                    let first = masked[0] ^ MASK;
                    let same =
                        |window: &&[u8]| window[0] == first && window.iter().zip(masked).all(|(a, b)| a ^ MASK == *b);
                    found += chunk[..read].windows(masked.len()).filter(same).count();
                    at += (read.saturating_sub(masked.len() - 1)).max(1) as u64;
                }
            }
            found
        }

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
