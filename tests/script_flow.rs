//! `parallel`, `retry`, `poll`, `events::`, `metrics::` and the log lines of scripts.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use machinist::queue::{Failure, FailureClass};
use machinist::telemetry::script_metrics;
use serde_json::{Value, json};

use support::script::{Recorded, bench, job, run_context};
use support::wait_until;

async fn run(body: &str) -> Result<Value, Failure> {
    bench().run(body).await
}

async fn why(body: &str) -> String {
    run(body).await.expect_err(body).message
}

#[tokio::test(flavor = "multi_thread")]
async fn several_things_at_once_give_their_results_in_order() {
    let begun = Instant::now();
    let body = "let n = 7; parallel([|| { sleep(0.5); 1 }, || { sleep(0.3); 2 }, || { sleep(0.4); n }])";
    assert_eq!(run(body).await.unwrap(), json!([1, 2, 7]));
    assert!(
        begun.elapsed() < Duration::from_millis(1_100),
        "one after the other it takes 1.2 s: {:?}",
        begun.elapsed()
    );
    assert_eq!(run("parallel([])").await.unwrap(), json!([]));
    // More than may run at once.
    let body = "let all = []; for n in 0..20 { all.push(|| n * 2); } parallel(all, #{ limit: 3 }).len()";
    assert_eq!(run(body).await.unwrap(), json!(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_failure_stops_the_others() {
    let begun = Instant::now();
    let failure = run("parallel([|| sleep(50), || { sleep(0.1); throw fatal(\"no\") }])").await.unwrap_err();
    assert_eq!((failure.class, failure.message.as_str()), (FailureClass::Fatal, "no"));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let body = "parallel([|| 1, || throw \"no\", || [].x], #{ settle: true })";
    let settled = run(body).await.unwrap();
    assert_eq!(settled[0], json!({ "ok": true, "value": 1 }));
    assert_eq!(settled[1], json!({ "ok": false, "error": "no" }));
    assert_eq!(settled[2]["ok"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_at_once_ends_with_its_call() {
    let bench = bench();
    for body in [
        "parallel([|| sleep(60), || loop { }])",
        "parallel([|| loop { try { sleep(60) } catch { } }], #{ settle: true })",
        "retry(#{ max: 100, initial: \"0s\" }, || loop { })",
        "retry(#{ max: 1000, initial: \"20ms\", jitter: 0.0 }, || throw \"again\")",
        "poll(|| ())",
    ] {
        let (connector, begun) = (bench.connector(&format!("fn run(job, ctx) {{ {body} }}")), Instant::now());
        let failure = connector.run(job(), run_context(Duration::from_millis(400))).await.expect_err(body);
        let expected = if body.contains("again") { FailureClass::Retryable } else { FailureClass::Timeout };
        assert_eq!(failure.class, expected, "{body}: {}", failure.message);
        assert!(begun.elapsed() < Duration::from_secs(5), "{body}: {:?}", begun.elapsed());
        let context = run_context(Duration::from_secs(60));
        let (cancel, connector) =
            (context.cancel.clone(), bench.connector("fn run(job, ctx) { parallel([|| sleep(60)]) }"));
        let running = tokio::spawn(async move { connector.run(job(), context).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        cancel.cancel();
        assert_eq!(running.await.unwrap().unwrap_err().class, FailureClass::Cancelled);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_with_functions_are_named() {
    for (body, expected) in [
        ("parallel([1])", "element 0 must be a function such as || work(), found int"),
        ("parallel([|| 1], #{ limit: 0 })", "parallel: limit: lies between 1 and 64"),
        ("let options = #{ limt: 1 }; parallel([|| 1], options)", "did you mean limit?"),
        ("retry(#{ jitter: 2 }, || 1)", "jitter: must be a number from 0.0 to 1.0"),
        ("poll(#{ every: \"soon\" }, || 1)", "poll: every:"),
        ("metrics::count(\"Images\")", "\"Images\" cannot name a metric"),
        ("metrics::count(\"a\", -1)", "a counter only goes up"),
        ("metrics::gauge(\"a\", \"b\")", "the value must be a number, found string"),
        ("metrics::count(\"a\", 1, #{ x: [] })", "label x must be a text or a number"),
        (
            "metrics::count(\"flow_x\"); metrics::gauge(\"flow_x\", 1)",
            "machinist_script_flow_x is a counter, not a gauge",
        ),
        ("events::emit(\"Loaded\", \"x\")", "cannot name an event"),
        ("events::emit(\"loaded\", \"x\", #{ level: \"bad\" })", "level: is info, warn or error"),
    ] {
        let said = why(body).await;
        assert!(said.contains(expected), "{body}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tried_again_is_what_may_be_different_another_time() {
    let times = |body: &str| {
        let body = format!(
            "let n = #{{ n: 0 }}; let out = (); try {{ out = retry(#{{ initial: \"1ms\" }}, || {{ n.n += 1; {body} }}) }}
             catch (e) {{ out = `${{e}}` }} [n.n, out]"
        );
        async move { run(&body).await.unwrap() }
    };
    assert_eq!(times("if n.n < 3 { throw \"not yet\" } n.n").await, json!([3, 3]));
    assert_eq!(times("throw \"never\"").await, json!([3, "never"]));
    assert_eq!(times("throw retryable(\"busy\")").await, json!([3, "busy"]));
    assert_eq!(times("throw fatal(\"no\")").await, json!([1, "no"]));
    assert_eq!(times("throw account(\"no credit\")").await, json!([1, "no credit"]));
    // A mistake stays one.
    assert_eq!(times("nothing::at_all()").await[0], json!(1));
    assert_eq!(times("http::get(\"http://127.0.0.1:1/\", #{ retry: #{ max: 0 } })").await[0], json!(3));
    let listed = "let n = #{ n: 0 }; try { retry(#{ initial: \"1ms\", on: [\"timeout\"] }, || { n.n += 1;
        http::get(\"http://127.0.0.1:1/\", #{ retry: #{ max: 0 } }) }) } catch { } n.n";
    assert_eq!(run(listed).await.unwrap(), json!(1), "connect is not listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_ends_with_an_answer_or_its_time() {
    let body =
        "let n = #{ n: 0 }; poll(#{ every: \"5ms\" }, || { n.n += 1; if n.n > 3 { \"done\" } else { false } }) + n.n";
    assert_eq!(run(body).await.unwrap(), json!("done4"));
    let failure = run("poll(#{ every: \"5ms\", within: \"50ms\" }, || ())").await.unwrap_err();
    assert_eq!((failure.class, failure.message.as_str()), (FailureClass::Retryable, "nothing was there within 50ms"));
    assert_eq!(
        run("let kind = \"\"; try { poll(#{ within: \"1ms\" }, || ()) } catch (e) { kind = e.kind } kind")
            .await
            .unwrap(),
        json!("timeout")
    );
    assert!(why("poll(|| throw \"broken\")").await.contains("broken"));
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_tell_of_events_and_count() {
    let body = "events::emit(\"loaded\", \"sdxl is loaded\", #{ level: \"warn\", subject: \"w\", data: #{ gb: 7 } });
        let last = events::recent(1)[0]; [last.kind, last.level, last.subject, last.message, last.data.gb]";
    assert_eq!(run(body).await.unwrap(), json!(["script.loaded", "warn", "w", "sdxl is loaded", 7]));
    // However many it emits, there are a hundred and few more.
    let many = run("for i in 0..5000 { events::emit(\"x\", \"y\"); } events::recent(100000)[-1].seq").await.unwrap();
    assert!((100..400).contains(&many.as_i64().unwrap()), "{many}");
    run("metrics::count(\"flow_images_total\", 2, #{ model: \"a\" }); metrics::gauge(\"flow_loaded\", 1.5);")
        .await
        .unwrap();
    run("for i in 0..3000 { metrics::gauge(\"flow_many\", i, #{ i: i }); }").await.unwrap();
    let text = script_metrics::render();
    assert!(text.contains("machinist_script_flow_images_total{model=\"a\"} 2\n"), "{text}");
    assert!(text.contains("machinist_script_flow_loaded 1.5\n"), "{text}");
    assert!(text.matches("machinist_script_flow_many{").count() <= 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_knows_what_its_attempt_saved_and_parts_are_told() {
    let bench = bench();
    let connector = bench.connector(
        "fn run(job, ctx) { job.partial(#{ text: \"a\" }); job.save(#{ id: 7 }); sleep(60) }
         fn cancel(job, ctx) { fs::mkdir(ctx.work_dir); fs::write_text(`${ctx.work_dir}/told`, `${job.saved.id}`); }",
    );
    let reported = Arc::new(Recorded::default());
    let mut context = run_context(Duration::from_secs(60));
    context.sink = Arc::clone(&reported) as _;
    let cancel = context.cancel.clone();
    let running = tokio::spawn(async move { connector.run(job(), context).await });
    wait_until("something saved", Duration::from_secs(10), || {
        (!reported.saved.lock().unwrap().is_empty()).then_some(())
    });
    cancel.cancel();
    assert_eq!(running.await.unwrap().unwrap_err().class, FailureClass::Cancelled);
    assert_eq!(std::fs::read_to_string(bench.dir.path().join("work/told")).unwrap(), "7");
    assert_eq!(*reported.partials.lock().unwrap(), [json!({ "text": "a" })]);
}
