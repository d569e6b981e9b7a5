#!/usr/bin/env python3
"""Half an hour (or SECONDS) of a machine under strain: 200 services, a random one killed every 100 ms, 1,000 log lines a
second, scrapes every 5 s. Samples the engine's memory, descriptors and threads, and prints first and last thirds.

    soak.py [SECONDS] [MACHINIST]
"""
import json, os, random, re, shutil, signal, statistics as st, subprocess, sys, tempfile, time, urllib.request

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 1800
ENGINE = sys.argv[2] if len(sys.argv) > 2 else "target/release/machinist"
URL = "http://127.0.0.1:9492"
d = tempfile.mkdtemp(prefix="soak-")
os.makedirs(f"{d}/m")
talk = "import time\\nfor i in range(10**9): print('line', i, 'of this service, long enough to look like a real one', flush=True); time.sleep(0.1)"
with open(f"{d}/m/machine.rhai", "w") as f:
    f.write("fn services(m) {\n    let all = [];\n")
    f.write('    for i in 0..100 { all.push(#{ name: `quiet-${i}`, command: ["sleep", "100000"], restart: #{ initial: "1ms", max: "1s", limit: 1000000000 } }); }\n')
    f.write(f'    for i in 0..100 {{ all.push(#{{ name: `talk-${{i}}`, command: ["python3", "-c", "{talk}"], restart: #{{ initial: "1ms", max: "1s", limit: 1000000000 }} }}); }}\n')
    f.write("    all\n}\n")
with open(f"{d}/m/machine.toml", "w") as f:
    f.write('[log]\nservices = false\n')
out = open(f"{d}/engine.log", "w")
p = subprocess.Popen([ENGINE, "run", f"{d}/m", "--state-dir", f"{d}/state", "--listen", URL[7:]], stdout=out, stderr=out)


def get(path):
    with urllib.request.urlopen(URL + path, timeout=10) as f:
        return f.read().decode()


def sample():
    text = open(f"/proc/{p.pid}/status").read()
    rss = int(re.search(r"VmRSS:\s+(\d+)", text).group(1))
    return dict(rss_kib=rss, fds=len(os.listdir(f"/proc/{p.pid}/fd")), threads=int(re.search(r"Threads:\s+(\d+)", text).group(1)))


time.sleep(5)
begun, kills, samples, slow = time.time(), 0, [], 0
next_sample = begun
pids = {}
while time.time() - begun < SECONDS:
    if time.time() >= next_sample:
        services = json.loads(get("/services"))["services"]
        pids = {s["name"]: s.get("pid") for s in services if s.get("pid")}
        slow = max(slow, sum(1 for s in services if s["state"] != "ready"))
        get("/metrics")
        samples.append(sample())
        print(json.dumps(dict(at=round(time.time() - begun), kills=kills, **samples[-1])), file=sys.stderr, flush=True)
        next_sample += 5
    if pids:
        name = random.choice(list(pids))
        try:
            os.kill(pids.pop(name), signal.SIGKILL)
            kills += 1
        except ProcessLookupError:
            pass
    time.sleep(0.1)
time.sleep(2)
services = json.loads(get("/services"))["services"]
not_ready = [s["name"] for s in services if s["state"] != "ready"]
restarts = sum(s["restarts"] for s in services)
metrics = get("/metrics")
dropped = sum(float(x) for x in re.findall(r"^machinist_service_log_dropped_lines_total\{.*\} (\S+)$", metrics, re.M))
cpu = float(re.search(r"^process_cpu_seconds_total (\S+)", metrics, re.M).group(1))
t = time.time()
p.send_signal(signal.SIGTERM)
code = p.wait(60)
stop_s = time.time() - t


def directory(pid):
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None


left = [x for x in os.listdir("/proc") if x.isdigit() and directory(x) == f"{d}/m"]
third = max(1, len(samples) // 3)
print(json.dumps(dict(
    seconds=SECONDS, kills=kills, restarts=restarts, not_ready_at_end=not_ready, most_not_ready=slow, dropped_lines=dropped,
    engine_cpu_ms_per_s=round(cpu * 1000 / SECONDS, 2), exit_code=code, stop_s=round(stop_s, 3), left=left,
    first_third={k: [min(s[k] for s in samples[:third]), st.median(s[k] for s in samples[:third]), max(s[k] for s in samples[:third])] for k in samples[0]},
    last_third={k: [min(s[k] for s in samples[-third:]), st.median(s[k] for s in samples[-third:]), max(s[k] for s in samples[-third:])] for k in samples[0]}), indent=1))
shutil.rmtree(d)
