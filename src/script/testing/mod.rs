//! Tests of scripts, in scripts: a test calls the hooks of another script in a world that it makes up.
//!
//! Nothing of a test leaves its thread: what is mocked, the virtual clock and what was asked lie in a thread-local
//! (`world`). A primitive gets what it acts on the real world with from `Call::world` at the last step, and nothing here,
//! so that everything before (options, defaults, retries, what an answer means) is what runs in production.

mod assert;
mod clock;
mod diff;
mod gpu;
mod hooks;
mod http;
mod mock;
mod process;
mod redis;
mod service;
mod suite;
mod told;
mod world;
mod ws;

use std::sync::LazyLock;

use rhai::Engine;

use super::api::Section;

pub(super) use gpu::gpus;
pub(super) use http::send;
pub(super) use process::{Program, run_program};
pub(super) use redis::redis;
pub(super) use service::{act_on_service, service_state, start_all_services, wait_for_service};
pub use suite::{Report, Suite, Verdict};
pub(super) use told::{emitted, logged, measured};
pub(super) use world::{ENDED, is_over, left, now, sleep, storage, timestamp, variable};
pub(super) use ws::{MockedSocket, connect};

/// What tests have beyond what all scripts have.
pub(super) fn sections() -> Vec<Section> {
    static SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(|| {
        vec![
            Section::namespace("mock", mock::module()),
            Section::namespace("clock", clock::module()),
            Section::words("Hooks under test", hooks::module()),
            Section::words("Assertions", assert::module()),
        ]
    });
    SECTIONS.clone()
}

pub(super) fn register(engine: &mut Engine) {
    for section in sections() {
        section.register(engine);
    }
}

#[cfg(test)]
mod tests {
    use super::sections;
    use crate::script::api::{self, Place};

    /// What each namespace does in a test. A new one is named here when its functions ask `Call::world` for what they
    /// touch the real world with.
    const NAMESPACES: [(&str, &str); 16] = [
        ("blob", "computes; files are those of fs"),
        ("crypto", "computes"),
        ("env", "Call::variable"),
        ("events", "told"),
        ("fs", "a directory of the test"),
        ("gpu", "gpu"),
        ("http", "http"),
        ("json", "computes"),
        ("log", "told"),
        ("metrics", "told"),
        ("process", "process"),
        ("redis", "redis"),
        ("service", "service"),
        ("storage", "world"),
        ("time", "world"),
        ("ws", "ws"),
    ];

    #[test]
    fn every_namespace_is_made_up_in_tests() {
        let found: Vec<&str> = api::sections()
            .iter()
            .filter_map(|section| match section.place {
                Place::Namespace(name) => Some(name),
                _ => None,
            })
            .collect();
        assert_eq!(found, NAMESPACES.map(|(name, _)| name), "say in NAMESPACES what it does in a test");
    }

    #[test]
    fn every_function_is_in_the_guide_and_documented() {
        let guide = include_str!("../../../docs/testing.md");
        let mut missing = Vec::new();
        for section in sections() {
            for function in section.functions() {
                let name = match section.place {
                    Place::Namespace(namespace) => format!("{namespace}::{}", function.name),
                    _ => function.name.to_string(),
                };
                if !guide.contains(&format!("`{name}(")) || function.comments.is_empty() {
                    missing.push(name);
                }
            }
        }
        assert!(missing.is_empty(), "name these in docs/testing.md: {missing:?}");
    }
}
