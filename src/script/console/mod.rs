//! A console: evaluates what somebody writes with all that a hook can use, the functions of the machine's script and `m`, and
//! keeps variables from one input to the next.
//!
//! Each has a thread of its own, which its values never leave (see `runner`), until it was idle for long or nobody holds it
//! any more. An input has a deadline and a cancel token as every call has; what all of its values take is limited as those of
//! one call are.

mod complete;
mod session;

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use session::Session;

use super::runner;
use super::{MachineContext, MachineProgram};
use crate::base::Problem;

pub use complete::is_complete;

/// A console that nobody has used for so long ends.
const IDLE: Duration = Duration::from_mins(30);
/// How long somebody may take to read how an input ended.
const LAST_WORD: Duration = Duration::from_secs(10);
/// What an input has printed and nobody has read yet; the input waits when there is more.
const UNREAD: usize = 256;

/// What comes of an input: what it prints, and then how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ConsoleSaid")]
pub enum Said {
    /// A line that it wrote, by `print` or `log::`.
    Printed(String),
    /// It came to this value.
    Value(Shown),
    /// It failed.
    Problem(Problem),
}

/// A value, for people and for programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ConsoleValue")]
pub struct Shown {
    /// As scripts name it; `()` is nothing.
    #[serde(rename = "type")]
    pub kind: String,
    /// For people. Secrets are not in it.
    pub text: String,
    /// What it holds, where it is plain data and not too much.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data: Option<Value>,
    /// The variables that there are now.
    pub variables: Vec<String>,
}

/// The way to one console; it ends when the last of these is dropped.
#[derive(Clone)]
pub struct Console {
    inputs: mpsc::Sender<Input>,
    /// One input at a time.
    turn: Arc<Semaphore>,
    names: Arc<Vec<String>>,
}

struct Input {
    code: String,
    limit: Duration,
    cancel: CancellationToken,
    told: mpsc::Sender<Said>,
    turn: OwnedSemaphorePermit,
}

/// Why an input was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    #[error("the console still evaluates another input")]
    Busy,
    #[error("the console has ended")]
    Ended,
}

impl Console {
    /// A console on `program`, whose script is the one that it has, whatever is read later.
    ///
    /// # Errors
    /// A sentence where there is no thread for it.
    pub fn open(program: &MachineProgram, m: &MachineContext) -> Result<Self, String> {
        let (inputs, mut waiting) = mpsc::channel::<Input>(1);
        let runtime = program.full.deps.runtime.clone();
        let names = names(program);
        let (program, m) = (Arc::clone(&program.full), m.clone());
        runner::keep("console", move || {
            let mut session = Session::new(program, m);
            while let Ok(Some(input)) = runtime.block_on(async { tokio::time::timeout(IDLE, waiting.recv()).await }) {
                let Input { code, limit, cancel, told, turn } = input;
                let end = session.evaluate(&code, limit, cancel, told.clone());
                drop(turn);
                // Whoever asked may have gone, or read no more.
                let _ = runtime.block_on(async { tokio::time::timeout(LAST_WORD, told.send(end)).await });
            }
        })?;
        Ok(Self { inputs, turn: Arc::new(Semaphore::new(1)), names: Arc::new(names) })
    }

    /// Evaluates `code` for no longer than `limit`. The last that is said is its value, or why it failed.
    pub fn evaluate(
        &self,
        code: String,
        limit: Duration,
        cancel: CancellationToken,
    ) -> Result<mpsc::Receiver<Said>, NotTaken> {
        if self.is_over() {
            return Err(NotTaken::Ended);
        }
        let turn = Arc::clone(&self.turn).try_acquire_owned().map_err(|_| NotTaken::Busy)?;
        let (told, said) = mpsc::channel(UNREAD);
        let input = Input { code, limit, cancel, told, turn };
        self.inputs.try_send(input).map_err(|_| NotTaken::Ended)?;
        Ok(said)
    }

    /// It was idle for too long.
    pub fn is_over(&self) -> bool {
        self.inputs.is_closed()
    }

    /// The names of what can be written, for completion: `http::get`, `step`; methods and properties as `.len`.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

fn names(program: &MachineProgram) -> Vec<String> {
    let mut names = super::reference::words();
    names.extend(program.function_names());
    names.sort();
    names.dedup();
    names
}
