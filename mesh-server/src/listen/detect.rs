//! HTTP/1 or HTTP/2, told by the first bytes: by what the peer sends, not by what ALPN promised.

use std::io;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::stream::{Detected, Stream};

/// What begins every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8; DETECT_LEN] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DETECT_LEN: usize = 24;

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    Http1,
    Http2,
}

/// Reads as much as it takes to know the protocol. The caller sets the time limit: a peer that sends
/// half a preface and stops would otherwise stay for ever.
///
/// # Errors
/// The peer closed before it sent anything (`UnexpectedEof`), or reading failed.
pub(crate) async fn detect(mut stream: Stream) -> io::Result<(HttpVersion, Detected)> {
    let mut seen = [0; DETECT_LEN];
    let mut filled = 0;
    let mut since = None;
    let version = loop {
        let read = stream.read(&mut seen[filled..]).await?;
        filled += read;
        since.get_or_insert_with(Instant::now);
        if filled == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if read == 0 || seen[..filled] != PREFACE[..filled] {
            break HttpVersion::Http1;
        }
        if filled == DETECT_LEN {
            break HttpVersion::Http2;
        }
    };
    let since = since.unwrap_or_else(Instant::now);
    let seen = BytesMut::from(&seen[..filled]);
    Ok((version, Detected { stream, seen, since, frames: None, messages: None, tether: None }))
}
