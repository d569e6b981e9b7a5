//! Whether a request is made again, and when. Pure: what happened goes in, a wait comes out.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, StatusCode};

use crate::base::{Backoff, Seconds};

/// Whoever asks for a longer pause is not waited for here: the job is.
const MAX_WAIT: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Tries after the first.
    pub max: u32,
    /// What is tried again; the usual where nothing is said.
    pub on: Option<Vec<RetryOn>>,
    /// Methods that may do something twice are repeated, too.
    pub unsafe_too: bool,
    pub backoff: Backoff,
    /// Where a server asks for a longer pause there is no other try.
    pub patience: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOn {
    Connect,
    Timeout,
    Status(u16),
}

/// What a try came to.
pub enum Outcome<'a> {
    /// No connection: nothing was sent.
    NotSent,
    /// The connection broke before the answer.
    Broken,
    /// No answer in time.
    NoAnswer,
    Answer(StatusCode, &'a HeaderMap),
    /// Another time would be the same.
    Hopeless,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let backoff =
            Backoff { initial: Seconds::from_millis(500), max: Seconds::from_secs(8), factor: 2.0, jitter: 0.25 };
        Self { max: 2, on: None, unsafe_too: false, backoff, patience: MAX_WAIT }
    }
}

impl RetryPolicy {
    /// The wait before the next try after `failures` that failed; none when there is to be no other.
    pub fn wait(
        &self,
        method: &Method,
        outcome: &Outcome<'_>,
        failures: u32,
        now: SystemTime,
        chance: f64,
    ) -> Option<Duration> {
        if failures > self.max {
            return None;
        }
        let may_repeat = self.unsafe_too || method.is_idempotent();
        let listed = |what: RetryOn| self.on.as_ref().is_none_or(|on| on.contains(&what));
        let mut asked = None;
        let again = match outcome {
            Outcome::NotSent => listed(RetryOn::Connect),
            Outcome::Broken => listed(RetryOn::Connect) && may_repeat,
            Outcome::NoAnswer => listed(RetryOn::Timeout) && may_repeat,
            Outcome::Hopeless => false,
            Outcome::Answer(status, headers) => {
                asked = retry_after(headers, now);
                let status = status.as_u16();
                let usual = match &self.on {
                    Some(on) => on.contains(&RetryOn::Status(status)),
                    None => matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 506..=599),
                };
                match headers.get("x-should-retry").and_then(|value| value.to_str().ok()) {
                    Some("true") if status >= 400 => true,
                    Some("false") => false,
                    // Whoever says "too many" has done nothing.
                    _ => usual && (may_repeat || status == 429),
                }
            }
        };
        let wait = asked.unwrap_or_else(|| self.backoff.delay(failures, chance));
        (again && wait <= self.patience).then_some(wait)
    }
}

/// `retry-after-ms`, else `retry-after` in seconds or as a date.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let millis = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok());
    if let Some(wait) = millis.and_then(|millis| Duration::try_from_secs_f64(millis / 1000.0).ok()) {
        return Some(wait);
    }
    let text = text(RETRY_AFTER.as_str())?;
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn wait(policy: &RetryPolicy, method: &Method, outcome: &Outcome<'_>, failures: u32) -> Option<u128> {
        policy.wait(method, outcome, failures, SystemTime::UNIX_EPOCH, 0.0).map(|wait| wait.as_millis())
    }

    #[test]
    fn the_whole_table() {
        let policy = RetryPolicy::default();
        let none = HeaderMap::new();
        let answer = |status: u16| Outcome::Answer(StatusCode::from_u16(status).unwrap(), &none);
        let (get, post) = (Method::GET, Method::POST);
        for status in [200, 304, 400, 401, 403, 404, 409, 422, 501, 505] {
            assert_eq!(wait(&policy, &get, &answer(status), 1), None, "{status}");
        }
        for status in [408, 425, 429, 500, 502, 503, 504, 529] {
            assert_eq!(wait(&policy, &get, &answer(status), 1), Some(500), "{status}");
            assert_eq!(wait(&policy, &post, &answer(status), 1), (status == 429).then_some(500), "{status}");
        }
        assert_eq!(wait(&policy, &get, &answer(503), 2), Some(1000));
        assert_eq!(wait(&policy, &get, &answer(503), 3), None, "two retries, no more");
        assert_eq!(wait(&policy, &post, &Outcome::NotSent, 1), Some(500));
        assert_eq!(wait(&policy, &post, &Outcome::Broken, 1), None);
        assert_eq!(wait(&policy, &post, &Outcome::NoAnswer, 1), None);
        assert_eq!(wait(&policy, &get, &Outcome::NoAnswer, 1), Some(500));
        assert_eq!(wait(&policy, &get, &Outcome::Hopeless, 1), None);

        let bold = RetryPolicy { unsafe_too: true, on: Some(vec![RetryOn::Status(409)]), ..policy.clone() };
        assert_eq!(wait(&bold, &post, &answer(409), 1), Some(500));
        assert_eq!(wait(&bold, &post, &answer(503), 1), None);
        assert_eq!(wait(&bold, &post, &Outcome::NotSent, 1), None);
    }

    #[test]
    fn servers_are_heard() {
        let policy = RetryPolicy::default();
        for (lines, expected) in [
            (&[("retry-after", "2")][..], Some(2000)),
            (&[("retry-after", "0.25")], Some(250)),
            (&[("retry-after", "Thu, 01 Jan 1970 00:00:07 GMT")], Some(7000)),
            (&[("retry-after-ms", "30"), ("retry-after", "9")], Some(30)),
            (&[("retry-after", "121")], None),
            (&[("retry-after", "soon")], Some(500)),
            (&[("retry-after", "-1")], Some(500)),
            (&[("x-should-retry", "false")], None),
        ] {
            let headers = headers(lines);
            let outcome = Outcome::Answer(StatusCode::SERVICE_UNAVAILABLE, &headers);
            assert_eq!(wait(&policy, &Method::GET, &outcome, 1), expected, "{lines:?}");
        }
        let brief = RetryPolicy { patience: Duration::from_secs(2), ..policy.clone() };
        for (asked, expected) in [("2", Some(2000)), ("3", None)] {
            let headers = headers(&[("retry-after", asked)]);
            let outcome = Outcome::Answer(StatusCode::TOO_MANY_REQUESTS, &headers);
            assert_eq!(wait(&brief, &Method::POST, &outcome, 1), expected, "{asked}");
        }
        let told = headers(&[("x-should-retry", "true")]);
        let outcome = Outcome::Answer(StatusCode::CONFLICT, &told);
        assert_eq!(wait(&policy, &Method::POST, &outcome, 1), Some(500));
    }
}
