use std::fmt::Write as _;

use rhai::FuncMetadata;

use super::entry::{is_word, type_name};
use crate::script::api::{Place, Section, sections};

/// `.d.rhai` files for the language servers of editors, by name: one per namespace, and one for all that has none.
pub fn definitions() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut global = "module static;\n".to_owned();
    for section in sections() {
        match section.place {
            Place::Namespace(name) => {
                let mut text = format!("module {name};\n");
                define(&mut text, &section);
                files.push((format!("{name}.d.rhai"), text));
            }
            Place::Type(_) | Place::Words(_) => define(&mut global, &section),
        }
    }
    files.push(("__static__.d.rhai".to_owned(), global));
    files
}

fn define(text: &mut String, section: &Section) {
    let mut functions = section.functions();
    functions.sort_by_key(super::entry::order);
    for function in functions {
        text.push('\n');
        for line in function.comments.iter().flat_map(|comment| comment.lines()) {
            let _ = writeln!(text, "{line}");
        }
        let _ = writeln!(text, "{}", declaration(&function));
    }
}

fn declaration(function: &FuncMetadata) -> String {
    let name = function.name.as_str();
    let parameters = function.params_info.iter().take(function.num_params).map(|parameter| {
        let (name, kind) = parameter.split_once(':').unwrap_or((parameter, ""));
        (name.trim().trim_start_matches("mut ").to_owned(), written(kind))
    });
    let result = written(&function.return_type);
    if !is_word(name) && !name.contains('$') {
        let kinds: Vec<String> = parameters.map(|(_, kind)| kind).collect();
        return format!("op {name}({}) -> {result};", kinds.join(", "));
    }
    let parameters: Vec<String> = parameters.map(|(name, kind)| format!("{name}: {kind}")).collect();
    format!("fn {}({}) -> {result};", name.replace('$', " "), parameters.join(", "))
}

/// As Rhai's own definitions write types.
fn written(kind: &str) -> String {
    match type_name(kind).as_str() {
        "string" => "String".to_owned(),
        "any" => "?".to_owned(),
        "map" => "Map".to_owned(),
        "array" => "Array".to_owned(),
        "Fn" => "FnPtr".to_owned(),
        other => other.to_owned(),
    }
}
