use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::fmt;

use super::{Condition, Kind, MachineSpec, Need, ServiceSpec};
use crate::base::Name;

/// Services that wait for each other, in the order of the waiting; the last waits for the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cycle(pub Vec<Name>);

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("services wait for each other: ")?;
        for name in &self.0 {
            write!(f, "{name} -> ")?;
        }
        write!(f, "{}", self.0[0])
    }
}

impl ServiceSpec {
    /// What this service waits for: its own needs and, when it is no setup, every setup of the machine.
    pub fn waits_for(&self, machine: &MachineSpec) -> Vec<Need> {
        let mut needs = self.needs.clone();
        if self.kind != Kind::Setup {
            for setup in machine.services.iter().filter(|service| service.kind == Kind::Setup) {
                let need = Need { service: setup.name.clone(), condition: Condition::Completed };
                if !needs.contains(&need) {
                    needs.push(need);
                }
            }
        }
        needs
    }
}

/// The services in an order in which each comes after all it waits for; among equals the script's order holds.
///
/// # Errors
/// The shortest way round a cycle, when there is one.
///
/// # Panics
/// Never: a walk that starts inside a cycle comes back to a place it has been.
pub fn start_order(machine: &MachineSpec) -> Result<Vec<Name>, Cycle> {
    let index: HashMap<&Name, usize> =
        machine.services.iter().enumerate().map(|(index, service)| (&service.name, index)).collect();
    let mut waits_for: Vec<BTreeSet<usize>> = Vec::with_capacity(machine.services.len());
    let mut followers: Vec<Vec<usize>> = vec![Vec::new(); machine.services.len()];
    for (follower, service) in machine.services.iter().enumerate() {
        let needs = service.waits_for(machine).into_iter();
        let needs: BTreeSet<usize> = needs.filter_map(|need| index.get(&need.service).copied()).collect();
        for need in &needs {
            followers[*need].push(follower);
        }
        waits_for.push(needs);
    }
    let mut left: Vec<usize> = waits_for.iter().map(BTreeSet::len).collect();
    // The earliest in the script of those that wait for nothing any more.
    let mut free: BinaryHeap<Reverse<usize>> =
        left.iter().enumerate().filter(|(_, count)| **count == 0).map(|(index, _)| Reverse(index)).collect();
    let mut order: Vec<Name> = Vec::with_capacity(machine.services.len());
    while let Some(Reverse(next)) = free.pop() {
        order.push(machine.services[next].name.clone());
        for follower in &followers[next] {
            left[*follower] -= 1;
            if left[*follower] == 0 {
                free.push(Reverse(*follower));
            }
        }
    }
    if order.len() == machine.services.len() {
        return Ok(order);
    }
    let name = |index: usize| &machine.services[index].name;
    let stuck = (0..machine.services.len()).filter(|index| left[*index] > 0);
    let waiting: BTreeMap<&Name, Vec<Name>> = stuck
        .clone()
        .map(|index| (name(index), waits_for[index].iter().map(|need| name(*need).clone()).collect()))
        .collect();
    Err(shortest_cycle(stuck.map(name).collect(), &waiting))
}

fn shortest_cycle(stuck: Vec<&Name>, waiting: &BTreeMap<&Name, Vec<Name>>) -> Cycle {
    let mut best: Option<Vec<Name>> = None;
    for start in stuck {
        // Breadth first from `start` back to itself.
        let mut paths = vec![vec![start.clone()]];
        let mut seen = vec![start.clone()];
        let mut found = None;
        while found.is_none() && !paths.is_empty() {
            let mut longer = Vec::new();
            for path in paths {
                for need in path.last().and_then(|last| waiting.get(last)).into_iter().flatten() {
                    if need == start {
                        found = found.or_else(|| Some(path.clone()));
                    } else if !seen.contains(need) {
                        seen.push(need.clone());
                        longer.push(path.iter().cloned().chain([need.clone()]).collect());
                    }
                }
            }
            paths = longer;
        }
        if let Some(found) = found
            && best.as_ref().is_none_or(|best| found.len() < best.len())
        {
            best = Some(found);
        }
    }
    Cycle(best.expect("UNWRAP: what cannot be ordered holds a cycle"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn machine(needs: &[Vec<usize>]) -> MachineSpec {
        let services = needs.iter().enumerate().map(|(index, needs)| {
            let needs: Vec<String> = needs.iter().map(|need| format!("s{need}")).collect();
            json!({ "name": format!("s{index}"), "command": "x", "needs": needs })
        });
        let services = services.map(|value| ServiceSpec::read(0, &value).0.unwrap()).collect();
        MachineSpec { services, workers: Vec::new() }
    }

    #[test]
    fn setups_come_first() {
        let mut machine = machine(&[vec![], vec![]]);
        machine.services[1].kind = Kind::Setup;
        let order: Vec<String> = start_order(&machine).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(order, ["s1", "s0"]);
    }

    proptest! {
        #[test]
        fn every_order_respects_all_needs_and_every_cycle_is_real(
            needs in (1usize..12).prop_flat_map(|n| prop::collection::vec(prop::collection::vec(0..n, 0..3), n))
        ) {
            let machine = machine(&needs);
            let needs_of = |name: &Name| &needs[name.as_str()[1..].parse::<usize>().unwrap()];
            match start_order(&machine) {
                Ok(order) => {
                    prop_assert_eq!(order.len(), needs.len());
                    for (at, name) in order.iter().enumerate() {
                        for need in needs_of(name) {
                            let need = Name::new(&format!("s{need}")).unwrap();
                            prop_assert!(order[..at].contains(&need));
                        }
                    }
                }
                Err(Cycle(names)) => {
                    for (at, name) in names.iter().enumerate() {
                        let next = &names[(at + 1) % names.len()];
                        let next: usize = next.as_str()[1..].parse().unwrap();
                        prop_assert!(needs_of(name).contains(&next));
                    }
                }
            }
        }
    }
}
