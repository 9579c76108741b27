//! `mesh status`: which processes have which configuration, and what they refused.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ask;
use crate::{Error, Format};

/// Arguments of `mesh status`.
#[derive(Args)]
pub(crate) struct StatusArgs {
    /// Debug address of the control plane.
    #[arg(long, default_value = "127.0.0.1:15014")]
    control_plane_debug: SocketAddr,
    /// Only processes with this node ID, and each of their resources.
    #[arg(long)]
    node: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What the debug port says.
#[derive(Debug, Deserialize)]
struct Status {
    version: String,
    findings: Findings,
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Findings {
    error: usize,
    warning: usize,
    info: usize,
}

#[derive(Debug, Deserialize)]
struct Node {
    node: String,
    identity: Option<String>,
    namespace: String,
    address: SocketAddr,
    protocol: String,
    in_sync: bool,
    types: Vec<Type>,
}

#[derive(Debug, Deserialize)]
struct Type {
    type_url: String,
    subscribed: usize,
    sent: usize,
    missing: Vec<String>,
    version_sent: String,
    version_acked: String,
    waiting: bool,
    due: usize,
    nack: Option<Nack>,
    // An older control plane does not say this.
    #[serde(default)]
    refused: Vec<String>,
    unsent: Option<String>,
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Debug, Deserialize)]
struct Nack {
    version: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Resource {
    name: String,
    version: String,
    state: String,
}

/// Asks, prints and tells by the exit code: 0 in sync, 1 something is refused or lags behind.
pub(crate) async fn status(args: StatusArgs) -> Result<ExitCode, Error> {
    let path = match &args.node {
        Some(node) => format!("/status?resources=true&node={}", ask::escaped(node)),
        None => "/status".to_owned(),
    };
    let answer = ask::ask(args.control_plane_debug, &path).await?;
    let value: Value = serde_json::from_slice(&answer)?;
    let status: Status = serde_json::from_value(value.clone())?;
    let in_sync = status.nodes.iter().all(|node| node.in_sync);
    super::print(&match args.output {
        Format::Table => table(&status),
        Format::Json => format!("{}\n", with(value, in_sync)),
    })?;
    Ok(if in_sync { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn with(mut value: Value, in_sync: bool) -> Value {
    value["in_sync"] = json!(in_sync);
    value
}

fn table(status: &Status) -> String {
    let mut text = String::new();
    let Findings { error, warning, info } = status.findings;
    let behind = status.nodes.iter().filter(|node| !node.in_sync).count();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "revision {}, {} nodes, {behind} not in sync; findings: {error} errors, {warning} warnings, {info} notes\n",
        status.version,
        status.nodes.len()
    );
    let head = ["NODE", "IDENTITY", "TYPE", "NAMES", "SENT", "ACKED", "STATE"].map(str::to_owned);
    let mut rows = vec![head];
    for node in &status.nodes {
        rows.extend(node.types.iter().enumerate().map(|(i, ty)| row((i == 0).then_some(node), ty)));
        if node.types.is_empty() {
            rows.push([&node.node, who(node), "", "", "", "", "nothing asked for"].map(str::to_owned));
        }
    }
    aligned(&rows, &mut text);
    notes(status, &mut text);
    text
}

fn row(node: Option<&Node>, ty: &Type) -> [String; 7] {
    let state = match ty {
        Type { nack: Some(_), .. } => "refused",
        Type { refused, .. } if !refused.is_empty() => "refused",
        Type { unsent: Some(_), .. } => "not sent",
        Type { waiting: true, .. } => "not answered",
        Type { due: 1.., .. } => "to be sent",
        _ => "in sync",
    };
    let (id, identity) = node.map_or(("", ""), |node| (node.node.as_str(), who(node)));
    [
        id.to_owned(),
        identity.to_owned(),
        short(&ty.type_url).to_owned(),
        format!("{}/{}", ty.sent, ty.subscribed.max(ty.sent)),
        ty.version_sent.clone(),
        ty.version_acked.clone(),
        state.to_owned(),
    ]
}

fn who(node: &Node) -> &str {
    node.identity.as_deref().unwrap_or("(no certificate)")
}

fn short(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}

fn aligned(rows: &[[String; 7]], text: &mut String) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..7).map(width).collect();
    for row in rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", line.join("  ").trim_end());
    }
}

/// What does not fit into a line: refusals, names that do not exist, and each resource where asked for.
fn notes(status: &Status, text: &mut String) {
    for node in &status.nodes {
        for ty in &node.types {
            let about = format!("{} ({}, {}) {}", node.node, node.address, node.protocol, short(&ty.type_url));
            if let Some(nack) = &ty.nack {
                let _ = writeln!(text, "\n{about}: refused {}: {}", nack.version, nack.reason);
            }
            // With the newest refusal its reason says what is bad.
            if ty.nack.is_none() && !ty.refused.is_empty() {
                let _ = writeln!(text, "\n{about}: refused before, and not changed since: {}", ty.refused.join(", "));
            }
            if let Some(unsent) = &ty.unsent {
                let _ = writeln!(text, "\n{about}: not sent: {unsent}");
            }
            if !ty.missing.is_empty() {
                let namespace = &node.namespace;
                let _ = writeln!(text, "\n{about}: not known in namespace {namespace}: {}", ty.missing.join(", "));
            }
            if !ty.resources.is_empty() {
                let _ = writeln!(text, "\n{about}:");
            }
            for resource in &ty.resources {
                let _ = writeln!(text, "  {:9}  {:16}  {}", resource.state, resource.version, resource.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(nack: Value, refused: Value) -> Status {
        let routes = json!({
            "type_url": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "wildcard": false, "subscribed": 2, "sent": 1, "missing": ["gone"],
            "version_sent": "7/3", "version_acked": "7/2", "waiting": false, "due": 0, "nack": nack,
            "refused": refused,
        });
        let node = json!({
            "node": "reviews-1", "user_agent": "mesh", "identity": "spiffe://cluster.local/ns/default/sa/reviews",
            "namespace": "default", "address": "127.0.0.1:4000", "protocol": "delta", "in_sync": nack.is_null(),
            "types": [routes],
        });
        let findings = json!({ "error": 0, "warning": 2, "info": 1 });
        serde_json::from_value(json!({ "version": "7/3", "findings": findings, "nodes": [node] })).unwrap()
    }

    #[test]
    fn a_refusal_stands_in_the_table_with_its_reason() {
        let nack = json!({ "version": "7/3", "nonce": "4", "reason": "virtual_hosts[0]: bad" });
        let text = table(&answer(nack, json!(["a"])));
        assert!(text.starts_with("revision 7/3, 1 nodes, 1 not in sync; findings: 0 errors, 2 warnings, 1 notes"));
        assert!(text.contains("RouteConfiguration  1/2    7/3   7/2    refused"), "{text}");
        assert!(text.contains("refused 7/3: virtual_hosts[0]: bad"), "{text}");
        assert!(text.contains("not known in namespace default: gone"), "{text}");
        assert!(!text.contains("refused before"), "{text}");
        // Of a response before the newest.
        let text = table(&answer(Value::Null, json!(["a", "b"])));
        assert!(
            text.contains("7/2    refused\n") && text.contains("refused before, and not changed since: a, b"),
            "{text}"
        );
        let text = table(&answer(Value::Null, json!([])));
        assert!(text.contains("0 not in sync") && !text.contains("refused"), "the control: {text}");
    }

    /// A debug port that gives one answer.
    async fn port(answer: String) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        #[expect(clippy::disallowed_methods, reason = "lives as long as the test")]
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            let _ = stream.read(&mut asked).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn the_exit_code_says_in_sync_or_not_and_a_port_that_is_not_ours_is_an_error() {
        let ask = |address| {
            status(StatusArgs { control_plane_debug: address, node: Some("a b".into()), output: Format::Json })
        };
        let body = |in_sync: bool| {
            json!({ "version": "1", "findings": { "error": 1, "warning": 0, "info": 0 }, "nodes": [{
                "node": "a", "identity": null, "namespace": "default", "address": "127.0.0.1:1", "protocol": "delta",
                "in_sync": in_sync, "types": [],
            }] })
        };
        let ok = |body: Value| format!("HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{body}");
        let code = |code: ExitCode| format!("{code:?}");
        assert_eq!(code(ask(port(ok(body(true))).await).await.unwrap()), code(ExitCode::SUCCESS));
        assert_eq!(code(ask(port(ok(body(false))).await).await.unwrap()), code(ExitCode::from(1)));
        let error = ask(port("HTTP/1.1 404 Not Found\r\n\r\n".into()).await).await.unwrap_err().to_string();
        assert!(error.contains("404") && error.contains("/status?resources=true&node=a%20b"), "{error}");
        assert!(ask(port(ok(json!("not a status"))).await).await.is_err());
    }

    #[test]
    fn a_node_id_is_a_query_whatever_it_holds() {
        assert_eq!(ask::escaped("a~1.b-c_d"), "a~1.b-c_d");
        assert_eq!(ask::escaped("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }
}
