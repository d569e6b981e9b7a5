use rhai::FuncMetadata;

use crate::script::api::{Place, Section};

/// A function, property or operator as the reference shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub form: Form,
    /// As one writes it, with the types of parameters and result.
    pub signature: String,
    /// Markdown.
    pub doc: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    Property,
    Method,
    Function,
    Operator,
}

/// All of a section: properties first, then by name.
pub(super) fn entries(section: &Section) -> Vec<Entry> {
    let prefix = match section.place {
        Place::Namespace(name) => format!("{name}::"),
        Place::Type(_) | Place::Words(_) => String::new(),
    };
    let mut functions = section.functions();
    functions.sort_by_key(order);
    functions.iter().filter_map(|function| entry(function, &prefix)).collect()
}

pub(super) fn order(function: &FuncMetadata) -> (String, usize, String) {
    (function.name.to_string(), function.num_params, function.params_info.join(","))
}

fn entry(function: &FuncMetadata, prefix: &str) -> Option<Entry> {
    let parameters: Vec<(String, &str)> = function
        .params_info
        .iter()
        .take(function.num_params)
        .map(|parameter| {
            let (name, kind) = parameter.split_once(':').unwrap_or((parameter, ""));
            (name.trim().trim_start_matches("mut ").to_owned(), kind.trim())
        })
        .collect();
    let written = |parameters: &[(String, &str)]| {
        let each = parameters.iter().map(|(name, kind)| format!("{name}: {}", type_name(kind)));
        each.collect::<Vec<_>>().join(", ")
    };
    let returned = type_name(&function.return_type);
    let result = if returned == "()" { String::new() } else { format!(" -> {returned}") };
    let receiver = parameters.first().filter(|(_, kind)| kind.starts_with("&mut ")).map(|(name, _)| name.clone());
    let name = function.name.to_string();
    let is_word = is_word(&name);
    let (name, form, signature) = match (name.strip_prefix("get$"), receiver) {
        (Some(property), Some(receiver)) => {
            (property.to_owned(), Form::Property, format!("{receiver}.{property}: {returned}"))
        }
        // Whoever can be read can be written, or is documented as such.
        _ if name.starts_with("set$") => return None,
        (_, Some(receiver)) if is_word => {
            let signature = format!("{receiver}.{name}({}){result}", written(&parameters[1..]));
            (name, Form::Method, signature)
        }
        _ if is_word => {
            let signature = format!("{prefix}{name}({}){result}", written(&parameters));
            (name, Form::Function, signature)
        }
        _ => {
            let kinds: Vec<String> = parameters.iter().map(|(_, kind)| type_name(kind)).collect();
            (name.clone(), Form::Operator, format!("{}{result}", kinds.join(&format!(" {name} "))))
        }
    };
    Some(Entry { name, form, signature, doc: text_of(&function.comments) })
}

pub(super) fn is_word(name: &str) -> bool {
    name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// The Markdown of `///` comments.
pub(super) fn text_of<T: AsRef<str>>(comments: &[T]) -> String {
    let lines = comments.iter().flat_map(|comment| comment.as_ref().lines());
    let lines = lines.map(|line| {
        let line = line.trim_start_matches("//!").trim_start_matches("///");
        line.strip_prefix(' ').unwrap_or(line)
    });
    // Headings of a comment are no headings of the page.
    let mut code = false;
    let lines = lines.map(|line| {
        code ^= line.starts_with("```");
        match line.strip_prefix("# ") {
            Some(heading) if !code => format!("**{heading}**"),
            _ => line.to_owned(),
        }
    });
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// What scripts call the type that Rust calls `raw`.
pub(in crate::script) fn type_name(raw: &str) -> String {
    let raw = raw.trim().trim_start_matches('&').trim_start_matches("mut ").trim();
    for wrapper in ["ScriptResult<", "RhaiResultOf<"] {
        if let Some(inner) = raw.strip_prefix(wrapper) {
            return type_name(inner.strip_suffix('>').unwrap_or(inner));
        }
    }
    let last = raw.rsplit("::").next().unwrap_or(raw);
    match last {
        "" | "()" => "()",
        "str" | "String" | "ImmutableString" => "string",
        "i64" | "INT" => "int",
        "f64" | "FLOAT" => "float",
        "Dynamic" => "any",
        "Map" => "map",
        "Array" => "array",
        "FnPtr" => "Fn",
        "JobHandle" => "Job",
        "Thrown" => "Failure",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use std::any::type_name;
    use std::collections::BTreeSet;

    use crate::script::api::{JobHandle, Place, Thrown, sections};
    use crate::script::types::{
        Blob, HostError, PendingRequest, RedisClient, Response, Secret, Store, Subscription, WebSocket,
    };

    /// What Rust calls a type is nobody's business who writes scripts.
    #[test]
    fn every_type_has_the_name_of_its_section() {
        let types = [
            type_name::<Thrown>(),
            type_name::<JobHandle>(),
            type_name::<Blob>(),
            type_name::<HostError>(),
            type_name::<PendingRequest>(),
            type_name::<RedisClient>(),
            type_name::<Response>(),
            type_name::<Secret>(),
            type_name::<Store>(),
            type_name::<Subscription>(),
            type_name::<WebSocket>(),
        ];
        let named: BTreeSet<String> = types.iter().map(|raw| super::type_name(raw)).collect();
        let shown: BTreeSet<String> = sections()
            .into_iter()
            .filter_map(|section| match section.place {
                Place::Type(name) => Some(name.to_owned()),
                _ => None,
            })
            .collect();
        assert_eq!(named, shown, "name a new type above; one that Rust names otherwise in `type_name`");
    }
}
