//! Holds the import direction of ARCHITECTURE.md: a module imports only modules that stand above it.

use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom of the tower to its top, as `src/lib.rs` declares them.
const MODULES: [&str; 14] = [
    "base",
    "telemetry",
    "spec",
    "settings",
    "host",
    "queue",
    "supervisor",
    "worker",
    "script",
    "admin",
    "fleet",
    "machine",
    "cli",
    "main",
];

/// Modules at one level, which do not see each other although one is declared above the other.
const STRANGERS: [(&str, &str); 4] =
    [("host", "settings"), ("supervisor", "settings"), ("supervisor", "queue"), ("worker", "supervisor")];

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    files
        .into_iter()
        .map(|path| {
            let inside = path.strip_prefix(&root).unwrap();
            let module = inside.components().next().unwrap().as_os_str().to_str().unwrap();
            let module = module.trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            (module, inside.to_owned(), text)
        })
        .collect()
}

/// The top-level modules that a source line refers to by `crate::`.
fn references(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split("//").next().unwrap_or("");
    code.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn modules_import_only_from_above() {
    let level = |module: &str| MODULES.iter().position(|known| *known == module);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (module, path, text) in sources() {
        if module == "lib" {
            continue;
        }
        let own = level(&module).unwrap_or_else(|| panic!("{} belongs to no module", path.display()));
        for (number, line) in text.lines().enumerate() {
            for target in references(line) {
                let Some(other) = level(target) else { continue };
                seen += 1;
                let strangers = STRANGERS.contains(&(module.as_str(), target));
                if other > own || strangers {
                    wrong.push(format!("src/{}:{}: {module} imports {target}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(seen > 20, "the test reads the sources");
    assert!(wrong.is_empty(), "imports against the direction:\n{}", wrong.join("\n"));
}

#[test]
fn lib_declares_the_modules_in_import_order() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared: Vec<&str> = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let expected: Vec<&str> = MODULES.into_iter().filter(|module| declared.contains(module)).collect();
    assert_eq!(declared, expected);
}

#[test]
fn only_script_names_a_rhai_type() {
    // Expressions in requirements: an engine without statements, primitives or state.
    let expressions = Path::new("queue/expression.rs");
    let mut wrong = Vec::new();
    for (module, path, text) in sources() {
        let uses = text.lines().any(|line| line.split("//").next().unwrap_or("").contains("rhai::"));
        if uses && module != "script" && path != expressions {
            wrong.push(path.display().to_string());
        }
    }
    assert!(wrong.is_empty(), "Rhai outside src/script: {wrong:?}");
}

/// What primitives act with comes from `Call::world`, which has nothing to give in a test of scripts. What they could reach
/// without it is named here, with the reason why a test may.
#[test]
fn primitives_reach_the_world_by_their_call_only() {
    let forbidden = [
        "std::fs",
        "File::",
        "std::env",
        "env::var",
        "std::process",
        "Command::",
        "std::net",
        "tokio::net",
        "tokio::fs",
        "Instant::now",
        "SystemTime::now",
        "Timestamp::now",
        "tracing::",
        "metrics::counter",
        "metrics::gauge",
        "thread::",
        "reqwest::get",
        "Client::new",
        "RedisConnections::default",
        "Storages::default",
        "HttpClients::default",
        "SharedSockets::default",
        "Handle::current",
    ];
    let allowed = [
        ("script/api/fs.rs", "std::fs", "makes the work directory, which a test has, too"),
        ("script/api/process.rs", "std::fs", "behind Call::world"),
        ("script/api/process.rs", "tokio::net", "the pipes of what runs; behind Call::world"),
        ("script/api/process.rs", "Instant::now", "behind Call::world"),
        ("script/api/storage.rs", "std::env", "behind Call::world"),
        ("script/api/events.rs", "Instant::now", "behind Call::world"),
        ("script/api/events.rs", "tracing::", "behind Call::world"),
        ("script/api/http/head.rs", "std::fs", "reads certificates, which options name"),
        ("script/api/redis.rs", "RedisConnections::default", "reads an address and connects to nothing"),
        ("script/types/blob.rs", "std::fs", "a file without a name, in the work directory"),
        ("script/types/blob.rs", "File::", "a file without a name, in the work directory"),
        ("script/types/secret.rs", "std::fs", "a file that a variable names, which a test sets"),
        ("script/types/response.rs", "Timestamp::now", "outside of every call"),
    ];
    let mut wrong = Vec::new();
    let mut used = Vec::new();
    for (_, path, text) in sources() {
        let name = path.to_str().unwrap();
        if !name.starts_with("script/api/") && !name.starts_with("script/types/") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or("");
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or("");
            let stands_alone = |word: &&&str| {
                let before = |at: usize| line[..at].chars().next_back();
                line.match_indices(**word)
                    .any(|(at, _)| !before(at).is_some_and(|c| c.is_alphanumeric() || "_:".contains(c)))
            };
            for word in forbidden.iter().filter(stands_alone) {
                match allowed.iter().position(|(file, allowed, _)| *file == name && allowed == word) {
                    Some(index) => used.push(index),
                    None => wrong.push(format!("src/{name}:{}: {word}", number + 1)),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "take it from Call::world, and say what a test gets:\n{}", wrong.join("\n"));
    let unused: Vec<_> = (0..allowed.len()).filter(|index| !used.contains(index)).map(|index| allowed[index]).collect();
    assert!(unused.is_empty(), "allowed and not there: {unused:?}");
}

#[test]
fn the_pure_parts_do_no_io_and_read_no_clock() {
    let pure = [
        "spec/",
        "supervisor/state.rs",
        "machine/handle.rs",
        "machine/probation.rs",
        "queue/matching.rs",
        "queue/lifecycle.rs",
    ];
    let forbidden =
        ["std::fs", "std::net", "tokio::fs", "tokio::net", "tokio::spawn", "Instant::now", "Timestamp::now"];
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (_, path, text) in sources() {
        let name = path.to_str().unwrap();
        if !pure.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        seen += 1;
        let code = text.split("#[cfg(test)]").next().unwrap_or("");
        wrong.extend(forbidden.iter().filter(|word| code.contains(**word)).map(|word| format!("{name}: {word}")));
    }
    assert!(seen > 5, "the pure parts are found");
    assert!(wrong.is_empty(), "{wrong:?}");
}
