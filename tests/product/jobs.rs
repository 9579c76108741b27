//! Jobs: processes that call as soon as they have begun, and end when their main returns (R35).

use std::time::Duration;

use mesh::Mesh;
use tokio::io::{AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use crate::support::{Plane, call};

const REVIEWS: &str = "http://reviews:9080/";
/// How the job is to end; set in its process only.
const JOB: &str = "TEST_JOB";
/// What a job says at its end.
const LAST_WORD: &str = "main returns";
/// No job takes longer to go; nothing measures it.
const GONE: Duration = Duration::from_secs(5);

/// Plays both parts: the jobs are this test once more, in processes of their own.
#[test]
fn a_job_calls_at_once_and_is_gone_with_its_own_exit_code_when_its_main_returns_r35() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match std::env::var(JOB) {
        Ok(how) => job(&how, &runtime),
        Err(_) => runtime.block_on(start_jobs()),
    }
}

#[expect(clippy::print_stdout, reason = "what the job says to the test that began it")]
fn job(how: &str, runtime: &tokio::runtime::Runtime) {
    let said = |name: &str| std::env::var(name).unwrap();
    let mesh = runtime.block_on(async {
        let builder = Mesh::builder()
            .control_plane(said("TEST_PLANE"))
            .root_cert(said("TEST_ROOT"))
            .service_account("job")
            .labels("app=job")
            .join_token(said("TEST_TOKEN"));
        let mesh = builder.build().await.unwrap();
        // At t = 0: nothing waits for the first configuration but the call itself.
        let (status, text) = call(&mesh, REVIEWS, &[]).await.unwrap();
        assert_eq!((status.as_u16(), &*text), (200, "hello"));
        mesh
    });
    if how == "holds" {
        runtime.spawn_blocking(|| {
            for line in std::io::stdin().lines() {
                println!("{} is heard", line.unwrap());
            }
        });
    }
    println!("{LAST_WORD}");
    match how {
        "exits" => std::process::exit(7),
        "fails" => panic!("as it was told to"),
        _ => drop(mesh),
    }
}

struct Job {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Job {
    /// Starts one, and waits for its last word.
    async fn at_its_end(plane: &Plane, how: &str) -> Self {
        let name = "jobs::a_job_calls_at_once_and_is_gone_with_its_own_exit_code_when_its_main_returns_r35";
        let last = |line: &str| line.ends_with(LAST_WORD).then_some(());
        let (child, said, ()) = plane.own_process(name, (JOB, how), "job", last).await;
        Self { child, said }
    }

    async fn exit_code(&mut self) -> Option<i32> {
        tokio::time::timeout(GONE, self.child.wait()).await.expect("it is gone").unwrap().code()
    }
}

async fn start_jobs() {
    let plane = Plane::start().await;
    let _server = plane.answering("reviews", "", "hello").await;
    // A test that panics ends its process with 101.
    for (how, code) in [("returns", 0), ("exits", 7), ("fails", 101)] {
        let mut job = Job::at_its_end(&plane, how).await;
        assert_eq!(job.exit_code().await, Some(code), "{how}");
    }
    // Control run: a thread that a runtime waits for keeps its process, and that is noticed.
    let mut job = Job::at_its_end(&plane, "holds").await;
    let mut stdin = job.child.stdin.take().unwrap();
    for _ in 0..10 {
        stdin.write_all(b"a word\n").await.unwrap();
        let heard = job.said.next_line().await.unwrap();
        assert!(heard.as_ref().is_some_and(|line| line.ends_with("a word is heard")), "{heard:?}");
    }
    assert_eq!(job.child.try_wait().unwrap(), None, "it is still there");
    drop(stdin);
    assert_eq!(job.exit_code().await, Some(0));
}
