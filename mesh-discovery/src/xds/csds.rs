//! What the client holds, for tools (CSDS; gRFC A40): what `config_dump` says, in Envoy's messages.
//!
//! Contents are encoded from the policy in use: fields that it has no place for, which a control plane may have sent,
//! are not in them. What was refused is shown as it came, beside the last good one.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use envoy_types::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_server::{
    ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::status::v3::{ClientConfig, ClientStatusRequest, ClientStatusResponse};
use envoy_types::pb::google::protobuf::{Any, Timestamp};
use futures_util::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::ads::Standing;
use super::client::XdsClient;
use super::message::Body;
use super::node;
use super::report::{Complaint, Row, Time};
use super::resource;

/// The client's state as a gRPC service.
#[derive(Clone)]
pub struct StatusService {
    pub(super) client: Arc<XdsClient>,
}

/// `envoy.service.status.v3.ClientStatusDiscoveryService` of a client. It has one `ClientConfig` for each authority,
/// that without a name first, whose `client_scope` is what a target begins with: `xds:///`, `xds://NAME/`.
///
/// On a stream, every request is answered once, with the state of that moment. What is in use is encoded anew from what was
/// understood of it; what was refused is shown as it came.
pub fn status_service(client: Arc<XdsClient>) -> ClientStatusDiscoveryServiceServer<StatusService> {
    ClientStatusDiscoveryServiceServer::new(StatusService { client }).max_decoding_message_size(MAX_REQUEST)
}

/// Largest request taken, in bytes: there is next to nothing to say in one.
const MAX_REQUEST: usize = 64 << 10;

#[tonic::async_trait]
impl ClientStatusDiscoveryService for StatusService {
    type StreamClientStatusStream = Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let service = self.clone();
        let answers = request.into_inner().map(move |request| service.answer(&request?));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        self.answer(request.get_ref()).map(Response::new)
    }
}

impl StatusService {
    #[allow(clippy::result_large_err, reason = "what tonic wants")]
    pub(super) fn answer(&self, request: &ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
        if !request.node_matchers.is_empty() {
            // There is one node here, and it does not choose by itself (gRFC A40).
            return Err(Status::invalid_argument("node_matchers: not supported; leave them empty"));
        }
        let mut scopes = BTreeMap::from([(String::new(), Vec::new())]);
        for row in self.client.rows() {
            let config = generic(&row, !request.exclude_resource_contents);
            scopes.entry(authority(&row.name).to_owned()).or_default().push(config);
        }
        let config = scopes.into_iter().map(|(authority, generic_xds_configs)| ClientConfig {
            node: Some(node::to_wire(self.client.node())),
            generic_xds_configs,
            client_scope: format!("xds://{authority}/"),
            ..ClientConfig::default()
        });
        Ok(ClientStatusResponse { config: config.collect() })
    }
}

/// The authority of a resource's name; empty for one without (gRFC A47).
fn authority(name: &str) -> &str {
    name.strip_prefix("xdstp://").and_then(|rest| rest.split('/').next()).unwrap_or_default()
}

fn generic(row: &Row, contents: bool) -> GenericXdsConfig {
    let status = match row.state {
        Standing::Requested => ClientResourceStatus::Requested,
        Standing::Acked => ClientResourceStatus::Acked,
        Standing::Nacked => ClientResourceStatus::Nacked,
        Standing::DoesNotExist => ClientResourceStatus::DoesNotExist,
        Standing::ReceivedError => ClientResourceStatus::ReceivedError,
        Standing::TimedOut => ClientResourceStatus::Timeout,
    };
    GenericXdsConfig {
        type_url: row.type_url.to_owned(),
        name: row.name.to_string(),
        version_info: row.version.to_string(),
        xds_config: row.value.as_ref().filter(|_| contents).map(resource::encode),
        last_updated: row.last_updated.map(timestamp),
        client_status: status.into(),
        error_state: row.error.as_ref().map(|error| failure(error, contents)),
        ..GenericXdsConfig::default()
    }
}

fn failure(error: &Complaint, contents: bool) -> UpdateFailureState {
    let refused = |body: &Body| Any { type_url: body.type_url.to_string(), value: body.bytes.to_vec() };
    UpdateFailureState {
        failed_configuration: error.refused.as_ref().filter(|_| contents).map(refused),
        last_update_attempt: Some(timestamp(error.last)),
        details: error.reason.clone(),
        version_info: error.version.to_string(),
    }
}

fn timestamp(Time(time): Time) -> Timestamp {
    Timestamp { seconds: time.as_secs().cast_signed(), nanos: time.subsec_nanos().cast_signed() }
}
