//! A JSON Web Key Set as it may be handed on: read once, without what is private.

use mesh_core::jwt::KeySet;
use serde_json::Value;

/// A set of keys that can check signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicKeys {
    /// The document. Equal sets have equal texts, however they were written.
    pub(crate) text: String,
    /// Whether there were private keys among them. They are left out.
    pub(crate) had_private: bool,
}

/// What of a key (RFC 7518, 6) its owner keeps to himself.
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

impl PublicKeys {
    /// Reads a document.
    ///
    /// # Errors
    /// Why no token could be checked with it.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        KeySet::parse(text).map_err(|error| error.to_string())?;
        let mut document: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut had_private = false;
        for key in document.get_mut("keys").and_then(Value::as_array_mut).into_iter().flatten() {
            let Value::Object(members) = key else { continue };
            for name in PRIVATE {
                had_private |= members.remove(name).is_some();
            }
        }
        Ok(Self { text: document.to_string(), had_private })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_private_is_left_out() {
        let point = "A".repeat(43);
        let set = |more: &str| format!(r#"{{"keys": [{{"kty":"OKP","crv":"Ed25519","x":"{point}"{more}}}]}}"#);
        let public = PublicKeys::read(&set("")).unwrap();
        assert!(!public.had_private);
        let private = PublicKeys::read(&set(r#","d":"secret""#)).unwrap();
        assert!(private.had_private && !private.text.contains("secret"));
        assert_eq!(private.text, public.text);
        assert!(PublicKeys::read(r#"{"keys": []}"#).is_err());
        assert!(PublicKeys::read("{}").is_err());
        assert!(PublicKeys::read("").is_err());
    }
}
