//! `jwt_token_file` call credentials (gRFC A97): a bearer token out of a file, cached until shortly before
//! it ends.
//!
//! ```text
//! no token ──read──▶ cached ──exp − 90 s──▶ cached, read again beside ──exp − 30 s──▶ no token
//!     └─ a read that fails is repeated after 1 s … 120 s; until then every RPC fails as it did ─┘
//! ```
//! Nothing here checks the signature: that is the control plane's part.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::HeaderValue;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;
use tonic::Status;
use zeroize::Zeroizing;

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::secret::{Reading, read_now};

/// A token is not sent in its last seconds: it must still be good when it arrives.
const MARGIN: u64 = 30;
/// How long before that the file is read again.
const EARLY: u64 = 60;
/// Waits after a failed read, as between connections (gRPC's connection back-off).
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

/// The token of one file, shared by all connections to a server.
pub(super) struct JwtTokenFile {
    path: String,
    clock: Clock,
    reading: Reading<Zeroizing<Vec<u8>>>,
    cache: Mutex<Cache>,
}

struct Cache {
    held: Option<Held>,
    failed: Option<Failed>,
    backoff: Backoff,
}

/// A token that was read.
struct Held {
    header: HeaderValue,
    /// End of its life, seconds since the Unix epoch.
    exp: u64,
}

/// The last read, if it failed.
struct Failed {
    status: Status,
    retry_at: Instant,
}

impl JwtTokenFile {
    pub(super) fn new(path: String, clock: Clock) -> Self {
        let backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        Self {
            path,
            clock,
            reading: Reading::default(),
            cache: Mutex::new(Cache { held: None, failed: None, backoff }),
        }
    }

    /// The value of `authorization` for an RPC that begins now.
    ///
    /// # Errors
    /// There is no usable token: `UNAVAILABLE` if the file cannot be read, `UNAUTHENTICATED` if what it
    /// holds is not a token whose end is known and ahead.
    pub(super) async fn header(&self) -> Result<HeaderValue, Status> {
        let now = (self.clock)();
        if let Some(read) = self.due(now).await {
            let mut cache = self.cache.lock();
            // Who waited at the same time may have noted the same.
            if cache.is_due(now, Instant::now()) {
                cache.take(self.held(read, now));
            }
        }
        self.cache.lock().answer(now)
    }

    /// What the file says, where it is time to read it and there is an answer. No lock is held meanwhile: who waits may be on a
    /// runtime that stands still, with others on theirs.
    async fn due(&self, now: u64) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        let is_good = {
            let cache = self.cache.lock();
            if !cache.is_due(now, Instant::now()) {
                return None;
            }
            cache.good(now).is_some()
        };
        let path = self.path.clone();
        let read = move || read_now(path).map(|(text, _)| text).map_err(|e| e.to_string());
        // Nobody waits for another one while that of before is good.
        if is_good { self.reading.beside(read) } else { Some(self.reading.of(read).await) }
    }

    fn held(&self, read: Result<Zeroizing<Vec<u8>>, String>, now: u64) -> Result<Held, Status> {
        let text = read.map_err(|e| Status::unavailable(format!("token file {} cannot be read: {e}", self.path)))?;
        Held::new(String::from_utf8_lossy(&text).trim(), now)
            .map_err(|e| Status::unauthenticated(format!("token file {}: {e}", self.path)))
    }
}

impl Cache {
    /// Whether the file is to be read now.
    fn is_due(&self, now: u64, at: Instant) -> bool {
        let wanted = self.held.as_ref().is_none_or(|held| now.saturating_add(MARGIN + EARLY) >= held.exp);
        wanted && self.failed.as_ref().is_none_or(|failed| at >= failed.retry_at)
    }

    /// Notes a read. One that failed leaves the token of before.
    fn take(&mut self, read: Result<Held, Status>) {
        match read {
            Ok(held) => {
                self.backoff.reset();
                (self.held, self.failed) = (Some(held), None);
            }
            Err(status) => {
                tracing::warn!(error = status.message(), "no new token for the control plane");
                let retry_at = Instant::now() + self.backoff.next(fastrand::f64());
                self.failed = Some(Failed { status, retry_at });
            }
        }
    }

    /// A token that can be sent.
    fn good(&self, now: u64) -> Option<&Held> {
        self.held.as_ref().filter(|held| now.saturating_add(MARGIN) < held.exp)
    }

    fn answer(&self, now: u64) -> Result<HeaderValue, Status> {
        match (self.good(now), &self.failed) {
            (Some(held), _) => Ok(held.header.clone()),
            (_, Some(failed)) => Err(failed.status.clone()),
            _ => Err(Status::unauthenticated("the token has ended")),
        }
    }
}

impl Held {
    fn new(token: &str, now: u64) -> Result<Self, InvalidToken> {
        let exp = expiry(token)?;
        if now.saturating_add(MARGIN) >= exp {
            return Err(InvalidToken("it has ended, or does so in the next 30 s"));
        }
        let unfit = InvalidToken("it holds characters that cannot be sent");
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(unfit);
        }
        let mut header = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| unfit)?;
        header.set_sensitive(true);
        Ok(Self { header, exp })
    }
}

/// The `exp` claim of a JSON Web Token (RFC 7519), seconds since the Unix epoch.
fn expiry(token: &str) -> Result<u64, InvalidToken> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(InvalidToken("it is not a JSON Web Token of three parts"));
    };
    let payload = BASE64_URL_SAFE_NO_PAD
        .decode(payload.trim_end_matches('='))
        .map_err(|_| InvalidToken("its claims are not base64url"))?;
    let claims: Value = serde_json::from_slice(&payload).map_err(|_| InvalidToken("its claims are not JSON"))?;
    let exp = claims.get("exp").and_then(Value::as_f64).ok_or(InvalidToken("its claims have no number exp"))?;
    // A float becomes the nearest integer in range: no number of a hostile file can do harm here.
    Ok(exp as u64)
}

/// Why a file's text is no usable token. The text itself is never shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
struct InvalidToken(&'static str);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::FutureExt;
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    /// A token that ends at `exp`, told apart by its signature.
    fn token(exp: &str, signature: &str) -> String {
        let claims = BASE64_URL_SAFE_NO_PAD.encode(format!(r#"{{"sub":"me","exp":{exp}}}"#));
        format!("e30.{claims}.{signature}")
    }

    /// A token file and a clock that begins at 1000.
    struct World {
        file: tempfile::NamedTempFile,
        now: Arc<AtomicU64>,
        token: JwtTokenFile,
    }

    impl World {
        fn new() -> Self {
            let file = tempfile::NamedTempFile::new().unwrap();
            let now = Arc::new(AtomicU64::new(1_000));
            let clock = {
                let now = now.clone();
                Arc::new(move || now.load(Ordering::Relaxed))
            };
            let token = JwtTokenFile::new(file.path().to_str().unwrap().to_owned(), clock);
            Self { file, now, token }
        }

        fn write(&self, text: &str) {
            std::fs::write(self.file.path(), text).unwrap();
        }

        async fn at(&self, now: u64) -> Result<String, Code> {
            self.now.store(now, Ordering::Relaxed);
            let header = self.token.header().await.map_err(|status| status.code())?;
            assert!(header.is_sensitive());
            Ok(header.to_str().unwrap().rsplit('.').next().unwrap().to_owned())
        }
    }

    #[tokio::test]
    async fn b4_a_token_is_cached_until_a_minute_before_its_last_half_minute() {
        let world = World::new();
        world.write(&format!("{}\n", token("2000", "first")));
        assert_eq!(world.at(1_000).await.unwrap(), "first");
        world.write(&token("3000.5", "second"));
        assert_eq!(world.at(1_909).await.unwrap(), "first", "cached");
        // Read again 90 s before the end, and nobody waits for that.
        while world.at(1_910).await.unwrap() != "second" {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn b4_the_old_token_is_used_while_the_file_is_bad_until_30_seconds_before_its_end() {
        let world = World::new();
        world.write(&token("2000", "first"));
        assert_eq!(world.at(1_000).await.unwrap(), "first");
        world.write("rubbish");
        assert_eq!(world.at(1_969).await.unwrap(), "first");
        assert_eq!(world.at(1_970).await.unwrap_err(), Code::Unauthenticated);
        world.write(&token("9000", "second"));
        assert_eq!(world.at(1_971).await.unwrap_err(), Code::Unauthenticated, "not before the back-off is over");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(world.at(1_972).await.unwrap(), "second");
    }

    #[tokio::test(start_paused = true)]
    async fn b4_an_unreadable_file_is_unavailable_and_a_token_without_end_unauthenticated() {
        let world = World::new();
        let path = world.file.path().to_owned();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(world.at(1_000).await.unwrap_err(), Code::Unavailable);
        let claims = |json: &str| format!("e30.{}.s", BASE64_URL_SAFE_NO_PAD.encode(json));
        let texts = ["", "a.b", "a.b.c.d", "e30.!.s", &claims("[]"), &claims("{}"), &claims(r#"{"exp":"1"}"#)];
        let ended = [token("1029", "s"), token("-5", "s"), format!("{}\u{e9}", token("9000", "s"))];
        for text in texts.into_iter().chain(ended.iter().map(String::as_str)) {
            world.write(text);
            tokio::time::advance(BACKOFF.1).await;
            assert_eq!(world.at(1_000).await.unwrap_err(), Code::Unauthenticated, "{text:?}");
        }
        world.write(&token("1e300", "s"));
        tokio::time::advance(BACKOFF.1).await;
        assert_eq!(world.at(1_000).await.unwrap(), "s", "control");
    }

    #[cfg(unix)]
    #[tokio::test(start_paused = true)]
    async fn b4_a_good_token_waits_for_no_file() {
        let world = World::new();
        world.write(&token("2000", "first"));
        assert_eq!(world.at(1_000).await.unwrap(), "first");
        let pipe = crate::test_plane::Pipe::new();
        std::fs::remove_file(world.file.path()).unwrap();
        std::os::unix::fs::symlink(&pipe.path, world.file.path()).unwrap();
        assert_eq!(world.at(1_910).now_or_never().expect("nobody waits").unwrap(), "first");
        let (late, ()) = tokio::join!(world.at(1_970), tokio::time::advance(Duration::from_secs(3)));
        assert_eq!(late.unwrap_err(), Code::Unavailable, "control");
    }

    #[cfg(unix)]
    #[tokio::test(start_paused = true)]
    async fn b4_who_waits_on_a_runtime_that_stands_still_holds_up_no_other() {
        let world = World::new();
        let (pipe, link) = (crate::test_plane::Pipe::new(), tempfile::tempdir().unwrap());
        let path = link.path().join("token");
        std::os::unix::fs::symlink(&pipe.path, &path).unwrap();
        let token_file = JwtTokenFile::new(path.to_str().unwrap().to_owned(), Arc::new(|| 1_000));
        let mut standing = std::pin::pin!(token_file.header());
        assert!(standing.as_mut().now_or_never().is_none());
        // Waits for its reader.
        let at = pipe.path.clone();
        let writer = tokio::task::spawn_blocking(move || std::fs::File::options().write(true).open(at));
        let writer = writer.await.unwrap().unwrap();
        world.write(&token("2000", "good"));
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(world.file.path(), &path).unwrap();
        let other = tokio::time::timeout(Duration::from_secs(60), token_file.header());
        let (other, ()) = tokio::join!(other, async { drop(writer) });
        assert!(other.expect("in time").unwrap().to_str().unwrap().ends_with(".good"));
        assert!(standing.await.is_ok(), "what is known since is its answer too");
    }

    #[cfg(unix)]
    #[tokio::test(start_paused = true)]
    async fn b4_a_file_that_is_not_read_to_its_end_is_unavailable_within_seconds() {
        let pipe = crate::test_plane::Pipe::new();
        let of = |path: &str| JwtTokenFile::new(path.to_owned(), Arc::new(|| 1_000));
        let (stuck, endless) = (of(&pipe.path), of("/dev/zero"));
        let (status, ()) = tokio::join!(stuck.header(), tokio::time::advance(Duration::from_secs(3)));
        let status = status.unwrap_err();
        assert!(status.code() == Code::Unavailable && status.message().contains("not read within 3s"), "{status}");
        assert_eq!(stuck.header().await.unwrap_err().code(), Code::Unavailable, "nobody waits for it");
        let status = endless.header().await.unwrap_err();
        assert!(status.code() == Code::Unavailable && status.message().contains("larger than 4 MiB"), "{status}");
    }

    #[test]
    fn the_corpus_is_read_or_refused() {
        let mut files = 0;
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/jwt")).unwrap() {
            let path = entry.unwrap().path();
            let bad = path.file_name().unwrap().to_str().unwrap().starts_with("bad");
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            assert_eq!(Held::new(text.trim(), 1_000).is_err(), bad, "{path:?}");
            files += 1;
        }
        assert!(files >= 8, "{files}");
    }

    proptest! {
        #[test]
        fn no_text_of_a_token_file_makes_the_process_panic(text in any::<String>(), claims in any::<Vec<u8>>()) {
            let _ = Held::new(&text, 1_000);
            let _ = Held::new(&format!("e30.{}.s", BASE64_URL_SAFE_NO_PAD.encode(claims)), u64::MAX);
        }
    }
}
