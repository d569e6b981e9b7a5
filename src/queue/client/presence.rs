use std::collections::BTreeMap;

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

    /// Why workers claim nothing, of those that do not: by their names in the queue. Of a machine that is gone nothing is known.
    pub(super) async fn not_claiming(&self) -> Result<BTreeMap<String, String>> {
        let machines = self.known_machines().await?;
        let present = machines.iter().filter(|machine| machine.presence == Presence::Present);
        let of = |machine: &KnownMachine| -> Vec<(String, String)> {
            let said = machine.summary.get("not_claiming").and_then(Value::as_object);
            let named =
                |(worker, why): (&String, &Value)| Some((format!("{}/{worker}", machine.id), why.as_str()?.to_owned()));
            said.into_iter().flatten().filter_map(named).collect()
        };
        Ok(present.flat_map(of).collect())
    }
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
