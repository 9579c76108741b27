//! Who signed a certificate, a signing request or a revocation list, told by the algorithms of the crypto provider. Path
//! validation judges by the same ones: what is found good here is not refused there. Refuses to know names and dates.

use rustls::pki_types::SignatureVerificationAlgorithm;
use x509_parser::asn1_rs::{Any, FromDer, Tag};

/// Whether `signed` (DER of a certificate, a PKCS #10 request or a revocation list) carries a signature of `key`, a
/// SubjectPublicKeyInfo in DER, by one of `algorithms`. What cannot be read does not.
pub fn is_signed_with(signed: &[u8], key: &[u8], algorithms: &[&dyn SignatureVerificationAlgorithm]) -> bool {
    sequence(key).zip(Signed::read(signed)).is_some_and(|(key, signed)| signed.is_by(key.content, algorithms))
}

/// The three parts of everything that X.509 has signed (RFC 5280, 4.1.1 and 5.1.1).
pub(super) struct Signed<'d> {
    body: Element<'d>,
    algorithm: &'d [u8],
    signature: &'d [u8],
}

impl<'d> Signed<'d> {
    pub(super) fn read(der: &'d [u8]) -> Option<Self> {
        let body = sequence(sequence(der)?.content)?;
        let algorithm = sequence(body.rest)?;
        Some(Self { body, algorithm: algorithm.content, signature: bits(algorithm.rest)? })
    }

    /// What the signature is of.
    pub(super) fn body(&self) -> &'d [u8] {
        self.body.whole
    }

    /// Whether it is signed with `key`, the content of a SubjectPublicKeyInfo.
    pub(super) fn is_by(&self, key: &[u8], algorithms: &[&dyn SignatureVerificationAlgorithm]) -> bool {
        let Some(kind) = sequence(key) else { return false };
        let Some(key) = bits(kind.rest) else { return false };
        algorithms
            .iter()
            .filter(|by| *by.signature_alg_id() == *self.algorithm && *by.public_key_alg_id() == *kind.content)
            .any(|by| by.verify_signature(key, self.body.whole, self.signature).is_ok())
    }

    /// Of a revocation list of version 2: its `nextUpdate`, in DER.
    pub(super) fn end_of_list(&self) -> Option<&'d [u8]> {
        let mut part = element(self.body.content)?;
        // After version, algorithm, issuer and `thisUpdate`.
        for _ in 0..4 {
            part = element(part.rest)?;
        }
        Some(part.whole)
    }
}

/// One element of DER, and what follows it.
struct Element<'d> {
    tag: Tag,
    content: &'d [u8],
    whole: &'d [u8],
    rest: &'d [u8],
}

fn element(der: &[u8]) -> Option<Element<'_>> {
    let (rest, any) = Any::from_der(der).ok()?;
    Some(Element { tag: any.tag(), content: any.data, whole: &der[..der.len() - rest.len()], rest })
}

fn sequence(der: &[u8]) -> Option<Element<'_>> {
    element(der).filter(|element| element.tag == Tag::Sequence)
}

/// Those of a BIT STRING of whole bytes, which nothing follows.
fn bits(der: &[u8]) -> Option<&[u8]> {
    let element = element(der).filter(|element| element.tag == Tag::BitString && element.rest.is_empty())?;
    match element.content {
        [0, bytes @ ..] => Some(bytes),
        _ => None,
    }
}
