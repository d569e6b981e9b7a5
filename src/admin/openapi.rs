use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::route::{Content, Route, schema};
use super::routes::routes;
use crate::base::Name;
use crate::queue::JobId;

/// The `OpenAPI` document of the HTTP API: every route of the router, since both are made of the same table, with schemas made
/// of the types that are read and written.
pub fn openapi() -> Value {
    document(&routes())
}

fn generator() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
        settings.transforms.push(Box::new(RecursiveTransform(bound)));
    });
    settings.into_generator()
}

/// Numbers end somewhere, which their format says to people only.
fn bound(schema: &mut Schema) {
    let most = match schema.get("format").and_then(Value::as_str) {
        Some("uint32") => u64::from(u32::MAX),
        Some("uint" | "uint64") => u64::MAX,
        _ => return,
    };
    if schema.get("maximum").is_none() {
        schema.insert("maximum".to_owned(), most.into());
    }
}

pub(super) fn document(routes: &[Route]) -> Value {
    let mut generator = generator();
    let mut paths = Map::new();
    for route in routes {
        let operation = operation(route, &mut generator);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_lowercase()] = operation;
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "machinist",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "One machine: its health, services, logs and events, and the queue of jobs that it shares with \
                others. What is no GET needs the machine's token where one is set.",
            "license": { "name": env!("CARGO_PKG_LICENSE") },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.about,
        "tags": [tag(route.path)],
        "responses": {},
    });
    let parameters = parameters(route, generator);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if !route.body.is_empty() {
        operation["requestBody"] =
            json!({ "required": route.body_needed, "content": contents(&route.body, generator) });
    }
    for answer in &route.answers {
        let mut response = json!({ "description": answer.about });
        if !answer.content.is_empty() {
            response["content"] = contents(&answer.content, generator);
        }
        operation["responses"][answer.status.to_string()] = response;
    }
    if route.changes() {
        // Nothing is asked for where no token is set.
        operation["security"] = json!([{ "token": [] }, {}]);
    }
    operation
}

fn parameters(route: &Route, generator: &mut SchemaGenerator) -> Vec<Value> {
    let path = route.path_parameters().map(|name| {
        let (about, schema) = path_parameter(name, generator);
        json!({ "name": name, "in": "path", "required": true, "description": about, "schema": schema })
    });
    let mut parameters: Vec<Value> = path.collect();
    parameters.extend(query_parameters(route, generator));
    for (name, meaning) in &route.headers {
        // Accept is content negotiation, which OpenAPI says by the media types of answers.
        if *name != "Accept" {
            let schema = json!({ "type": "string" });
            parameters.push(json!({ "name": name, "in": "header", "description": meaning, "schema": schema }));
        }
    }
    parameters
}

fn path_parameter(name: &str, generator: &mut SchemaGenerator) -> (&'static str, Schema) {
    match name {
        "id" => ("The job's id.", schema::<JobId>(generator)),
        "verb" => ("What it is to do.", schema::<super::services::Verb>(generator)),
        "console" => ("The console's id.", schema::<String>(generator)),
        "machine" => ("The machine's id.", schema::<Name>(generator)),
        "worker" => ("The worker's name on that machine.", schema::<Name>(generator)),
        _ => ("Its name.", schema::<Name>(generator)),
    }
}

/// The fields of the type that the query is read into.
fn query_parameters(route: &Route, generator: &mut SchemaGenerator) -> Vec<Value> {
    let Some(query) = route.query else { return Vec::new() };
    let mut fields = query(generator);
    RecursiveTransform(bound).transform(&mut fields);
    let fields = fields.to_value();
    let required = fields["required"].as_array().cloned().unwrap_or_default();
    let properties = fields["properties"].as_object().cloned().unwrap_or_default();
    let parameter = |(name, mut schema): (String, Value)| {
        let mut parameter = json!({ "name": name, "in": "query", "required": required.contains(&json!(name)) });
        let about = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        parameter["description"] = about.unwrap_or_else(|| "".into());
        parameter["schema"] = without_null(schema);
        parameter
    };
    properties.into_iter().map(parameter).collect()
}

/// A parameter that may be left out; it is never sent as null.
fn without_null(mut schema: Value) -> Value {
    if let Some(types) = schema["type"].as_array() {
        let types: Vec<&Value> = types.iter().filter(|name| *name != "null").collect();
        schema["type"] = if let [only] = types[..] { only.clone() } else { json!(types) };
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let null = json!({ "type": "null" });
        let choices: Vec<Value> = choices.iter().filter(|choice| **choice != null).cloned().collect();
        match <[Value; 1]>::try_from(choices) {
            Ok([only]) => schema = only,
            Err(choices) => schema["anyOf"] = choices.into(),
        }
    }
    if let Some(schema) = schema.as_object_mut() {
        schema.retain(|key, value| !(key == "default" || value.is_null()));
    }
    schema
}

fn contents(contents: &[Content], generator: &mut SchemaGenerator) -> Value {
    let mut map = Map::new();
    for content in contents {
        let mut entry = json!({ "schema": (content.schema)(generator) });
        if let Some(example) = &content.example {
            entry["example"] = example.clone();
        }
        map.insert(content.media_type.to_owned(), entry);
    }
    map.into()
}

/// `get_jobs_id_events`.
fn operation_id(route: &Route) -> String {
    let words = route.path.split('/').map(|part| part.trim_matches(['{', '}'])).filter(|part| !part.is_empty());
    let words: Vec<String> = words.map(|word| word.replace('.', "_")).collect();
    let method = route.method.as_str().to_lowercase();
    if words.is_empty() { method } else { format!("{method}_{}", words.join("_")) }
}

fn tag(path: &str) -> &str {
    match path.split('/').nth(1).unwrap_or_default() {
        "services" | "logs" => "services",
        "jobs" | "batches" => "jobs",
        "queue" => "queue",
        _ => "machine",
    }
}

/// All routes for people, one a line.
pub(super) fn listing(routes: &[Route]) -> String {
    let mut generator = generator();
    let mut text = "machinist\n\n".to_owned();
    for route in routes {
        let mut path = route.path.to_owned();
        let parameters = query_parameters(route, &mut generator);
        for (index, parameter) in parameters.iter().enumerate() {
            let name = parameter["name"].as_str().unwrap_or_default();
            path = format!("{path}{}{name}", if index == 0 { '?' } else { '&' });
        }
        let _ = writeln!(text, "{:6} {path}\n           {}", route.method.as_str(), route.about);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let routes = routes();
        let table: BTreeSet<(String, String)> =
            routes.iter().map(|route| (route.path.to_owned(), route.method.as_str().to_lowercase())).collect();
        assert_eq!(table.len(), routes.len(), "no route is there twice");
        let document = document(&routes);
        let described: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone()))
            })
            .collect();
        assert_eq!(described, table);
        let listed = listing(&routes);
        for route in &routes {
            assert!(listed.contains(&format!("{:6} {}", route.method.as_str(), route.path)), "{}", route.path);
            assert!(route.about.ends_with('.') && !route.answers.is_empty(), "{} says what it does", route.path);
            assert!(
                route.answers.iter().any(|answer| answer.status < 400),
                "{} {} has an answer that is no error",
                route.method.as_str(),
                route.path
            );
        }
    }

    #[test]
    fn operations_have_names_of_their_own() {
        let document = openapi();
        let mut ids = BTreeSet::new();
        for methods in document["paths"].as_object().unwrap().values() {
            for operation in methods.as_object().unwrap().values() {
                assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{operation}");
            }
        }
        assert!(ids.contains("get_jobs_id_events"), "{ids:?}");
    }

    /// What a reader of the document follows leads somewhere.
    #[test]
    fn every_reference_leads_to_a_schema() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = openapi();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 30, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}
