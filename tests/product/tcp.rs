//! Raw connections: dialled by name, routed and limited by manifests, over mutual TLS to servers that know nothing of
//! this library; and to one that is of it, where policies hold.

use std::collections::BTreeMap;
use std::future::IntoFuture;

use mesh::{Mesh, RawConnection};
use mesh_core::error::{Code, Fault};
use mesh_testkit::{RawServer, TestCa};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{FREE, Plane, eventually, plain_get};

const TARGET: &str = "mysql.default:3306";
const WEB: &str = "spiffe://cluster.local/ns/default/sa/web";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: { name: mysql }
spec: { selector: { app: mysql }, ports: [{ name: mysql, port: 3306 }] }
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default }
spec: { mtls: { mode: STRICT } }
";

/// A server of the Service, which must prove to be the account `mysql`.
fn instance(version: &str, server: &RawServer) -> String {
    let port = server.address().port();
    format!(
        "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{ name: mysql-{version} }}
spec:
  address: 127.0.0.1
  ports: {{ mysql: {port} }}
  labels: {{ app: mysql, version: {version}, security.istio.io/tlsMode: istio }}
  serviceAccount: mysql
---
"
    )
}

/// Subsets `v1` and `v2` and at most this many connections to each.
fn subsets(connections: u32) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: mysql }}
spec:
  host: mysql
  trafficPolicy: {{ connectionPool: {{ tcp: {{ maxConnections: {connections} }} }} }}
  subsets: [{{ name: v1, labels: {{ version: v1 }} }}, {{ name: v2, labels: {{ version: v2 }} }}]
"
    )
}

/// A `tcp` route with these weights.
fn split(v1: u32, v2: u32) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{ name: mysql }}
spec:
  hosts: [mysql]
  tcp:
  - route:
    - {{ destination: {{ host: mysql, subset: v1 }}, weight: {v1} }}
    - {{ destination: {{ host: mysql, subset: v2 }}, weight: {v2} }}
"
    )
}

/// The control plane's authority, for servers that come by their certificates in another way.
fn authority(plane: &Plane) -> TestCa {
    TestCa::of_pem("cluster.local", &plane.state("root-cert.pem"), &plane.state("ca-key.pem"))
}

/// What the server says first: its name, our identity as it saw it, the ALPN protocol.
async fn greeting(mesh: &Mesh) -> Result<String, mesh::Error> {
    let connection = mesh.connect(TARGET).await?;
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line).await.unwrap();
    Ok(line.trim_end().to_owned())
}

/// Where `count` connections went.
async fn spread(mesh: &Mesh, count: usize) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        *seen.entry(greeting(mesh).await.unwrap()).or_default() += 1;
    }
    seen
}

#[tokio::test]
async fn a_name_leads_over_mutual_tls_to_the_subsets_that_a_tcp_route_names() {
    let plane = Plane::start().await;
    let ca = authority(&plane);
    let one = RawServer::start_mtls("one", &ca.identity("default", "mysql")).await;
    let two = RawServer::start_mtls("two", &ca.identity("default", "mysql")).await;
    plane.write("mysql.yaml", SERVICE.to_owned() + "---" + &instance("v1", &one) + &instance("v2", &two));
    plane.write("subsets.yaml", subsets(2));
    plane.write("split.yaml", split(1, 0));
    let web = plane.process("web", "").debug_address(FREE).build().await.unwrap();
    web.ready().await;
    plane.no_findings().await;

    let (first, second) = (format!("one {WEB} istio"), format!("two {WEB} istio"));
    eventually("the route holds", || async { greeting(&web).await.ok().filter(|said| *said == first) }).await;
    assert_eq!(spread(&web, 30).await, BTreeMap::from([(first.clone(), 30)]));

    // An edit of the manifest moves new connections and leaves the open one in peace.
    let mut open = web.connect(TARGET).await.unwrap();
    assert_eq!(open.peer_id().map(ToString::to_string).as_deref(), Some("spiffe://cluster.local/ns/default/sa/mysql"));
    plane.write("split.yaml", split(0, 1));
    eventually("the route has moved", || async { greeting(&web).await.ok().filter(|said| *said == second) }).await;
    assert_eq!(spread(&web, 30).await, BTreeMap::from([(second.clone(), 30)]));
    open.write_all(b"hello\n").await.unwrap();
    let mut lines = BufReader::new(open).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some(first.as_str()));
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("hello"));

    plane.write("split.yaml", split(1, 1));
    eventually("both get some", || async { (spread(&web, 20).await.len() == 2).then_some(()) }).await;

    let (_, metrics) = plain_get(web.debug_address().unwrap(), "/metrics").await.unwrap();
    let counts = |line: &&str| {
        let labels = "destination_service=\"mysql.default.svc.cluster.local\"";
        line.starts_with("istio_tcp_connections_opened_total{reporter=\"source\"")
            && line.contains(labels)
            && line.contains("request_protocol=\"tcp\",response_flags=\"-\"")
    };
    assert!(metrics.lines().any(|line| counts(&line)), "{metrics}");
    drop(lines);

    // The limit of each subset, and that its places come back.
    plane.write("split.yaml", split(1, 0));
    eventually("the route is back", || async { (spread(&web, 20).await.len() == 1).then_some(()) }).await;
    let (kept, _other) = (web.connect(TARGET).await.unwrap(), web.connect(TARGET).await.unwrap());
    let error = web.connect(TARGET).await.unwrap_err();
    assert_eq!(error.code(), Code::BREAKER_OPEN, "{error}");
    let (_, metrics) = plain_get(web.debug_address().unwrap(), "/metrics").await.unwrap();
    let open = "mesh_cluster_connections_active{cluster=\"outbound|3306|v1|mysql.default.svc.cluster.local\"} 2";
    assert!(metrics.lines().any(|line| line == open), "{metrics}");
    drop(kept);
    web.connect(TARGET).await.unwrap();
    // The control: with a larger limit there is room.
    plane.write("subsets.yaml", subsets(50));
    let mut all = Vec::new();
    eventually("there is room", || {
        let connection = web.connect(TARGET);
        async { connection.await.ok() }
    })
    .await;
    while all.len() < 5 {
        all.push(eventually("there is room", || async { web.connect(TARGET).await.ok() }).await);
    }
}

#[tokio::test]
async fn a_server_with_another_identity_is_not_spoken_to() {
    let plane = Plane::start().await;
    let ca = authority(&plane);
    let impostor = RawServer::start_mtls("impostor", &ca.identity("default", "impostor")).await;
    plane.write("mysql.yaml", SERVICE.to_owned() + "---" + &instance("v1", &impostor));
    let web = plane.caller("web").await;
    web.ready().await;
    let error = eventually("the server is known", || async {
        let error = web.connect(TARGET).await.unwrap_err();
        (error.code() == Code::WRONG_PEER_IDENTITY).then_some(error)
    })
    .await;
    assert!(error.to_string().contains("sa/impostor") && error.to_string().contains("sa/mysql"), "{error}");
    assert_eq!(impostor.connections(), 0);

    // The control: the account makes the difference.
    let mysql = RawServer::start_mtls("mysql", &ca.identity("default", "mysql")).await;
    plane.write("mysql.yaml", SERVICE.to_owned() + "---" + &instance("v1", &mysql));
    let said = eventually("the right server is known", || async { greeting(&web).await.ok() }).await;
    assert_eq!(said, format!("mysql {WEB} istio"));
}

/// What a server of this mesh says to `mesh`, or that it was turned away.
async fn heard(mesh: &Mesh) -> Option<String> {
    let mut line = String::new();
    let connection = mesh.connect(TARGET).await.ok()?;
    BufReader::new(connection).read_line(&mut line).await.ok().filter(|read| *read > 0)?;
    Some(line.trim_end().to_owned())
}

#[tokio::test]
async fn a_server_of_raw_connections_lets_in_whom_policies_name() {
    let plane = Plane::start().await;
    let policy = |spec: &str| {
        let kind = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: mysql }\n";
        format!("{kind}spec: {{ selector: {{ matchLabels: {{ app: mysql }} }}, {spec} }}\n")
    };
    let name = "from: [{ source: { principals: [cluster.local/ns/default/sa/web] } }]";
    plane.write("authz.yaml", policy(&format!("rules: [{{ {name}, to: [{{ operation: {{ ports: ['3306'] }} }}] }}]")));
    let mysql = plane.process("mysql", "").debug_address(FREE).build().await.unwrap();
    let listener = TcpListener::bind(FREE).await.unwrap();
    let address = listener.local_addr().unwrap();
    let greet = |mut connection: RawConnection| async move {
        let who = connection.peer().spiffe_id.as_ref().map_or("nobody".to_owned(), ToString::to_string);
        connection.write_all(format!("hello {who}\n").as_bytes()).await.unwrap();
        tokio::io::copy(&mut connection.take(1000), &mut tokio::io::sink()).await.ok();
    };
    let serving = tokio::spawn(mysql.serve_tcp(listener, greet).service("mysql", 3306).without_signals().into_future());
    plane.registered(address).await;
    let (web, other) = (plane.caller("web").await, plane.caller("other").await);

    // The workload's port is not the service's.
    let port = address.port();
    eventually("the server is known", || async { turned_away(&web).await.then_some(()) }).await;
    plane
        .write("authz.yaml", policy(&format!("rules: [{{ {name}, to: [{{ operation: {{ ports: ['{port}'] }} }}] }}]")));
    let said = eventually("the policy lets in whom it names", || heard(&web)).await;
    assert_eq!(said, format!("hello {WEB}"));
    assert!(turned_away(&other).await);
    let mut plain = TcpStream::connect(address).await.unwrap();
    let _ = plain.write_all(b"x").await;
    assert!(!matches!(plain.read(&mut [0; 8]).await, Ok(1..)), "plaintext is nobody");

    // What only requests have denies whom it is about, and an open connection with him.
    let mut open = BufReader::new(web.connect(TARGET).await.unwrap());
    open.read_line(&mut String::new()).await.unwrap();
    let deny = format!("action: DENY, rules: [{{ {name}, to: [{{ operation: {{ paths: [/admin] }} }}] }}]");
    plane.write("authz.yaml", policy(&deny));
    eventually("the other one is let in", || heard(&other)).await;
    assert!(turned_away(&web).await);
    assert!(!matches!(open.read_line(&mut String::new()).await, Ok(1..)), "what is denied now is ended");
    plane.no_findings().await;

    // Linkerd's words for the same.
    plane.write("authz.yaml", format!("
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {{ name: mysql }}
spec: {{ podSelector: {{ matchLabels: {{ app: mysql }} }}, port: {port}, proxyProtocol: opaque }}
---
apiVersion: policy.linkerd.io/v1beta1
kind: ServerAuthorization
metadata: {{ name: mysql }}
spec: {{ server: {{ name: mysql }}, client: {{ meshTLS: {{ serviceAccounts: [{{ name: web, namespace: default }}] }} }} }}
"));
    eventually("Linkerd's policy holds", || async { turned_away(&other).await.then_some(()) }).await;
    assert_eq!(heard(&web).await, Some(format!("hello {WEB}")));
    plane.no_findings().await;

    // The control: without a policy everybody is let in.
    plane.write("authz.yaml", "# none\n");
    eventually("nothing is in the way", || heard(&other)).await;
    let mut plain = BufReader::new(TcpStream::connect(address).await.unwrap());
    plain.write_all(b"x").await.unwrap();
    let mut line = String::new();
    plain.read_line(&mut line).await.unwrap();
    assert_eq!(line, "hello nobody\n");
    drop((plain, open));

    let (_, metrics) = plain_get(mysql.debug_address().unwrap(), "/metrics").await.unwrap();
    let counts = |line: &&str| {
        line.starts_with("istio_tcp_connections_opened_total{reporter=\"destination\"")
            && line.contains(&format!("source_principal=\"{WEB}\""))
            && line.contains("request_protocol=\"tcp\"")
    };
    assert!(metrics.lines().any(|line| counts(&line)), "{metrics}");
    mysql.begin_shutdown();
    eventually("it has left", || async { serving.is_finished().then_some(()) }).await;
    serving.await.unwrap().unwrap();
}

/// Whether a server was reached and ended the connection without a word.
async fn turned_away(mesh: &Mesh) -> bool {
    let Ok(connection) = mesh.connect(TARGET).await else { return false };
    !matches!(BufReader::new(connection).read_line(&mut String::new()).await, Ok(1..))
}

#[tokio::test]
async fn without_a_control_plane_connections_go_where_the_target_says() {
    let server = RawServer::start("plain").await;
    let mesh = Mesh::disabled().unwrap();
    for target in [format!("static:{}", server.address()), format!("127.0.0.1:{}", server.address().port())] {
        let connection = mesh.connect(&target).await.unwrap();
        assert_eq!(connection.peer_id(), None);
        let mut line = String::new();
        BufReader::new(connection).read_line(&mut line).await.unwrap();
        assert_eq!(line, "plain - -\n", "{target}");
    }
    assert_eq!(mesh.connect("dns://8.8.8.8/x:1").await.unwrap_err().code(), Code::BAD_TARGET);
}
