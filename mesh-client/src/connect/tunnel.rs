//! A tunnel through an HTTP proxy (`CONNECT`, RFC 9110 section 9.3.6; gRFC A86).
//!
//! Refuses to know what goes through it: TLS to the endpoint comes after.

use std::io;

use mesh_core::policy::Address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::IoStream;

/// Longest head of a proxy's answer.
const LONGEST: usize = 8 * 1024;

/// Asks the proxy at the other end of `io` to connect to `to`.
///
/// # Errors
/// The proxy says anything but 2xx, or nothing that is HTTP.
pub(super) async fn through(mut io: IoStream, to: &Address) -> io::Result<IoStream> {
    if matches!(to, Address::Unix(_)) {
        return Err(io::Error::other("a proxy cannot connect to a unix socket"));
    }
    let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
    io.write_all(request.as_bytes()).await?;
    io.flush().await?;
    let head = head(&mut io).await?;
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let status = match (words.next(), words.next()) {
        (Some(version), Some(status)) if version.starts_with("HTTP/1.") && status.len() == 3 => status,
        _ => return Err(io::Error::other("the proxy does not speak HTTP")),
    };
    if status.starts_with('2') {
        Ok(io)
    } else {
        Err(io::Error::other(format!("the proxy says {line:?} to CONNECT {to}")))
    }
}

/// Everything up to the empty line and not a byte more: what follows is the endpoint's.
async fn head(io: &mut IoStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(128);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == LONGEST {
            return Err(io::Error::other("the proxy's answer has no end"));
        }
        head.push(io.read_u8().await?);
    }
    Ok(head)
}
