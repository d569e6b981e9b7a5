//! `storage::`: objects in a directory, S3, Google Cloud Storage or Azure. The work is done in `host::storage`.

use crate::host::storage::Credentials;
use crate::script::call::{Call, ScriptResult, World};
use crate::script::options::{Options, Word};
use crate::script::prelude::*;
use crate::script::testing;
use crate::script::types::{HostError, Mask, Store};

/// What the clouds' own tools read.
const PREFIXES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Objects in a directory, S3 and what speaks as it does, Google Cloud Storage, or Azure.
#[export_module]
mod functions {
    /// Opens the store at `url`: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or the path of a
    /// directory, which is made. Credentials come from the environment, under the names that the clouds' own tools read
    /// (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME` ...). Nothing is
    /// asked before it is needed. Fails where `url` names no store.
    #[rhai_fn(return_raw)]
    pub fn open(url: &str) -> ScriptResult<Store> {
        open_with([("url".into(), url.into())].into_iter().collect())
    }

    /// As `open(url)`, with options that come before the environment:
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `url` | as above | required |
    /// | `endpoint` | address of a server that speaks as S3, or Azure, does | the cloud's own |
    /// | `region` | of S3 | `us-east-1` |
    /// | `access_key` | text or secret: the key's id with S3, the account's name with Azure | |
    /// | `secret_key` | secret: the key; with Google the JSON of a service account | |
    /// | `token` | secret: the session's token with S3, a SAS with Azure | |
    /// | `path_style` | whether the bucket stands in the path of addresses instead of in their host | true |
    #[rhai_fn(name = "open", return_raw)]
    pub fn open_with(options: Map) -> ScriptResult<Store> {
        let call = Call::current()?;
        let mut options = Options::new("storage::open", options);
        let url = options.text("url")?.ok_or_else(|| options.wrong("url", "is missing"))?;
        let mut mask = Mask::default();
        let mut word = |options: &mut Options, key| -> ScriptResult<Option<String>> {
            let word = options.word(key)?;
            if let Some(secret) = word.as_ref().and_then(Word::secret) {
                mask.add(secret.clone());
            }
            Ok(word.map(|word| word.text().to_owned()))
        };
        let credentials = Credentials {
            access_key: word(&mut options, "access_key")?,
            secret_key: word(&mut options, "secret_key")?,
            token: word(&mut options, "token")?,
            endpoint: options.text("endpoint")?,
            region: options.text("region")?,
            path_style: options.flag("path_style")?,
        };
        options.finish()?;
        let World::Real(deps) = call.world() else {
            return Ok(Store::new(testing::storage(&url), mask));
        };
        let environment = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            PREFIXES.iter().any(|prefix| name.starts_with(prefix)).then_some((name, value.into_string().ok()?))
        });
        let storage = deps.storages.open(&url, &credentials, environment);
        let storage = storage.map_err(|cause| mask.error(HostError::from(cause)))?;
        Ok(Store::new(storage, mask))
    }
}
