//! Where manifests come from: texts become [`Document`]s with file and line, and nothing is lost
//! without a [`Finding`].
//!
//! Refuses to know what a kind means; that is [`crate::model`]'s.

pub(crate) mod decode;
pub mod directory;
mod files;
pub(crate) mod kept;
pub(crate) mod node;
pub(crate) mod yaml;

pub use self::files::{FileSet, Limits};

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use crate::finding::{Finding, Severity};
use node::{Node, Value};

/// One object of a file.
#[derive(Debug)]
pub struct Document {
    pub(crate) file: Arc<str>,
    pub(crate) line: u32,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// `metadata.creationTimestamp`; RFC 3339 in UTC orders as text. Empty = unknown, equally old.
    pub(crate) created: String,
    pub(crate) node: Node,
}

/// What tells objects apart: two kinds of one name in different API groups are different kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectKey {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Document {
    pub(crate) fn key(&self) -> ObjectKey {
        ObjectKey {
            group: self.group.clone(),
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// A finding about the field at `path`; an empty path is the whole object.
    pub(crate) fn finding(&self, severity: Severity, path: &str, message: impl Into<String>) -> Finding {
        Finding {
            severity,
            file: self.file.clone(),
            line: if path.is_empty() { self.line } else { self.node.line_of(path) },
            group: self.group.clone(),
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            field: path.to_owned(),
            message: message.into(),
            code: None,
        }
    }
}

/// Documents of some files, each object once.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    pub(crate) documents: Vec<Arc<Document>>,
    pub(crate) findings: Vec<Finding>,
    /// Files that could never be read: what they say nobody knows.
    pub(crate) unread: Vec<Arc<str>>,
}

impl Manifests {
    /// Reads texts that are already in memory: `(file name, content)`.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let limits = Limits::default();
        let files = texts.into_iter().map(|(name, text)| parse_file(&name.into(), text, &limits)).collect::<Vec<_>>();
        Self::join(files.iter(), &HashMap::new())
    }

    /// What reading the texts had to say.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.documents.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// Whether `path`, a file or a directory as it was named, gave any object, or an error that may have kept one back.
    pub fn is_said_by(&self, path: &Path) -> bool {
        let errors = self.findings.iter().filter(|finding| finding.severity == Severity::Error);
        let mut files = self.documents.iter().map(|document| &document.file).chain(errors.map(|finding| &finding.file));
        files.any(|file| Path::new(&**file).starts_with(path.display().to_string()))
    }

    /// Joins parsed files. Of objects with one key the one whose file had it before (`in_force`) stays,
    /// else the first.
    pub(crate) fn join<'a>(
        files: impl Iterator<Item = &'a ParsedFile> + Clone,
        in_force: &HashMap<ObjectKey, Arc<str>>,
    ) -> Self {
        let mut winners: HashMap<ObjectKey, &Arc<Document>> = HashMap::new();
        for document in files.clone().flat_map(|file| &file.documents) {
            let winner = winners.entry(document.key()).or_insert(document);
            let owner = in_force.get(&document.key());
            if winner.file != document.file && owner.is_some_and(|owner| *owner == document.file) {
                *winner = document;
            }
        }
        let mut joined = Self::default();
        for file in files {
            joined.findings.extend(file.findings.iter().cloned());
            for document in &file.documents {
                let winner = winners[&document.key()];
                if Arc::ptr_eq(winner, document) {
                    joined.documents.push(document.clone());
                    continue;
                }
                let message = format!(
                    "defined before at {}:{}; this later one is ignored: remove or rename it",
                    winner.file, winner.line
                );
                joined.findings.push(document.finding(Severity::Error, "metadata.name", message));
            }
        }
        joined
    }

    /// In which file each object is.
    pub(crate) fn places(&self) -> HashMap<ObjectKey, Arc<str>> {
        self.documents.iter().map(|document| (document.key(), document.file.clone())).collect()
    }
}

/// What one file holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct ParsedFile {
    pub(crate) documents: Vec<Arc<Document>>,
    pub(crate) findings: Vec<Finding>,
    /// It is not YAML at all, breaks a bound, or holds something without a kind or a name: documents are
    /// unknown, not absent.
    pub(crate) unreadable: bool,
}

/// Reads one file's text.
pub(crate) fn parse_file(file: &Arc<str>, text: &str, limits: &Limits) -> ParsedFile {
    if text.len() as u64 > limits.file_bytes {
        return unreadable(file, 0, limits.too_large(text.len() as u64));
    }
    match yaml::parse(text, limits.documents) {
        Err(error) => unreadable(file, error.line, format!("not usable YAML: {}", error.message)),
        Ok(nodes) => {
            let mut parsed = ParsedFile::default();
            for node in nodes {
                read_document(file, node, &mut parsed, limits);
            }
            parsed
        }
    }
}

pub(crate) fn unreadable(file: &Arc<str>, line: u32, message: String) -> ParsedFile {
    let finding = Finding::about_file(Severity::Error, file, line, message);
    ParsedFile { documents: Vec::new(), findings: vec![finding], unreadable: true }
}

fn read_document(file: &Arc<str>, node: Node, parsed: &mut ParsedFile, limits: &Limits) {
    let kind = node.get("kind").and_then(Node::text).unwrap_or_default();
    if kind == "List" {
        let Node { value: Value::Map(entries), .. } = node else { return };
        let items = entries.into_iter().find(|(name, _)| name == "items").map(|(_, items)| items.value);
        if let Some(Value::List(items)) = items {
            for item in items {
                if parsed.documents.len() >= limits.documents {
                    let message = format!("more than {} objects in one file", limits.documents);
                    *parsed = unreadable(file, item.line, message);
                    return;
                }
                // A List inside a List is refused by Kubernetes too.
                read_object(file, item, parsed);
            }
        }
        return;
    }
    read_object(file, node, parsed);
}

fn read_object(file: &Arc<str>, node: Node, parsed: &mut ParsedFile) {
    match object(file, node) {
        Ok(document) => {
            parsed.findings.extend(not_text(&document));
            parsed.documents.push(Arc::new(document));
        }
        Err(finding) => {
            parsed.findings.push(*finding);
            // Which object it was before nobody can tell.
            parsed.unreadable = true;
        }
    }
}

fn object(file: &Arc<str>, node: Node) -> Result<Document, Box<Finding>> {
    let refuse = |line, message: &str| Box::new(Finding::about_file(Severity::Error, file, line, message));
    let found = |path: &[&str]| path.iter().try_fold(&node, |node, name| node.get(name));
    let text = |path: &[&str]| found(path).and_then(Node::text).unwrap_or_default().to_owned();
    let identity: [&[&str]; 4] = [&["apiVersion"], &["kind"], &["metadata", "name"], &["metadata", "namespace"]];
    for path in identity {
        if let Some(other) = found(path).filter(|node| node.text().is_none()) {
            let (path, what) = (path.join("."), other.describe());
            return Err(refuse(other.line, &format!("{path}: text is needed, not {what}; put it in quotes")));
        }
    }
    let (api_version, kind) = (text(&["apiVersion"]), text(&["kind"]));
    if api_version.is_empty() || kind.is_empty() {
        return Err(refuse(node.line, "not a Kubernetes object: apiVersion and kind are needed"));
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let namespace = Some(text(&["metadata", "namespace"])).filter(|n| !n.is_empty() && kind != "Namespace");
    let namespace = namespace.unwrap_or_else(|| if kind == "Namespace" { String::new() } else { "default".into() });
    let mut document = Document {
        file: file.clone(),
        line: node.line,
        group: group.to_owned(),
        version: version.to_owned(),
        namespace,
        name: text(&["metadata", "name"]),
        labels: text_map(&node, "labels"),
        annotations: text_map(&node, "annotations"),
        created: text(&["metadata", "creationTimestamp"]),
        kind,
        node,
    };
    if document.name.is_empty() {
        document.name = "(no name)".into();
        let message = "the object has no name: set metadata.name";
        return Err(Box::new(document.finding(Severity::Error, "metadata.name", message)));
    }
    match misnamed(&document) {
        Some((path, rule)) => Err(Box::new(document.finding(Severity::Error, path, rule))),
        None => Ok(document),
    }
}

/// Which part of its name, if any, Kubernetes would not take, and what it takes.
fn misnamed(document: &Document) -> Option<(&'static str, &'static str)> {
    const NAMESPACE: &str =
        "not a namespace: 1 to 63 of a-z, 0-9 and `-` are needed, with a letter or a digit at both ends";
    const NAME: &str = "not a name: 1 to 253 of a-z, 0-9, `-` and `.` are needed, with a letter or a digit at both ends of \
                        what is between dots";
    // Names of roles, and they alone, may be parts of paths: `system:node`.
    const ROLES: &str = "rbac.authorization.k8s.io";
    let Document { group, namespace, name, .. } = document;
    if !namespace.is_empty() && !is_label(namespace) {
        return Some(("metadata.namespace", NAMESPACE));
    }
    let name = if group == ROLES { name.replace([':', '_'], "-").to_ascii_lowercase() } else { name.clone() };
    (!is_subdomain(&name)).then_some(("metadata.name", NAME))
}

/// Checks a DNS label (RFC 1123): 1 to 63 of a-z, 0-9 and `-`, not at the ends.
pub(crate) fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_subdomain(text) && !text.contains('.')
}

/// Checks the name of an object as Kubernetes does (a subdomain of RFC 1123, whose parts may be long).
fn is_subdomain(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-');
    text.len() <= 253 && text.split('.').all(is_part)
}

fn members<'a>(node: &'a Node, name: &str) -> &'a [(String, Node)] {
    match node.get("metadata").and_then(|metadata| metadata.get(name)).map(|map| &map.value) {
        Some(Value::Map(entries)) => entries,
        _ => &[],
    }
}

fn text_map(node: &Node, name: &str) -> BTreeMap<String, String> {
    members(node, name).iter().filter_map(|(key, value)| Some((key.clone(), value.text()?.to_owned()))).collect()
}

/// Labels and annotations whose values YAML does not take for text.
fn not_text(document: &Document) -> Vec<Finding> {
    let in_map = |name: &'static str| {
        let wrong = members(&document.node, name).iter().filter(|(_, value)| value.text().is_none());
        wrong.map(move |(key, value)| {
            let message = format!("ignored: text is needed, not {}; put it in quotes", value.describe());
            let mut finding = document.finding(Severity::Warning, "", message);
            (finding.field, finding.line) = (format!("metadata.{name}.{key}"), value.line);
            finding
        })
    };
    in_map("labels").chain(in_map("annotations")).collect()
}

#[cfg(test)]
mod tests;
