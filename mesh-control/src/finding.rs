//! [`Finding`]: one thing to say about one manifest, with the place it is about.
//!
//! Refuses to know how findings are shown; `mesh analyze`, the log and the debug endpoints print the
//! same values.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The object, or the named part of it, has no effect or breaks traffic.
    Error,
    /// It has an effect, probably not the intended one.
    Warning,
    /// Worth knowing.
    Info,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        })
    }
}

/// One thing to say about one manifest. Displays as one line:
/// `file:line: error: VirtualService default/reviews spec.http[0].route[1].weight: … [IST0101]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file; empty when the finding is about no file (a registration, say).
    pub file: Arc<str>,
    /// Line in the file, from 1; 0 = the whole file.
    pub line: u32,
    /// API group, such as `networking.istio.io`; empty for the core group or when unknown.
    pub group: String,
    /// Kind; empty when the finding is about a whole file.
    pub kind: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Path of the field, such as `spec.http[0].route[1].weight`; empty = the whole object.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
    /// The code of `istioctl analyze` for the same finding, where one exists.
    pub code: Option<&'static str>,
}

impl Finding {
    /// A finding about a whole file, or a line of it.
    pub fn about_file(severity: Severity, file: &Arc<str>, line: u32, message: impl Into<String>) -> Self {
        Self {
            severity,
            file: file.clone(),
            line,
            group: String::new(),
            kind: String::new(),
            namespace: String::new(),
            name: String::new(),
            field: String::new(),
            message: message.into(),
            code: None,
        }
    }

    /// The same finding with a code of `istioctl analyze`.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", OneLine(&self.file))?;
            if self.line > 0 {
                write!(f, "{}:", self.line)?;
            }
            f.write_str(" ")?;
        }
        write!(f, "{}: ", self.severity)?;
        if !self.kind.is_empty() {
            write!(f, "{} ", OneLine(&self.kind))?;
            match (self.namespace.as_str(), self.name.as_str()) {
                ("", name) => write!(f, "{}", OneLine(name))?,
                (namespace, name) => write!(f, "{}/{}", OneLine(namespace), OneLine(name))?,
            }
            if !self.field.is_empty() {
                write!(f, " {}", OneLine(&self.field))?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{}", OneLine(&self.message))?;
        if let Some(code) = self.code {
            write!(f, " [{code}]")?;
        }
        Ok(())
    }
}

/// Text that a manifest wrote, on one line: what ends a line, moves a cursor or turns the direction of writing is escaped.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        let moves = |c: char| {
            c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        self.0.chars().try_for_each(|c| if moves(c) { write!(f, "{}", c.escape_default()) } else { f.write_char(c) })
    }
}
