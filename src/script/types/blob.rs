//! `Blob`: bytes that scripts hand on without looking at them: a body, a file, a frame. A handle, so that no copy is made
//! when a script passes it around and none of its bytes become script values.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::script::prelude::*;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::try_unfold;
use sha2::{Digest, Sha256};

use crate::host::Rooted;
use crate::script::api::writable;
use crate::script::call::{Call, ScriptResult, error, terminated};
use crate::script::part_file::PartFile;

/// More than this lies in a file.
const IN_MEMORY: usize = 1024 * 1024;
/// What may become a text of the script: the engine's own limit of texts.
const MAX_TEXT: u64 = 8 * 1024 * 1024;
const CHUNK: usize = 256 * 1024;

#[derive(Clone)]
pub(in crate::script) struct Blob {
    content: Content,
    from: u64,
    len: u64,
    content_type: Option<Arc<str>>,
}

#[derive(Clone)]
enum Content {
    Memory(Bytes),
    /// Open, so that it stays what it was whatever becomes of its name.
    File(Arc<File>),
}

impl Blob {
    pub fn new(bytes: impl Into<Bytes>, content_type: Option<&str>) -> Self {
        let bytes = bytes.into();
        let len = bytes.len() as u64;
        Self { content: Content::Memory(bytes), from: 0, len, content_type: content_type.map(Arc::from) }
    }

    /// What is in `file` now.
    pub fn of_file(file: File, content_type: Option<&str>) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let content = Content::File(Arc::new(file));
        Ok(Self { content, from: 0, len: metadata.len(), content_type: content_type.map(Arc::from) })
    }

    pub fn byte_count(&self) -> u64 {
        self.len
    }

    pub fn content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    /// At most `length` bytes from `at`; fewer at the end.
    pub fn read_at(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let length = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX).min(length);
        let start = self.from + at.min(self.len);
        match &self.content {
            Content::Memory(bytes) => {
                let start = usize::try_from(start).map_err(io::Error::other)?;
                Ok(bytes.slice(start..start + length))
            }
            Content::File(file) => {
                let mut buffer = vec![0; length];
                file.read_exact_at(&mut buffer, start)?;
                Ok(buffer.into())
            }
        }
    }

    /// All of it, when it is at most `limit` bytes.
    pub fn bytes(&self, limit: u64) -> io::Result<Bytes> {
        if self.len > limit {
            return Err(io::Error::other(format!("it has {} bytes, the limit here is {limit}", self.len)));
        }
        self.read_at(0, usize::MAX)
    }

    /// For the network; reads a file on the runtime's threads for blocking work.
    pub fn stream(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        try_unfold((self.clone(), 0), |(blob, at)| async move {
            if at >= blob.len {
                return Ok(None);
            }
            let chunk = match &blob.content {
                Content::Memory(_) => blob.read_at(at, CHUNK)?,
                Content::File(_) => {
                    let blob = blob.clone();
                    let read = tokio::task::spawn_blocking(move || blob.read_at(at, CHUNK));
                    read.await.map_err(io::Error::other)??
                }
            };
            let next = at + chunk.len() as u64;
            Ok(Some((chunk, (blob, next))))
        })
    }

    /// Hands all of it to `take`, a piece at a time, no longer than the call may last.
    fn each_chunk(&self, call: &Call, mut take: impl FnMut(&[u8]) -> ScriptResult<()>) -> ScriptResult<()> {
        let mut at = 0;
        while at < self.len {
            if let Some(why) = call.interruption() {
                return Err(terminated(why));
            }
            let chunk = self.read_at(at, CHUNK).map_err(|cause| error(format!("the blob cannot be read: {cause}")))?;
            take(&chunk)?;
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Replaces what is at `place` by a file with this content, at once and never in part.
    fn save_to(&self, call: &Call, place: Rooted) -> ScriptResult<()> {
        let mut file = PartFile::create(place)?;
        self.each_chunk(call, |chunk| file.write(chunk))?;
        file.finish("blob.save", None).map(drop)
    }
}

/// Makes a blob of pieces: in memory while it is small, then in a file without a name in the directory given, which the
/// kernel removes with its last handle.
pub(in crate::script) struct BlobWriter {
    memory: Vec<u8>,
    file: Option<File>,
    written: u64,
    dir: std::path::PathBuf,
}

impl BlobWriter {
    /// `dir` need not be there yet; see [`Call::scratch_dir`].
    pub fn new(dir: impl Into<std::path::PathBuf>) -> Self {
        Self { memory: Vec::new(), file: None, written: 0, dir: dir.into() }
    }

    pub fn written(&self) -> u64 {
        self.written
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        if self.file.is_none() {
            if self.memory.len() + bytes.len() <= IN_MEMORY {
                self.memory.extend_from_slice(bytes);
                return Ok(());
            }
            std::fs::create_dir_all(&self.dir)?;
            let path = self.dir.join(format!(".blob-{}", uuid::Uuid::new_v4().simple()));
            let mut file = File::options().read(true).write(true).create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            file.write_all(&std::mem::take(&mut self.memory))?;
            self.file = Some(file);
        }
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
        }
        Ok(())
    }

    pub fn finish(self, content_type: Option<&str>) -> io::Result<Blob> {
        match self.file {
            Some(file) => Blob::of_file(file, content_type),
            None => Ok(Blob::new(self.memory, content_type)),
        }
    }
}

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Blobs are bytes that a script hands on: they are saved, uploaded, sliced and summed, and never become arrays.
#[export_module]
mod functions {
    pub type Blob = super::Blob;

    /// How many bytes it has.
    #[rhai_fn(name = "len", get = "len", pure)]
    pub fn blob_len(blob: &mut Blob) -> i64 {
        i64::try_from(blob.len).unwrap_or(i64::MAX)
    }

    /// What kind of content it is, such as `"image/png"`, as its sender said; `()` where nobody did.
    #[rhai_fn(get = "content_type", pure)]
    pub fn blob_content_type(blob: &mut Blob) -> Dynamic {
        blob.content_type().map_or(Dynamic::UNIT, |text| text.to_owned().into())
    }

    /// The same bytes with another content type.
    #[rhai_fn(pure)]
    pub fn with_content_type(blob: &mut Blob, content_type: &str) -> Blob {
        Blob { content_type: Some(content_type.into()), ..blob.clone() }
    }

    /// The SHA-256 of its bytes, in hexadecimal digits.
    #[rhai_fn(name = "sha256", return_raw, pure)]
    pub fn blob_sha256(blob: &mut Blob) -> ScriptResult<String> {
        let mut hasher = Sha256::new();
        blob.each_chunk(&Call::current()?, |chunk| {
            hasher.update(chunk);
            Ok(())
        })?;
        Ok(hasher.finalize().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
    }

    /// Its bytes in base64, for APIs that take files inside JSON. Of at most 6 MiB: a script's texts end at 8 MiB.
    #[rhai_fn(name = "base64", return_raw, pure)]
    pub fn blob_base64(blob: &mut Blob) -> ScriptResult<String> {
        let bytes = blob.bytes(MAX_TEXT / 4 * 3).map_err(|cause| error(format!("blob.base64(): {cause}")))?;
        Ok(BASE64_STANDARD.encode(bytes))
    }

    /// Its bytes as a text. Of at most 8 MiB; fails where they are no UTF-8.
    #[rhai_fn(name = "text", return_raw, pure)]
    pub fn blob_text(blob: &mut Blob) -> ScriptResult<String> {
        let bytes = blob.bytes(MAX_TEXT).map_err(|cause| error(format!("blob.text(): {cause}")))?;
        String::from_utf8(bytes.into()).map_err(|_| error("blob.text(): the bytes are no UTF-8 text; save() them"))
    }

    /// Writes it to `path` in the job's work directory, in place of what is there.
    #[rhai_fn(name = "save", return_raw, pure)]
    pub fn blob_save(blob: &mut Blob, path: &str) -> ScriptResult<()> {
        blob.save_to(&Call::current()?, writable(path)?)
    }

    /// The `len` bytes from `from` on (the first is 0), as a blob that shares them.
    #[rhai_fn(name = "slice", return_raw, pure)]
    pub fn blob_slice(blob: &mut Blob, from: i64, len: i64) -> ScriptResult<Blob> {
        let wanted = u64::try_from(from).ok().zip(u64::try_from(len).ok());
        match wanted {
            Some((from, len)) if from.checked_add(len).is_some_and(|end| end <= blob.len) => {
                Ok(Blob { from: blob.from + from, len, ..blob.clone() })
            }
            _ => Err(error(format!("blob.slice({from}, {len}): the blob has {} bytes", blob.len))),
        }
    }

    /// The four bytes at `at` as a number, the highest first, as in the heads of binary messages.
    #[rhai_fn(name = "u32_be", return_raw, pure)]
    pub fn blob_u32_be(blob: &mut Blob, at: i64) -> ScriptResult<i64> {
        let part = blob_slice(blob, at, 4)?;
        let bytes = part.bytes(4).map_err(|cause| error(format!("blob.u32_be({at}): {cause}")))?;
        Ok(bytes.iter().fold(0, |number, byte| (number << 8) | i64::from(*byte)))
    }

    /// A word that says how large it is, never its bytes.
    #[rhai_fn(name = "to_string", pure)]
    pub fn blob_to_string(blob: &mut Blob) -> String {
        format!("Blob({} bytes)", blob.len)
    }

    /// As `to_string`.
    #[rhai_fn(name = "to_debug", pure)]
    pub fn blob_to_debug(blob: &mut Blob) -> String {
        blob_to_string(blob)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;

    fn written(dir: &std::path::Path, pieces: &[&[u8]]) -> Blob {
        let mut writer = BlobWriter::new(dir);
        for piece in pieces {
            writer.write(piece).unwrap();
        }
        writer.finish(Some("text/plain")).unwrap()
    }

    #[tokio::test]
    async fn large_blobs_lie_in_a_nameless_file_and_read_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let piece = vec![b'x'; IN_MEMORY - 1];
        let small = written(dir.path(), &[&piece]);
        assert!(matches!(small.content, Content::Memory(_)));
        let large = written(dir.path(), &[&piece, b"yz"]);
        assert!(matches!(large.content, Content::File(_)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
        for (blob, end) in [(small, &b"xx"[..]), (large, b"yz")] {
            let all = blob.bytes(u64::MAX).unwrap();
            assert!(all.ends_with(end));
            let streamed: Vec<Bytes> = blob.stream().try_collect().await.unwrap();
            assert_eq!(streamed.concat(), all);
            let mut part = functions::blob_slice(&mut blob.clone(), 3, 5).unwrap();
            let part = functions::blob_slice(&mut part, 4, 1).unwrap();
            assert_eq!(part.bytes(1).unwrap(), all[7..8]);
            assert!(blob.bytes(10).is_err());
        }
    }

    #[test]
    fn slices_beyond_the_end_are_refused() {
        let mut blob = Blob::new(&b"\0\0\x01\x02abc"[..], None);
        assert_eq!(functions::blob_u32_be(&mut blob, 0).unwrap(), 258);
        for (from, len) in [(0, 8), (8, 0), (-1, 1), (1, -1), (i64::MAX, i64::MAX)] {
            assert!(functions::blob_slice(&mut blob, from, len).is_err(), "{from}, {len}");
        }
        assert!(functions::blob_u32_be(&mut blob, 4).is_err());
    }
}
