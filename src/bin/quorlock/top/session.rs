//! The terminal: the screen, the keys and the signals, until one of them ends it.

use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::thread;
use std::time::{Duration, Instant};

use quorlock::text::Printable;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, enable_raw_mode};
use ratatui::{DefaultTerminal, Terminal};
use rustix::process::Signal;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::sleep;

use super::Options;
use super::picture::{Order, Picture};
use super::screen::draw;
use super::view::{Action, View};
use crate::end::End;
use crate::exit::{Exit, Failure};
use crate::signals::{self, Signals, Whom};
use crate::status::colours;

/// The age of the figures is drawn again after this time.
const REDRAW: Duration = Duration::from_millis(500);

/// The terminal is in raw mode and shows the alternate screen while this exists.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// A panic restores the terminal before its message is written.
    fn enter() -> io::Result<Self> {
        // If this fails half-way the terminal is restored as well.
        let terminal = ratatui::try_init().inspect_err(|_| drop(ratatui::try_restore()))?;
        Ok(Self { terminal })
    }

    /// Stops this process, as Ctrl-Z does to others, and returns when it is continued.
    fn suspend(&mut self, whom: Whom) -> io::Result<()> {
        self.leave();
        signals::stop(whom);
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen)?;
        // A new one draws every cell. To clear the old one, it would ask the terminal for the cursor, beside the thread of the keys.
        self.terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        Ok(())
    }

    fn leave(&mut self) {
        // The terminal may be gone (a hangup).
        let _ = self.terminal.show_cursor();
        let _ = ratatui::try_restore();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A panic has restored it already. Doing it again would move the cursor into the message.
        if !thread::panicking() {
            self.leave();
        }
    }
}

/// Reads keys in a thread, as reading a terminal blocks. The end of the process ends the thread.
fn keys() -> io::Result<UnboundedReceiver<Event>> {
    let (sender, receiver) = unbounded_channel();
    thread::Builder::new().spawn(move || {
        while let Ok(event) = event::read() {
            if sender.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

type Reading<'a> = Pin<Box<dyn Future<Output = Result<Picture, Failure>> + 'a>>;

fn reading(options: &Options, pause: Duration) -> Reading<'_> {
    Box::pin(async move {
        sleep(pause).await;
        Picture::read(&options.place).await
    })
}

async fn next(reading: &mut Option<Reading<'_>>) -> Result<Picture, Failure> {
    match reading {
        Some(reading) => reading.await,
        None => pending().await,
    }
}

/// Shows the figures until a key or a signal ends it.
pub async fn run(options: &Options) -> Result<End, Failure> {
    let failed = |error: io::Error| Failure::new(Exit::NotRunnable, format!("cannot use the terminal: {error}"));
    let mut signals = Signals::register().map_err(failed)?;
    signals::unblock_terminal_output();
    let mut screen = Screen::enter().map_err(failed)?;
    let mut keys = keys().map_err(failed)?;
    let mut view = View {
        prefix: Printable(&options.place.prefix.to_string_lossy()).to_string(),
        interval: options.interval,
        limit: options.limit,
        colours: colours(),
        order: Order::Waiters,
        is_paused: false,
        first: 0,
        page: 0,
    };
    // A reading that was not polled for a while would take its nodes for silent: it begins anew.
    let anew = |is_paused: bool| (!is_paused).then(|| reading(options, Duration::ZERO));
    let (mut picture, mut next_picture): (Option<Picture>, _) = (None, anew(false));
    loop {
        let (shown, now) = (picture.as_ref(), Instant::now());
        screen.terminal.draw(|frame| draw(frame, &mut view, shown, now)).map_err(failed)?;
        tokio::select! {
            biased; // A key is answered before the figures are.
            event = keys.recv() => match event {
                Some(Event::Key(key)) if !key.is_release() => match view.press(key) {
                    Action::Draw => {}
                    Action::Sort => if let Some(picture) = &mut picture { picture.sort(view.order) },
                    Action::Pause => next_picture = anew(view.is_paused),
                    Action::Suspend => {
                        screen.suspend(Whom::Job).map_err(failed)?;
                        next_picture = anew(view.is_paused);
                    }
                    Action::End => return Ok(Exit::Success.code().into()),
                },
                Some(_) => {}
                None => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            },
            signal = signals.next_or_child() => match signal {
                Some(signal) if signals::is_fatal(signal) => return Ok(End::by(signal)),
                Some(Signal::TSTP) => {
                    screen.suspend(Whom::Self_).map_err(failed)?;
                    next_picture = anew(view.is_paused);
                }
                _ => {}
            },
            read = next(&mut next_picture) => {
                let mut read = read?;
                read.sort(view.order);
                picture = Some(read);
                next_picture = Some(reading(options, options.interval));
            }
            () = sleep(REDRAW) => {}
        }
    }
}
