//! The fields of a protobuf without what they mean: the name of a resource without the resource, and how many parts a
//! message has.

use std::borrow::Cow;

use crate::codec::parts::field;

/// The name that a resource gives itself: field 1 of all four types. Reads nothing else of the protobuf
/// and copies nothing.
pub(super) fn peek(mut bytes: &[u8]) -> Option<Cow<'_, str>> {
    let mut name = None;
    while !bytes.is_empty() {
        let (tag, field) = field(&mut bytes)?;
        // Within a group it would not be the resource's name.
        if matches!(tag & 7, 3 | 4) {
            return None;
        }
        if tag == (1 << 3 | 2) {
            // The last one counts, as everywhere in protobuf.
            name = Some(std::str::from_utf8(field).ok()?);
        }
    }
    name.filter(|name| !name.is_empty()).map(Cow::Borrowed)
}

/// Whether a message has no more than so many fields, repeated ones and those in groups counted each time. What is no
/// protobuf ends where it is none: there whoever reads it stops, too.
pub(super) fn has_at_most(max: usize, mut bytes: &[u8]) -> bool {
    let fields = std::iter::from_fn(|| field(&mut bytes));
    fields.take(max + 1).count() <= max
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec;

    proptest! {
        #[test]
        fn bytes_of_any_sort_give_a_name_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = peek(&bytes);
        }

        #[test]
        fn the_name_is_what_the_whole_message_says(name in "[a-z|.]{1,20}") {
            let resource = codec::encode_cluster(&mesh_core::policy::Cluster::new(name.as_str().into()));
            prop_assert_eq!(peek(&resource.value), Some(Cow::Borrowed(name.as_str())));
        }
    }

    #[test]
    fn fields_are_counted_as_often_as_they_come() {
        let bytes = [0x12, 0, 0x12, 1, 7, 0x10, 1, 0x12, 0];
        assert!(has_at_most(4, &bytes) && !has_at_most(3, &bytes));
        assert!(has_at_most(0, &[]) && has_at_most(0, &[0xff]));
    }

    #[test]
    fn the_last_name_counts_and_unknown_fields_are_passed_over() {
        // name "a", field 2 varint, field 3 fixed32, field 4 fixed64, name "b".
        let bytes = [0x0a, 1, b'a', 0x10, 0x80, 1, 0x1d, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0x0a, 1, b'b'];
        assert_eq!(peek(&bytes).as_deref(), Some("b"));
        let grouped = [0x1b, 0x0a, 1, b'a', 0x1c];
        for broken in [&bytes[..2], &[0x0a, 0xff], &[0x0a, 1, 0xff], &[0x0b], &[0x0a, 0], &grouped, &[]] {
            assert_eq!(peek(broken), None, "{broken:?}");
        }
    }
}
