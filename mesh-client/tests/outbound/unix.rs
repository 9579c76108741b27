//! Endpoints behind unix sockets.

use http::Response;
use http_body_util::BodyExt;
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{Address, Cluster, ConnectionOptions, Endpoint, UpstreamProtocol};
use mesh_testkit::policy;
use tokio::net::UnixListener;

use super::{answer, client_of, cluster, post, read};

#[tokio::test]
async fn an_endpoint_behind_a_unix_socket_is_reached_by_its_path() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let connection = ConnectionOptions { protocol, ..ConnectionOptions::default() };
        let client = || {
            let endpoint = Endpoint::new(Address::Unix(path.to_str().unwrap().into()));
            let cluster = Cluster { connection: connection.clone(), ..cluster("test") };
            client_of(policy::snapshot_of(cluster, [endpoint])).0
        };
        let listener = UnixListener::bind(&path).unwrap();
        let serve = async {
            let (io, _) = listener.accept().await.unwrap();
            answer(io, protocol, |request| Response::new(request.into_body().map_err(Into::into))).await;
        };
        let ask = async {
            // Dropped at the end, which ends the connection.
            let client = client();
            for _ in 0..2 {
                let response = read(client.send(post("/", "hello")).await.unwrap()).await.unwrap();
                assert_eq!((response.status().as_u16(), &response.body()[..]), (200, &b"hello"[..]), "{protocol:?}");
            }
        };
        tokio::join!(serve, ask);
        // Control: nobody is there any more.
        std::fs::remove_file(&path).unwrap();
        let error = client().send(post("/", "hello")).await.unwrap_err();
        assert_eq!(error.code(), Code::CONNECT_FAILED, "{error}");
        assert!(error.to_string().contains("app.sock"), "{error}");
    }
}
