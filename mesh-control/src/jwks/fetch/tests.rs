//! Fetches from a server on loopback, which is only allowed where a test says so.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use mesh_testkit::{CertificateSpec, EchoServer, Page, TestCa, TokenIssuer, crypto};

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// Trusts the server's root, and may ask these networks.
fn fetch(issuer: &TokenIssuer, networks: &[&str]) -> Fetch {
    trusting(issuer.root_pem(), networks)
}

fn trusting(root_pem: &str, networks: &[&str]) -> Fetch {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(root_pem.as_bytes()).unwrap();
    let mut options = FetchOptions { roots: Some(file.path().to_owned()), ..FetchOptions::default() };
    options.networks = networks.iter().map(|network| network.parse().unwrap()).collect();
    Fetch::new(options, crypto()).unwrap()
}

const LOOPBACK: &[&str] = &["127.0.0.0/8"];

/// The first host at these addresses, the next time at those, and so on.
fn changing(addresses: Vec<Vec<SocketAddr>>, asked: Arc<AtomicUsize>) -> Resolve {
    Arc::new(move |_, _| {
        let n = asked.fetch_add(1, Ordering::Relaxed).min(addresses.len() - 1);
        let now = addresses[n].clone();
        Box::pin(async move { Ok(now) })
    })
}

fn uri(url: impl Into<String>) -> KeySource {
    KeySource::Uri(url.into())
}

#[tokio::test]
async fn keys_come_by_url_and_by_issuer() {
    let issuer = TokenIssuer::start().await;
    let fetch = fetch(&issuer, LOOPBACK);
    let keys = PublicKeys::read(&issuer.key_set()).unwrap().text;
    assert_eq!(fetch.keys(&uri(issuer.url("/keys")), LIMIT).await.as_ref(), Ok(&keys));
    assert_eq!(fetch.keys(&KeySource::Issuer(issuer.url("")), LIMIT).await.as_ref(), Ok(&keys));
    // Somebody else's configuration is none (OpenID Connect Discovery 1.0, 4.3).
    let other = r#"{"issuer": "https://other.test", "jwks_uri": "https://other.test/keys"}"#;
    issuer.page("/.well-known/openid-configuration", Page::Text(other.to_owned()));
    let refused = fetch.keys(&KeySource::Issuer(issuer.url("")), LIMIT).await.unwrap_err();
    assert!(refused.to_string().contains("configuration of \"https://other.test\""), "{refused}");
}

#[tokio::test]
async fn s50_what_is_not_a_public_address_is_not_dialled_however_it_is_written() {
    let issuer = TokenIssuer::start().await;
    let (careful, allowed) = (fetch(&issuer, &[]), fetch(&issuer, LOOPBACK));
    let port = issuer.address().port();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1"] {
        let url = format!("https://{host}:{port}/keys");
        let refused = careful.keys(&uri(&url), LIMIT).await.unwrap_err();
        let told = matches!(&refused, FetchError::Address { class: "loopback", .. });
        // Some systems do not take odd notations for addresses at all.
        assert!(told || matches!(&refused, FetchError::Resolve(..)), "{url}: {refused}");
    }
    for (url, class) in [
        ("https://169.254.169.254/latest/meta-data/", "link-local"),
        ("https://[fe80::1]/", "link-local"),
        ("https://10.1.2.3/", "private"),
        ("https://[fd00:ec2::254]/", "private"),
        ("https://0.0.0.0/", "unspecified"),
        ("https://[::]/", "unspecified"),
    ] {
        let refused = careful.keys(&uri(url), LIMIT).await.unwrap_err();
        assert!(matches!(&refused, FetchError::Address { class: is, .. } if *is == class), "{url}: {refused}");
        // Allowing loopback does not allow these.
        assert_eq!(allowed.keys(&uri(url), LIMIT).await, Err(refused), "{url}");
    }
    assert_eq!(issuer.requests(), 0);
    // The control: the same server, once its network is allowed.
    assert!(allowed.keys(&uri(issuer.url("/keys")), LIMIT).await.is_ok());
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test]
async fn s50_only_https_is_spoken() {
    let issuer = TokenIssuer::start().await;
    let fetch = fetch(&issuer, LOOPBACK);
    let url = issuer.url("/keys");
    for odd in [
        url.replace("https://", "http://"),
        url.replace("https://", "ftp://"),
        url.replace("https://", "file://"),
        url.replace("https://", "https://user:password@"),
        "/keys".to_owned(),
        "https:///keys".to_owned(),
        String::new(),
    ] {
        let refused = fetch.keys(&uri(&odd), LIMIT).await.unwrap_err();
        assert!(matches!(refused, FetchError::Url(..)), "{odd}: {refused}");
    }
    assert_eq!(issuer.requests(), 0);
    assert!(fetch.keys(&uri(url), LIMIT).await.is_ok());
}

#[tokio::test]
async fn s50_a_name_that_changes_its_address_gains_nothing() {
    let issuer = TokenIssuer::start().await;
    let here = issuer.address();
    // An address that is allowed and where nobody listens, as a public one would be; then the server's own.
    let allowed = SocketAddr::new("127.0.0.2".parse().unwrap(), here.port());
    let asked = Arc::new(AtomicUsize::new(0));
    let careful = fetch(&issuer, &["127.0.0.2/32"]);
    let careful = careful.resolving(changing(vec![vec![allowed], vec![here]], asked.clone()));
    let url = uri(format!("https://issuer.test:{}/keys", here.port()));
    // What was checked is what is dialled: the name is asked once, so the second answer comes too late.
    let refused = careful.keys(&url, LIMIT).await.unwrap_err();
    assert!(matches!(refused, FetchError::Connect(..)), "{refused}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // And is checked anew.
    let refused = careful.keys(&url, LIMIT).await.unwrap_err();
    assert!(matches!(refused, FetchError::Address { class: "loopback", .. }), "{refused}");
    // Of several addresses only those are dialled that may be.
    let both = fetch(&issuer, &["127.0.0.2/32"]).resolving(changing(vec![vec![here, allowed]], asked.clone()));
    assert!(matches!(both.keys(&url, LIMIT).await, Err(FetchError::Connect(..))));
    assert_eq!(issuer.requests(), 0);
    // The control: without the check of addresses the same answers lead to the server.
    let careless = fetch(&issuer, LOOPBACK).resolving(changing(vec![vec![allowed, here]], asked));
    assert!(careless.keys(&url, LIMIT).await.is_ok());
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test]
async fn s50_redirects_are_not_followed_and_what_an_issuer_names_is_checked_as_well() {
    let issuer = TokenIssuer::start().await;
    let fetch = fetch(&issuer, LOOPBACK);
    issuer.page("/moved", Page::Redirect(issuer.url("/keys")));
    let refused = fetch.keys(&uri(issuer.url("/moved")), LIMIT).await.unwrap_err();
    assert!(matches!(refused, FetchError::Redirect(..)), "{refused}");
    assert_eq!(issuer.requests(), 1);
    for (keys, class) in [("https://169.254.169.254/keys", Some("link-local")), ("http://localhost/keys", None)] {
        let configuration = format!(r#"{{"issuer": "{}", "jwks_uri": "{keys}"}}"#, issuer.url(""));
        issuer.page("/.well-known/openid-configuration", Page::Text(configuration));
        match (fetch.keys(&KeySource::Issuer(issuer.url("")), LIMIT).await.unwrap_err(), class) {
            (FetchError::Address { class: is, .. }, Some(class)) => assert_eq!(is, class),
            (FetchError::Url(..), None) => {}
            (other, _) => panic!("{keys}: {other}"),
        }
    }
    // The control: what the redirect leads to.
    assert!(fetch.keys(&uri(issuer.url("/keys")), LIMIT).await.is_ok());
}

#[tokio::test]
async fn s49_what_is_no_set_of_public_keys_is_refused() {
    let issuer = TokenIssuer::start().await;
    let fetch = fetch(&issuer, LOOPBACK);
    let long = format!(r#"{{"keys": [], "more": "{}"}}"#, "x".repeat(MOST_BYTES));
    let (none, secret) = (r#"{"keys": []}"#, r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#);
    for text in ["", "{", "{}", "[]", "<html>", none, secret, &long] {
        issuer.page("/odd", Page::Text(text.to_owned()));
        let refused = fetch.keys(&uri(issuer.url("/odd")), LIMIT).await.unwrap_err();
        let wanted = match text {
            _ if text.len() > MOST_BYTES => matches!(refused, FetchError::TooLarge(_)),
            // Another word than that the keys of before cannot be had.
            _ if text == none || text == secret => matches!(refused, FetchError::NoKeys(_)),
            _ => matches!(refused, FetchError::Content(..)),
        };
        assert!(wanted, "{}: {refused}", &text[..text.len().min(40)]);
    }
    for status in [204, 401, 404, 500, 503] {
        issuer.page("/odd", Page::Status(status));
        let refused = fetch.keys(&uri(issuer.url("/odd")), LIMIT).await.unwrap_err();
        assert_eq!(refused, FetchError::Status(issuer.url("/odd"), status.try_into().unwrap()));
    }
    issuer.page("/odd", Page::Silence);
    let refused = fetch.keys(&uri(issuer.url("/odd")), Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(refused, FetchError::Timeout(issuer.url("/odd")));
    issuer.page("/odd", Page::Text(issuer.key_set()));
    assert!(fetch.keys(&uri(issuer.url("/odd")), LIMIT).await.is_ok(), "the control");
}

#[tokio::test]
async fn s49_a_server_whose_certificate_is_not_trusted_gives_no_keys() {
    let (issuer, stranger) = (TokenIssuer::start().await, TokenIssuer::start().await);
    let fetch = fetch(&issuer, LOOPBACK);
    let refused = fetch.keys(&uri(stranger.url("/keys")), LIMIT).await.unwrap_err();
    assert!(matches!(refused, FetchError::Connect(..)), "{refused}");
    // Neither does one whose certificate is for another name.
    let here = issuer.address();
    let elsewhere = self::fetch(&issuer, LOOPBACK).resolving(changing(vec![vec![here]], Arc::default()));
    let refused = elsewhere.keys(&uri(format!("https://other.test:{}/keys", here.port())), LIMIT).await.unwrap_err();
    assert!(matches!(refused, FetchError::Connect(..)), "{refused}");
    assert_eq!((issuer.requests(), stranger.requests()), (0, 0));
    let named = uri(format!("https://issuer.test:{}/keys", here.port()));
    assert!(elsewhere.keys(&named, LIMIT).await.is_ok(), "the control");
}

/// The control: the same server's sessions are taken up again by a client that keeps them.
#[tokio::test]
async fn s66_each_fetch_looks_at_the_certificate_anew() {
    let issuer = TokenIssuer::start().await;
    let fetch = fetch(&issuer, LOOPBACK);
    for _ in 0..3 {
        fetch.keys(&uri(issuer.url("/keys")), LIMIT).await.unwrap();
    }
    assert_eq!(issuer.resumed(), 0);
    let mut config = (**fetch.tls().unwrap().config()).clone();
    config.resumption = Resumption::in_memory_sessions(8);
    let remembering = Fetch { tls: OnceLock::from(Ok(TlsConnector::from(Arc::new(config)))), ..fetch };
    for _ in 0..3 {
        remembering.keys(&uri(issuer.url("/keys")), LIMIT).await.unwrap();
    }
    assert!(issuer.resumed() > 0);
}

#[tokio::test]
async fn s69_a_server_whose_chain_is_costly_to_look_at_gives_no_keys() {
    let ca = TestCa::new();
    let spec = CertificateSpec { dns: vec!["localhost".into()], ..CertificateSpec::default() };
    let fetch = trusting(ca.root_pem(), LOOPBACK);
    for (shown, is_good) in [(TestCa::tangled(&spec, 8), false), (ca.certified(&spec), true)] {
        let server = EchoServer::start_tls("issuer", ca.server_showing(shown, &[b"http/1.1"])).await;
        let refused = fetch.keys(&uri(format!("https://localhost:{}/", server.address().port())), LIMIT).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.to_string().contains("too many ways"), !is_good, "{refused}");
        // The control: it was asked, and answered something else.
        assert_eq!(
            (server.requests() > 0, matches!(refused, FetchError::Content(..))),
            (is_good, is_good),
            "{refused}"
        );
    }
}

#[test]
fn roots_that_cannot_be_read_are_told() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    for path in [empty.path(), Path::new("/nowhere/roots.pem")] {
        let options = FetchOptions { roots: Some(path.to_owned()), ..FetchOptions::default() };
        let error = Fetch::new(options, crypto()).err().unwrap().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
}
