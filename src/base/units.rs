use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration as people write it: `"200ms"`, `"10s"`, `"1h 30m"`, or a plain number of seconds (`10`, `0.5`).
/// Serialised as text with its unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seconds(pub Duration);

/// # Errors
/// A sentence for the reader when `text` is no duration.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.trim().parse::<f64>() {
        return duration_from_seconds(seconds);
    }
    humantime::parse_duration(text).map_err(|_| {
        format!(
            "invalid duration {text:?}: write a number with a unit such as \"200ms\", \"10s\", \"5m\" or \"1h 30m\""
        )
    })
}

fn duration_from_seconds(seconds: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| format!("invalid duration {seconds}: a number of seconds is positive and finite"))
}

impl Seconds {
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    pub const fn get(self) -> Duration {
        self.0
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&humantime::format_duration(self.0), f)
    }
}

impl fmt::Debug for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Seconds;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"10s\" or a number of seconds")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Seconds, E> {
                parse_duration(text).map(Seconds).map_err(E::custom)
            }
            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Seconds, E> {
                duration_from_seconds(seconds).map(Seconds).map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Seconds, E> {
                Ok(Seconds::from_secs(seconds))
            }
            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Seconds, E> {
                let seconds = u64::try_from(seconds)
                    .map_err(|_| E::custom(format!("invalid duration {seconds}: it is negative")))?;
                Ok(Seconds::from_secs(seconds))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A number of bytes as people write it: `"512KiB"`, `"10MB"`, or a plain number. Serialised as a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    pub const fn kib(kib: u64) -> Self {
        Self(kib * 1024)
    }

    pub const fn mib(mib: u64) -> Self {
        Self(mib * 1024 * 1024)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// For in-memory limits; saturates where `usize` is narrower.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"10MiB\" or a number of bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse::<bytesize::ByteSize>().map(|size| ByteSize(size.0)).map_err(|_| {
                    E::custom(format!("invalid size {text:?}: write a number of bytes or a unit, such as \"10MiB\""))
                })
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                let bytes =
                    u64::try_from(bytes).map_err(|_| E::custom(format!("invalid size {bytes}: it is negative")))?;
                Ok(ByteSize(bytes))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::{ByteSize, Seconds};
    use std::time::Duration;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let read = |json: &str| serde_json::from_str::<Seconds>(json).map(Seconds::get).map_err(|e| e.to_string());
        assert_eq!(read("\"200ms\"").unwrap(), Duration::from_millis(200));
        assert_eq!(read("\"1h 30m\"").unwrap(), Duration::from_secs(5400));
        assert_eq!(read("\"2\"").unwrap(), Duration::from_secs(2));
        assert_eq!(read("0.5").unwrap(), Duration::from_millis(500));
        assert_eq!(read("10").unwrap(), Duration::from_secs(10));
        for bad in ["-1", "\"soon\"", "\"10 parsecs\"", "\"\"", "-0.5", "1e300"] {
            assert!(read(bad).unwrap_err().contains("invalid duration"), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let read = |json: &str| serde_json::from_str::<ByteSize>(json).map(ByteSize::bytes);
        assert_eq!(read("\"10MiB\"").unwrap(), 10 << 20);
        assert_eq!(read("4096").unwrap(), 4096);
        assert!(read("\"much\"").is_err());
        assert!(read("-1").is_err());
    }
}
