//! Where scripts keep things: a directory, a server that speaks as S3 does, and a Redis.

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use machinist::queue::FailureClass;
use serde_json::json;

use support::redis::RedisServer;
use support::s3::S3;
use support::script::{bench, job, run_context, time_to_cancel};
use support::wait_until;

const SECRET_NAME: &str = "CARGO_PKG_LICENSE";
const SECRET: &str = env!("CARGO_PKG_LICENSE");

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_keeps_objects_and_lets_none_out() {
    let bench = bench();
    let dir = bench.dir.path().join("store");
    let body = format!(
        "let s = storage::open(\"{}\");
         let put = s.put(\"a/one.txt\", \"hello\"); fs::write_text(\"f\", \"file\"); s.upload(\"a/two.png\", \"f\");
         let got = s.get(\"a/one.txt\").text(); let n = s.download(\"a/two.png\", \"g\");
         let listed = []; for o in s.list(\"a\") {{ listed.push(o.key); }} listed.sort();
         let there = s.exists(\"a/one.txt\"); s.delete(\"a/one.txt\"); s.delete(\"a/one.txt\");
         [put.key, put.url, put.bytes, put.sha256 == crypto::sha256(\"hello\"), got, n, fs::read_text(\"g\"), listed, there,
          s.exists(\"a/one.txt\"), s.head(\"a/one.txt\"), s.head(\"a/two.png\").bytes, s.list(\"\", 1).len(), s.list(\"none\")]",
        dir.display()
    );
    let url = format!("{}/a/one.txt", dir.display());
    assert_eq!(
        bench.run(&body).await.unwrap(),
        json!(["a/one.txt", url, 5, true, "hello", 4, "file", ["a/one.txt", "a/two.png"], true, false, null, 4, 1, []])
    );
    for (call, kind, class) in [
        ("s.put(\"../x\", \"y\")", "invalid", FailureClass::Fatal),
        ("s.get(\"/etc/../../passwd\")", "invalid", FailureClass::Fatal),
        ("s.get(\"none\")", "missing", FailureClass::Fatal),
        ("s.presign_get(\"a\", \"1h\")", "invalid", FailureClass::Fatal),
        ("s.get(\"a/two.png\", #{ max: 3 })", "limit", FailureClass::Fatal),
        ("s.download(\"a/two.png\", \"x\", #{ sha256: \"00\" })", "data", FailureClass::Retryable),
    ] {
        let body = format!("let s = storage::open(\"{}\"); {call}", dir.display());
        let failure = bench.run(&body).await.unwrap_err();
        assert_eq!(failure.class, class, "{call}: {failure}");
        let caught =
            format!("fs::mkdir(\".\"); try {{ {body}; }} catch (e) {{ return [e.kind, fs::list(\".\").len()]; }}");
        assert_eq!(bench.run(&caught).await.unwrap(), json!([kind, 0]), "{call}");
    }
    let failure =
        bench.run("let options = #{ url: \"/tmp\", regoin: \"x\" }; storage::open(options)").await.unwrap_err();
    assert!(failure.message.contains("did you mean region?"), "{failure}");
    assert_eq!(bench.run("storage::open(\"ftp://x/y\")").await.unwrap_err().class, FailureClass::Fatal);
}

/// `storage::open` of the server, as a script writes it.
fn open(s3: &S3) -> String {
    format!(
        "storage::open(#{{ url: \"s3://bucket/some/prefix\", endpoint: \"{}\", access_key: \"me\", secret_key: secret(\"{SECRET_NAME}\") }})",
        s3.url()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_go_to_s3_and_come_back() {
    let (s3, bench) = (S3::start().await, bench());
    let open = open(&s3);
    let body = format!(
        "let s = {open};
         let put = s.put(\"out/image.png\", blob::from_text(\"pixels\").with_content_type(\"image/x\"), #{{ cache_control: \"no-store\" }});
         s.put(\"out/data.json\", \"{{}}\");
         let back = s.get(\"out/image.png\"); let listed = []; for o in s.list(\"out\") {{ listed.push([o.key, o.bytes]); }}
         let head = s.head(\"out/data.json\"); s.delete(\"out/data.json\");
         [put.url, put.sha256 == crypto::sha256(\"pixels\"), put.etag != (), back.text(), back.content_type, head.bytes, head.content_type,
          listed, s.head(\"out/data.json\"), `${{s}}`]"
    );
    let answer = bench.run(&body).await.unwrap();
    let url = "s3://bucket/some/prefix/out/image.png";
    let listed = json!([["out/data.json", 2], ["out/image.png", 6]]);
    assert_eq!(
        answer,
        json!([
            url,
            true,
            true,
            "pixels",
            "image/x",
            2,
            "application/json",
            listed,
            null,
            "Store(s3://bucket/some/prefix)"
        ])
    );
    let kept = s3.object("some/prefix/out/image.png").unwrap();
    assert_eq!((kept.cache_control.as_str(), &kept.content[..]), ("no-store", &b"pixels"[..]));
    assert!(s3.signatures().iter().all(|text| text.starts_with("AWS4-HMAC-SHA256 Credential=me/")));

    // What a signed address allows needs no credentials.
    let signed = format!(
        "let s = {open}; let url = s.presign_put(\"signed\", \"1h\"); http::put(url, #{{ body: \"by others\" }});
         [s.get(\"signed\").text(), http::get(s.presign_get(\"signed\", 60)).text(), url.contains(\"X-Amz-Signature=\")]"
    );
    assert_eq!(bench.run(&signed).await.unwrap(), json!(["by others", "by others", true]));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_go_up_in_parts_and_come_down_into_files() {
    let (s3, bench) = (S3::start().await, bench());
    let body = format!(
        "let s = {}; let t = \"x\"; t.pad(7000000, 'x'); fs::write_text(\"part\", t);
         process::run(#{{ argv: [\"sh\", \"-c\", \"cat part part part > big\"] }});
         let put = s.upload(\"big.bin\", \"big\"); let n = s.download(\"big.bin\", \"back\", #{{ sha256: put.sha256 }});
         [put.bytes, n, s.get(\"big.bin\").sha256() == put.sha256]",
        open(&s3)
    );
    assert_eq!(bench.run(&body).await.unwrap(), json!([21_000_000, 21_000_000, true]));
    assert_eq!(s3.parts.load(Ordering::SeqCst), 3, "of 8 MiB each");
    // An upload that is cancelled takes its parts back.
    s3.stuck.store(true, Ordering::SeqCst);
    let body = format!(
        "let s = {}; let t = \"x\"; t.pad(7000000, 'x'); fs::write_text(\"part\", t);
         process::run(#{{ argv: [\"sh\", \"-c\", \"cat part part > big\"] }}); s.upload(\"never.bin\", \"big\")",
        open(&s3)
    );
    let connector = bench.connector(&format!("fn run(job, ctx) {{ {body} }}"));
    let context = run_context(Duration::from_secs(60));
    let cancel = context.cancel.clone();
    let run = tokio::spawn(async move { connector.run(job(), context).await });
    let parts = || s3.parts.load(Ordering::SeqCst);
    wait_until("a part to be on its way", Duration::from_secs(20), || (parts() > 3).then_some(()));
    let begun = Instant::now();
    cancel.cancel();
    assert_eq!(run.await.unwrap().unwrap_err().class, FailureClass::Cancelled);
    println!("cancel took {:?}: an upload", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    s3.stuck.store(false, Ordering::SeqCst);
    let aborted = || s3.aborted.load(Ordering::SeqCst);
    wait_until("the upload to be taken back", Duration::from_secs(20), || (aborted() == 1).then_some(()));
    assert!(s3.object("some/prefix/never.bin").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_stores_decide_and_show_no_secret() {
    let (s3, bench) = (S3::start().await, bench());
    for (status, kind, class) in [
        (403, "denied", FailureClass::Account),
        (404, "missing", FailureClass::Fatal),
        (501, "connect", FailureClass::Retryable),
    ] {
        s3.says(status);
        let call = format!("{}.get(\"x\")", open(&s3));
        let failure = bench.run(&call).await.unwrap_err();
        assert_eq!(failure.class, class, "{status}: {failure}");
        assert!(!failure.message.contains(SECRET), "{failure}");
        let caught = format!("try {{ {call}; }} catch (e) {{ return [e.kind, `${{e}}`]; }}");
        let caught = bench.run(&caught).await.unwrap();
        assert_eq!(caught[0], kind, "{status}: {caught}");
        assert!(!caught.to_string().contains(SECRET), "{caught}");
    }
}

fn redis(server: &RedisServer) -> String {
    format!("let r = redis::connect(\"{}\", #{{ prefix: \"p:\" }});", server.url())
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_keep_data_in_a_redis() {
    let (server, bench) = (RedisServer::start(&[]), bench());
    let body = format!(
        "{} let out = [];
         out.push([r.get(\"a\"), r.set(\"a\", 1.5), r.get(\"a\"), r.set(\"a\", #{{ x: [1] }}, #{{ ttl: \"1h\", only_new: true }}), r.get(\"a\")]);
         out.push([r.set(\"j\", #{{ x: [1] }}), json::parse(r.get(\"j\")).x, r.del(\"j\"), r.del(\"j\")]);
         out.push([r.incr(\"n\"), r.incr(\"n\", 41), r.expire(\"n\", \"1h\"), r.expire(\"none\", 1)]);
         out.push([r.hset(\"h\", \"f\", \"v\"), r.hset(\"h\", #{{ g: 2 }}), r.hget(\"h\", \"g\"), r.hget(\"h\", \"x\"), r.hgetall(\"h\"), r.hgetall(\"x\")]);
         out.push([r.lpush(\"l\", 1), r.lpush(\"l\", [2, \"3\"]), r.rpop(\"l\"), r.rpop(\"none\")]);
         out.push([r.publish(\"c\", \"hi\"), r.xadd(\"s\", #{{ a: 1 }}, #{{ max: 10 }}).contains(\"-\")]);
         out.push(r.lua(\"return {{KEYS[1], ARGV[1], tonumber(ARGV[2])}}\", [\"k\"], [\"x\", 7]));
         out.push([r.command([\"TTL\", \"p:n\"]) > 3500, r.command([\"HGETALL\", \"p:h\"]), r.command([\"EXISTS\", \"n\"]), r.command([\"PING\"])]);
         r.set(\"b\", blob::from_base64(\"/wD+\")); out.push(r.get(\"b\").base64());
         out",
        redis(&server)
    );
    let answer = bench.run(&body).await.unwrap();
    assert_eq!(
        answer,
        json!([
            [null, true, "1.5", false, "1.5"],
            [true, [1], true, false],
            [1, 42, true, false],
            [null, null, "2", null, { "f": "v", "g": "2" }, {}],
            [1, 3, "1", null],
            [0, true],
            ["p:k", "x", 7],
            [true, { "f": "v", "g": "2" }, 0, "PONG"],
            "/wD+"
        ])
    );
    let whole = format!("redis::connect(\"{}\").get(\"p:n\")", server.url());
    assert_eq!(bench.run(&whole).await.unwrap(), json!("42"));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_a_redis_decide_and_show_no_secret() {
    let (server, bench) = (RedisServer::start(&[]), bench());
    let denied = format!("redis::connect(\"redis://nobody:hunter2@127.0.0.1:{}/\").get(\"a\")", server.port);
    for (call, kind, class) in [
        (format!("{} r.set(\"t\", \"x\"); r.incr(\"t\")", redis(&server)), "refused", FailureClass::Fatal),
        (format!("{} r.command([\"BLPOP\", \"l\", 0])", redis(&server)), "invalid", FailureClass::Fatal),
        (format!("{} r.command([\"NONSENSE\"])", redis(&server)), "refused", FailureClass::Fatal),
        (denied, "denied", FailureClass::Account),
        ("redis::connect(\"http://:hunter2@x\")".to_owned(), "invalid", FailureClass::Fatal),
        (
            "redis::connect(\"redis://:hunter2@127.0.0.1:9/\", #{ timeout: \"300ms\" }).get(\"a\")".to_owned(),
            "timeout",
            FailureClass::Retryable,
        ),
    ] {
        let failure = bench.run(&call).await.unwrap_err();
        assert_eq!(failure.class, class, "{call}: {failure}");
        assert!(!failure.message.contains("hunter2"), "{failure}");
        let caught = bench.run(&format!("try {{ {call}; }} catch (e) {{ return e.kind; }}")).await.unwrap();
        assert_eq!(caught, kind, "{call}");
    }
    let secret = format!("{} r.set(\"a\", [secret(\"{SECRET_NAME}\")])", redis(&server));
    let failure = bench.run(&secret).await.unwrap_err();
    assert!(failure.message.contains("a secret cannot be part of this"), "{failure}");

    // The connection comes back with the server.
    let alive = format!("{} r.incr(\"alive\")", redis(&server));
    assert_eq!(bench.run(&alive).await.unwrap(), json!(1));
    // The bench's reaper has waited for the server.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let failure = bench.run(&alive).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Retryable, "{failure}");
    let mut again = support::redis::server()
        .args(["--port", &server.port.to_string(), "--save", ""])
        .current_dir(bench.dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while bench.run(&alive).await.is_err() {
        assert!(Instant::now() < deadline, "the connection never comes back");
    }
    again.kill().unwrap();
    // Unless the reaper was faster.
    let _ = again.wait();
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_and_deadline_end_whatever_blocks() {
    let (server, s3) = (RedisServer::start(&[]), S3::start().await);
    s3.stuck.store(true, Ordering::SeqCst);
    let store = open(&s3);
    server.command(&["CLIENT", "PAUSE", "60000"]);
    // The bench's reaper waits for every child of the process from now on.
    let bench = bench();
    for body in [
        format!("{} r.get(\"a\")", redis(&server).replace("prefix: \"p:\"", "timeout: \"1h\"")),
        format!("{store}.get(\"x\")"),
        format!("{store}.put(\"x\", \"y\")"),
        format!("{store}.download(\"x\", \"y\")"),
        format!("{store}.list(\"\")"),
    ] {
        let connector = bench.running(&body);
        let took = time_to_cancel(&connector, &body).await;
        let failure = connector.run(job(), run_context(Duration::from_millis(300))).await.unwrap_err();
        assert_eq!(failure.class, FailureClass::Timeout, "{body}: {failure}");
        // 50 ms is the promise; the rest is for a machine that does other things too.
        assert!(took < Duration::from_secs(1), "{body}: {took:?}");
    }
}
