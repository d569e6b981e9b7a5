use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::announcement::{Announcement, AnnouncementKind};
use crate::admin::{MachineState, MachineStatus};
use crate::host::{GpusStatus, Level};
use crate::queue::{Broker, Word};
use crate::telemetry::Published;

/// Nobody waits longer for a word of the machine, and one that is not heard of for three times as long counts as lost.
const EVERY: Duration = Duration::from_secs(15);
const PRESENCE: Duration = Duration::from_secs(45);
/// Changes that come together are one.
const GAP: Duration = Duration::from_millis(500);
/// After a failure; a new connection is another reason to try.
const RETRY: Duration = Duration::from_secs(5);
/// Turns that are kept while the queue cannot be reached; more than a life has.
const MOST_WAITING: usize = 32;
/// How long the end of the engine may wait for the last word.
const LAST_WORD: Duration = Duration::from_secs(1);

/// A turn of the machine's life, which is told whatever comes after it.
pub(super) enum Turn {
    To(AnnouncementKind, Arc<MachineStatus>),
    /// The engine ends, with this code where it ran; else for the reason that is given.
    End {
        exit_code: Option<u8>,
        reason: Option<String>,
    },
}

/// What between two published states was a turn.
pub(super) fn turns(before: &MachineStatus, now: &MachineStatus) -> Vec<AnnouncementKind> {
    let mut turns = Vec::new();
    if now.started && !before.started {
        turns.extend([AnnouncementKind::StartupComplete, AnnouncementKind::Online]);
    }
    if now.state != before.state {
        match now.state {
            MachineState::Draining => turns.push(AnnouncementKind::Draining),
            MachineState::Failed => turns.push(AnnouncementKind::Failed),
            _ => {}
        }
    }
    turns
}

/// Tells all who look at the queue how the machine is.
pub(super) struct Announcer {
    turns: mpsc::UnboundedSender<Turn>,
    task: JoinHandle<()>,
}

impl Announcer {
    pub fn start(
        broker: Arc<dyn Broker>,
        status: watch::Receiver<Arc<MachineStatus>>,
        gpus: Published<GpusStatus>,
        levels: Published<Vec<Level>>,
    ) -> Self {
        let (turns, receiver) = mpsc::unbounded_channel();
        let teller =
            Teller { broker, status, gpus, levels, seq: 0, waiting: VecDeque::new(), told: None, failing: false };
        Self { turns, task: tokio::spawn(teller.run(receiver)) }
    }

    /// Where turns are told.
    pub fn turns(&self) -> mpsc::UnboundedSender<Turn> {
        self.turns.clone()
    }

    /// Says the last word, unless that takes longer than a moment.
    pub async fn finish(self, exit_code: Option<u8>, reason: Option<String>) {
        let _ = self.turns.send(Turn::End { exit_code, reason });
        let abort = self.task.abort_handle();
        if tokio::time::timeout(LAST_WORD, self.task).await.is_err() {
            tracing::warn!("the queue could not be told in time that the machine ends");
            abort.abort();
        }
    }
}

struct Teller {
    broker: Arc<dyn Broker>,
    status: watch::Receiver<Arc<MachineStatus>>,
    gpus: Published<GpusStatus>,
    levels: Published<Vec<Level>>,
    seq: u64,
    /// What is to be told, oldest first.
    waiting: VecDeque<Announcement>,
    /// What was news in the latest.
    told: Option<Announcement>,
    /// The latest was not heard.
    failing: bool,
}

impl Teller {
    async fn run(mut self, mut turns: mpsc::UnboundedReceiver<Turn>) {
        let mut reconnections = self.broker.reconnections();
        let mut changes = self.status.clone();
        let first = self.current(AnnouncementKind::Starting);
        self.add(first);
        let mut changed = false;
        loop {
            self.deliver().await;
            let sent = Instant::now();
            let mut quiet = sent + GAP;
            loop {
                tokio::select! {
                    // What was asked for to be told goes before what was seen.
                    biased;
                    turn = turns.recv() => match turn {
                        Some(Turn::To(kind, status)) => {
                            let turn = Announcement::of(kind, &status, &self.gpus.get(), &self.levels.get());
                            self.add(turn);
                        }
                        Some(Turn::End { exit_code, reason }) => {
                            self.end(exit_code, reason);
                            return self.deliver().await;
                        }
                        None => return,
                    },
                    Ok(()) = reconnections.changed() => {
                        // The first connection is none that was lost.
                        if *reconnections.borrow_and_update() > 1 {
                            let now = self.current(AnnouncementKind::Status);
                            let ends =
                                matches!(now.state, MachineState::Draining | MachineState::Failed | MachineState::Stopped);
                            let kind = if now.started && !ends { AnnouncementKind::Online } else { now.kind };
                            self.add(Announcement { kind, ..now });
                        }
                    }
                    Ok(()) = changes.changed(), if !changed => {
                        changed = true;
                        continue;
                    }
                    () = tokio::time::sleep_until(quiet.into()), if changed => {
                        changed = false;
                        let now = self.current(AnnouncementKind::Status);
                        if self.told.as_ref() == Some(&now.news()) {
                            quiet = Instant::now() + GAP;
                            continue;
                        }
                        self.add(now);
                    }
                    () = tokio::time::sleep_until((sent + EVERY).into()) => {
                        let now = self.current(AnnouncementKind::Status);
                        self.add(now);
                    }
                    () = tokio::time::sleep_until((sent + RETRY).into()), if !self.waiting.is_empty() => {}
                }
                break;
            }
        }
    }

    fn current(&self, kind: AnnouncementKind) -> Announcement {
        let status = Arc::clone(&self.status.borrow());
        Announcement::of(kind, &status, &self.gpus.get(), &self.levels.get())
    }

    fn add(&mut self, announcement: Announcement) {
        self.seq += 1;
        self.told = Some(announcement.news());
        self.waiting.push_back(Announcement { seq: self.seq, ..announcement });
        if self.waiting.len() > MOST_WAITING {
            self.waiting.pop_front();
        }
    }

    fn end(&mut self, exit_code: Option<u8>, reason: Option<String>) {
        let last = self.current(AnnouncementKind::Shutdown);
        let failed = if reason.is_some() { MachineState::Failed } else { last.state };
        let reason = reason.or_else(|| last.reason.clone());
        self.add(Announcement { state: failed, reason, exit_code, ..last });
    }

    /// Tells what waits, in order. What fails waits on if it is a turn; how the machine is, is told anew.
    async fn deliver(&mut self) {
        while let Some(next) = self.waiting.front() {
            let heard = self.broker.announce(&word(next)).await;
            if let Err(cause) = heard {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!("the machine cannot tell the queue how it is: {cause}");
                }
                self.waiting.retain(|waiting| waiting.kind != AnnouncementKind::Status);
                return;
            }
            self.failing = false;
            self.waiting.pop_front();
        }
    }
}

fn word(announcement: &Announcement) -> Word {
    let gone = announcement.kind == AnnouncementKind::Shutdown;
    Word {
        machine: announcement.machine.id.clone(),
        presence: if gone { Duration::ZERO } else { PRESENCE },
        message: serde_json::to_string(announcement).unwrap_or_default(),
        summary: serde_json::to_string(&announcement.summary()).unwrap_or_default(),
    }
}
