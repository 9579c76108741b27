//! Files that may never be read to their end: a pipe that nobody writes to, a file system that is away.
//!
//! A read can be left and not stopped, and each holds a thread of those that may block. So its user has one at a time: whoever
//! comes after its time was over waits for that one and begins none beside it.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// How long a read is waited for: a part of what connecting may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The reads of one user.
pub(crate) struct Reading<T>(Mutex<Option<JoinHandle<Result<T, String>>>>);

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

    async fn whole(&self, read: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
        let mut under_way = self.0.lock().await;
        // What one gave that was left is of then.
        if under_way.as_ref().is_some_and(JoinHandle::is_finished) {
            *under_way = None;
        }
        let read = under_way.get_or_insert_with(|| spawn_blocking(read)).await;
        *under_way = None;
        read.unwrap_or_else(|ended| Err(ended.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

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
}
