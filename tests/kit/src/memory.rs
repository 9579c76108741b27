//! What lies in this process' memory, freed memory among it: to see that nothing is left of a secret (Linux). A test holds what
//! it looks for only masked.

#![allow(clippy::unwrap_used, reason = "only for tests")]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use zeroize::Zeroizing;

const MASK: u8 = 0x5a;

/// A secret that is not found by [`copies`] of itself.
pub fn masked(secret: &[u8]) -> Vec<u8> {
    secret.iter().map(|byte| byte ^ MASK).collect()
}

/// How often what is `masked` lies in what this process can write to.
///
/// # Panics
/// The system does not show it.
pub fn copies(masked: &[u8]) -> usize {
    // Large, so that they take no memory that was freed a moment ago.
    let (memory, mut maps) = (File::open("/proc/self/mem").unwrap(), String::with_capacity(1 << 20));
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
            let same = |window: &&[u8]| window[0] == first && window.iter().zip(masked).all(|(a, b)| a ^ MASK == *b);
            found += chunk[..read].windows(masked.len()).filter(same).count();
            at += (read.saturating_sub(masked.len() - 1)).max(1) as u64;
        }
    }
    found
}

/// A private key and a certificate of it in files, in PEM, of which nothing is left in memory but what this holds.
pub struct Certified {
    _folder: TempDir,
    /// The file of the key.
    pub key: String,
    /// The file of the certificate.
    pub certificate: String,
    /// The number itself as it lies in PKCS#8, [`masked`].
    pub number: Vec<u8>,
    /// A part of the text in base64, [`masked`].
    pub text: Vec<u8>,
}

/// Makes them.
///
/// # Panics
/// A file cannot be written.
pub fn certified() -> Certified {
    let folder = tempfile::tempdir().unwrap();
    let file = |name| folder.path().join(name).display().to_string();
    let (key, certificate) = (file("key.pem"), file("certificate.pem"));
    let pair = Zeroizing::new(KeyPair::generate().unwrap());
    std::fs::write(&certificate, CertificateParams::default().self_signed(&*pair).unwrap().pem()).unwrap();
    let der = pair.serialized_der();
    let mut body = Zeroizing::new(vec![0; 4 * der.len()]);
    let length = STANDARD.encode_slice(der, &mut body).unwrap();
    let pem = [b"-----BEGIN PRIVATE KEY-----\n", &body[..length], b"\n-----END PRIVATE KEY-----\n"];
    std::fs::write(&key, Zeroizing::new(pem.concat())).unwrap();
    let (number, text) = (masked(&der[36..68]), masked(&body[64..96]));
    Certified { _folder: folder, key, certificate, number, text }
}
