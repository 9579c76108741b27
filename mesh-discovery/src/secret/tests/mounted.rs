//! The root file beside an authority that tells nothing of roots, as Istio's.

use std::sync::Arc;

use mesh_core::identity::Identity;
use rustls::pki_types::CertificateDer;

use super::issue::RootsEnded;
use super::{
    Ca, CertificateAuthorityClient, DAY, IstioCertificateServiceServer, JoinToken, REVIEWS, Roots,
    TrustBundleServiceServer, connector, fake, now, serve, start, worker,
};

fn roots(identity: &Identity) -> Vec<CertificateDer<'static>> {
    identity.bundles().get(&identity.id().trust_domain()).unwrap().roots().to_vec()
}

fn certificates(of: &[&Ca]) -> Vec<CertificateDer<'static>> {
    of.iter().map(|ca| ca.root.der().clone()).collect()
}

fn write(file: &tempfile::NamedTempFile, of: &[&Ca]) {
    std::fs::write(file.path(), of.iter().map(|ca| ca.root.pem()).collect::<String>()).unwrap();
}

async fn first(client: &CertificateAuthorityClient) -> Identity {
    client.first(Some(&JoinToken::Text("secret".to_owned())), now()).await.unwrap()
}

#[tokio::test]
async fn beside_an_authority_that_tells_nothing_of_roots_those_of_the_file_are_trusted_as_they_are_now() {
    let (fake, other) = (fake(), Ca::new());
    let (serving, connector, file) = start(&fake).await;
    let client = CertificateAuthorityClient::new(connector, DAY, None);
    write(&file, &[&fake.ca, &other]);
    let current = first(&client).await;
    // It may be one that tells yet.
    assert_eq!(roots(&current), certificates(&[&fake.ca]));
    assert!(client.mounted_roots(&current).await.is_none());
    let both = client.other_roots(&current, now).await.ok().unwrap();
    assert_eq!(
        (roots(&both), both.certified().cert.clone()),
        (certificates(&[&fake.ca, &other]), current.certified().cert.clone())
    );
    assert!(matches!(client.other_roots(&both, now).await, Err(RootsEnded::Unsupported)), "nothing new");
    // A certificate takes none of them away, nor does a file that is being written.
    std::fs::write(file.path(), "-----BEGIN CERT").unwrap();
    assert!(client.mounted_roots(&both).await.is_none());
    let renewed = client.renew(&both, now()).await.unwrap();
    assert_eq!(roots(&renewed), certificates(&[&fake.ca, &other]));
    // Who changes the file takes them away.
    write(&file, &[&fake.ca]);
    let alone = client.mounted_roots(&renewed).await.unwrap();
    assert_eq!(roots(&alone), certificates(&[&fake.ca]));
    // The root of the answer stays whatever the file says.
    write(&file, &[&other]);
    assert_eq!(roots(&client.mounted_roots(&alone).await.unwrap()), certificates(&[&fake.ca, &other]));
    drop(serving);
    // The file is looked at while the authority is away.
    write(&file, &[&fake.ca]);
    let proved = worker::Proved { client, token: None, key: None, clock: Arc::new(now) };
    tokio::time::pause();
    let heard = worker::Authority::other_roots(&proved, Arc::new(both));
    let heard = tokio::time::timeout(DAY, heard).await.expect("it is looked at");
    assert_eq!(roots(&heard), certificates(&[&fake.ca]));
}

/// A root that was taken out does not come back out of a file that was written before.
#[tokio::test]
async fn an_authority_that_tells_of_roots_is_believed_alone() {
    let (fake, gone) = (fake(), Ca::new());
    let (serving, connector, file) = start(&fake).await;
    write(&file, &[&fake.ca, &gone]);
    let client = CertificateAuthorityClient::new(connector, DAY, None);
    let current = first(&client).await;
    let port = serving.port;
    drop(serving);
    let roots_of = TrustBundleServiceServer::new(Roots(fake.ca.root.pem()));
    let serving = serve(roots_of, Some(fake.ca.server_config()), port).await;
    assert!(matches!(client.other_roots(&current, now).await, Err(RootsEnded::Broken(_))), "nothing new");
    drop(serving);
    // Nor while something in between does not know what is asked for.
    let service = IstioCertificateServiceServer::new(fake.clone());
    let _serving = serve(service, Some(fake.ca.server_config()), port).await;
    assert!(matches!(client.other_roots(&current, now).await, Err(RootsEnded::Unsupported)));
    let renewed = client.renew(&current, now()).await.unwrap();
    assert_eq!(roots(&renewed), certificates(&[&fake.ca]));
}

#[tokio::test]
async fn a_file_for_the_way_to_the_authority_vouches_for_nobody_else() {
    for shared in [false, true] {
        let (fake, front) = (fake(), Ca::new());
        let file = front.root_file();
        let service = IstioCertificateServiceServer::new(fake.clone());
        let serving = serve(service, Some(front.server_config()), 0).await;
        let client = CertificateAuthorityClient::new(connector(serving.port, Some(&file)), DAY, None);
        let current = first(&client).await;
        assert_eq!(current.id().as_str(), REVIEWS);
        if shared {
            write(&file, &[&front, &fake.ca]);
        }
        // The control: one that has a root of the authority's is about the mesh.
        let told = client.other_roots(&current, now).await.ok().map(|identity| roots(&identity));
        assert_eq!(told, shared.then(|| certificates(&[&fake.ca, &front])));
    }
}
