//! `Store`: objects under keys, somewhere else.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::TryStreamExt;
use object_store::Attribute;
use object_store::signer::Method;
use rhai::Array;

use super::{Blob, BlobWriter, HostError, Mask};
use crate::host::storage::{Put, Storage, StorageError, StorageErrorKind, Stored};
use crate::script::api::{readable, writable};
use crate::script::call::{Call, ScriptResult, error};
use crate::script::options::{Options, duration};
use crate::script::part_file::PartFile;
use crate::script::prelude::*;

/// Of what is read as a whole.
const MAX_BLOB: u64 = 64 * 1024 * 1024;
const MAX_LISTED: i64 = 10_000;
/// What the clouds allow.
const MAX_LASTS: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Clone)]
pub(in crate::script) struct Store(Arc<Shared>);

struct Shared {
    storage: Storage,
    mask: Mask,
}

impl Store {
    pub fn new(storage: Storage, mask: Mask) -> Self {
        Self(Arc::new(Shared { storage, mask }))
    }

    fn wait<T>(&self, call: &Call, work: impl Future<Output = Result<T, StorageError>>) -> ScriptResult<T> {
        Ok(call.wait(work)?.map_err(|cause| self.0.mask.error(HostError::from(cause)))?)
    }

    fn put(&self, key: &str, blob: &Blob, mut options: Options) -> ScriptResult<Map> {
        let call = Call::current()?;
        let content_type = options.text("content_type")?.or_else(|| blob.content_type().map(str::to_owned));
        let content_type = content_type.or_else(|| mime_guess::from_path(key).first_raw().map(str::to_owned));
        let cache_control = options.text("cache_control")?;
        options.finish()?;
        let attributes = [(Attribute::ContentType, content_type), (Attribute::CacheControl, cache_control)];
        let attributes: Vec<_> = attributes.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let storage = &self.0.storage;
        let content = Box::pin(blob.stream());
        let Put { sha256, etag } = self.wait(&call, storage.put(key, blob.byte_count(), content, &attributes))?;
        let bytes = i64::try_from(blob.byte_count()).unwrap_or(i64::MAX);
        Ok([
            ("key".into(), key.into()),
            ("url".into(), storage.url(key).into()),
            ("bytes".into(), bytes.into()),
            ("sha256".into(), sha256.into()),
            ("etag".into(), etag.map_or(Dynamic::UNIT, Into::into)),
        ]
        .into_iter()
        .collect())
    }

    fn get(&self, key: &str, mut options: Options) -> ScriptResult<Blob> {
        let call = Call::current()?;
        let max = options.size("max")?.unwrap_or(MAX_BLOB);
        options.finish()?;
        let mut writer = BlobWriter::new(call.scratch_dir());
        let found = self.wait(&call, async {
            let (found, mut content) = self.0.storage.get(key).await?;
            self.limit(key, found.bytes, max)?;
            while let Some(piece) = content.try_next().await? {
                writer
                    .write(&piece)
                    .map_err(|cause| StorageError::new(StorageErrorKind::Connect, cause.to_string()))?;
            }
            Ok(found)
        })?;
        let url = self.0.storage.url(key);
        writer.finish(found.content_type.as_deref()).map_err(|cause| error(format!("{url}: {cause}")))
    }

    fn download(&self, key: &str, path: &str, mut options: Options) -> ScriptResult<i64> {
        let call = Call::current()?;
        let max = options.size("max")?.unwrap_or(u64::MAX);
        let wanted = options.text("sha256")?;
        options.finish()?;
        let mut file = PartFile::create(writable(path)?)?;
        let (found, mut content) = self.wait(&call, self.0.storage.get(key))?;
        self.limit(key, found.bytes, max).map_err(HostError::from)?;
        while let Some(piece) = self.wait(&call, content.try_next())? {
            file.write(&piece)?;
        }
        file.finish(&self.0.storage.url(key), wanted.as_deref())
    }

    fn limit(&self, key: &str, bytes: u64, max: u64) -> Result<(), StorageError> {
        if bytes <= max {
            return Ok(());
        }
        let message = format!("{} has {bytes} bytes, the limit is {max}", self.0.storage.url(key));
        Err(StorageError::new(StorageErrorKind::Limit, message))
    }

    fn list(&self, prefix: &str, limit: i64) -> ScriptResult<Array> {
        if !(0..=MAX_LISTED).contains(&limit) {
            return Err(error(format!("store.list: the limit is a number up to {MAX_LISTED}")));
        }
        let limit = usize::try_from(limit).unwrap_or(0);
        let found = self.wait(&Call::current()?, self.0.storage.list(prefix, limit))?;
        Ok(found.iter().map(|stored| shown(stored).into()).collect())
    }

    fn presign(&self, method: Method, key: &str, lasts: &Dynamic) -> ScriptResult<String> {
        let lasts = duration(lasts).map_err(|why| error(format!("store.presign: {why}")))?;
        if lasts.is_zero() || lasts > MAX_LASTS {
            return Err(error("store.presign: an address lasts for up to seven days"));
        }
        let call = Call::current()?;
        if call.is_made_up() {
            return Ok(format!("{}?{method}&expires={}", self.0.storage.url(key), lasts.as_secs()));
        }
        self.wait(&call, self.0.storage.presign(method, key, lasts))
    }
}

/// A text becomes a blob of it.
fn content(value: &Dynamic) -> ScriptResult<Blob> {
    if let Some(blob) = value.read_lock::<Blob>() {
        return Ok(blob.clone());
    }
    match value.read_lock::<ImmutableString>() {
        Some(text) => Ok(Blob::new(text.as_bytes().to_vec(), None)),
        None => Err(error("store.put: the content must be a text or a blob; use upload(key, path) for a file")),
    }
}

fn file(path: &str) -> ScriptResult<Blob> {
    let place = readable(path)?;
    let opened = place.open().and_then(|file| Blob::of_file(file, None));
    opened.map_err(|cause| error(format!("{}: {cause}", place.shown().display())))
}

fn shown(stored: &Stored) -> Map {
    let since = stored.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    let text = |text: &Option<String>| text.clone().map_or(Dynamic::UNIT, Into::into);
    [
        ("key".into(), stored.key.clone().into()),
        ("bytes".into(), i64::try_from(stored.bytes).unwrap_or(i64::MAX).into()),
        ("modified".into(), since.as_secs_f64().into()),
        ("etag".into(), text(&stored.etag)),
        ("content_type".into(), text(&stored.content_type)),
    ]
    .into_iter()
    .collect()
}

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// A store that `storage::open` opened. Keys are texts such as `"images/1.png"`, without `..`; whatever fails throws a
/// `HostError` of kind `"missing"`, `"denied"`, `"connect"`, `"limit"` or `"invalid"`.
#[export_module]
mod functions {
    pub type Store = super::Store;

    /// Keeps a text or a blob under `key`, in place of what is there; more than 8 MiB go up in parts. The object is there
    /// when all of it is. Gives back `#{ key, url, bytes, sha256, etag }`.
    #[rhai_fn(name = "put", return_raw, pure)]
    pub fn store_put(store: &mut Store, key: &str, content: Dynamic) -> ScriptResult<Map> {
        store_put_with(store, key, content, Map::new())
    }

    /// As `put(key, content)`, with options. Directories keep neither of them.
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `content_type` | what kind of content it is | the blob's, else what the end of the key says |
    /// | `cache_control` | how long others may keep copies | |
    #[rhai_fn(name = "put", return_raw, pure)]
    pub fn store_put_with(store: &mut Store, key: &str, content: Dynamic, options: Map) -> ScriptResult<Map> {
        store.put(key, &super::content(&content)?, Options::new("store.put", options))
    }

    /// Keeps the file `path` under `key`; otherwise as `put`.
    #[rhai_fn(name = "upload", return_raw, pure)]
    pub fn store_upload(store: &mut Store, key: &str, path: &str) -> ScriptResult<Map> {
        store.put(key, &file(path)?, Options::new("store.upload", Map::new()))
    }

    /// As `upload(key, path)`, with options.
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `content_type` | what kind of content it is | what the end of the key says |
    /// | `cache_control` | how long others may keep copies | |
    #[rhai_fn(name = "upload", return_raw, pure)]
    pub fn store_upload_with(store: &mut Store, key: &str, path: &str, options: Map) -> ScriptResult<Map> {
        store.put(key, &file(path)?, Options::new("store.upload", options))
    }

    /// What is kept under `key`, as a blob of at most 64 MiB.
    #[rhai_fn(name = "get", return_raw, pure)]
    pub fn store_get(store: &mut Store, key: &str) -> ScriptResult<Blob> {
        store.get(key, Options::new("store.get", Map::new()))
    }

    /// As `get(key)`, with options.
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `max` | a number of bytes, or a text such as `"1GiB"` | 64 MiB |
    #[rhai_fn(name = "get", return_raw, pure)]
    pub fn store_get_with(store: &mut Store, key: &str, options: Map) -> ScriptResult<Blob> {
        store.get(key, Options::new("store.get", options))
    }

    /// Writes what is kept under `key` to `path` in the job's work directory; gives back how many bytes it has. The file is
    /// there when it is whole.
    #[rhai_fn(name = "download", return_raw, pure)]
    pub fn store_download(store: &mut Store, key: &str, path: &str) -> ScriptResult<i64> {
        store.download(key, path, Options::new("store.download", Map::new()))
    }

    /// As `download(key, path)`, with options.
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `max` | a number of bytes, or a text such as `"1GiB"` | no limit |
    /// | `sha256` | what the content must have, in hexadecimal digits | |
    #[rhai_fn(name = "download", return_raw, pure)]
    pub fn store_download_with(store: &mut Store, key: &str, path: &str, options: Map) -> ScriptResult<i64> {
        store.download(key, path, Options::new("store.download", options))
    }

    /// What is known of the object under `key`: `#{ key, bytes, modified, etag, content_type }`, `modified` in seconds since
    /// 1970; `()` where there is none.
    #[rhai_fn(name = "head", return_raw, pure)]
    pub fn store_head(store: &mut Store, key: &str) -> ScriptResult<Dynamic> {
        let found = store.wait(&Call::current()?, store.0.storage.head(key))?;
        Ok(found.map_or(Dynamic::UNIT, |stored| shown(&stored).into()))
    }

    /// Whether there is an object under `key`.
    #[rhai_fn(name = "exists", return_raw, pure)]
    pub fn store_exists(store: &mut Store, key: &str) -> ScriptResult<bool> {
        Ok(store.wait(&Call::current()?, store.0.storage.head(key))?.is_some())
    }

    /// At most 1,000 objects below `prefix` (a directory of keys, `""` for all), as maps like those of `head`, without
    /// content types.
    #[rhai_fn(name = "list", return_raw, pure)]
    pub fn store_list(store: &mut Store, prefix: &str) -> ScriptResult<Array> {
        store.list(prefix, 1_000)
    }

    /// As `list(prefix)`, of at most `limit` objects, up to 10,000.
    #[rhai_fn(name = "list", return_raw, pure)]
    pub fn store_list_limited(store: &mut Store, prefix: &str, limit: i64) -> ScriptResult<Array> {
        store.list(prefix, limit)
    }

    /// Deletes the object under `key`; one that is not there is deleted already.
    #[rhai_fn(name = "delete", return_raw, pure)]
    pub fn store_delete(store: &mut Store, key: &str) -> ScriptResult<()> {
        store.wait(&Call::current()?, store.0.storage.delete(key))
    }

    /// An address with which whoever has it may get `key` for as long as `lasts` (seconds, or a text such as `"1h"`; up to
    /// seven days). Fails with a directory.
    #[rhai_fn(name = "presign_get", return_raw, pure)]
    pub fn store_presign_get(store: &mut Store, key: &str, lasts: Dynamic) -> ScriptResult<String> {
        store.presign(Method::GET, key, &lasts)
    }

    /// An address to which whoever has it may put `key`; otherwise as `presign_get`.
    #[rhai_fn(name = "presign_put", return_raw, pure)]
    pub fn store_presign_put(store: &mut Store, key: &str, lasts: Dynamic) -> ScriptResult<String> {
        store.presign(Method::PUT, key, &lasts)
    }

    /// As `Store(s3://bucket/prefix)`.
    #[rhai_fn(name = "to_string", pure)]
    pub fn store_to_string(store: &mut Store) -> String {
        format!("Store({:?})", store.0.storage)
    }
}
