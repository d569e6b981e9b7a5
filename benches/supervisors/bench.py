#!/usr/bin/env python3
"""Measures process supervisors. See README.md.  bench.py [-s a,b] [-t crash,cold,...] [--quick] -o out.json"""
import argparse, ctypes, json, os, shutil, signal, statistics as st, subprocess, sys, time
from types import SimpleNamespace as NS
import adapters

B = adapters.B
SVC = f"{B}/svc"
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: whatever a supervisor leaves behind comes to us
ME = os.getpid()
CPU_ME, CPU_SUT = {0}, {1}
now = time.monotonic_ns
status = {}


def reap():
    while True:
        try:
            p, s = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if p == 0:
            return
        status[p] = s


def spawn(argv, env=None, out=None, cpus=None):
    e = dict(PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", LANG="C.UTF-8", USER="root")
    e.update(env or {})
    t = now()
    p = os.fork()
    if p == 0:
        try:
            os.setsid()
            os.sched_setaffinity(0, cpus or CPU_SUT)
            n = os.open(out or "/dev/null", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            z = os.open("/dev/null", os.O_RDONLY)
            os.dup2(z, 0); os.dup2(n, 1); os.dup2(n, 2); os.closerange(3, 256)
            os.execvpe(argv[0], argv, e)
        except BaseException:
            os._exit(127)
    status.pop(p, None)  # pids come round again
    return p, t


def table():
    """pid -> (ppid, state, is_service) of every live descendant of ours"""
    kids, info = {}, {}
    for n in os.listdir("/proc"):
        if not n.isdigit():
            continue
        try:
            s = open(f"/proc/{n}/stat").read()
        except OSError:
            continue
        r = s.rindex(")")
        f = s[r + 2:].split()
        kids.setdefault(int(f[1]), []).append(int(n))
        info[int(n)] = (int(f[1]), f[0], f)
    res, todo = {}, [ME]
    while todo:
        for k in kids.get(todo.pop(), []):
            try:
                svc = os.readlink(f"/proc/{k}/exe") == SVC
            except OSError:
                svc = False
            res[k] = (info[k][0], info[k][1], svc)
            todo.append(k)
    return res


def sup_pids():
    return [p for p, (pp, s, svc) in table().items() if not svc and s != "Z"]


def cleanup():
    for _ in range(400):
        reap()
        t = {p: v for p, v in table().items() if v[1] != "Z"}
        if not t:
            reap()
            return
        for p in sorted(t):
            try:
                os.kill(p, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.02)


def stamps(f):
    try:
        return [(a, int(b), int(c)) for a, b, c in (l.split() for l in open(f).read().splitlines() if l.count(" ") == 2)]
    except OSError:
        return []


def wait_n(f, n, limit, step=0.004):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        reap()
        s = stamps(f)
        if len(s) >= n:
            return s
        time.sleep(step)
    return stamps(f)


def cpu_ns(pids):
    tot = 0
    for p in pids:
        try:
            for t in os.listdir(f"/proc/{p}/task"):
                tot += int(open(f"/proc/{p}/task/{t}/schedstat").read().split()[0])
        except OSError:
            pass
    return tot


def wakeups(pids):
    tot = 0
    for p in pids:
        try:
            for t in os.listdir(f"/proc/{p}/task"):
                for l in open(f"/proc/{p}/task/{t}/status"):
                    if l.startswith("voluntary"):
                        tot += int(l.split()[1])
        except OSError:
            pass
    return tot


def mem(pids):
    rss = pss = 0
    for p in pids:
        try:
            for l in open(f"/proc/{p}/smaps_rollup"):
                if l.startswith("Rss:"):
                    rss += int(l.split()[1])
                elif l.startswith("Pss:"):
                    pss += int(l.split()[1])
        except OSError:
            pass
    return rss, pss


def log_files(path):
    """the file, or for a multilog-like folder every file of log text in it"""
    p = os.path.dirname(path)
    if not p.endswith(".d"):
        return [path]
    return [os.path.join(p, x) for x in os.listdir(p) if x not in ("lock", "config", "state")]


def log_bytes(path):
    z = 0
    for f in log_files(path):
        try:
            z += os.path.getsize(f)
        except OSError:
            pass
    return z


def med(x):
    x = [v for v in x if v is not None]
    return round(st.median(x), 3) if x else None


class Run:
    def __init__(self, name, services, log=False, circus_check=5.0):
        self.d = f"{B}/run/{name}"
        shutil.rmtree(self.d, ignore_errors=True)
        os.makedirs(self.d)
        self.f = f"{self.d}/stamps"
        for s in services:
            s["argv"] = [a.replace("@F", self.f) for a in s["argv"]]
        self.a = adapters.SYSTEMS[name](self.d, services, NS(log=log, restart=True, circus_check=circus_check))
        self.name = name

    def start(self, wrap=()):
        self.pid, self.t0 = spawn(list(wrap) + self.a["argv"], self.a.get("env"), out=f"{self.d}/supervisor.out")
        return self

    def stop_signal(self):
        return self.a.get("stop", signal.SIGTERM)

    def stop(self, limit=60):
        """seconds until the supervisor has exited and no service is left; (exit s, gone s, left)"""
        t = now()
        if self.a.get("stop_argv"):
            spawn(self.a["stop_argv"], self.a.get("env"), cpus=CPU_ME)
        else:
            os.kill(self.pid, self.stop_signal())
        ex = gone = None
        end = time.monotonic() + limit
        while time.monotonic() < end:
            reap()
            if self.pid in status:
                ex = (now() - t) / 1e6
                break
            time.sleep(0.0003)
        end = min(end, time.monotonic() + 3)
        while ex is not None and time.monotonic() < end:
            reap()
            if not any(v[1] != "Z" for v in table().values()):
                gone = (now() - t) / 1e6
                break
            time.sleep(0.001)
        if gone is not None and gone - ex < 25:
            gone = ex  # nothing was left at the first look: the difference is the cost of looking
        left = [p for p, v in table().items() if v[1] != "Z"]
        return ex, gone, len(left)

    def call(self, argv, limit=60):
        t = now()
        p, _ = spawn(argv, self.a.get("env"), out=f"{self.d}/cli.out", cpus=CPU_ME)
        end = time.monotonic() + limit
        while p not in status and time.monotonic() < end:
            reap(); time.sleep(0.0005)
        return (now() - t) / 1e6, status.get(p)


def sleepers(n):
    return [dict(name=f"s{i:03d}", argv=[SVC, "sleep", "@F", f"s{i:03d}"]) for i in range(n)]


def t_crash(name, a):
    """kill -9 one service -> its next start; alone, among 200, and 0.1 s after it started"""
    res = {}
    for label, n, up, reps in (("alone", 1, 1.6, a.reps * 2), ("of200", 200, 1.6, a.reps), ("young", 1, 0.1, a.reps)):
        r = Run(name, sleepers(n), circus_check=0.1).start()
        s = wait_n(r.f, n, 60)
        out = []
        if len(s) < n:
            res[label] = f"only {len(s)}/{n} started"; cleanup(); continue
        time.sleep(2.5 if label != "young" else 0.6)
        for k in range(reps):
            last = {x[0]: x for x in stamps(r.f)}
            v = last[f"s{(k * 37) % n:03d}"]
            have = len(stamps(r.f))
            t = now()
            os.kill(v[2], signal.SIGKILL)
            s = wait_n(r.f, have + 1, 15)
            out.append((s[have][1] - t) / 1e6 if len(s) > have else None)
            time.sleep(up)
        res[label] = dict(ms=med(out), min=min([x for x in out if x] or [0]), max=max([x or 1e9 for x in out]), n=len(out), missed=out.count(None))
        cleanup()
    return res


def t_cold(name, a):
    """exec of the supervisor -> last service started; memory; SIGTERM -> everything gone"""
    res = {}
    for n in (1, 50, 200):
        ts, first, rss, pss, np, ex, gone, left = [], [], [], [], [], [], [], []
        for _ in range(a.reps):
            r = Run(name, sleepers(n)).start()
            s = wait_n(r.f, n, 60)
            if len({x[0] for x in s}) < n:
                cleanup(); ts.append(None); continue
            ts.append((max(x[1] for x in s) - r.t0) / 1e6)
            first.append((min(x[1] for x in s) - r.t0) / 1e6)
            time.sleep(1.0)
            p = sup_pids(); m = mem(p)
            rss.append(m[0]); pss.append(m[1]); np.append(len(p))
            e, g, l = r.stop()
            ex.append(e); gone.append(g); left.append(l)
            cleanup()
        res[n] = dict(start_ms=med(ts), first_ms=med(first), rss_kib=med(rss), pss_kib=med(pss), procs=med(np), stop_ms=med(gone),
                      stop_min=min([g for g in gone if g] or [0]), stop_max=max([g or 0 for g in gone] or [0]), exit_ms=med(ex), left=max(left or [-1]), failed=ts.count(None))
    return res


def t_idle(name, a):
    res = {}
    for n in (1, 50, 200):
        r = Run(name, sleepers(n)).start()
        if len(wait_n(r.f, n, 60)) < n:
            cleanup(); continue
        time.sleep(4)
        p = sup_pids(); c, wk = [cpu_ns(p)], [wakeups(p)]
        for _ in range(5):
            time.sleep(a.idle / 5); c.append(cpu_ns(p)); wk.append(wakeups(p))
        res[n] = dict(cpu_ms_20s=round((c[-1] - c[0]) / 1e6 * 20 / a.idle, 2), window_median_ms=med([(y - x) / 1e6 for x, y in zip(c, c[1:])]),
                      wakeups_s=round((wk[-1] - wk[0]) / a.idle, 1))
        if r.a.get("status"):
            r.call(r.a["status"])
            x = [r.call(r.a["status"]) for _ in range(5)]
            res[n]["status_ms"] = med([v[0] for v in x]); res[n]["status_rc"] = x[-1][1]
        cleanup()
    return res


def t_orphan(name, a):
    """a grandchild in the service's group and one in a session of its own: which are left?"""
    res = {}
    for how in ("stop_one", "crash", "stop_all"):
        o = []
        for _ in range(2):
            r = Run(name, [dict(name="tree", argv=[SVC, "tree", "@F"])]).start()
            s = wait_n(r.f, 3, 20)
            if len(s) < 3:
                cleanup(); o.append("not started"); continue
            time.sleep(1.5)
            pid = {x[0]: x[2] for x in s}
            if how == "stop_one":
                if not r.a.get("stop_one"):
                    cleanup(); o.append("no such command"); break
                r.call(r.a["stop_one"]("tree"), 20); time.sleep(2)
            elif how == "crash":
                os.kill(pid["svc"], signal.SIGKILL); time.sleep(3)
            else:
                r.stop(20); time.sleep(1)
            alive = [k for k in ("svc", "same", "newsess") if table().get(pid[k], (0, "Z", 0))[1] != "Z"]
            o.append("+".join(alive) or "none")
            cleanup()
        res[how] = sorted(set(o))
    return res


def t_log(name, a):
    """1,000,000 lines of 100 bytes to stdout: time until all are in the file, supervisor CPU, lines lost"""
    n = a.lines
    if name == "s6rc":
        return {"skipped": "as s6"}
    out = []
    for _ in range(a.reps):
        r = Run(name, [dict(name="talk", argv=[SVC, "lines", str(n), "@F"])], log=True).start()
        s = wait_n(r.f, 1, 20, 0.001)
        if not s:
            cleanup(); out.append(dict(err="not started")); continue
        path = r.a["log"]("talk")
        p = sup_pids(); c0 = cpu_ns(p)
        end, size, still = time.monotonic() + 120, -1, time.monotonic()
        t1 = now()
        while time.monotonic() < end:
            z = log_bytes(path)
            if z != size:
                size, still, t1 = z, time.monotonic(), now()
            elif time.monotonic() - still > 2.5 and len(stamps(r.f)) >= 2 or time.monotonic() - still > 15:
                break
            time.sleep(0.003)
        c1 = cpu_ns(set(p) | set(sup_pids()))
        s = stamps(r.f)
        files = log_files(path)
        seen, dup, torn, bad = bytearray(n), 0, 0, 0
        body = b"x" * 89
        for fn in files:
            try:
                with open(fn, "rb", 1 << 20) as fh:
                    for l in fh:
                        i = l.rfind(b" " + body + b"\n")
                        v = l[i - 9:i] if i >= 9 else b""
                        if v.isdigit() and int(v) < n:
                            dup += seen[int(v)]; seen[int(v)] = 1
                        else:
                            bad += 1
            except OSError:
                pass
        wr = [x[1] for x in s if x[0] == "written"]
        out.append(dict(ms=(t1 - s[0][1]) / 1e6, writer_ms=(wr[0] - s[0][1]) / 1e6 if wr else None, cpu_ms=(c1 - c0) / 1e6, lost=n - sum(seen), dup=dup, bad=bad,
                        bytes=size, rss_kib=mem(sup_pids())[0]))
        cleanup()
    ok = [o for o in out if "ms" in o]
    return dict({k: med([o[k] for o in ok]) for k in ("ms", "writer_ms", "cpu_ms", "bytes", "rss_kib")}, lost=max([o["lost"] for o in ok] or [-1]), bad=max([o["bad"] for o in ok] or [-1]), dup=max([o["dup"] for o in ok] or [-1]), n=len(ok))


def t_pid1(name, a):
    """as PID 1 of a PID namespace: are 50 orphans reaped? does SIGTERM end it? how fast?"""
    r = Run(name, [dict(name="zed", argv=[SVC, "zombies", "50", "@F"])])
    r.start(wrap=["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"])
    if not wait_n(r.f, 1, 20):
        cleanup(); return {"err": "not started"}
    time.sleep(2)
    z = sum(1 for v in table().values() if v[1] == "Z")
    init = [p for p, v in table().items() if v[0] == r.pid]
    t = now()
    for p in init:
        os.kill(p, r.stop_signal())
    end = time.monotonic() + 20
    while time.monotonic() < end and any(v[1] != "Z" for v in table().values()):
        reap(); time.sleep(0.002)
    alive = sum(1 for v in table().values() if v[1] != "Z")
    ms = (now() - t) / 1e6
    cleanup()
    return dict(zombies=z, stop_ms=round(ms, 1) if not alive else None, left=alive)


def t_storm(name, a):
    """50 services that die 50 ms after they start, for 5 s: starts a second and supervisor CPU per start"""
    r = Run(name, [dict(name=f"x{i:02d}", argv=[SVC, "exit", "1", "@F"]) for i in range(50)], circus_check=0.1).start()
    if not wait_n(r.f, 50, 30):
        cleanup(); return {"err": "not started"}
    time.sleep(0.5)
    p = sup_pids(); c0, n0 = cpu_ns(p), len(stamps(r.f))
    time.sleep(5)
    c1, n1 = cpu_ns(set(sup_pids()) & set(p)), len(stamps(r.f))
    cleanup()
    return dict(starts_s=round((n1 - n0) / 5, 1), cpu_us_per_start=round((c1 - c0) / 1e3 / max(1, n1 - n0), 1), cpu_ms_s=round((c1 - c0) / 5e6, 1))


def times(pid_of, r, kills, gap):
    """ms from the kill of one service to its next first instruction, again and again"""
    out = []
    for _ in range(kills):
        before = [x for x in stamps(r.f) if x[0] == pid_of]
        t = now()
        os.kill(before[-1][2], signal.SIGKILL)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            reap()
            after = [x for x in stamps(r.f) if x[0] == pid_of]
            if len(after) > len(before):
                out.append((after[len(before)][1] - t) / 1e6)
                break
            time.sleep(0.002)
        time.sleep(gap)
    return sorted(out)


def t_neighbour(name, a):
    """the storm's 50 services die all the time: how fast does a quiet one beside them come back?"""
    r = Run(name, [dict(name=f"x{i:02d}", argv=[SVC, "exit", "1", f"@F.storm"]) for i in range(50)] + sleepers(1), circus_check=0.1).start()
    if not wait_n(r.f, 1, 30):
        cleanup(); return {"err": "not started"}
    time.sleep(1.0)
    x = times("s000", r, a.kills, 0.03)
    cleanup()
    return dict(median=med(x), p99=round(x[min(len(x) - 1, int(len(x) * 0.99))], 3) if x else None, max=round(x[-1], 3) if x else None, n=len(x))


def http(path):
    import urllib.request
    t = now()
    with urllib.request.urlopen(f"http://127.0.0.1:9490{path}") as f:
        n = len(f.read())
    return (now() - t) / 1e6, n


def t_scrape(name, a):
    """machinist only: /metrics and /status with 200 process trees, and respawns while scrapes go on"""
    if name != "machinist":
        return {"skipped": "has no metrics"}
    r = Run(name, sleepers(200)).start()
    if len(wait_n(r.f, 200, 60)) < 200:
        cleanup(); return {"err": "not started"}
    time.sleep(2)
    http("/metrics")
    m, s = [http("/metrics") for _ in range(20)], [http("/status") for _ in range(20)]
    quiet = times("s007", r, a.kills, 0.05)
    stop = []
    import threading
    def scrape():
        while not stop:
            http("/metrics"); time.sleep(0.01)
    th = threading.Thread(target=scrape); th.start()
    busy = times("s009", r, a.kills, 0.05)
    stop.append(1); th.join()
    cleanup()
    return dict(metrics_ms=med([x[0] for x in m]), metrics_bytes=m[-1][1], status_ms=med([x[0] for x in s]), respawn_quiet_ms=med(quiet),
                respawn_scraped_ms=med(busy), respawn_scraped_max=round(busy[-1], 3))


def t_probes(name, a):
    """machinist only: CPU of 200 HTTP probes every 5 s, over that of the same 200 services without probes"""
    if name != "machinist":
        return {"skipped": "has no probes"}
    import http.server, threading
    class Ok(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self):
            self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
        def log_message(self, *_): pass
    srv = http.server.ThreadingHTTPServer(("127.0.0.1", 9491), Ok)
    threading.Thread(target=srv.serve_forever, daemon=True).start()
    res = {}
    for label, keys in (("without", {}), ("with", {"ready": '#{ http: "http://127.0.0.1:9491/", recheck: "5s", failures: 100 }'})):
        r = Run(name, [dict(s, keys=keys) for s in sleepers(200)]).start()
        if len(wait_n(r.f, 200, 60)) < 200:
            cleanup(); res[label] = None; continue
        time.sleep(4)
        p = sup_pids(); c = cpu_ns(p); time.sleep(a.idle); res[label] = round((cpu_ns(p) - c) / 1e6 / a.idle, 3)
        cleanup()
    srv.shutdown(); srv.server_close()
    return dict(cpu_ms_per_s=res)


def t_orphans(name, a):
    """10,000 orphans of one service, not as PID 1: zombies left, and the supervisor's CPU for each"""
    r = Run(name, [dict(name="zed", argv=[SVC, "zombies", str(a.orphans), "@F"])] + sleepers(1)).start()
    wait_n(r.f, 1, 20)
    p = sup_pids(); c = cpu_ns(p)
    if len(wait_n(r.f, 2, 120)) < 2:
        cleanup(); return {"err": "not started"}
    time.sleep(2)
    z = sum(1 for v in table().values() if v[1] == "Z" and v[0] in p)
    c = cpu_ns(p) - c
    cleanup()
    return dict(zombies=z, cpu_us_per_orphan=round(c / 1e3 / a.orphans, 2))


TESTS = dict(neighbour=t_neighbour, scrape=t_scrape, probes=t_probes, orphans=t_orphans, crash=t_crash, cold=t_cold, idle=t_idle, orphan=t_orphan, log=t_log, pid1=t_pid1, storm=t_storm)

if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("-s", default=",".join(adapters.SYSTEMS)); ap.add_argument("-t", default=",".join(TESTS))
    ap.add_argument("-o", default=f"{B}/results.json"); ap.add_argument("--reps", type=int, default=5)
    ap.add_argument("--idle", type=float, default=20); ap.add_argument("--lines", type=int, default=1000000); ap.add_argument("--kills", type=int, default=100); ap.add_argument("--orphans", type=int, default=10000); ap.add_argument("--quick", action="store_true")
    a = ap.parse_args()
    if a.quick:
        a.reps, a.idle, a.lines, a.kills, a.orphans = 2, 3, 100000, 10, 1000
    os.sched_setaffinity(0, CPU_ME)
    res = json.load(open(a.o)) if os.path.exists(a.o) else {}
    for name in a.s.split(","):
        for t in a.t.split(","):
            t0 = time.time()
            try:
                x = TESTS[t](name, a)
            except Exception as e:
                x = {"err": repr(e)}
            cleanup()
            res.setdefault(name, {})[t] = x
            json.dump(res, open(a.o, "w"), indent=1)
            print(f"{name:12} {t:7} {time.time() - t0:6.1f}s load {os.getloadavg()[0]:.2f}  {json.dumps(x)}", flush=True)
