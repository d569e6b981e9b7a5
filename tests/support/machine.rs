//! A whole machine: the real binary in a directory of its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{free_port, wait_until};

pub const LIMIT: Duration = Duration::from_secs(30);
pub const BINARY: &str = env!("CARGO_BIN_EXE_machinist");

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A machine directory with its own state, and the engine that runs it.
pub struct Machine {
    pub dir: tempfile::TempDir,
    pub url: String,
    pub engine: Option<Child>,
    pub environment: Vec<(String, String)>,
    /// What the engine is started by: `unshare ...`.
    pub prefix: Vec<String>,
}

impl Machine {
    pub fn new(script: &str, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("machine")).unwrap();
        let url = format!("http://127.0.0.1:{}", free_port());
        let machine = Self { dir, url, engine: None, environment: Vec::new(), prefix: Vec::new() };
        machine.write("machine.rhai", script);
        machine.write("machine.toml", settings);
        machine
    }

    pub fn started(script: &str, settings: &str) -> Self {
        let mut machine = Self::new(script, settings);
        machine.start();
        machine.wait_healthy();
        machine
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("machine").join(name)
    }

    /// As editors do: the whole text at once, by rename.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, path).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(BINARY, arguments)
    }

    /// Another program, with what the command line of machinist finds in its environment.
    pub fn program(&self, program: &str, arguments: &[&str]) -> Command {
        self.command_of(program, arguments)
    }

    fn command_of(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("MACHINIST_STATE_DIR", self.dir.path().join("state"))
            .env("MACHINIST_SCRIPTS_DIR", repository().join("scripts"))
            .env("MACHINIST_URL", &self.url)
            .env_remove("MACHINIST_TOKEN")
            .envs(self.environment.iter().cloned());
        command
    }

    pub fn start(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let address = self.url.strip_prefix("http://").unwrap().to_owned();
        let directory = self.path("").display().to_string();
        let mut arguments: Vec<&str> = self.prefix.iter().skip(1).map(String::as_str).collect();
        if !self.prefix.is_empty() {
            arguments.push(BINARY);
        }
        arguments.extend(["run", &directory, "--listen", &address]);
        let mut command = self.command_of(self.prefix.first().map_or(BINARY, String::as_str), &arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.engine = Some(command.spawn().unwrap());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        let output = self.cli(&all);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    pub fn status(&self) -> Option<Value> {
        let output = self.cli(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    pub fn wait_healthy(&self) {
        self.wait("the machine to be healthy", |status| status["state"] == "healthy");
    }

    pub fn wait(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.wait_within(LIMIT, what, condition)
    }

    pub fn wait_within(&self, limit: Duration, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.status();
            match status {
                Some(status) if condition(&status) => return status,
                status => assert!(
                    Instant::now() < deadline,
                    "gave up waiting for {what}\n{}\n{}",
                    status.map(|status| format!("{status:#}")).unwrap_or_default(),
                    self.log()
                ),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn kill(&mut self) {
        let mut engine = self.engine.take().unwrap();
        engine.kill().unwrap();
        engine.wait().unwrap();
    }

    /// Sends SIGTERM and waits for the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let engine = self.engine.as_ref().unwrap();
        let pid = nix::unistd::Pid::from_raw(engine.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.wait_exit()
    }

    /// Asks for the end over HTTP and waits for the exit code.
    pub fn drain(&mut self) -> Option<i32> {
        self.cli(&["drain"]);
        self.wait_exit()
    }

    pub fn wait_exit(&mut self) -> Option<i32> {
        let mut engine = self.engine.take().unwrap();
        wait_until("the engine to end", LIMIT, || engine.try_wait().unwrap()).code()
    }

    /// A plain HTTP exchange on a connection of its own.
    pub fn http(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.url.strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub fn get(&self, path: &str) -> String {
        self.http(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    pub fn pid(&self, service: &str) -> Value {
        self.json(&["services"])["services"]
            .as_array()
            .unwrap()
            .iter()
            .find(|found| found["name"] == service)
            .map_or(Value::Null, |found| found["pid"].clone())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.engine.is_some() {
            self.stop();
        }
    }
}
