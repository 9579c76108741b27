//! Which addresses a process may be talked into dialling: those of the public internet. Everything else is inside
//! somebody's network, and what answers there answers to those who are inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address is, unless it is a public one.
pub(super) fn class(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(address) => class_v4(address),
        IpAddr::V6(address) => class_v6(address),
    }
}

/// IANA's registry of special addresses (RFC 6890).
fn class_v4(address: Ipv4Addr) -> Option<&'static str> {
    Some(match address.octets() {
        [0, ..] => "unspecified",
        [127, ..] => "loopback",
        [169, 254, ..] => "link-local",
        // Azure's virtual host, with its metadata: public by its number alone.
        [168, 63, 129, 16] => "a cloud's own",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "private",
        [100, 64..=127, ..] => "shared",
        [192, 0, 0, _] | [198, 18..=19, ..] => "reserved",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "documentation",
        [224..=239, ..] => "multicast",
        [240..=255, ..] => "reserved",
        _ => return None,
    })
}

fn class_v6(address: Ipv6Addr) -> Option<&'static str> {
    let inside = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        class_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        // What is only another way of writing an IPv4 address is judged as that: NAT64 and 6to4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => inside(high, low),
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Some("private"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some("documentation"),
        // Teredo and other protocols' own.
        [0x2001, 0..=0x1ff, ..] => Some("reserved"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("reserved"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_alone_have_no_class() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "168.63.129.15",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "169.253.1.1",
        ] {
            assert_eq!(class(text.parse().unwrap()), None, "{text}");
            let mapped = format!("::ffff:{text}");
            assert_eq!(class(mapped.parse().unwrap()), None, "{mapped}");
            let nat64 = format!("64:ff9b::{text}");
            assert_eq!(class(nat64.parse().unwrap()), None, "{nat64}");
        }
        for text in ["2606:4700::1111", "2a00:1450::1", "2001:4860:4860::8888"] {
            assert_eq!(class(text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn every_other_address_has_one_however_it_is_written() {
        for (text, is) in [
            ("0.0.0.0", "unspecified"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.254", "loopback"),
            ("169.254.169.254", "link-local"),
            ("168.63.129.16", "a cloud's own"),
            ("10.0.0.1", "private"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.168.1.1", "private"),
            ("100.64.0.1", "shared"),
            ("198.18.0.1", "reserved"),
            ("192.0.2.1", "documentation"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "reserved"),
        ] {
            assert_eq!(class(text.parse().unwrap()), Some(is), "{text}");
            for around in ["::ffff:", "64:ff9b::"] {
                let other = format!("{around}{text}");
                assert_eq!(class(other.parse().unwrap()), Some(is), "{other}");
            }
            let [a, b, c, d] = text.parse::<Ipv4Addr>().unwrap().octets();
            let six_to_four = format!("2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1");
            assert_eq!(class(six_to_four.parse().unwrap()), Some(is), "{six_to_four}");
        }
        for (text, is) in [
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("fe80::1", "link-local"),
            ("fc00::1", "private"),
            ("fd12:3456::1", "private"),
            ("fec0::1", "private"),
            ("ff02::1", "multicast"),
            ("2001:db8::1", "documentation"),
            ("2001::1", "reserved"),
            ("64:ff9b:1::1", "reserved"),
            ("100::1", "reserved"),
            ("::127.0.0.1", "reserved"),
            ("4000::1", "reserved"),
        ] {
            assert_eq!(class(text.parse().unwrap()), Some(is), "{text}");
        }
    }
}
