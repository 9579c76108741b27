//! Limits that fail fast: a token bucket and the rate limit around it, client-side throttling by success rate, and a limit on requests in flight
//! that follows their latency; a count of what is in flight, and of those who wait, and whether waiting is worth while; and a pace for what need not happen, or be
//! told of, more often.
//!
//! Everything is pure: time and randomness are arguments, and no operation takes a lock. Refuses to know what is
//! limited and how a refusal is answered.

mod bucket;
mod count;
mod fail_fast;
mod gradient;
mod host;
mod pace;
mod rate;
mod samples;
mod seldom;
mod throttle;
mod waiters;
pub(crate) mod window;

pub use self::bucket::TokenBucket;
pub use self::count::Count;
pub use self::fail_fast::FailFast;
pub use self::gradient::Gradient;
pub use self::host::host;
pub use self::pace::Pace;
pub use self::rate::{RateLimit, RateLimited};
pub use self::seldom::Seldom;
pub use self::throttle::Throttle;
pub use self::waiters::Waiters;
