"""The machine that scrape.py, claims.py and soak.py measure: files that can be edited, and GPUs of the tests' fake driver."""

import json
import os
import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests/real"))
import harness  # noqa: E402


def use(binary):
    """Which engine machines run, and with it which fake driver, unless FAKE_NVML names another."""
    binary = pathlib.Path(binary).resolve()
    library = pathlib.Path(os.environ.get("FAKE_NVML", binary.parent / "examples/libfake_nvml.so")).resolve()
    for needed in (binary, library):
        if not needed.exists():
            sys.exit(f"{needed} is not there: cargo build --release && cargo build --release --example fake_nvml")
    os.environ |= {"MACHINIST": str(binary), "MACHINIST_GPU__LIBRARY": str(library), "MACHINIST_SCRIPTS_DIR": str(REPOSITORY / "scripts")}


def gpu(index):
    return {
        "uuid": f"GPU-{index}0000000-aaaa", "memory_total": 80 << 30, "memory_used": 40 << 30, "utilization": 50,
        "memory_utilization": 25, "temperature": 60, "power": 250500, "power_limit": 400000, "energy": 1234500,
        "sm_clock": 1410, "memory_clock": 1593, "pcie_replays": 3, "throttle": 4, "ecc": [[5, 1], [50, 2]], "processes": [],
    }


def replace(path, text):
    """By rename, as editors do."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.rename(path)


class Machine(harness.Machine):
    """`files` are those of its directory, by name; `root` is kept by the caller."""

    def __init__(self, root, files, gpus, env=None):
        self.files, self.gpus_file, self.gpus = root / "machine", root / "gpus.json", [gpu(index) for index in range(gpus)]
        for name, text in files.items():
            path = self.files / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.tell_gpus()
        super().__init__(self.files, {"FAKE_NVML_STATE": str(self.gpus_file), **(env or {})})
        try:
            self.claims(60)
        except BaseException:
            self.kill()
            raise

    def edit(self, script):
        replace(self.files / "machine.rhai", script)

    def tell_gpus(self):
        replace(self.gpus_file, json.dumps({"gpus": self.gpus, "xids": []}))

    def pids(self):
        """The process of each service that has one."""
        services = self.get("/status")["services"]
        return {name: service["pid"] for name, service in services.items() if service.get("pid")}

    def share_gpus(self):
        """A process with GPU memory in every service."""
        for number, pid in enumerate(self.pids().values()):
            self.gpus[number % len(self.gpus)]["processes"].append([pid, 1 << 30])
        self.tell_gpus()


def services(count, child=True):
    """`count` services, with a child each or of one process, as a function of a machine's script."""
    shell = "sleep 1000 & wait" if child else "exec sleep 1000"
    return 'fn services(m) { [ #{ name: "s", instances: %d, shell: "%s" } ] }\n' % (count, shell)


GPU_SETTINGS = '[gpu]\ndcgm_names = true\nevery = "1s"\n'
