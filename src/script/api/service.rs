//! `service::state(name)`, `service::start(name)`, `service::stop(name)`, `service::restart(name)`.

use rhai::{FuncRegistration, Module};

use crate::base::Name;
use crate::script::call::{Call, ScriptResult, error};
use crate::supervisor::{SupervisorHandle, UnknownService};

pub(super) fn module() -> Module {
    let mut module = Module::new();
    FuncRegistration::new("state").set_into_module(&mut module, |name: &str| -> ScriptResult<String> {
        let status = supervisor()?.status();
        let service = status.services.get(name).ok_or_else(|| error(format!("there is no service {name:?}")))?;
        Ok(service.state.to_string())
    });
    let mut verb = |verb: &str, act: fn(&SupervisorHandle, &Name) -> Result<(), UnknownService>| {
        FuncRegistration::new(verb).set_into_module(&mut module, move |name: &str| -> ScriptResult<()> {
            let name = Name::new(name).map_err(|cause| error(cause.to_string()))?;
            act(&supervisor()?, &name).map_err(|cause| error(cause.to_string()))
        });
    };
    verb("start", SupervisorHandle::start);
    verb("stop", SupervisorHandle::stop);
    verb("restart", SupervisorHandle::restart);
    module
}

pub(super) fn supervisor() -> ScriptResult<SupervisorHandle> {
    let call = Call::current()?;
    call.deps.config.supervisor.clone().ok_or_else(|| error("no services run here"))
}
