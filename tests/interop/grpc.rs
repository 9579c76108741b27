//! gRPC by hand, one unary method whose answer is a text: as much of it as these tests need on both sides.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};

/// The one method.
pub(crate) const METHOD: &str = "/mesh.interop.Backend/Name";

/// A call of the method at `origin`, such as `http://reviews:9080`.
pub(crate) fn request<B: From<Bytes>>(origin: &str, metadata: &[(&str, &str)]) -> Request<B> {
    let mut request =
        Request::post(format!("{origin}{METHOD}")).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in metadata {
        request = request.header(*name, *value);
    }
    request.body(message(b"").into()).unwrap()
}

/// The answer to it.
pub(crate) fn answer(text: &str) -> Response<impl Body<Data = Bytes, Error = Infallible> + use<>> {
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
    let body = Full::new(message(text.as_bytes())).with_trailers(async { Some(Ok(trailers)) });
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

/// The text of an answer, or what is wrong with it.
pub(crate) async fn read<B>(response: Response<B>) -> Result<String, String>
where
    B: Body<Data = Bytes, Error: std::fmt::Display>,
{
    let (head, body) = response.into_parts();
    let collected = body.collect().await.map_err(|error| format!("the answer broke off: {error}"))?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let bytes = collected.to_bytes();
    let field = |name: &str| trailers.get(name).or(head.headers.get(name)).and_then(|value| value.to_str().ok());
    match (head.status.as_u16(), field("grpc-status")) {
        (200, Some("0")) => Ok(String::from_utf8_lossy(bytes.get(5..).unwrap_or_default()).into_owned()),
        (status, code) => Err(format!("{status}, grpc-status {code:?}, {:?}", field("grpc-message"))),
    }
}

/// A gRPC message: not compressed, length, bytes.
fn message(text: &[u8]) -> Bytes {
    let length = u32::try_from(text.len()).expect("texts are short").to_be_bytes();
    [&[0], &length[..], text].concat().into()
}
