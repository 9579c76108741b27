//! Entry points for the fuzzer and for the replay of its corpora; not a part of the interface.
//!
//! Of `router`: bytes become requests, which come through the inbound layer as those of connections do. What a router finds for the
//! request that the application gets is what the policy judged, and a refusal is of what the policy says.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use parking_lot::Mutex;
use tower_layer::Layer;
use tower_service::Service;

use mesh_core::id::{ClusterName, Workload};
use mesh_core::matcher::{RequestView, RouteTable};
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, Domain, Forward, HeaderKey, HeaderMatch,
    HeaderMatcher, HeaderPolicy, InboundListener, InboundState, InboundTls, PathMatch, Permission, Principal, Route,
    RouteAction, RouteConfiguration, RouteMatch, StringMatch, StringMatcher, VirtualHost,
};
use mesh_core::source::Watched;
use mesh_core::target::{EncodedSlash, normalize_authority, normalize_path};

use crate::{Config, Server};

/// Polls for as long as it goes on by itself.
pub(crate) fn settle<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let woken = Arc::<Woken>::default();
    let waker = Waker::from(woken.clone());
    loop {
        match Pin::new(&mut *future).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return Some(output),
            Poll::Pending if woken.0.swap(false, Ordering::Relaxed) => {}
            Poll::Pending => return None,
        }
    }
}

/// The routes, in order: each has a policy of its own that may be closed.
const ROUTES: [&str; 4] = ["/admin", "/a/b", "/a", "/"];
/// The host that is closed to everybody.
const SECRET: &str = "secret.test";

/// Reads bytes as an HTTP/1 connection, as hyper does and as the watcher of its messages does.
///
/// # Panics
/// They do not see the same messages.
pub fn messages(bytes: &[u8]) {
    crate::listen::messages(bytes);
}

/// Sends a request through the layer, with the policy and without.
///
/// The first byte chooses what of the policy is closed, the second the method and what else is particular; then come
/// lines: the target, and the values of `Host`.
///
/// # Panics
/// Router, policy and application disagree about what was asked for.
pub fn router(bytes: &[u8]) {
    let [closed, how, rest @ ..] = bytes else { return };
    let slash = if how & 1 == 0 { EncodedSlash::Refuse } else { EncodedSlash::Keep };
    let Some(given) = read(*how, rest) else { return };
    let (open, status) = through(&[], slash, &given);
    let policy = [policy(*closed)];
    let (judged, answer) = through(&policy, slash, &given);
    let Some(open) = open else {
        assert!(judged.is_none() && status == answer, "{given:?}: a policy lets in what has no meaning");
        return;
    };
    settled(&given, &open, slash);
    let view = view(&open);
    let table = RouteTable::compile(&Arc::new(routes()), 80, &Workload::default());
    let route = table.route(&view).map(|route| route.index());
    let (mine, host) = (plain_route(view.path()), plain_host(view.authority));
    // What a request does not have, a rule that denies takes for what it denies.
    let path_may = match view.path_and_query.starts_with('/') {
        true => {
            assert_eq!(route, Some(mine), "{open:?}: the router finds another route");
            closed >> mine & 1 == 0
        }
        false => closed & 0x0f == 0,
    };
    let host_may = closed & 0x80 == 0 || !view.authority.is_empty() && host != SECRET;
    let may = path_may && host_may;
    match judged {
        Some(judged) => {
            assert!(may, "{given:?}: it reaches the application, and the policy forbids {open:?}");
            assert_eq!((judged.uri(), judged.headers()), (open.uri(), open.headers()));
        }
        None => assert!(!may && answer == StatusCode::FORBIDDEN, "{given:?}: {answer}, and {open:?} is allowed"),
    }
}

/// The application gets what is normal, and cannot be told two authorities.
fn settled(given: &Request<()>, got: &Request<()>, slash: EncodedSlash) {
    let hosts: Vec<&HeaderValue> = got.headers().get_all(header::HOST).iter().collect();
    assert!(hosts.len() <= 1, "{hosts:?}");
    if let Some(authority) = got.uri().authority() {
        assert_eq!(normalize_authority(authority.as_str()).as_deref(), Ok(authority.as_str()), "{got:?}");
        assert!(hosts.iter().all(|host| *host == authority.as_str()), "{got:?}: two authorities");
    }
    for host in hosts.iter().filter(|host| !host.is_empty()) {
        let host = host.to_str().expect("an authority is a text");
        assert_eq!(normalize_authority(host).as_deref(), Ok(host), "{got:?}");
    }
    assert!(!got.headers().contains_key("x-forwarded-client-cert"), "{got:?}");
    assert_eq!((got.method(), got.uri().query()), (given.method(), given.uri().query()));
    if let Some(text) = got.uri().path_and_query() {
        let text = text.as_str();
        assert!(text.starts_with('/') || text == "*", "{given:?}: the application sees a path, and rules see {text:?}");
    }
    if got.uri().path().starts_with('/') {
        let again = normalize_path(got.uri().path(), slash);
        assert_eq!(again.as_deref(), Ok(got.uri().path()), "{given:?}: not in normal form");
    }
}

fn read(how: u8, rest: &[u8]) -> Option<Request<()>> {
    let mut lines = rest.split(|b| *b == b'\n');
    let uri: Uri = Uri::from_maybe_shared(Bytes::copy_from_slice(lines.next()?)).ok()?;
    let method = [Method::GET, Method::OPTIONS, Method::CONNECT, Method::POST][usize::from(how >> 1 & 3)].clone();
    let mut request = Request::builder().method(method).uri(uri).body(()).ok()?;
    let headers = request.headers_mut();
    for host in lines.take(3) {
        headers.append(header::HOST, HeaderValue::from_bytes(host).ok()?);
    }
    if how & 8 != 0 {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    }
    if how & 16 != 0 {
        headers.insert("x_forwarded_client_cert", HeaderValue::from_static("By=somebody"));
        headers.insert("x-forwarded-client-cert", HeaderValue::from_static("By=somebody"));
    }
    if how & 32 != 0 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close, host"));
    }
    Some(request)
}

/// What the application gets, if it is asked, and the status of the answer.
fn through(
    policies: &[AuthorizationPolicy],
    slash: EncodedSlash,
    given: &Request<()>,
) -> (Option<Request<()>>, StatusCode) {
    let listener = InboundListener {
        authorization: policies.to_vec(),
        ..InboundListener::new("in", ([127, 0, 0, 1], 80).into(), InboundTls::Permissive)
    };
    let inbound = Watched::fixed(InboundState::Ready(Arc::new(listener)));
    let config = Config { encoded_slash: slash, ..Config::default() };
    let layer = Server::builder().inbound(inbound).config(config).build().inbound_layer();
    let got = Application::default();
    let mut service = layer.layer(got.clone());
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = given.method().clone();
    *request.uri_mut() = given.uri().clone();
    *request.headers_mut() = given.headers().clone();
    let answer = pin!(service.call(request)).poll_once();
    let asked = got.0.lock().take();
    // PERMISSION_DENIED
    let denied = answer.headers().get("grpc-status").is_some_and(|status| status == "7");
    (asked, if denied { StatusCode::FORBIDDEN } else { answer.status() })
}

trait PollOnce {
    type Output;
    fn poll_once(self) -> Self::Output;
}

impl<F: Future<Output = Result<T, Infallible>>, T> PollOnce for std::pin::Pin<&mut F> {
    type Output = T;

    fn poll_once(self) -> T {
        match self.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(answer)) => answer,
            Poll::Ready(Err(never)) => match never {},
            Poll::Pending => panic!("nobody is waited for"),
        }
    }
}

/// Remembers what it was asked.
#[derive(Clone, Default)]
struct Application(Arc<Mutex<Option<Request<()>>>>);

impl<B> Service<Request<B>> for Application {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        *self.0.lock() = Some(request.map(drop));
        ready(Ok(Response::new(Empty::new())))
    }
}

/// A rule for each route that is closed, with its conditions, and those of the routes before it denied; and one for the
/// host.
fn policy(closed: u8) -> AuthorizationPolicy {
    let path = |i: usize| Permission::Path(PathMatch::PathSeparatedPrefix(ROUTES[i].to_owned()));
    let mut rules: Vec<Permission> = (0..ROUTES.len())
        .filter(|i| closed >> i & 1 != 0)
        .map(|i| {
            let before = (0..i).map(|earlier| Permission::Not(Box::new(path(earlier))));
            Permission::And(before.chain([path(i)]).collect())
        })
        .collect();
    if closed & 0x80 != 0 {
        let text = |pattern| HeaderMatch::Text(StringMatcher { pattern, ignore_case: true });
        let host = |pattern| {
            Permission::Header(HeaderMatcher {
                name: HeaderKey::Authority,
                value: text(pattern),
                invert: false,
                treat_missing_as_empty: false,
            })
        };
        // One form of it is enough: requests come in their normal form, and a port hides no host.
        rules.push(host(StringMatch::Exact(SECRET.to_owned())));
    }
    let rule = AuthorizationRule { name: "closed".to_owned(), permissions: rules, principals: vec![Principal::Any] };
    AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("closed", AuthorizationAction::Deny) }
}

fn routes() -> RouteConfiguration {
    let route = |path: &&str| {
        let matcher = RouteMatch { path: PathMatch::PathSeparatedPrefix((*path).to_owned()), ..RouteMatch::any() };
        Route::new(matcher, RouteAction::Forward(Box::new(Forward::to(ClusterName::new("c")))))
    };
    let host = VirtualHost {
        name: "all".to_owned(),
        domains: vec![Domain::new("*").expect("a domain")],
        routes: ROUTES.iter().map(route).collect(),
        headers: HeaderPolicy::default(),
        retry: None,
    };
    let headers = HeaderPolicy::default();
    RouteConfiguration { name: "routes".to_owned(), virtual_hosts: vec![host], headers, retry_budget: None }
}

/// The request as a router behind the server sees it.
fn view(request: &Request<()>) -> RequestView<'_> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    RequestView {
        authority: request.uri().authority().map(|authority| authority.as_str()).or(host).unwrap_or_default(),
        method: request.method(),
        path_and_query: request.uri().path_and_query().map_or("", |path| path.as_str()),
        scheme: "http",
        headers: request.headers(),
        draw: &|| 0,
    }
}

/// The route of a path, by its elements.
fn plain_route(path: &str) -> usize {
    let elements: Vec<&str> = path.split('/').skip(1).collect();
    match elements[..] {
        ["admin", ..] => 0,
        ["a", "b", ..] => 1,
        ["a", ..] => 2,
        _ => 3,
    }
}

fn plain_host(authority: &str) -> String {
    let name = authority.split(':').next().unwrap_or_default();
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Plays the corpus of a target. `UPDATE_CORPUS=1` writes its seeds anew; what a fuzzer finds is added by hand and stays.
#[cfg(test)]
pub(crate) fn replay(target: &str, seeds: &[&[u8]], play: impl Fn(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        std::fs::create_dir_all(&folder).expect("a folder");
        for (i, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{i}")), seed).expect("a file");
        }
    }
    let files = std::fs::read_dir(folder).expect("the corpus");
    let played = files.map(|file| play(&std::fs::read(file.expect("a file").path()).expect("a file"))).count();
    assert!(played >= seeds.len(), "{played} files");
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: [&[u8]; 12] = [
        b"\x01\x00/admin\nreviews",
        b"\x01\x00/public/../%61dmin/x?q=/../a\nreviews",
        b"\x02\x00//a\\b/..;x/b\nreviews",
        b"\x01\x01/a%2f..%2fadmin\nreviews",
        b"\x0e\x08/admin%2e/./\nreviews",
        b"\x80\x00http://SECRET.test:80/x\nother.test",
        b"\x80\x00/x\nsecret.test.:81",
        b"\x80\x00http://other.test/\nsecret.test",
        b"\x00\x00/\na.test\nb.test",
        b"\xff\x02*\nsecret.test",
        b"\xff\x04secret.test:443\nsecret.test",
        b"\x0f\x30/admin;x=1/..\n[::1]:80",
    ];
    const PIECES: [&str; 18] = [
        "/",
        "\\",
        ".",
        "..",
        ";",
        "%2e",
        "%2F",
        "%5c",
        "%61",
        "admin",
        "a",
        "b",
        "\n",
        ":",
        "secret.test",
        "@",
        "?",
        "#",
    ];

    #[test]
    fn the_corpus_is_replayed() {
        replay("router", &SEEDS, router);
    }

    #[test]
    fn what_the_router_matches_is_what_the_policy_saw_and_the_application_gets() {
        let mut random = fastrand::Rng::with_seed(20);
        for _ in 0..3_000 {
            let mut bytes = SEEDS[random.usize(..SEEDS.len())].to_vec();
            (bytes[0], bytes[1]) = (random.u8(..), random.u8(..));
            for _ in 0..random.usize(..5) {
                let (at, piece) = (random.usize(2..=bytes.len()), PIECES[random.usize(..PIECES.len())]);
                bytes.splice(at..at, piece.bytes());
            }
            router(&bytes);
        }
    }

    /// The control: of two readers of one target one is talked round.
    #[test]
    fn a_policy_that_reads_the_target_as_it_was_sent_is_talked_round() {
        let given = read(0, b"/public/../%61dmin\nreviews").unwrap();
        let (got, _) = through(&[], EncodedSlash::Refuse, &given);
        let got = got.unwrap();
        assert_eq!([plain_route(given.uri().path()), plain_route(got.uri().path())], [3, 0]);
    }
}
