//! From the start of a process to its first answer: `cargo xtask bench start [-- -o json]`.
//!
//! The process is this program once more. It joins a control plane on the same host, gets what it needs to know of one
//! service, and for mutual TLS a certificate; it calls the service once, says so and ends. Beside it, for information: a
//! process that makes the same call through plain hyper, which is what starting a process costs at all.

#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "a program, not a library")]
#![allow(clippy::disallowed_methods, reason = "servers of a bench run beside it, and end with it")]

#[path = "../common/rows.rs"]
mod rows;

use std::net::SocketAddr;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use clap::{Parser, ValueEnum};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use mesh::{Body, Mesh};
use mesh_control::ControlPlane;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use self::rows::Row;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Process start to first answer.
#[derive(Parser)]
struct Args {
    /// How to print: `table` or `json`.
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    /// Processes of each kind; the median is printed.
    #[arg(long, default_value_t = 41)]
    processes: usize,
    /// Few processes: shows that it works.
    #[arg(long)]
    smoke: bool,
    /// Be the process that is measured.
    #[arg(long, hide = true)]
    first: Option<Kind>,
    /// Whom it calls.
    #[arg(long, hide = true)]
    to: Option<SocketAddr>,
    /// Passed by cargo to every bench target.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Bare,
    Plain,
    Mutual,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // The application's runtime as `#[tokio::main]` makes it.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(Error::from).and_then(|runtime| match args.first {
        Some(kind) => runtime.block_on(first(kind, args.to)).map(|()| Vec::new()),
        None => runtime.block_on(all(if args.smoke { 3 } else { args.processes })),
    });
    match outcome {
        Ok(rows) if args.first.is_none() => rows::print(&rows, args.output == "json"),
        Ok(_) => println!("answered"),
        Err(error) => {
            eprintln!("start: {error}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// The process that is measured: one call.
async fn first(kind: Kind, to: Option<SocketAddr>) -> Result<(), Error> {
    let answer = match kind {
        Kind::Bare => {
            let to = to.ok_or("--to says whom to call")?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(TcpStream::connect(to).await?)).await?;
            tokio::spawn(connection);
            let request = Request::get("/").header("host", "plain").body(Empty::<bytes::Bytes>::new())?;
            sender.send_request(request).await?.into_body().collect().await?.to_bytes()
        }
        Kind::Plain | Kind::Mutual => {
            let mesh = Mesh::from_env().await?;
            let host = if kind == Kind::Plain { "plain.example.com" } else { "mutual" };
            let request = Request::get(format!("http://{host}:9080/")).body(Body::empty())?;
            mesh.client().send(request).await?.into_body().collect().await?.to_bytes()
        }
    };
    if answer == "hello" { Ok(()) } else { Err(format!("another answer: {answer:?}").into()) }
}

/// A control plane, a server that knows nothing of the mesh and one of the mesh.
struct World {
    plane: ControlPlane,
    plain: SocketAddr,
    _folders: [tempfile::TempDir; 2],
    _mesh: Mesh,
}

async fn world() -> Result<World, Error> {
    let (manifests, state) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let app = Router::new().route("/", get(|| async { "hello" }));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let plain = listener.local_addr()?;
    let served = app.clone();
    tokio::spawn(async move { axum::serve(listener, served).await });
    std::fs::write(manifests.path().join("all.yaml"), manifest(plain))?;
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let plane = ControlPlane::builder().manifests(manifests.path()).state_dir(state.path()).listen(free);
    let plane = plane.insecure_xds(Some(free)).start().await?;
    let mesh = Mesh::builder()
        .control_plane(plane.address())
        .root_cert(plane.root_cert_path())
        .join_token(plane.join_tokens().mint("default", "mutual", Duration::from_secs(60))?)
        .service_account("mutual")
        .labels("app=mutual")
        .build()
        .await?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let serve = mesh.serve(listener, app).service("mutual", 9080).without_signals();
    tokio::spawn(serve.into_future());
    mesh.ready().await;
    Ok(World { plane, plain, _folders: [manifests, state], _mesh: mesh })
}

fn manifest(plain: SocketAddr) -> String {
    let port = plain.port();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: plain, namespace: default }}\n\
         spec:\n  hosts: [plain.example.com]\n  resolution: STATIC\n  location: MESH_INTERNAL\n\
         \x20 ports: [{{ number: 9080, name: http, protocol: HTTP }}]\n\
         \x20 endpoints: [{{ address: 127.0.0.1, ports: {{ http: {port} }} }}]\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{ name: mutual, namespace: default }}\n\
         spec: {{ ports: [{{ name: http, port: 9080 }}] }}\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{ name: default, namespace: default }}\n\
         spec: {{ selector: {{ matchLabels: {{ app: mutual }} }}, mtls: {{ mode: STRICT }} }}\n"
    )
}

/// Starts one process and waits for its word.
async fn one(world: &World, kind: Kind) -> Result<Duration, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--first").arg(format!("{kind:?}").to_lowercase()).arg("--to").arg(world.plain.to_string());
    command.env_clear().env("SERVICE_ACCOUNT", "caller").stdout(Stdio::piped()).kill_on_drop(true);
    match kind {
        Kind::Bare => {}
        Kind::Plain => {
            let server = world.plane.insecure_address().ok_or("xDS is served in plaintext too")?;
            let bootstrap = serde_json::json!({
                "xds_servers": [{ "server_uri": server.to_string(), "channel_creds": [{ "type": "insecure" }] }],
                "node": { "id": "plain", "metadata": { "NAMESPACE": "default" } },
            });
            command.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string());
        }
        Kind::Mutual => {
            let token = world.plane.join_tokens().mint("default", "caller", Duration::from_secs(60))?;
            command
                .env("MESH_CONTROL_PLANE", world.plane.address().to_string())
                .env("MESH_ROOT_CERT", world.plane.root_cert_path())
                .env("MESH_JOIN_TOKEN", token);
        }
    }
    let begun = Instant::now();
    let mut child = command.spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("stdout is piped")?).lines();
    let line = lines.next_line().await?;
    let took = begun.elapsed();
    child.wait().await?;
    if line.as_deref() == Some("answered") { Ok(took) } else { Err(format!("{kind:?}: no answer").into()) }
}

async fn all(processes: usize) -> Result<Vec<Row>, Error> {
    let world = world().await?;
    let kinds =
        [(Kind::Bare, "bare", None), (Kind::Plain, "plain", Some(5.0)), (Kind::Mutual, "mutual_tls", Some(15.0))];
    // The server of the mesh may not be known yet: the first process waits for it.
    let mut tries = 0;
    while let Err(error) = one(&world, Kind::Mutual).await {
        tries += 1;
        if tries > 50 {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..processes {
        // In turn, so that what else the machine does meets all of them.
        for (times, (kind, ..)) in times.iter_mut().zip(kinds) {
            times.push(one(&world, kind).await?);
        }
    }
    let rows = times.iter_mut().zip(kinds).map(|(times, (_, name, goal))| {
        times.sort_unstable();
        let median = times[times.len() / 2].as_secs_f64() * 1000.0;
        Row::new(format!("{name}/first_answer"), "ms", median, goal)
    });
    Ok(rows.collect())
}
