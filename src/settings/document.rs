use std::borrow::Cow;
use std::ops::Range;

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::origin::{Leaf, Origin, Tree};
use crate::base::{Problem, SourceText};

/// Reads TOML into leaves that know their line.
pub(super) fn read_toml(source: &SourceText) -> Result<Tree, Problem> {
    let root = DeTable::parse(&source.text).map_err(|cause| {
        let problem = Problem::error(format!("not valid TOML: {}", cause.message()));
        match cause.span() {
            Some(span) => {
                let (line, column) = position(&source.text, span.start);
                problem.at(source, line, Some(column))
            }
            None => problem.in_file(&source.file),
        }
    })?;
    let mut tree = Tree::default();
    toml_table(source, &mut Vec::new(), root.get_ref(), &(0..0), &mut tree);
    Ok(tree)
}

fn toml_table(source: &SourceText, path: &mut Vec<String>, table: &DeTable<'_>, span: &Range<usize>, tree: &mut Tree) {
    if table.is_empty() && !path.is_empty() {
        tree.leaves.insert(path.clone(), toml_leaf(source, span, Value::Object(Map::new())));
    }
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        if let DeValue::Table(inner) = value.get_ref() {
            toml_table(source, path, inner, &key.span(), tree);
        } else {
            tree.leaves.insert(path.clone(), toml_leaf(source, &key.span(), toml_value(value)));
        }
        path.pop();
    }
}

fn toml_leaf(source: &SourceText, span: &Range<usize>, value: Value) -> Leaf {
    let (line, column) = position(&source.text, span.start);
    Leaf { value, origin: Origin::File { source: source.clone(), line, column } }
}

fn toml_value(value: &Spanned<DeValue<'_>>) -> Value {
    match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Value::Null, Value::from)
        }
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Value::Null, Value::from),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(items) => Value::Array(items.iter().map(toml_value).collect()),
        DeValue::Table(table) => {
            let entries = table.iter().map(|(key, value)| (key.get_ref().to_string(), toml_value(value)));
            Value::Object(entries.collect())
        }
    }
}

/// Reads YAML, of which JSON is a part, into leaves that know their line.
pub(super) fn read_yaml(source: &SourceText) -> Result<Tree, Problem> {
    let documents = MarkedYaml::load_from_str(&source.text).map_err(|cause| {
        let marker = cause.marker();
        let problem = Problem::error(format!("not valid YAML or JSON: {}", cause.info()));
        problem.at(source, marker.line(), Some(marker.col() + 1))
    })?;
    let mut tree = Tree::default();
    match documents.as_slice() {
        [] => Ok(tree),
        [document] => {
            let YamlData::Mapping(_) = document.data else {
                return Err(Problem::error("expected tables of settings").in_file(&source.file));
            };
            yaml_node(source, &mut Vec::new(), document, document, &mut tree);
            Ok(tree)
        }
        _ => Err(Problem::error("expected one document, found several").in_file(&source.file)),
    }
}

fn yaml_node(
    source: &SourceText,
    path: &mut Vec<String>,
    key: &MarkedYaml<'_>,
    node: &MarkedYaml<'_>,
    tree: &mut Tree,
) {
    if let YamlData::Mapping(entries) = &node.data
        && (!entries.is_empty() || path.is_empty())
    {
        for (key, value) in entries {
            path.push(yaml_key(key).into_owned());
            yaml_node(source, path, key, value, tree);
            path.pop();
        }
        return;
    }
    let (line, column) = (key.span.start.line(), key.span.start.col() + 1);
    let origin = Origin::File { source: source.clone(), line, column };
    tree.leaves.insert(path.clone(), Leaf { value: yaml_value(node), origin });
}

fn yaml_key<'a>(key: &'a MarkedYaml<'_>) -> Cow<'a, str> {
    match &key.data {
        YamlData::Value(Scalar::String(text)) => Cow::Borrowed(text.as_ref()),
        _ => Cow::Owned(yaml_value(key).to_string()),
    }
}

fn yaml_value(node: &MarkedYaml<'_>) -> Value {
    match &node.data {
        YamlData::Value(Scalar::Boolean(flag)) => Value::Bool(*flag),
        YamlData::Value(Scalar::Integer(number)) => Value::from(*number),
        YamlData::Value(Scalar::FloatingPoint(number)) => Value::from(number.into_inner()),
        YamlData::Value(Scalar::String(text)) => Value::String(text.to_string()),
        YamlData::Sequence(items) => Value::Array(items.iter().map(yaml_value).collect()),
        YamlData::Mapping(entries) => {
            let entries = entries.iter().map(|(key, value)| (yaml_key(key).into_owned(), yaml_value(value)));
            Value::Object(entries.collect())
        }
        // Null, and what only YAML knows: aliases, tags.
        _ => Value::Null,
    }
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn toml_yaml_and_json_of_one_shape_read_alike() {
        let toml =
            "[http]\nlisten = \"a:1\"\n[vars]\nn = 3\nlist = [1, \"x\"]\nf = 0.5\nempty = {}\ndeep = { a = true }\n";
        let yaml = "http:\n  listen: a:1\nvars:\n  n: 3\n  list: [1, x]\n  f: 0.5\n  empty: {}\n  deep:\n    a: true\n";
        let json = r#"{"http": {"listen": "a:1"}, "vars": {"n": 3, "list": [1, "x"], "f": 0.5, "empty": {}, "deep": {"a": true}}}"#;
        let source = |text: &str| SourceText::new(Path::new("f"), text);
        let from_toml = read_toml(&source(toml)).unwrap();
        assert_eq!(from_toml.to_value(), read_yaml(&source(yaml)).unwrap().to_value());
        assert_eq!(from_toml.to_value(), read_yaml(&source(json)).unwrap().to_value());
        let origin = from_toml.origin(&["vars".into(), "list".into()]).unwrap();
        assert_eq!(origin.to_string(), "f:5");
    }

    #[test]
    fn syntax_errors_show_their_place() {
        let source = SourceText::new(Path::new("machine.toml"), "[http]\nlisten = = 3\n");
        let problem = read_toml(&source).unwrap_err();
        assert_eq!(problem.location.unwrap().to_string(), "machine.toml:2:10");
        let source = SourceText::new(Path::new("machine.yaml"), "http: [1\nvars: }\n");
        assert!(read_yaml(&source).unwrap_err().location.unwrap().line >= 1);
    }
}
