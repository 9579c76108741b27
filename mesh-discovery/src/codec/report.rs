//! Where the decoder is ([`At`]) and what it found there ([`Report`]): every problem with its field
//! path, and every accepted field that nothing enforces.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use mesh_core::matcher::{Effort, Met, OF_NO_PATH};
use mesh_core::policy::{InvalidPolicy, Pattern, PatternRoom, Unenforced};

use super::{DecodeError, Decoded, ProviderInstance, ProviderPart, parts};

/// Problems and unenforced fields kept of one resource; a hostile resource could hold millions.
const MAX_FINDINGS: usize = 64;

/// Bytes of a name that a finding repeats, and of its reason, which may hold what somebody sent: of each there may be many.
const MAX_NAME: usize = 256;
const MAX_REASON: usize = 1024;

/// The beginning of a text.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// As much of a resource's name as a finding repeats.
pub(super) fn named(name: &str) -> &str {
    cut(name, MAX_NAME)
}

/// Place of a field inside its resource. A chain of borrowed steps: nothing is formatted until
/// something is found.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    outer: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Item(&'a str, usize),
    Key(&'a str, &'a str),
}

impl At<'static> {
    /// The resource itself.
    pub(super) const ROOT: Self = Self { outer: None, step: Step::Root };
}

impl At<'_> {
    /// A field.
    pub(super) fn field<'b>(&'b self, name: &'b str) -> At<'b> {
        At { outer: Some(self), step: Step::Field(name) }
    }

    /// An entry of a repeated field.
    pub(super) fn item<'b>(&'b self, name: &'b str, index: usize) -> At<'b> {
        At { outer: Some(self), step: Step::Item(name, index) }
    }

    /// An entry of a map field.
    pub(super) fn key<'b>(&'b self, name: &'b str, key: &'b str) -> At<'b> {
        At { outer: Some(self), step: Step::Key(name, key) }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(outer) = self.outer {
            outer.fmt(f)?;
            if !matches!(outer.step, Step::Root) {
                f.write_str(".")?;
            }
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) => f.write_str(name),
            Step::Item(name, index) => write!(f, "{name}[{index}]"),
            Step::Key(name, key) => write!(f, "{name}[{:?}]", cut(key, MAX_NAME)),
        }
    }
}

/// Of a pattern.
const MET_IN_PART: &str =
    "no request meets one of its alternatives, because the path of each is brought to its normal form first";
/// Of the first condition for which no work was left.
const UNCHECKED: &str =
    "nor any after it is checked for being met by some request: that takes more work than one resource is given";

/// What decoding one resource found.
pub(super) struct Report {
    kind: &'static str,
    name: String,
    problems: Vec<InvalidPolicy>,
    unenforced: Vec<Unenforced>,
    providers: Vec<ProviderInstance>,
    patterns: PatternRoom,
    parts: parts::Room,
    effort: Effort,
    is_unchecked: bool,
    /// Of what is read a condition that nothing meets opens nothing.
    never_is_safe: bool,
    /// Load-balancing policies that the application has.
    balancers: Arc<BTreeSet<String>>,
    dropped: usize,
    unlisted: usize,
}

impl Report {
    /// An empty report on `kind` (`listener`, `cluster`, …) `name`.
    pub(super) fn new(kind: &'static str, name: &str) -> Self {
        let name = named(name).to_owned();
        Self {
            kind,
            name,
            problems: Vec::new(),
            unenforced: Vec::new(),
            providers: Vec::new(),
            patterns: PatternRoom::default(),
            parts: parts::Room::default(),
            effort: Effort::default(),
            is_unchecked: false,
            never_is_safe: false,
            balancers: Arc::default(),
            dropped: 0,
            unlisted: 0,
        }
    }

    fn resource(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }

    /// The load-balancing policies that the application has beside ours.
    pub(super) fn with_balancers(&mut self, names: &Arc<BTreeSet<String>>) {
        self.balancers = names.clone();
    }

    /// Whether the application has a load-balancing policy of this name.
    pub(super) fn has_balancer(&self, name: &str) -> bool {
        self.balancers.contains(name)
    }

    /// Whether nothing is wrong.
    pub(super) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Refuses the resource because of the field at `at`.
    pub(super) fn problem(&mut self, at: &At<'_>, reason: impl Into<String>) {
        if self.problems.len() < MAX_FINDINGS {
            let mut reason = reason.into();
            if reason.len() > MAX_REASON {
                reason = format!("{} …", cut(&reason, MAX_REASON));
            }
            self.problems.push(InvalidPolicy::new(at.to_string(), reason));
        } else {
            self.dropped += 1;
        }
    }

    /// Takes the value, or refuses the resource with the reason of the failed check.
    pub(super) fn checked<T>(&mut self, at: &At<'_>, result: Result<T, InvalidPolicy>) -> Option<T> {
        result.map_err(|invalid| self.problem(at, invalid.reason)).ok()
    }

    /// Takes a regular expression, for which there must be room among all of the resource.
    pub(super) fn pattern(&mut self, at: &At<'_>, text: &str) -> Option<Pattern> {
        let read = self.patterns.read(text);
        self.checked(at, read)
    }

    /// Whether there is room to unfold what is packed, among all of the resource that is packed more than once.
    pub(super) fn unfold(&mut self, packed: &[u8], at: &At<'_>) -> bool {
        let room = self.parts.unfold(packed);
        room.map_err(|reason| self.problem(at, reason)).is_ok()
    }

    /// What is met of a condition on the path, `look` says. One that nothing meets is refused, unless it opens nothing by that.
    pub(super) fn is_met(&mut self, at: &At<'_>, look: impl FnOnce(&mut Effort) -> Met) -> bool {
        match look(&mut self.effort) {
            Met::Whole => {}
            Met::Never if self.never_is_safe => self.unenforced(at, OF_NO_PATH),
            Met::Never => {
                self.problem(at, OF_NO_PATH);
                return false;
            }
            Met::InPart { .. } => self.unenforced(at, MET_IN_PART),
            Met::Unchecked => {
                if !std::mem::replace(&mut self.is_unchecked, true) {
                    self.unenforced(at, UNCHECKED);
                }
            }
        }
        true
    }

    /// Reads something in which a condition that nothing meets opens nothing (`true`), or may.
    pub(super) fn where_never_is<T>(&mut self, safe: bool, read: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.never_is_safe, safe);
        let read = read(self);
        self.never_is_safe = before;
        read
    }

    /// Reads again what has been read in another way, of which the problems alone are of interest.
    pub(super) fn problems_of<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let mut again = Self::new(self.kind, &self.name);
        let value = read(&mut again);
        self.dropped += again.dropped;
        for problem in again.problems {
            match self.problems.contains(&problem) {
                true => {}
                false if self.problems.len() < MAX_FINDINGS => self.problems.push(problem),
                false => self.dropped += 1,
            }
        }
        value
    }

    /// Accepts the field at `at` without doing what it says.
    pub(super) fn unenforced(&mut self, at: &At<'_>, effect: &'static str) {
        if self.unenforced.len() < MAX_FINDINGS {
            self.unenforced.push(Unenforced::new(self.resource(), at.to_string(), effect));
        } else {
            self.unlisted += 1;
        }
    }

    /// The same for the field `name` below `at`, if it is set.
    pub(super) fn unenforced_if(&mut self, is_set: bool, at: &At<'_>, name: &str, effect: &'static str) {
        if is_set {
            self.unenforced(&at.field(name), effect);
        }
    }

    /// Notes the certificate provider instance that the field at `at` names.
    pub(super) fn provider(&mut self, at: &At<'_>, name: &str, part: ProviderPart) {
        let is_new = self.providers.iter().all(|known| known.name != name || known.part != part);
        if is_new && self.providers.len() < MAX_FINDINGS {
            self.providers.push(ProviderInstance { field: at.to_string(), name: name.to_owned(), part });
        }
    }

    /// The value if nothing was refused.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<Decoded<T>, DecodeError> {
        if self.dropped > 0 {
            self.problems.push(InvalidPolicy::new("", format!("and {} more problems", self.dropped)));
        }
        match value {
            Some(value) if self.problems.is_empty() => {
                if self.unlisted > 0 {
                    self.unenforced.push(Unenforced::more(self.resource(), self.unlisted));
                }
                Ok(Decoded { value, unenforced: self.unenforced, providers: self.providers })
            }
            _ => Err(DecodeError { resource: self.resource(), problems: self.problems }),
        }
    }
}

/// Whether a protobuf field was given: prost cannot tell a plain field's default from its absence, and
/// neither can a receiver.
pub(super) trait IsSet {
    fn is_set(&self) -> bool;
}

macro_rules! is_set_if {
    ($($type:ty: $value:ident => $set:expr),* $(,)?) => {
        $(impl IsSet for $type {
            fn is_set(&self) -> bool {
                let $value = self;
                $set
            }
        })*
    };
}

is_set_if! {
    bool: v => *v,
    i32: v => *v != 0,
    u32: v => *v != 0,
    i64: v => *v != 0,
    String: v => !v.is_empty(),
}

impl<T> IsSet for Option<T> {
    fn is_set(&self) -> bool {
        self.is_some()
    }
}

impl<T> IsSet for Vec<T> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V> IsSet for HashMap<K, V> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

/// Says of every field of a message what becomes of it:
///
/// - `read`: it is decoded or checked;
/// - `idle`: it means nothing to requests: names of statistics, logs, runtime keys, hints for the inner
///   workings of a proxy;
/// - `field => "effect"`: it is accepted and not obeyed, and reported where it is set.
///
/// There is no `..`: a field that a new version of the message brings breaks the build here until
/// somebody has thought about it.
macro_rules! consider {
    ($message:expr, $at:expr, $report:expr, $type:ident {
        read: [$($read:ident),* $(,)?],
        idle: [$($idle:ident),* $(,)?]
        $(, $field:ident => $effect:literal)* $(,)?
    }) => {{
        let $type { $($read: _,)* $($idle: _,)* $($field,)* } = $message;
        $($report.unenforced_if(
            $crate::codec::report::IsSet::is_set($field),
            $at,
            stringify!($field),
            $effect,
        );)*
    }};
}
pub(super) use consider;

#[cfg(test)]
mod tests {
    use super::*;

    /// What was sent is not repeated in whole with each thing that is wrong with it.
    #[test]
    fn what_findings_repeat_is_bounded() {
        let long = "\u{1}ß".repeat(1 << 20);
        let mut report = Report::new("listener", &long);
        for i in 0..2 * MAX_FINDINGS {
            let policies = At::ROOT.key("policies", &long);
            report.problem(&policies.item("permissions", i), format!("{long:?} is not known"));
            report.unenforced(&policies.item("principals", i), "nothing happens");
        }
        let found = report.unenforced.iter().map(|line| line.resource.len() + line.field.len()).sum::<usize>();
        assert!((1..MAX_FINDINGS * 8 * MAX_NAME).contains(&found), "{found}");
        let refused = report.finish(Some(())).unwrap_err().to_string();
        assert!((1..MAX_FINDINGS * 4 * MAX_REASON).contains(&refused.len()), "{}", refused.len());
        assert!(refused.contains("permissions[63]") && refused.contains("and 64 more problems"), "{refused}");
    }

    #[test]
    fn fields_beyond_those_that_are_listed_are_counted() {
        for (set, listed) in [(MAX_FINDINGS, MAX_FINDINGS), (MAX_FINDINGS + 7, MAX_FINDINGS + 1)] {
            let mut report = Report::new("cluster", "a");
            (0..set).for_each(|i| report.unenforced(&At::ROOT.item("endpoints", i), "nothing happens"));
            let found = report.finish(Some(())).unwrap().unenforced;
            assert_eq!((found.len(), found.iter().map(|line| line.fields).sum::<usize>()), (listed, set));
            assert_eq!(found.last().unwrap().field == "and 7 more", set > MAX_FINDINGS, "{:?}", found.last());
        }
    }
}
