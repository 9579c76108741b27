//! Tokens that are good, and each way in which one is not.

mod requests;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use aws_lc_rs::{hmac, signature::RsaSignatureEncoding};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::policy::{JwtKeys, StringMatcher};

const NOW: u64 = 1_800_000_000;

struct Issuer {
    key: EcdsaKeyPair,
    jwks: String,
    keys: KeySet,
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Issuer {
    fn new() -> Self {
        let key = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = key.public_key().as_ref();
        let jwk = json!({"kty": "EC", "crv": "P-256", "kid": "one", "x": b64(&point[1..33]), "y": b64(&point[33..])});
        let jwks = json!({"keys": [jwk]}).to_string();
        let keys = KeySet::parse(&jwks).unwrap();
        Self { key, jwks, keys }
    }

    fn token(&self, header: Value, claims: Value) -> String {
        let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", b64(signature))
    }
}

fn provider() -> JwtProvider {
    let audiences = vec!["shop".to_owned()];
    JwtProvider { audiences, ..JwtProvider::new("https://issuer.test", JwtKeys::Inline(String::new())) }
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "one"})
}

fn claims() -> Value {
    json!({"iss": "https://issuer.test", "sub": "ann", "aud": "shop", "exp": NOW + 10})
}

fn with(mut value: Value, name: &str, other: Value) -> Value {
    value[name] = other;
    value
}

fn check(issuer: &Issuer, token: &str) -> Result<Claims, Refusal> {
    verify(&provider(), &issuer.keys, &[], token, Duration::from_secs(NOW))
}

#[test]
fn the_signature_of_a_token_is_checked_once_and_everything_else_each_time() {
    let issuer = Issuer::new();
    let checked = || issuer.keys.checked.load(std::sync::atomic::Ordering::Relaxed);
    let token = issuer.token(header(), claims());
    for _ in 0..5 {
        assert!(check(&issuer, &token).is_ok());
    }
    assert_eq!(checked(), 1);
    // The control: another token, be it of the same words.
    let other = issuer.token(header(), claims());
    assert_ne!(token, other, "an ECDSA signature is never the same twice");
    assert!(check(&issuer, &other).is_ok() && check(&issuer, &token).is_ok());
    assert_eq!(checked(), 2);
    // What is refused is not remembered, and what was good vouches for nothing near it.
    let (signed, _) = token.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{}", b64([7; 64]));
    for _ in 0..3 {
        assert_eq!(check(&issuer, &forged), Err(Refusal::Signature));
    }
    assert_eq!(checked(), 5);
    // The rest is looked at anew, whatever is remembered.
    let late = Duration::from_secs(NOW + 1_000);
    assert_eq!(verify(&provider(), &issuer.keys, &[], &token, late), Err(Refusal::Expired));
    let elsewhere = ["elsewhere".to_owned()];
    assert_eq!(verify(&provider(), &issuer.keys, &elsewhere, &token, Duration::from_secs(NOW)), Err(Refusal::Audience));
    // Other keys know nothing of it.
    assert_eq!(
        verify(&provider(), &Issuer::new().keys, &[], &token, Duration::from_secs(NOW)),
        Err(Refusal::Signature)
    );
}

#[test]
fn s48_a_confused_token_is_refused_and_the_good_one_passes() {
    let issuer = Issuer::new();
    let good = check(&issuer, &issuer.token(header(), claims())).unwrap();
    assert_eq!(good.principal(), Some("https://issuer.test/ann"));
    let list = with(claims(), "aud", json!(["other", "shop"]));
    assert!(check(&issuer, &issuer.token(header(), list)).is_ok(), "an audience in a list");
    let table = [
        ("alg none", with(header(), "alg", json!("none")), claims(), Refusal::Algorithm),
        ("alg None", with(header(), "alg", json!("None")), claims(), Refusal::Algorithm),
        ("alg HS256", with(header(), "alg", json!("HS256")), claims(), Refusal::Algorithm),
        ("the algorithm of another key type", with(header(), "alg", json!("RS256")), claims(), Refusal::Signature),
        ("the algorithm of another curve", with(header(), "alg", json!("ES384")), claims(), Refusal::Signature),
        ("kid", with(header(), "kid", json!("../../x")), claims(), Refusal::NoKey),
        ("crit", with(header(), "crit", json!(["b64"])), claims(), Refusal::Header),
        ("enc", with(header(), "enc", json!("A128GCM")), claims(), Refusal::Header),
        ("nested", with(header(), "cty", json!("JWT")), claims(), Refusal::Header),
        ("aud", header(), with(claims(), "aud", json!("shop/")), Refusal::Audience),
        ("no aud in the list", header(), with(claims(), "aud", json!(["a", 1])), Refusal::Audience),
        ("iss with a slash", header(), with(claims(), "iss", json!("https://issuer.test/")), Refusal::Issuer),
        ("iss of another type", header(), with(claims(), "iss", json!(["https://issuer.test"])), Refusal::Issuer),
        ("expired by skew + 1", header(), with(claims(), "exp", json!(NOW - 61)), Refusal::Expired),
        ("not yet", header(), with(claims(), "nbf", json!(NOW + 61)), Refusal::NotYet),
        ("issued later", header(), with(claims(), "iat", json!(NOW + 61)), Refusal::NotYet),
        ("exp as text", header(), with(claims(), "exp", json!("never")), Refusal::Lifetime),
        ("exp below 0", header(), with(claims(), "exp", json!(-1)), Refusal::Lifetime),
    ];
    for (what, header, claims, why) in table {
        assert_eq!(check(&issuer, &issuer.token(header, claims)).err(), Some(why), "{what}");
    }
    for (what, name, at) in [("exp", "exp", NOW - 60), ("nbf", "nbf", NOW + 60), ("iat", "iat", NOW + 60)] {
        let token = issuer.token(header(), with(claims(), name, json!(at)));
        assert!(check(&issuer, &token).is_ok(), "{what} within the skew");
    }
}

#[test]
fn a_key_without_a_name_is_tried_with_every_token_and_one_of_another_name_is_not() {
    let issuer = Issuer::new();
    let renamed = |kid: Option<&str>| {
        let mut jwks: Value = serde_json::from_str(&issuer.jwks).unwrap();
        let key = jwks["keys"][0].as_object_mut().unwrap();
        match kid {
            Some(kid) => key.insert("kid".to_owned(), json!(kid)),
            None => key.remove("kid"),
        };
        KeySet::parse(&jwks.to_string()).unwrap()
    };
    let judged = |keys: &KeySet, header| {
        verify(&provider(), keys, &[], &issuer.token(header, claims()), Duration::from_secs(NOW)).map(drop)
    };
    let named = header();
    let nameless = json!({"alg": "ES256"});
    for (kid, of_named, of_nameless) in
        [(Some("one"), Ok(()), Ok(())), (None, Ok(()), Ok(())), (Some("two"), Err(Refusal::NoKey), Ok(()))]
    {
        let keys = renamed(kid);
        assert_eq!((judged(&keys, named.clone()), judged(&keys, nameless.clone())), (of_named, of_nameless), "{kid:?}");
    }
}

/// Whoever has no token that holds makes little work.
#[test]
fn a_token_that_names_no_key_is_tried_with_eight_of_its_algorithm() {
    let issuer = Issuer::new();
    let own = |jwks: &str, kid: Option<&str>| {
        let mut key = serde_json::from_str::<Value>(jwks).unwrap()["keys"][0].take();
        key["kid"] = json!(kid);
        key
    };
    let rsa = json!({"kty": "RSA", "n": b64([0xff; 256]), "e": b64([1, 0, 1])});
    let set = |others: usize, kid: Option<&str>, kids: Option<&str>| {
        let mut keys = vec![rsa.clone()];
        keys.extend((0..others).map(|_| own(&Issuer::new().jwks, kids)));
        keys.push(own(&issuer.jwks, kid));
        KeySet::parse(&json!({ "keys": keys }).to_string()).unwrap()
    };
    let judged = |keys: &KeySet, header| {
        verify(&provider(), keys, &[], &issuer.token(header, claims()), Duration::from_secs(NOW)).map(drop)
    };
    let nameless = || json!({"alg": "ES256"});
    // A key of another type is none of the eight.
    assert_eq!(judged(&set(7, None, None), nameless()), Ok(()));
    assert_eq!(set(7, None, None).beyond_reach(), None);
    // What is never tried is told of, unless it has a name.
    let told = set(10, None, None).beyond_reach().unwrap();
    assert!(told.starts_with("3 of 11 keys") && told.contains("give each key a kid"), "{told}");
    assert_eq!(set(80, Some("one"), Some("two")).beyond_reach(), None);
    assert_eq!(judged(&set(8, None, None), nameless()), Err(Refusal::Signature));
    assert_eq!(judged(&set(8, None, None), header()), Err(Refusal::Signature));
    // The control: a key that is named is found among any number.
    assert_eq!(judged(&set(80, Some("one"), None), header()), Ok(()));
    assert_eq!(judged(&set(80, Some("one"), Some("two")), header()), Ok(()));
}

#[test]
fn s90_json_nested_without_end_is_refused() {
    let issuer = Issuer::new();
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for (depth, taken) in [(50, true), (100_000, false)] {
        let keys = issuer.jwks.replacen("[{", &format!("[{{\"x5c\":{},", deep(depth)), 1);
        assert_eq!(KeySet::parse(&keys).is_ok(), taken, "{depth}");
        let said = claims().to_string().replacen('{', &format!("{{\"x\":{},", deep(depth)), 1);
        let signed = format!("{}.{}", b64(header().to_string()), b64(said));
        let signature = issuer.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        let token = format!("{signed}.{}", b64(signature));
        assert_eq!(check(&issuer, &token).is_ok(), taken, "{depth}");
    }
}

#[test]
fn s48_what_is_not_signed_as_it_stands_is_refused() {
    let issuer = Issuer::new();
    let good = issuer.token(header(), claims());
    assert!(check(&issuer, &good).is_ok());
    let [head, payload, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    let admin = b64(with(claims(), "sub", json!("admin")).to_string());
    let twice = b64(r#"{"alg":"none","alg":"ES256","kid":"one"}"#);
    for (what, token, why) in [
        ("another payload", format!("{head}.{admin}.{signature}"), Refusal::Signature),
        ("no signature", format!("{head}.{payload}."), Refusal::Signature),
        ("two parts", format!("{head}.{payload}"), Refusal::Form),
        ("four parts", format!("{good}.x"), Refusal::Form),
        ("five parts, encrypted", format!("{good}.x.y"), Refusal::Form),
        ("padding", format!("{good}="), Refusal::Form),
        ("a blank", format!("{good} "), Refusal::Form),
        ("a member twice", format!("{twice}.{payload}.{signature}"), Refusal::Form),
        ("nothing", String::new(), Refusal::Form),
        ("dots", "..".to_owned(), Refusal::Form),
        ("too long", "a".repeat(MOST_BYTES + 1), Refusal::TooLong),
    ] {
        assert_eq!(check(&issuer, &token).err(), Some(why), "{what}");
    }
    let other = Issuer::new();
    assert_eq!(check(&issuer, &other.token(header(), claims())).err(), Some(Refusal::Signature), "another's key");
}

#[test]
fn s48_the_public_key_is_no_secret_to_sign_with() {
    let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let public = PublicKeyComponents::<Vec<u8>>::from(key.public_key());
    let rsa = json!({"kty": "RSA", "kid": "one", "n": b64(&public.n), "e": b64(&public.e)});
    let secret = json!({"kty": "oct", "kid": "one", "k": b64(key.public_key().as_ref())});
    let keys = KeySet::parse(&json!({"keys": [secret, rsa]}).to_string()).unwrap();
    let judge = |token: &str| verify(&provider(), &keys, &[], token, Duration::from_secs(NOW)).err();
    let signed =
        |alg: &str| format!("{}.{}", b64(with(header(), "alg", json!(alg)).to_string()), b64(claims().to_string()));
    let confused = signed("HS256");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.public_key().as_ref()), confused.as_bytes());
    assert_eq!(judge(&format!("{confused}.{}", b64(tag))), Some(Refusal::Algorithm));
    let sign = |encoding: &'static RsaSignatureEncoding, text: &str| {
        let mut out = vec![0; key.public_modulus_len()];
        key.sign(encoding, &SystemRandom::new(), text.as_bytes(), &mut out).unwrap();
        format!("{text}.{}", b64(out))
    };
    for (alg, encoding) in [
        ("RS256", &signature::RSA_PKCS1_SHA256),
        ("RS384", &signature::RSA_PKCS1_SHA384),
        ("RS512", &signature::RSA_PKCS1_SHA512),
        ("PS256", &signature::RSA_PSS_SHA256),
        ("PS384", &signature::RSA_PSS_SHA384),
        ("PS512", &signature::RSA_PSS_SHA512),
    ] {
        assert_eq!(judge(&sign(encoding, &signed(alg))), None, "{alg}");
    }
    let mixed = sign(&signature::RSA_PSS_SHA256, &signed("RS256"));
    assert_eq!(judge(&mixed), Some(Refusal::Signature), "one padding under the other's name");
}

#[test]
fn the_other_curves_verify_and_a_key_is_for_its_algorithm_only() {
    let p384 = EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let ed = Ed25519KeyPair::generate().unwrap();
    let p521 = EcdsaKeyPair::generate(&signature::ECDSA_P521_SHA512_FIXED_SIGNING).unwrap();
    let jwk = |curve: &str, point: &[u8]| {
        let (x, y) = point[1..].split_at(point.len() / 2);
        json!({"kty": "EC", "crv": curve, "x": b64(x), "y": b64(y)})
    };
    let (ec, largest) = (jwk("P-384", p384.public_key().as_ref()), jwk("P-521", p521.public_key().as_ref()));
    let okp = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(ed.public_key())});
    let judge = |jwk: &Value, alg: &str| {
        let keys = KeySet::parse(&json!({"keys": [jwk]}).to_string()).unwrap();
        let signed = format!("{}.{}", b64(json!({"alg": alg}).to_string()), b64(claims().to_string()));
        let signature = match alg {
            "EdDSA" => ed.sign(signed.as_bytes()).as_ref().to_vec(),
            "ES512" => p521.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref().to_vec(),
            _ => p384.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref().to_vec(),
        };
        let token = format!("{signed}.{}", b64(signature));
        verify(&provider(), &keys, &[], &token, Duration::from_secs(NOW)).err()
    };
    assert_eq!(judge(&ec, "ES384"), None);
    assert_eq!(judge(&okp, "EdDSA"), None);
    assert_eq!(judge(&largest, "ES512"), None);
    assert_eq!(judge(&okp, "ES384"), Some(Refusal::Signature));
    assert_eq!(judge(&largest, "ES384"), Some(Refusal::Signature));
    assert_eq!(judge(&ec, "ES512"), Some(Refusal::Signature));
    let forger = jwk(
        "P-521",
        EcdsaKeyPair::generate(&signature::ECDSA_P521_SHA512_FIXED_SIGNING).unwrap().public_key().as_ref(),
    );
    assert_eq!(judge(&forger, "ES512"), Some(Refusal::Signature));
    assert_eq!(judge(&with(ec, "alg", json!("ES256")), "ES384"), Some(Refusal::Signature));
}

#[test]
fn a_set_without_a_key_that_verifies_is_an_error() {
    let issuer = Issuer::new();
    let point = issuer.key.public_key().as_ref();
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": b64(&point[1..33]), "y": b64(&point[33..])});
    let set = |keys: Vec<Value>| KeySet::parse(&json!({"keys": keys}).to_string());
    assert!(set(vec![json!({"kty": "future"}), json!(7), jwk.clone()]).is_ok(), "what is not understood is left out");
    for keys in [
        vec![],
        vec![with(jwk.clone(), "use", json!("enc"))],
        vec![with(jwk.clone(), "key_ops", json!(["sign"]))],
        vec![with(jwk.clone(), "alg", json!("HS256"))],
        vec![with(jwk.clone(), "x", json!("AA"))],
    ] {
        assert!(set(keys.clone()).unwrap_err().has_no_key(), "{keys:?}");
    }
    assert!(!set(vec![jwk; 101]).unwrap_err().has_no_key());
    for text in ["", "{}", "[]", "{\"keys\": {}}", "{\"keys\": [], \"keys\": []}"] {
        assert!(!KeySet::parse(text).unwrap_err().has_no_key(), "{text}");
    }
    assert!(KeySet::parse(&" ".repeat((1 << 20) + 1)).is_err());
}

#[test]
fn a_provider_may_ask_for_more() {
    let issuer = Issuer::new();
    let judge = |provider: &JwtProvider, audiences: &[String], claims: Value| {
        verify(provider, &issuer.keys, audiences, &issuer.token(header(), claims), Duration::from_secs(NOW)).err()
    };
    let mut endless = claims();
    endless.as_object_mut().unwrap().remove("exp");
    assert_eq!(judge(&provider(), &[], endless.clone()), None);
    let demanding = JwtProvider { require_expiration: true, ..provider() };
    assert_eq!(judge(&demanding, &[], endless), Some(Refusal::Lifetime));
    let short = JwtProvider { max_lifetime: Some(Duration::from_secs(100)), ..provider() };
    assert_eq!(judge(&short, &[], with(claims(), "iat", json!(NOW - 90))), None);
    assert_eq!(judge(&short, &[], with(claims(), "iat", json!(NOW - 91))), Some(Refusal::Lifetime));
    assert_eq!(judge(&short, &[], claims()), Some(Refusal::Lifetime), "no beginning");
    let only = JwtProvider { subjects: Some(StringMatcher::exact("bob")), ..provider() };
    assert_eq!(judge(&only, &[], claims()), Some(Refusal::Subject));
    assert_eq!(judge(&provider(), &["shop".to_owned()], claims()), None);
    assert_eq!(judge(&provider(), &["other".to_owned()], claims()), Some(Refusal::Audience));
}

#[test]
fn claims_are_texts_lists_and_nested() {
    let claims = Claims::parse(
        br#"{"iss":"i","scope":"read  write","group":["a",1,"b"],"realm":{"roles":["x"]},"name":"Ann Lee"}"#,
    )
    .unwrap();
    let texts = |path: &[&str]| {
        let path: Vec<_> = path.iter().map(|key| (*key).to_owned()).collect();
        claims.texts(&path).collect::<Vec<_>>().join(",")
    };
    assert_eq!(texts(&["scope"]), "read,write");
    assert_eq!(texts(&["group"]), "a,b");
    assert_eq!(texts(&["realm", "roles"]), "x");
    assert_eq!(texts(&["name"]), "Ann Lee");
    assert_eq!(texts(&["name", "x"]), "");
    assert_eq!(texts(&[]), "");
    assert_eq!(claims.principal(), None, "there is no subject");
}

proptest! {
    #[test]
    fn no_text_panics_or_passes(token in "\\PC{0,60}", head in any::<Vec<u8>>(), payload in any::<Vec<u8>>()) {
        let keys = KeySet::parse(r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#).unwrap();
        let made = format!("{}.{}.{}", b64(head), b64(payload), b64("x"));
        for token in [token, made] {
            prop_assert!(verify(&provider(), &keys, &[], &token, Duration::from_secs(NOW)).is_err());
            let _ = issuer_of(&token);
        }
    }
}
