#!/usr/bin/env python3
"""How long one machine takes for many jobs of an API at once, and how much memory it has before, meanwhile and after.

machines/api with as many slots as jobs, on an embedded queue, asks a server here that answers each chat after a second. Ideal is
that second. Run it with a release build: `MACHINIST=target/release/machinist benches/connectors/at_once.py [JOBS] [ROUNDS]`.
"""

import asyncio
import json
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/real"))
import harness  # noqa: E402

SECONDS = 1.0
ANSWER = json.dumps({
    "id": "c1", "model": "m", "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 26, "completion_tokens": 2, "total_tokens": 28},
}).encode()


class Server:
    """Answers chats after a second, on a thread of its own; knows how many it had at once."""

    def __init__(self):
        self.now = self.most = self.asked = 0
        self.first = self.last = None
        self.port = harness.free_port()
        started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self.serve(started)), daemon=True).start()
        started.wait()

    async def serve(self, started):
        server = await asyncio.start_server(self.talk, "127.0.0.1", self.port, backlog=2048)
        started.set()
        async with server:
            await server.serve_forever()

    async def talk(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
                await reader.readexactly(length)
                body = b'{"data": []}'
                if head.startswith("post"):
                    self.asked += 1
                    self.first = self.first or time.monotonic()
                    self.last = time.monotonic()
                    self.now += 1
                    self.most = max(self.most, self.now)
                    await asyncio.sleep(SECONDS)
                    self.now -= 1
                    body = ANSWER
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def status(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["Threads"])


def cpu(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


class Sampler(threading.Thread):
    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.rss, self.threads, self.on = pid, 0, 0, True
        self.start()

    def run(self):
        while self.on:
            rss, threads = status(self.pid)
            self.rss, self.threads = max(self.rss, rss), max(self.threads, threads)
            time.sleep(0.02)


def main():
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    server = Server()
    env = {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": f"http://127.0.0.1:{server.port}/v1", "MACHINIST_VARS__APIS__OPENAI__SLOTS": str(jobs)}
    print(f"{harness.binary()}: {jobs} jobs of {SECONDS:g} s at once, {rounds} rounds")
    with harness.Machine("api", env) as machine:
        pid = machine.engine.pid
        harness.wait("the worker", 60, lambda: machine_ready(machine))
        time.sleep(1)
        before, _ = status(pid)
        print(f"RSS before: {before:.1f} MiB")
        for number in range(rounds):
            server.most, server.first, server.last = 0, None, None
            payload = {"request": {"model": "m", "messages": [{"role": "user", "content": "Say hello."}]}, "stream": False}
            batch = [{"service": "openai", "payload": payload} for _ in range(jobs)]
            done = (number + 1) * jobs
            sampler, used, begun = Sampler(pid), cpu(pid), time.monotonic()
            harness.ask("POST", f"{machine.url}/jobs", batch)
            submitted = time.monotonic() - begun
            harness.wait("all jobs", 120, lambda: harness.ask("GET", f"{machine.url}/queue")["completed"] >= done)
            wall = time.monotonic() - begun
            sampler.on = False
            time.sleep(2)
            after, _ = status(pid)
            spread = server.last - server.first
            print(
                f"round {number + 1}: {wall:.2f} s from the submission ({submitted:.2f} s) to the last end, {server.most} at once, "
                f"asked within {spread:.2f} s; CPU {cpu(pid) - used:.2f} s; RSS at most {sampler.rss:.1f} MiB, "
                f"{sampler.threads} threads; 2 s after {after:.1f} MiB"
            )
        assert server.asked == jobs * rounds, f"{server.asked} requests for {jobs * rounds} jobs"
        machine.stop()


def machine_ready(machine):
    return harness.ask("GET", f"{machine.url}/status")["workers"]["openai"]["state"] == "active"


main()
