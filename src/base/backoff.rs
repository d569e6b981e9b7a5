use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Seconds;

/// Waiting times that double up to a limit, each shortened by a random share so that many waiters do not act together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Backoff {
    /// The wait after the first failure that waits at all.
    pub initial: Seconds,
    /// No wait is longer than this.
    pub max: Seconds,
    /// How much each wait grows over the last.
    pub factor: f64,
    /// The share of a wait, 0 to 1, that chance may take away.
    pub jitter: f64,
}

impl Eq for Backoff {}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Seconds::from_millis(500), max: Seconds::from_secs(30), factor: 2.0, jitter: 0.2 }
    }
}

impl Backoff {
    /// The wait before try `failures + 1`, where `failures` counts from 1; `chance` lies in 0..1.
    pub fn delay(&self, failures: u32, chance: f64) -> Duration {
        let max = self.max.get().as_secs_f64();
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial.get().as_secs_f64() * self.factor.max(1.0).powi(exponent);
        let capped = if grown.is_finite() { grown.min(max) } else { max };
        let kept = 1.0 - self.jitter.clamp(0.0, 1.0) * chance.clamp(0.0, 1.0);
        Duration::from_secs_f64(capped * kept)
    }

    /// [`Self::delay`] with chance drawn from the thread's generator.
    pub fn random_delay(&self, failures: u32) -> Duration {
        self.delay(failures, rand::random())
    }
}

#[cfg(test)]
mod tests {
    use super::{Backoff, Seconds};
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn waits_double_up_to_the_limit() {
        let backoff = Backoff { jitter: 0.0, ..Backoff::default() };
        let waits: Vec<u128> = (1..=9).map(|n| backoff.delay(n, 0.7).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
    }

    proptest! {
        #[test]
        fn a_wait_is_never_over_the_limit_nor_under_its_jittered_floor(
            initial in 0u64..100_000, max in 0u64..100_000, factor in -5.0..1e9f64, jitter in -1.0..2.0f64,
            failures in 0u32.., chance in 0.0..1.0f64,
        ) {
            let backoff = Backoff { initial: Seconds::from_millis(initial), max: Seconds::from_millis(max), factor, jitter };
            let wait = backoff.delay(failures, chance);
            prop_assert!(wait <= Duration::from_millis(max));
            if jitter <= 0.0 {
                prop_assert!(wait >= Duration::from_millis(initial.min(max)).saturating_sub(Duration::from_micros(1)));
            }
        }
    }
}
