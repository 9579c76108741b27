//! Writes the snapshot: some time after a change, and once an hour so that it does not grow old while nothing
//! changes; only while the control plane confirms what is held, so that an outage takes nothing out of it and makes it
//! no younger. Encoding and writing are off the worker, on the runtime's threads for blocking work.
#![allow(clippy::disallowed_methods, reason = "blocking work of a worker, and the system's clock")]

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

use super::{Account, encode, replace};
use crate::xds::ads::Ads;
use crate::xds::kind::Kind;
use crate::xds::message::Name;
use crate::xds::resource::{self, PolicyCodec, Value};

/// How often an unchanged snapshot is written again.
const REFRESH: Duration = Duration::from_secs(3600);

/// Decides when to write, and writes.
pub(in crate::xds) struct Saver {
    owner: u128,
    delay: Duration,
    timer: Pin<Box<Sleep>>,
    /// Something changed since the last write.
    dirty: bool,
    /// The control plane confirms what is held, as of the last look.
    confirmed: bool,
    writing: Option<JoinHandle<std::io::Result<()>>>,
}

impl Saver {
    pub(in crate::xds) fn new(owner: u128, delay: Duration) -> Self {
        Self {
            owner,
            delay,
            timer: Box::pin(tokio::time::sleep(REFRESH)),
            dirty: false,
            confirmed: false,
            writing: None,
        }
    }

    /// A control plane changed something.
    pub(in crate::xds) fn changed(&mut self) {
        if !std::mem::replace(&mut self.dirty, true) {
            self.timer.as_mut().reset(Instant::now() + self.delay);
        }
    }

    /// Moves on; gives whether it did something.
    pub(in crate::xds) fn poll(&mut self, cx: &mut Context<'_>, ads: &Ads<PolicyCodec>, account: &mut Account) -> bool {
        if let Some(writing) = &mut self.writing {
            let Poll::Ready(done) = Pin::new(writing).poll(cx) else { return false };
            self.writing = None;
            match done.map_err(std::io::Error::other).flatten() {
                Ok(()) => {
                    account.writes += 1;
                    account.error = None;
                }
                Err(error) => {
                    tracing::warn!(path = %account.config.path.display(), %error, "the snapshot of the last good configuration cannot be written");
                    account.error = Some(format!("cannot be written: {error}"));
                }
            }
            return true;
        }
        let before = std::mem::replace(&mut self.confirmed, ads.is_confirmed());
        if !self.confirmed {
            return false;
        }
        if !before {
            // It has just begun to speak, and what it said during an outage of ours is on its way.
            self.dirty = false;
            self.changed();
        }
        let Some(key) = account.key.clone() else { return false };
        if self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.timer.as_mut().reset(Instant::now() + REFRESH);
        self.dirty = false;
        let (owner, path, resources) = (self.owner, account.config.path.clone(), held(ads));
        self.writing = Some(tokio::task::spawn_blocking(move || replace(&path, &file(&resources, &key, owner))));
        true
    }
}

type Held = (Kind, Name, Name, Value);

/// What is good, by pointer.
fn held(ads: &Ads<PolicyCodec>) -> Vec<Held> {
    ads.entries()
        .filter_map(|(kind, name, entry)| {
            let good = entry.good.as_ref()?;
            Some((kind, name.clone(), good.version.clone(), good.value.value.clone()))
        })
        .collect()
}

fn file(resources: &[Held], key: &hmac::Key, owner: u128) -> Vec<u8> {
    let bodies: Vec<Vec<u8>> = resources.iter().map(|(.., value)| resource::encode(value).value).collect();
    let records =
        resources.iter().zip(&bodies).map(|((kind, name, version, _), body)| (*kind, &**name, &**version, &body[..]));
    encode(records, key, owner, wall_clock())
}

/// Seconds since the Unix epoch.
pub(in crate::xds) fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
