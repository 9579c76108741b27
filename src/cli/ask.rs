//! One question to a debug port: a GET over plain HTTP/1.0, read to the end of the connection.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest wait for the whole answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const MAX_ANSWER: u64 = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("nothing answers at {address}: {source}; is the control plane running, and is this its debug port?")]
    Io { address: SocketAddr, source: std::io::Error },
    #[error("{address} has not answered within {PATIENCE:?}; it may be hung or overloaded")]
    Late { address: SocketAddr },
    #[error("{address} answered {status:?} to {path}: it is not the debug port of a control plane of this version")]
    Refused { address: SocketAddr, path: String, status: String },
}

/// The body of the page at `path`.
pub(crate) async fn ask(address: SocketAddr, path: &str) -> Result<Vec<u8>, AskError> {
    let answer = timeout(PATIENCE, exchange(address, path)).await.map_err(|_| AskError::Late { address })?;
    let answer = answer.map_err(|source| AskError::Io { address, source })?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(answer.len());
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(AskError::Refused { address, path: path.to_owned(), status: status.to_owned() });
    }
    Ok(answer.get(end + 4..).unwrap_or_default().to_vec())
}

async fn exchange(address: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// A text as a part of a query.
pub(crate) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
