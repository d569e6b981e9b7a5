use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Proxy};

use super::{HttpError, HttpErrorKind, cause_text};

const CONNECT: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(90);
/// Proxies and certificates that are in use at one time; more than people have.
const MAX_CLIENTS: usize = 32;

/// One pool of connections for all requests that go the same way. Clones share the pools.
#[derive(Clone, Default)]
pub struct HttpClients(Arc<Mutex<HashMap<ClientOptions, Client>>>);

/// What a pool of connections depends on.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct ClientOptions {
    /// An address, or `none`; the environment decides where nothing is said.
    pub proxy: Option<String>,
    /// Certificates in PEM that are trusted beside the system's.
    pub ca: Option<Vec<u8>>,
}

impl HttpClients {
    pub fn get(&self, options: &ClientOptions) -> Result<Client, HttpError> {
        // Nothing between lock and unlock can leave the map half changed.
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(options) {
            return Ok(client.clone());
        }
        let client = build(options)?;
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(options.clone(), client.clone());
        Ok(client)
    }
}

fn build(options: &ClientOptions) -> Result<Client, HttpError> {
    let invalid = |what: &str| {
        let what = what.to_owned();
        move |cause: reqwest::Error| HttpError::new(HttpErrorKind::Invalid, format!("{what}: {}", cause_text(cause)))
    };
    // Fails where one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Redirects are followed one by one, so that each request has its own limit and credentials stay where they belong.
    let mut builder = Client::builder()
        .connect_timeout(CONNECT)
        .pool_idle_timeout(IDLE)
        .redirect(Policy::none())
        .referer(false)
        .user_agent(concat!("machinist/", env!("CARGO_PKG_VERSION")));
    match options.proxy.as_deref() {
        Some("none") => builder = builder.no_proxy(),
        Some(url) => {
            let proxy = Proxy::all(url).map_err(|_| {
                HttpError::new(HttpErrorKind::Invalid, "the proxy is no address such as http://host:3128")
            })?;
            builder = builder.proxy(proxy);
        }
        None => {}
    }
    if let Some(pem) = &options.ca {
        let certificates = Certificate::from_pem_bundle(pem).map_err(invalid("ca"))?;
        if certificates.is_empty() {
            return Err(HttpError::new(HttpErrorKind::Invalid, "ca: the file holds no certificate in PEM"));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(invalid("no HTTP client"))
}
