//! Matching against a reference that is plainly right, over arbitrary requirements and capabilities; and that the canonical
//! form is canonical.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Number, Value, json};

use super::*;
use crate::spec::Hardware;

// Generators: from few words, so that things meet, and from all there are.

fn word() -> impl Strategy<Value = String> {
    let known = vec!["", "a", "b", "a b", "ä", "🦀", "\0", "{x}\n", "'\"\\", "\u{202e}", "null", "1"];
    prop_oneof![4 => select(known).prop_map(str::to_owned), 1 => any::<String>()]
}

fn name() -> impl Strategy<Value = Name> {
    select(vec!["a", "b", "c-1"]).prop_map(|name| Name::new(name).unwrap())
}

fn number() -> impl Strategy<Value = f64> {
    let odd = vec![0.0, -0.0, 1.0, 2.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE, 1e17];
    prop_oneof![3 => select(odd), 1 => any::<f64>()]
}

fn scalar() -> impl Strategy<Value = Value> {
    let finite = number().prop_map(|number| Number::from_f64(number).map_or(Value::Null, Value::Number));
    let whole = select(vec![json!(0), json!(1), json!(2), json!(-1), json!(u64::MAX), json!(i64::MIN)]);
    prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::Bool), finite, whole, word().prop_map(Value::String)]
}

fn json_value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::Array),
            vec((word(), inner), 0..3).prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn test() -> impl Strategy<Value = LabelTest> {
    prop_oneof![
        json_value().prop_map(LabelTest::Equals),
        vec(json_value(), 0..3).prop_map(LabelTest::AnyOf),
        number().prop_map(LabelTest::AtLeast),
        any::<bool>().prop_map(LabelTest::Exists),
    ]
}

fn hardware() -> impl Strategy<Value = Hardware> {
    let usual = Just(Hardware { gpu_memory_gb: 0.0, gpu_count: 1, ram_gb: 1.0, cpu_cores: 1.0 });
    let odd = (number(), 0u32..3, number(), number()).prop_map(|(gpu_memory_gb, gpu_count, ram_gb, cpu_cores)| {
        Hardware { gpu_memory_gb, gpu_count, ram_gb, cpu_cores }
    });
    prop_oneof![usual, Just(Hardware::default()), odd]
}

/// Expressions, and what they mean.
type Meaning = fn(&Capabilities) -> bool;

const EXPRESSIONS: [(&str, Meaning); 6] = [
    ("true", |_| true),
    // What is no number in JSON is not there for an expression.
    ("hardware.ram_gb >= 1.0", |worker| worker.hardware.ram_gb.is_finite() && worker.hardware.ram_gb >= 1.0),
    ("models.contains(\"a\")", |worker| worker.models.contains("a")),
    ("pool == \"a\" || machine == \"b\"", |worker| worker.pool.as_str() == "a" || worker.machine.as_str() == "b"),
    // Not of the right type, never ending, no expression, not known: it fails, and what fails does not match.
    ("1", |_| false),
    ("labels.none.of.these > 3", |_| false),
];

fn requirement() -> impl Strategy<Value = Requirement> {
    let names = (option::of(name()), option::of(name()), option::of(name()), option::of(name()));
    let labels = || btree_map(word(), test(), 0..2);
    let when = option::weighted(0.3, select(EXPRESSIONS.to_vec()));
    let rare = |strategy| prop_oneof![2 => Just(BTreeMap::new()), 1 => strategy];
    let models = prop_oneof![2 => Just(BTreeSet::new()), 1 => btree_set(word(), 0..2)];
    (names, hardware(), models, rare(labels()), prop_oneof![2 => Just(BTreeMap::new()), 1 => labels()], when).prop_map(
        |((machine_type, pool, machine, worker), hardware, models, labels, exclude, when)| Requirement {
            machine_type,
            pool,
            hardware,
            models,
            labels,
            exclude,
            machine,
            when: when.map(|(text, _)| text.to_owned()),
            worker,
        },
    )
}

fn capabilities() -> impl Strategy<Value = Capabilities> {
    let names = (btree_set(name(), 0..4), name(), name(), name(), name());
    let customers = || prop_oneof![3 => Just(BTreeSet::new()), 1 => btree_set(word(), 0..3)];
    let rest = (hardware(), btree_set(word(), 0..6), btree_map(word(), json_value(), 0..6), customers(), customers());
    (names, rest).prop_map(
        |(
            (services, machine_type, machine, worker, pool),
            (hardware, models, labels, deny_customers, allow_customers),
        )| Capabilities {
            services,
            machine_type,
            machine,
            worker,
            pool,
            hardware,
            models,
            labels,
            deny_customers,
            allow_customers,
            account: None,
        },
    )
}

fn class() -> impl Strategy<Value = Class> {
    let avoid = prop_oneof![3 => Just(BTreeSet::new()), 1 => btree_set(word(), 0..2)];
    (name(), requirement(), option::of(word()), avoid).prop_map(|(service, requirement, customer, avoid)| Class {
        service,
        requirement,
        customer,
        affinity: None,
        avoid,
    })
}

// The reference: everything that speaks against it, one after the other, nothing shared with the matcher.

fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(one), Value::Bool(other)) => one == other,
        (Value::String(one), Value::String(other)) => one.chars().eq(other.chars()),
        // A whole number is not the same as a fraction: 1 and 1.0 differ.
        (Value::Number(one), Value::Number(other)) => match (one.as_i128(), other.as_i128()) {
            (Some(one), Some(other)) => one == other,
            (None, None) => one
                .as_f64()
                .zip(other.as_f64())
                .is_some_and(|(one, other)| one.partial_cmp(&other).is_some_and(std::cmp::Ordering::is_eq)),
            _ => false,
        },
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && (0..one.len()).all(|at| same(&one[at], &other[at]))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, value)| other.get(key).is_some_and(|other| same(value, other)))
        }
        _ => false,
    }
}

fn test_holds(test: &LabelTest, labels: &BTreeMap<String, Value>, label: &str) -> bool {
    let value = labels.iter().find(|(name, _)| *name == label).map(|(_, value)| value);
    match test {
        LabelTest::Exists(true) => value.is_some(),
        LabelTest::Exists(false) => value.is_none(),
        LabelTest::Equals(wanted) => value.is_some_and(|value| same(value, wanted)),
        LabelTest::AnyOf(wanted) => value.is_some_and(|value| wanted.iter().any(|wanted| same(value, wanted))),
        LabelTest::AtLeast(least) => match value {
            Some(Value::Number(number)) => number.as_f64().is_some_and(|number| number >= *least),
            _ => false,
        },
    }
}

fn reference(class: &Class, name: &str, worker: &Capabilities) -> bool {
    let want = &class.requirement;
    let enough = |least: f64, has: f64| !least.is_nan() && !has.is_nan() && has >= least;
    let mut objections = Vec::new();
    let mut objects = |holds: bool, what: &'static str| {
        if !holds {
            objections.push(what);
        }
    };
    objects(class.avoid.iter().all(|avoided| avoided != name), "avoided");
    objects(worker.services.iter().any(|service| *service == class.service), "service");
    for (want, has) in [
        (&want.machine_type, &worker.machine_type),
        (&want.pool, &worker.pool),
        (&want.machine, &worker.machine),
        (&want.worker, &worker.worker),
    ] {
        objects(want.is_none() || want.as_ref() == Some(has), "name");
    }
    objects(enough(want.hardware.gpu_memory_gb, worker.hardware.gpu_memory_gb), "gpu memory");
    objects(want.hardware.gpu_count <= worker.hardware.gpu_count, "gpus");
    objects(enough(want.hardware.ram_gb, worker.hardware.ram_gb), "ram");
    objects(enough(want.hardware.cpu_cores, worker.hardware.cpu_cores), "cores");
    for model in &want.models {
        objects(worker.models.iter().any(|has| has == model), "model");
    }
    for (label, test) in &want.labels {
        objects(test_holds(test, &worker.labels, label), "label");
    }
    for (label, test) in &want.exclude {
        objects(!test_holds(test, &worker.labels, label), "exclude");
    }
    if let Some(when) = &want.when {
        let (_, meaning) = EXPRESSIONS.iter().find(|(text, _)| text == when).unwrap();
        objects(meaning(worker), "when");
    }
    let customer = class.customer.clone().unwrap_or_default();
    objects(!worker.deny_customers.iter().any(|denied| *denied == customer), "denied");
    let allowed = worker.allow_customers.is_empty() || worker.allow_customers.iter().any(|one| *one == customer);
    objects(allowed, "not allowed");
    objections.is_empty()
}

// Order and repetition.

/// The same JSON, written with the entries of each map turned round, and of each set turned round and said twice.
fn turned(value: &Value, within: &str) -> String {
    match value {
        Value::Object(map) => {
            let entries = map.iter().rev().map(|(key, value)| format!("{}: {}", json!(key), turned(value, key)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) if matches!(within, "models" | "any_of" | "avoid") => {
            let twice = items.iter().rev().chain(items).map(|item| turned(item, ""));
            format!("[{}]", twice.collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(|item| turned(item, "")).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

/// Without what validation refuses.
fn valid(mut submission: Submission) -> Submission {
    let named = |text: String| if text.is_empty() { "nobody".to_owned() } else { text };
    let finite = |number: f64| if number.is_finite() { number.abs() } else { 1.5 };
    let want = &mut submission.requirement;
    for number in [&mut want.hardware.gpu_memory_gb, &mut want.hardware.ram_gb, &mut want.hardware.cpu_cores] {
        *number = finite(*number);
    }
    want.models = std::mem::take(&mut want.models).into_iter().map(named).collect();
    for tests in [&mut want.labels, &mut want.exclude] {
        for (label, mut test) in std::mem::take(tests) {
            if let LabelTest::AtLeast(least) = &mut test {
                *least = finite(*least);
            }
            tests.insert(named(label), test);
        }
    }
    submission.customer = submission.customer.map(named);
    if let Some(affinity) = &mut submission.affinity {
        affinity.model = named(std::mem::take(&mut affinity.model));
    }
    assert_eq!(crate::queue::validate::refuse(&submission, Submission::MAX_INLINE_BYTES), None);
    submission
}

fn submission() -> impl Strategy<Value = Submission> {
    let affinity = option::of((word(), 0u64..300).prop_map(|(model, wait)| json!({ "model": model, "wait": wait })));
    let parts = (name(), requirement(), option::of(word()), affinity, json_value(), option::of("[a-z]{1,5}"));
    parts
        .prop_map(|(service, requirement, customer, affinity, payload, key)| Submission {
            requirement,
            customer,
            affinity: affinity.map(|affinity| serde_json::from_value(affinity).unwrap()),
            idempotency_key: key,
            ..Submission::new(service, payload)
        })
        .prop_map(valid)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_match_is_what_the_reference_says(class in class(), worker in capabilities(), name in word()) {
        prop_assert_eq!(class.admits(&name, &worker).is_ok(), reference(&class, &name, &worker), "{:?}", class.admits(&name, &worker));
    }

    /// Made so that it fits, and then one thing is taken away.
    #[test]
    fn whoever_fits_stops_fitting_with_any_one_thing_less(worker in capabilities(), model in word(), which in 0usize..8) {
        let service = Name::new("a").unwrap();
        let mut worker = Capabilities {
            services: [service.clone()].into(),
            hardware: Hardware { gpu_memory_gb: 1.0, gpu_count: 1, ram_gb: 1.0, cpu_cores: 1.0 },
            deny_customers: BTreeSet::new(),
            allow_customers: ["a".to_owned()].into(),
            account: None,
            ..worker
        };
        worker.models.insert(model.clone());
        worker.labels.insert("n".to_owned(), json!(5));
        let requirement = Requirement {
            pool: Some(worker.pool.clone()),
            hardware: worker.hardware,
            models: [model.clone()].into(),
            labels: [("n".to_owned(), LabelTest::AtLeast(5.0))].into(),
            ..Requirement::default()
        };
        let class = Class { service, requirement, customer: Some("a".to_owned()), affinity: None, avoid: BTreeSet::new() };
        prop_assert_eq!(class.admits("w", &worker), Ok(()));
        match which {
            0 => worker.services.clear(),
            1 => worker.pool = Name::new("elsewhere").unwrap(),
            2 => worker.hardware.ram_gb = f64::NAN,
            3 => worker.hardware.gpu_count = 0,
            4 => drop(worker.models.remove(&model)),
            5 => drop(worker.labels.insert("n".to_owned(), json!("5"))),
            6 => drop(worker.deny_customers.insert("a".to_owned())),
            _ => worker.allow_customers = ["b".to_owned()].into(),
        }
        prop_assert!(class.admits("w", &worker).is_err());
    }

    /// Whatever somebody writes as an expression ends, and is true or does not match.
    #[test]
    fn any_expression_ends(when in "[a-z0-9.(){}\\[\\]<>=!&|+*\"' ;]{0,60}", worker in capabilities()) {
        let requirement = Requirement { when: Some(when), ..Requirement::default() };
        let service = worker.services.first().cloned().unwrap_or_else(|| Name::new("a").unwrap());
        let class = Class { service, requirement, customer: None, affinity: None, avoid: BTreeSet::new() };
        let _ = class.matches(&worker);
    }

    #[test]
    fn order_and_repetition_make_no_other_class(submission in submission()) {
        let text = turned(&serde_json::to_value(&submission).unwrap(), "");
        let other: Submission = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(Class::of(&submission).canonical(), Class::of(&other).canonical());
        prop_assert_eq!(Class::of(&submission).id(), Class::of(&other).id());
    }

    #[test]
    fn what_is_taken_survives_its_json(submission in submission(), worker in capabilities()) {
        let read: Submission = serde_json::from_str(&serde_json::to_string(&submission).unwrap()).unwrap();
        prop_assert_eq!(&read, &submission);
        let class = Class::of(&submission);
        let read: Class = serde_json::from_str(&class.canonical()).unwrap();
        prop_assert_eq!(&read, &class);
        prop_assert_eq!(read.id(), class.id());
        prop_assert_eq!(read.matches(&worker), class.matches(&worker));
    }

    /// Two classes are one only if nothing tells them apart.
    #[test]
    fn different_classes_have_different_names(one in submission(), other in submission()) {
        let (one, other) = (Class::of(&one), Class::of(&other));
        prop_assert_eq!(one == other, one.id() == other.id());
    }
}

#[test]
fn an_object_of_labels_has_no_order() {
    let with = |first: &str, second: &str| {
        let mut map = Map::new();
        map.insert(first.to_owned(), json!(1));
        map.insert(second.to_owned(), json!(1));
        let labels = [("l".to_owned(), LabelTest::Equals(Value::Object(map)))].into();
        Class::of(&Submission {
            requirement: Requirement { labels, ..Requirement::default() },
            ..Submission::new(Name::new("a").unwrap(), Value::Null)
        })
    };
    assert_eq!(with("x", "y").id(), with("y", "x").id());
}
