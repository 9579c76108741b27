//! Both services through their clients, over nothing but a function call.

use futures_util::StreamExt;
use tonic::codegen::{BoxStream, async_trait};
use tonic::{Code, Request, Response, Status, Streaming};

use super::certificate::{
    IstioCertificateRequest, IstioCertificateResponse, IstioCertificateService, IstioCertificateServiceClient,
    IstioCertificateServiceServer,
};
use super::registry::{
    AnnounceRequest, AnnounceResponse, Announcement, RegistryService, RegistryServiceClient, RegistryServiceServer,
    announce_request::Action,
};

struct Authority;

#[async_trait]
impl IstioCertificateService for Authority {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        if request.metadata().get("authorization").is_none() {
            return Err(Status::unauthenticated("a token is needed"));
        }
        let request = request.into_inner();
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![format!("{} for {} s", request.csr, request.validity_duration), "root".into()],
            ..Default::default()
        }))
    }
}

struct Registry;

#[async_trait]
impl RegistryService for Registry {
    async fn announce(
        &self,
        requests: Request<Streaming<AnnounceRequest>>,
    ) -> Result<Response<BoxStream<AnnounceResponse>>, Status> {
        let answers = requests.into_inner().map(|request| {
            Ok(match request?.action {
                Some(Action::Announce(a)) => AnnounceResponse { accepted: a.namespace == "default", reason: a.service },
                Some(Action::Withdraw(_)) => AnnounceResponse { accepted: true, reason: String::new() },
                None => AnnounceResponse::default(),
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[tokio::test]
async fn a_certificate_comes_back_leaf_first() {
    let mut client = IstioCertificateServiceClient::new(IstioCertificateServiceServer::new(Authority));
    let message = IstioCertificateRequest { csr: "csr".into(), validity_duration: 60, metadata: None };
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", "Bearer t".parse().expect("ascii"));
    let answer = client.create_certificate(request).await.expect("an answer").into_inner();
    assert_eq!(answer.cert_chain, ["csr for 60 s", "root"]);
}

#[tokio::test]
async fn a_refusal_keeps_its_code() {
    let mut client = IstioCertificateServiceClient::new(IstioCertificateServiceServer::new(Authority));
    let refusal = client.create_certificate(IstioCertificateRequest::default()).await.expect_err("a refusal");
    assert_eq!(refusal.code(), Code::Unauthenticated);
    assert_eq!(refusal.message(), "a token is needed");
}

#[tokio::test]
async fn announcements_are_answered_in_order() {
    let mut client = RegistryServiceClient::new(RegistryServiceServer::new(Registry));
    let announcement = |namespace: &str| Announcement {
        service: "reviews".into(),
        namespace: namespace.into(),
        address: "10.0.0.1:9080".into(),
        labels: [("version".to_owned(), "v1".to_owned())].into(),
        ..Default::default()
    };
    let requests = [
        AnnounceRequest::announce(announcement("default")),
        AnnounceRequest::announce(announcement("other")),
        AnnounceRequest::withdraw(),
    ];
    let answers = client.announce(futures_util::stream::iter(requests)).await.expect("a stream").into_inner();
    let accepted: Vec<bool> = answers.map(|answer| answer.expect("an answer").accepted).collect().await;
    assert_eq!(accepted, [true, false, true]);
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    // A registry client that reaches the certificate service asks for a method it does not have.
    let mut client = RegistryServiceClient::new(IstioCertificateServiceServer::new(Authority));
    let refusal = client.announce(futures_util::stream::empty()).await.expect_err("a refusal");
    assert_eq!(refusal.code(), Code::Unimplemented);
}
