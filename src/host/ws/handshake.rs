use std::time::Duration;

use reqwest::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{Client, StatusCode, Upgraded, Url};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::host::http::{HttpError, HttpErrorKind, refusal, shown};

/// Where to connect to, and how the connection is kept.
#[derive(Clone)]
pub struct WsRequest {
    /// Of scheme `http` or `https`, as the request that opens the connection is one of HTTP.
    pub url: Url,
    pub headers: HeaderMap,
    pub options: WsOptions,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WsOptions {
    pub subprotocols: Vec<String>,
    /// Of the handshake.
    pub timeout: Duration,
    /// A ping goes out this often.
    pub ping: Duration,
    /// The longest silence; answers to pings break it.
    pub idle: Duration,
    pub max_message: u64,
}

impl WsRequest {
    /// `GET ws://host/path`, for errors.
    pub fn what(&self) -> String {
        format!("websocket {}", shown(&self.url).replacen("http", "ws", 1))
    }
}

/// Opens a connection.
pub async fn open(client: &Client, request: &WsRequest) -> Result<WebSocketStream<Upgraded>, HttpError> {
    let handshake = shake_hands(client, request);
    tokio::time::timeout(request.options.timeout, handshake).await.unwrap_or_else(|_| {
        let limit = humantime::format_duration(request.options.timeout);
        let message = format!("{}: no answer within {limit}", request.what());
        Err(HttpError::new(HttpErrorKind::Timeout, message))
    })
}

async fn shake_hands(client: &Client, request: &WsRequest) -> Result<WebSocketStream<Upgraded>, HttpError> {
    let what = request.what();
    let key = generate_key();
    let mut builder = client
        .get(request.url.clone())
        .headers(request.headers.clone())
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key);
    let wanted = &request.options.subprotocols;
    if !wanted.is_empty() {
        builder = builder.header(SEC_WEBSOCKET_PROTOCOL, wanted.join(", "));
    }
    let response = builder.send().await.map_err(|cause| HttpError::of(cause, &what))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let mut cause = refusal(response, &what).await;
        if cause.status.is_some_and(|status| status < 400) {
            cause.kind = HttpErrorKind::Invalid;
            cause.message = format!("{}, which is no websocket", cause.message);
        }
        return Err(cause);
    }
    let invalid = |why: &str| HttpError::new(HttpErrorKind::Invalid, format!("{what}: {why}"));
    let accepted = derive_accept_key(key.as_bytes());
    if response.headers().get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes) != Some(accepted.as_bytes()) {
        return Err(invalid("the server did not accept the key, so it speaks no websocket"));
    }
    if let Some(chosen) = response.headers().get(SEC_WEBSOCKET_PROTOCOL)
        && !wanted.iter().any(|name| name.as_bytes() == chosen.as_bytes())
    {
        return Err(invalid("the server chose a subprotocol that nobody asked for"));
    }
    let upgraded = response.upgrade().await.map_err(|cause| HttpError::of(cause, &what))?;
    let limit = usize::try_from(request.options.max_message).unwrap_or(usize::MAX);
    let config = WebSocketConfig::default().max_message_size(Some(limit)).max_frame_size(Some(limit));
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await)
}
