#!/usr/bin/env python3
"""What a scrape of /metrics costs: 200 services with a child each, and 8 GPUs of the fake driver of the tests.

    cargo build --release && cargo build --release --example fake_nvml
    benches/metrics/scrape.py target/release/machinist
"""
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

SERVICES, GPUS, SCRAPES = 200, 8, 200
BINARY = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/release/machinist").resolve()
LIBRARY = pathlib.Path(os.environ.get("FAKE_NVML", BINARY.parent / "examples/libfake_nvml.so"))

SCRIPT = """fn services(m) {
    [ #{ name: "s", instances: %d, shell: "sleep 1000 & wait" } ]
}
fn workers(m) { [] }
""" % SERVICES


def gpu(index):
    return {
        "uuid": f"GPU-{index}0000000-aaaa", "memory_total": 80 << 30, "memory_used": 40 << 30, "utilization": 50,
        "memory_utilization": 25, "temperature": 60, "power": 250500, "power_limit": 400000, "energy": 1234500,
        "sm_clock": 1410, "memory_clock": 1593, "pcie_replays": 3, "throttle": 4, "ecc": [[5, 1], [50, 2]], "processes": [],
    }


def get(url):
    with urllib.request.urlopen(url) as answer:
        return answer.read()


def main():
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        (root / "machine").mkdir()
        (root / "machine/machine.rhai").write_text(SCRIPT)
        (root / "machine/machine.toml").write_text("[gpu]\ndcgm_names = true\nevery = \"1s\"\n")
        state = {"gpus": [gpu(index) for index in range(GPUS)], "xids": []}
        (root / "gpus.json").write_text(json.dumps(state))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        environment = os.environ | {
            "FAKE_NVML_STATE": str(root / "gpus.json"), "MACHINIST_GPU__LIBRARY": str(LIBRARY),
            "MACHINIST_STATE_DIR": str(root / "state"),
        }
        command = [BINARY, "run", root / "machine", "--listen", f"127.0.0.1:{port}"]
        with open(root / "log", "w") as log:
            engine = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    status = json.loads(get(f"{url}/status"))
                    if status["state"] == "healthy":
                        break
                except OSError:
                    pass
                if time.monotonic() > deadline:
                    sys.exit((root / "log").read_text())
                time.sleep(0.1)
            # A process with GPU memory in every service.
            pids = [service["pid"] for service in status["services"].values()]
            for index, pid in enumerate(pids):
                state["gpus"][index % GPUS]["processes"].append([pid, 1 << 30])
            (root / "gpus.new").write_text(json.dumps(state))
            (root / "gpus.new").rename(root / "gpus.json")
            time.sleep(3)
            times = []
            for _ in range(SCRAPES):
                begun = time.perf_counter()
                text = get(f"{url}/metrics")
                times.append((time.perf_counter() - begun) * 1000)
            series = sum(1 for line in text.decode().splitlines() if line and not line.startswith("#"))
            times.sort()
            print(f"{SERVICES} services, {GPUS} GPUs: {series} series, {len(text) / 1000:.0f} kB; "
                  f"median {statistics.median(times):.1f} ms, p99 {times[int(len(times) * 0.99) - 1]:.1f} ms, "
                  f"best {times[0]:.1f} ms")
        finally:
            engine.send_signal(signal.SIGTERM)
            engine.wait()


if __name__ == "__main__":
    main()
