//! `mock::`: what the world of a test is.

use rhai::Array;

use super::gpu;
use super::world::{calls as recorded, expect, with};
use crate::script::call::{Call, ScriptResult, error as script_error};
use crate::script::options::scalar;
use crate::script::prelude::*;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Makes up what scripts find outside of themselves. In a pattern `*` stands for anything; what was made up later comes
/// first. An answer is a value, a function of the request, or an array of answers, one for each call.
#[export_module]
mod functions {
    /// Answers requests to addresses that fit `pattern`, without their query or with it, whatever the method.
    pub fn http(pattern: &str, answer: Dynamic) {
        expect("http", None, pattern, answer);
    }

    /// Answers requests with this method: `mock::http("POST", "http://host/*", |req| #{ status: 201, json: req.json })`.
    /// An answer has `status` (200), `headers`, one of `json`, `text`, `body` (a blob) and `events` (maps of `event`, `data`,
    /// `id`), and `delay`.
    #[rhai_fn(name = "http")]
    pub fn http_method(method: &str, pattern: &str, answer: Dynamic) {
        expect("http", Some(method), pattern, answer);
    }

    /// Is the server of websockets whose address fits `pattern`: an array of frames, or `#{ frames: [..], reply: |message|
    /// [..] }`. A frame is a text, a blob, data (sent as JSON), `mock::wait("2s")`, `mock::close(..)` or `mock::drop()`.
    pub fn ws(pattern: &str, answer: Dynamic) {
        expect("ws", None, pattern, answer);
    }

    /// Runs programs whose name, or whose whole command line, fits `pattern`. An answer is what it writes to its standard
    /// output, or a map of `code` (0), `signal`, `stdout`, `stderr`, `files` (name to text, in its directory) and `delay`.
    pub fn process(pattern: &str, answer: Dynamic) {
        expect("process", None, pattern, answer);
    }

    /// Answers a command of Redis, such as `"EVAL"`. Without it the simple ones work on an empty Redis in memory.
    pub fn redis(command: &str, answer: Dynamic) {
        expect("redis", None, &command.to_ascii_uppercase(), answer);
    }

    /// Says what state service `name` has: `"ready"`, `"failed"` and so on.
    pub fn service(name: &str, state: &str) {
        with(|world| world.services.insert(name.to_owned(), state.to_owned()));
    }

    /// Says what the GPUs are: maps with keys as `gpu::list` gives them, each over a GPU that is `"ok"` and tells nothing. By
    /// default the index is the place in the array.
    #[rhai_fn(return_raw)]
    pub fn gpus(gpus: Array) -> ScriptResult<()> {
        gpu::mock(gpus)
    }

    /// Sets a variable of the environment, which is empty in tests.
    #[rhai_fn(return_raw)]
    pub fn env(name: &str, value: Dynamic) -> ScriptResult<()> {
        let text = scalar(&value).ok_or_else(|| script_error("mock::env: the value must be a text or a number"))?;
        with(|world| world.variables.insert(name.to_owned(), text));
        Ok(())
    }

    /// Makes up a secret for `secret(name)`.
    pub fn secret(name: &str, value: &str) {
        with(|world| world.variables.insert(name.to_owned(), value.to_owned()));
    }

    /// Puts a text into a file of the job's work directory, before or while the job runs.
    #[rhai_fn(return_raw)]
    pub fn file(path: &str, content: &str) -> ScriptResult<()> {
        write_file(&Call::current()?, path, content)
    }

    /// An answer that is an error of this kind: `"connect"` and `"timeout"` for `mock::http` and `mock::ws`, `"missing"` (there
    /// is no such program) for `mock::process`.
    pub fn error(kind: &str) -> Map {
        marked("mock_error", kind.into())
    }

    /// A frame that comes so much later.
    pub fn wait(time: Dynamic) -> Map {
        marked("mock_wait", time)
    }

    /// The server says goodbye.
    pub fn close(code: i64, reason: &str) -> Map {
        let mut map = marked("mock_close", code.into());
        map.insert("reason".into(), reason.into());
        map
    }

    /// The connection breaks.
    pub fn drop() -> Map {
        marked("mock_drop", true.into())
    }

    /// What was asked of `kind` so far, the oldest first: `"http"`, `"ws"`, `"process"`, `"redis"`, `"service"`, `"events"`,
    /// `"metrics"` or `"log"`, as maps.
    #[rhai_fn(return_raw)]
    pub fn calls(kind: &str) -> ScriptResult<Array> {
        const KINDS: [&str; 8] = ["http", "ws", "process", "redis", "service", "events", "metrics", "log"];
        if !KINDS.contains(&kind) {
            return Err(script_error(format!("mock::calls: {kind:?} is none of {}", KINDS.join(", "))));
        }
        Ok(recorded(kind))
    }
}

fn marked(mark: &str, value: Dynamic) -> Map {
    [(mark.into(), value)].into_iter().collect()
}

/// Writes a file below the job's work directory.
pub(super) fn write_file(call: &Call, path: &str, content: &str) -> ScriptResult<()> {
    debug_assert!(call.is_made_up(), "tests only make up files");
    let failed = |cause: std::io::Error| script_error(format!("{path}: {cause}"));
    if let Some((parent, _)) = path.rsplit_once('/') {
        crate::script::api::writable(parent)?.make_dirs().map_err(failed)?;
    }
    crate::script::api::writable(path)?.write(content.as_bytes()).map_err(failed)
}
