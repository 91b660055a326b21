//! The part "commands": how long a guest waits for one command, and what it costs, on a machine
//! that does nothing else and on a busy one.
//!
//! The VMM is pinned to one processor and the TPM to another. An echo server, which answers with
//! what it got, shows what the sockets and the two wake-ups take by themselves.

pub(super) mod cancel;
pub(super) mod echo;
mod kinds;
mod processors;
mod subject;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::host::BenchHost;
use super::load::number;
use super::peer::Peer;
use super::report::Report;
use super::samples::Samples;

use kinds::Kind;
use processors::{Hogs, pin_this_thread};
use subject::Subject;

/// Turns change after so many commands.
const TURN: u32 = 100;
/// Commands before those that count, so that caches and processors are as they will be.
const WARM: u32 = 20;
/// From one command to the next of a guest that uses its TPM now and then.
const PACE: Duration = Duration::from_millis(10);
/// One in so many commands is measured at that pace, too: each takes a hundred times as long.
const PACED_SHARE: u32 = 4;

/// The machine's state while commands are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machine {
    /// Both processors are idle when nobody waits for them.
    Idle,
    /// Another program wants each of them all the time.
    Busy,
}

/// What was measured of one subject.
#[derive(Debug, Default)]
struct Measured {
    took_us: Samples,
    /// The time that these took of the TPM's processor.
    used: Duration,
}

impl Measured {
    /// Microseconds of the processor for each command.
    fn used_us(&self) -> Result<f64> {
        Ok(self.used.as_secs_f64() * 1e6 / number(self.took_us.count())?)
    }
}

/// Times the commands in turns: ours, the peer, the echo server.
pub(super) fn measure(
    report: &mut Report,
    host: &BenchHost,
    peer: &Peer<'_>,
    count: u32,
) -> Result<()> {
    let mut subjects = Subjects {
        ours: Subject::ours(host.api())?,
        peer: Subject::peer(peer)?,
        echo: Subject::echo()?,
    };
    for machine in [Machine::Idle, Machine::Busy] {
        let _hogs = (machine == Machine::Busy).then(Hogs::start).transpose()?;
        for kind in Kind::ALL {
            let [ours, peer, echo] = subjects.back_to_back(kind, count)?;
            let name = machine.name();
            let of = kind.suffix();
            let n = ours.took_us.count();
            for per_cent in [50, 99] {
                report.beside(
                    format!("command_{name}_p{per_cent}_us{of}"),
                    ours.took_us.percentile(per_cent)?,
                    peer.took_us.percentile(per_cent)?,
                    "µs",
                    n,
                );
            }
            report.beside(
                format!("command_{name}_cpu_us{of}"),
                ours.used_us()?,
                peer.used_us()?,
                "µs",
                n,
            );
            if kind == Kind::GetRandom {
                report.alone(
                    format!("echo_{name}_p50_us"),
                    echo.took_us.median()?,
                    "µs",
                    n,
                );
            }
        }
    }
    let [ours, peer, _] = subjects.paced(Kind::GetRandom, count.div_ceil(PACED_SHARE))?;
    let n = ours.took_us.count();
    report.beside(
        "command_paced_p50_us",
        ours.took_us.median()?,
        peer.took_us.median()?,
        "µs",
        n,
    );
    let share = |of: &Measured| anyhow::Ok(of.used_us()? / PACE.as_secs_f64() / 1e4);
    report.beside(
        "command_paced_cpu_percent",
        share(&ours)?,
        share(&peer)?,
        "%",
        n,
    );
    subjects.ours.remove(host.api())
}

/// Times commands by a queue in the guest's memory (virtio-tpm), on an idle machine.
pub(super) fn measure_queue(report: &mut Report, host: &BenchHost, count: u32) -> Result<()> {
    let mut subject = Subject::queue(host.api())?;
    let mut measured = Measured::default();
    let pinned = pin_this_thread()?;
    let pace = Duration::ZERO;
    one_turn(&mut subject, Kind::GetRandom, count, pace, &mut measured)?;
    drop(pinned);
    let n = measured.took_us.count();
    for per_cent in [50, 99] {
        let name = format!("virtio_tpm_p{per_cent}_us");
        report.alone(name, measured.took_us.percentile(per_cent)?, "µs", n);
    }
    report.alone("virtio_tpm_cpu_us", measured.used_us()?, "µs", n);
    subject.remove(host.api())
}

/// Those that have their turns.
struct Subjects {
    ours: Subject,
    peer: Subject,
    echo: Subject,
}

impl Subjects {
    fn back_to_back(&mut self, kind: Kind, count: u32) -> Result<[Measured; 3]> {
        self.in_turns(kind, count, Duration::ZERO)
    }

    fn paced(&mut self, kind: Kind, count: u32) -> Result<[Measured; 3]> {
        self.in_turns(kind, count, PACE)
    }

    fn in_turns(&mut self, kind: Kind, count: u32, pace: Duration) -> Result<[Measured; 3]> {
        let _pinned = pin_this_thread()?;
        let mut measured: [Measured; 3] = Default::default();
        let mut left = count;
        while left > 0 {
            let turn = left.min(TURN);
            left -= turn;
            let subjects = [&mut self.ours, &mut self.peer, &mut self.echo];
            for (subject, measured) in subjects.into_iter().zip(&mut measured) {
                one_turn(subject, kind, turn, pace, measured)?;
            }
        }
        Ok(measured)
    }
}

fn one_turn(
    subject: &mut Subject,
    kind: Kind,
    turn: u32,
    pace: Duration,
    measured: &mut Measured,
) -> Result<()> {
    let command = subject.command(kind);
    for _ in 0..WARM {
        subject.execute(&command)?;
        thread::sleep(pace);
    }
    let used = subject.processor_time()?;
    for _ in 0..turn {
        thread::sleep(pace);
        let begin = Instant::now();
        subject.execute(&command)?;
        measured.took_us.add_us(begin.elapsed());
    }
    measured.used += subject.processor_time()?.saturating_sub(used);
    Ok(())
}

impl Machine {
    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
        }
    }
}
