//! The one task behind an [`XdsClient`](super::XdsClient): moves commands, responses and timers into the
//! protocol, what changed into the cascade, and requests out.
//!
//! Subscriptions are taken in every state. A response is worked off completely before the next one is
//! read, so a slow process slows its control plane down and not itself (xDS flow control).
#![allow(clippy::disallowed_methods, reason = "the one spawn of this module, through an owned handle")]

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep};

use super::ads::{Ads, Retry, ServerId};
use super::lane::{Event, Lane};
use super::resource::PolicyCodec;
use super::saved::{Account, Saver};
use crate::cascade::{Cascade, Root, SubscriptionId};
use crate::connect::AbortOnDrop;

/// What the handle asks of the worker.
pub(super) enum Command {
    /// Follow this.
    Subscribe(SubscriptionId, Root),
    /// Follow it no longer.
    Unsubscribe(SubscriptionId),
}

/// What the worker works on. Reports look at it too; nothing else does, and no request.
pub(super) struct State {
    pub(super) ads: Ads<PolicyCodec>,
    pub(super) cascade: Cascade,
    /// Of the snapshot on disk, if there is to be one.
    pub(super) snapshot: Option<Account>,
}

/// Events handled before other tasks get their turn.
const BATCH: usize = 128;

/// Spawns the worker on `runtime`.
pub(super) fn spawn(
    state: Arc<Mutex<State>>,
    lanes: Vec<Lane>,
    commands: mpsc::UnboundedReceiver<Command>,
    ready: watch::Sender<bool>,
    saver: Option<(u128, Duration)>,
    runtime: &Handle,
) -> AbortOnDrop {
    AbortOnDrop(runtime.spawn(async move {
        let saver = saver.map(|(owner, delay)| Saver::new(owner, delay));
        let timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        let mut worker = Worker { state, lanes, commands, ready, timer, saver };
        poll_fn(|cx| worker.poll(cx)).await;
    }))
}

struct Worker {
    state: Arc<Mutex<State>>,
    /// By [`ServerId`].
    lanes: Vec<Lane>,
    commands: mpsc::UnboundedReceiver<Command>,
    ready: watch::Sender<bool>,
    timer: Pin<Box<Sleep>>,
    saver: Option<Saver>,
}

impl Worker {
    /// Works off what there is. Commands come first, so that many of them make one request; then what is
    /// to be said, then what was said, then the clock.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let state = self.state.clone();
        for _ in 0..BATCH {
            let mut state = state.lock();
            self.take_commands(cx, &mut state);
            self.connect(&mut state);
            let busy = (0..self.lanes.len()).any(|server| self.talk(cx, server, &mut state));
            if state.settle()
                && let Some(saver) = &mut self.saver
            {
                saver.changed();
            }
            if !(busy || self.expire(cx, &mut state) || self.save(cx, &mut state)) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn take_commands(&mut self, cx: &mut Context<'_>, state: &mut State) {
        let State { ads, cascade, .. } = state;
        while let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
            match command {
                Command::Subscribe(id, root) => cascade.add(id, root, ads),
                Command::Unsubscribe(id) => cascade.remove(id, ads),
            }
        }
        state.settle();
    }

    /// Begins and ends connections as they are wanted.
    fn connect(&mut self, state: &mut State) {
        for (server, lane) in self.lanes.iter_mut().enumerate() {
            let id = server as ServerId;
            match (state.ads.wants(id), lane.is_idle()) {
                (true, true) => lane.open(state.ads.sessions()[server].variant),
                (false, false) => {
                    lane.stop();
                    state.ads.released(id);
                }
                _ => {}
            }
        }
    }

    /// Moves one connection on; gives whether something happened.
    fn talk(&mut self, cx: &mut Context<'_>, server: usize, state: &mut State) -> bool {
        let (id, lane, ads) = (server as ServerId, &mut self.lanes[server], &mut state.ads);
        let Poll::Ready(event) = lane.poll(cx, ads.has_request(id), ads.may_read(id)) else { return false };
        match event {
            Event::Opened => {
                ads.opened(id, Instant::now());
                self.ready.send_replace(true);
            }
            Event::Writable => {
                if let Some(request) = ads.take_request(id, Instant::now()) {
                    lane.send(request);
                }
            }
            Event::Response(response) => ads.response(id, response, Instant::now()),
            Event::Closed(error) => match ads.closed(id, error, Instant::now()) {
                Retry::AtOnce => lane.open(ads.sessions()[server].variant),
                Retry::Soon => lane.wait(true),
                Retry::Later => lane.wait(false),
            },
            Event::Due => lane.open(ads.sessions()[server].variant),
        }
        true
    }

    fn save(&mut self, cx: &mut Context<'_>, state: &mut State) -> bool {
        let (Some(saver), Some(account)) = (&mut self.saver, &mut state.snapshot) else { return false };
        saver.poll(cx, &state.ads, account)
    }

    /// Lets timers end; gives whether one did.
    fn expire(&mut self, cx: &mut Context<'_>, state: &mut State) -> bool {
        let Some(deadline) = state.ads.next_deadline() else { return false };
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        state.ads.expire(Instant::now().max(deadline));
        state.settle();
        true
    }
}

impl State {
    /// Tells the cascade what changed until nothing does: what it then asks for may be known already. Gives
    /// whether there was something.
    pub(super) fn settle(&mut self) -> bool {
        let mut any = false;
        loop {
            let changed = self.ads.take_changed();
            if changed.is_empty() {
                return any;
            }
            any = true;
            self.cascade.changed(&changed, &mut self.ads);
        }
    }
}
