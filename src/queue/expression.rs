use std::sync::LazyLock;

use rhai::packages::{
    ArithmeticPackage, BasicArrayPackage, BasicMapPackage, BasicStringPackage, LogicPackage, Package,
};
use rhai::{Engine, Scope};

use crate::spec::Capabilities;

const MAX_OPERATIONS: u64 = 10_000;

/// Expressions only: nothing in it can loop for ever, change anything or reach anything.
static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let mut engine = Engine::new_raw();
    ArithmeticPackage::new().register_into_engine(&mut engine);
    LogicPackage::new().register_into_engine(&mut engine);
    BasicStringPackage::new().register_into_engine(&mut engine);
    BasicArrayPackage::new().register_into_engine(&mut engine);
    BasicMapPackage::new().register_into_engine(&mut engine);
    engine.set_max_operations(MAX_OPERATIONS);
    engine.set_max_expr_depths(32, 32);
    engine.set_max_string_size(10_000);
    engine.set_max_array_size(10_000);
    engine.disable_symbol("eval");
    engine
});

/// Why `when` is no expression, if it is none.
pub(super) fn check(when: &str) -> Result<(), String> {
    ENGINE.compile_expression(when).map(drop).map_err(|cause| format!("\"when\": {when:?} is no expression: {cause}"))
}

/// Whether the expression is true of the worker; the reason when it is not. An expression that fails is not true.
pub(super) fn holds(when: &str, worker: &Capabilities) -> Result<(), String> {
    let mut scope = Scope::new();
    let values = rhai::serde::to_dynamic(worker).map_err(|cause| cause.to_string())?;
    for (name, value) in values.cast::<rhai::Map>() {
        scope.push_constant_dynamic(name.to_string(), value);
    }
    match ENGINE.eval_expression_with_scope::<bool>(&mut scope, when) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{when:?} is not true of the worker")),
        Err(cause) => Err(format!("{when:?} fails for the worker: {cause}")),
    }
}
