use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::progress::Progress;
use super::{ProvisionError, run};
use crate::spec::PipInstall;

/// Makes the virtual environment and installs into it, unless exactly this has been installed before.
pub(super) async fn install(item: &PipInstall, dir: &Path, progress: &Progress) -> Result<(), ProvisionError> {
    let venv = dir.join(&item.venv);
    let name = item.venv.display().to_string();
    let python = PathBuf::from(item.python.as_deref().unwrap_or("python3"));
    let inside = venv.join("bin/python");
    let done = venv.join(".machinist-installed");
    let wanted = fingerprint(item, dir)?;
    if inside.exists() && std::fs::read_to_string(&done).is_ok_and(|text| text == wanted) {
        progress.say(&format!("{name}: is installed"));
        return Ok(());
    }
    if !inside.exists() {
        progress.say(&format!("{name}: making the environment"));
        let path = venv.display().to_string();
        run(&python, &["-m", "venv", &path], dir).await?;
    }
    progress.say(&format!("{name}: installing"));
    let requirements: Vec<String> = item.requirements.iter().map(|file| dir.join(file).display().to_string()).collect();
    let mut args = vec!["-m", "pip", "install", "--disable-pip-version-check", "--no-input"];
    args.extend(item.args.iter().map(String::as_str));
    for file in &requirements {
        args.extend(["-r", file]);
    }
    args.extend(item.packages.iter().map(String::as_str));
    run(&inside, &args, dir).await?;
    std::fs::write(&done, wanted).map_err(|cause| ProvisionError::Lasting(format!("{}: {cause}", done.display())))?;
    progress.say(&format!("{name}: installed"));
    Ok(())
}

/// Over everything that decides what gets installed.
fn fingerprint(item: &PipInstall, dir: &Path) -> Result<String, ProvisionError> {
    let mut hasher = Sha256::new();
    hasher.update(serde_json::to_vec(item).unwrap_or_default());
    for file in &item.requirements {
        let path = dir.join(file);
        let text = std::fs::read(&path)
            .map_err(|cause| ProvisionError::Lasting(format!("{} cannot be read: {cause}", path.display())))?;
        hasher.update(text);
    }
    Ok(hasher.finalize().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
}
