//! A server that speaks as S3 does, as far as objects, parts, lists and signed addresses go. It takes any signature.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;

#[derive(Clone, Default)]
pub struct Object {
    pub content: Bytes,
    pub content_type: String,
    pub cache_control: String,
}

/// An object that comes, and its parts so far.
type Upload = (Object, BTreeMap<u32, Bytes>);

#[derive(Clone)]
pub struct S3 {
    address: SocketAddr,
    objects: Arc<Mutex<BTreeMap<String, Object>>>,
    uploads: Arc<Mutex<HashMap<String, Upload>>>,
    signatures: Arc<Mutex<Vec<String>>>,
    /// Parts that came.
    pub parts: Arc<AtomicUsize>,
    /// Uploads that were taken back.
    pub aborted: Arc<AtomicUsize>,
    /// Answers nothing but the beginning and the taking back of an upload.
    pub stuck: Arc<AtomicBool>,
    says: Arc<AtomicU16>,
}

impl S3 {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            objects: Arc::default(),
            uploads: Arc::default(),
            signatures: Arc::default(),
            parts: Arc::default(),
            aborted: Arc::default(),
            stuck: Arc::default(),
            says: Arc::default(),
        };
        let router = Router::new().fallback(serve).layer(DefaultBodyLimit::disable()).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn object(&self, key: &str) -> Option<Object> {
        self.objects.lock().unwrap().get(key).cloned()
    }

    /// What requests were authorised with.
    pub fn signatures(&self) -> Vec<String> {
        self.signatures.lock().unwrap().clone()
    }

    /// Answers everything with this status.
    pub fn says(&self, status: u16) {
        self.says.store(status, Ordering::SeqCst);
    }
}

async fn serve(
    State(s3): State<S3>,
    method: Method,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    if !query.contains_key("X-Amz-Signature") {
        s3.signatures.lock().unwrap().push(header("authorization"));
    }
    let says = s3.says.load(Ordering::SeqCst);
    if says != 0 {
        return (StatusCode::from_u16(says).unwrap(), "<Error><Code>No</Code></Error>").into_response();
    }
    let key = uri.path().trim_start_matches("/bucket").trim_start_matches('/').to_owned();
    let (upload, begins) = (query.get("uploadId"), query.contains_key("uploads"));
    if query.contains_key("partNumber") {
        s3.parts.fetch_add(1, Ordering::SeqCst);
    }
    if s3.stuck.load(Ordering::SeqCst) && !begins && !(method == Method::DELETE && upload.is_some()) {
        std::future::pending::<()>().await;
    }
    let object =
        Object { content: body.clone(), content_type: header("content-type"), cache_control: header("cache-control") };
    let mut objects = s3.objects.lock().unwrap();
    let mut uploads = s3.uploads.lock().unwrap();
    match (method.as_str(), upload) {
        ("POST", None) if begins => {
            let id = format!("u{}", uploads.len());
            uploads.insert(id.clone(), (object, BTreeMap::new()));
            let xml = "InitiateMultipartUploadResult";
            format!("<{xml}><Bucket>bucket</Bucket><Key>{key}</Key><UploadId>{id}</UploadId></{xml}>").into_response()
        }
        ("POST", None) if query.contains_key("delete") => {
            let text = String::from_utf8(body.to_vec()).unwrap();
            let keys = text.split("<Key>").skip(1).map(|rest| rest.split("</Key>").next().unwrap());
            let mut xml = "<DeleteResult>".to_owned();
            for key in keys {
                objects.remove(key);
                let _ = write!(xml, "<Deleted><Key>{key}</Key></Deleted>");
            }
            (xml + "</DeleteResult>").into_response()
        }
        ("PUT", Some(id)) => {
            let number = query["partNumber"].parse().unwrap();
            match uploads.get_mut(id) {
                Some((_, parts)) => {
                    parts.insert(number, body);
                    [("etag", format!("\"p{number}\""))].into_response()
                }
                // It was taken back.
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
        ("POST", Some(id)) => {
            let (object, parts) = uploads.remove(id).unwrap();
            let content: Vec<u8> = parts.into_values().flatten().collect();
            objects.insert(key.clone(), Object { content: content.into(), ..object });
            let xml = "CompleteMultipartUploadResult";
            format!("<{xml}><Key>{key}</Key><ETag>\"whole\"</ETag></{xml}>").into_response()
        }
        ("DELETE", Some(id)) => {
            uploads.remove(id);
            s3.aborted.fetch_add(1, Ordering::SeqCst);
            StatusCode::NO_CONTENT.into_response()
        }
        ("PUT", None) => {
            objects.insert(key, object);
            [("etag", "\"e\"")].into_response()
        }
        ("DELETE", None) => {
            objects.remove(&key);
            StatusCode::NO_CONTENT.into_response()
        }
        ("GET", None) if query.contains_key("list-type") => {
            let prefix = query.get("prefix").cloned().unwrap_or_default();
            let mut xml = "<ListBucketResult><IsTruncated>false</IsTruncated>".to_owned();
            for (key, object) in objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
                let size = object.content.len();
                let date = "2026-01-01T00:00:00.000Z";
                let _ = write!(
                    xml,
                    "<Contents><Key>{key}</Key><LastModified>{date}</LastModified><ETag>\"e\"</ETag><Size>{size}</Size></Contents>"
                );
            }
            (xml + "</ListBucketResult>").into_response()
        }
        _ => match objects.get(&key) {
            Some(object) => {
                let headers = [
                    ("etag", "\"e\"".to_owned()),
                    ("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT".to_owned()),
                    ("content-type", object.content_type.clone()),
                ];
                (headers, object.content.clone()).into_response()
            }
            None => (StatusCode::NOT_FOUND, "<Error><Code>NoSuchKey</Code></Error>").into_response(),
        },
    }
}
