#!/usr/bin/env python3
"""What a scrape of /metrics costs: 200 services with a child each (CHILD=0: without), and 8 GPUs of the tests' fake driver. Given
several engines, they take turns. The time is that of the client, the CPU that of the engine.

    cargo build --release && cargo build --release --example fake_nvml
    benches/metrics/scrape.py [MACHINIST ...]

SCRAPES (200) in each of ROUNDS (3), PAUSE (0) seconds after each, CLIENTS (1) at once.
"""

import http.client
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time

import machine as bench

SERVICES, GPUS = 200, 8
SCRAPES, ROUNDS = int(os.environ.get("SCRAPES", 200)), int(os.environ.get("ROUNDS", 3))
PAUSE, CLIENTS = float(os.environ.get("PAUSE", 0)), int(os.environ.get("CLIENTS", 1))
CHILD = os.environ.get("CHILD", "1") == "1"


def cpu(pid):
    """In seconds."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid):
    fields = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["Threads"]), len(os.listdir(f"/proc/{pid}/fd"))


def scrapes(url, count, times):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    for _ in range(count):
        begun = time.perf_counter()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read()
        times.append((time.perf_counter() - begun) * 1000)
        time.sleep(PAUSE)
    connection.close()
    return text


def measure(machine, name):
    times, before, begun = [], cpu(machine.engine.pid), time.monotonic()
    others = [threading.Thread(target=scrapes, args=(machine.url, SCRAPES, times)) for _ in range(CLIENTS - 1)]
    for other in others:
        other.start()
    text = scrapes(machine.url, SCRAPES, times)
    for other in others:
        other.join()
    wall, used = time.monotonic() - begun, cpu(machine.engine.pid) - before
    series = sum(1 for line in text.decode().splitlines() if line and not line.startswith("#"))
    rss, threads, files = memory(machine.engine.pid)
    times.sort()
    print(f"{name}: {series} series, {len(text) / 1000:.0f} kB; median {statistics.median(times):.1f} ms, "
          f"p99 {times[int(len(times) * 0.99) - 1]:.1f}, best {times[0]:.1f}; CPU of the engine {used / len(times) * 1000:.1f} ms a scrape, "
          f"{used / wall * 100:.0f} % of one; RSS {rss:.1f} MiB, {threads} threads, {files} descriptors", flush=True)


def main():
    for _ in range(ROUNDS):
        for engine in sys.argv[1:] or ["target/release/machinist"]:
            bench.use(engine)
            files = {"machine.rhai": bench.services(SERVICES, CHILD) + "fn workers(m) { [] }\n", "machine.toml": bench.GPU_SETTINGS}
            with tempfile.TemporaryDirectory() as root, bench.Machine(pathlib.Path(root), files, GPUS) as machine:
                machine.share_gpus()
                bench.harness.wait("the GPUs' processes", 10, lambda: b"machinist_service_gpu_memory_bytes" in scrapes(machine.url, 1, []))
                measure(machine, engine)


if __name__ == "__main__":
    main()
