//! The processes of `examples/bookinfo`: whenever and however the parent goes, none of them stays; while it is
//! there, those that end are replaced. Linux: processes are looked up in `/proc`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::by_hand::examples;
use crate::support::eventually;

/// Processes below the parent once all have started: the control plane and the applications.
const ALL: usize = 12;

/// `bookinfo --serve`, with a directory for its temporary files.
struct Bookinfo {
    parent: Child,
    lines: Lines<BufReader<ChildStdout>>,
    temporary: TempDir,
}

impl Bookinfo {
    fn start(program: &Path) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command.arg("--serve").env("TMPDIR", temporary.path()).kill_on_drop(true);
        let mut parent = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
        Self { parent, lines, temporary }
    }

    /// Waits for a line that has these words; gives the process id in it.
    async fn line(&mut self, words: [&str; 2]) -> u32 {
        loop {
            let line = self.lines.next_line().await.unwrap().expect("it goes on");
            if words.iter().all(|word| line.contains(word)) {
                let after = line.split(" pid ").nth(1).unwrap_or("0");
                return after.split_whitespace().next().unwrap().parse().unwrap();
            }
        }
    }

    fn pid(&self) -> u32 {
        self.parent.id().expect("it has not been waited for")
    }

    /// Waits until the parent and these children have ended; gives the temporary directory.
    async fn ended(mut self, children: BTreeSet<u32>) -> TempDir {
        self.parent.wait().await.unwrap();
        eventually("no child is left", || async { children.is_disjoint(&running(None)).then_some(()) }).await;
        self.temporary
    }
}

/// Processes that run, or those below one; a zombie has ended.
fn running(parent: Option<u32>) -> BTreeSet<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let runs = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // `pid (name) state parent ...`, and a name may contain anything.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let (state, above) = (fields.next(), fields.next().and_then(|text| text.parse().ok()));
        state.is_some_and(|state| state != "Z") && (parent.is_none() || above == parent)
    };
    pids.filter(runs).collect()
}

async fn signal(pid: u32, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().await.unwrap();
    assert!(status.success(), "{name}");
}

#[tokio::test]
async fn no_process_outlives_its_parent() {
    let program = examples().await.join("bookinfo");
    // From the first child, when the control plane begins, to the whole application.
    for (name, children) in [("KILL", 1), ("KILL", 2), ("KILL", ALL), ("HUP", 1), ("HUP", ALL)] {
        let bookinfo = Bookinfo::start(&program);
        let parent = bookinfo.pid();
        let below = || running(Some(parent));
        eventually("it has that many children", || async { (below().len() >= children).then_some(()) }).await;
        // Stopped it starts no more of them, so that all are known.
        signal(parent, "STOP").await;
        let children = below();
        signal(parent, name).await;
        signal(parent, "CONT").await;
        let temporary = bookinfo.ended(children).await;
        let left = std::fs::read_dir(temporary.path()).unwrap().count();
        assert!(name == "KILL" || left == 0, "the working directory goes where somebody is there to remove it");
    }
}

#[tokio::test]
async fn what_ends_is_replaced_and_an_interrupt_ends_all() {
    let program = examples().await.join("bookinfo");
    let mut bookinfo = Bookinfo::start(&program);
    let plane = bookinfo.line(["control-plane", "pid"]).await;
    let reviews = bookinfo.line(["reviews", "pid"]).await;
    bookinfo.line(["Ctrl-C", "ends"]).await;
    // The reviews process in the control plane's absence, when no new one becomes ready.
    signal(plane, "KILL").await;
    signal(reviews, "KILL").await;
    let plane_again = bookinfo.line(["replaced", "control-plane"]).await;
    bookinfo.line(["replaced", "reviews"]).await;
    let children = running(Some(bookinfo.pid()));
    assert_eq!(children.len(), ALL);
    signal(plane_again, "KILL").await;
    // The interrupt comes while the control plane is away, or being replaced.
    signal(bookinfo.pid(), "INT").await;
    bookinfo.line(["stopping", "Ctrl-C"]).await;
    assert!(bookinfo.ended(children).await.path().read_dir().unwrap().next().is_none());
}
