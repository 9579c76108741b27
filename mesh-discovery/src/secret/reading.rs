//! Files that may never be read to their end: a pipe that nobody writes to, a file system that is away.
//!
//! A read can be left and not stopped, and each holds a thread of those that may block, for which a runtime waits that is dropped.
//! So its user has few: whoever comes after the time of one was over waits for that one, and begins another only when it is so old
//! that the file may be another by now.
//!
//! What one gives lies beside the users and not with the one that began it: who is on a runtime that stands still, and is asked for
//! nothing any more, holds up nobody else.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

/// How long a read is waited for: a part of what connecting may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Beside one that is so old another is begun.
const OLD: Duration = Duration::from_secs(30);
/// But for so many, of all files of one user.
const MOST: usize = 4;

/// The reads of one user. Who reads different files tells them apart by their name `K`.
pub(crate) struct Reading<T, K = ()>(Mutex<Vec<UnderWay<T, K>>>);

struct UnderWay<T, K> {
    file: K,
    read: Arc<Read<T>>,
    /// A later one has been heard: what this one gives is of before.
    is_past: bool,
}

/// One read and what becomes of it.
struct Read<T> {
    began: Instant,
    state: Mutex<State<T>>,
    ended: Notify,
}

struct State<T> {
    /// Who began it does not wait for it.
    is_left: bool,
    has_ended: bool,
    /// Until somebody takes it.
    outcome: Option<Result<T, String>>,
}

/// A read as who began it has it. Dropped, it is left to whoever comes.
struct Own<T>(Arc<Read<T>>);

/// There is another one of the file, or there are as many of other files as there may be.
struct NotBegun<T, F> {
    other: Option<Arc<Read<T>>>,
    read: F,
}

/// A read as its thread has it, which may panic, or never begin where the runtime ends.
struct Ends<T>(Arc<Read<T>>);

impl<T, K> Default for Reading<T, K> {
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
        self.of_file((), read).await
    }

    /// What one gave that an earlier call began. Where there is none `read` begins, unless another one is under way. Waits for
    /// neither.
    pub(crate) fn beside(
        &self,
        read: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Option<Result<T, String>> {
        let mut all = self.0.lock();
        // Somebody waits for the others that have ended, or what they gave is of the past.
        all.retain(|one| !one.read.has_ended() || (!one.is_past && one.read.is_free()));
        let Some(ended) = all.iter().rfind(|one| one.read.has_ended()).map(|one| one.read.clone()) else {
            // Nobody waits for it.
            drop(begin(&mut all, &(), read).ok());
            return None;
        };
        let outcome = ended.take_free();
        put_away(&mut all, &(), &ended);
        outcome
    }
}

impl<T: Send + 'static, K: Clone + PartialEq> Reading<T, K> {
    /// What `read` gives of this file, on a thread that may block.
    ///
    /// # Errors
    /// It says so, or is not done in time, or too many others are not.
    pub(crate) async fn of_file(
        &self,
        file: K,
        read: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let late = |_| Err(format!("it is not read within {PATIENCE:?}"));
        timeout(PATIENCE, self.whole(&file, read)).await.unwrap_or_else(late)
    }

    async fn whole(
        &self,
        file: &K,
        mut read: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let own = loop {
            let not_begun = match self.begin(file, read) {
                Ok(own) => break own,
                Err(not_begun) => not_begun,
            };
            read = not_begun.read;
            let other = not_begun.other.ok_or("too many other files are not read to their end")?;
            other.has_come_to_its_end().await;
            if let Some(outcome) = other.take_free() {
                put_away(&mut self.0.lock(), file, &other);
                return outcome;
            }
        };
        own.0.has_come_to_its_end().await;
        put_away(&mut self.0.lock(), file, &own.0);
        own.take()
    }

    fn begin<F: FnOnce() -> Result<T, String> + Send + 'static>(
        &self,
        file: &K,
        read: F,
    ) -> Result<Own<T>, NotBegun<T, F>> {
        let mut all = self.0.lock();
        // What one gave that was left is of then.
        all.retain(|one| !one.read.has_ended());
        begin(&mut all, file, read)
    }
}

/// Begins one of the file unless there is one, which is given, of those that are not too old or are as many as there may be.
fn begin<T: Send + 'static, K: Clone + PartialEq, F: FnOnce() -> Result<T, String> + Send + 'static>(
    all: &mut Vec<UnderWay<T, K>>,
    file: &K,
    read: F,
) -> Result<Own<T>, NotBegun<T, F>> {
    let newest = all.iter().rfind(|one| one.file == *file && !one.is_past).map(|one| one.read.clone());
    let is_wanted = newest.as_ref().is_none_or(|newest| newest.began.elapsed() >= OLD);
    if !is_wanted || all.len() >= MOST {
        return Err(NotBegun { other: newest, read });
    }
    let state = Mutex::new(State { is_left: false, has_ended: false, outcome: None });
    let begun = Arc::new(Read { began: Instant::now(), state, ended: Notify::new() });
    all.push(UnderWay { file: file.clone(), read: begun.clone(), is_past: false });
    let ends = Ends(begun.clone());
    spawn_blocking(move || ends.with(read()));
    Ok(Own(begun))
}

/// Takes out one that is heard. Those of before it are heard by nobody any more.
fn put_away<T, K: PartialEq>(all: &mut Vec<UnderWay<T, K>>, file: &K, heard: &Arc<Read<T>>) {
    all.retain(|one| !Arc::ptr_eq(&one.read, heard));
    for one in all.iter_mut().filter(|one| one.file == *file && one.read.began < heard.began) {
        one.is_past = true;
    }
}

impl<T> Read<T> {
    fn has_ended(&self) -> bool {
        self.state.lock().has_ended
    }

    /// Whether there is something for whoever comes.
    fn is_free(&self) -> bool {
        let state = self.state.lock();
        state.is_left && state.outcome.is_some()
    }

    /// What it gave, if it is for whoever comes. Of several who wait for it one has it.
    fn take_free(&self) -> Option<Result<T, String>> {
        let mut state = self.state.lock();
        if state.is_left { state.outcome.take() } else { None }
    }

    async fn has_come_to_its_end(&self) {
        // Before the look: an end in between is heard.
        let ended = self.ended.notified();
        if !self.has_ended() {
            ended.await;
        }
    }

    /// The first end counts.
    fn end(&self, outcome: Result<T, String>) {
        {
            let mut state = self.state.lock();
            if state.has_ended {
                return;
            }
            (state.has_ended, state.outcome) = (true, Some(outcome));
        }
        self.ended.notify_waiters();
    }
}

impl<T> Own<T> {
    fn take(self) -> Result<T, String> {
        self.0.state.lock().outcome.take().expect("it has ended, and nobody else takes it before it is left")
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        self.0.state.lock().is_left = true;
    }
}

impl<T> Ends<T> {
    fn with(self, outcome: Result<T, String>) {
        self.0.end(outcome);
    }
}

impl<T> Drop for Ends<T> {
    fn drop(&mut self) {
        self.0.end(Err("it was begun and given up".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;

    use futures_util::FutureExt;
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
        let ends = Arc::new(Mutex::new(ends));
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

    /// A runtime of one thread that is kept and not run any more.
    #[tokio::test(start_paused = true)]
    async fn who_began_one_and_is_asked_for_nothing_any_more_holds_up_nobody() {
        let reading = Reading::default();
        let (end, ends) = mpsc::channel::<()>();
        let mut standing = pin!(reading.of(move || Ok(ends.recv().map_or("left", |()| "first"))));
        assert!(standing.as_mut().now_or_never().is_none());
        let other = reading.of(|| Ok("second"));
        let (other, _) = tokio::join!(other, async { end.send(()) });
        assert_eq!(other, Ok("second"));
        assert_eq!(standing.await, Ok("first"), "its own is there still");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_ends_without_a_word_is_not_waited_for() {
        let reading = Reading::<&str>::default();
        assert_eq!(reading.of(|| panic!("on purpose")).await, Err("it was begun and given up".to_owned()));
        assert_eq!(reading.of(|| Ok("new")).await, Ok("new"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_ends_after_a_later_one_was_heard_is_heard_by_nobody() {
        let reading = Reading::default();
        let (end, ends) = mpsc::channel::<()>();
        assert_eq!(reading.beside(move || Ok(ends.recv().map_or("left", |()| "old"))), None);
        advance(OLD).await;
        assert_eq!(heard(&reading, "new").await, Ok("new"));
        end.send(()).unwrap();
        while reading.0.lock().iter().any(|one| !one.read.has_ended()) {
            tokio::task::yield_now().await;
        }
        assert_eq!(heard(&reading, "newest").await, Ok("newest"));
    }

    async fn heard(reading: &Reading<&'static str>, next: &'static str) -> Result<&'static str, String> {
        loop {
            match reading.beside(move || Ok(next)) {
                Some(read) => break read,
                None => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_hangs_is_not_taken_for_another() {
        let reading = Reading::default();
        let (end, ends) = mpsc::channel::<()>();
        let ends = Arc::new(Mutex::new(ends));
        let hang = |file: usize| {
            let ends = ends.clone();
            reading.of_file(file, move || Ok(ends.lock().recv().map_or(file, |()| file)))
        };
        for file in 0..MOST - 1 {
            is_late(hang(file)).await;
            assert_eq!(reading.of_file(MOST, || Ok(100)).await, Ok(100));
        }
        is_late(reading.of_file(0, || panic!("beside the other"))).await;
        is_late(hang(MOST - 1)).await;
        // Each holds a thread.
        let refused = reading.of_file(MOST, || panic!("more than there may be")).await;
        assert_eq!(refused, Err("too many other files are not read to their end".to_owned()));
        drop(end);
    }

    async fn is_late(read: impl Future<Output = Result<usize, String>>) {
        tokio::time::pause();
        // Timers are late by a part of a millisecond.
        let (late, ()) = tokio::join!(read, advance(PATIENCE + Duration::from_millis(1)));
        tokio::time::resume();
        assert_eq!(late, Err("it is not read within 3s".to_owned()));
    }
}
