//! What scripts write into the engine's log: as much as anybody reads, and a count of the rest.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;

use super::call::Call;
use super::console::Said;
use super::testing;
use crate::base::Allowance;
use crate::telemetry::Level;

/// A longer line is cut.
const MAX_BYTES: usize = 8 * 1024;
/// Lines of one call.
const BURST: u32 = 200;
const PER_SECOND: f64 = 20.0;

/// The lines of one call.
pub(super) struct Lines {
    state: Mutex<State>,
    /// Who reads them instead of the engine's log.
    reader: Option<mpsc::Sender<Said>>,
}

struct State {
    allowance: Allowance,
    left_out: u64,
}

impl Default for Lines {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Lines {
    /// Lines that somebody waits for: none is left out.
    pub fn told_to(reader: mpsc::Sender<Said>) -> Self {
        Self::new(Some(reader))
    }

    fn new(reader: Option<mpsc::Sender<Said>>) -> Self {
        let state = State { allowance: Allowance::new(BURST, PER_SECOND, Instant::now()), left_out: 0 };
        Self { state: Mutex::new(state), reader }
    }

    /// Whether another line may be written, and how many were left out before it.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.allowance.take(now) {
            return Some(std::mem::take(&mut state.left_out));
        }
        state.left_out += 1;
        None
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        say_left_out(self.state.get_mut().unwrap_or_else(PoisonError::into_inner).left_out);
    }
}

fn say_left_out(lines: u64) {
    if lines > 0 {
        tracing::warn!("script: {lines} lines were left out, they came too fast");
    }
}

/// Writes a line of the current call; `None` is for those who look for a fault.
pub(super) fn write(level: Option<Level>, text: &str) {
    if Call::with_current(|call| call.is_some_and(Call::is_made_up)) {
        return testing::logged(level, text);
    }
    let listened_to = |call: &Call| Some((call.clone(), call.lines.reader.clone()?));
    if let Some((call, reader)) = Call::with_current(|call| call.and_then(listened_to)) {
        let text = text[..text.floor_char_boundary(MAX_BYTES)].to_owned();
        // A call that has to end does so at its next step; somebody who has gone reads nothing.
        let _ = call.wait(reader.send(Said::Printed(text)));
        return;
    }
    let left_out = Call::with_current(|call| call.map_or(Some(0), |call| call.lines.admit(Instant::now())));
    let Some(left_out) = left_out else { return };
    say_left_out(left_out);
    let text = &text[..text.floor_char_boundary(MAX_BYTES)];
    match level {
        None => tracing::debug!("script: {text}"),
        Some(Level::Info) => tracing::info!("script: {text}"),
        Some(Level::Warn) => tracing::warn!("script: {text}"),
        Some(Level::Error) => tracing::error!("script: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn too_many_lines_are_counted() {
        let lines = Lines::default();
        let begun = Instant::now();
        let admitted = (0..1_000).filter(|_| lines.admit(begun).is_some()).count();
        assert_eq!(admitted, 200);
        assert_eq!(lines.admit(begun + Duration::from_secs(1)), Some(800));
        assert_eq!(lines.admit(begun + Duration::from_secs(1)), Some(0));
    }
}
