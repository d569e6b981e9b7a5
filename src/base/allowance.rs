use std::time::Instant;

/// So many at once, and so many a second from then on (a token bucket).
#[derive(Clone, Debug)]
pub struct Allowance {
    burst: f64,
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    pub fn new(burst: u32, per_second: f64, now: Instant) -> Self {
        let burst = f64::from(burst);
        Self { burst, per_second, left: burst, at: now }
    }

    /// Takes one, where there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let there = self.left >= 1.0;
        if there {
            self.left -= 1.0;
        }
        there
    }

    /// Whether nothing is missing: as good as new.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left >= self.burst
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(self.burst);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_then_a_rate() {
        let begun = Instant::now();
        let mut allowance = Allowance::new(3, 2.0, begun);
        let taken = |allowance: &mut Allowance, seconds: f64| {
            let now = begun + Duration::from_secs_f64(seconds);
            (0..10).filter(|_| allowance.take(now)).count()
        };
        assert_eq!(taken(&mut allowance, 0.0), 3);
        assert_eq!(taken(&mut allowance, 0.4), 0);
        assert_eq!(taken(&mut allowance, 0.5), 1);
        assert_eq!(taken(&mut allowance, 1.5), 2);
        assert_eq!(taken(&mut allowance, 1.0), 0, "a clock that goes back gives nothing");
        assert!(!allowance.is_full(begun + Duration::from_secs(2)));
        assert!(allowance.is_full(begun + Duration::from_secs(4)));
        assert_eq!(taken(&mut allowance, 100.0), 3);
    }
}
