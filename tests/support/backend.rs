//! A backend of connectors: answers as a test says, and remembers what it was asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Query;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tokio::net::TcpListener;

#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET /path`.
    pub what: String,
    pub query: HashMap<String, String>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Asked {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

pub struct Backend {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Backend {
    /// `answer` gets each request, and how often the same was asked before.
    pub async fn start(answer: impl Fn(&Asked, usize) -> Response + Send + Sync + 'static) -> Self {
        Self::start_with(Router::new(), answer).await
    }

    /// With routes beside it.
    pub async fn start_with(more: Router, answer: impl Fn(&Asked, usize) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (seen, answer) = (Arc::clone(&asked), Arc::new(answer));
        let serve = move |method: Method, uri: Uri, query: Query<HashMap<String, String>>, headers, body| {
            let asked = Asked { what: format!("{method} {}", uri.path()), query: query.0, headers, body };
            let mut seen = seen.lock().unwrap();
            let before = seen.iter().filter(|other| other.what == asked.what).count();
            seen.push(asked.clone());
            drop(seen);
            let response = answer(&asked, before);
            async move { response }
        };
        let router = more.fallback(serve).layer(axum::extract::DefaultBodyLimit::disable());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, asked }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked by this method and path.
    pub fn asked(&self, what: &str) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().filter(|asked| asked.what == what).cloned().collect()
    }

    pub fn all(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|asked| asked.what.clone()).collect()
    }
}

pub fn answer(status: u16, body: &Value) -> Response {
    (axum::http::StatusCode::from_u16(status).unwrap(), axum::Json(body.clone())).into_response()
}

/// A body that comes in these pieces, and then breaks, never ends, or ends.
pub fn pieces(pieces: &[&str], end: End) -> Response {
    let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece.as_bytes()))).collect();
    let pieces = stream::iter(pieces);
    match end {
        End::Whole => Body::from_stream(pieces),
        // What came before is on its way by then.
        End::Broken => Body::from_stream(pieces.chain(stream::once(async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Err(std::io::Error::other("broken"))
        }))),
        End::Never => Body::from_stream(pieces.chain(stream::pending())),
    }
    .into_response()
}

#[derive(Clone, Copy)]
pub enum End {
    Whole,
    Broken,
    Never,
}
