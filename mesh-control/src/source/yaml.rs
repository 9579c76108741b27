//! The one function that knows which YAML library is used, with the bounds that keep a hostile file
//! from using up memory or time.

use super::node::Node;

/// Deepest nesting of a document.
const MAX_DEPTH: usize = 64;
/// Most values of one file, aliases expanded.
const MAX_NODES: usize = 500_000;
/// Most values that aliases may add to one file.
const MAX_ALIASED: usize = 20_000;

/// Why a text is not usable YAML.
#[derive(Debug)]
pub(crate) struct YamlError {
    /// Line, from 1; 0 = not known.
    pub(crate) line: u32,
    /// What is wrong, in one line.
    pub(crate) message: String,
}

/// Reads every document of a text; empty documents are skipped.
pub(crate) fn parse(text: &str, max_documents: usize) -> Result<Vec<Node>, YamlError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_documents: max_documents,
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            max_recorded_anchor_events: MAX_ALIASED,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_ALIASED,
            max_replay_stack_depth: 16,
        },
        // YAML 1.1's `on` and `no` are label values more often than they are booleans.
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| YamlError {
        line: error.location().and_then(|at| u32::try_from(at.line()).ok()).unwrap_or(0),
        message: plain(error.to_string().lines().next().unwrap_or("not YAML"), max_documents),
    })
}

/// The library's words about its own bounds and options in words about the file.
fn plain(message: &str, max_documents: usize) -> String {
    let Some(breach) = message.strip_prefix("budget breached: ") else {
        return message.replace(", set DuplicateKeyPolicy in Options if acceptable", "");
    };
    match breach.split([' ', '{']).next().unwrap_or_default() {
        "Documents" => format!("more than {max_documents} documents in one file; split it"),
        "RecordedAnchorEvents" => {
            format!("anchors and aliases stand for more than {MAX_ALIASED} values; write them out")
        }
        "Nodes" | "Events" => format!("more than {MAX_NODES} values in one file; split it"),
        "Depth" => format!("nested more than {MAX_DEPTH} levels deep"),
        _ => message.to_owned(),
    }
}
