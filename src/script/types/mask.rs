//! What was sent and no message may show: servers send back what they were sent.

use super::{HostError, Secret};

#[derive(Default)]
pub(in crate::script) struct Mask(Vec<Secret>);

impl Mask {
    pub fn add(&mut self, secret: Secret) {
        self.0.push(secret);
    }

    /// `text` without the secrets.
    pub fn text(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| secret.hide_in(&text))
    }

    pub fn error(&self, cause: impl Into<HostError>) -> HostError {
        let mut cause = cause.into();
        cause.message = self.text(&cause.message);
        cause.body = self.text(&cause.body);
        cause.headers.values_mut().for_each(|value| *value = self.text(value));
        cause
    }
}
