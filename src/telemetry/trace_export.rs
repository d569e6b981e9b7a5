use std::time::Duration;

use metrics::counter;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::{EnvResourceDetector, ResourceDetector};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor};
use tokio::sync::{mpsc, oneshot};

use super::Traces;

/// How spans are gathered, as the specification has it; `OTEL_BSP_*` of the environment say otherwise.
const QUEUE: usize = 2_048;
const BATCH: usize = 512;
const DELAY: Duration = Duration::from_secs(5);
/// How long a batch may take, as `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(super) struct Exporting {
    pub tracer: SdkTracer,
    close: mpsc::Sender<oneshot::Sender<()>>,
}

/// Hands spans that have ended to the task that exports them, or drops them: nobody waits for it.
#[derive(Debug)]
struct HandOver(mpsc::Sender<SpanData>);

impl SpanProcessor for HandOver {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.0.try_send(span).is_err() {
            counter!("machinist_spans_dropped_total", "reason" => "queue_full").increment(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Traces {
    /// Exports spans to `endpoint`, an OTLP receiver over HTTP (`http://host:4318`); the environment may name one for traces
    /// alone (`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`). Nothing is exported where neither is there, or the environment says so
    /// (`OTEL_SDK_DISABLED`, `OTEL_TRACES_EXPORTER=none`). `about` describes this process, where the environment does not.
    /// Must be called in a Tokio runtime.
    ///
    /// # Errors
    /// A sentence where it cannot be set up; whether somebody answers there is not asked.
    pub fn start(endpoint: Option<&str>, about: Vec<(&'static str, String)>) -> Result<Self, String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let for_traces = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
        let base = endpoint.map(|base| format!("{}/v1/traces", base.trim_end_matches('/')));
        let Some(address) = for_traces.or(base).filter(|_| !off) else { return Ok(Self::default()) };
        let protocol =
            ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"].into_iter().find_map(variable);
        if let Some(protocol) = protocol.filter(|protocol| protocol != "http/protobuf") {
            tracing::warn!(
                "traces are exported as http/protobuf to {address}: {protocol} of the environment is not spoken"
            );
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let millis = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"].into_iter().find_map(variable);
        let timeout = millis.and_then(|text| text.parse().ok()).filter(|millis| *millis > 0);
        let timeout = timeout.map_or(TIMEOUT, Duration::from_millis);
        // The exporter looks at its time between tries only: a receiver that never answers would hold it up for ever.
        let client = reqwest::Client::builder().timeout(timeout).build().map_err(|cause| cause.to_string())?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_timeout(timeout)
            .with_endpoint(&address);
        let mut exporter = exporter.build().map_err(|cause| cause.to_string())?;
        let resource = resource(about);
        exporter.set_resource(&resource);
        let number = |name: &str, default: usize| {
            variable(name).and_then(|text| text.parse().ok()).filter(|number| *number > 0).unwrap_or(default)
        };
        let most = number("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE);
        let batch = number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH).min(most);
        let delay = number("OTEL_BSP_SCHEDULE_DELAY", usize::try_from(DELAY.as_millis()).unwrap_or(usize::MAX));
        let (spans, queue) = mpsc::channel(most);
        let (close, closing) = mpsc::channel(1);
        let task = Task { exporter, address, batch, delay: Duration::from_millis(delay as u64), failing: false };
        tokio::spawn(task.run(queue, closing));
        // The sampler is what `OTEL_TRACES_SAMPLER` says, which the provider reads; else the parent's choice, or all.
        let provider =
            SdkTracerProvider::builder().with_span_processor(HandOver(spans)).with_resource(resource).build();
        Ok(Self(Some(Exporting { tracer: provider.tracer("machinist"), close })))
    }

    /// Exports what has ended so far, for at most so long; afterwards nothing is exported.
    pub async fn finish(&self, limit: Duration) {
        let Some(exporting) = &self.0 else { return };
        let (done, finished) = oneshot::channel();
        let flushed = async {
            if exporting.close.send(done).await.is_ok() {
                // An error is the task's end, which is as good.
                let _ = finished.await;
            }
        };
        if tokio::time::timeout(limit, flushed).await.is_err() {
            tracing::warn!("the last traces could not be exported in time");
        }
    }
}

/// Of the process; what the environment says of it (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`) goes before.
fn resource(about: Vec<(&'static str, String)>) -> Resource {
    let told = EnvResourceDetector::new().detect();
    let named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty());
    let is_told = |key: &Key| told.get(key).is_some() || (named && key.as_str() == "service.name");
    let about = about.into_iter().map(|(key, value)| KeyValue::new(key, value)).filter(|pair| !is_told(&pair.key));
    Resource::builder().with_attributes(about).build()
}

/// Exports batch by batch. A receiver that is gone costs what is in the queue, and nobody's time.
struct Task {
    exporter: opentelemetry_otlp::SpanExporter,
    address: String,
    batch: usize,
    delay: Duration,
    failing: bool,
}

impl Task {
    async fn run(mut self, mut spans: mpsc::Receiver<SpanData>, mut closing: mpsc::Receiver<oneshot::Sender<()>>) {
        let mut batch = Vec::new();
        loop {
            let closed = tokio::select! {
                taken = spans.recv_many(&mut batch, self.batch) => {
                    if taken == 0 {
                        return;
                    }
                    self.gather(&mut batch, &mut spans, &mut closing).await
                }
                done = closing.recv() => done,
            };
            if let Some(done) = closed {
                spans.close();
                loop {
                    self.export(std::mem::take(&mut batch)).await;
                    if spans.recv_many(&mut batch, self.batch).await == 0 {
                        break;
                    }
                }
                let _ = done.send(());
                return;
            }
            self.export(std::mem::take(&mut batch)).await;
        }
    }

    /// Until the batch is full or its time has come; or until the end, which is given back.
    async fn gather(
        &self,
        batch: &mut Vec<SpanData>,
        spans: &mut mpsc::Receiver<SpanData>,
        closing: &mut mpsc::Receiver<oneshot::Sender<()>>,
    ) -> Option<oneshot::Sender<()>> {
        let due = tokio::time::Instant::now() + self.delay;
        while batch.len() < self.batch {
            let room = self.batch - batch.len();
            tokio::select! {
                taken = spans.recv_many(batch, room) => if taken == 0 { break },
                () = tokio::time::sleep_until(due) => break,
                done = closing.recv() => return done,
            }
        }
        None
    }

    async fn export(&mut self, batch: Vec<SpanData>) {
        if batch.is_empty() {
            return;
        }
        let count = batch.len() as u64;
        match self.exporter.export(batch).await {
            Ok(()) => {
                self.failing = false;
                counter!("machinist_spans_exported_total").increment(count);
            }
            Err(cause) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        "traces cannot be exported to {}, and are dropped until they can: {cause}",
                        self.address
                    );
                }
                counter!("machinist_spans_dropped_total", "reason" => "export_failed").increment(count);
            }
        }
    }
}
