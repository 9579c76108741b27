//! The accept loop: the one place of the inbound side that spawns tasks, one a connection. The loop
//! owns them: dropping its future closes every connection.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use mesh_core::policy::{InboundState, InboundTls};

use super::connection::is_of_the_peer;
use super::peers::Peers;
use super::{Door, Refusal};
use crate::Readiness;

/// Pause after an error of the listening socket itself, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Accepts and serves until drained, which includes the lame duck's time, and all connections have ended. `serve` takes one
/// connection to its end.
pub(crate) async fn run<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    address: SocketAddr,
    door: Arc<Door>,
    readiness: Readiness,
    serve: impl Fn(Arc<Door>, TcpStream, SocketAddr) -> F,
) {
    let mut connections = JoinSet::new();
    let mut peers = door.config.max_connections_per_peer.map(Peers::new);
    let mut drained = pin!(door.drain.drained());
    // Who waits for the end of the drain waits for this loop.
    let _guard = door.drain.guard();
    let mut inbound = door.inbound.clone();
    let mut identity = door.tls.identity(&door.layer.hear());
    let hold = Hold { name: format!("listener {address}"), readiness };
    let listening = hold.readiness.listening();
    let mut leave_at = None;
    loop {
        hold.update(&inbound.load(), identity.load().is_some());
        tokio::select! {
            biased;
            () = drained.as_mut(), if leave_at.is_none() => {
                hold.readiness.drain();
                tracing::info!(%address, connections = connections.len(), "draining");
                leave_at = Some(Instant::now() + door.config.lame_duck);
            }
            () = sleep_until(leave_at.unwrap_or_else(Instant::now)), if leave_at.is_some() => break,
            () = inbound.changed() => identity = door.tls.identity(&door.layer.hear()),
            () = identity.changed() => {}
            Some(ended) = connections.join_next_with_id() => {
                if let Some(peers) = &mut peers {
                    peers.leave(ended.as_ref().map_or_else(JoinError::id, |(task, ())| *task));
                }
                note(ended.map(drop));
            }
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => {
                    let full = peers.as_ref().and_then(|peers| peers.full(peer.ip()));
                    if let Some(tcp) = enter(&door, tcp, peer, connections.len(), full) {
                        let task = connections.spawn(serve(door.clone(), tcp, peer));
                        if let Some(peers) = &mut peers {
                            peers.enter(peer.ip(), task.id());
                        }
                    }
                }
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => {
                    tracing::error!(%error, %address, "cannot accept connections; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    drop(listening);
    door.close.drain();
    // Each ends by itself, within the drain limit.
    while let Some(ended) = connections.join_next().await {
        note(ended);
    }
}

/// Checks what can be checked without waiting; `None` = refused and closed. `full` = the peer has as many connections as
/// it may.
fn enter(door: &Door, tcp: TcpStream, peer: SocketAddr, open: usize, full: Option<usize>) -> Option<TcpStream> {
    let limit = match &**door.inbound.load() {
        InboundState::Ready(listener) => listener.limits.max_connections.map(|max| max as usize),
        InboundState::Pending => {
            door.stats.refuse(Refusal::NoPolicy, peer, &"no policy has come yet");
            return None;
        }
        InboundState::Failed(why) => {
            door.stats.refuse(Refusal::NoPolicy, peer, why);
            return None;
        }
    };
    let limit = limit.unwrap_or(door.config.max_connections);
    if open >= limit {
        door.stats.refuse(Refusal::ConnectionLimit, peer, &format_args!("{limit} connections are open"));
        return None;
    }
    if let Some(limit) = full {
        door.stats.refuse(Refusal::PeerLimit, peer, &format_args!("{limit} connections of its address are open"));
        return None;
    }
    // Only latency is at stake, and a socket that refuses it fails at the first read anyway.
    let _ = tcp.set_nodelay(true);
    Some(tcp)
}

fn note(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "the application panicked: its connection was closed");
    }
}

/// Holds readiness back while this listener could not serve anybody; lets go when dropped.
struct Hold {
    name: String,
    readiness: Readiness,
}

impl Hold {
    fn update(&self, inbound: &InboundState, identified: bool) {
        let why = match inbound {
            InboundState::Pending => Some("no policy has come yet"),
            InboundState::Failed(why) => Some(&**why),
            InboundState::Ready(listener) if listener.tls == InboundTls::Strict && !identified => {
                Some("policy demands mutual TLS and there is no certificate yet")
            }
            InboundState::Ready(_) => None,
        };
        match why {
            Some(why) => self.readiness.hold(&self.name, why),
            None => self.readiness.release(&self.name),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.readiness.release(&self.name);
    }
}
