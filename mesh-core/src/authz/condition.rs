//! One condition of a rule, compiled, and the three values it can have.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::Attributes;
use super::token::TokenCondition;
use crate::matcher::{HeaderCondition, PathCondition, TextCondition, unescaped};
use crate::policy::{MetadataMatch, PathMatch, Permission, Principal, StringMatch, StringMatcher};

/// What is known of a condition (Kleene's logic: `and` is the least, `or` the greatest).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Truth {
    No,
    Unknown,
    Yes,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

impl Truth {
    pub(super) fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
            Self::Yes => Self::No,
        }
    }

    /// Of something that several readings are asked: all say yes, some do.
    pub(super) fn of_readings(every: bool, some: bool) -> Self {
        match (every, some) {
            (true, _) => Self::Yes,
            (false, true) => Self::Unknown,
            (false, false) => Self::No,
        }
    }
}

#[derive(Debug)]
pub(super) enum Condition {
    Any,
    /// Nothing here can tell.
    Unknown,
    All(Box<[Condition]>),
    OneOf(Box<[Condition]>),
    Not(Box<Condition>),
    Header(Box<HeaderCondition>),
    Path(PathCondition),
    Ports(u16, u16),
    DestinationIp(IpNet),
    ServerName(TextCondition),
    Peer(Option<TextCondition>),
    /// The peer's SPIFFE ID has `/ns/<namespace>/` in it.
    Namespace(Box<str>),
    PeerIp(IpNet),
    RemoteIp(IpNet),
    Token(Box<TokenCondition>),
}

impl Condition {
    pub(super) fn permission(permission: &Permission) -> Self {
        let list = |list: &[Permission]| list.iter().map(Self::permission).collect();
        match permission {
            Permission::Any => Self::Any,
            Permission::And(all) => Self::All(list(all)),
            Permission::Or(any) => Self::OneOf(list(any)),
            Permission::Not(inner) => Self::Not(Box::new(Self::permission(inner))),
            Permission::Header(header) => Self::Header(Box::new(HeaderCondition::for_rbac(header))),
            Permission::Path(path) => Self::path(path),
            Permission::DestinationPort(port) => Self::Ports(*port, *port),
            Permission::DestinationPorts(first, last) => Self::Ports(*first, *last),
            Permission::DestinationIp(net) => Self::DestinationIp(canonical(*net)),
            // It comes in small letters, however a caller writes it.
            Permission::ServerName(name) => {
                Self::ServerName(TextCondition::new(&StringMatcher { ignore_case: true, ..name.clone() }))
            }
            Permission::Metadata(token) => Self::token(token),
        }
    }

    pub(super) fn principal(principal: &Principal) -> Self {
        let list = |list: &[Principal]| list.iter().map(Self::principal).collect();
        match principal {
            Principal::Any => Self::Any,
            Principal::And(all) => Self::All(list(all)),
            Principal::Or(any) => Self::OneOf(list(any)),
            Principal::Not(inner) => Self::Not(Box::new(Self::principal(inner))),
            Principal::Authenticated(None) => Self::Peer(None),
            Principal::Authenticated(Some(name)) => match namespace_of(name) {
                Some(namespace) => Self::Namespace(format!("/ns/{namespace}/").into()),
                None => Self::Peer(Some(TextCondition::new(name))),
            },
            Principal::DirectRemoteIp(net) => Self::PeerIp(canonical(*net)),
            Principal::RemoteIp(net) => Self::RemoteIp(canonical(*net)),
            Principal::Header(header) => Self::Header(Box::new(HeaderCondition::for_rbac(header))),
            Principal::Path(path) => Self::path(path),
            Principal::Metadata(token) => Self::token(token),
        }
    }

    fn path(path: &PathMatch) -> Self {
        Self::Path(PathCondition::new(&unescaped(path), true))
    }

    fn token(token: &MetadataMatch) -> Self {
        TokenCondition::new(token).map_or(Self::Unknown, |token| Self::Token(Box::new(token)))
    }

    /// Whether any of it is about something that only requests have.
    pub(super) fn is_of_requests(&self) -> bool {
        match self {
            Self::All(list) | Self::OneOf(list) => list.iter().any(Self::is_of_requests),
            Self::Not(inner) => inner.is_of_requests(),
            Self::Unknown | Self::Header(_) | Self::Path(_) | Self::Token(_) => true,
            Self::Any
            | Self::Ports(..)
            | Self::DestinationIp(_)
            | Self::ServerName(_)
            | Self::Peer(_)
            | Self::Namespace(_)
            | Self::PeerIp(_)
            | Self::RemoteIp(_) => false,
        }
    }

    pub(super) fn judge(&self, of: &Attributes<'_>) -> Truth {
        match self {
            Self::Any => Truth::Yes,
            Self::Unknown => Truth::Unknown,
            Self::All(list) => all(list, of),
            Self::OneOf(list) => one_of(list, of),
            Self::Not(inner) => inner.judge(of).not(),
            Self::Header(header) => match &of.request {
                Some(request) => {
                    let (every, some) = header.readings(request);
                    Truth::of_readings(every, some)
                }
                None => Truth::Unknown,
            },
            Self::Path(path) => match &of.request {
                Some(request) if request.path_and_query.starts_with('/') => path.holds(request.path()).into(),
                // CONNECT and `OPTIONS *` have none.
                _ => Truth::Unknown,
            },
            Self::Ports(first, last) => (*first..=*last).contains(&of.destination.port()).into(),
            Self::DestinationIp(_) if of.destination.ip().is_unspecified() => Truth::Unknown,
            Self::DestinationIp(net) => holds_ip(net, of.destination.ip()).into(),
            Self::ServerName(name) => match of.server_name {
                None => Truth::Unknown,
                Some(asked) => name.holds(asked.as_bytes()).into(),
            },
            Self::Peer(name) => on_peer(of, |id| name.as_ref().is_none_or(|name| name.holds(id.as_bytes()))),
            Self::Namespace(part) => on_peer(of, |id| id.contains(&**part)),
            Self::PeerIp(net) => match of.peer {
                None => Truth::Unknown,
                Some(peer) => holds_ip(net, peer.address.ip()).into(),
            },
            Self::RemoteIp(net) => remote(net, of),
            Self::Token(token) => match of.tokens {
                None => Truth::Unknown,
                Some(tokens) => token.judge(tokens),
            },
        }
    }
}

pub(super) fn all(list: &[Condition], of: &Attributes<'_>) -> Truth {
    let mut least = Truth::Yes;
    for condition in list {
        least = least.min(condition.judge(of));
        if least == Truth::No {
            break;
        }
    }
    least
}

pub(super) fn one_of(list: &[Condition], of: &Attributes<'_>) -> Truth {
    let mut greatest = Truth::No;
    for condition in list {
        greatest = greatest.max(condition.judge(of));
        if greatest == Truth::Yes {
            break;
        }
    }
    greatest
}

fn on_peer(of: &Attributes<'_>, holds: impl FnOnce(&str) -> bool) -> Truth {
    match of.peer {
        None => Truth::Unknown,
        // A peer without a certificate is nobody.
        Some(peer) => peer.spiffe_id.as_ref().is_some_and(|id| holds(id.as_str())).into(),
    }
}

/// IPv4 written as IPv6 is IPv4, in a rule as in a request.
fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(mapped) = net else { return net };
    let v4 = mapped.addr().to_ipv4_mapped().zip(mapped.prefix_len().checked_sub(96));
    v4.and_then(|(address, bits)| Ipv4Net::new(address, bits).ok()).map_or(net, IpNet::V4)
}

fn holds_ip(net: &IpNet, ip: IpAddr) -> bool {
    net.contains(&ip.to_canonical())
}

/// The original client. With trusted proxies it is what the first of them was called by; a request that did not come
/// through as many comes from its peer, as Envoy has it. With none, whoever is in between is not known to be honest, so an
/// `x-forwarded-for` is taken for what it says only where it agrees with the connection; what does not agree is not known.
fn remote(net: &IpNet, of: &Attributes<'_>) -> Truth {
    let Some(peer) = of.peer else { return Truth::Unknown };
    let own = holds_ip(net, peer.address.ip());
    let lines = || of.request.iter().flat_map(|request| request.headers.get_all("x-forwarded-for"));
    let hops = || lines().flat_map(|line| line.as_bytes().split(|b| *b == b','));
    let read = |hop: &[u8]| std::str::from_utf8(hop).ok().and_then(|hop| hop.trim().parse::<IpAddr>().ok());
    if of.trusted_proxies > 0 {
        let before = hops().count().checked_sub(of.trusted_proxies as usize);
        return match before.and_then(|before| hops().nth(before)) {
            None => own.into(),
            Some(hop) => read(hop).map_or(Truth::Unknown, |ip| holds_ip(net, ip).into()),
        };
    }
    let (mut every, mut some) = (own, own);
    for ip in hops().map(read) {
        let (inside, outside) = ip.map_or((true, true), |ip| (holds_ip(net, ip), !holds_ip(net, ip)));
        every &= !outside;
        some |= inside;
    }
    Truth::of_readings(every, some)
}

/// The namespace of a pattern as Istio writes `source.namespaces`: `.*/ns/<namespace>/.*`.
pub(super) fn namespace_of(name: &StringMatcher) -> Option<&str> {
    let StringMatch::Regex(pattern) = &name.pattern else { return None };
    let namespace = pattern.as_str().strip_prefix(".*/ns/")?.strip_suffix("/.*")?;
    let literal = !namespace.is_empty() && namespace.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    literal.then_some(namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_written_as_ipv6_is_ipv4() {
        let net = |text: &str| canonical(text.parse().unwrap());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(holds_ip(&net("::ffff:10.0.0.1/128"), ip("10.0.0.1")));
        assert!(holds_ip(&net("::ffff:10.0.0.0/104"), ip("::ffff:10.1.2.3")));
        assert!(!holds_ip(&net("::ffff:10.0.0.0/104"), ip("11.0.0.1")));
        // A net that is wider than all of IPv4 stays what it is.
        assert_eq!(net("::/0").to_string(), "::/0");
    }
}
