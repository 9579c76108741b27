//! The life of a connection that carries no requests: policy → first byte → TLS → authorization → the application's
//! handler, which has it until it ends by itself, is silent for too long, or is not welcome any more.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use mesh_core::authz::Caller;
use mesh_core::drain::{self, DrainTrigger};
use mesh_core::policy::{InboundListener, InboundTls};

use super::Refusal;
use super::connection::Door;
use super::stay::{Guest, Leave, Left, stay};
use crate::Config;
use crate::listen::{Leash, Stream, Why, is_tls, leash};
use crate::raw::{Account, Activity, RawConnection};

impl Door {
    /// Takes a connection from its first byte to its end.
    pub(crate) async fn serve_raw<H, F>(&self, tcp: TcpStream, address: SocketAddr, handler: H)
    where
        H: FnOnce(RawConnection) -> F,
        F: Future<Output = ()>,
    {
        let admitted = tokio::select! {
            biased;
            // Nothing has been read yet: nothing to finish.
            () = self.close.watch().drained() => return,
            admitted = self.admit_raw(tcp, address) => admitted,
        };
        let Some((stream, guest)) = admitted else { return };
        // The handshake may have taken a while.
        let Some(now) = self.policy(address) else { return };
        let account = Account::open(self.layer.tcp_series(&guest.peer), guest.peer.clone(), guest.server_name.clone());
        if let Err(details) = self.layer.judge_raw(&now, &guest.peer, &guest.server_name) {
            account.deny(details);
            stream.reset();
            return;
        }
        let (leash, tether) = leash();
        let activity = Activity::begin();
        let (told, leaving) = drain::channel();
        let connection = RawConnection::new(stream, tether, activity.clone(), account, leaving);
        // A changed policy judges it as if it came now.
        let is_welcome = |_: &Arc<InboundListener>, now: &Arc<InboundListener>, caller: Caller<'_>| {
            self.layer.judge_raw(now, caller.peer, caller.server_name).is_ok()
        };
        let config = &self.config;
        let closing = stay(guest, self.close.watch(), self.inbound.clone(), &self.tls, config, is_welcome);
        let attended = attend(leash, closing, activity.silent_for(config.raw_idle_timeout), &told, config);
        let served = async { tokio::join!(handler(connection), attended) };
        // Who still has connections hears of the end when it begins.
        let leaves = async {
            self.drain.drained().await;
            told.drain();
            std::future::pending::<Infallible>().await
        };
        let over = async {
            self.close.watch().drained().await;
            sleep(config.drain_limit).await;
        };
        tokio::select! {
            biased;
            _ = served => {}
            never = leaves => match never {},
            () = over => tracing::warn!(peer = %address, "raw connection closed: the time to finish is over"),
        }
    }

    /// Decides about a connection before anybody is authorized; `None` = refused and closed.
    async fn admit_raw(&self, tcp: TcpStream, address: SocketAddr) -> Option<(Stream, Guest)> {
        let mut listener = self.policy(address)?;
        let mut tls = false;
        // Where there is no TLS there is nothing to wait for: many a protocol lets the server begin.
        if listener.tls != InboundTls::Disable {
            let mut first = [0];
            let seen = timeout(self.config.detect_timeout, tcp.peek(&mut first)).await;
            listener = self.policy(address)?;
            tls = match (seen, listener.tls) {
                // Closed without a word, as port checks do.
                (Ok(Ok(0) | Err(_)), _) => return None,
                (_, InboundTls::Disable) => false,
                (Ok(Ok(_)), _) => is_tls(&first),
                // A handshake would have begun.
                (Err(_), InboundTls::Permissive) => false,
                (Err(_), InboundTls::Strict) => return self.refuse(Refusal::Timeout, address, &"it sent nothing"),
            };
        }
        if !tls && listener.tls == InboundTls::Strict {
            return self.refuse(Refusal::Plaintext, address, &"policy demands mutual TLS");
        }
        let (stream, verified) = self.open(tcp, address, &listener, tls).await?;
        let guest = Guest::new(address, stream.server_name(), verified, listener);
        Some((stream, guest))
    }
}

/// Stays with a connection until nobody has it any more, or it has to end: then it has the rest of its time, of which its
/// handler is `told` if it is old, and is cut.
async fn attend(
    mut leash: Leash,
    mut closing: impl futures_util::Stream<Item = Leave> + Unpin,
    silent: impl Future<Output = ()>,
    told: &DrainTrigger,
    config: &Config,
) {
    let why = tokio::select! {
        () = leash.gone() => return,
        () = silent => Why::Silence,
        Some(leave) = closing.next() => {
            if leave == Leave::Aged {
                told.drain();
            }
            tokio::select! {
                () = leash.gone() => return,
                leave = Left::new(leave, config).over(closing, config) => leave.why(),
            }
        }
    };
    leash.cut(why);
    leash.gone().await;
}
