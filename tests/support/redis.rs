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
    others: Vec<(Child, tempfile::TempDir)>,
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

    /// Three masters.
    fn start_cluster() -> Self {
        let arguments = vec!["--cluster-enabled".to_owned(), "yes".to_owned()];
        // A node's bus has its port and 10,000 more.
        let nodes: Vec<(u16, tempfile::TempDir, Child)> = (0..3)
            .map(|_| {
                let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
                let child = spawn(port, dir.path(), &arguments);
                (port, dir, child)
            })
            .collect();
        let addresses: Vec<String> = nodes.iter().map(|(port, ..)| format!("127.0.0.1:{port}")).collect();
        let url = format!("redis+cluster://{}", addresses.join(","));
        let mut nodes = nodes.into_iter();
        let (port, dir, child) = nodes.next().unwrap();
        let others = nodes.map(|(_, dir, child)| (child, dir)).collect();
        let server = Self { child, others, url, port, dir, arguments };
        server.wait_ready();
        wait_until("a cluster", Duration::from_secs(30), || {
            let mut create = Command::new("redis-cli");
            create.args(["--cluster", "create"]).args(&addresses).arg("--cluster-yes");
            create.output().unwrap().status.success().then_some(())
        });
        wait_until("the cluster to agree", Duration::from_secs(30), || {
            let ok = |port: &str| {
                let output = Command::new("redis-cli").args(["-p", port, "CLUSTER", "INFO"]).output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                text.contains("cluster_state:ok") && text.contains("cluster_known_nodes:3")
            };
            addresses.iter().all(|address| ok(address.rsplit(':').next().unwrap())).then_some(())
        });
        server
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
        for (other, _) in &mut self.others {
            let _ = other.kill();
            let _ = other.wait();
        }
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
