//! [`Check`]: collects what validation has to say, with the path of the field.

use mesh_core::policy::PatternRoom;

use crate::finding::{Finding, Severity};
use crate::source::Document;

/// The findings of one object's validation.
pub(crate) struct Check<'a> {
    document: &'a Document,
    pub(crate) findings: Vec<Finding>,
    /// For the regular expressions that somebody wrote.
    pub(crate) patterns: PatternRoom,
}

impl<'a> Check<'a> {
    pub(crate) fn new(document: &'a Document) -> Self {
        Self { document, findings: Vec::new(), patterns: PatternRoom::default() }
    }

    pub(crate) fn document(&self) -> &'a Document {
        self.document
    }

    /// The object cannot be used.
    pub(crate) fn error(&mut self, path: &str, message: impl Into<String>) {
        self.findings.push(self.document.finding(Severity::Error, path, message));
    }

    /// How many errors there are.
    pub(crate) fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity == Severity::Error).count()
    }

    pub(crate) fn warn(&mut self, path: &str, message: impl Into<String>) {
        self.findings.push(self.document.finding(Severity::Warning, path, message));
    }

    pub(crate) fn info(&mut self, path: &str, message: impl Into<String>) {
        self.findings.push(self.document.finding(Severity::Info, path, message));
    }

    pub(crate) fn coded(&mut self, severity: Severity, path: &str, code: &'static str, message: impl Into<String>) {
        self.findings.push(self.document.finding(severity, path, message).with_code(code));
    }

    /// A part that is valid and not performed.
    pub(crate) fn unenforced(&mut self, path: &str, effect: &str) {
        self.warn(path, format!("accepted and not enforced by this version: {effect}"));
    }

    /// Takes a value or reports why there is none.
    pub(crate) fn take<T>(&mut self, path: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.error(path, message)).ok()
    }
}
