//! Which signals that came to quorlock are still to be passed on to the command's group, and which the group got besides.
//!
//! A supervisor often signals every process of a service: quorlock and the command. A signal to quorlock is therefore held
//! back for a moment; if the [listener](crate::listener) reports the same one meanwhile, or did just before, the group has
//! it already.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

/// How far apart the parts of one kill may be.
pub const HOLD_BACK: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub struct Delivery {
    /// All that came to quorlock.
    received: Vec<Signal>,
    /// Came to quorlock, and not passed on yet.
    held: Vec<Held>,
    /// Came to the group, and not to quorlock yet.
    early: Vec<(Signal, Instant)>,
    /// Keys of the terminal that came to the group.
    keys: Vec<Signal>,
}

#[derive(Debug)]
struct Held {
    signal: Signal,
    until: Instant,
    /// The listener was asked since.
    asked: bool,
}

/// What a moment brings about.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The listener is to be asked whether there is more.
    pub ask: bool,
    /// To be passed on.
    pub pass: Vec<Signal>,
}

impl Delivery {
    /// A signal came to quorlock. With a listener it is held back.
    pub fn received(&mut self, signal: Signal, now: Instant) {
        if !self.was_received(signal) {
            self.received.push(signal);
        }
        self.early.retain(|(_, at)| *at + HOLD_BACK >= now);
        if let Some(place) = self.early.iter().position(|(early, _)| *early == signal) {
            self.early.remove(place);
        } else {
            self.held.push(Held { signal, until: now + HOLD_BACK, asked: false });
        }
    }

    /// A signal came to the group, and not from quorlock. `in_front`: the group has the terminal in place of quorlock's.
    pub fn reported(&mut self, signal: Signal, in_front: bool, now: Instant) {
        if let Some(place) = self.held.iter().position(|held| held.signal == signal) {
            self.held.remove(place);
            return;
        }
        self.early.push((signal, now));
        if in_front && is_of_terminal(signal) {
            self.keys.push(signal);
        }
    }

    /// When to ask what is [`due`](Self::due).
    pub fn next(&self) -> Option<Instant> {
        self.held.iter().map(|held| held.until).min()
    }

    pub fn due(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        self.held.retain_mut(|held| {
            if held.until > now {
                return true;
            }
            if held.asked {
                due.pass.push(held.signal); // The listener does not answer.
                return false;
            }
            (held.asked, held.until, due.ask) = (true, now + HOLD_BACK, true);
            true
        });
        due
    }

    /// The listener has reported all that had come when it was asked: gives what is to be passed on.
    pub fn answered(&mut self) -> Vec<Signal> {
        self.held.extract_if(.., |held| held.asked).map(|held| held.signal).collect()
    }

    /// Gives all that is held back.
    pub fn give_up(&mut self) -> Vec<Signal> {
        self.held.drain(..).map(|held| held.signal).collect()
    }

    pub fn was_received(&self, signal: Signal) -> bool {
        self.received.contains(&signal)
    }

    /// The last key of the terminal that came to the group and not to quorlock.
    pub fn key(&self) -> Option<Signal> {
        self.keys.last().copied()
    }
}

/// Returns whether the terminal sends this to its foreground group, by a key or when it hangs up.
pub fn is_of_terminal(signal: Signal) -> bool {
    [Signal::HUP, Signal::INT, Signal::QUIT].contains(&signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn a_signal_to_quorlock_alone_is_passed_on_after_the_listener_was_asked() {
        let (mut delivery, now) = (Delivery::default(), Instant::now());
        delivery.received(Signal::TERM, now);
        assert_eq!(delivery.due(now), Due::default());
        assert_eq!(delivery.answered(), [], "it was not asked");
        assert_eq!(delivery.due(now + HOLD_BACK), Due { ask: true, pass: Vec::new() });
        assert_eq!(delivery.answered(), [Signal::TERM]);
        assert_eq!(delivery.next(), None);
    }

    #[test]
    fn a_listener_that_does_not_answer_holds_a_signal_back_twice_as_long() {
        let (mut delivery, now) = (Delivery::default(), Instant::now());
        delivery.received(Signal::TERM, now);
        delivery.due(now + HOLD_BACK);
        assert_eq!(delivery.due(now + 2 * HOLD_BACK).pass, [Signal::TERM]);
        assert_eq!(delivery.answered(), []);
    }

    #[test]
    fn a_signal_to_both_is_not_passed_on_whichever_comes_first() {
        let (mut delivery, now) = (Delivery::default(), Instant::now());
        delivery.received(Signal::TERM, now);
        delivery.reported(Signal::TERM, false, now + MOMENT);
        assert_eq!(delivery.next(), None);
        delivery.reported(Signal::HUP, false, now);
        delivery.received(Signal::HUP, now + MOMENT);
        assert_eq!(delivery.next(), None);
        delivery.received(Signal::HUP, now + MOMENT);
        assert_eq!(delivery.give_up(), [Signal::HUP], "the group got one of two");
    }

    #[test]
    fn a_signal_that_the_group_got_long_before_is_passed_on() {
        let (mut delivery, now) = (Delivery::default(), Instant::now());
        delivery.reported(Signal::TERM, false, now);
        delivery.received(Signal::TERM, now + HOLD_BACK + MOMENT);
        assert_eq!(delivery.give_up(), [Signal::TERM]);
    }

    #[test]
    fn only_keys_of_a_terminal_that_the_group_has_are_keys() {
        let (mut delivery, now) = (Delivery::default(), Instant::now());
        delivery.reported(Signal::INT, false, now);
        delivery.reported(Signal::TERM, true, now);
        assert_eq!(delivery.key(), None);
        delivery.reported(Signal::QUIT, true, now);
        assert_eq!(delivery.key(), Some(Signal::QUIT));
        assert!(!delivery.was_received(Signal::QUIT));
    }
}
