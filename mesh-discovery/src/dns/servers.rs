//! The name servers, asked in the order in which they are written, as glibc, Go and c-ares do: the first one alone, and the next
//! one only where it is silent or in trouble. What one says of a name (that there is none, too) is the answer.
//!
//! hickory would ask two at once and take whichever answer comes first: that of a public server, which knows no internal name.
//! Where it asks one after another it ends at a failure, and its time is over at the first silence. So it knows one server at
//! a time here.
//!
//! One that is silent costs its whole time: where names are searched, more than anybody waits. So it is remembered for a while, and
//! asked first still, but not waited for.
//!
//! Refuses to know what is kept, and where else a name may be looked for.

use std::iter::repeat_n;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::CNAME;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use mesh_core::source::ResolveError;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

/// How long one that was silent is not waited for, but for one query after that.
const REMEMBERED: Duration = Duration::from_secs(30);
/// What it has instead: many times of what one takes that is there. What it says within that counts, for it may know names
/// that the others do not.
const A_MOMENT: Duration = Duration::from_millis(250);
/// A query that is given up has met silence if it waited so long; a request gives up after a second.
const IS_LONG: Duration = Duration::from_millis(800);
/// Aliases that are followed to see whether they come to an end.
const MANY: usize = 16;

/// The name servers of one resolver.
pub(super) struct Servers {
    each: Vec<Server>,
    attempts: usize,
    /// With whatever is asked on the way: aliases, and over TCP what is too long for UDP.
    patience: Duration,
}

struct Server {
    resolver: TokioResolver,
    ear: Mutex<Ear>,
}

/// What was heard of a server.
#[derive(Default)]
struct Ear {
    /// When it answered last, whatever it said.
    heard: Option<Instant>,
    /// When a query met silence that began after that.
    silent: Option<Instant>,
}

/// A query that waits; dropped, it met silence.
struct Waiting<'s> {
    ear: &'s Mutex<Ear>,
    began: Instant,
}

impl Servers {
    /// Each of `servers` is asked as `options` say.
    ///
    /// # Errors
    /// hickory cannot make a resolver of them.
    pub(super) fn new(servers: Vec<NameServerConfig>, options: &ResolverOpts) -> Result<Self, NetError> {
        let attempts = options.attempts.max(1);
        let times = u32::try_from(attempts.saturating_mul(servers.len())).unwrap_or(u32::MAX);
        let patience = options.timeout.saturating_mul(times).min(super::FOREVER);
        let alone = |server| {
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            let mut options = options.clone();
            // Before it is asked once more the others are.
            options.attempts = 0;
            let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.with_options(options).build().map(|resolver| Server { resolver, ear: Mutex::default() })
        };
        let each = servers.into_iter().map(alone).collect::<Result<_, _>>()?;
        Ok(Self { each, attempts, patience })
    }

    /// What the first of them that is not in trouble says of one complete name, with the aliases on the way.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Result<Lookup, ResolveError> {
        timeout(self.patience, self.in_order(name, kind)).await.unwrap_or(Err(ResolveError::Timeout))
    }

    async fn in_order(&self, name: &Name, kind: RecordType) -> Result<Lookup, ResolveError> {
        let mut failed = ResolveError::Timeout;
        for server in repeat_n(&self.each, self.attempts).flatten() {
            // Where all are silent there is nobody else to be asked.
            let others = self.each.iter().any(|other| other.ear.lock().silent.is_none());
            let answer = if others && server.ear.lock().is_silent(Instant::now()) {
                timeout(A_MOMENT, server.ask(name, kind)).await.unwrap_or(Err(ResolveError::Timeout))
            } else {
                server.ask(name, kind).await
            };
            match answer {
                Err(failure @ (ResolveError::Timeout | ResolveError::Failed(_))) => failed = failure,
                answer => return answer,
            }
        }
        Err(failed)
    }
}

impl Server {
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Lookup, ResolveError> {
        let waiting = Waiting { ear: &self.ear, began: Instant::now() };
        let answer = self.resolver.lookup(name.clone(), kind).await;
        if let Err(NetError::Timeout) = answer {
            self.ear.lock().missed(waiting.began, Instant::now());
            return Err(ResolveError::Timeout);
        }
        self.ear.lock().hear(Instant::now());
        let none = match answer {
            Ok(found) => return Ok(found),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => none,
            Err(error) => return Err(ResolveError::Failed(error.to_string().into())),
        };
        match none.response_code {
            ResponseCode::NXDomain => Err(ResolveError::NotFound),
            // One that knows no more than who to ask, and asks nobody (a lame delegation): it says nothing of the name.
            ResponseCode::NoError if none.soa.is_none() && none.ns.is_some() => {
                Err(ResolveError::Failed("the server refers to others and does not ask them".into()))
            }
            ResponseCode::NoError if self.is_without_end(name, &none).await => {
                Err(ResolveError::Failed(format!("the aliases of {name} go round, or are too many").into()))
            }
            ResponseCode::NoError => Err(ResolveError::NoRecords),
            code => Err(ResolveError::Failed(code.to_string().into())),
        }
    }

    /// Whether nobody knows what the name stands for: hickory follows a few aliases, and says then that there are no records. Who
    /// means that adds the zone's SOA record (RFC 2308), mostly; where there is none the aliases are looked at once more. Some say
    /// so of a name that has an alias, for they know only one kind of records (RFC 4074).
    async fn is_without_end(&self, name: &Name, none: &NoRecords) -> bool {
        let Query { name: last, .. } = &*none.query;
        if none.soa.is_some() {
            return false;
        }
        let mut next = last.clone();
        for _ in 0..MANY {
            match self.alias_of(&next).await {
                None => return false,
                // The end of those that were followed has another one.
                Some(_) if last != name => return true,
                Some(target) => next = target,
            }
        }
        true
    }

    async fn alias_of(&self, name: &Name) -> Option<Name> {
        let found = self.resolver.lookup(name.clone(), RecordType::CNAME).await.ok()?;
        found.answers().iter().find_map(|record| match &record.data {
            RData::CNAME(CNAME(target)) if record.name == *name => Some(target.clone()),
            _ => None,
        })
    }
}

impl Ear {
    /// Whether nobody is to wait for it who may ask others. Now and then somebody does, and finds out.
    fn is_silent(&mut self, now: Instant) -> bool {
        let is_silent = self.silent.is_some_and(|since| now < since + REMEMBERED);
        if !is_silent && self.silent.is_some() {
            // The others do not meanwhile.
            self.silent = Some(now);
        }
        is_silent
    }

    /// It answered.
    fn hear(&mut self, now: Instant) {
        *self = Self { heard: Some(now), silent: None };
    }

    /// A query of the time `began` was not answered. Whoever answered others meanwhile is slow with one name, and not silent.
    fn missed(&mut self, began: Instant, now: Instant) {
        if self.heard.is_none_or(|heard| heard < began) {
            self.silent = Some(now);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        if now - self.began >= IS_LONG {
            self.ear.lock().missed(self.began, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_answers_nobody_is_silent_for_a_while_and_then_one_asks_in_earnest() {
        let (mut ear, now) = (Ear::default(), Instant::now());
        assert!(!ear.is_silent(now));
        ear.missed(now, now + SECOND);
        assert!(ear.is_silent(now + SECOND) && ear.is_silent(now + REMEMBERED));
        let later = now + SECOND + REMEMBERED;
        assert!(!ear.is_silent(later), "one finds out");
        assert!(ear.is_silent(later) && ear.is_silent(later + REMEMBERED - SECOND), "the others do not wait for it");
        ear.hear(later);
        assert!(!ear.is_silent(later));
    }

    #[test]
    fn who_answered_others_meanwhile_is_slow_with_one_name() {
        let (mut ear, now) = (Ear::default(), Instant::now());
        ear.hear(now + SECOND);
        ear.missed(now, now + 2 * SECOND);
        assert!(!ear.is_silent(now + 2 * SECOND));
        // The control.
        ear.missed(now + 2 * SECOND, now + 3 * SECOND);
        assert!(ear.is_silent(now + 3 * SECOND));
    }
}
