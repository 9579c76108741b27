//! Parts of RBAC beside its rules: the audit log (gRFC A59) and conditions on what earlier filters found
//! out.

use envoy_types::pb::envoy::config::rbac::v3::rbac::{
    AuditLoggingOptions as Proto,
    audit_logging_options::{AuditCondition as ConditionProto, AuditLoggerConfig},
};
use envoy_types::pb::envoy::extensions::rbac::audit_loggers::stream::v3::StdoutAuditLog;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    ListMatcher, MetadataMatcher, OrMatcher, ValueMatcher, list_matcher,
    metadata_matcher::{PathSegment, path_segment::Segment},
    value_matcher::MatchPattern,
};
use mesh_core::policy::{AuditCondition, MetadataMatch, MetadataValue, StringMatcher};

use super::extension::{self, url};
use super::matcher;
use super::report::{At, Report};

pub(super) fn encode(audit: AuditCondition) -> Option<Proto> {
    let condition = match audit {
        AuditCondition::None => return None,
        AuditCondition::OnDeny => ConditionProto::OnDeny,
        AuditCondition::OnAllow => ConditionProto::OnAllow,
        AuditCondition::Both => ConditionProto::OnDenyAndAllow,
    };
    let logger = extension::typed("envoy.rbac.audit_loggers.stdout", url::STDOUT_AUDIT, &StdoutAuditLog {});
    let logger_configs = vec![AuditLoggerConfig { audit_logger: Some(logger), is_optional: false }];
    Some(Proto { audit_condition: condition.into(), logger_configs })
}

/// Decodes what is audited. Without a logger that is known nothing is.
pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> AuditCondition {
    let mut known = false;
    for (i, logger) in proto.logger_configs.iter().enumerate() {
        let at = at.item("logger_configs", i);
        let config = logger.audit_logger.as_ref().and_then(|l| l.typed_config.as_ref());
        match config.map(extension::type_of) {
            Some(kind) if kind == url::STDOUT_AUDIT => known = true,
            _ if logger.is_optional => report.unenforced(&at, "an unknown audit logger gets no entries"),
            kind => report.problem(
                &at,
                format!("the audit logger {:?} is not known and not optional (gRFC A59)", kind.unwrap_or_default()),
            ),
        }
    }
    match ConditionProto::try_from(proto.audit_condition) {
        Ok(_) if !known => AuditCondition::None,
        Ok(ConditionProto::None) => AuditCondition::None,
        Ok(ConditionProto::OnDeny) => AuditCondition::OnDeny,
        Ok(ConditionProto::OnAllow) => AuditCondition::OnAllow,
        Ok(ConditionProto::OnDenyAndAllow) => AuditCondition::Both,
        Err(_) => {
            report.problem(&at.field("audit_condition"), format!("{} is not known", proto.audit_condition));
            AuditCondition::None
        }
    }
}

pub(super) fn encode_metadata(condition: &MetadataMatch) -> MetadataMatcher {
    let path = condition.path.iter().map(|key| PathSegment { segment: Some(Segment::Key(key.clone())) });
    MetadataMatcher {
        filter: condition.filter.clone(),
        path: path.collect(),
        value: Some(encode_value(&condition.value)),
        invert: condition.invert,
    }
}

fn encode_value(value: &MetadataValue) -> ValueMatcher {
    let text = |text: &StringMatcher| MatchPattern::StringMatch(matcher::string(text));
    let pattern = match value {
        MetadataValue::Present(present) => MatchPattern::PresentMatch(*present),
        MetadataValue::Bool(value) => MatchPattern::BoolMatch(*value),
        MetadataValue::Text(want) => text(want),
        MetadataValue::AnyText(want) => {
            let one = Box::new(ValueMatcher { match_pattern: Some(text(want)) });
            MatchPattern::ListMatch(Box::new(ListMatcher {
                match_pattern: Some(list_matcher::MatchPattern::OneOf(one)),
            }))
        }
        MetadataValue::OneOf(list) => {
            MatchPattern::OrMatch(OrMatcher { value_matchers: list.iter().map(encode_value).collect() })
        }
    };
    ValueMatcher { match_pattern: Some(pattern) }
}

pub(super) fn read_metadata(proto: &MetadataMatcher, at: &At<'_>, report: &mut Report) -> Option<MetadataMatch> {
    let path = proto.path.iter().map(|segment| match &segment.segment {
        Some(Segment::Key(key)) if !key.is_empty() => Some(key.clone()),
        _ => None,
    });
    let path: Option<Vec<String>> = path.collect();
    let path = path.filter(|path| !path.is_empty());
    if path.is_none() || proto.filter.is_empty() {
        report.problem(at, "the name of a filter and keys that lead to a value are required");
    }
    let at_value = at.field("value");
    let value = match &proto.value {
        Some(value) => read_value(value, &at_value, report),
        None => {
            report.problem(&at_value, "a value is required");
            None
        }
    };
    Some(MetadataMatch { filter: proto.filter.clone(), path: path?, value: value?, invert: proto.invert })
}

/// Reads what is asked of a value. Depth is bounded by protobuf's own limit on nesting.
fn read_value(proto: &ValueMatcher, at: &At<'_>, report: &mut Report) -> Option<MetadataValue> {
    match proto.match_pattern.as_ref() {
        Some(MatchPattern::PresentMatch(present)) => Some(MetadataValue::Present(*present)),
        Some(MatchPattern::BoolMatch(value)) => Some(MetadataValue::Bool(*value)),
        Some(MatchPattern::StringMatch(text)) => {
            matcher::read_string(text, &at.field("string_match"), report).map(MetadataValue::Text)
        }
        Some(MatchPattern::ListMatch(list)) => {
            let at = at.field("list_match.one_of");
            match &list.match_pattern {
                Some(list_matcher::MatchPattern::OneOf(one)) => {
                    let one = read_value(one, &at, report)?;
                    let of_list = of_list(one);
                    if of_list.is_none() {
                        report.problem(&at, "only texts can be asked for in a list");
                    }
                    of_list
                }
                None => {
                    report.problem(&at, "what one of the list must be is required");
                    None
                }
            }
        }
        Some(MatchPattern::OrMatch(or)) => {
            let at = at.field("or_match.value_matchers");
            if or.value_matchers.is_empty() {
                report.problem(&at, "at least one is required");
                return None;
            }
            let list: Option<_> = or.value_matchers.iter().map(|value| read_value(value, &at, report)).collect();
            list.map(MetadataValue::OneOf)
        }
        Some(MatchPattern::NullMatch(_) | MatchPattern::DoubleMatch(_)) | None => {
            report.problem(at, "only texts, lists of them, truth values and presence can be asked for");
            None
        }
    }
}

/// What is asked of one of a list, asked of the list.
fn of_list(one: MetadataValue) -> Option<MetadataValue> {
    match one {
        MetadataValue::Text(text) => Some(MetadataValue::AnyText(text)),
        MetadataValue::OneOf(list) => list.into_iter().map(of_list).collect::<Option<_>>().map(MetadataValue::OneOf),
        MetadataValue::Present(_) | MetadataValue::Bool(_) | MetadataValue::AnyText(_) => None,
    }
}
