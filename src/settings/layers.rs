use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::document::{read_toml, read_yaml};
use super::model::{
    BlobSettings, ConnectorSettings, GpuSettings, HttpSettings, LogSettings, MachineSettings, QueueBackend,
    QueueSettings, ReloadSettings, ResourceSettings, Settings, ShutdownSettings, TelemetrySettings,
};
use super::origin::{Leaf, Origin, Tree};
use super::{RedisAddress, Secret};
use crate::base::{Name, Problem, Problems, Seconds, SourceText, did_you_mean};
use crate::spec::{FieldProblem, Fields};

const DEFAULTS: &str = include_str!("defaults.toml");
const FILES: [&str; 4] = ["machine.toml", "machine.json", "machine.yaml", "machine.yml"];
/// Environment variables of ours that are no settings.
const OTHER_VARIABLES: &[&str] = &[
    "MACHINIST_URL",
    "MACHINIST_TOKEN",
    "MACHINIST_STATE_DIR",
    "MACHINIST_SCRIPTS_DIR",
    "MACHINIST_MARK",
    "MACHINIST_SERVICE",
    "MACHINIST_INSTANCE",
    "MACHINIST_PID",
    "MACHINIST_EXEC",
];
/// Short names that people know, and the settings they stand for.
const SHORT_VARIABLES: [(&str, &str); 7] = [
    ("REDIS_URL", "queue.url"),
    ("MACHINE_ID", "machine.id"),
    ("WORKERS", "machine.workers"),
    ("MACHINIST_TOKEN", "http.token"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.otlp_endpoint"),
    ("MACHINIST_STATE_DIR", "state_dir"),
    ("MACHINIST_SCRIPTS_DIR", "scripts_dir"),
];

/// What lies over the machine's file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub environment: BTreeMap<String, String>,
    /// The flag as written, the setting's path and its value.
    pub flags: Vec<(String, String, String)>,
}

/// Where settings of the machine in `dir` may stand; at most one of them is there.
pub fn machine_files(dir: &Path) -> [PathBuf; 4] {
    FILES.map(|name| dir.join(name))
}

/// Reads and merges all layers for the machine in `dir`. The tree tells where each value came from.
///
/// # Errors
/// All problems at once, each with its place.
///
/// # Panics
/// Never: the embedded defaults are valid, as a test shows.
pub fn load(dir: &Path, overrides: &Overrides) -> Result<(Settings, Tree), Problems> {
    let mut problems = Problems::default();
    let Ok(dir) = dir.canonicalize() else {
        let problem = Problem::error(format!("there is no machine directory {}", dir.display()));
        return Err(problem.help("name a directory with a machine.rhai, for instance machines/quickstart").into());
    };
    let defaults = SourceText::new(Path::new("defaults.toml"), DEFAULTS);
    let mut tree = read_toml(&defaults).expect("UNWRAP: the embedded defaults are valid TOML");
    for leaf in tree.leaves.values_mut() {
        leaf.origin = Origin::Default;
    }
    let known = tree.clone();
    match read_file(&dir) {
        Ok(file) => tree.merge(file),
        Err(problem) => problems.push(problem),
    }
    let environment = from_environment(&overrides.environment, &known, &mut problems);
    tree.merge(with_kinds(environment, &tree));
    for (flag, path, value) in &overrides.flags {
        let mut over = Tree::default();
        let path = path.split('.').map(str::to_owned).collect();
        over.set(path, Leaf { value: Value::String(value.clone()), origin: Origin::Flag(flag.clone()) });
        tree.merge(with_kinds(over, &tree));
    }
    expand_variables(&mut tree, &overrides.environment, &mut problems);
    let value = tree.to_value();
    let mut reader = Reader { tree: &tree, problems: &mut problems };
    let settings = read_settings(&dir, &value, &mut reader);
    match settings {
        Some(settings) if !problems.has_errors() => Ok((settings, tree)),
        _ => Err(problems),
    }
}

fn read_file(dir: &Path) -> Result<Tree, Problem> {
    let found: Vec<&str> = FILES.into_iter().filter(|name| dir.join(name).is_file()).collect();
    let Some(name) = found.first() else { return Ok(Tree::default()) };
    if found.len() > 1 {
        return Err(Problem::error(format!("several settings files: {}", found.join(", ")))
            .in_file(dir)
            .help("keep one of them"));
    }
    let path = dir.join(name);
    let text = std::fs::read_to_string(&path)
        .map_err(|cause| Problem::error(format!("cannot be read: {cause}")).in_file(&path))?;
    let source = SourceText::new(&path, &text);
    if *name == FILES[0] { read_toml(&source) } else { read_yaml(&source) }
}

/// `MACHINIST_A__B` sets a.b; a few short names stand for settings too.
fn from_environment(environment: &BTreeMap<String, String>, known: &Tree, problems: &mut Problems) -> Tree {
    let mut tree = Tree::default();
    let mut set = |path: &str, name: &str, value: &str| {
        let path = path.split('.').map(str::to_owned).collect();
        tree.set(path, Leaf { value: Value::String(value.to_owned()), origin: Origin::Environment(name.to_owned()) });
    };
    for (name, path) in SHORT_VARIABLES {
        if let Some(value) = environment.get(name).filter(|value| !value.is_empty()) {
            set(path, name, value);
        }
    }
    for (name, value) in environment {
        let Some(rest) = name.strip_prefix("MACHINIST_") else { continue };
        if OTHER_VARIABLES.contains(&name.as_str()) {
            continue;
        }
        let path = rest.to_lowercase().replace("__", ".");
        let segments: Vec<String> = path.split('.').map(str::to_owned).collect();
        if is_free(&segments) || known.leaves.contains_key(&segments) {
            set(&path, name, value);
            continue;
        }
        let names = known.leaves.keys().map(|path| format!("MACHINIST_{}", path.join("__").to_uppercase()));
        let names: Vec<String> = names.collect();
        let mut problem = Problem::error(format!("the environment variable {name} names no setting"));
        problem.help = Some(match did_you_mean(name, names.iter().map(String::as_str)) {
            Some(meant) => format!("did you mean {meant}?"),
            None => "write MACHINIST_SECTION__KEY; `machinist config` lists all settings".to_owned(),
        });
        problems.push(problem);
    }
    tree
}

/// Whether no type of ours says what the value must be.
fn is_free(path: &[String]) -> bool {
    match path {
        [section, _, ..] if section == "vars" || section == "connectors" => true,
        [section, labels, _, ..] => section == "machine" && labels == "labels",
        _ => false,
    }
}

/// Free values come as text. One is of the kind of what it replaces in `below`, and where it replaces nothing a number, a
/// boolean, a list or a map if it reads as one.
fn with_kinds(mut over: Tree, below: &Tree) -> Tree {
    for (path, leaf) in over.leaves.iter_mut().filter(|(path, _)| is_free(path)) {
        let Some(read) = leaf.value.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
            continue;
        };
        let fits = match below.leaves.get(path) {
            Some(replaced) => std::mem::discriminant(&replaced.value) == std::mem::discriminant(&read),
            None => !read.is_string() && !read.is_null(),
        };
        if fits {
            leaf.value = read;
        }
    }
    over
}

/// `${NAME}` in a text is the environment variable's value, `${NAME:-text}` falls back.
fn expand_variables(tree: &mut Tree, environment: &BTreeMap<String, String>, problems: &mut Problems) {
    for (path, leaf) in &mut tree.leaves {
        let Value::String(text) = &leaf.value else { continue };
        if !text.contains("${") {
            continue;
        }
        let mut expanded = String::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("${") {
            expanded.push_str(before);
            let Some((reference, tail)) = after.split_once('}') else {
                let problem = Problem::error(format!("\"{}\": ${{ without }}", path.join(".")));
                problems.push(leaf.origin.locate(problem));
                rest = "";
                break;
            };
            let (name, fallback) = reference.split_once(":-").map_or((reference, None), |(n, f)| (n, Some(f)));
            match environment.get(name).map(String::as_str).or(fallback) {
                Some(value) => expanded.push_str(value),
                None => {
                    let what = format!("\"{}\": the environment variable {name} is not set", path.join("."));
                    let problem = Problem::error(what).help(format!("set it, or write ${{{name}:-}} to allow that"));
                    problems.push(leaf.origin.locate(problem));
                }
            }
            rest = tail;
        }
        expanded.push_str(rest);
        leaf.value = Value::String(expanded);
    }
}

/// Turns field problems into problems with the place their value came from.
struct Reader<'a> {
    tree: &'a Tree,
    problems: &'a mut Problems,
}

impl Reader<'_> {
    fn take(&mut self, path: &str, found: Vec<FieldProblem>) {
        for field in found {
            let mut segments: Vec<String> = path.split('.').filter(|s| !s.is_empty()).map(str::to_owned).collect();
            segments.extend(field.token.clone());
            let mut problem = Problem::error(if field.path.is_empty() {
                field.message
            } else {
                format!("{}: {}", field.path, field.message)
            });
            problem.help = field.help;
            self.problems.push(match self.tree.origin(&segments) {
                Some(origin) => origin.locate(problem),
                None => problem,
            });
        }
    }

    /// Reads one value; text from the environment or a flag is tried as JSON when it does not fit as text.
    fn get<T: DeserializeOwned>(&self, fields: &mut Fields<'_>, section: &str, key: &'static str) -> Option<T> {
        let value = fields.raw(key)?;
        let path: Vec<String> = [section, key].iter().filter(|s| !s.is_empty()).map(|s| (*s).to_owned()).collect();
        let untyped = self.tree.leaves.get(&path).is_some_and(|leaf| leaf.origin.is_untyped());
        match (T::deserialize(value), value.as_str()) {
            (Ok(read), _) => Some(read),
            (Err(cause), Some(text)) if untyped => match serde_json::from_str(text) {
                Ok(read) => Some(read),
                Err(_) => {
                    fields.wrong(key, &cause.to_string());
                    None
                }
            },
            (Err(cause), _) => {
                fields.wrong(key, &cause.to_string());
                None
            }
        }
    }

    fn section<T>(
        &mut self,
        root: &mut Fields<'_>,
        name: &'static str,
        read: impl FnOnce(&Self, &mut Fields<'_>) -> Option<T>,
    ) -> Option<T> {
        let value = root.raw(name)?;
        match Fields::new(format!("[{name}]"), value) {
            Err(problem) => {
                self.take("", vec![problem.token(name)]);
                None
            }
            Ok(mut fields) => {
                let settings = read(self, &mut fields);
                self.take(name, fields.finish());
                settings
            }
        }
    }
}

fn read_settings(dir: &Path, value: &Value, reader: &mut Reader<'_>) -> Option<Settings> {
    let mut root = match Fields::new("", value) {
        Ok(root) => root,
        Err(problem) => {
            reader.take("", vec![problem]);
            return None;
        }
    };
    let dir_name = dir.file_name().and_then(|name| name.to_str()).unwrap_or("machine");
    let state_dir = text(&mut root, reader, "", "state_dir").map_or_else(|| default_state_dir(dir_name), PathBuf::from);
    // Services and blob stores have working directories and addresses of their own.
    let state_dir = std::path::absolute(&state_dir).unwrap_or(state_dir);
    let scripts_dir =
        text(&mut root, reader, "", "scripts_dir").map_or_else(|| default_scripts_dir(dir), PathBuf::from);
    let machine = reader.section(&mut root, "machine", |reader, fields| {
        let id = match text(fields, reader, "machine", "id") {
            Some(_) => reader.get::<Name>(fields, "machine", "id").map(Some),
            None => Some(None),
        };
        let machine_type = match text(fields, reader, "machine", "type") {
            Some(_) => reader.get::<Name>(fields, "machine", "type"),
            None => Name::new(dir_name).ok().or_else(|| {
                fields.wrong("type", "the directory's name is no valid machine type; set machine.type");
                None
            }),
        };
        let pool = reader.get(fields, "machine", "pool");
        let script = reader.get(fields, "machine", "script");
        let workers = reader.get(fields, "machine", "workers");
        let labels = reader.get(fields, "machine", "labels");
        Some(MachineSettings {
            id: id?,
            machine_type: machine_type?,
            pool: pool?,
            script: script?,
            workers: workers?,
            labels: labels?,
        })
    });
    let queue = reader.section(&mut root, "queue", |reader, fields| {
        let backend = text(fields, reader, "queue", "url").and_then(|url| read_queue_url(&url, &state_dir, fields));
        let lease = reader.get(fields, "queue", "lease");
        let connect_timeout = reader.get(fields, "queue", "connect_timeout");
        let name = reader.get(fields, "queue", "name");
        let webhook_secret = text(fields, reader, "queue", "webhook_secret").map(Secret::new);
        Some(QueueSettings {
            backend: backend?,
            name: name?,
            webhook_secret,
            lease: lease?,
            connect_timeout: connect_timeout?,
        })
    });
    let blobs = reader.section(&mut root, "blobs", |reader, fields| {
        let url = text(fields, reader, "blobs", "url");
        let in_state_dir = || match &queue.as_ref()?.backend {
            QueueBackend::Embedded(_) => Some(state_dir.join("blobs").to_string_lossy().into_owned()),
            QueueBackend::Redis(_) => None,
        };
        Some(BlobSettings { url: url.or_else(in_state_dir) })
    });
    let http = reader.section(&mut root, "http", |reader, fields| {
        let listen = reader.get::<SocketAddr>(fields, "http", "listen");
        let token = text(fields, reader, "http", "token").map(Secret::new);
        let console = reader.get(fields, "http", "console")?;
        if console && token.is_none() {
            let problem = FieldProblem::new(
                "[http]",
                "console lets whoever reaches this machine run anything, and there is no token",
            );
            fields.report(problem.token("console").help("set http.token (MACHINIST_TOKEN) too"));
        }
        Some(HttpSettings { listen: listen?, token, console })
    });
    let reload = reader.section(&mut root, "reload", |reader, fields| {
        let debounce = reader.get(fields, "reload", "debounce");
        let poll = reader.get(fields, "reload", "poll");
        let probation = reader.get(fields, "reload", "probation");
        Some(ReloadSettings { debounce: debounce?, poll: poll?, probation: probation? })
    });
    let resources = reader.section(&mut root, "resources", |reader, fields| {
        let [memory, disk, files, gpu_memory, hysteresis] = ["memory", "disk", "files", "gpu_memory", "hysteresis"]
            .map(|key| reader.get::<f64>(fields, "resources", key));
        let every = reader.get(fields, "resources", "every");
        let samples = reader.get(fields, "resources", "samples");
        let give_up_after = reader.get(fields, "resources", "give_up_after");
        Some(ResourceSettings {
            every: every?,
            samples: samples?,
            memory: memory?,
            disk: disk?,
            files: files?,
            gpu_memory: gpu_memory?,
            hysteresis: hysteresis?,
            give_up_after: give_up_after?,
        })
    });
    let gpu = reader.section(&mut root, "gpu", |reader, fields| {
        let library = text(fields, reader, "gpu", "library").map(PathBuf::from);
        let every = reader.get::<Seconds>(fields, "gpu", "every");
        let xid_hold = reader.get(fields, "gpu", "xid_hold");
        let dcgm_names = reader.get(fields, "gpu", "dcgm_names");
        if every.is_some_and(|every| every.get() < Duration::from_millis(100)) {
            fields.wrong("every", "must be at least 100ms");
            return None;
        }
        Some(GpuSettings { library, every: every?, xid_hold: xid_hold?, dcgm_names: dcgm_names? })
    });
    let shutdown = reader.section(&mut root, "shutdown", |reader, fields| {
        Some(ShutdownSettings { grace: reader.get(fields, "shutdown", "grace")? })
    });
    let log = reader.section(&mut root, "log", |reader, fields| {
        let format = reader.get(fields, "log", "format");
        let level = reader.get(fields, "log", "level");
        let services = reader.get(fields, "log", "services");
        Some(LogSettings { format: format?, level: level?, services: services? })
    });
    let telemetry = reader.section(&mut root, "telemetry", |reader, fields| {
        let otlp_endpoint = text(fields, reader, "telemetry", "otlp_endpoint");
        if let Some(why) = otlp_endpoint.as_deref().and_then(no_receiver) {
            fields.report(FieldProblem::new("[telemetry]", format!("\"otlp_endpoint\" {why}")).token("otlp_endpoint").help(
                "write http://HOST:4318; what has to be sent with it goes into the variable OTEL_EXPORTER_OTLP_HEADERS",
            ));
        }
        Some(TelemetrySettings { otlp_endpoint })
    });
    let vars = reader.get(&mut root, "", "vars");
    let connectors = read_connectors(&mut root, reader);
    reader.take("", root.finish());
    Some(Settings {
        dir: dir.to_owned(),
        state_dir,
        scripts_dir,
        machine: machine?,
        queue: queue?,
        blobs: blobs?,
        http: http?,
        reload: reload?,
        shutdown: shutdown?,
        resources: resources?,
        gpu: gpu?,
        log: log?,
        telemetry: telemetry?,
        vars: vars?,
        connectors,
    })
}

/// A text that is there and not empty.
fn text(fields: &mut Fields<'_>, reader: &Reader<'_>, section: &str, key: &'static str) -> Option<String> {
    reader.get::<String>(fields, section, key).filter(|text| !text.is_empty())
}

fn read_queue_url(url: &str, state_dir: &Path, fields: &mut Fields<'_>) -> Option<QueueBackend> {
    match url.strip_prefix("embedded:") {
        Some("") => Some(QueueBackend::Embedded(state_dir.join("queue.db"))),
        Some(path) => Some(QueueBackend::Embedded(state_dir.join(path))),
        None => match url.parse::<RedisAddress>() {
            Ok(address) => Some(QueueBackend::Redis(address)),
            Err(why) => {
                let help = "write \"embedded:\", \"embedded:PATH\", \"redis://HOST:PORT\" (rediss:// for TLS), \
                            \"redis+sentinel://HOST,HOST/MASTER\" or \"redis+cluster://HOST,HOST\"";
                let problem = format!("\"url\" names no queue: {why}");
                fields.report(FieldProblem::new("[queue]", problem).token("url").help(help));
                None
            }
        },
    }
}

/// Why traces cannot be sent there.
fn no_receiver(address: &str) -> Option<&'static str> {
    let Ok(url) = address.parse::<reqwest::Url>() else { return Some("is no address") };
    match () {
        () if !matches!(url.scheme(), "http" | "https") || !url.has_host() => Some("is no http or https address"),
        () if !url.username().is_empty() || url.password().is_some() => Some("has credentials, which would be shown"),
        () if url.query().is_some() => Some("has a query, which may have credentials and would be shown"),
        () => None,
    }
}

fn read_connectors(root: &mut Fields<'_>, reader: &mut Reader<'_>) -> BTreeMap<Name, ConnectorSettings> {
    let mut connectors = BTreeMap::new();
    let Some(tables) = root.raw("connectors").and_then(Value::as_object) else { return connectors };
    for (name, value) in tables {
        let path = format!("connectors.{name}");
        let fields = Name::new(name)
            .map_err(|cause| FieldProblem::new("[connectors]", cause.to_string()).token(name))
            .and_then(|name| Fields::new(format!("[{path}]"), value).map(|fields| (name, fields)));
        match fields {
            Err(problem) => reader.take("connectors", vec![problem]),
            Ok((name, mut fields)) => {
                let settings = ConnectorSettings {
                    script: fields.optional("script"),
                    account: fields.optional("account"),
                    vars: fields.or_default("vars"),
                };
                reader.take(&path, fields.finish());
                connectors.insert(name, settings);
            }
        }
    }
    connectors
}

/// /var/lib/machinist where this process can write, else the user's state directory.
fn default_state_dir(name: &str) -> PathBuf {
    let system = PathBuf::from("/var/lib/machinist");
    let writable = |path: &Path| nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok();
    if writable(&system) || (!system.exists() && writable(Path::new("/var/lib"))) {
        return system.join(name);
    }
    let home = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = home("XDG_STATE_HOME").or_else(|| home("HOME").map(|home| home.join(".local/state")));
    state.unwrap_or_else(std::env::temp_dir).join("machinist").join(name)
}

fn default_scripts_dir(dir: &Path) -> PathBuf {
    let beside = dir.ancestors().skip(1).take(2).map(|ancestor| ancestor.join("scripts"));
    beside.into_iter().find(|path| path.is_dir()).unwrap_or_else(|| PathBuf::from("/etc/machinist/scripts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(file: &str, text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let machine = dir.path().join("gpu");
        std::fs::create_dir(&machine).unwrap();
        std::fs::write(machine.join(file), text).unwrap();
        dir
    }

    fn load_in(dir: &tempfile::TempDir, overrides: &Overrides) -> Result<(Settings, Tree), Problems> {
        load(&dir.path().join("gpu"), overrides)
    }

    fn environment(pairs: &[(&str, &str)]) -> Overrides {
        let environment = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Overrides { environment, flags: Vec::new() }
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_defaults() {
        let dir = machine("machine.toml", "[machine]\npool = \"heavy\"\n[http]\nlisten = \"127.0.0.1:1\"\n");
        let mut overrides = environment(&[
            ("MACHINIST_HTTP__LISTEN", "127.0.0.1:2"),
            ("MACHINIST_QUEUE__LEASE", "3s"),
            ("WORKERS", "7"),
            ("MACHINIST_VARS__MODELS_DIR", "/m"),
        ]);
        overrides.flags.push(("--listen".into(), "http.listen".into(), "127.0.0.1:3".into()));
        let (settings, tree) = load_in(&dir, &overrides).unwrap();
        assert_eq!(settings.http.listen.port(), 3);
        assert_eq!(settings.machine.pool.as_str(), "heavy");
        assert_eq!(settings.machine.machine_type.as_str(), "gpu");
        assert_eq!((settings.machine.workers, settings.queue.lease.get().as_secs()), (7, 3));
        assert_eq!(settings.vars["models_dir"], "/m");
        let origin = |path: &str| {
            let path: Vec<String> = path.split('.').map(str::to_owned).collect();
            let text = tree.origin(&path).unwrap().to_string();
            text.rsplit('/').next().unwrap().to_owned()
        };
        assert_eq!(origin("http.listen"), "flag --listen");
        assert_eq!(origin("queue.lease"), "environment MACHINIST_QUEUE__LEASE");
        assert_eq!(origin("machine.pool"), "machine.toml:2");
        assert_eq!(origin("log.level"), "default");
    }

    #[test]
    fn free_values_from_outside_have_the_kind_of_what_they_replace() {
        let file = "[vars.a]\nport = 8188\nname = \"x\"\non = false\nlist = []\n";
        let dir = machine("machine.toml", file);
        let mut overrides = environment(&[
            ("MACHINIST_VARS__A__PORT", "9000"),
            ("MACHINIST_VARS__A__NAME", "9000"),
            ("MACHINIST_VARS__A__ON", "true"),
            ("MACHINIST_VARS__NEW", "[1, \"b\"]"),
            ("MACHINIST_VARS__TEXT", "9000 things"),
            ("MACHINIST_CONNECTORS__COMFYUI__VARS__INLINE_MAX", "5"),
        ]);
        overrides.flags.push(("--set".into(), "vars.a.list".into(), "[2]".into()));
        overrides.flags.push(("--set".into(), "vars.a.on".into(), "perhaps".into()));
        let (settings, _) = load_in(&dir, &overrides).unwrap();
        let a = serde_json::json!({ "port": 9000, "name": "9000", "on": "perhaps", "list": [2] });
        assert_eq!(settings.vars["a"], a);
        assert_eq!(settings.vars["new"], serde_json::json!([1, "b"]));
        assert_eq!(settings.vars["text"], "9000 things");
        assert_eq!(settings.connectors[&"comfyui".parse::<Name>().unwrap()].vars["inline_max"], 5);
    }

    #[test]
    fn all_problems_come_at_once_with_their_places() {
        let text = "[machine]\npol = \"x\"\nworkers = \"many\"\n[http]\nlisten = \"nowhere\"\ntoken = \"${NO_SUCH}\"\n\
                    [queue]\nurl = \"amqp://x\"\nlease = \"soon\"\n[shutdwn]\ngrace = 1\n[connectors.comfyui]\nscrpt = \"x\"\n";
        let dir = machine("machine.toml", text);
        let problems =
            load_in(&dir, &environment(&[("MACHINIST_HTP__LISTEN", "x"), ("MACHINE_ID", "a b")])).unwrap_err();
        let shown = problems.to_string().replace(&dir.path().canonicalize().unwrap().display().to_string(), "");
        insta::assert_snapshot!(shown, @r#"
        error: the environment variable MACHINIST_HTP__LISTEN names no setting
         = help: did you mean MACHINIST_HTTP__LISTEN?

        error: "http.token": the environment variable NO_SUCH is not set
         --> /gpu/machine.toml:6:1
          |
        6 | token = "${NO_SUCH}"
          | ^^^^^
          = help: set it, or write ${NO_SUCH:-} to allow that

        error: [machine]: "id": invalid name "a b": a name has 1 to 63 ASCII letters, digits, '.', '_' or '-' and begins with a letter or digit
         = note: the value comes from the environment variable MACHINE_ID

        error: [machine]: "workers": invalid type: string "many", expected u32
         --> /gpu/machine.toml:3:1
          |
        3 | workers = "many"
          | ^^^^^^^

        error: [machine]: unknown key "pol"
         --> /gpu/machine.toml:2:1
          |
        2 | pol = "x"
          | ^^^
          = help: did you mean "pool"?

        error: [queue]: "url" names no queue: amqp:// is none of redis, rediss, unix, redis+sentinel, redis+cluster
         --> /gpu/machine.toml:8:1
          |
        8 | url = "amqp://x"
          | ^^^
          = help: write "embedded:", "embedded:PATH", "redis://HOST:PORT" (rediss:// for TLS), "redis+sentinel://HOST,HOST/MASTER" or "redis+cluster://HOST,HOST"

        error: [queue]: "lease": invalid duration "soon": write a number with a unit such as "200ms", "10s", "5m" or "1h 30m"
         --> /gpu/machine.toml:9:1
          |
        9 | lease = "soon"
          | ^^^^^

        error: [http]: "listen": invalid socket address syntax
         --> /gpu/machine.toml:5:1
          |
        5 | listen = "nowhere"
          | ^^^^^^

        error: [connectors.comfyui]: unknown key "scrpt"
          --> /gpu/machine.toml:13:1
           |
        13 | scrpt = "x"
           | ^^^^^
           = help: did you mean "script"?

        error: unknown key "shutdwn"
          --> /gpu/machine.toml:11:1
           |
        11 | grace = 1
           | ^^^^^
           = help: did you mean "shutdown"?
        "#);
    }

    #[test]
    fn secrets_are_never_shown() {
        let dir = machine("machine.toml", "[http]\ntoken = \"${T}\"\n");
        let (settings, _) = load_in(&dir, &environment(&[("T", "hunter2")])).unwrap();
        assert_eq!(settings.http.token.as_ref().unwrap().reveal(), "hunter2");
        assert!(!format!("{settings:?}{}", serde_json::to_string(&settings).unwrap()).contains("hunter2"));
    }

    #[test]
    fn two_files_are_one_too_many() {
        let dir = machine("machine.toml", "");
        std::fs::write(dir.path().join("gpu/machine.json"), "{}").unwrap();
        assert!(load_in(&dir, &Overrides::default()).unwrap_err().to_string().contains("several settings files"));
    }
}
