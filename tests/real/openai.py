"""Asks a real OpenAI-compatible server, the LiteLLM proxy, through the queue: answers, streams, errors, limits, kill -9.

    pip install 'litellm[proxy]' && python3 tests/real/openai.py [JOBS]

LITELLM names the program where it is not in PATH. Ends with 77 where there is none. LiteLLM makes some answers up itself; for others it
asks an upstream in here, which breaks off, is slow or full as providers are. It runs `machines/api`.
"""

import collections
import contextlib
import http.server
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from harness import Machine, ask, free_port, skip, wait

WORDS = "One two three four five six seven eight nine ten."
KEY = "sk-right"
# As in machines/api/machine.toml.
SLOTS = 16


def main(jobs):
    program = os.environ.get("LITELLM") or shutil.which("litellm") or skip("litellm is not there: pip install 'litellm[proxy]', or name it in LITELLM")
    if not pathlib.Path(program).exists():
        skip(f"{program} is not there: LITELLM")
    with Upstream() as upstream, Proxy(program, upstream.url) as proxy:
        env = {"OPENAI_BASE_URL": f"{proxy.url}/v1", "OPENAI_API_KEY": KEY}
        with Machine("api", env) as machine:
            machine.claims()
            answers(machine)
            many(machine, jobs)
            refusals(machine)
            passing(machine, upstream)
            cancelling(machine, upstream)
            killed(machine, proxy)
            machine.stop()
        wrong_key({**env, "OPENAI_API_KEY": "sk-wrong"})
    print("everything held")


def told(what, how):
    print(f"{what}: {how}", flush=True)


class Upstream:
    """A provider behind the proxy. What a model does stands in its name; each remembers how often it was asked."""

    def __init__(self):
        self.asked = collections.Counter()
        self.gone = threading.Event()
        upstream = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                model = request["model"]
                upstream.asked[model] += 1
                first = upstream.asked[model] == 1
                if model == "full" and first:
                    return self.answer(429, {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}, {"retry-after": "2"})
                if model == "ill" and first:
                    return self.answer(503, {"error": {"message": "overloaded", "type": "server_error"}})
                if model == "poor":
                    return self.answer(429, {"error": {"message": "no credit", "type": "insufficient_quota", "code": "insufficient_quota"}})
                self.stream(model, first)

            def answer(self, status, body, headers=None):
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def stream(self, model, first):
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                # In chunks, so that an end in the middle is seen to be none.
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                self.close_connection = True
                try:
                    for number in range(1000 if model == "endless" else 5):
                        self.chunk({"content": f"{number} "})
                        if model == "breaking" and first and number == 2:
                            return
                        if model == "endless":
                            time.sleep(0.1)
                    self.chunk({}, "stop")
                    self.write("[DONE]")
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    upstream.gone.set()

            def chunk(self, delta, finish=None):
                choice = {"index": 0, "delta": delta, "finish_reason": finish}
                chunk = {"id": "u", "object": "chat.completion.chunk", "created": 1, "model": "u", "choices": [choice]}
                self.write(json.dumps(chunk))

            def write(self, data):
                event = f"data: {data}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                self.wfile.flush()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()


class Proxy:
    def __init__(self, program, upstream):
        self.program = program
        self.state = tempfile.mkdtemp(prefix="litellm-")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        made_up = {"words": WORDS, "limited": "litellm.RateLimitError", "broken": "litellm.InternalServerError", "short": "litellm.ContextWindowExceededError"}
        models = [{"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_key": "none", "mock_response": answer}} for name, answer in made_up.items()]
        for name in ("plain", "full", "ill", "poor", "breaking", "endless"):
            models.append({"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_key": "none", "api_base": upstream, "max_retries": 0}})
        config = {"model_list": models, "general_settings": {"master_key": KEY}, "router_settings": {"num_retries": 0, "disable_cooldowns": True}}
        # JSON is YAML.
        pathlib.Path(f"{self.state}/config.yaml").write_text(json.dumps(config))
        self.start()

    def start(self):
        # Else it asks the web for prices.
        env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        command = [self.program, "--config", f"{self.state}/config.yaml", "--host", "127.0.0.1", "--port", str(self.port)]
        with open(f"{self.state}/log", "ab") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait("LiteLLM to answer", 180, lambda: ask("GET", f"{self.url}/health/liveliness"))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.kill()
        if kind is None:
            shutil.rmtree(self.state, ignore_errors=True)
        else:
            print(f"LiteLLM's log is kept in {self.state}", file=sys.stderr)


def job(model, name=None, stream=True, attempts=3):
    request = {"model": model, "messages": [{"role": "user", "content": "count"}]}
    made = {"service": "openai", "payload": {"request": request, "stream": stream}}
    made["retry"] = {"max_attempts": attempts, "backoff": {"initial": 0.2, "max": 1}}
    return {**made, "id": name} if name else made


def run(machine, *args, **more):
    return machine.ended(machine.submit([job(*args, **more)])[0])


def parts(machine, done):
    return [event["data"]["text"] for event in machine.events(done["id"]) if event["kind"] == "partial"]


# ---- what must hold


def answers(machine):
    for stream in (False, True):
        done = run(machine, "words", stream=stream)
        assert done["state"] == "completed", done
        result = done["result"]
        assert (result["text"], result["finish_reason"], result["model"]) == (WORDS, "stop", "words"), result
        assert result["usage"]["completion_tokens"] > 0, result
        told_of = parts(machine, done)
        assert "".join(told_of) == (WORDS if stream else ""), told_of
    told("an answer, and a stream", f"right, the stream in {len(told_of)} parts")


def many(machine, count):
    began = time.monotonic()
    names = machine.submit([job("words", f"many-{n}", stream=n % 2 == 0) for n in range(count)])
    for name in names:
        done = machine.ended(name)
        assert done["state"] == "completed" and done["attempts"] == 1 and done["result"]["text"] == WORDS, done
    took = time.monotonic() - began
    told(f"{count} jobs", f"{took:.1f} s, {count / took:.0f} a second, every text right")


def refusals(machine):
    """What no other try can help is tried once; what one may help as often as the job allows."""
    for model, classes, attempts in (
        ("short", {"fatal"}, 1), ("not-there", {"fatal"}, 1), ("broken", {"retryable"}, 2), ("limited", {"retryable"}, 2),
    ):
        done = run(machine, model, attempts=2)
        assert done["state"] == "failed" and done["attempts"] == attempts and done["failure"]["class"] in classes, done
        told(model, f"{done['failure']['class']} after {attempts}: {done['failure']['message'][:90]!r}")


def passing(machine, upstream):
    """What passes costs at most an attempt."""
    began = time.monotonic()
    done = run(machine, "full")
    took = time.monotonic() - began
    assert done["state"] == "completed", done
    told("a limit", f"over after {took:.1f} s, in attempt {done['attempts']}, asked {upstream.asked['full']} times")
    done = run(machine, "ill")
    assert done["state"] == "completed" and upstream.asked["ill"] == 2, done
    done = run(machine, "breaking")
    assert done["state"] == "completed" and done["attempts"] == 2, done
    assert done["result"]["text"] == "0 1 2 3 4 ", done
    told("a stream that broke", f"whole in attempt 2 ({done['history'][0]['failure']['message'][:90]!r})")


def cancelling(machine, upstream):
    name = machine.submit([job("endless")])[0]
    wait("parts of the stream", 30, lambda: len([event for event in machine.events(name) if event["kind"] == "partial"]) > 3)
    began = time.monotonic()
    machine.post(f"/jobs/{name}/cancel")
    assert machine.ended(name)["state"] == "cancelled"
    assert upstream.gone.wait(20), "the provider goes on for nobody"
    told("a cancelled stream", f"the provider had lost its client {time.monotonic() - began:.1f} s later")


def killed(machine, proxy):
    names = machine.submit([job("words", f"killed-{n}") for n in range(200)])
    wait("some answers", 60, lambda: sum(machine.job(name)["state"] == "completed" for name in names[:20]) > 5)
    proxy.kill()
    proxy.start()
    for name in names:
        done = machine.ended(name)
        assert done["state"] == "completed" and done["result"]["text"] == WORDS, done
    attempts = collections.Counter(machine.job(name)["attempts"] for name in names)
    again = sum(count * (number - 1) for number, count in attempts.items())
    assert again <= 2 * SLOTS, f"{again} attempts were spent on a server that was gone: {attempts}"
    told("LiteLLM was killed", f"all {len(names)} jobs done, {again} attempts cost")


def wrong_key(env):
    """No job is burnt for it: none is claimed, and it says why."""
    with Machine("api", env) as machine:
        wait("the API", 30, lambda: machine.get("/status"))
        name = machine.submit([job("words")])[0]

        def why():
            with contextlib.suppress(OSError):
                return [worker["reason"] for worker in machine.get("/status")["workers"].values() if worker.get("reason") and "40" in worker["reason"]]
        found = wait("the worker to say what is wrong", 60, why)
        assert machine.job(name)["state"] == "pending" and machine.job(name)["attempts"] == 0, machine.job(name)
        told("a wrong key", f"no job is claimed: {found[0][:100]!r}")
        machine.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
