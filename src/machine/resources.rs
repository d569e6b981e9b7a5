use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use metrics::gauge;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::event::Event;
use crate::host::{GpusStatus, Level, Resource, levels};
use crate::settings::ResourceSettings;
use crate::telemetry::Published;

/// While something is short it is said again so often, so that recovery is tried again.
const REMIND: Duration = Duration::from_secs(60);

/// Finds out what is short: a resource is when it was above its high mark for several samples in a row, and is no more
/// when it was below its low mark for as many.
#[derive(Debug)]
pub(super) struct Gauge {
    settings: ResourceSettings,
    states: BTreeMap<Resource, State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    short: bool,
    /// Samples in a row that speak against the present state.
    against: u32,
}

impl Gauge {
    pub fn new(settings: ResourceSettings) -> Self {
        Self { settings, states: BTreeMap::new() }
    }

    /// Takes one sample; answers with what is short now.
    pub fn sample(&mut self, levels: &[Level]) -> Vec<Level> {
        for level in levels {
            let high = high_mark(&self.settings, level.resource);
            let state = self.states.entry(level.resource).or_default();
            let against = if state.short { level.used < high - self.settings.hysteresis } else { level.used >= high };
            state.against = if against { state.against + 1 } else { 0 };
            if state.against >= self.settings.samples {
                *state = State { short: !state.short, against: 0 };
            }
        }
        let short = |level: &&Level| self.states.get(&level.resource).is_some_and(|state| state.short);
        levels.iter().filter(short).cloned().collect()
    }
}

fn high_mark(settings: &ResourceSettings, resource: Resource) -> f64 {
    match resource {
        Resource::Memory => settings.memory,
        Resource::Disk => settings.disk,
        Resource::Files => settings.files,
        Resource::GpuMemory => settings.gpu_memory,
    }
}

/// Samples, keeps the metrics, and tells what changes.
pub(super) async fn watch(
    mut changes: watch::Receiver<ResourceSettings>,
    state_dir: PathBuf,
    gpus: Published<GpusStatus>,
    published: Published<Vec<Level>>,
    sender: mpsc::UnboundedSender<Event>,
    stop: CancellationToken,
) {
    let mut gauge = Gauge::new(changes.borrow_and_update().clone());
    let mut known: Vec<Resource> = Vec::new();
    let mut said = tokio::time::Instant::now();
    loop {
        let (dir, gpus) = (state_dir.clone(), gpus.get());
        let levels = tokio::task::spawn_blocking(move || levels(&dir, &gpus.gpus)).await.unwrap_or_default();
        for level in &levels {
            gauge!("machinist_resource_used_ratio", "resource" => level.resource.as_str()).set(level.used);
        }
        let short = gauge.sample(&levels);
        published.set(levels);
        let resources: Vec<Resource> = short.iter().map(|level| level.resource).collect();
        if resources != known || (!resources.is_empty() && said.elapsed() >= REMIND) {
            known = resources;
            said = tokio::time::Instant::now();
            if sender.send(Event::Resources(short)).is_err() {
                return;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = changes.changed() => {
                gauge.settings = changes.borrow_and_update().clone();
            }
            () = tokio::time::sleep(gauge.settings.every.get()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seconds;

    fn settings() -> ResourceSettings {
        ResourceSettings {
            every: Seconds::from_secs(1),
            samples: 3,
            memory: 0.9,
            disk: 0.9,
            files: 0.9,
            gpu_memory: 1.1,
            hysteresis: 0.1,
            give_up_after: Seconds::default(),
        }
    }

    #[test]
    fn a_resource_is_short_after_several_high_samples_and_free_after_several_low_ones() {
        let mut gauge = Gauge::new(settings());
        let mut short =
            |used: f64| !gauge.sample(&[Level { resource: Resource::Memory, used, detail: String::new() }]).is_empty();
        let course = [
            (0.95, false),
            (0.95, false),
            (0.5, false),
            (0.95, false),
            (0.9, false),
            (0.99, true),
            (0.85, true),
            (0.85, true),
            (0.85, true),
            (0.7, true),
            (0.7, true),
            (0.85, true),
            (0.7, true),
            (0.7, true),
            (0.79, false),
            (0.85, false),
        ];
        for (index, (used, expected)) in course.into_iter().enumerate() {
            assert_eq!(short(used), expected, "sample {index}");
        }
    }

    #[test]
    fn a_mark_above_one_is_never_reached() {
        let mut gauge = Gauge::new(settings());
        for _ in 0..10 {
            assert!(
                gauge.sample(&[Level { resource: Resource::GpuMemory, used: 1.0, detail: String::new() }]).is_empty()
            );
        }
    }
}
