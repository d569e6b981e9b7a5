//! The words of a start-up sequence.

use std::time::Duration;

use rhai::{Array, FnPtr};

use super::process::run_map;
use super::service::{act, supervisor};
use crate::base::parse_duration;
use crate::script::StepReport;
use crate::script::call::{Call, ScriptResult, World, error};
use crate::script::prelude::*;
use crate::script::testing;
use crate::supervisor::{ServiceState, SupervisorHandle};

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// For `startup(m)`, and of use in every hook that acts.
#[export_module]
mod functions {
    /// Does `body` as a step with a name, which is shown while it runs and when it failed: `step("models", || { ... })`.
    /// Gives back what `body` gives back, and fails as it fails.
    #[rhai_fn(return_raw)]
    pub fn step(context: NativeCallContext<'_>, name: &str, body: FnPtr) -> ScriptResult<Dynamic> {
        run_step(&context, name, &body)
    }

    /// Starts service `name` and returns at once. Fails where there is no such service.
    #[rhai_fn(return_raw)]
    pub fn start(name: &str) -> ScriptResult<()> {
        act("start", name, SupervisorHandle::start)
    }

    /// Starts all services in dependency order and returns at once.
    #[rhai_fn(return_raw)]
    pub fn start_all() -> ScriptResult<()> {
        let call = Call::current()?;
        match call.world() {
            World::Real(deps) => {
                supervisor(deps)?.start_all();
            }
            World::MadeUp => testing::start_all_services(),
        }
        Ok(())
    }

    /// Waits until service `name` is ready, or completed for a oneshot, as long as the hook may run. Fails where the
    /// service has failed or is not there.
    #[rhai_fn(return_raw)]
    pub fn wait_ready(name: &str) -> ScriptResult<()> {
        wait_until_ready(name, None)
    }

    /// As `wait_ready(name)`, no longer than `limit`, such as `"60s"`. Fails when it is not ready by then.
    #[rhai_fn(name = "wait_ready", return_raw)]
    pub fn wait_ready_within(name: &str, limit: &str) -> ScriptResult<()> {
        wait_until_ready(name, Some(parse_duration(limit).map_err(error)?))
    }

    /// Runs a program, `["program", "argument", ...]`, and gives back what `process::run` gives back. Fails where its exit
    /// code is not 0, with the last line it wrote to its standard error.
    #[rhai_fn(return_raw)]
    pub fn run(argv: Array) -> ScriptResult<Map> {
        let program = argv.first().map(ToString::to_string).unwrap_or_default();
        let mut options = Map::new();
        options.insert("argv".into(), argv.into());
        let result = run_map(options)?;
        if result.get("code").and_then(|code| code.as_int().ok()) == Some(0) {
            return Ok(result);
        }
        let stderr = result.get("stderr").map(ToString::to_string).unwrap_or_default();
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it wrote no error");
        Err(error(format!(
            "{program} failed (code {}): {last}",
            result.get("code").map_or_else(String::new, ToString::to_string)
        )))
    }
}

fn run_step(context: &NativeCallContext<'_>, name: &str, body: &FnPtr) -> ScriptResult<Dynamic> {
    let steps = Call::current()?.steps;
    let report = |report: StepReport| {
        if let Some(steps) = &steps {
            steps.step(name, report);
        }
    };
    report(StepReport::Begun);
    let outcome = body.call_within_context::<Dynamic>(context, ());
    report(match &outcome {
        Ok(_) => StepReport::Done,
        Err(cause) => StepReport::Failed(cause.to_string()),
    });
    outcome
}

fn wait_until_ready(name: &str, limit: Option<Duration>) -> ScriptResult<()> {
    let call = Call::current()?;
    let World::Real(deps) = call.world() else { return testing::wait_for_service(name, limit) };
    let mut status = supervisor(deps)?.subscribe();
    let settled = |state: ServiceState| state.is_ready() || state == ServiceState::Failed;
    let wait = status.wait_for(|status| status.services.get(name).is_none_or(|service| settled(service.state)));
    let outcome = match limit {
        None => call.wait(async { wait.await.map(|status| status.clone()).ok() })?,
        Some(limit) => call
            .wait(async {
                tokio::time::timeout(limit, wait).await.map(|status| status.map(|status| status.clone()).ok())
            })?
            .map_err(|_| {
                error(format!("service {name:?} was not ready within {}", humantime::format_duration(limit)))
            })?,
    };
    let status = outcome.ok_or_else(|| error("the supervisor is gone"))?;
    match status.services.get(name) {
        None => Err(error(format!("there is no service {name:?}"))),
        Some(service) if service.state == ServiceState::Failed => {
            let why = service.reason.clone().unwrap_or_default();
            Err(error(format!("service {name:?} failed: {why}")))
        }
        Some(_) => Ok(()),
    }
}
