//! Small values that every resource uses: durations, shares, wrapped scalars, addresses, config sources.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{
    self as core, ConfigSource, RuntimeFractionalPercent, SocketAddress, address, config_source, socket_address,
};
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, Percent, fractional_percent::DenominatorType};
use envoy_types::pb::google::protobuf::{self as google, BoolValue, UInt32Value, UInt64Value};
use ipnet::IpNet;
use mesh_core::policy::{Address, PerMillion, ShareUnit};

use super::MAX_NAME;
use super::report::{At, Report, consider};

/// Longest duration protobuf allows: 10,000 years.
const MAX_SECONDS: u64 = 315_576_000_000;

/// A duration; longer than protobuf allows is cut.
pub(super) fn duration(value: Duration) -> google::Duration {
    google::Duration {
        seconds: i64::try_from(value.as_secs().min(MAX_SECONDS)).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

/// Reads a duration: not negative, within protobuf's bounds.
pub(super) fn read_duration(proto: &google::Duration, at: &At<'_>, report: &mut Report) -> Option<Duration> {
    match (u64::try_from(proto.seconds), u32::try_from(proto.nanos)) {
        (Ok(seconds), Ok(nanos)) if seconds <= MAX_SECONDS && nanos < 1_000_000_000 => {
            Some(Duration::new(seconds, nanos))
        }
        _ => {
            report.problem(at, format!("{} s {} ns is not a duration of 0 or more", proto.seconds, proto.nanos));
            None
        }
    }
}

/// Reads an optional duration; a refused one is none.
pub(super) fn opt_duration(
    proto: Option<&google::Duration>,
    at: &At<'_>,
    name: &str,
    report: &mut Report,
) -> Option<Duration> {
    read_duration(proto?, &at.field(name), report)
}

/// Reads an optional duration in a field where zero means none.
pub(super) fn nonzero_duration(
    proto: Option<&google::Duration>,
    at: &At<'_>,
    name: &str,
    report: &mut Report,
) -> Option<Duration> {
    opt_duration(proto, at, name, report).filter(|d| !d.is_zero())
}

/// A wrapped `u32`.
pub(super) fn uint32(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

/// A wrapped `u64`.
pub(super) fn uint64(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

/// A wrapped `bool`.
pub(super) fn boolean(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

/// Whether a wrapped `bool` is there and true.
pub(super) fn is_true(proto: Option<&BoolValue>) -> bool {
    proto.is_some_and(|b| b.value)
}

/// A share as a fraction of a million.
pub(super) fn fraction(share: PerMillion) -> FractionalPercent {
    fraction_in(share, ShareUnit::Million)
}

/// A share as a fraction with this denominator, or with the next finer one that holds it: so many of a coarser one would be
/// another share, or none.
pub(super) fn fraction_in(share: PerMillion, unit: ShareUnit) -> FractionalPercent {
    let is_exact = unit.share(unit.count(share)) == share;
    let denominator = match unit {
        ShareUnit::Hundred if !is_exact => return fraction_in(share, ShareUnit::TenThousand),
        ShareUnit::TenThousand if !is_exact => return fraction_in(share, ShareUnit::Million),
        ShareUnit::Hundred => DenominatorType::Hundred,
        ShareUnit::TenThousand => DenominatorType::TenThousand,
        ShareUnit::Million => DenominatorType::Million,
    };
    FractionalPercent { numerator: unit.count(share), denominator: denominator.into() }
}

/// Reads a fraction; more than everything is everything.
pub(super) fn read_fraction(proto: &FractionalPercent, at: &At<'_>, report: &mut Report) -> Option<PerMillion> {
    Some(read_unit(proto, at, report)?.share(proto.numerator))
}

/// Reads the denominator of a fraction.
pub(super) fn read_unit(proto: &FractionalPercent, at: &At<'_>, report: &mut Report) -> Option<ShareUnit> {
    match DenominatorType::try_from(proto.denominator) {
        Ok(DenominatorType::Hundred) => Some(ShareUnit::Hundred),
        Ok(DenominatorType::TenThousand) => Some(ShareUnit::TenThousand),
        Ok(DenominatorType::Million) => Some(ShareUnit::Million),
        Err(_) => {
            report.problem(&at.field("denominator"), format!("{} is not a denominator", proto.denominator));
            None
        }
    }
}

/// A fraction that no runtime key overrides.
pub(super) fn runtime_fraction(share: PerMillion) -> RuntimeFractionalPercent {
    RuntimeFractionalPercent { default_value: Some(fraction(share)), ..Default::default() }
}

/// Reads the default of a runtime fraction, which alone counts (gRFC A28); unset it is protobuf's, nothing. `None` when no
/// fraction is given.
pub(super) fn read_runtime_fraction(
    proto: Option<&RuntimeFractionalPercent>,
    at: &At<'_>,
    name: &str,
    report: &mut Report,
) -> Option<PerMillion> {
    match &proto?.default_value {
        Some(share) => read_fraction(share, &at.field(name), report),
        None => Some(PerMillion::NONE),
    }
}

/// A share as a percentage.
pub(super) fn percent(share: PerMillion) -> Percent {
    Percent { value: f64::from(share.get()) / 10_000.0 }
}

/// Reads a percentage.
pub(super) fn read_percent(proto: &Percent, at: &At<'_>, report: &mut Report) -> Option<PerMillion> {
    report.checked(at, PerMillion::from_percent(proto.value))
}

/// The source that is the ADS stream itself.
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    }
}

/// Refuses what cannot be the name of a resource.
pub(super) fn check_name(name: &str, at: &At<'_>, report: &mut Report) {
    match name.len() {
        0 => report.problem(at, "a name is required"),
        1..=MAX_NAME => {}
        long => report.problem(at, format!("the name has {long} bytes; at most {MAX_NAME} are taken")),
    }
}

/// Refuses a source that is not the stream the resource came over.
pub(super) fn check_source(proto: Option<&ConfigSource>, at: &At<'_>, report: &mut Report) {
    use config_source::ConfigSourceSpecifier::{Ads, Self_};
    if !matches!(proto.and_then(|s| s.config_source_specifier.as_ref()), Some(Ads(_) | Self_(_))) {
        report.problem(at, "the source must be ads or self");
    }
}

/// An address.
pub(super) fn address(value: &Address) -> core::Address {
    let socket = |host: String, port: u16| {
        address::Address::SocketAddress(core::SocketAddress {
            address: host,
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })
    };
    let address = match value {
        Address::Socket(addr) => socket(addr.ip().to_string(), addr.port()),
        Address::Name { host, port } => socket(host.to_string(), *port),
        Address::Unix(path) => address::Address::Pipe(core::Pipe { path: path.to_string(), ..Default::default() }),
    };
    core::Address { address: Some(address) }
}

/// Reads an address: an IP or a name with a port, or a unix socket path.
pub(super) fn read_address(proto: Option<&core::Address>, at: &At<'_>, report: &mut Report) -> Option<Address> {
    let socket = match proto.and_then(|a| a.address.as_ref()) {
        Some(address::Address::SocketAddress(socket)) => socket,
        Some(address::Address::Pipe(pipe)) if !pipe.path.is_empty() => {
            return Some(Address::Unix(pipe.path.as_str().into()));
        }
        _ => {
            report.problem(at, "a socket address or a pipe with a path is required");
            return None;
        }
    };
    let at = at.field("socket_address");
    consider!(socket, &at, report, SocketAddress {
        read: [protocol, address, resolver_name, port_specifier],
        idle: [ipv4_compat],
        network_namespace_filepath => "connections are made in the process's own network namespace",
    });
    if !socket.resolver_name.is_empty() {
        report.problem(&at.field("resolver_name"), "custom resolvers are not supported");
    }
    if socket.protocol != i32::from(socket_address::Protocol::Tcp) {
        report.problem(&at.field("protocol"), "only TCP is supported");
    }
    let port = match socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => read_port(port, &at, report)?,
        _ => {
            report.problem(&at, "port_value is required");
            return None;
        }
    };
    if socket.address.is_empty() {
        report.problem(&at.field("address"), "an IP address or a name is required");
        return None;
    }
    Some(socket_address(&socket.address, port))
}

/// An IP address, or else a name, with a port.
pub(super) fn socket_address(host: &str, port: u16) -> Address {
    match host.parse::<IpAddr>() {
        Ok(ip) => Address::Socket(SocketAddr::new(ip, port)),
        Err(_) => Address::Name { host: host.into(), port },
    }
}

/// Reads a port: 1 to 65535.
pub(super) fn read_port(value: u32, at: &At<'_>, report: &mut Report) -> Option<u16> {
    match u16::try_from(value) {
        Ok(port) if port > 0 => Some(port),
        _ => {
            report.problem(&at.field("port_value"), format!("{value} is not a port (1 to 65535)"));
            None
        }
    }
}

/// A network.
pub(super) fn cidr(net: IpNet) -> core::CidrRange {
    core::CidrRange { address_prefix: net.addr().to_string(), prefix_len: uint32(net.prefix_len().into()) }
}

/// Reads a network; an unset prefix length is 0, as in Envoy.
pub(super) fn read_cidr(proto: &core::CidrRange, at: &At<'_>, report: &mut Report) -> Option<IpNet> {
    let length = proto.prefix_len.map_or(0, |l| l.value);
    let net = proto.address_prefix.parse::<IpAddr>().ok().zip(u8::try_from(length).ok());
    let net = net.and_then(|(ip, length)| IpNet::new(ip, length).ok());
    if net.is_none() {
        report.problem(at, format!("{:?}/{length} is not a network", proto.address_prefix));
    }
    net
}

/// The text if it is not empty.
pub(super) fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
