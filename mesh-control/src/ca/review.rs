//! Service account tokens of Kubernetes as proof for a certificate: who asks the API server is injected, what its answer
//! must say is decided here.
//!
//! All of it must hold: authenticated and no error, one of our audiences among the returned ones, the group of service
//! accounts, a username of exactly four parts, name and UID of a pod, and that pod is alive and runs as this
//! account. The names of the certificate come from the answer and from nothing else. A token is never logged.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use mesh_core::id::{SpiffeId, TrustDomain};

/// The audience of tokens for this authority: the one of Istio's projected `istio-token`.
pub const DEFAULT_AUDIENCE: &str = "istio-ca";

const GROUP: &str = "system:serviceaccounts";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Longer texts are no tokens of Kubernetes.
const MAX_TOKEN: usize = 64 * 1024;

/// Asks a cluster about tokens and pods.
pub trait TokenReviewer: fmt::Debug + Send + Sync + 'static {
    /// What the API server says of `token` to a TokenReview with these `spec.audiences`.
    ///
    /// # Errors
    /// It cannot be asked now.
    fn review<'r>(&'r self, token: &'r str, audiences: &'r [String]) -> Reviewing<'r, Review>;

    /// Whether a pod of this name and UID exists, is not being deleted for good, and runs as the account.
    ///
    /// # Errors
    /// It is not known now.
    fn is_alive<'r>(&'r self, pod: &'r PodRef) -> Reviewing<'r, bool>;
}

/// A question under way.
pub type Reviewing<'r, T> = Pin<Box<dyn Future<Output = Result<T, ReviewFailed>> + Send + 'r>>;

/// The status of a TokenReview (`authentication.k8s.io/v1`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// `status.authenticated`.
    pub authenticated: bool,
    /// `status.error`; empty if there is none.
    pub error: String,
    /// `status.audiences`: those asked for that the token has.
    pub audiences: Vec<String>,
    /// `status.user.username`, such as `system:serviceaccount:default:reviews`.
    pub username: String,
    /// `status.user.groups`.
    pub groups: Vec<String>,
    /// `status.user.extra`.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A pod as a token names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Name.
    pub name: String,
    /// UID: a pod of the same name made later is another one.
    pub uid: String,
}

/// The cluster cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cluster cannot be asked about the token: {0}")]
pub struct ReviewFailed(pub String);

/// Why a token is no proof. The token itself is never part of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReviewRefused {
    /// Not asked.
    #[error(transparent)]
    Failed(#[from] ReviewFailed),
    /// Too long to be one.
    #[error("the service account token is longer than any")]
    TooLong,
    /// The API server does not know it.
    #[error("the service account token is not valid: {0}")]
    NotAuthenticated(String),
    /// It is meant for somebody else.
    #[error("the service account token is for the audiences {got:?}; project one for {want:?}")]
    Audience {
        /// Those it has.
        got: Vec<String>,
        /// Ours.
        want: Vec<String>,
    },
    /// It is not a service account's.
    #[error("the token is of {0:?}, which is no service account")]
    NotServiceAccount(String),
    /// It is bound to no pod.
    #[error("the service account token names no pod; mount a projected one")]
    NoPod,
    /// The pod is gone, or is another one.
    #[error(
        "the pod {namespace}/{name} of the service account token does not exist any more, or runs as another account"
    )]
    PodGone {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
    /// The names make no SPIFFE ID.
    #[error("the service account token: {0}")]
    Name(#[from] mesh_core::id::InvalidSpiffeId),
}

/// Takes service account tokens as proof.
#[derive(Clone, Debug)]
pub struct ServiceAccountTokens {
    reviewer: Arc<dyn TokenReviewer>,
    audiences: Vec<String>,
}

impl ServiceAccountTokens {
    /// Asks `reviewer`, and takes tokens of one of these audiences. None = [`DEFAULT_AUDIENCE`].
    pub fn new(reviewer: Arc<dyn TokenReviewer>, mut audiences: Vec<String>) -> Self {
        if audiences.is_empty() {
            audiences.push(DEFAULT_AUDIENCE.to_owned());
        }
        Self { reviewer, audiences }
    }

    /// Whether a bearer token may be one of these: a JWT, which a join token is not.
    pub(super) fn looks_like_one(token: &str) -> bool {
        token.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    /// Who the bearer is.
    ///
    /// # Errors
    /// See [`ReviewRefused`].
    pub async fn identity(&self, token: &str, domain: &TrustDomain) -> Result<SpiffeId, ReviewRefused> {
        if token.len() > MAX_TOKEN {
            return Err(ReviewRefused::TooLong);
        }
        let review = self.reviewer.review(token, &self.audiences).await?;
        let pod = pod_of(&review, &self.audiences)?;
        let id = SpiffeId::for_service_account(domain, &pod.namespace, &pod.service_account)?;
        // A slash inside a name would shift the parts of the path.
        if id.kubernetes() != Some((&pod.namespace, &pod.service_account)) {
            return Err(ReviewRefused::NotServiceAccount(review.username));
        }
        if !self.reviewer.is_alive(&pod).await? {
            return Err(ReviewRefused::PodGone { namespace: pod.namespace, name: pod.name });
        }
        Ok(id)
    }
}

/// The pod that a review speaks of, if everything about it is as it must be.
fn pod_of(review: &Review, audiences: &[String]) -> Result<PodRef, ReviewRefused> {
    if !review.authenticated || !review.error.is_empty() {
        return Err(ReviewRefused::NotAuthenticated(review.error.clone()));
    }
    if !review.audiences.iter().any(|got| audiences.contains(got)) {
        return Err(ReviewRefused::Audience { got: review.audiences.clone(), want: audiences.to_vec() });
    }
    let stranger = || ReviewRefused::NotServiceAccount(review.username.clone());
    let parts: Vec<_> = review.username.split(':').collect();
    let ["system", "serviceaccount", namespace, service_account] = parts[..] else { return Err(stranger()) };
    if namespace.is_empty() || service_account.is_empty() || !review.groups.iter().any(|group| group == GROUP) {
        return Err(stranger());
    }
    let only = |key: &str| match review.extra.get(key).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Ok(one.clone()),
        _ => Err(ReviewRefused::NoPod),
    };
    let (namespace, service_account) = (namespace.to_owned(), service_account.to_owned());
    Ok(PodRef { namespace, service_account, name: only(POD_NAME)?, uid: only(POD_UID)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cluster with one pod that answers every question with the same review.
    #[derive(Debug)]
    struct Cluster {
        says: Result<Review, ReviewFailed>,
        alive: PodRef,
    }

    impl TokenReviewer for Cluster {
        fn review<'r>(&'r self, _: &'r str, audiences: &'r [String]) -> Reviewing<'r, Review> {
            assert_eq!(audiences, ["ours"], "the API server is asked with our audience");
            Box::pin(std::future::ready(self.says.clone()))
        }

        fn is_alive<'r>(&'r self, pod: &'r PodRef) -> Reviewing<'r, bool> {
            Box::pin(std::future::ready(Ok(*pod == self.alive)))
        }
    }

    fn good() -> Review {
        let extra = [(POD_NAME, "reviews-1"), (POD_UID, "u-1")];
        Review {
            authenticated: true,
            error: String::new(),
            audiences: vec!["ours".to_owned()],
            username: "system:serviceaccount:default:reviews".to_owned(),
            groups: vec![GROUP.to_owned(), "system:authenticated".to_owned()],
            extra: extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into(),
        }
    }

    async fn ask(says: Result<Review, ReviewFailed>) -> Result<SpiffeId, ReviewRefused> {
        let alive = pod_of(&good(), &["ours".to_owned()]).unwrap();
        let tokens = ServiceAccountTokens::new(Arc::new(Cluster { says, alive }), vec!["ours".to_owned()]);
        tokens.identity("a.b.c", &TrustDomain::new("cluster.local").unwrap()).await
    }

    async fn with(change: impl FnOnce(&mut Review)) -> Result<SpiffeId, ReviewRefused> {
        let mut review = good();
        change(&mut review);
        ask(Ok(review)).await
    }

    #[tokio::test]
    async fn s87_a_token_must_be_valid_ours_and_of_a_pod_that_lives() {
        assert_eq!(with(|_| {}).await.unwrap().as_str(), "spiffe://cluster.local/ns/default/sa/reviews");
        assert!(matches!(with(|r| r.authenticated = false).await, Err(ReviewRefused::NotAuthenticated(_))));
        assert!(matches!(with(|r| r.error = "expired".to_owned()).await, Err(ReviewRefused::NotAuthenticated(_))));
        for audiences in [vec![], vec!["https://kubernetes.default.svc".to_owned()]] {
            assert!(matches!(with(|r| r.audiences = audiences).await, Err(ReviewRefused::Audience { .. })));
        }
        for username in [
            "system:serviceaccount:default",
            "system:serviceaccount:default:reviews:x",
            "system:serviceaccount::reviews",
            "system:serviceaccount:default:",
            "system:node:default:reviews",
            "admin",
            "",
        ] {
            let refused = with(|r| r.username = username.to_owned()).await.unwrap_err();
            assert!(matches!(refused, ReviewRefused::NotServiceAccount(_)), "{username}: {refused}");
        }
        assert!(with(|r| r.username = "system:serviceaccount:a/b:c".to_owned()).await.is_err());
        assert!(matches!(with(|r| r.groups.clear()).await, Err(ReviewRefused::NotServiceAccount(_))));
        for key in [POD_NAME, POD_UID] {
            assert_eq!(with(|r| drop(r.extra.remove(key))).await, Err(ReviewRefused::NoPod));
            let two = vec!["a".to_owned(), "b".to_owned()];
            assert_eq!(with(|r| drop(r.extra.insert(key.to_owned(), two))).await, Err(ReviewRefused::NoPod));
        }
        // The same name, made anew: another UID.
        let other = |r: &mut Review| drop(r.extra.insert(POD_UID.to_owned(), vec!["u-2".to_owned()]));
        assert!(matches!(with(other).await, Err(ReviewRefused::PodGone { .. })));
        let down = ReviewFailed("connection refused".to_owned());
        assert_eq!(ask(Err(down.clone())).await, Err(ReviewRefused::Failed(down)), "nobody to ask is no proof");
    }

    #[test]
    fn a_join_token_is_not_taken_for_a_service_accounts() {
        assert!(ServiceAccountTokens::looks_like_one("a.b.c"));
        for other in ["", "a", "a.b", "a.b.c.d"] {
            assert!(!ServiceAccountTokens::looks_like_one(other));
        }
    }
}
