"""A machine under a script: the built machinist on one of `machines/`, with a state of its own, asked over its HTTP API."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
ENDED = {"completed", "failed", "cancelled"}
# What test runners take for "did not run".
SKIPPED = 77


def skip(why):
    print(f"skipped: {why}")
    sys.exit(SKIPPED)


def binary():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    found = [path for path in (target / "release/machinist", target / "debug/machinist") if path.exists()]
    given = os.environ.get("MACHINIST")
    if not given and not found:
        skip("machinist is not built: run `cargo build`, or name it in MACHINIST")
    return given or str(max(found, key=lambda path: path.stat().st_mtime))


def free_port():
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def ask(method, url, body=None, headers=None, timeout=60):
    """The answer as data. Raises `urllib.error.HTTPError` for what is no success."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **(headers or {})}, method=method)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        text = answer.read()
    return json.loads(text) if text.strip() else None


def wait(what, limit, condition):
    """Asks until it gives something; what cannot be reached yet is asked again."""
    end = time.monotonic() + limit
    while True:
        try:
            found = condition()
        except OSError as cause:
            found, last = None, cause
        else:
            last = found
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"gave up waiting for {what} after {limit} s: {last}")
        time.sleep(0.05)


class Machine:
    def __init__(self, name, env):
        self.directory = str(REPOSITORY / "machines" / name)
        self.state = tempfile.mkdtemp(prefix=f"machinist-{pathlib.Path(name).name}-")
        self.url = f"http://127.0.0.1:{free_port()}"
        settings = {"MACHINIST_STATE_DIR": self.state, "MACHINIST_HTTP__LISTEN": self.url.removeprefix("http://")}
        self.env = {**os.environ, **settings, **env}
        self.engine = None
        self.start()

    def start(self):
        with open(f"{self.state}/engine.log", "ab") as log:
            self.engine = subprocess.Popen([binary(), "run", self.directory], env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self):
        """As a crash of the engine is: nothing is drained, told, or handed back."""
        self.engine.kill()
        self.engine.wait()

    def stop(self):
        self.engine.send_signal(signal.SIGTERM)
        code = self.engine.wait(180)
        assert code == 0, f"machinist ended with {code}: see {self.state}/engine.log"

    def __enter__(self):
        return self

    def __exit__(self, kind, _value, _trace):
        if self.engine.poll() is None:
            self.engine.send_signal(signal.SIGTERM)
            try:
                self.engine.wait(180)
            except subprocess.TimeoutExpired:
                self.kill()
        if kind is None:
            shutil.rmtree(self.state, ignore_errors=True)
        else:
            print(f"the machine's state and log are kept in {self.state}", file=sys.stderr)

    def get(self, path):
        return ask("GET", self.url + path)

    def post(self, path, body=None):
        return ask("POST", self.url + path, body)

    def claims(self, limit=300):
        """Waits until everything is up and all workers may claim jobs."""
        def ready():
            assert self.engine.poll() is None, f"machinist ended with {self.engine.returncode}: see {self.state}/engine.log"
            return self.get("/health")["healthy"]
        wait("the machine to be ready", limit, ready)

    def submit(self, jobs):
        return [job["id"] for job in self.post("/jobs", jobs)["jobs"]]

    def job(self, name):
        return self.get(f"/jobs/{name}")

    def events(self, name):
        return self.get(f"/jobs/{name}/events")["events"]

    def ended(self, name, limit=300):
        def look():
            job = self.job(name)
            return job if job["state"] in ENDED else None
        return wait(f"the end of job {name}", limit, look)

    def running(self, name, limit=120):
        """Waits until the job has told how far it is."""
        def look():
            job = self.job(name)
            assert job["state"] not in ENDED, f"job {name} has ended: {job['state']}, {job.get('failure')}"
            return (job.get("progress") or {}).get("fraction", 0) > 0
        wait(f"progress of job {name}", limit, look)

    def service(self, name):
        return next(service for service in self.get("/services")["services"] if service["name"] == name)
