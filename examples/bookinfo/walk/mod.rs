//! The walk: each step sends real requests and looks at the answers.

mod config;
mod failure;
mod traffic;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::apps::Result;
use crate::apps::productpage::Page;
use crate::fleet::Fleet;
use crate::http_get;
use crate::report::Report;

/// How long a step waits for something to become true.
const LIMIT: Duration = Duration::from_secs(15);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// The walk; says whether every step was seen to be true.
pub(crate) async fn run(smoke: bool, manifests: Option<PathBuf>, listen: SocketAddr, json: bool) -> Result<bool> {
    let mut report = Report::new(json);
    let started = Instant::now();
    report.say("starting a control plane and the bookinfo processes ...");
    let mut fleet = tokio::select! {
        fleet = Fleet::start(manifests, listen) => fleet?,
        () = interrupted() => return Err("interrupted".into()),
    };
    let walked = tokio::select! {
        walked = steps(&mut fleet, &mut report, smoke, started) => walked,
        () = interrupted() => Err("interrupted".into()),
    };
    if walked.is_err() || !report.ok() {
        eprint!("{}", fleet.logs());
    }
    let stopping = Instant::now();
    let stopped = fleet.stop().await.map(|left| {
        let mut seen = crate::report::Observed::default();
        seen.note("processes_left", left);
        seen.expect("no process is left", left == 0);
        seen
    });
    report.step("stop", stopping, stopped);
    walked?;
    report.finish()?;
    Ok(report.ok())
}

async fn steps(fleet: &mut Fleet, report: &mut Report, smoke: bool, started: Instant) -> Result<()> {
    let up = traffic::everything_up(fleet).await;
    let failed = up.is_err();
    report.step("start", started, up);
    if failed {
        return Ok(());
    }
    // A step that fails is reported and the walk goes on: one fault should not hide another.
    macro_rules! step {
        ($name:literal, $step:expr) => {{
            let started = Instant::now();
            let result = $step.await;
            report.step($name, started, result);
        }};
    }
    step!("manifests", config::manifests(fleet));
    step!("a_header_routing", traffic::header_routing(fleet));
    step!("b_traffic_split", traffic::traffic_split(fleet));
    step!("c_live_edit", config::live_edit(fleet));
    step!("d_process_killed", failure::process_killed(fleet, smoke));
    step!("e_identities", traffic::identities(fleet));
    step!("f_control_plane_restart", failure::control_plane_restart(fleet, smoke));
    step!("g_broken_manifest", config::broken_manifest(fleet));
    Ok(())
}

/// Stays up until interrupted, replacing processes that end.
pub(crate) async fn serve(manifests: Option<PathBuf>, listen: SocketAddr) -> Result<()> {
    let mut fleet = tokio::select! {
        fleet = Fleet::start(manifests, listen) => fleet?,
        () = interrupted() => return Err("interrupted".into()),
    };
    let up = tokio::select! {
        up = traffic::everything_up(&fleet) => up,
        () = interrupted() => Err("interrupted".into()),
    };
    if let Err(error) = up {
        eprint!("{}", fleet.logs());
        fleet.stop().await?;
        return Err(error);
    }
    print_urls(&fleet);
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    // One listener for the whole loop: a signal that comes while a process is replaced is not lost.
    let ended = interrupted();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let replaced = fleet.replace_ended().await?;
                if replaced > 0 {
                    println!("replaced {replaced} process(es) that had ended");
                }
            }
            () = &mut ended => break,
        }
    }
    fleet.stop().await?;
    Ok(())
}

fn print_urls(fleet: &Fleet) {
    println!("productpage    http://{}/productpage   (sign in: ?user=jason)", fleet.page());
    println!("as JSON        http://{}/api/page", fleet.page());
    println!("manifests      {}", fleet.manifests.display());
    println!("control plane  http://{}/findings  /sync  /registrations", fleet.plane_debug());
    for process in &fleet.apps {
        let pid = process.pid().unwrap_or_default();
        if let Some(debug) = process.ready.debug {
            println!("{:<12} {} pid {pid:<8} http://{debug}/config_dump", process.name, process.version);
        }
    }
    println!("Ctrl-C ends everything.");
}

/// Ctrl-C or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

/// One page from productpage; an answer other than 200 is an error that says why.
async fn page(fleet: &Fleet, user: Option<&str>) -> Result<Page> {
    page_at(fleet.page(), user).await
}

async fn page_at(address: SocketAddr, user: Option<&str>) -> Result<Page> {
    let (status, body) = http_get::get(address, "/api/page", user).await?;
    let page: Page = serde_json::from_slice(&body)?;
    if status == 200 { Ok(page) } else { Err(format!("{status}: {}", page.errors.join("; ")).into()) }
}

/// Version of reviews that a page shows.
fn reviews_version(page: &Page) -> &str {
    page.reviews.as_ref().and_then(|reviews| reviews.hops.first()).map_or("none", |hop| &hop.version)
}

/// Counts by a key.
fn count<'a>(keys: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for key in keys {
        *counts.entry(key.to_owned()).or_default() += 1;
    }
    counts
}

/// Looks again and again until `look` gives something; an error of a look is kept for the message.
async fn wait_for<T, F: Future<Output = Result<Option<T>>>>(what: &str, mut look: impl FnMut() -> F) -> Result<T> {
    let started = Instant::now();
    let mut last = String::from("not yet true");
    while started.elapsed() < LIMIT {
        match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(format!("{what}: waited {} s; {last}", LIMIT.as_secs()).into())
}
