use std::io::Write as _;

use super::LogStream;
use crate::base::{Name, Timestamp};
use crate::spec::LogFileFormat;

/// Puts time, service, incarnation and stream before (or around) lines. Made once for all lines that were read at once.
pub(super) struct Stamp {
    before: Vec<u8>,
    after: &'static [u8],
    json: bool,
}

impl Stamp {
    pub fn new(format: LogFileFormat, at: Timestamp, service: &Name, incarnation: u64, stream: LogStream) -> Self {
        let mut before = Vec::with_capacity(128);
        let stream = stream.as_str();
        // Writing into a vector cannot fail.
        let _ = match format {
            LogFileFormat::Text => write!(before, "{at} {service}#{incarnation} {stream} | "),
            LogFileFormat::Json => write!(
                before,
                "{{\"time\":\"{at}\",\"service\":\"{service}\",\"incarnation\":{incarnation},\"stream\":\"{stream}\",\"text\":"
            ),
        };
        let json = format == LogFileFormat::Json;
        Self { before, after: if json { b"}\n" } else { b"\n" }, json }
    }

    /// A line for people on the engine's standard output.
    pub fn passthrough(service: &Name) -> Self {
        Self { before: format!("{service} | ").into_bytes(), after: b"\n", json: false }
    }

    pub fn line(&self, text: &[u8], to: &mut Vec<u8>) {
        to.extend_from_slice(&self.before);
        if self.json {
            let text = String::from_utf8_lossy(text);
            let _ = serde_json::to_writer(&mut *to, &text);
        } else {
            to.extend_from_slice(text);
        }
        to.extend_from_slice(self.after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_carry_where_they_come_from() {
        let name = Name::new("web").unwrap();
        let line = |format| {
            let stamp = Stamp::new(format, Timestamp::from_millis(1_700_000_000_123), &name, 3, LogStream::Stderr);
            let mut text = Vec::new();
            stamp.line(b"a \"b\" \xff", &mut text);
            String::from_utf8_lossy(&text).into_owned()
        };
        assert_eq!(line(LogFileFormat::Text), "2023-11-14T22:13:20.123Z web#3 stderr | a \"b\" \u{fffd}\n");
        let json: serde_json::Value = serde_json::from_str(&line(LogFileFormat::Json)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({ "time": "2023-11-14T22:13:20.123Z", "service": "web", "incarnation": 3, "stream": "stderr",
                "text": "a \"b\" \u{fffd}" })
        );
    }
}
