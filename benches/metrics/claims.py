#!/usr/bin/env python3
"""Whether scrapes delay jobs: from the submission of a job to an idle worker until its connector's request arrives at a backend, without
scrapes, with one every second, and with one after the other. The three take turns on one machine with 200 services, each with a child,
and 8 GPUs of the tests' fake driver. The scraper is a process of its own, and shares the CPUs.

    cargo build --release && cargo build --release --example fake_nvml
    benches/metrics/claims.py [MACHINIST] [REDIS_SERVER]

JOBS (180) in each of ROUNDS (4) of each kind, on the embedded queue, and on a Redis where the server is named.
"""

import http.client
import json
import os
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import machine as bench

SERVICES, GPUS = 200, 8
JOBS, ROUNDS = int(os.environ.get("JOBS", 180)), int(os.environ.get("ROUNDS", 4))

# Asks the backend, which is all that connectors do before they wait.
CONNECTOR = """const CONFIG = #{};
fn run(job, ctx) {
    http::get(`${job.payload.backend}/${job.payload.n}`);
    ()
}
"""
WORKERS = 'fn workers(m) { [ #{ name: "w", connector: "ask", slots: 4 } ] }\n'
SETTINGS = bench.GPU_SETTINGS + "[connectors.ask]\n"

# Seconds between scrapes; none: no scrape.
KINDS = {"no scrape": None, "a scrape a second": 1.0, "scrapes in a loop": 0.0}
SCRAPER = """
import http.client, sys, time
connection, every = http.client.HTTPConnection(sys.argv[1]), float(sys.argv[2])
count, due = 0, time.monotonic()
while True:
    connection.request("GET", "/metrics")
    connection.getresponse().read()
    count += 1
    print(count, flush=True)
    due = max(due + every, time.monotonic())
    time.sleep(max(0, due - time.monotonic()))
"""


class Backend:
    """Notes when the request for each number arrived."""

    def __init__(self):
        self.arrived, self.news = {}, threading.Condition()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        text = b""
        while more := connection.recv(65536):
            now, text = time.perf_counter(), text + more
            while b"\r\n\r\n" in text:
                head, text = text.split(b"\r\n\r\n", 1)
                with self.news:
                    self.arrived[int(head.split(b" ")[1].strip(b"/"))] = now
                    self.news.notify_all()
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok")

    def wait(self, number):
        with self.news:
            if not self.news.wait_for(lambda: number in self.arrived, 30):
                sys.exit(f"job {number} did not run within 30 s")
            return self.arrived.pop(number)


class Scraper:
    def __init__(self, machine, every):
        self.count = 0
        if every is None:
            self.process = None
            return
        self.process = subprocess.Popen([sys.executable, "-c", SCRAPER, machine.url.removeprefix("http://"), str(every)], stdout=subprocess.PIPE)
        self.process.stdout.readline()

    def stop(self):
        """How many scrapes there were."""
        if self.process is None:
            return 0
        assert self.process.poll() is None, "the scraper ended by itself"
        self.process.terminate()
        lines = self.process.stdout.read().split()
        self.process.wait()
        return int(lines[-1]) if lines else 1


def jobs(machine, backend, first):
    """How long each took to be there, in milliseconds."""
    connection = http.client.HTTPConnection(machine.url.removeprefix("http://"))
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    took = []
    for number in range(first, first + JOBS):
        body = json.dumps({"service": "ask", "payload": {"n": number, "backend": backend.url}})
        begun = time.perf_counter()
        connection.request("POST", "/jobs", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status < 300, answer.status
        took.append((backend.wait(number) - begun) * 1000)
        # Until the worker is idle again, and at no fixed distance from scrapes.
        time.sleep(random.uniform(0.01, 0.03))
    connection.close()
    return took


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def measure(queue, env):
    took, scrapes, seconds = {kind: [] for kind in KINDS}, dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0.0)
    rounds = {kind: [] for kind in KINDS}
    files = {"machine.rhai": bench.services(SERVICES) + WORKERS, "machine.toml": SETTINGS, "connectors/ask.rhai": CONNECTOR}
    backend = Backend()
    with tempfile.TemporaryDirectory() as root, bench.Machine(pathlib.Path(root), files, GPUS, env) as machine:
        machine.share_gpus()
        jobs(machine, backend, 0)
        first = JOBS
        for number in range(ROUNDS):
            # Each kind is first in turn.
            order = list(KINDS)
            for kind in order[number % 3:] + order[:number % 3]:
                scraper, begun = Scraper(machine, KINDS[kind]), time.monotonic()
                found = jobs(machine, backend, first)
                seconds[kind] += time.monotonic() - begun
                scrapes[kind] += scraper.stop()
                first += JOBS
                took[kind] += found
                rounds[kind].append(statistics.median(found))
    plain = took["no scrape"]
    print(f"{queue}, from the submission to the backend (ms), {len(plain)} jobs of each kind:")
    for kind, values in took.items():
        p50, p99 = quantile(values, 0.5), quantile(values, 0.99)
        print(f"  {kind} ({scrapes[kind] / seconds[kind]:.1f} scrapes a second): p50 {p50:.2f} ({p50 / quantile(plain, 0.5):.2f} x; "
              f"rounds {' '.join(f'{one:.2f}' for one in rounds[kind])}), p90 {quantile(values, 0.9):.2f}, "
              f"p99 {p99:.2f} ({p99 / quantile(plain, 0.99):.2f} x), most {max(values):.1f}", flush=True)


def main():
    bench.use(sys.argv[1] if len(sys.argv) > 1 else "target/release/machinist")
    measure("embedded queue", {})
    if len(sys.argv) > 2:
        port = bench.harness.free_port()
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.argv[2], "--port", str(port), "--save", "", "--dir", directory]
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            try:
                bench.harness.wait("Redis", 10, lambda: socket.create_connection(("127.0.0.1", port), 1).close() or True)
                measure("Redis without persistence", {"REDIS_URL": f"redis://127.0.0.1:{port}"})
            finally:
                server.terminate()
                server.wait()


if __name__ == "__main__":
    main()
