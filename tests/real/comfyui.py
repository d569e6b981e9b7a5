"""Drives a real ComfyUI through the queue, without any model: right pixels, cancelling, and kill -9 of everything in the middle.

    COMFYUI_DIR=/opt/comfyui python3 tests/real/comfyui.py [JOBS]

COMFYUI_DIR holds ComfyUI; COMFYUI_PYTHON is its Python (venv/bin/python in there without it). It runs on the CPU. Ends with 77 where
there is none. It runs `machines/gpu`, whose ComfyUI machinist supervises, and `machines/api`, which asks one that is not its own.
"""

import base64
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import png
from harness import Machine, ask, free_port, skip, wait

# A job that takes long: so many blurs of so large an image. ComfyUI looks whether it is interrupted between two nodes.
BLURS, SIZE = 24, 256


def main(jobs):
    directory = os.environ.get("COMFYUI_DIR") or skip("set COMFYUI_DIR to the directory of a ComfyUI")
    python = os.environ.get("COMFYUI_PYTHON") or f"{directory}/venv/bin/python"
    for needed in (f"{directory}/main.py", python):
        if not pathlib.Path(needed).exists():
            skip(f"{needed} is not there: COMFYUI_DIR, COMFYUI_PYTHON")
    env = {"COMFYUI_DIR": directory, "COMFYUI_PYTHON": python, "COMFYUI_DEVICE": "cpu"}
    port = free_port()
    with tempfile.TemporaryDirectory() as models, Machine("gpu", {**env, **with_models(models), "MACHINIST_VARS__COMFYUI__PORT": str(port)}) as machine:
        began = time.monotonic()
        machine.claims()
        told("the machine is ready", f"{time.monotonic() - began:.1f} s after its start")
        comfy = f"http://127.0.0.1:{port}"
        stats = ask("GET", f"{comfy}/system_stats")["system"]
        told("ComfyUI", f"{stats['comfyui_version']}, torch {stats['pytorch_version']}, on the CPU")
        direct(comfy)
        many(machine, jobs)
        over_websocket(machine)
        inventory(machine, models)
        cancelling(machine, comfy)
        backend_killed(machine)
        engine_killed(machine)
        machine.stop()
    elsewhere(env)
    print("everything held")


def told(what, how):
    print(f"{what}: {how}", flush=True)


# ---- workflows


def inverted(number, prefix):
    """A workflow, and the picture it must give."""
    colour = random.Random(number).randrange(1 << 24)
    width, height = 64 + number % 64, 64
    workflow = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": width, "height": height, "batch_size": 1, "color": colour}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }
    pixel = bytes(255 - (colour >> shift & 255) for shift in (16, 8, 0))
    return {"workflow": workflow}, (width, height, pixel * width * height)


def scaled(number, prefix):
    """The same for a picture that the job brings along."""
    width, height = 24 + number % 8, 20
    pixels = random.Random(number).randbytes(width * height * 3)
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "noise.png"}},
        "2": {"class_type": "ImageScale", "inputs": {
            "image": ["1", 0], "upscale_method": "nearest-exact", "width": width * 3, "height": height * 3, "crop": "disabled"}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }
    rows = [b"".join(pixels[at:at + 3] * 3 for at in range(y * width * 3, (y + 1) * width * 3, 3)) for y in range(height)]
    expected = b"".join(row * 3 for row in rows)
    picture = base64.b64encode(png.encode(width, height, pixels)).decode()
    return {"workflow": workflow, "inputs": {"noise.png": {"base64": picture}}}, (width * 3, height * 3, expected)


def blurred(number, prefix, blurs=BLURS, size=SIZE):
    """A picture of one colour, which no blur changes."""
    colour = random.Random(number).randrange(1 << 24)
    workflow = {"0": {"class_type": "EmptyImage", "inputs": {"width": size, "height": size, "batch_size": 1, "color": colour}}}
    for n in range(blurs):
        workflow[str(n + 1)] = {"class_type": "ImageBlur", "inputs": {"image": [str(n), 0], "blur_radius": 31, "sigma": 3.0 + number / 1000}}
    workflow[str(blurs + 1)] = {"class_type": "SaveImage", "inputs": {"images": [str(blurs), 0], "filename_prefix": prefix}}
    return {"workflow": workflow}, (size, size, colour.to_bytes(3) * size * size)


def of_all_kinds(number, prefix):
    if number % 10 == 0:
        return blurred(number, prefix, 4, 128)
    return (inverted if number % 2 else scaled)(number, prefix)


def job(name, payload):
    return {"id": name, "service": "comfyui", "payload": payload}


def check(job, expected):
    """Exactly one picture, and each of its pixels; ComfyUI cuts off fractions."""
    assert job["state"] == "completed", f"{job['id']} is {job['state']}: {job.get('failure')}"
    files = job["result"]["files"]
    assert len(files) == 1, f"{job['id']} has {len(files)} files"
    width, height, pixels = png.decode(base64.b64decode(files[0]["base64"]))
    assert (width, height) == expected[:2], f"{job['id']}: {width} x {height}, not {expected[:2]}"
    worst = max(abs(a - b) for a, b in zip(pixels, expected[2], strict=True))
    assert worst <= 1, f"{job['id']}: a pixel is {worst} off"


def prompts(comfy, prefix):
    """The prompts that ComfyUI has run whose outputs begin so."""
    history = ask("GET", f"{comfy}/history").values()
    return [entry for entry in history if any(
        node["inputs"].get("filename_prefix") == prefix for node in entry["prompt"][2].values())]


def one_behind_the_other(machine, prefix, blurs):
    """Two jobs that take long, of which the first runs at ComfyUI: slots submit in any order."""
    first = machine.submit([job(f"{prefix}-0", blurred(10, f"{prefix}-0", blurs)[0])])
    machine.running(first[0])
    return first + machine.submit([job(f"{prefix}-1", blurred(11, f"{prefix}-1", blurs)[0])])


# ---- what must hold


def direct(comfy, count=50):
    """How fast ComfyUI is by itself."""
    began = time.monotonic()
    for number in range(count):
        ask("POST", f"{comfy}/prompt", {"prompt": inverted(9000 + number, "direct")[0]["workflow"]})
    wait("ComfyUI's queue to be empty", 120, lambda: ask("GET", f"{comfy}/prompt")["exec_info"]["queue_remaining"] == 0)
    told("prompts without machinist", f"{count / (time.monotonic() - began):.1f} a second")


def many(machine, count):
    """All of them come out right, and each tells how far it is, forwards only."""
    expected, jobs = {}, []
    for number in range(count):
        name = f"many-{number}"
        payload, expected[name] = of_all_kinds(number, name)
        jobs.append(job(name, payload))
    began = time.monotonic()
    machine.submit(jobs)
    done = {name: machine.ended(name) for name in expected}
    took = time.monotonic() - began
    told_of = 0
    for name, picture in expected.items():
        check(done[name], picture)
        assert done[name]["attempts"] == 1, done[name]
        fractions = [event["data"]["fraction"] for event in machine.events(name) if event["kind"] == "progress"]
        assert fractions == sorted(fractions) and fractions[-1] == 1.0, f"{name}: {fractions}"
        told_of += len(fractions) > 2
    durations = [done[name]["result"]["duration_ms"] for name in expected]
    told(f"{count} jobs", f"{took:.1f} s, {count / took:.1f} a second, every pixel right; "
         f"median {statistics.median(durations):.0f} ms with its prompt, {told_of} told their progress more than twice")
    # Most prompts are over before there is something to tell; those that take long must tell it, below.
    assert told_of, "no job told its progress"


def over_websocket(machine, count=10):
    """Images that ComfyUI keeps nowhere."""
    expected = {}
    for number in range(count):
        payload, picture = inverted(number, "none")
        payload["workflow"]["3"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["2", 0]}}
        expected[machine.submit([job(f"live-{number}", payload)])[0]] = picture
    for name, picture in expected.items():
        check(machine.ended(name), picture)
    told(f"{count} images over the websocket", "every pixel right")


def with_models(directory):
    """Has ComfyUI look for checkpoints in there, too."""
    os.mkdir(f"{directory}/checkpoints")
    pathlib.Path(f"{directory}/paths.yaml").write_text(f"own:\n    base_path: {directory}\n    checkpoints: checkpoints\n")
    return {"MACHINIST_VARS__COMFYUI__ARGS": json.dumps(["--extra-model-paths-config", f"{directory}/paths.yaml"])}


def inventory(machine, directory):
    """A model file that is put there can be asked for soon after, and one that is gone no more; nothing is started again."""
    model = pathlib.Path(directory, "checkpoints", "dropped.safetensors")

    def needs(name, number):
        payload, picture = inverted(number, name)
        return machine.submit([{**job(name, payload), "requirement": {"models": [model.name]}}])[0], picture

    def mismatch(name):
        return machine.get(f"/jobs/{name}/explain")["workers"][0].get("mismatch")

    def models():
        return next(iter(machine.get("/queue/workers")["workers"].values()))["models"]

    before = machine.service("comfyui-0")["pid"]
    first, picture = needs("needs-model", 5)
    wait("the job to have no worker", 30, lambda: f'no model "{model.name}"' in (mismatch(first) or ""))
    model.touch()
    began = time.monotonic()
    done = machine.ended(first, 90)
    check(done, picture)
    assert done["attempts"] == 1, done
    came = time.monotonic() - began
    # The list may be some seconds old.
    wait("the worker to be listed with the model", 30, lambda: model.name in models())
    model.unlink()
    began = time.monotonic()
    # The workflow does not load it: until the worker has it no more, the job would just run.
    wait("the worker to have the model no more", 90, lambda: model.name not in models())
    gone = time.monotonic() - began
    second, _ = needs("needs-model-again", 6)
    assert "no model" in mismatch(second), machine.job(second)
    machine.post(f"/jobs/{second}/cancel")
    assert machine.service("comfyui-0")["pid"] == before
    told("a model file", f"could be asked for {came:.1f} s after it was there, and {gone:.1f} s after it was gone no more")


def cancelling(machine, comfy):
    """What is cancelled ends, also at ComfyUI, and nothing else does."""
    first, second = one_behind_the_other(machine, "cancel", 8 * BLURS)
    wait("the second prompt in ComfyUI's queue", 60, lambda: len(ask("GET", f"{comfy}/queue")["queue_pending"]) == 1)
    machine.post(f"/jobs/{second}/cancel")
    assert machine.ended(second)["state"] == "cancelled"
    wait("the prompt to leave ComfyUI's queue", 20, lambda: not ask("GET", f"{comfy}/queue")["queue_pending"])
    assert machine.job(first)["state"] == "running", "the other job was interrupted too"
    began = time.monotonic()
    machine.post(f"/jobs/{first}/cancel")
    assert machine.ended(first)["state"] == "cancelled"
    wait("ComfyUI to stop the prompt", 20, lambda: not ask("GET", f"{comfy}/queue")["queue_running"])
    told("a running job was cancelled", f"ComfyUI had stopped {time.monotonic() - began:.2f} s later")
    payload, picture = inverted(1, "after-cancel")
    check(machine.ended(machine.submit([job("after-cancel", payload)])[0]), picture)


def backend_killed(machine):
    """machinist starts ComfyUI again, and what it lost is tried again."""
    payload, picture = blurred(3, "killed-slow")
    expected, jobs = {"killed-slow": picture}, [job("killed-slow", payload)]
    for number in range(20):
        name = f"killed-{number}"
        payload, expected[name] = inverted(number, name)
        jobs.append(job(name, payload))
    machine.submit(jobs)
    machine.running("killed-slow")
    before = machine.service("comfyui-0")
    os.kill(before["pid"], signal.SIGKILL)
    began = time.monotonic()
    wait("another ComfyUI", 120, lambda: machine.service("comfyui-0")["pid"] not in (before["pid"], None))
    started = time.monotonic() - began
    wait("ComfyUI to be ready", 120, lambda: machine.service("comfyui-0")["state"] == "ready")
    ready = time.monotonic() - began
    again = machine.ended("killed-slow")
    assert again["state"] == "completed" and again["attempts"] == 2, again
    for name, picture in expected.items():
        check(machine.ended(name), picture)
    after = machine.service("comfyui-0")
    assert after["restarts"] == before["restarts"] + 1, after
    told("ComfyUI was killed", f"started again after {started:.2f} s, ready after {ready:.1f} s; all 21 jobs done after "
         f"{time.monotonic() - began:.1f} s, the running one in its second attempt ({again['history'][0]['failure']['message']})")


def engine_killed(machine):
    """A ComfyUI of a machine does not outlive its engine: its job runs anew, and no attempt is charged."""
    payload, picture = blurred(4, "engine")
    machine.submit([job("engine", payload)])
    machine.running("engine")
    pid = machine.service("comfyui-0")["pid"]
    machine.kill()
    began = time.monotonic()
    machine.start()
    after = machine.ended("engine")
    check(after, picture)
    assert after["losses"] >= 1 and after["attempts"] == 1, after
    assert not pathlib.Path(f"/proc/{pid}").exists(), "the ComfyUI of the engine that was killed lives on"
    told("the engine was killed", f"job done {time.monotonic() - began:.1f} s after its start, no attempt charged")


def elsewhere(env):
    """A ComfyUI that lives on while the engine is killed keeps the prompts: they are resumed, each runs once."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as state:
        command = [env["COMFYUI_PYTHON"], "main.py", "--cpu", "--port", str(port), "--disable-auto-launch"]
        for kind in ("input", "output", "user"):
            os.mkdir(f"{state}/{kind}")
            command += [f"--{kind}-directory", f"{state}/{kind}"]
        command += ["--temp-directory", state, "--database-url", f"sqlite:///{state}/comfyui.db"]
        with open(f"{state}/log", "wb") as log:
            comfy = subprocess.Popen(command, cwd=env["COMFYUI_DIR"], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            wait("ComfyUI to answer", 120, lambda: ask("GET", f"{url}/system_stats"))
            with Machine("api", {"COMFYUI_URL": url}) as machine:
                machine.claims()
                names = one_behind_the_other(machine, "resumed", 2 * BLURS)
                wait("both prompts to be submitted", 60, lambda: all("saved" in machine.job(name) for name in names))
                machine.kill()
                machine.start()
                for name in names:
                    done = machine.ended(name)
                    assert done["state"] == "completed" and done["losses"] >= 1 and done["attempts"] == 1, done
                    ran = prompts(url, name)
                    assert len(ran) == 1, f"{name} ran {len(ran)} times"
                    assert ran[0]["prompt"][1] == done["result"]["prompt_id"]
                # One that ends while no engine runs is collected.
                name = machine.submit([job("collected", blurred(20, "collected", 10)[0])])[0]
                machine.running(name)
                machine.kill()
                wait("ComfyUI to end the prompt", 120, lambda: prompts(url, name))
                machine.start()
                done = machine.ended(name)
                assert done["state"] == "completed" and len(prompts(url, name)) == 1, done
                machine.stop()
                told("the engine was killed beside a ComfyUI elsewhere", "3 prompts resumed or collected, each ran once")
        finally:
            comfy.terminate()
            comfy.wait(30)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
