use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Client, Result, codec};
use crate::base::{Name, Timestamp};
use crate::queue::store::Reply;
use crate::queue::{KnownMachine, Presence, Word};

/// Summaries that one call reads: some hundred bytes each.
const PAGE: usize = 100;

impl Client {
    pub(super) async fn say(&self, word: &Word) -> Result<()> {
        let Word { machine, presence, message, summary } = word;
        let arguments = vec![machine.to_string(), presence.as_millis().to_string(), message.clone(), summary.clone()];
        self.store.call("announce", arguments).await.map(drop)
    }

    pub(super) async fn known_machines(&self) -> Result<Vec<KnownMachine>> {
        // A page may show again what another had.
        let mut found: BTreeMap<String, KnownMachine> = BTreeMap::new();
        let mut from = String::new();
        loop {
            let mut parts = self.store.call("machines", vec![from, PAGE.to_string()]).await?.list()?.into_iter();
            let mut part = || parts.next().unwrap_or(Reply::Nil);
            let now = codec::time(&part().text()?)?;
            from = part().text()?;
            for (id, entry) in part().pairs()? {
                // One that cannot be read must not hide the others; its machine's next word replaces it.
                if let Some(machine) = known(&id, &entry, now) {
                    found.insert(id, machine);
                }
            }
            if from.is_empty() {
                return Ok(found.into_values().collect());
            }
        }
    }

    /// Why workers of these machines claim nothing, of those that do not: by machine and worker.
    pub(super) async fn not_claiming(&self, machines: BTreeSet<Name>) -> Result<BTreeMap<(Name, Name), String>> {
        let machines: Vec<Name> = machines.into_iter().collect();
        let mut found = BTreeMap::new();
        for page in machines.chunks(PAGE) {
            let ids = page.iter().map(Name::to_string).collect();
            let mut parts = self.store.call("words", ids).await?.list()?.into_iter();
            let mut part = || parts.next().unwrap_or(Reply::Nil);
            let now = codec::time(&part().text()?)?;
            for (machine, entry) in page.iter().zip(part().texts()?) {
                // Of one that is gone, or said nothing that can be read, nothing is known.
                for (worker, why) in known(machine.as_str(), &entry, now).iter().flat_map(not_claiming) {
                    found.insert((machine.clone(), worker), why);
                }
            }
        }
        Ok(found)
    }

    /// The same of all machines that are there, by the names that workers have in the queue.
    pub(super) async fn all_not_claiming(&self) -> Result<BTreeMap<String, String>> {
        let machines = self.known_machines().await?;
        let of = |machine: &KnownMachine| -> Vec<(String, String)> {
            not_claiming(machine).map(|(worker, why)| (format!("{}/{worker}", machine.id), why)).collect()
        };
        Ok(machines.iter().flat_map(of).collect())
    }
}

/// The machine's workers that claim nothing, and why.
fn not_claiming(machine: &KnownMachine) -> impl Iterator<Item = (Name, String)> + '_ {
    let said = machine.summary.get("not_claiming").filter(|_| machine.presence == Presence::Present);
    let workers = said.and_then(Value::as_object).into_iter().flatten();
    workers.filter_map(|(worker, why)| Some((Name::new(worker).ok()?, why.as_str()?.to_owned())))
}

fn known(id: &str, entry: &str, now: Timestamp) -> Option<KnownMachine> {
    let id = Name::new(id).ok()?;
    let mut parts = entry.splitn(3, ' ');
    let mut part = || parts.next().unwrap_or_default();
    let (said, until) = (codec::time(part()).ok()?, codec::time(part()).ok()?);
    let presence = match () {
        () if until > now => Presence::Present,
        () if until == said => Presence::Left,
        () => Presence::Lost,
    };
    Some(KnownMachine { id, presence, said, until, summary: codec::json(part()).ok()? })
}
