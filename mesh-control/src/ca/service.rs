//! The certificate service over gRPC: proof of identity in, certificate out, one audit line each.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::SpiffeId;
use mesh_discovery::proto::certificate::{
    IstioCertificateRequest, IstioCertificateResponse, IstioCertificateService, IstioCertificateServiceServer,
};
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::asking::Asking;
use super::limit::IssueLimit;
use super::{CertificateAuthority, Federation, JoinClaims, JoinTokens, RequestedKey, ServiceAccountTokens, TokenUse};
use crate::runtime::{Peer, Refusal, Refusals};

/// Time for an answer, with all waiting.
const ANSWER: Duration = Duration::from_secs(15);

/// The certificate service.
pub(crate) struct CertificateService {
    authority: Arc<CertificateAuthority>,
    federation: Arc<Federation>,
    tokens: Arc<JoinTokens>,
    accounts: Option<ServiceAccountTokens>,
    asking: Asking,
    limit: IssueLimit,
    // A wall clock that jumps would fill its buckets, or let them stand empty until it is back.
    since: Instant,
    refusals: Arc<Refusals>,
}

/// What a requester showed.
enum Proof {
    /// A join token, checked and not yet used up, and for whom it is.
    Token(SpiffeId, JoinClaims),
    /// A service account token, which the cluster vouches for.
    Account(SpiffeId),
    /// The certificate of its connection, to be renewed.
    Certificate(SpiffeId),
}

impl CertificateService {
    /// Service account tokens are taken if somebody reviews them.
    pub(crate) fn new(
        authority: Arc<CertificateAuthority>,
        federation: Arc<Federation>,
        tokens: Arc<JoinTokens>,
        accounts: Option<ServiceAccountTokens>,
        refusals: Arc<Refusals>,
    ) -> Self {
        let (asking, limit) = (Asking::default(), IssueLimit::default());
        Self { authority, federation, tokens, accounts, asking, limit, since: Instant::now(), refusals }
    }

    pub(crate) fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self)
    }

    /// A token, if one is shown, speaks for its bearer. With a certificate beside it, as a renewal has that proves the
    /// pod once more, both must name the same, of whichever kind the token is.
    async fn proof(&self, peer: &Peer, metadata: &MetadataMap, key: &RequestedKey) -> Result<Proof, Status> {
        let Some(authorization) = metadata.get("authorization") else {
            return match peer.caller.identity() {
                Some(id) if self.accounts.is_some() && !peer.joined => Err(Status::unauthenticated(format!(
                    "the certificate of {id} alone proves no pod that lives: show the service account token beside it \
                     (authorization: Bearer …), or join with a join token"
                ))),
                Some(id) => Ok(Proof::Certificate(id.clone())),
                None => Err(Status::unauthenticated(
                    "a certificate is given for a join token (authorization: Bearer …) or for the certificate it renews",
                )),
            };
        };
        let (scheme, token) = authorization.to_str().ok().and_then(|value| value.split_once(' ')).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Status::unauthenticated("authorization must be: Bearer <token>"));
        }
        let token = token.trim();
        match self.accounts.as_ref().filter(|_| ServiceAccountTokens::looks_like_one(token)) {
            None => {
                let claims = self.tokens.verify(token, key).map_err(|e| Status::unauthenticated(e.to_string()))?;
                let (namespace, account) = (claims.namespace(), claims.service_account());
                let id = SpiffeId::for_service_account(self.authority.trust_domain(), namespace, account)
                    .map_err(|e| Status::unauthenticated(e.to_string()))?;
                same_workload(peer, &id)?;
                Ok(Proof::Token(id, claims))
            }
            Some(accounts) => {
                let id = accounts.identity(token, self.authority.trust_domain());
                let id = self.asking.ask(peer, id).await?.map_err(|e| Status::unauthenticated(e.to_string()))?;
                same_workload(peer, &id)?;
                Ok(Proof::Account(id))
            }
        }
    }

    async fn issue(
        &self,
        peer: &Peer,
        metadata: &MetadataMap,
        request: &IstioCertificateRequest,
    ) -> Result<Vec<String>, Status> {
        // First, and before a token is used up: a broken request must cost neither that nor a question to the cluster.
        let key = RequestedKey::from_csr_pem(&request.csr).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let proof = self.proof(peer, metadata, &key).await?;
        let (id, how, claims, joined) = match proof {
            Proof::Certificate(id) => (id, "certificate", None, peer.joined),
            Proof::Account(id) => (id, "service account token", None, false),
            Proof::Token(id, claims) => (id, "join token", Some(claims), true),
        };
        // Before a token is used up for nothing.
        self.authority.check_issuer().map_err(|e| Status::failed_precondition(e.to_string()))?;
        if !self.limit.take(&id, self.since.elapsed().as_secs()) {
            return Err(Status::resource_exhausted(format!("{id} asks for too many certificates; try again later")));
        }
        let again = match claims {
            Some(claims) => {
                let used = self.tokens.consume(&claims, &key).map_err(|e| Status::unauthenticated(e.to_string()))?;
                used == TokenUse::Again
            }
            None => false,
        };
        // Zero and less mean "as you like".
        let wished = u64::try_from(request.validity_duration).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let issued = match joined {
            true => self.authority.issue_joined(&key, &id, wished),
            false => self.authority.issue(&key, &id, wished),
        };
        let issued = issued.map_err(|e| Status::permission_denied(e.to_string()))?;
        tracing::info!(
            target: "mesh::ca", %id, proof = how, again, peer = %peer, serial = %issued.serial,
            not_after = issued.not_after, "certificate issued"
        );
        Ok(issued.chain_pem)
    }
}

/// Whether a token of `id` is shown by nobody else, if whoever shows it has a certificate.
fn same_workload(peer: &Peer, id: &SpiffeId) -> Result<(), Status> {
    match peer.caller.identity() {
        Some(other) if other != id => Err(Status::unauthenticated(format!(
            "the token is of {id} and the certificate of {other}; show those of one workload"
        ))),
        _ => Ok(()),
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let issued = timeout(ANSWER, self.issue(&peer, request.metadata(), request.get_ref())).await;
        let late = |_| Err(Status::deadline_exceeded(format!("no certificate within {ANSWER:?}; try again later")));
        match issued.unwrap_or_else(late) {
            Ok(cert_chain) => {
                let revocation_lists = self.authority.bundle().revocation_lists().to_vec();
                let federated = self.federation.told();
                Ok(Response::new(IstioCertificateResponse { cert_chain, revocation_lists, federated }))
            }
            Err(status) => {
                if let Some(left_out) = self.refusals.of(Refusal::Certificate, &peer.caller) {
                    let reason = status.message();
                    tracing::warn!(target: "mesh::ca", %peer, reason, left_out, "certificate refused");
                }
                Err(status)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::UNIX_EPOCH;

    use futures_util::FutureExt;
    use mesh_core::id::TrustDomain;
    use tonic::Code;

    use super::*;
    use crate::ca::{CertificateLife, PodRef, Review, Reviewing, TokenReviewer};
    use crate::clock::Clock;
    use crate::runtime::Caller;
    use crate::test_log::Listening;

    fn request() -> IstioCertificateRequest {
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        IstioCertificateRequest { csr, ..IstioCertificateRequest::default() }
    }

    /// Neither is a token used up for nothing.
    #[tokio::test]
    async fn s93_a_token_is_left_where_nothing_is_signed() {
        let home = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicU64::new(1_800_000_000));
        let moved = now.clone();
        let clock = Clock::new(move || UNIX_EPOCH + Duration::from_secs(moved.load(Ordering::Relaxed)));
        let domain = TrustDomain::new("cluster.local").unwrap();
        let life = CertificateLife::default();
        let authority = Arc::new(CertificateAuthority::open(home.path(), domain, life, clock.clone()).unwrap());
        let tokens = Arc::new(JoinTokens::with_clock(home.path(), clock).unwrap());
        let federation = Arc::new(Federation::open(authority.clone(), Vec::new));
        let service = CertificateService::new(authority.clone(), federation, tokens.clone(), None, Arc::default());
        let peer = |caller| Peer { address: ([127, 0, 0, 1], 80).into(), caller, joined: false };
        let workload = |account| {
            Caller::Workload(SpiffeId::for_service_account(authority.trust_domain(), "default", account).unwrap())
        };
        let end = crate::ca::not_after(&authority.bundle().roots()[0]).unwrap();
        for (caller, left, expected) in [
            (Caller::Anonymous, 299, Err(Code::FailedPrecondition)),
            (Caller::Anonymous, 300, Ok(())),
            (workload("ratings"), 86_400, Err(Code::Unauthenticated)),
            (workload("reviews"), 86_400, Ok(())),
        ] {
            now.store(end - left, Ordering::Relaxed);
            let token = tokens.mint("default", "reviews", Duration::from_secs(60)).unwrap();
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
            let answer = service.issue(&peer(caller), &metadata, &request()).await;
            assert_eq!(answer.map(drop).map_err(|e| e.code()), expected);
            let other = RequestedKey::from_csr_pem(&request().csr).unwrap();
            assert_eq!(tokens.verify(&token, &other).is_ok(), expected.is_err(), "{left}");
        }
    }

    /// Whoever asks again is counted as whoever asks; a stranger with the same token costs its owner nothing.
    #[tokio::test]
    async fn s93_a_repeat_counts_as_any_request_and_what_is_refused_does_not() {
        let home = tempfile::tempdir().unwrap();
        let clock = Clock::new(|| UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let domain = TrustDomain::new("cluster.local").unwrap();
        let life = CertificateLife::default();
        let authority = Arc::new(CertificateAuthority::open(home.path(), domain, life, clock.clone()).unwrap());
        let tokens = Arc::new(JoinTokens::with_clock(home.path(), clock).unwrap());
        let federation = Arc::new(Federation::open(authority.clone(), Vec::new));
        let service = CertificateService::new(authority, federation, tokens.clone(), None, Arc::default());
        let peer = Peer { address: ([127, 0, 0, 1], 80).into(), caller: Caller::Anonymous, joined: false };
        let token = tokens.mint("default", "reviews", Duration::from_secs(60)).unwrap();
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
        let (ours, others) = (request(), request());
        let ask = async |request| service.issue(&peer, &metadata, request).await.map(drop).map_err(|e| e.code());

        let id = "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap();
        // Two are left.
        let mut before = 0;
        while before < 998 && service.limit.take(&id, service.since.elapsed().as_secs()) {
            before += 1;
        }
        assert_eq!(ask(&ours).await, Ok(()));
        for _ in 0..10 {
            assert_eq!(ask(&others).await, Err(Code::Unauthenticated));
        }
        assert_eq!(ask(&ours).await, Ok(()), "the repeat");
        assert_eq!(ask(&ours).await, Err(Code::ResourceExhausted));
        assert_eq!(ask(&others).await, Err(Code::Unauthenticated));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_jumps_neither_fills_a_bucket_nor_keeps_it_empty_r24() {
        let home = tempfile::tempdir().unwrap();
        let ahead = Arc::new(AtomicU64::new(0));
        let (read, start) = (ahead.clone(), UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let jumping = Clock::new(move || start + Duration::from_secs(read.load(Ordering::Relaxed)));
        let domain = TrustDomain::new("cluster.local").unwrap();
        let authority =
            Arc::new(CertificateAuthority::open(home.path(), domain, CertificateLife::default(), jumping).unwrap());
        let tokens = Arc::new(JoinTokens::with_clock(home.path(), Clock::new(move || start)).unwrap());
        let federation = Arc::new(Federation::open(authority.clone(), Vec::new));
        let service = CertificateService::new(authority, federation, tokens.clone(), None, Arc::default());
        let peer = Peer { address: ([127, 0, 0, 1], 80).into(), caller: Caller::Anonymous, joined: false };
        let ask = async || {
            let token = tokens.mint("default", "reviews", Duration::from_secs(60)).unwrap();
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
            service.issue(&peer, &metadata, &request()).await.map(drop).map_err(|e| e.code())
        };
        let id = "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap();
        while service.limit.take(&id, service.since.elapsed().as_secs()) {}
        assert_eq!(ask().await, Err(Code::ResourceExhausted));
        ahead.store(24 * 3600, Ordering::Relaxed);
        assert_eq!(ask().await, Err(Code::ResourceExhausted), "a jump gives nothing");
        ahead.store(0, Ordering::Relaxed);
        mesh_testkit::clock::pass(Duration::from_secs(1)).await;
        assert_eq!(ask().await, Ok(()), "and takes nothing");
    }

    /// A cluster that answers nobody.
    #[derive(Debug, Default)]
    struct Silent(AtomicU64);

    impl TokenReviewer for Silent {
        fn review<'r>(&'r self, _: &'r str, _: &'r [String]) -> Reviewing<'r, Review> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::pending())
        }

        fn is_alive<'r>(&'r self, _: &'r PodRef) -> Reviewing<'r, bool> {
            Box::pin(std::future::pending())
        }
    }

    fn service(home: &std::path::Path, accounts: Option<ServiceAccountTokens>) -> CertificateService {
        let (domain, life) = (TrustDomain::new("cluster.local").unwrap(), CertificateLife::default());
        let authority = Arc::new(CertificateAuthority::open(home, domain, life, Clock::system()).unwrap());
        let tokens = Arc::new(JoinTokens::with_clock(home, Clock::system()).unwrap());
        let federation = Arc::new(Federation::open(authority.clone(), Vec::new));
        CertificateService::new(authority, federation, tokens, accounts, Arc::default())
    }

    #[tokio::test]
    async fn what_strangers_show_fills_no_line_in_which_members_wait() {
        let home = tempfile::tempdir().unwrap();
        let cluster = Arc::new(Silent::default());
        let service = service(home.path(), Some(ServiceAccountTokens::new(cluster.clone(), Vec::new())));
        let peer = |caller| Peer { address: ([192, 0, 2, 1], 80).into(), caller, joined: false };
        let stranger = peer(Caller::Anonymous);
        let member = peer(Caller::Workload("spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap()));
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", "Bearer a.b.c".parse().unwrap());
        let request = request();
        let mut asking: Vec<_> = (0..100).map(|_| Box::pin(service.issue(&stranger, &metadata, &request))).collect();
        let answers: Vec<_> = asking.iter_mut().filter_map(|asking| asking.as_mut().now_or_never()).collect();
        assert!(answers.len() > 1 && answers.len() < 100, "{}", answers.len());
        assert!(answers.iter().all(|answer| answer.as_ref().unwrap_err().code() == Code::ResourceExhausted));
        let asked = cluster.0.load(Ordering::Relaxed);
        assert!(asked > 0 && asked < 100, "{asked}");
        assert!(service.issue(&member, &metadata, &request).now_or_never().is_none());
        assert_eq!(cluster.0.load(Ordering::Relaxed), asked + 1, "the cluster is asked for the member at once");
    }

    #[tokio::test(start_paused = true)]
    async fn s91_of_members_every_refused_certificate_is_logged_and_of_strangers_one_at_times() {
        let log = Listening::begin();
        let home = tempfile::tempdir().unwrap();
        let service = service(home.path(), None);
        let id = "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap();
        for (caller, said, lines) in [
            (Caller::Anonymous, "peer=anonymous", 1),
            // The control.
            (Caller::Workload(id), "sa/reviews", 10),
        ] {
            for _ in 0..10 {
                let mut request = Request::new(request());
                let peer = Peer { address: ([192, 0, 2, 1], 80).into(), caller: caller.clone(), joined: false };
                request.extensions_mut().insert(peer);
                request.metadata_mut().insert("authorization", "Bearer a.b".parse().unwrap());
                assert_eq!(service.create_certificate(request).await.unwrap_err().code(), Code::Unauthenticated);
            }
            assert_eq!(log.lines(&["certificate refused", said]), lines, "{}", log.text());
        }
    }
}
