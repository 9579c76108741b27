//! The one function that knows which YAML library is used, with the bounds that keep a hostile file
//! from using up memory or time.

use super::node::Node;

/// Deepest nesting of a document.
const MAX_DEPTH: usize = 64;
/// Most values of one file, aliases expanded. Files are read one after the other, so what one may cost bounds
/// how long a change of another waits.
const MAX_NODES: usize = 200_000;
/// Most values that aliases may add to one file.
const MAX_ALIASED: usize = 20_000;
/// Stack of the thread that reads. The library calls itself once a level: a build without optimisation needs 40 KiB
/// for each, so 64 levels do not fit into the 2 MiB that a thread has by default. Only what is used is paid for.
const STACK: usize = 16 << 20;

/// Why a text is not usable YAML.
#[derive(Debug)]
pub(crate) struct YamlError {
    /// Line, from 1; 0 = not known.
    pub(crate) line: u32,
    /// What is wrong, in one line.
    pub(crate) message: String,
}

/// Reads every document of a text; empty documents are skipped. The caller's stack does not matter.
pub(crate) fn parse(text: &str, max_documents: usize) -> Result<Vec<Node>, YamlError> {
    on_stack(STACK, text, max_documents)
}

fn on_stack(bytes: usize, text: &str, max_documents: usize) -> Result<Vec<Node>, YamlError> {
    let refused = |what: String| YamlError { line: 0, message: format!("it was not read: {what}; save it again") };
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new().name("manifest".to_owned()).stack_size(bytes);
        match reader.spawn_scoped(scope, || read(text, max_documents)) {
            Ok(reader) => reader.join().unwrap_or_else(|_| Err(refused("the reader of YAML failed".to_owned()))),
            Err(error) => Err(refused(format!("no thread to read it on: {error}"))),
        }
    })
}

/// Reads on the caller's stack, which must have room for [`MAX_DEPTH`] levels.
fn read(text: &str, max_documents: usize) -> Result<Vec<Node>, YamlError> {
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
    let too_deep = || format!("nested more than {MAX_DEPTH} levels deep");
    // The parser of flow style has a bound of its own, far beyond ours.
    if message.starts_with("recursion limit exceeded") {
        return too_deep();
    }
    let Some(breach) = message.strip_prefix("budget breached: ") else {
        return message.replace(", set DuplicateKeyPolicy in Options if acceptable", "");
    };
    match breach.split([' ', '{']).next().unwrap_or_default() {
        "Documents" => format!("more than {max_documents} documents in one file; split it"),
        "RecordedAnchorEvents" => {
            format!("anchors and aliases stand for more than {MAX_ALIASED} values; write them out")
        }
        "Nodes" | "Events" => format!("more than {MAX_NODES} values in one file; split it"),
        "Depth" => too_deep(),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What a thread of the watcher has.
    const SMALL: usize = 2 << 20;
    const STACK_OF_CHILD: &str = "MESH_TEST_YAML_STACK";

    /// Mappings, sequences and flow mappings, each so many levels deep, the document itself being the first.
    fn nested(levels: usize) -> [String; 5] {
        let block: String = (0..levels).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
        [
            block,
            format!("{}x", "- ".repeat(levels)),
            format!("{}x{}", "{a: ".repeat(levels), "}".repeat(levels)),
            format!("{}x{}", "[".repeat(levels), "]".repeat(levels)),
            // What no editor closes.
            "{a: ".repeat(levels),
        ]
    }

    fn on_a_small_stack<T: Send>(run: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            std::thread::Builder::new().stack_size(SMALL).spawn_scoped(scope, run).unwrap().join().unwrap()
        })
    }

    #[test]
    fn nesting_up_to_the_limit_is_read_and_beyond_it_refused_whatever_the_callers_stack() {
        on_a_small_stack(|| {
            for text in &nested(MAX_DEPTH)[..4] {
                assert!(parse(text, 1).is_ok(), "{:.40}: {:?}", text, parse(text, 1));
            }
            for levels in [MAX_DEPTH + 1, 1000, 2000] {
                let [block, list, flow, flow_list, unclosed] = nested(levels);
                for text in [block, list, flow, flow_list] {
                    let error = parse(&text, 1).unwrap_err();
                    assert_eq!(error.message, "nested more than 64 levels deep", "{levels} levels of {text:.20}");
                }
                // Wrong in two ways; either may be told.
                assert!(parse(&unclosed, 1).is_err());
            }
        });
    }

    /// Reads the deepest texts that are allowed in a process of its own, on a stack of so many bytes.
    fn a_child_reads_on(bytes: usize) -> bool {
        let test = "source::yaml::tests::the_readers_stack_is_several_times_what_the_deepest_text_needs";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env(STACK_OF_CHILD, bytes.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
        assert!(said.contains("1 passed") || said.contains("overflowed its stack"), "{said}");
        child.status.success()
    }

    #[test]
    fn the_readers_stack_is_several_times_what_the_deepest_text_needs() {
        // An overflow ends the process, so this runs again in others.
        if let Ok(bytes) = std::env::var(STACK_OF_CHILD) {
            for text in &nested(MAX_DEPTH)[..4] {
                assert!(on_stack(bytes.parse().unwrap(), text, 1).is_ok());
            }
            return;
        }
        assert!(a_child_reads_on(STACK / 4));
        // The control: too small a stack does end the process.
        assert!(!a_child_reads_on(128 << 10));
    }

    #[test]
    fn a_file_of_too_many_values_is_one_message() {
        let list = |values: usize| format!("[{}]", "1,".repeat(values));
        assert!(parse(&list(20_000), 1).is_ok());
        let error = parse(&list(2_000_000), 1).unwrap_err();
        assert_eq!(error.message, "more than 200000 values in one file; split it");
    }
}
