//! TLS that cannot be set up here as policy says.

use mesh_client::Cause;
use mesh_core::error::{Blame, Code, Fault};
use mesh_core::health::{AccrualState, Standing};
use mesh_core::policy::{
    ClientCertificate, Cluster, FailureAccrual, OriginatedTls, OutlierDetection, RootsTls, UpstreamTls,
};
use mesh_core::source::{Identities, Watched};
use mesh_testkit::{CertificateSpec, EchoServer, TestCa};

use super::tls::builder;
use super::{cluster, fetch};

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
        let client = builder(cluster, &server).identity(identities).build();
        for _ in 0..3 {
            let error = fetch(&client, "/").await.unwrap_err();
            assert!(matches!(error.cause(), Cause::TlsSetup { .. }), "{tls:?}: neither back-off nor ejection: {error}");
            assert_eq!((error.code(), error.blame()), (Code::TLS_HANDSHAKE, Blame::Local), "{error}");
        }
        let dump = client.dump();
        let endpoint = &dump.destinations[0].clusters[0].endpoints[0];
        assert!(endpoint.usable && endpoint.reachable, "{tls:?}: {endpoint:?}");
        assert_eq!((endpoint.standing, endpoint.failure_penalty), (Standing::Good, 1.0), "{tls:?}");
        assert!(endpoint.accrual.is_none_or(|state| state == AccrualState::Closed), "{tls:?}: {endpoint:?}");
        if mended {
            // The next one is served, without a wait.
            std::fs::write(roots.path(), ca.root_pem()).unwrap();
            assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
        }
    }
}
