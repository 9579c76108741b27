//! SPIFFE trust bundle maps (gRFC A87): roots by trust domain, as JSON. Pure.
//!
//! ```json
//! {"trust_domains": {"example.org": {"keys": [{"use": "x509-svid", "kty": "EC", "x5c": ["<base64 DER>"]}]}}}
//! ```

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mesh_core::id::TrustDomain;
use mesh_core::identity::{TrustBundle, TrustBundles};
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use crate::json::{At, Invalid};

/// A bundle map that cannot be used: where in it and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidBundleMap(String);

/// Reads a SPIFFE trust bundle map, as files of it are read here (gRFC A87): roots by trust domain. Keys of another use
/// than `x509-svid` are passed over, and so is a domain that is left with none.
///
/// # Errors
/// It is not JSON, or an entry cannot be read; the error names the JSON path. Nothing of a bad map counts.
pub fn read_bundle_map(text: &[u8]) -> Result<TrustBundles, InvalidBundleMap> {
    read(text).map_err(|error| InvalidBundleMap(error.to_string()))
}

/// Reads a map. Keys of another use than `x509-svid` are passed over; a domain that is left with none is
/// trusted by nobody, as SPIFFE demands for an emptied bundle.
///
/// # Errors
/// It is not JSON, or an entry cannot be read; the error names the JSON path. Nothing of a bad map counts.
pub(super) fn read(text: &[u8]) -> Result<TrustBundles, Invalid> {
    let root: Value = serde_json::from_slice(text).map_err(|e| Invalid::whole(format!("not JSON: {e}")))?;
    let root = At::root(&root);
    let mut bundles = TrustBundles::default();
    for (domain, at) in root.required("trust_domains")?.entries()? {
        let domain = TrustDomain::new(domain).map_err(|e| at.invalid(e.to_string()))?;
        let keys = at.required("keys")?;
        let mut roots = Vec::new();
        for key in keys.items()? {
            roots.extend(read_key(&key)?);
        }
        if !roots.is_empty() {
            bundles.insert(domain, TrustBundle::new(roots).map_err(|e| keys.invalid(e.to_string()))?);
        }
    }
    Ok(bundles)
}

/// The root of one JSON Web Key, if it is for X.509.
fn read_key(key: &At<'_>) -> Result<Option<CertificateDer<'static>>, Invalid> {
    key.object()?;
    if key.text("use")?.as_deref() != Some("x509-svid") {
        return Ok(None);
    }
    let kind = key.required("kty")?;
    if !["RSA", "EC"].contains(&kind.string()?) {
        return Err(kind.invalid("it must be \"RSA\" or \"EC\""));
    }
    let chain = key.required("x5c")?;
    let [root] = &chain.items()?[..] else { return Err(chain.invalid("it must hold exactly one certificate")) };
    let der = BASE64_STANDARD.decode(root.string()?).map_err(|e| root.invalid(format!("not base64: {e}")))?;
    Ok(Some(CertificateDer::from(der)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_plane::Ca;

    fn domain(keys: &str) -> String {
        format!(r#"{{"trust_domains":{{"a.test":{{"keys":[{keys}]}}}}}}"#)
    }

    fn root() -> String {
        BASE64_STANDARD.encode(Ca::new().root.der())
    }

    fn key(x5c: &str) -> String {
        format!(r#"{{"kty":"EC","use":"x509-svid","x5c":{x5c},"x":"of no interest"}}"#)
    }

    #[test]
    fn s6_x509_keys_are_roots_and_other_keys_are_passed_over() {
        let (one, two) = (key(&format!(r#"["{}"]"#, root())), key(&format!(r#"["{}"]"#, root())));
        let text = domain(&format!(r#"{one},{{"use":"jwt-svid"}},{{"kty":"EC"}},{two}"#));
        let bundles = read(text.as_bytes()).unwrap();
        let domain_a = TrustDomain::new("a.test").unwrap();
        assert_eq!(bundles.get(&domain_a).unwrap().roots().len(), 2);
        assert!(read(domain("").as_bytes()).unwrap().get(&domain_a).is_none(), "an emptied bundle trusts nobody");
        assert_eq!(read(br#"{"trust_domains":{}}"#).unwrap().iter().count(), 0);
    }

    #[test]
    fn s6_a_bad_map_is_refused_whole_with_the_path() {
        let good = key(&format!(r#"["{}"]"#, root()));
        let keys = r#"trust_domains["a.test"].keys"#;
        for (text, path) in [
            ("".to_owned(), "$".to_owned()),
            ("[]".to_owned(), "$".to_owned()),
            ("{}".to_owned(), "trust_domains".to_owned()),
            (r#"{"trust_domains":[]}"#.to_owned(), "trust_domains".to_owned()),
            (r#"{"trust_domains":{"A":{"keys":[]}}}"#.to_owned(), "trust_domains.A".to_owned()),
            (r#"{"trust_domains":{"a.test":{}}}"#.to_owned(), keys.to_owned()),
            (domain("7"), format!("{keys}[0]")),
            (domain(&format!("{good},{}", key("[]"))), format!("{keys}[1].x5c")),
            (domain(&key(&format!(r#"["{0}","{0}"]"#, root()))), format!("{keys}[0].x5c")),
            (domain(&key(r#"["!"]"#)), format!("{keys}[0].x5c[0]")),
            (domain(&key(r#"["AAAA"]"#)), keys.to_owned()),
            (domain(&key("[]").replace("EC", "OKP")), format!("{keys}[0].kty")),
            (domain(r#"{"use":7}"#), format!("{keys}[0].use")),
        ] {
            let error = read(text.as_bytes()).unwrap_err();
            assert_eq!(error.path, path, "{text}: {error}");
        }
    }

    #[test]
    fn s90_a_file_nested_without_end_is_refused() {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for (depth, taken) in [(50, true), (100_000, false)] {
            let map = format!(r#"{{"trust_domains":{{}},"x":{}}}"#, deep(depth));
            assert_eq!(read(map.as_bytes()).is_ok(), taken, "{depth}");
            let server = r#"{"server_uri":"a:1","channel_creds":[{"type":"insecure"}]}"#;
            let bootstrap = format!(r#"{{"xds_servers":[{server}],"x":{}}}"#, deep(depth));
            assert_eq!(crate::bootstrap::Bootstrap::from_json(&bootstrap).is_ok(), taken, "{depth}");
        }
    }

    #[test]
    fn the_corpus_is_read_or_refused_with_a_path() {
        let mut files = 0;
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/trust_bundle_map")).unwrap() {
            let path = entry.unwrap().path();
            let bad = path.file_name().unwrap().to_str().unwrap().starts_with("bad");
            match read(&std::fs::read(&path).unwrap()) {
                Ok(_) => assert!(!bad, "{path:?}"),
                Err(error) => assert!(bad && !error.path.is_empty(), "{path:?}: {error}"),
            }
            files += 1;
        }
        assert!(files >= 5, "{files}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in any::<Vec<u8>>(), der in any::<Vec<u8>>(), text in any::<String>()) {
            let _ = read(&bytes);
            let _ = read(domain(&key(&format!(r#"["{}"]"#, BASE64_STANDARD.encode(der)))).as_bytes());
            let _ = read(serde_json::json!({"trust_domains": {text.clone(): {"keys": [text]}}}).to_string().as_bytes());
        }
    }
}
