use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::driver::{Driver, NoDriver};
use super::{Gpu, GpuReading};

/// While a GPU does not answer the driver is opened anew so often: it does not find one again that was reset otherwise.
const REOPEN: Duration = Duration::from_secs(30);
/// How long the listener may take to let go of the driver.
const LET_GO: Duration = Duration::from_secs(3);

/// What is heard of the GPUs.
#[derive(Clone, Debug, PartialEq)]
pub enum GpuNews {
    /// There is no driver to ask; nothing else will be heard. Not `usual`: something is wrong with it.
    Absent {
        why: String,
        usual: bool,
    },
    /// One look at all of them.
    Read(Vec<GpuReading>),
    Xid {
        uuid: String,
        code: u64,
    },
}

/// Looks at the GPUs again and again, on a thread of its own, and listens for errors on another: a driver that hangs
/// holds up these two and nobody else. They end when this is dropped, as far as the driver lets them.
#[derive(Debug)]
pub struct GpuMonitor {
    _wanted: Sender<()>,
}

impl GpuMonitor {
    /// `tell` is called from those threads.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        library: Option<PathBuf>,
        every: Duration,
        tell: impl Fn(GpuNews) + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let (wanted, ended) = channel();
        let sampler = Sampler { library, every, ended, known: Vec::new(), tell };
        std::thread::Builder::new().name("gpu-sampler".to_owned()).spawn(move || sampler.run())?;
        Ok(Self { _wanted: wanted })
    }
}

struct Sampler<F> {
    library: Option<PathBuf>,
    every: Duration,
    /// Nobody wants to hear more when it is closed.
    ended: Receiver<()>,
    known: Vec<Gpu>,
    tell: F,
}

impl<F: Fn(GpuNews) + Clone + Send + 'static> Sampler<F> {
    fn run(mut self) {
        let mut session = match Driver::open(self.library.as_deref()) {
            Ok(driver) => Session::begin(driver, self.tell.clone()),
            Err(NoDriver { why, usual }) => return (self.tell)(GpuNews::Absent { why, usual }),
        };
        let mut opened = Instant::now();
        loop {
            let readings = match &session.driver {
                Some(driver) => driver.read(&self.known),
                None => self.none_answers("the driver cannot be opened again"),
            };
            for reading in readings.iter().filter(|reading| reading.outcome.is_ok()) {
                match self.known.iter_mut().find(|gpu| gpu.uuid == reading.gpu.uuid) {
                    Some(gpu) => *gpu = reading.gpu.clone(),
                    None => self.known.push(reading.gpu.clone()),
                }
            }
            let lost = readings.iter().any(|reading| reading.outcome.is_err());
            (self.tell)(GpuNews::Read(readings));
            if self.ended.recv_timeout(self.every) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            if lost && opened.elapsed() >= REOPEN {
                opened = Instant::now();
                // The driver closes when nobody holds it any more.
                session.end();
                session = match Driver::open(self.library.as_deref()) {
                    Ok(driver) => Session::begin(driver, self.tell.clone()),
                    Err(_) => Session::default(),
                };
            }
        }
    }

    fn none_answers(&self, why: &str) -> Vec<GpuReading> {
        self.known.iter().map(|gpu| GpuReading { gpu: gpu.clone(), outcome: Err(why.to_owned()) }).collect()
    }
}

/// The driver from its opening to its closing, with the thread that listens for errors.
#[derive(Default)]
struct Session {
    driver: Option<Arc<Driver>>,
    stop: Arc<AtomicBool>,
    listener: Option<Receiver<()>>,
}

impl Session {
    fn begin(driver: Driver, tell: impl Fn(GpuNews) + Send + 'static) -> Self {
        let (driver, stop) = (Arc::new(driver), Arc::new(AtomicBool::new(false)));
        let (ended, listener) = channel();
        let (of_listener, stopped) = (Arc::clone(&driver), Arc::clone(&stop));
        let listen = move || {
            of_listener.listen(&stopped, |uuid, code| tell(GpuNews::Xid { uuid, code }));
            drop(of_listener);
            drop::<Sender<()>>(ended);
        };
        // Without it errors are seen by what becomes of the GPU.
        let started = std::thread::Builder::new().name("gpu-errors".to_owned()).spawn(listen).is_ok();
        Self { driver: Some(driver), stop, listener: started.then_some(listener) }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(listener) = self.listener.take() {
            let _ = listener.recv_timeout(LET_GO);
        }
        self.driver = None;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The GPUs that are there now, looked for no longer than `patience`; none where there is no NVIDIA driver.
pub fn gpus(library: Option<&Path>, patience: Duration) -> Vec<Gpu> {
    let (sender, receiver) = channel();
    let library = library.map(Path::to_owned);
    let look = move || {
        let readings = Driver::open(library.as_deref()).map(|driver| driver.read(&[])).unwrap_or_default();
        // Whoever asked may have gone on.
        let _ = sender.send(readings);
    };
    let started = std::thread::Builder::new().name("gpu-look".to_owned()).spawn(look);
    let readings = started.ok().and_then(|_| receiver.recv_timeout(patience).ok()).unwrap_or_default();
    readings.into_iter().filter(|reading| reading.outcome.is_ok()).map(|reading| reading.gpu).collect()
}
