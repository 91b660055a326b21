//! The dialogue with the person: every page was shown before a PIN is taken, and what is typed goes to the request
//! that was read and to no other one.

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
/// So long nothing is typed before keys count: who types until then has not looked up since another request.
const CALM: Duration = Duration::from_secs(1);
/// So long nothing is typed before a terminal goes back from a request that ended by itself.
const REST: Duration = Duration::from_secs(60);

/// Shows the request, and has `sign` try what the person types.
pub(crate) fn ask<T>(
    terminal: &mut impl Terminal,
    request: &Request,
    asker: Option<BorrowedFd<'_>>,
    sign: impl FnMut(&Rendering, &Pin) -> Result<T, KeyError>,
) -> Result<End<T>, DialogueError> {
    let end = lead(terminal, request, asker, sign)?;
    match end {
        End::Confirmed(_) | End::Declined => {}
        End::AskerGone => hold(terminal, "The request was taken back. Esc: go on. ")?,
        End::Late => hold(terminal, "The request waited too long. Esc: go on. ")?,
    }
    Ok(end)
}

/// The person did not end it and may be typing: what they type goes neither to the next request nor to the terminal
/// that comes back.
fn hold(terminal: &mut impl Terminal, notice: &str) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    terminal.show(notice)?;
    loop {
        match terminal.key(until.min(Instant::now() + REST), None)? {
            Input::Key(Key::Decline) | Input::AskerGone | Input::Late => return Ok(()),
            Input::Key(_) => {}
        }
    }
}

/// Shows the beginning until nothing is typed for [`CALM`]; returns how the dialogue ended meanwhile.
fn announce<T>(
    terminal: &mut impl Terminal,
    request: &Request,
    asker: Option<BorrowedFd<'_>>,
    until: Instant,
) -> Result<Option<End<T>>, DialogueError> {
    terminal.forget_input()?;
    let rendering = render(terminal, request)?;
    terminal.show(&screen::announced(request, &rendering))?;
    loop {
        match terminal.key(until.min(Instant::now() + CALM), asker)? {
            Input::Key(Key::Decline) => return Ok(Some(End::Declined)),
            Input::Key(_) => {}
            Input::AskerGone => return Ok(Some(End::AskerGone)),
            Input::Late => return Ok(None),
        }
    }
}

fn lead<T>(
    terminal: &mut impl Terminal,
    request: &Request,
    asker: Option<BorrowedFd<'_>>,
    mut sign: impl FnMut(&Rendering, &Pin) -> Result<T, KeyError>,
) -> Result<End<T>, DialogueError> {
    let until = Instant::now() + PATIENCE;
    let mut pin = Pin::new()?;
    let mut note = String::new();
    if let Some(end) = announce(terminal, request, asker, until)? {
        return Ok(end);
    }
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// What happens, one after the other, and what is shown.
    struct Scripted {
        inputs: VecDeque<Input>,
        shown: String,
    }

    impl Terminal for Scripted {
        fn size(&self) -> io::Result<(u16, u16)> {
            Ok((80, 24))
        }

        fn show(&mut self, screen: &str) -> io::Result<()> {
            self.shown = screen.to_owned();
            Ok(())
        }

        fn forget_input(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn key(&mut self, _: Instant, _: Option<BorrowedFd<'_>>) -> io::Result<Input> {
            let next = self.inputs.pop_front();
            next.ok_or(io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// A person who types a PIN and Enter among these; whoever reads it confirms.
    fn asked(before: &[Input], after: &[Input]) -> anyhow::Result<(End<()>, Scripted)> {
        let pin = b"738291".map(|typed| Input::Key(Key::Character(typed)));
        let enter = [Input::Key(Key::Enter)];
        let mut terminal = Scripted {
            inputs: [before, &pin, &enter, after].concat().into(),
            shown: String::new(),
        };
        let nonce = "07".repeat(32);
        let line = format!(r#"{{"text":"Pay 1","service":"shop.example","nonce":"{nonce}"}}"#);
        let request = Request::parse(line.as_bytes())?;
        let end = ask(&mut terminal, &request, None, |_, _| Ok(()))?;
        Ok((end, terminal))
    }

    #[test]
    fn keys_count_when_nothing_was_typed_for_a_while() -> anyhow::Result<()> {
        let (end, _) = asked(&[Input::Late], &[])?;
        assert!(matches!(end, End::Confirmed(())));
        let (end, terminal) = asked(&[], &[Input::Late, Input::Key(Key::Decline)])?;
        assert!(matches!(end, End::Declined) && terminal.shown.contains("Page 1 of 1"));
        Ok(())
    }

    #[test]
    fn what_is_typed_for_a_request_that_ended_by_itself_is_for_nothing() -> anyhow::Result<()> {
        for (how, said) in [(Input::AskerGone, "taken back"), (Input::Late, "too long")] {
            for last in [Input::Key(Key::Decline), Input::Late] {
                let (end, terminal) = asked(&[Input::Late, how], &[last])?;
                assert!(matches!(end, End::AskerGone | End::Late));
                assert!(terminal.shown.contains(said), "{}", terminal.shown);
                assert!(terminal.inputs.is_empty());
            }
        }
        Ok(())
    }
}
