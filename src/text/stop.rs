//! When a text ends: end-of-turn ids and stop strings over streamed text.

/// Why generation stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// An end id came.
    Token(u32),
    /// This stop string came.
    Text(String),
}

/// Watches streamed text for stop strings. Text that might be the beginning of one is held back until
/// it is certain, so a reader never sees half of a stop string.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    ids: Vec<u32>,
    strings: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// Stops at any of these ids and strings. Empty strings are ignored.
    pub fn new(ids: Vec<u32>, mut strings: Vec<String>) -> StopMatcher {
        strings.retain(|s| !s.is_empty());
        StopMatcher { ids, strings, held: String::new() }
    }

    /// Does this id end the text? Ask before its text is pushed; an end id's own text is not shown.
    pub fn token(&self, id: u32) -> Option<Stop> {
        self.ids.contains(&id).then_some(Stop::Token(id))
    }

    /// Takes new text; returns what may be shown, and the stop if one is complete. The earliest match
    /// wins; the stop string and everything behind it are never returned.
    pub fn push(&mut self, text: &str) -> (String, Option<Stop>) {
        self.held.push_str(text);
        let found =
            self.strings.iter().filter_map(|s| self.held.find(s.as_str()).map(|at| (at, s)));
        if let Some((at, stop)) = found.min_by_key(|(at, s)| (*at, std::cmp::Reverse(s.len()))) {
            let stop = Stop::Text(stop.clone());
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let certain = self.held.len() - self.uncertain();
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// The text held back, when generation ends for another reason.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that are a beginning of some stop string.
    fn uncertain(&self) -> usize {
        let longest = |stop: &String| {
            let most = stop.len().saturating_sub(1).min(self.held.len());
            // Comparing bytes: a valid string's proper prefix that matches a valid string's end
            // starts at a character boundary of both, because a continuation byte never starts one.
            (1..=most).rev().find(|n| self.held.as_bytes().ends_with(&stop.as_bytes()[..*n]))
        };
        self.strings.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(matcher: &mut StopMatcher, pieces: &[&str]) -> (Vec<String>, Option<Stop>) {
        let mut shown = Vec::new();
        for piece in pieces {
            let (text, stop) = matcher.push(piece);
            shown.push(text);
            if stop.is_some() {
                return (shown, stop);
            }
        }
        shown.push(matcher.finish());
        (shown, None)
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_shown() {
        let mut m = StopMatcher::new(vec![], vec!["User:".into()]);
        let (shown, stop) = stream(&mut m, &["Fine.\nU", "se", "r: more"]);
        assert_eq!(shown, ["Fine.\n", "", ""]);
        assert_eq!(stop, Some(Stop::Text("User:".into())));
    }

    #[test]
    fn a_false_beginning_is_released() {
        let mut m = StopMatcher::new(vec![], vec!["<end>".into()]);
        let (shown, stop) = stream(&mut m, &["a <e", "gg> <en"]);
        assert_eq!(shown, ["a ", "<egg> ", "<en"]);
        assert_eq!(stop, None);
    }

    #[test]
    fn overlapping_beginnings_hold_back_the_longest() {
        let mut m = StopMatcher::new(vec![], vec!["aab".into()]);
        let (shown, stop) = stream(&mut m, &["aa", "ab"]);
        assert_eq!(shown, ["", "a"]);
        assert_eq!(stop, Some(Stop::Text("aab".into())));
    }

    #[test]
    fn the_earliest_of_two_stops_wins() {
        let mut m = StopMatcher::new(vec![], vec!["late".into(), "early".into()]);
        let (shown, stop) = stream(&mut m, &["so early or late"]);
        assert_eq!((shown.concat().as_str(), stop), ("so ", Some(Stop::Text("early".into()))));
    }

    #[test]
    fn characters_of_several_bytes_stay_whole() {
        let mut m = StopMatcher::new(vec![], vec!["→→".into()]);
        let (shown, stop) = stream(&mut m, &["é→", "é→→"]);
        assert_eq!(shown, ["é", "→é"]);
        assert_eq!(stop, Some(Stop::Text("→→".into())));
    }

    #[test]
    fn ids_stop_and_empty_strings_do_not() {
        let mut m = StopMatcher::new(vec![2, 7], vec![String::new()]);
        assert_eq!(m.token(7), Some(Stop::Token(7)));
        assert_eq!(m.token(3), None);
        assert_eq!(m.push("text"), ("text".to_string(), None));
    }
}
