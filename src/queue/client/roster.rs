use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Client, SCAN_LONG, SCAN_PAGE, codec};
use crate::base::Name;
use crate::queue::matching::{Class, ClassId, short_hash};
use crate::queue::store::assigning;
use crate::queue::{BrokerError, Registration};
use crate::spec::Capabilities;

type Result<T> = std::result::Result<T, BrokerError>;

/// How old a list of workers may be where a mistake only costs time.
const FRESH: Duration = Duration::from_secs(3);
/// Classes that one call subscribes: each may be the first of a lane with a hundred profiles, a fifth of a millisecond.
const CHUNK: usize = 5;
const MAX_CLASSES: usize = 20_000;

/// Who could run what: the profiles (capabilities without names, shared by workers that are alike) and the workers.
#[derive(Default)]
pub(super) struct Roster {
    epoch: String,
    profiles: Vec<(String, Capabilities)>,
    pub workers: BTreeMap<String, Capabilities>,
    read: Option<Instant>,
    pub classes: BTreeMap<ClassId, Class>,
    classes_read: Option<Instant>,
}

/// The profile of a worker: its capabilities without what tells it from its likes.
pub(super) fn shared(capabilities: &Capabilities) -> Result<(String, String, Capabilities)> {
    let nobody = Name::new("any").map_err(|cause| BrokerError::damaged(&cause))?;
    let shared = Capabilities { machine: nobody.clone(), worker: nobody, account: None, ..capabilities.clone() };
    let text = serde_json::to_string(&shared).map_err(|cause| BrokerError::damaged(&cause))?;
    Ok((short_hash(&text), text, shared))
}

fn personal(worker: &str) -> String {
    format!("w:{worker}")
}

impl Client {
    pub(super) async fn read_roster(&self) -> Result<()> {
        // First: whatever comes while the pages are read has another, and is found out by that.
        let epoch = self.store.call("epoch", Vec::new()).await?.text()?;
        let read = |pairs: BTreeMap<String, String>| -> Result<Vec<(String, Capabilities)>> {
            pairs.into_iter().map(|(name, text)| Ok((name, codec::json(&text)?))).collect()
        };
        let profiles = read(self.scan("profiles", SCAN_LONG).await?)?;
        let workers = read(self.scan("workers", SCAN_LONG).await?)?;
        let mut roster = self.roster();
        roster.epoch = epoch;
        roster.profiles = profiles;
        roster.workers = workers.into_iter().collect();
        roster.read = Some(Instant::now());
        Ok(())
    }

    /// Reads the workers again when the list is old.
    pub(super) async fn fresh_workers(&self) -> Result<()> {
        let old = self.roster().read.is_none_or(|at| at.elapsed() > FRESH);
        if old { self.read_roster().await } else { Ok(()) }
    }

    /// All classes on record.
    pub(super) async fn read_classes(&self) -> Result<()> {
        let pairs = self.scan("cls", SCAN_PAGE).await?;
        let mut classes = BTreeMap::new();
        for (id, text) in pairs {
            classes.insert(ClassId(id), codec::json::<Class>(&text)?);
        }
        let mut roster = self.roster();
        roster.classes = classes;
        roster.classes_read = Some(Instant::now());
        Ok(())
    }

    pub(super) fn note_class(&self, id: ClassId, class: Class) {
        let mut roster = self.roster();
        if roster.classes.len() >= MAX_CLASSES {
            roster.classes.clear();
        }
        roster.classes.insert(id, class);
    }

    /// Puts a class on record, matched by whom it fits.
    pub(super) async fn add_class(&self, class: &Class) -> Result<()> {
        let id = class.id();
        loop {
            let arguments = {
                let roster = self.roster();
                let mut arguments = vec![id.0.clone(), class.canonical(), class.scopes(), roster.epoch.clone()];
                if class.is_personal() {
                    let admitted = roster.workers.iter().filter(|(name, worker)| class.admits(name, worker).is_ok());
                    arguments.extend(admitted.map(|(name, _)| personal(name)));
                } else {
                    let matching = roster.profiles.iter().filter(|(_, profile)| class.matches(profile).is_ok());
                    arguments.extend(matching.map(|(name, _)| name.clone()));
                }
                arguments
            };
            if self.store.call("add_class", arguments).await?.text()? == "OK" {
                self.note_class(id, class.clone());
                return Ok(());
            }
            self.read_roster().await?;
        }
    }

    pub(super) async fn add_worker(&self, who: &Registration, capabilities: &Capabilities) -> Result<()> {
        let (profile, shared_text, shared) = shared(capabilities)?;
        let full = serde_json::to_string(capabilities).map_err(|cause| BrokerError::damaged(&cause))?;
        let arguments = vec![
            who.incarnation.clone(),
            who.worker.clone(),
            if who.assignable { assigning(self.store.own_channel()) } else { self.store.own_channel().to_owned() },
            profile.clone(),
            shared_text,
            full,
            self.config.lease.as_millis().to_string(),
            capabilities.account.as_ref().map(ToString::to_string).unwrap_or_default(),
        ];
        let complete = loop {
            let mut answer = self.store.call("register", arguments.clone()).await?.list()?.into_iter();
            let mut next = || answer.next().unwrap_or(crate::queue::store::Reply::Nil);
            if next().text()? == "OK" {
                break (next().number::<u8>()? == 1, next().number::<u8>()? == 1);
            }
            // An earlier life of the same worker: what it held goes back first.
            self.end_incarnation(&next().text()?).await?;
        };
        if complete == (true, true) {
            return Ok(());
        }
        // Whoever adds a class from now on knows of this profile; these are the classes from before.
        self.read_classes().await?;
        let (mut general, mut own, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for (id, class) in &self.roster().classes {
            if !class.is_personal() {
                if class.matches(&shared).is_ok() {
                    general.push(id.0.clone());
                }
            } else if class.admits(&who.worker, capabilities).is_ok() {
                own.push(id.0.clone());
            } else {
                others.push(id.0.clone());
            }
        }
        if !complete.0 {
            self.subscribe(&profile, "add", general).await?;
            self.store.call("subscribe", vec![profile, "done".to_owned()]).await?;
        }
        if !complete.1 {
            let name = personal(&who.worker);
            self.subscribe(&name, "add", own).await?;
            self.subscribe(&name, "del", others).await?;
            self.store.call("subscribe", vec![name, "done".to_owned()]).await?;
        }
        Ok(())
    }

    async fn subscribe(&self, profile: &str, how: &str, classes: Vec<String>) -> Result<()> {
        for chunk in classes.chunks(CHUNK) {
            let mut arguments = vec![profile.to_owned(), how.to_owned()];
            arguments.extend_from_slice(chunk);
            self.store.call("subscribe", arguments).await?;
        }
        Ok(())
    }

    /// The classes whose model is loaded, at most eight.
    pub(super) async fn warm_classes(
        &self,
        loaded: &BTreeSet<String>,
        capabilities: &Capabilities,
    ) -> Result<Vec<String>> {
        if loaded.is_empty() {
            return Ok(Vec::new());
        }
        if self.roster().classes_read.is_none_or(|at| at.elapsed() > FRESH) {
            self.read_classes().await?;
        }
        let roster = self.roster();
        let warm = roster.classes.iter().filter(|(_, class)| {
            class.affinity.as_ref().is_some_and(|affinity| loaded.contains(&affinity.model))
                && !class.is_personal()
                && class.matches(capabilities).is_ok()
        });
        Ok(warm.map(|(id, _)| id.0.clone()).take(8).collect())
    }
}
