use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use futures_util::StreamExt;
use reqwest::header::{ETAG, IF_RANGE, RANGE};
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::ProvisionError;
use super::progress::Progress;
use crate::host::http::cause_text;
use crate::spec::Download;

const CONNECT: Duration = Duration::from_secs(20);
/// A server that sends nothing for so long is asked again.
const SILENCE: Duration = Duration::from_secs(60);

/// What is known of a file that was downloaded: it need not be read again to know that it is the right one.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    url: String,
    sha256: String,
    bytes: u64,
    modified_ms: u128,
}

/// What is known of a file that is half there.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Partial {
    url: String,
    etag: Option<String>,
}

pub(super) fn client() -> Result<Client, String> {
    // Fails where one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .user_agent(concat!("machinist/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|cause| format!("no HTTP client: {cause}"))
}

/// Gets one file: goes on where an earlier try stopped, checks it, puts it into place by rename.
pub(super) async fn fetch(
    client: &Client,
    item: &Download,
    dir: &Path,
    progress: &Progress,
) -> Result<(), ProvisionError> {
    let to = dir.join(&item.to);
    let name = item.to.display().to_string();
    if is_there(item, &to)? {
        set_mode(item, &to)?;
        progress.say(&format!("{name}: is there"));
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(|cause| lasting(parent, &cause))?;
    }
    let (part, note) = (beside(&to, "part"), beside(&to, "part.json"));
    let partial: Option<Partial> = read_json(&note).filter(|partial: &Partial| partial.url == item.url);
    // Without a checksum only the server can tell whether it is still the same file.
    let resumable = partial.as_ref().is_some_and(|partial| partial.etag.is_some() || item.sha256.is_some());
    let have = if resumable { std::fs::metadata(&part).map_or(0, |metadata| metadata.len()) } else { 0 };
    let mut request = client.get(&item.url);
    if let Some(variable) = &item.token_env {
        let token = std::env::var(variable)
            .map_err(|_| ProvisionError::Lasting(format!("the environment has no {variable}, which is the token")))?;
        request = request.bearer_auth(token);
    }
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
        if let Some(etag) = partial.as_ref().and_then(|partial| partial.etag.as_ref()) {
            request = request.header(IF_RANGE, etag);
        }
    }
    let response = request.send().await.map_err(|cause| ProvisionError::Passing(cause_text(cause)))?;
    let status = response.status();
    if status == StatusCode::RANGE_NOT_SATISFIABLE && have > 0 {
        // All of it is there already, or it is another file by now: the checksum tells.
        return finish(item, &to, &part, &note, true, progress);
    }
    if !status.is_success() {
        let why = format!("the server answered {status}");
        let passing = status.is_server_error() || [408, 425, 429].contains(&status.as_u16());
        return Err(if passing { ProvisionError::Passing(why) } else { ProvisionError::Lasting(why) });
    }
    let resumed = status == StatusCode::PARTIAL_CONTENT && have > 0;
    let before = if resumed { have } else { 0 };
    let etag = response.headers().get(ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned);
    write_json(&note, &Partial { url: item.url.clone(), etag })?;
    let total = response.content_length().map(|length| before + length);
    if resumed {
        progress.say(&format!("{name}: goes on at byte {before}"));
    }
    let mut file = tokio::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .append(resumed)
        .truncate(!resumed)
        .open(&part)
        .await
        .map_err(|cause| lasting(&part, &cause))?;
    let (begun, mut done) = (Instant::now(), before);
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|cause| ProvisionError::Passing(cause_text(cause)))?;
        file.write_all(&chunk).await.map_err(|cause| lasting(&part, &cause))?;
        done += chunk.len() as u64;
        progress.bytes(&name, done, total, begun, before);
    }
    file.flush().await.map_err(|cause| lasting(&part, &cause))?;
    file.sync_all().await.map_err(|cause| lasting(&part, &cause))?;
    drop(file);
    if total.is_some_and(|total| done < total) {
        return Err(ProvisionError::Passing(format!("the connection ended after {done} bytes")));
    }
    finish(item, &to, &part, &note, resumed, progress)
}

fn finish(
    item: &Download,
    to: &Path,
    part: &Path,
    note: &Path,
    resumed: bool,
    progress: &Progress,
) -> Result<(), ProvisionError> {
    let sum = sha256_of(part).map_err(|cause| lasting(part, &cause))?;
    if let Some(wanted) = &item.sha256
        && !wanted.eq_ignore_ascii_case(&sum)
    {
        // What is there is of no use, whatever it is.
        let _ = std::fs::remove_file(part);
        let _ = std::fs::remove_file(note);
        let why = format!("its SHA-256 is {sum}, wanted is {wanted}");
        // Parts of two files make none; one whole file that is wrong will not be another the next time.
        return Err(if resumed { ProvisionError::Passing(why) } else { ProvisionError::Lasting(why) });
    }
    std::fs::rename(part, to).map_err(|cause| lasting(to, &cause))?;
    let _ = std::fs::remove_file(note);
    set_mode(item, to)?;
    write_json(&beside(to, "fetched.json"), &record(item, to, sum)?)?;
    progress.say(&format!("{}: fetched", item.to.display()));
    Ok(())
}

/// Whether the right file is in place. Reads it only when nothing is known of it.
fn is_there(item: &Download, to: &Path) -> Result<bool, ProvisionError> {
    if !to.is_file() {
        return Ok(false);
    }
    let known: Option<Record> = read_json(&beside(to, "fetched.json"));
    let Some(wanted) = &item.sha256 else {
        return Ok(known.is_none_or(|record| record.url == item.url));
    };
    if let Some(known) = known
        && record(item, to, known.sha256.clone())? == known
    {
        return Ok(known.sha256.eq_ignore_ascii_case(wanted));
    }
    let sum = sha256_of(to).map_err(|cause| lasting(to, &cause))?;
    let right = sum.eq_ignore_ascii_case(wanted);
    if right {
        write_json(&beside(to, "fetched.json"), &record(item, to, sum)?)?;
    }
    Ok(right)
}

fn record(item: &Download, to: &Path, sha256: String) -> Result<Record, ProvisionError> {
    let metadata = std::fs::metadata(to).map_err(|cause| lasting(to, &cause))?;
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified_ms = modified.map_or(0, |since| since.as_millis());
    Ok(Record { url: item.url.clone(), sha256, bytes: metadata.len(), modified_ms })
}

fn set_mode(item: &Download, to: &Path) -> Result<(), ProvisionError> {
    let Some(mode) = item.mode.as_ref().and_then(|mode| u32::from_str_radix(mode, 8).ok()) else { return Ok(()) };
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(mode)).map_err(|cause| lasting(to, &cause))
}

/// A hidden file in the same directory.
fn beside(to: &Path, what: &str) -> PathBuf {
    let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    to.with_file_name(format!(".{name}.{what}"))
}

pub(super) fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 256 * 1024]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), ProvisionError> {
    let text = serde_json::to_vec(value).map_err(|cause| ProvisionError::Lasting(cause.to_string()))?;
    std::fs::write(path, text).map_err(|cause| lasting(path, &cause))
}

fn lasting(path: &Path, cause: &std::io::Error) -> ProvisionError {
    ProvisionError::Lasting(format!("{}: {cause}", path.display()))
}
