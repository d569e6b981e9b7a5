use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::server::AdminDeps;

/// Lets a request that changes something pass only with the token; without one set, only from this host and not on behalf
/// of a web page.
pub(super) async fn require(State(deps): State<AdminDeps>, request: Request, next: Next) -> Result<Response, ApiError> {
    match &deps.token {
        Some(token) => match bearer(request.headers()) {
            Some(given) if equal(given, token.reveal()) => {}
            Some(_) => return Err(ApiError::unauthorized("the token is wrong")),
            None => {
                return Err(ApiError::unauthorized("this needs the machine's token")
                    .help("send Authorization: Bearer TOKEN; the CLI takes --token or MACHINIST_TOKEN"));
            }
        },
        None if !deps.loopback => {
            return Err(ApiError::forbidden("this machine listens beyond loopback and has no token")
                .help("set http.token (MACHINIST_TOKEN) and restart the machine"));
        }
        None => local(request.headers())?,
    }
    Ok(next.run(request).await)
}

/// Reading needs no token. Who listens on loopback means to be read from this host, by which a web page whose name resolves
/// to loopback (DNS rebinding) is not meant: payloads and logs are nobody else's.
pub(super) async fn readable(
    State(deps): State<AdminDeps>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let headers = request.headers();
    let told = || deps.token.as_ref().zip(bearer(headers)).is_some_and(|(token, given)| equal(given, token.reveal()));
    // Browsers send the name; probes of the oldest kind send none.
    if deps.loopback && headers.contains_key(header::HOST) && !told() {
        local(headers)?;
    }
    Ok(next.run(request).await)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// A web page that somebody on this host has open must not reach us: neither by its own origin, nor by a name of its own
/// that resolves to loopback.
fn local(headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or("");
    let origin = headers.get(header::ORIGIN).map(|value| value.to_str().unwrap_or("?"));
    let origin_host = origin.map(|origin| origin.split_once("://").map_or(origin, |(_, rest)| rest));
    if is_loopback(host) && origin_host.is_none_or(is_loopback) {
        Ok(())
    } else {
        Err(ApiError::forbidden("without a token only requests of this host to a loopback address are taken")
            .help("use http://127.0.0.1, or set http.token (MACHINIST_TOKEN) and send it"))
    }
}

/// A WebSocket is not held to the origin of the page that opens it, as other requests are: a page may open one to the machine
/// that it came from only.
pub(super) fn same_origin(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).unwrap_or("");
    match text(header::ORIGIN).map(|origin| origin.split_once("://").map_or(origin, |(_, rest)| rest)) {
        Some(origin) if origin != host => Err(ApiError::forbidden("a page of another origin may not read this")),
        _ => Ok(()),
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => authority.split(':').next().unwrap_or(""),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Takes the same time wherever the two differ.
fn equal(given: &str, token: &str) -> bool {
    let (given, token) = (Sha256::digest(given), Sha256::digest(token));
    given.iter().zip(token.iter()).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names_are_told_from_others() {
        for good in ["localhost", "localhost:9090", "127.0.0.1:9090", "127.8.8.8", "[::1]:9090"] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in ["", "example.com", "localhost.example.com:80", "127.0.0.1.example.com", "[::2]", "10.0.0.1"] {
            assert!(!is_loopback(bad), "{bad}");
        }
        assert!(equal("abc", "abc") && !equal("abc", "abd") && !equal("", "abd"));
    }
}
