//! `service::`: the machine's services.

use crate::base::Name;
use crate::script::call::{Call, ScriptResult, World, error};
use crate::script::prelude::*;
use crate::script::program::Deps;
use crate::script::testing;
use crate::supervisor::{SupervisorHandle, UnknownService};

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// The services of the machine that runs. All fail where there is no service `name`.
#[export_module]
mod functions {
    /// The state of service `name` now: `"stopped"`, `"waiting"`, `"starting"`, `"ready"`, `"unready"`, `"stopping"`,
    /// `"backoff"`, `"crash_loop"`, `"completed"` or `"failed"`.
    #[rhai_fn(return_raw)]
    pub fn state(name: &str) -> ScriptResult<String> {
        let call = Call::current()?;
        let World::Real(deps) = call.world() else { return testing::service_state(name) };
        let status = supervisor(deps)?.status();
        let service = status.services.get(name).ok_or_else(|| error(format!("there is no service {name:?}")))?;
        Ok(service.state.to_string())
    }

    /// Asks for service `name` to be started and returns at once; wait with `wait_ready`.
    #[rhai_fn(return_raw)]
    pub fn start(name: &str) -> ScriptResult<()> {
        act("start", name, SupervisorHandle::start)
    }

    /// Asks for service `name` to be stopped, and kept stopped, and returns at once.
    #[rhai_fn(return_raw)]
    pub fn stop(name: &str) -> ScriptResult<()> {
        act("stop", name, SupervisorHandle::stop)
    }

    /// Asks for service `name` to be stopped and started again and returns at once.
    #[rhai_fn(return_raw)]
    pub fn restart(name: &str) -> ScriptResult<()> {
        act("restart", name, SupervisorHandle::restart)
    }
}

pub(super) fn act(
    what: &'static str,
    name: &str,
    verb: fn(&SupervisorHandle, &Name) -> Result<(), UnknownService>,
) -> ScriptResult<()> {
    let call = Call::current()?;
    let World::Real(deps) = call.world() else { return testing::act_on_service(what, name) };
    let name = Name::new(name).map_err(|cause| error(cause.to_string()))?;
    verb(&supervisor(deps)?, &name).map_err(|cause| error(cause.to_string()))
}

pub(super) fn supervisor(deps: &Deps) -> ScriptResult<SupervisorHandle> {
    deps.config.supervisor.clone().ok_or_else(|| error("no services run here"))
}
