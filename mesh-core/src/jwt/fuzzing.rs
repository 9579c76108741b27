//! Entry point for the fuzzer and for the replay of its corpus; not a part of the interface.
//!
//! No bytes make a token hold whose key nobody has, nor a filter's reader panic; and what comes out of a judged request
//! has nothing of what the filter takes out.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderName, HeaderValue, Request};

use super::{Authenticator, KeySet, issuer_of, verify};
use crate::matcher::RequestView;
use crate::policy::{JwtAuthentication, JwtClaimHeader, JwtHeader, JwtKeys, JwtProvider};

/// Keys of which nobody has the other half.
const KEYS: &str = r#"{"keys":[
    {"kty":"OKP","crv":"Ed25519","kid":"ed","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
    {"kty":"EC","crv":"P-256","kid":"ec","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
const NOW: Duration = Duration::from_secs(1_800_000_000);

fn provider() -> JwtProvider {
    JwtProvider {
        from_headers: vec![JwtHeader { name: http::header::AUTHORIZATION, prefix: "Bearer ".to_owned() }],
        from_params: vec!["t".to_owned()],
        from_cookies: vec!["c".to_owned()],
        claim_headers: vec![JwtClaimHeader { name: HeaderName::from_static("x-sub"), claim: "sub".to_owned() }],
        ..JwtProvider::new("", JwtKeys::Inline(KEYS.to_owned()))
    }
}

/// Reads a key set, a token, and a request with it in each place.
///
/// # Panics
/// A token holds, or a header is left that only the filter may set.
pub fn token(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = KeySet::parse(&text);
    let keys = KeySet::parse(KEYS).expect("a key set");
    // As it stands, and as the parts of a token, each line one.
    let mut lines = bytes.split(|b| *b == b'\n').map(|part| URL_SAFE_NO_PAD.encode(part));
    let mut part = || lines.next().unwrap_or_default();
    let made = format!("{}.{}.{}", part(), part(), part());
    for token in [&*text, &made] {
        let _ = issuer_of(token);
        assert!(verify(&provider(), &keys, &[], token, NOW).is_err(), "{token}");
        request(token);
    }
}

fn request(token: &str) {
    let filter = JwtAuthentication::optional("jwt", [("p".to_owned(), provider())]);
    let authenticator = Authenticator::new(&filter);
    let places: [(&str, String); 3] = [
        ("authorization", format!("Bearer {token}")),
        ("cookie", format!("a=b; c={token}")),
        ("x-query", format!("/?a=b&t={token}")),
    ];
    for (name, value) in places {
        let target = if name == "x-query" { &*value } else { "/" };
        let (Ok(mut request), Ok(value)) = (Request::get(target).body(()), HeaderValue::try_from(&value)) else {
            continue;
        };
        request.headers_mut().insert(HeaderName::from_static(name), value);
        request.headers_mut().insert("x-sub", HeaderValue::from_static("root"));
        let uri = request.uri().clone();
        let view = RequestView {
            authority: "a.test",
            method: request.method(),
            path_and_query: uri.path_and_query().map_or("", |path| path.as_str()),
            scheme: "http",
            headers: request.headers(),
            draw: &|| 0,
        };
        // It passes only if what stands there counts as no token at all.
        let Ok(passed) = authenticator.judge(&view, NOW) else { continue };
        let tokens = authenticator.apply(passed, &mut request).expect("the path stays");
        assert!(tokens.is_empty() && !request.headers().contains_key("x-sub"), "{token}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const SEEDS: [&str; 8] = [
        "",
        "a.b.c",
        "{\"alg\":\"none\"}\n{\"sub\":\"root\"}\n",
        "{\"alg\":\"EdDSA\",\"kid\":\"ed\"}\n{\"iss\":\"i\",\"aud\":[\"a\",1],\"exp\":1e300,\"nbf\":-1}\n0123456789012345678901234567890123456789012345678901234567890123",
        "{\"alg\":\"ES256\",\"kid\":\"ec\"}\n{\"exp\":4000000000}\n0123456789012345678901234567890123456789012345678901234567890123",
        "{\"alg\":\"HS256\",\"alg\":\"ES256\",\"crit\":[\"b64\"]}\n{}\nx",
        "{\"keys\":[{\"kty\":\"RSA\",\"n\":\"AAAA\",\"e\":\"AQAB\"},{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"AA\",\"y\":\"AA\"}]}",
        "{\"alg\":\"ES256\",\"cty\":\"JWT\"}\n[\"not an object\"]\n\u{fffd}",
    ];

    /// The corpus of the fuzzer. `UPDATE_CORPUS=1` writes its seeds anew; what a fuzzer finds is added by hand and stays.
    #[test]
    fn the_corpus_is_replayed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/jwt");
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            for (i, seed) in SEEDS.iter().enumerate() {
                std::fs::write(folder.join(format!("seed-{i}")), seed).unwrap();
            }
        }
        let played =
            std::fs::read_dir(folder).unwrap().map(|file| token(&std::fs::read(file.unwrap().path()).unwrap()));
        assert!(played.count() >= SEEDS.len());
    }

    #[test]
    fn seeds_with_bytes_changed_never_hold() {
        let mut random = fastrand::Rng::with_seed(48);
        for _ in 0..2000 {
            let mut bytes = SEEDS[random.usize(..SEEDS.len())].as_bytes().to_vec();
            for _ in 0..random.usize(..6) {
                if !bytes.is_empty() {
                    let at = random.usize(..bytes.len());
                    bytes[at] = random.u8(..);
                }
            }
            token(&bytes);
        }
    }
}
