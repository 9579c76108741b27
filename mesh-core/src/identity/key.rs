//! Private keys in PEM. Nothing that this makes on the way to one outlives it unwiped, and none of it is ever in a buffer that
//! grows; the key itself is the caller's to wipe, or TLS', which does.
//!
//! Refuses to know files and what is signed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::PrivateKeyDer;
use zeroize::Zeroizing;

const BEGIN: &[u8] = b"-----BEGIN ";
const DASHES: &[u8] = b"-----";
const END: &[u8] = b"-----END ";

/// What others than its owner could do to a private key in a file of this mode, in a folder of that one (Unix); whoever may write
/// the folder can put another one in its place, unless each may take away there only what is his own. Says what to do.
#[must_use]
pub fn exposure(file: u32, folder: u32) -> Option<&'static str> {
    if file & 0o022 != 0 {
        Some("the private key can be written by others than its owner: chmod 600")
    } else if file & 0o044 != 0 {
        Some("the private key can be read by others than its owner: chmod 600")
    } else if folder & 0o022 != 0 && folder & 0o1000 == 0 {
        Some("the private key can be replaced by others, who can write its folder: chmod 755 on that")
    } else {
        None
    }
}

/// The first private key in a text: PKCS#8, or as OpenSSL wrote it before (SEC1, PKCS#1). Wiped by rustls when it is loaded;
/// `Zeroizing` does it elsewhere.
///
/// # Errors
/// Why there is none.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, &'static str> {
    const CUT: &str = "it is not PEM: a section has no end";
    let mut rest = pem;
    while let Some((_, section)) = split(rest, BEGIN) {
        let (label, section) = split(section, DASHES).ok_or(CUT)?;
        let (body, after) = split(section, END).ok_or(CUT)?;
        match label {
            b"PRIVATE KEY" => return der(body).map(|der| PrivateKeyDer::Pkcs8(der.into())),
            b"EC PRIVATE KEY" => return der(body).map(|der| PrivateKeyDer::Sec1(der.into())),
            b"RSA PRIVATE KEY" => return der(body).map(|der| PrivateKeyDer::Pkcs1(der.into())),
            b"ENCRYPTED PRIVATE KEY" => return Err(ENCRYPTED),
            // OpenSSL writes the name of a curve before its key.
            _ => rest = after,
        }
    }
    Err("it holds no private key")
}

const ENCRYPTED: &str = "it is encrypted; decrypt it (openssl pkey)";

fn der(body: &[u8]) -> Result<Vec<u8>, &'static str> {
    // OpenSSL's own way, before PKCS#8.
    if split(body, b"Proc-Type:").is_some() {
        return Err(ENCRYPTED);
    }
    let mut packed = Zeroizing::new(Vec::with_capacity(body.len()));
    packed.extend(body.iter().filter(|byte| !byte.is_ascii_whitespace()));
    let mut room = Zeroizing::new(vec![0; base64::decoded_len_estimate(packed.len())]);
    // What is wrong with it says what is in it.
    let length = STANDARD.decode_slice(&packed, &mut room).map_err(|_| "it is not PEM: its base64 is damaged")?;
    Ok(room[..length].to_vec())
}

/// What is before a mark, and after it.
fn split<'t>(text: &'t [u8], mark: &[u8]) -> Option<(&'t [u8], &'t [u8])> {
    let at = text.windows(mark.len()).position(|window| window == mark)?;
    Some((&text[..at], &text[at + mark.len()..]))
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;

    use super::*;

    fn section(label: &str, der: &[u8]) -> String {
        format!("-----BEGIN {label}-----\r\n{}\r\n-----END {label}-----\r\n", STANDARD.encode(der))
    }

    #[test]
    fn a_key_is_read_as_openssl_writes_it() {
        let key = KeyPair::generate().unwrap();
        let (pkcs8, pem) = (key.serialized_der(), key.serialize_pem());
        // SEC1 lies within PKCS#8.
        let sec1 = section("EC PRIVATE KEY", &pkcs8[29..]);
        let curve = section("EC PARAMETERS", &[6, 8, 42, 134, 72, 206, 61, 3, 1, 7]);
        for text in [pem.as_bytes(), format!("certificates\n{pem}").as_bytes(), &[b"f\xfcr\n", pem.as_bytes()].concat()]
        {
            assert_eq!(private_key(text).unwrap(), PrivateKeyDer::Pkcs8(pkcs8.to_vec().into()));
        }
        for text in [&sec1, &format!("{curve}{sec1}")] {
            assert_eq!(
                private_key(text.as_bytes()).unwrap(),
                PrivateKeyDer::Sec1(pkcs8[29..].to_vec().into()),
                "{text}"
            );
        }
        let rsa = section("RSA PRIVATE KEY", b"x");
        assert_eq!(private_key(rsa.as_bytes()).unwrap(), PrivateKeyDer::Pkcs1(b"x".to_vec().into()));
        let old = rsa.replace("eA==", "Proc-Type: 4,ENCRYPTED\r\nDEK-Info: AES-256-CBC,00\r\n\r\neA==");
        for (bad, why) in [
            ("", "no private key"),
            (&*curve, "no private key"),
            (&section("ENCRYPTED PRIVATE KEY", b"x"), "encrypted"),
            (&old, "encrypted"),
            (&pem[..pem.len() - 40], "no end"),
            ("-----BEGIN PRIVATE KEY", "no end"),
            ("-----BEGIN PRIVATE KEY-----\n?\n-----END ", "not PEM"),
        ] {
            let refused = private_key(bad.as_bytes()).unwrap_err();
            assert!(refused.contains(why), "{bad}: {refused}");
        }
    }
}
