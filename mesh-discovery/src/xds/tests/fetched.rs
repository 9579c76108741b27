//! Keys of token issuers that the control plane fetched: they do not hold for ever without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mesh_core::policy::{InboundListener, InboundState, InboundTls, JwtAuthentication, JwtKeys, JwtProvider};
use mesh_core::source::{InboundSource, Watched};
use mesh_testkit::clock;
use tokio::runtime::Handle;

use super::super::ads::Hold;
use super::super::kind::{Key, Kind};
use super::super::saved::{Record, Saved};
use super::super::{AdsStream, Body, StreamError, Transport, Variant, XdsClient, XdsConfig};
use super::machine::{BOTH, Machine, TIMEOUT};
use super::{MemoryTransport, Server, network};
use crate::bootstrap::{Bootstrap, ChannelCredentials, Node, XdsServer};
use crate::codec;

const NAME: &str = "xds.istio.io/grpc/lds/inbound/127.0.0.1:80";
const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTE: Duration = Duration::from_secs(60);

/// A network that can be down.
#[derive(Clone)]
struct Switched {
    memory: MemoryTransport,
    down: Arc<AtomicBool>,
}

impl Transport for Switched {
    fn open(&mut self, variant: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>> {
        match self.down.load(Ordering::Relaxed) {
            true => std::future::ready(Err(StreamError::new("it is down"))).boxed(),
            false => self.memory.open(variant),
        }
    }
}

fn client(variant: Variant) -> (XdsClient, Server, Arc<AtomicBool>) {
    let (memory, server) = network();
    let down = Arc::new(AtomicBool::new(false));
    let transport = Switched { memory, down: down.clone() };
    let memory = XdsServer::new("memory:1".parse().unwrap(), ChannelCredentials::Insecure);
    let mut config = XdsConfig::new(Bootstrap::new(memory, Node { id: "me".to_owned(), ..Default::default() }));
    config.variant = Some(variant);
    (XdsClient::spawn(config, move |_: &XdsServer| transport.clone(), &Handle::current()), server, down)
}

/// One provider's keys were fetched, the other's are written down.
fn inbound() -> Any {
    let keys = || r#"{"keys":[]}"#.to_owned();
    let fetched = JwtProvider::new("https://fetched.test", JwtKeys::Fetched { jwks: keys(), max_age: DAY });
    let inline = JwtProvider::new("https://inline.test", JwtKeys::Inline(keys()));
    let jwt = JwtAuthentication::optional("jwt", [("fetched".to_owned(), fetched), ("inline".to_owned(), inline)]);
    let listener = InboundListener::new(NAME, "127.0.0.1:80".parse().unwrap(), InboundTls::Permissive);
    codec::encode_inbound(&InboundListener { jwt: vec![jwt], ..listener })
}

/// Whether the keys that were fetched are in use; those that are written down always are.
fn in_use(state: &InboundState) -> bool {
    let InboundState::Ready(listener) = state else { panic!("{state:?}") };
    let providers = &listener.jwt[0].providers;
    assert!(matches!(providers["inline"].keys, JwtKeys::Inline(_)));
    match &providers["fetched"].keys {
        JwtKeys::Fetched { max_age, .. } => assert_eq!(*max_age, DAY),
        JwtKeys::Outdated { max_age } => assert_eq!(*max_age, DAY),
        other => panic!("{other:?}"),
    }
    matches!(providers["fetched"].keys, JwtKeys::Fetched { .. })
}

async fn served(state: &mut Watched<InboundState>) -> bool {
    in_use(&*state.wait_for(|state| matches!(state, InboundState::Ready(_))).await)
}

#[tokio::test(start_paused = true)]
async fn s50_a_server_that_is_cut_off_uses_fetched_keys_for_their_time_and_again_once_the_control_plane_speaks() {
    for variant in BOTH {
        let (client, mut server, down) = client(variant);
        let mut state = client.inbound("127.0.0.1:80".parse().unwrap());
        let mut stream = server.accept().await;
        stream.expect(Kind::Listener, &[NAME]).await;
        stream.respond(Kind::Listener, "v1", "1", vec![inbound()]);
        assert!(served(&mut state).await);
        stream.expect(Kind::Listener, &[NAME]).await;
        // The control: while it is there it need not say anything, however long.
        clock::pass(10 * DAY).await;
        assert!(in_use(&state.load()));

        // An outage that is shorter costs nothing, and the next one has its whole time.
        down.store(true, Ordering::Relaxed);
        drop(stream);
        clock::pass(DAY - MINUTE).await;
        assert!(in_use(&state.load()));
        down.store(false, Ordering::Relaxed);
        let mut stream = server.accept().await;
        stream.expect(Kind::Listener, &[NAME]).await;
        stream.respond(Kind::Listener, "v1", "2", vec![inbound()]);
        stream.expect(Kind::Listener, &[NAME]).await;
        down.store(true, Ordering::Relaxed);
        drop(stream);
        clock::pass(DAY - MINUTE).await;
        assert!(in_use(&state.load()));
        clock::pass(2 * MINUTE).await;
        assert!(!in_use(&state.load()), "{variant:?}");
        // Whoever asks only now is told the same.
        drop(state);
        let mut state = client.inbound("127.0.0.1:80".parse().unwrap());
        assert!(!served(&mut state).await);

        // Back, with nothing new to say: the silence of a control plane that owes nothing is a word of it.
        down.store(false, Ordering::Relaxed);
        let stream = server.accept().await;
        state.wait_for(in_use).await;
        drop(stream);
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_without_an_end_wakes_readers_of_fetched_keys_once() {
    let (client, mut server, down) = client(Variant::Delta);
    let mut state = client.inbound("127.0.0.1:80".parse().unwrap());
    let mut stream = server.accept().await;
    stream.expect(Kind::Listener, &[NAME]).await;
    stream.respond(Kind::Listener, "v1", "1", vec![inbound()]);
    assert!(served(&mut state).await);
    stream.expect(Kind::Listener, &[NAME]).await;
    down.store(true, Ordering::Relaxed);
    drop(stream);
    clock::pass(2 * DAY).await;
    assert!(state.changed().now_or_never().is_some() && !in_use(&state.load()));
    clock::pass(10 * DAY).await;
    assert!(state.changed().now_or_never().is_none());
}

/// A day counts from when the control plane was heard of, also if that was before this process began.
#[test]
fn fetched_keys_grow_no_younger_by_a_restart() {
    for variant in BOTH {
        let key = Key::new(Kind::Routes, "a");
        let start = Machine::of(variant).now;
        for (since, hold) in [
            (start.checked_sub(10 * MINUTE), Hold::Until(start + DAY - 10 * MINUTE)),
            (start.checked_sub(DAY), Hold::Over),
            (None, Hold::Over),
        ] {
            let mut ads = Machine::of(variant);
            let body = Body::new(Kind::Routes.type_url(), b"a=0".to_vec());
            let record = Record { giver: 0, version: "v0".into(), body, confirmed: 0, since, until: None };
            ads.ads.restore(Saved::from([(key.clone(), record)]));
            ads.ads.pass(start);
            ads.subscribe(std::slice::from_ref(&key));
            assert!(ads.ads.entry(&key).is_some_and(|entry| entry.giver().is_none() && entry.value().is_some()));
            assert_eq!(ads.ads.hold(&key, DAY), hold);
        }
        // Once the control plane has given it, it is its word that counts.
        let mut ads = Machine::of(variant);
        ads.subscribe(std::slice::from_ref(&key));
        ads.opened();
        ads.drain(0);
        assert_eq!(ads.ads.hold(&key, DAY), Hold::Over, "there is nothing");
        ads.respond(Kind::Routes, "v1", &["a=1"]);
        assert_eq!(ads.ads.hold(&key, DAY), Hold::Confirmed);
        ads.pass(TIMEOUT);
        ads.closed();
        assert_eq!(ads.ads.hold(&key, DAY), Hold::Until(ads.now + DAY));
        assert_eq!(ads.ads.hold(&key, Duration::MAX), Hold::Confirmed, "beyond what the clock can tell");
    }
}
