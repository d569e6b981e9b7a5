use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;

/// A key of a map, as the comments of the type behind it describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    /// In the words of scripts: `string`, `int`, `array of string`, `map or ()`.
    pub kind: String,
    pub about: String,
}

/// What `T` is for and the keys it is written with.
pub fn fields<T: JsonSchema>() -> (String, Vec<Field>) {
    let schema = SchemaGenerator::default().into_root_schema_for::<T>().to_value();
    let properties = schema["properties"].as_object().into_iter().flatten();
    let fields = properties.map(|(name, property)| Field {
        name: name.clone(),
        kind: kind(&schema, property),
        about: description(property),
    });
    (description(&schema), fields.collect())
}

fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn kind(root: &Value, schema: &Value) -> String {
    if let Some(path) = schema["$ref"].as_str() {
        return kind(root, root.pointer(path.trim_start_matches('#')).unwrap_or(&Value::Null));
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[key].as_array() {
            let mut kinds: Vec<String> = choices.iter().map(|choice| kind(root, choice)).collect();
            kinds.dedup();
            return kinds.join(" or ");
        }
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" or ");
    }
    if !schema["const"].is_null() {
        return format!("`{}`", schema["const"]);
    }
    match &schema["type"] {
        Value::String(name) => named(root, schema, name),
        Value::Array(names) => {
            let names = names.iter().filter_map(Value::as_str).map(|name| named(root, schema, name));
            names.collect::<Vec<_>>().join(" or ")
        }
        _ => "any".to_owned(),
    }
}

fn named(root: &Value, schema: &Value, name: &str) -> String {
    match name {
        "integer" => "int".to_owned(),
        "number" => "float".to_owned(),
        "boolean" => "bool".to_owned(),
        "null" => "()".to_owned(),
        "object" => "map".to_owned(),
        "array" if schema["items"].is_object() => format!("array of {}", kind(root, &schema["items"])),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;

    use super::fields;

    /// What it
    /// is for.
    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is looked at")]
    struct Example {
        /// How many.
        count: u32,
        names: Vec<String>,
        reason: Option<String>,
    }

    #[test]
    fn comments_and_types_become_words() {
        let (about, found) = fields::<Example>();
        assert_eq!(about, "What it is for.");
        let shown: Vec<String> =
            found.iter().map(|field| format!("{}: {}: {}", field.name, field.kind, field.about)).collect();
        assert_eq!(shown, ["count: int: How many.", "names: array of string: ", "reason: string or (): "]);
    }
}
