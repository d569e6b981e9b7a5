"""Keeps files in servers that speak as S3 and as Azure Blob do: Moto and Azurite.

    pip install 'moto[server]' && npm install azurite && python3 tests/real/storage.py

MOTO and AZURITE name the programs where they are not in PATH (`moto_server`, `azurite-blob`). What is not there is left out; ends with 77
where neither is. A connector on a machine of its own does what scripts do with each. (gcp-storage-emulator, of PyPI, answers without the ETag
that Google gives, so nothing of Google's can be shown with it.)
"""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request

from harness import Machine, free_port, skip, wait

# The account that Azurite documents for everybody.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
LARGE = 20 << 20

SCRIPT = """fn services(m) { [] }
fn workers(m) { [ #{ name: "w", connector: "store" } ] }
"""

CONNECTOR = """const CONFIG = #{};

fn failing(act) {
    try { act.call(); } catch (e) { return e.kind; }
    "nothing"
}

fn run(job, ctx) {
    let options = job.payload.store;
    options.secret_key = secret("STORE_KEY");
    let store = storage::open(options);
    let found = #{};
    let put = store.put("a/small one.txt", "hello", #{ content_type: "text/plain" });
    found.put = [put.bytes, put.sha256];
    found.got = store.get("a/small one.txt").text();
    let head = store.head("a/small one.txt");
    found.head = [head.bytes, head.content_type];
    job.progress(0.3, "small");

    // More than 8 MiB goes in parts.
    process::run(#{ argv: ["sh", "-c", `head -c ${job.payload.bytes} /dev/urandom >large.bin`] });
    let large = store.upload("a/large.bin", "large.bin");
    found.large = large.bytes;
    store.download("a/large.bin", "back.bin", #{ sha256: large.sha256 });
    found.same = process::run(#{ argv: ["cmp", "large.bin", "back.bin"] }).code;
    job.progress(0.6, "large");

    for i in range(0, 12) { store.put(`many/${i}`, `${i}`); }
    found.listed = store.list("many").len;
    found.first_of_many = store.list("many", 5).len;
    found.presigned = http::get(store.presign_get("many/3", "1h")).text();
    let to = store.presign_put("a/sent.txt", "1h");
    http::request(#{ method: "PUT", url: to, body: "sent", headers: job.payload.put_headers });
    found.sent = store.get("a/sent.txt").text();
    store.delete("a/small one.txt");
    found.exists = store.exists("a/small one.txt");
    found.missing = failing(|| store.get("a/small one.txt"));
    if "denied" in job.payload {
        let wrong = job.payload.store;
        wrong.secret_key = secret("WRONG_KEY");
        found.denied = failing(|| storage::open(wrong).put("x", "y"));
    }
    found
}
"""


class Server:
    def __init__(self, command, ready):
        self.log = tempfile.NamedTemporaryFile(prefix="storage-", suffix=".log", delete=False)
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True)
        wait(f"{command[0]} (its log is {self.log.name})", 60, ready)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()
        os.unlink(self.log.name)


def answers(url):
    def ready():
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            pass
        return True
    return ready


def program(variable, name):
    given = os.environ.get(variable) or shutil.which(name)
    if not given or not pathlib.Path(given).exists():
        print(f"{name}: left out, it is not there")
        return None
    return given


def run(name, payload, secrets):
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory, "store")
        (root / "connectors").mkdir(parents=True)
        (root / "machine.rhai").write_text(SCRIPT)
        (root / "connectors/store.rhai").write_text(CONNECTOR)
        with Machine(root, secrets) as machine:
            machine.claims()
            (job,) = machine.submit([{"service": "store", "payload": {"bytes": LARGE, **payload}, "retry": {"max_attempts": 1}}])
            ended = machine.ended(job)
            assert ended["state"] == "completed", f"{name}: {json.dumps(ended.get('failure'))}"
            result = ended["result"]
            machine.stop()
    expected = {
        "put": [5, hashlib.sha256(b"hello").hexdigest()], "got": "hello", "head": [5, "text/plain"], "large": LARGE, "same": 0, "listed": 12,
        "first_of_many": 5, "exists": False, "missing": "missing",
    }
    expected |= {"presigned": "3", "sent": "sent"}
    if "denied" in payload:
        expected["denied"] = "denied"
    assert result == expected, f"{name}: {result}"
    print(f"{name}: {len(expected)} things held, {LARGE >> 20} MiB in parts")


def s3(moto):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with Server([moto, "-H", "127.0.0.1", "-p", str(port)], answers(url)):
        urllib.request.urlopen(urllib.request.Request(f"{url}/images", method="PUT"))
        store = {"url": "s3://images/out", "endpoint": url, "access_key": "id"}
        run("S3 (Moto)", {"store": store, "put_headers": {}}, {"STORE_KEY": "key"})


def azure(azurite):
    port = free_port()
    url = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
    with tempfile.TemporaryDirectory() as data:
        command = [azurite, "--blobPort", str(port), "--location", data, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
        with Server(command, answers(f"http://127.0.0.1:{port}/")):
            create_container(port)
            store = {"url": "az://images/out", "endpoint": url, "access_key": AZURE_ACCOUNT}
            wrong = {"STORE_KEY": AZURE_KEY, "WRONG_KEY": AZURE_KEY.replace("Eby8", "Abcd")}
            headers = {"x-ms-blob-type": "BlockBlob"}
            run("Azure (Azurite)", {"store": store, "put_headers": headers, "denied": True}, wrong)


def create_container(port):
    import base64
    import email.utils
    import hmac
    date = email.utils.formatdate(usegmt=True)
    headers = {"x-ms-date": date, "x-ms-version": "2021-08-06"}
    canonical = "".join(f"{key}:{value}\n" for key, value in sorted(headers.items()))
    resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/images\nrestype:container"
    text = "PUT\n\n\n\n\ntext/plain\n\n\n\n\n\n\n" + canonical + resource
    signature = base64.b64encode(hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()).decode()
    headers["Content-Type"] = "text/plain"
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{signature}"
    url = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}/images?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers, data=b""))


def main():
    servers = [(s3, program("MOTO", "moto_server")), (azure, program("AZURITE", "azurite-blob"))]
    there = [(check, found) for check, found in servers if found]
    if not there:
        skip("neither is there, see the head of this file")
    for check, found in there:
        check(found)
    print("everything held")


main()
