//! Tasks that run as long as the process does. One that has ended all the same, by a panic mostly, leaves a process that
//! answers and stands still: whoever asks whether it is ready has to hear of it.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Task, spawn};

/// Which of them have ended.
#[derive(Debug, Default)]
pub(crate) struct Vital {
    ended: Mutex<Vec<&'static str>>,
}

impl Vital {
    /// Runs `work`, which has this name for operators. Dropping the handle is no such end.
    pub(crate) fn keep(self: &Arc<Self>, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> Task {
        let end = End { name, of: self.clone(), has_returned: false };
        spawn(async move {
            // All of it, and not the one field.
            let mut end = end;
            work.await;
            end.has_returned = true;
        })
    }

    /// Those that have, in their order.
    pub(crate) fn ended(&self) -> Vec<&'static str> {
        self.ended.lock().clone()
    }
}

struct End {
    name: &'static str,
    of: Arc<Vital>,
    has_returned: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        // Otherwise it was told to.
        if self.has_returned || std::thread::panicking() {
            tracing::error!(
                task = self.name,
                "a task of the control plane has ended: it is not ready any more; restart it"
            );
            self.of.ended.lock().push(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_by_itself_is_told_of_and_one_that_is_ended_is_not() {
        let vital = Arc::<Vital>::default();
        vital.keep("panics", async { panic!("a bug") }).finished().await;
        vital.keep("returns", async {}).finished().await;
        vital.keep("runs", std::future::pending()).cancelled().await;
        assert_eq!(vital.ended(), ["panics", "returns"]);
    }
}
