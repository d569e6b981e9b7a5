use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use futures_util::TryStreamExt;
use object_store::path::{Path, PathPart};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::base::Timestamp;

/// Large data, each piece with an owner: a directory, or a bucket of S3, Google Cloud Storage or Azure.
#[derive(Clone)]
pub struct BlobStore {
    store: Arc<dyn ObjectStore>,
    root: Path,
    shown: Arc<str>,
}

/// Where a blob lies and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlobRef {
    /// Without blanks.
    pub key: String,
    pub bytes: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("{url:?} names no blob store: {why}; a directory, file://, s3://, gs:// or az:// does")]
    Address { url: String, why: String },
    #[error("{key} is not in the blob store {store}")]
    Missing { key: String, store: Arc<str> },
    /// Its content is not what was put there.
    #[error("{key} in the blob store {store} is damaged: its SHA-256 is not the one that was noted")]
    Damaged { key: String, store: Arc<str> },
    /// The same call may succeed later.
    #[error("the blob store {store} fails: {why}")]
    Unavailable { store: Arc<str>, why: String },
}

impl BlobStore {
    /// Opens the store at `url`: a directory's path or `file://` URL (made when first written to), or the URL of a
    /// bucket and a prefix in it. Credentials, endpoints and regions come from `environment`, named as the clouds' own
    /// tools name them (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME` ...).
    pub fn open(url: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, BlobError> {
        let address = |why: &dyn fmt::Display| BlobError::Address { url: url.to_owned(), why: why.to_string() };
        let parsed = if url.starts_with('/') {
            reqwest::Url::from_file_path(url).map_err(|()| address(&"it is no path"))?
        } else {
            reqwest::Url::parse(url).map_err(|cause| address(&cause))?
        };
        let options = environment.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
        let (store, root) = object_store::parse_url_opts(&parsed, options).map_err(|cause| address(&cause))?;
        Ok(Self { store: Arc::from(store), root, shown: url.into() })
    }

    /// The part of the store below `name`.
    #[must_use]
    pub fn within(&self, name: &str) -> Self {
        // Whatever a part has in it, it stays a part: `..` and slashes are escaped.
        Self { root: self.root.clone().join(name), ..self.clone() }
    }

    fn path(&self, key: &str) -> Path {
        let parts = key.split('/').filter_map(|part| Path::parse(part).ok());
        parts.fold(self.root.clone(), |path, part| path.parts().chain(part.parts()).collect())
    }

    fn failure(&self, key: &str, cause: &object_store::Error) -> BlobError {
        let store = Arc::clone(&self.shown);
        match cause {
            object_store::Error::NotFound { .. } => BlobError::Missing { key: key.to_owned(), store },
            cause => BlobError::Unavailable { store, why: cause.to_string() },
        }
    }

    /// Keeps `data` of `owner`. The same data under the same name are the same blob, other data are another one: a
    /// call that is made again does no harm.
    pub async fn put(&self, owner: &str, name: &str, data: Vec<u8>) -> Result<BlobRef, BlobError> {
        let sha256 = digest(&data);
        let name = format!("{name}-{}", &sha256[..16]);
        let key = Path::from_iter([PathPart::from(owner), PathPart::from(&*name)]);
        let blob = BlobRef { key: key.to_string(), bytes: data.len() as u64, sha256 };
        let put = self.store.put(&self.path(&blob.key), PutPayload::from(data)).await;
        put.map_err(|cause| self.failure(&blob.key, &cause))?;
        Ok(blob)
    }

    /// The whole content, checked.
    pub async fn get(&self, blob: &BlobRef) -> Result<Vec<u8>, BlobError> {
        let failure = |cause| self.failure(&blob.key, &cause);
        let found = self.store.get(&self.path(&blob.key)).await.map_err(failure)?;
        let data = found.bytes().await.map_err(failure)?;
        if digest(&data) != blob.sha256 {
            return Err(BlobError::Damaged { key: blob.key.clone(), store: Arc::clone(&self.shown) });
        }
        Ok(data.to_vec())
    }

    /// Deletes what `owner` kept before `until`; what is not there is no error.
    pub async fn delete_all(&self, owner: &str, until: Timestamp) -> Result<(), BlobError> {
        let below = self.root.clone().join(owner);
        for meta in self.list(&below).await? {
            if written(&meta) > until {
                continue;
            }
            match self.store.delete(&meta.location).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(cause) => return Err(self.failure(meta.location.as_ref(), &cause)),
            }
        }
        Ok(())
    }

    /// Who has kept something since before `before`.
    pub async fn owners(&self, before: Timestamp) -> Result<BTreeSet<String>, BlobError> {
        let depth = self.root.parts().count();
        let old = self.list(&self.root).await?.into_iter().filter(|meta| written(meta) < before);
        Ok(old.filter_map(|meta| Some(meta.location.parts().nth(depth)?.as_ref().to_owned())).collect())
    }

    async fn list(&self, below: &Path) -> Result<Vec<ObjectMeta>, BlobError> {
        let found = self.store.list(Some(below)).try_collect().await;
        found.map_err(|cause| self.failure(below.as_ref(), &cause))
    }
}

fn written(meta: &ObjectMeta) -> Timestamp {
    Timestamp::from_millis(u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0))
}

fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl fmt::Debug for BlobStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobStore({})", self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> [(String, String); 0] {
        []
    }

    #[tokio::test]
    async fn a_directory_keeps_blobs_and_lets_none_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("blobs");
        let store = BlobStore::open(root.to_str().unwrap(), none()).unwrap().within("a queue/..");
        let blob = store.put("..", "../../x", b"hello".to_vec()).await.unwrap();
        assert_eq!(store.put("..", "../../x", b"hello".to_vec()).await.unwrap(), blob);
        let other = store.put("job", "x", b"other".to_vec()).await.unwrap();

        assert_eq!(store.get(&blob).await.unwrap(), b"hello");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "all lies in the store's directory");
        let (past, future) = (Timestamp::from_millis(1), Timestamp::from_millis(Timestamp::now().as_millis() + 60_000));
        assert!(store.owners(past).await.unwrap().is_empty());
        assert_eq!(store.owners(future).await.unwrap().into_iter().collect::<Vec<_>>(), ["%2E%2E", "job"]);

        let damaged = BlobRef { sha256: "00".to_owned(), ..other.clone() };
        assert!(matches!(store.get(&damaged).await, Err(BlobError::Damaged { .. })));
        store.delete_all("job", past).await.unwrap();
        store.get(&other).await.unwrap();
        store.delete_all("job", future).await.unwrap();
        store.delete_all("job", future).await.unwrap();
        assert!(matches!(store.get(&other).await, Err(BlobError::Missing { .. })));
        assert_eq!(store.get(&blob).await.unwrap(), b"hello");
    }

    #[test]
    fn what_names_no_store_is_refused() {
        for url in ["ftp://host/x", "blobs", ""] {
            assert!(matches!(BlobStore::open(url, none()), Err(BlobError::Address { .. })), "{url}");
        }
    }
}
