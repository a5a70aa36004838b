//! What the keys change.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::picture::Order;

/// What is shown of the figures, and how.
pub struct View {
    pub prefix: String,
    pub interval: Duration,
    pub limit: usize,
    pub colours: bool,
    pub order: Order,
    pub is_paused: bool,
    /// The first lock on the screen.
    pub first: usize,
    /// How many locks the screen had room for.
    pub page: usize,
}

/// What is left to do after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Draw,
    Sort,
    Pause,
    Suspend,
    End,
}

impl View {
    pub fn press(&mut self, key: KeyEvent) -> Action {
        let page = self.page.max(1);
        match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
            (KeyCode::Char('c'), true) | (KeyCode::Char('q'), false) | (KeyCode::Esc, _) => return Action::End,
            (KeyCode::Char('z'), true) => return Action::Suspend,
            (KeyCode::Char('s'), false) => {
                (self.order, self.first) = (self.order.next(), 0);
                return Action::Sort;
            }
            (KeyCode::Char('p'), false) => {
                self.is_paused = !self.is_paused;
                return Action::Pause;
            }
            (KeyCode::Char('j'), false) | (KeyCode::Down, _) => self.first += 1,
            (KeyCode::Char('k'), false) | (KeyCode::Up, _) => self.first = self.first.saturating_sub(1),
            (KeyCode::PageDown, _) => self.first = self.first.saturating_add(page),
            (KeyCode::PageUp, _) => self.first = self.first.saturating_sub(page),
            (KeyCode::Home, _) => self.first = 0,
            (KeyCode::End, _) => self.first = usize::MAX,
            _ => {}
        }
        Action::Draw
    }

    /// Keeps the last lock at the end of the screen, where `count` locks are shown by pages of `page`.
    pub fn scroll(&mut self, count: usize, page: usize) {
        self.page = page;
        self.first = self.first.min(count.saturating_sub(page));
    }
}

#[cfg(test)]
impl View {
    pub fn of_a_test() -> Self {
        Self {
            prefix: "quorlock:lock:".to_owned(),
            interval: Duration::from_secs(2),
            limit: 1000,
            colours: false,
            order: Order::Waiters,
            is_paused: false,
            first: 0,
            page: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_scroll_within_the_locks() {
        let mut view = View::of_a_test();
        let mut press = |code| {
            assert_eq!(view.press(KeyEvent::from(code)), Action::Draw);
            view.scroll(30, 10);
            view.first
        };
        assert_eq!(press(KeyCode::Up), 0);
        assert_eq!(press(KeyCode::Char('j')), 1);
        assert_eq!(press(KeyCode::Down), 2);
        assert_eq!(press(KeyCode::Char('k')), 1);
        assert_eq!(press(KeyCode::PageDown), 11);
        assert_eq!(press(KeyCode::End), 20);
        assert_eq!(press(KeyCode::Down), 20);
        assert_eq!(press(KeyCode::PageUp), 10);
        assert_eq!(press(KeyCode::Home), 0);
    }

    #[test]
    fn keys_end_sort_and_pause() {
        let mut view = View::of_a_test();
        let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
        for key in [KeyCode::Char('q').into(), KeyCode::Esc.into(), control('c')] {
            assert_eq!(view.press(key), Action::End, "{key:?}");
        }
        assert_eq!(view.press(control('z')), Action::Suspend);
        assert_eq!(view.press(KeyCode::Char('c').into()), Action::Draw);
        let mut orders = Vec::new();
        for _ in 0..3 {
            assert_eq!(view.press(KeyCode::Char('s').into()), Action::Sort);
            orders.push(view.order);
        }
        assert_eq!(orders, [Order::Held, Order::Name, Order::Waiters]);
        for is_paused in [true, false] {
            assert_eq!((view.press(KeyCode::Char('p').into()), view.is_paused), (Action::Pause, is_paused));
        }
    }
}
