//! From an [`Announcement`] off the wire to a checked [`Registration`].

use std::net::{IpAddr, SocketAddr};

use mesh_core::id::Locality;
use mesh_discovery::proto::registry::Announcement;

use super::Registration;

const MAX_LABELS: usize = 64;
const MAX_TEXT: usize = 253;
/// Bytes of all texts of one announcement. A pod of Kubernetes has ten labels of some forty bytes.
const MAX_BYTES: usize = 16 << 10;

/// Why an announcement is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub(super) struct InvalidAnnouncement {
    field: &'static str,
    reason: String,
}

fn invalid(field: &'static str, reason: impl Into<String>) -> InvalidAnnouncement {
    InvalidAnnouncement { field, reason: reason.into() }
}

/// Checks an announcement of a process that proved to be `account` in `namespace` and is connected from
/// `peer`. Empty identity fields are filled from the proof; others must agree with it.
pub(super) fn check(
    announcement: Announcement,
    namespace: &str,
    account: &str,
    peer: IpAddr,
) -> Result<Registration, InvalidAnnouncement> {
    let a = announcement;
    agrees("namespace", &a.namespace, namespace)?;
    agrees("service_account", &a.service_account, account)?;
    if !is_dns_label(&a.service) {
        return Err(invalid(
            "service",
            format!("{:?} is not a DNS label (a-z, 0-9 and '-', at most 63)", cut(&a.service)),
        ));
    }
    let service_port = u16::try_from(a.service_port).ok().filter(|port| *port != 0);
    let service_port = service_port.ok_or_else(|| invalid("service_port", "it must be 1 to 65535"))?;
    let port_protocol = match a.port_protocol.as_str() {
        "" => "http".to_owned(),
        "http" | "http2" | "grpc" | "tcp" => a.port_protocol,
        other => return Err(invalid("port_protocol", format!("{:?} is none of http, http2, grpc, tcp", cut(other)))),
    };
    for (field, text) in
        [("region", &a.region), ("zone", &a.zone), ("sub_zone", &a.sub_zone), ("workload", &a.workload)]
    {
        bounded(field, text)?;
    }
    if a.labels.len() > MAX_LABELS {
        return Err(invalid("labels", format!("{} labels; at most {MAX_LABELS}", a.labels.len())));
    }
    for text in a.labels.iter().flat_map(|(key, value)| [key, value]) {
        bounded("labels", text)?;
    }
    let registration = Registration {
        service: a.service,
        namespace: namespace.to_owned(),
        service_port,
        address: address(&a.address, peer)?,
        labels: a.labels,
        locality: Locality { region: a.region, zone: a.zone, sub_zone: a.sub_zone },
        // Who announces has shown a certificate of the mesh, and can show it to callers. That these send plaintext is for
        // policy to say, and not for an endpoint.
        mesh_tls: true,
        port_protocol,
        workload: a.workload,
        service_account: account.to_owned(),
    };
    let bytes = registration.text_len();
    if bytes > MAX_BYTES {
        return Err(invalid("labels", format!("{bytes} bytes with all other texts; at most {MAX_BYTES}")));
    }
    Ok(registration)
}

fn agrees(field: &'static str, claimed: &str, proved: &str) -> Result<(), InvalidAnnouncement> {
    if claimed.is_empty() || claimed == proved {
        return Ok(());
    }
    Err(invalid(field, format!("{:?} is announced, the certificate says {proved:?}", cut(claimed))))
}

fn address(text: &str, peer: IpAddr) -> Result<SocketAddr, InvalidAnnouncement> {
    let refuse = |why| Err(invalid("address", format!("{:?} {why}", cut(text))));
    let Ok(address) = text.parse::<SocketAddr>() else {
        return refuse("is not ip:port");
    };
    // One form for each address: an IPv4 one inside IPv6 is not another, nor does a flow or zone tell.
    let ip = address.ip().to_canonical();
    // Beyond the obvious: an address that callers would resolve to themselves or to many.
    let (many, link_local) = match ip {
        IpAddr::V4(ip) => (ip.is_broadcast() || ip.is_multicast(), ip.is_link_local()),
        IpAddr::V6(ip) => (ip.is_multicast(), ip.is_unicast_link_local()),
    };
    if ip.is_unspecified() || many {
        return refuse("is not the address of one host; announce the one that callers reach");
    }
    if link_local {
        // Where clouds keep their metadata services, among others.
        return refuse("is link-local, so it means another host to each caller; announce the one that callers reach");
    }
    if ip.is_loopback() && !peer.to_canonical().is_loopback() {
        return refuse("is loopback, and the process is on another host; announce the one that callers reach");
    }
    if address.port() == 0 {
        return refuse("has no port");
    }
    Ok(SocketAddr::new(ip, address.port()))
}

fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn bounded(field: &'static str, text: &str) -> Result<(), InvalidAnnouncement> {
    if text.len() > 2 * MAX_TEXT || text.chars().any(char::is_control) {
        return Err(invalid(field, "too long, or with control characters"));
    }
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn good() -> Announcement {
        Announcement {
            service: "reviews".into(),
            namespace: "default".into(),
            service_port: 9080,
            address: "127.0.0.1:4000".into(),
            ..Announcement::default()
        }
    }

    #[test]
    fn a_good_announcement_is_filled_from_the_certificate() {
        let registration = check(good(), "default", "reviews", HERE).unwrap();
        assert_eq!((registration.namespace.as_str(), registration.service_account.as_str()), ("default", "reviews"));
        assert_eq!((registration.service_port, registration.port_protocol.as_str()), (9080, "http"));
    }

    #[test]
    fn s70_no_announcement_offers_plaintext() {
        for mesh_tls in [true, false] {
            let announced = Announcement { mesh_tls, ..good() };
            assert!(check(announced, "default", "reviews", HERE).unwrap().mesh_tls);
        }
    }

    #[test]
    fn bad_announcements_name_the_field() {
        type Change = fn(&mut Announcement);
        let cases: [(&str, Change); 19] = [
            ("namespace", |a| a.namespace = "other".into()),
            ("service_account", |a| a.service_account = "other".into()),
            ("service", |a| a.service = String::new()),
            ("service", |a| a.service = "Reviews.default".into()),
            ("service", |a| a.service = "x".repeat(64)),
            ("service_port", |a| a.service_port = 0),
            ("service_port", |a| a.service_port = 65_536),
            ("address", |a| a.address = "localhost:1".into()),
            ("address", |a| a.address = "0.0.0.0:1".into()),
            ("address", |a| a.address = "[::]:1".into()),
            ("address", |a| a.address = "127.0.0.1:0".into()),
            ("address", |a| a.address = "[::ffff:0.0.0.0]:1".into()),
            ("address", |a| a.address = "[::ffff:169.254.169.254]:80".into()),
            ("address", |a| a.address = "[fe80::1%3]:1".into()),
            ("address", |a| a.address = "[ff02::1]:1".into()),
            ("port_protocol", |a| a.port_protocol = "smtp".into()),
            ("labels", |a| a.labels = (0..65).map(|n| (n.to_string(), String::new())).collect()),
            ("labels", |a| a.labels = (0..50).map(|n| (n.to_string(), "x".repeat(400))).collect()),
            ("zone", |a| a.zone = "a\nb".into()),
        ];
        for (field, change) in cases {
            let mut announcement = good();
            change(&mut announcement);
            assert_eq!(
                check(announcement.clone(), "default", "reviews", HERE).unwrap_err().field,
                field,
                "{announcement:?}"
            );
        }
    }

    #[test]
    fn an_address_has_one_form_and_loopback_is_for_processes_that_are_here() {
        let of = |address: &str, peer: &str| {
            let announcement = Announcement { address: address.into(), ..good() };
            check(announcement, "default", "reviews", peer.parse().unwrap()).map(|r| r.address.to_string())
        };
        assert_eq!(of("[::ffff:10.0.0.7]:80", "10.0.0.7").unwrap(), "10.0.0.7:80");
        assert_eq!(of("127.0.0.1:80", "::ffff:127.0.0.1").unwrap(), "127.0.0.1:80");
        assert_eq!(of("127.0.0.1:80", "10.0.0.7").unwrap_err().field, "address");
        assert_eq!(of("[::1]:80", "10.0.0.7").unwrap_err().field, "address");
    }
}
