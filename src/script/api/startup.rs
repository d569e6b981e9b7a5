//! The words of a start-up sequence: `step(name, || ...)`, `start(name)`, `start_all()`, `wait_ready(name)`,
//! `wait_ready(name, "60s")`, `run([program, argument, ...])`.

use std::time::Duration;

use rhai::{Array, Dynamic, Engine, FnPtr, Map, NativeCallContext};

use super::service::supervisor;
use crate::base::{Name, parse_duration};
use crate::script::StepReport;
use crate::script::call::{Call, ScriptResult, error};
use crate::supervisor::ServiceState;

pub(super) fn register(engine: &mut Engine) {
    engine.register_fn("step", |context: NativeCallContext<'_>, name: &str, body: FnPtr| step(&context, name, &body));
    engine.register_fn("start", |name: &str| -> ScriptResult<()> {
        supervisor()?.start(&service_name(name)?).map_err(|cause| error(cause.to_string()))
    });
    engine.register_fn("start_all", || -> ScriptResult<()> {
        supervisor()?.start_all();
        Ok(())
    });
    engine.register_fn("wait_ready", |name: &str| wait_ready(name, None));
    engine.register_fn("wait_ready", |name: &str, limit: &str| -> ScriptResult<()> {
        wait_ready(name, Some(parse_duration(limit).map_err(error)?))
    });
    engine.register_fn("run", |argv: Array| -> ScriptResult<Map> {
        let program = argv.first().map(ToString::to_string).unwrap_or_default();
        let mut options = Map::new();
        options.insert("argv".into(), argv.into());
        let result = super::process::run_map(options)?;
        if result.get("code").and_then(|code| code.as_int().ok()) == Some(0) {
            return Ok(result);
        }
        let stderr = result.get("stderr").map(ToString::to_string).unwrap_or_default();
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it wrote no error");
        Err(error(format!(
            "{program} failed (code {}): {last}",
            result.get("code").map_or_else(String::new, ToString::to_string)
        )))
    });
}

fn step(context: &NativeCallContext<'_>, name: &str, body: &FnPtr) -> ScriptResult<Dynamic> {
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

fn service_name(name: &str) -> ScriptResult<Name> {
    Name::new(name).map_err(|cause| error(cause.to_string()))
}

fn wait_ready(name: &str, limit: Option<Duration>) -> ScriptResult<()> {
    let call = Call::current()?;
    let mut status = supervisor()?.subscribe();
    let settled =
        |state: ServiceState| matches!(state, ServiceState::Ready | ServiceState::Completed | ServiceState::Failed);
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
