//! A Redis server of a test's own, on a free port.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{free_port, wait_until};

/// `QUEUE_TOPOLOGY=cluster` gives three nodes instead of one, `QUEUE_SERVER=/usr/bin/valkey-server` another program.
pub struct RedisServer {
    child: Child,
    /// The other nodes of a cluster.
    others: Vec<Self>,
    url: String,
    pub port: u16,
    dir: tempfile::TempDir,
    arguments: Vec<String>,
}

impl RedisServer {
    /// `arguments` are those of the command line, e.g. `["--appendonly", "yes"]`.
    pub fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        if std::env::var("QUEUE_TOPOLOGY").as_deref() == Ok("cluster") {
            return Self::start_cluster();
        }
        let child = spawn(port, dir.path(), &arguments);
        let url = format!("redis://127.0.0.1:{port}");
        let server = Self { child, others: Vec::new(), url, port, dir, arguments };
        server.wait_ready();
        server
    }

    /// Three masters, each with a third of the slots.
    fn start_cluster() -> Self {
        let mut nodes: Vec<Self> = (0..3)
            .map(|_| {
                // The bus of a node has a port of its own, by itself 10,000 more than the other, which there may not be.
                let (port, bus, dir) = (free_port(), free_port(), tempfile::tempdir().unwrap());
                let arguments =
                    ["--cluster-enabled", "yes", "--cluster-port", &bus.to_string()].map(str::to_owned).to_vec();
                let child = spawn(port, dir.path(), &arguments);
                let url = format!("redis://127.0.0.1:{port}");
                let node = Self { child, others: Vec::new(), url, port, dir, arguments };
                node.wait_ready();
                node
            })
            .collect();
        for (node, slots) in nodes.iter().zip([["0", "5460"], ["5461", "10922"], ["10923", "16383"]]) {
            node.direct(&["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]);
        }
        for other in &nodes[1..] {
            nodes[0].direct(&["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string(), &other.arguments[3]]);
        }
        wait_until("the cluster to agree", Duration::from_secs(60), || {
            let ok = |node: &Self| {
                let text = node.direct(&["CLUSTER", "INFO"]);
                text.contains("cluster_state:ok") && text.contains("cluster_known_nodes:3")
            };
            nodes.iter().all(ok).then_some(())
        });
        let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let mut first = nodes.remove(0);
        first.url = format!("redis+cluster://{}", addresses.join(","));
        first.others = nodes;
        first
    }

    /// Of this node, wherever a key lies.
    fn direct(&self, words: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn wait_ready(&self) {
        wait_until("redis-server", Duration::from_secs(20), || {
            (self.try_command(&["PING"]).as_deref() == Some("PONG\n")).then_some(())
        });
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn try_command(&self, words: &[&str]) -> Option<String> {
        let output = Command::new("redis-cli").args(["-c", "-p", &self.port.to_string()]).args(words).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn command(&self, words: &[&str]) -> String {
        self.try_command(words).unwrap_or_else(|| panic!("redis-cli {words:?} failed"))
    }

    /// Appends to a list what may be no text.
    #[allow(dead_code, reason = "not every test file pushes")]
    pub fn push(&self, key: &str, value: &[u8]) {
        let mut child = Command::new("redis-cli")
            .args(["-c", "-p", &self.port.to_string(), "-x", "RPUSH", key])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(value).unwrap();
        assert!(child.wait().unwrap().success());
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The same server again, with what it kept.
    pub fn restart(&mut self) {
        self.child = spawn(self.port, self.dir.path(), &self.arguments);
        self.wait_ready();
    }
}

/// The server, without arguments.
pub fn server() -> Command {
    Command::new(std::env::var("QUEUE_SERVER").as_deref().unwrap_or("redis-server"))
}

fn spawn(port: u16, dir: &Path, arguments: &[String]) -> Child {
    server()
        .args(["--port", &port.to_string(), "--save", "", "--dir"])
        .arg(dir)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed by ./test.sh")
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A master, its replica, and a sentinel that watches them.
pub struct Sentinels {
    pub master: RedisServer,
    _replica: RedisServer,
    sentinel: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Sentinels {
    pub fn start() -> Self {
        let master = RedisServer::start(&[]);
        let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let file = dir.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nsentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 2000\n",
            master.port
        );
        std::fs::write(&file, text).unwrap();
        let sentinel = server().arg(&file).arg("--sentinel").stdout(Stdio::null()).spawn().unwrap();
        let sentinels = Self { master, _replica: replica, sentinel, port, _dir: dir };
        wait_until("the sentinel to know the replica", Duration::from_secs(30), || {
            let output = Command::new("redis-cli")
                .args(["-p", &port.to_string(), "SENTINEL", "replicas", "main"])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            (text.contains("master-link-status\nok") && !text.contains("s_down")).then_some(())
        });
        sentinels
    }

    pub fn url(&self) -> String {
        format!("redis+sentinel://127.0.0.1:{}/main", self.port)
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        let _ = self.sentinel.kill();
        let _ = self.sentinel.wait();
    }
}
