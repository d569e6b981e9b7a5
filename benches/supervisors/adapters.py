"""One function per system. A function gets (d, services, opt) and writes whatever the system needs
under the empty folder d, then returns a dict:

  argv       how to start it in the foreground (or, with daemon=True, a command that leaves a daemon)
  env        extra environment, optional
  stop       signal that means "stop everything" (default SIGTERM, what a container runtime sends)
  stop_argv  instead of a signal: the command that stops everything, where a signal does not
  stop_one   function(name) -> argv that stops one service while the supervisor goes on, or None
  status     argv that prints the state of every service, or None
  log        function(name) -> path of the file that the service's stdout ends in (opt.log only)
  note       what was set away from the defaults

services: list of {"name", "argv"}; opt.log: capture stdout in a file by the system's own means;
opt.restart: restart at once, without limit (each system at its fastest setting).
A new system: add a function here and its name to SYSTEMS.
"""
import json, os, shlex, signal

B = os.environ.get("BENCH_DIR", "/tmp/bench")


def w(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, mode)
    return path


def floor(binary):
    def f(d, services, opt):
        lst = w(f"{d}/list", "".join("\t".join([f"{d}/{s['name']}.log"] + s["argv"]) + "\n" for s in services))
        return dict(argv=[binary, lst], log=lambda n: f"{d}/{n}.log", note="")
    return f


def pm2_runtime(d, services, opt):
    apps = [dict(name=s["name"], script=s["argv"][0], args=s["argv"][1:], interpreter="none", exec_mode="fork",
                 autorestart=True, max_restarts=10**9, restart_delay=0, vizion=False, pmx=False,
                 out_file=f"{d}/{s['name']}.log", error_file=f"{d}/{s['name']}.err", merge_logs=True)
            for s in services]
    eco = w(f"{d}/eco.json", json.dumps({"apps": apps}))
    env = {"PM2_HOME": f"{d}/.pm2", "PM2_DISCRETE_MODE": "true"}
    pm2 = f"{B}/pm2/node_modules/.bin/pm2"
    return dict(argv=[f"{B}/pm2/node_modules/.bin/pm2-runtime", "start", eco], env=env,
                stop_one=lambda n: [pm2, "stop", n], status=[pm2, "jlist"], log=lambda n: f"{d}/{n}.log",
                note="interpreter none, vizion/pmx off, no restart limit")


def supervisord(d, services, opt):
    c = f"""[supervisord]
nodaemon=true
logfile=/dev/null
logfile_maxbytes=0
pidfile={d}/pid
childlogdir={d}
minfds=4096
user=root
[unix_http_server]
file={d}/sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{d}/sock
"""
    for s in services:
        c += f"""[program:{s['name']}]
command={shlex.join(s['argv'])}
startsecs=0
autorestart=true
startretries=1000000
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile={d}/{s['name']}.log
stdout_logfile_maxbytes=0
"""
    w(f"{d}/s.conf", c)
    ctl = [f"{B}/venv/bin/supervisorctl", "-c", f"{d}/s.conf"]
    return dict(argv=[f"{B}/venv/bin/supervisord", "-n", "-c", f"{d}/s.conf"], stop_one=lambda n: ctl + ["stop", n],
                status=ctl + ["status"], log=lambda n: f"{d}/{n}.log",
                note="startsecs=0, stopasgroup/killasgroup on (default off), no rotation")


def circus(d, services, opt):
    c = f"[circus]\nendpoint=ipc://{d}/ep\npubsub_endpoint=ipc://{d}/pub\ncheck_delay={opt.circus_check}\nwarmup_delay=0\n"
    for s in services:
        c += f"[watcher:{s['name']}]\ncmd={shlex.join(s['argv'])}\nnumprocesses=1\nwarmup_delay=0\nmax_retry=-1\ncopy_env=true\nstop_children=true\n"
        if opt.log:
            c += f"stdout_stream.class=FileStream\nstdout_stream.filename={d}/{s['name']}.log\n"
    w(f"{d}/c.ini", c)
    ctl = [f"{B}/venv/bin/circusctl", "--endpoint", f"ipc://{d}/ep"]
    return dict(argv=[f"{B}/venv/bin/circusd", f"{d}/c.ini"], stop_one=lambda n: ctl + ["stop", n, "--waiting"],
                status=ctl + ["status"], log=lambda n: f"{d}/{n}.log",
                note="check_delay 0.1 s (default 5) for the crash test, warmup_delay 0, stop_children on (default off)")


def _svdirs(d, services, opt, logger):
    for s in services:
        p = f"{d}/scan/{s['name']}"
        w(f"{p}/run", f"#!/bin/sh\nexec 2>&1\nexec {shlex.join(s['argv'])}\n", 0o755)
        if opt.log:
            os.makedirs(f"{d}/{s['name']}.d", exist_ok=True)
            w(f"{p}/log/run", f"#!/bin/sh\nexec {logger(f'{d}/' + s['name'] + '.d')}\n", 0o755)
            w(f"{d}/{s['name']}.d/config", "s1000000000\nn10\n")


def s6(d, services, opt):
    _svdirs(d, services, opt, lambda p: f"s6-log -b n10 s268435455 {p}")
    return dict(argv=["s6-svscan", "-c", "1000", f"{d}/scan"], stop_one=lambda n: ["s6-svc", "-wD", "-d", f"{d}/scan/{n}"],
                status=["sh", "-c", f"for i in {d}/scan/*; do s6-svstat $i; done"], log=lambda n: f"{d}/{n}.d/current",
                note="one logger process per service when logging")


def s6_rc(d, services, opt):
    src = f"{d}/src"
    for s in services:
        w(f"{src}/{s['name']}/type", "longrun\n")
        w(f"{src}/{s['name']}/run", f"#!/bin/sh\nexec {shlex.join(s['argv'])}\n", 0o755)
        w(f"{src}/all/contents.d/{s['name']}", "")
    w(f"{src}/all/type", "bundle\n")
    os.makedirs(f"{d}/scan", exist_ok=True)
    rc = f"{B}/s6rc/bin"
    w(f"{d}/scan/.s6-svscan/SIGTERM", f"#!/bin/sh\n{rc}/s6-rc -b -l {d}/live -da change\nexec s6-svscanctl -t {d}/scan\n", 0o755)
    w(f"{d}/boot", f"#!/bin/sh\n{rc}/s6-rc-compile {d}/db {src}\n{rc}/s6-rc-init -c {d}/db -l {d}/live {d}/scan\n"
                   f"exec {rc}/s6-rc -b -l {d}/live -u change all\n", 0o755)
    w(f"{d}/go", f"#!/bin/sh\n(sleep 0.02; exec {d}/boot) >{d}/boot.log 2>&1 &\nexec s6-svscan -c 1000 {d}/scan\n", 0o755)
    return dict(argv=[f"{d}/go"], stop_one=lambda n: [f"{rc}/s6-rc", "-l", f"{d}/live", "-d", "change", n],
                status=[f"{rc}/s6-rc", "-l", f"{d}/live", "-a", "list"], log=None,
                note="compiles its database at boot, as s6-overlay does")


def runit(d, services, opt):
    _svdirs(d, services, opt, lambda p: f"svlogd -b 65536 {p}")
    return dict(argv=["runsvdir", "-P", f"{d}/scan"], stop=signal.SIGHUP, stop_one=lambda n: ["sv", "-w", "10", "stop", f"{d}/scan/{n}"],
                status=["sh", "-c", f"sv status {d}/scan/*"], log=lambda n: f"{d}/{n}.d/current",
                note="stopped with SIGHUP: on SIGTERM runsvdir exits and leaves every service running")


def dinit(d, services, opt):
    for s in services:
        w(f"{d}/sv/{s['name']}", f"type = process\ncommand = {shlex.join(s['argv'])}\nrestart = yes\nrestart-delay = 0\n"
                                 f"restart-limit-count = 0\nlogfile = {d}/{s['name']}.log\n")
    w(f"{d}/sv/boot", "type = internal\n" + "".join(f"waits-for: {s['name']}\n" for s in services))
    p = f"{B}/src/dinit/src"
    ctl = [f"{p}/dinitctl", "-p", f"{d}/sock"]
    return dict(argv=[f"{p}/dinit", "-u", "-d", f"{d}/sv", "-p", f"{d}/sock", "-q"], stop_one=lambda n: ctl + ["stop", "--ignore-unstarted", n],
                status=ctl + ["list"], log=lambda n: f"{d}/{n}.log", note="restart-delay 0, no limit; stdout goes straight to the file")


def horust(d, services, opt):
    for s in services:
        w(f"{d}/sv/{s['name']}.toml", f"command = {json.dumps(shlex.join(s['argv']))}\nstdout = \"{d}/{s['name']}.log\"\n"
                                      f"[restart]\nstrategy = \"always\"\nbackoff = \"0s\"\nattempts = 1000000\n")
    os.makedirs(f"{d}/uds", exist_ok=True)
    return dict(argv=[f"{B}/horust/bin/horust", "--services-path", f"{d}/sv", "--uds-folder-path", f"{d}/uds"],
                log=lambda n: f"{d}/{n}.log", note="backoff 0s")


def zinit(d, services, opt):
    for s in services:
        t = (f"[service]\nname = \"{s['name']}\"\nexec = {json.dumps(shlex.join(s['argv']))}\n"
             f"[lifecycle]\nrestart = \"always\"\nrestart_delay_ms = 1\nrestart_delay_max_ms = 1\nmax_restarts = 0\nstability_period_ms = 1\n")
        if opt.log:
            t += f"[logging]\nfile = \"{d}/{s['name']}.log\"\n"
        w(f"{d}/sv/{s['name']}.toml", t)
    sock = f"{d}/hero/var/zinit.sock"  # the CLI of 0.3.9 looks nowhere else, whatever --socket or ZINIT_SOCKET say
    os.makedirs(os.path.dirname(sock))
    env = {"HOME": d, "ZINIT_SOCKET": sock, "ZINIT_CONFIG_DIR": f"{d}/sv", "ZINIT_LOG_LEVEL": "error"}
    cli = [f"{B}/zinit/bin/zinit"]
    return dict(argv=[f"{B}/zinit/bin/zinit-server", "--config-dir", f"{d}/sv", "--socket", sock, "--log-level", "error"], env=env,
                stop_argv=cli + ["shutdown"], stop_one=lambda n: cli + ["stop", n], status=cli + ["list"], log=lambda n: f"{d}/{n}.log",
                note="restart_delay_ms 1 (least allowed), no limit; stopped by its CLI: on SIGTERM zinit-server "
                "exits and leaves every service running (its pid1 shim is not in the default build)")


def machinist(d, services, opt):
    """Everything on: log capture, a session per service, orphan sweep, metrics, HTTP, script evaluated, embedded queue."""
    url = "http://127.0.0.1:9490"
    rhai = "fn services(m) {\n    [\n"
    for s in services:
        more = "".join(f", {k}: {v}" for k, v in s.get("keys", {}).items())
        if opt.log:
            more += ', logs: #{ file: "1GiB" }'
        rhai += '        #{ name: %s, command: %s, restart: #{ initial: "0s", jitter: 0.0, limit: 1000000000 }%s },\n' % (
            json.dumps(s["name"]), json.dumps(s["argv"]), more)
    w(f"{d}/m/machine.rhai", rhai + "    ]\n}\n")
    w(f"{d}/m/machine.toml", "[log]\nservices = false\n")
    exe = os.environ.get("MACHINIST", f"{B}/machinist")
    return dict(argv=[exe, "run", f"{d}/m", "--state-dir", f"{d}/state", "--listen", "127.0.0.1:9490", "--set", "machine.id=bench"],
                env={"MACHINIST_URL": url}, stop_one=lambda n: [exe, "services", "stop", n], status=[exe, "services"],
                log=lambda n: f"{d}/state/logs/{n}.log", note="backoff 0; default log files of 16 MiB except in the log test")


SYSTEMS = {"machinist": machinist, "floor_c": floor(f"{B}/floor_c"), "floor_rs": floor(f"{B}/floor_rs"), "pm2": pm2_runtime,
           "supervisord": supervisord, "circus": circus, "s6": s6, "s6rc": s6_rc, "runit": runit, "dinit": dinit,
           "horust": horust, "zinit": zinit}
