//! The rows of gRPC's bootstrap, B1 to B10 in the order of the gRFCs; the row is in the test's name.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const FULL: &str = include_str!("../../corpus/bootstrap/full.json");

fn plain(server: &str) -> String {
    format!(r#"{{"server_uri":"{server}","channel_creds":[{{"type":"insecure"}}]}}"#)
}

/// A bootstrap of one plaintext server and further members.
fn with(members: &str) -> String {
    format!(r#"{{"xds_servers":[{}]{members}}}"#, plain("a:1"))
}

/// A bootstrap whose one server has further members.
fn server_with(members: &str) -> String {
    format!(r#"{{"xds_servers":[{{"server_uri":"a:1"{members}}}]}}"#)
}

fn read(text: &str) -> Bootstrap {
    Bootstrap::from_json(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Each text is refused with an error that names the path.
fn refused<'a>(cases: impl IntoIterator<Item = (String, &'a str)>) {
    for (text, path) in cases {
        let error = Bootstrap::from_json(&text).unwrap_err();
        assert_eq!(error.path, path, "{text}: {error}");
    }
}

#[test]
fn b1_the_file_wins_over_the_inline_text_and_neither_means_none() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), FULL).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let inline = with("");

    let both = |name: &str| match name {
        FILE_VARIABLE => Some(path.clone()),
        CONFIG_VARIABLE => Some(inline.clone()),
        _ => None,
    };
    assert_eq!(Bootstrap::from_env(&both).unwrap().unwrap().servers.len(), 2);

    let only_inline = |name: &str| (name == CONFIG_VARIABLE).then(|| inline.clone());
    let read = Bootstrap::from_env(&only_inline).unwrap().unwrap();
    assert_eq!(read.server().uri.to_string(), "a:1");

    assert_eq!(Bootstrap::from_env(&|_| None).unwrap(), None);
    assert_eq!(Bootstrap::from_env(&|_| Some(String::new())).unwrap(), None, "empty is unset");
    let missing = |name: &str| (name == FILE_VARIABLE).then(|| "/does/not/exist".to_owned());
    assert!(Bootstrap::from_env(&missing).unwrap_err().to_string().contains("/does/not/exist"));
}

#[test]
fn b1_unknown_fields_are_ignored_at_every_level() {
    let bootstrap = read(FULL);
    assert_eq!(bootstrap.servers.len(), 2);
    let mut stripped: serde_json::Value = serde_json::from_str(FULL).unwrap();
    strip(&mut stripped);
    assert_ne!(serde_json::to_string(&stripped).unwrap().len(), FULL.len());
    assert_eq!(read(&stripped.to_string()), bootstrap);
}

/// Removes every member whose name begins with `of_the_future`.
fn strip(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            map.retain(|name, _| !name.starts_with("of_the_future"));
            map.values_mut().for_each(strip);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

#[test]
fn b2_servers_keep_their_order_and_there_is_at_least_one() {
    let text = format!(r#"{{"xds_servers":[{},{},{}]}}"#, plain("c:1"), plain("a:2"), plain("b:3"));
    let shown: Vec<_> = read(&text).servers.iter().map(|server| server.uri.to_string()).collect();
    assert_eq!(shown, ["c:1", "a:2", "b:3"]);
    refused([
        ("[".to_owned(), "$"),
        ("[]".to_owned(), "$"),
        ("{}".to_owned(), "xds_servers"),
        (r#"{"xds_servers":{}}"#.to_owned(), "xds_servers"),
        (r#"{"xds_servers":[]}"#.to_owned(), "xds_servers"),
        (r#"{"xds_servers":[3]}"#.to_owned(), "xds_servers[0]"),
        (format!(r#"{{"xds_servers":[{},{{}}]}}"#, plain("a:1")), "xds_servers[1].server_uri"),
        (r#"{"xds_servers":[{"server_uri":7}]}"#.to_owned(), "xds_servers[0].server_uri"),
        (r#"{"xds_servers":[{"server_uri":"nowhere","channel_creds":[]}]}"#.to_owned(), "xds_servers[0].server_uri"),
    ]);
}

#[test]
fn b2_server_addresses_keep_their_meaning() {
    for (text, shown) in [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("[::1]:80", "[::1]:80"),
        ("dns:///a.b:80", "a.b:80"),
        ("dns:a.b:80", "a.b:80"),
        ("ipv4:10.0.0.1:18000", "10.0.0.1:18000"),
        ("ipv6:[::1]:18000", "[::1]:18000"),
        ("ipv4:80", "ipv4:80"),
        ("unix:/x", "unix:///x"),
        ("unix:///x", "unix:///x"),
    ] {
        assert_eq!(text.parse::<ServerUri>().unwrap().to_string(), shown);
    }
    for (text, reason) in [
        ("", "port"),
        (":80", "host:port"),
        ("a", "port"),
        ("a:b", "port"),
        ("http://a:80", "host:port"),
        ("unix:", "path"),
        ("a:0", "port"),
        ("a:99999", "port"),
        ("[]:80", "of its kind"),
        ("::1:80", "brackets"),
        ("a:b:80", "brackets"),
        ("ipv6:::1:80", "brackets"),
        ("ipv4:a.b:80", "of its kind"),
        ("ipv4:[::1]:80", "of its kind"),
        ("ipv6:[10.0.0.1]:80", "of its kind"),
        ("ipv4:10.0.0.1:80,10.0.0.2:80", "a server of its own"),
        ("ipv6:[::1]:80,[::2]:80", "a server of its own"),
    ] {
        let error = text.parse::<ServerUri>().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn b3_the_first_channel_credentials_of_a_known_type_count() {
    let of = |creds: &str| read(&server_with(&format!(r#","channel_creds":{creds}"#))).servers.remove(0).credentials;
    assert_eq!(of(r#"[{"type":"insecure"},{"type":"tls"}]"#), ChannelCredentials::Insecure);
    let defaults = ChannelCredentials::Tls(TlsCredentials::default());
    for tls in [
        r#"[{"type":"google_default"},{"type":"tls"},{"type":"insecure"}]"#,
        r#"[{"type":"tls","config":{}}]"#,
        r#"[{"type":"tls","config":null}]"#,
    ] {
        assert_eq!(of(tls), defaults, "{tls}");
    }
    let full = of(r#"[{"type":"tls","config":{"ca_certificate_file":"/r","certificate_file":"/c",
        "private_key_file":"/k","refresh_interval":"900.5s"}}]"#);
    let ChannelCredentials::Tls(full) = full else { panic!("TLS") };
    assert_eq!(full.ca_certificate_file.as_deref(), Some("/r"));
    assert_eq!(full.identity, Some(("/c".to_owned(), "/k".to_owned())));
    assert_eq!(full.refresh_interval, Duration::from_millis(900_500));
    assert_eq!(TlsCredentials::default().refresh_interval, Duration::from_secs(600));

    let with = |creds: &str| server_with(&format!(r#","channel_creds":{creds}"#));
    let tls = |config: &str| with(&format!(r#"[{{"type":"tls","config":{config}}}]"#));
    refused([
        (server_with(""), "xds_servers[0].channel_creds"),
        (with("{}"), "xds_servers[0].channel_creds"),
        (with("[]"), "xds_servers[0].channel_creds"),
        (with(r#"[{"type":"google_default"}]"#), "xds_servers[0].channel_creds"),
        (with("[{}]"), "xds_servers[0].channel_creds[0].type"),
        (with(r#"[{"type":7}]"#), "xds_servers[0].channel_creds[0].type"),
        (tls("7"), "xds_servers[0].channel_creds[0].config"),
        (tls(r#"{"certificate_file":"c"}"#), "xds_servers[0].channel_creds[0].config.private_key_file"),
        (tls(r#"{"private_key_file":"k"}"#), "xds_servers[0].channel_creds[0].config.certificate_file"),
        (tls(r#"{"ca_certificate_file":1}"#), "xds_servers[0].channel_creds[0].config.ca_certificate_file"),
        (tls(r#"{"refresh_interval":"soon"}"#), "xds_servers[0].channel_creds[0].config.refresh_interval"),
        (tls(r#"{"refresh_interval":"-1s"}"#), "xds_servers[0].channel_creds[0].config.refresh_interval"),
        (tls(r#"{"refresh_interval":"infs"}"#), "xds_servers[0].channel_creds[0].config.refresh_interval"),
        (tls(r#"{"refresh_interval":600}"#), "xds_servers[0].channel_creds[0].config.refresh_interval"),
    ]);
}

#[test]
fn b4_all_call_credentials_of_a_known_type_count() {
    let creds = r#","channel_creds":[{"type":"tls"}],"call_creds":"#;
    let of = |calls: &str| read(&server_with(&format!("{creds}{calls}"))).servers.remove(0).call_credentials;
    let jwt = |path: &str| CallCredentials::JwtTokenFile { path: path.to_owned() };
    let both = r#"[{"type":"jwt_token_file","config":{"jwt_token_file":"/a"}},{"type":"of_the_future","config":3},
        {"type":"jwt_token_file","config":{"jwt_token_file":"/b"}}]"#;
    assert_eq!(of(both), [jwt("/a"), jwt("/b")]);
    assert_eq!(of("[]"), []);
    assert_eq!(of("null"), []);
    let with = |calls: &str| server_with(&format!("{creds}{calls}"));
    refused([
        (with("{}"), "xds_servers[0].call_creds"),
        (with("[{}]"), "xds_servers[0].call_creds[0].type"),
        (with(r#"[{"type":"jwt_token_file"}]"#), "xds_servers[0].call_creds[0].config"),
        (with(r#"[{"type":"jwt_token_file","config":{}}]"#), "xds_servers[0].call_creds[0].config.jwt_token_file"),
        (
            with(r#"[{"type":"jwt_token_file","config":{"jwt_token_file":""}}]"#),
            "xds_servers[0].call_creds[0].config.jwt_token_file",
        ),
    ]);
}

#[test]
fn b5_server_features_that_are_unknown_or_no_strings_are_passed_over() {
    let of = |features: &str| {
        let text = server_with(&format!(r#","channel_creds":[{{"type":"insecure"}}],"server_features":{features}"#));
        read(&text).servers.remove(0).features
    };
    let none = ServerFeatures::default();
    assert_eq!(of(r#"["xds_v3", 7, null, {"a": []}, ["trusted_xds_server"], "of_the_future"]"#), none);
    assert_eq!(of(r#"[7, "ignore_resource_deletion"]"#), ServerFeatures { ignore_resource_deletion: true, ..none });
    assert_eq!(of(r#"["trusted_xds_server"]"#), ServerFeatures { trusted_xds_server: true, ..none });
    assert_eq!(of(r#"["fail_on_data_errors"]"#), ServerFeatures { fail_on_data_errors: true, ..none });
    let timer = ServerFeatures { resource_timer_is_transient_error: true, ..none };
    assert_eq!(of(r#"["resource_timer_is_transient_error"]"#), timer);
    refused([(
        server_with(r#","channel_creds":[{"type":"insecure"}],"server_features":"xds_v3""#),
        "xds_servers[0].server_features",
    )]);
}

#[test]
fn b6_the_node_is_passed_on_verbatim() {
    let node = read(FULL).node;
    assert_eq!(node.id, "sidecar~10.0.0.1~reviews.default~default.svc");
    assert_eq!((node.locality.zone.as_str(), node.locality.sub_zone.as_str()), ("eu-1", ""));
    assert_eq!(node.metadata["LABELS"]["app"], "reviews");
    assert_eq!(read(&with("")).node, Node::default());
    refused([
        (with(r#","node":{"id":1}"#), "node.id"),
        (with(r#","node":{"locality":{"zone":1}}"#), "node.locality.zone"),
        (with(r#","node":{"metadata":[]}"#), "node.metadata"),
    ]);
}

#[test]
fn b7_authorities_bring_their_template_and_servers() {
    let bootstrap = read(FULL);
    let [east, west] = ["east.example.com", "west"].map(|name| &bootstrap.authorities[name]);
    assert_eq!(
        east.client_listener_template,
        "xdstp://east.example.com/envoy.config.listener.v3.Listener/c/%s?env=prod"
    );
    assert_eq!(east.servers.len(), 1);
    assert!(east.fallback_on_reachability_only);
    assert_eq!(east.servers[0], bootstrap.servers[1], "servers that are equal can share a connection");
    assert_eq!(west.client_listener_template, "xdstp://west/envoy.config.listener.v3.Listener/%s");
    assert!(west.servers.is_empty() && !west.fallback_on_reachability_only);

    let template =
        |text: &str| with(&format!(r#","authorities":{{"a":{{"client_listener_resource_name_template":"{text}"}}}}"#));
    read(&template("xdstp://a/x/%s"));
    let wrong = "authorities.a.client_listener_resource_name_template";
    refused([
        (template("xdstp://b/x/%s"), wrong),
        (template("xdstp://a"), wrong),
        (template("xdstp://ab/x/%s"), wrong),
        (template("%s"), wrong),
        (with(r#","authorities":[]"#), "authorities"),
        (with(r#","authorities":{"a":7}"#), "authorities.a"),
        (with(r#","authorities":{"a.b":{"xds_servers":7}}"#), r#"authorities["a.b"].xds_servers"#),
        (with(r#","authorities":{"a":{"xds_servers":[{}]}}"#), "authorities.a.xds_servers[0].server_uri"),
        (
            with(r#","authorities":{"a":{"fallback_on_reachability_only":"yes"}}"#),
            "authorities.a.fallback_on_reachability_only",
        ),
    ]);
}

#[test]
fn b7_a_resource_is_asked_of_the_servers_of_its_authority() {
    let bootstrap = read(FULL);
    let of = |name: &str| bootstrap.servers_for(name);
    assert_eq!(of("reviews:9080"), bootstrap.servers);
    assert_eq!(of("xdstp://east.example.com/t/x"), bootstrap.authorities["east.example.com"].servers);
    assert_eq!(of("xdstp://east%2eexample.com/t/x"), bootstrap.authorities["east.example.com"].servers);
    assert_eq!(of("xdstp://west/t/x"), bootstrap.servers, "it has none of its own");
    for unknown in ["xdstp://north/t/x", "xdstp:///t/x", "xdstp://", "xdstp://%zz/t/x"] {
        assert!(of(unknown).is_empty(), "{unknown}");
    }
}

#[test]
fn b7_a_dialled_authority_chooses_the_template() {
    let bootstrap = read(FULL);
    let name = |text: &str| bootstrap.listener_name(&Target::parse_uri(text).unwrap());
    assert_eq!(name("reviews:9080"), "reviews:9080");
    assert_eq!(name("xds:///reviews:9080"), "reviews:9080");
    assert_eq!(name("reviews.test.:9080"), "reviews.test:9080", "the dot is for DNS");
    assert_eq!(name("xds://west/a.test.:80"), "xdstp://west/envoy.config.listener.v3.Listener/a.test:80");
    let east = "xdstp://east.example.com/envoy.config.listener.v3.Listener/c/reviews:9080?env=prod";
    assert_eq!(name("xds://east.example.com/reviews:9080"), east);
    assert_eq!(name("xds://west/reviews:9080"), "xdstp://west/envoy.config.listener.v3.Listener/reviews:9080");
    let unknown = name("xds://north/reviews:9080");
    assert!(bootstrap.servers_for(&unknown).is_empty(), "{unknown}");
}

#[test]
fn b8_a_target_is_percent_encoded_in_an_xdstp_template_and_nowhere_else() {
    let template = |text: &str| {
        read(&with(&format!(r#","client_default_listener_resource_name_template":"{text}""#)))
            .listener_name(&"[::1]:80".parse().unwrap())
    };
    assert_eq!(template("of/%s"), "of/[::1]:80");
    assert_eq!(template(""), "[::1]:80", "empty is the default");
    assert_eq!(template("xdstp://a/t/%s?b=2&a=1"), "xdstp://a/t/%5B::1%5D:80?a=1&b=2");
    refused([(
        with(r#","client_default_listener_resource_name_template":7"#),
        "client_default_listener_resource_name_template",
    )]);
}

#[test]
fn b9_a_listening_address_gets_its_name_from_the_template() {
    let named = |text: &str| {
        read(&with(&format!(r#","server_listener_resource_name_template":"{text}""#)))
            .inbound_name("[::1]:80".parse().unwrap())
    };
    assert_eq!(named("in/%s"), "in/[::1]:80");
    assert_eq!(named("xdstp://a/t/in/%s"), "xdstp://a/t/in/%5B::1%5D:80");
    // gRPC has no default here; a process that serves through Istio's needs none.
    let named = read(&with("")).inbound_name("127.0.0.1:80".parse().unwrap());
    assert_eq!(named, "xds.istio.io/grpc/lds/inbound/127.0.0.1:80");
}

#[test]
fn b10_a_certificate_provider_names_an_identity_or_roots() {
    let instance = |config: &str| {
        with(&format!(r#","certificate_providers":{{"d":{{"plugin_name":"file_watcher","config":{config}}}}}"#))
    };
    let of = |config: &str| {
        let CertificateProvider::FileWatcher(files) =
            read(&instance(config)).certificate_providers.remove("d").unwrap();
        files
    };
    let full = of(r#"{"certificate_file":"/c","private_key_file":"/k","ca_certificate_file":"/r",
        "spiffe_trust_bundle_map_file":"/m","refresh_interval":"0.5s"}"#);
    assert_eq!(full.identity, Some(("/c".to_owned(), "/k".to_owned())));
    assert_eq!(full.ca_certificate_file.as_deref(), Some("/r"));
    assert_eq!(full.spiffe_trust_bundle_map_file.as_deref(), Some("/m"));
    assert_eq!(full.refresh_interval, Duration::from_millis(500));
    assert!(full.is_complete());
    let roots = of(r#"{"spiffe_trust_bundle_map_file":"/m","refresh_interval":"0s"}"#);
    assert_eq!(roots.refresh_interval, Duration::from_secs(600));
    assert!(!roots.is_complete());
    assert!(!of(r#"{"certificate_file":"/c","private_key_file":"/k"}"#).is_complete());
    assert!(read(FULL).certificate_providers.contains_key("default"));

    let config = "certificate_providers.d.config";
    refused([
        (instance("{}"), config),
        (instance("7"), config),
        (instance("null"), config),
        (instance(r#"{"certificate_file":"/c"}"#), "certificate_providers.d.config.private_key_file"),
        (
            instance(r#"{"ca_certificate_file":"/r","refresh_interval":"x"}"#),
            "certificate_providers.d.config.refresh_interval",
        ),
        (with(r#","certificate_providers":{"d":{"plugin_name":"x"}}"#), "certificate_providers.d.plugin_name"),
        (with(r#","certificate_providers":{"d":{}}"#), "certificate_providers.d.plugin_name"),
        (with(r#","certificate_providers":7"#), "certificate_providers"),
    ]);
}

#[test]
fn b11_side_channels_that_are_allowed_are_passed_over() {
    assert_eq!(read(&with(r#","allowed_grpc_services":{"a:1":7}"#)), read(&with("")));
}

/// Every file of the corpus is read without a panic; what is refused names a path. Those without an ending are
/// the fuzzer's, whatever comes of them.
#[test]
fn the_corpus_is_read_or_refused_with_a_path() {
    let mut files = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/bootstrap")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let (refused, read) = (name.starts_with("bad"), name.ends_with(".json") && !name.starts_with("bad"));
        match Bootstrap::from_json(&String::from_utf8_lossy(&text)) {
            Ok(bootstrap) => {
                assert!(!refused, "{path:?}");
                let _ = bootstrap.listener_name(&"[::1]:80".parse().unwrap());
            }
            Err(error) => assert!(!read && !error.path.is_empty() && !error.reason.is_empty(), "{path:?}: {error}"),
        }
        files += 1;
    }
    assert!(files >= 8, "{files}");
}

/// JSON of the shapes that a bootstrap is made of, its names among them.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let names = prop::sample::select(vec![
        "xds_servers",
        "server_uri",
        "channel_creds",
        "call_creds",
        "type",
        "config",
        "tls",
        "jwt_token_file",
        "insecure",
        "server_features",
        "node",
        "id",
        "locality",
        "zone",
        "metadata",
        "authorities",
        "a.b:1",
        "client_listener_resource_name_template",
        "xdstp://a/%s",
        "certificate_providers",
        "plugin_name",
        "file_watcher",
        "certificate_file",
        "private_key_file",
        "refresh_interval",
        "1s",
        "fallback_on_reachability_only",
    ]);
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        names.clone().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec((names.clone(), inner), 0..6)
                .prop_map(|members| members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in any::<String>(), json in json()) {
        for text in [text, json.to_string()] {
            let _ = Bootstrap::from_json(&text);
        }
    }

    #[test]
    fn a_good_bootstrap_with_one_member_changed_is_read_or_refused_with_its_path(path in 0usize..64, json in json()) {
        let mut root: serde_json::Value = serde_json::from_str(FULL).unwrap();
        let mut left = path;
        replace(&mut root, &mut left, &json);
        if let Err(error) = Bootstrap::from_json(&root.to_string()) {
            prop_assert!(!error.path.is_empty());
        }
    }
}

/// Puts `new` in place of the value number `left`, counted in order.
fn replace(value: &mut serde_json::Value, left: &mut usize, new: &serde_json::Value) {
    if *left == 0 {
        *value = new.clone();
        *left = usize::MAX;
        return;
    }
    *left -= 1;
    match value {
        serde_json::Value::Object(map) => map.values_mut().for_each(|value| replace(value, left, new)),
        serde_json::Value::Array(items) => items.iter_mut().for_each(|value| replace(value, left, new)),
        _ => {}
    }
}
