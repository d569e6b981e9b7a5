use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::FieldProblem;

/// A GPU as templates see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRef {
    pub index: u32,
    pub uuid: String,
}

impl GpuRef {
    /// Whether an entry of `CUDA_VISIBLE_DEVICES` means this GPU: its index, its uuid, or the beginning of its uuid, as CUDA
    /// takes them.
    pub fn is_meant_by(&self, entry: &str) -> bool {
        let entry = entry.trim();
        entry.parse() == Ok(self.index) || (entry.len() > "GPU-".len() && self.uuid.starts_with(entry))
    }
}

/// Turns every service with `instances: N` or `instances: "per_gpu"` into N services `NAME-0`, `NAME-1`, ... In their
/// texts `{instance}`, `{port}` (its first port), and per GPU `{gpu}` and `{gpu_uuid}` are replaced; its ports count up by
/// the number of the instance; `MACHINIST_INSTANCE`, and per GPU `CUDA_VISIBLE_DEVICES`, are in its environment. Who needs
/// `NAME` needs all of them.
pub(super) fn expand(
    services: &[Value],
    workers: &[Value],
    gpus: &[GpuRef],
) -> (Vec<Value>, Vec<Value>, Vec<FieldProblem>) {
    let mut problems = Vec::new();
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut expanded = Vec::new();
    for service in services {
        let Some(instances) = service.get("instances").filter(|value| !value.is_null()) else {
            expanded.push(service.clone());
            continue;
        };
        let name = service.get("name").and_then(Value::as_str).unwrap_or_default();
        let (count, per_gpu) = match instances {
            Value::String(text) if text == "per_gpu" => (gpus.len(), true),
            Value::Number(number) if number.as_u64().is_some_and(|count| count <= 1000) => {
                (usize::try_from(number.as_u64().unwrap_or(0)).unwrap_or(0), false)
            }
            _ => {
                let wrong = "\"instances\": expected a number up to 1000 or \"per_gpu\"";
                problems.push(FieldProblem::new(format!("service \"{name}\""), wrong).token("instances"));
                continue;
            }
        };
        let names = groups.entry(name.to_owned()).or_default();
        for number in 0..count {
            let gpu = gpus.get(number).filter(|_| per_gpu);
            let one = instance(service, number, gpu);
            names.push(format!("{name}-{number}"));
            expanded.push(one);
        }
    }
    for service in &mut expanded {
        expand_needs(service, &groups);
    }
    let mut workers = workers.to_vec();
    for worker in &mut workers {
        expand_needs(worker, &groups);
    }
    (expanded, workers, problems)
}

fn instance(template: &Value, number: usize, gpu: Option<&GpuRef>) -> Value {
    let mut one = template.clone();
    let offset = u64::try_from(number).unwrap_or(0);
    if let Some(ports) = one.get_mut("ports").and_then(Value::as_array_mut) {
        for port in ports {
            if let Some(base) = port.as_u64() {
                *port = Value::from(base + offset);
            }
        }
    }
    let mut words = vec![("{instance}", number.to_string())];
    if let Some(port) = one.get("ports").and_then(|ports| ports.get(0)).and_then(Value::as_u64) {
        words.push(("{port}", port.to_string()));
    }
    if let Some(gpu) = gpu {
        words.push(("{gpu}", gpu.index.to_string()));
        words.push(("{gpu_uuid}", gpu.uuid.clone()));
    }
    replace(&mut one, &words);
    let Some(map) = one.as_object_mut() else { return one };
    let name = map.get("name").and_then(Value::as_str).unwrap_or_default();
    let name = format!("{name}-{number}");
    map.insert("name".to_owned(), Value::from(name));
    map.remove("instances");
    let env = map.entry("env").or_insert_with(|| Value::Object(serde_json::Map::new()));
    if let Some(env) = env.as_object_mut() {
        env.entry("MACHINIST_INSTANCE").or_insert_with(|| Value::from(number.to_string()));
        if let Some(gpu) = gpu {
            env.entry("CUDA_VISIBLE_DEVICES").or_insert_with(|| Value::from(gpu.uuid.clone()));
        }
    }
    one
}

fn replace(value: &mut Value, words: &[(&str, String)]) {
    match value {
        Value::String(text) => {
            for (word, by) in words {
                if text.contains(word) {
                    *text = text.replace(word, by);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, words)),
        Value::Object(map) => map.values_mut().for_each(|item| replace(item, words)),
        _ => {}
    }
}

fn expand_needs(value: &mut Value, groups: &BTreeMap<String, Vec<String>>) {
    let Some(needs) = value.get_mut("needs").and_then(Value::as_array_mut) else { return };
    let expanded = needs.iter().flat_map(|need| {
        let text = need.as_str().unwrap_or_default();
        let (name, condition) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        match groups.get(name) {
            None => vec![need.clone()],
            Some(names) => {
                let with = |name: &String| condition.map_or_else(|| name.clone(), |rest| format!("{name}:{rest}"));
                names.iter().map(|name| Value::from(with(name))).collect()
            }
        }
    });
    *needs = expanded.collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_gpu_is_meant_by_its_index_and_its_uuid() {
        let gpu = GpuRef { index: 1, uuid: "GPU-ab12".to_owned() };
        for (entry, meant) in [
            ("1", true),
            (" 1 ", true),
            ("GPU-ab12", true),
            ("GPU-a", true),
            ("GPU-", false),
            ("", false),
            ("0", false),
            ("11", false),
            ("GPU-b", false),
            ("GPU-ab123", false),
            ("all", false),
        ] {
            assert_eq!(gpu.is_meant_by(entry), meant, "{entry:?}");
        }
    }

    #[test]
    fn a_template_becomes_one_service_per_gpu() {
        let gpus = [GpuRef { index: 0, uuid: "GPU-a".to_owned() }, GpuRef { index: 3, uuid: "GPU-b".to_owned() }];
        let template = json!({ "name": "comfy", "instances": "per_gpu", "ports": [8188],
            "command": ["python", "main.py", "--port", "{port}", "--gpu={gpu}"], "ready": { "tcp": "127.0.0.1:{port}" } });
        let follower = json!({ "name": "proxy", "command": "x", "needs": ["comfy:started", "db"] });
        let worker = json!({ "name": "w", "needs": ["comfy"] });
        let (services, workers, problems) = expand(&[template, follower], &[worker], &gpus);
        assert!(problems.is_empty());
        assert_eq!(
            services[1],
            json!({ "name": "comfy-1", "ports": [8189], "command": ["python", "main.py", "--port", "8189", "--gpu=3"],
                "ready": { "tcp": "127.0.0.1:8189" },
                "env": { "MACHINIST_INSTANCE": "1", "CUDA_VISIBLE_DEVICES": "GPU-b" } })
        );
        assert_eq!(services[2]["needs"], json!(["comfy-0:started", "comfy-1:started", "db"]));
        assert_eq!(workers[0]["needs"], json!(["comfy-0", "comfy-1"]));
        let (none, _, _) = expand(&[json!({ "name": "a", "instances": "per_gpu" })], &[], &[]);
        assert!(none.is_empty());
    }

    #[test]
    fn a_wrong_number_is_a_problem() {
        let (_, _, problems) = expand(&[json!({ "name": "a", "instances": -1 })], &[], &[]);
        assert_eq!(problems.len(), 1);
    }
}
