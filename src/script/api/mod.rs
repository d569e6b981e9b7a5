//! The primitives, one namespace a file, and the one list of them: the engine and the reference are made of it.

mod array;
mod blob;
mod crypto;
mod env;
mod events;
mod failure;
mod fs;
mod gpu;
mod http;
mod job;
mod json;
mod log;
mod metrics;
mod parallel;
mod process;
mod redis;
mod retry;
mod section;
mod service;
mod startup;
mod storage;
mod time;
mod ws;

use std::sync::LazyLock;

use rhai::Engine;

use super::types;

pub(super) use blob::decode as decode_base64;
pub(super) use failure::Thrown;
pub(super) use fs::{readable, writable};
pub(super) use gpu::map_of as gpu_map;
pub(super) use http::Head;
pub(super) use job::JobHandle;
pub(super) use section::{Place, Section};
pub(super) use ws::text_of;

/// Everything that scripts have beyond the language, in the order of the reference.
pub(super) fn sections() -> Vec<Section> {
    static SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(make_sections);
    SECTIONS.clone()
}

fn make_sections() -> Vec<Section> {
    let mut sections = vec![
        Section::namespace("blob", blob::module()),
        Section::namespace("crypto", crypto::module()),
        Section::namespace("env", env::module()),
        Section::namespace("events", events::module()),
        Section::namespace("fs", fs::module()),
        Section::namespace("gpu", gpu::module()),
        Section::namespace("http", http::module()),
        Section::namespace("json", json::module()),
        Section::namespace("log", log::module()),
        Section::namespace("metrics", metrics::module()),
        Section::namespace("process", process::module()),
        Section::namespace("redis", redis::module()),
        Section::namespace("service", service::module()),
        Section::namespace("storage", storage::module()),
        Section::namespace("time", time::module()),
        Section::namespace("ws", ws::module()),
        Section::words("Start-up sequence", startup::module()),
        Section::words("Waiting", time::words()),
        Section::words("At the same time", parallel::module()),
        Section::words("Again", retry::module()),
        Section::words("Failures", failure::module()),
        Section::words("Arrays", array::module()),
        Section::of_type("Failure", failure::failure_type()),
        Section::of_type("Job", job::module()),
    ];
    sections.extend(types::sections());
    sections
}

pub(super) fn register(engine: &mut Engine) {
    for section in sections() {
        section.register(engine);
    }
}
