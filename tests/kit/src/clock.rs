//! Virtual time: for tests that run on Tokio's paused clock.

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc;
use std::time::Duration;

/// Lets virtual time pass, timers in between firing in their order.
///
/// # Panics
/// The clock runs: a test waits for values, never for time.
pub async fn pass(time: Duration) {
    // Advancing is refused unless the clock is paused.
    tokio::time::advance(Duration::ZERO).await;
    tokio::time::sleep(time).await;
}

/// Runs what goes over real sockets on the paused clock: time, which goes on by itself once everybody waits, does not while
/// bytes are under way. What waits for a timer gets its time by and by.
///
/// # Panics
/// The clock runs.
pub async fn hold<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        // Beside such a task the clock stands.
        let (release, released) = mpsc::channel::<()>();
        let standing = tokio::task::spawn_blocking(move || released.recv_timeout(Duration::from_millis(50)).is_ok());
        let done = tokio::select! {
            biased;
            done = &mut future => Some(done),
            _ = standing => None,
        };
        drop(release);
        if let Some(done) = done {
            return done;
        }
        tokio::select! {
            biased;
            done = &mut future => return done,
            () = pass(Duration::from_millis(100)) => {}
        }
    }
}
