//! `process::run(#{ argv: [...], ... })`: runs a program to its end and gives back what it wrote.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::fs::inside;
use crate::base::{ByteSize, Seconds};
use crate::host::process::{Exit, Lineage, Processes, SpawnSpec, Stdin};
use crate::script::call::{Call, ScriptResult, World, error, terminated};
use crate::script::prelude::*;
use crate::script::program::basic_environment;
use crate::script::testing;
use crate::script::types::Secret;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The program and its arguments; no shell.
    argv: Vec<String>,
    /// Default: the job's work directory, else the machine's.
    cwd: Option<String>,
    /// Texts and secrets, added to a small environment: `PATH`, `HOME`, `LANG`, `LC_ALL`, `TZ`, `TMPDIR`, `USER`.
    #[serde(default)]
    env: BTreeMap<String, String>,
    stdin: Option<String>,
    /// Default: what is left of the call's own time.
    timeout: Option<Seconds>,
    /// Bytes kept of each stream; the rest is read and dropped. Default 1 MiB.
    max_output: Option<ByteSize>,
}

struct Output {
    bytes: Vec<u8>,
    truncated: bool,
}

/// How long a pipe may stay open after everything that could write to it was killed.
const DRAIN: Duration = Duration::from_secs(1);
const KILL_PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Programs.
#[export_module]
mod functions {
    /// Runs a program to its end and gives back what it wrote. It and all that it started end with the call.
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `argv` | the program and its arguments, texts; no shell | required |
    /// | `cwd` | working directory | the job's work directory, else the machine's |
    /// | `env` | map of texts and secrets, added to `PATH`, `HOME`, `LANG`, `LC_ALL`, `TZ`, `TMPDIR`, `USER` of the engine | `#{}` |
    /// | `stdin` | text for its standard input | nothing |
    /// | `timeout` | seconds or a text such as `"30s"`; then it is killed | what is left of the call's time |
    /// | `max_output` | bytes kept of each stream, or a text such as `"4MiB"`; the rest is read and dropped | 1 MiB |
    ///
    /// The map that it gives back has `code` (the exit code; `()` when a signal ended it), `signal` (its number, else `()`),
    /// `stdout` and `stderr` (texts), `timed_out`, `truncated` (something was dropped) and `duration_ms`. Fails where the
    /// program cannot be started; a code that is not 0 is no error.
    #[rhai_fn(return_raw)]
    pub fn run(options: Map) -> ScriptResult<Map> {
        run_map(options)
    }
}

pub(super) fn run_map(mut options: Map) -> ScriptResult<Map> {
    let secrets = options.get_mut("env").map(take_secrets).unwrap_or_default();
    let mut options: Options = rhai::serde::from_dynamic(&Dynamic::from_map(options)).map_err(|cause| {
        let cause = cause.to_string();
        error(format!("process::run: {}", cause.strip_prefix("Syntax error: ").unwrap_or(&cause)))
    })?;
    options.env.extend(secrets);
    run_program(&Call::current()?, options)
}

/// Secrets go their own way, past everything that may fail and say with what.
fn take_secrets(env: &mut Dynamic) -> Vec<(String, String)> {
    let Some(mut env) = env.write_lock::<Map>() else { return Vec::new() };
    let reveal = |(name, value): (&rhai::Identifier, &Dynamic)| {
        Some((name.to_string(), value.read_lock::<Secret>()?.reveal().to_owned()))
    };
    let secrets: Vec<(String, String)> = env.iter().filter_map(reveal).collect();
    for (name, _) in &secrets {
        env.remove(name.as_str());
    }
    secrets
}

impl From<Options> for testing::Program {
    fn from(options: Options) -> Self {
        let Options { argv, cwd, env, stdin, timeout, .. } = options;
        Self { argv, cwd, env, stdin, timeout: timeout.map(Seconds::get) }
    }
}

fn run_program(call: &Call, options: Options) -> ScriptResult<Map> {
    if options.argv.first().is_none_or(String::is_empty) {
        return Err(error("process::run: argv is empty"));
    }
    if let Some(why) = call.interruption() {
        return Err(terminated(why));
    }
    let World::Real(deps) = call.world() else {
        return testing::run_program(call, testing::Program::from(options));
    };
    let config = &deps.config;
    let base = call.work_dir.clone().unwrap_or_else(|| config.machine_dir.clone());
    let mut roots = vec![config.machine_dir.clone()];
    roots.extend(call.work_dir.clone());
    let cwd = match &options.cwd {
        Some(path) => inside(&base, path, &roots)?,
        None => base,
    };
    if call.work_dir.as_ref().is_some_and(|dir| cwd.starts_with(dir)) {
        std::fs::create_dir_all(&cwd).map_err(|cause| error(format!("{}: {cause}", cwd.display())))?;
    }
    let own = options.env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let inherited = basic_environment()
        .into_iter()
        .filter(|(name, _)| !name.to_str().is_some_and(|name| options.env.contains_key(name)));
    // By the names that other tools read.
    let trace = if options.env.contains_key("TRACEPARENT") { Vec::new() } else { call.trace.trace.headers() };
    let trace = trace.into_iter().map(|(name, value)| (OsString::from(name.to_uppercase()), OsString::from(value)));
    let spec = SpawnSpec {
        argv: options.argv.clone(),
        cwd: Some(cwd),
        env: inherited.chain(own).chain(trace).collect(),
        stdin: if options.stdin.is_some() { Stdin::Pipe } else { Stdin::Null },
        mark: format!("{}/script/{}", config.mark_prefix, uuid::Uuid::new_v4()),
        ..SpawnSpec::default()
    };
    let begun = Instant::now();
    let own_deadline = options.timeout.map(|timeout| begun + timeout.get());
    let limit = options.max_output.unwrap_or(ByteSize::mib(1)).as_usize();
    // Entered so that the pipes register with the runtime.
    let _entered = deps.runtime.enter();
    let (report, exit) = oneshot::channel();
    let spawned = config.processes.spawn(&spec, move |exit| {
        let _ = report.send(exit);
    });
    let spawned = spawned.map_err(|cause| {
        let program = &options.argv[0];
        match cause.raw_os_error() {
            Some(libc::ENOENT) => error(format!("the program {program:?} is not there")),
            _ => error(format!("{program:?} cannot be started: {cause}")),
        }
    })?;
    let stdout = deps.runtime.spawn(collect(spawned.stdout, limit));
    let stderr = deps.runtime.spawn(collect(spawned.stderr, limit));
    if let (Some(fd), Some(text)) = (spawned.stdin, options.stdin) {
        deps.runtime.spawn(feed(fd, text));
    }
    let killer = Killer { processes: config.processes.clone(), lineage: spawned.lineage };
    let outcome = call.wait(async {
        match own_deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), exit).await.ok(),
            None => Some(exit.await),
        }
    });
    // Whatever it left behind ends with it, as does the program itself when it ran too long.
    drop(killer);
    let exit = outcome?;
    let timed_out = exit.is_none();
    let (stdout, stderr) = deps.runtime.block_on(async {
        let finish = |task| async { tokio::time::timeout(DRAIN, task).await.ok().and_then(Result::ok) };
        tokio::join!(finish(stdout), finish(stderr))
    });
    let mut result = Map::new();
    match exit {
        Some(Ok(Exit::Code(code))) => {
            result.insert("code".into(), Dynamic::from(i64::from(code)));
            result.insert("signal".into(), Dynamic::UNIT);
        }
        Some(Ok(Exit::Signal(signal))) => {
            result.insert("code".into(), Dynamic::UNIT);
            result.insert("signal".into(), Dynamic::from(i64::from(signal)));
        }
        _ => {
            result.insert("code".into(), Dynamic::UNIT);
            result.insert("signal".into(), Dynamic::from(i64::from(Signal::SIGKILL as i32)));
        }
    }
    let truncated = [&stdout, &stderr].iter().any(|output| output.as_ref().is_none_or(|output| output.truncated));
    let text = |output: Option<Output>| -> Dynamic {
        let bytes = output.map(|output| output.bytes).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned().into()
    };
    result.insert("stdout".into(), text(stdout));
    result.insert("stderr".into(), text(stderr));
    result.insert("timed_out".into(), timed_out.into());
    result.insert("truncated".into(), truncated.into());
    let took = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
    result.insert("duration_ms".into(), took.into());
    Ok(result)
}

/// Ends the process and all it started, whichever way the call is left.
struct Killer {
    processes: Processes,
    lineage: Lineage,
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.processes.signal_group(self.lineage.pid, Signal::SIGKILL);
        if self.processes.left_orphans(&self.lineage) || !self.processes.members(&self.lineage).is_empty() {
            self.processes.kill_lineage(&self.lineage, KILL_PATIENCE);
        }
    }
}

async fn collect(fd: OwnedFd, limit: usize) -> Output {
    let mut output = Output { bytes: Vec::new(), truncated: false };
    let Ok(mut pipe) = pipe::Receiver::from_owned_fd(fd) else { return output };
    let mut buffer = vec![0u8; 16 * 1024];
    while let Ok(count) = pipe.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        let room = limit.saturating_sub(output.bytes.len()).min(count);
        output.bytes.extend_from_slice(&buffer[..room]);
        output.truncated |= room < count;
    }
    output
}

async fn feed(fd: OwnedFd, text: String) {
    if let Ok(mut pipe) = pipe::Sender::from_owned_fd(fd) {
        // A program may end without reading all of it.
        let _ = pipe.write_all(text.as_bytes()).await;
    }
}
