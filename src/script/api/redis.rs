//! `redis::`: data that scripts keep in a Redis. The work is done in `host::redis`.

use std::time::Duration;

use crate::host::redis::RedisConnections;
use crate::script::call::{Call, ScriptResult, World, error};
use crate::script::options::{Options, Word};
use crate::script::prelude::*;
use crate::script::types::{HostError, Mask, RedisClient, Secret};

const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Data of scripts in a Redis or Valkey (6 or later, one server). All scripts of the machine share one connection to each
/// address; it is made again when it breaks. A command is sent once: where its answer is lost, whether it was carried out is
/// not known. `options` of both functions:
///
/// | option | what | default |
/// |---|---|---|
/// | `prefix` | put before every key, channel and stream, except in `command` | none |
/// | `timeout` | of one command | 5 s |
#[export_module]
mod functions {
    /// The Redis at `url`, a text or a secret: `redis://[user:password@]host[:port][/database]`, `rediss://` for TLS, or
    /// `unix:///path`. It is connected to by the first command. Fails where `url` is no such address.
    #[rhai_fn(return_raw)]
    pub fn connect(url: Dynamic) -> ScriptResult<RedisClient> {
        client("redis::connect", &url, Map::new())
    }

    /// As `connect(url)`, with options.
    #[rhai_fn(name = "connect", return_raw)]
    pub fn connect_with(url: Dynamic, options: Map) -> ScriptResult<RedisClient> {
        client("redis::connect", &url, options)
    }

    /// The Redis that the secret `REDIS_URL` names: the environment variable, or the file that `REDIS_URL_FILE` names.
    #[rhai_fn(return_raw)]
    pub fn open() -> ScriptResult<RedisClient> {
        open_with(Map::new())
    }

    /// As `open()`, with options.
    #[rhai_fn(name = "open", return_raw)]
    pub fn open_with(options: Map) -> ScriptResult<RedisClient> {
        let made_up = Call::current()?.is_made_up();
        let url = if made_up { Secret::new("redis://mocked") } else { Secret::of_environment("REDIS_URL")? };
        client("redis::open", &Dynamic::from(url), options)
    }
}

fn client(what: &'static str, url: &Dynamic, options: Map) -> ScriptResult<RedisClient> {
    let call = Call::current()?;
    let url = Word::read(url).ok_or_else(|| error(format!("{what}: the url must be a text or a secret")))?;
    let mut options = Options::new(what, options);
    let prefix = options.text("prefix")?.unwrap_or_default();
    let timeout = options.duration("timeout")?.unwrap_or(TIMEOUT);
    options.finish()?;
    let mut mask = Mask::default();
    if let Some(secret) = url.secret() {
        mask.add(secret.clone());
    }
    let _runtime = call.runtime().enter();
    let connection = match call.world() {
        World::Real(deps) => {
            deps.redis.get(url.text()).map(Some).map_err(|cause| mask.error(HostError::from(cause)))?
        }
        // What is wrong with the address is told in a test, too; nothing is connected to.
        World::MadeUp => {
            RedisConnections::default().get(url.text()).map_err(|cause| mask.error(HostError::from(cause)))?;
            None
        }
    };
    Ok(RedisClient::new(connection, prefix, timeout))
}
