use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::Fields;

/// What a setup brings about instead of running a program of its own. Each part is skipped when it is there already, so
/// that a second boot is fast.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepSpec {
    /// Made with their parents.
    pub directories: Vec<PathBuf>,
    pub download: Vec<Download>,
    pub git: Vec<GitCheckout>,
    pub pip: Option<PipInstall>,
    /// Downloads at one time. Default 4.
    pub parallel: usize,
    /// Tries of each part after the first. Default 5.
    pub retries: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Download {
    pub url: String,
    /// A file, relative to the service's directory.
    pub to: PathBuf,
    /// 64 hex digits. Without it a file that is there is taken as it is.
    #[serde(default)]
    pub sha256: Option<String>,
    /// The name of an environment variable whose value is sent as a bearer token.
    #[serde(default)]
    pub token_env: Option<String>,
    /// Permission bits in octal, e.g. "755".
    #[serde(default)]
    pub mode: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitCheckout {
    pub url: String,
    pub to: PathBuf,
    /// A branch, tag or commit. Default: the remote's HEAD.
    #[serde(default, rename = "ref")]
    pub reference: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipInstall {
    /// The virtual environment, made when it is not there.
    pub venv: PathBuf,
    #[serde(default)]
    pub packages: Vec<String>,
    /// Files of requirements; their content decides whether there is something to do.
    #[serde(default)]
    pub requirements: Vec<PathBuf>,
    /// More arguments for `pip install`.
    #[serde(default)]
    pub args: Vec<String>,
    /// Default `python3`.
    #[serde(default)]
    pub python: Option<String>,
}

impl StepSpec {
    /// The parts of a step among the keys of a service; none where there is none.
    pub(super) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let before = fields.no_problem_yet();
        let directories = fields.optional::<Vec<PathBuf>>("directories");
        let download = one_or_many::<Download>(fields, "download");
        let git = one_or_many::<GitCheckout>(fields, "git");
        let pip = fields.optional::<PipInstall>("pip");
        let parallel = fields.optional::<usize>("parallel");
        let retries = fields.optional::<u32>("retries");
        let any = directories.is_some() || download.is_some() || git.is_some() || pip.is_some();
        if !any && before {
            return None;
        }
        let step = Self {
            directories: directories.unwrap_or_default(),
            download: download.unwrap_or_default(),
            git: git.unwrap_or_default(),
            pip,
            parallel: parallel.unwrap_or(4).clamp(1, 64),
            retries: retries.unwrap_or(5),
        };
        step.check(fields);
        any.then_some(step)
    }

    fn check(&self, fields: &mut Fields<'_>) {
        let mut targets = BTreeSet::new();
        for download in &self.download {
            if !download.url.starts_with("http://") && !download.url.starts_with("https://") {
                fields.wrong("download", &format!("{:?} is no http:// or https:// address", download.url));
            }
            if let Some(sum) = &download.sha256
                && (sum.len() != 64 || !sum.chars().all(|c| c.is_ascii_hexdigit()))
            {
                fields.wrong("download", &format!("sha256 of {:?}: expected 64 hex digits", download.url));
            }
            if download.mode.as_ref().is_some_and(|mode| u32::from_str_radix(mode, 8).is_ok_and(|m| m > 0o7777)) {
                fields.wrong("download", "mode: expected octal digits, e.g. \"755\"");
            }
            if !targets.insert(&download.to) {
                fields.wrong("download", &format!("two downloads go to {}", download.to.display()));
            }
        }
        if self.pip.as_ref().is_some_and(|pip| pip.packages.is_empty() && pip.requirements.is_empty()) {
            fields.wrong("pip", "nothing to install: write packages: [...] or requirements: [...]");
        }
    }
}

fn one_or_many<T: serde::de::DeserializeOwned>(fields: &mut Fields<'_>, key: &'static str) -> Option<Vec<T>> {
    match fields.raw(key)? {
        Value::Array(_) => fields.optional::<Vec<T>>(key),
        _ => fields.optional::<T>(key).map(|one| vec![one]),
    }
}
