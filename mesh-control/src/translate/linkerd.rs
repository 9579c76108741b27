//! Linkerd's inbound policy for a port of a workload: the Server that guards it, the routes attached to that, and who is
//! authorized for the one or the other; where there is no Server, the default policy. And how many requests it takes.
//!
//! ```text
//! Server → routes: what none of them matches is not found (404)
//!        → of the most specific route: whoever is authorized for it, the Server or the namespace may call (else 403)
//! raw connections have no route, and are for whoever is authorized for the Server or the namespace
//! ```

use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, CallerGroup, CallerRateLimit, HeaderKey, HeaderMatch,
    HeaderMatcher, HttpFilter, HttpFilterKind, LocalRateLimit, PathMatch, PerMillion, Permission, Principal,
    StringMatcher, TokenBucket,
};
use mesh_core::target::{EncodedSlash, normalize_path};

use super::Options;
use super::authorization::Domains;
use super::inbound::Workload;
use crate::model::{
    AccessPolicy, Authentication, LinkerdAuthorization, LinkerdRateLimit, LinkerdRoute, Model, Object, RouteKind,
    Server, ServerPort, ServerRef, Store, Target, all_of_principals,
};

/// The policies of a workload's port.
pub(super) fn policies(model: &Model, options: &Options, of: &Workload<'_>) -> Vec<AuthorizationPolicy> {
    let mut policies = match server(model, of, Some(true)) {
        Some(server) => of_server(model, options, of, server),
        None => of_default(model, options, of),
    };
    // Those of a port that may be another one: they close this one, and open nothing.
    policies.extend(guards(model, of, None).flat_map(|server| of_server(model, options, of, server)));
    let domains = Domains::of(model, options);
    policies.iter_mut().for_each(|policy| domains.spread(&mut policy.rules));
    policies
}

/// The limits on requests of a workload's port: of all callers, then of each. Of several policies of a Server the oldest
/// counts.
pub(super) fn limits(model: &Model, options: &Options, of: &Workload<'_>) -> Vec<HttpFilter> {
    let server = server(model, of, Some(true)).or_else(|| server(model, of, None));
    let Some(server) = server else { return Vec::new() };
    let of_server = rate_limits(model, server).min_by_key(|object| object.seniority());
    let Some(object) = of_server else { return Vec::new() };
    let LinkerdRateLimit { server: _, total, identity, overrides } = &object.spec;
    let name = format!("linkerd.rate-limit.{}.{}", object.namespace(), object.name());
    let total = total.map(|rate| HttpFilter {
        name: format!("{name}.total"),
        kind: HttpFilterKind::RateLimit(LocalRateLimit {
            bucket: Some(TokenBucket::per_second(rate)),
            enabled: PerMillion::ALL,
            enforced: PerMillion::ALL,
            status: 429,
            resource_exhausted: true,
            response_headers: Vec::new(),
            request_headers: Vec::new(),
            per_connection: false,
            quota_headers: false,
            retry_after: false,
        }),
    });
    let domains = Domains::of(model, options);
    let id = |(namespace, account): &(String, String)| {
        let each = domains.names().iter();
        each.map(|domain| format!("spiffe://{domain}/ns/{namespace}/sa/{account}")).collect::<Vec<_>>()
    };
    let groups: Vec<CallerGroup> = overrides
        .iter()
        .map(|one| CallerGroup { callers: one.accounts.iter().flat_map(id).collect(), per_second: one.rate })
        .collect();
    let callers = (identity.is_some() || !groups.is_empty()).then(|| HttpFilter {
        name: format!("{name}.callers"),
        kind: HttpFilterKind::CallerRateLimit(CallerRateLimit { each: *identity, groups }),
    });
    total.into_iter().chain(callers).collect()
}

/// The policies that limit the requests of a Server.
pub(super) fn rate_limits<'a>(
    model: &'a Model,
    server: &'a Object<Server>,
) -> impl Iterator<Item = &'a Object<LinkerdRateLimit>> {
    in_namespace(&model.linkerd_rate_limits, server.namespace()).filter(|object| object.spec.server == server.name())
}

/// The Server that guards the port; of several the oldest, unless one of them is closed.
fn server<'a>(model: &'a Model, of: &Workload<'_>, is_port: Option<bool>) -> Option<&'a Object<Server>> {
    guards(model, of, is_port).min_by_key(|server| (!server.spec.closed, server.seniority()))
}

/// The Servers of the workload that guard the port (`true`), or may (`None`).
fn guards<'a>(model: &'a Model, of: &Workload<'_>, is_port: Option<bool>) -> impl Iterator<Item = &'a Object<Server>> {
    let is_picked = |server: &Server| of.labels.iter().any(|labels| server.pods.picks(labels));
    let guards =
        move |server: &&Object<Server>| is_picked(&server.spec) && self::is_port(&server.spec.port, of) == is_port;
    in_namespace(&model.linkerd_servers, of.namespace).filter(guards)
}

/// The objects of a namespace.
fn in_namespace<'a, T>(store: &'a Store<T>, namespace: &str) -> impl Iterator<Item = &'a Object<T>> {
    let from = (namespace.to_owned(), String::new());
    store.range(from.clone()..).take_while(move |(key, _)| key.0 == from.0).map(|(_, object)| &**object)
}

/// `None` = it may be.
fn is_port(port: &ServerPort, of: &Workload<'_>) -> Option<bool> {
    match port {
        ServerPort::Number(number) => Some(*number == of.port),
        ServerPort::Any => Some(true),
        // Which number a name stands for only the pod says. Without one every port may be it.
        ServerPort::Name(name) => of.pod.map(|pod| pod.spec.ports.iter().any(|(n, p)| n == name && *p == of.port)),
    }
}

/// What holds without a Server: the annotation of the workload or of its template, its namespace's, then the mesh's setting.
fn of_default(model: &Model, options: &Options, of: &Workload<'_>) -> Vec<AuthorizationPolicy> {
    let of_pod = of.pod.and_then(|pod| AccessPolicy::of_annotation(&pod.document.annotations));
    let of_template = || AccessPolicy::of_annotation(&of.template(model)?.annotations);
    let of_pod = of_pod.or_else(of_template);
    // A namespace has none itself.
    let mut namespaces = model.namespaces.values().filter(|object| object.name() == of.namespace);
    let of_namespace = || namespaces.find_map(|object| AccessPolicy::of_annotation(&object.document.annotations));
    let access = of_pod.or_else(of_namespace).unwrap_or(options.default_inbound_policy);
    if access == AccessPolicy::AllUnauthenticated {
        return Vec::new();
    }
    let mut rules = access_rules(access, options, "linkerd-default");
    rules.extend(probes(of));
    vec![allow("linkerd.default".to_owned(), access, rules)]
}

fn allow(name: String, access: AccessPolicy, rules: Vec<AuthorizationRule>) -> AuthorizationPolicy {
    let dry_run = access == AccessPolicy::Audit;
    let name = if dry_run { format!("{name}.audit") } else { name };
    AuthorizationPolicy { dry_run, rules, ..AuthorizationPolicy::new(name, AuthorizationAction::Allow) }
}

fn rule(name: String, permissions: Vec<Permission>, principals: Vec<Principal>) -> AuthorizationRule {
    AuthorizationRule { name, permissions, principals }
}

/// Who may call by an access policy.
fn access_rules(access: AccessPolicy, options: &Options, name: &str) -> Vec<AuthorizationRule> {
    let cluster =
        || Principal::Or(options.cluster_networks.iter().map(|net| Principal::DirectRemoteIp(*net)).collect());
    let who = match access {
        AccessPolicy::Deny | AccessPolicy::Audit => return Vec::new(),
        AccessPolicy::AllUnauthenticated => Principal::Any,
        AccessPolicy::AllAuthenticated => Principal::Authenticated(None),
        AccessPolicy::ClusterUnauthenticated => cluster(),
        AccessPolicy::ClusterAuthenticated => Principal::And(vec![Principal::Authenticated(None), cluster()]),
    };
    vec![rule(name.to_owned(), vec![Permission::Any], vec![who])]
}

/// The kubelet has no identity: what the pod says is probed may be asked for by everybody.
fn probes(of: &Workload<'_>) -> Vec<AuthorizationRule> {
    let probes = of.pod.map(|pod| pod.spec.probes.as_slice()).unwrap_or_default();
    let paths = probes.iter().filter(|(port, _)| *port == of.port);
    let paths = paths.filter_map(|(_, path)| normalize_path(path, EncodedSlash::Keep).ok());
    let paths: Vec<Permission> = paths.map(|path| Permission::Path(PathMatch::Exact(path.into_owned()))).collect();
    if paths.is_empty() {
        return Vec::new();
    }
    let get = Permission::Header(HeaderMatcher {
        name: HeaderKey::Method,
        value: HeaderMatch::Text(StringMatcher::exact("GET")),
        invert: false,
        treat_missing_as_empty: false,
    });
    let permission = Permission::And(vec![get, Permission::Or(paths)]);
    vec![rule("linkerd-probes".to_owned(), vec![permission], vec![Principal::Any])]
}

fn of_server(model: &Model, options: &Options, of: &Workload<'_>, server: &Object<Server>) -> Vec<AuthorizationPolicy> {
    let name = format!("linkerd.server.{}.{}", server.namespace(), server.name());
    let routes = attached(model, server);
    if server.spec.closed || routes.iter().any(|route| route.route.closed) {
        return vec![AuthorizationPolicy::new(name, AuthorizationAction::Allow)];
    }
    let access = server.spec.access;
    let of_all = of_all(model, server);
    let by_access = || access_rules(access, options, &format!("linkerd-server[{}]", server.name()));
    if routes.is_empty() {
        let mut rules: Vec<_> = for_all(of_all).collect();
        rules.extend(by_access());
        rules.extend(probes(of));
        return vec![allow(name, access, rules)];
    }
    let (mut known, mut rules) = (Vec::new(), Vec::new());
    for (route, permission) in in_order(&routes) {
        let named = format!("linkerd-{}[{}]", route.in_words(), route.name);
        known.push(rule(named, vec![permission.clone()], vec![Principal::Any]));
        let target = Target::Route(route.kind, route.name.to_owned());
        let who = authorized(model, of.namespace, &target);
        let permission = if permission == Permission::Any { any_request() } else { permission };
        rules.extend(who.map(|(name, who)| rule(name, vec![permission.clone()], vec![who])));
    }
    rules.extend(for_all(of_all));
    rules.extend(by_access());
    let routes = AuthorizationPolicy {
        rules: known,
        ..AuthorizationPolicy::new(format!("{name}.routes"), AuthorizationAction::Route)
    };
    vec![routes, allow(name, access, rules)]
}

/// A route at a Server.
struct Attached<'a> {
    kind: RouteKind,
    name: &'a str,
    seniority: (&'a str, &'a str, &'a str),
    route: &'a LinkerdRoute,
}

impl Attached<'_> {
    fn in_words(&self) -> &'static str {
        match self.kind {
            RouteKind::Linkerd => "route",
            RouteKind::Http => "http-route",
            RouteKind::Grpc => "grpc-route",
        }
    }
}

/// The routes at a Server, of whatever kind.
fn attached<'a>(model: &'a Model, server: &Object<Server>) -> Vec<Attached<'a>> {
    fn of<'a, T>(
        store: &'a Store<T>,
        namespace: &str,
        kind: RouteKind,
        route: impl Fn(&'a T) -> &'a LinkerdRoute,
    ) -> impl Iterator<Item = Attached<'a>> {
        in_namespace(store, namespace).map(move |object| Attached {
            kind,
            name: object.name(),
            seniority: object.seniority(),
            route: route(&object.spec),
        })
    }
    let namespace = server.namespace();
    let all = of(&model.linkerd_routes, namespace, RouteKind::Linkerd, |route| route)
        .chain(of(&model.gateway_http_routes, namespace, RouteKind::Http, |route| &route.0))
        .chain(of(&model.gateway_grpc_routes, namespace, RouteKind::Grpc, |route| &route.0));
    let is_at = |route: &Attached<'_>| match &route.route.servers {
        None => true,
        Some(servers) => servers.iter().any(|attached| attached == server.name()),
    };
    all.filter(is_at).collect()
}

/// Who is authorized for everything: whatever its route, and without one where there are no requests.
fn for_all(authorized: Vec<(String, Principal)>) -> impl Iterator<Item = AuthorizationRule> {
    authorized.into_iter().map(|(name, who)| rule(name, vec![Permission::Any], vec![who]))
}

/// What every request holds, and no raw connection: that has no route, though one takes everything.
fn any_request() -> Permission {
    Permission::Header(HeaderMatcher {
        name: HeaderKey::Method,
        value: HeaderMatch::Present(true),
        invert: false,
        treat_missing_as_empty: false,
    })
}

/// What each condition of the routes takes: what it matches and none before it does.
fn in_order<'a>(routes: &'a [Attached<'a>]) -> Vec<(&'a Attached<'a>, Permission)> {
    let each = routes.iter().flat_map(|route| route.route.conditions.iter().map(move |condition| (route, condition)));
    let mut each: Vec<_> = each.collect();
    each.sort_by(|(a, x), (b, y)| y.rank.cmp(&x.rank).then_with(|| a.seniority.cmp(&b.seniority)));
    let mut taken: Vec<((RouteKind, &str), Permission)> = Vec::new();
    let mut ordered = Vec::with_capacity(each.len());
    for (route, condition) in each {
        // Who may call is the same for all of a route's conditions: only those of others take anything away.
        let own = (route.kind, route.name);
        let others = taken.iter().filter(|(other, _)| *other != own);
        let before: Vec<Permission> = others.map(|(_, permission)| permission.clone()).collect();
        let permission = match before.is_empty() {
            true => condition.permission.clone(),
            false => {
                Permission::And(vec![condition.permission.clone(), Permission::Not(Box::new(Permission::Or(before)))])
            }
        };
        taken.push((own, condition.permission.clone()));
        ordered.push((route, permission));
    }
    ordered
}

/// Who is authorized for everything at a Server: by name of the authorization.
fn of_all(model: &Model, server: &Object<Server>) -> Vec<(String, Principal)> {
    let namespace = server.namespace();
    let mut all: Vec<_> = authorized(model, namespace, &Target::Server(server.name().to_owned())).collect();
    all.extend(authorized(model, namespace, &Target::Namespace));
    let older =
        in_namespace(&model.linkerd_server_authorizations, namespace).filter(|object| match &object.spec.server {
            ServerRef::Name(name) => name == server.name(),
            ServerRef::Labels(labels) => labels.picks(&server.document.labels),
        });
    all.extend(
        older.map(|object| {
            (format!("ns[{namespace}]-serverauthorization[{}]", object.name()), object.spec.client.clone())
        }),
    );
    all
}

/// Who is authorized for a target by AuthorizationPolicies.
fn authorized<'a>(
    model: &'a Model,
    namespace: &'a str,
    target: &Target,
) -> impl Iterator<Item = (String, Principal)> + use<'a> {
    let target = target.clone();
    let objects = in_namespace(&model.linkerd_authorizations, namespace);
    objects.filter(move |object| object.spec.target == target).filter_map(move |object| {
        let who = who(model, &object.spec)?;
        Some((format!("linkerd-ns[{namespace}]-policy[{}]", object.name()), who))
    })
}

/// Whom a policy authorizes; `None` = nobody, because what it demands does not exist.
fn who(model: &Model, policy: &LinkerdAuthorization) -> Option<Principal> {
    let each = policy.required.iter().map(|required| match required {
        Authentication::Account(who) => Some(who.clone()),
        Authentication::MeshTls(namespace, name) => {
            model.linkerd_mesh_tls.get(&(namespace.clone(), name.clone())).map(|object| object.spec.0.clone())
        }
        Authentication::Network(namespace, name) => {
            model.linkerd_networks.get(&(namespace.clone(), name.clone())).map(|object| object.spec.0.clone())
        }
    });
    each.collect::<Option<Vec<_>>>().map(all_of_principals)
}
