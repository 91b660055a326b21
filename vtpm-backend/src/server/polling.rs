//! Looking for the guest's next command for a moment before the process sleeps.
//!
//! On an idle machine most of a command's time is two wake-ups, of the backend and of the VMM
//! behind it. A guest that sends one command after the other (firmware that measures, a driver that
//! polls) is spared the first of them, as long as that works: what looks in vain looks less and less
//! often. Where somebody else wants the processor, it looks for no longer than it takes to sleep and
//! to be woken: a command that comes within that time costs the processor less than one that is
//! slept for.

use std::time::{Duration, Instant};

/// When to look, for how long, and when to sleep at once.
#[derive(Debug)]
pub(super) struct Polling {
    /// A command was answered, and nothing was waited for since.
    answered: bool,
    /// How many commands are still answered without looking for the next one.
    pause: u32,
    /// How many that will be after the next time that was in vain.
    next_pause: u32,
    /// The machine is busy: until when nothing is looked for longer than [`BRIEF_WINDOW`].
    brief_until: Option<Instant>,
    /// For how long that will be the next time.
    next_brief: Duration,
    /// Commands that were found since that was last shortened.
    found: u32,
    /// When all peers were last looked at.
    looked_around: Instant,
}

/// Longer than a VMM on an idle machine needs for its wake-up and the next command (40 to 100 µs).
const WINDOW: Duration = Duration::from_micros(150);
/// On a busy machine, whose processors do not have to be woken themselves: about as long as the
/// system calls, the two switches to other programs and the signal between two processors by which
/// a backend sleeps and is woken (10 to 25 µs), and longer than a VMM needs there.
const BRIEF_WINDOW: Duration = Duration::from_micros(30);
/// What takes that long between two looks is not this process: somebody else had the processor, for
/// as long as the kernel lets a program run at least.
const INTERRUPTED: Duration = Duration::from_micros(500);
/// For how long the machine is taken for busy then: twice as long each time, up to a limit, and
/// half as long after so many commands that were found.
const FIRST_BRIEF: Duration = Duration::from_millis(10);
const LONGEST_BRIEF: Duration = Duration::from_secs(1);
const FORGIVEN_AFTER: u32 = 1000;
/// So many commands pass after a window in vain, twice as many after the next, up to a limit, and
/// half as many after each that was waited for and came: a guest with a command now and then costs
/// one window for so many.
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
            brief_until: None,
            next_brief: FIRST_BRIEF,
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
        // What is there already was not waited for, and does not tell whether that is worth it.
        if arrived() {
            self.note_found();
            return true;
        }
        let begin = clock();
        let window = self.window(begin);
        let mut last = begin;
        loop {
            std::hint::spin_loop();
            if arrived() {
                self.next_pause = (self.next_pause / 2).max(FIRST_PAUSE);
                self.note_found();
                return true;
            }
            let now = clock();
            if now - last > INTERRUPTED {
                self.note_interrupted(now);
                return arrived();
            }
            if now - begin > window {
                self.pause = self.next_pause;
                self.next_pause = (self.next_pause * 2).min(LONGEST_PAUSE);
                return false;
            }
            last = now;
        }
    }

    fn window(&mut self, now: Instant) -> Duration {
        match self.brief_until {
            Some(until) if now < until => BRIEF_WINDOW,
            _ => {
                self.brief_until = None;
                WINDOW
            }
        }
    }

    fn note_interrupted(&mut self, now: Instant) {
        self.brief_until = Some(now + self.next_brief);
        self.next_brief = (2 * self.next_brief).min(LONGEST_BRIEF);
    }

    fn note_found(&mut self) {
        self.found += 1;
        if self.found == FORGIVEN_AFTER {
            self.found = 0;
            self.next_brief = (self.next_brief / 2).max(FIRST_BRIEF);
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

    /// A command that is there when it is looked for a second time.
    fn soon() -> impl FnMut() -> bool {
        let mut looks = 0;
        move || {
            looks += 1;
            looks > 1
        }
    }

    #[test]
    fn one_command_in_time_does_not_outweigh_many_that_were_looked_for_in_vain() {
        let (mut clock, mut polling) = (Clock::new(), Polling::new());
        clock.looked_for_in_vain(&mut polling, 1000);
        polling.pause = 0;
        let before = polling.next_pause;
        assert!(clock.wait(&mut polling, || true), "it was there already");
        assert_eq!(polling.next_pause, before);
        assert!(clock.wait(&mut polling, soon()));
        assert_eq!(polling.next_pause, before / 2);
        for _ in 0..10 {
            assert!(clock.wait(&mut polling, soon()));
        }
        assert_eq!(
            polling.next_pause, FIRST_PAUSE,
            "a guest that goes on is trusted"
        );
    }

    #[test]
    fn where_others_want_the_processor_a_command_is_looked_for_only_briefly() {
        let (mut clock, mut polling) = (Clock::new(), Polling::new());
        let longest = |clock: &mut Clock, polling: &mut Polling| {
            polling.pause = 0;
            let begin = clock.now;
            assert!(!clock.wait(polling, || false));
            clock.now - begin
        };
        for busy in [FIRST_BRIEF, 2 * FIRST_BRIEF, 4 * FIRST_BRIEF] {
            clock.step = 2 * INTERRUPTED;
            polling.pause = 0;
            assert!(!clock.wait(&mut polling, || false), "in vain");
            clock.step = UNDISTURBED;
            clock.now += busy / 2;
            assert!(
                longest(&mut clock, &mut polling) < 2 * BRIEF_WINDOW,
                "for {busy:?}"
            );
            clock.now += busy / 2;
            assert!(longest(&mut clock, &mut polling) > WINDOW, "then again");
        }
        polling.pause = 0;
        for _ in 0..3 * FORGIVEN_AFTER {
            assert!(clock.wait(&mut polling, soon()));
        }
        assert_eq!(polling.next_brief, FIRST_BRIEF, "all is forgiven");
    }
}
