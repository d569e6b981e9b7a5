#!/usr/bin/env python3
"""A real Prometheus scrapes a busy machine: services that come and go under new names with each reload, kill -9, broken edits,
jobs that complete, fail and cost something, two GPUs of the tests' fake driver. In the end all that has to hold is printed, and checked.

    cargo build --release && cargo build --release --example fake_nvml
    benches/metrics/soak.py [SECONDS] [MACHINIST]

Needs `prometheus` and `promtool`.
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import machine as bench

SECONDS = int(sys.argv[1]) if len(sys.argv) > 1 else 300
# Services that stay, services of each generation, seconds between reloads.
LASTING, PASSING, RELOAD_EVERY = 20, 20, 5

# Nobody takes its spans.
SETTINGS = """[connectors.command.vars.programs]
true = ["true"]
false = ["false"]
[connectors.simulation]
account = "key"
[telemetry]
otlp_endpoint = "http://127.0.0.1:1"
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
fn workers(m) { [ #{ name: "w%d", connector: "command", slots: 4 }, #{ name: "paid", connector: "simulation" } ] }
""" % (LASTING, PASSING, turn, turn % 3)


def prometheus(root, url, target):
    """One that scrapes `target` every second and answers at `url`."""
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "5s"},
        "rule_files": [str(bench.REPOSITORY / "docker/prometheus/alerts.yml")],
        "scrape_configs": [{"job_name": "machinist", "static_configs": [{"targets": [target.removeprefix("http://")]}]}],
    }
    (root / "prometheus.yml").write_text(json.dumps(config))
    with open(root / "prometheus.log", "w") as log:
        return subprocess.Popen(
            ["prometheus", f"--config.file={root}/prometheus.yml", f"--storage.tsdb.path={root}/data",
             "--web.listen-address=" + url.removeprefix("http://")], stdout=log, stderr=log)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


class Soak:
    def __init__(self, machine, prometheus_url):
        self.machine, self.prometheus_url, self.turn, self.wrong = machine, prometheus_url, 0, []

    def query(self, query):
        answer = json.loads(get(f"{self.prometheus_url}/api/v1/query?" + urllib.parse.urlencode({"query": query})))
        return [float(result["value"][1]) for result in answer["data"]["result"]]

    def check(self, what, holds):
        print(f"{'ok  ' if holds else 'FAIL'} {what}")
        if not holds:
            self.wrong.append(what)

    def hurt(self):
        """A second of a machine's life."""
        for _ in range(20):
            self.machine.submit({"service": "command", "payload": {"program": random.choice(["true", "true", "true", "false"])}})
        used = {"duration": 0, "steps": 1, "usage": {"images": 2, "cost_usd": 0.25}}
        self.machine.submit({"service": "simulation", "payload": used})
        alive = [pid for name, pid in self.machine.pids().items() if name.startswith("lasting")]
        for pid in random.sample(alive, min(2, len(alive))):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def lint(self):
        text = get(f"{self.machine.url}/metrics")
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
        return done.returncode == 0, (done.stdout + done.stderr).decode().strip()

    def run(self):
        begun, settled = time.monotonic(), SECONDS / 5
        # Nobody can run these: they wait.
        for _ in range(3):
            self.machine.submit({"service": "nobody", "requirement": {"pool": "fast"}, "payload": {}})
        reloads = broken = 0
        while (now := time.monotonic() - begun) < SECONDS:
            if now > (reloads + broken) * RELOAD_EVERY:
                if (reloads + broken) % 6 == 5:
                    broken += 1
                    self.machine.edit("fn services(m) { [ #{ name: 1")
                else:
                    reloads += 1
                    self.turn += 1
                    self.machine.edit(script(self.turn))
            self.hurt()
            time.sleep(1)
        # Let what was edited last go live, and one more scrape see it.
        self.machine.edit(script(self.turn + 1))
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
        dashboard = json.loads((bench.REPOSITORY / "docker/grafana/dashboards/machines.json").read_text())
        empty, asked = [], 0
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
                asked += 1
                if not self.query(query):
                    empty.append(f"{panel['title']}: {query}")
        self.check(f"{asked} queries of the dashboard find something" + "".join(f"\n       not {one}" for one in empty), not empty)


def main():
    bench.use(sys.argv[2] if len(sys.argv) > 2 else "target/release/machinist")
    files = {"machine.rhai": script(0), "machine.toml": SETTINGS}
    with tempfile.TemporaryDirectory() as directory, bench.Machine(pathlib.Path(directory), files, gpus=2) as machine:
        url = f"http://127.0.0.1:{bench.harness.free_port()}"
        scraper = prometheus(pathlib.Path(directory), url, machine.url)
        try:
            soak = Soak(machine, url)
            soak.run()
        finally:
            scraper.send_signal(signal.SIGTERM)
            scraper.wait()
    sys.exit(1 if soak.wrong else 0)


if __name__ == "__main__":
    main()
