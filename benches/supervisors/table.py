#!/usr/bin/env python3
"""table.py RESULTS.json: a Markdown table of one run."""
import json, sys

r = json.load(open(sys.argv[1]))
names = [n for n in ("machinist", "floor_c", "floor_rs", "dinit", "zinit", "s6", "runit", "supervisord", "pm2") if n in r]


def get(n, *path):
    v = r[n]
    for p in path:
        if not isinstance(v, dict):
            return None
        v = v.get(p, v.get(str(p)))
    return v


def num(v, digits=2):
    if v is None:
        return "–"
    if isinstance(v, list):
        return ", ".join(v)
    if isinstance(v, str):
        return v
    return f"{v:.0f}" if v >= 100 else f"{v:.1f}" if v >= 10 else f"{v:.{digits}f}"


def mib(v):
    return None if v is None else v / 1024


rows = [
    ("crash to respawn, one service (ms)", lambda n: num(get(n, "crash", "alone", "ms"))),
    ("… one of 200 (ms)", lambda n: num(get(n, "crash", "of200", "ms"))),
    ("… 0.1 s after its start (ms)", lambda n: num(get(n, "crash", "young", "ms"))),
    ("cold start of 1 / 50 / 200 (ms)", lambda n: " / ".join(num(get(n, "cold", k, "start_ms"), 1) for k in (1, 50, 200))),
    ("stop of 1 / 50 / 200 (ms)", lambda n: " / ".join(num(get(n, "cold", k, "stop_ms"), 1) for k in (1, 50, 200))),
    ("RSS with 1 / 50 / 200 (MiB)", lambda n: " / ".join(num(mib(get(n, "cold", k, "rss_kib")), 1) for k in (1, 50, 200))),
    ("own processes with 200", lambda n: num(get(n, "cold", 200, "procs"), 0)),
    ("idle with 200: CPU (ms in 20 s)", lambda n: num(get(n, "idle", 200, "cpu_ms_20s"), 1)),
    ("… wake-ups a second", lambda n: num(get(n, "idle", 200, "wakeups_s"), 1)),
    ("status of 200 by CLI (ms)", lambda n: num(get(n, "idle", 200, "status_ms"), 1)),
    ("left after stop of one", lambda n: num(get(n, "orphan", "stop_one"))),
    ("left after a crash", lambda n: num(get(n, "orphan", "crash"))),
    ("left after stop of all", lambda n: num(get(n, "orphan", "stop_all"))),
    ("1,000,000 lines in the file (ms)", lambda n: num(get(n, "log", "ms"))),
    ("… supervisor CPU (ms)", lambda n: num(get(n, "log", "cpu_ms"))),
    ("… lines lost", lambda n: num(get(n, "log", "lost"), 0)),
    ("… RSS afterwards (MiB)", lambda n: num(mib(get(n, "log", "rss_kib")), 1)),
    ("zombies of 50 as PID 1", lambda n: num(get(n, "pid1", "zombies"), 0)),
    ("stop as PID 1 (ms)", lambda n: num(get(n, "pid1", "stop_ms"), 1)),
    ("zombies of 10,000 orphans", lambda n: num(get(n, "orphans", "zombies"), 0)),
    ("crash storm of 50: starts a second", lambda n: num(get(n, "storm", "starts_s"), 0)),
    ("… CPU a start (µs)", lambda n: num(get(n, "storm", "cpu_us_per_start"), 0)),
    ("respawn of a neighbour in the storm, median / p99 (ms)", lambda n: f'{num(get(n, "neighbour", "median"))} / {num(get(n, "neighbour", "p99"))}'),
]
print("| | " + " | ".join(names) + " |")
print("|---" * (len(names) + 1) + "|")
for label, f in rows:
    print(f"| {label} | " + " | ".join(f(n) for n in names) + " |")
m = r.get("machinist", {})
print("\nmachinist alone:", json.dumps({k: m.get(k) for k in ("scrape", "probes")}))
