//! Websockets of scripts, against a server of this process that drops, floods and falls silent as it is told.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use machinist::queue::FailureClass;
use machinist::worker::Connector;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;

use support::script::{bench, job, run_context, time_to_cancel};
use support::wait_until;
use support::web::tls_in_front;

const SECRET_NAME: &str = "CARGO_PKG_LICENSE";
const SECRET: &str = env!("CARGO_PKG_LICENSE");

#[derive(Clone)]
struct Hub {
    address: std::net::SocketAddr,
    /// Connections that were made, and that are open.
    made: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    pings: Arc<AtomicUsize>,
    /// What all of `/all` are told; an empty text drops them.
    told: broadcast::Sender<String>,
}

impl Hub {
    async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let (made, open, pings) = (Arc::default(), Arc::default(), Arc::default());
        let hub = Self { address, made, open, pings, told: broadcast::Sender::new(100_000) };
        let router = Router::new().route("/{way}", get(upgrade)).with_state(hub.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        hub
    }

    fn url(&self, way: &str) -> String {
        format!("ws://{}/{way}", self.address)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }
}

async fn upgrade(
    ws: WebSocketUpgrade,
    Path(way): Path<String>,
    headers: HeaderMap,
    State(hub): State<Hub>,
) -> Response {
    let said = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let authorization = said("authorization");
    if way == "refuse" {
        return (axum::http::StatusCode::UNAUTHORIZED, format!("not {authorization}")).into_response();
    }
    ws.protocols(["chat"]).on_upgrade(async move |socket| {
        hub.made.fetch_add(1, Ordering::SeqCst);
        hub.open.fetch_add(1, Ordering::SeqCst);
        serve(socket, &way, &authorization, &hub).await;
        hub.open.fetch_sub(1, Ordering::SeqCst);
    })
}

async fn serve(mut socket: WebSocket, way: &str, authorization: &str, hub: &Hub) {
    let text = |text: &str| Message::Text(text.to_owned().into());
    match way {
        "echo" => {
            while let Some(Ok(message)) = socket.recv().await {
                match message {
                    Message::Text(_) | Message::Binary(_) => drop(socket.send(message).await),
                    Message::Ping(_) => drop(hub.pings.fetch_add(1, Ordering::SeqCst)),
                    _ => {}
                }
            }
        }
        "bye" => {
            let reason = format!("go, {authorization}");
            let _ = socket.send(text("last words")).await;
            let _ = socket.send(Message::Close(Some(CloseFrame { code: 4001, reason: reason.into() }))).await;
            while let Some(Ok(_)) = socket.recv().await {}
        }
        "drop" => drop(socket.send(text("half")).await),
        "big" => {
            let _ = socket.send(Message::Binary(vec![7; 2_000_000].into())).await;
            while let Some(Ok(_)) = socket.recv().await {}
        }
        // Reads nothing, so that it answers no ping.
        "dead" => tokio::time::sleep(Duration::from_secs(600)).await,
        "all" => {
            let mut told = hub.told.subscribe();
            let hello = socket.recv().await;
            if let Some(Ok(Message::Text(hello))) = hello {
                let _ = socket.send(text(&format!("{{\"hello\":{}}}", json!(hello.as_str())))).await;
            }
            loop {
                tokio::select! {
                    line = told.recv() => match line.as_deref() {
                        Ok("") | Err(_) => return,
                        Ok("blob") => drop(socket.send(Message::Binary(vec![1, 2, 3].into())).await),
                        Ok(line) => drop(socket.send(text(line)).await),
                    },
                    message = socket.recv() => match message {
                        Some(Ok(Message::Text(said))) => drop(hub.told.send(said.to_string())),
                        Some(Ok(_)) => {}
                        _ => return,
                    },
                }
            }
        }
        other => panic!("no way {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_go_both_ways() {
    let (hub, bench) = (Hub::start().await, bench());
    let body = format!(
        "let ws = ws::connect(\"{}\", #{{ subprotocols: [\"chat\"], headers: #{{ \"x-a\": 1 }} }});
         ws.send(\"ä\"); let a = ws.recv();
         ws.send(#{{ n: [1, ()] }}); let b = ws.recv(\"5s\");
         ws.send(blob::from_text(\"bytes\")); let c = ws.recv(5);
         let d = ws.recv(0.05);
         ws.close(); let e = ws.recv(); let f = ws.recv();
         let g = (); try {{ ws.send(\"x\") }} catch (e) {{ g = [e.kind, e.message]; }}
         [a, b, c.kind, c.blob.text(), d, e, f.kind, g]",
        hub.url("echo")
    );
    let answer = bench.run(&body).await.unwrap();
    let closed = json!({ "kind": "closed", "code": 1000, "reason": "" });
    let message = format!("websocket {}: the connection is closed", hub.url("echo"));
    assert_eq!(
        answer,
        json!([
            { "kind": "text", "text": "ä" }, { "kind": "text", "text": "{\"n\":[1,null]}" }, "blob", "bytes",
            { "kind": "timeout" }, closed, "closed", ["connect", message]
        ])
    );
    // A socket that a script leaves behind is closed with it.
    bench.run(&format!("ws::connect(\"{}\").recv(0.01).kind", hub.url("echo"))).await.unwrap();
    wait_until("all connections to be closed", Duration::from_secs(10), || (hub.open() == 0).then_some(()));
    assert_eq!(hub.made(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_is_told_and_shows_no_secret() {
    let (hub, bench) = (Hub::start().await, bench());
    let auth = format!("auth: #{{ bearer: secret(\"{SECRET_NAME}\") }}");
    let bye = format!("let ws = ws::connect(\"{}\", #{{ {auth} }}); [ws.recv(), ws.recv()]", hub.url("bye"));
    let answer = bench.run(&bye).await.unwrap();
    assert_eq!(answer[0]["text"], "last words");
    assert_eq!(answer[1], json!({ "kind": "closed", "code": 4001, "reason": "go, Bearer [redacted]" }));

    let dropped = format!("let ws = ws::connect(\"{}\"); [ws.recv().text, ws.recv().code]", hub.url("drop"));
    assert_eq!(bench.run(&dropped).await.unwrap(), json!(["half", 1006]));
    let big = format!("ws::connect(\"{}\", #{{ max_message: \"1MB\" }}).recv()", hub.url("big"));
    let answer = bench.run(&big).await.unwrap();
    assert!(answer["code"] == 1006 && answer["reason"].as_str().unwrap().contains("too long"), "{answer}");
    let whole = format!("ws::connect(\"{}\").recv().blob.len", hub.url("big"));
    assert_eq!(bench.run(&whole).await.unwrap(), json!(2_000_000));

    let refused = format!("ws::connect(\"{}?key=hidden\", #{{ {auth} }})", hub.url("refuse"));
    let failure = bench.run(&refused).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Account, "{failure}");
    assert!(failure.message.contains("401") && !failure.message.contains(SECRET), "{failure}");
    assert!(!failure.message.contains("hidden"), "{failure}");
    let caught = format!("try {{ {refused} }} catch (e) {{ return [e.status, e.body]; }}");
    assert_eq!(bench.run(&caught).await.unwrap(), json!([401, "not Bearer [redacted]"]));
    let web = support::web::Web::start().await;
    let plain = format!("ws::connect(\"{}\")", web.url("/echo").replace("http", "ws"));
    let failure = bench.run(&plain).await.unwrap_err();
    assert!(failure.class == FailureClass::Fatal && failure.message.contains("no websocket"), "{failure}");
    for (call, class, message) in [
        ("ws::connect(\"ftp://x/\")", FailureClass::Retryable, "ws://host/path"),
        ("ws::connect(\"ws://127.0.0.1:9/\")", FailureClass::Retryable, "ws://127.0.0.1:9/"),
        (
            "let options = #{ pign: 1 }; ws::connect(\"ws://127.0.0.1:9/\", options)",
            FailureClass::Retryable,
            "did you mean ping?",
        ),
    ] {
        let failure = bench.run(call).await.unwrap_err();
        assert!(failure.class == class && failure.message.contains(message), "{call}: {failure}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_keep_a_connection_and_tell_a_dead_one() {
    let (hub, bench) = (Hub::start().await, bench());
    let quiet = format!(
        "let ws = ws::connect(\"{}\", #{{ ping: \"50ms\", idle: \"400ms\" }}); let a = ws.recv(\"1s\");
         ws.send(\"still here\"); [a.kind, ws.recv().text]",
        hub.url("echo")
    );
    assert_eq!(bench.run(&quiet).await.unwrap(), json!(["timeout", "still here"]));
    assert!(hub.pings.load(Ordering::SeqCst) >= 5);
    let dead = format!("ws::connect(\"{}\", #{{ ping: \"50ms\", idle: \"300ms\" }}).recv(\"30s\")", hub.url("dead"));
    let begun = Instant::now();
    let answer = bench.run(&dead).await.unwrap();
    assert!(answer["code"] == 1006 && answer["reason"].as_str().unwrap().contains("300ms"), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_a_certificate_of_ones_own() {
    let (hub, dir) = (Hub::start().await, tempfile::tempdir().unwrap());
    let (secure, ca) = tls_in_front(hub.address, dir.path()).await;
    // The bench's reaper waits for every child of the process from now on.
    let bench = bench();
    let url = format!("wss://localhost:{}/echo", secure.port());
    let trusted =
        format!("let ws = ws::connect(\"{url}\", #{{ ca: \"{}\" }}); ws.send(\"x\"); ws.recv().text", ca.display());
    assert_eq!(bench.run(&trusted).await.unwrap(), json!("x"));
    let failure = bench.run(&format!("ws::connect(\"{url}\")")).await.unwrap_err();
    assert!(failure.message.to_lowercase().contains("certificate"), "{failure}");
}

/// Runs `body` as a job on a task of its own.
fn begin(connector: &Arc<dyn Connector>) -> tokio::task::JoinHandle<Value> {
    let connector = Arc::clone(connector);
    tokio::spawn(async move { connector.run(job(), run_context(Duration::from_secs(60))).await.unwrap() })
}

#[tokio::test(flavor = "multi_thread")]
async fn all_scripts_share_one_connection_and_each_hears_its_own() {
    let (hub, bench) = (Hub::start().await, bench());
    let url = hub.url("all");
    let jobs: Vec<_> = (0..20)
        .map(|n| {
            let body = format!(
                "let s = ws::subscribe(\"{url}\", #{{ filter: #{{ \"/id\": [{n}, \"all\"] }}, hello: \"hi\", linger: \"300ms\" }});
                 let seen = []; loop {{ let m = s.recv(\"30s\"); if m.kind == \"blob\" {{ seen.push(m.blob.len); continue; }}
                 let v = json::parse(m.text); seen.push(v.x); if v.x == \"end\" {{ return seen; }} }}"
            );
            begin(&bench.connector(&format!("fn run(job, ctx) {{ {body} }}")))
        })
        .collect();
    wait_until("the one connection", Duration::from_secs(20), || (hub.open() == 1).then_some(()));
    // Everyone who subscribed in time gets the first message again until all have gone.
    let talking = tokio::spawn({
        let told = hub.told.clone();
        async move {
            loop {
                for n in 0..20 {
                    let _ = told.send(json!({ "id": n, "x": n }).to_string());
                }
                let _ = told.send("blob".to_owned());
                let _ = told.send(json!({ "id": "all", "x": "end" }).to_string());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    for (n, job) in jobs.into_iter().enumerate() {
        let seen = job.await.unwrap();
        let seen = seen.as_array().unwrap();
        assert_eq!(seen.last().unwrap(), "end");
        assert!(seen.iter().all(|x| *x == json!(n) || x == "end" || *x == json!(3)), "{n}: {seen:?}");
    }
    talking.abort();
    assert_eq!(hub.made(), 1, "one connection served them all");
    wait_until("the connection to be closed unused", Duration::from_secs(10), || (hub.open() == 0).then_some(()));

    let sends = format!(
        "let s = ws::subscribe(\"{url}\", #{{ hello: \"hi\", filter: #{{ \"/id\": 7 }}, blobs: false }});
         let before = s.connected; s.send(#{{ id: 7, x: \"back\" }}); [before, json::parse(s.recv().text).x, s.recv(0.05).kind]"
    );
    assert_eq!(bench.run(&sends).await.unwrap(), json!([true, "back", "timeout"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_connection_comes_back_and_says_what_was_missed() {
    let (hub, bench) = (Hub::start().await, bench());
    let body = format!(
        "let s = ws::subscribe(\"{}\", #{{ hello: \"hi\", queue: 3 }}); let a = s.recv(\"5s\");
         s.send(\"\"); let b = s.recv(\"5s\"); let c = s.recv(\"5s\");
         for n in 0..10 {{ s.send(`m${{n}}`); }} s.send(\"last\"); job.save(1); sleep(0.5);
         let rest = []; loop {{ let m = s.recv(0); if m.kind == \"timeout\" {{ break; }} rest.push(m); }}
         [a, b, c, rest]",
        hub.url("all")
    );
    let hello = json!({ "kind": "text", "text": "{\"hello\":\"hi\"}" });
    let text = |text: &str| json!({ "kind": "text", "text": text });
    let expected = json!([
        hello,
        { "kind": "reconnected" },
        hello,
        [{ "kind": "lagged", "count": 8 }, text("m8"), text("m9"), text("last")]
    ]);
    assert_eq!(bench.run(&body).await.unwrap(), expected);

    // One that is not there is an error within the time it may take, and one that refuses an error at once.
    let begun = Instant::now();
    let failure = bench.run("ws::subscribe(\"ws://127.0.0.1:9/\", #{ timeout: \"300ms\" })").await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Retryable, "{failure}");
    let failure = bench.run(&format!("ws::subscribe(\"{}\")", hub.url("refuse"))).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Account, "{failure}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_connection_outlives_a_restart_of_its_server() {
    let bench = bench();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let body = format!(
        "let s = ws::subscribe(\"ws://{address}/all\", #{{ hello: \"hi\", timeout: \"30s\" }}); let seen = [];
         loop {{ let m = s.recv(\"30s\"); seen.push(m.kind); if m.kind == \"text\" && m.text.contains(\"end\") {{ return seen; }} }}"
    );
    // It begins before there is a server.
    let running = begin(&bench.connector(&format!("fn run(job, ctx) {{ {body} }}")));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let hub = Hub::on(socket.listen(16).unwrap());
    wait_until("a connection", Duration::from_secs(20), || (hub.open() == 1).then_some(()));
    let _ = hub.told.send(String::new());
    wait_until("another connection", Duration::from_secs(20), || (hub.made() == 2 && hub.open() == 1).then_some(()));
    let talking = tokio::spawn(async move {
        loop {
            let _ = hub.told.send("the end".to_owned());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let seen = running.await.unwrap();
    talking.abort();
    assert!(seen.as_array().unwrap().contains(&json!("reconnected")), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_and_deadline_end_whatever_blocks() {
    let hub = Hub::start().await;
    for body in [
        format!("ws::connect(\"{}\").recv()", hub.url("echo")),
        format!("let ws = ws::connect(\"{}\"); loop {{ try {{ ws.recv(\"1h\") }} catch {{ }} }}", hub.url("echo")),
        format!("ws::subscribe(\"{}\").recv()", hub.url("all")),
        "ws::subscribe(\"ws://127.0.0.1:9/\", #{ timeout: \"1h\" })".to_owned(),
        // More than any buffer of the kernel takes, and nobody who reads.
        format!(
            "let ws = ws::connect(\"{}\"); let t = \"x\"; for i in 0..22 {{ t += t; }} let b = blob::from_text(t); loop {{ ws.send(b); }}",
            hub.url("dead")
        ),
    ] {
        let bench = bench();
        let connector = bench.running(&body);
        let took = time_to_cancel(&connector, &body).await;
        // 50 ms is the promise; the rest is for a machine that does other things too.
        assert!(took < Duration::from_secs(1), "{body}: {took:?}");
        let failure = connector.run(job(), run_context(Duration::from_millis(300))).await.unwrap_err();
        assert_eq!(failure.class, FailureClass::Timeout, "{body}: {failure}");
    }
}
