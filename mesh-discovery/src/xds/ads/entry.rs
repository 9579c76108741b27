//! What is held of one resource: the last good value and where it is from, what the control plane said
//! last, who uses it, the does-not-exist timer.
//!
//! ```text
//! Requested ──good──▶ Acked ⇄ Nacked            the last good value stays, unless the server's
//!     │                 │ ▲                     `fail_on_data_errors` drops it (gRFC A88)
//!     └─timer, error,───▼─┘
//!   removal, emptied  DoesNotExist, ReceivedError, TimedOut
//! ```
//!
//! At the end of a resource's own time to live it is dropped in any case.

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use crate::cascade::SubscriptionId;
use crate::xds::contain::contained;
use crate::xds::message::{Body, Name, Variant};

/// What the control plane said last (the states of gRFC A88).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// Asked for, no answer yet.
    Requested,
    /// The latest version is in use.
    Acked,
    /// The latest version was refused.
    Nacked,
    /// It does not exist, was deleted, or was sent empty in the place of something.
    DoesNotExist,
    /// The control plane said that it cannot give it.
    ReceivedError,
    /// It did not come in time, from a control plane that would say so if it did not exist.
    TimedOut,
}

/// Index of a control plane among those of the bootstrap.
pub(crate) type ServerId = u16;

/// The origin of what was read from the snapshot on disk.
pub(crate) const SAVED: ServerId = ServerId::MAX;

/// Where a statement about a resource comes from: nothing published rests on two servers of one authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Index of the authority of the resource's name.
    pub(crate) authority: u16,
    /// Who said it.
    pub(crate) server: ServerId,
}

/// What a reader may use of a resource.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known<'a, V> {
    /// Nothing yet.
    Pending,
    /// The last good value.
    Value(&'a V, Origin),
    /// There is none, and this is why.
    Missing(&'a str, Origin),
    /// There is none for now, which does not say that it does not exist.
    Lost(&'a str, Loss),
}

/// Until when something holds that came with a resource, and holds for a time only without its control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The control plane vouches for it.
    Confirmed,
    /// Unless the control plane is heard of before.
    Until(Instant),
    /// No longer.
    Over,
}

/// Why there is nothing of a resource for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Only a former control plane had it, and not this one: what rests on it stays in use, nothing new is built on it.
    Former(Origin),
    /// This one did not send it in time, and would have said so if it did not exist.
    Late(Origin),
    /// No control plane of this authority can be reached.
    Unreachable(u16),
}

/// 128 bits that tell bytes apart, in a form that leaves no gaps around it.
pub(super) type Digest = [u64; 2];

/// A value in use.
#[derive(Clone, Debug)]
pub(crate) struct Good<V> {
    pub(crate) value: V,
    /// Version under which it came.
    pub(crate) version: Name,
    /// In which variant: in the other one the version means nothing.
    variant: Variant,
    /// Who gave it.
    pub(super) server: ServerId,
    /// Of the bytes it was decoded from: the same bytes are not decoded again. The bytes themselves
    /// would be the larger half of what is held.
    pub(super) digest: Digest,
    /// When it came.
    pub(crate) since: Instant,
}

/// What is wrong with a resource.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// Version that was refused; empty if there was no version to refuse.
    pub(crate) version: Name,
    /// When it was first said.
    pub(crate) since: Instant,
    /// When it was last said.
    pub(crate) last: Instant,
    /// Since when the last good value, if there is one, is not what the control plane says: no later than `since`, for others
    /// may have been said before this one.
    pub(crate) doubted: Instant,
    /// What was refused.
    pub(crate) refused: Option<Refusal>,
    /// The control plane has not said so: as far as it knows, it is held.
    is_unsaid: bool,
    /// Who came late has been told of it.
    is_told: bool,
}

impl Failure {
    fn new(reason: String, version: Name, now: Instant, refused: Option<Refusal>) -> Self {
        Self { reason, version, since: now, last: now, doubted: now, refused, is_unsaid: false, is_told: false }
    }

    /// The reason, once.
    pub(super) fn tell(&mut self) -> Option<String> {
        (!std::mem::replace(&mut self.is_told, true)).then(|| self.reason.clone())
    }
}

/// A resource that was refused, for whoever has to find out why.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) body: Body,
    digest: Digest,
}

impl Refusal {
    fn of(body: &Body, digest: Digest) -> Self {
        // Bytes of its own: it is not to keep the whole response that it came in.
        let bytes = Bytes::copy_from_slice(&body.bytes);
        Self { body: Body { type_url: body.type_url.clone(), bytes }, digest }
    }
}

/// One subscribed resource. A large mesh has tens of thousands: it is kept within a line of cache.
#[derive(Debug)]
pub(crate) struct Entry<V> {
    /// Nobody, once nobody wants it; the entry goes when the control plane has been told.
    pub(super) users: Users,
    pub(crate) good: Option<Box<Good<V>>>,
    pub(crate) failure: Option<Box<Failure>>,
    /// Number of the last response that held it.
    pub(super) round: u32,
    /// Number of its does-not-exist timer, the only one that is live; 0 = none.
    pub(super) timer: u32,
    pub(super) authority: u16,
    pub(crate) standing: Standing,
}

/// Subscriptions that use a resource: mostly one.
#[derive(Debug, Default)]
pub(super) enum Users {
    #[default]
    Nobody,
    One(SubscriptionId),
    Several(Box<Several>),
}

/// Sorted, at least two.
#[derive(Debug)]
pub(super) struct Several(Vec<SubscriptionId>);

impl Users {
    pub(super) fn ids(&self) -> &[SubscriptionId] {
        match self {
            Self::Nobody => &[],
            Self::One(id) => std::slice::from_ref(id),
            Self::Several(several) => &several.0,
        }
    }

    pub(super) fn insert(&mut self, id: SubscriptionId) {
        match self {
            Self::Nobody => *self = Self::One(id),
            Self::One(known) if *known == id => {}
            Self::One(known) => *self = Self::Several(Box::new(Several(vec![id.min(*known), id.max(*known)]))),
            Self::Several(several) => {
                if let Err(place) = several.0.binary_search(&id) {
                    several.0.insert(place, id);
                }
            }
        }
    }

    pub(super) fn remove(&mut self, id: SubscriptionId) {
        match self {
            Self::One(known) if *known == id => *self = Self::Nobody,
            Self::Several(several) => {
                if let Ok(place) = several.0.binary_search(&id) {
                    several.0.remove(place);
                }
                if let [last] = several.0[..] {
                    *self = Self::One(last);
                }
            }
            _ => {}
        }
    }
}

/// A resource of a response, before anybody has looked inside.
pub(super) struct Offer<'a> {
    pub(super) version: &'a Name,
    pub(super) variant: Variant,
    pub(super) body: &'a Body,
    pub(super) digest: Digest,
    pub(super) server: ServerId,
    pub(super) now: Instant,
    /// A refusal costs the last good value.
    pub(super) strict: bool,
}

/// What taking a resource came to.
pub(super) enum Taken<V> {
    /// It is what was in use; readers see a difference if it was another control plane's.
    Same { changed: bool },
    /// It is in use in the place of this.
    New { before: Option<Box<Good<V>>> },
    /// It says that there is nothing any more; the last good one stays.
    Emptied,
}

/// A resource that was not accepted.
pub(super) struct Refused {
    pub(super) reason: String,
    /// Whether readers see a difference.
    pub(super) changed: bool,
    /// False for bytes that were refused before.
    pub(super) is_new: bool,
}

impl<V> Entry<V> {
    /// Whether anybody uses it.
    pub(super) fn is_wanted(&self) -> bool {
        !matches!(self.users, Users::Nobody)
    }

    /// The version that `server` need not send again, with delta. What is complained of is asked for anew:
    /// it may have gone back to what is held, and would say nothing of it.
    pub(super) fn undoubted(&self, server: ServerId) -> Option<&Name> {
        let good = self.good.as_ref().filter(|good| good.server == server && self.failure.is_none())?;
        (good.variant == Variant::Delta && !good.version.is_empty()).then_some(&good.version)
    }

    /// Whether what is held is not what `server` said last in the state of the world, or nothing is, though it may have said
    /// something.
    pub(super) fn is_doubtful(&self, server: ServerId) -> bool {
        let foreign = self.good.as_ref().is_some_and(|good| good.server != server || good.variant == Variant::Delta);
        let failed = self.failure.is_some() && (self.good.is_some() || self.standing == Standing::Nacked);
        let unheard = self.good.is_none() && self.standing == Standing::Requested;
        let unsaid = self.failure.as_ref().is_some_and(|failure| failure.is_unsaid);
        self.is_wanted() && (foreign || failed || unheard || unsaid)
    }
}

impl<V: PartialEq> Entry<V> {
    pub(super) fn new(authority: u16) -> Self {
        Self {
            users: Users::Nobody,
            good: None,
            failure: None,
            round: 0,
            timer: 0,
            authority,
            standing: Standing::Requested,
        }
    }

    /// Takes what an earlier run held; the first that a control plane says replaces it.
    pub(super) fn restore(&mut self, value: V, version: Name, now: Instant) {
        let (variant, digest) = (Variant::StateOfTheWorld, Digest::default());
        self.good = Some(Box::new(Good { value, version, variant, server: SAVED, digest, since: now }));
    }

    /// The control plane that gave the value in use; none if no control plane of this run did.
    pub(crate) fn giver(&self) -> Option<ServerId> {
        self.good.as_ref().map(|good| good.server).filter(|server| *server != SAVED)
    }

    pub(crate) fn value(&self) -> Option<&V> {
        self.good.as_ref().map(|good| &good.value)
    }

    /// Whether there is a value that a control plane of this process' life gave.
    pub(super) fn is_cached(&self) -> bool {
        self.good.as_ref().is_some_and(|good| good.server != SAVED)
    }

    /// Whether `server` still owes an answer.
    pub(super) fn is_awaited(&self, server: ServerId) -> bool {
        self.standing == Standing::Requested && !self.is_from(server)
    }

    pub(super) fn is_from(&self, server: ServerId) -> bool {
        self.good.as_ref().is_some_and(|good| good.server == server)
    }

    /// Takes the resource of a response.
    pub(super) fn offer(
        &mut self,
        offer: &Offer<'_>,
        decode: impl FnOnce() -> Result<V, String>,
        is_empty: impl Fn(&V) -> bool,
    ) -> Result<Taken<V>, Refused> {
        self.timer = 0;
        if let Some(good) = self.good.as_mut().filter(|good| good.digest == offer.digest) {
            let moved = std::mem::replace(&mut good.server, offer.server) != offer.server;
            good.version.clone_from(offer.version);
            good.variant = offer.variant;
            self.standing = Standing::Acked;
            self.failure = None;
            return Ok(Taken::Same { changed: moved });
        }
        let refused =
            |failure: &Failure| failure.refused.as_ref().is_some_and(|refused| refused.digest == offer.digest);
        if let Some(failure) = self.failure.as_mut().filter(|failure| refused(failure)) {
            self.standing = Standing::Nacked;
            failure.version.clone_from(offer.version);
            failure.last = offer.now;
            return Err(Refused { reason: failure.reason.clone(), changed: false, is_new: false });
        }
        let compared = |value: V| {
            // What another control plane or an earlier run held is no reason to doubt this one's word.
            let held = self.good.as_ref().filter(|good| good.server == offer.server);
            let emptied = !offer.strict && is_empty(&value) && held.is_some_and(|good| !is_empty(&good.value));
            let same = self.good.as_ref().is_some_and(|good| good.value == value);
            Ok((value, emptied, same))
        };
        let decoded = decode().and_then(|value| contained("the comparison with what is in use", || compared(value)));
        let (value, emptied, same) = match decoded {
            Ok(decoded) => decoded,
            Err(reason) => {
                let refused = Some(Refusal::of(offer.body, offer.digest));
                let failure = Failure::new(reason.clone(), offer.version.clone(), offer.now, refused);
                let changed = self.fail(Standing::Nacked, failure, offer.strict, offer.server);
                return Err(Refused { reason, changed, is_new: true });
            }
        };
        if emptied {
            return Ok(Taken::Emptied);
        }
        self.standing = Standing::Acked;
        self.failure = None;
        let (server, digest, version, variant) = (offer.server, offer.digest, offer.version.clone(), offer.variant);
        if let Some(good) = self.good.as_mut().filter(|_| same) {
            // An equal value in other bytes keeps its place, so that its readers see no change.
            let moved = good.server != server;
            (good.server, good.digest, good.version, good.variant) = (server, digest, version, variant);
            return Ok(Taken::Same { changed: moved });
        }
        let good = Good { value, version, variant, server, digest, since: offer.now };
        Ok(Taken::New { before: self.good.replace(Box::new(good)) })
    }

    /// Refuses what was taken before, out of `body`: what it replaced is in use again, unless a refusal costs that too.
    pub(super) fn refuse(
        &mut self,
        reason: String,
        body: &Body,
        before: Option<Box<Good<V>>>,
        strict: bool,
        now: Instant,
    ) {
        let Some(taken) = std::mem::replace(&mut self.good, before) else { return };
        let refused = Some(Refusal::of(body, taken.digest));
        let failure = Failure::new(reason, taken.version, now, refused);
        self.fail(Standing::Nacked, failure, strict, taken.server);
    }

    /// Notes that `server` has not got the resource; gives whether readers see a difference. A last good
    /// value stays unless it is to be dropped.
    pub(super) fn missing(
        &mut self,
        server: ServerId,
        standing: Standing,
        reason: String,
        drop_good: bool,
        now: Instant,
    ) -> bool {
        self.timer = 0;
        let said = self.failure.as_mut().filter(|failure| self.standing == standing && failure.reason == reason);
        if let Some(said) = said
            && !(drop_good && self.good.is_some())
        {
            said.last = now;
            return false;
        }
        let failure = Failure::new(reason, Name::default(), now, None);
        self.fail(standing, failure, drop_good, server)
    }

    /// The same of what is missing without a word of `server`.
    pub(super) fn missing_unsaid(
        &mut self,
        server: ServerId,
        standing: Standing,
        reason: String,
        drop_good: bool,
        now: Instant,
    ) -> bool {
        let seen = self.missing(server, standing, reason, drop_good, now);
        self.failure.iter_mut().for_each(|failure| failure.is_unsaid = true);
        seen
    }

    /// The word of `server` counts from now on: what another one complained about is void, and what
    /// another one gave has to be confirmed. Gives whether readers see a difference.
    pub(super) fn ask_anew(&mut self, server: ServerId) -> bool {
        self.timer = 0;
        self.standing = if self.is_from(server) { Standing::Acked } else { Standing::Requested };
        self.failure.take().is_some()
    }

    fn fail(&mut self, standing: Standing, mut failure: Failure, drop_good: bool, server: ServerId) -> bool {
        self.standing = standing;
        if let Some(before) = &self.failure {
            failure.doubted = before.doubted;
            failure.is_told = before.is_told && before.reason == failure.reason;
        }
        self.failure = Some(Box::new(failure));
        if drop_good {
            self.good = None;
        }
        // What another control plane gave is not to be built upon any more.
        !self.is_from(server)
    }
}
