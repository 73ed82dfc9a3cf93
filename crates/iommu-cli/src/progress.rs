//! A progress bar for steps that take longer than a second, on terminals only.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// A step shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two drawings.
const INTERVAL: Duration = Duration::from_millis(100);
const WIDTH: usize = 40;

/// The progress of one step, drawn on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    total: u64,
    start: Instant,
    drawn: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Begins a step of `total` units.
    pub(crate) fn begin(what: &'static str, total: u64) -> Self {
        Self {
            what,
            total,
            start: Instant::now(),
            drawn: None,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// `done` units are done.
    pub(crate) fn at(&mut self, done: u64) {
        let now = Instant::now();
        let due = self
            .drawn
            .map_or(now - self.start >= PATIENCE, |last| now - last >= INTERVAL);
        if self.terminal && due {
            self.drawn = Some(now);
            let line = bar(self.what, done, self.total);
            // A bar that cannot be drawn is no reason to stop the work.
            let _ = write!(std::io::stderr(), "\r{line}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(
                std::io::stderr(),
                "\r{:width$}\r",
                "",
                width = self.what.len() + WIDTH + 10
            );
        }
    }
}

fn bar(what: &str, done: u64, total: u64) -> String {
    let share =
        |of: u64| usize::try_from(u128::from(done.min(total)) * u128::from(of) / u128::from(total.max(1))).unwrap_or(0);
    let filled = share(WIDTH as u64);
    format!(
        "{what} [{}{}] {:>3} %",
        "#".repeat(filled),
        ".".repeat(WIDTH - filled),
        share(100)
    )
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn the_bar_fills_and_never_overflows() {
        assert!(bar("copying", 0, 10).ends_with("  0 %"));
        assert!(bar("copying", 5, 10).contains(&format!("[{}{}]", "#".repeat(20), ".".repeat(20))));
        assert!(bar("copying", 11, 10).ends_with("100 %"));
        assert!(bar("copying", 0, 0).ends_with("  0 %"));
    }
}
