//! CPU time, from what the kernel's scheduler keeps of each thread (`schedstat`, nanoseconds).

use std::path::Path;

use crate::Error;

/// Seconds of all threads of the process.
pub(crate) fn seconds() -> Result<f64, Error> {
    sum(|_| true)
}

/// Seconds of the threads with this name.
pub(crate) fn seconds_of(thread: &str) -> Result<f64, Error> {
    sum(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == thread))
}

fn sum(counts: impl Fn(&Path) -> bool) -> Result<f64, Error> {
    // The account of a running thread is brought up to date when the scheduler looks at it.
    std::thread::yield_now();
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if counts(&task) {
            let text = std::fs::read_to_string(task.join("schedstat"))?;
            nanos += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
    }
    Ok(nanos as f64 / 1e9)
}
