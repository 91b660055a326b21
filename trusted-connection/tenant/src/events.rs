//! One stream of a host's events, and the place in it.

use std::collections::VecDeque;
use std::time::Duration;

use api_types::wire::{Event, EventLine};
use http_body_util::BodyExt;
use tokio::time::timeout;
use uuid::Uuid;

use crate::error::HostError;
use crate::host::{Answer, Host, parse};
use crate::lines::Lines;

/// Where to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Which start of the host's manager the number is of, once it has told.
    manager: Option<Uuid>,
    /// Number of the last event that was told. None: only what happens from now on.
    last: Option<u64>,
}

/// What a stream tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is followed.
    Following,
    /// The manager was started again: between the event with this number and its end more may have
    /// happened.
    Restarted {
        /// The last event of the manager before.
        after: u64,
    },
    /// The host does not keep these events any more, or left them out.
    Missed {
        /// Number of the first.
        from: u64,
        /// Number of the last.
        to: u64,
    },
    /// Something happened.
    Event(Box<Event>),
}

/// A stream that is followed.
pub struct EventStream {
    answer: Answer,
    lines: Lines,
    told: VecDeque<Told>,
    position: Position,
}

const EVENTS: &str = "/v1/events";
const LINE: &str = "a line of events";
/// Three times the pause between two signs of life.
const SILENCE: Duration = Duration::from_secs(45);

impl Position {
    /// Before everything that is kept.
    pub fn of_all() -> Self {
        Self {
            manager: None,
            last: Some(0),
        }
    }

    fn path(&self) -> String {
        match (self.last, self.manager) {
            (None, _) => EVENTS.to_owned(),
            (Some(last), None) => format!("{EVENTS}?after={last}"),
            (Some(last), Some(manager)) => format!("{EVENTS}?after={last}&manager={manager}"),
        }
    }

    /// Takes note of a line, and says what it tells. Numbers rise by one: what a host leaves out without
    /// a word is missed too, and what comes twice is no stream of events.
    fn note(&mut self, line: EventLine, told: &mut VecDeque<Told>) -> Result<(), HostError> {
        match line {
            EventLine::Hello { manager, next, .. } => {
                let is_other = (self.manager.replace(manager)).is_some_and(|one| one != manager);
                told.push_back(match (self.last, is_other) {
                    (Some(after), true) => Told::Restarted { after },
                    _ => Told::Following,
                });
                match (self.last, is_other) {
                    (Some(_), false) => {}
                    (_, true) => self.last = Some(0),
                    (None, false) => self.last = Some(next.saturating_sub(1)),
                }
            }
            EventLine::Missed { from, to } => {
                self.rise(to)?;
                told.push_back(Told::Missed { from, to });
            }
            EventLine::Event(event) => {
                let due = self.last.unwrap_or_default().saturating_add(1);
                self.rise(event.number)?;
                if due < event.number {
                    told.push_back(Told::Missed {
                        from: due,
                        to: event.number.saturating_sub(1),
                    });
                }
                told.push_back(Told::Event(Box::new(event)));
            }
        }
        Ok(())
    }

    fn rise(&mut self, number: u64) -> Result<(), HostError> {
        if self.manager.is_none() || self.last.is_some_and(|last| number <= last) {
            return Err(HostError::Answer {
                expected: LINE,
                reason: format!("the number {number} is not due"),
            });
        }
        self.last = Some(number);
        Ok(())
    }
}

impl Host {
    /// Follows the events of the tenant's VMs on this host.
    pub async fn follow(&self, position: Position) -> Result<EventStream, HostError> {
        Ok(EventStream {
            answer: self.stream(&position.path()).await?,
            lines: Lines::default(),
            told: VecDeque::new(),
            position,
        })
    }
}

impl EventStream {
    /// What is told next; none when the stream has ended.
    pub async fn next(&mut self) -> Result<Option<Told>, HostError> {
        loop {
            if let Some(told) = self.told.pop_front() {
                return Ok(Some(told));
            }
            if let Some(line) = self.lines.next() {
                if line.iter().any(|byte| !byte.is_ascii_whitespace()) {
                    let line: EventLine = parse(LINE, &line)?;
                    self.position.note(line, &mut self.told)?;
                }
                continue;
            }
            let frame = match timeout(SILENCE, self.answer.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(frame)) => frame.map_err(HostError::of_http)?,
                Err(_) => return Err(HostError::Silent(SILENCE)),
            };
            if let Ok(data) = frame.into_data() {
                self.lines.add(&data)?;
            }
        }
    }

    /// Where to go on after this stream.
    pub fn position(&self) -> Position {
        self.position
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn hello(manager: u128, next: u64) -> EventLine {
        EventLine::Hello {
            manager: Uuid::from_u128(manager),
            oldest: 1,
            next,
        }
    }

    fn event(number: u64) -> EventLine {
        let line =
            format!("{{\"number\":{number},\"at\":\"2026-11-28T19:15:00Z\",\"kind\":\"started\"}}");
        serde_json::from_str(&line).unwrap()
    }

    fn numbers(told: &VecDeque<Told>) -> Vec<String> {
        let told = told.iter().map(|told| match told {
            Told::Following => "following".to_owned(),
            Told::Restarted { after } => format!("restarted after {after}"),
            Told::Missed { from, to } => format!("missed {from}-{to}"),
            Told::Event(event) => event.number.to_string(),
        });
        told.collect()
    }

    #[test]
    fn nothing_is_left_out_without_a_word_and_nothing_is_told_twice() {
        let (mut position, mut told) = (Position::default(), VecDeque::new());
        for line in [hello(1, 5), event(5), event(8)] {
            position.note(line, &mut told).unwrap();
        }
        assert!(position.note(event(8), &mut told).is_err());
        assert!(position.path().contains("after=8&manager="));
        position.note(hello(1, 9), &mut told).unwrap();
        position.note(event(9), &mut told).unwrap();
        for line in [hello(2, 3), event(1), event(2)] {
            position.note(line, &mut told).unwrap();
        }
        assert_eq!(
            numbers(&told),
            [
                "following",
                "5",
                "missed 6-7",
                "8",
                "following",
                "9",
                "restarted after 9",
                "1",
                "2"
            ]
        );
    }

    #[test]
    fn events_before_the_first_line_are_refused() {
        let mut told = VecDeque::new();
        assert!(Position::of_all().note(event(1), &mut told).is_err());
    }
}
