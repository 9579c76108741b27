//! Which request's context a task is in. Refuses to know what is in a context.
//!
//! tokio has task-locals; one of them takes what the future answers from hand to hand, and calls a service with a second count of
//! the context: some 460 instructions for each request served, where this takes some 300.

use std::cell::RefCell;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::RequestContext;
use crate::identity::PeerIdentity;
use crate::jwt::Claims;

thread_local! {
    static CURRENT: RefCell<Option<Arc<RequestContext>>> = const { RefCell::new(None) };
}

pin_project! {
    /// A future that runs inside a request's context: [`scope`].
    pub struct Scoped<F> {
        // The one around it while it is polled.
        context: Option<Arc<RequestContext>>,
        // `None` once it has ended: it is dropped inside as well.
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Scoped<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _inside = Inside::of(this.context);
            this.future.set(None);
        }
    }
}

impl<F> Scoped<F> {
    /// As [`scope`]; `None` = inside no context, even where there is one around it.
    pub fn new(context: Option<Arc<RequestContext>>, future: F) -> Self {
        Self { context, future: Some(future) }
    }

    /// The context that it runs in.
    pub fn context(&self) -> Option<&Arc<RequestContext>> {
        self.context.as_ref()
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let _inside = Inside::of(this.context);
        let future = this.future.as_mut().as_pin_mut().expect("a future is not polled after its end");
        let polled = future.poll(cx);
        if polled.is_ready() {
            this.future.set(None);
        }
        polled
    }
}

/// Within a context, whose place holds the one around it.
struct Inside<'c>(&'c mut Option<Arc<RequestContext>>);

impl<'c> Inside<'c> {
    fn of(context: &'c mut Option<Arc<RequestContext>>) -> Self {
        swap(context);
        Self(context)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        swap(self.0);
    }
}

fn swap(context: &mut Option<Arc<RequestContext>>) {
    // A thread that ends has none any more.
    let _ = CURRENT.try_with(|current| mem::swap(&mut *current.borrow_mut(), context));
}

fn with<T>(look: impl FnOnce(&Arc<RequestContext>) -> T) -> Option<T> {
    CURRENT.try_with(|current| current.borrow().as_ref().map(look)).ok().flatten()
}

/// Runs `future` as part of serving the request of `context`. The answer has a name, so that layers
/// can hold it without a box.
pub fn scope<F: Future>(context: Arc<RequestContext>, future: F) -> Scoped<F> {
    Scoped::new(Some(context), future)
}

/// Runs `work` as part of serving the request of `context`, which is there again afterwards: for what a service does inside
/// `call`, before its future is polled. `None` = as part of none.
pub fn enter<R>(context: &mut Option<Arc<RequestContext>>, work: impl FnOnce() -> R) -> R {
    let _inside = Inside::of(context);
    work()
}

/// The context of the request being served on this task, if any.
pub fn current() -> Option<Arc<RequestContext>> {
    with(Arc::clone)
}

/// Who sent the request being served on this task: its verified identity and its address. `None` outside of a
/// request, on tasks spawned by it (ask before), and where the connection was accepted by somebody who did not say.
///
/// Of axum's handlers [`PeerIdentity`] is an extractor as well.
pub fn caller() -> Option<Arc<PeerIdentity>> {
    with(|context| context.caller.clone()).flatten()
}

/// What the token of the request being served on this task says: that of a signature which was checked, by a provider
/// that the server's policy names. `None` without one, and where [`caller`] has none. Of a request with several tokens
/// [`RequestContext::tokens`] has all.
pub fn claims() -> Option<Arc<Claims>> {
    with(|context| context.tokens.as_ref()?.first().cloned()).flatten()
}

/// Whether a request is being served on this task.
pub fn is_open() -> bool {
    with(|_| ()).is_some()
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn, ready};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::pin::pin;
    use std::task::Waker;

    use http::HeaderMap;

    use super::*;

    fn context() -> Arc<RequestContext> {
        Arc::new(RequestContext::from_headers(&HeaderMap::new()))
    }

    fn is(context: &Arc<RequestContext>) -> bool {
        current().is_some_and(|current| Arc::ptr_eq(&current, context))
    }

    fn polled<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Asserts where it is dropped.
    struct Within(Arc<RequestContext>);

    impl Drop for Within {
        fn drop(&mut self) {
            assert!(is(&self.0), "it is dropped inside");
        }
    }

    #[test]
    fn it_is_inside_while_called_polled_and_dropped_and_nowhere_else() {
        let (outer, inner) = (context(), context());
        let mut nested = Box::pin(scope(outer.clone(), async {
            assert!(is(&outer));
            let mut context = Some(inner.clone());
            let called = enter(&mut context, || {
                assert!(is(&inner));
                let end = Within(inner.clone());
                poll_fn(move |_| {
                    assert!(is(&end.0));
                    Poll::<()>::Pending
                })
            });
            let within = Scoped::new(context, called);
            assert!(within.context().is_some_and(|held| Arc::ptr_eq(held, &inner)) && is(&outer));
            within.await;
        }));
        for _ in 0..2 {
            assert!(polled(nested.as_mut()).is_pending());
            assert!(!is_open(), "not outside");
        }
        drop(nested);
        assert!(!is_open());
        assert_eq!((Arc::strong_count(&outer), Arc::strong_count(&inner)), (1, 1));
    }

    #[test]
    fn what_answers_or_panics_leaves_the_one_around_it() {
        let (outer, inner) = (context(), context());
        let inside = scope(outer.clone(), async {
            assert_eq!(scope(inner.clone(), ready(7)).await, 7);
            assert!(is(&outer));
            let mut panics = pin!(scope(inner.clone(), poll_fn(|_| -> Poll<()> { panic!("as ordered") })));
            let poll = || polled(panics.as_mut());
            assert!(catch_unwind(AssertUnwindSafe(poll)).is_err() && is(&outer));
            let mut context = Some(inner.clone());
            let calls = || enter(&mut context, || panic!("as ordered"));
            assert!(catch_unwind(AssertUnwindSafe(calls)).is_err() && is(&outer) && context.is_some());
            drop(scope(inner.clone(), pending::<()>()));
            assert!(is(&outer));
        });
        assert!(polled(pin!(inside)).is_ready() && !is_open());
    }
}
