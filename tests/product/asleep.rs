//! A process that sleeps for longer than its certificate lives, as one on a machine that is suspended does (R24): it comes back,
//! and proves anew who it is.

use std::time::Duration;

use mesh::Mesh;
use mesh_control::ca::JoinTokens;
use tokio::process::Command;

use crate::by_hand::{Plane, examples, signal, spawn};
use crate::root::{GREETING, HELLO};
use crate::support::{becomes, call, eventually};

/// Of certificates, in seconds.
const LIFE: u64 = 12;

#[tokio::test]
async fn a_process_that_slept_through_the_life_of_its_certificate_comes_back_with_another_r24() {
    let server = examples().await.join("hello_server");
    let home = tempfile::tempdir().unwrap();
    let [manifests, state, token] = ["manifests", "state", "token"].map(|name| home.path().join(name));
    std::fs::create_dir(&manifests).unwrap();
    let plane = Plane::start_with(&manifests, &state, &["--certificate-ttl", &LIFE.to_string()]).await;
    let tokens = JoinTokens::open(&state).unwrap();
    let mint = |account: &str| tokens.mint("default", account, Duration::from_secs(120)).unwrap();
    let prove = || std::fs::write(&token, mint("hello")).unwrap();
    let caller = async || {
        let caller = Mesh::builder().control_plane(&plane.address).root_cert(state.join("root-cert.pem"));
        caller.service_account("caller").join_token(mint("caller")).build().await.unwrap()
    };
    prove();
    let mut command = Command::new(server);
    command.env("MESH_CONTROL_PLANE", &plane.address).env("MESH_ROOT_CERT", state.join("root-cert.pem"));
    command.env("MESH_JOIN_TOKEN_FILE", &token).env("POD_NAMESPACE", "default").env("SERVICE_ACCOUNT", "hello");
    let server = spawn(&mut command);
    eventually("hello_server is registered", || async { plane.registrations().await.pop() }).await;
    let awake = caller().await;
    becomes(&awake, HELLO, &[], GREETING).await;

    assert!(signal(&server, "-STOP").await);
    // One that is given so much later ends after all that were given before the signal, and its owner renews at half of it.
    let ends = || awake.identity().load_full().as_ref().as_ref().unwrap().not_after();
    let asleep = ends();
    for life in 1..=2 {
        eventually("its certificate ends", || async { (ends() >= asleep + life * LIFE).then_some(()) }).await;
    }
    assert!(signal(&server, "-CONT").await);
    // The control: its join token is spent, so it has nothing to show, and who comes anew takes nothing from it.
    let newcomer = caller().await;
    call(&newcomer, HELLO, &[]).await.unwrap_err();
    prove();
    becomes(&newcomer, HELLO, &[], GREETING).await;
}
