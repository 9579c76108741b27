//! TLS that cannot be set up here as policy says.

use std::sync::Arc;
use std::time::Duration;

use mesh_client::{Cause, Client};
use mesh_core::error::{Blame, Code, Fault};
use mesh_core::health::{AccrualState, Standing};
use mesh_core::policy::{
    ClientCertificate, Cluster, EndpointMetadata, FailureAccrual, OriginatedTls, OutlierDetection, RootsTls,
    UpstreamTls,
};
use mesh_core::source::{Identities, Watched};
use mesh_testkit::{CertificateSpec, EchoServer, FixedSource, TestCa, crypto, policy};

use super::tls::builder;
use super::{TARGET, cluster, fetch, server_of};

/// What cannot be set up here says nothing of those at the other end.
#[tokio::test]
async fn what_is_missing_here_for_tls_is_not_blamed_on_endpoints() {
    let ca = TestCa::new();
    let spec = CertificateSpec { dns: vec!["api.test".into()], ..CertificateSpec::default() };
    let roots = tempfile::NamedTempFile::new().unwrap();
    let server = EchoServer::start_tls("api", ca.server_showing(ca.certified(&spec), &[b"http/1.1"])).await;
    let file = roots.path().to_str().unwrap().to_owned();
    let tls = OriginatedTls {
        sni: Some("api.test".into()),
        auto_host_sni: false,
        subject_alt_names: Vec::new(),
        ca_file: Some(file),
        insecure_skip_verify: false,
    };
    let no_name = OriginatedTls { sni: Some("no name".into()), ..tls.clone() };
    let key = ClientCertificate { certificate_file: "/nowhere".into(), private_key_file: "/nowhere".into() };
    let careless = OriginatedTls { insecure_skip_verify: true, ..tls.clone() };
    let no_roots = RootsTls { instance: Some("ca".into()), ..RootsTls::default() };
    for (tls, mended) in [
        (UpstreamTls::Simple(tls.clone()), true),
        (UpstreamTls::Simple(no_name), false),
        (UpstreamTls::Mutual(careless, key), false),
        (UpstreamTls::Roots(no_roots), false),
    ] {
        std::fs::write(roots.path(), "").unwrap();
        let accrual = FailureAccrual { max_failures: 1, ..FailureAccrual::default() };
        let outlier =
            OutlierDetection { consecutive_gateway: Some(1), consecutive_5xx: Some(1), ..OutlierDetection::default() };
        let cluster = Cluster { tls: tls.clone(), accrual: Some(accrual), outlier: Some(outlier), ..cluster("test") };
        let given = Watched::fixed(None);
        let identities = Identities::from(ca.watched("default", "web")).with_roots([("ca".into(), given)]);
        let client = builder(cluster, &server).identity(identities).random(|below| below / 2).build();
        // What is given from elsewhere costs no look at files, and may be there in a moment.
        let awaited = matches!(tls, UpstreamTls::Roots(_));
        tokio::time::pause();
        for n in 0..20 {
            let error = fetch(&client, "/").await.unwrap_err();
            let (tried, told) = match error.cause() {
                Cause::BackingOff { last, .. } => (false, &**last),
                cause => (true, cause),
            };
            assert!(matches!(told, Cause::TlsSetup { .. }), "{tls:?}: {error}");
            assert_eq!(tried, n == 0 || awaited, "{tls:?}: once, for all of them: {error}");
            let seen = (error.code(), error.blame(), error.attempts());
            assert_eq!(seen, (Code::TLS_HANDSHAKE, Blame::Local, 1), "{error}");
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
        let dump = client.dump();
        let endpoint = &dump.destinations[0].clusters[0].endpoints[0];
        assert!(endpoint.usable && endpoint.reachable, "{tls:?}: {endpoint:?}");
        assert_eq!((endpoint.standing, endpoint.failure_penalty), (Standing::Good, 1.0), "{tls:?}");
        assert!(endpoint.accrual.is_none_or(|state| state == AccrualState::Closed), "{tls:?}: {endpoint:?}");
        if mended {
            // The next one is served.
            std::fs::write(roots.path(), ca.root_pem()).unwrap();
            assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
        }
    }
}

/// A name that is none is not ours, nor is it the endpoint's to be left out for.
#[tokio::test]
async fn a101_an_endpoints_name_is_the_sni_and_one_that_is_none_is_passed_over() {
    let ca = TestCa::new();
    let spec = CertificateSpec { dns: vec!["reviews".into()], ..CertificateSpec::default() };
    let server = EchoServer::start_tls("reviews", ca.server_showing(ca.certified(&spec), &[b"http/1.1"])).await;
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), ca.root_pem()).unwrap();
    let tls = OriginatedTls {
        sni: None,
        auto_host_sni: true,
        subject_alt_names: Vec::new(),
        ca_file: Some(roots.path().to_str().unwrap().to_owned()),
        insecure_skip_verify: false,
    };
    // By `sni` or by the name that is dialled, and an endpoint's own name goes before either (gRFC A101).
    let wrong = Err(Code::WRONG_PEER_IDENTITY);
    for (sni, hostname, expected) in [
        (None, "no name", Ok("reviews")),
        (None, "other.test", wrong),
        (Some("reviews"), "no name", Ok("reviews")),
        (Some("reviews"), "other.test", wrong),
        (Some("other.test"), "reviews", Ok("reviews")),
        (Some("other.test"), "no name", wrong),
    ] {
        let tls = OriginatedTls { sni: sni.map(str::to_owned), ..tls.clone() };
        let cluster = Cluster { tls: UpstreamTls::Simple(tls), ..cluster("test") };
        let mut endpoint = server.endpoint();
        endpoint.metadata =
            Arc::new(EndpointMetadata { hostname: Some(hostname.into()), ..EndpointMetadata::default() });
        let source = FixedSource::of(TARGET, policy::snapshot_of(cluster, [endpoint]));
        let answer = fetch(&Client::builder(source).crypto(crypto()).build(), "/").await;
        assert_eq!(answer.as_ref().map(server_of).map_err(Fault::code), expected, "{sni:?}, {hostname}: {answer:?}");
    }
}
