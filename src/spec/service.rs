use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::{FieldProblem, Fields};
use super::probe::ProbeKind;
use super::{Limits, Probe, ProcessSetup, Restart, RestartMode, StepSpec, Stop};
use crate::base::{ByteSize, Name, Schedule};

/// One service as the machine script wants it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceSpec {
    pub name: Name,
    pub kind: Kind,
    /// The program and its arguments, executed without a shell. Never empty.
    pub command: Vec<String>,
    /// Default: the machine directory.
    pub cwd: Option<PathBuf>,
    /// Added to the engine's own environment.
    pub env: BTreeMap<String, String>,
    /// Files of `NAME=value` lines, read at every start; `env` goes before them, later files before earlier ones.
    pub env_files: Vec<PathBuf>,
    #[serde(flatten)]
    pub setup: ProcessSetup,
    pub limits: Limits,
    pub needs: Vec<Need>,
    /// Nothing else is probed before it holds, for what takes long to start.
    pub startup: Option<Probe>,
    /// Without a probe a service is ready as soon as its process runs.
    pub ready: Option<Probe>,
    /// Restarts a service that hangs; asked from the first readiness on.
    pub live: Option<Probe>,
    pub restart: Restart,
    pub stop: Stop,
    /// The machine fails when the engine gives this service up.
    pub critical: bool,
    /// TCP ports it listens on: checked to be free before a start, and for clashes between services.
    pub ports: Vec<u16>,
    pub logs: LogLimits,
    /// Files and directories, relative to `cwd`, whose change restarts it.
    pub watch: Vec<PathBuf>,
    /// When a service is restarted, or a oneshot run.
    pub schedule: Option<Schedule>,
    /// Programs among its descendants that may outlive it, by the name that `ps` shows (at most 15 characters).
    pub detach: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Runs until it is stopped.
    Service,
    /// Runs once and is done.
    Oneshot,
    /// A oneshot that everything which is no setup waits for; its failure fails the boot.
    Setup,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    pub service: Name,
    pub condition: Condition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    Started,
    Ready,
    /// Only of a oneshot or setup: it has ended with success.
    Completed,
}

/// Bounds of what is kept of a service's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LogLimits {
    /// Bytes of recent lines in memory. Default 256 KiB.
    pub ring: ByteSize,
    /// Bytes on disk, over the current file and the one before it; 0 keeps no file. Default 16 MiB.
    pub file: ByteSize,
    /// Default text.
    pub format: LogFileFormat,
    /// Lines a second, over ten seconds; what is above is dropped and counted. 0, the default, is no limit.
    pub rate: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFileFormat {
    /// `TIME SERVICE#INCARNATION STREAM | LINE`
    #[default]
    Text,
    /// One object a line, with the same fields.
    Json,
}

/// The program that runs steps: the engine's own.
const ENGINE: &str = "/proc/self/exe";

impl Default for LogLimits {
    fn default() -> Self {
        Self { ring: ByteSize::kib(256), file: ByteSize::mib(16), format: LogFileFormat::Text, rate: 0 }
    }
}

impl ServiceSpec {
    /// The GPUs that it is pinned to, as it names them.
    pub fn gpus(&self) -> impl Iterator<Item = &str> {
        let visible = self.env.get("CUDA_VISIBLE_DEVICES").into_iter().flat_map(|text| text.split(','));
        visible.map(str::trim).filter(|gpu| !gpu.is_empty())
    }

    /// Reads the map at `index` of what `services(m)` returned.
    pub fn read(index: usize, value: &Value) -> (Option<Self>, Vec<FieldProblem>) {
        let mut fields = match Fields::new(format!("services[{index}]"), value) {
            Ok(fields) => fields,
            Err(problem) => return (None, vec![problem]),
        };
        let name = fields.required::<Name>("name");
        if let Some(name) = &name {
            fields.set_path(format!("service \"{name}\""));
        }
        let kind = fields.optional("kind").unwrap_or(Kind::Service);
        let command = read_command(&mut fields);
        let cwd = fields.optional("cwd");
        let env = read_env(&mut fields);
        let env_files = fields.or_default("env_files");
        let setup = ProcessSetup::read(&mut fields);
        // Expanded before anything is read.
        let _ = fields.raw("instances");
        let watch = fields.or_default("watch");
        let schedule = fields.optional("schedule");
        let detach = fields.or_default::<Vec<String>>("detach");
        if let Some(long) = detach.iter().find(|name| name.len() > 15 || name.is_empty()) {
            fields.wrong("detach", &format!("{long:?}: the kernel keeps 15 characters of a program's name"));
        }
        let needs = read_needs(&mut fields);
        let critical = fields.or_default("critical");
        let ports = fields.or_default::<Vec<u16>>("ports");
        if ports.contains(&0) {
            fields.wrong("ports", "0 is no port");
        }
        let path = fields.path().to_owned();
        let mut nested = Vec::new();
        let mut probe = |kind: ProbeKind| {
            let value = fields.raw(kind.as_str())?;
            let (probe, problems) = Probe::read(format!("{path}, {}", kind.as_str()), kind, value);
            nested.extend(problems);
            probe
        };
        let (startup, ready, live) = (probe(ProbeKind::Startup), probe(ProbeKind::Ready), probe(ProbeKind::Live));
        let mut limits = Limits::default();
        if let Some(value) = fields.raw("limits") {
            let (read, problems) = Limits::read(format!("{path}, limits"), value);
            nested.extend(problems);
            limits = read;
        }
        let default_mode = if kind == Kind::Service { RestartMode::Always } else { RestartMode::Never };
        let mut restart = Restart::new(default_mode);
        if let Some(value) = fields.raw("restart") {
            let (read, problems) = Restart::read(&path, value, default_mode);
            nested.extend(problems);
            restart = read;
        }
        let mut stop = Stop::default();
        if let Some(value) = fields.raw("stop") {
            let (read, problems) = Stop::read(&path, value);
            nested.extend(problems);
            stop = read;
        }
        let mut logs = LogLimits::default();
        if let Some(value) = fields.raw("logs") {
            match Fields::new(format!("{path}, logs"), value) {
                Err(problem) => nested.push(problem),
                Ok(mut inner) => {
                    logs.ring = inner.optional("ring").unwrap_or(logs.ring);
                    logs.file = inner.optional("file").unwrap_or(logs.file);
                    logs.format = inner.or_default("format");
                    logs.rate = inner.or_default("rate");
                    nested.extend(inner.finish());
                }
            }
        }
        if kind != Kind::Service {
            if ready.is_some() {
                fields.wrong("ready", "a oneshot or setup is never ready, it completes; leave \"ready\" out");
            }
            for (key, probe) in [("startup", &startup), ("live", &live)] {
                if probe.is_some() {
                    fields.wrong(key, "a oneshot or setup is not probed, it completes");
                }
            }
            if restart.mode == RestartMode::Always {
                fields.wrong("restart", "\"always\" would never let a oneshot or setup be done; use \"on_failure\"");
            }
        }
        fields.report_all(nested);
        let problems = fields.finish();
        let spec = match (name, command) {
            (Some(name), Some(command)) if problems.is_empty() => Some(Self {
                name,
                kind,
                command,
                cwd,
                env,
                env_files,
                setup,
                limits,
                needs,
                startup,
                ready,
                live,
                restart,
                stop,
                critical,
                ports,
                logs,
                watch,
                schedule,
                detach,
            }),
            _ => None,
        };
        (spec, problems)
    }
}

/// `command: "program"` with `args: [...]`, or `command: ["program", ...]`, or `shell: "text for /bin/sh"`, or the parts
/// of a step, which the engine's own program runs.
fn read_command(fields: &mut Fields<'_>) -> Option<Vec<String>> {
    let args = fields.or_default::<Vec<String>>("args");
    let shell = fields.optional::<String>("shell");
    let step = StepSpec::read(fields);
    if let Some(step) = step {
        if fields.raw("command").is_some() || shell.is_some() {
            fields.wrong("command", "\"command\" and the parts of a step exclude each other");
            return None;
        }
        let text = serde_json::to_string(&step).unwrap_or_default();
        return Some(vec![ENGINE.to_owned(), "step".to_owned(), text]);
    }
    let command = match (fields.raw("command"), shell) {
        (Some(_), Some(_)) => {
            fields.wrong("shell", "\"command\" and \"shell\" exclude each other");
            return None;
        }
        (None, None) => {
            let problem = FieldProblem::new(fields.path(), "the key \"command\" is missing")
                .help("write command: [\"program\", \"argument\"], or shell: \"text for /bin/sh\"");
            fields.report(problem);
            return None;
        }
        (None, Some(text)) => vec!["/bin/sh".to_owned(), "-c".to_owned(), text],
        (Some(Value::String(program)), None) => vec![program.clone()],
        (Some(Value::Array(_)), None) => fields.optional::<Vec<String>>("command")?,
        (Some(_), None) => {
            fields.wrong("command", "expected a program or [program, argument, ...]");
            return None;
        }
    };
    let argv: Vec<String> = command.into_iter().chain(args).collect();
    if argv.first().is_none_or(String::is_empty) {
        fields.wrong("command", "the program is empty");
        return None;
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        fields.wrong("command", "an argument holds a NUL byte");
        return None;
    }
    Some(argv)
}

/// Numbers and booleans are written as text, as people expect of an environment.
fn read_env(fields: &mut Fields<'_>) -> BTreeMap<String, String> {
    let raw = fields.or_default::<BTreeMap<String, Value>>("env");
    let mut env = BTreeMap::new();
    for (key, value) in raw {
        let text = match &value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            _ => {
                fields.report(
                    FieldProblem::new(fields.path(), format!("\"env\": {key:?} is neither text, number nor boolean"))
                        .token(&key),
                );
                continue;
            }
        };
        if key.is_empty() || key.contains(['=', '\0']) || text.contains('\0') {
            fields.report(
                FieldProblem::new(fields.path(), format!("\"env\": {key:?} cannot be put into an environment"))
                    .token(&key),
            );
            continue;
        }
        env.insert(key, text);
    }
    env
}

/// `needs: ["db", "cache:started", "migrate:completed"]`; without a condition: ready, or completed for a oneshot (which
/// is settled when the whole machine is known).
fn read_needs(fields: &mut Fields<'_>) -> Vec<Need> {
    let mut needs = Vec::new();
    for text in fields.or_default::<Vec<String>>("needs") {
        let (service, condition) = text.split_once(':').unwrap_or((&text, "ready"));
        let condition = match condition {
            "started" => Condition::Started,
            "ready" => Condition::Ready,
            "completed" => Condition::Completed,
            other => {
                fields.report(
                    FieldProblem::new(fields.path(), format!("\"needs\": unknown condition {other:?}"))
                        .token(&text)
                        .help("write \"name\", \"name:started\", \"name:ready\" or \"name:completed\""),
                );
                continue;
            }
        };
        match Name::new(service) {
            Ok(service) => needs.push(Need { service, condition }),
            Err(cause) => fields.wrong("needs", &cause.to_string()),
        }
    }
    needs
}
