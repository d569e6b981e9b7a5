use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of a service, worker, connector, pool or machine type: 1 to 63 characters, ASCII letters, digits, `.`, `_`
/// and `-`, beginning with a letter or digit. Such a name is safe as a file name, a metric label and a URL segment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid name {given:?}: a name has 1 to 63 ASCII letters, digits, '.', '_' or '-' and begins with a letter or digit"
)]
pub struct InvalidName {
    given: String,
}

impl Name {
    pub const MAX_LEN: usize = 63;

    /// # Errors
    /// When `text` is not a valid name.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let valid_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let valid = !text.is_empty()
            && text.len() <= Self::MAX_LEN
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(valid_char);
        if valid {
            Ok(Self(text.into()))
        } else {
            let given = text.chars().take(80).collect();
            Err(InvalidName { given })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for Name {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::Name;

    #[test]
    fn names_are_checked() {
        for good in ["a", "comfyui-gpu0", "A.b_c-9", "0", &"x".repeat(63)] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".hidden", "a/b", "a b", "..", "ü", "a\n", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
    }
}
