//! What several test binaries share.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod backend;
pub mod gpu;
pub mod http;
pub mod machine;
pub mod proxy;
pub mod redis;
pub mod s3;
pub mod script;
pub mod web;

use std::time::{Duration, Instant};

/// Waits until `condition` gives a value, looking every few milliseconds; fails the test after `limit`.
pub fn wait_until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what} after {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A TCP port that nobody listens on now, below the range from which the kernel gives ports to clients: those of tests
/// that run at the same time would take it away again.
pub fn free_port() -> u16 {
    (0..1000)
        .map(|_| rand::random_range(10_000..32_000))
        .find(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok())
        .expect("a free port")
}

/// One that has ended and waits to be reaped is not.
pub fn alive(pid: u32) -> bool {
    machinist::host::process::row(pid).is_some_and(|row| !row.zombie)
}

/// The processes whose command line contains `needle`, zombies left out.
pub fn processes_with(needle: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if pid != std::process::id() && String::from_utf8_lossy(&command).replace('\0', " ").contains(needle) {
            found.push(pid);
        }
    }
    found
}
