//! gRPC's framing of messages on a stream: a byte of flags and a length before each.

use bytes::{BufMut, Bytes, BytesMut};

/// A message with its frame.
pub fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + HEAD);
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

/// Takes messages out of the bytes of a stream as they come.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

const HEAD: usize = 5;
/// Bytes of the longest message; a report is far shorter.
const LONGEST: usize = 64 * 1024;

impl Frames {
    /// Takes further bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next message, if it is here as a whole.
    ///
    /// # Errors
    /// What is wrong with the stream; it can be read no further.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, &'static str> {
        let Some((head, rest)) = self.0.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [flags, length @ ..] = *head;
        let length = u32::from_be_bytes(length) as usize;
        if flags != 0 {
            return Err("a message is compressed, which was not asked for");
        }
        if length > LONGEST {
            return Err("a message is longer than 64 KiB");
        }
        if rest.len() < length {
            return Ok(None);
        }
        let message = rest[..length].to_vec();
        self.0.drain(..HEAD + length);
        Ok(Some(message))
    }
}
