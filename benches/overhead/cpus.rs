//! A CPU for each side. Not pinned, the kernel puts both on one or on two as it likes, which changes throughput by half.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{hint, io, thread};

use tokio::runtime::Handle;

use crate::Error;
use crate::load::SPINNER;

/// The CPUs of the two sides.
#[derive(Clone, Copy)]
pub(crate) struct Cpus {
    client: usize,
    server: usize,
}

impl Cpus {
    /// Two of those that this process may use, or the same twice.
    pub(crate) fn of_process() -> io::Result<Self> {
        let mut each = kernel::usable()?.into_iter();
        let client = each.next().unwrap_or_default();
        Ok(Self { client, server: each.next().unwrap_or(client) })
    }

    /// Has the calling thread be the client's, and that of `server` the server's.
    pub(crate) fn pin(self, server: &Handle) -> Result<(), Error> {
        pin(server, self.server)?;
        Ok(kernel::pin(self.client)?)
    }

    /// Has the one thread of each of these keep to the client's.
    #[allow(dead_code, reason = "of another bench")]
    pub(crate) fn pin_together(self, runtimes: &[&Handle]) -> Result<(), Error> {
        runtimes.iter().try_for_each(|runtime| pin(runtime, self.client))
    }
}

/// Has the one thread of a runtime keep to a CPU.
fn pin(runtime: &Handle, cpu: usize) -> Result<(), Error> {
    Ok(runtime.block_on(runtime.spawn(async move { kernel::pin(cpu) }))??)
}

/// Two threads of the lowest priority that keep both CPUs from halting. One request at a time lets either side sleep while the
/// other works, and to wake a halted virtual CPU takes longer than the request. Where several are in flight there must be none:
/// to switch to such a thread and back is then what costs.
pub(crate) struct Spinners {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Spinners {
    pub(crate) fn start(cpus: Cpus) -> io::Result<Self> {
        let mut all = Self { stop: Arc::default(), threads: Vec::new() };
        for cpu in [cpus.client, cpus.server] {
            let stop = all.stop.clone();
            all.threads.push(thread::Builder::new().name(SPINNER.to_owned()).spawn(move || {
                // Unpinned, or at a priority that disturbs, it must not run.
                if kernel::pin(cpu).and_then(|()| kernel::give_way()).is_err() {
                    return;
                }
                // Without the instruction that says so: a hypervisor takes the CPU away from who waits in a loop.
                while !stop.load(Ordering::Relaxed) {
                    (0..1_000).for_each(|i| {
                        hint::black_box(i);
                    });
                }
            })?);
        }
        Ok(all)
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}

/// What the calling thread may use, and how it runs.
#[cfg(target_os = "linux")]
mod kernel {
    use std::io;

    use rustix::process::setpriority_process;
    use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

    pub(super) fn usable() -> io::Result<Vec<usize>> {
        let usable = sched_getaffinity(None)?;
        Ok((0..CpuSet::MAX_CPU).filter(|cpu| usable.is_set(*cpu)).collect())
    }

    pub(super) fn pin(cpu: usize) -> io::Result<()> {
        let mut only = CpuSet::new();
        only.set(cpu);
        Ok(sched_setaffinity(None, &only)?)
    }

    /// To all others.
    pub(super) fn give_way() -> io::Result<()> {
        Ok(setpriority_process(Some(gettid()), 19)?)
    }
}

/// Elsewhere this builds, and what else it reads is not there.
#[cfg(not(target_os = "linux"))]
mod kernel {
    use std::io;

    pub(super) fn usable() -> io::Result<Vec<usize>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn pin(_: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn give_way() -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
