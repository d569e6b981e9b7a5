use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::signer::Method;
use object_store::{
    Attribute, AttributeValue, Attributes, GetOptions, GetResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutPayloadMut, UploadPart,
};
use sha2::{Digest, Sha256};

use super::{Storage, StorageError, StorageErrorKind};

/// More than this goes up in parts.
const PART: usize = 8 * 1024 * 1024;
/// What the stores allow.
const MAX_PARTS: u64 = 10_000;
/// Parts on their way at one time, each in memory.
const AT_ONCE: usize = 4;

/// An object that is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub key: String,
    pub bytes: u64,
    pub modified: SystemTime,
    pub etag: Option<String>,
    pub content_type: Option<String>,
}

/// What became of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub sha256: String,
    pub etag: Option<String>,
}

/// An upload in parts, which is taken back unless it is finished: its parts would be kept, and paid for, for ever.
struct Parts {
    upload: Option<Box<dyn MultipartUpload>>,
    size: usize,
    waiting: PutPayloadMut,
    on_their_way: FuturesUnordered<UploadPart>,
}

impl Parts {
    fn new(upload: Box<dyn MultipartUpload>, length: u64) -> Self {
        let size = usize::try_from(length.div_ceil(MAX_PARTS)).unwrap_or(usize::MAX).max(PART);
        let (waiting, on_their_way) = (PutPayloadMut::default(), FuturesUnordered::new());
        Self { upload: Some(upload), size, waiting, on_their_way }
    }

    async fn add(&mut self, piece: Bytes) -> object_store::Result<()> {
        self.waiting.push(piece);
        if self.waiting.content_length() < self.size {
            return Ok(());
        }
        self.begin_part();
        while self.on_their_way.len() >= AT_ONCE {
            self.on_their_way.try_next().await?;
        }
        Ok(())
    }

    fn begin_part(&mut self) {
        let part = std::mem::take(&mut self.waiting).freeze();
        if let Some(upload) = self.upload.as_mut().filter(|_| part.content_length() > 0) {
            self.on_their_way.push(upload.put_part(part));
        }
    }

    async fn finish(mut self) -> object_store::Result<Option<String>> {
        self.begin_part();
        while self.on_their_way.try_next().await?.is_some() {}
        let Some(upload) = &mut self.upload else { return Ok(None) };
        let result = upload.complete().await?;
        self.upload = None;
        Ok(result.e_tag)
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // What fails here is swept by the bucket's own rules, if at all.
                let _ = tokio::time::timeout(Duration::from_secs(30), upload.abort()).await;
            });
        }
    }
}

impl Storage {
    fn failed(&self, key: &str) -> impl Fn(object_store::Error) -> StorageError + use<> {
        let what = self.url(key);
        move |cause| StorageError::of(&what, &cause)
    }

    /// Uploads `length` bytes; the object is there when all of them are.
    pub async fn put(
        &self,
        key: &str,
        length: u64,
        mut content: impl Stream<Item = std::io::Result<Bytes>> + Unpin,
        attributes: &[(Attribute, String)],
    ) -> Result<Put, StorageError> {
        let path = self.path(key)?;
        let unreadable = |cause: std::io::Error| {
            StorageError::new(
                StorageErrorKind::Invalid,
                format!("{}: the content cannot be read: {cause}", self.url(key)),
            )
        };
        let mut kept = Attributes::new();
        if self.keeps_attributes {
            for (name, value) in attributes {
                kept.insert(name.clone(), AttributeValue::from(value.clone()));
            }
        }
        let mut hasher = Sha256::new();
        let etag = if length <= PART as u64 {
            let mut pieces = Vec::new();
            while let Some(piece) = content.try_next().await.map_err(unreadable)? {
                hasher.update(&piece);
                pieces.push(piece);
            }
            let options = PutOptions { attributes: kept, ..PutOptions::default() };
            let put = self.store.put_opts(&path, PutPayload::from_iter(pieces), options).await;
            put.map_err(self.failed(key))?.e_tag
        } else {
            let options = PutMultipartOptions { attributes: kept, ..PutMultipartOptions::default() };
            let upload = self.store.put_multipart_opts(&path, options).await.map_err(self.failed(key))?;
            let mut parts = Parts::new(upload, length);
            while let Some(piece) = content.try_next().await.map_err(unreadable)? {
                hasher.update(&piece);
                parts.add(piece).await.map_err(self.failed(key))?;
            }
            parts.finish().await.map_err(self.failed(key))?
        };
        let sha256 = hasher.finalize().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        Ok(Put { sha256, etag })
    }

    /// The object, and its content while it comes.
    pub async fn get(
        &self,
        key: &str,
    ) -> Result<(Stored, impl Stream<Item = Result<Bytes, StorageError>> + Send + use<>), StorageError> {
        let found = self.store.get_opts(&self.path(key)?, GetOptions::default()).await.map_err(self.failed(key))?;
        let stored = self.stored(&found);
        Ok((stored, found.into_stream().map_err(self.failed(key))))
    }

    /// The object without its content; none when it is not there.
    pub async fn head(&self, key: &str) -> Result<Option<Stored>, StorageError> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.store.get_opts(&self.path(key)?, options).await {
            Ok(found) => Ok(Some(self.stored(&found))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(cause) => Err(self.failed(key)(cause)),
        }
    }

    fn stored(&self, found: &GetResult) -> Stored {
        let content_type = found.attributes.get(&Attribute::ContentType).map(|value| value.as_ref().to_owned());
        Stored { content_type, ..self.listed(&found.meta) }
    }

    fn listed(&self, meta: &ObjectMeta) -> Stored {
        Stored {
            key: self.key(&meta.location),
            bytes: meta.size,
            modified: meta.last_modified.into(),
            etag: meta.e_tag.clone(),
            content_type: None,
        }
    }

    /// At most `limit` objects whose keys begin with the parts of `prefix`, in the store's order.
    pub async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<Stored>, StorageError> {
        let below: Path = self.below(prefix)?;
        let found = self.store.list(Some(&below)).take(limit);
        let found: Vec<ObjectMeta> = found.try_collect().await.map_err(self.failed(prefix))?;
        Ok(found.iter().map(|meta| self.listed(meta)).collect())
    }

    /// What is not there is deleted already.
    pub async fn delete(&self, key: &str) -> Result<(), StorageError> {
        match self.store.delete(&self.path(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(cause) => Err(self.failed(key)(cause)),
        }
    }

    /// An address with which whoever has it may do this with `key` for so long.
    pub async fn presign(&self, method: Method, key: &str, lasts: Duration) -> Result<String, StorageError> {
        let path = self.path(key)?;
        let Some(signer) = &self.signer else {
            let message = format!("{}: a directory signs no addresses", self.url(key));
            return Err(StorageError::new(StorageErrorKind::Invalid, message));
        };
        let signed = signer.signed_url(method, &path, lasts).await.map_err(self.failed(key))?;
        // Azure checks the signature of the name itself, and object_store 0.14 signs what stands in the address.
        if signed.query_pairs().any(|(name, _)| name == "sig") && signed.path().contains('%') {
            let message = format!(
                "{}: Azure would refuse a signed address with this name: letters, digits, and any of -._~/ only",
                self.url(key)
            );
            return Err(StorageError::new(StorageErrorKind::Invalid, message));
        }
        Ok(signed.into())
    }
}
