//! TLS contexts (gRFC A29, A36): certificate provider instances mean an identity of the mesh, files mean
//! TLS that the policy originates. What is not known here is refused, never passed over.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{
    DataSource, TransportSocket, UpstreamHttpProtocolOptions, data_source::Specifier, transport_socket::ConfigType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::http_11_proxy::v3::Http11ProxyUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext, DownstreamTlsContext,
    SubjectAltNameMatcher, TlsCertificate, UpstreamTlsContext,
    certificate_validation_context::{SystemRootCerts, TrustChainVerification},
    common_tls_context::{CertificateProviderInstance, CombinedCertificateValidationContext, ValidationContextType},
    subject_alt_name_matcher::SanType,
};
use mesh_core::policy::{
    ClientCertificate, HttpProxy, Instances, MeshTls, OriginatedTls, RootsTls, StringMatch, StringMatcher, UpstreamTls,
};

use super::ProviderPart;
use super::common::{self, non_empty};
use super::extension::{self, url};
use super::matcher;
use super::report::{At, Report, consider};

/// Usual name of the transport socket that tunnels through a proxy.
const PROXY_SOCKET: &str = "envoy.transport_sockets.http_11_proxy";
/// Usual name of the transport socket.
const SOCKET: &str = "envoy.transport_sockets.tls";
/// The provider instance of the bootstrap that is the process's own identity.
const OWN_INSTANCE: &str = "default";
/// What is asked of an instance: the certificate and the roots.
const CERTIFICATE: &str = "default";
const ROOTS: &str = "ROOTCA";
/// Of servers that are verified by a certificate provider's roots.
const FIXED_SNI: &str = "mesh peers get the fixed SNI or the endpoint's address";
const NOT_THE_SNI: &str = "mesh peers have SPIFFE identities, not DNS names";
/// Longest SNI (RFC 6066).
const MAX_SNI: usize = 255;

/// Encodes the socket of a cluster; `Auto` has none (its part is in our typed metadata).
pub(super) fn encode_upstream(tls: &UpstreamTls) -> Option<TransportSocket> {
    let context = match tls {
        UpstreamTls::Disable | UpstreamTls::Auto(_) => return None,
        UpstreamTls::Mesh(mesh) => UpstreamTlsContext {
            common_tls_context: Some(mesh_context(&mesh.peer_ids, &mesh.instances)),
            sni: mesh.sni.clone().unwrap_or_default(),
            ..Default::default()
        },
        UpstreamTls::Roots(tls) => UpstreamTlsContext {
            common_tls_context: Some(roots_context(&tls.names, tls.instance.as_deref())),
            sni: tls.sni.clone().unwrap_or_default(),
            ..Default::default()
        },
        UpstreamTls::Simple(tls) => originated_context(tls, None),
        UpstreamTls::Mutual(tls, certificate) => originated_context(tls, Some(certificate)),
    };
    Some(socket(extension::pack(url::UPSTREAM_TLS, &context)))
}

/// The socket of a server's filter chain that demands a mesh certificate.
pub(super) fn encode_downstream(instances: &Instances) -> TransportSocket {
    let context = DownstreamTlsContext {
        common_tls_context: Some(mesh_context(&[], instances)),
        require_client_certificate: common::boolean(true),
        ..Default::default()
    };
    socket(extension::pack(url::DOWNSTREAM_TLS, &context))
}

pub(super) fn socket(config: envoy_types::pb::google::protobuf::Any) -> TransportSocket {
    TransportSocket { name: SOCKET.to_owned(), config_type: Some(ConfigType::TypedConfig(config)) }
}

/// Providers in the current and in the older fields, as istiod fills them: C++ and older Go read those.
fn mesh_context(peer_ids: &[StringMatcher], instances: &Instances) -> CommonTlsContext {
    let certificate = instances.certificate.as_deref();
    CommonTlsContext {
        tls_certificate_provider_instance: Some(current(certificate, CERTIFICATE)),
        tls_certificate_certificate_provider_instance: Some(older(certificate, CERTIFICATE)),
        ..roots_context(peer_ids, instances.roots.as_deref())
    }
}

/// Validation by the roots of an instance, and nothing to show.
fn roots_context(names: &[StringMatcher], instance: Option<&str>) -> CommonTlsContext {
    let validation = CertificateValidationContext {
        ca_certificate_provider_instance: Some(current(instance, ROOTS)),
        match_subject_alt_names: names.iter().map(matcher::string).collect(),
        ..Default::default()
    };
    let combined = CombinedCertificateValidationContext {
        default_validation_context: Some(validation),
        validation_context_certificate_provider_instance: Some(older(instance, ROOTS)),
        ..Default::default()
    };
    CommonTlsContext {
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(combined)),
        ..Default::default()
    }
}

fn current(instance: Option<&str>, name: &str) -> CertificateProviderPluginInstance {
    let instance_name = instance.unwrap_or(OWN_INSTANCE).to_owned();
    CertificateProviderPluginInstance { instance_name, certificate_name: name.to_owned() }
}

fn older(instance: Option<&str>, name: &str) -> CertificateProviderInstance {
    let instance_name = instance.unwrap_or(OWN_INSTANCE).to_owned();
    CertificateProviderInstance { instance_name, certificate_name: name.to_owned() }
}

pub(super) fn originated_context(tls: &OriginatedTls, certificate: Option<&ClientCertificate>) -> UpstreamTlsContext {
    let file = |path: &String| DataSource { specifier: Some(Specifier::Filename(path.clone())), ..Default::default() };
    let names = tls.subject_alt_names.iter().map(|name| SubjectAltNameMatcher {
        san_type: kind(name).into(),
        matcher: Some(matcher::string(name)),
        ..Default::default()
    });
    let verification = match tls.insecure_skip_verify {
        true => TrustChainVerification::AcceptUntrusted,
        false => TrustChainVerification::VerifyTrustChain,
    };
    let validation = CertificateValidationContext {
        trusted_ca: tls.ca_file.as_ref().map(file),
        system_root_certs: tls.ca_file.is_none().then_some(SystemRootCerts {}),
        match_typed_subject_alt_names: names.collect(),
        trust_chain_verification: verification.into(),
        ..Default::default()
    };
    UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificates: certificate
                .map(|c| TlsCertificate {
                    certificate_chain: Some(file(&c.certificate_file)),
                    private_key: Some(file(&c.private_key_file)),
                    ..Default::default()
                })
                .into_iter()
                .collect(),
            validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
            ..Default::default()
        }),
        sni: tls.sni.clone().unwrap_or_default(),
        // What an empty list of names means in the model.
        auto_sni_san_validation: tls.subject_alt_names.is_empty() && !tls.insecure_skip_verify,
        auto_host_sni: tls.auto_host_sni,
        ..Default::default()
    }
}

/// Reads the socket of a cluster.
pub(super) fn decode_upstream(
    proto: Option<&TransportSocket>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<UpstreamTls> {
    let Some(socket) = proto else { return Some(UpstreamTls::Disable) };
    let Some(ConfigType::TypedConfig(config)) = &socket.config_type else {
        report.problem(&at.field("typed_config"), "a configuration is required");
        return None;
    };
    let kind = extension::type_of(config);
    if kind == url::RAW_BUFFER {
        return Some(UpstreamTls::Disable);
    }
    if kind != url::UPSTREAM_TLS {
        report.problem(&at.field("typed_config"), format!("{kind:?} is not an UpstreamTlsContext (gRFC A29)"));
        return None;
    }
    let context: UpstreamTlsContext = extension::unpack(config, at, report)?;
    if context.sni.len() > MAX_SNI {
        report.problem(&at.field("sni"), format!("longer than {MAX_SNI} bytes"));
    }
    consider!(&context, at, report, UpstreamTlsContext {
        read: [common_tls_context, sni, auto_host_sni, auto_sni_san_validation],
        // No session is resumed; key usage is always checked.
        idle: [max_session_keys, enforce_rsa_key_usage],
        allow_renegotiation => "renegotiation is never done",
    });
    let Some(common) = &context.common_tls_context else {
        report.problem(&at.field("common_tls_context"), "a context with a CA is required (gRFC A29)");
        return None;
    };
    let at = at.field("common_tls_context");
    refuse_unknown(common, &at, report);
    let instances = read_instances(common, &at, report);
    let validation = validation(common, &at, report)?;
    let sni = non_empty(&context.sni);
    let provided = has_identity_provider(common);
    if validation.from_provider || provided {
        let auto = (context.auto_host_sni, context.auto_sni_san_validation);
        let names = read_provided(common, &validation, auto, &at, report);
        return Some(match provided {
            true => UpstreamTls::Mesh(MeshTls { peer_ids: names, sni, instances }),
            false => UpstreamTls::Roots(RootsTls { names, sni, instance: instances.roots }),
        });
    }
    let originated = read_originated(&validation, sni, &at, report).map(|mut tls| {
        tls.auto_host_sni = context.auto_host_sni;
        if context.auto_sni_san_validation {
            // It replaces the names with the SNI (gRFC A101), as an empty list of names does.
            tls.subject_alt_names.clear();
        }
        tls
    });
    match common.tls_certificates.as_slice() {
        [] => originated.map(UpstreamTls::Simple),
        [certificate] => {
            let certificate = read_certificate(certificate, &at.item("tls_certificates", 0), report);
            Some(UpstreamTls::Mutual(originated?, certificate?))
        }
        _ => {
            report.problem(&at.field("tls_certificates"), "more than one certificate is not supported");
            None
        }
    }
}

/// Obeys the protocol options that say how SNI and names are found.
pub(super) fn with_auto(
    tls: UpstreamTls,
    auto: &UpstreamHttpProtocolOptions,
    at: &At<'_>,
    report: &mut Report,
) -> UpstreamTls {
    let at = at.field("upstream_http_protocol_options");
    consider!(auto, &at, report, UpstreamHttpProtocolOptions {
        read: [auto_sni, auto_san_validation],
        idle: [],
        override_auto_sni_header => "the dialled host is the SNI",
    });
    let originated = |mut tls: OriginatedTls| {
        if auto.auto_sni {
            tls.sni = None;
        }
        if auto.auto_san_validation {
            tls.subject_alt_names.clear();
        }
        tls
    };
    match tls {
        UpstreamTls::Simple(tls) => UpstreamTls::Simple(originated(tls)),
        UpstreamTls::Mutual(tls, certificate) => UpstreamTls::Mutual(originated(tls), certificate),
        provided @ (UpstreamTls::Mesh(_) | UpstreamTls::Roots(_)) => {
            report.unenforced_if(auto.auto_sni, &at, "auto_sni", FIXED_SNI);
            if auto.auto_san_validation {
                report.problem(&at.field("auto_san_validation"), NOT_THE_SNI);
            }
            provided
        }
        plain @ (UpstreamTls::Disable | UpstreamTls::Auto(_)) => plain,
    }
}

/// Wraps a socket so that it goes through a proxy (gRFC A86).
pub(super) fn encode_proxy(proxy: &HttpProxy, inner: Option<TransportSocket>) -> TransportSocket {
    let plain = || TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(ConfigType::TypedConfig(extension::pack(url::RAW_BUFFER, &RawBuffer {}))),
    };
    let config = Http11ProxyUpstreamTransport {
        transport_socket: Some(inner.unwrap_or_else(plain)),
        default_proxy_address: proxy.default.as_ref().map(common::address),
    };
    let config_type = Some(ConfigType::TypedConfig(extension::pack(url::HTTP_PROXY, &config)));
    TransportSocket { name: PROXY_SOCKET.to_owned(), config_type }
}

/// Takes a socket out of the one that goes through a proxy.
pub(super) fn unwrap_proxy(
    proto: Option<&TransportSocket>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<(Option<HttpProxy>, Option<TransportSocket>)> {
    match proto.and_then(|socket| socket.config_type.as_ref()) {
        Some(ConfigType::TypedConfig(config)) if extension::type_of(config) == url::HTTP_PROXY => {
            let config: Http11ProxyUpstreamTransport = extension::unpack(config, at, report)?;
            let Http11ProxyUpstreamTransport { transport_socket, default_proxy_address } = config;
            let default = match default_proxy_address {
                Some(address) => {
                    Some(common::read_address(Some(&address), &at.field("default_proxy_address"), report)?)
                }
                None => None,
            };
            Some((Some(HttpProxy { default }), transport_socket))
        }
        _ => Some((None, proto.cloned())),
    }
}

/// Reads the socket of a server's filter chain: a mesh certificate must be demanded. Gives the instances that say who
/// we are and whom we trust.
pub(super) fn decode_downstream(socket: &TransportSocket, at: &At<'_>, report: &mut Report) -> Option<Instances> {
    let Some(ConfigType::TypedConfig(config)) = &socket.config_type else {
        report.problem(&at.field("typed_config"), "a configuration is required");
        return None;
    };
    let kind = extension::type_of(config);
    if kind != url::DOWNSTREAM_TLS {
        report.problem(&at.field("typed_config"), format!("{kind:?} is not a DownstreamTlsContext (gRFC A36)"));
        return None;
    }
    let context = extension::unpack::<DownstreamTlsContext>(config, at, report)?;
    consider!(
        &context,
        at,
        report,
        DownstreamTlsContext {
            read: [common_tls_context, require_client_certificate, require_sni, ocsp_staple_policy],
            // No session is resumed (gRFC A29 ignores these).
            idle: [
                disable_stateful_session_resumption,
                session_timeout,
                full_scan_certs_on_sni_mismatch,
                prefer_client_ciphers,
                session_ticket_keys_type,
            ],
        }
    );
    if !common::is_true(context.require_client_certificate.as_ref()) {
        let reason = "TLS without a client certificate is not supported: callers would have no identity";
        report.problem(&at.field("require_client_certificate"), reason);
    }
    if common::is_true(context.require_sni.as_ref()) {
        report.problem(&at.field("require_sni"), "it must be false (gRFC A29)");
    }
    if context.ocsp_staple_policy != 0 {
        report.problem(&at.field("ocsp_staple_policy"), "only LENIENT_STAPLING is supported (gRFC A29)");
    }
    let at = at.field("common_tls_context");
    let Some(common) = &context.common_tls_context else {
        report.problem(&at, "a context with a CA and an identity is required");
        return None;
    };
    refuse_unknown(common, &at, report);
    let instances = read_instances(common, &at, report);
    if !has_identity_provider(common) {
        let reason = "an identity from a certificate provider instance is required (gRFC A36)";
        report.problem(&at.field("tls_certificate_provider_instance"), reason);
    }
    let validation = validation(common, &at, report)?;
    if !validation.from_provider {
        report.problem(&at, "a CA certificate provider instance is required to check callers (gRFC A29)");
    }
    refuse_beside_provider(common, &validation, &at, report);
    let context = validation.context.as_ref();
    if context.is_some_and(|c| !c.match_subject_alt_names.is_empty() || !c.match_typed_subject_alt_names.is_empty()) {
        let reason = "on the server side callers are restricted by authorization, not by SAN matchers";
        report.problem(&at.field("match_subject_alt_names"), reason);
    }
    Some(instances)
}

/// The fields of gRFC A29 that must not be set.
fn refuse_unknown(common: &CommonTlsContext, at: &At<'_>, report: &mut Report) {
    consider!(
        common,
        at,
        report,
        CommonTlsContext {
            read: [
                tls_params,
                tls_certificates,
                tls_certificate_sds_secret_configs,
                tls_certificate_provider_instance,
                custom_tls_certificate_selector,
                tls_certificate_certificate_provider,
                tls_certificate_certificate_provider_instance,
                custom_handshaker,
                validation_context_type,
            ],
            // The protocols spoken say what ALPN offers (gRFC A29); keys are never logged.
            idle: [alpn_protocols, key_log],
        }
    );
    let refused = [
        ("tls_params", common.tls_params.is_some()),
        ("custom_handshaker", common.custom_handshaker.is_some()),
        ("custom_tls_certificate_selector", common.custom_tls_certificate_selector.is_some()),
        ("tls_certificate_sds_secret_configs", !common.tls_certificate_sds_secret_configs.is_empty()),
        ("tls_certificate_certificate_provider", common.tls_certificate_certificate_provider.is_some()),
    ];
    for (name, set) in refused {
        if set {
            report.problem(&at.field(name), "not supported (gRFC A29)");
        }
    }
}

fn has_identity_provider(common: &CommonTlsContext) -> bool {
    common.tls_certificate_provider_instance.is_some() || common.tls_certificate_certificate_provider_instance.is_some()
}

/// The certificate provider instances that are asked for, by the current fields before the older ones.
fn read_instances(common: &CommonTlsContext, at: &At<'_>, report: &mut Report) -> Instances {
    use ValidationContextType as Type;
    let mut note = |at: At<'_>, name: &str, part| -> Option<Arc<str>> {
        let name = if name.is_empty() { OWN_INSTANCE } else { name };
        report.provider(&at, name, part);
        (name != OWN_INSTANCE).then(|| name.into())
    };
    let part = ProviderPart::Certificate;
    let certificate = if let Some(current) = &common.tls_certificate_provider_instance {
        note(at.field("tls_certificate_provider_instance"), &current.instance_name, part)
    } else if let Some(older) = &common.tls_certificate_certificate_provider_instance {
        note(at.field("tls_certificate_certificate_provider_instance"), &older.instance_name, part)
    } else {
        None
    };
    let (context, older) = match &common.validation_context_type {
        Some(Type::ValidationContext(context)) => (Some(context), None),
        Some(Type::CombinedValidationContext(combined)) => {
            let older = combined.validation_context_certificate_provider_instance.as_ref();
            (combined.default_validation_context.as_ref(), older)
        }
        Some(Type::ValidationContextCertificateProviderInstance(older)) => (None, Some(older)),
        _ => (None, None),
    };
    let part = ProviderPart::Roots;
    let roots = if let Some(current) = context.and_then(|context| context.ca_certificate_provider_instance.as_ref()) {
        let at = at.field("validation_context");
        note(at.field("ca_certificate_provider_instance"), &current.instance_name, part)
    } else if let Some(older) = older {
        note(at.field("validation_context_certificate_provider_instance"), &older.instance_name, part)
    } else {
        None
    };
    Instances { certificate, roots }
}

/// The validation settings of a context, from whichever field carries them.
struct Validation {
    context: Option<CertificateValidationContext>,
    from_provider: bool,
}

fn validation(common: &CommonTlsContext, at: &At<'_>, report: &mut Report) -> Option<Validation> {
    use ValidationContextType as Type;
    let found = match &common.validation_context_type {
        Some(Type::ValidationContext(context)) => Validation { context: Some(context.clone()), from_provider: false },
        Some(Type::CombinedValidationContext(combined)) => {
            if combined.validation_context_sds_secret_config.is_some()
                || combined.validation_context_certificate_provider.is_some()
            {
                report.problem(&at.field("combined_validation_context"), "SDS and inline providers are not supported");
            }
            Validation {
                context: combined.default_validation_context.clone(),
                from_provider: combined.validation_context_certificate_provider_instance.is_some(),
            }
        }
        Some(Type::ValidationContextCertificateProviderInstance(_)) => {
            Validation { context: None, from_provider: true }
        }
        Some(Type::ValidationContextSdsSecretConfig(_) | Type::ValidationContextCertificateProvider(_)) => {
            report.problem(&at.field("validation_context"), "SDS and inline providers are not supported (gRFC A29)");
            return None;
        }
        None => {
            report.problem(&at.field("validation_context"), "a CA is required (gRFC A29)");
            return None;
        }
    };
    let Some(context) = &found.context else { return Some(found) };
    let at = at.field("validation_context");
    consider!(context, &at, report, CertificateValidationContext {
        read: [
            trusted_ca, ca_certificate_provider_instance, system_root_certs, verify_certificate_spki,
            verify_certificate_hash, match_typed_subject_alt_names, match_subject_alt_names,
            require_signed_certificate_timestamp, crl, allow_expired_certificate, trust_chain_verification,
            custom_validator_config,
        ],
        // `crl` is refused, files are always watched, and what is told to callers is theirs to ignore.
        idle: [watched_directory, only_verify_leaf_cert_crl, suppress_client_ca_list],
        max_verify_depth => "chains may be as deep as the TLS library lets them",
    });
    let refused = [
        ("verify_certificate_spki", !context.verify_certificate_spki.is_empty()),
        ("verify_certificate_hash", !context.verify_certificate_hash.is_empty()),
        (
            "require_signed_certificate_timestamp",
            common::is_true(context.require_signed_certificate_timestamp.as_ref()),
        ),
        ("crl", context.crl.is_some()),
        ("custom_validator_config", context.custom_validator_config.is_some()),
        ("allow_expired_certificate", context.allow_expired_certificate),
    ];
    for (name, set) in refused {
        if set {
            report.problem(&at.field(name), "not supported (gRFC A29)");
        }
    }
    let from_provider = found.from_provider || context.ca_certificate_provider_instance.is_some();
    Some(Validation { from_provider, ..found })
}

/// Reads what else TLS by certificate providers says: the names that peers must have.
fn read_provided(
    common: &CommonTlsContext,
    validation: &Validation,
    (auto_host_sni, auto_sni_san_validation): (bool, bool),
    at: &At<'_>,
    report: &mut Report,
) -> Vec<StringMatcher> {
    report.unenforced_if(auto_host_sni, at, "auto_host_sni", FIXED_SNI);
    if auto_sni_san_validation {
        report.problem(&at.field("auto_sni_san_validation"), NOT_THE_SNI);
    }
    if !validation.from_provider {
        report.problem(&at.field("validation_context"), "a CA certificate provider instance is required (gRFC A29)");
    }
    refuse_beside_provider(common, validation, at, report);
    let at = at.field("validation_context");
    validation.context.as_ref().map(|c| read_names(c, &at, report)).unwrap_or_default()
}

/// What would say otherwise who we are or whom we trust. Of system roots a provider has precedence (gRFC A82).
fn refuse_beside_provider(common: &CommonTlsContext, validation: &Validation, at: &At<'_>, report: &mut Report) {
    if !common.tls_certificates.is_empty() {
        report.problem(&at.field("tls_certificates"), "not supported beside a certificate provider (gRFC A29)");
    }
    let Some(context) = &validation.context else { return };
    let at = at.field("validation_context");
    if context.trusted_ca.is_some() {
        report.problem(&at.field("trusted_ca"), "not supported beside a certificate provider");
    }
    if context.trust_chain_verification == i32::from(TrustChainVerification::AcceptUntrusted) {
        report.problem(&at.field("trust_chain_verification"), "mesh peers are always verified");
    }
}

/// The SAN matchers: the typed ones if there are any, else the older ones.
fn read_names(context: &CertificateValidationContext, at: &At<'_>, report: &mut Report) -> Vec<StringMatcher> {
    if context.match_typed_subject_alt_names.is_empty() {
        return matcher::read_strings(&context.match_subject_alt_names, at, "match_subject_alt_names", report);
    }
    let mut names = Vec::with_capacity(context.match_typed_subject_alt_names.len());
    for (i, typed) in context.match_typed_subject_alt_names.iter().enumerate() {
        let at = at.item("match_typed_subject_alt_names", i);
        match (SanType::try_from(typed.san_type), &typed.matcher) {
            (Ok(SanType::Dns | SanType::Uri), Some(name)) => {
                names.extend(matcher::read_string(name, &at.field("matcher"), report));
            }
            (Ok(SanType::IpAddress), Some(name)) => match matcher::read_string(name, &at.field("matcher"), report) {
                Some(name) if is_address(&name) => names.push(name),
                Some(_) => {
                    report.problem(&at.field("matcher"), "an address is compared as a whole: exact, and an address")
                }
                None => {}
            },
            (_, None) => report.problem(&at.field("matcher"), "a matcher is required"),
            _ => report.problem(&at.field("san_type"), "only DNS names, URIs and IP addresses are compared"),
        }
    }
    names
}

/// Among which names of a certificate it is looked for, for Envoys: they look at one kind alone.
fn kind(name: &StringMatcher) -> SanType {
    let text = match &name.pattern {
        StringMatch::Exact(text)
        | StringMatch::Prefix(text)
        | StringMatch::Suffix(text)
        | StringMatch::Contains(text) => text,
        StringMatch::Regex(pattern) => pattern.as_str(),
    };
    if is_address(name) {
        SanType::IpAddress
    } else if text.contains("://") {
        SanType::Uri
    } else {
        SanType::Dns
    }
}

fn is_address(name: &StringMatcher) -> bool {
    matches!(&name.pattern, StringMatch::Exact(text) if text.parse::<std::net::IpAddr>().is_ok())
}

fn read_originated(
    validation: &Validation,
    sni: Option<String>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<OriginatedTls> {
    let at = at.field("validation_context");
    let context = validation.context.as_ref();
    let skip =
        context.is_some_and(|c| c.trust_chain_verification == i32::from(TrustChainVerification::AcceptUntrusted));
    let ca_file = match context.and_then(|c| c.trusted_ca.as_ref()) {
        Some(source) => Some(read_file(Some(source), &at.field("trusted_ca"), report)?),
        None => None,
    };
    let system = context.is_some_and(|c| c.system_root_certs.is_some());
    if ca_file.is_none() && !system && !skip {
        report.problem(&at, "a CA is required: a provider instance, trusted_ca or system_root_certs (gRFC A29)");
        return None;
    }
    let names = context.map(|c| read_names(c, &at, report)).unwrap_or_default();
    let tls =
        OriginatedTls { sni, subject_alt_names: names, ca_file, auto_host_sni: false, insecure_skip_verify: skip };
    Some(tls)
}

fn read_certificate(proto: &TlsCertificate, at: &At<'_>, report: &mut Report) -> Option<ClientCertificate> {
    if proto.private_key_provider.is_some() || proto.pkcs12.is_some() || proto.password.is_some() {
        report.problem(at, "only PEM files without a password are supported");
    }
    let certificate = read_file(proto.certificate_chain.as_ref(), &at.field("certificate_chain"), report);
    let key = read_file(proto.private_key.as_ref(), &at.field("private_key"), report);
    Some(ClientCertificate { certificate_file: certificate?, private_key_file: key? })
}

fn read_file(source: Option<&DataSource>, at: &At<'_>, report: &mut Report) -> Option<String> {
    match source.and_then(|s| s.specifier.as_ref()) {
        Some(Specifier::Filename(path)) if !path.is_empty() => Some(path.clone()),
        _ => {
            report.problem(at, "the name of a file is required");
            None
        }
    }
}
