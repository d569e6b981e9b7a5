#!/usr/bin/env python3
"""From the save of a file to the moment at which it is live, with the default debounce of 200 ms.

    bench.py [EDITS] [MACHINIST]

Four kinds of edits, EDITS (120) of each: a service that takes a new process (live: the new process has written a file),
an update in place, a connector and an imported module that only the worker uses (live: /status shows the generation).
Prints a table in milliseconds.
"""
import http.client, json, os, shutil, statistics, subprocess, sys, tempfile, time

EDITS = int(sys.argv[1]) if len(sys.argv) > 1 else 120
ENGINE = os.path.abspath(sys.argv[2] if len(sys.argv) > 2 else "target/release/machinist")
PORT = 9493
DIR = tempfile.mkdtemp(prefix="reload-bench-")
MACHINE = f"{DIR}/m"


def script(version, grace):
    others = "".join(f'  #{{ name: "other-{n}", command: ["sleep", "100000"] }},\n' for n in range(20))
    return (
        f"fn services(m) {{ [\n{others}"
        f'  #{{ name: "web", shell: "echo {version} > live; exec sleep 100000", stop: #{{ grace: "{grace}s" }} }},\n] }}\n'
        'fn workers(m) { [ #{ name: "w", connector: "mine" } ] }\n'
    )


def save(name, text):
    """As editors do: by rename."""
    path = f"{MACHINE}/{name}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.new", "w") as f:
        f.write(text)
    os.rename(f"{path}.new", path)


def connector(version):
    return f'import "lib/values" as values;\nfn run(job, ctx) {{ #{{ version: {version}, value: values::value() }} }}\n'


def generation(connection):
    connection.request("GET", "/status")
    return json.loads(connection.getresponse().read())["generation"]["number"]


def until(condition, limit=30):
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("an edit did not go live in 30 s")
        time.sleep(0.001)


def live():
    try:
        return open(f"{MACHINE}/live").read().strip()
    except FileNotFoundError:
        return ""


save("machine.rhai", script(0, 5))
save("connectors/mine.rhai", connector(0))
save("lib/values.rhai", "fn value() { 0 }\n")
log = open(f"{DIR}/log", "w")
engine = subprocess.Popen(
    [ENGINE, "run", MACHINE, "--state-dir", f"{DIR}/state", "--listen", f"127.0.0.1:{PORT}"], stdout=log, stderr=log
)
rows = []
try:
    until(lambda: live() == "0")
    connection = http.client.HTTPConnection("127.0.0.1", PORT)
    number, version, grace = generation(connection), 0, 5
    for kind in ("new process", "update in place", "connector", "imported module"):
        took = []
        for n in range(1, EDITS + 1):
            time.sleep(0.05 + 0.013 * (n % 7))  # not in step with anything of the engine
            begun = time.monotonic()
            if kind == "new process":
                version += 1
                save("machine.rhai", script(version, grace))
                until(lambda: live() == str(version))
                took.append(time.monotonic() - begun)
                number = generation(connection)
                continue
            if kind == "update in place":
                grace += 1
                save("machine.rhai", script(version, grace))
            elif kind == "connector":
                save("connectors/mine.rhai", connector(n))
            else:
                save("lib/values.rhai", f"fn value() {{ {n} }}\n")
            until(lambda: generation(connection) > number)
            took.append(time.monotonic() - begun)
            number = generation(connection)
        took = sorted(1000 * t for t in took)
        rows.append((kind, len(took), statistics.median(took), took[int(len(took) * 0.99)], took[-1]))
finally:
    engine.terminate()
    engine.wait(40)
    shutil.rmtree(DIR, ignore_errors=True)
print("| save to live (ms) | edits | median | p99 | worst |\n|---|---|---|---|---|")
for kind, count, median, p99, worst in rows:
    print(f"| {kind} | {count} | {median:.0f} | {p99:.0f} | {worst:.0f} |")
