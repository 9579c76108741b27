//! Every task of the control plane: accepting connections, renewing its certificate, and what the
//! builder hands in. Tasks are owned: dropping the handle ends them.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::drain::DrainWatch;
use mesh_core::id::SpiffeId;
use mesh_core::identity::{EndingLists, EndingRoots, LifeLeft, ListLife};
use mesh_core::limit::Seldom;
use mesh_core::source::{Watched, WatchedIdentity};
use rustls::crypto::CryptoProvider;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::admission::{Admission, Bounds};
use super::connection::{Door, GRACEFUL, Speaks, connection};
use super::refusals::Refusals;
use super::{CertificateError, ServerCertificate, certificate};
use crate::ca::{CertificateAuthority, Federation};

/// Wait after an error of `accept`, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Such an error is told once in this time.
const ACCEPT_TOLD: Duration = Duration::from_secs(10);
const RENEW_RETRY: Duration = Duration::from_secs(10);
/// How often the authority's files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A task that ends when its handle is dropped.
#[derive(Debug)]
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    /// Ends it and waits until it has ended.
    pub(crate) async fn cancelled(self) {
        self.0.abort();
        self.finished().await;
    }

    /// Waits for its end.
    pub(crate) async fn finished(mut self) {
        if let Err(e) = (&mut self.0).await
            && e.is_panic()
        {
            tracing::error!(error = %e, "a task of the control plane panicked");
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs `work` until it ends or the handle is dropped.
#[expect(clippy::disallowed_methods, reason = "the one place that spawns; the handle owns the task")]
pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Task {
    Task(tokio::spawn(work))
}

/// A listening port and what it serves.
pub(crate) struct Port {
    pub(crate) listener: TcpListener,
    pub(crate) speaks: Speaks,
    pub(crate) routes: axum::Router,
    pub(crate) bounds: Bounds,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) drain: DrainWatch,
}

/// Accepts connections until told to stop, then lets open ones finish for a moment.
pub(crate) async fn serve(port: Port) {
    let Port { listener, speaks, routes, bounds, refusals, drain } = port;
    let door = Arc::new(Door { speaks, routes, admission: Admission::new(bounds), refusals, drain });
    let (mut connections, mut failed) = (JoinSet::new(), Seldom::default());
    loop {
        let accepted = tokio::select! {
            () = door.drain.drained() => break,
            accepted = accept(&listener, &door.admission) => accepted,
        };
        // Those that have ended are taken out as new ones come.
        while connections.try_join_next().is_some() {}
        let (stream, address, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(left_out) = failed.tell(ACCEPT_TOLD, Instant::now()) {
                    tracing::warn!(%error, left_out, "a connection could not be accepted");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let door = door.clone();
        connections.spawn(async move {
            connection(stream, address, &door).await;
            drop(permit);
        });
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(GRACEFUL, all).await.is_err() {
        tracing::info!("connections still open are cut");
    }
}

async fn accept(
    listener: &TcpListener,
    admission: &Admission,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = admission.connections.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, permit))
}

/// Waits for so long by the authority's clock, which certificates go by: one that is set ahead, or of a machine that slept,
/// cuts it short, and so does one that is set back, for what was signed before may not have begun.
async fn passes(authority: &CertificateAuthority, time: Duration) {
    let begun = authority.now();
    let over = begun.saturating_add(time.as_secs());
    loop {
        sleep(LOOK).await;
        if !(begun..over).contains(&authority.now()) {
            return;
        }
    }
}

/// Renews the control plane's certificate at half its life, and at once when the authority has other keys or roots;
/// on failure keeps the old one and tries again.
pub(crate) async fn renew(certificate: Arc<ServerCertificate>, first: Duration) {
    let mut changes = certificate.changes();
    let mut wait = first / 2;
    loop {
        tokio::select! {
            () = passes(certificate.authority(), wait) => {}
            () = changes.changed() => {}
        }
        wait = match certificate.renew() {
            Ok(life) => life / 2,
            Err(error) => {
                tracing::error!(%error, "the control plane's certificate could not be renewed; it is tried again");
                RENEW_RETRY
            }
        };
    }
}

/// An identity for somebody in this process, signed without a network and renewed like any other, until the last
/// reader of the answer is dropped.
pub(crate) fn identity(
    authority: Arc<CertificateAuthority>,
    federation: Arc<Federation>,
    id: SpiffeId,
    provider: Arc<CryptoProvider>,
) -> Result<WatchedIdentity, CertificateError> {
    let (mut changes, mut others) = (authority.changes(), federation.watch());
    let (signing, of) = (authority.clone(), id.clone());
    let issue = move |generation| {
        let bundles = federation.beside(certificate::own_bundles(&signing));
        certificate::identity(&signing, bundles, &of, &[], &provider, generation)
    };
    let (first, mut life) = issue(0)?;
    let (publisher, watched) = Watched::channel(Some(Arc::new(first)));
    let task = spawn(async move {
        let mut wait = life / 2;
        for generation in 1.. {
            tokio::select! {
                () = passes(&authority, wait) => {}
                () = changes.changed() => {}
                () = others.changed() => {}
            }
            match issue(generation) {
                Ok((identity, lives)) => {
                    publisher.publish(Some(Arc::new(identity)));
                    life = lives;
                    wait = life / 2;
                }
                Err(error) => {
                    tracing::error!(%error, %id, "no new certificate; the old one stays in use");
                    wait = RENEW_RETRY.min(life / 16);
                }
            }
        }
    });
    Ok(watched.with_guard(Arc::new(task)))
}

/// Takes up what commands do to the authority's files.
pub(crate) async fn follow(authority: Arc<CertificateAuthority>, federation: Arc<Federation>) {
    let (mut said, mut ending, mut lists) = ([None, None], EndingRoots::default(), EndingLists::default());
    loop {
        let (trusted, now) = (certificate::own_bundles(&authority), authority.now());
        if let Some(not_after) = ending.look(&trusted, now) {
            tracing::warn!(target: "mesh::ca", not_after, "a root ends soon: change it before then (mesh cert rotate-root)");
        }
        lists.look([&trusted], now).iter().for_each(|(list, mark)| tell_of(list, *mark));
        sleep(LOOK).await;
        // One has nothing to do with the other: lists and roots do not wait for a bundle of somebody else's.
        for (reloaded, said) in [authority.reload(), federation.reload()].into_iter().zip(&mut said) {
            match reloaded {
                Ok(true) => tracing::info!(target: "mesh::ca", "files of the authority have changed"),
                Ok(false) => *said = None,
                Err(error) => {
                    let error = error.to_string();
                    if said.as_ref() != Some(&error) {
                        tracing::error!(target: "mesh::ca", %error, "what was good of it last stays in use");
                    }
                    *said = Some(error);
                }
            }
        }
    }
}

/// Tells that a revocation list has passed a mark of its life.
fn tell_of(list: &ListLife, mark: LifeLeft) {
    let (issuer, ends, percent) = (&list.issuer, list.ends, mark.percent());
    match mark {
        LifeLeft::Ample | LifeLeft::Half => {}
        LifeLeft::Quarter | LifeLeft::Tenth => tracing::warn!(
            target: "mesh::ca",
            %issuer,
            ends,
            "a revocation list has {percent} percent of its life left: put a newer one into ca-crl.pem before it ends, for after \
             that everybody whom its issuer signed is refused"
        ),
        LifeLeft::Nothing => tracing::error!(
            target: "mesh::ca",
            %issuer,
            ends,
            "a revocation list has ended, and everybody whom its issuer signed is refused: put a newer one into ca-crl.pem, or \
             remove the file, which takes all back in"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::UNIX_EPOCH;

    use mesh_core::id::TrustDomain;

    use super::*;
    use crate::Clock;
    use crate::ca::CertificateLife;

    #[tokio::test(start_paused = true)]
    async fn the_certificate_is_renewed_at_half_its_life() {
        let home = tempfile::tempdir().unwrap();
        let (_, certificate, first) = certificate_for_a_thousand_seconds(home.path());
        assert_eq!(first, Duration::from_secs(1_000));
        let before = certificate.config();
        let _task = spawn(renew(certificate.clone(), first));
        mesh_testkit::clock::pass(Duration::from_secs(499)).await;
        assert!(Arc::ptr_eq(&before, &certificate.config()));
        mesh_testkit::clock::pass(Duration::from_secs(2)).await;
        let renewed = certificate.config();
        assert!(!Arc::ptr_eq(&before, &renewed));
        mesh_testkit::clock::pass(Duration::from_secs(500)).await;
        assert!(!Arc::ptr_eq(&renewed, &certificate.config()), "and again");
    }

    /// A clock that is so many seconds ahead of the test's, and a certificate by it, with its life.
    fn certificate_for_a_thousand_seconds(home: &Path) -> (Arc<AtomicI64>, Arc<ServerCertificate>, Duration) {
        let (begin, ahead) = (tokio::time::Instant::now(), Arc::<AtomicI64>::default());
        let set = ahead.clone();
        let clock = Clock::new(move || {
            let right = 1_800_000_000 + begin.elapsed().as_secs();
            UNIX_EPOCH + Duration::from_secs(right.saturating_add_signed(set.load(Ordering::Relaxed)))
        });
        let domain = TrustDomain::new("cluster.local").unwrap();
        let life = CertificateLife::at_most(Duration::from_secs(1_000));
        let authority = Arc::new(CertificateAuthority::open(home, domain, life, clock).unwrap());
        let id = "spiffe://cluster.local/ns/mesh-system/sa/control-plane".parse().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let names = vec!["localhost".to_owned(), "::1".to_owned()];
        let (certificate, life) = ServerCertificate::new(authority, id, names, provider).unwrap();
        (ahead, Arc::new(certificate), life)
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_brings_the_control_plane_a_certificate_at_once_r24() {
        for (seconds, renewed) in [(-86_400, true), (-400, true), (500, true), (86_400, true), (400, false), (0, false)]
        {
            let home = tempfile::tempdir().unwrap();
            let (ahead, certificate, life) = certificate_for_a_thousand_seconds(home.path());
            let before = certificate.config();
            let _task = spawn(renew(certificate.clone(), life));
            mesh_testkit::clock::pass(Duration::from_secs(10)).await;
            ahead.store(seconds, Ordering::Relaxed);
            mesh_testkit::clock::pass(2 * LOOK).await;
            assert_eq!(!Arc::ptr_eq(&before, &certificate.config()), renewed, "{seconds}");
            // Once is enough.
            let after = certificate.config();
            mesh_testkit::clock::pass(Duration::from_secs(60)).await;
            assert!(Arc::ptr_eq(&after, &certificate.config()), "{seconds}");
        }
    }
}
