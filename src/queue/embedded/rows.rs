use rusqlite::Row;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::base::Timestamp;
use crate::queue::{Job, JobId, JobState, Submission};

/// How states are numbered in the file. Changing this needs a new schema version.
pub(super) const fn state_number(state: JobState) -> i64 {
    match state {
        JobState::Delayed => 0,
        JobState::Pending => 1,
        JobState::Running => 2,
        JobState::Completed => 3,
        JobState::Failed => 4,
        JobState::Cancelled => 5,
    }
}

pub(super) fn state_of(number: i64) -> Option<JobState> {
    JobState::ALL.into_iter().find(|state| state_number(*state) == number)
}

pub(super) fn millis(time: Timestamp) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn time(millis: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(millis).unwrap_or(0))
}

pub(super) const COLUMNS: &str = "id, state, submission, submitted, due, claimed, finished, worker, claims, attempts, \
                                  losses, progress, result, failure, saved, history";

/// Reads a job from [`COLUMNS`]; `full` false leaves payload, result and saved value out.
pub(super) fn job(row: &Row<'_>, full: bool) -> rusqlite::Result<Job> {
    let mut submission: Submission = json(row, 2)?;
    let id: String = row.get(0)?;
    let state: i64 = row.get(1)?;
    let optional_time =
        |index: usize| -> rusqlite::Result<Option<Timestamp>> { Ok(row.get::<_, Option<i64>>(index)?.map(time)) };
    if !full {
        submission.payload = Value::Null;
    }
    Ok(Job {
        id: JobId::new(&id).map_err(|cause| broken(0, cause))?,
        state: state_of(state).ok_or(rusqlite::Error::IntegralValueOutOfRange(1, state))?,
        submission: Submission { id: None, ..submission },
        submitted: time(row.get(3)?),
        due: optional_time(4)?,
        claimed: optional_time(5)?,
        finished: optional_time(6)?,
        worker: row.get(7)?,
        claims: row.get::<_, i64>(8)?.unsigned_abs(),
        attempts: row.get(9)?,
        losses: row.get(10)?,
        progress: optional_json(row, 11)?,
        result: if full { optional_json(row, 12)? } else { None },
        failure: optional_json(row, 13)?,
        saved: if full { optional_json(row, 14)? } else { None },
        history: json(row, 15)?,
    })
}

pub(super) fn json<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    let text: String = row.get(index)?;
    serde_json::from_str(&text).map_err(|cause| broken(index, cause))
}

fn optional_json<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(index)?;
    text.map(|text| serde_json::from_str(&text).map_err(|cause| broken(index, cause))).transpose()
}

fn broken(index: usize, cause: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(cause))
}
