//! [`Watched`]: a value that one task publishes and many read.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

/// The writing end; when it is dropped the last value stays readable.
pub struct Publisher<T> {
    value: Arc<ArcSwap<T>>,
    revision: watch::Sender<u64>,
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
    value: Arc<ArcSwap<T>>,
    revision: watch::Receiver<u64>,
    // Keeps a subscription alive as long as somebody reads.
    _guard: Option<Arc<dyn Any + Send + Sync>>,
}

impl<T> Watched<T> {
    /// A value and its publisher.
    pub fn channel(initial: T) -> (Publisher<T>, Self) {
        let value = Arc::new(ArcSwap::from_pointee(initial));
        let (sender, receiver) = watch::channel(0);
        let watched = Self { value: value.clone(), revision: receiver, _guard: None };
        (Publisher { value, revision: sender }, watched)
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
        self.value.load()
    }

    /// The current value, to keep.
    pub fn load_full(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Waits until a value is published that this reader has not yet waited for. Waits for ever once
    /// the publisher is gone: a source that ended has nothing new to say.
    pub async fn changed(&mut self) {
        if self.revision.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the value satisfies `wanted` and gives it.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Arc<T> {
        loop {
            // Marked seen before the look, so that a publication in between is not missed.
            self.revision.borrow_and_update();
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
        Self { value: self.value.clone(), revision: self.revision.clone(), _guard: self._guard.clone() }
    }
}

impl<T: fmt::Debug> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.value.load()).finish()
    }
}

impl<T> Publisher<T> {
    /// Replaces the value and wakes those who wait.
    pub fn publish(&self, value: T) {
        self.publish_arc(Arc::new(value));
    }

    /// Replaces the value by a shared one and wakes those who wait.
    pub fn publish_arc(&self, value: Arc<T>) {
        self.value.store(value);
        self.revision.send_modify(|n| *n += 1);
    }

    /// The current value.
    pub fn load_full(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// A further reader.
    pub fn watch(&self) -> Watched<T> {
        Watched { value: self.value.clone(), revision: self.revision.subscribe(), _guard: None }
    }

    /// How many readers there are.
    pub fn readers(&self) -> usize {
        self.revision.receiver_count()
    }
}

impl<T: fmt::Debug> fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Publisher").field(&self.value.load()).finish()
    }
}
