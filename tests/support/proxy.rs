use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes connections on; can break them all, or hold everything back for a while.
pub struct Proxy {
    pub port: u16,
    /// Connections of an older age end.
    age: watch::Sender<u64>,
    stalled_until: Arc<AtomicU64>,
}

impl Proxy {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (age, stalled_until) = (watch::Sender::new(0), Arc::new(AtomicU64::new(0)));
        let (ages, stalls) = (age.clone(), Arc::clone(&stalled_until));
        tokio::spawn(async move {
            loop {
                let Ok((from, _)) = listener.accept().await else { return };
                let (mut ages, stalls) = (ages.subscribe(), Arc::clone(&stalls));
                tokio::spawn(async move {
                    let Ok(to) = TcpStream::connect(("127.0.0.1", target)).await else { return };
                    let (from_read, from_write) = from.into_split();
                    let (to_read, to_write) = to.into_split();
                    tokio::select! {
                        () = copy(from_read, to_write, Arc::clone(&stalls)) => {}
                        () = copy(to_read, from_write, stalls) => {}
                        _ = ages.changed() => {}
                    }
                });
            }
        });
        Self { port, age, stalled_until }
    }

    pub fn break_all(&self) {
        self.age.send_modify(|age| *age += 1);
    }

    pub fn stall(&self, time: Duration) {
        self.stalled_until.store(millis() + u64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

fn millis() -> u64 {
    machinist::base::Timestamp::now().as_millis()
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, stalled_until: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n) = from.read(&mut buffer).await {
        while stalled_until.load(Ordering::Relaxed) > millis() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if n == 0 || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
