//! The recorder behind `/metrics`. Metrics are named where they are counted and described in the catalogue; this module installs
//! the exporter and gives durations their buckets.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use super::catalogue::{GROUPS, MetricKind};

/// Buckets for jobs, in seconds: images take seconds, videos up to an hour.
const JOB_BUCKETS: &[f64] =
    &[0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0];
/// Histograms of jobs.
const JOB_PREFIX: &str = "machinist_job";
/// Buckets for work inside the engine, in seconds.
const ENGINE_BUCKETS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// A series that nothing has touched for so long is dropped: what it described is gone.
const IDLE_TIMEOUT: Duration = Duration::from_hours(1);

/// Installs the process-wide recorder, once; later calls give the same handle.
///
/// # Panics
/// Never: the bucket lists are not empty.
pub fn install() -> PrometheusHandle {
    static HANDLE: std::sync::OnceLock<PrometheusHandle> = std::sync::OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let recorder = PrometheusBuilder::new()
                .set_buckets(ENGINE_BUCKETS)
                .expect("UNWRAP: the buckets are not empty")
                .set_buckets_for_metric(Matcher::Prefix(JOB_PREFIX.to_owned()), JOB_BUCKETS)
                .expect("UNWRAP: the buckets are not empty")
                .idle_timeout(MetricKindMask::HISTOGRAM, Some(IDLE_TIMEOUT))
                .build_recorder();
            let handle = recorder.handle();
            // Fails only where another recorder is installed, which then counts instead.
            drop(metrics::set_global_recorder(recorder));
            describe();
            handle
        })
        .clone()
}

/// Tells the recorder what each metric is.
fn describe() {
    for metric in GROUPS.iter().flat_map(|group| group.metrics) {
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, metric.help),
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            MetricKind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}
