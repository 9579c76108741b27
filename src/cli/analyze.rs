//! `mesh analyze`: what the control plane would say of manifests, before one is given them. They are read as it reads them,
//! and nothing is asked of one.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use mesh_control::finding::{Finding, Severity};
use mesh_control::model::Model;
use mesh_control::source::{FileSet, Limits};
use mesh_control::translate::{Options, World};
use serde_json::json;

use crate::{Domains, Error, Format, Inbound};

/// Arguments of `mesh analyze`.
#[derive(Args)]
pub(crate) struct AnalyzeArgs {
    /// Manifest files, or directories of them: all of them are one configuration. Of a directory the files that end in
    /// .yaml or .yml are read; subdirectories are not entered. /dev/stdin is a file, too.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    domains: Domains,
    #[command(flatten)]
    inbound: Inbound,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What is said of how many objects.
struct Analysis {
    objects: usize,
    findings: Vec<Finding>,
}

/// Reads, prints and tells by the exit code: 0 nothing is an error, 1 something is.
pub(crate) fn analyze(args: AnalyzeArgs) -> Result<ExitCode, Error> {
    let output = args.output;
    let analysis = read(args)?;
    super::print(&match output {
        Format::Table => analysis.lines(),
        Format::Json => analysis.json(),
    })?;
    Ok(if analysis.count(Severity::Error) == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn read(args: AnalyzeArgs) -> Result<Analysis, Error> {
    for path in &args.paths {
        // To the control plane it is a directory that is not there now.
        std::fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let manifests = FileSet::new(args.paths.iter().cloned(), Limits::default()).read();
    // A file that says nothing was read all the same, and may be a template switched off.
    if let Some(path) = args.paths.iter().find(|path| path.is_dir() && !manifests.is_said_by(path)) {
        let message = format!(
            "no manifest in {}: of a directory the files that end in .yaml or .yml are read, and subdirectories are not \
             entered; name each directory",
            path.display()
        );
        return Err(message.into());
    }
    let mut options = Options::default();
    options.trust_domain = args.domains.trust_domain;
    options.trust_domain_aliases = args.domains.trust_domain_alias;
    options.default_inbound_policy = args.inbound.default_inbound_policy;
    let world = World::build_with(&Model::build(&manifests, None), &[], options);
    let mut findings = world.findings().to_vec();
    findings.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    Ok(Analysis { objects: manifests.len(), findings })
}

impl Analysis {
    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    fn counts(&self) -> [usize; 3] {
        [Severity::Error, Severity::Warning, Severity::Info].map(|severity| self.count(severity))
    }

    fn lines(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        self.findings.iter().for_each(|finding| _ = writeln!(text, "{finding}"));
        let ([error, warning, info], objects) = (self.counts(), self.objects);
        let _ = writeln!(text, "objects: {objects}; errors: {error}, warnings: {warning}, notes: {info}");
        text
    }

    fn json(&self) -> String {
        let ([error, warning, info], Self { objects, findings }) = (self.counts(), self);
        let value =
            json!({ "objects": objects, "error": error, "warning": warning, "info": info, "findings": findings });
        format!("{value}\n")
    }
}
