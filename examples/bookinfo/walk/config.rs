//! Steps about manifests: what was accepted, a live edit, a broken file.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;

use super::{page, reviews_version, wait_for};
use crate::apps::Result;
use crate::fleet::Fleet;
use crate::http_get;
use crate::report::Observed;

/// The manifests are in force without an error; what is not served is said.
pub(crate) async fn manifests(fleet: &Fleet) -> Result<Observed> {
    let mut seen = Observed::default();
    let findings = findings(fleet).await?;
    let errors: Vec<_> = findings.iter().filter(|finding| finding["severity"] == "error").map(line).collect();
    seen.expect("no manifest is refused", errors.is_empty());
    seen.expect(
        "the Gateway is reported as not served",
        findings.iter().any(|finding| finding["kind"].as_str().is_some_and(|kind| kind.ends_with("Gateway"))),
    );
    seen.note("errors", errors);
    seen.note("findings", findings.iter().map(line).collect::<Vec<_>>());
    Ok(seen)
}

/// (c) An edit on disk takes effect: everybody to v3, and back.
pub(crate) async fn live_edit(fleet: &Fleet) -> Result<Observed> {
    let mut seen = Observed::default();
    let file = file(fleet);
    let original = std::fs::read_to_string(&file)?;
    let edited = original
        .replacen("weight: 100", "weight: WAS-100", 1)
        .replacen("weight: 0", "weight: 100", 1)
        .replacen("weight: WAS-100", "weight: 0", 1);
    if edited == original {
        return Err(format!("{} has no weights 100 and 0 to swap", file.display()).into());
    }
    let before = reviews_version(&page(fleet, None).await?).to_owned();
    let there = edit_and_wait(fleet, &edited, "v3").await;
    let back = edit_and_wait(fleet, &original, "v1").await;
    let (there, back) = (there?, back?);
    seen.expect("v1 before the edit", before == "v1");
    seen.note("ms_from_write_to_first_v3", there);
    seen.note("ms_from_write_back_to_first_v1", back);
    seen.expect("both took less than a second", there < 1000 && back < 1000);
    Ok(seen)
}

/// (g) A broken manifest: a clear error, traffic unchanged.
pub(crate) async fn broken_manifest(fleet: &Fleet) -> Result<Observed> {
    let mut seen = Observed::default();
    let file = file(fleet);
    let original = std::fs::read_to_string(&file)?;
    std::fs::write(&file, "apiVersion: networking.istio.io/v1\nkind: VirtualService\n  metadata: [unclosed\n")?;
    let observed = while_broken(fleet).await;
    std::fs::write(&file, &original)?;
    let (error, versions) = observed?;
    seen.note("error", error);
    seen.expect("everybody still got v1 and jason v2", versions == ("v1".to_owned(), "v2".to_owned()));
    wait_for("the error is gone after the repair", || async {
        Ok(findings(fleet).await?.iter().all(|finding| finding["severity"] != "error").then_some(()))
    })
    .await?;
    Ok(seen)
}

async fn while_broken(fleet: &Fleet) -> Result<(String, (String, String))> {
    let error = wait_for("an error about virtual-service.yaml", || async {
        let findings = findings(fleet).await?;
        let is_ours = |finding: &&Value| {
            let file = finding["file"].as_str().unwrap_or_default();
            finding["severity"] == "error" && file.ends_with("virtual-service.yaml")
        };
        Ok(findings.iter().find(is_ours).map(line))
    })
    .await?;
    let everybody = reviews_version(&page(fleet, None).await?).to_owned();
    let jason = reviews_version(&page(fleet, Some("jason")).await?).to_owned();
    Ok((error, (everybody, jason)))
}

/// Milliseconds from the write to the first answer of `version`.
pub(crate) async fn edit_and_wait(fleet: &Fleet, text: &str, version: &str) -> Result<u64> {
    std::fs::write(file(fleet), text)?;
    let written = Instant::now();
    wait_for(&format!("reviews {version} after an edit"), || async {
        Ok((reviews_version(&page(fleet, None).await?) == version).then_some(()))
    })
    .await?;
    Ok(written.elapsed().as_millis() as u64)
}

pub(crate) fn file(fleet: &Fleet) -> PathBuf {
    fleet.manifests().join("virtual-service.yaml")
}

async fn findings(fleet: &Fleet) -> Result<Vec<Value>> {
    let answer = http_get::get_json(fleet.plane_debug(), "/findings").await?;
    Ok(answer.as_array().cloned().unwrap_or_default())
}

fn line(finding: &Value) -> String {
    let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    format!(
        "{}:{} {} {} {}: {}",
        text("file"),
        finding["line"],
        text("severity"),
        text("kind"),
        text("name"),
        text("message")
    )
}
