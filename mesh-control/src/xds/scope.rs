//! Who asks: the scope of a stream, fixed by its connection; the node message only adds hints.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use mesh_core::id::Locality;
use tonic::Status;

use crate::runtime::Caller;
use crate::translate::{Dialect, NodeScope};

/// Labels beyond these bounds are left out.
const MAX_LABELS: usize = 64;
const MAX_TEXT: usize = 253;
const MAX_PATH: usize = 1024;

/// The scope of a stream. Over TLS the namespace is the certificate's, whatever the node says
/// (CVE-2026-31838 is what happens otherwise); on the plaintext listener it is the node's metadata
/// `NAMESPACE`, or `default`.
pub(crate) fn scope_of(caller: &Caller, node: Option<&Node>) -> Result<NodeScope, Status> {
    let metadata = node.and_then(|node| node.metadata.as_ref());
    let claimed = metadata.and_then(|metadata| text(metadata.fields.get("NAMESPACE")));
    let (namespace, account) = match caller {
        Caller::Insecure => (claimed.unwrap_or("default").to_owned(), None),
        Caller::Anonymous => {
            return Err(Status::unauthenticated(
                "configuration is given to processes with a certificate of this mesh only; get one with a join token",
            ));
        }
        Caller::Workload(id) => {
            let (namespace, account) = id.kubernetes().ok_or_else(|| {
                Status::permission_denied(format!(
                    "{id} names no namespace and service account, so it has no scope here"
                ))
            })?;
            (namespace.to_owned(), Some(account.to_owned()))
        }
    };
    // On which of its addresses a proxy listens and where its files are: its own affair, as it is told to itself.
    let outbound_listen = metadata.and_then(|metadata| text(metadata.fields.get("OUTBOUND_LISTEN"))?.parse().ok());
    let secrets = metadata.and_then(|metadata| text(metadata.fields.get("SDS"))).filter(|path| is_directory(path));
    let (labels, locality, dialect) = (labels(metadata), locality(node), dialect(node));
    Ok(NodeScope { namespace, account, labels, locality, dialect, outbound_listen, secrets: secrets.map(Into::into) })
}

/// What a node says of itself that its certificate contradicts. It is ignored.
pub(super) fn false_claims(caller: &Caller, node: &Node) -> Vec<String> {
    let Some((namespace, account)) = caller.identity().and_then(|id| id.kubernetes()) else { return Vec::new() };
    let said = |field| node.metadata.as_ref().and_then(|metadata| text(metadata.fields.get(field)));
    let claims = [
        ("namespace", said("NAMESPACE"), namespace),
        ("namespace", namespace_of(&node.id), namespace),
        ("account", said("SERVICE_ACCOUNT"), account),
    ];
    let others = claims.into_iter().filter_map(|(what, said, own)| Some((what, said.filter(|said| *said != own)?)));
    let mut said: Vec<_> =
        others.map(|(what, said)| format!("{what} {}", said.chars().take(MAX_TEXT).collect::<String>())).collect();
    said.dedup();
    said
}

/// The namespace in the ID of a node as Istio writes it: `sidecar~<address>~<pod>.<namespace>~<domain>`.
fn namespace_of(id: &str) -> Option<&str> {
    let mut parts = id.split('~').skip(2);
    let (pod, _domain) = (parts.next()?, parts.next()?);
    pod.rsplit_once('.').map(|(_, namespace)| namespace)
}

/// Whether it can be the directory of a proxy's files; that it is one only the proxy can tell.
fn is_directory(path: &str) -> bool {
    path.starts_with('/') && path.len() <= MAX_PATH
}

/// As Envoy says of itself; a hint like the rest of the node, for it only decides the form of what is
/// sent.
fn dialect(node: Option<&Node>) -> Dialect {
    match node {
        Some(node) if node.user_agent_name == "envoy" => Dialect::Envoy,
        _ => Dialect::Proxyless,
    }
}

fn labels(metadata: Option<&Struct>) -> BTreeMap<String, String> {
    let Some(ValueKind::StructValue(labels)) =
        metadata.and_then(|metadata| metadata.fields.get("LABELS")?.kind.as_ref())
    else {
        return BTreeMap::new();
    };
    let mut sorted: Vec<_> = labels.fields.iter().filter_map(|(key, value)| Some((key, text(Some(value))?))).collect();
    sorted.sort_unstable();
    let fits = |key: &str, value: &str| key.len() <= 2 * MAX_TEXT && value.len() <= MAX_TEXT;
    let kept = sorted.into_iter().filter(|(key, value)| fits(key, value)).take(MAX_LABELS);
    kept.map(|(key, value)| (key.clone(), value.to_owned())).collect()
}

fn locality(node: Option<&Node>) -> Locality {
    let locality = node.and_then(|node| node.locality.as_ref());
    let cut = |text: &String| text.chars().take(MAX_TEXT).collect();
    locality.map_or_else(Locality::default, |l| Locality {
        region: cut(&l.region),
        zone: cut(&l.zone),
        sub_zone: cut(&l.sub_zone),
    })
}

fn text(value: Option<&Value>) -> Option<&str> {
    match value?.kind.as_ref()? {
        ValueKind::StringValue(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use envoy_types::pb::envoy::config::core::v3::Locality as WireLocality;

    use super::*;

    fn value(kind: ValueKind) -> Value {
        Value { kind: Some(kind) }
    }

    fn node() -> Node {
        let labels = HashMap::from([
            ("app".to_owned(), value(ValueKind::StringValue("reviews".into()))),
            ("count".to_owned(), value(ValueKind::NumberValue(1.0))),
            ("long".to_owned(), value(ValueKind::StringValue("x".repeat(1000)))),
        ]);
        let fields = HashMap::from([
            ("NAMESPACE".to_owned(), value(ValueKind::StringValue("prod".into()))),
            ("LABELS".to_owned(), value(ValueKind::StructValue(Struct { fields: labels }))),
        ]);
        let locality = WireLocality { region: "r".into(), zone: "z".into(), sub_zone: String::new() };
        Node { metadata: Some(Struct { fields }), locality: Some(locality), ..Node::default() }
    }

    #[test]
    fn the_namespace_of_the_certificate_wins_over_the_node() {
        let id = "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap();
        let scope = scope_of(&Caller::Workload(id), Some(&node())).unwrap();
        assert_eq!((scope.namespace.as_str(), scope.account.as_deref()), ("default", Some("reviews")));
        assert_eq!(scope.labels, BTreeMap::from([("app".to_owned(), "reviews".to_owned())]));
        assert_eq!((scope.locality.region.as_str(), scope.locality.zone.as_str()), ("r", "z"));
        // The control: where nothing is proved, the claim counts.
        let claimed = scope_of(&Caller::Insecure, Some(&node())).unwrap();
        assert_eq!((claimed.namespace.as_str(), claimed.account), ("prod", None));
        assert_eq!(scope_of(&Caller::Insecure, None).unwrap().namespace, "default");
    }

    #[test]
    fn what_the_certificate_contradicts_is_a_false_claim() {
        let of = |id: &str, node: &Node| false_claims(&Caller::Workload(id.parse().unwrap()), node);
        let long = Node { id: format!("sidecar~1.2.3.4~pod.{}~domain", "x".repeat(1000)), ..node() };
        let claims = of("spiffe://cluster.local/ns/default/sa/reviews", &long);
        assert_eq!(claims, ["namespace prod".to_owned(), format!("namespace {}", "x".repeat(MAX_TEXT))]);
        // The control: what is true, and what nothing contradicts.
        assert_eq!(of("spiffe://cluster.local/ns/prod/sa/reviews", &node()), [""; 0]);
        assert_eq!(false_claims(&Caller::Insecure, &node()), [""; 0]);
    }

    #[test]
    fn what_a_proxy_says_of_its_own_machine_is_taken_if_it_can_be_meant() {
        let of = |listen: &str, files: &str| {
            let text = |text: &str| value(ValueKind::StringValue(text.to_owned()));
            let fields = HashMap::from([("OUTBOUND_LISTEN".to_owned(), text(listen)), ("SDS".to_owned(), text(files))]);
            let node = Node { metadata: Some(Struct { fields }), ..Node::default() };
            let scope = scope_of(&Caller::Insecure, Some(&node)).unwrap();
            (scope.outbound_listen, scope.secrets)
        };
        assert_eq!(of("127.0.0.1", "/certs"), (Some([127, 0, 0, 1].into()), Some("/certs".into())));
        assert_eq!(of("everywhere", "certs"), (None, None));
        assert_eq!(of("", &format!("/{}", "x".repeat(MAX_PATH))), (None, None));
    }

    #[test]
    fn an_envoy_is_told_by_its_user_agent() {
        let of = |name: &str| {
            let node = Node { user_agent_name: name.to_owned(), ..Node::default() };
            scope_of(&Caller::Insecure, Some(&node)).unwrap().dialect
        };
        assert_eq!(
            [of("envoy"), of("gRPC C-core Linux"), of("")],
            [Dialect::Envoy, Dialect::Proxyless, Dialect::Proxyless]
        );
    }

    #[test]
    fn without_an_identity_that_names_a_namespace_there_is_no_scope() {
        assert_eq!(scope_of(&Caller::Anonymous, Some(&node())).unwrap_err().code(), tonic::Code::Unauthenticated);
        let id = "spiffe://cluster.local/some/path".parse().unwrap();
        assert_eq!(scope_of(&Caller::Workload(id), None).unwrap_err().code(), tonic::Code::PermissionDenied);
    }
}
