//! Fields of a protobuf message, one after the other: for the few small messages that are read where there is no
//! generated code. Refuses to know any message.

/// What a field holds, as far as its wire type tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'b> {
    /// A varint.
    Number(u64),
    /// Eight bytes, read as a double.
    Double(f64),
    /// Text, bytes or a message.
    Bytes(&'b [u8]),
    /// Four bytes.
    Other,
}

/// Takes the next field off `bytes`: its number and value. `None` if there is none, or it is cut off or of no known type.
pub fn field<'b>(bytes: &mut &'b [u8]) -> Option<(u64, Value<'b>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Value::Number(varint(bytes)?),
        1 => {
            let (value, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Value::Double(f64::from_le_bytes(*value))
        }
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            let (value, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            Value::Bytes(value)
        }
        5 => {
            *bytes = bytes.get(4..)?;
            Value::Other
        }
        // Groups are older than the message.
        _ => return None,
    };
    Some((key >> 3, value))
}

/// Takes a number off `bytes`. `None` if it is cut off or too large.
pub fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            // The tenth has room for one bit.
            return (shift < 63 || *byte < 2).then_some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_taken_one_by_one_and_what_is_cut_off_is_none() {
        let all = [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 1, 2, 3, 4, 0x21, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f];
        let mut rest = &all[..];
        let want = [(1, Value::Number(150)), (2, Value::Bytes(b"hi")), (3, Value::Other), (4, Value::Double(1.0))];
        for one in want {
            assert_eq!(field(&mut rest), Some(one));
        }
        assert!(rest.is_empty());
        for cut in [
            &[0x08][..],
            &[0x12, 3, b'h'],
            &[0x1d, 1],
            &[0x21, 1],
            &[0x0b],
            &[0xff; 11],
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
        ] {
            assert_eq!(field(&mut { cut }), None, "{cut:?}");
        }
    }
}
