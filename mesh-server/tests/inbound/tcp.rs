//! Raw connections: what of policy holds where there are no requests.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_rustls::TlsConnector;

use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, InboundState, InboundTls,
    JwtAuthentication, JwtKeys, JwtProvider, PathMatch, Pattern, Permission, Principal, StringMatch, StringMatcher,
};
use mesh_core::telemetry::Reporter;
use mesh_server::{Config, RawConnection, Refusal};
use mesh_testkit::clock;

use crate::kit::{Http, World, client_tls, eventually, listener, policy, within};

const WEB: &str = "spiffe://cluster.local/ns/default/sa/web";

/// How a connection ended for its handler; `None` = the caller ended it.
type End = Option<io::ErrorKind>;

/// Greets with who the caller is and the server name it asked for, and gives back what it gets. It panics if it is told to,
/// and where the server leaves it says goodbye and stays.
async fn talk(mut connection: RawConnection, ends: UnboundedSender<End>) {
    let id = connection.peer().spiffe_id.as_ref().map_or("nobody".to_owned(), ToString::to_string);
    let greeting = format!("hello {id} {}\n", connection.server_name());
    let mut leaving = std::pin::pin!(connection.leaving());
    let (mut buffer, mut left) = ([0; 64], false);
    let mut said = connection.write_all(greeting.as_bytes()).await;
    let end = loop {
        if let Err(error) = said {
            break Some(error.kind());
        }
        let read = tokio::select! {
            read = connection.read(&mut buffer) => read,
            () = leaving.as_mut(), if !left => {
                left = true;
                said = connection.write_all(b"goodbye\n").await;
                continue;
            }
        };
        match read {
            Ok(0) => break None,
            Ok(_) if buffer.starts_with(b"panic") => panic!("it was told to"),
            Ok(bytes) => said = connection.write_all(&buffer[..bytes]).await,
            Err(error) => break Some(error.kind()),
        }
    };
    let _ = ends.send(end);
}

async fn talking(state: InboundState, config: Config) -> (World, UnboundedReceiver<End>) {
    let (ends, ended) = unbounded_channel();
    let world = World::start_raw(state, config, move |connection| talk(connection, ends.clone())).await;
    (world, ended)
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<I: AsyncRead + AsyncWrite + Unpin + Send> Io for I {}

/// A caller.
struct Caller(BufReader<Box<dyn Io>>);

impl Caller {
    async fn plain(world: &World) -> Self {
        Self(BufReader::new(Box::new(TcpStream::connect(world.address).await.unwrap())))
    }

    /// As an account of the server's mesh.
    async fn mutual(world: &World, account: &str) -> io::Result<Self> {
        let tls = client_tls(&world.ca.identity("default", account), Http::One);
        let tcp = TcpStream::connect(world.address).await?;
        let tls = TlsConnector::from(tls).connect("mesh".try_into().unwrap(), tcp).await?;
        Ok(Self(BufReader::new(Box::new(tls))))
    }

    /// The next line; an error where there is none any more.
    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match within(self.0.read_line(&mut line)).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    async fn say(&mut self, line: &str) -> io::Result<String> {
        self.0.write_all(format!("{line}\n").as_bytes()).await?;
        self.line().await
    }
}

/// The greeting of a caller with mutual TLS, or how it was turned away.
async fn greeting(world: &World, account: &str) -> Result<String, io::ErrorKind> {
    let greeted = async { Caller::mutual(world, account).await?.line().await };
    greeted.await.map_err(|error| error.kind())
}

fn guarded(policies: Vec<AuthorizationPolicy>) -> InboundState {
    let mut listener = listener(InboundTls::Permissive);
    listener.authorization = policies;
    InboundState::Ready(Arc::new(listener))
}

fn one(action: AuthorizationAction, permission: Permission, principal: Principal) -> AuthorizationPolicy {
    let name = "ns[default]-policy[one]-rule[0]".to_owned();
    let rule = AuthorizationRule { name, permissions: vec![permission], principals: vec![principal] };
    AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("one", action) }
}

fn is(account: &str) -> Principal {
    Principal::Authenticated(Some(StringMatcher::exact(format!("spiffe://cluster.local/ns/default/sa/{account}"))))
}

fn path() -> Permission {
    Permission::Path(PathMatch::Prefix("/".into()))
}

const RESET: Result<String, io::ErrorKind> = Err(io::ErrorKind::ConnectionReset);

#[tokio::test]
async fn each_mode_of_a_port_lets_in_what_it_names() {
    let (world, _ends) = talking(policy(InboundTls::Strict), Config::default()).await;
    assert_eq!(greeting(&world, "web").await.unwrap(), format!("hello {WEB} mesh"));
    let mut plain = Caller::plain(&world).await;
    assert!(plain.say("x").await.is_err());
    assert_eq!(world.server.stats().refused(Refusal::Plaintext), 1);

    // A change counts for the next connection.
    world.policy.publish(policy(InboundTls::Permissive));
    let mut mutual = Caller::mutual(&world, "web").await.unwrap();
    assert_eq!(mutual.line().await.unwrap(), format!("hello {WEB} mesh"));
    assert_eq!(mutual.say("ping").await.unwrap(), "ping");
    let mut plain = Caller::plain(&world).await;
    assert_eq!(plain.say("ping").await.unwrap(), "hello nobody");
    assert_eq!(plain.line().await.unwrap(), "ping");
    assert_eq!(world.server.stats().plaintext_peers(), [(Some([127, 0, 0, 1].into()), 1)]);

    // Without TLS nothing is looked at: the server may begin, and TLS is the application's own.
    world.policy.publish(policy(InboundTls::Disable));
    let mut plain = Caller::plain(&world).await;
    assert_eq!(plain.line().await.unwrap(), "hello nobody");
    assert_eq!(plain.say("\u{16}\u{3}\u{1} mine").await.unwrap(), "\u{16}\u{3}\u{1} mine");

    world.policy.publish(InboundState::Pending);
    assert!(Caller::plain(&world).await.line().await.is_err(), "nothing passes without a policy");
    assert_eq!(world.server.stats().refused(Refusal::NoPolicy), 1);
}

#[tokio::test]
async fn on_a_permissive_port_a_silent_caller_waits_for_the_server_to_begin() {
    let config = || {
        let mut config = Config::default();
        config.detect_timeout = Duration::from_millis(20);
        config
    };
    let (world, _ends) = talking(policy(InboundTls::Permissive), config()).await;
    assert_eq!(Caller::plain(&world).await.line().await.unwrap(), "hello nobody");
    // The control: where there must be TLS there is nobody to wait for.
    let (world, _ends) = talking(policy(InboundTls::Strict), config()).await;
    assert!(Caller::plain(&world).await.line().await.is_err());
    assert_eq!(world.server.stats().refused(Refusal::Timeout), 1);
}

#[tokio::test]
async fn what_is_known_of_a_connection_allows_and_denies() {
    let (world, _ends) = talking(policy(InboundTls::Permissive), Config::default()).await;
    let net = |net: &str| net.parse().unwrap();
    let namespace = |name: &str| {
        let pattern = StringMatch::Regex(Pattern::new(&format!(".*/ns/{name}/.*")).unwrap());
        Principal::Authenticated(Some(StringMatcher { pattern, ignore_case: false }))
    };
    let from = |who: [Principal; 2]| who.map(|who| (Permission::Any, who));
    let to = |what: [Permission; 2]| what.map(|what| (what, Principal::Any));
    // Of each the first holds and the second does not.
    for [holding, other] in [
        from([is("web"), is("other")]),
        from([Principal::Not(Box::new(is("other"))), Principal::Not(Box::new(is("web")))]),
        from([namespace("default"), namespace("shop")]),
        from([Principal::DirectRemoteIp(net("127.0.0.0/8")), Principal::DirectRemoteIp(net("10.0.0.0/8"))]),
        // There is no header that could tell of another address.
        from([Principal::RemoteIp(net("127.0.0.1/32")), Principal::RemoteIp(net("10.0.0.0/8"))]),
        to([Permission::DestinationPort(80), Permission::DestinationPort(81)]),
        to([Permission::DestinationIp(net("127.0.0.0/8")), Permission::DestinationIp(net("10.0.0.0/8"))]),
        to([
            Permission::ServerName(StringMatcher::exact("mesh")),
            Permission::ServerName(StringMatcher::exact("other")),
        ]),
    ] {
        for ((permission, principal), holds) in [(holding, true), (other, false)] {
            for (action, opens) in [(AuthorizationAction::Allow, holds), (AuthorizationAction::Deny, !holds)] {
                let shown = format!("{action:?} {permission:?} {principal:?}");
                world.policy.publish(guarded(vec![one(action, permission.clone(), principal.clone())]));
                let greeted = greeting(&world, "web").await;
                assert_eq!(greeted, if opens { Ok(format!("hello {WEB} mesh")) } else { RESET }, "{shown}");
            }
        }
    }
    // Plaintext is nobody.
    for (principal, said) in [(is("web"), "reset"), (Principal::Any, "hello nobody")] {
        world.policy.publish(guarded(vec![one(AuthorizationAction::Allow, Permission::Any, principal)]));
        let greeted = Caller::plain(&world).await.say("x").await.unwrap_or_else(|_| "reset".to_owned());
        assert_eq!(greeted, said);
    }
    // One that has not quite ended when the next policy comes is judged again.
    let counted = world.metrics.decisions().all();
    let denied = |action| counted.iter().filter(move |(of, _)| (of.action, of.decision) == (action, "denied"));
    assert!(denied("allow").map(|(_, count)| count).sum::<u64>() >= 9, "{counted:?}");
    assert!(denied("deny").map(|(_, count)| count).sum::<u64>() >= 8, "{counted:?}");
}

/// CVE-2020-16844: what a pattern of principals means does not depend on what the connection carries.
#[tokio::test]
async fn s46_the_end_of_a_principal_is_the_end_of_an_identity_on_raw_connections() {
    let (world, _ends) = talking(policy(InboundTls::Permissive), Config::default()).await;
    let pattern = StringMatch::Suffix("/sa/web".into());
    let web = Principal::Authenticated(Some(StringMatcher { pattern, ignore_case: false }));
    for (action, holds) in [(AuthorizationAction::Allow, true), (AuthorizationAction::Deny, false)] {
        world.policy.publish(guarded(vec![one(action.clone(), Permission::Any, web.clone())]));
        for (account, named) in [("web", true), ("not-web", false), ("webs", false)] {
            assert_eq!(greeting(&world, account).await.is_ok(), named == holds, "{action:?} {account}");
        }
        let plain = Caller::plain(&world).await.say("x").await;
        assert_eq!(plain.is_ok(), !holds, "{action:?}: nobody has no name that ends in it");
    }
}

#[tokio::test]
async fn what_only_requests_have_lets_nobody_in_and_keeps_nobody_from_being_denied() {
    let (world, _ends) = talking(policy(InboundTls::Permissive), Config::default()).await;
    let custom = || AuthorizationAction::Custom(AuthorizerProvider::named("asker"));
    let port = Permission::DestinationPort;
    for (action, permission, opens) in [
        (AuthorizationAction::Allow, path(), false),
        (AuthorizationAction::Allow, Permission::Not(Box::new(path())), false),
        (AuthorizationAction::Deny, path(), false),
        (AuthorizationAction::Deny, Permission::And(vec![path(), port(80)]), false),
        (AuthorizationAction::Audit, path(), true),
        // Nobody is asked about raw connections.
        (custom(), path(), false),
        (AuthorizationAction::Route, Permission::Not(Box::new(Permission::Any)), true),
        // The controls.
        (AuthorizationAction::Allow, port(80), true),
        (AuthorizationAction::Deny, Permission::And(vec![path(), port(81)]), true),
        (custom(), Permission::And(vec![path(), port(81)]), true),
    ] {
        let shown = format!("{action:?} {permission:?}");
        world.policy.publish(guarded(vec![one(action, permission, Principal::Any)]));
        assert_eq!(greeting(&world, "web").await.is_ok(), opens, "{shown}");
    }
}

#[tokio::test]
async fn where_a_token_is_demanded_nothing_raw_passes() {
    let (world, _ends) = talking(policy(InboundTls::Permissive), Config::default()).await;
    let issuer = || {
        let keys = JwtKeys::Inline(r#"{"keys":[]}"#.to_owned());
        [("issuer".to_owned(), JwtProvider::new("https://issuer.test", keys))]
    };
    for (filter, opens) in
        [(JwtAuthentication::required("jwt", issuer()), false), (JwtAuthentication::optional("jwt", issuer()), true)]
    {
        let mut listener = listener(InboundTls::Permissive);
        listener.jwt = vec![filter];
        world.policy.publish(InboundState::Ready(Arc::new(listener)));
        assert_eq!(greeting(&world, "web").await, if opens { Ok(format!("hello {WEB} mesh")) } else { RESET });
    }
}

#[tokio::test]
async fn a_changed_policy_ends_the_connections_that_it_denies_and_no_others() {
    let mut config = Config::default();
    config.unwelcome_limit = Duration::from_millis(10);
    let (world, mut ends) = talking(policy(InboundTls::Permissive), config).await;
    let mut web = Caller::mutual(&world, "web").await.unwrap();
    let mut other = Caller::mutual(&world, "other").await.unwrap();
    let mut plain = Caller::plain(&world).await;
    assert_eq!(plain.say("x").await.unwrap(), "hello nobody");
    assert_eq!(plain.line().await.unwrap(), "x");
    assert!(web.line().await.is_ok() && other.line().await.is_ok());

    // The control: a change that denies nobody.
    world.policy.publish(guarded(vec![one(AuthorizationAction::Deny, Permission::Any, is("third"))]));
    assert_eq!(greeting(&world, "third").await, RESET, "it is in force");
    for caller in [&mut web, &mut other, &mut plain] {
        assert_eq!(caller.say("ping").await.unwrap(), "ping");
    }

    world.policy.publish(guarded(vec![one(AuthorizationAction::Deny, Permission::Any, is("other"))]));
    assert!(other.line().await.is_err());
    assert_eq!(within(ends.recv()).await, Some(Some(io::ErrorKind::ConnectionAborted)));
    assert_eq!(web.say("ping").await.unwrap(), "ping");

    world.policy.publish(policy(InboundTls::Strict));
    assert!(plain.line().await.is_err());
    assert_eq!(within(ends.recv()).await, Some(Some(io::ErrorKind::ConnectionAborted)));
    assert_eq!(web.say("ping").await.unwrap(), "ping");
}

#[tokio::test]
async fn a_silent_connection_is_closed_if_there_is_a_limit() {
    let limited = |limit| {
        let mut config = Config::default();
        config.raw_idle_timeout = limit;
        talking(policy(InboundTls::Permissive), config)
    };
    let (unlimited, _ends) = limited(None).await;
    let mut longer = Caller::mutual(&unlimited, "web").await.unwrap();
    assert!(longer.line().await.is_ok());
    let (world, mut ends) = limited(Some(Duration::from_millis(30))).await;
    let mut caller = Caller::mutual(&world, "web").await.unwrap();
    assert!(caller.line().await.is_ok());
    assert!(caller.line().await.is_err());
    assert_eq!(within(ends.recv()).await, Some(Some(io::ErrorKind::TimedOut)));
    // The control, which was silent for longer.
    assert_eq!(longer.say("ping").await.unwrap(), "ping");
}

#[tokio::test]
async fn an_old_connection_is_told_and_has_the_drain_limit_to_end() {
    let aged = |age| {
        let mut config = Config::default();
        (config.max_connection_age, config.raw_idle_timeout) = (age, None);
        config.drain_limit = Duration::from_secs(200);
        talking(policy(InboundTls::Permissive), config)
    };
    for age in [Some(Duration::from_secs(600)), None] {
        let (world, mut ends) = aged(age).await;
        let mut goes = Caller::mutual(&world, "web").await.unwrap();
        let mut stays = Caller::mutual(&world, "web").await.unwrap();
        assert!(goes.line().await.is_ok() && stays.line().await.is_ok());
        tokio::time::pause();
        // The age varies by a tenth.
        clock::pass(Duration::from_secs(530)).await;
        tokio::time::resume();
        assert_eq!((goes.say("a").await.unwrap(), stays.say("a").await.unwrap()), ("a".into(), "a".into()));
        tokio::time::pause();
        clock::pass(Duration::from_secs(135)).await;
        tokio::time::resume();
        if age.is_none() {
            // The control: for ever.
            assert_eq!((goes.say("b").await.unwrap(), stays.say("b").await.unwrap()), ("b".into(), "b".into()));
            continue;
        }
        assert_eq!((goes.line().await.unwrap(), stays.line().await.unwrap()), ("goodbye".into(), "goodbye".into()));
        goes.0.shutdown().await.unwrap();
        assert_eq!(within(ends.recv()).await, Some(None));
        assert_eq!(stays.say("b").await.unwrap(), "b", "it has time");
        tokio::time::pause();
        clock::pass(Duration::from_secs(200)).await;
        tokio::time::resume();
        assert!(stays.line().await.is_err());
        assert_eq!(within(ends.recv()).await, Some(Some(io::ErrorKind::ConnectionAborted)));
    }
}

#[tokio::test]
async fn limits_on_connections_count_raw_ones() {
    let limited = |most| {
        let mut listener = listener(InboundTls::Permissive);
        listener.limits.max_connections = most;
        InboundState::Ready(Arc::new(listener))
    };
    let (world, _ends) = talking(limited(Some(1)), Config::default()).await;
    let mut first = Caller::mutual(&world, "web").await.unwrap();
    assert!(first.line().await.is_ok());
    assert!(greeting(&world, "web").await.is_err());
    assert_eq!(world.server.stats().refused(Refusal::ConnectionLimit), 1);
    // The controls: with its end there is room, and without the limit there is.
    drop(first);
    within(async { while greeting(&world, "web").await.is_err() {} }).await;
    world.policy.publish(limited(None));
    let mut first = Caller::mutual(&world, "web").await.unwrap();
    assert!(first.line().await.is_ok());
    assert!(greeting(&world, "web").await.is_ok());
}

#[tokio::test]
async fn a_server_that_leaves_tells_its_handlers_and_waits_for_them_within_its_limit() {
    let mut config = Config::default();
    (config.lame_duck, config.drain_limit) = (Duration::from_millis(10), Duration::from_millis(50));
    let (mut world, mut ends) = talking(policy(InboundTls::Permissive), config).await;
    let mut goes = Caller::mutual(&world, "web").await.unwrap();
    let mut stays = Caller::mutual(&world, "web").await.unwrap();
    assert!(goes.line().await.is_ok() && stays.line().await.is_ok());
    world.drain.drain();
    assert_eq!(goes.line().await.unwrap(), "goodbye");
    assert_eq!(stays.line().await.unwrap(), "goodbye");
    goes.0.shutdown().await.unwrap();
    assert_eq!(within(ends.recv()).await, Some(None));
    assert!(stays.line().await.is_err());
    within(&mut world.serving).await.unwrap().unwrap();
}

/// Whether a server of whose connections one never ends has ended after this time of its drain.
async fn has_gone(config: Config, after: Duration) -> bool {
    let (mut world, _ends) = talking(policy(InboundTls::Permissive), config).await;
    let mut stays = Caller::mutual(&world, "web").await.unwrap();
    assert!(stays.line().await.is_ok());
    tokio::time::pause();
    world.drain.drain();
    clock::pass(after).await;
    let gone = (&mut world.serving).now_or_never();
    tokio::time::resume();
    gone.is_some_and(|ended| ended.unwrap().is_ok())
}

/// Kubernetes kills what is there 30 s after its SIGTERM.
#[tokio::test]
async fn by_default_a_server_has_left_five_seconds_before_its_grace_is_over_r34() {
    const LEFT: Duration = Duration::from_secs(30 - 5);
    assert!(has_gone(Config::default(), LEFT).await);
    // The controls: until shortly before it waits, and with a limit two seconds longer it would still be there.
    assert!(!has_gone(Config::default(), LEFT - Duration::from_secs(2)).await);
    let mut longer = Config::default();
    longer.drain_limit += Duration::from_secs(2);
    assert!(!has_gone(longer, LEFT).await);
}

#[tokio::test]
async fn raw_connections_are_counted_with_their_bytes_and_so_are_denied_ones() {
    let (world, _ends) = talking(policy(InboundTls::Permissive), Config::default()).await;
    let counts = |principal: &str| {
        let mut counts = None;
        world.metrics.visit_tcp(|labels, flags, series| {
            if labels.source.principal == principal {
                assert_eq!((labels.reporter, flags, labels.mutual_tls), (Reporter::Destination, "-", Some(true)));
                assert_eq!(labels.destination.workload, "reviews-v1");
                assert_eq!(labels.destination_service, "reviews.default.svc.cluster.local");
                counts = Some((series.opened(), series.closed(), series.sent_bytes(), series.received_bytes()));
            }
        });
        counts
    };
    let mut caller = Caller::mutual(&world, "web").await.unwrap();
    let greeted = caller.line().await.unwrap().len() as u64 + 1;
    assert_eq!(caller.say("ping").await.unwrap(), "ping");
    assert_eq!(counts(WEB), Some((1, 0, greeted + 5, 5)));
    drop(caller);
    eventually(|| (counts(WEB)? == (1, 1, greeted + 5, 5)).then_some(())).await;
    world.policy.publish(guarded(vec![one(AuthorizationAction::Deny, Permission::Any, is("other"))]));
    assert_eq!(greeting(&world, "other").await, RESET);
    eventually(|| (counts("spiffe://cluster.local/ns/default/sa/other")? == (1, 1, 0, 0)).then_some(())).await;
}

#[tokio::test]
async fn a_handler_that_panics_costs_its_connection_and_no_other() {
    let (world, _ends) = talking(policy(InboundTls::Permissive), Config::default()).await;
    let mut bad = Caller::mutual(&world, "web").await.unwrap();
    let mut good = Caller::mutual(&world, "web").await.unwrap();
    assert!(bad.line().await.is_ok() && good.line().await.is_ok());
    assert!(bad.say("panic").await.is_err());
    assert_eq!(good.say("ping").await.unwrap(), "ping");
    assert!(greeting(&world, "web").await.is_ok());
}
