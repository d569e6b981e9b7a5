//! Parts of a JSON text, handed out while it is read: what lies between them never becomes a value.

use std::fmt;

use rhai::Dynamic;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::script::call::ScriptResult;

/// A JSON pointer in which `*` stands for any key or index.
pub(super) struct Pattern(Vec<String>);

impl Pattern {
    /// # Errors
    /// A sentence, where it neither begins with `/` nor is empty.
    pub fn new(text: &str) -> Result<Self, String> {
        let mut steps = text.split('/');
        if steps.next() != Some("") {
            return Err(format!("{text:?} is no JSON pointer: it begins with a slash"));
        }
        Ok(Self(steps.map(|step| step.replace("~1", "/").replace("~0", "~")).collect()))
    }
}

/// Hands the parts of `text` that `pattern` means to `take`, in their order, until that says that it has enough: whether the text
/// came to its end.
///
/// # Errors
/// Where the text is no JSON, which may be found out after parts of it were handed out.
pub(super) fn each_part(
    text: &[u8],
    pattern: &Pattern,
    mut take: impl FnMut(Dynamic) -> ScriptResult<bool>,
) -> Result<ScriptResult<bool>, serde_json::Error> {
    let mut ended = None;
    let mut hand_out = |part| {
        let outcome = take(part);
        let goes_on = matches!(outcome, Ok(true));
        if !goes_on {
            ended = Some(outcome);
        }
        goes_on
    };
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = At { rest: &pattern.0, take: &mut hand_out }.deserialize(&mut reader).and_then(|()| reader.end());
    match ended {
        Some(outcome) => Ok(outcome),
        None => read.map(|()| Ok(true)),
    }
}

struct At<'a> {
    rest: &'a [String],
    take: &'a mut dyn FnMut(Dynamic) -> bool,
}

impl At<'_> {
    /// What lies under `key`, where the pattern leads there.
    fn below(&mut self, key: &str) -> Option<At<'_>> {
        let (step, rest) = self.rest.split_first()?;
        (step == "*" || step == key).then_some(At { rest, take: &mut *self.take })
    }
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        if !self.rest.is_empty() {
            return reader.deserialize_any(self);
        }
        let part = Dynamic::deserialize(reader)?;
        if (self.take)(part) { Ok(()) } else { Err(D::Error::custom("enough")) }
    }
}

/// Skips the rest of what it visits, or walks on in it.
struct Below<'a>(Option<At<'a>>);

impl<'de> DeserializeSeed<'de> for Below<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        match self.0 {
            Some(at) => at.deserialize(reader),
            None => IgnoredAny::deserialize(reader).map(drop),
        }
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(Below(self.below(&key)))?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        let mut index = 0_usize;
        while seq.next_element_seed(Below(self.below(&index.to_string())))?.is_some() {
            index += 1;
        }
        Ok(())
    }

    // Nothing lies below these.

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Pattern, each_part};
    use crate::script::call::error;

    fn parts(text: &str, pattern: &str) -> Vec<String> {
        let mut found = Vec::new();
        let outcome = each_part(text.as_bytes(), &Pattern::new(pattern).unwrap(), |part| {
            found.push(part.to_string());
            Ok(true)
        });
        assert!(outcome.unwrap().unwrap());
        found
    }

    #[test]
    fn a_star_is_any_key_or_index() {
        let text = r#"{"a": {"x": [[1, 2], "t"], "y": null}, "b": [7, {"x": [[3], 4.5]}], "c/d": {"*": true}}"#;
        for (pattern, expected) in [
            ("/*/x/0", vec!["[1, 2]"]),
            ("/*/*/x/0/*", vec!["3"]),
            ("/a/x/*", vec!["[1, 2]", "t"]),
            ("/b/1/x/1", vec!["4.5"]),
            ("/c~1d/*", vec!["true"]),
            ("/a/y", vec![""]),
            ("/a/y/z", vec![]),
            ("/none/*", vec![]),
        ] {
            assert_eq!(parts(text, pattern), expected, "{pattern}");
        }
        assert_eq!(parts("[1]", ""), ["[1]"]);
        assert!(Pattern::new("a/*").is_err());
    }

    #[test]
    fn it_ends_where_it_is_told_to_and_says_what_is_no_json() {
        let (text, pattern) = (b"[1, 2, 3", Pattern::new("/*").unwrap());
        let mut seen = 0;
        let mut two = |_| {
            seen += 1;
            Ok(seen < 2)
        };
        assert!(!each_part(text, &pattern, &mut two).unwrap().unwrap());
        assert!(each_part(text, &pattern, |_| Ok(true)).is_err());
        assert!(each_part(b"[1] x", &pattern, |_| Ok(true)).is_err());
        let failed = each_part(text, &pattern, |_| Err(error("no".to_owned()))).unwrap();
        assert!(failed.unwrap_err().to_string().contains("no"));
    }
}
