//! Traces: a job goes on in the trace of who submitted it, and its spans arrive at an OTLP receiver with the right parents.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};
use support::backend::{Backend, answer};
use support::machine::{LIMIT, Machine};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const STATE: &str = "congo=t61rcWkgMzE";

const SCRIPT: &str = r#"fn services(m) { [] } fn workers(m) { [ #{ name: "w", connector: "asks", slots: 2 } ] }"#;
const CONNECTOR: &str = r#"
fn run(job, ctx) {
    let url = ctx.vars.url;
    http::post(url + "/made?key=hunter2", #{ json: #{ secret: "hunter2" } });
    http::get(url + "/own", #{ headers: #{ traceparent: "00-11111111111111111111111111111111-2222222222222222-00" } });
    let missing = http::get(url + "/missing", #{ allow: [404] }).status;
    let env = process::run(#{ argv: ["env"] }).stdout;
    if job.payload.fail { throw fatal("as asked, hunter2"); }
    #{ env: env, missing: missing }
}
"#;

/// A collector: keeps what it is sent.
#[derive(Clone, Default)]
struct Receiver {
    spans: Arc<Mutex<Vec<Span>>>,
    resources: Arc<Mutex<Vec<BTreeMap<String, String>>>>,
    headers: Arc<Mutex<Vec<HeaderMap>>>,
    url: String,
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    pairs.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> (StatusCode, Vec<u8>) {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    receiver.headers.lock().unwrap().push(headers);
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.map(|resource| attributes(&resource.attributes)).unwrap_or_default();
        receiver.resources.lock().unwrap().push(resource);
        let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        receiver.spans.lock().unwrap().extend(spans);
    }
    (StatusCode::OK, Vec::new())
}

impl Receiver {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let receiver = Self { url, ..Self::default() };
        let router = Router::new().route("/v1/traces", post(take)).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        receiver
    }

    fn all(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// The spans of this name, once there are so many.
    async fn named(&self, name: &str, count: usize) -> Vec<Span> {
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            let found: Vec<Span> = self.all().into_iter().filter(|span| span.name == name).collect();
            if found.len() >= count {
                return found;
            }
            let names: Vec<String> = self.all().into_iter().map(|span| span.name).collect();
            assert!(std::time::Instant::now() < deadline, "no span {name:?} among {names:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn parent(span: &Span) -> String {
    hex(&span.parent_span_id)
}

fn id(span: &Span) -> String {
    hex(&span.span_id)
}

async fn backend() -> Backend {
    Backend::start(
        |asked, _| if asked.what.ends_with("/missing") { answer(404, &json!(null)) } else { answer(200, &json!(null)) },
    )
    .await
}

fn machine(backend: &Backend, endpoint: Option<&str>) -> Machine {
    let endpoint = endpoint.map(|url| format!("[telemetry]\notlp_endpoint = \"{url}\"\n")).unwrap_or_default();
    let settings = format!("{endpoint}[connectors.asks.vars]\nurl = \"{}\"\n", backend.url());
    let mut machine = Machine::new(SCRIPT, &settings);
    machine.write("connectors/asks.rhai", CONNECTOR);
    machine.environment.push(("OTEL_BSP_SCHEDULE_DELAY".into(), "50".into()));
    machine
}

/// Submits a job with these headers, and waits for its end.
async fn run(machine: &Machine, job: Value, headers: &[(&str, &str)]) -> Value {
    let http = reqwest::Client::new();
    let mut request = http.post(format!("{}/jobs", machine.url)).json(&job);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    let id = answer["jobs"][0]["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        let job: Value = http.get(format!("{}/jobs/{id}", machine.url)).send().await.unwrap().json().await.unwrap();
        if ["completed", "failed"].contains(&job["state"].as_str().unwrap()) {
            return job;
        }
        assert!(std::time::Instant::now() < deadline, "{job:#}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn caller() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

fn start(machine: &mut Machine) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    machine.start();
    machine.wait_healthy();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_s_spans_are_one_trace_with_the_right_parents() {
    let (receiver, backend) = (Receiver::start().await, backend().await);
    let mut machine = machine(&backend, Some(&receiver.url));
    machine.environment.push(("OTEL_EXPORTER_OTLP_HEADERS".into(), "api-key=hunter2".into()));
    machine.environment.push(("OTEL_RESOURCE_ATTRIBUTES".into(), "deployment.environment.name=test".into()));
    start(&mut machine);
    let job = json!({ "service": "asks", "payload": { "fail": false }, "workflow": { "id": "flow", "step": 2 } });
    let job = run(&machine, job, &[("traceparent", &caller()), ("tracestate", STATE)]).await;
    assert_eq!(job["state"], "completed", "{job:#}");

    let submit = receiver.named("POST /jobs", 1).await.remove(0);
    let wait = receiver.named("wait asks", 1).await.remove(0);
    let run_span = receiver.named("run asks", 1).await.remove(0);
    let post = receiver.named("POST", 1).await.remove(0);
    let gets = receiver.named("GET", 2).await;
    for span in receiver.all() {
        assert_eq!(hex(&span.trace_id), TRACE, "{}", span.name);
        assert_eq!(span.trace_state, STATE, "{}", span.name);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{}", span.name);
    }
    // Kinds of the protocol: 1 internal, 2 server, 3 client, 5 consumer.
    assert_eq!((parent(&submit), submit.kind), (CALLER.to_owned(), 2));
    assert_eq!((parent(&wait), wait.kind), (id(&submit), 1));
    assert_eq!((parent(&run_span), run_span.kind), (id(&submit), 5));
    assert!(wait.end_time_unix_nano <= run_span.end_time_unix_nano);
    for span in gets.iter().chain([&post]) {
        assert_eq!((parent(span), span.kind), (id(&run_span), 3));
    }
    assert_eq!(
        job["trace"],
        format!("00-{TRACE}-{}-01", id(&submit)),
        "the job is kept in the trace of its submission"
    );
    let said = attributes(&run_span.attributes);
    let expected = [
        ("machinist.job.id", job["id"].as_str().unwrap()),
        ("machinist.job.attempt", "1"),
        ("machinist.job.outcome", "completed"),
        ("machinist.connector", "asks"),
        ("machinist.workflow.id", "flow"),
        ("machinist.workflow.step", "2"),
    ];
    for (name, value) in expected {
        assert_eq!(said.get(name).map(String::as_str), Some(value), "{name}: {said:?}");
    }
    assert_eq!(attributes(&post.attributes)["http.response.status_code"], "200");
    let missing: Vec<_> =
        gets.iter().filter(|span| attributes(&span.attributes)["http.response.status_code"] == "404").collect();
    assert_eq!(missing[0].status.as_ref().map(|status| status.code), Some(2), "an answer that says no is an error");

    // What others were given.
    let asked = backend.asked("POST /made").remove(0);
    assert_eq!(asked.header("traceparent"), format!("00-{TRACE}-{}-01", id(&post)));
    assert_eq!(asked.header("tracestate"), STATE);
    let own = backend.asked("GET /own").remove(0);
    assert!(own.header("traceparent").starts_with("00-1111") && own.header("tracestate").is_empty(), "{own:?}");
    let env = job["result"]["env"].as_str().unwrap();
    assert!(env.contains(&format!("TRACEPARENT=00-{TRACE}-{}-01\n", id(&run_span))), "{env}");
    assert!(env.contains(&format!("TRACESTATE={STATE}\n")), "{env}");

    // Who says so, and how.
    let resource = receiver.resources.lock().unwrap()[0].clone();
    assert_eq!(
        (resource["service.name"].as_str(), resource["deployment.environment.name"].as_str()),
        ("machinist", "test")
    );
    assert!(resource.contains_key("service.instance.id"), "{resource:?}");
    assert_eq!(receiver.headers.lock().unwrap()[0]["api-key"], "hunter2");

    // A job that fails, with a trace of its own in the job; secrets stay where they are.
    let other = "00-bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-cccccccccccccccc-01";
    let failed = run(&machine, json!({ "service": "asks", "payload": { "fail": true }, "trace": other }), &[]).await;
    assert_eq!(failed["state"], "failed");
    let run_spans = receiver.named("run asks", 2).await;
    let run_span = run_spans.iter().find(|span| hex(&span.trace_id).starts_with("bbbb")).unwrap();
    assert_eq!(run_span.status.as_ref().map(|status| (status.code, status.message.as_str())), Some((2, "fatal")));
    let submit = receiver.named("POST /jobs", 2).await;
    assert!(submit.iter().any(|span| parent(span) == "cccccccccccccccc" && id(span) == parent(run_span)));
    assert!(!format!("{:?}", receiver.all()).contains("hunter2"));
    let metrics = machine.get("/metrics");
    assert!(metrics.contains("machinist_spans_exported_total "), "{metrics}");
    assert!(!metrics.contains(failed["id"].as_str().unwrap()));

    // A job that is queued by nobody's request has a trace for its attempt.
    let schedule =
        json!({ "name": "often", "cron": "* * * * * *", "job": { "service": "asks", "payload": { "fail": false } } });
    let put =
        reqwest::Client::new().post(format!("{}/queue/schedules", machine.url)).json(&schedule).send().await.unwrap();
    assert_eq!(put.status(), 200, "{}", put.text().await.unwrap());
    let runs = receiver.named("run asks", 3).await;
    let root = runs.iter().find(|span| span.parent_span_id.is_empty()).expect("a trace of its own");
    let waits = receiver.named("wait asks", 3).await;
    assert!(waits.iter().any(|span| span.trace_id == root.trace_id && span.parent_span_id == root.span_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_exported_before_the_end() {
    let (receiver, backend) = (Receiver::start().await, backend().await);
    let mut machine = machine(&backend, None);
    // Longer than the test: only the end hands them over. And both by the standard's own variables.
    machine.environment.push(("OTEL_BSP_SCHEDULE_DELAY".into(), "600000".into()));
    machine.environment.push(("OTEL_EXPORTER_OTLP_ENDPOINT".into(), receiver.url.clone()));
    machine.environment.push(("OTEL_SERVICE_NAME".into(), "render-farm".into()));
    start(&mut machine);
    run(&machine, json!({ "service": "asks", "payload": { "fail": false } }), &[("traceparent", &caller())]).await;
    assert_eq!(receiver.all(), []);
    assert_eq!(machine.stop(), Some(0));
    assert!(receiver.all().iter().any(|span| span.name == "run asks"), "{:?}", receiver.all());
    assert_eq!(receiver.resources.lock().unwrap()[0]["service.name"], "render-farm");
    // Nothing of a trace that its caller does not record.
    machine.environment.push(("OTEL_BSP_SCHEDULE_DELAY".into(), "10".into()));
    start(&mut machine);
    let before = receiver.all().len();
    let unrecorded = format!("00-{TRACE}-{CALLER}-00");
    run(&machine, json!({ "service": "asks", "payload": { "fail": false } }), &[("traceparent", &unrecorded)]).await;
    let asked = backend.asked("POST /made").pop().unwrap();
    assert!(asked.header("traceparent").starts_with(&format!("00-{TRACE}-")), "{asked:?}");
    assert!(asked.header("traceparent").ends_with("-00"), "{asked:?}");
    assert_eq!(machine.stop(), Some(0));
    assert_eq!(receiver.all().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_handed_on_where_nothing_is_exported() {
    let backend = backend().await;
    let mut machine = machine(&backend, None);
    start(&mut machine);
    let job = json!({ "service": "asks", "payload": { "fail": false } });
    let done = run(&machine, job.clone(), &[("traceparent", &caller()), ("tracestate", STATE)]).await;
    assert_eq!((done["trace"].as_str(), done["tracestate"].as_str()), (Some(caller().as_str()), Some(STATE)));
    let asked = backend.asked("POST /made").remove(0);
    assert_eq!((asked.header("traceparent"), asked.header("tracestate")), (caller().as_str(), STATE));
    assert!(done["result"]["env"].as_str().unwrap().contains(&format!("TRACEPARENT={}\n", caller())));
    // Who has none gets none, and what is none is none.
    let none = run(&machine, job, &[("traceparent", "nonsense")]).await;
    assert_eq!(none["trace"], Value::Null);
    assert_eq!(backend.asked("POST /made")[1].header("traceparent"), "");
    assert!(!none["result"]["env"].as_str().unwrap().contains("TRACEPARENT"));
    // The command line goes on in the trace that it is called in.
    machine.environment.push(("TRACEPARENT".into(), caller()));
    let output = machine.cli(&["jobs", "submit", "asks", "--payload", "{\"fail\": false}", "--wait", "--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(backend.asked("POST /made")[2].header("traceparent"), caller());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_whatever_the_receiver_does() {
    let backend = backend().await;
    // One takes connections and never answers, the other is not there.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    let gone = format!("http://127.0.0.1:{}", support::free_port());
    for url in [silent_url, gone] {
        let mut machine = machine(&backend, Some(&url));
        machine.environment.push(("OTEL_BSP_MAX_QUEUE_SIZE".into(), "4".into()));
        machine.environment.push(("OTEL_BSP_MAX_EXPORT_BATCH_SIZE".into(), "2".into()));
        machine.environment.push(("OTEL_EXPORTER_OTLP_TIMEOUT".into(), "200".into()));
        start(&mut machine);
        for _ in 0..5 {
            let job = json!({ "service": "asks", "payload": { "fail": false } });
            assert_eq!(run(&machine, job, &[]).await["state"], "completed");
        }
        // Also the one that never answers is given up, and that is said: it does not stop the export for good.
        support::wait_until("a batch that is given up", LIMIT, || {
            machine.get("/metrics").contains("machinist_spans_dropped_total{reason=\"export_failed\"}").then_some(())
        });
        assert!(machine.log().contains("traces cannot be exported to"), "{}", machine.log());
        let begun = std::time::Instant::now();
        assert_eq!(machine.stop(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(5), "the end waits a moment for the receiver, no longer");
    }
}
