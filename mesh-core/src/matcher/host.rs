//! The virtual host of an authority: exact, then the longest `*suffix`, then the longest `prefix*` (gRFC A27), of the authority
//! as it is; then the same without its port and the final dot of a fully qualified name, which gRPC and Envoy do not do; then
//! `*`. ASCII case does not count.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::policy::VirtualHost;
use crate::target;

/// Which domain of which virtual host matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostHit {
    pub(super) virtual_host: usize,
    pub(super) domain: usize,
}

#[derive(Debug)]
pub(super) struct HostIndex {
    exact: HashMap<Box<str>, HostHit, foldhash::fast::FixedState>,
    // Longest first; the `*` cut off.
    suffixes: Box<[(Box<str>, HostHit)]>,
    prefixes: Box<[(Box<str>, HostHit)]>,
    any: Option<HostHit>,
}

impl HostIndex {
    /// Of a domain that is listed twice the first wins.
    pub(super) fn new(hosts: &[VirtualHost]) -> Self {
        let mut exact = HashMap::default();
        let (mut suffixes, mut prefixes, mut any) = (Vec::new(), Vec::new(), None);
        for (virtual_host, host) in hosts.iter().enumerate() {
            for (domain, pattern) in host.domains.iter().enumerate() {
                let hit = HostHit { virtual_host, domain };
                match pattern.as_str() {
                    "*" => {
                        any.get_or_insert(hit);
                    }
                    text => match (text.strip_prefix('*'), text.strip_suffix('*')) {
                        (Some(suffix), _) => suffixes.push((Box::from(suffix), hit)),
                        (None, Some(prefix)) => prefixes.push((Box::from(prefix), hit)),
                        (None, None) => {
                            exact.entry(Box::from(text)).or_insert(hit);
                        }
                    },
                }
            }
        }
        let longest_first = |list: &mut Vec<(Box<str>, HostHit)>| list.sort_by_key(|(text, _)| usize::MAX - text.len());
        longest_first(&mut suffixes);
        longest_first(&mut prefixes);
        Self { exact, suffixes: suffixes.into(), prefixes: prefixes.into(), any }
    }

    pub(super) fn find(&self, authority: &str) -> Option<HostHit> {
        // What a destination's own routes mostly are: one virtual host for all of them.
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any;
        }
        // Mostly it is written as policy writes it, which has no capitals.
        if let Some(hit) = self.exact.get(authority) {
            return Some(*hit);
        }
        let lower = lower_case(authority);
        let bare = without_port(&lower);
        let bare = bare.strip_suffix('.').unwrap_or(bare);
        let without = || if bare.len() < lower.len() { self.best(bare) } else { None };
        self.best(&lower).or_else(without).or(self.any)
    }

    /// Of one form.
    fn best(&self, form: &str) -> Option<HostHit> {
        // A `*` stands for at least one character, as in Envoy.
        let wild = |list: &[(Box<str>, HostHit)], fits: fn(&str, &str) -> bool| {
            list.iter().find(|(text, _)| form.len() > text.len() && fits(form, text)).map(|(_, hit)| *hit)
        };
        let exact = self.exact.get(form).copied();
        exact
            .or_else(|| wild(&self.suffixes, |form, text| form.ends_with(text)))
            .or_else(|| wild(&self.prefixes, |form, text| form.starts_with(text)))
    }
}

/// Allocates only if there is something to change.
fn lower_case(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    }
}

fn without_port(authority: &str) -> &str {
    target::without_port(authority).unwrap_or(authority)
}
