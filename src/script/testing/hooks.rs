//! The hooks of the script under test, called with jobs and machines that are made up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rhai::{Array, FuncArgs, Scope};
use serde_json::{Value, json};

use super::assert::class;
use super::suite::Subject;
use super::told::map;
use super::world::{self, Limits, elapsed, suite, timestamp, with, within};
use crate::base::did_you_mean;
use crate::queue::{Failure, FailureClass, Job, Usage};
use crate::script::api::JobHandle;
use crate::script::call::{Call, ScriptResult, error, terminated};
use crate::script::connector::{CANCEL_LIMIT, CAPABILITIES_LIMIT, CHECK_LIMIT, inventory, of_check};
use crate::script::data::{Secrets, kind_of, to_json};
use crate::script::options::{Options, duration};
use crate::script::prelude::*;
use crate::script::program::{HookError, Program};
use crate::script::{ConnectorProgram, MachineProgram};
use crate::spec::{GpuRef, MachineSpec};
use crate::worker::JobSink;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// The script under test is the one of the same name: `foo.rhai` for `foo_test.rhai`.
#[export_module]
mod functions {
    /// Calls the connector's `run(job, ctx)` with a job that is made up, without `vars`. The outcome is a map of `result`,
    /// `failure` (`()`, or a map of `class`, `message`, `retry_after` in seconds), `progress` (maps of `fraction`, `message`),
    /// `logs`, `saved` and `parts`. Keys of a job are `payload`, `attempt` (1), `saved`, `id`, `priority`, `customer`,
    /// `timeout` (1 h) and `cancel_after`, after which it is cancelled.
    #[rhai_fn(return_raw)]
    pub fn run(job: Map) -> ScriptResult<Map> {
        run_job("run", job, Map::new())
    }

    /// As `run(job)`, with keys of `ctx`: `vars`, `worker`, `machine`. Fails where `vars` are not what `CONFIG` says.
    #[rhai_fn(name = "run", return_raw)]
    pub fn run_with(job: Map, ctx: Map) -> ScriptResult<Map> {
        run_job("run", job, ctx)
    }

    /// As `run(job)`, of the hook `resume`.
    #[rhai_fn(return_raw)]
    pub fn resume(job: Map) -> ScriptResult<Map> {
        run_job("resume", job, Map::new())
    }

    /// As `run(job, ctx)`, of the hook `resume`.
    #[rhai_fn(name = "resume", return_raw)]
    pub fn resume_with(job: Map, ctx: Map) -> ScriptResult<Map> {
        run_job("resume", job, ctx)
    }

    /// As `run(job)`, of the hook `cancel`. It is called by itself after a `run` that was cancelled or ran out of time.
    #[rhai_fn(return_raw)]
    pub fn cancel(job: Map) -> ScriptResult<Map> {
        run_job("cancel", job, Map::new())
    }

    /// As `run(job, ctx)`, of the hook `cancel`.
    #[rhai_fn(name = "cancel", return_raw)]
    pub fn cancel_with(job: Map, ctx: Map) -> ScriptResult<Map> {
        run_job("cancel", job, ctx)
    }

    /// Calls the connector's `check(ctx)`, without `vars`; the outcome is as that of `run`, with what it gave back as `result`.
    #[rhai_fn(return_raw)]
    pub fn check() -> ScriptResult<Map> {
        check_with(Map::new())
    }

    /// As `check()`, with keys of `ctx`.
    #[rhai_fn(name = "check", return_raw)]
    pub fn check_with(ctx: Map) -> ScriptResult<Map> {
        let connector = connector()?;
        let ctx = context(&connector, ctx)?;
        let call = inner(&connector.program, None)?;
        outcome(call_hook(&connector.program, "check", &call, Some(CHECK_LIMIT), (Dynamic::from_map(ctx),))?, None)
    }

    /// Calls the connector's `check(ctx)`, where it has one, and then `capabilities(ctx)` with what that gave back, without `vars`. The
    /// outcome is as that of `run`; `result` is a map of `models` and `labels`, as the worker takes them.
    #[rhai_fn(return_raw)]
    pub fn capabilities() -> ScriptResult<Map> {
        capabilities_with(Map::new())
    }

    /// As `capabilities()`, with keys of `ctx`.
    #[rhai_fn(name = "capabilities", return_raw)]
    pub fn capabilities_with(ctx: Map) -> ScriptResult<Map> {
        let connector = connector()?;
        let program = &connector.program;
        if !program.has("capabilities", 1) {
            return Err(error(format!("{}.rhai has no capabilities(ctx)", connector.name())));
        }
        let mut ctx = context(&connector, ctx)?;
        if program.has("check", 1) {
            let arguments = (Dynamic::from_map(ctx.clone()),);
            let called = call_hook(program, "check", &inner(program, None)?, Some(CHECK_LIMIT), arguments)?;
            match called.map_err(|(_, failed)| failed.failure).and_then(|answer| of_check(&answer)) {
                Ok(found) => drop(ctx.insert("checked".into(), rhai::serde::to_dynamic(found)?)),
                Err(failure) => return ended(Err(failure), None),
            }
        }
        let (call, limit) = (inner(program, None)?, Some(CAPABILITIES_LIMIT));
        let called = call_hook(program, "capabilities", &call, limit, (Dynamic::from_map(ctx),))?;
        let found = called.map_err(|(_, failed)| failed.failure).and_then(|returned| inventory(&returned));
        ended(found.map(|found| json!({ "models": found.models, "labels": found.labels })), None)
    }

    /// Calls any function of the script under test: `invoke("seconds", ["1.5s"])`.
    #[rhai_fn(return_raw)]
    pub fn invoke(function: &str, arguments: Array) -> ScriptResult<Dynamic> {
        let program = suite().subject.program();
        let call = inner(&program, None)?;
        match call_hook(&program, function, &call, None, arguments)? {
            Ok(value) => Ok(value),
            // As it was thrown, for assert_throws.
            Err((cause, _)) => Err(cause),
        }
    }

    /// What `services(m)` of the machine gives back, after all checks of `machinist check`, with these keys of `m` (`vars`, `env`
    /// and `labels` over those of the settings). A GPU of `gpus` is a map in which every key has a default.
    #[rhai_fn(return_raw)]
    pub fn services(m: Map) -> ScriptResult<Array> {
        Ok(specs(m)?.0)
    }

    /// As `services(m)`, of a machine without GPUs as its settings are.
    #[rhai_fn(name = "services", return_raw)]
    pub fn services_plain() -> ScriptResult<Array> {
        Ok(specs(Map::new())?.0)
    }

    /// What `workers(m)` of the machine gives back; otherwise as `services`.
    #[rhai_fn(return_raw)]
    pub fn workers(m: Map) -> ScriptResult<Array> {
        Ok(specs(m)?.1)
    }

    /// As `workers(m)`, of a machine without GPUs as its settings are.
    #[rhai_fn(name = "workers", return_raw)]
    pub fn workers_plain() -> ScriptResult<Array> {
        Ok(specs(Map::new())?.1)
    }

    /// A machine's `m` with these keys, for `invoke("on_event", [machine(#{}), event])`.
    #[rhai_fn(return_raw)]
    pub fn machine(m: Map) -> ScriptResult<Map> {
        overlaid(m)
    }
}

fn connector() -> ScriptResult<ConnectorProgram> {
    match &suite().subject {
        Subject::Connector(connector) => Ok(connector.clone()),
        _ => Err(error("the script under test is no connector: it lies in no directory connectors")),
    }
}

fn the_machine() -> ScriptResult<MachineProgram> {
    match &suite().subject {
        Subject::Machine(machine) => Ok(machine.clone()),
        _ => Err(error("the script under test is no machine.rhai")),
    }
}

/// A call inside the test's own, of `program`.
fn inner(program: &Program, sink: Option<Arc<dyn JobSink>>) -> ScriptResult<Call> {
    let outer = Call::current()?;
    let mut call = program.call(outer.cancel.child_token(), outer.deadline).made_up();
    call.sink = sink;
    call.work_dir = outer.work_dir;
    call.memory = outer.memory;
    Ok(call)
}

type Called = Result<Dynamic, (Box<rhai::EvalAltResult>, HookError)>;

/// Calls a hook as the engine would.
///
/// # Errors
/// Where the test is over: what the hook asked for is not made up, or time and memory of the test are.
fn call_hook(
    program: &Arc<Program>,
    hook: &str,
    call: &Call,
    limit: Option<Duration>,
    arguments: impl FuncArgs,
) -> ScriptResult<Called> {
    let work =
        || call.clone().scope(|| program.engine.call_fn::<Dynamic>(&mut Scope::new(), &program.ast, hook, arguments));
    let outcome = match limit {
        None => work(),
        Some(limit) => {
            let deadline = elapsed().saturating_add(limit);
            within(Limits { deadline, cancel_at: None, cancel: call.cancel.clone() }, work)
        }
    };
    settled(program, hook, limit, outcome)
}

fn settled(
    program: &Program,
    hook: &str,
    limit: Option<Duration>,
    outcome: ScriptResult<Dynamic>,
) -> ScriptResult<Called> {
    let cause = match outcome {
        // It caught what ended the test.
        Ok(_) if world::is_over() => return Err(error(world::ENDED)),
        Ok(value) => return Ok(Ok(value)),
        Err(cause) => cause,
    };
    let failed = program.hook_error(&cause, hook, limit);
    if world::is_over() {
        with(|world| {
            world.place.get_or_insert(failed.problem);
        });
        return Err(error(world::ENDED));
    }
    if let Some(why) = Call::current()?.interruption() {
        return Err(terminated(why));
    }
    with(|world| world.failure = Some(failed.problem.to_string()));
    Ok(Err((cause, failed)))
}

fn run_job(hook: &'static str, job: Map, ctx: Map) -> ScriptResult<Map> {
    let connector = connector()?;
    let program = &connector.program;
    if !program.has(hook, 2) {
        return Err(error(format!("{}.rhai has no {hook}(job, ctx)", connector.name())));
    }
    let ctx = Dynamic::from_map(context(&connector, ctx)?);
    let (job, cancel_after) = made_up(&connector, job)?;
    let recorder = Arc::new(Recorder::default());
    let call = inner(program, Some(Arc::clone(&recorder) as Arc<dyn JobSink>))?;
    let work_dir = call.scratch_dir();
    let limit = job.submission.timeout.get();
    let sink = Arc::clone(&recorder) as Arc<dyn JobSink>;
    let handle = JobHandle::new(Arc::new(job), sink, call.cancel.clone(), work_dir);
    let (begin, arguments) = (elapsed(), (Dynamic::from(handle.clone()), ctx.clone()));
    let limits = Limits {
        deadline: begin.saturating_add(limit),
        cancel_at: cancel_after.map(|time| begin + time),
        cancel: call.cancel.clone(),
    };
    let outcome_of_run = within(limits, || {
        call.clone().scope(|| program.engine.call_fn::<Dynamic>(&mut Scope::new(), &program.ast, hook, arguments))
    });
    let called = settled(program, hook, Some(limit), outcome_of_run)?;
    let stopped = matches!(&called, Err((_, failed)) if matches!(failed.failure.class, FailureClass::Cancelled | FailureClass::Timeout));
    if stopped && hook != "cancel" && program.has("cancel", 2) {
        let call = inner(program, None)?;
        let told = call_hook(program, "cancel", &call, Some(CANCEL_LIMIT), (Dynamic::from(handle), ctx))?;
        drop(told);
    }
    outcome(called, Some(&recorder))
}

/// What a hook came to, as tests see it.
fn outcome(called: Called, recorder: Option<&Recorder>) -> ScriptResult<Map> {
    let result = called.map_err(|(_, failed)| failed.failure).and_then(|value| {
        to_json(&value, Secrets::Redact).map_err(|why| {
            Failure::new(FailureClass::Fatal, format!("the hook returned something that is no plain data: {why}"))
        })
    });
    ended(result, recorder)
}

fn ended(result: Result<Value, Failure>, recorder: Option<&Recorder>) -> ScriptResult<Map> {
    let (result, failure) = match result {
        Ok(value) => (rhai::serde::to_dynamic(value)?, None),
        Err(failure) => (Dynamic::UNIT, Some(failure)),
    };
    let failure = failure.map_or(Dynamic::UNIT, |failure| {
        let wait = failure.retry_after.map_or(Dynamic::UNIT, |wait| wait.get().as_secs_f64().into());
        map([("class", class(failure.class).into()), ("message", failure.message.into()), ("retry_after", wait)]).into()
    });
    let said = recorder.map(Recorder::take).unwrap_or_default();
    let progress = said.progress.into_iter().map(|(fraction, message)| {
        Dynamic::from_map(map([("fraction", fraction.into()), ("message", message.into())]))
    });
    let parts = said.parts.into_iter().map(rhai::serde::to_dynamic).collect::<ScriptResult<Array>>()?;
    Ok(map([
        ("result", result),
        ("failure", failure),
        ("progress", progress.collect::<Array>().into()),
        ("logs", said.logs.into_iter().map(Dynamic::from).collect::<Array>().into()),
        ("saved", said.saved.map_or(Ok(Dynamic::UNIT), rhai::serde::to_dynamic)?),
        ("parts", parts.into()),
        ("usage", rhai::serde::to_dynamic(said.usage)?),
    ]))
}

/// A job as a worker would have it, and after how long it is cancelled.
fn made_up(connector: &ConnectorProgram, job: Map) -> ScriptResult<(Job, Option<Duration>)> {
    let mut job = Options::new("the job", job);
    let plain = |value: Dynamic| to_json(&value, Secrets::Refuse).map_err(|why| error(format!("the job: {why}")));
    let payload = job.take("payload").map(plain).transpose()?.unwrap_or(Value::Null);
    let saved = job.take("saved").map(plain).transpose()?;
    let attempt = job.count("attempt")?.unwrap_or(1).max(1);
    let number = with(|world| {
        world.jobs += 1;
        world.jobs
    });
    let id = job.text("id")?.unwrap_or_else(|| format!("job-{number}"));
    let priority = job.take("priority").map_or(Ok(0), |value| value.as_int());
    let priority = priority.map_err(|kind| error(format!("the job: priority: must be a number, found {kind}")))?;
    let customer = job.text("customer")?;
    let timeout = job.take("timeout").map(|value| duration(&value)).transpose();
    let timeout =
        timeout.map_err(|why| error(format!("the job: timeout: {why}")))?.unwrap_or(Duration::from_secs(3600));
    let cancel_after = job.duration("cancel_after")?;
    job.finish()?;
    let job = json!({
        "id": id, "state": "running", "service": connector.name(), "payload": payload, "priority": priority,
        "customer": customer, "timeout": timeout.as_secs_f64(), "submitted": timestamp(), "claims": attempt,
        "attempts": attempt - 1, "losses": 0, "saved": saved,
    });
    let job = serde_json::from_value(job).map_err(|cause| error(format!("the job: {cause}")))?;
    Ok((job, cancel_after))
}

/// `ctx` with these keys.
fn context(connector: &ConnectorProgram, ctx: Map) -> ScriptResult<Map> {
    let mut ctx = Options::new("ctx", ctx);
    let vars = ctx.map("vars")?.unwrap_or_default();
    let worker = ctx.text("worker")?.unwrap_or_else(|| format!("{}-0", connector.name()));
    let machine = overlaid(ctx.map("machine")?.unwrap_or_default())?;
    ctx.finish()?;
    let Ok(Value::Object(mut vars)) = to_json(&vars.into(), Secrets::Refuse) else {
        return Err(error("ctx: vars: must be plain data"));
    };
    if let Some(problem) = connector.check_vars(&vars).first() {
        let help = problem.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        return Err(error(format!("ctx: vars: {} {}{help}", problem.key, problem.message)));
    }
    if let Some(config) = &connector.program.config {
        config.fill(&mut vars);
    }
    let work_dir = Call::current()?.scratch_dir();
    Ok(map([
        ("connector", connector.name().to_string().into()),
        ("worker", worker.into()),
        ("vars", rhai::serde::to_dynamic(vars)?),
        ("machine", machine.into()),
        ("work_dir", work_dir.display().to_string().into()),
        ("checked", Dynamic::UNIT),
    ]))
}

/// The machine's context with these keys.
fn overlaid(keys: Map) -> ScriptResult<Map> {
    let base: Dynamic = rhai::serde::to_dynamic(&suite().machine)?;
    let mut m = base.try_cast::<Map>().unwrap_or_default();
    for (key, value) in keys {
        let Some(there) = m.get_mut(&key) else {
            let help = did_you_mean(&key, m.keys().map(rhai::Identifier::as_str));
            let help = match help {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("known are {}", m.keys().map(rhai::Identifier::as_str).collect::<Vec<_>>().join(", ")),
            };
            return Err(error(format!("m: there is no key {key}; {help}")));
        };
        let value = if key == "gpus" { gpus(value)? } else { value };
        let numbers = there.is_float() && value.is_int();
        if there.type_name() != value.type_name() && !numbers {
            return Err(error(format!("m: {key}: must be a {}, found {}", kind_of(there), kind_of(&value))));
        }
        put_over(there, value);
    }
    Ok(m)
}

/// Maps are put over maps key by key, as settings are.
fn put_over(there: &mut Dynamic, value: Dynamic) {
    if let (Some(mut there), Some(value)) = (there.write_lock::<Map>(), value.read_lock::<Map>()) {
        for (key, value) in value.iter() {
            put_over(there.entry(key.clone()).or_insert(Dynamic::UNIT), value.clone());
        }
        return;
    }
    *there = value;
}

fn gpus(value: Dynamic) -> ScriptResult<Dynamic> {
    let wrong = || error("m: gpus: must be an array of maps such as #{ memory_gb: 24.0 }");
    let given = value.try_cast::<Array>().ok_or_else(wrong)?;
    let mut gpus = Array::new();
    for (index, gpu) in given.into_iter().enumerate() {
        let mut gpu = Options::new("gpus", gpu.try_cast::<Map>().ok_or_else(wrong)?);
        let index = gpu.count("index")?.map_or(i64::try_from(index).unwrap_or(0), i64::from);
        let uuid = gpu.text("uuid")?.unwrap_or_else(|| format!("GPU-{index}"));
        let name = gpu.text("name")?.unwrap_or_else(|| "a GPU".to_owned());
        let memory = gpu.number("memory_gb")?.unwrap_or(24.0);
        gpu.finish()?;
        let fields =
            [("index", index.into()), ("uuid", uuid.into()), ("name", name.into()), ("memory_gb", memory.into())];
        gpus.push(Dynamic::from_map(map(fields)));
    }
    Ok(gpus.into())
}

/// What the machine's `services` and `workers` return, when nothing is wrong with it.
fn specs(keys: Map) -> ScriptResult<(Array, Array)> {
    let machine = the_machine()?;
    let m = overlaid(keys)?;
    let services = list(&machine.pure, "services", &m)?;
    let workers = if machine.pure.has("workers", 1) { list(&machine.pure, "workers", &m)? } else { Array::new() };
    let plain = |array: &Array| -> ScriptResult<Vec<Value>> {
        array.iter().map(|value| to_json(value, Secrets::Refuse).map_err(error)).collect()
    };
    let gpus = m.get("gpus").and_then(|gpus| gpus.clone().try_cast::<Array>()).unwrap_or_default();
    let gpus: Vec<GpuRef> = gpus
        .iter()
        .filter_map(|gpu| {
            let gpu = gpu.read_lock::<Map>()?;
            let index = u32::try_from(gpu.get("index")?.as_int().ok()?).ok()?;
            Some(GpuRef { index, uuid: gpu.get("uuid")?.to_string() })
        })
        .collect();
    match MachineSpec::check(&plain(&services)?, &plain(&workers)?, &gpus) {
        Ok(_) => Ok((services, workers)),
        Err(found) => {
            let problems = machine.locate(found);
            let first = problems.0.first().cloned();
            let (message, help) = first.map_or_else(Default::default, |first| {
                let place = first.location.map(|place| format!(" ({place})")).unwrap_or_default();
                (format!("{}{place}", first.message), first.help)
            });
            let more = problems.0.iter().skip(1).map(|problem| problem.message.clone()).collect();
            Err(world::fail(message, help, more))
        }
    }
}

fn list(program: &Arc<Program>, hook: &'static str, m: &Map) -> ScriptResult<Array> {
    let mut call = inner(program, None)?;
    call.pure = true;
    match call_hook(program, hook, &call, None, (Dynamic::from_map(m.clone()),))? {
        Ok(value) => {
            let kind = kind_of(&value);
            value
                .try_cast::<Array>()
                .ok_or_else(|| error(format!("{hook}(m) must return an array of maps, it returned {kind}")))
        }
        // Its place is one in another file than the test's.
        Err((_, failed)) => Err(error(failed.problem.message)),
    }
}

/// What a job said.
#[derive(Default)]
struct Recorder(Mutex<Said>);

#[derive(Default)]
struct Said {
    progress: Vec<(f64, String)>,
    logs: Vec<String>,
    parts: Vec<Value>,
    saved: Option<Value>,
    usage: Usage,
}

impl Recorder {
    fn say(&self, say: impl FnOnce(&mut Said)) {
        say(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn take(&self) -> Said {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl JobSink for Recorder {
    fn progress(&self, fraction: f64, message: &str) {
        self.say(|said| said.progress.push((fraction.clamp(0.0, 1.0), message.to_owned())));
    }

    fn log(&self, line: &str) {
        self.say(|said| said.logs.push(line.to_owned()));
    }

    fn partial(&self, value: Value) {
        self.say(|said| said.parts.push(value));
    }

    fn save(&self, value: Value) {
        self.say(|said| said.saved = Some(value));
    }

    fn usage(&self, used: Usage) {
        self.say(|said| said.usage.add(&used));
    }
}
