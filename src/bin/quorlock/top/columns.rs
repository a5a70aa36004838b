//! Which columns a line has room for, and how wide they are.

use ratatui::style::Style;
use ratatui::text::Span;

/// Between two columns.
pub const GAP: usize = 2;

/// What a table does where its lines are longer than the screen is wide.
pub struct Layout {
    /// The columns that are dropped, the least important first. Those that are missing here are never dropped.
    pub dropped: &'static [usize],
    /// The columns that may be cut, the most important first, each with its share of the line as a divisor: 2 is half of it.
    pub cut: &'static [(usize, usize)],
}

/// Returns the width of a text on the screen.
pub fn width_of(text: &str) -> usize {
    Span::raw(text).width()
}

/// Returns the text, cut with `…` where it is wider than `width`, and filled with spaces where it is narrower.
pub fn fitted(text: &str, width: usize) -> String {
    let mut fitted = cut(text, width);
    let missing = width.saturating_sub(width_of(&fitted));
    fitted.extend(std::iter::repeat_n(' ', missing));
    fitted
}

/// Returns the text, cut with `…` where it is wider than `width`. No character is cut in two.
pub fn cut(text: &str, width: usize) -> String {
    if width_of(text) <= width {
        return text.to_owned();
    }
    let Some(mut left) = width.checked_sub(1) else { return String::new() };
    let whole = Span::raw(text);
    let fits = whole.styled_graphemes(Style::new()).map(|part| part.symbol).take_while(|symbol| {
        let rest = left.checked_sub(width_of(symbol));
        left = rest.unwrap_or(0);
        rest.is_some()
    });
    fits.chain(["…"]).collect()
}

impl Layout {
    /// Returns the columns of a line that is `room` wide, each with its width.
    pub fn columns<const N: usize>(&self, rows: &[[String; N]], room: usize) -> Vec<(usize, usize)> {
        let longest: [usize; N] =
            std::array::from_fn(|i| rows.iter().map(|row| width_of(&row[i])).max().unwrap_or_default());
        let mut widths = longest;
        for (i, divisor) in self.cut {
            widths[*i] = widths[*i].min(room / divisor);
        }
        let mut kept: Vec<usize> = (0..N).collect();
        let taken = |kept: &[usize], widths: &[usize; N]| {
            kept.iter().map(|i| widths[*i] + GAP).sum::<usize>().saturating_sub(GAP)
        };
        for i in self.dropped {
            if taken(&kept, &widths) > room {
                kept.retain(|kept| kept != i);
            }
        }
        // A column that was dropped may be narrower than the room that one behind it has left.
        for i in self.dropped.iter().rev() {
            if !kept.contains(i) && taken(&kept, &widths) + GAP + widths[*i] <= room {
                kept.push(*i);
                kept.sort_unstable();
            }
        }
        for (i, _) in self.cut.iter().filter(|(i, _)| kept.contains(i)) {
            let spare = room.saturating_sub(taken(&kept, &widths));
            widths[*i] = longest[*i].min(widths[*i] + spare);
        }
        kept.into_iter().map(|i| (i, widths[i])).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAYOUT: Layout = Layout { dropped: &[2, 1], cut: &[(0, 2)] };

    fn columns(cells: [&str; 3], room: usize) -> Vec<(usize, usize)> {
        LAYOUT.columns(&[cells.map(str::to_owned)], room)
    }

    #[test]
    fn the_least_important_column_is_dropped_first() {
        assert_eq!(columns(["name", "12345", "123"], 16), [(0, 4), (1, 5), (2, 3)]);
        assert_eq!(columns(["name", "12345", "123"], 15), [(0, 4), (1, 5)]);
        assert_eq!(columns(["name", "12345", "123"], 10), [(0, 4), (2, 3)]);
        assert_eq!(columns(["name", "12345", "123"], 8), [(0, 4)]);
    }

    #[test]
    fn a_long_name_drops_no_column_and_takes_the_room_that_is_left() {
        let name = "n".repeat(100);
        assert_eq!(columns([&name, "12345", "123"], 40), [(0, 28), (1, 5), (2, 3)]);
        assert_eq!(columns([&name, "12345", "123"], 200), [(0, 100), (1, 5), (2, 3)]);
    }

    #[test]
    fn a_cut_text_ends_with_an_ellipsis() {
        for (text, width, expected) in [
            ("name", 4, "name"),
            ("names", 4, "nam…"),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
            ("names", 1, "…"),
            ("names", 0, ""),
        ] {
            assert_eq!(cut(text, width), expected, "{text}, {width}");
        }
        assert_eq!(fitted("日本語", 4), "日… ");
    }

    proptest! {
        #[test]
        fn a_fitted_text_has_its_width(text: String, width in 0_usize..40) {
            let shown = quorlock::text::Printable(&text).to_string();
            prop_assert_eq!(width_of(&fitted(&shown, width)), width);
        }
    }
}
