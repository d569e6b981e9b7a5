use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::super::server::AdminDeps;
use crate::base::Name;
use crate::host::{GpusStatus, Usage};

/// The time a scrape may spend on finding out shares of memory, which costs the kernel a walk over each process's pages;
/// what is left out keeps its last value and comes first the next time.
const PSS_BUDGET: Duration = Duration::from_millis(2);

/// What was found at one time of the services' processes and of the GPUs.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub usages: BTreeMap<Name, Usage>,
    pub gpus: Arc<GpusStatus>,
    /// The services that processes with GPU memory belong to.
    pub owners: BTreeMap<u32, Name>,
}

/// Looks of scrapes. One is taken at a time, and those who come meanwhile share the next: however many scrape, `/proc` is
/// read by one of them, and nobody is told what was so before it asked.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    last: Arc<Mutex<Option<Taken>>>,
}

#[derive(Debug)]
struct Taken {
    begun: Instant,
    look: Arc<Look>,
}

impl Looks {
    pub(super) async fn take(&self, look: impl Future<Output = Look>) -> Arc<Look> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(taken) = &*last
            && taken.begun >= asked
        {
            return Arc::clone(&taken.look);
        }
        let begun = Instant::now();
        let look = Arc::new(look.await);
        *last = Some(Taken { begun, look: Arc::clone(&look) });
        look
    }
}

/// Off the async workers.
pub(super) async fn look(deps: &AdminDeps) -> Look {
    let (supervisor, gpus) = (deps.supervisor.clone(), deps.gpus.get());
    let look = move || {
        let samples = gpus.gpus.iter().filter_map(|gpu| gpu.sample.as_ref());
        let pids: BTreeSet<u32> =
            samples.flat_map(|sample| sample.processes.iter().map(|process| process.pid)).collect();
        let (usages, owners) = supervisor.usage_and_owners(PSS_BUDGET, &pids);
        Look { usages, gpus, owners }
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::Notify;
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn who_asks_during_a_look_shares_the_next() {
        let (looks, begun, go) = (Looks::default(), Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
        let mut asking = JoinSet::new();
        let ask = |asking: &mut JoinSet<Arc<Look>>| {
            let (looks, begun, go) = (looks.clone(), Arc::clone(&begun), Arc::clone(&go));
            asking.spawn(async move {
                let look = async {
                    let number = begun.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                    let usage = Usage { open_files: number, ..Usage::default() };
                    Look { usages: BTreeMap::from([(Name::new("a").unwrap(), usage)]), ..Look::default() }
                };
                looks.take(look).await
            });
        };
        ask(&mut asking);
        while begun.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..20 {
            ask(&mut asking);
        }
        tokio::task::yield_now().await;
        let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
        for _ in 0..21 {
            go.notify_one();
            let look = asking.join_next().await.unwrap().unwrap();
            *seen.entry(look.usages["a"].open_files).or_default() += 1;
        }
        // The first had begun before the others asked.
        assert_eq!(seen, BTreeMap::from([(0, 1), (1, 20)]));
        // Who asks later looks again.
        ask(&mut asking);
        go.notify_one();
        let look = asking.join_next().await.unwrap().unwrap();
        assert_eq!(look.usages["a"].open_files, 2);
    }
}
