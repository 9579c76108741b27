use super::*;

const FULL: &str = r#"{
  "xds_servers": [
    {"server_uri": "dns:///istiod.istio-system.svc:15012",
     "channel_creds": [{"type": "google_default"}, {"type": "tls", "config": {"ca_certificate_file": "/r.pem",
        "certificate_file": "/c.pem", "private_key_file": "/k.pem", "refresh_interval": "900s"}}],
     "server_features": ["xds_v3", 7, "ignore_resource_deletion", "of_the_future"], "unknown": {}},
    {"server_uri": "unix:///etc/istio/proxy/XDS", "channel_creds": [{"type": "insecure"}]}
  ],
  "node": {"id": "sidecar~10.0.0.1~reviews.default~default.svc", "cluster": "reviews", "user": 1,
           "locality": {"region": "eu", "zone": "eu-1"}, "metadata": {"LABELS": {"app": "reviews"}}},
  "certificate_providers": {"default": {"plugin_name": "file_watcher",
     "config": {"certificate_file": "/c.pem", "private_key_file": "/k.pem", "ca_certificate_file": "/r.pem"}}},
  "server_listener_resource_name_template": "in/%s",
  "authorities": {}
}"#;

#[test]
fn a_full_bootstrap_is_read_and_unknown_fields_are_ignored() {
    let bootstrap = Bootstrap::from_json(FULL).unwrap();
    let [istiod, agent] = &bootstrap.servers[..] else { panic!("two servers") };
    assert_eq!(istiod.uri.to_string(), "istiod.istio-system.svc:15012");
    assert_eq!(
        istiod.credentials,
        ChannelCredentials::Tls(TlsCredentials {
            ca_certificate_file: Some("/r.pem".into()),
            identity: Some(("/c.pem".into(), "/k.pem".into())),
        })
    );
    assert!(istiod.features.ignore_resource_deletion && !istiod.features.trusted_xds_server);
    assert_eq!(agent.uri, ServerUri::Unix("/etc/istio/proxy/XDS".into()));
    assert_eq!(bootstrap.server(), istiod);
    assert_eq!(bootstrap.node.locality.zone, "eu-1");
    assert_eq!(bootstrap.node.metadata["LABELS"]["app"], "reviews");
    assert_eq!(bootstrap.inbound_name("[::1]:80".parse().unwrap()), "in/[::1]:80");
    assert_eq!(bootstrap.listener_name(&"reviews:9080".parse().unwrap()), "reviews:9080");
    let CertificateProvider::FileWatcher { refresh_interval, .. } = &bootstrap.certificate_providers["default"];
    assert_eq!(*refresh_interval, Duration::from_secs(600));
}

#[test]
fn the_shortest_bootstrap_gets_every_default() {
    let text = r#"{"xds_servers":[{"server_uri":"localhost:15010","channel_creds":[{"type":"tls"}]}]}"#;
    let bootstrap = Bootstrap::from_json(text).unwrap();
    assert_eq!(bootstrap.node, Node::default());
    assert_eq!(bootstrap.server().credentials, ChannelCredentials::Tls(TlsCredentials::default()));
    assert_eq!(bootstrap.inbound_name("127.0.0.1:80".parse().unwrap()), "xds.istio.io/grpc/lds/inbound/127.0.0.1:80");
}

#[test]
fn errors_name_the_json_path() {
    let server = |creds: &str| format!(r#"{{"xds_servers":[{{"server_uri":"a:1","channel_creds":{creds}}}]}}"#);
    let good = r#""xds_servers":[{"server_uri":"a:1","channel_creds":[{"type":"insecure"}]}]"#;
    let cases = [
        ("[".to_owned(), "$"),
        ("[]".to_owned(), "$"),
        ("{}".to_owned(), "xds_servers"),
        (r#"{"xds_servers":[]}"#.to_owned(), "xds_servers"),
        (r#"{"xds_servers":[3]}"#.to_owned(), "xds_servers[0]"),
        (r#"{"xds_servers":[{"server_uri":"nowhere","channel_creds":[]}]}"#.to_owned(), "xds_servers[0].server_uri"),
        (server("[]"), "xds_servers[0].channel_creds"),
        (server(r#"[{"type":"google_default"}]"#), "xds_servers[0].channel_creds"),
        (server(r#"[{"type":7}]"#), "xds_servers[0].channel_creds[0].type"),
        (
            server(r#"[{"type":"tls","config":{"certificate_file":"c"}}]"#),
            "xds_servers[0].channel_creds[0].config.private_key_file",
        ),
        (
            server(r#"[{"type":"tls","config":{"refresh_interval":"soon"}}]"#),
            "xds_servers[0].channel_creds[0].config.refresh_interval",
        ),
        (format!(r#"{{{good},"node":{{"id":1}}}}"#), "node.id"),
        (format!(r#"{{{good},"node":{{"locality":{{"zone":1}}}}}}"#), "node.locality.zone"),
        (
            format!(r#"{{{good},"certificate_providers":{{"d":{{"plugin_name":"x"}}}}}}"#),
            "certificate_providers.d.plugin_name",
        ),
        (
            format!(r#"{{{good},"certificate_providers":{{"d":{{"plugin_name":"file_watcher","config":{{}}}}}}}}"#),
            "certificate_providers.d.config",
        ),
    ];
    for (text, path) in cases {
        let error = Bootstrap::from_json(&text).unwrap_err();
        assert_eq!(error.path, path, "{text}: {error}");
    }
}

#[test]
fn the_file_wins_over_the_inline_text_and_neither_means_none() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), FULL).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let inline = r#"{"xds_servers":[{"server_uri":"inline:1","channel_creds":[{"type":"insecure"}]}]}"#;

    let both = |name: &str| match name {
        FILE_VARIABLE => Some(path.clone()),
        CONFIG_VARIABLE => Some(inline.to_owned()),
        _ => None,
    };
    assert_eq!(Bootstrap::from_env(&both).unwrap().unwrap().servers.len(), 2);

    let only_inline = |name: &str| (name == CONFIG_VARIABLE).then(|| inline.to_owned());
    let read = Bootstrap::from_env(&only_inline).unwrap().unwrap();
    assert_eq!(read.server().uri.to_string(), "inline:1");

    assert_eq!(Bootstrap::from_env(&|_| None).unwrap(), None);
    let missing = |name: &str| (name == FILE_VARIABLE).then(|| "/does/not/exist".to_owned());
    assert!(Bootstrap::from_env(&missing).unwrap_err().to_string().contains("/does/not/exist"));
}

#[test]
fn server_addresses_keep_their_meaning() {
    for (text, shown) in [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("[::1]:80", "[::1]:80"),
        ("dns:///a.b:80", "a.b:80"),
        ("dns:a.b:80", "a.b:80"),
        ("unix:/x", "unix:///x"),
        ("unix:///x", "unix:///x"),
    ] {
        assert_eq!(text.parse::<ServerUri>().unwrap().to_string(), shown);
    }
    for text in ["", ":80", "a", "a:b", "http://a:80", "unix:", "a:99999"] {
        assert!(text.parse::<ServerUri>().is_err(), "{text}");
    }
}
