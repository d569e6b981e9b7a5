//! `machinist test` as people and build servers run it: exit codes, the XML for build servers, what `machinist new` makes, the guide's example,
//! and tests that are run again when something changes.

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::machine::{BINARY, LIMIT, repository};
use support::wait_until;

fn machinist(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.current_dir(dir).args(arguments).env("MACHINIST_SCRIPTS_DIR", repository().join("scripts"));
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Runs the tests below `dir` and gives back what is said of them.
fn tested(dir: &Path, arguments: &[&str], code: i32) -> String {
    let output = machinist(dir, &[&["test"], arguments].concat());
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

#[test]
fn what_is_scaffolded_passes_its_tests() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [&["new", "machine", "studio"][..], &["new", "connector", "draw", "--machine", "studio"]] {
        let output = machinist(dir.path(), arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let said = tested(dir.path(), &["studio"], 0);
    assert!(said.contains("studio/machine_test.rhai") && said.contains("studio/connectors/draw_test.rhai"), "{said}");
    assert!(!said.contains("FAIL") && !said.contains(" 0 passed"), "{said}");
    let check = machinist(dir.path(), &["check", "studio"]);
    assert!(check.status.success(), "{}", text(&check.stdout));
}

#[test]
fn the_example_of_the_guide_passes() {
    let guide = std::fs::read_to_string(repository().join("docs/testing.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut files = 0;
    for block in guide.split("```rhai\n").skip(1) {
        let code = block.split("```").next().unwrap();
        let name = code.lines().next().unwrap().strip_prefix("// ").expect("the first line names the file");
        write(dir.path(), name, code);
        files += 1;
    }
    assert_eq!(files, 2, "the script and its tests");
    let said = tested(dir.path(), &[], 0);
    assert!(said.contains("2 passed in"), "{said}");
}

#[test]
fn scripts_lie_where_the_environment_says() {
    let dir = tempfile::tempdir().unwrap();
    let connector = "import \"lib/backend\" as backend;\nfn run(job, ctx) { backend::text(job.payload, \"a\") }\n";
    write(dir.path(), "m/connectors/draw.rhai", connector);
    write(
        dir.path(),
        "m/connectors/draw_test.rhai",
        "fn test_it() { assert_eq(run(#{ payload: #{ a: 1 } }).result, \"1\"); }\n",
    );
    assert!(tested(dir.path(), &["m"], 0).contains("1 passed"));
    let mut nowhere = Command::new(BINARY);
    nowhere.current_dir(dir.path()).args(["test", "m"]).env("MACHINIST_SCRIPTS_DIR", dir.path().join("nowhere"));
    let said = text(&nowhere.output().unwrap().stdout);
    assert!(said.contains("nowhere is not there: say where the scripts are, MACHINIST_SCRIPTS_DIR=DIR"), "{said}");
}

#[test]
fn exit_codes_tell_how_it_went() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(tested(dir, &[], 1).contains("there are no tests"));
    assert!(tested(dir, &["nowhere"], 2).contains("nowhere is not there"));
    write(dir, "lib/one.rhai", "fn one() { 1 }\n");
    assert!(tested(dir, &["lib/one.rhai"], 2).contains("is no file of tests"));
    write(
        dir,
        "lib/one_test.rhai",
        "fn test_one() { assert_eq(invoke(\"one\", []), 1); }\nfn test_two() { skip(\"later\"); }\n",
    );
    assert!(tested(dir, &[], 0).contains("1 passed, 1 skipped"));
    assert!(tested(dir, &["--filter", "three"], 1).contains("no test whose name contains \"three\""));
    assert!(tested(dir, &["--filter", "two"], 0).contains("0 passed, 1 skipped"));
    write(dir, "lib/lost_test.rhai", "fn test_it() { }\n");
    assert!(tested(dir, &[], 1).contains("lost.rhai, which is not there"));
    write(dir, "lib/lost.rhai", "fn lost( {\n");
    let said = tested(dir, &[], 1);
    assert!(said.contains("1 broken files") && said.contains("lost.rhai:1"), "{said}");
    write(dir, "lib/lost.rhai", "fn lost() { 2 }\n");
    write(dir, "lib/lost_test.rhai", "fn test_it() { assert_eq(invoke(\"lost\", []), 3); }\n");
    let said = tested(dir, &[], 1);
    assert!(said.contains("FAIL   lib/lost_test.rhai test_it") && said.contains("1 failed"), "{said}");
    assert!(tested(dir, &["lib/one_test.rhai"], 0).contains("1 passed"));
}

#[test]
fn what_a_test_does_not_say_is_asked_for_at_its_place_in_an_imported_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "lib/web.rhai", "fn load(url) {\n    let answer = http::get(url);\n    answer.status\n}\n");
    let connector = "import \"lib/web\" as web;\n\nfn run(job, ctx) {\n    try { web::load(\"http://a/\") } catch { 1 }\n}\n\nfn check(ctx) {\n    web::load(\"http://b/\") == 200\n}\n";
    write(dir, "connectors/one.rhai", connector);
    write(dir, "connectors/one_test.rhai", "fn test_it() {\n    check();\n}\n\nfn test_caught() {\n    run(#{});\n}\n");
    let said = tested(dir, &[], 1);
    for part in [
        "the test does not say what GET http://b/ gives",
        "lib/web.rhai:2:",
        "in function load, called at line 8",
        "asked for at connectors/one_test.rhai:2:5",
        // Though the script goes on, the test failed.
        "the test does not say what GET http://a/ gives",
        "2 failed",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn build_servers_get_xml_that_holds_whatever_tests_say() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "lib/a<b>&\"c'.rhai", "fn one() { 1 }\n");
    write(
        dir,
        "lib/a<b>&\"c'_test.rhai",
        "fn test_good() { }\nfn test_bad() { fail(\"<x y=\\\"1\\\"> & ]]> \\x07 \u{e4}\\nsecond\"); }\nfn test_later() { skip(\"not <yet>\"); }\n",
    );
    write(dir, "lib/broken.rhai", "fn (\n");
    write(dir, "lib/broken_test.rhai", "fn test_it() { }\n");
    tested(dir, &["--junit", "out.xml"], 1);
    let xml = std::fs::read_to_string(dir.join("out.xml")).unwrap();
    let document = roxmltree::Document::parse(&xml).unwrap_or_else(|cause| panic!("{cause}:\n{xml}"));
    let root = document.root_element();
    let count = |node: roxmltree::Node<'_, '_>, name: &str| node.attribute(name).unwrap().parse::<usize>().unwrap();
    assert_eq!(root.tag_name().name(), "testsuites");
    let numbers = ["tests", "failures", "errors", "skipped"].map(|name| count(root, name));
    assert_eq!(numbers, [4, 1, 1, 1], "{xml}");
    let suites: Vec<_> = root.children().filter(roxmltree::Node::is_element).collect();
    assert_eq!(suites.len(), 2);
    for name in ["tests", "failures", "errors", "skipped"] {
        let sum: usize = suites.iter().map(|suite| count(*suite, name)).sum();
        assert_eq!(sum, count(root, name), "{name} of the suites: {xml}");
    }
    for suite in &suites {
        let cases: Vec<_> = suite.children().filter(|node| node.has_tag_name("testcase")).collect();
        assert_eq!(cases.len(), count(*suite, "tests"), "{xml}");
        assert!(cases.iter().all(|case| case.attribute("classname") == suite.attribute("name")), "{xml}");
    }
    let case = |name: &str| {
        document
            .descendants()
            .find(|node| node.attribute("name") == Some(name) && node.has_tag_name("testcase"))
            .unwrap()
    };
    assert!(case("test_good").children().all(|node| !node.is_element()));
    assert!(case("test_good").attribute("time").unwrap().parse::<f64>().unwrap() >= 0.0);
    let failure = case("test_bad").children().find(|node| node.has_tag_name("failure")).unwrap();
    assert_eq!(failure.attribute("message"), Some("<x y=\"1\"> & ]]> \u{fffd} \u{e4}\nsecond"));
    assert!(failure.text().unwrap().contains("_test.rhai:2"), "with the place: {xml}");
    let skipped = case("test_later").children().find(|node| node.has_tag_name("skipped")).unwrap();
    assert_eq!(skipped.attribute("message"), Some("not <yet>"));
    let broken = document.descendants().find(|node| node.has_tag_name("error")).unwrap();
    assert!(broken.text().unwrap().contains("broken.rhai:1"), "{xml}");
}

/// `machinist test --watch`, with the lines that it writes.
struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Watching {
    fn start(dir: &Path) -> Self {
        let mut command = Command::new(BINARY);
        let mut child = command.current_dir(dir).args(["test", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// The lines up to the one that contains `end`.
    fn until(&self, end: &str) -> String {
        self.until_line(|line| line.contains(end))
    }

    /// The lines of the next round, whose last is `1 passed in 0.12 s`.
    fn round(&self) -> String {
        self.until_line(|line| line.contains(" passed") && line.contains(" in ") && line.ends_with(" s"))
    }

    fn until_line(&self, is_last: impl Fn(&str) -> bool) -> String {
        let mut said = String::new();
        loop {
            let line = self.lines.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("no end of:\n{said}"));
            said.push_str(&line);
            said.push('\n');
            if is_last(&line) {
                return said;
            }
        }
    }
}

#[test]
fn what_changes_is_tested_again_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "lib/base.rhai", "fn base() { 1 }\n");
    write(dir, "lib/uses.rhai", "import \"lib/base\" as base;\nfn two() { base::base() + 1 }\n");
    write(dir, "lib/uses_test.rhai", "fn test_two() { assert_eq(invoke(\"two\", []), 2); }\n");
    write(dir, "lib/other.rhai", "fn three() { 3 }\n");
    write(dir, "lib/other_test.rhai", "fn test_three() { assert_eq(invoke(\"three\", []), 3); }\n");
    let mut watching = Watching::start(dir);
    let said = watching.until("waiting for changes");
    assert!(said.contains("lib/uses_test.rhai: 1 passed") && said.contains("lib/other_test.rhai: 1 passed"), "{said}");

    write(dir, "lib/base.rhai", "fn base() { 5 }\n");
    let said = watching.round();
    assert!(said.contains("FAIL   lib/uses_test.rhai test_two") && !said.contains("other_test"), "{said}");
    write(dir, "lib/base.rhai", "fn base() { 1 \n");
    let said = watching.round();
    assert!(said.contains("1 broken files") && said.contains("base.rhai:") && !said.contains("other_test"), "{said}");
    write(dir, "lib/base.rhai", "fn base() { 1 }\n");
    let said = watching.round();
    assert!(said.contains("ok     lib/uses_test.rhai: 1 passed") && !said.contains("other_test"), "{said}");
    write(dir, "lib/late.rhai", "fn late() { 4 }\n");
    write(dir, "lib/late_test.rhai", "fn test_late() { assert_eq(invoke(\"late\", []), 5); }\n");
    let said = watching.until("1 failed in");
    assert!(
        said.contains("lib/late_test.rhai") && !said.contains("other_test") && !said.contains("uses_test"),
        "{said}"
    );

    // The outcome is that of all, not of what was run last.
    write(dir, "lib/other.rhai", "fn three() { 1 + 2 }\n");
    watching.until("1 passed in");
    let stop = |watching: &mut Watching| {
        kill(Pid::from_raw(watching.child.id().cast_signed()), Signal::SIGINT).unwrap();
        wait_until("the end", LIMIT, || watching.child.try_wait().unwrap()).code()
    };
    assert_eq!(stop(&mut watching), Some(1));
    std::fs::remove_file(dir.join("lib/late_test.rhai")).unwrap();
    let mut watching = Watching::start(dir);
    watching.until("waiting for changes");
    assert_eq!(stop(&mut watching), Some(0));
}
