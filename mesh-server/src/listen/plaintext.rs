//! Telling plaintext from TLS, and saying no to plaintext in words that its sender can read.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use mesh_core::error::Code;

/// Whether a connection that begins so is TLS: content type 22, a handshake record.
pub(crate) fn is_tls(first: &[u8]) -> bool {
    first.first() == Some(&0x16)
}

/// Whether a connection that begins so speaks HTTP/1: an upper-case method that is not HTTP/2's `PRI`.
pub(crate) fn looks_like_http1(first: &[u8]) -> bool {
    let preface = b"PRI * HTTP/2";
    let http2 = first.iter().zip(preface).all(|(got, want)| got == want);
    first.first().is_some_and(u8::is_ascii_uppercase) && !http2
}

/// How long the peer gets to read the refusal.
const LINGER: Duration = Duration::from_secs(1);
/// How many bytes of its request are read and thrown away meanwhile.
const LINGER_BYTES: u64 = 64 * 1024;

/// Answers a plaintext HTTP/1 request that may not be served, without reading it, and closes.
///
/// What the peer has sent is read away first: closing a socket with unread bytes resets it, and a reset
/// may overtake the answer.
pub(crate) async fn refuse_plaintext(mut tcp: TcpStream) {
    let code = Code::PLAINTEXT_REFUSED;
    let text = format!("{code}: this port accepts mutual TLS only. To fix it: {}.\n", code.remedy());
    let status = code.http_status();
    let answer = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        text.len(),
    );
    let farewell = async {
        tcp.write_all(answer.as_bytes()).await?;
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    // Whether the peer listened is its own affair.
    let _ = timeout(LINGER, farewell).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_protocols_apart() {
        assert!(is_tls(&[0x16, 3, 1]));
        assert!(!is_tls(b"GET"));
        assert!(!is_tls(b""));
        assert!(looks_like_http1(b"GET / HTTP/1.1"));
        assert!(looks_like_http1(b"PROPFIND / HTTP/1.1"));
        assert!(!looks_like_http1(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
        assert!(!looks_like_http1(b"PRI"));
        assert!(!looks_like_http1(&[0x16]));
        assert!(!looks_like_http1(b"\0\0"));
        assert!(!looks_like_http1(b""));
    }
}
