//! `Secret`: a text that scripts can hand on, to where credentials belong, and never see.

use std::ffi::OsString;
use std::io::Read;

use crate::script::prelude::*;

use crate::script::call::{Call, ScriptResult, error};
use crate::settings;

/// A file of a secret is read up to here; keys and tokens are far smaller.
const MAX_BYTES: u64 = 64 * 1024;

/// Redacted wherever it is printed, turned into text or serialised.
#[derive(Clone)]
pub(in crate::script) struct Secret(settings::Secret);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(settings::Secret::new(text))
    }

    /// The text itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        self.0.reveal()
    }

    /// `text` without the secret, where somebody sent it back.
    pub fn hide_in(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(self.reveal(), "[redacted]") }
    }

    /// The secret `name`, for a primitive.
    pub fn of_environment(name: &str) -> ScriptResult<Self> {
        let call = Call::current()?;
        Self::read(name, |name| call.variable(name)).map_err(error)?.ok_or_else(|| {
            error(format!("the secret {name} is not there: set the environment variable {name}, or {name}_FILE"))
        })
    }

    /// From the environment variable `name`, else from the file that `name` with `_FILE` added names, which is how
    /// Docker and Kubernetes hand secrets over.
    fn read(name: &str, environment: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, String> {
        // A name with `=` or NUL names nothing, and asking for it would panic on some platforms.
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!("{name:?} is no name of an environment variable"));
        }
        if let Some(text) = environment(name) {
            let text = text.into_string().map_err(|_| format!("the secret {name} is no UTF-8 text"))?;
            return Ok(Some(Self::new(text)));
        }
        let Some(path) = environment(&format!("{name}_FILE")) else { return Ok(None) };
        let failed = |why: &dyn std::fmt::Display| format!("the secret {name}: {}: {why}", path.display());
        let file = std::fs::File::open(&path).map_err(|cause| failed(&cause))?;
        let mut text = String::new();
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|cause| failed(&cause))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(failed(&format!("it has more than {MAX_BYTES} bytes")));
        }
        // Editors and `echo` end a file with a line break that is no part of the secret.
        Ok(Some(Self::new(text.trim_end_matches(['\r', '\n']))))
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Secrets are used as values of `headers`, `auth` and `proxy` of `http::` and `ws::`, of `env` of `process::run`, and as
/// credentials of `storage::` and `redis::`. Everywhere else they show as `[redacted]`.
#[export_module]
mod functions {
    pub type Secret = super::Secret;

    /// The secret `name`: the environment variable of that name, else the content of the file that the variable
    /// `name` with `_FILE` added names (as Docker and Kubernetes do), without its last line break.
    ///
    /// Fails where neither is set.
    ///
    /// # Example
    /// ```rhai
    /// http::get(url, #{ headers: #{ authorization: "Bearer " + secret("API_TOKEN") } })
    /// ```
    #[rhai_fn(return_raw)]
    pub fn secret(name: &str) -> ScriptResult<Secret> {
        Secret::of_environment(name)
    }

    /// Whether there is a secret `name`.
    #[rhai_fn(return_raw)]
    pub fn has_secret(name: &str) -> ScriptResult<bool> {
        let call = Call::current()?;
        Ok(Secret::read(name, |name| call.variable(name)).map_err(error)?.is_some())
    }

    /// Text with a secret behind it is a secret: `"Bearer " + secret("API_TOKEN")`.
    #[rhai_fn(name = "+", pure)]
    pub fn text_and_secret(text: &mut ImmutableString, secret: Secret) -> Secret {
        Secret::new(format!("{text}{}", secret.reveal()))
    }

    /// A secret with text behind it is a secret.
    #[rhai_fn(name = "+", pure)]
    pub fn secret_and_text(secret: &mut Secret, text: ImmutableString) -> Secret {
        Secret::new(format!("{}{text}", secret.reveal()))
    }

    /// Two secrets make one.
    #[rhai_fn(name = "+", pure)]
    pub fn secret_and_secret(secret: &mut Secret, other: Secret) -> Secret {
        Secret::new(format!("{}{}", secret.reveal(), other.reveal()))
    }

    /// Always `[redacted]`.
    #[rhai_fn(name = "to_string", pure)]
    pub fn secret_to_string(secret: &mut Secret) -> String {
        secret.to_string()
    }

    /// Always `[redacted]`.
    #[rhai_fn(name = "to_debug", pure)]
    pub fn secret_to_debug(secret: &mut Secret) -> String {
        secret.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine() -> rhai::Engine {
        let mut engine = rhai::Engine::new();
        crate::script::api::Section::of_type("Secret", super::module()).register(&mut engine);
        engine
    }

    #[test]
    fn secrets_come_from_the_environment_or_from_a_file_it_names() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hunter2\r\n").unwrap();
        let environment = |name: &str| match name {
            "OPEN" => Some(OsString::from("open sesame")),
            "KEY_FILE" | "OPEN_FILE" => Some(file.path().into()),
            "LOST_FILE" => Some("/nowhere/at/all".into()),
            _ => None,
        };
        let read = |name: &str| Secret::read(name, environment).map(|secret| secret.map(|s| s.reveal().to_owned()));
        assert_eq!(read("OPEN").unwrap().unwrap(), "open sesame");
        assert_eq!(read("KEY").unwrap().unwrap(), "hunter2");
        assert_eq!(read("NONE").unwrap(), None);
        assert!(read("LOST").unwrap_err().contains("/nowhere/at/all"));
        assert!(read("A=B").is_err());
        std::fs::write(file.path(), vec![b'x'; 70_000]).unwrap();
        assert!(read("KEY").unwrap_err().contains("65536"));
    }

    #[test]
    fn a_secret_stays_one_and_is_never_shown() {
        let engine = engine();
        let mut scope = rhai::Scope::new();
        scope.push("key", Secret::new("hunter2"));
        let joined: Secret = engine.eval_with_scope(&mut scope, "\"Bearer \" + key + \"!\"").unwrap();
        assert_eq!(joined.reveal(), "Bearer hunter2!");
        let both: Secret = engine.eval_with_scope(&mut scope, "key + key").unwrap();
        assert_eq!(both.reveal(), "hunter2hunter2");
        for shown in [
            "`x${key}`",
            "key.to_string()",
            "[key].to_string()",
            "#{ a: [key] }.to_string()",
            "#{ a: key }.to_json()",
            "let x = \"x\"; x += key; x.to_string()",
            "key.to_debug()",
            "let a = [key]; a.push(`${key}`); a.to_debug()",
        ] {
            let text: String = engine.eval_with_scope(&mut scope, shown).unwrap();
            assert!(!text.contains("hunter2"), "{shown}: {text}");
        }
        for refused in ["key.len()", "key.sub_string(1)", "key[0]", "key.split(\"\")", "key.to_blob()", "throw key"] {
            let cause = engine.eval_with_scope::<Dynamic>(&mut scope, refused).unwrap_err();
            assert!(!format!("{cause} {cause:?}").contains("hunter2"), "{refused}: {cause:?}");
        }
    }
}
