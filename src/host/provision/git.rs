use std::path::Path;

use super::progress::Progress;
use super::{ProvisionError, run};
use crate::spec::GitCheckout;

/// Checks out a repository. A commit that is there already costs nothing; a branch or tag is asked for at every boot, and
/// where the remote cannot be reached the checkout that is there has to do.
pub(super) async fn check_out(item: &GitCheckout, dir: &Path, progress: &Progress) -> Result<(), ProvisionError> {
    let to = dir.join(&item.to);
    let name = item.to.display().to_string();
    let git = Path::new("git");
    let fresh = !to.join(".git").exists();
    let wanted = item.reference.as_deref().unwrap_or("HEAD");
    let is_commit = wanted.len() == 40 && wanted.chars().all(|c| c.is_ascii_hexdigit());
    if fresh {
        std::fs::create_dir_all(&to)
            .map_err(|cause| ProvisionError::Lasting(format!("{} cannot be made: {cause}", to.display())))?;
        run(git, &["init", "--quiet"], &to).await?;
        run(git, &["remote", "add", "origin", &item.url], &to).await?;
    } else {
        run(git, &["remote", "set-url", "origin", &item.url], &to).await?;
        if is_commit && head(&to).await.is_some_and(|head| head.eq_ignore_ascii_case(wanted)) {
            progress.say(&format!("{name}: is there"));
            return Ok(());
        }
    }
    progress.say(&format!("{name}: fetching {wanted}"));
    let mut fetched = run(git, &["fetch", "--progress", "--depth", "1", "origin", wanted], &to).await;
    let mut target = "FETCH_HEAD";
    if fetched.is_err() && is_commit {
        // Not every server gives single commits away.
        fetched = run(git, &["fetch", "--progress", "--tags", "origin"], &to).await;
        target = wanted;
    }
    if let Err(cause) = fetched {
        if head(&to).await.is_some() && !is_commit {
            progress.say(&format!("{name}: stays as it is, since {cause}"));
            return Ok(());
        }
        return Err(cause);
    }
    run(git, &["checkout", "--quiet", "--detach", target], &to).await.map_err(|cause| {
        ProvisionError::Lasting(format!("{cause}; are there local changes? put them away, or remove the directory"))
    })?;
    if to.join(".gitmodules").exists() {
        run(git, &["submodule", "update", "--init", "--recursive", "--depth", "1"], &to).await?;
    }
    let at = head(&to).await.unwrap_or_default();
    progress.say(&format!("{name}: checked out {at}"));
    Ok(())
}

async fn head(dir: &Path) -> Option<String> {
    let output = tokio::process::Command::new("git")
        .args(["rev-parse", "--verify", "--quiet", "HEAD"])
        .current_dir(dir)
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
