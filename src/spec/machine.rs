use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::fields::FieldProblem;
use super::instances::expand;
use super::{Condition, GpuRef, Kind, ServiceSpec, WorkerSpec, start_order};
use crate::base::{Name, did_you_mean};

/// Everything a generation of a machine runs. Names are unique, every need refers to a service that is there, and the
/// graph has no cycle.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct MachineSpec {
    /// In the order of the script.
    pub services: Vec<ServiceSpec>,
    pub workers: Vec<WorkerSpec>,
}

/// The outcome of checking what a script returned: a spec only when nothing is wrong.
pub type Checked = Result<MachineSpec, Vec<FieldProblem>>;

impl MachineSpec {
    /// Checks what `services(m)` and `workers(m)` returned and collects all that is wrong with it. `gpus` is what templates
    /// are made instances for.
    ///
    /// # Errors
    /// Every problem found.
    pub fn check(services: &[Value], workers: &[Value], gpus: &[GpuRef]) -> Checked {
        let (services, workers, mut problems) = expand(services, workers, gpus);
        let mut spec = Self::default();
        for (index, value) in services.iter().enumerate() {
            let (service, found) = ServiceSpec::read(index, value);
            problems.extend(found);
            spec.services.extend(service);
        }
        for (index, value) in workers.iter().enumerate() {
            let (worker, found) = WorkerSpec::read(index, value);
            problems.extend(found);
            spec.workers.extend(worker);
        }
        // A service that could not be read is known by name all the same, so that its dependants are not blamed.
        let unread = services.iter().filter_map(|value| value.get("name")?.as_str()).map(str::to_owned);
        let known: BTreeSet<String> = unread.collect();
        spec.settle_conditions();
        problems.extend(spec.duplicates());
        problems.extend(spec.unknown_needs(&known));
        problems.extend(spec.port_clashes());
        if problems.is_empty()
            && let Err(cycle) = start_order(&spec)
        {
            problems.push(FieldProblem::new(format!("service \"{}\"", cycle.0[0]), cycle.to_string()));
        }
        if problems.is_empty() { Ok(spec) } else { Err(problems) }
    }

    pub fn service(&self, name: &Name) -> Option<&ServiceSpec> {
        self.services.iter().find(|service| service.name == *name)
    }

    pub fn worker(&self, name: &Name) -> Option<&WorkerSpec> {
        self.workers.iter().find(|worker| worker.name == *name)
    }

    /// Whoever needs a oneshot "ready" means that it has completed.
    fn settle_conditions(&mut self) {
        let kinds: BTreeMap<Name, Kind> = self.services.iter().map(|s| (s.name.clone(), s.kind)).collect();
        for service in &mut self.services {
            for need in &mut service.needs {
                let oneshot = kinds.get(&need.service).is_some_and(|kind| *kind != Kind::Service);
                if oneshot && need.condition == Condition::Ready {
                    need.condition = Condition::Completed;
                }
            }
        }
    }

    fn duplicates(&self) -> Vec<FieldProblem> {
        let mut problems = Vec::new();
        let services = self.services.iter().map(|service| ("service", &service.name));
        let workers = self.workers.iter().map(|worker| ("worker", &worker.name));
        let mut seen = BTreeSet::new();
        for (what, name) in services.chain(workers) {
            if !seen.insert((what, name)) {
                problems.push(
                    FieldProblem::new(format!("{what} \"{name}\""), format!("two {what}s have the name \"{name}\""))
                        .token(name.as_str()),
                );
            }
        }
        problems
    }

    fn unknown_needs(&self, known: &BTreeSet<String>) -> Vec<FieldProblem> {
        let mut problems = Vec::new();
        let mut check = |path: String, need: &Name| {
            if known.contains(need.as_str()) {
                return;
            }
            let mut problem =
                FieldProblem::new(path, format!("needs \"{need}\", and there is no such service")).token(need.as_str());
            let names = known.iter().map(String::as_str);
            problem.help = did_you_mean(need.as_str(), names).map(|meant| format!("did you mean \"{meant}\"?"));
            problems.push(problem);
        };
        for service in &self.services {
            for need in &service.needs {
                check(format!("service \"{}\"", service.name), &need.service);
            }
        }
        for worker in &self.workers {
            for need in &worker.needs {
                check(format!("worker \"{}\"", worker.name), need);
            }
        }
        for service in &self.services {
            for need in &service.needs {
                let target = self.service(&need.service);
                if need.condition == Condition::Completed && target.is_some_and(|t| t.kind == Kind::Service) {
                    problems.push(
                        FieldProblem::new(
                            format!("service \"{}\"", service.name),
                            format!("waits for \"{}\" to complete, and a service never does", need.service),
                        )
                        .token(need.service.as_str())
                        .help("need it \"ready\", or make it kind: \"oneshot\""),
                    );
                }
            }
        }
        problems
    }

    fn port_clashes(&self) -> Vec<FieldProblem> {
        let mut owners: BTreeMap<u16, &Name> = BTreeMap::new();
        let mut problems = Vec::new();
        for service in &self.services {
            for port in &service.ports {
                if let Some(owner) = owners.insert(*port, &service.name)
                    && owner != &service.name
                {
                    problems.push(
                        FieldProblem::new(
                            format!("service \"{}\"", service.name),
                            format!("port {port} is taken by service \"{owner}\" too"),
                        )
                        .token(port.to_string()),
                    );
                }
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::MachineSpec;
    use serde_json::{Value, json};

    fn problems(services: Value, workers: Value) -> String {
        let services = services.as_array().unwrap();
        let workers = workers.as_array().unwrap();
        let problems = MachineSpec::check(services, workers, &[]).unwrap_err();
        let lines = problems.iter().map(|p| {
            let help = p.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
            format!("{}: {}{help}", p.path, p.message)
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        insta::assert_snapshot!(problems(
            json!([
                { "name": "web", "comand": ["x"], "restart": "sometimes" },
                { "name": "api", "command": "api", "needs": ["web", "wep", "db:alive"], "ports": [80, 80] },
                { "name": "two", "command": [], "env": { "A": [1] }, "ready": { "every": "0s", "tcp": "nowhere" } },
                { "name": "api", "command": ["api"], "ports": [80] },
                { "name": "bad name", "command": "x", "kind": "daemon" },
                { "name": "once", "command": "x", "kind": "oneshot", "ready": { "tcp": 80 }, "restart": "always" },
                7,
            ]),
            json!([{ "name": "w", "connector": "command", "slots": 0, "needs": ["ap"], "capabilities": { "model": [] } }]),
        ), @r#"
        service "web": the key "command" is missing (write command: ["program", "argument"], or shell: "text for /bin/sh")
        service "web": "restart": unknown variant `sometimes`, expected one of `always`, `on_failure`, `never`
        service "web": unknown key "comand" (did you mean "command"?)
        service "api": "needs": unknown condition "alive" (write "name", "name:started", "name:ready" or "name:completed")
        service "two": "command": the program is empty
        service "two": "env": "A" is neither text, number nor boolean
        service "two", ready: "tcp": expected a port or "host:port"
        service "two", ready: "every": must be longer than zero
        services[4]: "name": invalid name "bad name": a name has 1 to 63 ASCII letters, digits, '.', '_' or '-' and begins with a letter or digit
        services[4]: "kind": unknown variant `daemon`, expected one of `service`, `oneshot`, `setup`
        service "once": "ready": a oneshot or setup is never ready, it completes; leave "ready" out
        service "once": "restart": "always" would never let a oneshot or setup be done; use "on_failure"
        services[6]: expected a map, found a number (write #{ key: value, ... })
        worker "w": "slots": must lie between 1 and 10000
        worker "w", capabilities: unknown key "model" (did you mean "models"?)
        "#);
    }

    #[test]
    fn needs_must_exist_and_make_sense() {
        insta::assert_snapshot!(problems(
            json!([
                { "name": "api", "command": "api", "needs": ["wep", "web:completed"], "ports": [80] },
                { "name": "web", "command": "web", "ports": [80] },
            ]),
            json!([{ "name": "w", "connector": "command", "needs": ["ap"] }]),
        ), @r#"
        service "api": needs "wep", and there is no such service (did you mean "web"?)
        worker "w": needs "ap", and there is no such service (did you mean "api"?)
        service "api": waits for "web" to complete, and a service never does (need it "ready", or make it kind: "oneshot")
        service "web": port 80 is taken by service "api" too
        "#);
    }

    #[test]
    fn a_cycle_is_named() {
        insta::assert_snapshot!(problems(
            json!([
                { "name": "a", "command": "x", "needs": ["b"] },
                { "name": "b", "command": "x", "needs": ["c"] },
                { "name": "c", "command": "x", "needs": ["a"] },
                { "name": "d", "command": "x", "needs": ["a"] },
            ]),
            json!([]),
        ), @r#"service "a": services wait for each other: a -> b -> c -> a"#);
    }

    #[test]
    fn a_need_of_a_oneshot_waits_for_its_completion() {
        let services = [
            json!({ "name": "migrate", "command": "x", "kind": "oneshot" }),
            json!({ "name": "web", "command": "x", "needs": ["migrate"] }),
        ];
        let spec = MachineSpec::check(&services, &[], &[]).unwrap();
        assert_eq!(spec.services[1].needs[0].condition, super::Condition::Completed);
    }
}
