//! A JSON Web Key Set as it may be handed on: read once, without what is private.

use std::collections::BTreeMap;

use mesh_core::jwt::KeySet;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A set of keys that can check signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicKeys {
    /// The document. Equal sets have equal texts, however they were written.
    pub(crate) text: String,
    /// Whether there were private keys among them. They are left out.
    pub(crate) had_private: bool,
    /// What is to be said of keys that no token is ever tried with.
    pub(crate) beyond_reach: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

/// What of a key (RFC 7518, 6) its owner keeps to himself.
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

impl PublicKeys {
    /// Reads a document.
    ///
    /// # Errors
    /// Why no token could be checked with it.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let beyond_reach = KeySet::parse(text).map_err(|error| error.to_string())?.beyond_reach();
        let document: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut had_private = false;
        let mut public = |members: Map<String, Value>| -> BTreeMap<String, Value> {
            let all = members.len();
            let public: BTreeMap<_, _> =
                members.into_iter().filter(|(name, _)| !PRIVATE.contains(&name.as_str())).collect();
            had_private |= public.len() < all;
            public
        };
        let keys = document.keys.into_iter().filter_map(|key| match key {
            Value::Object(members) => Some(public(members)),
            _ => None,
        });
        let keys: Vec<_> = keys.collect();
        Ok(Self { text: serde_json::json!({ "keys": keys }).to_string(), had_private, beyond_reach })
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
        let other = format!(r#"{{"more": 1, "keys": [ {{"x":"{point}","crv":"Ed25519","kty":"OKP"}}, 7 ]}}"#);
        assert_eq!(PublicKeys::read(&other).unwrap(), public, "however it was written");
        assert!(PublicKeys::read(r#"{"keys": []}"#).is_err());
        assert!(PublicKeys::read("{}").is_err());
        assert!(PublicKeys::read("").is_err());
    }
}
