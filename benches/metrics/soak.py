#!/usr/bin/env python3
"""A real Prometheus scrapes a busy machine: services that come and go under new names with each reload, kill -9, broken edits,
jobs that complete and fail, two GPUs of the tests' fake driver. In the end all that has to hold is printed, and checked.

    cargo build --release && cargo build --release --example fake_nvml
    benches/metrics/soak.py [SECONDS] [MACHINIST]

Needs `prometheus` and `promtool`.
"""
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

from scrape import gpu

SECONDS = int(sys.argv[1]) if len(sys.argv) > 1 else 300
BINARY = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "target/release/machinist").resolve()
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LIBRARY = pathlib.Path(os.environ.get("FAKE_NVML", BINARY.parent / "examples/libfake_nvml.so"))
# Services that stay, services of each generation, seconds between reloads.
LASTING, PASSING, RELOAD_EVERY = 20, 20, 5

SETTINGS = """[connectors.command.vars.programs]
true = ["true"]
false = ["false"]
[resources]
every = "1s"
[gpu]
every = "1s"
"""


def script(turn):
    return """fn services(m) {
    let all = [];
    for i in range(0, %d) { all.push(#{ name: "lasting-" + i, shell: "sleep 1000 & wait", restart: #{ initial: "100ms" } }); }
    for i in range(0, %d) { all.push(#{ name: "passing-%d-" + i, command: ["sleep", "1000"] }); }
    all
}
fn workers(m) { [ #{ name: "w%d", connector: "command", slots: 4 } ] }
""" % (LASTING, PASSING, turn, turn % 3)


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url, body=None):
    headers = {"content-type": "application/json"} if body is not None else {}
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


class Soak:
    def __init__(self, root):
        self.root, self.port, self.turn, self.wrong = root, port(), 0, []
        self.url = f"http://127.0.0.1:{self.port}"
        self.prometheus_url = f"http://127.0.0.1:{port()}"

    def edit(self, text):
        new = self.root / "machine/machine.rhai.new"
        new.write_text(text)
        new.rename(self.root / "machine/machine.rhai")

    def start(self):
        (self.root / "machine").mkdir()
        self.edit(script(0))
        (self.root / "machine/machine.toml").write_text(SETTINGS)
        (self.root / "gpus.json").write_text(json.dumps({"gpus": [gpu(0), gpu(1)], "xids": []}))
        environment = os.environ | {
            "FAKE_NVML_STATE": str(self.root / "gpus.json"), "MACHINIST_GPU__LIBRARY": str(LIBRARY),
            "MACHINIST_STATE_DIR": str(self.root / "state"), "MACHINIST_SCRIPTS_DIR": str(REPOSITORY / "scripts"),
        }
        command = [BINARY, "run", self.root / "machine", "--listen", f"127.0.0.1:{self.port}"]
        with open(self.root / "log", "w") as log:
            self.engine = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "5s"},
            "rule_files": [str(REPOSITORY / "docker/prometheus/alerts.yml")],
            "scrape_configs": [{"job_name": "machinist", "static_configs": [{"targets": [f"127.0.0.1:{self.port}"]}]}],
        }
        (self.root / "prometheus.yml").write_text(json.dumps(config))
        with open(self.root / "prometheus.log", "w") as log:
            self.prometheus = subprocess.Popen(
                ["prometheus", f"--config.file={self.root}/prometheus.yml", f"--storage.tsdb.path={self.root}/data",
                 "--web.listen-address=" + self.prometheus_url.removeprefix("http://")], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                if json.loads(get(f"{self.url}/status"))["state"] == "healthy":
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                sys.exit((self.root / "log").read_text())
            time.sleep(0.1)

    def stop(self):
        for process in (self.engine, self.prometheus):
            process.send_signal(signal.SIGTERM)
            process.wait()

    def query(self, query):
        answer = json.loads(get(f"{self.prometheus_url}/api/v1/query?" + urllib.parse.urlencode({"query": query})))
        return [float(result["value"][1]) for result in answer["data"]["result"]]

    def check(self, what, holds):
        print(f"{'ok  ' if holds else 'FAIL'} {what}")
        if not holds:
            self.wrong.append(what)

    def hurt(self):
        """A second of a machine's life."""
        jobs = [{"service": "command", "payload": {"program": random.choice(["true", "true", "true", "false"])}} for _ in range(20)]
        for job in jobs:
            get(f"{self.url}/jobs", json.dumps(job).encode())
        services = json.loads(get(f"{self.url}/status"))["services"]
        alive = [service["pid"] for name, service in services.items() if name.startswith("lasting") and service.get("pid")]
        for pid in random.sample(alive, min(2, len(alive))):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def lint(self):
        text = get(f"{self.url}/metrics")
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
        return done.returncode == 0, (done.stdout + done.stderr).decode().strip()

    def run(self):
        begun, settled = time.monotonic(), SECONDS / 5
        # Nobody can run these: they wait.
        for _ in range(3):
            waiting = {"service": "nobody", "requirement": {"pool": "fast"}, "payload": {}}
            get(f"{self.url}/jobs", json.dumps(waiting).encode())
        reloads = broken = 0
        while (now := time.monotonic() - begun) < SECONDS:
            if now > (reloads + broken) * RELOAD_EVERY:
                if (reloads + broken) % 6 == 5:
                    broken += 1
                    self.edit("fn services(m) { [ #{ name: 1")
                else:
                    reloads += 1
                    self.turn += 1
                    self.edit(script(self.turn))
            self.hurt()
            time.sleep(1)
        # Let what was edited last go live, and one more scrape see it.
        self.edit(script(self.turn + 1))
        time.sleep(5)
        clean, said = self.lint()
        self.check(f"promtool check metrics: {said or 'nothing to say'}", clean and not said)
        (up,) = self.query(f"avg_over_time(up[{SECONDS}s])")
        self.check(f"every scrape answered: {up:.3f}", up > 0.995)
        span = int(SECONDS - settled)
        low, high, last = (self.query(f"{f}_over_time(scrape_samples_scraped[{span}s])")[0] for f in ("min", "max", "last"))
        self.check(f"samples of a scrape: {low:.0f} to {high:.0f}, in the end {last:.0f}", last <= low * 1.1)
        growth = self.query(f"deriv(scrape_samples_scraped[{span}s]) * {span}")[0]
        self.check(f"growth over {span} s: {growth:.0f} series of {last:.0f}", abs(growth) < last * 0.05)
        longest, usual = (self.query(f"quantile_over_time({q}, scrape_duration_seconds[{SECONDS}s])")[0] for q in (0.99, 0.5))
        print(f"     scrapes took {usual * 1000:.1f} ms, p99 {longest * 1000:.1f} ms")
        (generation,) = self.query("max(machinist_generation)")
        self.check(f"{reloads} reloads, {broken} broken edits, generation {generation:.0f}", generation > reloads * 0.8)
        groups = json.loads(get(f"{self.prometheus_url}/api/v1/rules"))["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        self.check(f"{len(rules)} rules", rules and all(rule["health"] == "ok" for rule in rules))
        dashboard = json.loads((REPOSITORY / "docker/grafana/dashboards/machines.json").read_text())
        empty, asked = [], 0
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
                asked += 1
                if not self.query(query):
                    empty.append(f"{panel['title']}: {query}")
        self.check(f"{asked} queries of the dashboard find something" + "".join(f"\n       not {one}" for one in empty), not empty)


def main():
    with tempfile.TemporaryDirectory() as directory:
        soak = Soak(pathlib.Path(directory))
        try:
            soak.start()
            soak.run()
        finally:
            soak.stop()
        sys.exit(1 if soak.wrong else 0)


if __name__ == "__main__":
    main()
