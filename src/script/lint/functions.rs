use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use rhai::{Engine, FuncMetadata};

use crate::host::Seen;
use crate::script::api::{Place, sections};
use crate::script::engine::{self, Power};
use crate::script::reference::type_name;
use crate::script::resolver::RootedResolver;

/// What scripts may call without defining it: names with the numbers of arguments they take.
#[derive(Debug, Default)]
pub(in crate::script) struct Functions {
    /// Primitives in a namespace as `namespace::name`.
    arities: BTreeMap<String, BTreeSet<usize>>,
    /// The keys that a function's map of options may have, by the function and the place of the map among its arguments.
    options: BTreeMap<(String, usize), Vec<String>>,
    /// How each function of that name is called, with the types of its parameters.
    signatures: BTreeMap<String, Vec<String>>,
}

impl Functions {
    /// What engines of this power have.
    pub fn of(power: Power) -> &'static Self {
        static TESTS: LazyLock<Functions> = LazyLock::new(|| Functions::all_of(Power::Test));
        static OTHERS: LazyLock<Functions> = LazyLock::new(|| Functions::all_of(Power::Full));
        match power {
            Power::Test => &TESTS,
            Power::Pure | Power::Full => &OTHERS,
        }
    }

    fn all_of(power: Power) -> Self {
        Self::read(&engine::build(power, RootedResolver::new(Vec::new(), Seen::default())))
    }

    /// Everything registered in the engine, and the options that the comments name.
    fn read(engine: &Engine) -> Self {
        let mut functions = Self::default();
        let all = engine.collect_fn_metadata(
            None,
            |function| {
                let (namespace, name) = (function.namespace.to_string(), function.metadata.name.to_string());
                let name = if namespace.is_empty() { name } else { format!("{namespace}::{name}") };
                Some((name, function.metadata.num_params, signature(function.metadata)))
            },
            true,
        );
        for (name, parameters, signature) in all {
            functions.arities.entry(name.clone()).or_default().insert(parameters);
            functions.signatures.entry(name).or_default().push(signature);
        }
        for section in sections() {
            // Which type a method is called on is not known before it is run.
            if matches!(section.place, Place::Type(_)) {
                continue;
            }
            let shared = keys(section.module.doc());
            for function in section.functions() {
                let name = match section.place {
                    Place::Namespace(namespace) => format!("{namespace}::{}", function.name),
                    Place::Type(_) | Place::Words(_) => function.name.to_string(),
                };
                let own = keys(&function.comments.join("\n"));
                let known: Vec<String> = own.into_iter().chain(shared.iter().cloned()).collect();
                let place = function
                    .params_info
                    .iter()
                    .take(function.num_params)
                    .position(|parameter| parameter.split(':').next().is_some_and(|name| name.trim() == "options"));
                if let (Some(place), false) = (place, known.is_empty()) {
                    functions.options.insert((name, place), known);
                }
            }
        }
        functions
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arities.keys().map(String::as_str).filter(|name| is_word(name))
    }

    pub fn arities(&self, name: &str) -> Option<&BTreeSet<usize>> {
        self.arities.get(name)
    }

    /// Of a primitive's name without its namespace: what a host error names.
    pub fn signatures(&self, name: &str) -> Vec<&str> {
        let mut found: Vec<&str> = self.signatures.get(name).into_iter().flatten().map(String::as_str).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    pub fn options(&self, name: &str, place: usize) -> Option<&[String]> {
        self.options.get(&(name.to_owned(), place)).map(Vec::as_slice)
    }

    pub fn has_namespace(&self, namespace: &str) -> bool {
        let prefix = format!("{namespace}::");
        self.arities.range(prefix.clone()..).next().is_some_and(|(name, _)| name.starts_with(&prefix))
    }
}

/// `name(parameter: type, ...)`.
fn signature(function: &FuncMetadata) -> String {
    let parameters = function.params_info.iter().take(function.num_params).map(|parameter| {
        let (name, kind) = parameter.split_once(':').unwrap_or((parameter, ""));
        let name = name.trim().trim_start_matches("mut ");
        if kind.is_empty() { name.to_owned() } else { format!("{name}: {}", type_name(kind)) }
    });
    format!("{}({})", function.name, parameters.collect::<Vec<_>>().join(", "))
}

/// The keys in a table `| option | what | default |`: all the words in quotes of its first column.
fn keys(comment: &str) -> Vec<String> {
    let lines = comment.lines().map(|line| line.trim_start_matches('/').trim());
    let rows = lines.skip_while(|line| !line.starts_with("| option |")).skip(2);
    let cells = rows.take_while(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Neither an operator nor made by the engine.
pub(super) fn is_word(name: &str) -> bool {
    !name.contains('$') && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == ':')
}

#[cfg(test)]
mod tests {
    use super::keys;

    #[test]
    fn options_are_read_from_the_table() {
        let comment = "/// Text.\n///\n/// | option | what | default |\n/// |---|---|---|\n/// | `a`, `b` | `c` | |\n/// | `d` | | |\n///\n/// | x |";
        assert_eq!(keys(comment), ["a", "b", "d"]);
    }

    #[test]
    fn the_documented_options_are_the_ones_that_are_read() {
        use crate::script::api::sections;
        let mut engine = rhai::Engine::new();
        for section in sections() {
            section.register(&mut engine);
        }
        let functions = super::Functions::read(&engine);
        assert!(functions.options("process::run", 0).is_some(), "the tables are found");
        let mut looked_at = 0;
        for ((name, place), known) in &functions.options {
            let before = "\"http://host/\", ".repeat(*place);
            let cause = engine.eval::<rhai::Dynamic>(&format!("{name}({before}#{{ no_such_option: 1 }})")).unwrap_err();
            let cause = cause.to_string();
            // It looks at the world before it looks at its options: tests of its own show those.
            if !cause.contains("no_such_option") {
                continue;
            }
            looked_at += 1;
            // What reads maps names the keys it knows when it meets another one.
            for key in known {
                assert!(cause.contains(key.as_str()), "{name}: {key} is documented and not read: {cause}");
            }
        }
        assert!(looked_at > 0, "some are looked at");
    }
}
