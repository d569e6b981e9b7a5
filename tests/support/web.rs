//! A web server with the manners, good and bad, of those that connectors speak to; with TLS in front of it where asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{any, get};
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

#[derive(Clone, Default)]
pub struct Seen {
    /// How often each address was asked for.
    counts: Arc<Mutex<HashMap<String, usize>>>,
    /// Answers that are being made.
    pub open: Arc<AtomicUsize>,
}

impl Seen {
    fn count(&self, key: &str) -> usize {
        let mut counts = self.counts.lock().unwrap();
        let count = counts.entry(key.to_owned()).or_default();
        *count += 1;
        *count
    }

    pub fn times(&self, key: &str) -> usize {
        self.counts.lock().unwrap().get(key).copied().unwrap_or_default()
    }
}

pub struct Web {
    pub address: SocketAddr,
    pub seen: Seen,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Web {
    pub async fn start() -> Self {
        Self::start_with(Router::new()).await
    }

    /// With more routes.
    pub async fn start_with(more: Router<Seen>) -> Self {
        let seen = Seen::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/echo", any(echo))
            .route("/status/{status}", any(status))
            .route("/flaky/{name}/{failures}", any(flaky))
            .route("/limited", any(limited))
            .route("/slow", any(slow))
            .route("/huge/{bytes}", get(huge))
            .route("/stuck", get(stuck))
            .route("/redirect/{n}", any(redirect))
            .route("/away", any(away))
            .route("/upload", any(upload))
            .route("/sse", get(sse))
            .route("/ndjson", get(ndjson))
            .merge(more)
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(seen.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, seen }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// What it was sent.
async fn echo(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let headers: HashMap<String, String> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let answer = json!({
        "method": method.as_str(), "query": uri.query(), "headers": headers, "body": String::from_utf8_lossy(&body),
    });
    ([("x-Mixed-Case", "yes")], axum::Json(answer)).into_response()
}

/// Says no, and repeats the authorization it was shown.
async fn status(Path(status): Path<u16>, headers: HeaderMap, seen: State<Seen>) -> Response {
    seen.count(&format!("/status/{status}"));
    let shown = headers.get("authorization").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let body = format!("{{\"error\": \"no {}\"}}", shown.unwrap_or_default());
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

async fn flaky(Path((name, failures)): Path<(String, usize)>, seen: State<Seen>) -> Response {
    let count = seen.count(&name);
    if count <= failures {
        return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0.01")], "not yet").into_response();
    }
    count.to_string().into_response()
}

async fn limited(seen: State<Seen>) -> Response {
    seen.count("/limited");
    (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "30")], "slow down").into_response()
}

async fn slow(seen: State<Seen>) -> &'static str {
    seen.count("/slow");
    seen.open.fetch_add(1, Ordering::SeqCst);
    let _open = Open(Arc::clone(&seen.open));
    tokio::time::sleep(Duration::from_secs(600)).await;
    "at last"
}

async fn huge(Path(bytes): Path<usize>) -> Response {
    let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
    let whole = bytes / chunk.len();
    let rest = chunk.slice(..bytes % chunk.len());
    let pieces = std::iter::repeat_n(chunk, whole).chain([rest]).map(Ok::<_, std::convert::Infallible>);
    Body::from_stream(stream::iter(pieces)).into_response()
}

/// The head and one piece, then nothing more.
async fn stuck() -> Response {
    let first = stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from("data: one\n\n"))]);
    Body::from_stream(first.chain(stream::pending())).into_response()
}

async fn redirect(Path(n): Path<u32>) -> Redirect {
    if n == 0 { Redirect::to("/echo") } else { Redirect::to(&format!("/redirect/{}", n - 1)) }
}

async fn away(Query(query): Query<HashMap<String, String>>) -> Redirect {
    Redirect::temporary(&query["to"])
}

/// The head of each part of a form, and the length of its content.
async fn upload(headers: HeaderMap, body: Bytes) -> Response {
    let kind = headers["content-type"].to_str().unwrap();
    let boundary = format!("--{}", kind.split_once("boundary=").unwrap().1);
    let begin = format!("{boundary}\r\n");
    let body = String::from_utf8(body.to_vec()).unwrap();
    let body = body.strip_suffix(&format!("{boundary}--\r\n")).unwrap();
    let parts = body.split(&begin).skip(1).map(|part| {
        let (head, content) = part.split_once("\r\n\r\n").unwrap();
        let head: Vec<String> = head.lines().map(str::to_lowercase).collect();
        json!([head.join(", "), content.strip_suffix("\r\n").unwrap().len()])
    });
    axum::Json(parts.collect::<Vec<_>>()).into_response()
}

async fn sse(headers: HeaderMap) -> Response {
    let after = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse::<u32>().ok()).unwrap_or(0);
    let text = (after + 1..=3).fold(String::from(": hi\n\n"), |text, n| {
        format!("{text}id: {n}\nevent: tick\ndata: {{\"n\":\ndata: {n}}}\n\n")
    });
    // Cut where it hurts.
    let pieces: Vec<Bytes> = text.as_bytes().chunks(7).map(Bytes::copy_from_slice).collect();
    Body::from_stream(stream::iter(pieces).map(Ok::<_, std::convert::Infallible>)).into_response()
}

async fn ndjson() -> Response {
    let pieces = ["{\"n\":1}\n{\"n\"", ":2}\r\n\n{\"n\":", "3}"];
    Body::from_stream(stream::iter(pieces).map(Ok::<_, std::convert::Infallible>)).into_response()
}

/// Reads one request and answers with `answer` as it is, for each connection; gives back the heads it read.
pub async fn raw_server(answer: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            seen.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, heads)
}

/// TLS for `localhost` in front of `target`, with a certificate whose authority is in the file.
pub async fn tls_in_front(target: SocketAddr, dir: &std::path::Path) -> (SocketAddr, PathBuf) {
    let script = "set -e
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj '/CN=test authority'
        openssl req -newkey rsa:2048 -nodes -keyout key.pem -out leaf.csr -subj '/CN=localhost'
        printf 'subjectAltName=DNS:localhost\\nextendedKeyUsage=serverAuth\\n' >leaf.ext
        openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile leaf.ext -out leaf.pem";
    let made = Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(dir.join("leaf.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_no_client_auth().with_single_cert(certificates, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut inner = TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut inner).await;
            });
        }
    });
    (address, dir.join("ca.pem"))
}
