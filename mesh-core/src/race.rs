//! Happy eyeballs (RFC 8305, gRFC A61): several addresses of one peer, families in turn, each given a head
//! start over the next. Refuses to know how one is connected to.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use tokio::time::sleep;

/// Head start of one address over the next (RFC 8305, "Connection Attempt Delay"; gRPC's default too).
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Failures told of one race; the rest is counted.
const TOLD: usize = 4;

/// Sorts addresses for [`race`]: the families take turns, beginning with that of the first; within a family
/// the order stays. An address that is there twice is tried once.
pub fn interleave(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut seen = std::collections::HashSet::with_capacity(addresses.len());
    let distinct = addresses.iter().copied().filter(|address| seen.insert(*address));
    in_turn(distinct, SocketAddr::is_ipv4)
}

/// Those of two kinds take turns, beginning with that of the first; within a kind the order stays.
pub fn in_turn<A>(all: impl IntoIterator<Item = A>, kind: impl Fn(&A) -> bool) -> Vec<A> {
    let mut all = all.into_iter().peekable();
    let Some(first) = all.peek().map(&kind) else { return Vec::new() };
    let (ours, others): (Vec<_>, Vec<_>) = all.partition(|one| kind(one) == first);
    let mut sorted = Vec::with_capacity(ours.len() + others.len());
    let (mut ours, mut others) = (ours.into_iter(), others.into_iter());
    loop {
        match (ours.next(), others.next()) {
            (None, None) => return sorted,
            (one, other) => sorted.extend(one.into_iter().chain(other)),
        }
    }
}

/// The first connection that comes about, as [`first_of`] has it.
///
/// # Errors
/// None could be connected to; each is told with its reason.
pub async fn race<T, F>(addresses: &[SocketAddr], connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    first_of(addresses.iter().copied(), connect).await.map_err(all_failed)
}

/// The first that comes about. The next one is begun when the one before it failed or had its head start; those already
/// begun go on, and are dropped when one has won.
///
/// # Errors
/// None did; each with its reason.
pub async fn first_of<A: Copy, T, E, F>(
    all: impl ExactSizeIterator<Item = A>,
    connect: impl Fn(A) -> F,
) -> Result<T, Vec<(A, E)>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut left = all;
    let mut running = Vec::new();
    let mut failed = Vec::new();
    loop {
        match left.next() {
            Some(one) => running.push((one, Box::pin(connect(one)))),
            None if running.is_empty() => return Err(failed),
            None => {}
        }
        let first = poll_fn(|cx| {
            // Few, and each wakes the whole.
            let done = running.iter_mut().enumerate().find_map(|(at, (_, one))| match one.as_mut().poll(cx) {
                Poll::Ready(done) => Some((at, done)),
                Poll::Pending => None,
            });
            done.map_or(Poll::Pending, Poll::Ready)
        });
        tokio::select! {
            // Not the clock first: a connection that came about in the same moment wins.
            biased;
            (at, done) = first => {
                let (one, _) = running.swap_remove(at);
                match done {
                    Ok(connected) => return Ok(connected),
                    Err(error) => failed.push((one, error)),
                }
            }
            () = sleep(ATTEMPT_DELAY), if left.len() > 0 => {}
        }
    }
}

fn all_failed(mut failed: Vec<(SocketAddr, io::Error)>) -> io::Error {
    if failed.len() < 2 {
        let none = || io::Error::new(io::ErrorKind::NotFound, "it has no address");
        return failed.pop().map_or_else(none, |(_, error)| error);
    }
    let kind = failed[0].1.kind();
    let mut told: Vec<_> = failed.iter().take(TOLD).map(|(address, error)| format!("{address}: {error}")).collect();
    if failed.len() > TOLD {
        told.push(format!("and {} more", failed.len() - TOLD));
    }
    io::Error::new(kind, told.join("; "))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::Instant;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Races over a network in which `connect` says after how many milliseconds an address answers, and how.
    /// Gives the outcome, the milliseconds it took, and when each address was begun.
    async fn run(
        texts: &[&str],
        connect: impl Fn(SocketAddr) -> (u64, Result<(), io::ErrorKind>),
    ) -> (io::Result<SocketAddr>, u128, Vec<(String, u128)>) {
        let (begun, start) = (RefCell::new(Vec::new()), Instant::now());
        let sorted = interleave(&addresses(texts));
        let outcome = race(&sorted, |address| {
            begun.borrow_mut().push((address.to_string(), start.elapsed().as_millis()));
            let (after, outcome) = connect(address);
            async move {
                tokio::time::timeout(Duration::from_millis(after), std::future::pending::<()>()).await.ok();
                outcome.map(|()| address).map_err(io::Error::from)
            }
        });
        let outcome = outcome.await;
        (outcome, start.elapsed().as_millis(), begun.into_inner())
    }

    const HANGS: (u64, Result<(), io::ErrorKind>) = (3_600_000, Err(io::ErrorKind::TimedOut));
    const REFUSED: (u64, Result<(), io::ErrorKind>) = (0, Err(io::ErrorKind::ConnectionRefused));

    #[test]
    fn families_take_turns_and_the_first_one_begins() {
        let sorted = |texts: &[&str]| interleave(&addresses(texts)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            sorted(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "1.1.1.2:1", "[::1]:1"]),
            ["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "[::3]:1"]
        );
        assert_eq!(sorted(&["1.1.1.1:1", "[::1]:1", "[::2]:1"]), ["1.1.1.1:1", "[::1]:1", "[::2]:1"]);
        assert_eq!(sorted(&[]), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn broken_ipv6_costs_a_quarter_of_a_second() {
        let network = |address: SocketAddr| if address.is_ipv6() { HANGS } else { (20, Ok(())) };
        let (won, took, begun) = run(&["[::1]:1", "[::2]:1", "1.1.1.1:1"], network).await;
        assert_eq!(won.unwrap().to_string(), "1.1.1.1:1");
        assert!(took <= 300, "{took} ms");
        assert_eq!(begun, [("[::1]:1".to_owned(), 0), ("1.1.1.1:1".to_owned(), 250)]);

        // Control: with IPv6 alone there is nothing to fall back on.
        let alone = run(&["[::1]:1"], network);
        assert!(tokio::time::timeout(Duration::from_secs(60), alone).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_brings_the_next_address_at_once() {
        let network = |address: SocketAddr| if address.is_ipv6() { REFUSED } else { (5, Ok(())) };
        let (won, took, _) = run(&["[::1]:1", "1.1.1.1:1"], network).await;
        assert_eq!((won.unwrap().to_string(), took), ("1.1.1.1:1".to_owned(), 5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_first_address_may_still_win() {
        let network = |address: SocketAddr| (if address.is_ipv6() { 300 } else { 100 }, Ok(()));
        let (won, took, begun) = run(&["[::1]:1", "1.1.1.1:1"], network).await;
        assert_eq!((won.unwrap().to_string(), took, begun.len()), ("[::1]:1".to_owned(), 300, 2));
        // An address that answers within its head start leaves the others in peace.
        let (won, took, begun) = run(&["[::1]:1", "1.1.1.1:1"], |_| (249, Ok(()))).await;
        assert_eq!((won.unwrap().to_string(), took, begun.len()), ("[::1]:1".to_owned(), 249, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_fail_each_is_named() {
        let (failed, took, _) = run(&["[::1]:1", "1.1.1.1:1"], |_| REFUSED).await;
        let error = failed.unwrap_err();
        assert_eq!((error.kind(), took), (io::ErrorKind::ConnectionRefused, 0));
        assert_eq!(error.to_string(), "[::1]:1: connection refused; 1.1.1.1:1: connection refused");
        let many: Vec<_> = (1..=6).map(|i| format!("1.1.1.{i}:1")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(run(&many, |_| REFUSED).await.0.unwrap_err().to_string().ends_with("; and 2 more"));
        assert_eq!(run(&["1.1.1.1:1"], |_| REFUSED).await.0.unwrap_err().to_string(), "connection refused");
        assert_eq!(run(&[], |_| REFUSED).await.0.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
