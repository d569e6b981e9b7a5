//! `ComfyUI` as its own server behaves: a queue, a history that has what ended, a websocket that may say nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Query;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use machinist::queue::FailureClass;
use serde_json::{Value, json};

use crate::support::backend::{Asked, Backend, answer};
use crate::{KEY, KEY_NAME, attempt, cancelled, capabilities, check, refuses};

/// What becomes of the prompts.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Runs, tells progress by websocket, ends.
    Runs,
    /// Runs for ever.
    Hangs,
    /// Fails in a node.
    Fails(&'static str),
    /// Is interrupted by somebody.
    Interrupted,
    /// Is lost by a restart.
    Lost,
    /// Has no websocket.
    Silent,
}

#[derive(Default)]
struct Comfy {
    queue: Vec<String>,
    history: BTreeMap<String, Value>,
    looks: usize,
    told: Vec<String>,
}

type Shared = Arc<Mutex<Comfy>>;

fn workflow() -> Value {
    json!({
        "1": { "class_type": "CheckpointLoaderSimple", "inputs": { "ckpt_name": "sdxl.safetensors" } },
        "2": { "class_type": "LoadImage", "inputs": { "image": "photo.png" } },
        "3": { "class_type": "KSampler", "inputs": { "model": ["1", 0] } },
        "9": { "class_type": "SaveImage", "inputs": { "images": ["3", 0] } },
    })
}

fn outputs() -> Value {
    json!({
        "9": { "images": [
            { "filename": "a.png", "subfolder": "", "type": "output" },
            { "filename": "seen.png", "subfolder": "", "type": "temp" },
        ] },
        "10": { "gifs": [{ "filename": "b.mp4", "subfolder": "video", "type": "output", "format": "video/h264-mp4" }] },
        "11": { "audio": [{ "filename": "c.flac", "subfolder": "audio", "type": "output" }] },
        "12": { "text": ["a cat"], "animated": [false] },
    })
}

fn ended(way: Way) -> Value {
    let failed = |message: Value| json!({ "outputs": {}, "status": { "status_str": "error", "completed": false, "messages": [message] } });
    match way {
        Way::Fails(kind) => failed(json!(["execution_error", { "node_id": "3", "node_type": "KSampler",
            "exception_type": kind, "exception_message": "it broke", "traceback": [] }])),
        Way::Interrupted => failed(json!(["execution_interrupted", { "node_id": "3" }])),
        _ => json!({
            "prompt": [1, "x", { "1": { "inputs": { "ckpt_name": "old.safetensors" } } }],
            "outputs": outputs(),
            "status": { "status_str": "success", "completed": true, "messages": [
                ["execution_start", { "timestamp": 1000 }], ["execution_success", { "timestamp": 3500 }],
            ] },
        }),
    }
}

/// A prompt ends at the third look at the history.
async fn comfy(way: Way) -> (Backend, Shared) {
    let state: Shared = Arc::default();
    let (shared, told) = (Arc::clone(&state), Arc::clone(&state));
    let ws = get(async move |ws: WebSocketUpgrade, query: Query<BTreeMap<String, String>>| {
        if way == Way::Silent {
            return axum::http::StatusCode::BAD_GATEWAY.into_response();
        }
        told.lock().unwrap().told.push(query["clientId"].clone());
        ws.on_upgrade(async move |mut socket| {
            // The client's hello: unread, it would make the end of the connection a reset, which takes what was sent with it.
            socket.recv().await;
            // Tells when a prompt is there; an early break is no end of the job.
            let id = loop {
                let id = told.lock().unwrap().queue.first().cloned();
                match id {
                    Some(id) => break id,
                    None => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                }
            };
            let nodes = json!({ "3": { "state": "running", "value": 5, "max": 20 }, "2": { "state": "finished", "value": 1, "max": 1 } });
            for event in [
                json!({ "type": "status", "data": { "status": {} } }),
                json!({ "type": "progress", "data": { "prompt_id": "another", "value": 1, "max": 1, "node": "9" } }),
                json!({ "type": "execution_cached", "data": { "prompt_id": id, "nodes": ["1"] } }),
                json!({ "type": "executing", "data": { "prompt_id": id, "node": "2" } }),
                json!({ "type": "progress_state", "data": { "prompt_id": id, "nodes": nodes } }),
            ] {
                let _ = socket.send(Message::Text(event.to_string().into())).await;
            }
            let _ = socket.send(Message::Binary(vec![0, 0, 0, 1, 0].into())).await;
        })
    });
    let backend =
        Backend::start_with(Router::new().route("/ws", ws), move |asked, _| respond(asked, way, &shared)).await;
    (backend, state)
}

fn respond(asked: &Asked, way: Way, shared: &Shared) -> Response {
    let mut state = shared.lock().unwrap();
    let (method, path) = asked.what.split_once(' ').unwrap();
    match (method, path) {
        ("GET", "/system_stats") => answer(200, &json!({ "system": { "comfyui_version": "0.3.64" }, "devices": [] })),
        ("POST", "/prompt") => {
            let id = asked.json()["prompt_id"].as_str().unwrap().to_owned();
            if state.queue.contains(&id) {
                return answer(409, &json!({ "error": "prompt_id already exists" }));
            }
            state.queue.push(id.clone());
            answer(200, &json!({ "prompt_id": id, "number": 1, "node_errors": {} }))
        }
        ("GET", "/queue") => {
            let running: Vec<Value> = state.queue.iter().map(|id| json!([1, id, {}, {}, []])).collect();
            answer(200, &json!({ "queue_running": running, "queue_pending": [] }))
        }
        ("GET", "/history") => answer(200, &json!({ "last": ended(Way::Runs) })),
        ("GET", path) if path.starts_with("/history/") => {
            let id = path.trim_start_matches("/history/").to_owned();
            if state.queue.contains(&id) {
                state.looks += 1;
                if state.looks == 3 && way == Way::Lost {
                    state.queue.clear();
                } else if state.looks >= 3 && way != Way::Hangs {
                    state.queue.clear();
                    state.history.insert(id.clone(), ended(way));
                }
            }
            let found = state.history.get(&id).map(|entry| json!({ &id: entry }));
            answer(200, &found.unwrap_or(json!({})))
        }
        ("GET", "/view") => {
            ([("content-type", "image/png")], format!("bytes of {}", asked.query["filename"])).into_response()
        }
        ("POST", "/upload/image") => {
            let body = String::from_utf8_lossy(&asked.body).into_owned();
            let name = body.split_once("filename=\"").unwrap().1.split_once('"').unwrap().0;
            answer(200, &json!({ "name": name, "subfolder": "", "type": "input" }))
        }
        ("POST", "/queue" | "/interrupt" | "/free") => answer(200, &json!({})),
        _ => (axum::http::StatusCode::NOT_FOUND, "404: Not Found").into_response(),
    }
}

fn vars(backend: &Backend) -> Value {
    json!({ "url": backend.url(), "poll": "50ms", "patience": "300ms" })
}

fn with(mut vars: Value, more: &Value) -> Value {
    vars.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    vars
}

fn job() -> Value {
    json!({ "payload": { "workflow": workflow() } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_runs_to_its_files() {
    let (backend, state) = comfy(Way::Runs).await;
    let keys = json!({ "payload": {
        "workflow": workflow(), "inputs": { "photo.png": { "base64": "cGhvdG8=" } }, "extra_data": { "a": 1 },
    } });
    let vars = with(vars(&backend), &json!({ "token_env": KEY_NAME, "comfy_org_key_env": KEY_NAME }));
    let attempt = attempt("comfyui", &vars, &keys).await;
    let result = attempt.result();
    let names: Vec<_> = result["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["video/b.mp4", "audio/c.flac", "a.png"], "what is temporary stays there");
    let image = &result["files"][2];
    assert_eq!((&image["node"], &image["kind"], &image["type"]), (&json!("9"), &json!("images"), &json!("image/png")));
    assert_eq!((&image["base64"], &image["bytes"]), (&json!("Ynl0ZXMgb2YgYS5wbmc="), &json!(14)));
    assert_eq!(result["values"], json!({ "12": { "text": ["a cat"], "animated": [false] } }));
    assert_eq!(result["executed_ms"], 2500);

    let prompt = &backend.asked("POST /prompt")[0];
    assert_eq!(prompt.header("authorization"), format!("Bearer {KEY}"));
    let body = prompt.json();
    assert_eq!((&body["prompt_id"], &body["client_id"]), (&result["prompt_id"], &json!("m")));
    assert_eq!(body["extra_data"], json!({ "a": 1, "api_key_comfy_org": KEY }));
    let uploaded = body["prompt"]["2"]["inputs"]["image"].as_str().unwrap();
    assert!(uploaded.ends_with("-photo.png") && uploaded.len() == 26, "{uploaded}");
    uuid::Uuid::parse_str(body["prompt_id"].as_str().unwrap()).unwrap();
    assert_eq!(attempt.saved(), [json!({ "prompt_id": body["prompt_id"], "url": backend.url() })]);
    assert_eq!(state.lock().unwrap().told[0], "m", "one connection of the machine");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_counts_nodes_and_steps() {
    let (backend, _) = comfy(Way::Runs).await;
    let attempt = attempt("comfyui", &with(vars(&backend), &json!({ "poll": "300ms" })), &job()).await;
    attempt.result();
    let progress = attempt.progress();
    // Two of four nodes, and a quarter of the third.
    assert!(progress.contains(&(0.5625, "2 of 4 nodes node 3 (KSampler), 25 %".to_owned())), "{progress:?}");
    assert_eq!(*progress.last().unwrap(), (1.0, "done".to_owned()));
    assert!(progress.iter().all(|(_, message)| !message.contains("SaveImage")), "another's prompt: {progress:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_websocket_the_history_is_enough() {
    let (backend, _) = comfy(Way::Silent).await;
    assert_eq!(attempt("comfyui", &vars(&backend), &job()).await.result()["files"].as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_go_to_the_store() {
    let (backend, _) = comfy(Way::Runs).await;
    let dir = tempfile::tempdir().unwrap();
    let vars = with(vars(&backend), &json!({ "store": dir.path().display().to_string() }));
    let keys = json!({ "payload": { "workflow": workflow(), "outputs": ["10"] } });
    let attempt = attempt("comfyui", &vars, &keys).await;
    let file = &attempt.result()["files"][0];
    assert_eq!((&file["key"], &file["bytes"]), (&json!("j/video/b.mp4"), &json!(14)));
    assert!(file.get("base64").is_none());
    assert_eq!(std::fs::read_to_string(dir.path().join("j/video/b.mp4")).unwrap(), "bytes of b.mp4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_too_large_for_a_result_says_what_to_do() {
    let (backend, _) = comfy(Way::Runs).await;
    let attempt = attempt("comfyui", &with(vars(&backend), &json!({ "inline_max": 5 })), &job()).await;
    assert_eq!(attempt.fate(), (FailureClass::Fatal, None));
    assert!(attempt.failure().message.contains("set vars.store"), "{}", attempt.failure());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_submitted_once_whoever_asks() {
    let (backend, _) = comfy(Way::Hangs).await;
    let vars = vars(&backend);
    let first = cancelled("comfyui", &vars, &job(), || backend.all().len() > 12).await;
    // The same attempt after the engine was killed before it saved anything.
    let looks = backend.all().len();
    cancelled("comfyui", &vars, &job(), || backend.all().len() > looks + 8).await;
    // And after it was.
    let keys = json!({ "payload": { "workflow": workflow() }, "saved": first.saved()[0] });
    let looks = backend.all().len();
    cancelled("comfyui", &vars, &keys, || backend.all().len() > looks + 8).await;
    assert_eq!(backend.asked("POST /prompt").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_ended_meanwhile_is_collected() {
    let (backend, state) = comfy(Way::Hangs).await;
    let saved = json!({ "prompt_id": "11111111-1111-8111-a111-111111111111", "url": backend.url() });
    let id = saved["prompt_id"].as_str().unwrap().to_owned();
    state.lock().unwrap().history.insert(id.clone(), ended(Way::Runs));
    let keys = json!({ "payload": { "workflow": workflow() }, "saved": saved });
    let attempt = attempt("comfyui", &vars(&backend), &keys).await;
    assert_eq!(attempt.result()["prompt_id"], json!(id));
    assert!(backend.asked("POST /prompt").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_attempt_another_prompt_is_submitted() {
    let (backend, state) = comfy(Way::Runs).await;
    let id = "11111111-1111-8111-a111-111111111111";
    state.lock().unwrap().history.insert(id.to_owned(), ended(Way::Fails("torch.OutOfMemoryError")));
    let saved = json!({ "prompt_id": id, "url": backend.url() });
    let keys = json!({ "payload": { "workflow": workflow() }, "saved": saved, "attempts": 1 });
    let result = attempt("comfyui", &vars(&backend), &keys).await;
    assert_ne!(result.result()["prompt_id"], json!(id));
    // Tried by hand again: its first attempt's prompt is known and has failed.
    let first = result.result()["prompt_id"].as_str().unwrap().to_owned();
    state.lock().unwrap().history.insert(first.clone(), ended(Way::Fails("ValueError")));
    state.lock().unwrap().looks = 0;
    let keys = json!({ "payload": { "workflow": workflow() }, "attempts": 1 });
    assert_ne!(attempt("comfyui", &vars(&backend), &keys).await.result()["prompt_id"], json!(first));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_has_its_class() {
    for (way, class, why) in [
        (Way::Fails("ValueError"), FailureClass::Fatal, "node 3 (KSampler) failed: ValueError: it broke"),
        (Way::Fails("torch.OutOfMemoryError"), FailureClass::Retryable, "OutOfMemoryError"),
        (Way::Fails("Exception: Unauthorized: Please login"), FailureClass::Account, "Please login"),
        (Way::Interrupted, FailureClass::Retryable, "interrupted"),
        (Way::Lost, FailureClass::Retryable, "does not know the prompt"),
    ] {
        let (backend, _) = comfy(way).await;
        let attempt = attempt("comfyui", &vars(&backend), &job()).await;
        assert_eq!(attempt.fate(), (class, None), "{}", attempt.failure());
        assert!(attempt.failure().message.contains(why), "{}", attempt.failure());
        let freed = usize::from(way == Way::Fails("torch.OutOfMemoryError"));
        assert_eq!(backend.asked("POST /free").len(), freed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_workflow_is_fatal_or_for_another_machine() {
    let node = |kind: &str, received: &str| {
        json!({ "3": { "class_type": "KSampler", "dependent_outputs": ["9"], "errors": [{ "type": kind,
            "message": "Value not in list", "details": "ckpt_name", "extra_info": { "received_value": received } }] } })
    };
    let failed =
        |kind: &str, message: &str| json!({ "type": kind, "message": message, "details": "", "extra_info": {} });
    let outputs = || failed("prompt_outputs_failed_validation", "Prompt outputs failed validation");
    for (body, class) in [
        (
            json!({ "error": outputs(), "node_errors": node("value_not_in_list", "sdxl.safetensors") }),
            FailureClass::WrongMachine,
        ),
        (json!({ "error": outputs(), "node_errors": node("value_not_in_list", "euler") }), FailureClass::Fatal),
        (json!({ "error": outputs(), "node_errors": node("required_input_missing", "") }), FailureClass::Fatal),
        (
            json!({ "error": failed("invalid_prompt", "Cannot execute because node X does not exist."), "node_errors": {} }),
            FailureClass::WrongMachine,
        ),
        (
            json!({ "error": failed("missing_node_type", "Node X not found"), "node_errors": {} }),
            FailureClass::WrongMachine,
        ),
        (
            json!({ "error": failed("prompt_no_outputs", "Prompt has no outputs"), "node_errors": [] }),
            FailureClass::Fatal,
        ),
        (json!("nonsense"), FailureClass::Fatal),
    ] {
        let refusal = body.clone();
        let backend = Backend::start(move |asked, _| match asked.what.as_str() {
            "POST /prompt" => answer(400, &refusal),
            "GET /queue" => answer(200, &json!({ "queue_running": [], "queue_pending": [] })),
            _ => answer(200, &json!({})),
        })
        .await;
        let attempt = attempt("comfyui", &vars(&backend), &job()).await;
        assert_eq!(attempt.failure().class, class, "{body}: {}", attempt.failure());
        assert_eq!(backend.asked("POST /prompt").len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_has_its_class() {
    for (status, class) in [(401, FailureClass::Account), (500, FailureClass::Retryable), (404, FailureClass::Fatal)] {
        let backend = Backend::start(move |_, _| answer(status, &json!({}))).await;
        let attempt = attempt("comfyui", &vars(&backend), &job()).await;
        assert_eq!(attempt.failure().class, class, "{}", attempt.failure());
    }
    let gone = json!({ "url": "http://127.0.0.1:9", "poll": "50ms", "patience": "100ms" });
    assert_eq!(attempt("comfyui", &gone, &job()).await.failure().class, FailureClass::Retryable);
    assert_eq!(check("comfyui", &gone).await.unwrap_err().class, FailureClass::Retryable);
    let (backend, _) = comfy(Way::Runs).await;
    check("comfyui", &vars(&backend)).await.unwrap();
    let other = Backend::start(|_, _| answer(200, &json!({ "hello": 1 }))).await;
    assert!(check("comfyui", &vars(&other)).await.unwrap_err().message.contains("is no ComfyUI"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_ends_its_own_prompt_only() {
    let (backend, _) = comfy(Way::Hangs).await;
    let attempt = cancelled("comfyui", &vars(&backend), &job(), || backend.all().len() > 8).await;
    let id = attempt.saved()[0]["prompt_id"].clone();
    assert_eq!(backend.asked("POST /queue")[0].json(), json!({ "delete": [id] }));
    assert_eq!(backend.asked("POST /interrupt")[0].json(), json!({ "prompt_id": id }));
    // The prompt of somebody else runs.
    let (backend, state) = comfy(Way::Hangs).await;
    let emptied = Arc::clone(&state);
    cancelled("comfyui", &vars(&backend), &job(), || {
        let sent = !backend.asked("POST /prompt").is_empty();
        if sent {
            emptied.lock().unwrap().queue = vec!["another".to_owned()];
        }
        sent
    })
    .await;
    assert!(backend.asked("POST /interrupt").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_freed_when_the_models_change_or_the_job_asks() {
    for (more, payload, freed) in [
        (json!({ "free_between_models": true }), json!({ "workflow": workflow() }), 1),
        (
            json!({ "free_between_models": true }),
            json!({ "workflow": { "1": { "class_type": "A", "inputs": { "a": "old.safetensors" } } } }),
            0,
        ),
        (json!({}), json!({ "workflow": workflow() }), 0),
        (json!({}), json!({ "workflow": workflow(), "free": true }), 1),
    ] {
        let (backend, _) = comfy(Way::Runs).await;
        attempt("comfyui", &with(vars(&backend), &more), &json!({ "payload": payload })).await.result();
        assert_eq!(backend.asked("POST /free").len(), freed, "{more} {payload}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_are_looked_at_first() {
    let (backend, _) = comfy(Way::Runs).await;
    let input = |input: Value| json!({ "workflow": workflow(), "inputs": { "photo.png": input } });
    for (payload, why) in [
        (json!([1]), "must be a map"),
        (json!({}), "needs \"workflow\""),
        (json!({ "workflow": "x" }), "must be of type map"),
        (json!({ "workflow": {}, "wrkflow": 1 }), "unknown key \"wrkflow\""),
        (input(json!("§")), "is no base64"),
        (input(json!({ "url": "http://169.254.169.254/latest" })), "not allowed here"),
        (input(json!({ "key": "a.png" })), "set vars.store"),
        (input(json!({ "file": "a.png" })), "none of base64, url, key, text"),
    ] {
        refuses("comfyui", &vars(&backend), payload, why).await;
    }
    assert!(backend.asked("POST /prompt").is_empty());
}

/// With custom nodes there are thousands, each of which may list all models: more than a script's values may hold.
#[tokio::test(flavor = "multi_thread")]
async fn what_thousands_of_nodes_offer_is_found() {
    let backend = Backend::start(|asked, _| match asked.what.as_str() {
        "GET /system_stats" => answer(200, &json!({ "system": {} })),
        _ => {
            let files: Vec<String> = (0..110).map(|n| format!("loras/{n:03}.safetensors")).collect();
            let node = |n: usize| {
                let own = format!("own-{n}.gguf");
                let lists =
                    json!({ "a": [files, {}], "b": ["COMBO", { "options": [own, "none"] }], "seed": ["INT", {}] });
                (format!("Node{n}"), json!({ "input": { "required": lists }, "description": "x".repeat(1_000) }))
            };
            answer(200, &Value::Object((0..1_000).map(node).collect()))
        }
    })
    .await;
    let found = capabilities("comfyui", &json!({ "url": backend.url() })).await.unwrap().unwrap();
    assert_eq!(found.models.len(), 1_110);
    assert!(found.models.contains("loras/007.safetensors") && found.models.contains("own-999.gguf"));
    let quiet = capabilities("comfyui", &json!({ "url": backend.url(), "inventory": false })).await.unwrap().unwrap();
    assert_eq!((quiet.models.len(), backend.asked("GET /object_info").len()), (0, 1));
}
