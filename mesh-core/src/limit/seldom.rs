//! [`Seldom`]: what others can make happen at will fills no log. Pure: time comes in as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// Tells of one event in a time, and with it how many were left out before.
#[derive(Debug, Default)]
pub struct Seldom {
    told: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    /// Counts an event. `Some` = it is to be told, once in `every`, with the number of those left out since the last that was.
    pub fn tell(&mut self, every: Duration, now: Instant) -> Option<u64> {
        if self.told.is_some_and(|at| now.saturating_duration_since(at) < every) {
            self.left_out += 1;
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_time_is_told_with_the_number_of_those_left_out() {
        let (every, begin) = (Duration::from_secs(10), Instant::now());
        let mut seldom = Seldom::default();
        let told = [0, 1, 9, 10, 11, 30].map(|second| seldom.tell(every, begin + Duration::from_secs(second)));
        assert_eq!(told, [Some(0), None, None, Some(2), None, Some(1)]);
        // The control: nothing is left out where no time has to pass.
        assert_eq!([(); 3].map(|()| seldom.tell(Duration::ZERO, begin)), [Some(0); 3]);
    }
}
