//! Taking a response: every resource is judged by itself, the good ones are used, the bad ones named
//! (gRFC A46). What equals what is held already costs a hash and no decoding.

use std::borrow::Cow;
use std::time::Duration;

use tokio::time::Instant;
use twox_hash::XxHash3_128;

use super::entry::{Digest, Good, Offer, ServerId, Taken};
use super::{Ads, Codec, Entry, SAVED, Standing, is_active};
use crate::bootstrap::ServerFeatures;
use crate::bootstrap::name::normalise;
use crate::xds::contain::contained;
use crate::xds::kind::{Key, Kind};
use crate::xds::message::{Body, Cause, Name, Resource, ResourceError, Response, Variant};
use crate::xds::saved::Record;

/// Longest text of the reasons in a NACK, in bytes.
const MAX_ERROR: usize = 8 << 10;
/// Longest list of the names before them, in bytes: hundreds.
const MAX_NAMES: usize = 32 << 10;
/// Longest reason of a resource that the control plane cannot give, in bytes.
const MAX_REASON: usize = 2 << 10;
/// How often at most responses of a type that was not asked for are told of.
const STRANGE: Duration = Duration::from_secs(60);

/// Why an empty resource is not used.
const EMPTIED: &str = "the control plane sent it empty; the last good one stays in use";

/// The handling of one response.
pub(super) struct Round<V> {
    kind: Kind,
    server: ServerId,
    /// Different for every response, so that the entries it held can be told from the others.
    number: u32,
    version: Name,
    now: Instant,
    /// Data errors cost the last good value (`fail_on_data_errors`).
    strict: bool,
    /// Of the resource before: many control planes give all the same.
    own: Name,
    problems: Problems,
    /// Some of the problems was not there before.
    is_news: bool,
    /// Tells apart what is wrong with resources that have no entry; 0 = nothing.
    nameless: u64,
    /// It holds something without a name.
    is_unreadable: bool,
    /// It says all there is.
    is_list: bool,
    nonce: String,
    /// What is in use since this response.
    taken: Vec<Replaced<V>>,
}

/// A resource that has come into use.
struct Replaced<V> {
    name: Name,
    /// What it was read from.
    body: Body,
    /// What was in use before.
    before: Option<Box<Good<V>>>,
    /// On disk, if an earlier run held that.
    record: Option<Record>,
}

impl<V> Round<V> {
    /// The version of one resource, if it has one of its own, shared with what is held of it or with its neighbours.
    fn own_version(&mut self, entry: &Entry<V>, text: &str) -> Option<Name> {
        if let Some(good) = entry.good.as_ref().filter(|good| *good.version == *text && !text.is_empty()) {
            return Some(good.version.clone());
        }
        if *self.own != *text {
            self.own = text.into();
        }
        (!text.is_empty()).then(|| self.own.clone())
    }

    /// Notes a problem of a resource that has no entry, by its place.
    fn nameless(&mut self, index: usize, problem: &str) {
        let (place, problem) = (format!("resource {index}"), cut(problem, MAX_REASON));
        let said = format!("{place}{problem}");
        self.nameless = (XxHash3_128::oneshot_with_seed(self.nameless, said.as_bytes()) as u64).max(1);
        self.problems.add(&place, &said);
    }
}

/// What is wrong with a response, as the refusal says it: all names come before any reason is cut, for a control plane
/// has to know which resources are refused.
#[derive(Default)]
struct Problems {
    count: usize,
    names: String,
    /// How many the names hold.
    named: usize,
    reasons: String,
    is_cut: bool,
}

impl Problems {
    fn add(&mut self, name: &str, reason: &str) {
        self.count += 1;
        if self.names.len() + name.len() < MAX_NAMES {
            self.named += 1;
            join(&mut self.names, ", ", name);
        }
        if !self.is_cut {
            let room = MAX_ERROR - self.reasons.len();
            let part = cut(reason, room);
            self.is_cut = part.len() < reason.len() || self.reasons.len() + "; ".len() + part.len() > MAX_ERROR;
            join(&mut self.reasons, "; ", part);
        }
    }

    /// None if there is none.
    fn text(&self) -> Option<String> {
        let Self { count, names, reasons, .. } = self;
        let more = match count - self.named {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        match (count, self.is_cut) {
            (0, _) => None,
            (_, false) => Some(reasons.clone()),
            (_, true) => Some(format!("{count} are refused: {names}{more}; the first reasons: {reasons}…")),
        }
    }
}

fn join(text: &mut String, between: &str, part: &str) {
    if !text.is_empty() {
        text.push_str(between);
    }
    text.push_str(part);
}

/// The text, or so much of its beginning.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

impl<C: Codec> Ads<C> {
    /// Takes a response of a control plane. It is answered when it is [concluded](Self::conclude).
    pub(crate) fn response(&mut self, server: ServerId, response: Response, now: Instant) {
        self.conclude();
        self.clock = now;
        self.heard(server, now);
        let session = &mut self.sessions[usize::from(server)];
        session.responses += 1;
        let kind = Kind::of_type_url(&response.type_url).filter(|kind| session.talk(*kind).started);
        let Some(kind) = kind else {
            if session.strange.is_none_or(|told| now.saturating_duration_since(told) >= STRANGE) {
                session.strange = Some(now);
                let type_url = cut(&response.type_url, MAX_REASON);
                tracing::warn!(?type_url, server = %session.server, "ignored an xDS response of a type that was not asked for");
            }
            return;
        };
        self.round = self.round.wrapping_add(1);
        let mut round = Round {
            kind,
            server,
            number: self.round,
            // Mostly none, with delta.
            version: if response.version.is_empty() { Name::default() } else { response.version.into() },
            now,
            strict: session.features.fail_on_data_errors,
            own: Name::default(),
            problems: Problems::default(),
            is_news: false,
            nameless: 0,
            is_unreadable: false,
            is_list: false,
            nonce: response.nonce,
            taken: Vec::new(),
        };
        // One that only renews what there is says nothing of the rest.
        let renews =
            !response.resources.is_empty() && response.resources.iter().all(|resource| resource.body.is_none());
        let full = session.variant == Variant::StateOfTheWorld && kind.is_full_state() && !renews;
        for (index, resource) in response.resources.into_iter().enumerate() {
            self.resource(&mut round, index, &resource);
        }
        for name in response.removed {
            self.removed(&round, &name);
        }
        for error in response.errors {
            self.resource_error(&round, error);
        }
        // A list that cannot be read to its end says nothing of what it leaves out.
        round.is_list = full && !round.is_unreadable;
        if round.is_list {
            self.sessions[usize::from(server)].lists(kind, now);
            self.deletions(&round);
        }
        self.open = Some(round);
    }

    /// Refuses a resource of the last response after all, for what it brought about: what it replaced is in use again.
    /// False if it was none of that response, or the same as before.
    pub(crate) fn refuse(&mut self, key: &Key, reason: &str) -> bool {
        let Some(round) = self.open.as_mut().filter(|round| round.kind == key.kind) else { return false };
        let Some(at) = round.taken.iter().position(|taken| taken.name == key.name) else { return false };
        let Replaced { name, body, before, record } = round.taken.swap_remove(at);
        let Some(entry) = self.entries[key.kind.index()].get_mut(&name) else { return false };
        let reason = format!("{} {name} is refused: {reason}", key.kind);
        round.is_news = true;
        round.problems.add(&name, &reason);
        entry.refuse(reason, &body, before, round.strict, round.now);
        if let Some(record) = record.filter(|_| entry.is_from(SAVED)) {
            // It is in use again, and the next run is to have it, too.
            self.saved.get_or_insert_default().insert(key.clone(), record);
        }
        self.changed.push(key.clone());
        true
    }

    /// What the last response changed has reached its readers: acknowledges or refuses it. The same bytes are complained
    /// about once in the log.
    pub(crate) fn conclude(&mut self) {
        let Some(round) = self.open.take() else { return };
        let session = &mut self.sessions[usize::from(round.server)];
        let complaint = round.problems.text();
        let nameless = std::mem::replace(&mut session.talk_mut(round.kind).nameless, round.nameless);
        if let Some(text) = &complaint {
            session.nacks += 1;
            if round.is_news || round.nameless != 0 && nameless != round.nameless {
                tracing::warn!(kind = %round.kind, version = ?round.version, error = ?text, "refused an xDS response; the last good stays");
            }
        }
        // Of a refused one the good is used, and what it leaves out counts: that is not what the version before it says.
        let torn = round.is_unreadable || round.kind.is_full_state() && complaint.is_some();
        session.answer(round.kind, round.version, round.nonce, complaint);
        session.talk_mut(round.kind).tears(torn, round.is_list);
        self.let_saved_go();
    }

    fn resource(&mut self, round: &mut Round<C::Value>, index: usize, resource: &Resource) {
        let kind = round.kind;
        let Some(body) = &resource.body else {
            // As it was. It is there, so it is not missing.
            let name = normalise(&resource.name);
            if let Some(entry) = self.judged(round, &name) {
                entry.round = round.number;
                self.ends.renew(kind, &name, resource.ttl, round.now);
            }
            return;
        };
        let Some(name) = self.named(round, index, resource, body) else { return };
        let name = normalise(&name);
        let Self { codec, entries, authorities, sessions, changed, saved, ends, .. } = self;
        let entries = &mut entries[kind.index()];
        // A control plane may send more than was asked for; nobody reads it, so nobody judges it. What nobody wants any
        // more is judged until it has been told: it will not repeat itself to a wish that is renewed before.
        let usable = |entry: &&mut Entry<_>| is_active(authorities, entry, round.server);
        let Some(entry) = entries.get_mut(name.as_ref()).filter(usable) else { return };
        if entry.round == round.number {
            // Which one is meant nobody can tell; the first may be in use already.
            round.nameless(index, &format!(" ({name}): its name came before in this response"));
            return;
        }
        entry.round = round.number;
        let (was, before) = (entry.standing, entry.good.as_ref().map(|good| good.server));
        let session = &sessions[usize::from(round.server)];
        let features = session.features;
        let own = round.own_version(entry, &resource.version);
        let offer = Offer {
            version: own.as_ref().unwrap_or(&round.version),
            variant: session.variant,
            body,
            digest: digest(&body.bytes, features.trusted_xds_server),
            server: round.server,
            now: round.now,
            strict: round.strict,
        };
        let decode = || decoded(codec, kind, &name, body, features);
        let mut replaced = None;
        let taken = entry.offer(&offer, decode, |value| codec.is_empty(value));
        if let Ok(Taken::Same { .. } | Taken::New { .. }) = taken {
            ends.renew(kind, &name, resource.ttl, round.now);
        }
        let seen = match taken {
            Ok(Taken::Same { changed }) => changed,
            Ok(Taken::New { before }) => {
                replaced = Some(before);
                true
            }
            Ok(Taken::Emptied) => {
                if was != Standing::DoesNotExist {
                    tracing::warn!(%kind, ?name, reason = EMPTIED, "the control plane has no longer what is in use; the last good stays");
                }
                entry.missing(round.server, Standing::DoesNotExist, EMPTIED.to_owned(), false, round.now)
            }
            Err(refused) => {
                round.is_news |= refused.is_new;
                round.problems.add(&name, &refused.reason);
                refused.changed
            }
        };
        if was == Standing::DoesNotExist && before.is_some() && entry.standing == Standing::Acked {
            tracing::info!(%kind, ?name, "a deleted resource came back");
        }
        let outdated = before == Some(SAVED) && !entry.is_from(SAVED);
        let is_given = entry.giver().is_some();
        if (seen || outdated)
            && let Some((name, _)) = entries.get_key_value(name.as_ref())
        {
            let key = Key::new(kind, name.clone());
            let record = saved.as_mut().filter(|_| is_given).and_then(|saved| saved.remove(&key));
            let replaced =
                replaced.map(|before| Replaced { name: key.name.clone(), body: body.clone(), before, record });
            round.taken.extend(replaced);
            if seen {
                changed.push(key);
            }
        }
    }

    /// The name of a resource. One without, or of another type, is a problem that is noted.
    fn named<'r>(
        &mut self,
        round: &mut Round<C::Value>,
        index: usize,
        resource: &'r Resource,
        body: &'r Body,
    ) -> Option<Cow<'r, str>> {
        let kind = round.kind;
        let name = if resource.name.is_empty() {
            contained("the decoder", || Ok(self.codec.name(kind, body))).ok().flatten()
        } else {
            Some(Cow::Borrowed(resource.name.as_str()))
        };
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            round.is_unreadable = true;
            round.nameless(index, ": its name cannot be read");
            return None;
        };
        if body.type_url != kind.type_url() {
            // It is there, whatever it is.
            if let Some(entry) = self.judged(round, &normalise(&name)) {
                entry.round = round.number;
            }
            let (is, wanted) = (&body.type_url, kind.type_url());
            round.nameless(index, &format!(" ({name}): its type is {is:?} in a response of type {wanted:?}"));
            return None;
        }
        Some(name)
    }

    /// The entry of a name, if this control plane may say something about it.
    fn judged(&mut self, round: &Round<C::Value>, name: &str) -> Option<&mut Entry<C::Value>> {
        let entry = self.entries[round.kind.index()].get_mut(name)?;
        is_active(&self.authorities, entry, round.server).then_some(entry)
    }

    /// Delta: a resource that does not exist or was deleted.
    fn removed(&mut self, round: &Round<C::Value>, name: &str) {
        let name = normalise(name);
        self.is_missing(round, &name, Standing::DoesNotExist, None, true);
    }

    /// A resource that the control plane cannot give (xRFC TP3): known at once instead of by timer.
    fn resource_error(&mut self, round: &Round<C::Value>, error: ResourceError) {
        let name = normalise(&error.name);
        let reason = if error.message.is_empty() {
            "the control plane says that it cannot give it".to_owned()
        } else {
            cut(&error.message, MAX_REASON).to_owned()
        };
        let decisive = matches!(error.cause, Cause::NotFound | Cause::Denied);
        self.is_missing(round, &name, Standing::ReceivedError, Some(reason), decisive);
    }

    /// Resources that a full-state response left out. One that this control plane never gave may just be on its way:
    /// its timer decides.
    fn deletions(&mut self, round: &Round<C::Value>) {
        let talk = self.sessions[usize::from(round.server)].talk(round.kind);
        let left_out = |(name, entry): &(&Name, &Entry<_>)| {
            entry.round != round.number && entry.is_from(round.server) && talk.has_asked(name)
        };
        // Through the entries as they lie, for nearly none is left out.
        let left_out = self.entries[round.kind.index()].iter().filter(left_out);
        let mut names: Vec<Name> = left_out.map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        for name in names {
            self.is_missing(round, &name, Standing::DoesNotExist, None, true);
        }
    }

    fn is_missing(
        &mut self,
        round: &Round<C::Value>,
        name: &str,
        standing: Standing,
        reason: Option<String>,
        decisive: bool,
    ) {
        let kind = round.kind;
        let Some(entry) = self.judged(round, name) else { return };
        entry.round = round.number;
        let drop_good = decisive && (round.strict || entry.is_from(SAVED));
        let reason = reason.unwrap_or_else(|| match (&entry.good, drop_good) {
            (None, _) => "the control plane says that it does not exist".to_owned(),
            (Some(_), true) => "the control plane deleted it".to_owned(),
            (Some(_), false) => "the control plane deleted it; the last good one stays in use".to_owned(),
        });
        if entry.good.is_some() && !drop_good && entry.standing != standing {
            tracing::warn!(%kind, name, ?reason, "the control plane has no longer what is in use; the last good stays");
        }
        let changed = entry.missing(round.server, standing, reason, drop_good, round.now);
        if let Some((name, _)) = self.entries[kind.index()].get_key_value(name) {
            let key = Key::new(kind, name.clone());
            if decisive && let Some(saved) = &mut self.saved {
                saved.remove(&key);
            }
            if changed {
                self.changed.push(key);
            }
        }
    }
}

/// The value of a resource.
pub(super) fn decoded<C: Codec>(
    codec: &C,
    kind: Kind,
    name: &str,
    body: &Body,
    features: ServerFeatures,
) -> Result<C::Value, String> {
    contained("the decoder", || codec.decode(kind, name, body, features))
}

/// What tells bytes apart. The same ones mean less from a control plane that is not trusted (gRFC A81).
fn digest(bytes: &[u8], trusted: bool) -> Digest {
    let hash = XxHash3_128::oneshot(bytes) ^ u128::from(!trusted);
    [(hash >> 64) as u64, hash as u64]
}
