//! [`Watched`]: a value that one task publishes and many read.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

/// The writing end; when it is dropped the last value stays readable.
pub struct Publisher<T> {
    shared: Arc<Shared<T>>,
}

// One small allocation: a large mesh has tens of thousands of these.
struct Shared<T> {
    value: ArcSwap<T>,
    // Publications so far.
    revision: AtomicU64,
    ended: AtomicBool,
    published: Notify,
}

/// The reading end of a published value. Cloning is cheap; clones wait independently.
///
/// ```
/// use mesh_core::source::Watched;
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let (publisher, mut watched) = Watched::channel(1);
/// publisher.publish(2);
/// watched.changed().await;
/// assert_eq!(**watched.load(), 2);
/// # });
/// ```
pub struct Watched<T> {
    shared: Arc<Shared<T>>,
    // The last revision that was waited for.
    seen: u64,
    // Keeps a subscription alive as long as somebody reads.
    _guard: Option<Arc<dyn Any + Send + Sync>>,
}

impl<T> Watched<T> {
    /// A value and its publisher.
    pub fn channel(initial: T) -> (Publisher<T>, Self) {
        let shared = Shared {
            value: ArcSwap::from_pointee(initial),
            revision: 0.into(),
            ended: false.into(),
            published: Notify::new(),
        };
        let publisher = Publisher { shared: Arc::new(shared) };
        let watched = publisher.watch();
        (publisher, watched)
    }

    /// A value that never changes.
    pub fn fixed(value: T) -> Self {
        Self::channel(value).1
    }

    /// Ties `guard` to the life of this reader and its clones: it is dropped with the last of them.
    #[must_use]
    pub fn with_guard(mut self, guard: Arc<dyn Any + Send + Sync>) -> Self {
        self._guard = Some(guard);
        self
    }

    /// The current value; takes no lock.
    pub fn load(&self) -> arc_swap::Guard<Arc<T>> {
        self.shared.value.load()
    }

    /// The current value, to keep.
    pub fn load_full(&self) -> Arc<T> {
        self.shared.value.load_full()
    }

    /// Whether there will be no other value: the publisher is gone.
    pub fn is_final(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }

    /// Waits until a value is published that this reader has not yet waited for. Waits for ever once
    /// the publisher is gone: a source that ended has nothing new to say.
    pub async fn changed(&mut self) {
        loop {
            // Made before the look: it is woken by whatever is published after that.
            let published = self.shared.published.notified();
            let revision = self.shared.revision.load(Ordering::Acquire);
            if std::mem::replace(&mut self.seen, revision) != revision {
                return;
            }
            published.await;
        }
    }

    /// Waits until the value satisfies `wanted` and gives it.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Arc<T> {
        loop {
            // Marked seen before the look, so that a publication in between is not missed.
            self.seen = self.shared.revision.load(Ordering::Acquire);
            let value = self.load_full();
            if wanted(&value) {
                return value;
            }
            self.changed().await;
        }
    }
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen, _guard: self._guard.clone() }
    }
}

impl<T: fmt::Debug> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.load()).finish()
    }
}

impl<T> Publisher<T> {
    /// Replaces the value and wakes those who wait.
    pub fn publish(&self, value: T) {
        self.publish_arc(Arc::new(value));
    }

    /// Replaces the value by a shared one and wakes those who wait. One that panics on being woken does not take the
    /// publishing task with it, on which all others depend.
    pub fn publish_arc(&self, value: Arc<T>) {
        self.shared.value.store(value);
        self.shared.revision.fetch_add(1, Ordering::Release);
        let wake = AssertUnwindSafe(|| self.shared.published.notify_waiters());
        if catch_unwind(wake).is_err() {
            tracing::error!("a reader of configuration panicked on being woken; the value is published all the same");
        }
    }

    /// The current value.
    pub fn load_full(&self) -> Arc<T> {
        self.shared.value.load_full()
    }

    /// A further reader.
    pub fn watch(&self) -> Watched<T> {
        Watched { shared: self.shared.clone(), seen: self.shared.revision.load(Ordering::Acquire), _guard: None }
    }

    /// How many readers there are.
    pub fn readers(&self) -> usize {
        Arc::strong_count(&self.shared) - 1
    }
}

impl<T> Drop for Publisher<T> {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
    }
}

impl<T: fmt::Debug> fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Publisher").field(&self.load_full()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Wake, Waker};

    use super::*;

    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("on purpose");
        }
    }

    #[tokio::test]
    async fn a_reader_that_panics_on_being_woken_does_not_end_the_publisher() {
        let (publisher, mut watched) = Watched::channel(1);
        let mut other = watched.clone();
        let waker = Waker::from(Arc::new(Panics));
        {
            let mut waiting = pin!(watched.changed());
            assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            publisher.publish(2);
        }
        other.changed().await;
        assert_eq!(**other.load(), 2);
    }

    #[test]
    fn a_value_is_final_once_its_publisher_is_gone() {
        let (publisher, watched) = Watched::channel(1);
        assert!(!watched.is_final());
        drop(publisher);
        assert!(watched.is_final() && Watched::fixed(1).is_final());
    }
}
