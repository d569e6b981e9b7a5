//! The services of the machine, as a test says they are.

use std::time::Duration;

use super::told::map;
use super::world::{record, sleep, unmocked, wait_for_ever, with};
use crate::script::call::{ScriptResult, error};

pub(in crate::script) fn service_state(name: &str) -> ScriptResult<String> {
    let state = with(|world| world.services.get(name).cloned());
    state.ok_or_else(|| unmocked(&format!("service {name:?}"), &format!("mock::service({name:?}, \"ready\")")))
}

pub(in crate::script) fn act_on_service(what: &'static str, name: &str) -> ScriptResult<()> {
    service_state(name)?;
    record("service", map([("action", what.into()), ("name", name.into())]));
    let state = if what == "stop" { "stopped" } else { "ready" };
    with(|world| world.services.insert(name.to_owned(), state.to_owned()));
    Ok(())
}

pub(in crate::script) fn start_all_services() {
    record("service", map([("action", "start_all".into())]));
    with(|world| {
        for state in world.services.values_mut().filter(|state| *state == "stopped") {
            "ready".clone_into(state);
        }
    });
}

pub(in crate::script) fn wait_for_service(name: &str, limit: Option<Duration>) -> ScriptResult<()> {
    match (service_state(name)?.as_str(), limit) {
        ("ready" | "completed", _) => Ok(()),
        ("failed", _) => Err(error(format!("service {name:?} failed: as the test says"))),
        (_, Some(limit)) => {
            sleep(limit)?;
            Err(error(format!("service {name:?} was not ready within {}", humantime::format_duration(limit))))
        }
        _ => wait_for_ever(),
    }
}
