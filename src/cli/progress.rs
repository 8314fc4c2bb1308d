//! Progress on stderr: a bar at a terminal, nothing elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::common::Ui;

/// A bar that goes when it is dropped. Hidden ones cost nothing.
pub struct Bar(ProgressBar);

impl Bar {
    /// `total` steps of something; a spinner if `total` is 0.
    pub(super) fn new(label: &str, total: u64, visible: bool) -> Bar {
        let target =
            if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = if total == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(total) };
        bar.set_draw_target(target);
        let template = match total {
            0 => "{prefix} {spinner} {msg}",
            _ => "{prefix} [{bar:30}] {pos}/{len} {eta} {msg}",
        };
        // A template that does not parse would only look different.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(label.to_string());
        if visible {
            bar.enable_steady_tick(Duration::from_millis(150));
        }
        Bar(bar)
    }
    /// Sets how many steps are done.
    pub fn at(&self, done: u64) {
        self.0.set_position(done);
    }
    /// Sets how many there are, when that is known only later.
    pub fn total(&self, total: u64) {
        self.0.set_length(total);
    }
    /// Runs something that prints, with the bar out of the way.
    pub fn hide_while<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
    /// A few words behind the bar.
    pub fn say(&self, message: impl Into<String>) {
        self.0.set_message(message.into());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Shows one bar per stage.
pub struct Stages<'a> {
    ui: &'a Ui,
    label: String,
    bar: Option<Bar>,
}

impl<'a> Stages<'a> {
    pub fn new(ui: &'a Ui) -> Stages<'a> {
        Stages { ui, label: String::new(), bar: None }
    }
    pub fn show(&mut self, label: &str, done: usize, total: usize) {
        if self.label != label {
            // The old bar must have gone before the new one is drawn.
            self.bar = None;
            self.bar = Some(self.ui.bar(label, total as u64));
            self.label = label.to_string();
        }
        if let Some(bar) = &self.bar {
            bar.at(done as u64);
        }
    }
}
