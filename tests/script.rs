//! The script host against scripts that mean no good, and the messages that authors get.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use machinist::queue::{Failure, FailureClass};
use serde_json::json;

use support::script::{bench, job, run_context};

#[tokio::test(flavor = "multi_thread")]
async fn typical_mistakes_are_named_with_place_and_remedy() {
    let bench = bench();
    bench.write("lib/broken.rhai", "fn helper( {\n");
    bench.write("lib/a.rhai", "import \"lib/b\" as b;\n");
    bench.write("lib/b.rhai", "import \"lib/a\" as a;\n");
    let mut all = String::new();
    for script in [
        "fn services(m) {\n    [ #{ name: \"a\" \n}\n",
        "fn servces(m) { [] }\n",
        "fn services() { [] }\n",
        "fn services(m) {\n    [ web(m.prot) ]\n}\nfn web(port) { port }\n",
        "fn services(m) {\n    [ web(1, 2) ]\n}\nfn web(port) { port }\n",
        "fn services(m) {\n    [ wbe(1) ]\n}\nfn web(port) { port }\n",
        "fn services(m) {\n    [ port ]\n}\n",
        "fn services(m) {\n    #{ name: \"web\" }\n}\n",
        "fn services(m) {\n    throw \"no disk here\";\n}\n",
        "fn services(m) {\n    services(m)\n}\n",
        "fn services(m) {\n    process::run(#{ argv: [\"ls\"] })\n}\n",
        "import \"../secrets\" as s;\nfn services(m) { [] }\n",
        "import \"lib/broken\" as b;\nfn services(m) { [] }\n",
        "import \"lib/a\" as a;\nfn services(m) { [] }\n",
        "fn services(m) {\n    eval(\"1\")\n}\n",
    ] {
        all.push_str(&bench.mistake(script).await);
        all.push_str("\n\n");
    }
    insta::assert_snapshot!(all);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_grows_without_end_is_stopped() {
    let bench = bench();
    for script in [
        "fn services(m) { let s = \"x\"; loop { s += s; } }",
        "fn services(m) { let a = [1]; loop { a += a; } }",
        "fn services(m) { let a = #{}; let n = 0; loop { a[`k${n}`] = n; n += 1; } }",
    ] {
        let begun = Instant::now();
        let message = bench.mistake(script).await;
        assert!(
            message.contains("too large") || message.contains("too long") || message.contains("time limit"),
            "{message}"
        );
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_and_deadline_end_any_script_soon_and_cannot_be_caught() {
    let bench = bench();
    for body in [
        "sleep(600)",
        "loop { }",
        "loop { try { sleep(600) } catch { } }",
        "process::run(#{ argv: [\"sleep\", \"600\"] })",
    ] {
        let connector = bench.connector(&format!("fn run(job, ctx) {{ {body} }}"));
        let context = run_context(Duration::from_secs(60));
        let cancel = context.cancel.clone();
        let run = tokio::spawn(async move { connector.run(job(), context).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let begun = Instant::now();
        cancel.cancel();
        let failure = run.await.unwrap().unwrap_err();
        assert_eq!(failure.class, FailureClass::Cancelled, "{body}: {failure}");
        // 50 ms is the promise; the rest is for a machine that does other things too.
        assert!(begun.elapsed() < Duration::from_millis(500), "{body}: {:?}", begun.elapsed());

        let connector = bench.connector(&format!("fn run(job, ctx) {{ {body} }}"));
        let failure = connector.run(job(), run_context(Duration::from_millis(100))).await.unwrap_err();
        assert_eq!(failure.class, FailureClass::Timeout, "{body}: {failure}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_blocked_scripts_are_no_trouble() {
    let bench = bench();
    let connector = bench.connector("fn run(job, ctx) { sleep(0.5); job.attempt }");
    let runs: Vec<_> = (0..1000)
        .map(|_| {
            let connector = Arc::clone(&connector);
            tokio::spawn(async move { connector.run(job(), run_context(Duration::from_secs(60))).await })
        })
        .collect();
    for run in runs {
        assert_eq!(run.await.unwrap().unwrap(), json!(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_thrown_decides() {
    let bench = bench();
    for (body, class, message) in [
        ("throw fatal(\"no such model\")", FailureClass::Fatal, "no such model"),
        ("throw retryable(\"busy\")", FailureClass::Retryable, "busy"),
        ("throw retry_after(\"limit\", \"30s\")", FailureClass::Retryable, "limit"),
        ("throw wrong_machine(\"no gpu\")", FailureClass::WrongMachine, "no gpu"),
        ("throw account(\"no credit\")", FailureClass::Account, "no credit"),
        ("throw \"plain\"", FailureClass::Retryable, "plain (/"),
        ("let x = #{}; x.y.z", FailureClass::Retryable, "no property y"),
        ("fs::read_text(\"../../etc/passwd\")", FailureClass::Retryable, "outside"),
        ("fs::write_text(\"/tmp/elsewhere\", \"x\")", FailureClass::Retryable, "outside"),
        ("process::run(#{ argv: [\"no-such-program\"] })", FailureClass::Retryable, "is not there"),
        ("let options = #{ arg: [] }; process::run(options)", FailureClass::Retryable, "arg"),
    ] {
        let connector = bench.connector(&format!("fn run(job, ctx) {{ {body} }}"));
        let Failure { class: found, message: said, .. } =
            connector.run(job(), run_context(Duration::from_secs(10))).await.unwrap_err();
        let said = said.replace(&bench.dir.path().display().to_string(), "/");
        assert_eq!(found, class, "{body}: {said}");
        assert!(said.contains(message), "{body}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_blobs_never_become_data() {
    let bench = bench();
    let run = async |body: &str| {
        let connector = bench.connector(&format!("fn run(job, ctx) {{ {body} }}"));
        connector.run(job(), run_context(Duration::from_secs(10))).await
    };
    let missing = run("secret(\"NO_SUCH_SECRET\")").await.unwrap_err().message;
    assert!(missing.contains("NO_SUCH_SECRET_FILE"), "{missing}");
    // Cargo tells tests where the crate is.
    let name = "CARGO_MANIFEST_DIR";
    let value = env!("CARGO_MANIFEST_DIR");
    let shown = run(&format!("let s = secret(\"{name}\"); #{{ s: s, text: `${{s}}`, json: json::stringify([s]), has: has_secret(\"{name}\") }}")).await;
    let shown = shown.unwrap();
    assert_eq!(shown, json!({ "s": "[redacted]", "text": "[redacted]", "json": "[\"[redacted]\"]", "has": true }));
    let env =
        format!("process::run(#{{ argv: [\"sh\", \"-c\", \"echo $X\"], env: #{{ X: secret(\"{name}\") }} }}).stdout");
    assert_eq!(run(&env).await.unwrap(), json!(format!("{value}\n")));

    let refused = run("[blob::from_text(\"x\")]").await.unwrap_err();
    assert_eq!(refused.class, FailureClass::Fatal);
    assert!(refused.message.contains("blob.save(path) or upload it"), "{}", refused.message);
    let body = "let blob = blob::from_text(\"hello\"); blob.save(\"a/../x\")";
    assert!(run(body).await.unwrap_err().message.contains("outside"));
    let body = "let blob = blob::from_text(\"hello\"); blob.save(\"x\"); let again = blob::open(\"x\"); fs::remove(\"x\");
        [blob.len, blob.sha256() == crypto::sha256(\"hello\"), again.slice(1, 3).text(), again.base64(), blob.content_type,
         blob::from_base64(\"data:image/png;base64,aGVsbG8=\").content_type, `${blob}`]";
    assert_eq!(
        run(body).await.unwrap(),
        json!([5, true, "ell", "aGVsbG8=", "text/plain; charset=utf-8", "image/png", "Blob(5 bytes)"])
    );
}
