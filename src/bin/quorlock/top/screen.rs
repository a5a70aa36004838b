//! The figures as lines of a screen.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use humantime::format_duration;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::columns::{GAP, Layout, cut, fitted, width_of};
use super::picture::Picture;
use super::view::View;
use crate::list::output::{self as locks, HEAD as LOCKS_HEAD};
use crate::status::output::{self as nodes, HEAD as NODES_HEAD};
use crate::status::reading::{NodeStatus, State};

/// NODE, STATE and LOCKS stay to the end, and NODE longest.
const NODES: Layout = Layout { dropped: &[6, 2, 7, 3, 5, 4, 8, 1], cut: &[(0, 2)] };
/// NAME, WAITERS and HOLDER stay to the end, and NAME longest.
const LOCKS: Layout = Layout { dropped: &[5, 2, 7, 4, 8, 3, 1, 6], cut: &[(0, 2), (1, 4)] };
/// The reason why a node has no vote gets at least so many columns: it takes the place of other figures where it must.
const LEAST_REASON: usize = 30;
/// Figures that are older than the interval by so much are marked: a node takes its time.
const LATE: Duration = Duration::from_secs(2);
/// All but the rows of nodes and locks: the title, the verdict, the heading of the locks, two heads, an empty line, the keys.
const OTHER_LINES: usize = 7;

const KEYS: &str = "q quit  j/k scroll  s sort  p pause";

/// Draws the figures as of `now`.
pub fn draw(frame: &mut Frame<'_>, view: &mut View, picture: Option<&Picture>, now: Instant) {
    let area = frame.area();
    let room = usize::from(area.width);
    let mut lines = vec![title(view, picture, now, room)];
    if let Some(picture) = picture {
        let rows = usize::from(area.height).saturating_sub(OTHER_LINES);
        let of_nodes = picture.status.nodes.len().min(rows.div_ceil(2));
        lines.extend(node_lines(view, picture, of_nodes, room));
        lines.push(Line::default());
        lines.extend(lock_lines(view, picture, rows - of_nodes, room));
    }
    for (line, y) in lines.iter().zip(area.y..area.bottom()) {
        frame.render_widget(line, Rect { y, height: 1, ..area });
    }
    if lines.len() < usize::from(area.height) {
        let line = Line::styled(cut(KEYS, room), Modifier::DIM);
        frame.render_widget(line, Rect { y: area.bottom() - 1, height: 1, ..area });
    }
}

/// What is shown, and how old the figures are.
fn title(view: &View, picture: Option<&Picture>, now: Instant, room: usize) -> Line<'static> {
    let age = picture.map(|picture| now.saturating_duration_since(picture.began));
    let mut text = match age {
        None => "asking the nodes".to_owned(),
        Some(age) => format!("figures {}s old, every {}", age.as_secs(), format_duration(view.interval)),
    };
    if view.is_paused {
        text.push_str(", PAUSED");
    }
    let is_late = age.is_some_and(|age| age > view.interval + LATE);
    let style = if view.is_paused || is_late { coloured(view, Color::Yellow) } else { Style::new() };
    let name = "quorlock top  ";
    // The age matters more than the prefix, which may have any length.
    let left = room.saturating_sub(width_of(name) + width_of(&text) + GAP);
    let prefix = cut(&view.prefix, left);
    Line::from_iter([
        Span::styled(name, Modifier::BOLD),
        Span::styled(text, style),
        Span::raw(" ".repeat(GAP)),
        Span::styled(prefix, Modifier::DIM),
    ])
}

/// Returns the head, `count` rows and the verdict.
fn node_lines(view: &View, picture: &Picture, count: usize, room: usize) -> Vec<Line<'static>> {
    let status = &picture.status;
    let rows: Vec<[String; NODES_HEAD.len()]> =
        [NODES_HEAD.map(str::to_owned)].into_iter().chain(status.nodes.iter().map(nodes::row)).collect();
    let columns = NODES.columns(&rows, room);
    let mut lines = vec![head(&rows[0], &columns)];
    for (row, node) in rows[1..].iter().zip(&status.nodes).take(count) {
        lines.push(node_line(view, row, node, &columns, room));
    }
    let colour = if status.has_quorum() { Color::Green } else { Color::Red };
    let hidden = status.nodes.len() - count;
    let more = if hidden > 0 { format!(" ({hidden} not shown)") } else { String::new() };
    lines.push(Line::styled(cut(&format!("{}{more}", status.summary()), room), coloured(view, colour).bold()));
    lines
}

/// A row, and why the node has no vote: behind the figures, or in the place of some where the line is too short.
fn node_line(
    view: &View,
    row: &[String; NODES_HEAD.len()],
    node: &NodeStatus,
    columns: &[(usize, usize)],
    room: usize,
) -> Line<'static> {
    let reason = if let State::Not(error) = &node.state { Some(error.to_string()) } else { None };
    let mut line = Line::default();
    for (at, (i, width)) in columns.iter().enumerate() {
        let left: usize = columns[at..].iter().map(|(_, width)| width + GAP).sum();
        let is_short = line.width() + left + LEAST_REASON > room;
        if reason.is_some() && *i > 1 && (node.facts.is_none() || is_short) {
            break;
        }
        let style = if *i == 1 { coloured(view, colour(node)) } else { Style::new() };
        line.push_span(Span::styled(fitted(&row[*i], *width), style));
        line.push_span(Span::raw(" ".repeat(GAP)));
    }
    if let Some(reason) = reason {
        line.push_span(Span::raw(cut(&reason, room.saturating_sub(line.width()))));
    }
    line
}

fn colour(node: &NodeStatus) -> Color {
    match node.state {
        State::Voting => Color::Green,
        State::Quarantined(_) | State::Undeclared => Color::Yellow,
        State::Not(_) => Color::Red,
    }
}

/// Returns the heading, the head and a page of at most `page` locks.
fn lock_lines(view: &mut View, picture: &Picture, page: usize, room: usize) -> Vec<Line<'static>> {
    let found = &picture.locks;
    let shown = found.locks.len().min(view.limit);
    view.scroll(shown, page);
    let mut heading = picture.heading(view.order, view.limit);
    if shown > page && page > 0 {
        let _ = write!(heading, " ({} to {})", view.first + 1, view.first + page); // A String takes everything.
    }
    let style = if found.answered() < found.nodes { coloured(view, Color::Yellow) } else { Style::new() };
    let rows: Vec<[String; LOCKS_HEAD.len()]> = [LOCKS_HEAD.map(str::to_owned)]
        .into_iter()
        .chain(found.locks[..shown].iter().map(|lock| locks::row(found, lock)))
        .collect();
    // The columns are those of all locks, so that they stay where they are while one scrolls.
    let columns = LOCKS.columns(&rows, room);
    let mut lines = vec![Line::styled(cut(&heading, room), style), head(&rows[0], &columns)];
    lines.extend(rows[1..].iter().skip(view.first).take(page).map(|row| Line::raw(text(row, &columns))));
    lines
}

fn head<const N: usize>(row: &[String; N], columns: &[(usize, usize)]) -> Line<'static> {
    Line::styled(text(row, columns), Modifier::BOLD)
}

fn text<const N: usize>(row: &[String; N], columns: &[(usize, usize)]) -> String {
    let cells: Vec<String> = columns.iter().map(|(i, width)| fitted(&row[*i], *width)).collect();
    cells.join(&" ".repeat(GAP))
}

fn coloured(view: &View, colour: Color) -> Style {
    if view.colours { Style::new().fg(colour) } else { Style::new() }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use quorlock::admin::holder_of;
    use quorlock::{Holder, NodeError};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::list::reading::{Lock, Locks};
    use crate::status::reading::{Facts, Status};
    use crate::top::picture::Order;

    fn facts() -> Facts {
        Facts {
            server: "Valkey".to_owned(),
            version: "8.1.1".to_owned(),
            round_trip: Duration::from_micros(420),
            clock_ms: -12,
            uptime: Duration::from_secs(3_700),
            aof: true,
            locks: Some(4),
            longest_lease: Some(Duration::from_secs(30)),
        }
    }

    /// A node in each state.
    fn nodes() -> Vec<NodeStatus> {
        let node = |(i, (state, facts))| NodeStatus { name: format!("redis-{i}.example.org:6379"), state, facts };
        let states = [
            (State::Voting, Some(facts())),
            (State::Quarantined(Duration::from_millis(6400)), Some(facts())),
            (State::Undeclared, Some(facts())),
            (State::Not(NodeError::OtherList { theirs: 5, ours: 6 }), Some(facts())),
            (State::Not(NodeError::NoAnswer(Duration::from_secs(5))), None),
            (State::Not(NodeError::Replica), None),
        ];
        states.into_iter().enumerate().map(node).collect()
    }

    fn lock(name: &str, label: &str, waiters: usize) -> Lock {
        let (holder, holds) = holder_of(format!("ql1 7000000 af {label} c/1:2").as_bytes()).expect("a lock key");
        let ttl = Some(Duration::from_millis(9_700));
        let oldest = (waiters > 0).then(|| Duration::from_secs(3));
        Lock { name: name.as_bytes().to_vec(), holder: Some(holder), holds, votes: 3, ttl, waiters, oldest }
    }

    fn picture(nodes: Vec<NodeStatus>, locks: Vec<Lock>) -> Picture {
        let locks = Locks { locks, nodes: nodes.len(), failed: Vec::new(), now: Duration::from_secs(70) };
        let mut picture = Picture { status: Status { nodes }, locks, began: Instant::now() };
        picture.sort(Order::Waiters);
        picture
    }

    /// The lines on a screen, without the spaces at their ends. A wide character has two cells.
    fn screen(view: &mut View, picture: Option<&Picture>, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen in memory");
        let now = picture.map_or_else(Instant::now, |picture| picture.began + Duration::from_secs(1));
        terminal.draw(|frame| draw(frame, view, picture, now)).expect("a screen in memory");
        let buffer = terminal.backend().buffer();
        let line = |y| {
            let (mut line, mut x) = (String::new(), 0);
            while x < width {
                let symbol = buffer[(x, y)].symbol();
                line.push_str(symbol);
                x += u16::try_from(width_of(symbol)).expect("a width").max(1);
            }
            line.trim_end().to_owned()
        };
        (0..height).map(line).collect()
    }

    fn shown(picture: &Picture, width: u16, height: u16) -> Vec<String> {
        screen(&mut View::of_a_test(), Some(picture), width, height)
    }

    #[test]
    fn a_wide_screen_has_every_column_and_the_reasons() {
        let lines = shown(&picture(nodes(), vec![lock("job", "host:1", 2)]), 200, 24);
        assert_eq!(lines[0], "quorlock top  figures 1s old, every 2s  quorlock:lock:");
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), NODES_HEAD);
        assert!(lines[2].starts_with("redis-0.example.org:6379  voting          Valkey  8.1.1"), "{lines:#?}");
        assert!(lines[3].contains("  quarantined 7s  Valkey"), "{lines:#?}");
        assert!(lines[4].contains("  undeclared      Valkey"), "{lines:#?}");
        for (line, error) in
            [(5, NodeError::OtherList { theirs: 5, ours: 6 }), (6, NodeError::NoAnswer(Duration::from_secs(5)))]
        {
            let beginning: String = error.to_string().chars().take(LEAST_REASON - 1).collect();
            assert!(lines[line].contains(&beginning), "{lines:#?}");
        }
        assert!(lines[5].contains("  Valkey  8.1.1 "), "the figures of a node that answers stay: {lines:#?}");
        assert!(lines[7].contains("  replica "), "{lines:#?}");
        assert_eq!(lines[8], "NOQUORUM: 1 of 6 votes, quorum 4, 3 nodes missing");
        assert_eq!(lines[10], "1 lock, most waiters first");
        assert_eq!(lines[11], "NAME  HOLDER  TOKEN    HELD FOR  TTL   HOLDS  WAITERS  OLDEST  VOTES");
        assert_eq!(lines[12], "job   host:1  7000000  1m 3s     9.7s  2      2        3s      3/6");
        assert_eq!(lines[23], KEYS);
    }

    #[test]
    fn a_narrow_screen_drops_columns_and_cuts_no_short_name() {
        let lines = shown(&picture(nodes(), vec![lock("nightly-report-of-the-shop", "web-1.example:4711", 2)]), 80, 24);
        assert_eq!(lines[1], "NODE                      STATE           VERSION  RTT    CLOCK  AOF  LOCKS");
        assert_eq!(lines[2], "redis-0.example.org:6379  voting          8.1.1    0.4ms  -12ms  on   4");
        // The reason is in the place of figures.
        let reason: String = NodeError::NoAnswer(Duration::from_secs(5)).to_string().chars().take(20).collect();
        assert!(lines[6].contains(&reason), "{lines:#?}");
        assert_eq!(lines[11], "NAME                        HOLDER              HELD FOR  TTL   WAITERS  VOTES");
        assert!(lines[12].starts_with("nightly-report-of-the-shop  web-1.example:4711  1m 3s"), "{lines:#?}");
        let tiny = shown(&picture(nodes(), vec![lock("nightly-report", "web-1", 2)]), 20, 24);
        assert_eq!(tiny[12], "nightly-re…  2");
    }

    #[test]
    fn hostile_names_stay_in_their_columns() {
        let long = "n".repeat(500);
        let names = [
            "\u{1b}[31mred\r\nforged",
            "日本語の名前日本語の名前日本語の名前日本語の名前",
            "e\u{301}\u{202e}\u{200b}",
            "👩‍👩‍👧❤️",
            &long,
        ];
        for width in [80, 200] {
            let locks = names.iter().map(|name| lock(name, "host:1", 7)).collect();
            let lines = shown(&picture(nodes(), locks), width, 24);
            let column = lines[11].find("WAITERS").expect("a column");
            for line in &lines[12..17] {
                let waiters = line.rfind('7').expect("a number");
                assert_eq!(width_of(&line[..waiters]), column, "{width}: {lines:#?}");
                assert!(!line.contains(char::is_control), "{line}");
            }
            let text = lines.join("\n");
            assert!(text.contains("\\u{1b}[31mred\\r\\nforged") && text.contains("nnn…  host:1"), "{text}");
        }
    }

    #[test]
    fn many_locks_are_scrolled_and_limited() {
        let name = |i| format!("job {i:03}");
        let mut locks: Vec<Lock> = (0..300).map(|i| lock(&name(i), "host:1", 0)).collect();
        locks[250].waiters = 9;
        let picture = picture(nodes(), locks);
        let mut view = View { limit: 100, ..View::of_a_test() };
        let lines = screen(&mut view, Some(&picture), 80, 24);
        assert_eq!(lines[10], "100 of 300 locks, most waiters first (1 to 11)");
        assert!(lines[12].starts_with("job 250") && lines[13].starts_with("job 000"), "{lines:#?}");
        assert!(lines[22].starts_with("job 009"), "{lines:#?}");
        view.first = usize::MAX;
        let lines = screen(&mut view, Some(&picture), 80, 24);
        assert!(lines[10].ends_with("(90 to 100)") && lines[22].starts_with("job 098"), "{lines:#?}");
    }

    #[test]
    fn failed_nodes_are_missing_in_the_heading() {
        let mut picture = picture(nodes(), Vec::new());
        picture.locks.failed = vec![("a".to_owned(), NodeError::Replica)];
        assert_eq!(shown(&picture, 80, 24)[10], "0 locks, most waiters first; 5 of 6 nodes have answered");
        picture.locks.failed.extend((0..2).map(|_| ("b".to_owned(), NodeError::Replica)));
        let heading = &shown(&picture, 200, 24)[10];
        assert!(heading.ends_with("3 of 6 nodes have answered, too few to know all locks"), "{heading}");
    }

    #[test]
    fn a_screen_without_figures_says_so() {
        let lines = screen(&mut View::of_a_test(), None, 80, 24);
        assert_eq!((lines[0].as_str(), lines[23].as_str()), ("quorlock top  asking the nodes  quorlock:lock:", KEYS));
        let picture = picture(nodes(), Vec::new());
        let lines = screen(&mut View { is_paused: true, ..View::of_a_test() }, Some(&picture), 80, 24);
        assert!(lines[0].contains("figures 1s old, every 2s, PAUSED"), "{lines:#?}");
    }

    #[test]
    fn a_screen_of_any_size_is_drawn() {
        let many = (0..40).flat_map(|_| nodes()).collect();
        let picture = picture(many, vec![lock("job", "host:1", 1)]);
        for (width, height) in (0..90).step_by(7).flat_map(|width| (0..30).map(move |height| (width, height))) {
            shown(&picture, width, height);
        }
        assert!(shown(&picture, 200, 24).iter().any(|line| line.contains("(231 not shown)")));
    }

    #[test]
    fn colours_are_an_option() {
        for colours in [true, false] {
            let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a screen in memory");
            let mut view = View { colours, is_paused: true, ..View::of_a_test() };
            let picture = picture(nodes(), Vec::new());
            terminal.draw(|frame| draw(frame, &mut view, Some(&picture), picture.began)).expect("a screen in memory");
            let cells = &terminal.backend().buffer().content;
            assert_eq!(cells.iter().any(|cell| cell.fg != Color::Reset), colours);
        }
    }

    #[test]
    fn locks_have_three_orders() {
        let token = |lock: &mut Lock, token: &str| {
            let held = holder_of(format!("ql1 {token} af host:1 c/1:1").as_bytes()).expect("a lock key");
            lock.holder = Some(held.0);
        };
        let mut locks = vec![lock("b", "h", 1), lock("a", "h", 1), lock("c", "h", 2)];
        token(&mut locks[0], "5");
        token(&mut locks[1], "6");
        locks.push(Lock { holder: Some(Holder::Foreign), ..lock("0", "h", 0) });
        let mut picture = picture(nodes(), locks);
        let mut names = String::new();
        for order in [Order::Waiters, Order::Waiters.next(), Order::Name] {
            picture.sort(order);
            for lock in &picture.locks.locks {
                let _ = write!(names, "{}", String::from_utf8_lossy(&lock.name)); // A String takes everything.
            }
            names.push(' ');
        }
        assert_eq!(names, "cab0 bac0 0abc ");
    }
}
