//! What is too large for the store lies in the blob store, with a reference in its place.

use serde_json::Value;

use super::{Client, codec};
use crate::base::Timestamp;
use crate::host::BlobRef;
use crate::queue::validate::size_bound;
use crate::queue::{BrokerError, Job, JobId, Submission};

type Result<T> = std::result::Result<T, BrokerError>;

/// Begins a reference where JSON would stand; no JSON begins so.
const MARK: char = '@';
/// Blobs that belong to no job are left alone for so long: their job may be about to be submitted.
const ORPHAN_MILLIS: u64 = 24 * 3_600 * 1_000;

/// A submission whose payload is where it will stay.
pub(super) struct Prepared {
    pub id: JobId,
    pub submission: Submission,
    /// Then the submission's own payload is null.
    pub payload: Option<BlobRef>,
}

/// The reference as the store holds it.
pub(super) fn text(blob: &BlobRef) -> Result<String> {
    let json = serde_json::to_string(blob).map_err(|cause| BrokerError::damaged(&cause))?;
    Ok(format!("{MARK}{json}"))
}

/// What the store holds: a value, or where it is.
pub(super) fn read(text: &str) -> Result<(Value, Option<BlobRef>)> {
    match text.strip_prefix(MARK) {
        Some(reference) => Ok((Value::Null, Some(codec::json(reference)?))),
        None => Ok((codec::json(text)?, None)),
    }
}

impl Client {
    /// So many bytes can be kept of a payload or a result.
    pub(super) fn most_bytes(&self) -> usize {
        if self.config.blobs.is_some() { Submission::MAX_BLOB_BYTES } else { Submission::MAX_INLINE_BYTES }
    }

    /// Gives a job its id, and its payload its place.
    pub(super) async fn prepare(&self, mut submission: Submission) -> Result<Prepared> {
        let id = submission.id.take().unwrap_or_else(JobId::random);
        let Some(blobs) = &self.config.blobs else { return Ok(Prepared { id, submission, payload: None }) };
        if size_bound(&submission.payload) <= Submission::MAX_INLINE_BYTES {
            return Ok(Prepared { id, submission, payload: None });
        }
        let bytes = serde_json::to_vec(&submission.payload).map_err(|cause| BrokerError::damaged(&cause))?;
        if bytes.len() <= Submission::MAX_INLINE_BYTES {
            return Ok(Prepared { id, submission, payload: None });
        }
        let payload = Some(blobs.put(id.as_str(), "payload", bytes).await?);
        Ok(Prepared { id, submission: Submission { payload: Value::Null, ..submission }, payload })
    }

    /// The job was not queued, since another was there already.
    pub(super) async fn drop_prepared(&self, job: &Prepared) {
        if let (Some(_), Some(blobs)) = (&job.payload, &self.config.blobs) {
            // What is left behind is found by `verify`.
            let _ = blobs.delete_all(job.id.as_str(), Timestamp::from_millis(u64::MAX)).await;
        }
    }

    /// A result as the store is to hold it.
    pub(super) async fn place_result(&self, job: &JobId, result: String) -> Result<String> {
        let (bytes, most) = (result.len(), self.most_bytes());
        if bytes > most {
            let help = if self.config.blobs.is_none() { " (more with the setting blobs.url)" } else { "" };
            return Err(BrokerError::TooLarge(format!(
                "the result has {bytes} bytes, at most {most} are taken{help}; put large data into storage and return where it is"
            )));
        }
        match &self.config.blobs {
            Some(blobs) if bytes > Submission::MAX_INLINE_BYTES => {
                text(&blobs.put(job.as_str(), "result", result.into_bytes()).await?)
            }
            _ => Ok(result),
        }
    }

    async fn fetch(&self, blob: &BlobRef) -> Result<Value> {
        let none = || BrokerError::damaged(&format!("{} lies in a blob store, and none is set (blobs.url)", blob.key));
        let bytes = self.config.blobs.as_ref().ok_or_else(none)?.get(blob).await?;
        serde_json::from_slice(&bytes).map_err(|cause| BrokerError::damaged(&cause))
    }

    pub(super) async fn loaded(&self, mut job: Job) -> Result<Job> {
        if let Some(blob) = &job.payload_blob {
            job.submission.payload = self.fetch(blob).await?;
        }
        if let Some(blob) = &job.result_blob {
            job.result = Some(self.fetch(blob).await?);
        }
        Ok(job)
    }

    /// Deletes the blobs of jobs that are kept no longer.
    pub(super) async fn collect(&self) -> Result<()> {
        let Some(blobs) = &self.config.blobs else { return Ok(()) };
        loop {
            let entries = self.store.call("garbage", Vec::new()).await?.pairs()?;
            let Some((first, _)) = entries.first() else { return Ok(()) };
            for (id, dropped) in &entries {
                blobs.delete_all(id, codec::time(dropped)?).await?;
            }
            self.store.call("collected", vec![entries.len().to_string(), first.clone()]).await?;
        }
    }

    /// Blobs of jobs that are not there: where a process was killed between keeping a payload and queueing its job.
    pub(super) async fn audit_blobs(&self, repair: bool) -> Result<Vec<String>> {
        let Some(blobs) = &self.config.blobs else { return Ok(Vec::new()) };
        let before = Timestamp::from_millis(Timestamp::now().as_millis().saturating_sub(ORPHAN_MILLIS));
        let owners: Vec<JobId> = blobs.owners(before).await?.iter().filter_map(|name| JobId::new(name).ok()).collect();
        let mut problems = Vec::new();
        let (_, found) = self.stored(&owners).await?;
        for (owner, (stored, _)) in owners.iter().zip(found) {
            if stored.is_some() {
                continue;
            }
            problems.push(format!("the blob store keeps data of job {owner}, which is not there"));
            if repair {
                blobs.delete_all(owner.as_str(), before).await?;
            }
        }
        Ok(problems)
    }
}
