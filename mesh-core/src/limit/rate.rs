//! A local rate limit as policy describes it: a bucket, for whom it is, and what it answers.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::time::Instant;

use super::TokenBucket;
use crate::policy::{HeaderOps, LocalRateLimit, PerMillion};

/// A rate limit ready for requests (Envoy `local_ratelimit`).
#[derive(Debug)]
pub struct RateLimit {
    policy: LocalRateLimit,
    bucket: TokenBucket,
    unlimited: HeaderOps,
    refused: HeaderMap,
}

/// How a refused request is answered.
#[derive(Clone, Debug)]
pub struct RateLimited {
    /// HTTP status.
    pub status: StatusCode,
    /// gRPC status.
    pub grpc_status: i32,
    /// Headers of the answer.
    pub headers: HeaderMap,
}

impl RateLimit {
    /// With a full bucket. `None` without a bucket: then nothing is limited.
    pub fn new(policy: &LocalRateLimit, now: Instant) -> Option<Self> {
        let bucket = TokenBucket::new(policy.bucket.as_ref()?, now);
        let mut refused = HeaderMap::new();
        HeaderOps { write: policy.response_headers.clone(), remove: Vec::new() }.apply(&mut refused);
        let unlimited = HeaderOps { write: policy.request_headers.clone(), remove: Vec::new() };
        Some(Self { policy: policy.clone(), bucket, unlimited, refused })
    }

    /// Takes a token. A request that is let through without one is told so by its headers. `draw` gives a uniform number
    /// below 1,000,000.
    ///
    /// # Errors
    /// There is no token, and the limit is enforced: the answer that policy wants.
    pub fn pass(&self, headers: &mut HeaderMap, now: Instant, draw: impl Fn() -> u32) -> Result<(), RateLimited> {
        // Not drawn if the outcome is known.
        let hits = |share: PerMillion| share == PerMillion::ALL || (share != PerMillion::NONE && share.hit(draw()));
        if !hits(self.policy.enabled) || self.bucket.take(now) {
            return Ok(());
        }
        if !hits(self.policy.enforced) {
            self.unlimited.apply(headers);
            return Ok(());
        }
        Err(self.refused(now))
    }

    #[cold]
    fn refused(&self, now: Instant) -> RateLimited {
        const UNAVAILABLE: i32 = 14;
        const RESOURCE_EXHAUSTED: i32 = 8;
        let status = StatusCode::from_u16(self.policy.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
        let mut headers = self.refused.clone();
        if self.policy.quota_headers {
            self.tell(&mut headers, now);
        }
        if self.policy.retry_after && status == StatusCode::TOO_MANY_REQUESTS {
            headers.entry(header::RETRY_AFTER).or_insert_with(|| self.seconds(now).max(1).into());
        }
        let grpc_status = if self.policy.resource_exhausted { RESOURCE_EXHAUSTED } else { UNAVAILABLE };
        RateLimited { status, grpc_status, headers }
    }

    /// Whether answers say what is left ([`LocalRateLimit::quota_headers`]).
    pub fn tells(&self) -> bool {
        self.policy.quota_headers
    }

    /// Writes into an answer what is left, beside what others say of theirs: the bucket's size, the tokens in it, and the
    /// seconds until there is one.
    pub fn tell(&self, headers: &mut HeaderMap, now: Instant) {
        headers.append(&LIMIT, HeaderValue::from(self.size()));
        headers.append(&REMAINING, HeaderValue::from(self.bucket.tokens(now)));
        headers.append(&RESET, HeaderValue::from(self.seconds(now)));
    }

    /// Tokens left, and how many there may be.
    pub fn quota(&self, now: Instant) -> (u32, u32) {
        (self.bucket.tokens(now), self.size())
    }

    fn size(&self) -> u32 {
        self.policy.bucket.map_or(0, |bucket| bucket.max_tokens)
    }

    /// Whole seconds until there is a token. Envoy leaves the fraction out; but who waits as long as it was told is
    /// to find one.
    fn seconds(&self, now: Instant) -> u64 {
        let wait = self.bucket.wait(now);
        wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
    }
}

static LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
static REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
static RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
