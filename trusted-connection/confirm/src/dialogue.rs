//! The dialogue with the person: every page was shown before a PIN is taken.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use confirmation::{Rendering, TerminalSize};
use locked_memory::NotLocked;

use crate::device_certificate::OutOfTime;
use crate::font::NotInFont;
use crate::pin::Pin;
use crate::request::Request;
use crate::screen;
use crate::terminal::{Input, Key, Terminal};
use crate::tpm::KeyError;

/// How a dialogue ended.
#[derive(Debug)]
pub(crate) enum End<T> {
    Confirmed(T),
    Declined,
    /// Nobody waits for the answer any more.
    AskerGone,
    /// The person did nothing for [`PATIENCE`].
    Late,
}

/// Why there was no dialogue, or it could not be led to an end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialogueError {
    #[error("the terminal failed")]
    Terminal(#[from] io::Error),
    #[error("the terminal cannot show it")]
    Size(#[from] confirmation::SizeRefused),
    #[error(transparent)]
    Font(#[from] NotInFont),
    #[error(transparent)]
    Certificate(#[from] OutOfTime),
    #[error("the terminal has {columns} columns, and the service's name is longer")]
    Narrow { columns: u16 },
    #[error(transparent)]
    Memory(#[from] NotLocked),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// For the whole dialogue.
const PATIENCE: Duration = Duration::from_secs(300);

/// Shows the request, and has `sign` try what the person types.
pub(crate) fn ask<T>(
    terminal: &mut impl Terminal,
    request: &Request,
    asker: Option<BorrowedFd<'_>>,
    mut sign: impl FnMut(&Rendering, &Pin) -> Result<T, KeyError>,
) -> Result<End<T>, DialogueError> {
    let until = Instant::now() + PATIENCE;
    let mut pin = Pin::new()?;
    let mut note = String::new();
    terminal.forget_input()?;
    // Once for each size that the terminal has meanwhile.
    'size: loop {
        let rendering = render(terminal, request)?;
        let last = rendering.pages().len() - 1;
        let mut page = 0;
        pin.clear();
        loop {
            terminal.show(&screen::page(request, &rendering, page, &note))?;
            let key = match terminal.key(until, asker)? {
                Input::Key(key) => key,
                Input::AskerGone => return Ok(End::AskerGone),
                Input::Late => return Ok(End::Late),
            };
            // What was shown is no longer what is seen.
            let (columns, rows) = terminal.size()?;
            let size = rendering.size();
            if (columns, rows) != (size.columns(), size.rows()) {
                continue 'size;
            }
            match key {
                Key::Decline => return Ok(End::Declined),
                Key::Next if page < last => page += 1,
                Key::Previous => {
                    page = page.saturating_sub(1);
                    pin.clear();
                }
                Key::Back => pin.pop(),
                Key::Character(typed) if page == last => pin.push(typed),
                Key::Enter if page == last && !pin.is_empty() => {
                    let signed = sign(&rendering, &pin);
                    pin.clear();
                    match signed {
                        Ok(signed) => return Ok(End::Confirmed(signed)),
                        Err(KeyError::WrongPin { left }) => {
                            note = format!("Wrong PIN, {left} left.");
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Key::Next | Key::Character(_) | Key::Enter | Key::Other => {}
            }
        }
    }
}

fn render(terminal: &impl Terminal, request: &Request) -> Result<Rendering, DialogueError> {
    let (columns, rows) = terminal.size()?;
    let size = TerminalSize::new(columns, rows)?;
    if request.service.as_str().len() >= usize::from(columns) {
        return Err(DialogueError::Narrow { columns });
    }
    Ok(Rendering::of(&request.text, size))
}
