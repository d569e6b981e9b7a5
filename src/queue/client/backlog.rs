use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Client, SCAN_PAGE, codec};
use crate::base::{Name, Timestamp};
use crate::queue::matching::Class;
use crate::queue::model::plain;
use crate::queue::{Backlog, BrokerError, ClassForWorker, ClassRefused, ClassStatus, Load, Scope, WorkerExplanation};
use crate::spec::Capabilities;

type Result<T> = std::result::Result<T, BrokerError>;

/// Classes that one call looks at: half a millisecond of the store's time.
const PAGE: usize = 25;
/// A look at all classes is taken again after so many times what it took.
const REST: u32 = 50;
const LONGEST_REST: Duration = Duration::from_secs(5);

impl Client {
    /// The classes' numbers, page by page: no call looks at many, and nothing is counted per job for it.
    pub(super) async fn classes_of(&self, ids: &[String]) -> Result<Vec<ClassStatus>> {
        let mut classes = Vec::with_capacity(ids.len());
        for page in ids.chunks(PAGE) {
            for entry in self.store.call("classes", page.to_vec()).await?.list()? {
                classes.push(class_status(entry.texts()?)?);
            }
        }
        Ok(classes)
    }

    pub(super) async fn recent_backlog(&self) -> Result<Arc<Backlog>> {
        let mut latest = self.backlog.lock().await;
        if let Some((until, backlog)) = latest.as_ref()
            && Instant::now() < *until
        {
            return Ok(Arc::clone(backlog));
        }
        let begun = Instant::now();
        let backlog = Arc::new(self.count_backlog().await?);
        let rest = (begun.elapsed() * REST).min(LONGEST_REST);
        *latest = Some((Instant::now() + rest, Arc::clone(&backlog)));
        Ok(backlog)
    }

    async fn count_backlog(&self) -> Result<Backlog> {
        // Only classes with jobs: others are kept for an hour.
        let live = self.scan("cn", SCAN_PAGE).await?.into_iter();
        let ids: Vec<String> =
            live.filter(|(_, jobs)| jobs.parse::<i64>().unwrap_or(0) > 0).map(|(id, _)| id).collect();
        let classes = self.classes_of(&ids).await?;
        let mut backlog = Backlog::default();
        for class in &classes {
            backlog.services.entry(class.service.clone()).or_default().add(class);
            if let Some(pool) = &class.requirement.pool {
                backlog.pools.entry(pool.clone()).or_default().add(class);
            }
        }
        self.tell_running(&mut backlog.services, Scope::Service).await?;
        self.tell_running(&mut backlog.pools, Scope::Pool).await?;
        if classes.iter().any(|class| class.pending > 0) {
            self.fresh_workers().await?;
            backlog.unmatched = self.unmatched(classes);
        }
        Ok(backlog)
    }

    async fn tell_running(&self, loads: &mut BTreeMap<Name, Load>, scope: fn(Name) -> Scope) -> Result<()> {
        let scopes: Vec<String> = loads.keys().map(|name| scope(name.clone()).to_string()).collect();
        let mut running = Vec::with_capacity(scopes.len());
        for page in scopes.chunks(PAGE) {
            running.extend(self.store.call("running", page.to_vec()).await?.texts()?);
        }
        for (load, running) in loads.values_mut().zip(running) {
            load.tell_running(running.parse().unwrap_or(0));
        }
        Ok(())
    }

    /// Classes with waiting jobs that none of the workers admits.
    fn unmatched(&self, classes: Vec<ClassStatus>) -> Vec<ClassStatus> {
        let roster = self.roster();
        // Workers that are alike are asked once.
        let mut kinds: Vec<(&String, &Capabilities)> = Vec::new();
        let mut seen = BTreeSet::new();
        for (name, worker) in &roster.workers {
            if seen.insert(super::roster::shared(worker).map(|(id, ..)| id).unwrap_or_default()) {
                kinds.push((name, worker));
            }
        }
        let admitted = |status: &ClassStatus| {
            let class = Class::of_status(status);
            if class.is_personal() {
                return roster.workers.iter().any(|(name, worker)| class.admits(name, worker).is_ok());
            }
            kinds.iter().any(|(_, worker)| class.matches(worker).is_ok())
        };
        classes.into_iter().filter(|status| status.pending > 0 && !admitted(status)).collect()
    }

    pub(super) async fn explain_who(&self, worker: &str) -> Result<Option<WorkerExplanation>> {
        self.fresh_workers().await?;
        let mut found = self.roster().workers.get(worker).cloned();
        if found.is_none() {
            // It may have come since.
            self.read_roster().await?;
            found = self.roster().workers.get(worker).cloned();
        }
        let Some(capabilities) = found else { return Ok(None) };
        let ids = self.class_ids().await?;
        let (mut runs, mut refuses) = (Vec::new(), Vec::new());
        let mut loaded: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for class in self.classes_of(&ids).await? {
            if let Err(why) = Class::of_status(&class).admits(worker, &capabilities) {
                refuses.push(ClassRefused { class, why: why.to_string() });
                continue;
            }
            let mut left_to = Vec::new();
            if let Some(affinity) = &class.affinity {
                if !loaded.contains_key(&affinity.model) {
                    let workers = self.store.call("loaded", vec![plain(&affinity.model)]).await?.texts()?;
                    loaded.insert(affinity.model.clone(), workers);
                }
                left_to.clone_from(&loaded[&affinity.model]);
                if left_to.iter().any(|other| other == worker) {
                    left_to.clear();
                }
            }
            runs.push(ClassForWorker { class, left_to });
        }
        let pending = runs.iter().map(|run| run.class.pending).sum();
        let mut reason = waits_for(&runs, refuses.iter().map(|refused| refused.class.pending).sum());
        if pending > 0
            && let Some(closed) =
                self.closed_accounts(std::slice::from_ref(&capabilities.account), Timestamp::now()).await?
        {
            reason = format!("{pending} jobs wait that it may run, and {closed}");
        }
        Ok(Some(WorkerExplanation { worker: worker.to_owned(), capabilities, pending, reason, runs, refuses }))
    }
}

/// What a worker waits for, given what it may run and how many jobs wait that it may not.
fn waits_for(runs: &[ClassForWorker], others: u64) -> String {
    let waiting: Vec<&ClassForWorker> = runs.iter().filter(|run| run.class.pending > 0).collect();
    let free = |run: &ClassForWorker| {
        // Jobs that are left to a worker with their model are held by that, for those who have it not.
        run.class.held_by.is_none() && run.left_to.is_empty()
            || run.left_to.is_empty() && run.class.held_by.as_ref().is_some_and(|scope| scope.starts_with("affinity:"))
    };
    let count = |runs: &[&ClassForWorker]| runs.iter().map(|run| run.class.pending).sum::<u64>();
    let open: Vec<&ClassForWorker> = waiting.iter().copied().filter(|run| free(run)).collect();
    if !open.is_empty() {
        return format!("{} jobs wait that it takes when it has a free slot", count(&open));
    }
    if waiting.is_empty() {
        return match others {
            0 => "no job waits".to_owned(),
            others => format!("{others} jobs wait, none of them may run on it"),
        };
    }
    let mut holders = BTreeSet::new();
    for run in &waiting {
        holders.extend(run.class.held_by.iter().filter(|scope| !scope.starts_with("affinity:")).cloned());
        if run.class.held_by.as_ref().is_none_or(|scope| scope.starts_with("affinity:")) {
            let affinity = run.class.affinity.as_ref();
            let wait = affinity.map(|affinity| format!(" for {}", affinity.wait)).unwrap_or_default();
            holders.insert(format!("a worker that has their model loaded{wait} ({})", run.left_to.join(", ")));
        }
    }
    let holders: Vec<String> = holders.into_iter().collect();
    format!("{} jobs wait that it may run, held by {}", count(&waiting), holders.join(", "))
}

fn class_status(parts: Vec<String>) -> Result<ClassStatus> {
    let mut parts = parts.into_iter();
    let mut part = || parts.next().unwrap_or_default();
    let (id, class) = (part(), codec::json::<Class>(&part())?);
    let mut number = || part().parse().unwrap_or(0);
    let (pending, live, profiles) = (number(), number(), number());
    let (held_by, oldest) = (part(), part());
    Ok(ClassStatus {
        class: id,
        service: class.service,
        requirement: class.requirement,
        customer: class.customer,
        affinity: class.affinity,
        avoid: class.avoid,
        pending,
        live,
        profiles,
        oldest: if oldest.is_empty() { None } else { Some(codec::time(&oldest)?) },
        held_by: Some(held_by).filter(|scope| !scope.is_empty()),
    })
}
