use serde::Serialize;

use super::Settings;

/// A setting that differs between what runs and what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SettingChange {
    pub key: &'static str,
    /// A running machine takes it over; else it counts from the next start of the engine.
    pub live: bool,
}

type Same = fn(&Settings, &Settings) -> bool;

/// Every setting, and whether a running machine takes it over.
#[rustfmt::skip]
const SETTINGS: [(&str, bool, Same); 39] = [
    ("state_dir", false, |old, new| old.state_dir == new.state_dir),
    ("scripts_dir", false, |old, new| old.scripts_dir == new.scripts_dir),
    ("machine.id", false, |old, new| old.machine.id == new.machine.id),
    ("machine.type", false, |old, new| old.machine.machine_type == new.machine.machine_type),
    ("machine.pool", true, |old, new| old.machine.pool == new.machine.pool),
    ("machine.script", true, |old, new| old.machine.script == new.machine.script),
    ("machine.workers", true, |old, new| old.machine.workers == new.machine.workers),
    ("machine.labels", true, |old, new| old.machine.labels == new.machine.labels),
    ("queue.url", false, |old, new| old.queue.backend == new.queue.backend),
    ("queue.name", false, |old, new| old.queue.name == new.queue.name),
    ("queue.webhook_secret", false, |old, new| old.queue.webhook_secret == new.queue.webhook_secret),
    ("queue.lease", false, |old, new| old.queue.lease == new.queue.lease),
    ("queue.connect_timeout", true, |old, new| old.queue.connect_timeout == new.queue.connect_timeout),
    ("blobs.url", false, |old, new| old.blobs == new.blobs),
    ("http.listen", false, |old, new| old.http.listen == new.http.listen),
    ("http.token", false, |old, new| old.http.token == new.http.token),
    ("http.console", true, |old, new| old.http.console == new.http.console),
    ("reload.debounce", true, |old, new| old.reload.debounce == new.reload.debounce),
    ("reload.poll", true, |old, new| old.reload.poll == new.reload.poll),
    ("reload.probation", true, |old, new| old.reload.probation == new.reload.probation),
    ("shutdown.grace", true, |old, new| old.shutdown == new.shutdown),
    ("resources.memory", true, |old, new| same(old.resources.memory, new.resources.memory)),
    ("resources.disk", true, |old, new| same(old.resources.disk, new.resources.disk)),
    ("resources.files", true, |old, new| same(old.resources.files, new.resources.files)),
    ("resources.gpu_memory", true, |old, new| same(old.resources.gpu_memory, new.resources.gpu_memory)),
    ("resources.hysteresis", true, |old, new| same(old.resources.hysteresis, new.resources.hysteresis)),
    ("resources.every", true, |old, new| old.resources.every == new.resources.every),
    ("resources.samples", true, |old, new| old.resources.samples == new.resources.samples),
    ("resources.give_up_after", true, |old, new| old.resources.give_up_after == new.resources.give_up_after),
    ("gpu.library", false, |old, new| old.gpu.library == new.gpu.library),
    ("gpu.every", false, |old, new| old.gpu.every == new.gpu.every),
    ("gpu.xid_hold", true, |old, new| old.gpu.xid_hold == new.gpu.xid_hold),
    ("gpu.dcgm_names", false, |old, new| old.gpu.dcgm_names == new.gpu.dcgm_names),
    ("log.format", false, |old, new| old.log.format == new.log.format),
    ("log.level", true, |old, new| old.log.level == new.log.level),
    ("log.services", false, |old, new| old.log.services == new.log.services),
    ("telemetry.otlp_endpoint", false, |old, new| old.telemetry == new.telemetry),
    ("vars", true, |old, new| old.vars == new.vars),
    ("connectors", true, |old, new| old.connectors == new.connectors),
];

fn same(old: f64, new: f64) -> bool {
    old.to_bits() == new.to_bits()
}

impl Settings {
    /// What differs in `new`, in the order of `defaults.toml`.
    pub fn changes(&self, new: &Self) -> Vec<SettingChange> {
        let differing = SETTINGS.iter().filter(|(_, _, same)| !same(self, new));
        differing.map(|(key, live, _)| SettingChange { key, live: *live }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Overrides, load};

    fn load_text(text: &str) -> (Settings, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("machine.toml"), format!("state_dir = \"/s\"\nmachine.type = \"t\"\n{text}"))
            .unwrap();
        let (settings, tree) = load(dir.path(), &Overrides::default()).unwrap();
        (settings, tree.leaves.keys().map(|path| path.join(".")).collect())
    }

    #[test]
    fn every_setting_is_either_taken_over_or_refused() {
        let (_, mut known) = load_text("");
        let mut listed: Vec<String> = SETTINGS.iter().map(|(key, _, _)| (*key).to_owned()).collect();
        known.sort();
        listed.sort();
        assert_eq!(listed, known);
    }

    /// A setting whose comparison looks at another one would go unnoticed.
    #[test]
    fn every_change_is_told_by_its_own_name() {
        let (old, _) = load_text("");
        let value = |key: &str| match key {
            "vars" | "machine.labels" => "{ a = 1 }",
            "connectors" => "{ command = { vars = { a = 1 } } }",
            "queue.url" => "\"redis://localhost\"",
            "http.listen" => "\"127.0.0.1:1\"",
            "telemetry.otlp_endpoint" => "\"http://collector:4318\"",
            "log.format" => "\"json\"",
            "log.services" => "false",
            "gpu.dcgm_names" => "true",
            "machine.workers" | "resources.samples" => "7",
            _ if key.starts_with("resources.") && !key.ends_with("every") && !key.ends_with("after") => "0.123",
            "queue.lease"
            | "queue.connect_timeout"
            | "reload.debounce"
            | "reload.poll"
            | "reload.probation"
            | "shutdown.grace"
            | "resources.every"
            | "gpu.every"
            | "gpu.xid_hold"
            | "resources.give_up_after" => "\"7s\"",
            _ => "\"/other\"",
        };
        for (key, live, _) in SETTINGS {
            // What the head of the file sets already, and what a name may look like.
            let name = matches!(key, "machine.id" | "machine.pool" | "queue.name");
            let text = match key {
                "state_dir" | "machine.type" => continue,
                "http.console" => "http.console = true\nhttp.token = \"t\"\n".to_owned(),
                _ if name => format!("{key} = \"other\"\n"),
                _ => format!("{key} = {}\n", value(key)),
            };
            let (new, _) = load_text(&text);
            let new = Settings { dir: old.dir.clone(), scripts_dir: scripts_dir(key, &old, &new), ..new };
            let changes = old.changes(&new);
            // Without an embedded queue there is no directory for large payloads.
            let changes = changes.into_iter().filter(|c| key != "queue.url" || c.key != "blobs.url");
            // A console needs a token.
            let changes: Vec<_> = changes.filter(|c| key != "http.console" || c.key != "http.token").collect();
            assert_eq!(changes, [SettingChange { key, live }], "{text}");
        }
    }

    /// Derived from the directory, which differs between two loads here.
    fn scripts_dir(key: &str, old: &Settings, new: &Settings) -> std::path::PathBuf {
        if key == "scripts_dir" { new.scripts_dir.clone() } else { old.scripts_dir.clone() }
    }
}
