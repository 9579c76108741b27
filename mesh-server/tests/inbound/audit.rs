//! The audit records of a test's own servers, which run on its thread.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::OnceLock;

use mesh_core::policy::{AuditCondition, AuthorizationAction, AuthorizationPolicy, InboundState};
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

thread_local!(static RECORDS: RefCell<Vec<Record>> = const { RefCell::new(Vec::new()) });

/// One record: its fields as they are printed.
#[derive(Debug, Default)]
pub(crate) struct Record(BTreeMap<&'static str, String>);

/// Listens for good to all threads, before the first server could say something: of a place in the code that a thread comes
/// by to which nobody listens tracing would remember that nobody does.
pub(crate) fn listen() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| tracing::subscriber::set_global_default(Listener).expect("nobody else listens to all threads"));
}

/// What was recorded since this was asked last.
pub(crate) fn taken() -> Vec<Record> {
    RECORDS.take()
}

/// A request has left the record that its status demands, and nothing besides: one that was judged has one with the policy,
/// the rule that matched, why, and who asked; what never came before a policy has none.
pub(crate) fn assert_decided(state: &InboundState, status: u16, caller: Option<&str>, what: &dyn Debug) {
    let InboundState::Ready(listener) = state else { panic!("no policy to decide by: {what:?}") };
    let decision = match status {
        403 => "denied",
        200 => "allowed",
        _ => return assert_eq!(taken().len(), 0, "records of what no policy saw: {what:?}"),
    };
    let records = taken();
    match (&listener.authorization[..], &records[..]) {
        ([], []) => {}
        ([policy], [record]) => record.assert_names(policy, decision, caller, what),
        ([policy], []) if status == 200 && policy.audit == AuditCondition::None => {}
        _ => panic!("records of what was {decision}, {what:?}: {records:?}"),
    }
}

impl Record {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn assert_names(&self, policy: &AuthorizationPolicy, decision: &str, caller: Option<&str>, what: &dyn Debug) {
        let matches = match policy.action {
            AuthorizationAction::Allow => decision == "allowed",
            _ => decision == "denied",
        };
        let rule = policy.rules.first().filter(|_| matches).map(|rule| &*rule.name);
        let reason = match (&policy.action, decision) {
            (_, "allowed") => None,
            (AuthorizationAction::Allow, _) => Some("no rule of the ALLOW policies matches"),
            (AuthorizationAction::Deny, _) => Some("a rule of a DENY policy matches"),
            _ => Some("a rule of a CUSTOM policy matches, and nobody knows its provider"),
        };
        for (name, value) in [
            ("decision", Some(decision)),
            ("policy", Some(&*policy.name)),
            ("rule", rule),
            ("reason", reason),
            ("principal", caller),
        ] {
            assert_eq!(self.field(name), value, "{name} of {what:?}: {self:?}");
        }
        assert!(self.field("peer").is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{what:?}: {self:?}");
        assert!(self.field("method").is_some() && self.field("path").is_some(), "{what:?}: {self:?}");
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

struct Listener;

impl Subscriber for Listener {
    fn register_callsite(&self, place: &'static Metadata<'static>) -> Interest {
        if self.enabled(place) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, place: &Metadata<'_>) -> bool {
        place.target() == "mesh::audit"
    }

    fn event(&self, event: &Event<'_>) {
        let mut record = Record::default();
        event.record(&mut record);
        // A thread that ends has nobody left to ask.
        let _ = RECORDS.try_with(|records| records.borrow_mut().push(record));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        unreachable!("it is interested in no span")
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
