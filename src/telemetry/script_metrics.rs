//! The metrics that scripts count: a recorder of their own, so that what nobody touches any more ends, and so that no script
//! can fill the memory of the engine or of a Prometheus with series.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use metrics::{Key, Label, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use metrics_util::MetricKindMask;

const PREFIX: &str = "machinist_script_";
/// Of all scripts together.
const MAX_SERIES: usize = 1_000;
/// A series that no script has touched for so long ends.
const IDLE: Duration = Duration::from_hours(1);
const MAX_LABELS: usize = 10;
const MAX_VALUE: usize = 128;
/// In whatever unit the script observes: seconds usually.
const BUCKETS: &[f64] = &[0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

/// What is done to a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Counts up.
    Count(u64),
    /// Is so much now.
    Gauge(f64),
    /// One of many, of which the distribution is wanted.
    Observe(f64),
}

impl Change {
    fn kind(self) -> &'static str {
        match self {
            Self::Count(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Observe(_) => "histogram",
        }
    }
}

struct Store {
    recorder: PrometheusRecorder,
    series: Mutex<HashMap<Key, (&'static str, Instant)>>,
}

fn store() -> &'static Store {
    static STORE: OnceLock<Store> = OnceLock::new();
    STORE.get_or_init(|| {
        let builder = PrometheusBuilder::new().set_buckets(BUCKETS).expect("UNWRAP: the buckets are not empty");
        let recorder = builder.idle_timeout(MetricKindMask::ALL, Some(IDLE)).build_recorder();
        Store { recorder, series: Mutex::default() }
    })
}

/// Changes the metric `machinist_script_<name>`.
///
/// # Errors
/// A sentence for the script's author when a name is none, or belongs to a metric of another kind. A series beyond the
/// thousandth is dropped and counted.
pub fn change(name: &str, labels: Vec<(String, String)>, change: Change) -> Result<(), String> {
    check_name("a metric", name, 64)?;
    if labels.len() > MAX_LABELS {
        return Err(format!("a metric has at most {MAX_LABELS} labels"));
    }
    for (label, value) in &labels {
        check_name("a label", label, 32)?;
        if value.len() > MAX_VALUE {
            return Err(format!("the label {label} has a value of more than {MAX_VALUE} bytes"));
        }
    }
    let mut labels: Vec<Label> = labels.into_iter().map(|(name, value)| Label::new(name, value)).collect();
    labels.sort();
    let key = Key::from_parts(format!("{PREFIX}{name}"), labels);
    let store = store();
    if !admit(&mut lock(&store.series), &key, change.kind(), Instant::now())? {
        metrics::counter!("machinist_script_metrics_dropped_total").increment(1);
        return Ok(());
    }
    let metadata = Metadata::new(module_path!(), metrics::Level::INFO, None);
    match change {
        Change::Count(by) => store.recorder.register_counter(&key, &metadata).increment(by),
        Change::Gauge(value) => store.recorder.register_gauge(&key, &metadata).set(value),
        Change::Observe(value) => store.recorder.register_histogram(&key, &metadata).record(value),
    }
    Ok(())
}

/// Whether there is room for the series.
fn admit(
    series: &mut HashMap<Key, (&'static str, Instant)>,
    key: &Key,
    kind: &'static str,
    now: Instant,
) -> Result<bool, String> {
    if let Some((found, used)) = series.get_mut(key)
        && *found == kind
    {
        *used = now;
        return Ok(true);
    }
    if let Some((other, (found, _))) = series.iter().find(|(other, _)| other.name() == key.name())
        && *found != kind
    {
        return Err(format!("{} is a {found}, not a {kind}", other.name()));
    }
    if series.len() >= MAX_SERIES {
        series.retain(|_, (_, used)| now.duration_since(*used) < IDLE);
    }
    let room = series.len() < MAX_SERIES;
    if room {
        series.insert(key.clone(), (kind, now));
    }
    Ok(room)
}

/// All of them in the text format of Prometheus.
pub fn render() -> String {
    store().recorder.handle().render()
}

fn check_name(what: &str, name: &str, most: usize) -> Result<(), String> {
    let mut letters = name.chars();
    let good = letters.next().is_some_and(|first| first.is_ascii_lowercase() || first == '_')
        && letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
        && name.len() <= most
        && !name.starts_with("__");
    if good { Ok(()) } else { Err(format!("{name:?} cannot name {what}: write 1 to {most} of a-z, 0-9 and _")) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_bounded_and_those_that_idle_make_room() {
        let mut series = HashMap::new();
        let begun = Instant::now();
        let key = |n: usize| Key::from_parts("x", vec![Label::new("n", n.to_string())]);
        for n in 0..MAX_SERIES {
            assert_eq!(admit(&mut series, &key(n), "gauge", begun), Ok(true));
        }
        assert_eq!(admit(&mut series, &key(MAX_SERIES), "gauge", begun), Ok(false));
        let later = begun + IDLE;
        assert_eq!(admit(&mut series, &key(0), "gauge", later), Ok(true));
        assert_eq!(admit(&mut series, &key(MAX_SERIES), "gauge", later), Ok(true));
        assert_eq!(series.len(), 2);
        assert!(admit(&mut series, &key(7), "counter", later).unwrap_err().contains("x is a gauge"));
    }

    #[test]
    fn names_are_checked_and_values_are_rendered() {
        for wrong in ["", "Up", "a-b", "__x", "1a", "a\n"] {
            assert!(
                change(wrong, Vec::new(), Change::Count(1)).unwrap_err().contains("cannot name a metric"),
                "{wrong}"
            );
        }
        let labels = || vec![("model".to_owned(), "a\"b".to_owned())];
        change("unit_test_total", labels(), Change::Count(2)).unwrap();
        change("unit_test_total", labels(), Change::Count(1)).unwrap();
        change("unit_test_seconds", Vec::new(), Change::Observe(0.7)).unwrap();
        let text = render();
        assert!(text.contains("machinist_script_unit_test_total{model=\"a\\\"b\"} 3"), "{text}");
        assert!(text.contains("machinist_script_unit_test_seconds_bucket{le=\"1\"} 1"), "{text}");
        assert!(change("unit_test_total", labels(), Change::Gauge(1.0)).unwrap_err().contains("is a counter"));
    }
}
