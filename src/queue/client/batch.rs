use std::future::Future;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::CALL_BYTES;
use crate::queue::BrokerError;

type Waiting<I, O> = (I, oneshot::Sender<Result<O, BrokerError>>);

/// Makes one call of what many ask for: whatever came while the last call was under way goes with the next, as far as there is room.
pub(super) struct Batcher<I, O>(mpsc::UnboundedSender<Waiting<I, O>>);

impl<I: Send + 'static, O: Send + 'static> Batcher<I, O> {
    /// `call` answers each item, in order. The first item waits `linger` for others to join it: at most `most`, and together
    /// no more bytes than [`CALL_BYTES`].
    pub fn start<F>(
        most: usize,
        linger: Duration,
        bytes: impl Fn(&I) -> usize + Send + 'static,
        call: impl Fn(Vec<I>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Vec<O>, BrokerError>> + Send,
    {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Waiting<I, O>>();
        tokio::spawn(async move {
            let mut left = None;
            loop {
                let next = if left.is_some() { left.take() } else { receiver.recv().await };
                let Some(first) = next else { return };
                if linger.is_zero() {
                    // Whoever can run now may have something to ask as well.
                    tokio::task::yield_now().await;
                } else {
                    tokio::time::sleep(linger).await;
                }
                let mut room = CALL_BYTES.saturating_sub(bytes(&first.0));
                let (mut items, mut waiting) = (vec![first.0], vec![first.1]);
                while items.len() < most {
                    let Ok((item, answer)) = receiver.try_recv() else { break };
                    let Some(rest) = room.checked_sub(bytes(&item)) else {
                        left = Some((item, answer));
                        break;
                    };
                    room = rest;
                    items.push(item);
                    waiting.push(answer);
                }
                // Nobody waits any more where the receiver is gone.
                match call(items).await {
                    Ok(answers) => {
                        for (answer, outcome) in waiting.into_iter().zip(answers) {
                            let _ = answer.send(Ok(outcome));
                        }
                    }
                    Err(cause) => {
                        for answer in waiting {
                            let _ = answer.send(Err(BrokerError::Unavailable { why: cause.to_string() }));
                        }
                    }
                }
            }
        });
        Self(sender)
    }

    pub async fn ask(&self, item: I) -> Result<O, BrokerError> {
        let gone = || BrokerError::Unavailable { why: "the queue is closed".to_owned() };
        let (answer, outcome) = oneshot::channel();
        self.0.send((item, answer)).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}
