//! `machinist repl` against the real binary: a machine that runs, a terminal, a script that is piped in.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::machine::{LIMIT, Machine};
use support::wait_until;

const SCRIPT: &str = r#"
import "lib/words" as words;
const LIMIT = 5;
fn services(m) { [ #{ name: "web", shell: "exec sleep 1000" } ] }
fn limit() { global::LIMIT }
fn greeting(name) { words::shout(`hello ${name}`) }
fn broken() {
    let nothing = ();
    nothing.len() + 1
}
"#;

fn machine(settings: &str) -> Machine {
    let mut machine = Machine::new(SCRIPT, settings);
    machine.write("lib/words.rhai", "fn shout(text) { text.to_upper() + \"!\" }\n");
    machine.environment.push(("MACHINIST_TOKEN".to_owned(), "sesame".to_owned()));
    machine.environment.push(("XDG_STATE_HOME".to_owned(), machine.dir.path().join("home").display().to_string()));
    machine
}

fn started() -> Machine {
    let mut machine = machine("http.console = true\n");
    machine.start();
    machine.wait_healthy();
    machine
}

fn piped(machine: &Machine, arguments: &[&str], script: &str) -> Output {
    let mut command = machine.command(&[&["repl"], arguments].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_piped_script_has_the_machine_before_it() {
    let machine = started();
    let output = piped(
        &machine,
        &[],
        "print(greeting(m.type));\nlet states = [];\nfor s in [\"web\"] { wait_ready(s); states.push(limit() + LIMIT); }\nstates",
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "HELLO MACHINE!\n[\n  10\n]\n");

    let output = piped(&machine, &[], "let a = 1;\nlet b = a.lenn();\n");
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("console:2:") && error.contains("let b = a.lenn();") && error.contains('^'), "{error}");

    // An error in a function of the machine is shown in the machine's file.
    let error = text(&piped(&machine, &["--eval", "broken()"], "").stderr);
    assert!(error.contains("machine.rhai:9") && error.contains("nothing.len()"), "{error}");

    let output = piped(&machine, &["--json", "--eval", "print(1); #{ key: secret(\"MACHINIST_TOKEN_FREE\") }"], "");
    assert_eq!(output.status.code(), Some(1), "there is no such secret");
    let lines = text(&output.stdout);
    let mut lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    assert_eq!(lines.next().unwrap()["printed"], "1");
    assert!(lines.next().unwrap()["problem"]["message"].as_str().unwrap().contains("MACHINIST_TOKEN_FREE"));

    let late = piped(&machine, &["--timeout", "200ms", "--eval", "loop { }"], "");
    assert!(text(&late.stderr).contains("the time limit of 200ms is over"), "{}", text(&late.stderr));

    let kinds = text(&machine.cli(&["events", "--json"]).stdout);
    assert!(kinds.contains("console.opened") && kinds.contains("console.used"), "{kinds}");
    assert!(
        !kinds.contains("greeting(m.type)") && !machine.log().contains("greeting(m.type)"),
        "inputs are told to nobody"
    );
}

#[test]
fn a_console_needs_its_setting_and_the_token() {
    let mut machine = machine("");
    machine.start();
    machine.wait_healthy();
    let refused = piped(&machine, &["--eval", "1"], "");
    assert_eq!(refused.status.code(), Some(4));
    assert!(text(&refused.stderr).contains("http.console = true"), "{}", text(&refused.stderr));

    // A running machine takes the setting over, in both directions.
    machine.write("machine.toml", "http.console = true\n");
    assert!(machine.cli(&["reload"]).status.success());
    assert_eq!(text(&piped(&machine, &["--eval", "1 + 1"], "").stdout), "2\n");
    let token = machine.cli(&["repl", "--eval", "1", "--token", "wrong"]);
    assert_eq!(token.status.code(), Some(4));
    assert!(text(&token.stderr).contains("the token is wrong"), "{}", text(&token.stderr));
    machine.write("machine.toml", "http.console = false\n");
    assert!(machine.cli(&["reload"]).status.success());
    assert_eq!(piped(&machine, &["--eval", "1"], "").status.code(), Some(4));

    // Without a token anybody on this host could run anything as the engine's user.
    machine.write("machine.toml", "http.console = true\n");
    machine.environment.retain(|(name, _)| name != "MACHINIST_TOKEN");
    let check = machine.cli(&["check", machine.path("").to_str().unwrap()]);
    assert_eq!(check.status.code(), Some(78));
    assert!(text(&check.stdout).contains("set http.token"), "{}", text(&check.stdout));
}

#[test]
fn a_script_can_be_tried_without_its_machine() {
    let machine = machine("");
    let dir = machine.path("");
    let output = piped(&machine, &[dir.to_str().unwrap()], "services(m)[0].name + greeting(\"you\")");
    assert_eq!(text(&output.stdout), "\"webHELLO YOU!\"\n", "{}", text(&output.stderr));
}

/// A console in a terminal of its own.
struct Terminal {
    child: Child,
    keys: File,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    fn open(machine: &Machine) -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        let binary = support::machine::BINARY;
        // Makes the terminal the one whose Ctrl-C the process gets.
        let mut command = machine.program("setsid", &["--ctty", "--wait", binary, "repl"]);
        let child = command.env("TERM", "xterm").stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
        drop(pty.slave);
        let keys = File::from(pty.master);
        let (mut reader, screen) = (keys.try_clone().unwrap(), Arc::new(Mutex::new(String::new())));
        let written = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal that nobody holds any more gives an error.
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                written.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self { child, keys, screen }
    }

    fn wait_for(&self, what: &str) {
        self.wait_until(&format!("{what:?}"), |screen| screen.contains(what));
    }

    fn wait_until(&self, what: &str, shows: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !shows(&self.screen.lock().unwrap()) {
            assert!(Instant::now() < deadline, "no {what} on the screen:\n{}", self.screen.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Types, and waits for what comes of it; the screen is empty then.
    fn types(&mut self, keys: &str, shown: &str) {
        self.screen.lock().unwrap().clear();
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.wait_for(shown);
    }

    /// Presses Ctrl-D. Between inputs it is the terminal's own, as in any shell, and reaches nobody who asks for keys
    /// only later; so it waits for the prompt that follows what was shown last.
    fn ends(&mut self, shown: &str) {
        self.wait_until(&format!("prompt after {shown:?}"), |screen| {
            screen.rsplit_once(shown).is_some_and(|(_, after)| after.contains("> "))
        });
        self.keys.write_all(b"\x04").unwrap();
    }
}

#[test]
fn a_terminal_has_variables_completion_history_and_ctrl_c() {
    let machine = started();
    let mut terminal = Terminal::open(&machine);
    terminal.wait_for("generation 1");
    terminal.wait_for("> ");
    terminal.types("let answer = 20;\r", "> ");
    terminal.types("answer + 22\r", "\n42\r\n");
    // An input goes on until its brackets are closed, and a later one finds what it defined.
    terminal.types("fn twice(x) {\r", "\n");
    terminal.types("    x * 2\r}\r", "> ");
    terminal.types("twice(answer + 1)\r", "\n42\r\n");
    terminal.types("let add = |x| x + answer; add.call(4)\r", "\n24\r\n");
    terminal.types("import \"lib/words\" as w;\r", "> ");
    terminal.types("w::shout(\"again\")\r", "\"AGAIN!\"\r\n");
    terminal.types("twice(\"a\" - 1)\r", "^");
    terminal.types("ans\t + 1\r", "\n21\r\n");
    terminal.types("json::str\t([1])\r", "\"[1]\"\r\n");
    terminal.types(":help json::parse\r", "The data that `text` holds as JSON");
    terminal.types("print(\"before\"); sleep(600); 1\r", "\nbefore\r\n");
    terminal.types("\u{3}", "cancelled");
    terminal.types("answer\r", "\n20\r\n");
    terminal.types(" let secret_thing = 1;\r", "> ");
    terminal.types(":vars\r", "add answer");
    terminal.types(":nonsense\r", "there is no :nonsense");
    terminal.types(":reset\r", "generation 1");
    terminal.types("answer\r", "there is no variable answer");
    terminal.types("\u{1b}[A\u{1b}[A\r", "generation 1");
    terminal.ends("generation 1");
    let code = wait_until("the console to leave", LIMIT, || terminal.child.try_wait().unwrap());
    assert!(code.success());

    let history = machine.dir.path().join("home/machinist/repl_history");
    let kept = std::fs::read_to_string(&history).unwrap();
    assert!(kept.contains("twice(answer + 1)"), "{kept}");
    assert!(!kept.contains("secret_thing"), "what begins with a space is not kept: {kept}");
    assert_eq!(mode(&history), 0o600);
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_client_that_goes_away_stops_what_it_asked_for() {
    let machine = started();
    let mark = machine.path("marks");
    std::fs::create_dir(&mark).unwrap();
    // A program that the console started lives no longer than the input.
    let needle = format!("sleep 31{}", std::process::id());
    let code = format!("process::run(#{{ argv: [\"sh\", \"-c\", \"{needle}; true\"] }})");
    let mut child = machine.command(&["repl", "--eval", &code]).stdin(Stdio::null()).spawn().unwrap();
    let alive = || !support::processes_with(&needle).iter().all(|pid| *pid == child.id());
    wait_until("the program to run", LIMIT, || alive().then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the program to be gone", LIMIT, || support::processes_with(&needle).is_empty().then_some(()));
}
