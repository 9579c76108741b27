//! What a resolver does beside its look-ups: queries that nobody waits for any more, and looks at the system's file. It ends
//! with the resolver.
//!
//! Refuses to know what it is.

use std::future::Future;

use parking_lot::Mutex;
use tokio::task::JoinSet;

/// The tasks of one kind.
pub(super) struct Tasks {
    under_way: Mutex<JoinSet<()>>,
    most: usize,
}

impl Tasks {
    /// As many as `most` at once.
    pub(super) fn new(most: usize) -> Self {
        Self { under_way: Mutex::default(), most }
    }

    /// Lets `work` go on by itself; where there is as much of it as may be it is dropped.
    pub(super) fn go_on(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut under_way = self.under_way.lock();
        while under_way.try_join_next().is_some() {}
        if under_way.len() < self.most {
            under_way.spawn(work);
        }
    }

    #[cfg(test)]
    pub(super) fn are_over(&self) -> bool {
        let mut under_way = self.under_way.lock();
        while under_way.try_join_next().is_some() {}
        under_way.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_goes_on_is_bounded_and_ends_with_its_owner() {
        let tasks = Tasks::new(1);
        let work = || {
            let (end, ends) = oneshot::channel::<()>();
            let (over, is_over) = oneshot::channel::<()>();
            let work = async move {
                let _over = over;
                let _ = ends.await;
            };
            (work, end, is_over)
        };
        let (first, end_first, first_is_over) = work();
        tasks.go_on(first);
        let (second, _end_second, second_is_over) = work();
        tasks.go_on(second);
        // One too many.
        assert!(second_is_over.await.is_err());
        end_first.send(()).unwrap();
        assert!(first_is_over.await.is_err());
        let (third, _end_third, mut third_is_over) = work();
        while !tasks.are_over() {
            tokio::task::yield_now().await;
        }
        tasks.go_on(third);
        tokio::task::yield_now().await;
        assert_eq!(third_is_over.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(tasks);
        assert!(third_is_over.await.is_err());
    }
}
