//! Server-sent events out of pieces of bytes, however they are cut.

/// A line or an event that grows beyond this is no event.
const MAX_EVENT: usize = 8 * 1024 * 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// `message` where the server names none.
    pub event: String,
    pub data: String,
    /// The last one that was sent, with this event or before it.
    pub id: String,
}

#[derive(Default)]
pub struct SseParser {
    line: Vec<u8>,
    /// The last piece ended with a carriage return: a line feed that follows belongs to it.
    after_return: bool,
    begun: bool,
    event: String,
    data: String,
    has_data: bool,
    id: String,
}

impl SseParser {
    /// The events that `bytes` complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<SseEvent>, String> {
        let mut events = Vec::new();
        for byte in bytes {
            let after_return = std::mem::take(&mut self.after_return);
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => {
                    self.after_return = *byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.take_line(&line));
                }
                _ => self.line.push(*byte),
            }
            if self.line.len() + self.data.len() > MAX_EVENT {
                return Err(format!("an event has more than {MAX_EVENT} bytes"));
            }
        }
        Ok(events)
    }

    fn take_line(&mut self, line: &[u8]) -> Option<SseEvent> {
        let text = String::from_utf8_lossy(line);
        let mut text = text.as_ref();
        if !std::mem::replace(&mut self.begun, true) {
            text = text.trim_start_matches('\u{feff}');
        }
        if text.is_empty() {
            let event = std::mem::take(&mut self.event);
            let data = std::mem::take(&mut self.data);
            if !std::mem::take(&mut self.has_data) {
                return None;
            }
            let event = if event.is_empty() { "message".to_owned() } else { event };
            return Some(SseEvent { event, data, id: self.id.clone() });
        }
        let (field, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            // Comments, which keep the connection alive, and what later versions may add.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "\u{feff}: hello\r\nid: 1\r\ndata: one\r\n\r\nevent: add\ndata: two\ndata:  three\n\n\
                          id\ndata\n\nevent: nothing\n\ndata: {\"x\":\"ü\"}\rid: 7\r\rdata: unfinished\n";

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        let event = |event: &str, data: &str, id: &str| SseEvent {
            event: event.to_owned(),
            data: data.to_owned(),
            id: id.to_owned(),
        };
        let expected = [
            event("message", "one", "1"),
            event("add", "two\n three", "1"),
            event("message", "", ""),
            event("message", "{\"x\":\"ü\"}", "7"),
        ];
        for size in 1..STREAM.len() {
            let mut parser = SseParser::default();
            let pieces = STREAM.as_bytes().chunks(size);
            let events: Vec<SseEvent> = pieces.flat_map(|piece| parser.push(piece).unwrap()).collect();
            assert_eq!(events, expected, "pieces of {size}");
        }
    }

    #[test]
    fn what_never_ends_is_refused() {
        let mut parser = SseParser::default();
        let piece = vec![b'x'; MAX_EVENT];
        assert!(parser.push(&piece).is_ok());
        assert!(parser.push(b"x").is_err());
    }
}
