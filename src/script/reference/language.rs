use std::collections::BTreeSet;

use rhai::packages::{
    ArithmeticPackage, BasicArrayPackage, BasicMapPackage, BasicMathPackage, BasicStringPackage, LanguageCorePackage,
    LogicPackage, MoreStringPackage, Package,
};
use rhai::{Engine, Shared};

use super::entry::is_word;
use crate::script::engine::DISABLED;

/// The functions that Rhai itself brings, by what they are about. Sorted.
pub(super) fn functions() -> Vec<(&'static str, Vec<String>)> {
    let core = LanguageCorePackage::new().as_shared_module();
    let texts = [BasicStringPackage::new().as_shared_module(), MoreStringPackage::new().as_shared_module()];
    let numbers = [
        ArithmeticPackage::new().as_shared_module(),
        BasicMathPackage::new().as_shared_module(),
        LogicPackage::new().as_shared_module(),
    ];
    vec![
        ("Texts", names(&texts)),
        ("Arrays", names(&[BasicArrayPackage::new().as_shared_module()])),
        ("Maps", names(&[BasicMapPackage::new().as_shared_module()])),
        ("Numbers", names(&numbers)),
        ("The language", names(&[core])),
    ]
}

fn names(modules: &[Shared<rhai::Module>]) -> Vec<String> {
    let mut engine = Engine::new_raw();
    for module in modules {
        engine.register_global_module(Shared::clone(module));
    }
    let names: BTreeSet<String> = engine
        .collect_fn_metadata(None, |function| Some(function.metadata.name.to_string()), true)
        .into_iter()
        .collect();
    // `sleep` is the engine's own.
    let hidden = |name: &str| DISABLED.contains(&name) || name == "sleep";
    names.into_iter().filter(|name| is_word(name) && !hidden(name)).collect()
}
