//! Files that may never be read to their end: a pipe that nobody writes to, a file system that is away.
//!
//! A read can be left and not stopped, and each holds a thread of those that may block. So its user has few: whoever comes after
//! the time of one was over waits for that one, and begins another only when it is so old that the file may be another by now.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Mutex;
use tokio::task::coop::unconstrained;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};

/// How long a read is waited for: a part of what connecting may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Beside one that is so old another is begun.
const OLD: Duration = Duration::from_secs(30);
/// But for so many.
const MOST: usize = 4;

/// The reads of one user.
pub(crate) struct Reading<T>(Mutex<Vec<UnderWay<T>>>);

struct UnderWay<T> {
    began: Instant,
    read: JoinHandle<Result<T, String>>,
}

impl<T> Default for Reading<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Send + 'static> Reading<T> {
    /// What `read` gives, on a thread that may block.
    ///
    /// # Errors
    /// It says so, or is not done in time.
    pub(crate) async fn of(&self, read: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
        let late = |_| Err(format!("it is not read within {PATIENCE:?}"));
        timeout(PATIENCE, self.whole(read)).await.unwrap_or_else(late)
    }

    /// What one gave that an earlier call began. Where there is none `read` begins, unless another one is under way. Waits for
    /// neither.
    pub(crate) fn beside(
        &self,
        read: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Option<Result<T, String>> {
        // Somebody waits for one.
        let mut all = self.0.try_lock().ok()?;
        let Some(ended) = all.iter().rposition(|one| one.read.is_finished()) else {
            begin(&mut all, read);
            return None;
        };
        let ended = unconstrained(all.remove(ended).read).now_or_never()?;
        Some(ended.unwrap_or_else(|ended| Err(ended.to_string())))
    }

    async fn whole(&self, read: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
        let mut all = self.0.lock().await;
        // What one gave that was left is of then.
        all.retain(|one| !one.read.is_finished());
        begin(&mut all, read);
        let newest = all.len() - 1;
        let read = (&mut all[newest].read).await;
        all.truncate(newest);
        read.unwrap_or_else(|ended| Err(ended.to_string()))
    }
}

/// Begins one unless there is one, of those that are not too old or are as many as there may be.
fn begin<T: Send + 'static>(all: &mut Vec<UnderWay<T>>, read: impl FnOnce() -> Result<T, String> + Send + 'static) {
    let is_wanted = all.last().is_none_or(|newest| newest.began.elapsed() >= OLD);
    if is_wanted && all.len() < MOST {
        all.push(UnderWay { began: Instant::now(), read: spawn_blocking(read) });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_read_that_does_not_end_is_left_and_none_is_begun_beside_it() {
        let reading = Reading::default();
        let (end, ends) = mpsc::channel::<()>();
        let stuck = reading.of(move || Ok(ends.recv().map_or("left", |()| "stuck")));
        let (late, ()) = tokio::join!(stuck, advance(PATIENCE));
        assert_eq!(late, Err("it is not read within 3s".to_owned()));
        let (late, ()) = tokio::join!(reading.of(|| panic!("beside the other")), advance(PATIENCE));
        assert!(late.is_err());
        // Whoever waits for it as it ends has it; one that has ended unseen is of the past.
        let waiting = reading.of(|| panic!("beside the other"));
        let (read, _) = tokio::join!(waiting, async { end.send(()) });
        assert_eq!(read, Ok("stuck"));
        assert_eq!(reading.of(|| Ok("new")).await, Ok("new"));
        assert_eq!(reading.of(|| Err("none".to_owned())).await, Err("none".to_owned()));
    }

    /// What was in its way may be gone, and it still waits: for a pipe that has another one in its place by now.
    #[tokio::test(start_paused = true)]
    async fn beside_reads_that_are_old_others_begin_and_few() {
        let reading = Reading::default();
        let (end, ends) = mpsc::channel::<()>();
        let ends = Arc::new(parking_lot::Mutex::new(ends));
        for _ in 0..MOST - 1 {
            let ends = ends.clone();
            let stuck = reading.of(move || Ok(ends.lock().recv().map_or("left", |()| "stuck")));
            let (late, ()) = tokio::join!(stuck, advance(PATIENCE));
            assert!(late.is_err());
            let (late, ()) = tokio::join!(reading.of(|| panic!("beside one that is not old")), advance(PATIENCE));
            assert!(late.is_err());
            advance(OLD).await;
        }
        assert_eq!(reading.of(|| Ok("new")).await, Ok("new"));
        let last = ends.clone();
        let stuck = reading.of(move || Ok(last.lock().recv().map_or("left", |()| "stuck")));
        let (late, ()) = tokio::join!(stuck, advance(PATIENCE));
        assert!(late.is_err());
        advance(OLD).await;
        let (late, ()) = tokio::join!(reading.of(|| panic!("more than there may be")), advance(PATIENCE));
        assert!(late.is_err());
        drop(end);
    }

    #[tokio::test]
    async fn who_does_not_wait_has_what_was_begun_before() {
        let reading = Reading::default();
        let (end, ends) = mpsc::channel::<()>();
        assert_eq!(reading.beside(move || Ok(ends.recv().map_or("left", |()| "first"))), None);
        assert_eq!(reading.beside(|| panic!("beside the other")), None);
        end.send(()).unwrap();
        let first = loop {
            match reading.beside(|| panic!("the first has not been heard")) {
                Some(read) => break read,
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!(first, Ok("first"));
    }
}
