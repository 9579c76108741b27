//! [`MeshConfig`]: who this process is and where its control plane is, from the environment.
//!
//! One parser behind the [`Vars`] trait, so that tests feed it. Order everywhere: builder, then
//! environment, then default. Refuses to know what the values are used for.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use mesh_core::id::{Locality, SpiffeId, TrustDomain, Workload};
use mesh_core::suggest::nearest;
use mesh_discovery::bootstrap::{Bootstrap, CertificateProvider, ChannelCredentials, FileWatcher};
use mesh_discovery::secret::{JoinToken, WorkloadApi};

use crate::listeners::parse_allowed;

/// Where variables come from.
pub trait Vars {
    /// The value of a variable; `None` when it is unset or empty.
    fn var(&self, name: &str) -> Option<String>;
    /// The names of all variables, to warn of unknown ones.
    fn names(&self) -> Vec<String>;
}

/// The environment of the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnv;

impl Vars for ProcessEnv {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }

    fn names(&self) -> Vec<String> {
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect()
    }
}

/// Everything that [`Mesh::from_env`](crate::Mesh::from_env) reads. Change what you like of it and give it to
/// [`MeshBuilder::config`](crate::MeshBuilder::config). What the control plane is told of this process is the bootstrap's node, made
/// of the others as they were read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MeshConfig {
    /// Where the control plane is (`GRPC_XDS_BOOTSTRAP`, `GRPC_XDS_BOOTSTRAP_CONFIG`, or the pair
    /// `MESH_CONTROL_PLANE` = `host:port` and `MESH_ROOT_CERT` = PEM file); `None` = there is none
    /// (`MESH_CONTROL_PLANE=none`). With the pair the control plane's certificate must have the SPIFFE ID of
    /// `MESH_CONTROL_PLANE_ID`: default `spiffe://<MESH_TRUST_DOMAIN>/ns/mesh-system/sa/control-plane`, and `any` where
    /// another server ends its TLS.
    pub bootstrap: Option<Bootstrap>,
    /// Proof for the first certificate (`MESH_JOIN_TOKEN`, or `MESH_JOIN_TOKEN_FILE`, read at each use).
    /// `None` leaves it to the bootstrap's certificate provider, see [`identity_files`](Self::identity_files).
    pub proof: Option<JoinToken>,
    /// The agent that says who this process is (`SPIFFE_ENDPOINT_SOCKET`), and which of several identities is meant
    /// (`MESH_SPIFFE_HINT`, default the agent's first). Default: none. A [proof](Self::proof) goes before.
    pub workload_api: Option<WorkloadApi>,
    /// `MESH_TRUST_DOMAIN_ALIASES`, comma-separated: other names of the trust domain, former ones and one to come, whose peers
    /// are taken for those of the present one (Istio's `trustDomainAliases`). Default: none.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// `MESH_TRUST_DOMAIN`, which, or an alias of it, a certificate for a join token must be of; default `cluster.local`.
    pub trust_domain: TrustDomain,
    /// Who we are in telemetry and selectors: `POD_NAMESPACE` (default `default`), `MESH_LABELS`
    /// (`app=reviews,version=v1`), `POD_NAME`.
    pub workload: Workload,
    /// `SERVICE_ACCOUNT`; default `default`.
    pub service_account: String,
    /// `MESH_LOCALITY` = `region/zone/subzone`; default unknown.
    pub locality: Locality,
    /// `MESH_CLIENT_NUMBER`: which of its fleet this process is, counted from 0, where clients use a part of the endpoints each
    /// ([`ClientBuilder::number`](mesh_client::ClientBuilder::number)). Default: what a StatefulSet says, by the label
    /// `apps.kubernetes.io/pod-index` or the number at the end of `POD_NAME`; else unknown. Its fleet is the namespace's
    /// processes of the same name: that of a label, or what the `POD_NAME`s of one controller have in common.
    pub client_number: Option<u32>,
    /// `POD_IP`: where others reach a listener that is bound to every interface. Default: unknown.
    pub pod_ip: Option<IpAddr>,
    /// `MESH_DEBUG_ADDR`: where the debug endpoints listen. Default: they don't.
    pub debug_address: Option<SocketAddr>,
    /// `MESH_SNAPSHOT`: the file that keeps the last good configuration, for a start while no control plane can be
    /// reached ([`SnapshotConfig`](mesh_discovery::xds::SnapshotConfig)). Its owner is this node by its id, without the address
    /// in that: it needs a stable `POD_NAME`, and outlives a move to another `POD_IP`. Default: none is kept.
    pub snapshot: Option<PathBuf>,
    /// `MESH_SNAPSHOT_KEY`: the file with the key that marks the snapshot as this node's own, made where it is missing.
    /// Default: beside it, `.key` at the end of its name.
    pub snapshot_key: Option<PathBuf>,
    /// `MESH_OTHER_LISTENERS`: what becomes of sockets on which this process listens beside the mesh's, where no policy is
    /// enforced. `warn` (the default, false): each is a line in the log, once. `refuse` (true): nothing is ready while there
    /// is one, on Linux only.
    pub refuse_other_listeners: bool,
    /// `MESH_ALLOWED_LISTENERS`: those that are as they should be, as ports, or addresses with their ports:
    /// `9090,127.0.0.1:9229`. Default: none.
    pub allowed_listeners: Vec<(Option<IpAddr>, u16)>,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {reason}")]
pub struct InvalidConfig {
    /// The variable.
    pub variable: String,
    /// Why, and what to do.
    pub reason: String,
}

/// What `MESH_CONTROL_PLANE` is in a process without one.
pub(crate) const NO_CONTROL_PLANE: &str = "none";

/// The variables of ours, for the "did you mean" warning.
const KNOWN: [&str; 16] = [
    "MESH_CONTROL_PLANE",
    "MESH_CONTROL_PLANE_ID",
    "MESH_ROOT_CERT",
    "MESH_JOIN_TOKEN",
    "MESH_JOIN_TOKEN_FILE",
    "MESH_SPIFFE_HINT",
    "MESH_TRUST_DOMAIN",
    "MESH_TRUST_DOMAIN_ALIASES",
    "MESH_LABELS",
    "MESH_LOCALITY",
    "MESH_DEBUG_ADDR",
    "MESH_SNAPSHOT",
    "MESH_SNAPSHOT_KEY",
    "MESH_OTHER_LISTENERS",
    "MESH_ALLOWED_LISTENERS",
    "MESH_CLIENT_NUMBER",
];

impl MeshConfig {
    /// Reads the configuration.
    ///
    /// # Errors
    /// A variable cannot be parsed, or nothing says where the control plane is.
    pub fn from_vars(vars: &dyn Vars) -> Result<Self, InvalidConfig> {
        warn_of_unknown(vars);
        let labels = labels(vars)?;
        let namespace = vars.var("POD_NAMESPACE").unwrap_or_else(|| "default".to_owned());
        if !is_label(&namespace) {
            let reason = format!("{namespace:?} is not a namespace: 1 to 63 of a-z, 0-9 and - are, not at the ends");
            return Err(invalid("POD_NAMESPACE", reason));
        }
        let service_account = vars.var("SERVICE_ACCOUNT").unwrap_or_else(|| "default".to_owned());
        let locality = vars.var("MESH_LOCALITY").unwrap_or_default();
        if locality.matches('/').count() > 2 {
            let reason = format!("{locality:?} has more than three parts: give region/zone/subzone");
            return Err(invalid("MESH_LOCALITY", reason));
        }
        let locality = Locality::parse(&locality);
        let client_number = client_number(vars, &labels)?;
        let workload = workload(vars, namespace, labels);
        let proof = match (vars.var("MESH_JOIN_TOKEN"), vars.var("MESH_JOIN_TOKEN_FILE")) {
            (Some(token), _) => Some(JoinToken::Text(token)),
            (None, Some(path)) => Some(JoinToken::File(path.into())),
            (None, None) => None,
        };
        let trust_domain = vars.var("MESH_TRUST_DOMAIN").unwrap_or_else(|| "cluster.local".to_owned());
        let trust_domain = TrustDomain::new(&trust_domain).map_err(|e| invalid("MESH_TRUST_DOMAIN", e))?;
        let server_id = control_plane_id(vars, &trust_domain)?;
        let aliases = vars.var("MESH_TRUST_DOMAIN_ALIASES").unwrap_or_default();
        let aliases = aliases.split(',').map(str::trim).filter(|alias| !alias.is_empty()).map(TrustDomain::new);
        let trust_domain_aliases =
            aliases.collect::<Result<Vec<_>, _>>().map_err(|e| invalid("MESH_TRUST_DOMAIN_ALIASES", e))?;
        // A control plane of this mesh may have changed its name before its members do.
        let is_ours = server_id.as_ref().is_some_and(|id| id.trust_domain() == trust_domain);
        let also = if is_ours { trust_domain_aliases.clone() } else { Vec::new() };
        let bootstrap = bootstrap(vars, &workload, &service_account, &locality, (server_id, also))?;
        let workload_api = workload_api(vars)?;
        let pod_ip = match vars.var("POD_IP") {
            Some(text) => Some(text.parse().map_err(|_| invalid("POD_IP", format!("{text:?} is not an IP address")))?),
            None => None,
        };
        let debug_address = match vars.var("MESH_DEBUG_ADDR") {
            Some(text) => {
                Some(text.parse().map_err(|_| invalid("MESH_DEBUG_ADDR", "give ip:port, as in 127.0.0.1:15000"))?)
            }
            None => None,
        };
        let allowed = vars.var("MESH_ALLOWED_LISTENERS").unwrap_or_default();
        let allowed_listeners = parse_allowed(&allowed).map_err(|e| invalid("MESH_ALLOWED_LISTENERS", e))?;
        let snapshot = vars.var("MESH_SNAPSHOT").map(PathBuf::from);
        let snapshot_key = vars.var("MESH_SNAPSHOT_KEY").map(PathBuf::from);
        if snapshot.is_some() && bootstrap.is_some() && !has_lasting_node_id(vars) {
            let reason = "the node id holds the process id, so no later process uses this one's snapshot: set POD_NAME, or a node id in GRPC_XDS_BOOTSTRAP";
            tracing::warn!(target: "mesh::config", variable = "MESH_SNAPSHOT", reason);
        }
        Ok(Self {
            bootstrap,
            proof,
            workload_api,
            trust_domain_aliases,
            trust_domain,
            workload,
            service_account,
            locality,
            client_number,
            pod_ip,
            debug_address,
            snapshot,
            snapshot_key,
            refuse_other_listeners: refuses_others(vars)?,
            allowed_listeners,
        })
    }
}

/// The instance of `certificate_providers` that is the process's own identity, as istiod's resources name it.
pub(crate) const INSTANCE: &str = "default";

impl MeshConfig {
    /// The files with our certificate and key, and roots as a rule: those of the bootstrap's certificate provider
    /// `default`. `None` if there is no such instance, if it has roots alone, or if there is a
    /// [proof](Self::proof) for the CA or a [Workload API](Self::workload_api), which go before.
    pub fn identity_files(&self) -> Option<&FileWatcher> {
        let provider = self.bootstrap.as_ref()?.certificate_providers.get(INSTANCE)?;
        if self.proof.is_some() || self.workload_api.is_some() {
            return None;
        }
        match provider {
            CertificateProvider::FileWatcher(files) if files.identity.is_some() => Some(files),
            _ => {
                let reason = "it names no certificate: this process has no mesh identity";
                tracing::warn!(target: "mesh::config", field = "certificate_providers.default", reason);
                None
            }
        }
    }

    /// What full names of Services end in, if the node's id has Istio's form and says so.
    pub(crate) fn service_domain(&self) -> Option<&str> {
        let id = &self.bootstrap.as_ref()?.node.id;
        let domain = id.split('~').nth(3)?.strip_prefix(&self.workload.namespace)?.strip_prefix('.')?;
        Some(domain).filter(|domain| domain.starts_with("svc."))
    }

    /// The other certificate providers of the bootstrap, by instance name: certificates, roots, or both, that policy
    /// asks for by that name (gRFC A29). With `default` among them if it has roots alone and nothing else says who we are.
    pub fn other_files(&self) -> impl Iterator<Item = (&str, &FileWatcher)> {
        let nobody = self.proof.is_none() && self.workload_api.is_none();
        let providers = self.bootstrap.iter().flat_map(|bootstrap| &bootstrap.certificate_providers);
        let files = providers.filter_map(|(name, provider)| match provider {
            CertificateProvider::FileWatcher(files) => Some((name.as_str(), files)),
            _ => None,
        });
        files.filter(move |(name, files)| *name != INSTANCE || nobody && files.identity.is_none())
    }
}

/// A DNS label, as the name of a namespace is.
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn invalid(variable: &str, reason: impl ToString) -> InvalidConfig {
    InvalidConfig { variable: variable.to_owned(), reason: reason.to_string() }
}

fn refuses_others(vars: &dyn Vars) -> Result<bool, InvalidConfig> {
    match vars.var("MESH_OTHER_LISTENERS").as_deref() {
        None | Some("warn") => Ok(false),
        Some("refuse") if cfg!(target_os = "linux") => Ok(true),
        Some("refuse") => {
            Err(invalid("MESH_OTHER_LISTENERS", "what listens in a process is known on Linux only: warn"))
        }
        Some(other) => Err(invalid("MESH_OTHER_LISTENERS", format!("{other:?} is neither warn nor refuse"))),
    }
}

fn workload_api(vars: &dyn Vars) -> Result<Option<WorkloadApi>, InvalidConfig> {
    let Some(socket) = vars.var("SPIFFE_ENDPOINT_SOCKET") else { return Ok(None) };
    let api: WorkloadApi = socket.parse().map_err(|e| invalid("SPIFFE_ENDPOINT_SOCKET", e))?;
    Ok(Some(match vars.var("MESH_SPIFFE_HINT") {
        Some(hint) => api.with_hint(hint),
        None => api,
    }))
}

fn labels(vars: &dyn Vars) -> Result<BTreeMap<String, String>, InvalidConfig> {
    let text = vars.var("MESH_LABELS").unwrap_or_default();
    text.split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                invalid("MESH_LABELS", format!("{pair:?} is not key=value, as in app=reviews,version=v1"))
            })?;
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}

/// Which of its fleet this process is, if it is one of a StatefulSet's or somebody says so.
fn client_number(vars: &dyn Vars, labels: &BTreeMap<String, String>) -> Result<Option<u32>, InvalidConfig> {
    if let Some(text) = vars.var("MESH_CLIENT_NUMBER") {
        let wrong = |_| invalid("MESH_CLIENT_NUMBER", format!("{text:?} is not a number: give this client's, from 0"));
        return text.parse().map(Some).map_err(wrong);
    }
    let index = labels.get("apps.kubernetes.io/pod-index").and_then(|index| index.parse().ok());
    // A ReplicaSet's Pods end in five letters or digits that say nothing.
    let ordinal = || vars.var("POD_NAME")?.rsplit_once('-')?.1.parse::<u32>().ok().filter(|ordinal| *ordinal < 10_000);
    Ok(index.or_else(ordinal))
}

/// The labels that name a workload.
pub(crate) const NAME_LABELS: [&str; 4] =
    ["service.istio.io/workload-name", "service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];

/// Telemetry identity in the order Istio takes it (canonical-name, then `app.kubernetes.io/name`, then `app`).
fn workload(vars: &dyn Vars, namespace: String, labels: BTreeMap<String, String>) -> Workload {
    let first = |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key).cloned());
    let name = first(&NAME_LABELS[..1]);
    let canonical_name = first(&NAME_LABELS[1..])
        .or_else(|| name.clone())
        .or_else(|| vars.var("POD_NAME"))
        .unwrap_or_else(|| "unknown".to_owned());
    let canonical_revision = first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
        .unwrap_or_else(|| "latest".to_owned());
    Workload {
        name: name.unwrap_or_else(|| canonical_name.clone()),
        namespace,
        canonical_name,
        canonical_revision,
        cluster: "Kubernetes".to_owned(),
        labels,
    }
}

fn bootstrap(
    vars: &dyn Vars,
    workload: &Workload,
    account: &str,
    locality: &Locality,
    server_id: (Option<SpiffeId>, Vec<TrustDomain>),
) -> Result<Option<Bootstrap>, InvalidConfig> {
    if let Some(address) = vars.var("MESH_CONTROL_PLANE") {
        if address == NO_CONTROL_PLANE {
            return Ok(None);
        }
        let root = vars
            .var("MESH_ROOT_CERT")
            .ok_or_else(|| invalid("MESH_ROOT_CERT", "name the PEM file with the control plane's root certificate"))?;
        let json = serde_json::json!({
            "xds_servers": [{
                "server_uri": address,
                "channel_creds": [{"type": "tls", "config": {"ca_certificate_file": root}}],
                // It is ours, so it may have the authority rewritten (gRFC A81).
                "server_features": ["xds_v3", "trusted_xds_server"],
            }],
            "node": {
                "id": node_id(vars, workload),
                "cluster": workload.canonical_name,
                "locality": {"region": locality.region, "zone": locality.zone, "sub_zone": locality.sub_zone},
                "metadata": {
                    "NAMESPACE": workload.namespace,
                    "SERVICE_ACCOUNT": account,
                    "WORKLOAD_NAME": workload.name,
                    "LABELS": workload.labels,
                },
            },
        });
        let mut bootstrap = Bootstrap::from_json(&json.to_string()).map_err(|e| invalid("MESH_CONTROL_PLANE", e))?;
        for server in &mut bootstrap.servers {
            if let ChannelCredentials::Tls(tls) = &mut server.credentials {
                (tls.server_id, tls.server_id_aliases) = server_id.clone();
            }
        }
        return Ok(Some(bootstrap));
    }
    let bootstrap = Bootstrap::from_env(&|name| vars.var(name)).map_err(|e| invalid("GRPC_XDS_BOOTSTRAP", e))?;
    let missing = "set it to host:port, with MESH_ROOT_CERT; or set GRPC_XDS_BOOTSTRAP; none does without";
    bootstrap.map(Some).ok_or_else(|| invalid("MESH_CONTROL_PLANE", missing))
}

/// Whom the control plane must prove to be; `None` = anybody of the name it is dialled by.
fn control_plane_id(vars: &dyn Vars, domain: &TrustDomain) -> Result<Option<SpiffeId>, InvalidConfig> {
    let wrong = |e: &dyn ToString| invalid("MESH_CONTROL_PLANE_ID", e.to_string());
    match vars.var("MESH_CONTROL_PLANE_ID").as_deref() {
        Some("any") => Ok(None),
        Some(id) => id.parse().map(Some).map_err(|e| wrong(&e)),
        None => SpiffeId::for_service_account(domain, "mesh-system", "control-plane").map(Some).map_err(|e| wrong(&e)),
    }
}

/// Istio's node id: `sidecar~<ip>~<pod>.<ns>~<ns>.svc.cluster.local`.
fn node_id(vars: &dyn Vars, workload: &Workload) -> String {
    let ip = vars.var("POD_IP").unwrap_or_else(|| "127.0.0.1".to_owned());
    let pod = vars.var("POD_NAME").unwrap_or_else(|| format!("{}-{}", workload.name, std::process::id()));
    let namespace = &workload.namespace;
    format!("sidecar~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local")
}

/// Whether the next process at this place is the same node: a snapshot of another one is not used.
fn has_lasting_node_id(vars: &dyn Vars) -> bool {
    vars.var("MESH_CONTROL_PLANE").is_none() || vars.var("POD_NAME").is_some()
}

fn warn_of_unknown(vars: &dyn Vars) {
    for name in unknown(vars) {
        match nearest(&name, KNOWN) {
            Some(known) => {
                tracing::warn!(target: "mesh::config", variable = %name, "unknown variable; did you mean {known}?")
            }
            None => tracing::warn!(target: "mesh::config", variable = %name, "unknown variable"),
        }
    }
}

fn unknown(vars: &dyn Vars) -> Vec<String> {
    vars.names().into_iter().filter(|name| name.starts_with("MESH_") && !KNOWN.contains(&name.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Given(BTreeMap<&'static str, &'static str>);

    impl Vars for Given {
        fn var(&self, name: &str) -> Option<String> {
            self.0.get(name).map(|value| (*value).to_owned())
        }
        fn names(&self) -> Vec<String> {
            self.0.keys().map(|name| (*name).to_owned()).collect()
        }
    }

    fn given(vars: &[(&'static str, &'static str)]) -> Given {
        Given(vars.iter().copied().collect())
    }

    #[test]
    fn two_variables_are_enough_and_labels_name_the_workload() {
        let vars = given(&[
            ("MESH_CONTROL_PLANE", "127.0.0.1:15012"),
            ("MESH_ROOT_CERT", "root-cert.pem"),
            ("MESH_LABELS", "app=reviews, version=v2"),
        ]);
        let config = MeshConfig::from_vars(&vars).unwrap();
        assert_eq!(config.workload.canonical_name, "reviews");
        assert_eq!(config.workload.canonical_revision, "v2");
        assert_eq!(config.workload.namespace, "default");
        assert_eq!(config.trust_domain.as_str(), "cluster.local");
        assert_eq!(config.debug_address, None);
        assert!(config.bootstrap.unwrap().server().features.trusted_xds_server);
    }

    #[test]
    fn the_control_plane_is_its_own_identity_unless_another_one_is_named() {
        let pinned = |more: &[(&'static str, &'static str)]| {
            let vars = [&[("MESH_CONTROL_PLANE", "a:1"), ("MESH_ROOT_CERT", "root-cert.pem")], more].concat();
            let server = MeshConfig::from_vars(&given(&vars)).unwrap().bootstrap.unwrap().servers.remove(0);
            match server.credentials {
                ChannelCredentials::Tls(tls) => tls.server_id.map(|id| id.to_string()),
                other => panic!("{other:?}"),
            }
        };
        let own = |domain: &str| Some(format!("spiffe://{domain}/ns/mesh-system/sa/control-plane"));
        assert_eq!(pinned(&[]), own("cluster.local"));
        assert_eq!(pinned(&[("MESH_TRUST_DOMAIN", "shop.test")]), own("shop.test"));
        let other = "spiffe://shop.test/ns/istio-system/sa/istiod";
        assert_eq!(pinned(&[("MESH_CONTROL_PLANE_ID", other)]).as_deref(), Some(other));
        assert_eq!(pinned(&[("MESH_CONTROL_PLANE_ID", "any")]), None);
        let aliases = ("MESH_TRUST_DOMAIN_ALIASES", "new.test");
        for (more, known) in [(vec![aliases], 1), (vec![aliases, ("MESH_CONTROL_PLANE_ID", other)], 0), (vec![], 0)] {
            let vars = [&[("MESH_CONTROL_PLANE", "a:1"), ("MESH_ROOT_CERT", "root-cert.pem")], &*more].concat();
            let server = MeshConfig::from_vars(&given(&vars)).unwrap().bootstrap.unwrap().servers.remove(0);
            let ChannelCredentials::Tls(tls) = server.credentials else { panic!("{:?}", server.credentials) };
            assert_eq!(tls.server_id_aliases.len(), known, "{more:?}");
        }
    }

    #[test]
    fn a_process_may_do_without_a_control_plane_if_it_says_so() {
        let vars = given(&[("MESH_CONTROL_PLANE", "none"), ("MESH_LABELS", "app=reviews")]);
        let config = MeshConfig::from_vars(&vars).unwrap();
        assert!(config.bootstrap.is_none());
        assert_eq!(config.workload.canonical_name, "reviews");
    }

    #[test]
    fn an_agent_and_former_trust_domains_are_taken_from_the_environment() {
        let vars = given(&[
            ("MESH_CONTROL_PLANE", "none"),
            ("SPIFFE_ENDPOINT_SOCKET", "unix:///run/agent.sock"),
            ("MESH_SPIFFE_HINT", "internal"),
            ("MESH_TRUST_DOMAIN_ALIASES", "old.test, older.test"),
        ]);
        let config = MeshConfig::from_vars(&vars).unwrap();
        let api: WorkloadApi = "unix:///run/agent.sock".parse().unwrap();
        assert_eq!(config.workload_api, Some(api.with_hint("internal")));
        let aliases: Vec<_> = config.trust_domain_aliases.iter().map(TrustDomain::as_str).collect();
        assert_eq!(aliases, ["old.test", "older.test"]);
        assert_eq!(unknown(&vars), Vec::<String>::new());
    }

    #[test]
    fn other_listeners_are_told_of_unless_they_are_to_be_refused() {
        let read = |more: &[(&'static str, &'static str)]| {
            let config = MeshConfig::from_vars(&given(&[&[("MESH_CONTROL_PLANE", "none")], more].concat())).unwrap();
            (config.refuse_other_listeners, config.allowed_listeners)
        };
        assert_eq!(read(&[]), (false, Vec::new()));
        assert_eq!(read(&[("MESH_OTHER_LISTENERS", "warn")]), (false, Vec::new()));
        let some = read(&[("MESH_ALLOWED_LISTENERS", "9090, 127.0.0.1:9229")]);
        assert_eq!(some, (false, vec![(None, 9090), (Some([127, 0, 0, 1].into()), 9229)]));
        #[cfg(target_os = "linux")]
        assert!(read(&[("MESH_OTHER_LISTENERS", "refuse")]).0);
    }

    #[test]
    fn each_bad_value_names_its_variable() {
        let base = [("MESH_CONTROL_PLANE", "127.0.0.1:15012"), ("MESH_ROOT_CERT", "root-cert.pem")];
        for (name, value) in [
            ("MESH_LABELS", "app"),
            ("MESH_TRUST_DOMAIN", "Not Valid"),
            ("MESH_TRUST_DOMAIN_ALIASES", "old.test,Not Valid"),
            ("SPIFFE_ENDPOINT_SOCKET", "agent.sock"),
            ("MESH_DEBUG_ADDR", "here"),
            ("MESH_CONTROL_PLANE_ID", "istiod"),
            ("MESH_OTHER_LISTENERS", "deny"),
            ("MESH_ALLOWED_LISTENERS", "9090;9091"),
            ("MESH_LOCALITY", "a/b/c/d"),
            ("POD_NAMESPACE", "a b"),
            ("POD_NAMESPACE", "a.b"),
        ] {
            let mut vars = base.to_vec();
            vars.push((name, value));
            assert_eq!(MeshConfig::from_vars(&given(&vars)).unwrap_err().variable, name);
        }
        let good = [&base[..], &[("MESH_LOCALITY", "a/b/c"), ("POD_NAMESPACE", "a-b")]].concat();
        assert!(MeshConfig::from_vars(&given(&good)).is_ok(), "the control");
        assert_eq!(MeshConfig::from_vars(&given(&base[..1])).unwrap_err().variable, "MESH_ROOT_CERT");
        assert_eq!(MeshConfig::from_vars(&given(&[])).unwrap_err().variable, "MESH_CONTROL_PLANE");
    }

    #[test]
    fn s92_settings_are_printed_without_their_secrets() {
        let bootstrap = r#"{"xds_servers":[{"server_uri":"plane.test:1","channel_creds":[{"type":"tls","config":{
            "ca_certificate_file":"/root.pem","password":"sesame-1"}}],"call_creds":[{"type":"jwt_token_file","config":{
            "jwt_token_file":"/token","token":"sesame-2"}}]}],"key":"sesame-3"}"#;
        for plane in [
            &[("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap)][..],
            &[("MESH_CONTROL_PLANE", "plane.test:1"), ("MESH_ROOT_CERT", "/root.pem")],
        ] {
            let with = |more: &[(&'static str, &'static str)]| {
                MeshConfig::from_vars(&given(&[plane, &[("MESH_JOIN_TOKEN", "sesame-4")], more].concat()))
            };
            let config = with(&[]).unwrap();
            let shown = format!("{config:?} {:#?} {:?}", config.bootstrap, config.proof);
            assert!(!shown.contains("sesame"), "{shown}");
            // What is wrong beside it does not bring it out either.
            let error = with(&[("MESH_LOCALITY", "a/b/c/d")]).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("sesame"), "{error}");
            // The control: the token is there, and the rest is printed.
            assert_eq!(config.proof, Some(JoinToken::Text("sesame-4".to_owned())));
            assert!(
                shown.contains("plane.test") && shown.contains("/root.pem") && shown.contains("Text(***)"),
                "{shown}"
            );
        }
    }

    /// There is no default by which anybody is trusted: not even the start is.
    #[test]
    fn s88_a_control_plane_without_a_root_is_not_started_with() {
        let plane = [("MESH_CONTROL_PLANE", "127.0.0.1:15012"), ("MESH_JOIN_TOKEN", "secret")];
        let with = |root: &[(&'static str, &'static str)]| MeshConfig::from_vars(&given(&[&plane[..], root].concat()));
        assert_eq!(with(&[]).unwrap_err().variable, "MESH_ROOT_CERT");
        assert!(with(&[("MESH_ROOT_CERT", "root-cert.pem")]).is_ok(), "the control");
    }

    #[test]
    fn s12_a_join_token_goes_before_the_certificate_provider_named_default() {
        let files = |instance: &str, config: &str| -> &'static str {
            let provider = format!(r#"{{"{instance}":{{"plugin_name":"file_watcher","config":{{{config}}}}}}}"#);
            let server = r#"{"server_uri":"a:1","channel_creds":[{"type":"insecure"}]}"#;
            format!(r#"{{"xds_servers":[{server}],"certificate_providers":{provider}}}"#).leak()
        };
        let found = |bootstrap: &'static str, token: &'static str| {
            let vars = given(&[("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap), ("MESH_JOIN_TOKEN", token)]);
            let vars = Given(vars.0.into_iter().filter(|(_, value)| !value.is_empty()).collect());
            MeshConfig::from_vars(&vars).unwrap().identity_files().is_some()
        };
        let identity = r#""certificate_file":"/c","private_key_file":"/k""#;
        let whole = format!(r#"{identity},"ca_certificate_file":"/r""#);
        assert!(found(files("default", &whole), ""));
        assert!(found(files("default", &format!(r#"{identity},"spiffe_trust_bundle_map_file":"/m""#)), ""));
        assert!(!found(files("default", &whole), "token"));
        assert!(!found(files("other", &whole), ""));
        assert!(found(files("default", identity), ""), "whom to trust another instance may say");
        assert!(!found(files("default", r#""ca_certificate_file":"/r""#), ""));

        // Another instance is beside the process's own identity, whatever that comes from.
        let others = |bootstrap: &'static str| {
            let vars = given(&[("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap), ("MESH_JOIN_TOKEN", "token")]);
            MeshConfig::from_vars(&vars).unwrap().other_files().count()
        };
        assert_eq!(others(files("other", &whole)), 1);
        assert_eq!((others(files("other", identity)), others(files("default", &whole))), (1, 0));
        let roots = files("default", r#""ca_certificate_file":"/r""#);
        assert_eq!(others(roots), 0, "the token says who we are, and whom we trust");
        let alone = MeshConfig::from_vars(&given(&[("GRPC_XDS_BOOTSTRAP_CONFIG", roots)])).unwrap();
        assert_eq!(alone.other_files().count(), 1);
    }

    #[test]
    fn a_node_id_lasts_with_the_pods_name_or_a_bootstrap() {
        let lasting = |vars: &[(&'static str, &'static str)]| {
            let id = |vars: &[(&'static str, &'static str)]| {
                let config = MeshConfig::from_vars(&given(vars)).unwrap();
                config.bootstrap.unwrap().node.id
            };
            let process = std::process::id().to_string();
            let lasts = has_lasting_node_id(&given(vars));
            assert_eq!(lasts, !id(vars).contains(&process), "{vars:?}");
            lasts
        };
        let plane = [("MESH_CONTROL_PLANE", "istiod:15010"), ("MESH_ROOT_CERT", "/root.pem")];
        assert!(!lasting(&plane));
        assert!(lasting(&[plane[0], plane[1], ("POD_NAME", "reviews-v1-x")]));
        let json = r#"{"xds_servers": [{"server_uri": "x:1", "channel_creds": [{"type": "insecure"}]}], "node": {"id": "me"}}"#;
        assert!(lasting(&[("GRPC_XDS_BOOTSTRAP_CONFIG", json)]));
    }

    #[test]
    fn the_domain_of_services_is_in_a_node_id_of_istios_form() {
        let domain = |id: &str| {
            let json = format!(
                r#"{{"xds_servers": [{{"server_uri": "x:1", "channel_creds": [{{"type": "insecure"}}]}}], "node": {{"id": "{id}"}}}}"#
            );
            let vars = given(&[("GRPC_XDS_BOOTSTRAP_CONFIG", json.leak()), ("POD_NAMESPACE", "shop")]);
            MeshConfig::from_vars(&vars).unwrap().service_domain().map(str::to_owned)
        };
        assert_eq!(domain("sidecar~10.0.0.1~a.shop~shop.svc.example.org").as_deref(), Some("svc.example.org"));
        for other in ["me", "sidecar~10.0.0.1~a.shop~other.svc.example.org", "sidecar~10.0.0.1~a.shop~shop.example.org"]
        {
            assert_eq!(domain(other), None, "{other}");
        }
        let plane = [("MESH_CONTROL_PLANE", "istiod:15010"), ("MESH_ROOT_CERT", "/root.pem")];
        let own = MeshConfig::from_vars(&given(&plane)).unwrap();
        assert_eq!(own.service_domain(), Some("svc.cluster.local"));
    }

    #[test]
    fn a_client_knows_its_number_by_its_variable_its_label_or_its_name() {
        let number = |vars: &[(&'static str, &'static str)]| {
            let plane = [("MESH_CONTROL_PLANE", "istiod:15010"), ("MESH_ROOT_CERT", "/root.pem")];
            MeshConfig::from_vars(&given(&[&plane, vars].concat())).map(|config| config.client_number)
        };
        let (pod, label) = (("POD_NAME", "kafka-12"), ("MESH_LABELS", "apps.kubernetes.io/pod-index=7"));
        assert_eq!(number(&[("MESH_CLIENT_NUMBER", "3"), label, pod]).unwrap(), Some(3));
        assert_eq!((number(&[label, pod]).unwrap(), number(&[pod]).unwrap()), (Some(7), Some(12)));
        for nobody in ["web-5d4f8c7b9-24689", "web-5d4f8c7b9-x2bcd", "web", "4"] {
            assert_eq!(number(&[("POD_NAME", nobody)]).unwrap(), None, "{nobody}");
        }
        assert_eq!(number(&[("MESH_CLIENT_NUMBER", "-1"), pod]).unwrap_err().variable, "MESH_CLIENT_NUMBER");
    }

    #[test]
    fn an_unknown_variable_of_ours_is_noticed_and_others_are_not() {
        assert_eq!(unknown(&given(&[("MESH_JOIN_TOKN", "x"), ("PATH", "x")])), ["MESH_JOIN_TOKN"]);
        assert_eq!(nearest("MESH_JOIN_TOKN", KNOWN), Some("MESH_JOIN_TOKEN"));
    }
}
