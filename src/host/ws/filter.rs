use std::cell::OnceCell;

use serde_json::Value;

use super::Frame;

/// Which messages of a shared connection a subscriber gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    /// JSON pointers with the values of which one has to be there. A text that is no JSON passes only when there are none.
    pub wanted: Vec<(String, Vec<Value>)>,
    /// Binary messages, too.
    pub blobs: bool,
}

/// A message, parsed once for all filters that look into it, or never.
pub(super) struct Candidate<'a> {
    pub frame: &'a Frame,
    json: OnceCell<Option<Value>>,
}

impl<'a> Candidate<'a> {
    pub fn new(frame: &'a Frame) -> Self {
        Self { frame, json: OnceCell::new() }
    }
}

impl Filter {
    /// Whether a message is one that was asked for.
    pub fn lets_through(&self, frame: &Frame) -> bool {
        self.passes(&Candidate::new(frame))
    }

    pub(super) fn passes(&self, candidate: &Candidate<'_>) -> bool {
        let text = match candidate.frame {
            Frame::Blob(_) => return self.blobs,
            Frame::Text(_) if self.wanted.is_empty() => return true,
            Frame::Text(text) => text,
        };
        let json = candidate.json.get_or_init(|| serde_json::from_str(text.as_str()).ok());
        let Some(json) = json else { return false };
        self.wanted.iter().all(|(pointer, values)| json.pointer(pointer).is_some_and(|value| values.contains(value)))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_passes_when_all_that_is_wanted_is_in_it() {
        let filter = |wanted: &[(&str, &[Value])]| Filter {
            wanted: wanted.iter().map(|(pointer, values)| ((*pointer).to_owned(), values.to_vec())).collect(),
            blobs: false,
        };
        let passes = |filter: &Filter, text: &str| {
            let frame = Frame::text(text.to_owned());
            filter.passes(&Candidate::new(&frame))
        };
        let one = filter(&[("/data/id", &[json!("a")])]);
        assert!(passes(&one, r#"{"data":{"id":"a","x":1}}"#));
        for text in [r#"{"data":{"id":"b"}}"#, r#"{"data":{}}"#, "[]", "no json", ""] {
            assert!(!passes(&one, text), "{text}");
        }
        let both = filter(&[("/type", &[json!("x"), json!("y")]), ("/n", &[json!(1)])]);
        assert!(passes(&both, r#"{"type":"y","n":1}"#));
        assert!(!passes(&both, r#"{"type":"z","n":1}"#) && !passes(&both, r#"{"type":"x","n":2}"#));
        assert!(passes(&filter(&[]), "no json"));
        let blob = Frame::Blob(Bytes::from_static(b"{}"));
        assert!(!one.passes(&Candidate::new(&blob)));
        assert!(Filter { blobs: true, ..one }.passes(&Candidate::new(&blob)));
    }
}
