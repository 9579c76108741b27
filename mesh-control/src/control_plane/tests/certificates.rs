//! What is proof for a certificate, and how a change of roots reaches those who hold one.

use std::sync::Arc;

use mesh_core::id::TrustDomain;
use mesh_core::identity::Identity;
use parking_lot::Mutex;
use tonic::Code;

use super::client::Connection;
use super::*;
use crate::ca::{
    PodRef, Review, ReviewFailed, Reviewing, RootRotation, RotationStep, ServiceAccountTokens, TokenReviewer,
};

/// A cluster in which the token `a.NAME.c` is of the service account NAME; pods live until they are listed here.
#[derive(Debug, Default)]
struct Cluster {
    gone: Mutex<Vec<String>>,
    down: Mutex<bool>,
}

impl TokenReviewer for Cluster {
    fn review<'r>(&'r self, token: &'r str, audiences: &'r [String]) -> Reviewing<'r, Review> {
        let account = token.split('.').nth(1).unwrap_or_default();
        let extra =
            ["pod-name", "pod-uid"].map(|key| (format!("authentication.kubernetes.io/{key}"), vec!["p".to_owned()]));
        let review = Review {
            authenticated: !account.is_empty(),
            audiences: audiences.to_vec(),
            username: format!("system:serviceaccount:default:{account}"),
            groups: vec!["system:serviceaccounts".to_owned()],
            extra: extra.into(),
            ..Review::default()
        };
        let down = *self.down.lock();
        Box::pin(std::future::ready(if down { Err(ReviewFailed("timed out".to_owned())) } else { Ok(review) }))
    }

    fn is_alive<'r>(&'r self, pod: &'r PodRef) -> Reviewing<'r, bool> {
        Box::pin(std::future::ready(Ok(!self.gone.lock().contains(&pod.service_account))))
    }
}

#[tokio::test]
async fn s87_a_service_account_token_is_proof_while_its_pod_lives_and_of_nobody_else() {
    let setup = Setup::new();
    let cluster = Arc::new(Cluster::default());
    let accounts = ServiceAccountTokens::new(cluster.clone(), Vec::new());
    let plane = setup.builder().service_account_tokens(accounts).start().await.unwrap();
    let anonymous = Connection::anonymous(&plane).await;
    let identity = anonymous.certificate(Some("a.reviews.c")).await.unwrap();
    assert_eq!(identity.id().as_str(), "spiffe://cluster.local/ns/default/sa/reviews");
    assert!(anonymous.certificate(Some("a.reviews.c")).await.is_ok(), "such a token is good until it ends");
    assert_eq!(anonymous.certificate(Some("a..c")).await.unwrap_err().code(), Code::Unauthenticated);
    let join = plane.join_tokens().mint("default", "ratings", Duration::from_secs(60)).unwrap();
    assert!(anonymous.certificate(Some(&join)).await.is_ok(), "join tokens are taken all the same");

    // A renewal shows both, and both must be of one workload.
    let reviews = Connection::mutual(&plane, &identity).await;
    assert!(reviews.certificate(Some("a.reviews.c")).await.is_ok());
    let stolen = reviews.certificate(Some("a.ratings.c")).await.unwrap_err();
    assert!(stolen.message().contains("one workload"), "{stolen}");

    *cluster.down.lock() = true;
    assert_eq!(anonymous.certificate(Some("a.reviews.c")).await.unwrap_err().code(), Code::Unauthenticated);
    *cluster.down.lock() = false;
    cluster.gone.lock().push("reviews".to_owned());
    let gone = reviews.certificate(Some("a.reviews.c")).await.unwrap_err();
    assert!(gone.message().contains("does not exist any more"), "{gone}");

    // The control: without a reviewer such a token is nothing.
    let plain = Setup::new();
    let plain = plain.start().await;
    let refused = Connection::anonymous(&plain).await.certificate(Some("a.reviews.c")).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_change_of_roots_is_told_at_once_and_taken_up_in_the_process_too() {
    let setup = Setup::new();
    let plane = setup.start().await;
    assert_eq!(Connection::anonymous(&plane).await.roots().await.unwrap_err().code(), Code::Unauthenticated);
    let mut inside = plane.identity("default", "embedded").unwrap();
    let first: Arc<Identity> = inside.load_full().as_ref().clone().unwrap();
    assert_eq!(first.id().as_str(), "spiffe://cluster.local/ns/default/sa/embedded");
    let mut stream = Connection::mutual(&plane, &first).await.roots().await.unwrap();
    let count = |message: &mesh_discovery::proto::trust::TrustBundle| message.roots.matches("BEGIN").count();
    let now = stream.message().await.unwrap().unwrap();
    assert_eq!((now.trust_domain.as_str(), count(&now)), ("cluster.local", 1));

    let domain = TrustDomain::new("cluster.local").unwrap();
    let life = CertificateLife::default();
    let rotation = RootRotation::open(setup.state.path(), domain.clone(), life, Clock::system()).unwrap();
    assert_eq!(rotation.advance(false).unwrap().step, RotationStep::Added);
    let both = stream.message().await.unwrap().unwrap();
    assert_eq!(count(&both), 2);
    let roots = |identity: &Option<Arc<Identity>>, wanted: usize| {
        identity.as_ref().is_some_and(|i| i.bundles().get(&domain).unwrap().roots().len() == wanted)
    };
    inside.wait_for(|identity| roots(identity, 2)).await;
    assert!(rotation.advance(false).is_err(), "too early");
    assert_eq!(rotation.advance(true).unwrap().step, RotationStep::Switched);
    assert_eq!(rotation.advance(true).unwrap().step, RotationStep::Idle);
    let alone = stream.message().await.unwrap().unwrap();
    assert!(count(&alone) == 1 && alone.roots != now.roots);
    inside.wait_for(|identity| roots(identity, 1)).await;
}
