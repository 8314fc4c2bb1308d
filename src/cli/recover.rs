//! A lost device ends no command: the work is done once more on a new one.

use super::common::{GpuArgs, Ui};
use crate::gpu::Gpu;
use crate::{Error, Result};

/// Opens the adapter and works on it; if the device is lost on the way, once more with a new one. What `work`
/// has finished by then it should keep outside of itself.
///
/// # Errors
/// Those of `work`; `DeviceLost` after the second loss.
pub fn on_device<T>(args: &GpuArgs, ui: &Ui, mut work: impl FnMut(&Gpu) -> Result<T>) -> Result<T> {
    once_more(ui, |_| work(&args.open(ui)?))
}

/// Runs `attempt`, and a second time (with `true`) if it loses its device.
///
/// # Errors
/// As [`on_device`].
pub fn once_more<T>(ui: &Ui, attempt: impl FnMut(bool) -> Result<T>) -> Result<T> {
    twice(ui, attempt).map_err(|error| match error {
        Error::DeviceLost(what) => Error::DeviceLost(format!(
            "{what}, the second time in a row; take a smaller size or fewer at once, another --device or \
             a newer driver; `inknib doctor` tests this one"
        )),
        other => other,
    })
}

/// As [`once_more`], for callers that know what to do about a second loss.
pub fn twice<T>(ui: &Ui, mut attempt: impl FnMut(bool) -> Result<T>) -> Result<T> {
    match attempt(false) {
        Err(Error::DeviceLost(what)) => {
            ui.warn(&format!("{what}; running once more on a new device"));
            attempt(true)
        }
        other => other,
    }
}

/// A text that is given out as it comes, and only once when it comes again.
#[derive(Debug, Default)]
pub struct Shown {
    text: String,
    /// How much of it has come again.
    at: usize,
}

impl Shown {
    /// From now on the text comes again from its beginning.
    pub fn again(&mut self) {
        self.at = 0;
    }
    /// The part of a piece that is new.
    pub fn new_part(&mut self, piece: &str) -> String {
        let known = &self.text[self.at..];
        if known.starts_with(piece) {
            self.at += piece.len();
            return String::new();
        }
        if let Some(rest) = piece.strip_prefix(known) {
            self.text.push_str(rest);
            self.at = self.text.len();
            return rest.to_string();
        }
        // Another text after all: from its beginning, on a line of its own.
        self.text.truncate(self.at);
        self.text.push_str(piece);
        self.at = self.text.len();
        format!("\n{}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(times: usize) -> (Result<usize>, Vec<bool>) {
        let mut heard = Vec::new();
        let result = once_more(&Ui::new(true), |again| {
            heard.push(again);
            match heard.len() <= times {
                true => Err(Error::DeviceLost("gone".into())),
                false => Ok(heard.len()),
            }
        });
        (result, heard)
    }

    #[test]
    fn one_loss_is_repeated_and_a_second_is_an_error() {
        assert_eq!((lost(0).0.unwrap(), lost(0).1), (1, vec![false]));
        assert_eq!((lost(1).0.unwrap(), lost(1).1), (2, vec![false, true]));
        let (error, heard) = lost(2);
        let error = error.unwrap_err();
        assert_eq!((error.exit_code(), heard), (6, vec![false, true]));
        assert!(error.to_string().contains("--device"), "{error}");
        let other = once_more::<()>(&Ui::new(true), |_| Err(Error::Interrupted));
        assert!(matches!(other, Err(Error::Interrupted)));
    }

    #[test]
    fn a_text_that_comes_again_is_shown_once() {
        let mut shown = Shown::default();
        let mut all: String = ["Hel", "lo ", ""].map(|piece| shown.new_part(piece)).concat();
        shown.again();
        all += &["H", "ello the", "re"].map(|piece| shown.new_part(piece)).concat();
        assert_eq!(all, "Hello there");
        shown.again();
        let other = ["Hel", "p", " me"].map(|piece| shown.new_part(piece)).concat();
        assert_eq!(other, "\nHelp me");
        shown.again();
        assert_eq!(shown.new_part("Help me!"), "!");
    }
}
