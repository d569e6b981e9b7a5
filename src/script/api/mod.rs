//! The primitives, one namespace a file, and the one list that registers them.

mod array;
mod blob;
mod crypto;
mod env;
mod fs;
mod job;
mod json;
mod log;
mod process;
mod service;
mod startup;
mod time;

use rhai::{Engine, Module};

pub(super) use fs::writable;
pub(super) use job::JobHandle;

pub(super) fn register(engine: &mut Engine) {
    let mut namespace = |name: &str, module: Module| {
        engine.register_static_module(name, module.into());
    };
    namespace("blob", blob::module());
    namespace("json", json::module());
    namespace("log", log::module());
    namespace("crypto", crypto::module());
    namespace("time", time::module());
    namespace("env", env::module());
    namespace("fs", fs::module());
    namespace("process", process::module());
    namespace("service", service::module());
    array::register(engine);
    job::register(engine);
    startup::register(engine);
    time::register_sleep(engine);
}
