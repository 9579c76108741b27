//! [`Check`]: collects what validation has to say, with the path of the field.

use mesh_core::matcher::{Effort, Met, OF_NO_PATH};
use mesh_core::policy::PatternRoom;

use crate::finding::{Finding, Severity};
use crate::source::Document;

/// The findings of one object's validation.
pub(crate) struct Check<'a> {
    document: &'a Document,
    pub(crate) findings: Vec<Finding>,
    /// For the regular expressions that somebody wrote.
    pub(crate) patterns: PatternRoom,
    /// For looking whether conditions can be met.
    pub(crate) effort: Effort,
    is_unchecked: bool,
}

impl<'a> Check<'a> {
    pub(crate) fn new(document: &'a Document) -> Self {
        Self {
            document,
            findings: Vec::new(),
            patterns: PatternRoom::default(),
            effort: Effort::default(),
            is_unchecked: false,
        }
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

    /// Says what is to be said of a condition on the path; with an error one that nothing meets.
    pub(crate) fn met(&mut self, path: &str, met: Met) -> Result<(), String> {
        match met {
            Met::Whole => Ok(()),
            Met::Never => Err(OF_NO_PATH.to_owned()),
            Met::InPart { sent, judged } => {
                let message = format!(
                    "an alternative of the pattern is met by no request, because the path of each is brought to its normal \
                     form first: {sent:?} becomes {judged:?}, which the pattern does not take; write the alternative so"
                );
                self.warn(path, message);
                Ok(())
            }
            Met::Unchecked => {
                if !std::mem::replace(&mut self.is_unchecked, true) {
                    let message = "not checked, nor any after it: whether requests can meet these conditions takes more work \
                                   than one object is given; divide it, or write simpler patterns";
                    self.warn(path, message);
                }
                Ok(())
            }
        }
    }

    /// Takes a value or reports why there is none.
    pub(crate) fn take<T>(&mut self, path: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.error(path, message)).ok()
    }
}
