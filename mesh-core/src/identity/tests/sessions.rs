//! S66: no TLS session is taken up again, on either side and in either version.

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, SupportedProtocolVersion};

use super::*;

/// Connects with what both sides have, and says whether TLS took up an earlier session, or why it failed.
fn connected(client: &Arc<ClientConfig>, server: &Arc<rustls::ServerConfig>) -> Result<bool, Box<Errors>> {
    let name = ServerName::try_from("ignored.test").unwrap();
    let client = ClientConnection::new(client.clone(), name).unwrap();
    let (client, _) = run(client, ServerConnection::new(server.clone()).unwrap())?;
    Ok(client.handshake_kind() == Some(rustls::HandshakeKind::Resumed))
}

/// The same client, which remembers sessions as rustls' default does, and speaks no other version.
fn resuming(identity: &Identity, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let verifier = SpiffeServerVerifier::new(identity.bundles().clone(), Vec::new(), provider());
    let resolver = rustls::sign::SingleCertAndKey::from(identity.certified().clone());
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(resolver));
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    Arc::new(config)
}

#[test]
fn s66_no_session_outlives_the_rules_it_was_checked_by() {
    let root = Root::new();
    let provider = provider();
    let ours = |identity: &Identity| Arc::new(server_config(identity, true, &[], &provider).unwrap());
    // A server that gives out sessions: by ID, and by ticket.
    let generous = |tickets: bool| {
        let mut server = (*ours(&root.identity(RATINGS))).clone();
        server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
        server.send_tls13_tickets = 2;
        if tickets {
            server.ticketer = aws_lc_rs::Ticketer::new().unwrap();
        }
        Arc::new(server)
    };
    for version in [&TLS13, &TLS12] {
        for tickets in [false, true] {
            let what = format!("{version:?}, tickets: {tickets}");
            // The control: with both sides willing the second session is resumed, and nothing is checked.
            let (client, server) = (resuming(&root.identity(REVIEWS), version), generous(tickets));
            assert!(!connected(&client, &server).unwrap());
            assert!(connected(&client, &server).unwrap(), "{what}");
            // Our client remembers none.
            let mut client = (*client).clone();
            client.resumption = client_config(&root.identity(REVIEWS), &[], &[], &provider).unwrap().resumption;
            let client = Arc::new(client);
            assert_eq!([(); 3].map(|()| connected(&client, &server).unwrap()), [false; 3], "{what}");
        }
        // Our server gives out none, whatever a client remembers.
        let client = resuming(&root.identity(REVIEWS), version);
        let before = ours(&root.identity(RATINGS));
        assert_eq!([(); 3].map(|()| connected(&client, &before).unwrap()), [false; 3], "{version:?}");
        // The root is taken out: who was let in before is not let in again.
        let without = ours(&root.identity(RATINGS).trusting(Root::new().bundles()));
        assert!(connected(&client, &without).is_err(), "{version:?}");
    }
}

#[test]
fn s66_a_server_whose_name_has_changed_is_known_by_its_new_one() {
    let root = Root::new();
    let provider = provider();
    let client =
        Arc::new(client_config(&root.identity(REVIEWS), &[StringMatcher::exact(RATINGS)], &[], &provider).unwrap());
    // Servers that share what they remember, as those behind one address may.
    let shared = rustls::server::ServerSessionMemoryCache::new(8);
    let server = |id: &str| {
        let mut server = server_config(&root.identity(id), true, &[], &provider).unwrap();
        server.session_storage = shared.clone();
        server.send_tls13_tickets = 2;
        Arc::new(server)
    };
    assert!(!connected(&client, &server(RATINGS)).unwrap());
    let (error, _) = *connected(&client, &server(REVIEWS)).unwrap_err();
    assert!(matches!(refused(error), PeerRefused::WrongId { got, .. } if got.as_str() == REVIEWS));
    // The control: one that remembers the session takes the other server for the first.
    let mut remembering = (*client).clone();
    remembering.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let remembering = Arc::new(remembering);
    assert!(!connected(&remembering, &server(RATINGS)).unwrap());
    assert!(connected(&remembering, &server(REVIEWS)).unwrap());
}
