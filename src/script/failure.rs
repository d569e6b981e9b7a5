use rhai::Engine;

use super::call::{ScriptResult, error};
use crate::base::{Seconds, parse_duration};
use crate::queue::{Failure, FailureClass};

/// What `throw fatal("...")` throws: a failure with its class.
#[derive(Clone, Debug)]
pub(super) struct Thrown(pub Failure);

/// The functions that make failures for `throw`.
pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<Thrown>("Failure");
    engine.register_get("message", |thrown: &mut Thrown| thrown.0.message.clone());
    engine.register_fn("to_string", |thrown: &mut Thrown| thrown.0.message.clone());
    let classes = [
        ("retryable", FailureClass::Retryable),
        ("fatal", FailureClass::Fatal),
        ("wrong_machine", FailureClass::WrongMachine),
        ("account", FailureClass::Account),
    ];
    for (name, class) in classes {
        engine.register_fn(name, move |message: &str| Thrown(Failure::new(class, message)));
    }
    engine.register_fn("retry_after", |message: &str, delay: &str| -> ScriptResult<Thrown> {
        let delay = parse_duration(delay).map_err(error)?;
        let mut failure = Failure::new(FailureClass::Retryable, message);
        failure.retry_after = Some(Seconds::new(delay));
        Ok(Thrown(failure))
    });
}
