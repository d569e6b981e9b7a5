use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HeaderMap, LOCATION, PROXY_AUTHORIZATION,
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};

use super::retry::{Outcome, retry_after};
use super::{HttpError, HttpErrorKind, RetryPolicy, shown};

/// Of the body of an answer that says no.
const MAX_REFUSAL: usize = 64 * 1024;
const REFUSAL_PATIENCE: Duration = Duration::from_secs(5);

/// Puts the body into a request; called anew for each try.
pub type Fill = Arc<dyn Fn(RequestBuilder) -> RequestBuilder + Send + Sync>;

#[derive(Clone)]
pub struct HttpRequest {
    pub method: Method,
    pub url: Url,
    /// Those marked as sensitive go to this origin only.
    pub headers: HeaderMap,
    pub fill: Option<Fill>,
    /// Of one try, up to the head of its answer.
    pub timeout: Duration,
    /// Redirects that are followed.
    pub follow: u32,
    pub retry: RetryPolicy,
    /// No wait between tries goes beyond it.
    pub deadline: Instant,
}

struct Failed {
    error: HttpError,
    outcome: Outcome<'static>,
}

/// Makes the request, again where that is allowed and of use. Any status is an answer.
pub async fn send(client: &Client, request: &HttpRequest) -> Result<Response, HttpError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let answer = follow(client, request).await;
        let outcome = match &answer {
            Ok(response) => Outcome::Answer(response.status(), response.headers()),
            Err(failed) => match failed.outcome {
                Outcome::NotSent => Outcome::NotSent,
                Outcome::Broken => Outcome::Broken,
                Outcome::NoAnswer => Outcome::NoAnswer,
                _ => Outcome::Hopeless,
            },
        };
        let wait = request.retry.wait(&request.method, &outcome, tries, SystemTime::now(), rand::random());
        match wait {
            Some(wait) if Instant::now() + wait < request.deadline => tokio::time::sleep(wait).await,
            _ => {
                return answer.map_err(|mut failed| {
                    if tries > 1 {
                        failed.error.message = format!("{} (tried {tries} times)", failed.error.message);
                    }
                    failed.error
                });
            }
        }
    }
}

async fn follow(client: &Client, request: &HttpRequest) -> Result<Response, Failed> {
    let (mut method, mut url) = (request.method.clone(), request.url.clone());
    let (mut headers, mut fill) = (request.headers.clone(), request.fill.clone());
    let hopeless =
        |message: String| Failed { error: HttpError::new(HttpErrorKind::Invalid, message), outcome: Outcome::Hopeless };
    let limit = Instant::now() + request.timeout;
    let mut hops = 0;
    loop {
        let what = format!("{method} {}", shown(&url));
        let builder = client.request(method.clone(), url.clone()).headers(headers.clone());
        let builder = match &fill {
            Some(fill) => fill(builder),
            None => builder,
        };
        let sent = tokio::time::timeout_at(limit.into(), builder.send()).await;
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(cause)) => {
                let outcome = match () {
                    () if cause.is_builder() => Outcome::Hopeless,
                    () if cause.is_connect() => Outcome::NotSent,
                    () => Outcome::Broken,
                };
                return Err(Failed { error: HttpError::of(cause, &what), outcome });
            }
            Err(_) => {
                let timeout = humantime::format_duration(request.timeout);
                let error = HttpError::new(HttpErrorKind::Timeout, format!("{what}: no answer within {timeout}"));
                return Err(Failed { error, outcome: Outcome::NoAnswer });
            }
        };
        let status = response.status();
        let target = match response.headers().get(LOCATION) {
            Some(location) if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) && request.follow > 0 => location,
            _ => return Ok(response),
        };
        if hops >= request.follow {
            return Err(hopeless(format!("{what}: redirected more than {} times", request.follow)));
        }
        let target = target.to_str().ok().and_then(|text| url.join(text).ok());
        let Some(target) = target.filter(|target| matches!(target.scheme(), "http" | "https")) else {
            return Err(hopeless(format!("{what}: redirected to what is no address of HTTP")));
        };
        if target.origin() != url.origin() {
            let secret: Vec<_> =
                headers.iter().filter(|(_, value)| value.is_sensitive()).map(|(name, _)| name.clone()).collect();
            for name in secret.into_iter().chain([AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION]) {
                headers.remove(name);
            }
        }
        let becomes_get = match status {
            StatusCode::SEE_OTHER => method != Method::HEAD,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => method == Method::POST,
            _ => false,
        };
        if becomes_get {
            (method, fill) = (Method::GET, None);
            for name in [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING] {
                headers.remove(name);
            }
        }
        url = target;
        hops += 1;
    }
}

/// The next piece of the body; an error when nothing comes for `idle`.
pub async fn next_chunk(response: &mut Response, idle: Duration, what: &str) -> Result<Option<Bytes>, HttpError> {
    match tokio::time::timeout(idle, response.chunk()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(cause)) => {
            let mut error = HttpError::of(cause, what);
            if error.kind == HttpErrorKind::Invalid {
                error.kind = HttpErrorKind::Connect;
            }
            Err(error)
        }
        Err(_) => {
            let idle = humantime::format_duration(idle);
            Err(HttpError::new(HttpErrorKind::Timeout, format!("{what}: nothing came for {idle}")))
        }
    }
}

/// The error that an answer with this status is, with the beginning of its body.
pub async fn refusal(mut response: Response, what: &str) -> HttpError {
    let status = response.status();
    let headers = response.headers().clone();
    let retry_after = retry_after(&headers, SystemTime::now());
    let mut body = Vec::new();
    let read = async {
        while body.len() < MAX_REFUSAL {
            let Ok(Some(chunk)) = response.chunk().await else { break };
            body.extend_from_slice(&chunk[..chunk.len().min(MAX_REFUSAL - body.len())]);
        }
    };
    let _ = tokio::time::timeout(REFUSAL_PATIENCE, read).await;
    let body = String::from_utf8_lossy(&body).into_owned();
    let message = format!("{what} answered {status}");
    HttpError { kind: HttpErrorKind::Status, status: Some(status.as_u16()), message, retry_after, headers, body }
}
