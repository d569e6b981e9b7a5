use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Local, TimeZone, Utc};
use croner::Cron;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Timestamp;

/// Recurring times as cron writes them: minute, hour, day of month, month, day of week; or `@hourly`, `@daily` and the
/// like. In the time zone of the process (`TZ`).
#[derive(Clone)]
pub struct Schedule {
    text: String,
    cron: Box<Cron>,
}

impl Schedule {
    /// The first time after `now`; none where there is none, as for the 30th of February.
    pub fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        let now: DateTime<Local> =
            Utc.timestamp_millis_opt(i64::try_from(now.as_millis()).ok()?).single()?.with_timezone(&Local);
        let next = self.cron.find_next_occurrence(&now, false).ok()?;
        u64::try_from(next.timestamp_millis()).ok().map(Timestamp::from_millis)
    }
}

impl FromStr for Schedule {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let cron = Cron::from_str(text).map_err(|cause| {
            format!("invalid schedule {text:?}: {cause}; write minute hour day month weekday, e.g. \"30 4 * * *\"")
        })?;
        Ok(Self { text: text.to_owned(), cron: Box::new(cron) })
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Schedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_time_lies_ahead() {
        let every: Schedule = "* * * * *".parse().unwrap();
        let now = Timestamp::from_millis(1_700_000_000_123);
        assert_eq!(every.next_after(now), Some(Timestamp::from_millis(1_700_000_040_000)));
        assert!("@hourly".parse::<Schedule>().unwrap().next_after(now).unwrap() > now);
        assert_eq!("0 0 30 2 *".parse::<Schedule>().map(|never| never.next_after(now)), Ok(None));
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        let problem = "every day".parse::<Schedule>().unwrap_err();
        assert!(problem.contains("every day") && problem.contains("30 4 * * *"), "{problem}");
    }
}
