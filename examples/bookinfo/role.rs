//! A child process: the control plane or one application.
//!
//! A child says on its standard output, in one line of JSON, where it listens, and ends when its standard
//! input does: the parent's end, however and whenever it comes, is the children's end too.

use std::io::Write;

use mesh::Mesh;
use mesh_control::ControlPlane;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::Role;
use crate::apps::{self, Result, Start};

/// The one line a child prints.
#[derive(Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) debug: Option<std::net::SocketAddr>,
}

pub(crate) async fn run(role: Role) -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .init();
    // From the first moment on: whoever waits for a control plane must not wait for it without a parent.
    let gone = parent_gone();
    tokio::pin!(gone);
    match role {
        Role::ControlPlane { manifests, state, listen, debug } => {
            let builder = ControlPlane::builder().manifests(manifests).state_dir(state);
            let plane = tokio::select! {
                plane = builder.listen(listen).debug_listen(Some(debug)).start() => plane?,
                () = &mut gone => return Ok(()),
            };
            say(&Ready { address: plane.address(), debug: plane.debug_address() })?;
            gone.await;
            plane.shutdown().await;
        }
        Role::App { name, version, listen } => {
            let mesh = Mesh::from_env().await?;
            let listener = TcpListener::bind(listen).await?;
            tokio::select! {
                () = mesh.ready() => {}
                () = &mut gone => return Ok(()),
            }
            say(&Ready { address: listener.local_addr()?, debug: mesh.debug_address() })?;
            let start = Start { mesh: mesh.clone(), listener, version };
            let app = async {
                match name.as_str() {
                    "productpage" => apps::productpage::run(start).await,
                    "details" => apps::details::run(start).await,
                    "reviews" => apps::reviews::run(start).await,
                    "ratings" => apps::ratings::run(start).await,
                    "webapp" => apps::webapp::run(start).await,
                    other => Err(format!("there is no application {other:?}").into()),
                }
            };
            tokio::pin!(app);
            tokio::select! {
                result = &mut app => return result,
                () = &mut gone => mesh.begin_shutdown(),
            }
            // Draining: requests in flight finish, then `serve` returns.
            app.await?;
            mesh.shutdown().await;
        }
    }
    Ok(())
}

fn say(ready: &Ready) -> Result<()> {
    let line = serde_json::to_string(ready)?;
    // Not `println!`, which panics when the parent is no longer there to read.
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

/// Waits for the parent's end; watches from the call on. A thread of its own: a read on the runtime's blocking
/// pool would hold up the end of a process that ends by itself, on SIGTERM.
fn parent_gone() -> impl Future<Output = ()> {
    let (here, gone) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(here);
    });
    async move { drop(gone.await) }
}
