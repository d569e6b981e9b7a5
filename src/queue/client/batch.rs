use std::future::Future;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::queue::BrokerError;

type Waiting<I, O> = (I, oneshot::Sender<Result<O, BrokerError>>);

/// Makes one call of what many ask for: whatever came while the last call was under way goes with the next.
pub(super) struct Batcher<I, O>(mpsc::UnboundedSender<Waiting<I, O>>);

impl<I: Send + 'static, O: Send + 'static> Batcher<I, O> {
    /// `call` answers each item, in order. The first item waits `linger` for others to join it.
    pub fn start<F>(most: usize, linger: Duration, call: impl Fn(Vec<I>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Vec<O>, BrokerError>> + Send,
    {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Waiting<I, O>>();
        tokio::spawn(async move {
            while let Some(first) = receiver.recv().await {
                if linger.is_zero() {
                    // Whoever can run now may have something to ask as well.
                    tokio::task::yield_now().await;
                } else {
                    tokio::time::sleep(linger).await;
                }
                let (mut items, mut waiting) = (vec![first.0], vec![first.1]);
                while items.len() < most {
                    let Ok((item, answer)) = receiver.try_recv() else { break };
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
