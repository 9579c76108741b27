//! Load balancing policies: a list of typed extensions of which a client takes the first it knows
//! (gRFC A52), and the older enum.
//!
//! What gRPC does not know comes first and something it knows after it, so that our client, Envoy and
//! gRPC clients each take the best they have.

use envoy_types::pb::envoy::config::cluster::v3::{
    self as xds, LoadBalancingPolicy,
    cluster::{LbConfig, LbPolicy, common_lb_config::LocalityConfigSpecifier, ring_hash_lb_config},
    load_balancing_policy::Policy,
};
use envoy_types::pb::envoy::config::core::v3::{RuntimeDouble, TypedExtensionConfig};
use envoy_types::pb::envoy::extensions::load_balancing_policies::{
    client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin,
    cluster_provided::v3::ClusterProvided,
    common::v3::{self as common_lb, ConsistentHashingLbConfig, LocalityLbConfig},
    least_request::v3::LeastRequest,
    maglev::v3::Maglev,
    override_host::v3::OverrideHost,
    pick_first::v3::PickFirst,
    random::v3::Random,
    random_subsetting::v3::RandomSubsetting,
    ring_hash::v3::{RingHash, ring_hash::HashFunction},
    round_robin::v3::RoundRobin,
    wrr_locality::v3::WrrLocality,
};
use mesh_core::policy::{Balancer, Cluster, Discovery, Hashing, LoadSpill, PerMillion, Prequal, SlowStart, ZoneAware};
use prost::Message;

use super::common;
use super::custom_balancer;
use super::extension;
use super::locality::{self, read_locality};
use super::report::{At, Report, consider};
use super::weighting::{
    encode_slow_start, encode_weighted, millionths, penalty, read_penalty, read_slow_start, read_weighted,
};
use crate::proto::policy::{self as extra, ClusterPolicy, PeakEwma};

/// gRFC A52: deepest nesting of policies.
const MAX_DEPTH: usize = 16;
/// Unknown policies of one list that are told by name.
const MAX_NAMED: usize = 8;
/// gRFC A42: largest ring.
const MAX_RING: u64 = 8 << 20;
/// Envoy's bound on Maglev tables.
const MAX_TABLE: u64 = 5_000_011;
/// Unset values: ring (Envoy, gRFC A42), Maglev table (Envoy), fewest and most choices (gRFC A48).
const DEFAULT_RING: u64 = 1024;
const DEFAULT_TABLE: u64 = 65_537;
const CHOICES: (u32, u32) = (2, 10);
/// A bias of 1, in millionths.
const FULL_BIAS: u32 = 1_000_000;

const URL_PREFIX: &str = "type.googleapis.com/envoy.extensions.load_balancing_policies.";
const PEAK_EWMA: &str = "type.googleapis.com/mesh.policy.v1.PeakEwma";
const PREQUAL: &str = "type.googleapis.com/mesh.policy.v1.Prequal";
const SUBSETTING: &str = "type.googleapis.com/mesh.policy.v1.DeterministicSubsetting";

/// Balancing as one cluster has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Balancing {
    pub(super) balancer: Balancer,
    pub(super) weighted: bool,
    pub(super) zone_aware: Option<ZoneAware>,
    pub(super) spill: Option<LoadSpill>,
    pub(super) slow_start: Option<SlowStart>,
    pub(super) hashing: Option<Hashing>,
}

impl Balancing {
    fn of(balancer: Balancer) -> Self {
        Self { balancer, weighted: false, zone_aware: None, spill: None, slow_start: None, hashing: None }
    }

    fn with_locality(self, config: Option<&LocalityLbConfig>, at: &At<'_>, report: &mut Report) -> Self {
        let (weighted, zone_aware) = read_locality(config, at, report);
        Self { weighted, zone_aware, ..self }
    }
}

/// Writes the typed list and the enum; what neither can say goes into `ours`.
pub(super) fn encode(cluster: &Cluster, proto: &mut xds::Cluster, ours: &mut ClusterPolicy) {
    let own_choice = matches!(cluster.discovery, Discovery::OriginalDestination | Discovery::Aggregate(_));
    let mut policies = Vec::new();
    if own_choice && cluster.balancer != Balancer::Passthrough {
        // Envoy insists that such clusters choose for themselves; our decoder takes what follows.
        policies.push(typed("cluster_provided", "ClusterProvided", &ClusterProvided {}));
    }
    let candidates = candidates(&cluster.balancer, cluster);
    let leaf = cluster.balancer.leaf();
    let of_each = parts_of_each(&cluster.balancer);
    if draws_locality(cluster) && !of_each.contains(&false) {
        policies.push(by_locality(&candidates));
    }
    policies.extend(candidates);
    proto.load_balancing_policy = Some(LoadBalancingPolicy { policies: policies.into_iter().map(entry).collect() });
    proto.lb_policy = match leaf {
        _ if own_choice => LbPolicy::ClusterProvided,
        Balancer::Passthrough => LbPolicy::ClusterProvided,
        Balancer::LeastRequest { .. } | Balancer::PeakEwma | Balancer::Prequal(_) => LbPolicy::LeastRequest,
        Balancer::RingHash { .. } | Balancer::Maglev { .. } => LbPolicy::RingHash,
        // Of the rest an old client knows round robin only, and refuses what it does not know.
        _ => LbPolicy::RoundRobin,
    }
    .into();
    // By the order of policies all parts below the drawing of a locality are of each, and none above it.
    let is_said = draws_locality(cluster) && of_each.is_sorted();
    if of_each.contains(&true) && !is_said {
        ours.parts_of_each = of_each;
    }
    ours.spill = cluster.locality.spill.map(|LoadSpill { low, high }| extra::LoadSpill { low, high });
    if !has_slow_start(leaf) {
        ours.slow_start = cluster.slow_start.as_ref().map(|s| extra::SlowStart {
            window: Some(common::duration(s.window)),
            aggression: s.aggression,
            min_share: s.min_share.get(),
        });
    }
    if let Balancer::WeightedRoundRobin(settings) = leaf {
        let lost = read_penalty(penalty(settings.error_penalty)) != Some(settings.error_penalty);
        ours.error_penalty = lost.then_some(settings.error_penalty);
    }
}

/// Decodes the typed list, or else the enum.
pub(super) fn decode(
    proto: &xds::Cluster,
    own_choice: bool,
    ours: &ClusterPolicy,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Balancing> {
    let mut found = match &proto.load_balancing_policy {
        Some(list) => decode_list(list, own_choice, 0, &at.field("load_balancing_policy"), report)?,
        None => decode_enum(proto, own_choice, at, report)?,
    };
    if let Some(common) = &proto.common_lb_config {
        let at = at.field("common_lb_config");
        match &common.locality_config_specifier {
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => found.weighted = true,
            Some(LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => {
                let older = locality::read_older(config, &at.field("zone_aware_lb_config"), report);
                found.zone_aware = found.zone_aware.or(older);
            }
            None => {}
        }
        if let Some(hashing) = &common.consistent_hashing_lb_config {
            let older = ConsistentHashingLbConfig {
                use_hostname_for_hashing: hashing.use_hostname_for_hashing,
                hash_balance_factor: hashing.hash_balance_factor,
                hash_policy: Vec::new(),
            };
            let older = locality::read_hashing(&older, &at.field("consistent_hashing_lb_config"), report);
            found.hashing = found.hashing.or(Some(older));
        }
    }
    // One endpoint has no neighbours.
    found.weighted &= *found.balancer.leaf() != Balancer::Passthrough;
    if !ours.parts_of_each.is_empty() {
        let mut said = ours.parts_of_each.iter();
        set_parts_of_each(&mut found.balancer, || said.next().is_some_and(|said| *said));
    }
    found.spill = ours.spill.map(|extra::LoadSpill { low, high }| LoadSpill { low, high });
    if let Some(slow_start) = &ours.slow_start {
        let window = common::opt_duration(slow_start.window.as_ref(), at, "slow_start.window", report);
        found.slow_start = Some(SlowStart {
            window: window.unwrap_or_default(),
            aggression: slow_start.aggression,
            min_share: PerMillion::new(slow_start.min_share),
        });
    }
    if let (Balancer::WeightedRoundRobin(settings), Some(exact)) = (leaf_mut(&mut found.balancer), ours.error_penalty) {
        settings.error_penalty = exact;
    }
    Some(found)
}

fn entry(config: TypedExtensionConfig) -> Policy {
    Policy { typed_extension_config: Some(config) }
}

fn typed(package: &str, message: &str, config: &impl Message) -> TypedExtensionConfig {
    let name = format!("envoy.load_balancing_policies.{package}");
    extension::typed(&name, &format!("{URL_PREFIX}{package}.v3.{message}"), config)
}

/// Whether each part of the endpoints, from the outermost, is one of each locality.
fn parts_of_each(mut balancer: &Balancer) -> Vec<bool> {
    let mut parts = Vec::new();
    while let Balancer::RandomSubsetting { of_each, child, .. }
    | Balancer::DeterministicSubsetting { of_each, child, .. } = balancer
    {
        parts.push(*of_each);
        balancer = child;
    }
    parts
}

/// The same, said of each of them.
fn set_parts_of_each(mut balancer: &mut Balancer, mut said: impl FnMut() -> bool) {
    while let Balancer::RandomSubsetting { of_each, child, .. }
    | Balancer::DeterministicSubsetting { of_each, child, .. } = balancer
    {
        *of_each = said();
        balancer = child;
    }
}

fn leaf_mut(balancer: &mut Balancer) -> &mut Balancer {
    match balancer {
        Balancer::RandomSubsetting { child, .. } | Balancer::DeterministicSubsetting { child, .. } => leaf_mut(child),
        other => other,
    }
}

fn draws_locality(cluster: &Cluster) -> bool {
    cluster.locality.weighted && is_drawn_for(cluster.balancer.leaf())
}

/// Whether a locality is drawn before an endpoint. Who hashes says by itself that localities weigh: of a ring for each of them gRPC
/// would draw one for each request. What dials the caller's own address has no choice.
fn is_drawn_for(leaf: &Balancer) -> bool {
    !matches!(leaf, Balancer::RingHash { .. } | Balancer::Maglev { .. } | Balancer::Passthrough)
}

/// All within one: a list of which nothing is known refuses its cluster.
fn by_locality(policies: &[TypedExtensionConfig]) -> TypedExtensionConfig {
    let child = LoadBalancingPolicy { policies: policies.iter().cloned().map(entry).collect() };
    typed("wrr_locality", "WrrLocality", &WrrLocality { endpoint_picking_policy: Some(child) })
}

/// What goes over a part of the endpoints: is that of all localities together, and all below it of each, one of them is drawn in
/// between.
fn within(of_each: bool, child: &Balancer, cluster: &Cluster) -> Vec<TypedExtensionConfig> {
    let mut policies = candidates(child, cluster);
    if draws_locality(cluster) && !of_each && !parts_of_each(child).contains(&false) {
        policies.insert(0, by_locality(&policies));
    }
    policies
}

/// The policy and, after it, what clients that don't know it should take.
fn candidates(balancer: &Balancer, cluster: &Cluster) -> Vec<TypedExtensionConfig> {
    let slow_start_config = cluster.slow_start.as_ref().map(encode_slow_start);
    let weighted = cluster.locality.weighted;
    let locality_lb_config = locality::encode(&cluster.locality);
    let locality_weighted_lb_config = weighted.then(Default::default);
    let round_robin = || {
        let config = RoundRobin { slow_start_config: slow_start_config.clone(), locality_lb_config };
        typed("round_robin", "RoundRobin", &config)
    };
    let least_request = |choices: u32, bias: u32| {
        let choice_count = common::uint32(choices);
        let active_request_bias = (bias != FULL_BIAS).then(|| RuntimeDouble {
            default_value: f64::from(bias) / 1e6,
            // Envoy demands a key; this one is never set.
            runtime_key: "mesh.least_request.bias".to_owned(),
        });
        let slow_start_config = slow_start_config.clone();
        let config = LeastRequest {
            choice_count,
            active_request_bias,
            slow_start_config,
            locality_lb_config,
            ..Default::default()
        };
        typed("least_request", "LeastRequest", &config)
    };
    let ring_hash = |min, max| {
        let config = RingHash {
            hash_function: HashFunction::XxHash.into(),
            minimum_ring_size: common::uint64(min),
            maximum_ring_size: common::uint64(max),
            consistent_hashing_lb_config: locality::encode_hashing(cluster.hashing),
            locality_weighted_lb_config,
            ..Default::default()
        };
        typed("ring_hash", "RingHash", &config)
    };
    match balancer {
        Balancer::RoundRobin => vec![round_robin()],
        Balancer::LeastRequest { choices, bias } => {
            vec![least_request((*choices).into(), *bias), round_robin()]
        }
        Balancer::Random => vec![typed("random", "Random", &Random { locality_lb_config }), round_robin()],
        Balancer::PeakEwma => vec![
            extension::typed("mesh.load_balancing_policies.peak_ewma", PEAK_EWMA, &PeakEwma {}),
            least_request(CHOICES.0, FULL_BIAS),
            round_robin(),
        ],
        Balancer::Prequal(settings) => vec![prequal(settings), least_request(CHOICES.0, FULL_BIAS), round_robin()],
        Balancer::WeightedRoundRobin(settings) => {
            let config = encode_weighted(settings, slow_start_config.clone());
            vec![typed("client_side_weighted_round_robin", "ClientSideWeightedRoundRobin", &config), round_robin()]
        }
        Balancer::RingHash { min_size, max_size } => vec![ring_hash(*min_size, *max_size), round_robin()],
        Balancer::Maglev { table_size } => {
            let table_size = common::uint64(*table_size);
            let consistent_hashing_lb_config = locality::encode_hashing(cluster.hashing);
            let config = Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config };
            vec![typed("maglev", "Maglev", &config), ring_hash(DEFAULT_RING, MAX_RING), round_robin()]
        }
        Balancer::PickFirst { shuffle } => {
            vec![typed("pick_first", "PickFirst", &PickFirst { shuffle_address_list: *shuffle })]
        }
        Balancer::RandomSubsetting { size, of_each, child } => {
            random_subsetting(*size, within(*of_each, child, cluster))
        }
        Balancer::DeterministicSubsetting { size, of_each, child } => {
            deterministic_subsetting(*size, within(*of_each, child, cluster))
        }
        Balancer::Passthrough => vec![typed("cluster_provided", "ClusterProvided", &ClusterProvided {})],
        // Clients that have none of that name take turns.
        Balancer::Custom { name, config } => vec![custom_balancer::encode(name, config), round_robin()],
        // A balancer that this codec does not know.
        _ => vec![round_robin()],
    }
}

fn prequal(settings: &Prequal) -> TypedExtensionConfig {
    let config = extra::Prequal {
        probes_per_request: settings.probes_per_request,
        max_age: Some(common::duration(settings.max_age)),
        hot_quantile: settings.hot_quantile.get(),
    };
    extension::typed("mesh.load_balancing_policies.prequal", PREQUAL, &config)
}

/// Clients that don't know subsetting take the child over all endpoints.
fn random_subsetting(size: u32, children: Vec<TypedExtensionConfig>) -> Vec<TypedExtensionConfig> {
    let policies = children.iter().cloned().map(entry).collect();
    let child_policy = Some(LoadBalancingPolicy { policies });
    let config = RandomSubsetting { subset_size: common::uint32(size), child_policy };
    let mut all = vec![typed("random_subsetting", "RandomSubsetting", &config)];
    all.extend(children);
    all
}

/// Clients that don't know it take a random part.
fn deterministic_subsetting(size: u32, children: Vec<TypedExtensionConfig>) -> Vec<TypedExtensionConfig> {
    let policies = children.iter().cloned().map(entry).collect();
    let config = extra::DeterministicSubsetting { size, child_policy: Some(LoadBalancingPolicy { policies }) };
    let name = "mesh.load_balancing_policies.deterministic_subsetting";
    let mut all = vec![extension::typed(name, SUBSETTING, &config)];
    all.extend(random_subsetting(size, children));
    all
}

/// Whether the policy's own extension has a field for slow start.
fn has_slow_start(balancer: &Balancer) -> bool {
    matches!(balancer, Balancer::RoundRobin | Balancer::LeastRequest { .. } | Balancer::WeightedRoundRobin(_))
}

fn decode_list(
    list: &LoadBalancingPolicy,
    own_choice: bool,
    depth: usize,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Balancing> {
    if depth > MAX_DEPTH {
        report.problem(at, format!("policies are nested deeper than {MAX_DEPTH} (gRFC A52)"));
        return None;
    }
    let (mut last_resort, mut unknown) = (None, Vec::new());
    for (i, policy) in list.policies.iter().enumerate() {
        let at = at.item("policies", i);
        let Some(config) = policy.typed_extension_config.as_ref().and_then(|c| c.typed_config.as_ref()) else {
            report.problem(&at, "a typed configuration is required");
            return None;
        };
        if let Some(custom) = custom_balancer::decode(config, &at, report) {
            return custom.map(Balancing::of);
        }
        let kind = extension::type_of(config);
        if let Some(ours) = decode_ours(&kind, config, depth, &at, report) {
            return ours;
        }
        let Some(kind) = kind.strip_prefix(URL_PREFIX) else {
            unknown.push(extension::name_of(config));
            continue;
        };
        if kind == "cluster_provided.v3.ClusterProvided" {
            last_resort = Some(Balancing::of(Balancer::Passthrough));
            if own_choice {
                continue;
            }
            return last_resort;
        }
        if let Some(known) = decode_known(kind, config, depth, &at, report) {
            return known;
        }
        unknown.push(extension::name_of(config));
    }
    if last_resort.is_none() {
        unknown.truncate(MAX_NAMED);
        let unknown = unknown.join(", ");
        report.problem(at, format!("none of the listed policies is known (gRFC A52): {unknown}"));
    }
    last_resort
}

/// Policies of our own. `None` = it is none; `Some(None)` = it is refused.
#[allow(clippy::option_option)]
fn decode_ours(
    kind: &str,
    config: &envoy_types::pb::google::protobuf::Any,
    depth: usize,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Option<Balancing>> {
    Some(match kind {
        PEAK_EWMA => Some(Balancing::of(Balancer::PeakEwma)),
        PREQUAL => extension::unpack::<extra::Prequal>(config, at, report).map(|c| {
            let max_age = common::opt_duration(c.max_age.as_ref(), at, "max_age", report).unwrap_or_default();
            let hot_quantile = PerMillion::new(c.hot_quantile);
            let settings = Prequal { probes_per_request: c.probes_per_request, max_age, hot_quantile };
            Balancing::of(Balancer::Prequal(settings))
        }),
        SUBSETTING => extension::unpack::<extra::DeterministicSubsetting>(config, at, report).and_then(|c| {
            if c.size == 0 {
                report.problem(&at.field("size"), "it must be above 0");
            }
            let child = c.child_policy.unwrap_or_default();
            let inner = decode_list(&child, false, depth + 1, &at.field("child_policy"), report)?;
            let (of_each, child) = (false, Box::new(inner.balancer));
            Some(Balancing { balancer: Balancer::DeterministicSubsetting { size: c.size, of_each, child }, ..inner })
        }),
        _ => return None,
    })
}

/// `None` = not known, go on with the next; `Some(None)` = known and refused.
#[allow(clippy::option_option)]
fn decode_known(
    kind: &str,
    config: &envoy_types::pb::google::protobuf::Any,
    depth: usize,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Option<Balancing>> {
    Some(match kind {
        "wrr_locality.v3.WrrLocality" => extension::unpack::<WrrLocality>(config, at, report).and_then(|wrapper| {
            let child = wrapper.endpoint_picking_policy.unwrap_or_default();
            let mut inner = decode_list(&child, false, depth + 1, &at.field("endpoint_picking_policy"), report)?;
            set_parts_of_each(&mut inner.balancer, || true);
            Some(Balancing { weighted: true, ..inner })
        }),
        "random_subsetting.v3.RandomSubsetting" => {
            let wrapper = extension::unpack::<RandomSubsetting>(config, at, report);
            wrapper.and_then(|w| read_subsetting(&w, depth, at, report))
        }
        "override_host.v3.OverrideHost" => extension::unpack::<OverrideHost>(config, at, report).and_then(|wrapper| {
            consider!(&wrapper, at, report, OverrideHost {
                read: [fallback_policy],
                idle: [],
                override_host_sources => "requests cannot name their endpoint; the fallback policy chooses",
                selected_host_key => "the endpoint chosen is not recorded in metadata",
            });
            let fallback = wrapper.fallback_policy.unwrap_or_default();
            decode_list(&fallback, false, depth + 1, &at.field("fallback_policy"), report)
        }),
        "round_robin.v3.RoundRobin" => extension::unpack::<RoundRobin>(config, at, report).map(|c| {
            let slow_start = read_slow_start(c.slow_start_config.as_ref(), at, report);
            let found = Balancing { slow_start, ..Balancing::of(Balancer::RoundRobin) };
            found.with_locality(c.locality_lb_config.as_ref(), at, report)
        }),
        "least_request.v3.LeastRequest" => {
            extension::unpack::<LeastRequest>(config, at, report).and_then(|c| read_least_request(&c, at, report))
        }
        "random.v3.Random" => extension::unpack::<Random>(config, at, report)
            .map(|c| Balancing::of(Balancer::Random).with_locality(c.locality_lb_config.as_ref(), at, report)),
        "pick_first.v3.PickFirst" => extension::unpack::<PickFirst>(config, at, report)
            .map(|c| Balancing::of(Balancer::PickFirst { shuffle: c.shuffle_address_list })),
        "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin" => {
            extension::unpack::<ClientSideWeightedRoundRobin>(config, at, report).and_then(|c| {
                let balancer = Balancer::WeightedRoundRobin(read_weighted(&c, at, report)?);
                let slow_start = read_slow_start(c.slow_start_config.as_ref(), at, report);
                Some(Balancing { slow_start, ..Balancing::of(balancer) })
            })
        }
        "ring_hash.v3.RingHash" => {
            extension::unpack::<RingHash>(config, at, report).and_then(|c| read_ring_hash(&c, at, report))
        }
        "maglev.v3.Maglev" => extension::unpack::<Maglev>(config, at, report).and_then(|c| {
            let table = c.table_size.map_or(DEFAULT_TABLE, |s| s.value);
            let balancer = read_maglev(table, &at.field("table_size"), report)?;
            let hashing = c.consistent_hashing_lb_config.as_ref();
            let hashing = hashing.map(|h| locality::read_hashing(h, &at.field("consistent_hashing_lb_config"), report));
            Some(Balancing { weighted: c.locality_weighted_lb_config.is_some(), hashing, ..Balancing::of(balancer) })
        }),
        _ => return None,
    })
}

/// The enum of clients before gRFC A52. Round robin and least request then weigh localities, as gRPC
/// does (gRFC A27).
fn decode_enum(proto: &xds::Cluster, own_choice: bool, at: &At<'_>, report: &mut Report) -> Option<Balancing> {
    let found = |balancer| Some(Balancing::of(balancer));
    match LbPolicy::try_from(proto.lb_policy) {
        Ok(LbPolicy::RoundRobin) => {
            let slow_start = match &proto.lb_config {
                Some(LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.as_ref(),
                _ => None,
            };
            let slow_start = read_slow_start(slow_start.map(newer).as_ref(), at, report);
            Some(Balancing { weighted: true, slow_start, ..Balancing::of(Balancer::RoundRobin) })
        }
        Ok(LbPolicy::LeastRequest) => {
            let config = match &proto.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => LeastRequest {
                    choice_count: config.choice_count,
                    active_request_bias: config.active_request_bias.clone(),
                    slow_start_config: config.slow_start_config.as_ref().map(newer),
                    ..Default::default()
                },
                _ => LeastRequest::default(),
            };
            let found = read_least_request(&config, &at.field("least_request_lb_config"), report)?;
            Some(Balancing { weighted: true, ..found })
        }
        Ok(LbPolicy::RingHash) => {
            let at = at.field("ring_hash_lb_config");
            let config = match &proto.lb_config {
                Some(LbConfig::RingHashLbConfig(config)) => *config,
                _ => Default::default(),
            };
            let murmur = config.hash_function == i32::from(ring_hash_lb_config::HashFunction::MurmurHash2);
            let function = if murmur { HashFunction::MurmurHash2 } else { HashFunction::XxHash };
            let config = RingHash {
                hash_function: function.into(),
                minimum_ring_size: config.minimum_ring_size,
                maximum_ring_size: config.maximum_ring_size,
                ..Default::default()
            };
            read_ring_hash(&config, &at, report)
        }
        Ok(LbPolicy::Random) => found(Balancer::Random),
        Ok(LbPolicy::Maglev) => {
            let table = match &proto.lb_config {
                Some(LbConfig::MaglevLbConfig(config)) => config.table_size.map_or(DEFAULT_TABLE, |s| s.value),
                _ => DEFAULT_TABLE,
            };
            let balancer = read_maglev(table, &at.field("maglev_lb_config.table_size"), report)?;
            found(balancer)
        }
        // An aggregate's children balance (gRFC A75); other clusters dial what the caller dialled.
        Ok(LbPolicy::ClusterProvided) if own_choice && is_aggregate(proto) => found(Balancer::RoundRobin),
        Ok(LbPolicy::ClusterProvided) => found(Balancer::Passthrough),
        Ok(LbPolicy::LoadBalancingPolicyConfig) => {
            report.problem(&at.field("load_balancing_policy"), "lb_policy refers to it and it is not set");
            None
        }
        Err(_) => {
            report.problem(&at.field("lb_policy"), format!("{} is not known", proto.lb_policy));
            None
        }
    }
}

fn is_aggregate(proto: &xds::Cluster) -> bool {
    matches!(proto.cluster_discovery_type, Some(xds::cluster::ClusterDiscoveryType::ClusterType(_)))
}

/// gRFC A68: a size above 0 and a child.
fn read_subsetting(proto: &RandomSubsetting, depth: usize, at: &At<'_>, report: &mut Report) -> Option<Balancing> {
    let size = proto.subset_size.map_or(0, |s| s.value);
    if size == 0 {
        report.problem(&at.field("subset_size"), "it must be above 0 (gRFC A68)");
    }
    let child = proto.child_policy.clone().unwrap_or_default();
    let inner = decode_list(&child, false, depth + 1, &at.field("child_policy"), report)?;
    let (of_each, child) = (false, Box::new(inner.balancer));
    Some(Balancing { balancer: Balancer::RandomSubsetting { size, of_each, child }, ..inner })
}

/// gRFC A48: fewer than 2 choices are refused, more than 10 are 10.
fn read_least_request(proto: &LeastRequest, at: &At<'_>, report: &mut Report) -> Option<Balancing> {
    let bias = proto.active_request_bias.as_ref().map_or(1.0, |b| b.default_value);
    let Some(bias) = millionths(bias) else {
        report.problem(&at.field("active_request_bias"), format!("{bias} is not usable"));
        return None;
    };
    let set = proto.selection_method != 0 || common::is_true(proto.enable_full_scan.as_ref());
    report.unenforced_if(set, at, "selection_method", "endpoints are drawn, not all scanned");
    let choices = proto.choice_count.map_or(CHOICES.0, |c| c.value);
    if choices < CHOICES.0 {
        report.problem(&at.field("choice_count"), format!("{choices} is less than {} (gRFC A48)", CHOICES.0));
        return None;
    }
    let choices = u8::try_from(choices.min(CHOICES.1)).unwrap_or(u8::MAX);
    let slow_start = read_slow_start(proto.slow_start_config.as_ref(), at, report);
    let found = Balancing { slow_start, ..Balancing::of(Balancer::LeastRequest { choices, bias }) };
    Some(found.with_locality(proto.locality_lb_config.as_ref(), at, report))
}

fn read_ring_hash(proto: &RingHash, at: &At<'_>, report: &mut Report) -> Option<Balancing> {
    if proto.hash_function == i32::from(HashFunction::MurmurHash2) {
        report.problem(&at.field("hash_function"), "only XX_HASH is supported (gRFC A42)");
    }
    // The two fields that the message replaced stand beside it.
    let older = ConsistentHashingLbConfig {
        use_hostname_for_hashing: proto.use_hostname_for_hashing,
        hash_balance_factor: proto.hash_balance_factor,
        hash_policy: Vec::new(),
    };
    let older = (older != ConsistentHashingLbConfig::default()).then_some(&older);
    let hashing = proto.consistent_hashing_lb_config.as_ref().or(older);
    let hashing = hashing.map(|h| locality::read_hashing(h, &at.field("consistent_hashing_lb_config"), report));
    let min_size = proto.minimum_ring_size.map_or(DEFAULT_RING, |s| s.value);
    let max_size = proto.maximum_ring_size.map_or(MAX_RING, |s| s.value);
    for (name, size) in [("minimum_ring_size", min_size), ("maximum_ring_size", max_size)] {
        if size > MAX_RING {
            report.problem(&at.field(name), format!("{size} is more than {MAX_RING} (gRFC A42)"));
        }
    }
    if min_size > max_size {
        report.problem(&at.field("minimum_ring_size"), format!("{min_size} is more than the maximum {max_size}"));
        return None;
    }
    let weighted = proto.locality_weighted_lb_config.is_some();
    Some(Balancing { weighted, hashing, ..Balancing::of(Balancer::RingHash { min_size, max_size }) })
}

fn read_maglev(table_size: u64, at: &At<'_>, report: &mut Report) -> Option<Balancer> {
    if table_size > MAX_TABLE || !is_prime(table_size) {
        report.problem(at, format!("{table_size} is not a prime of at most {MAX_TABLE}"));
        return None;
    }
    Some(Balancer::Maglev { table_size })
}

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

/// The older message of the same fields.
fn newer(older: &xds::cluster::SlowStartConfig) -> common_lb::SlowStartConfig {
    common_lb::SlowStartConfig {
        slow_start_window: older.slow_start_window,
        aggression: older.aggression.clone(),
        min_weight_percent: older.min_weight_percent,
    }
}
