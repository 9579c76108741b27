//! Adds up the result lines that libtest and rustdoc print, one a test binary:
//! `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::Failure;
use crate::workspace::announce;

/// How many tests passed and how many did not. Ignored ones count as neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    /// One thing that passed or failed.
    pub(crate) fn one(passed: bool) -> Self {
        Self { passed: passed.into(), failed: (!passed).into() }
    }

    /// Reads a line of a test run; `None` if it is not a result line.
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let (verdict, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        if verdict != "ok" && verdict != "FAILED" {
            return None;
        }
        let count = |word: &str| {
            counts.split(';').find_map(|part| part.trim().strip_suffix(word)?.trim_end().parse::<u64>().ok())
        };
        Some(Self { passed: count("passed")?, failed: count("failed")? })
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Runs a test command, shows its output as it comes, and adds up its result lines. A command that
/// fails without reporting a failed test (it did not compile, it crashed) counts as one failure.
pub(crate) fn run(command: &mut Command) -> Result<Tally, Failure> {
    announce(command);
    let broken = |error: io::Error| Failure::because(format!("cannot run cargo: {error}"));
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(broken)?;
    let stdout = child.stdout.take().expect("stdout is piped just above");
    let mut tally = copy_and_count(BufReader::new(stdout), io::stdout()).map_err(broken)?;
    let status = child.wait().map_err(broken)?;
    if !status.success() && tally.failed == 0 {
        eprintln!("xtask: cargo ended with {status} and reported no failed test; counted as one failure");
        tally.failed = 1;
    }
    Ok(tally)
}

fn copy_and_count(mut from: impl BufRead, mut to: impl Write) -> io::Result<Tally> {
    let mut tally = Tally::default();
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        to.write_all(&line)?;
        to.flush()?;
        if let Some(counts) = Tally::from_line(&String::from_utf8_lossy(&line)) {
            tally += counts;
        }
        line.clear();
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_counts_of_a_result_line() {
        let cases = [
            (
                "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
                Some((5, 0)),
            ),
            ("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out", Some((3, 2))),
            ("  test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 12 filtered out\r\n", Some((0, 0))),
            ("test something ... ok", None),
            ("test result: pending. 1 passed; 0 failed", None),
            ("test result: ok. many passed; 0 failed", None),
            ("test result: ok. 1 passed", None),
            ("", None),
        ];
        for (line, expected) in cases {
            let counts = Tally::from_line(line).map(|tally| (tally.passed, tally.failed));
            assert_eq!(counts, expected, "{line:?}");
        }
    }

    #[test]
    fn output_is_copied_unchanged_while_every_binary_is_counted() {
        let output = "running 1 test\n\
            test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
            a line that is not \u{fffd} text\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        let mut copy = Vec::new();
        let tally = copy_and_count(output.as_bytes(), &mut copy).unwrap();
        assert_eq!(tally, Tally { passed: 2, failed: 2 });
        assert_eq!(copy, output.as_bytes());
        assert_eq!(tally.to_string(), "2 passed, 2 failed");
    }

    #[test]
    fn a_command_that_fails_without_a_failed_test_counts_as_one_failure() {
        let rustc = |arg: &str| run(Command::new("rustc").arg(arg).stderr(Stdio::null())).unwrap();
        assert_eq!(rustc("--no-such-flag"), Tally { passed: 0, failed: 1 });
        assert_eq!(rustc("--version"), Tally::default());
    }
}
