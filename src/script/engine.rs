use std::sync::LazyLock;

use rhai::packages::{Package as _, StandardPackage};
use rhai::{Dynamic, Engine, Module, OptimizationLevel, Shared};

use super::resolver::RootedResolver;
use super::{api, call, lines, testing};
use crate::telemetry::Level;

/// What a program's hooks may do. Both know all primitives, so that one script compiles for both; in a pure hook those
/// that act refuse to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    /// Computes from its arguments and nothing else.
    Pure,
    Full,
    /// Tests other scripts, whose world it makes up.
    Test,
}

/// Operations a pure hook may use: about a second of computing.
const PURE_OPERATIONS: u64 = 5_000_000;

/// Operations of a test itself; the hooks that it calls have their own limits.
const TEST_OPERATIONS: u64 = 20_000_000;

/// What Rhai's own engines have.
const STRINGS_INTERNED: usize = 256;

/// Words of the language that scripts do without.
pub(super) const DISABLED: [&str; 1] = ["eval"];

/// An engine in which nothing is unlimited and nothing blocks without end.
pub(super) fn build(power: Power, resolver: RootedResolver) -> Engine {
    // What the language itself has, and the primitives, is one for all engines: a machine has many.
    static STANDARD: LazyLock<Shared<Module>> = LazyLock::new(|| StandardPackage::new().as_shared_module());
    let mut engine = Engine::new_raw();
    engine.set_max_strings_interned(STRINGS_INTERNED);
    engine.register_global_module(Shared::clone(&STANDARD));
    engine.set_optimization_level(OptimizationLevel::Simple);
    engine.set_strict_variables(true);
    engine.set_fail_on_invalid_map_property(true);
    engine.set_max_call_levels(64);
    engine.set_max_expr_depths(128, 64);
    engine.set_max_string_size(8 * 1024 * 1024);
    engine.set_max_array_size(100_000);
    engine.set_max_map_size(100_000);
    engine.set_max_modules(50);
    engine.set_max_functions(1_000);
    engine.set_max_variables(1_000);
    if power == Power::Pure {
        engine.set_max_operations(PURE_OPERATIONS);
    }
    for word in DISABLED {
        engine.disable_symbol(word);
    }
    engine.set_module_resolver(resolver);
    engine.on_progress(|_| call::interruption_of_current().map(|why| Dynamic::from(why.to_owned())));
    engine.on_print(|text| lines::write(Some(Level::Info), text));
    engine.on_debug(|text, _, position| lines::write(Some(Level::Info), &format!("{position:?}: {text}")));
    api::register(&mut engine);
    if power == Power::Test {
        engine.set_max_operations(TEST_OPERATIONS);
        testing::register(&mut engine);
    }
    engine
}
