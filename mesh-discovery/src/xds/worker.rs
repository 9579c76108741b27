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
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};

use super::ads::{Ads, Retry, ServerId};
use super::contain::contained;
use super::kind::Key;
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
    /// Write to disk what has changed since it was written; drop this when that is over, or say why it cannot be.
    Save(oneshot::Sender<String>),
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
    /// to be said and what was said, by every connection once, so that a busy one leaves the others their turn.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let state = self.state.clone();
        for _ in 0..BATCH {
            let mut state = state.lock();
            state.ads.pass(Instant::now());
            self.take_commands(cx, &mut state);
            while self.connect(&mut state) {}
            let mut busy = false;
            for server in 0..self.lanes.len() {
                busy |= self.talk(cx, server, &mut state);
                self.settle(&mut state);
            }
            // Timers after everything that has arrived: what only waits to be read is not late.
            if !(busy || self.tick(cx, &mut state)) {
                return Poll::Pending;
            }
        }
        // But not for ever.
        let mut state = state.lock();
        self.tick(cx, &mut state);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Lets time pass for the protocol and for the snapshot on disk; gives whether something came of it.
    fn tick(&mut self, cx: &mut Context<'_>, state: &mut State) -> bool {
        let expired = self.expire(cx, state);
        self.save(cx, state) || expired
    }

    /// Brings to the readers what changed, and ends the streams that are of no use any more.
    fn settle(&mut self, state: &mut State) {
        let State { ads, cascade, .. } = &mut *state;
        if let Err(reason) = assembled(|| cascade.age(ads)) {
            tracing::error!(reason, "readers keep the keys of token issuers that they have");
        }
        if state.settle()
            && let Some(saver) = &mut self.saver
        {
            saver.changed();
        }
        for server in state.ads.take_given_up() {
            self.lanes[usize::from(server)].wait(false);
        }
    }

    fn take_commands(&mut self, cx: &mut Context<'_>, state: &mut State) {
        let State { ads, cascade, .. } = &mut *state;
        while let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
            let done = match command {
                Command::Subscribe(id, root) => assembled(|| cascade.add(id, root, ads)).inspect_err(|reason| {
                    cascade.fail(id, reason);
                    cascade.mend_one(id, ads);
                }),
                Command::Unsubscribe(id) => assembled(|| cascade.remove(id, ads)),
                Command::Save(done) => {
                    if let Some(saver) = &mut self.saver {
                        saver.ask(done);
                    }
                    Ok(())
                }
            };
            if let Err(reason) = done {
                tracing::error!(reason, "a subscription could not be followed");
            }
        }
        self.settle(state);
    }

    /// Begins and ends connections as they are wanted; gives whether others may be wanted by that.
    fn connect(&mut self, state: &mut State) -> bool {
        let mut turned = false;
        for (server, lane) in self.lanes.iter_mut().enumerate() {
            let id = server as ServerId;
            match (state.ads.wants(id), lane.is_idle()) {
                (true, true) if lane.waits_on() => {
                    state.ads.still_away(id, Instant::now());
                    turned = true;
                }
                (true, true) => lane.open(state.ads.variant(id, Instant::now())),
                (false, false) => {
                    lane.stop(state.ads.released(id));
                }
                _ => {}
            }
        }
        turned
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
            Event::Slow { held_up } => ads.is_slow(id, held_up, Instant::now()),
            Event::Writable => {
                if let Some(request) = ads.take_request(id, Instant::now()) {
                    lane.send(request);
                }
            }
            Event::Response(response) => ads.response(id, response, Instant::now()),
            Event::Closed(error) => match ads.closed(id, error, Instant::now()) {
                Retry::AtOnce => lane.open(ads.variant(id, Instant::now())),
                Retry::Soon => lane.wait(true),
                Retry::Later => lane.wait(false),
            },
            Event::Due => lane.open(ads.variant(id, Instant::now())),
        }
        true
    }

    fn save(&mut self, cx: &mut Context<'_>, state: &mut State) -> bool {
        let (Some(saver), Some(account)) = (&mut self.saver, &mut state.snapshot) else { return false };
        saver.poll(cx, &state.ads, &state.cascade, account)
    }

    /// Lets timers end; gives whether one did.
    fn expire(&mut self, cx: &mut Context<'_>, state: &mut State) -> bool {
        let deadline = state.ads.next_deadline().into_iter().chain(state.cascade.next_age(&state.ads)).min();
        let Some(deadline) = deadline else { return false };
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        state.ads.expire(Instant::now().max(deadline));
        self.settle(state);
        true
    }
}

/// Does what a resource brings about past its decoder.
fn assembled(work: impl FnOnce()) -> Result<(), String> {
    contained("the assembly of what rests on it", || {
        work();
        Ok(())
    })
}

impl State {
    /// Tells the cascade what changed until nothing does: what it then asks for may be known already. Gives
    /// whether there was something. Then the last response is answered.
    pub(super) fn settle(&mut self) -> bool {
        self.settle_by(|cascade, keys, ads| cascade.changed(keys, ads))
    }

    /// The same, `tell`ing the cascade. A panic in that costs the resource it came with: those that changed together are
    /// told one by one, and who makes it panic again is refused.
    pub(super) fn settle_by(&mut self, mut tell: impl FnMut(&mut Cascade, &[Key], &mut Ads<PolicyCodec>)) -> bool {
        let mut any = false;
        loop {
            let mut changed = self.ads.take_changed();
            if changed.is_empty() {
                self.ads.conclude();
                return any;
            }
            any = true;
            let Self { ads, cascade, .. } = self;
            let mut told = |keys: &[Key], ads: &mut Ads<PolicyCodec>| {
                assembled(|| tell(cascade, keys, ads)).inspect_err(|_| cascade.mend(keys, ads))
            };
            if told(&changed, ads).is_ok() {
                continue;
            }
            // What others refer to first.
            changed.sort_unstable();
            for key in changed {
                if let Err(reason) = told(std::slice::from_ref(&key), ads)
                    && !ads.refuse(&key, &reason)
                {
                    tracing::error!(kind = %key.kind, name = ?key.name, reason, "its readers keep what they have");
                }
            }
        }
    }
}
