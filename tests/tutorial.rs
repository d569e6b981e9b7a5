//! The pages for whoever writes a connector. docs/tutorial-connector.md is typed as it stands there: its files are written, its
//! commands run, and what they print is what it says they print.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use regex::Regex;

use support::machine::{BINARY, LIMIT, repository};
use support::{free_port, wait_until};

const PAGE: &str = include_str!("../docs/tutorial-connector.md");

/// A reader at a terminal.
struct Reader {
    dir: PathBuf,
    /// What was exported.
    environment: String,
    running: Vec<Child>,
    pids: BTreeSet<String>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Reader {
    fn shell(&self, line: &str, dir: &Path) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command
            .args(["-c", &format!("{}\n{line}", self.environment)])
            .current_dir(dir)
            .env("PATH", format!("{}:{path}", Path::new(BINARY).parent().unwrap().display()))
            .env_remove("MACHINIST_SCRIPTS_DIR")
            .env_remove("MACHINIST_TOKEN")
            .stdin(Stdio::null());
        command
    }

    fn types(&mut self, line: &str, expected: &str) {
        if line.starts_with("mkdir ") {
            assert!(self.shell(line, repository()).status().unwrap().success(), "{line}");
        } else if line.starts_with("export ") {
            self.environment.push_str(line);
            self.environment.push('\n');
        } else if line.starts_with("kill ") {
            self.ends();
        } else if let Some(line) = line.strip_suffix('&') {
            self.running.push(self.shell(&format!("exec {line}"), &self.dir).spawn().unwrap());
        } else {
            // What a machine says of itself is asked for until it has got so far.
            let again = line.starts_with("machinist status");
            let pid = Regex::new(r"pid (\d+), up").unwrap();
            let deadline = Instant::now() + LIMIT;
            loop {
                let output = self.shell(&format!("{line} 2>&1"), &self.dir).output().unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                if plain(&text) == plain(expected) {
                    self.pids.extend(pid.captures(&text).map(|found| found[1].to_owned()));
                    return;
                }
                assert!(again && Instant::now() < deadline, "$ {line}\n{text}\nbut the page has\n{expected}");
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    }

    /// The machine ends by itself, since it was told to drain.
    fn ends(&mut self) {
        let mut machine = self.running.pop().unwrap();
        let code = wait_until("the machine to end", LIMIT, || machine.try_wait().unwrap());
        assert!(code.success(), "{code}");
    }

    /// The first line of a file says where it belongs.
    fn saves(&self, block: &str) {
        let (place, text) = block.split_once('\n').unwrap();
        let file = |name: &str| self.dir.join(name);
        if let Some(name) = place.strip_prefix("// ") {
            std::fs::write(file(name), text).unwrap();
        } else if let Some(name) = place.strip_prefix("# at the end of ") {
            let whole = format!("{}\n{text}", std::fs::read_to_string(file(name)).unwrap());
            // At once, as editors do.
            std::fs::write(file("new"), whole).unwrap();
            std::fs::rename(file("new"), file(name)).unwrap();
        } else {
            panic!("{place} does not say where the file belongs");
        }
    }
}

/// Without what is another one each time.
fn plain(text: &str) -> Vec<String> {
    let patterns = [
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r"\b[0-9a-z]{20}\b", "ID"),
        (r"pid \d+", "pid"),
        (r"\([0-9a-f]{16}\)", "(hash)"),
        (r"^\S+ \(api, pool", "machine (api, pool"),
        (r"\b[\d.]+ ?m?s\b", "seconds"),
        (r"\s+", " "),
    ];
    let patterns = patterns.map(|(pattern, instead)| (Regex::new(pattern).unwrap(), instead));
    let lines = text.lines().map(|line| {
        patterns
            .iter()
            .fold(line.to_owned(), |line, (pattern, instead)| pattern.replace_all(&line, *instead).into_owned())
    });
    lines.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

#[test]
fn the_page_is_true() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("tour");
    let mut page = PAGE.replace("/tmp/tour", place.to_str().unwrap());
    for port in ["9090", "8900", "8188"] {
        page = page.replace(port, &free_port().to_string());
    }
    let url = Regex::new(r"--listen (\S+)").unwrap().captures(&page).unwrap()[1].to_owned();
    let environment = format!("export MACHINIST_URL=http://{url}\n");
    let mut reader = Reader { dir: place, environment, running: Vec::new(), pids: BTreeSet::new() };
    let mut blocks = 0;
    for block in Regex::new(r"(?s)```(\w+)\n(.*?)```").unwrap().captures_iter(&page) {
        blocks += 1;
        if &block[1] != "console" {
            reader.saves(&block[2]);
            continue;
        }
        for entry in format!("\n{}", &block[2]).split("\n$ ").skip(1) {
            let (line, expected) = entry.split_once('\n').unwrap_or((entry, ""));
            reader.types(line, expected);
        }
    }
    assert_eq!(blocks, 11, "each block of the page is one that is typed");
    assert_eq!(reader.pids.len(), 1, "it was one process from the beginning to the end");
}

#[test]
fn what_connectors_share_is_on_its_page() {
    let page = std::fs::read_to_string(repository().join("docs/script-lib.md")).unwrap();
    // What the others there are made of.
    let own = ["stored", "key"];
    for library in ["backend", "payload", "files"] {
        let text = std::fs::read_to_string(repository().join(format!("scripts/lib/{library}.rhai"))).unwrap();
        let names = text.lines().filter_map(|line| line.strip_prefix("fn ")?.split_once('(').map(|(name, _)| name));
        let section = page.split("\n## ").find(|section| section.starts_with(&format!("`lib/{library}`"))).unwrap();
        for name in names.filter(|name| !own.contains(name)) {
            assert!(section.contains(&format!("| `{name}(")), "docs/script-lib.md does not tell of {library}::{name}");
        }
    }
}
