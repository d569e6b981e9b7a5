use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{ObjectStore, ObjectStoreScheme, RetryConfig};
use reqwest::Url;

use super::{StorageError, StorageErrorKind};

/// Stores that are in use at one time; more than people have.
const MAX_STORES: usize = 64;

/// Each store once, so that its connections are used again. Clones share the stores.
#[derive(Clone, Default)]
pub struct Storages(Arc<Mutex<HashMap<(String, Credentials), Storage>>>);

/// A store and the part of it that keys are relative to.
#[derive(Clone)]
pub struct Storage {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) signer: Option<Arc<dyn Signer>>,
    root: Path,
    /// Without a slash at its end.
    shown: Arc<str>,
    /// Keeps content types.
    pub(super) keeps_attributes: bool,
}

/// What a script says about a store; the environment says the rest.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// The name of an account with Azure.
    pub access_key: Option<String>,
    /// The JSON of a service account with Google.
    pub secret_key: Option<String>,
    pub token: Option<String>,
    /// The bucket stands in the path of an address, not in its host.
    pub path_style: Option<bool>,
}

impl Storages {
    /// As [`Storage::open`], or the one that was opened before.
    pub fn open(
        &self,
        url: &str,
        credentials: &Credentials,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Storage, StorageError> {
        let key = (url.to_owned(), credentials.clone());
        // Nothing between lock and unlock can leave the map half changed.
        let mut stores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = stores.get(&key) {
            return Ok(store.clone());
        }
        let store = Storage::open(url, credentials, environment)?;
        if stores.len() >= MAX_STORES {
            stores.clear();
        }
        stores.insert(key, store.clone());
        Ok(store)
    }
}

impl Storage {
    /// Opens the store at `url`: the path of a directory, which is made, or the URL of a bucket and a prefix in it.
    /// `environment` is read under the names that the clouds' own tools use.
    pub fn open(
        url: &str,
        credentials: &Credentials,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, StorageError> {
        let invalid = |why: &dyn fmt::Display| {
            let message = format!("{url:?} names no storage: {why}; a directory, s3://, gs:// or az:// does");
            StorageError::new(StorageErrorKind::Invalid, message)
        };
        if url.starts_with('/') {
            std::fs::create_dir_all(url).map_err(|cause| invalid(&cause))?;
            let store = LocalFileSystem::new_with_prefix(url).map_err(|cause| invalid(&cause))?;
            let shown = url.trim_end_matches('/').into();
            return Ok(Self { store: Arc::new(store), signer: None, root: Path::ROOT, shown, keeps_attributes: false });
        }
        // Fails where one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let parsed = Url::parse(url).map_err(|cause| invalid(&cause))?;
        let (scheme, root) = ObjectStoreScheme::parse(&parsed).map_err(|cause| invalid(&cause))?;
        // Later ones count: what the script says comes after the environment.
        let options = environment.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
        let options: Vec<_> = options.chain(credentials.options(&scheme)).collect();
        let retry = RetryConfig { max_retries: 4, retry_timeout: Duration::from_secs(60), ..RetryConfig::default() };
        macro_rules! build {
            ($builder:ty) => {{
                let builder = options.iter().fold(<$builder>::new().with_url(url), |builder, (key, value)| {
                    // The environment is full of names that no store knows.
                    match key.parse() {
                        Ok(key) => builder.with_config(key, value),
                        Err(_) => builder,
                    }
                });
                let store = Arc::new(builder.with_retry(retry).build().map_err(|cause| invalid(&cause))?);
                (Arc::clone(&store) as Arc<dyn ObjectStore>, store as Arc<dyn Signer>)
            }};
        }
        let (store, signer) = match scheme {
            ObjectStoreScheme::AmazonS3 => build!(AmazonS3Builder),
            ObjectStoreScheme::GoogleCloudStorage => build!(GoogleCloudStorageBuilder),
            ObjectStoreScheme::MicrosoftAzure => build!(MicrosoftAzureBuilder),
            _ => return Err(invalid(&"scripts have no such stores")),
        };
        let mut shown = parsed;
        // Neither login nor query is shown; what has no host refuses to lose them, and has none.
        let _ = (shown.set_username(""), shown.set_password(None));
        shown.set_query(None);
        let shown = shown.as_str().trim_end_matches('/').into();
        Ok(Self { store, signer: Some(signer), root, shown, keeps_attributes: true })
    }

    /// An empty store that is no longer than its last clone; `url` is what it is called.
    pub fn in_memory(url: &str) -> Self {
        let shown = url.trim_end_matches('/').into();
        Self { store: Arc::new(InMemory::new()), signer: None, root: Path::ROOT, shown, keeps_attributes: true }
    }

    /// Where `key` lies.
    pub(super) fn path(&self, key: &str) -> Result<Path, StorageError> {
        let wrong = |why: &dyn fmt::Display| {
            StorageError::new(StorageErrorKind::Invalid, format!("{key:?} is no key of {self:?}: {why}"))
        };
        let path = Path::parse(key).map_err(|cause| wrong(&cause))?;
        if path.as_ref().is_empty() {
            return Err(wrong(&"it is empty"));
        }
        Ok(self.root.parts().chain(path.parts()).collect())
    }

    /// All keys that begin with the parts of `prefix`.
    pub(super) fn below(&self, prefix: &str) -> Result<Path, StorageError> {
        if prefix.is_empty() { Ok(self.root.clone()) } else { self.path(prefix) }
    }

    /// The key of what lies at `path`.
    pub(super) fn key(&self, path: &Path) -> String {
        path.prefix_match(&self.root).map(|parts| parts.collect::<Path>().to_string()).unwrap_or_default()
    }

    /// The address of `key`, for people and other tools.
    pub fn url(&self, key: &str) -> String {
        format!("{}/{key}", self.shown)
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Credentials {
    fn options(&self, scheme: &ObjectStoreScheme) -> Vec<(String, String)> {
        let names = match scheme {
            ObjectStoreScheme::AmazonS3 => {
                ["aws_endpoint", "aws_region", "aws_access_key_id", "aws_secret_access_key", "aws_session_token"]
            }
            ObjectStoreScheme::GoogleCloudStorage => ["google_base_url", "", "", "google_service_account_key", ""],
            _ => [
                "azure_storage_endpoint",
                "",
                "azure_storage_account_name",
                "azure_storage_account_key",
                "azure_storage_sas_key",
            ],
        };
        let values = [&self.endpoint, &self.region, &self.access_key, &self.secret_key, &self.token];
        let given = names.iter().zip(values).filter(|(name, _)| !name.is_empty());
        let mut options: Vec<_> =
            given.filter_map(|(name, value)| Some(((*name).to_owned(), value.clone()?))).collect();
        if self.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")) {
            options.push(("allow_http".to_owned(), "true".to_owned()));
        }
        if let Some(path_style) = self.path_style {
            options.push(("aws_virtual_hosted_style_request".to_owned(), (!path_style).to_string()));
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use object_store::signer::Method;

    use super::*;

    #[test]
    fn addresses_and_keys_are_held_to_their_store() {
        let open = |url: &str| Storage::open(url, &Credentials::default(), []);
        for url in ["ftp://host/x", "relative", "", "https://example.org/x", "memory:///"] {
            assert!(open(url).is_err_and(|cause| cause.kind == StorageErrorKind::Invalid), "{url}");
        }
        let store = open("s3://bucket/some/prefix/").unwrap();
        assert_eq!(store.path("a/b.png").unwrap().as_ref(), "some/prefix/a/b.png");
        assert_eq!(store.key(&store.path("a/b.png").unwrap()), "a/b.png");
        assert_eq!(store.url("a/b.png"), "s3://bucket/some/prefix/a/b.png");
        for key in ["", "/", "../x", "a/../../x", "a//b", "."] {
            assert!(store.path(key).is_err_and(|cause| cause.kind == StorageErrorKind::Invalid), "{key}");
        }
    }

    #[tokio::test]
    async fn azure_signs_no_names_that_it_would_refuse() {
        let account = Credentials {
            access_key: Some("me".to_owned()),
            secret_key: Some("c2VjcmV0".to_owned()),
            ..Credentials::default()
        };
        let store = Storage::open("az://box", &account, []).unwrap();
        let signed = async |key: &str| store.presign(Method::GET, key, Duration::from_secs(60)).await;
        assert!(signed("a/one_2~.txt").await.unwrap().contains("sig="));
        let refused = signed("a/one 2.txt").await.unwrap_err();
        assert!(refused.kind == StorageErrorKind::Invalid && refused.message.contains("this name"), "{refused:?}");
        let store = Storage::open("s3://bucket", &account, []).unwrap();
        assert!(store.presign(Method::GET, "a/one 2.txt", Duration::from_secs(60)).await.is_ok());
    }
}
