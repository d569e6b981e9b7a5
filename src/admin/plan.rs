use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::Problems;
use crate::spec::{ChangePlan, FieldChange};

/// What a reload would do to a running machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReloadPlan {
    /// The generation that runs.
    pub generation: u64,
    /// Files of the program that are new, gone, or read otherwise.
    pub files: Vec<PathBuf>,
    pub settings: Vec<FieldChange>,
    #[serde(flatten)]
    pub changes: ChangePlan,
    pub warnings: Problems,
}

impl ReloadPlan {
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.settings.is_empty() && self.changes == ChangePlan::default()
    }
}
