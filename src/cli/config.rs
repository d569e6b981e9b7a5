use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use super::{CliError, Global, output};
use crate::cli::run::SettingFlags;
use crate::settings::load;

#[derive(Clone, Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The machine's directory.
    #[arg(default_value = ".")]
    dir: PathBuf,
    #[command(flatten)]
    flags: SettingFlags,
}

/// Settings that are never shown.
const SECRETS: [&str; 1] = ["http.token"];

pub(super) fn execute(args: &ConfigArgs, global: &Global) -> Result<ExitCode, CliError> {
    let overrides = args.flags.overrides()?;
    let (settings, tree) =
        load(&args.dir, &overrides).map_err(|problems| CliError::configuration(problems.to_string()))?;
    // What was derived, where the setting itself is empty.
    let derived = [
        ("state_dir", settings.state_dir.display().to_string()),
        ("scripts_dir", settings.scripts_dir.display().to_string()),
        ("machine.type", settings.machine.machine_type.to_string()),
    ];
    let mut rows = Vec::new();
    let mut document = Map::new();
    for (path, leaf) in &tree.leaves {
        let key = path.join(".");
        let empty = leaf.value.as_str().is_some_and(str::is_empty);
        let derived = derived.iter().find(|(name, _)| *name == key).filter(|_| empty);
        let value = match derived {
            Some((_, value)) => Value::String(value.clone()),
            None if SECRETS.contains(&key.as_str()) && !empty => Value::String("[redacted]".to_owned()),
            None => leaf.value.clone(),
        };
        let origin = if derived.is_some() { format!("{}, derived", leaf.origin) } else { leaf.origin.to_string() };
        rows.push(vec![key.clone(), value.to_string(), origin.clone()]);
        document.insert(key, json!({ "value": value, "origin": origin }));
    }
    if global.json {
        output::json(&document);
    } else {
        output::table(&["SETTING", "VALUE", "ORIGIN"], &rows);
    }
    Ok(ExitCode::SUCCESS)
}
