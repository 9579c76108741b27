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
use mesh_core::source::Paired;

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
        hold.update(&inbound.load(), &identity);
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
    fn update(&self, inbound: &InboundState, identity: &Paired) {
        match reason(inbound, identity) {
            Some(why) => self.readiness.hold(&self.name, why),
            None => self.readiness.release(&self.name),
        }
    }
}

/// Why a listener could not serve those who are to be served.
fn reason<'a>(inbound: &'a InboundState, identity: &Paired) -> Option<&'a str> {
    let listener = match inbound {
        InboundState::Pending => return Some("no policy has come yet"),
        InboundState::Failed(why) => return Some(&**why),
        InboundState::Ready(listener) => listener,
    };
    match listener.tls {
        InboundTls::Strict if identity.load().is_none() => {
            Some("policy demands mutual TLS and there is no certificate yet")
        }
        // Others come with mutual TLS wherever it is taken. Where no certificate is to come, plaintext is all there is.
        InboundTls::Permissive if identity.load().is_none() && !identity.is_nobody() => {
            Some("policy takes mutual TLS and there is no certificate yet")
        }
        InboundTls::Strict | InboundTls::Permissive | InboundTls::Disable => None,
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.readiness.release(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::policy::{InboundListener, Instances};
    use mesh_core::source::{Identities, Watched};
    use mesh_testkit::TestCa;

    use super::*;

    #[test]
    fn a_port_that_takes_mutual_tls_is_ready_with_the_first_certificate_or_where_none_is_to_come() {
        let (publisher, to_come) = Watched::channel(None);
        let there = TestCa::new().watched("default", "reviews");
        let paired = |own| Identities::new(own, []).paired(&Instances::default());
        let (to_come, there, never) = (paired(to_come), paired(there), paired(Watched::fixed(None)));
        for (tls, held) in [
            (InboundTls::Strict, [true, false, true]),
            (InboundTls::Permissive, [true, false, false]),
            (InboundTls::Disable, [false; 3]),
        ] {
            let listener = InboundListener::new("l", ([127, 0, 0, 1], 80).into(), tls);
            let state = InboundState::Ready(Arc::new(listener));
            let got = [&to_come, &there, &never].map(|identity| reason(&state, identity).is_some());
            assert_eq!(got, held, "{tls:?}");
        }
        let permissive = InboundListener::new("l", ([127, 0, 0, 1], 80).into(), InboundTls::Permissive);
        publisher.publish(Some(TestCa::new().identity("default", "reviews")));
        assert_eq!(reason(&InboundState::Ready(Arc::new(permissive)), &to_come), None);
    }
}
