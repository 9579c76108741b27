//! Which RequestAuthentications hold for a workload, and what they make together: one demand that a request which has
//! tokens has good ones.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_core::policy::{JwtAuthentication, JwtKeys, JwtProvider, MetadataMatch};

use super::World;
use super::inbound::Workload;
use crate::jwks::Known;
use crate::model::{TokenKeys, TokenRule};

/// What a workload demands of tokens; nothing without rules. The rules of every object that is for it are taken together.
pub(super) fn authentication(world: &World, of: &Workload<'_>) -> Option<JwtAuthentication> {
    let (model, options) = (&world.model, &world.options);
    let objects = of.meant_by(model, options, &model.request_authentications, |spec| &spec.selection);
    let mut rules: Vec<&TokenRule> = objects.iter().flat_map(|object| &object.spec.rules).collect();
    // As Istio orders them.
    rules.sort_by_key(|rule| rule.issuer());
    let mut providers: Vec<JwtProvider> = Vec::new();
    for provider in rules.into_iter().map(|rule| rule.provider(keys(world, rule))) {
        if !providers.contains(&provider) {
            providers.push(provider);
        }
    }
    if providers.is_empty() {
        return None;
    }
    let named = providers.into_iter().enumerate().map(|(i, provider)| (format!("origins-{i}"), provider));
    let optional = JwtAuthentication::optional(MetadataMatch::JWT_AUTHN, named);
    Some(JwtAuthentication { bypass_cors_preflight: true, ..optional })
}

/// The keys of a rule's issuer; while there are none, one that nobody can sign with.
fn keys(world: &World, rule: &TokenRule) -> JwtKeys {
    match &rule.keys {
        TokenKeys::Inline(text) => JwtKeys::Inline(text.clone()),
        TokenKeys::From(source) => match world.keys.get(source) {
            Some(Known { document: Some(jwks), max_age, .. }) => {
                // Servers take no limit of 0.
                JwtKeys::Fetched { jwks: jwks.as_ref().to_owned(), max_age: (*max_age).max(Duration::from_secs(1)) }
            }
            _ => JwtKeys::Inline(nobodys_key(&source.url())),
        },
        TokenKeys::Nowhere => JwtKeys::Inline(nobodys_key("nowhere")),
    }
}

/// A set of keys whose only one is a hash taken for a point of the curve: nobody knows what signs for it. An empty set
/// would not do, servers refuse it and go on with the policy they had.
fn nobodys_key(of: &str) -> String {
    let hash = digest::digest(&digest::SHA256, format!("no key is known of {of}").as_bytes());
    let key = BTreeMap::from([
        ("kty", "OKP".to_owned()),
        ("crv", "Ed25519".to_owned()),
        ("kid", format!("no key is known of {of}")),
        ("x", URL_SAFE_NO_PAD.encode(hash)),
    ]);
    serde_json::json!({ "keys": [key] }).to_string()
}
