//! A stream that is polled when it has woken somebody, and not with all that wakes the same task: what may end a connection is
//! nearly always silent, and the connection is not.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::stream::{Stream, StreamExt};
use parking_lot::Mutex;

pub(super) struct Seldom<S> {
    stream: S,
    news: Arc<News>,
    // Who hears of them, as `news` knows it.
    task: Option<Waker>,
}

struct News {
    are: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for News {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In this order: who says meanwhile that it is another one looks for news after that.
        self.are.store(true, Ordering::Release);
        let task = self.task.lock().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<S> Seldom<S> {
    pub(super) fn new(stream: S) -> Self {
        let news = News { are: true.into(), task: Mutex::default() };
        Self { stream, news: Arc::new(news), task: None }
    }
}

impl<S: Stream + Unpin> Stream for Seldom<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = &mut *self;
        if !this.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            this.task = Some(cx.waker().clone());
            *this.news.task.lock() = this.task.clone();
        }
        // Looked at before it is changed, which is dearer.
        if !this.news.are.load(Ordering::Acquire) || !this.news.are.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let waker = Waker::from(this.news.clone());
        let polled = this.stream.poll_next_unpin(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            // There may be more.
            this.news.are.store(true, Ordering::Release);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::FutureExt;
    use futures_util::stream::{FuturesUnordered, poll_fn};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    fn counted(mut from: UnboundedReceiver<u8>) -> (Seldom<impl Stream<Item = u8> + Unpin>, Arc<AtomicUsize>) {
        let polls = Arc::<AtomicUsize>::default();
        let count = polls.clone();
        let stream = poll_fn(move |cx| {
            count.fetch_add(1, Ordering::Relaxed);
            from.poll_recv(cx)
        });
        (Seldom::new(stream), polls)
    }

    #[tokio::test]
    async fn it_is_asked_when_it_has_news_and_gives_all_of_them() {
        let (send, from) = unbounded_channel();
        let (mut seldom, polls) = counted(from);
        for _ in 0..10 {
            assert!(seldom.next().now_or_never().is_none());
        }
        // Each of those was another task; one of them has asked.
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        (0..3).for_each(|news| send.send(news).unwrap());
        for news in 0..3 {
            assert_eq!(seldom.next().now_or_never(), Some(Some(news)));
        }
        assert!(seldom.next().now_or_never().is_none());
        drop(send);
        assert_eq!(seldom.next().now_or_never(), Some(None));
    }

    #[tokio::test]
    async fn whoever_waits_now_hears_of_it() {
        let (send, from) = unbounded_channel();
        let (mut seldom, _) = counted(from);
        assert!(seldom.next().now_or_never().is_none());
        for news in 0..100 {
            // A task that has not asked before, waits when the news come, and is polled once they have woken it.
            let waits = async move {
                let first = seldom.next().await;
                (seldom, first)
            };
            let mut task = [Box::pin(waits)].into_iter().collect::<FuturesUnordered<_>>();
            assert!(task.next().now_or_never().is_none());
            send.send(news).unwrap();
            let (again, first) = task.next().now_or_never().unwrap().unwrap();
            assert_eq!(first, Some(news));
            seldom = again;
        }
    }
}
