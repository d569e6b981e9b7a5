//! Scripts that would take the engine down: each ends with an error of its own, and the process goes on.

mod support;

use std::time::Duration;

use machinist::queue::{Failure, FailureClass};
use serde_json::{Value, json};

use support::script::{Bench, bench, job, run_context};

/// Functions for the attacks.
const LIBRARY: &str = r#"
fn nested(depth) { let a = []; for i in 0..depth { a = [a]; } a }
fn nested_maps(depth) { let a = #{}; for i in 0..depth { a = #{ a: a }; } a }
fn closures(depth) { let f = || 1; for i in 0..depth { let g = f; f = || g; } f }
fn deeper(n) { deeper(n + 1) + 1 }
fn text(length) { let s = "x"; while s.len() < length { s += s; } s }
fn hoard(levels) { let s = text(4000000); if levels > 0 { hoard(levels - 1) }; s.len() }
"#;

async fn run(bench: &Bench, body: &str, limit: Duration) -> Result<Value, Failure> {
    bench.connector(&format!("{LIBRARY}fn run(job, ctx) {{ {body} }}")).run(job(), run_context(limit)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_script_takes_the_engine_down() {
    let bench = bench();
    let no_data = "nested more than 100 deep";
    for (body, expected) in [
        // Sizes.
        ("let s = \"x\"; loop { s += s }", "too large: length of string"),
        ("let a = [1]; loop { a += a }", "too large: size of array"),
        ("let a = []; loop { a.push(text(500000)); }", "too large: length of string"),
        ("let s = \"x\"; s.pad(1000000000, 'x')", "too large: length of string"),
        ("let a = []; a.pad(1000000000, 1)", "too large: size of array"),
        ("blob(1000000000)", "too large: size of array"),
        ("hoard(60)", "take more than 256.0 MiB of memory"),
        ("try { hoard(60) } catch { 1 }", "take more than 256.0 MiB of memory"),
        ("let f = []; loop { let s = text(500000); f = [|| s, f]; }", "take more than 256.0 MiB of memory"),
        // Depth.
        ("deeper(0)", "functions call each other too deeply"),
        ("let n = nested(2000); n = 1; throw `walked ${n}`", "walked 1"),
        ("nested_maps(2000).to_string().len(); throw \"walked\"", "walked"),
        ("let a = nested(2000); let b = nested(2000); throw `walked ${a == b}`", "walked true"),
        ("let f = closures(100000); f = 1; throw \"walked\"", "walked"),
        ("throw nested(2000)", "[[[["),
        ("nested(2000)", no_data),
        ("nested_maps(2000)", no_data),
        ("closures(100000)", "no plain data"),
        ("json::stringify(nested(2000))", no_data),
        ("job.save(nested(2000))", no_data),
        ("let a = []; for i in 0..3 { a.push(text(400000)); } job.save(a)", "bytes as JSON, at most 1048576 are kept"),
        ("let s = \"\"; s.pad(50000, '['); json::parse(s)", "not valid JSON: recursion limit"),
    ] {
        let failure = run(&bench, body, Duration::from_secs(60)).await.expect_err(body);
        assert!(failure.message.contains(expected), "{body}: {}", failure.message);
        assert!(failure.message.len() < 10_000, "{body}: a message of {} bytes", failure.message.len());
    }
    // The engine's own threads have small stacks; what they are given is no danger to them.
    assert_eq!(run(&bench, "#{ a: [1] }", Duration::from_secs(60)).await.unwrap(), json!({ "a": [1] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_top_level_takes_the_engine_down() {
    let bench = bench();
    bench.write("lib/deep.rhai", "let a = []; for i in 0..500 { a = [a]; }\nexport const DEEP = a;\n");
    for (script, expected) in [
        (format!("{LIBRARY}const DEEP = closures(100000);\nfn services(m) {{ [] }}"), None),
        (format!("{LIBRARY}const TEXT = hoard(60);\nfn services(m) {{ [] }}"), Some("of memory")),
        (
            "import \"lib/deep\" as deep;\nfn services(m) { [] }".to_owned(),
            Some("DEEP stands for is nested too deeply"),
        ),
    ] {
        match (bench.services(&script).await, expected) {
            (Ok(services), None) => assert_eq!(services, [Value::Null; 0]),
            (Err(problems), Some(expected)) => assert!(problems.to_string().contains(expected), "{problems}"),
            (outcome, _) => panic!("{script}: {outcome:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_script_does_it_ends_in_time() {
    let bench = bench();
    for body in [
        "loop { }",
        "loop { try { loop { } } catch { } }",
        "while true { try { sleep(60) } catch { } }",
        "let a = []; a.pad(90000, 1); loop { a.sort(|x, y| y - x); }",
        "loop { text(500000).split(\"y\"); }",
        "process::run(#{ argv: [\"sleep\", \"60\"] })",
    ] {
        let begun = std::time::Instant::now();
        let failure = run(&bench, body, Duration::from_millis(300)).await.expect_err(body);
        assert_eq!(failure.class, FailureClass::Timeout, "{body}: {}", failure.message);
        assert!(begun.elapsed() < Duration::from_secs(10), "{body} took {:?}", begun.elapsed());
    }
}
