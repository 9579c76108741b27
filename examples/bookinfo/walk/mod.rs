//! The walk: each step sends real requests and looks at the answers.

mod config;
mod failure;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::apps::Result;
use crate::apps::productpage::Page;
use crate::fleet::{Fleet, Home};
use crate::http_get;
use crate::interrupt::Interrupt;
use crate::report::Report;

/// How long a step waits for something to become true.
const LIMIT: Duration = Duration::from_secs(15);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// Pause between two looks for processes that have ended.
const WATCH: Duration = Duration::from_millis(500);
/// Pause after a process that could not be replaced.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// The walk; says whether every step was seen to be true. It edits a copy of the manifests.
pub(crate) async fn run(smoke: bool, manifests: Option<&Path>, listen: SocketAddr, json: bool) -> Result<bool> {
    let mut report = Report::new(json);
    let walked = walk(smoke, manifests, listen, &mut report).await;
    // Also of a walk that was interrupted or never began: programs wait for the object.
    report.finish(walked.as_ref().err().map(ToString::to_string).as_deref())?;
    walked.map(|()| report.ok())
}

async fn walk(smoke: bool, manifests: Option<&Path>, listen: SocketAddr, report: &mut Report) -> Result<()> {
    let mut interrupt = Interrupt::listen()?;
    let started = Instant::now();
    report.say("starting a control plane and the bookinfo processes ...");
    let mut fleet = start(Home::with_copy(manifests)?, listen, &mut interrupt).await?;
    let walked = tokio::select! {
        walked = steps(&mut fleet, report, smoke, started) => {
            if walked.is_err() || !report.ok() {
                eprint!("{}", fleet.logs());
            }
            walked
        }
        () = interrupt.asked() => Err("interrupted".into()),
    };
    let stopping = Instant::now();
    let stopped = stop(fleet, &mut interrupt).await.map(|left| {
        let mut seen = crate::report::Observed::default();
        seen.note("processes_left", left);
        seen.expect("no process is left", left == 0);
        seen
    });
    report.step("stop", stopping, stopped);
    walked
}

/// Starts everything; an interrupt kills what has started.
async fn start(home: Home, listen: SocketAddr, interrupt: &mut Interrupt) -> Result<Fleet> {
    tokio::select! {
        fleet = Fleet::start(home, listen) => fleet,
        () = interrupt.asked() => Err("interrupted".into()),
    }
}

/// Ends everything in order; an interrupt, a second one perhaps, kills what has not ended.
async fn stop(fleet: Fleet, interrupt: &mut Interrupt) -> Result<usize> {
    tokio::select! {
        left = fleet.stop() => left,
        () = interrupt.asked() => Err("interrupted while stopping: the remaining processes were killed".into()),
    }
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

/// Stays up until interrupted, replacing processes that end. The control plane watches `manifests` themselves.
pub(crate) async fn serve(manifests: Option<PathBuf>, listen: SocketAddr) -> Result<()> {
    let mut interrupt = Interrupt::listen()?;
    let home = manifests.map_or_else(|| Home::with_copy(None), Home::watching)?;
    let mut fleet = start(home, listen, &mut interrupt).await?;
    let up = tokio::select! {
        up = traffic::everything_up(&fleet) => up.map(drop).inspect_err(|_| eprint!("{}", fleet.logs())),
        () = interrupt.asked() => Err("interrupted".into()),
    };
    if up.is_ok() {
        print_urls(&fleet);
        tokio::select! {
            () = keep_up(&mut fleet) => {}
            () = interrupt.asked() => println!("stopping; a second Ctrl-C kills"),
        }
    }
    stop(fleet, &mut interrupt).await?;
    up
}

/// Replaces what ends, until it is dropped. What cannot be replaced is tried again.
async fn keep_up(fleet: &mut Fleet) {
    let mut said = BTreeSet::new();
    loop {
        tokio::time::sleep(WATCH).await;
        tell_findings(fleet, &mut said).await;
        let replaced = fleet.replace_ended().await;
        for one in &replaced {
            match one {
                Ok(process) => println!("replaced  {process}"),
                Err(error) => eprintln!("{error}\nanother try in {} s", TRY_AGAIN.as_secs()),
            }
        }
        if replaced.iter().any(Result::is_err) {
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }
}

/// Says what is new in what the control plane thinks of the manifests.
async fn tell_findings(fleet: &Fleet, said: &mut BTreeSet<String>) {
    let Some(debug) = fleet.plane.ready.debug else { return };
    // No answer: it is being replaced.
    let Ok((_, text)) = http_get::get(debug, "/findings?format=text", None).await else { return };
    let now: BTreeSet<String> = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
    now.difference(said).for_each(|line| eprintln!("{line}"));
    *said = now;
}

fn print_urls(fleet: &Fleet) {
    println!("productpage    http://{}/productpage   (sign in: ?user=jason)", fleet.page());
    println!("as JSON        http://{}/api/page", fleet.page());
    println!("manifests      {}", fleet.manifests().display());
    println!("debug pages: the control plane's /findings /sync /registrations, the applications' /config_dump");
    for process in std::iter::once(&fleet.plane).chain(&fleet.apps) {
        println!("{}", process.line());
    }
    println!("Ctrl-C ends everything.");
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
