//! Mistakes that people make in machines and connectors, and what they are told: each message names the place and the
//! remedy. Whoever changes one reads it as somebody would who is called at night.

mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use support::script::{bench_in, job_with, run_context};

const NO_SERVICES: &str = "fn services(m) { [] }\n";

/// A machine's files by their names, in a directory of their own.
fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join("m").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

/// What `machinist check` says, and its exit code.
fn check(dir: &Path, arguments: &[&str]) -> (String, i32) {
    let output = Command::new(env!("CARGO_BIN_EXE_machinist"))
        .arg("check")
        .arg(dir.join("m"))
        .args(arguments)
        .env("MACHINIST_STATE_DIR", dir.join("state"))
        .env("MACHINIST_SCRIPTS_DIR", concat!(env!("CARGO_MANIFEST_DIR"), "/scripts"))
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let text = text.replace(&dir.display().to_string(), "").replace(concat!(env!("CARGO_MANIFEST_DIR"), "/"), "/");
    (text, output.status.code().unwrap())
}

/// What is said of each of the mistakes, one after the other.
fn told(mistakes: &[(&str, &[(&str, &str)])]) -> String {
    let mut all = String::new();
    for (what, files) in mistakes {
        let dir = machine(files);
        let (text, code) = check(dir.path(), &[]);
        let _ = writeln!(all, "## {what} (exit code {code})\n{text}");
    }
    all
}

#[test]
fn syntax() {
    let scripts = [
        ("a bracket that is not closed", "fn services(m) {\n    [ #{ name: \"a\" \n}\n"),
        (
            "a comma that is missing",
            "fn services(m) {\n    [\n        #{ name: \"a\", command: [\"true\"] }\n        #{ name: \"b\", command: [\"true\"] },\n    ]\n}\n",
        ),
        (
            "a comma that is missing in a map",
            "fn services(m) {\n    [ #{ name: \"a\"\n         command: [\"true\"] } ]\n}\n",
        ),
        ("a semicolon that is missing", "fn services(m) {\n    let port = 8000\n    []\n}\n"),
        ("a map without #", "fn services(m) {\n    [ { name: \"a\", command: [\"true\"] } ]\n}\n"),
        ("a text that does not end", "fn services(m) {\n    [ #{ name: \"a, command: [\"true\"] } ]\n}\n"),
        ("single quotes", "fn services(m) {\n    [ #{ name: 'web', command: [\"true\"] } ]\n}\n"),
        ("= instead of ==", "fn services(m) {\n    if m.cpus = 2 { [] } else { [] }\n}\n"),
        ("elif", "fn services(m) {\n    if m.cpus > 8.0 { [] } elif m.cpus > 4.0 { [] } else { [] }\n}\n"),
        ("and", "fn services(m) {\n    if m.cpus > 2.0 and m.memory_gb > 4.0 { return []; }\n    []\n}\n"),
        ("null", "fn services(m) {\n    let gpu = null;\n    [gpu]\n}\n"),
        ("None", "fn services(m) {\n    let gpu = None;\n    [gpu]\n}\n"),
        ("a word of another language", "def services(m) {\n    []\n}\n"),
        ("let that is missing", "fn services(m) {\n    port = 8000;\n    [port]\n}\n"),
        ("a constant that is changed", "fn services(m) {\n    const PORT = 8000;\n    PORT += 1;\n    [PORT]\n}\n"),
        (
            "a constant of the file",
            "const PORT = 8000;\nfn services(m) {\n    [ #{ name: \"a\", command: [\"true\"], ports: [PORT] } ]\n}\n",
        ),
        ("a brace that is missing above", "fn helper(x) {\n    if x { 1\n}\nfn services(m) {\n    []\n}\n"),
        (
            "a file that ends too early",
            "fn services(m) {\n    let list = [];\n    for n in 0..2 {\n        list.push(n);\n",
        ),
        ("the same key twice", "fn services(m) {\n    [ #{ name: \"a\", name: \"b\" } ]\n}\n"),
        ("a word of the language as a key", "fn services(m) {\n    [ #{ name: \"a\", default: 1 } ]\n}\n"),
        ("a word of the language as a name", "fn services(m) {\n    let until = 1;\n    [until]\n}\n"),
        ("eval", "fn services(m) {\n    eval(\"[]\")\n}\n"),
        ("an f-string", "fn services(m) {\n    let port = 1;\n    [ f\"port {port}\" ]\n}\n"),
        ("===", "fn services(m) {\n    if m.id === \"a\" { [] } else { [] }\n}\n"),
        ("a backslash", "fn services(m) {\n    [ #{ name: \"a\", command: [\"grep\", \"\\d+\"] } ]\n}\n"),
    ];
    let files: Vec<[(&str, &str); 1]> = scripts.iter().map(|(_, text)| [("machine.rhai", *text)]).collect();
    let mistakes: Vec<(&str, &[(&str, &str)])> =
        scripts.iter().zip(&files).map(|((what, _), files)| (*what, files.as_slice())).collect();
    insta::assert_snapshot!(told(&mistakes));
}

#[test]
fn names() {
    let all = told(&[
        (
            "several at once, in the script, an import and a connector",
            &[
                (
                    "machine.rhai",
                    "import \"lib/x\" as x;\nfn services(m) {\n    let list = [ web(prt), x::helper(1), x::helpr(1, 2) ];\n    fs::read_txt(\"a\");\n    []\n}\nfn web(port) { port }\n",
                ),
                ("lib/x.rhai", "fn helper(a, b) { a + c }\nfn other() { helper(1) }\n"),
                ("connectors/c.rhai", "fn run(job, ctx) { job.progres(0.5) }\n"),
            ],
        ),
        ("a required hook, misspelled", &[("machine.rhai", "fn servces(m) { [] }\n")]),
        ("an optional hook, misspelled", &[("machine.rhai", "fn services(m) { [] }\nfn on_evnt(m, event) { }\n")]),
        ("a hook with other arguments", &[("machine.rhai", "fn services() { [] }\nfn on_event(event) { }\n")]),
        (
            "a function that nobody calls, a variable that nobody reads",
            &[("machine.rhai", "fn services(m) {\n    let port = 1;\n    []\n}\nfn old_services(m, n) { [] }\n")],
        ),
        ("m that is not passed", &[("machine.rhai", "fn services(m) { list() }\nfn list() { [ m.id ] }\n")]),
        ("a namespace that is not imported", &[("machine.rhai", "fn services(m) { tools::list(m) }\n")]),
        (
            "an import that is not there",
            &[
                ("machine.rhai", "import \"lib/tols\" as tools;\nfn services(m) { tools::list(m) }\n"),
                ("lib/tools.rhai", "fn list(m) { [] }\n"),
            ],
        ),
        ("an import from outside", &[("machine.rhai", "import \"../secrets\" as s;\nfn services(m) { s::list() }\n")]),
        (
            "files that import each other",
            &[
                ("machine.rhai", "import \"lib/a\" as a;\nfn services(m) { a::list() }\n"),
                ("lib/a.rhai", "import \"lib/b\" as b;\nfn list() { b::list() }\n"),
                ("lib/b.rhai", "import \"lib/a\" as a;\nfn list() { a::list() }\n"),
            ],
        ),
        (
            "an import that does not parse",
            &[
                ("machine.rhai", "import \"lib/a\" as a;\nfn services(m) { a::list() }\n"),
                ("lib/a.rhai", "fn list( {\n"),
            ],
        ),
        (
            "an option of a primitive, misspelled",
            &[(
                "machine.rhai",
                "fn services(m) { [] }\nfn startup(m) {\n    process::run(#{\n        argv: [\"true\"],\n        tmeout: \"5s\",\n    });\n}\n",
            )],
        ),
    ]);
    insta::assert_snapshot!(all);
}

#[test]
fn specs() {
    let all = told(&[
        (
            "keys and values of services",
            &[(
                "machine.rhai",
                "fn services(m) {\n    [\n        #{ name: \"web\", comand: [\"sleep\", \"9\"], restart: \"allways\" },\n        #{ name: \"db\", command: [\"sleep\", \"9\"], ready: #{ htp: \"http://127.0.0.1/\" }, needs: [\"wbe\"] },\n    ]\n}\n",
            )],
        ),
        (
            "services that need each other",
            &[(
                "machine.rhai",
                "fn services(m) {\n    [\n        #{ name: \"a\", command: [\"sleep\", \"9\"], needs: [\"b\"] },\n        #{ name: \"b\", command: [\"sleep\", \"9\"], needs: [\"a\"] },\n    ]\n}\n",
            )],
        ),
        (
            "one port for two",
            &[(
                "machine.rhai",
                "fn services(m) {\n    [\n        #{ name: \"a\", command: [\"sleep\", \"9\"], ports: [8000] },\n        #{ name: \"b\", command: [\"sleep\", \"9\"], ports: [8000] },\n    ]\n}\n",
            )],
        ),
        (
            "a program that is not there",
            &[("machine.rhai", "fn services(m) {\n    [ #{ name: \"a\", command: [\"no-such-program\"] } ]\n}\n")],
        ),
        (
            "a function of a probe that is not there",
            &[(
                "machine.rhai",
                "fn services(m) {\n    [ #{ name: \"a\", command: [\"sleep\", \"9\"], ready: #{ script: \"is_redy\" } } ]\n}\nfn is_ready(m, service) { true }\n",
            )],
        ),
        (
            "a connector that is not there",
            &[(
                "machine.rhai",
                "fn services(m) { [] }\nfn workers(m) {\n    [ #{ name: \"w\", connector: \"comand\" } ]\n}\n",
            )],
        ),
        (
            "vars that a connector does not take",
            &[
                ("machine.toml", "[connectors.c.vars]\nprt = 1\nmode = \"slow\"\n"),
                (
                    "machine.rhai",
                    "fn services(m) { [] }\nfn workers(m) { [ #{ name: \"w\", connector: \"c\", vars: #{ poll: \"often\" } } ] }\n",
                ),
                (
                    "connectors/c.rhai",
                    "const CONFIG = #{\n    port: #{ type: \"int\", fallback: 8188 },\n    mode: #{ type: \"string\", one_of: [\"fast\", \"good\"], about: \"what matters more\" },\n    poll: #{ type: \"duration\", fallback: \"1s\" },\n    url: #{ type: \"string\", required: true, about: \"where the backend answers\" },\n};\nfn run(job, ctx) { ctx.vars.port }\n",
                ),
            ],
        ),
        (
            "a schema of vars that is wrong",
            &[
                ("machine.rhai", "fn services(m) { [] }\nfn workers(m) { [ #{ name: \"w\", connector: \"c\" } ] }\n"),
                ("connectors/c.rhai", "const CONFIG = #{ port: #{ type: \"number\" } };\nfn run(job, ctx) { 1 }\n"),
            ],
        ),
        (
            "settings of a connector that nobody uses",
            &[("machine.toml", "[connectors.c.vars]\nport = 1\n"), ("machine.rhai", NO_SERVICES)],
        ),
        ("something else than a list", &[("machine.rhai", "fn services(m) {\n    #{ name: \"web\" }\n}\n")]),
    ]);
    insta::assert_snapshot!(all);
}

#[test]
fn running_pure_hooks() {
    let bodies = [
        ("a var that is not set", "m.vars.models_dir"),
        ("a key that is not there", "let site = #{ port: 1 };\n    [site.prot]"),
        ("a number and a map", "[ 5 + #{ a: 1 } ]"),
        ("a text where a map should be", "[ \"web\" ]"),
        ("nothing in a sum", "[ 1 + nothing() ]"),
        ("a method of nothing", "[ nothing().len() ]"),
        ("a property of nothing", "[ nothing().name ]"),
        ("an index of nothing", "[ nothing()[0] ]"),
        ("an item that is not there", "let list = [1, 2];\n    [ list[5] ]"),
        ("a number as a condition", "if 1 { [] } else { [] }"),
        ("a loop over a number", "for n in 5 { }\n    []"),
        ("a division by zero", "let n = 0;\n    [ 1 / n ]"),
        ("text that is no number", "[ parse_int(\"eighty\") ]"),
        ("something thrown", "throw \"no disk here\";"),
        ("a map that is thrown", "throw #{ message: \"no disk here\", disk: \"/dev/sdb\" };"),
        ("a primitive that acts", "env::get(\"HOME\");\n    []"),
        ("an error in a closure", "[1, 2].map(|n| n.nam)"),
        ("an endless loop", "loop { }"),
        ("an endless recursion", "services(m)"),
    ];
    let mut all = String::new();
    for (what, body) in bodies {
        let script = format!("fn services(m) {{\n    {body}\n}}\nfn nothing() {{ }}\n");
        let dir = machine(&[("machine.rhai", &script)]);
        let (text, code) = check(dir.path(), &[]);
        // Only some of the bodies use it.
        let text = text.split("\n\n").filter(|part| !part.contains("nothing calls")).collect::<Vec<_>>().join("\n\n");
        let _ = writeln!(all, "## {what} (exit code {code})\n{text}");
    }
    insta::assert_snapshot!(all);
}

/// The failure of a job that the connector `script` runs.
async fn failure(script: &str) -> String {
    let dir = machine(&[("lib/x.rhai", "fn helper(name) {\n    env::get(name)\n}\n")]);
    let scripts_dir = dir.path().join("m/scripts");
    let bench = bench_in(dir, "m", scripts_dir);
    let job = job_with(&json!({ "payload": { "steps": 3 } }));
    let failure = bench.connector(script).run(job, run_context(Duration::from_secs(20))).await.unwrap_err();
    failure.message.replace(&bench.dir.path().display().to_string(), "")
}

#[tokio::test(flavor = "multi_thread")]
async fn running_connectors() {
    let mut all = String::new();
    for (what, script) in [
        ("a payload without a key", "fn run(job, ctx) {\n    job.payload.prompt\n}\n"),
        ("an int for a float", "fn run(job, ctx) {\n    job.progress(1);\n}\n"),
        ("a var that is not set", "fn run(job, ctx) {\n    ctx.vars.port\n}\n"),
        ("an environment variable that is not set", "fn run(job, ctx) {\n    env::get(\"NO_SUCH_KEY\")\n}\n"),
        ("the same in an import", "import \"lib/x\" as x;\nfn run(job, ctx) {\n    x::helper(\"NO_SUCH_KEY\")\n}\n"),
        ("a program that is not there", "fn run(job, ctx) {\n    process::run(#{ argv: [\"no-such-program\"] })\n}\n"),
        (
            "options that are made elsewhere",
            "fn run(job, ctx) {\n    let options = #{ argv: [\"true\"] };\n    options.tmeout = \"5s\";\n    process::run(options)\n}\n",
        ),
        ("a duration that is none", "fn run(job, ctx) {\n    sleep(\"soon\")\n}\n"),
        ("an array for a text", "fn run(job, ctx) {\n    crypto::sha256([1])\n}\n"),
        ("a result that is no data", "fn run(job, ctx) {\n    job\n}\n"),
    ] {
        let _ = writeln!(all, "## {what}\n{}\n", failure(script).await);
    }
    insta::assert_snapshot!(all);
}

#[test]
fn problems_as_json() {
    let dir = machine(&[("machine.rhai", "fn services(m) {\n    [ prt ]\n}\n")]);
    let (text, code) = check(dir.path(), &["--json"]);
    let reports: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, 78);
    assert_eq!(reports[0]["ok"], false);
    let problem = &reports[0]["problems"][0];
    assert_eq!(problem["severity"], "error");
    assert_eq!(problem["location"], json!({ "file": "/m/machine.rhai", "line": 2, "column": 7 }));
    assert!(problem["help"].is_string() && problem["message"].is_string(), "{problem}");
}

#[test]
fn several_machines_at_once_and_nothing_is_left_behind() {
    let (good, bad) =
        (machine(&[("machine.rhai", NO_SERVICES)]), machine(&[("machine.rhai", "fn services(m) { x }\n")]));
    let second = good.path().join("m").display().to_string();
    let (text, code) = check(bad.path(), &[&second]);
    assert_eq!(code, 78);
    assert!(text.contains("m: not ok (1 errors)") && text.contains("m: ok (0 services, 0 workers)"), "{text}");
    assert!(!bad.path().join("state").exists(), "check makes no state directory");
}

#[test]
fn what_is_scaffolded_is_right_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let new = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_machinist")).arg("new").args(arguments).current_dir(dir.path()).output();
        let output = output.unwrap();
        (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code().unwrap())
    };
    assert_eq!(new(&["machine", "m"]), (String::new(), 0));
    assert_eq!(new(&["connector", "example", "--machine", "m"]), (String::new(), 0));
    let script = dir.path().join("m/machine.rhai");
    let text = std::fs::read_to_string(&script).unwrap();
    assert!(text.contains("// #{ name: \"example-0\""), "{text}");
    std::fs::write(&script, text.replace("// #{ name: \"example-0\"", "#{ name: \"example-0\"")).unwrap();
    let (said, code) = check(dir.path(), &[]);
    assert_eq!((said.as_str(), code), ("/m: ok (2 services, 1 workers)\n", 0));

    let before = std::fs::read_to_string(&script).unwrap();
    let (said, code) = new(&["machine", "m"]);
    assert!(code == 1 && said.contains("m/machine.rhai is there already"), "{said}");
    assert_eq!(std::fs::read_to_string(&script).unwrap(), before);
    let (said, code) = new(&["connector", "example", "--machine", "m"]);
    assert!(code == 1 && said.contains("is there already"), "{said}");
    assert_eq!(new(&["connector", "example"]).1, 2, "here is no machine");
    assert_eq!(new(&["machine", "../m"]).1, 2);
    std::fs::remove_file(dir.path().join("m/README.md")).unwrap();
    assert_eq!(new(&["machine", "m"]).1, 1, "nothing is written beside what is there");
    assert!(!dir.path().join("m/README.md").exists());
}
