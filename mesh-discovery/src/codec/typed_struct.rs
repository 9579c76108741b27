//! Configurations that come as JSON, in a `TypedStruct`: what Istio's `EnvoyFilter` recipes are written in. A table of a message's
//! fields turns the JSON into its bytes, from which it is decoded like any other.
//!
//! There are tables of the filters that people write so by hand. A configuration of any other type is of a type that nobody here
//! knows: JSON is for extensions that bring their own reading of it.

use std::any::TypeId;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::{VhRateLimitsOptions, XRateLimitHeadersRfcVersion};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::r#type::v3::StatusCode;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::google::protobuf::{Any, BoolValue, Struct, UInt32Value, Value, value::Kind as Json};
use prost::Message;

use super::extension::{self, url};
use super::report::{At, Report};
use super::{common, parts};

/// Wrappers whose own `type_url` names the real type of a configuration given as a struct.
pub(super) const WRAPPERS: [&str; 2] =
    ["type.googleapis.com/xds.type.v3.TypedStruct", "type.googleapis.com/udpa.type.v1.TypedStruct"];

/// `xds.type.v3.TypedStruct` and `udpa.type.v1.TypedStruct`: a configuration as JSON, and the name of its type.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TypedStruct {
    /// The type of what it stands for.
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    /// A `google.protobuf.Struct`, not unfolded; several are one in pieces.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(super) value: Vec<Vec<u8>>,
}

impl TypedStruct {
    /// What `any` wraps, if it is a wrapper; none within it if it cannot be told.
    pub(super) fn within(any: &Any) -> Option<Option<Self>> {
        WRAPPERS.contains(&any.type_url.as_str()).then(|| Self::decode(any.value.as_slice()).ok())
    }

    /// Whether it has no content.
    pub(super) fn says_nothing(&self) -> bool {
        self.value.iter().all(Vec::is_empty)
    }

    /// Whether its content can be read here.
    pub(super) fn is_read(&self) -> bool {
        [url::RATE_LIMIT, url::FAULT].contains(&self.url().as_str())
    }

    /// What stands behind the last `/` of its type's URL: what is before it says nothing (gRFC A52).
    pub(super) fn name(&self) -> &str {
        extension::behind_slash(&self.type_url)
    }

    /// Its type's URL as we write it.
    pub(super) fn url(&self) -> String {
        format!("{}{}", url::PREFIX, self.name())
    }

    /// Reads the content as an `M`, if that is what it is and there is a table of it.
    pub(super) fn read<M: Message + Default + 'static>(&self, at: &At<'_>, report: &mut Report) -> Option<M> {
        let is = TypeId::of::<M>();
        let fields = match self.url().as_str() {
            url::RATE_LIMIT if is == TypeId::of::<LocalRateLimit>() => LOCAL_RATE_LIMIT,
            url::FAULT if is == TypeId::of::<HttpFault>() => HTTP_FAULT,
            _ => {
                report.problem(at, format!("a TypedStruct of {:?} that says something is not read here", self.name()));
                return None;
            }
        };
        let json = self.content(at, report)?;
        let read = M::decode(message(fields, &json, at, report)?.as_slice());
        read.map_err(|error| report.problem(at, format!("not a {}: {error}", self.type_url))).ok()
    }

    /// What it says.
    pub(super) fn content(&self, at: &At<'_>, report: &mut Report) -> Option<Struct> {
        let packed = self.value.concat();
        if let Err(reason) = parts::check(&packed) {
            report.problem(at, reason);
            return None;
        }
        let read = Struct::decode(packed.as_slice());
        read.map_err(|error| report.problem(at, format!("not a google.protobuf.Struct: {error}"))).ok()
    }
}

/// Beyond it not every whole number is a `f64` of its own.
pub(super) const MAX_WHOLE: f64 = 9_007_199_254_740_992.0;

/// A field of a message.
struct Field {
    name: &'static str,
    tag: u64,
    kind: Kind,
    /// One of several of which one may be set. No message here has two such sets.
    is_choice: bool,
}

/// How a value is written in JSON and in protobuf.
enum Kind {
    Text,
    /// In base64.
    Bytes,
    Bool,
    /// `uint32`.
    Number,
    /// `int64`.
    Signed,
    /// By name or number.
    Enum(fn(&str) -> Option<i32>),
    /// `UInt32Value`.
    OptNumber,
    /// `BoolValue`.
    OptBool,
    Duration,
    Message(&'static [Field]),
    /// A message of which nobody here needs to know more than that it is there.
    Unread,
    List(&'static Kind),
}

/// A value in protobuf's encoding.
enum Wire {
    Varint(u64),
    Bytes(Vec<u8>),
}

const fn field(name: &'static str, tag: u64, kind: Kind) -> Field {
    Field { name, tag, kind, is_choice: false }
}

const fn choice(name: &'static str, tag: u64, kind: Kind) -> Field {
    Field { name, tag, kind, is_choice: true }
}

const LOCAL_RATE_LIMIT: &[Field] = &[
    field("stat_prefix", 1, Kind::Text),
    field("status", 2, Kind::Message(HTTP_STATUS)),
    field("token_bucket", 3, Kind::Message(TOKEN_BUCKET)),
    field("filter_enabled", 4, Kind::Message(RUNTIME_FRACTION)),
    field("filter_enforced", 5, Kind::Message(RUNTIME_FRACTION)),
    field("response_headers_to_add", 6, Kind::List(&Kind::Message(HEADER_WRITE))),
    field("descriptors", 8, Kind::List(&Kind::Unread)),
    field("stage", 9, Kind::Number),
    field("request_headers_to_add_when_not_enforced", 10, Kind::List(&Kind::Message(HEADER_WRITE))),
    field("local_rate_limit_per_downstream_connection", 11, Kind::Bool),
    field(
        "enable_x_ratelimit_headers",
        12,
        Kind::Enum(|name| XRateLimitHeadersRfcVersion::from_str_name(name).map(|value| value as i32)),
    ),
    field("vh_rate_limits", 13, Kind::Enum(|name| VhRateLimitsOptions::from_str_name(name).map(|value| value as i32))),
    field("always_consume_default_token_bucket", 14, Kind::OptBool),
    field("rate_limited_as_resource_exhausted", 15, Kind::Bool),
    field("local_cluster_rate_limit", 16, Kind::Unread),
    field("rate_limits", 17, Kind::List(&Kind::Unread)),
    field("max_dynamic_descriptors", 18, Kind::OptNumber),
    field("enable_retry_after_header", 19, Kind::Bool),
];

const HTTP_STATUS: &[Field] =
    &[field("code", 1, Kind::Enum(|name| StatusCode::from_str_name(name).map(|value| value as i32)))];

const TOKEN_BUCKET: &[Field] = &[
    field("max_tokens", 1, Kind::Number),
    field("tokens_per_fill", 2, Kind::OptNumber),
    field("fill_interval", 3, Kind::Duration),
];

const RUNTIME_FRACTION: &[Field] =
    &[field("default_value", 1, Kind::Message(FRACTION)), field("runtime_key", 2, Kind::Text)];

const FRACTION: &[Field] = &[
    field("numerator", 1, Kind::Number),
    field("denominator", 2, Kind::Enum(|name| DenominatorType::from_str_name(name).map(|value| value as i32))),
];

const HEADER_WRITE: &[Field] = &[
    field("header", 1, Kind::Message(HEADER)),
    field("append", 2, Kind::OptBool),
    field("append_action", 3, Kind::Enum(|name| HeaderAppendAction::from_str_name(name).map(|value| value as i32))),
    field("keep_empty_value", 4, Kind::Bool),
];

const HEADER: &[Field] =
    &[field("key", 1, Kind::Text), field("value", 2, Kind::Text), field("raw_value", 3, Kind::Bytes)];

const HTTP_FAULT: &[Field] = &[
    field("delay", 1, Kind::Message(FAULT_DELAY)),
    field("abort", 2, Kind::Message(FAULT_ABORT)),
    field("upstream_cluster", 3, Kind::Text),
    field("headers", 4, Kind::List(&Kind::Message(HEADER_MATCHER))),
    field("downstream_nodes", 5, Kind::List(&Kind::Text)),
    field("max_active_faults", 6, Kind::OptNumber),
    field("response_rate_limit", 7, Kind::Unread),
    field("delay_percent_runtime", 8, Kind::Text),
    field("abort_percent_runtime", 9, Kind::Text),
    field("delay_duration_runtime", 10, Kind::Text),
    field("abort_http_status_runtime", 11, Kind::Text),
    field("max_active_faults_runtime", 12, Kind::Text),
    field("response_rate_limit_percent_runtime", 13, Kind::Text),
    field("abort_grpc_status_runtime", 14, Kind::Text),
    field("disable_downstream_cluster_stats", 15, Kind::Bool),
    field("filter_metadata", 16, Kind::Unread),
];

const FAULT_DELAY: &[Field] = &[
    choice("fixed_delay", 3, Kind::Duration),
    field("percentage", 4, Kind::Message(FRACTION)),
    choice("header_delay", 5, Kind::Unread),
];

const FAULT_ABORT: &[Field] = &[
    choice("http_status", 2, Kind::Number),
    field("percentage", 3, Kind::Message(FRACTION)),
    choice("header_abort", 4, Kind::Unread),
    choice("grpc_status", 5, Kind::Number),
    field("response_body", 6, Kind::Text),
];

const HEADER_MATCHER: &[Field] = &[
    field("name", 1, Kind::Text),
    choice("exact_match", 4, Kind::Text),
    choice("range_match", 6, Kind::Message(RANGE)),
    choice("present_match", 7, Kind::Bool),
    field("invert_match", 8, Kind::Bool),
    choice("prefix_match", 9, Kind::Text),
    choice("suffix_match", 10, Kind::Text),
    choice("safe_regex_match", 11, Kind::Message(REGEX)),
    choice("contains_match", 12, Kind::Text),
    choice("string_match", 13, Kind::Message(STRING_MATCHER)),
    field("treat_missing_header_as_empty", 14, Kind::Bool),
];

const RANGE: &[Field] = &[field("start", 1, Kind::Signed), field("end", 2, Kind::Signed)];

const REGEX: &[Field] = &[field("google_re2", 1, Kind::Unread), field("regex", 2, Kind::Text)];

const STRING_MATCHER: &[Field] = &[
    choice("exact", 1, Kind::Text),
    choice("prefix", 2, Kind::Text),
    choice("suffix", 3, Kind::Text),
    choice("safe_regex", 5, Kind::Message(REGEX)),
    field("ignore_case", 6, Kind::Bool),
    choice("contains", 7, Kind::Text),
    choice("custom", 8, Kind::Unread),
];

/// The bytes of a message; none if something is wrong with it, of which all is told. Nests as deep as the tables do.
fn message(fields: &[Field], json: &Struct, at: &At<'_>, report: &mut Report) -> Option<Vec<u8>> {
    let mut is_good = true;
    let mut given: BTreeMap<String, (&str, &Value)> = BTreeMap::new();
    for (key, value) in &json.fields {
        let name = as_declared(key);
        if !fields.iter().any(|field| field.name == name) {
            // One of a newer version: in protobuf's encoding it would be skipped.
            report.unenforced(&at.field(key), "there is no such field here");
        } else if given.insert(name, (key, value)).is_some() {
            report.problem(&at.field(key), "the field is given twice");
            is_good = false;
        }
    }
    let mut bytes = Vec::new();
    let mut chosen = None;
    for field in fields {
        let Some((key, value)) = given.get(field.name) else { continue };
        // Null is what is not given.
        if matches!(value.kind, None | Some(Json::NullValue(_))) {
            continue;
        }
        if let Some(other) = chosen.filter(|_| field.is_choice) {
            report.problem(&at.field(key), format!("it may not be set beside {other}"));
            is_good = false;
        }
        chosen = chosen.or(field.is_choice.then_some(field.name));
        is_good &= append(field, (key, value), at, report, &mut bytes).is_some();
    }
    is_good.then_some(bytes)
}

/// Protobuf's JSON has names as they are declared and in camel case.
fn as_declared(key: &str) -> String {
    let mut name = String::with_capacity(key.len());
    for letter in key.chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

fn append(
    field: &Field,
    (key, json): (&str, &Value),
    at: &At<'_>,
    report: &mut Report,
    bytes: &mut Vec<u8>,
) -> Option<()> {
    let Kind::List(of) = &field.kind else {
        write(field.tag, value(&field.kind, json, &at.field(key), report)?, bytes);
        return Some(());
    };
    let Some(Json::ListValue(list)) = &json.kind else {
        report.problem(&at.field(key), "it must be a list");
        return None;
    };
    let mut is_good = true;
    for (i, item) in list.values.iter().enumerate() {
        match value(of, item, &at.item(key, i), report) {
            Some(item) => write(field.tag, item, bytes),
            None => is_good = false,
        }
    }
    is_good.then_some(())
}

fn value(kind: &Kind, json: &Value, at: &At<'_>, report: &mut Report) -> Option<Wire> {
    let json = json.kind.as_ref();
    let read = match (kind, json) {
        (Kind::Text, Some(Json::StringValue(text))) => Some(Wire::Bytes(text.clone().into_bytes())),
        (Kind::Bytes, Some(Json::StringValue(text))) => STANDARD.decode(text).ok().map(Wire::Bytes),
        (Kind::Bool, Some(Json::BoolValue(is))) => Some(Wire::Varint((*is).into())),
        (Kind::OptBool, Some(Json::BoolValue(is))) => Some(Wire::Bytes(BoolValue { value: *is }.encode_to_vec())),
        (Kind::Number, Some(json)) => number(json).map(|value| Wire::Varint(value.into())),
        (Kind::OptNumber, Some(json)) => number(json).map(|value| Wire::Bytes(UInt32Value { value }.encode_to_vec())),
        (Kind::Signed, Some(json)) => integer(json).map(|value| Wire::Varint(value.cast_unsigned())),
        (Kind::Enum(of), Some(Json::StringValue(name))) => {
            of(name).map(|value| Wire::Varint(i64::from(value).cast_unsigned()))
        }
        (Kind::Enum(_), Some(json)) => {
            integer(json).filter(|value| i32::try_from(*value).is_ok()).map(|value| Wire::Varint(value.cast_unsigned()))
        }
        (Kind::Duration, Some(Json::StringValue(text))) => {
            duration(text).map(|value| Wire::Bytes(common::duration(value).encode_to_vec()))
        }
        (Kind::Message(fields), Some(Json::StructValue(json))) => {
            return message(fields, json, at, report).map(Wire::Bytes);
        }
        (Kind::Unread, Some(Json::StructValue(_))) => Some(Wire::Bytes(Vec::new())),
        _ => None,
    };
    if read.is_none() {
        report.problem(at, format!("it must be {}", kind.wanted()));
    }
    read
}

impl Kind {
    fn wanted(&self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Bytes => "a string of base64",
            Self::Bool | Self::OptBool => "true or false",
            Self::Number | Self::OptNumber => "a whole number from 0 to 4294967295",
            Self::Signed => "a whole number",
            Self::Enum(_) => "one of the field's names, or its number",
            Self::Duration => "a duration such as \"60s\"",
            Self::Message(_) | Self::Unread => "an object",
            Self::List(_) => "a list",
        }
    }
}

fn number(json: &Json) -> Option<u32> {
    u32::try_from(integer(json)?).ok()
}

/// Protobuf's JSON has whole numbers as numbers and as texts.
fn integer(json: &Json) -> Option<i64> {
    match json {
        Json::NumberValue(number) if number.fract() == 0.0 && number.abs() <= MAX_WHOLE => Some(*number as i64),
        Json::StringValue(text) => text.parse().ok(),
        _ => None,
    }
}

/// Seconds, with up to nine digits behind the point.
fn duration(text: &str) -> Option<std::time::Duration> {
    let text = text.strip_suffix('s')?;
    let (seconds, part) = text.split_once('.').unwrap_or((text, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(seconds) || !is_digits(part) || part.len() > 9 {
        return None;
    }
    Some(std::time::Duration::new(seconds.parse().ok()?, format!("{part:0<9}").parse().ok()?))
}

fn write(tag: u64, value: Wire, bytes: &mut Vec<u8>) {
    match value {
        Wire::Varint(number) => {
            varint(tag << 3, bytes);
            varint(number, bytes);
        }
        Wire::Bytes(part) => {
            varint(tag << 3 | 2, bytes);
            varint(part.len() as u64, bytes);
            bytes.extend(part);
        }
    }
}

fn varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number > 0x7f {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}
