//! Virtual time: for tests that run on Tokio's paused clock.

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
