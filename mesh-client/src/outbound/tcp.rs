//! The way of one raw connection: read [`connect`].
//!
//! ```text
//! connect   destination → caller's deadline → router → cluster
//! dial      endpoint → room → TCP, TLS ‖ wire; the next endpoint if this one cannot be reached
//! ```
//!
//! Refuses to know what is sent over it.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::balance::Pick;
use mesh_core::error::Fault;
use mesh_core::id::Target;
use mesh_core::telemetry::RequestLabels;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::deadline::Deadline;
use super::trace::Trace;
use crate::cluster::{Attempt, Backend, Cluster, Endpoint, Members};
use crate::connect::{Full, PER_HOST};
use crate::destination::{Destination, Destinations};
use crate::env::Env;
use crate::error::{Cause, Error};
use crate::router::Raw;
use crate::tcp::{Held, TcpConnection};

/// Connects to an endpoint of a destination.
pub(crate) async fn connect(
    env: &Arc<Env>,
    destinations: &Arc<Destinations>,
    target: &Target,
) -> Result<TcpConnection, Error> {
    let destination = match destinations.to(target) {
        Ok(destination) => destination,
        Err(cause) => return Err(Error::new(target.as_str(), cause, 0)),
    };
    destination.touch(Instant::now(), env);
    let served = Trace::begin();
    let caller = Deadline::none().caller(served.deadline());
    let (tried, full) = (SmallVec::new(), SmallVec::new());
    let source = served.source();
    let mut dial = Dial { env, destination: &destination, source, at: None, tried, before: 0, silent: false, full };
    match caller.bound(dial.connect(&caller)).await {
        Ok(connection) => Ok(connection),
        Err(cause) => {
            let error = Error::new(target.as_str(), cause, (dial.before + dial.tried.len()) as u32);
            // As in Istio: what could not be connected was opened and closed at once, and the flag says why.
            let series = env.metrics.tcp(&dial.labels(), error.code().response_flag());
            series.open();
            series.close();
            Err(error)
        }
    }
}

/// A raw connection under way.
struct Dial<'d> {
    env: &'d Arc<Env>,
    destination: &'d Arc<Destination>,
    // Whoever it is made for, if that is known.
    source: Option<IpAddr>,
    // How far it got: for the labels of a failure.
    at: Option<(Arc<Cluster>, Arc<Members>)>,
    // Indices of the members tried.
    tried: SmallVec<[usize; 4]>,
    // How many of other parts of an aggregate were.
    before: usize,
    // Connecting to one of them took all the time there was: others near it may be out of reach as well.
    silent: bool,
    // Those that have as many connections as they may.
    full: SmallVec<[usize; 4]>,
}

impl Dial<'_> {
    async fn connect(&mut self, caller: &Deadline) -> Result<TcpConnection, Cause> {
        let (env, wait) = (self.env, self.env.limits.config_wait);
        let wait = caller.at().map_or(wait, |at| wait.min(at.saturating_duration_since(Instant::now())));
        let router = self.destination.router(wait).await?;
        let authority = self.destination.target().host_port();
        let Raw { mut part, hash, attempts, idle } = router.choose_tcp(authority, self.source, env)?;
        part.look_again(None, env);
        let mut left = Vec::new();
        loop {
            let cluster = part.cluster;
            let others = || part.has_next(&left, env);
            let cause = match self.within(cluster, hash, attempts, caller, others).await {
                Ok(held) => return Ok(TcpConnection::new(held, Arc::clone(cluster), self.destination.clone(), idle)),
                Err(cause) => cause,
            };
            // As a request does that a part of an aggregate has nobody to take.
            let next = cause.met_nobody().then(|| part.next(&left, env)).flatten();
            let Some(next) = next else { return Err(cause) };
            left.push(cluster);
            part = next;
            self.before += std::mem::take(&mut self.tried).len();
            self.full.clear();
            self.silent = false;
        }
    }

    /// Connects within one cluster; `others` may have it if this one does not.
    async fn within(
        &mut self,
        cluster: &Backend,
        hash: Option<u64>,
        attempts: u32,
        caller: &Deadline,
        others: impl Fn() -> bool,
    ) -> Result<Held, Cause> {
        cluster.resolved().await;
        let members = cluster.members();
        self.at = Some((Arc::clone(cluster), members.clone()));
        members.check_drops(cluster, self.env)?;
        let mut failed = None;
        while (self.tried.len() as u64) < u64::from(attempts) {
            caller.check(Instant::now())?;
            let Some((index, endpoint, mut attempt)) = self.begin(cluster, &members, hash) else { break };
            self.tried.push(index);
            if members.ready.passes_over() {
                cluster.look_again(&members, None, Some(&endpoint), None, self.env);
            }
            // Counted before connecting, so that a slow endpoint repels further connections.
            attempt.report(members.issue(index));
            match self.one(cluster, &members, endpoint, attempt).await {
                Ok(held) => return Ok(held),
                // Nothing was sent, so another one may have it.
                Err(cause) if cause.is_unreached() => {
                    self.silent |= matches!(cause, Cause::ConnectTimeout { .. });
                    failed = Some(cause);
                    // As a request leaves a part.
                    if self.silent && others() && !self.has_elsewhere(cluster, &members) {
                        break;
                    }
                }
                // Others may have room; it was not tried.
                Err(cause @ Cause::Breaker { limit: PER_HOST, .. }) => {
                    self.full.extend(self.tried.pop());
                    failed = Some(cause);
                }
                Err(cause) => return Err(cause),
            }
        }
        Err(failed.unwrap_or_else(|| cluster.no_endpoint(&members)))
    }

    /// Whether there is a place to go but those that were tried.
    fn has_elsewhere(&self, cluster: &Cluster, members: &Members) -> bool {
        let now = self.env.since_epoch(Instant::now());
        let pick = Pick { now, tried: &self.tried, hash: None, away_from: &self.tried };
        members.ready.has_elsewhere(&pick, cluster.policy().connection.connect_timeout)
    }

    /// Picks an endpoint that was not tried yet, of another zone than those that did not answer if there is one, and counts
    /// the connection in. One that is on probation takes one at a time: others go on to another endpoint.
    fn begin(
        &self,
        cluster: &Cluster,
        members: &Members,
        hash: Option<u64>,
    ) -> Option<(usize, Arc<Endpoint>, Attempt)> {
        let mut passed: SmallVec<[usize; 4]> = self.tried.iter().chain(&self.full).copied().collect();
        loop {
            let now = Instant::now();
            let began = self.env.since_epoch(now);
            let away_from: &[usize] = if self.silent { &self.tried } else { &[] };
            let pick = Pick { now: began, tried: &passed, hash, away_from };
            let mut draw = |below| self.env.draw(below);
            let (mut index, _) = members.ready.pick(&pick, &mut draw)?;
            if passed.contains(&index) {
                // All of its priority were.
                (index, _) = members.ready.pick(&Pick { away_from: &[index], ..pick }, &mut draw)?;
            }
            if passed.contains(&index) {
                return None;
            }
            let endpoint = cluster.endpoint(members, index, self.env);
            if let Some(attempt) = endpoint.begin(now, began) {
                return Some((index, endpoint, attempt));
            }
            passed.push(index);
        }
    }

    /// Connects to one endpoint, the last that was tried.
    async fn one(
        &self,
        cluster: &Cluster,
        members: &Members,
        endpoint: Arc<Endpoint>,
        mut attempt: Attempt,
    ) -> Result<Held, Cause> {
        let dialled = async {
            // Limits of connections are for it, and none of requests, as with Envoy's `tcp_proxy`.
            let room = cluster.admission().room(false);
            let open = endpoint.pool().room(room).map_err(|Full { limit, allowed }| Cause::Breaker {
                cluster: cluster.policy().name.clone(),
                limit,
                allowed,
            })?;
            let _waiting = cluster.wait(false, 0)?;
            let (io, peer) = endpoint.pool().dial_raw().await?;
            Ok::<_, Cause>((open, io, peer))
        };
        match dialled.await {
            Ok((open, io, peer)) => {
                attempt.connected(true);
                attempt.established();
                let index = *self.tried.last().expect("the endpoint is among those tried");
                let policy = members.ready.candidates().policy(index).1;
                let series = endpoint.tcp_series(policy, cluster, self.env);
                Ok(Held { io, peer, series, endpoint, attempt, open })
            }
            Err(cause) => {
                if cause.is_unreached() {
                    attempt.connected(false);
                    attempt.failed();
                } else {
                    attempt.held_back();
                }
                Err(cause)
            }
        }
    }

    /// The labels of a failure.
    fn labels(&self) -> RequestLabels {
        match &self.at {
            Some((cluster, members)) => cluster.labels(self.tried.last().map(|index| (&**members, *index))),
            None => self.env.labels(self.destination.target().host().to_owned(), String::new(), String::new()),
        }
    }
}
