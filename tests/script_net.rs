//! What scripts do with the network, against real servers on this machine.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use machinist::queue::{Failure, FailureClass};
use serde_json::{Value, json};

use support::script::{bench, job, run_context, time_to_cancel};
use support::wait_until;
use support::web::{Web, raw_server, tls_in_front};

/// A variable that cargo sets, with a text that is found nowhere by chance.
const SECRET_NAME: &str = "CARGO_PKG_DESCRIPTION";
const SECRET: &str = env!("CARGO_PKG_DESCRIPTION");

#[tokio::test(flavor = "multi_thread")]
async fn requests_carry_what_they_are_told_to() {
    let (web, bench) = (Web::start().await, bench());
    let echo = web.url("/echo");
    let body = format!(
        "let r = http::post(\"{echo}?a=1\", #{{ json: #{{ x: [1, 2.5, (), \"ü\"] }}, query: #{{ b: \"2 3\", c: [4, 5] }},
            headers: #{{ \"X-One\": 1 }}, auth: #{{ user: \"me\", password: secret(\"{SECRET_NAME}\") }} }});
         #{{ status: r.status, ok: r.ok, mixed: r.header(\"X-MIXED-case\"), none: r.header(\"nope\"),
             listed: r.headers[\"x-mixed-case\"], answer: r.json(), again: r.text().len() > 10, url: r.url,
             part: r.json_at(\"/headers/x-one\") }}"
    );
    let mut answer = bench.run(&body).await.unwrap();
    let sent = answer["answer"].take();
    assert_eq!(
        answer,
        json!({ "status": 200, "ok": true, "mixed": "yes", "none": null, "listed": "yes", "answer": null, "again": true,
            "url": echo, "part": "1" })
    );
    assert_eq!((&sent["method"], &sent["query"]), (&json!("POST"), &json!("a=1&b=2+3&c=4&c=5")));
    assert_eq!(
        serde_json::from_str::<Value>(sent["body"].as_str().unwrap()).unwrap(),
        json!({ "x": [1, 2.5, null, "ü"] })
    );
    assert_eq!(sent["headers"]["content-type"], "application/json");
    let basic = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, format!("me:{SECRET}"));
    assert_eq!(sent["headers"]["authorization"], format!("Basic {basic}"));

    let form = format!("http::put(\"{echo}\", #{{ form: #{{ a: 1, b: \"x y\" }} }}).json()");
    let sent = bench.run(&form).await.unwrap();
    assert_eq!((&sent["method"], &sent["body"]), (&json!("PUT"), &json!("a=1&b=x+y")));

    let parts = format!(
        "fs::write_text(\"file.txt\", \"of a file\");
         let image = blob::from_text(\"of a blob\").with_content_type(\"image/png\");
         http::post(\"{echo}\", #{{ multipart: #{{ overwrite: true, image: image,
            more: #{{ path: \"file.txt\", type: \"text/x\" }} }} }}).json()"
    );
    let sent = bench.run(&parts).await.unwrap();
    let body = sent["body"].as_str().unwrap();
    assert!(sent["headers"]["content-length"].is_string(), "{sent}");
    for wanted in [
        "name=\"overwrite\"\r\n\r\ntrue\r\n",
        "name=\"image\"; filename=\"image\"\r\ncontent-type: image/png\r\n\r\nof a blob\r\n",
        "name=\"more\"; filename=\"file.txt\"\r\ncontent-type: text/x\r\n\r\nof a file\r\n",
    ] {
        assert!(body.replace("Content-Type", "content-type").contains(wanted), "{wanted} is not in {body}");
    }
    let blob = format!("http::patch(\"{echo}\", #{{ body: blob::from_text(\"bytes\") }}).json()");
    let sent = bench.run(&blob).await.unwrap();
    assert_eq!((&sent["body"], &sent["headers"]["content-length"]), (&json!("bytes"), &json!("5")));
    let asked = format!(
        "[http::delete(\"{echo}\").json().method, http::head(\"{echo}\").status,
        http::request(#{{ method: \"options\", url: \"{echo}\" }}).json().method]"
    );
    assert_eq!(bench.run(&asked).await.unwrap(), json!(["DELETE", 200, "OPTIONS"]));

    for (call, message) in [
        (format!("let options = #{{ qery: 1 }}; http::get(\"{echo}\", options)"), "did you mean query?"),
        (format!("http::post(\"{echo}\", #{{ json: 1, body: \"x\" }})"), "one body"),
        (format!("http::post(\"{echo}\", #{{ json: [secret(\"{SECRET_NAME}\")] }})"), "use it in headers"),
        (format!("http::get(\"{echo}\", #{{ timeout: \"soon\" }})"), "invalid duration"),
        ("http::get(\"ftp://x/\")".to_owned(), "no address"),
        (format!("http::get(\"{echo}\", #{{ headers: #{{ \"a b\": 1 }} }})"), "no valid name"),
    ] {
        let failure = bench.run(&call).await.unwrap_err();
        assert!(failure.message.contains(message), "{call}: {failure}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_says_no_decides_about_the_job_and_names_no_secret() {
    let (web, bench) = (Web::start().await, bench());
    for (status, class) in [
        (400, FailureClass::Fatal),
        (401, FailureClass::Account),
        (402, FailureClass::Account),
        (403, FailureClass::Account),
        (404, FailureClass::Fatal),
        (409, FailureClass::Retryable),
        (422, FailureClass::Fatal),
        (500, FailureClass::Retryable),
        (503, FailureClass::Retryable),
    ] {
        let url = web.url(&format!("/status/{status}?key=of-the-query"));
        let options =
            format!("#{{ retry: 0, headers: #{{ authorization: \"Bearer \" + secret(\"{SECRET_NAME}\") }} }}");
        let failure = bench.run(&format!("http::get(\"{url}\", {options})")).await.unwrap_err();
        assert_eq!(failure.class, class, "{status}: {failure}");
        assert!(failure.message.contains(&format!("/status/{status} answered {status}")), "{failure}");
        assert!(failure.message.contains("no [redacted]"), "{failure}");
        assert!(!failure.message.contains(SECRET) && !failure.message.contains("of-the-query"), "{failure}");
        let caught = format!(
            "try {{ http::get(\"{url}\", {options}) }} catch (e) {{
            return [e.kind, e.status, json::parse(e.body), e.retry_after, `${{e}}` == e.message]; }}"
        );
        let caught = bench.run(&caught).await.unwrap();
        assert_eq!(caught, json!(["status", status, { "error": "no [redacted]" }, null, true]));
        let allowed = format!("let r = http::get(\"{url}\", #{{ retry: 0, allow: [{status}] }}); [r.ok, r.status]");
        assert_eq!(bench.run(&allowed).await.unwrap(), json!([false, status]));
    }
    // Caught and thrown again it is still what it was.
    let rethrown = format!("try {{ http::get(\"{}\") }} catch (e) {{ throw e; }}", web.url("/status/422"));
    assert_eq!(bench.run(&rethrown).await.unwrap_err().class, FailureClass::Fatal);
    let unreachable = "http::get(\"http://127.0.0.1:9/x?key=of-the-query\", #{ retry: #{ max: 1, initial: \"1ms\" } })";
    let failure = bench.run(unreachable).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Retryable);
    assert!(failure.message.contains("http://127.0.0.1:9/x") && failure.message.contains("tried 2 times"), "{failure}");
    assert!(!failure.message.contains("of-the-query"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again_and_no_longer_than_the_call_lasts() {
    let (web, bench) = (Web::start().await, bench());
    let got = bench.run(&format!("http::get(\"{}\").text()", web.url("/flaky/a/2"))).await.unwrap();
    assert_eq!(got, json!("3"));
    bench.run(&format!("http::post(\"{}\", #{{ body: \"x\" }})", web.url("/flaky/b/1"))).await.unwrap_err();
    assert_eq!(web.seen.times("b"), 1, "a POST is not repeated");
    let bold =
        format!("http::post(\"{}\", #{{ body: \"x\", retry: #{{ unsafe: true }} }}).text()", web.url("/flaky/c/1"));
    assert_eq!(bench.run(&bold).await.unwrap(), json!("2"));
    bench.run(&format!("http::get(\"{}\", #{{ retry: false }})", web.url("/flaky/d/1"))).await.unwrap_err();
    assert_eq!(web.seen.times("d"), 1);
    let listed = format!("http::get(\"{}\", #{{ retry: #{{ on: [\"connect\"] }} }})", web.url("/flaky/e/1"));
    bench.run(&listed).await.unwrap_err();
    assert_eq!(web.seen.times("e"), 1);

    // It asks for thirty seconds and the call has ten: the job waits, not the call.
    let connector = bench.connector(&format!("fn run(job, ctx) {{ http::get(\"{}\") }}", web.url("/limited")));
    let begun = Instant::now();
    let failure = connector.run(job(), run_context(Duration::from_secs(10))).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(failure.class, FailureClass::RateLimited);
    assert_eq!(failure.retry_after.unwrap().get(), Duration::from_secs(30));
    assert_eq!(web.seen.times("/limited"), 1);

    let impatient = format!(
        "http::get(\"{}\", #{{ timeout: \"50ms\", retry: #{{ max: 1, initial: \"1ms\" }} }})",
        web.url("/slow")
    );
    let failure = bench.run(&impatient).await.unwrap_err();
    assert!(failure.message.contains("no answer within 50ms (tried 2 times)"), "{failure}");
    assert_eq!((failure.class, web.seen.times("/slow")), (FailureClass::Retryable, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_limited_and_keep_credentials_at_home() {
    let (web, other, bench) = (Web::start().await, Web::start().await, bench());
    let posted = format!("http::post(\"{}\", #{{ json: 1, follow: 4 }}).json()", web.url("/redirect/3"));
    let sent = bench.run(&posted).await.unwrap();
    assert_eq!(
        (&sent["method"], &sent["body"], &sent["headers"]["content-type"]),
        (&json!("GET"), &json!(""), &Value::Null)
    );
    let failure = bench.run(&format!("http::get(\"{}\", #{{ follow: 3 }})", web.url("/redirect/3"))).await.unwrap_err();
    assert!(failure.message.contains("redirected more than 3 times"), "{failure}");
    let stays = format!(
        "let r = http::get(\"{}\", #{{ follow: 0 }}); [r.status, r.header(\"location\")]",
        web.url("/redirect/1")
    );
    assert_eq!(bench.run(&stays).await.unwrap(), json!([303, "/redirect/0"]));

    let credentials =
        format!("headers: #{{ \"x-key\": secret(\"{SECRET_NAME}\"), \"x-plain\": \"p\" }}, auth: #{{ bearer: \"t\" }}");
    for (target, kept) in [(web.url("/echo"), true), (other.url("/echo"), false)] {
        let body =
            format!("http::post(\"{}?to={target}\", #{{ body: \"kept\", {credentials} }}).json()", web.url("/away"));
        let sent = bench.run(&body).await.unwrap();
        assert_eq!((&sent["method"], &sent["body"]), (&json!("POST"), &json!("kept")), "307 repeats the request");
        assert_eq!(sent["headers"]["x-plain"], "p");
        assert_eq!(sent["headers"]["x-key"].is_string(), kept, "{sent}");
        assert_eq!(sent["headers"]["authorization"].is_string(), kept, "{sent}");
    }
    let failure = bench.run(&format!("http::get(\"{}?to=file:///etc/passwd\")", web.url("/away"))).await.unwrap_err();
    assert!(failure.message.contains("no address of HTTP"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_limited_and_large_ones_go_to_disk() {
    let (web, bench) = (Web::start().await, bench());
    let size = 70 << 20;
    let url = web.url(&format!("/huge/{size}"));
    for reading in ["text()", "json()", "blob()"] {
        let failure = bench.run(&format!("http::get(\"{url}\").{reading}")).await.unwrap_err();
        assert!(failure.message.contains("the body has more than 64.0 MiB"), "{failure}");
        assert_eq!(failure.class, FailureClass::Fatal);
    }
    let saved = format!(
        "let n = http::get(\"{url}\").save(\"big\"); let b = blob::open(\"big\");
         let whole = http::get(\"{url}\", #{{ max_body: \"100MiB\" }}).blob();
         [n, fs::size(\"big\"), b.len, whole.len, b.sha256() == whole.sha256(), fs::list(\".\")]"
    );
    assert_eq!(bench.run(&saved).await.unwrap(), json!([size, size, size, size, true, ["big"]]));
    for (options, message) in [
        ("#{ max: \"1MiB\" }".to_owned(), "more than 1.0 MiB"),
        (format!("#{{ sha256: \"{}\" }}", "00".repeat(32)), "SHA-256"),
    ] {
        let body = format!(
            "try {{ http::get(\"{url}\").save(\"x\", {options}) }} catch (e) {{ return [e.message, fs::list(\".\")]; }}"
        );
        let caught = bench.run(&body).await.unwrap();
        assert!(caught[0].as_str().unwrap().contains(message), "{caught}");
        assert_eq!(caught[1], json!([]), "no part is left");
    }
    let sum = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    let checked = format!("http::get(\"{}\").save(\"x\", #{{ sha256: \"{sum}\" }})", web.url("/huge/1"));
    assert_eq!(bench.run(&checked).await.unwrap(), json!(1));

    let base64 =
        format!("let r = http::post(\"{}\", #{{ json: \"aGVsbG8=\" }}); r.blob_at(\"/body\")", web.url("/echo"));
    assert!(bench.run(&base64).await.unwrap_err().message.contains("base64"));
    let base64 =
        format!("let r = http::post(\"{}\", #{{ body: \"aGVsbG8=\" }}); r.blob_at(\"/body\").text()", web.url("/echo"));
    assert_eq!(bench.run(&base64).await.unwrap(), json!("hello"));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_blobs_and_files_go_up_as_parts_of_a_form() {
    let (web, bench) = (Web::start().await, bench());
    let size = 20 << 20;
    let body = format!(
        "let big = http::get(\"{}\").blob(); big.save(\"in.bin\");
         http::post(\"{}\", #{{ multipart: [
            #{{ name: \"prompt\", text: \"a cat\" }},
            #{{ name: \"image\", blob: big, filename: \"cat.png\", type: \"image/png\" }},
            #{{ name: \"image\", path: \"in.bin\" }},
         ] }}).json()",
        web.url(&format!("/huge/{size}")),
        web.url("/upload"),
    );
    let image = "content-disposition: form-data; name=\"image\"; filename=";
    let expected = json!([
        ["content-disposition: form-data; name=\"prompt\"", 5],
        [format!("{image}\"cat.png\", content-type: image/png"), size],
        [format!("{image}\"in.bin\", content-type: application/octet-stream"), size],
    ]);
    assert_eq!(bench.run(&body).await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_sent_and_never_shown() {
    let (web, bench) = (Web::start().await, bench());
    let url = web.url("/status/401");
    for options in [
        format!("headers: #{{ authorization: \"Bearer \" + secret(\"{SECRET_NAME}\") }}"),
        format!("auth: #{{ bearer: secret(\"{SECRET_NAME}\") }}"),
        format!("auth: #{{ user: \"u\", password: secret(\"{SECRET_NAME}\") }}"),
    ] {
        let body = format!(
            "try {{ http::get(\"{url}\", #{{ {options} }}) }}
             catch (e) {{ return [e.message, e.body, `${{e}}`, [e].to_debug(), json::stringify([secret(\"{SECRET_NAME}\")])]; }}"
        );
        let shown = bench.run(&body).await.unwrap().to_string();
        let failure = bench.run(&format!("http::get(\"{url}\", #{{ {options} }})")).await.unwrap_err();
        let shown = format!("{shown} {} {failure:?}", failure.message);
        assert!(shown.contains("[redacted]") && !shown.contains(SECRET), "{options}: {shown}");
        let encoded = "dTp"; // How `u:` begins in base64.
        assert!(!shown.contains(encoded), "{options}: {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_carries_a_secret_only_when_the_script_says_so() {
    let (web, bench) = (Web::start().await, bench());
    let (echo, refusing) = (web.url("/echo"), web.url("/status/401"));
    let key = format!("secret(\"{SECRET_NAME}\")");
    let form = reqwest::Url::parse_with_params(&echo, [("key", SECRET)]).unwrap();
    for (kind, sent) in [
        (format!("json: #{{ client: #{{ key: {key} }} }}"), format!("{{\"client\":{{\"key\":\"{SECRET}\"}}}}")),
        (format!("form: #{{ key: {key} }}"), form.query().unwrap().to_owned()),
    ] {
        let failure = bench.run(&format!("http::post(\"{echo}\", #{{ {kind} }})")).await.unwrap_err();
        assert!(failure.message.contains("secrets: true"), "{failure}");
        // The server tells what came: that is the answer's, not ours to hide.
        let length = format!("http::post(\"{echo}\", #{{ {kind}, secrets: true }}).json().body.len()");
        assert_eq!(bench.run(&length).await.unwrap(), json!(sent.len()));
        let body = format!(
            "try {{ http::post(\"{refusing}\", #{{ {kind}, secrets: true }}) }}
             catch (e) {{ return [e.message, e.body, `${{e}}`, e.header(\"x-echo\")]; }}"
        );
        let shown = bench.run(&body).await.unwrap().to_string();
        assert!(shown.contains("401") && !shown.contains(SECRET), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_or_falls_silent_is_an_error_of_its_kind() {
    let bench = bench();
    let (address, heads) = raw_server("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this").await;
    let caught = |reading: &str| {
        format!(
            "fs::mkdir(\".\"); try {{ http::get(\"http://{address}/\", #{{ retry: 0 }}).{reading} }} catch (e) {{ return [e.kind, fs::list(\".\")]; }}"
        )
    };
    for reading in ["text()", "blob()", "save(\"x\")", "each_line(|l| ())", "each_event(|e| ())"] {
        assert_eq!(bench.run(&caught(reading)).await.unwrap(), json!(["connect", []]), "{reading}");
    }
    assert_eq!(heads.lock().unwrap().len(), 5);
    let (address, heads) = raw_server("").await;
    let kind = |method: &str| {
        format!(
            "try {{ http::{method}(\"http://{address}/\", #{{ retry: #{{ max: 1, initial: 0 }} }}) }} catch (e) {{ return e.kind; }}"
        )
    };
    assert_eq!(bench.run(&kind("get")).await.unwrap(), json!("connect"));
    assert_eq!(heads.lock().unwrap().len(), 2, "a GET may be repeated");
    assert_eq!(bench.run(&kind("post")).await.unwrap(), json!("connect"));
    assert_eq!(heads.lock().unwrap().len(), 3, "a POST that was sent may not");
    let web = Web::start().await;
    for reading in ["text()", "each_event(|e| ())", "save(\"x\")"] {
        let body = format!(
            "try {{ http::get(\"{}\", #{{ idle: \"100ms\" }}).{reading} }} catch (e) {{ return e.kind; }}",
            web.url("/stuck")
        );
        assert_eq!(bench.run(&body).await.unwrap(), json!("timeout"), "{reading}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_handed_out_while_they_come() {
    let (web, bench) = (Web::start().await, bench());
    let all = format!(
        "let seen = []; let r = http::get(\"{}\");
         let whole = r.each_event(|e| {{ seen.push([e.event, e.id, json::parse(e.data).n]); }});
         [seen, whole, r.last_event_id]",
        web.url("/sse")
    );
    let event = |n: i32| json!(["tick", n.to_string(), n]);
    assert_eq!(bench.run(&all).await.unwrap(), json!([[event(1), event(2), event(3)], true, "3"]));
    let resumed = format!(
        "let seen = []; let r = http::get(\"{}\", #{{ headers: #{{ \"last-event-id\": 1 }} }});
         let whole = r.each_event(|e| {{ seen.push(e.id); false }}); [seen, whole, r.last_event_id]",
        web.url("/sse")
    );
    assert_eq!(bench.run(&resumed).await.unwrap(), json!([["2"], false, "2"]));
    let lines = format!(
        "let a = []; http::get(\"{0}\").each_line(|l| {{ a.push(l); }});
         let b = []; http::get(\"{0}\").each_json(|v| {{ b.push(v.n); v.n < 2 }}); [a, b]",
        web.url("/ndjson")
    );
    assert_eq!(bench.run(&lines).await.unwrap(), json!([["{\"n\":1}", "{\"n\":2}", "{\"n\":3}"], [1, 2]]));
    // The first event is there although the stream never ends.
    let first = format!("let x = (); http::get(\"{}\").each_event(|e| {{ x = e.data; false }}); x", web.url("/stuck"));
    assert_eq!(bench.run(&first).await.unwrap(), json!("one"));
    let thrown = format!("http::get(\"{}\").each_event(|e| {{ throw fatal(\"enough\") }})", web.url("/sse"));
    let Failure { class, message, .. } = bench.run(&thrown).await.unwrap_err();
    assert_eq!((class, message.as_str()), (FailureClass::Fatal, "enough"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_runs_while_the_script_does_something_else() {
    let (web, bench) = (Web::start().await, bench());
    let body = format!(
        "let h = http::start(#{{ url: \"{}\" }}); let early = [h.done(), h.wait(\"50ms\")];
         let asked = http::get(\"{}\").status; h.abort();
         let message = (); try {{ h.wait() }} catch (e) {{ message = e; }}
         let ok = http::start(#{{ url: \"{1}\", method: \"POST\", json: 1 }}); let r = ok.wait();
         let bad = http::start(#{{ url: \"{2}\" }});
         let status = (); try {{ bad.wait(5) }} catch (e) {{ status = e.status; }}
         [early, asked, message, r.json().body, ok.done(), status]",
        web.url("/slow"),
        web.url("/echo"),
        web.url("/status/404"),
    );
    let answer = bench.run(&body).await.unwrap();
    assert_eq!(answer, json!([[false, null], 200, "the request was aborted", "1", true, 404]));
    wait_until("the aborted request to be gone", Duration::from_secs(10), || {
        (web.seen.times("/slow") == 1 && web.seen.open.load(Ordering::SeqCst) == 0).then_some(())
    });
    // A handle that a script leaves behind ends with it.
    bench.run(&format!("http::start(#{{ url: \"{}\" }}).wait(\"100ms\")", web.url("/slow"))).await.unwrap();
    wait_until("the forgotten request to be gone", Duration::from_secs(10), || {
        (web.seen.times("/slow") == 2 && web.seen.open.load(Ordering::SeqCst) == 0).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_and_certificates_are_used_as_told() {
    let (web, dir) = (Web::start().await, tempfile::tempdir().unwrap());
    let (secure, ca) = tls_in_front(web.address, dir.path()).await;
    // The bench's reaper waits for every child of the process from now on.
    let bench = bench();
    let (proxy, heads) = raw_server("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nproxy").await;
    let via = format!("http::get(\"http://far.invalid/x\", #{{ proxy: \"http://me:pass@{proxy}\" }}).text()");
    assert_eq!(bench.run(&via).await.unwrap(), json!("proxy"));
    let head = heads.lock().unwrap()[0].to_lowercase();
    assert!(
        head.starts_with("get http://far.invalid/x http/1.1") && head.contains("proxy-authorization: basic"),
        "{head}"
    );

    let url = format!("https://localhost:{}/echo", secure.port());
    let trusted = format!("http::get(\"{url}\", #{{ ca: \"{}\" }}).status", ca.display());
    assert_eq!(bench.run(&trusted).await.unwrap(), json!(200));
    let failure = bench.run(&format!("http::get(\"{url}\", #{{ retry: 0 }})")).await.unwrap_err();
    assert!(failure.message.to_lowercase().contains("certificate"), "{failure}");
    let missing = bench.run(&format!("http::get(\"{url}\", #{{ ca: \"/nowhere.pem\" }})")).await.unwrap_err();
    assert!(missing.message.contains("/nowhere.pem"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_and_deadline_end_whatever_blocks() {
    let web = Web::start().await;
    let (slow, stuck) = (web.url("/slow"), web.url("/stuck"));
    for body in [
        format!("http::get(\"{slow}\")"),
        format!("loop {{ try {{ http::get(\"{slow}\") }} catch {{ }} }}"),
        format!("http::get(\"{stuck}\").text()"),
        format!("http::get(\"{stuck}\").save(\"x\")"),
        format!("http::get(\"{stuck}\").each_event(|e| ())"),
        format!("http::get(\"{stuck}\").each_line(|l| ())"),
        format!("http::start(#{{ url: \"{slow}\" }}).wait()"),
        format!("http::start(#{{ url: \"{slow}\" }}).wait(\"1h\")"),
        "http::get(\"http://127.0.0.1:9/\", #{ retry: #{ max: 9, initial: \"60s\", longest: \"60s\" } })".to_owned(),
    ] {
        let bench = bench();
        let connector = bench.running(&body);
        let took = time_to_cancel(&connector, &body).await;
        // 50 ms is the promise; the rest is for a machine that does other things too.
        assert!(took < Duration::from_secs(1), "{body}: {took:?}");
        let failure = connector.run(job(), run_context(Duration::from_millis(100))).await.unwrap_err();
        // A wait that the call has no time for is not begun: the error of the last try is told instead.
        let retried = body.contains("127.0.0.1:9");
        assert_eq!(
            failure.class,
            if retried { FailureClass::Retryable } else { FailureClass::Timeout },
            "{body}: {failure}"
        );
    }
    wait_until("the servers to be left alone", Duration::from_secs(10), || {
        (web.seen.open.load(Ordering::SeqCst) == 0).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_scripts_ask_at_once() {
    let (web, bench) = (Web::start().await, bench());
    let connector =
        bench.connector(&format!("fn run(job, ctx) {{ http::get(\"{}\").json().method }}", web.url("/echo")));
    let begun = Instant::now();
    let runs: Vec<_> = (0..500)
        .map(|_| {
            let connector = Arc::clone(&connector);
            tokio::spawn(async move { connector.run(job(), run_context(Duration::from_secs(60))).await })
        })
        .collect();
    for run in runs {
        assert_eq!(run.await.unwrap().unwrap(), json!("GET"));
    }
    println!("500 requests from 500 scripts took {:?}", begun.elapsed());
}
