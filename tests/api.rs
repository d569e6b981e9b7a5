//! The HTTP API as its document describes it: every route, every answer of a running machine, and the streams.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use support::machine::{LIMIT, Machine};
use support::wait_until;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

const SETTINGS: &str = "[shutdown]\ngrace = \"10s\"\n";
const SCRIPT: &str = r#"
fn services(m) { [ #{ name: "echo", shell: "echo up; exec sleep 1000", ready: #{ log: "up" } } ] }
fn workers(m) { [ #{ name: "w", connector: "steps", slots: 2 } ] }
"#;
const CONNECTOR: &str = r#"
fn run(job, ctx) {
    for n in 0..job.payload.steps {
        sleep(job.payload.pause);
        job.log(`line ${n}`);
        job.progress(n.to_float() / job.payload.steps.to_float(), `step ${n}`);
    }
    if job.payload.fail { throw fatal("as asked"); }
    #{ steps: job.payload.steps }
}
"#;

fn machine() -> Machine {
    let mut machine = Machine::new(SCRIPT, SETTINGS);
    machine.write("connectors/steps.rhai", CONNECTOR);
    machine.start();
    machine.wait_healthy();
    machine
}

fn steps(steps: u32, pause: f64) -> Value {
    json!({ "service": "steps", "payload": { "steps": steps, "pause": pause, "fail": false } })
}

/// A document whose objects may have no fields that it does not name.
fn strict(mut document: Value) -> Value {
    fn close(value: &mut Value) {
        match value {
            Value::Object(map) => {
                if map.get("properties").is_some_and(Value::is_object) && map.get("type") == Some(&json!("object")) {
                    map.entry("additionalProperties").or_insert(json!(false));
                }
                map.values_mut().for_each(close);
            }
            Value::Array(items) => items.iter_mut().for_each(close),
            _ => {}
        }
    }
    close(&mut document["components"]["schemas"]);
    document
}

/// Talks to a machine, and holds every answer against the document.
struct Api {
    http: Client,
    url: String,
    token: Option<&'static str>,
    document: Value,
    /// Answers that were seen: path, method, status.
    seen: BTreeSet<(String, String, u16)>,
}

impl Api {
    async fn of(machine: &Machine) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::new();
        let document = http.get(format!("{}/openapi.json", machine.url)).send().await.unwrap().json().await.unwrap();
        Self { http, url: machine.url.clone(), token: None, document: strict(document), seen: BTreeSet::new() }
    }

    /// The template of a path.
    fn template(&self, path: &str) -> Option<String> {
        let path = path.split('?').next().unwrap();
        let fits = |template: &&String| {
            let (one, two): (Vec<&str>, Vec<&str>) = (template.split('/').collect(), path.split('/').collect());
            one.len() == two.len() && one.iter().zip(&two).all(|(one, two)| one == two || one.starts_with('{'))
        };
        let mut found: Vec<&String> = self.document["paths"].as_object().unwrap().keys().filter(fits).collect();
        found.sort_by_key(|template| template.contains('{'));
        found.first().map(|template| (*template).clone())
    }

    fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let request = self.http.request(method.parse::<Method>().unwrap(), format!("{}{path}", self.url));
        match self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn problems(&self, schema: &Value, instance: &Value) -> Vec<String> {
        let mut root = schema.clone();
        root["components"] = self.document["components"].clone();
        let validator = jsonschema::draft202012::new(&root).unwrap();
        validator.iter_errors(instance).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }

    async fn checked(&mut self, method: &str, path: &str, response: Response) -> (u16, Value) {
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let media_type = header("content-type").map(|text| text.split(';').next().unwrap().trim().to_owned());
        let retry_after = header("retry-after");
        let text = response.text().await.unwrap();
        let template = self.template(path).unwrap_or_else(|| panic!("{path} is no path of the document"));
        let operation = &self.document["paths"][&template][method.to_lowercase()];
        assert!(operation.is_object(), "{method} {path} answered {status} and is not in the document");
        let answer = &operation["responses"][status.to_string()];
        assert!(answer.is_object(), "{method} {path}: {status} is not documented: {text}");
        self.seen.insert((template.clone(), method.to_lowercase(), status));
        let media_type = media_type.unwrap_or_default();
        let schema = answer["content"][&media_type]["schema"].clone();
        assert!(schema.is_object(), "{method} {path}: {status} in {media_type:?} is not documented: {text}");
        let value = match media_type.as_str() {
            "application/json" => serde_json::from_str(&text).unwrap_or_else(|cause| panic!("{path}: {cause}: {text}")),
            _ => Value::String(text),
        };
        let problems = self.problems(&schema, &value);
        assert_eq!(problems, Vec::<String>::new(), "{method} {path} {status}: {value:#}");
        if status == 503 && value["error"].is_object() {
            assert!(retry_after.is_some(), "{path} says when to try again");
        }
        (status, value)
    }

    async fn send(&mut self, method: &str, path: &str, body: Option<(&str, String)>) -> (u16, Value) {
        let mut request = self.request(method, path);
        if let Some((content_type, body)) = body {
            request = request.header("content-type", content_type).body(body);
        }
        let response = request.send().await.unwrap();
        self.checked(method, path, response).await
    }

    async fn get(&mut self, path: &str) -> Value {
        let (status, value) = self.send("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    async fn post(&mut self, path: &str, body: Value) -> (u16, Value) {
        self.send("POST", path, Some(("application/json", body.to_string()))).await
    }

    async fn wait(&mut self, path: &str, what: impl Fn(&Value) -> bool) -> Value {
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            let value = self.get(path).await;
            if what(&value) {
                return value;
            }
            assert!(std::time::Instant::now() < deadline, "gave up waiting at {path}: {value:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_and_document_are_the_same() {
    let machine = machine();
    let mut api = Api::of(&machine).await;
    let printed = machine.json(&["openapi"]);
    assert_eq!(strict(printed), api.document, "the CLI prints what the machine serves");
    let listed = api.get("/").await.as_str().unwrap().to_owned();
    let mut paths: Vec<(String, Value)> = api.document["paths"].as_object().unwrap().clone().into_iter().collect();
    // What ends the machine comes last.
    paths.sort_by_key(|(path, _)| path == "/drain");
    for (template, operations) in paths {
        let path = template.replace("{verb}", "start").replace('{', "no-").replace('}', "");
        for method in ["GET", "PUT", "PATCH", "DELETE", "POST"] {
            if operations[method.to_lowercase()].is_object() {
                assert!(listed.contains(&format!("{method:6} {template}")), "{method} {template} is listed at /");
                let (status, answer) = api.send(method, &path, None).await;
                assert_ne!(status, 405, "{method} {template}");
                assert!(!answer.to_string().contains("there is no such path"), "{method} {template}: {answer}");
            } else {
                let response = api.request(method, &path).send().await.unwrap();
                assert_eq!(response.status(), 405, "{method} {template} is not in the document");
                assert!(response.headers().contains_key("allow"), "{method} {template}");
                let answer: Value = response.json().await.unwrap();
                let error = json!({ "$ref": "#/components/schemas/Error" });
                assert_eq!(api.problems(&error, &answer), Vec::<String>::new());
            }
        }
    }
    for listed in listed.lines().filter(|line| !line.starts_with(' ')).skip(2) {
        let (method, path) = listed.split_once(' ').unwrap();
        let path = path.trim().split('?').next().unwrap();
        assert!(api.document["paths"][path][method.to_lowercase()].is_object(), "{listed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_are_what_their_schemas_say() {
    let machine = machine();
    let api = Api::of(&machine).await;
    let mut seen = 0;
    for operations in api.document["paths"].as_object().unwrap().values() {
        for operation in operations.as_object().unwrap().values() {
            for content in operation["requestBody"]["content"].as_object().into_iter().flatten() {
                let example = &content.1["example"];
                assert!(!example.is_null(), "{operation:#}");
                assert_eq!(api.problems(&content.1["schema"], example), Vec::<String>::new(), "{example}");
                seen += 1;
            }
        }
    }
    assert!(seen >= 5, "{seen}");
    // The tool can tell a wrong one from a right one.
    let submission = json!({ "$ref": "#/components/schemas/Submission" });
    for wrong in [json!({}), json!({ "service": 1 }), json!({ "service": "s", "prioritty": 1 })] {
        assert_ne!(api.problems(&submission, &wrong), Vec::<String>::new(), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_what_the_document_says() {
    let mut machine = Machine::new(SCRIPT, &format!("{SETTINGS}[http]\ntoken = \"hunter2\"\nconsole = true\n"));
    machine.write("connectors/steps.rhai", CONNECTOR);
    machine.start();
    machine.wait_healthy();
    let mut api = Api { token: Some("hunter2"), ..Api::of(&machine).await };
    // The machine.
    for path in
        ["/", "/openapi.json", "/livez", "/readyz", "/readyz?verbose", "/startupz", "/health", "/metrics", "/logs"]
    {
        api.get(path).await;
    }
    api.get("/events?after=2").await;
    assert_eq!(api.get(&format!("/events?after={}", u64::MAX)).await["events"], json!([]));
    assert_eq!(api.get(&format!("/services/echo/logs?after={}", u64::MAX)).await["lines"], json!([]));
    api.get("/services").await;
    let services = api.get("/services?usage").await;
    assert!(services["services"][0]["usage"]["processes"].as_u64() > Some(0), "{services}");
    api.get("/services/echo").await;
    let logs = api.get("/services/echo/logs?tail=5&stream=stdout&grep=u.&since=1h").await;
    assert_eq!(logs["lines"][0]["text"], "up");
    assert_eq!(api.post("/services/echo/restart", json!({})).await.0, 202);
    for (path, status) in [
        ("/services/none", 404),
        ("/services/none/logs", 404),
        ("/services/echo/logs?tail=many", 400),
        ("/services/echo/logs?grep=(", 400),
        ("/logs?nonsense=1", 400),
        ("/events?after=x", 400),
        ("/jobs?state=odd", 400),
        ("/jobs/none", 404),
        ("/jobs/none/explain", 404),
        ("/jobs/none/events", 404),
        ("/jobs/none/ws", 404),
        ("/jobs/%FF", 400),
        ("/queue/classes?count=-1", 400),
        ("/queue/workers/none/none", 404),
    ] {
        assert_eq!(api.send("GET", path, None).await.0, status, "{path}");
    }

    // Jobs.
    assert_eq!(api.post("/jobs", steps(2, 0.001)).await.0, 201);
    let (_, two) = api.post("/jobs", json!([steps(1, 0.001), steps(2, 600.0)])).await;
    let running = two["jobs"][1]["id"].as_str().unwrap().to_owned();
    let lines = format!("{}\n{}\n", steps(1, 0.0), steps(1, 0.0));
    assert_eq!(api.send("POST", "/jobs", Some(("application/x-ndjson", lines))).await.0, 201);
    let full = json!({
        "service": "steps", "payload": { "steps": 1, "pause": 0.0, "fail": true }, "priority": 3, "customer": "c",
        "requirement": {
            "pool": "standard", "models": [], "labels": { "x": { "exists": false } },
            "hardware": { "cpu_cores": 0.1 }, "when": "hardware.cpu_cores > 0.0",
        },
        "affinity": { "model": "sdxl" }, "workflow": { "id": "flow" }, "retry": { "max_attempts": 2 }, "timeout": "10s",
        "trace": "00-1-2-00", "idempotency_key": "once", "unique_key": "one",
    });
    let (_, submitted) = api.post("/jobs", full).await;
    let failed = submitted["jobs"][0]["id"].as_str().unwrap().to_owned();
    api.wait("/jobs?state=failed", |jobs| jobs["jobs"][0]["id"] == failed.as_str()).await;
    let (_, batch) = api.post("/batches", json!({ "jobs": [steps(1, 0.0)], "callback": steps(1, 0.0) })).await;
    assert!(batch["callback"]["id"].is_string());
    assert_eq!(api.post("/batches", json!({ "jobs": [steps(1, 0.0)] })).await.0, 201);
    let later = json!({ "service": "steps", "not_before": "2099-01-01T00:00:00Z" });
    let (_, later) = api.post("/jobs", later).await;
    let delayed = later["jobs"][0]["id"].as_str().unwrap().to_owned();
    api.post("/jobs", json!({ "id": "blocked", "service": "steps", "depends_on": [delayed] })).await;
    api.post("/jobs", json!({ "id": "alone", "service": "nobody", "requirement": { "pool": "far" } })).await;
    api.wait("/queue", |queue| queue["completed"].as_u64() >= Some(6) && queue["running"] == 1).await;
    for id in [running.as_str(), failed.as_str(), delayed.as_str(), "blocked", "alone"] {
        api.get(&format!("/jobs/{id}")).await;
        api.get(&format!("/jobs/{id}/events")).await;
        api.get(&format!("/jobs/{id}/explain")).await;
        let beyond = api.get(&format!("/jobs/{id}/events?after={}", u64::MAX)).await;
        assert_eq!(beyond["events"], json!([]));
    }
    for state in ["blocked", "delayed", "pending", "running", "completed", "failed", "cancelled"] {
        api.get(&format!("/jobs?state={state}&limit=3&offset=0")).await;
    }
    let large = json!({ "service": "s", "payload": "x".repeat(1_100_000) });
    for (path, body, status) in [
        ("/jobs", json!(1), 400),
        ("/jobs", json!({ "service": "no good" }), 400),
        ("/jobs", large, 201),
        ("/jobs", json!({ "service": "s", "depends_on": ["nobody-knows"] }), 422),
        ("/batches", json!({}), 400),
        ("/batches", json!({ "jobs": [{ "service": "s", "timeout": 0 }] }), 422),
        ("/jobs/none/cancel", json!({}), 404),
        ("/jobs/none/retry", json!({}), 404),
        ("/queue/pause", json!({}), 400),
        ("/queue/pause?scope=odd", json!({}), 400),
        ("/queue/limits?scope=service:steps", json!({ "max": 1 }), 400),
        ("/queue/limits?scope=service:steps", json!([null, null]), 400),
        ("/batches", json!([[], null]), 400),
        ("/queue/schedules", json!({}), 400),
        ("/queue/schedules", json!({ "name": "n", "cron": "never", "job": { "service": "s" } }), 422),
        ("/services/none/start", json!({}), 404),
        ("/services/echo/jump", json!({}), 404),
    ] {
        assert_eq!(api.post(path, body).await.0, status, "{path}");
    }
    let (status, retried) = api.post(&format!("/jobs/{running}/retry"), json!({})).await;
    assert_eq!((status, retried["error"]["code"].clone()), (409, json!("wrong_state")));
    for id in [running.as_str(), delayed.as_str()] {
        assert_eq!(api.post(&format!("/jobs/{id}/cancel"), json!({})).await.0, 200);
    }
    assert_eq!(api.post(&format!("/jobs/{failed}/cancel"), json!({})).await.0, 409);
    assert_eq!(api.post(&format!("/jobs/{failed}/retry"), json!({})).await.0, 200);

    // The queue.
    // The numbers per service and pool are those of the last look at all classes, which may be older than the submission.
    let far = |queue: &Value| queue["services"]["nobody"]["pending"] == 1 && queue["pools"]["far"]["pending"] == 1;
    api.wait("/queue", far).await;
    let classes = api.get("/queue/classes?offset=0&count=100").await;
    assert!(classes["classes"].as_array().unwrap().len() > 2, "{classes:#}");
    let workers = api.get("/queue/workers").await;
    let worker = workers["workers"].as_object().unwrap().keys().next().unwrap().clone();
    let explained = api.get(&format!("/queue/workers/{worker}")).await;
    assert!(explained["refuses"].to_string().contains("the worker does not take nobody"), "{explained:#}");
    assert_eq!(
        api.post("/queue/limits?scope=service:steps", json!({ "max_running": 4, "per_second": 2.5 })).await.0,
        200
    );
    for verb in ["pause", "resume", "drain", "resume"] {
        assert_eq!(api.post(&format!("/queue/{verb}?scope=service:steps"), json!({})).await.0, 200);
    }
    assert_eq!(api.get("/queue/limits").await["limits"][0]["limit"]["max_running"], 4);
    let (status, limited) = api.post("/queue/limits?scope=account:key", json!({ "per_second": 2.5 })).await;
    assert_eq!(
        (status, &limited["limit"]),
        (200, &json!({ "per_second": 2.5, "burst": 3 })),
        "as it holds from now on"
    );
    assert_eq!(api.post("/queue/resume?scope=account:key", json!({})).await.0, 200);
    let accounts = api.get("/queue/accounts").await;
    assert_eq!(
        accounts["accounts"],
        json!([{ "account": "key", "running": 0, "waiting": 0, "limit": { "per_second": 2.5, "burst": 3 } }])
    );
    let schedule = json!({ "name": "nightly", "cron": "30 4 * * *", "job": { "service": "steps" } });
    assert_eq!(api.post("/queue/schedules", schedule).await.0, 200);
    assert_eq!(api.get("/queue/schedules").await["schedules"][0]["name"], "nightly");
    assert_eq!(api.send("DELETE", "/queue/schedules/nightly", None).await.0, 200);
    assert_eq!(api.send("DELETE", "/queue/schedules/nightly", None).await.0, 404);
    assert_eq!(api.post("/queue/verify?repair=true", json!({})).await.1["problems"], json!([]));
    let exported = api.get("/queue/export").await;
    let job = json!({ "$ref": "#/components/schemas/Job" });
    let lines: Vec<&str> = exported.as_str().unwrap().lines().collect();
    assert!(lines.len() > 8, "{exported}");
    for line in lines {
        assert_eq!(api.problems(&job, &serde_json::from_str(line).unwrap()), Vec::<String>::new(), "{line}");
    }
    assert!(api.post("/queue/purge?state=completed&service=steps", json!({})).await.1["dropped"].as_u64() > Some(0));
    let machines = api.wait("/machines", |machines| machines["machines"][0]["state"] == "healthy").await;
    assert_eq!(machines["machines"][0]["presence"], "present");
    api.get("/status").await;

    // Consoles.
    let (status, console) = api.post("/consoles", json!({})).await;
    assert_eq!(status, 201);
    assert!(console["names"].as_array().unwrap().contains(&json!("http::get")), "{console}");
    let console = format!("/consoles/{}", console["console"].as_str().unwrap());
    let script = |text: &str| Some(("text/plain", text.to_owned()));
    let (_, said) = api.send("POST", &console, script("let a = 1; print(a); a + 1")).await;
    let lines: Vec<Value> = said.as_str().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], json!({ "printed": "1" }));
    assert_eq!(lines[1], json!({ "value": { "type": "int", "text": "2", "data": 2, "variables": ["a", "m"] } }));
    let (_, said) = api.send("POST", &format!("{console}?timeout=10s"), script("a.b")).await;
    assert!(said.as_str().unwrap().starts_with("{\"problem\":{\"severity\":\"error\""), "{said}");
    assert_eq!(api.post(&format!("{console}/cancel"), json!({})).await.0, 200);
    assert_eq!(api.send("DELETE", &console, None).await.0, 200);
    assert_eq!(api.send("DELETE", &console, None).await.0, 404);
    assert_eq!(api.send("POST", &console, script("1")).await.0, 404);

    // The end, with a refusal before it.
    machine.write("machine.rhai", "fn services(m) { [ #{ name: \"echo\", comand: [] } ] }");
    let (status, refused) = api.post("/reload", json!({})).await;
    assert_eq!(status, 422);
    assert!(refused["error"]["problems"][0]["location"]["line"].is_number(), "{refused:#}");
    api.get("/status").await;
    machine.write("machine.rhai", SCRIPT);
    assert_eq!(api.post("/plan", json!({})).await.0, 200);
    assert_eq!(api.post("/reload", json!({})).await.0, 200);
    assert_eq!(api.post("/drain", json!({})).await.0, 200);

    let mut unseen = Vec::new();
    for (path, operations) in api.document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            for status in operation["responses"].as_object().unwrap().keys() {
                let status: u16 = status.parse().unwrap();
                let wanted = (200..300).contains(&status);
                if wanted && !api.seen.contains(&(path.clone(), method.clone(), status)) {
                    unseen.push(format!("{method} {path} {status}"));
                }
            }
        }
    }
    assert_eq!(unseen, Vec::<String>::new(), "every documented success was seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_and_what_is_too_large_is_answered_as_documented() {
    let mut machine = Machine::new(SCRIPT, &format!("{SETTINGS}[http]\ntoken = \"${{SECRET}}\"\n"));
    machine.write("connectors/steps.rhai", "fn run(job, ctx) { sleep(600); }");
    machine.environment.push(("SECRET".into(), "hunter2".into()));
    machine.start();
    machine.wait("the start", |status| status["started"] == true);
    let mut api = Api::of(&machine).await;
    let mut guarded = 0;
    for (path, operations) in api.document["paths"].as_object().unwrap().clone() {
        for method in operations.as_object().unwrap().keys().filter(|method| *method != "get") {
            let path = path.replace("{verb}", "start").replace(['{', '}'], "");
            assert_eq!(api.send(&method.to_uppercase(), &path, None).await.0, 401, "{method} {path}");
            guarded += 1;
        }
    }
    assert!(guarded > 12, "{guarded}");
    let large = vec![b' '; 65 * 1024 * 1024];
    let response = api.request("POST", "/jobs").bearer_auth("hunter2").body(large).send().await.unwrap();
    assert_eq!(api.checked("POST", "/jobs", response).await.0, 413);
    drop(machine);

    let machine = self::machine();
    let mut api = Api::of(&machine).await;
    let response = api.request("POST", "/reload").header("origin", "http://evil.example").send().await.unwrap();
    assert_eq!(api.checked("POST", "/reload", response).await.0, 403);
    let response = api.request("GET", "/jobs/x/ws").header("origin", "http://evil.example").send().await.unwrap();
    assert_eq!(api.checked("GET", "/jobs/x/ws", response).await.0, 403);
    let (_, submitted) = api.post("/jobs", steps(1, 0.0)).await;
    let id = submitted["jobs"][0]["id"].as_str().unwrap();
    assert_eq!(api.send("GET", &format!("/jobs/{id}/ws"), None).await.0, 426);
}

/// What a reader of server-sent events makes of them: id, name and data of each.
struct Sse {
    body: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<Vec<u8>>> + Send>>,
    pending: Vec<u8>,
}

impl Sse {
    async fn open(api: &Api, path: &str, last: Option<&str>) -> Self {
        let mut request = api.request("GET", path).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let body = response.bytes_stream().map(|chunk| chunk.map(|bytes| bytes.to_vec()));
        Self { body: Box::pin(body), pending: Vec::new() }
    }

    async fn next(&mut self) -> Option<BTreeMap<String, String>> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.pending.drain(..end + 2).collect();
                let text = String::from_utf8(block).unwrap();
                let fields: BTreeMap<String, String> = text
                    .lines()
                    .filter_map(|line| line.split_once(':'))
                    .filter(|(name, _)| !name.is_empty())
                    .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                    .collect();
                if !fields.is_empty() {
                    return Some(fields);
                }
                continue;
            }
            let chunk = tokio::time::timeout(LIMIT, self.body.next()).await.expect("the stream goes on")?;
            self.pending.extend(chunk.ok()?);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_is_taken_up_where_it_broke() {
    let machine = machine();
    let mut api = Api::of(&machine).await;
    let (_, submitted) = api.post("/jobs", steps(6, 0.1)).await;
    let path = format!("/jobs/{}/events", submitted["jobs"][0]["id"].as_str().unwrap());
    let (mut ids, mut kinds, mut last): (Vec<u64>, Vec<String>, Option<String>) = Default::default();
    let mut connections = 0;
    let end = 'stream: loop {
        let mut stream = Sse::open(&api, &path, last.as_deref()).await;
        connections += 1;
        // Three events to a connection, then it is dropped.
        for _ in 0..3 {
            let event = stream.next().await.expect("an event, or the end");
            if event["event"] == "end" {
                assert!(!event.contains_key("id"), "the end is no place to come back to");
                break 'stream serde_json::from_str::<Value>(&event["data"]).unwrap();
            }
            ids.push(event["id"].parse().unwrap());
            kinds.push(event["event"].clone());
            let data: Value = serde_json::from_str(&event["data"]).unwrap();
            assert_eq!(api.problems(&json!({ "$ref": "#/components/schemas/JobEvent" }), &data), Vec::<String>::new());
            assert_eq!((data["seq"].to_string(), data["kind"].clone()), (event["id"].clone(), json!(event["event"])));
            last = Some(event["id"].clone());
        }
    };
    assert!(connections >= 4, "{connections}");
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>(), "nothing twice, nothing missed");
    assert_eq!((kinds.first().unwrap().as_str(), kinds.last().unwrap().as_str()), ("submitted", "completed"));
    assert_eq!(kinds.iter().filter(|kind| *kind == "log").count(), 6, "{kinds:?}");
    assert_eq!(end, json!({ "state": "completed", "result": { "steps": 6 }, "failure": null }));
    // Whoever comes after all is told the end at once; the cursor may stand in the query.
    let mut late = Sse::open(&api, &format!("{path}?after={}", ids.len()), None).await;
    assert_eq!(late.next().await.unwrap()["event"], "end");
    assert_eq!(late.next().await, None);
    // The machine's own events and a service's lines go on too.
    let mut events = Sse::open(&api, "/events", None).await;
    let first = events.next().await.unwrap();
    let mut again = Sse::open(&api, "/events", Some(&first["id"])).await;
    assert_eq!(again.next().await.unwrap()["id"], (first["id"].parse::<u64>().unwrap() + 1).to_string());
    let mut lines = Sse::open(&api, "/services/echo/logs", None).await;
    assert!(lines.next().await.unwrap()["data"].contains("\"text\":\"up\""));
}

async fn socket(
    api: &Api,
    path: &str,
    origin: Option<&str>,
) -> Result<tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>, Error> {
    let mut request = format!("{}{path}", api.url.replace("http://", "ws://")).into_client_request().unwrap();
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.parse().unwrap());
    }
    tokio_tungstenite::connect_async(request).await.map(|(socket, _)| socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_socket_tells_a_job_to_its_end() {
    let mut machine = machine();
    let mut api = Api::of(&machine).await;
    let (_, submitted) = api.post("/jobs", steps(4, 0.1)).await;
    let path = format!("/jobs/{}/ws", submitted["jobs"][0]["id"].as_str().unwrap());
    let mut follow = socket(&api, &path, Some(&api.url)).await.unwrap();
    let (mut seqs, mut end, mut closed) = (Vec::new(), None, None);
    while let Some(message) = tokio::time::timeout(LIMIT, follow.next()).await.expect("the socket goes on") {
        match message.unwrap() {
            Message::Text(text) => {
                let value: Value = serde_json::from_str(&text).unwrap();
                if value["end"].is_object() {
                    end = Some(value["end"].clone());
                } else {
                    let event = json!({ "$ref": "#/components/schemas/JobEvent" });
                    assert_eq!(api.problems(&event, &value), Vec::<String>::new());
                    seqs.push(value["seq"].as_u64().unwrap());
                }
            }
            Message::Close(frame) => closed = frame.map(|frame| frame.code),
            _ => {}
        }
    }
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    assert_eq!(end.unwrap()["result"], json!({ "steps": 4 }));
    assert_eq!(closed, Some(CloseCode::Normal));
    // From a cursor; a page of another origin gets nothing.
    let mut rest = socket(&api, &format!("{path}?after={}", seqs.len() - 1), None).await.unwrap();
    let Message::Text(text) = rest.next().await.unwrap().unwrap() else { panic!("an event comes first") };
    assert!(text.contains("\"completed\""), "{text}");
    match socket(&api, &path, Some("http://evil.example")).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), 403),
        other => panic!("{other:?}"),
    }
    // A machine that stops says so: there may be more to come.
    let (_, submitted) = api.post("/jobs", steps(1, 600.0)).await;
    let path = format!("/jobs/{}/ws", submitted["jobs"][0]["id"].as_str().unwrap());
    let mut follow = socket(&api, &path, None).await.unwrap();
    let stopping = tokio::task::spawn_blocking(move || machine.stop());
    let mut closed = None;
    while let Some(Ok(message)) = tokio::time::timeout(LIMIT, follow.next()).await.expect("the socket ends") {
        if let Message::Close(frame) = message {
            closed = frame.map(|frame| frame.code);
        }
    }
    assert_eq!(closed, Some(CloseCode::Restart));
    assert_eq!(stopping.await.unwrap(), Some(0));
}

#[test]
fn jobs_watch_goes_on_over_a_machine_that_is_killed() {
    let mut machine = machine();
    let payload = json!({ "steps": 4, "pause": 0.7, "fail": false }).to_string();
    let id = machine.json(&["jobs", "submit", "steps", "--payload", &payload])["id"].as_str().unwrap().to_owned();
    let watch = machine
        .command(&["jobs", "watch", &id, "--json"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("a step", LIMIT, || machine.json(&["jobs", "get", &id])["progress"].is_object().then_some(()));
    machine.kill();
    machine.start();
    let output = watch.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (end, events) = lines.split_last().unwrap();
    assert_eq!((end["state"].clone(), end["result"].clone()), (json!("completed"), json!({ "steps": 4 })));
    let seqs: Vec<u64> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "nothing twice, nothing missed");
    assert!(events.iter().any(|event| event["kind"] == "lost"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_services_and_what_nobody_matches_are_told_and_end() {
    let mut machine = Machine::new(SCRIPT, &format!("{SETTINGS}[queue]\nlease = \"3s\"\n"));
    machine.write("connectors/steps.rhai", CONNECTOR);
    machine.start();
    machine.wait_healthy();
    let mut api = Api::of(&machine).await;
    let alone = json!({ "service": "nobody", "requirement": { "pool": "far" } });
    api.post(
        "/jobs",
        json!([alone, alone, steps(1, 600.0), { "service": "steps", "not_before": "2099-01-01T00:00:00Z" }]),
    )
    .await;
    let queue = api.wait("/queue", |queue| queue["services"]["steps"]["running"] == 1).await;
    assert_eq!((queue["unmatched"].clone(), queue["services"]["steps"]["later"].clone()), (json!(2), json!(1)));
    assert_eq!(queue["pools"]["far"]["pending"], 2);
    assert!(queue["services"]["nobody"]["oldest"].is_string());
    let text = String::from_utf8(machine.cli(&["queue", "stats"]).stdout).unwrap();
    assert!(text.contains("SERVICE") && text.contains("nobody") && text.contains("POOL"), "{text}");
    let metrics = api.wait("/metrics", |text| text.as_str().unwrap().contains("service=\"nobody\"")).await;
    let metrics = metrics.as_str().unwrap();
    for line in [
        "machinist_queue_service_jobs{service=\"nobody\",state=\"pending\"} 2\n",
        "machinist_queue_service_jobs{service=\"steps\",state=\"running\"} 1\n",
        "machinist_queue_service_jobs{service=\"steps\",state=\"later\"} 1\n",
        "machinist_queue_pool_jobs{pool=\"far\",state=\"pending\"} 2\n",
        "machinist_queue_unmatched_jobs 2\n",
        "machinist_queue_oldest_seconds{service=\"nobody\"} ",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let told = |events: &Value| {
        let events = events["events"].as_array().unwrap();
        events.iter().filter(|event| event["kind"] == "queue.unmatched").cloned().collect::<Vec<_>>()
    };
    let events = api.wait("/events", |events| !told(events).is_empty()).await;
    let event = told(&events).remove(0);
    assert_eq!((event["subject"].clone(), event["data"]["pending"].clone()), (json!("nobody"), json!(2)));
    assert!(event["message"].as_str().unwrap().contains("\"pool\":\"far\""), "{event}");
    // The series end with the jobs.
    assert_eq!(api.post("/queue/purge?state=pending&service=nobody", json!({})).await.1["dropped"], 2);
    let metrics =
        api.wait("/metrics", |text| !text.as_str().unwrap().contains("_service_jobs{service=\"nobody\"")).await;
    assert!(metrics.as_str().unwrap().contains("machinist_queue_unmatched_jobs 0\n"));
    assert_eq!(told(&api.get("/events").await).len(), 1, "it is told once");
}
