//! Steps in which something is taken away under load.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;

use super::config::{edit_and_wait, file};
use super::{page_at, wait_for};
use crate::apps::Result;
use crate::fleet::{Fleet, Process};
use crate::http_get;
use crate::report::Observed;

/// 50 requests a second.
const PACE: Duration = Duration::from_millis(20);

/// (d) One reviews process is killed under load; no request fails.
pub(crate) async fn process_killed(fleet: &mut Fleet, smoke: bool) -> Result<Observed> {
    let mut seen = Observed::default();
    let requests = if smoke { 100 } else { 500 };
    let load = tokio::spawn(load(fleet.page(), requests));
    let victim = fleet.apps.iter_mut().find(|process| process.name == "reviews" && process.version == "v1");
    let victim = victim.ok_or("no reviews process")?;
    tokio::time::sleep(PACE * (requests / 3)).await;
    seen.note("killed_pid", victim.pid().unwrap_or_default());
    victim.kill().await?;
    let failures = load.await?;
    seen.note("requests", requests);
    seen.note("failed", failures.len());
    seen.note("failures", failures.iter().take(5).cloned().collect::<Vec<_>>());
    seen.expect("no request failed", failures.is_empty());
    let replaced = fleet.replace_ended().await;
    seen.expect("the killed process was replaced", matches!(replaced[..], [Ok(_)]));
    Ok(seen)
}

/// (f) The control plane stops: traffic goes on; it starts again: nothing breaks.
pub(crate) async fn control_plane_restart(fleet: &mut Fleet, smoke: bool) -> Result<Observed> {
    let mut seen = Observed::default();
    let requests = if smoke { 50 } else { 250 };
    fleet.plane.kill().await?;
    let down = http_get::get(fleet.plane_debug(), "/healthz", None).await.is_err();
    seen.expect("the control plane is down", down);
    let without = load(fleet.page(), requests).await;
    // Requests go on while it comes back and everybody reconnects.
    let during = tokio::spawn(load(fleet.page(), requests));
    fleet.restart_plane().await?;
    let during = during.await?;
    seen.note("requests_without_control_plane", requests);
    seen.note("failed_without_control_plane", without.len());
    seen.note("requests_during_restart", requests);
    seen.note("failed_during_restart", during.len());
    seen.note("failures", without.iter().chain(&during).take(5).cloned().collect::<Vec<_>>());
    seen.expect("no request failed", without.is_empty() && during.is_empty());
    // It is really back: an edit reaches everybody, and every process is still known to it.
    let original = std::fs::read_to_string(file(fleet))?;
    let edited = original.replacen("weight: 100", "weight: 1", 1).replacen("weight: 0", "weight: 100000", 1);
    let there = edit_and_wait(fleet, &edited, "v3").await;
    let back = edit_and_wait(fleet, &original, "v1").await;
    seen.note("ms_from_edit_to_effect_after_restart", there?);
    back?;
    let fleet = &*fleet;
    wait_for("every application registered again", || async {
        let registered = http_get::get_json(fleet.plane_debug(), "/registrations").await?;
        Ok(fleet.apps.iter().all(|process| is_registered(process, &registered)).then_some(()))
    })
    .await?;
    seen.note("registered", fleet.apps.len());
    Ok(seen)
}

fn is_registered(process: &Process, registered: &Value) -> bool {
    let address = process.ready.address.to_string();
    registered.as_array().is_some_and(|all| all.iter().any(|one| one["address"] == address.as_str()))
}

/// Sends requests at a steady pace, whatever becomes of them; gives what failed.
async fn load(address: SocketAddr, requests: u32) -> Vec<String> {
    let mut pace = tokio::time::interval(PACE);
    let mut running = Vec::new();
    for _ in 0..requests {
        pace.tick().await;
        running.push(tokio::spawn(page_at(address, None)));
    }
    let finished = join_all(running).await;
    finished
        .into_iter()
        .filter_map(|result| match result {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        })
        .collect()
}
