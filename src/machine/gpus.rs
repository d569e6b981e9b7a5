//! What is to be thought of the GPUs: `GpuWatch` decides and is pure; `watch` hears the news, tells, and publishes.
//!
//! ```text
//!          an Xid error that is no application's        xid_hold is over
//!  ok ---------------------------------------> withheld ----------------> ok
//!   \                                             |
//!    +--- two looks without an answer --> lost <--+
//!                                           |  it answers
//!                                           +-----------> ok
//! ```
//! A GPU that is not ok is withdrawn: workers claim no jobs for it. Services that are pinned to a lost one are held until it
//! is back; what runs on one that is withheld goes on, for its own probes to judge.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::event::{Event, WithdrawnGpu};
use super::gpu_events::{
    GpuBack, GpuLost, GpuReleased, GpuSamplingResumed, GpuSamplingStalled, GpuXid, GpusUnavailable,
};
use crate::base::Timestamp;
use crate::host::{Gpu, GpuNews, GpuReading, GpuSample, GpuState, GpuStatus, GpusStatus};
use crate::telemetry::{EventLog, Published};

/// So many looks in a row without an answer, and a GPU is lost.
const MISSES: u32 = 2;
/// Xid errors that a program makes, on a GPU that is well: what Kubernetes' device plugin passes over too.
const OF_APPLICATIONS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// What is known of the GPUs.
#[derive(Debug)]
pub(super) struct GpuWatch {
    gpus: Vec<Known>,
    /// When the latest look was heard of.
    heard: Instant,
    /// A driver is there.
    sampling: bool,
    stalled: bool,
    absent: Option<String>,
    /// Without a look for so long the driver hangs.
    patience: Duration,
    hold: Duration,
}

#[derive(Debug)]
struct Known {
    gpu: Gpu,
    /// Looks in a row that it did not answer.
    misses: u32,
    lost: Option<String>,
    withheld: Option<(Instant, String)>,
    last_xid: Option<u64>,
    xids: BTreeMap<u64, u64>,
    sample: Option<(Timestamp, GpuSample)>,
}

/// What is worth telling.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum GpuChange {
    Unavailable { why: String },
    Lost { gpu: Gpu, why: String },
    Back { gpu: Gpu },
    Xid { gpu: Gpu, code: u64, withheld: bool },
    Released { gpu: Gpu },
    Stalled { silent: Duration },
    Resumed,
}

impl GpuWatch {
    pub fn new(every: Duration, hold: Duration, now: Instant) -> Self {
        let patience = (every * 3).max(Duration::from_secs(5));
        Self { gpus: Vec::new(), heard: now, sampling: true, stalled: false, absent: None, patience, hold }
    }

    pub fn handle(&mut self, news: GpuNews, at: Timestamp, now: Instant) -> Vec<GpuChange> {
        match news {
            GpuNews::Absent { why, usual } => {
                self.sampling = false;
                self.absent = Some(why.clone());
                if usual { Vec::new() } else { vec![GpuChange::Unavailable { why }] }
            }
            GpuNews::Read(readings) => {
                self.heard = now;
                let mut changes = Vec::new();
                if std::mem::take(&mut self.stalled) {
                    changes.push(GpuChange::Resumed);
                }
                for reading in readings {
                    self.read(reading, at, &mut changes);
                }
                changes
            }
            GpuNews::Xid { uuid, code } => self.xid(&uuid, code, now).into_iter().collect(),
        }
    }

    fn read(&mut self, GpuReading { gpu, outcome }: GpuReading, at: Timestamp, changes: &mut Vec<GpuChange>) {
        let index = self.gpus.iter().position(|known| known.gpu.uuid == gpu.uuid).unwrap_or_else(|| {
            self.gpus.push(Known::new(gpu.clone()));
            self.gpus.len() - 1
        });
        let known = &mut self.gpus[index];
        match outcome {
            Ok(sample) => {
                known.gpu = gpu;
                known.misses = 0;
                known.sample = Some((at, sample));
                if known.lost.take().is_some() {
                    // Whatever was wrong with it before, it was reset since.
                    known.withheld = None;
                    changes.push(GpuChange::Back { gpu: known.gpu.clone() });
                }
            }
            Err(why) => {
                known.misses += 1;
                known.sample = None;
                if known.misses >= MISSES && known.lost.is_none() {
                    known.lost = Some(why.clone());
                    changes.push(GpuChange::Lost { gpu: known.gpu.clone(), why });
                }
            }
        }
        self.gpus.sort_by_key(|known| known.gpu.index);
    }

    fn xid(&mut self, uuid: &str, code: u64, now: Instant) -> Option<GpuChange> {
        let known = self.gpus.iter_mut().find(|known| known.gpu.uuid == uuid)?;
        known.last_xid = Some(code);
        *known.xids.entry(code).or_default() += 1;
        let withheld = !OF_APPLICATIONS.contains(&code) && !self.hold.is_zero();
        if withheld {
            known.withheld = Some((now + self.hold, format!("Xid {code}: {}", meaning(code))));
        }
        Some(GpuChange::Xid { gpu: known.gpu.clone(), code, withheld })
    }

    /// What time alone changes.
    pub fn tick(&mut self, now: Instant) -> Vec<GpuChange> {
        let mut changes = Vec::new();
        for known in &mut self.gpus {
            if known.withheld.take_if(|(until, _)| *until <= now).is_some() && known.lost.is_none() {
                changes.push(GpuChange::Released { gpu: known.gpu.clone() });
            }
        }
        let silent = now.saturating_duration_since(self.heard);
        if self.sampling && !self.stalled && silent >= self.patience {
            self.stalled = true;
            changes.push(GpuChange::Stalled { silent });
        }
        changes
    }

    /// When [`Self::tick`] is wanted.
    pub fn next_deadline(&self) -> Option<Instant> {
        let stall = (self.sampling && !self.stalled).then(|| self.heard + self.patience);
        self.gpus.iter().filter_map(|known| known.withheld.as_ref().map(|(until, _)| *until)).chain(stall).min()
    }

    /// How long GPUs are withheld from now on; what is withheld stays so no longer than that.
    pub fn set_hold(&mut self, hold: Duration, now: Instant) {
        self.hold = hold;
        for (until, _) in self.gpus.iter_mut().filter_map(|known| known.withheld.as_mut()) {
            *until = (*until).min(now + hold);
        }
    }

    pub fn withdrawn(&self) -> Vec<WithdrawnGpu> {
        let of = |known: &Known| {
            let (why, lost) = known.trouble()?;
            Some(WithdrawnGpu { gpu: known.gpu.clone(), lost, why: format!("GPU {} {why}", known.gpu.index) })
        };
        self.gpus.iter().filter_map(of).collect()
    }

    pub fn gpus(&self) -> Vec<Gpu> {
        self.gpus.iter().map(|known| known.gpu.clone()).collect()
    }

    pub fn status(&self) -> GpusStatus {
        let silent = self.stalled.then(|| {
            let limit = humantime::format_duration(self.patience);
            format!("the NVIDIA driver has not answered for more than {limit}")
        });
        let gpus = self.gpus.iter().map(|known| known.status(self.stalled)).collect();
        GpusStatus { gpus, silent: silent.or_else(|| self.absent.clone()), sampling: self.sampling }
    }
}

impl Known {
    fn new(gpu: Gpu) -> Self {
        Self { gpu, misses: 0, lost: None, withheld: None, last_xid: None, xids: BTreeMap::new(), sample: None }
    }

    /// Why it is not ok, and whether it is lost.
    fn trouble(&self) -> Option<(String, bool)> {
        let lost = self.lost.as_ref().map(|why| (format!("is lost: {why}"), true));
        lost.or_else(|| self.withheld.as_ref().map(|(_, why)| (format!("is withheld after {why}"), false)))
    }

    /// Old values are no values.
    fn status(&self, stale: bool) -> GpuStatus {
        let trouble = self.trouble();
        GpuStatus {
            gpu: self.gpu.clone(),
            state: match &trouble {
                None => GpuState::Ok,
                Some((_, false)) => GpuState::Withheld,
                Some((_, true)) => GpuState::Lost,
            },
            reason: trouble.map(|(why, _)| why),
            last_xid: self.last_xid,
            xids: self.xids.clone(),
            sampled: self.sample.as_ref().map(|(at, _)| *at),
            sample: self.sample.as_ref().filter(|_| !stale).map(|(_, sample)| sample.clone()),
        }
    }
}

/// What NVIDIA's list of Xid errors says of the common ones.
pub(super) fn meaning(code: u64) -> &'static str {
    match code {
        13 => "an exception of the graphics engine, usually a program's mistake",
        31 => "a page fault of the GPU's memory, usually a program's mistake",
        43 => "a program's work was stopped after its own mistake",
        45 => "a program's work was removed, after another error or at its end",
        48 => "an uncorrectable memory error (ECC)",
        61 | 62 => "the GPU's microcontroller has halted",
        63 => "a bad part of memory is replaced at the next reset",
        64 => "a bad part of memory could not be replaced",
        68 => "an exception of the video processor",
        74 => "an error of NVLink",
        79 => "the GPU has fallen off the bus",
        92 => "many correctable memory errors",
        94 => "a memory error that was contained to one program",
        95 => "a memory error that could not be contained",
        109 => "a context switch took too long",
        119 | 120 => "the GPU's system processor does not answer",
        _ => "see NVIDIA's list of Xid errors",
    }
}

/// What the watching task works with.
pub(super) struct GpuTask {
    pub watch: GpuWatch,
    pub news: mpsc::UnboundedReceiver<GpuNews>,
    pub hold: watch::Receiver<Duration>,
    pub status: Published<GpusStatus>,
    pub events: EventLog,
    pub sender: mpsc::UnboundedSender<Event>,
    pub stop: CancellationToken,
}

impl GpuTask {
    /// `changes` are those of what was heard before.
    pub async fn run(mut self, mut changes: Vec<GpuChange>) {
        let mut known = Vec::new();
        loop {
            for change in changes {
                tell(&self.events, change);
            }
            self.status.set_if_changed(self.watch.status());
            let withdrawn = self.watch.withdrawn();
            if withdrawn != known {
                known.clone_from(&withdrawn);
                if self.sender.send(Event::Gpus(withdrawn)).is_err() {
                    return;
                }
            }
            let due = self.watch.next_deadline();
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            changes = tokio::select! {
                () = self.stop.cancelled() => return,
                Some(news) = self.news.recv() => self.watch.handle(news, Timestamp::now(), Instant::now()),
                Ok(()) = self.hold.changed() => {
                    let hold = *self.hold.borrow_and_update();
                    self.watch.set_hold(hold, Instant::now());
                    self.watch.tick(Instant::now())
                }
                () = due => self.watch.tick(Instant::now()),
            };
        }
    }
}

fn tell(events: &EventLog, change: GpuChange) {
    match change {
        GpuChange::Unavailable { why } => events.emit(&GpusUnavailable { why }),
        GpuChange::Lost { gpu, why } => events.emit(&GpuLost { index: gpu.index, uuid: gpu.uuid, why }),
        GpuChange::Back { gpu } => events.emit(&GpuBack { index: gpu.index, uuid: gpu.uuid }),
        GpuChange::Xid { gpu, code, withheld } => {
            let meaning = meaning(code);
            events.emit(&GpuXid { index: gpu.index, uuid: gpu.uuid, code, meaning, withheld });
        }
        GpuChange::Released { gpu } => events.emit(&GpuReleased { index: gpu.index, uuid: gpu.uuid }),
        GpuChange::Stalled { silent } => events.emit(&GpuSamplingStalled { silent_seconds: silent.as_secs() }),
        GpuChange::Resumed => events.emit(&GpuSamplingResumed {}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(5);
    const HOLD: Duration = Duration::from_secs(600);
    const AT: Timestamp = Timestamp::from_millis(0);

    fn gpu(index: u32) -> Gpu {
        Gpu { index, uuid: format!("GPU-{index}"), name: "a GPU".to_owned(), memory_gb: 24.0 }
    }

    fn reading(index: u32, ok: bool) -> GpuReading {
        let outcome = if ok { Ok(GpuSample::default()) } else { Err("gone".to_owned()) };
        GpuReading { gpu: gpu(index), outcome }
    }

    fn two(now: Instant) -> GpuWatch {
        let mut watch = GpuWatch::new(EVERY, HOLD, now);
        assert_eq!(watch.handle(GpuNews::Read(vec![reading(1, true), reading(0, true)]), AT, now), []);
        assert_eq!(watch.gpus(), [gpu(0), gpu(1)]);
        watch
    }

    #[test]
    fn a_gpu_is_lost_after_two_misses_and_back_with_its_first_answer() {
        let now = Instant::now();
        let mut watch = two(now);
        let miss = || GpuNews::Read(vec![reading(0, true), reading(1, false)]);
        assert_eq!(watch.handle(miss(), AT, now), []);
        assert!(watch.withdrawn().is_empty() && watch.status().gpus[1].sample.is_none());
        assert_eq!(watch.handle(miss(), AT, now), [GpuChange::Lost { gpu: gpu(1), why: "gone".to_owned() }]);
        assert_eq!(watch.handle(miss(), AT, now), [], "told once");
        assert_eq!(
            watch.withdrawn(),
            [WithdrawnGpu { gpu: gpu(1), lost: true, why: "GPU 1 is lost: gone".to_owned() }]
        );
        let both = GpuNews::Read(vec![reading(0, true), reading(1, true)]);
        assert_eq!(watch.handle(both, AT, now), [GpuChange::Back { gpu: gpu(1) }]);
        assert!(watch.withdrawn().is_empty());
        // One miss alone counts for nothing later either.
        assert_eq!(watch.handle(miss(), AT, now), []);
    }

    #[test]
    fn an_error_withholds_a_gpu_for_a_while_unless_a_program_made_it() {
        let now = Instant::now();
        let mut watch = two(now);
        for code in OF_APPLICATIONS {
            let changes = watch.handle(GpuNews::Xid { uuid: "GPU-0".to_owned(), code }, AT, now);
            assert_eq!(changes, [GpuChange::Xid { gpu: gpu(0), code, withheld: false }]);
        }
        assert!(watch.withdrawn().is_empty());
        let xid = || GpuNews::Xid { uuid: "GPU-0".to_owned(), code: 48 };
        assert_eq!(watch.handle(xid(), AT, now), [GpuChange::Xid { gpu: gpu(0), code: 48, withheld: true }]);
        assert_eq!(watch.withdrawn().len(), 1);
        // Another one begins the time anew.
        let later = now + HOLD / 2;
        watch.handle(GpuNews::Read(vec![reading(0, true)]), AT, later);
        watch.handle(xid(), AT, later);
        watch.heard = now + HOLD;
        assert_eq!(watch.tick(now + HOLD), []);
        watch.heard = later + HOLD;
        assert_eq!(watch.tick(later + HOLD), [GpuChange::Released { gpu: gpu(0) }]);
        let status = &watch.status().gpus[0];
        assert_eq!((status.state, status.last_xid, status.xids[&48]), (GpuState::Ok, Some(48), 2));
        // Of a GPU that nobody knows.
        assert_eq!(watch.handle(GpuNews::Xid { uuid: "GPU-9".to_owned(), code: 48 }, AT, now), []);
    }

    #[test]
    fn what_is_withheld_and_lost_is_whole_again_when_it_is_back() {
        let now = Instant::now();
        let mut watch = two(now);
        watch.handle(GpuNews::Xid { uuid: "GPU-0".to_owned(), code: 79 }, AT, now);
        assert!(!watch.withdrawn()[0].lost);
        for _ in 0..MISSES {
            watch.handle(GpuNews::Read(vec![reading(0, false)]), AT, now);
        }
        assert!(watch.withdrawn()[0].lost);
        watch.handle(GpuNews::Read(vec![reading(0, true)]), AT, now);
        assert!(watch.withdrawn().is_empty());
    }

    #[test]
    fn without_a_hold_errors_are_only_told_and_a_shorter_one_counts_at_once() {
        let now = Instant::now();
        let mut watch = two(now);
        watch.handle(GpuNews::Xid { uuid: "GPU-0".to_owned(), code: 48 }, AT, now);
        watch.set_hold(Duration::ZERO, now);
        assert_eq!(watch.tick(now), [GpuChange::Released { gpu: gpu(0) }]);
        let changes = watch.handle(GpuNews::Xid { uuid: "GPU-0".to_owned(), code: 48 }, AT, now);
        assert_eq!(changes, [GpuChange::Xid { gpu: gpu(0), code: 48, withheld: false }]);
        assert!(watch.withdrawn().is_empty());
    }

    #[test]
    fn a_driver_that_hangs_is_told_once_and_its_values_end() {
        let now = Instant::now();
        let mut watch = two(now);
        assert_eq!(watch.next_deadline(), Some(now + EVERY * 3));
        assert_eq!(watch.tick(now + EVERY), []);
        assert_eq!(watch.tick(now + EVERY * 3), [GpuChange::Stalled { silent: EVERY * 3 }]);
        assert_eq!((watch.tick(now + EVERY * 4), watch.next_deadline()), (Vec::new(), None));
        let status = watch.status();
        assert!(status.silent.is_some() && status.gpus.iter().all(|gpu| gpu.sample.is_none()));
        assert!(watch.withdrawn().is_empty(), "a driver that does not answer says nothing of its GPUs");
        let again = GpuNews::Read(vec![reading(0, true), reading(1, true)]);
        assert_eq!(watch.handle(again, AT, now + EVERY * 9), [GpuChange::Resumed]);
        assert!(watch.status().silent.is_none() && watch.status().gpus[0].sample.is_some());
    }

    #[test]
    fn no_driver_is_nothing_to_tell_and_a_broken_one_is() {
        let now = Instant::now();
        let why = || "no library".to_owned();
        let mut watch = GpuWatch::new(EVERY, HOLD, now);
        assert_eq!(watch.handle(GpuNews::Absent { why: why(), usual: true }, AT, now), []);
        assert_eq!((watch.tick(now + EVERY * 10), watch.next_deadline()), (Vec::new(), None));
        let changes = watch.handle(GpuNews::Absent { why: why(), usual: false }, AT, now);
        assert_eq!(changes, [GpuChange::Unavailable { why: why() }]);
    }
}
