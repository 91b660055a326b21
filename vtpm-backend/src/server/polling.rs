//! Looking for the guest's next command for a moment before the process sleeps.
//!
//! On an idle machine most of a command's time is two wake-ups, of the backend and of the VMM
//! behind it. A guest that sends one command after the other (firmware that measures, a driver that
//! polls) is spared the first of them, as long as that works: what looks in vain looks less and less
//! often, and where somebody else wants the processor it is not taken from them.

use std::time::{Duration, Instant};

/// When to look, and when to sleep at once.
#[derive(Debug)]
pub(super) struct Polling {
    /// A command was answered, and nothing was waited for since.
    answered: bool,
    /// How many commands are still answered without looking for the next one.
    pause: u32,
    /// How many that will be after the next time that was in vain.
    next_pause: u32,
    /// The machine is busy: until when nothing is looked for.
    off_until: Option<Instant>,
    /// For how long that will be the next time.
    next_off: Duration,
    /// Commands that were found since that was last shortened.
    found: u32,
    /// When all peers were last looked at.
    looked_around: Instant,
}

/// Longer than a VMM on an idle machine needs for its wake-up and the next command (40 to 100 µs).
const WINDOW: Duration = Duration::from_micros(150);
/// What takes that long between two looks is not this process: somebody else had the processor, for
/// as long as the kernel lets a program run at least.
const INTERRUPTED: Duration = Duration::from_micros(500);
/// For how long the processor is left to others then: twice as long each time, up to a limit, and
/// half as long after so many commands that were found.
const FIRST_OFF: Duration = Duration::from_millis(10);
const LONGEST_OFF: Duration = Duration::from_secs(1);
const FORGIVEN_AFTER: u32 = 1000;
/// So many commands pass after a window in vain, twice as many after the next, up to a limit: a
/// guest with a command now and then costs one window for so many.
const FIRST_PAUSE: u32 = 4;
const LONGEST_PAUSE: u32 = 1024;
/// Other peers wait no longer than this for a guest that sends one command after the other.
const LOOK_AROUND: Duration = Duration::from_millis(1);

impl Polling {
    /// Of a guest of whom nothing is known.
    pub(super) fn new() -> Self {
        Self {
            answered: false,
            pause: 0,
            next_pause: FIRST_PAUSE,
            off_until: None,
            next_off: FIRST_OFF,
            found: 0,
            looked_around: Instant::now(),
        }
    }

    /// Notes that a command of the guest was answered: the next one may follow at once.
    pub(super) fn note_answered(&mut self) {
        self.answered = true;
    }

    /// Whether that was noted since this was last asked.
    pub(super) fn take_answered(&mut self) -> bool {
        std::mem::take(&mut self.answered)
    }

    /// Calls `arrived` again and again until it says that something is there, or the window is
    /// over, or this is not the time to look at all.
    pub(super) fn wait_for(&mut self, arrived: impl FnMut() -> bool) -> bool {
        self.wait_by(Instant::now, arrived)
    }

    fn wait_by(
        &mut self,
        mut clock: impl FnMut() -> Instant,
        mut arrived: impl FnMut() -> bool,
    ) -> bool {
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        let begin = clock();
        if self.off_until.is_some_and(|until| begin < until) {
            return false;
        }
        self.off_until = None;
        let mut last = begin;
        loop {
            if arrived() {
                self.note_found();
                return true;
            }
            let now = clock();
            if now - last > INTERRUPTED {
                self.off_until = Some(now + self.next_off);
                self.next_off = (2 * self.next_off).min(LONGEST_OFF);
                return false;
            }
            if now - begin > WINDOW {
                self.pause = self.next_pause;
                self.next_pause = (self.next_pause * 2).min(LONGEST_PAUSE);
                return false;
            }
            last = now;
            std::hint::spin_loop();
        }
    }

    fn note_found(&mut self) {
        self.next_pause = FIRST_PAUSE;
        self.found += 1;
        if self.found == FORGIVEN_AFTER {
            self.found = 0;
            self.next_off = (self.next_off / 2).max(FIRST_OFF);
        }
    }

    /// Whether other peers have to be looked at before the next command.
    pub(super) fn must_look_around(&self) -> bool {
        self.looked_around.elapsed() > LOOK_AROUND
    }

    /// Notes that they were.
    pub(super) fn looked_around(&mut self) {
        self.looked_around = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock by which so much time passes between two looks.
    struct Clock {
        now: Instant,
        step: Duration,
    }

    const UNDISTURBED: Duration = Duration::from_micros(1);

    impl Clock {
        fn new() -> Self {
            Self {
                now: Instant::now(),
                step: UNDISTURBED,
            }
        }

        fn wait(&mut self, polling: &mut Polling, arrived: impl FnMut() -> bool) -> bool {
            let tick = || {
                self.now += self.step;
                self.now
            };
            polling.wait_by(tick, arrived)
        }

        /// How many of so many commands are looked for if none ever comes in time.
        fn looked_for_in_vain(&mut self, polling: &mut Polling, commands: u32) -> u32 {
            let mut looked_for = 0;
            for _ in 0..commands {
                let mut looked = false;
                self.wait(polling, || {
                    looked = true;
                    false
                });
                looked_for += u32::from(looked);
            }
            looked_for
        }
    }

    #[test]
    fn what_is_looked_for_in_vain_is_looked_for_less_and_less_often() {
        let (mut clock, mut polling) = (Clock::new(), Polling::new());
        assert_eq!(clock.looked_for_in_vain(&mut polling, 1000), 8);
        assert_eq!(clock.looked_for_in_vain(&mut polling, 10_000), 10);
    }

    #[test]
    fn a_guest_that_sends_one_command_after_the_other_is_looked_for_each_time() {
        let (mut clock, mut polling) = (Clock::new(), Polling::new());
        clock.looked_for_in_vain(&mut polling, 1);
        let found = (0..100).filter(|_| clock.wait(&mut polling, || true));
        assert_eq!(found.count(), 96, "after {FIRST_PAUSE} without");
    }

    #[test]
    fn the_processor_is_left_to_others_who_want_it_the_longer_the_more_often() {
        let (mut clock, mut polling) = (Clock::new(), Polling::new());
        for off in [FIRST_OFF, 2 * FIRST_OFF, 4 * FIRST_OFF] {
            clock.step = 2 * INTERRUPTED;
            assert!(!clock.wait(&mut polling, || false));
            clock.step = UNDISTURBED;
            clock.now += off / 2;
            assert!(!clock.wait(&mut polling, || true), "not for {off:?}");
            clock.now += off / 2;
            assert!(clock.wait(&mut polling, || true), "then again");
        }
        for _ in 0..3 * FORGIVEN_AFTER {
            assert!(clock.wait(&mut polling, || true));
        }
        assert_eq!(polling.next_off, FIRST_OFF, "all is forgiven");
    }
}
