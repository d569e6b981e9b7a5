use schemars::JsonSchema;

use super::Observed;
use crate::base::{Field, fields};

/// A kind of event, for those who write hooks and alert rules.
#[derive(Clone, Debug)]
pub struct EventKind {
    pub kind: &'static str,
    /// When it happens.
    pub about: String,
    /// What `data` holds.
    pub fields: Vec<Field>,
}

impl EventKind {
    pub fn of<E: Observed + JsonSchema>() -> Self {
        let (about, fields) = fields::<E>();
        Self { kind: E::KIND, about, fields }
    }
}
