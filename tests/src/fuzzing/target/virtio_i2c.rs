//! What a guest's driver sends to the TPM behind virtio-i2c.

use vhost_user_tpm::{Device, Execution, Request, Tpm, VirtioI2c};

use super::Target;

/// Requests, one after the other: how much room the answer has, how long the request is, both in one
/// byte, and the request. A command whose last byte is odd goes on until there is room for an odd number
/// of bytes. Whatever they were, a driver that begins anew has its command carried out.
pub(super) const VIRTIO_I2C: Target = Target {
    name: "virtio-i2c",
    run,
    seeds: || {
        let begin = begin(&[]);
        let end = end();
        let probe = [
            to(&[0x30]),
            from(4),
            to(&[0x48]),
            from(4),
            to(&[0x18]),
            from(4),
        ];
        let again = [
            to(&[0x18, 0x02]),
            to(&[0x24]),
            from(14),
            to(&[0x44]),
            from(2),
        ];
        Ok(vec![
            pack(&[&begin[..], &end].concat()),
            pack(&[&probe[..], &begin, &end, &again].concat()),
        ])
    },
};

/// `TPM2_GetRandom`, and an answer.
const COMMAND: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 2];
const RESPONSE: [u8; 14] = [0x80, 1, 0, 0, 0, 14, 0, 0, 0, 0, 0, 2, 7, 8];
/// No command is longer.
const LONGEST: usize = 4096;

#[derive(Default)]
struct Last {
    command: Vec<u8>,
    count: u32,
    goes_on: bool,
}

impl Tpm for Last {
    fn execute(&mut self, command: &[u8], response: &mut Vec<u8>) -> Execution {
        assert!(
            command.len() <= LONGEST,
            "a command of {} bytes",
            command.len()
        );
        self.command = command.to_vec();
        self.count += 1;
        self.goes_on = command.last().is_some_and(|last| last % 2 == 1);
        if self.goes_on {
            return Execution::GoesOn;
        }
        response.extend(RESPONSE);
        Execution::Done
    }

    fn give_up(&mut self) {
        assert!(self.goes_on, "nothing goes on");
        self.goes_on = false;
    }
}

fn run(bytes: &[u8]) {
    let (mut bus, mut tpm) = (VirtioI2c::default(), Last::default());
    let mut rest = bytes;
    while let [room, length, following @ ..] = rest {
        let length = usize::from(*length).min(following.len());
        let (request, more) = following.split_at(length);
        if room % 2 == 1 {
            let waited = bus.complete(&RESPONSE);
            assert_eq!(waited, std::mem::take(&mut tpm.goes_on));
        }
        serve(&mut bus, &mut tpm, request, (*room).into());
        rest = more;
    }
    let before = tpm.count;
    // The first may belong to a group that failed.
    serve(&mut bus, &mut tpm, &to(&[]).1, 1);
    for (room, request) in begin(&[0x20]) {
        let answer = serve(&mut bus, &mut tpm, &request, room);
        assert_eq!(answer, [0], "{request:02x?}");
    }
    let mut last = Vec::new();
    for (room, request) in end() {
        last = serve(&mut bus, &mut tpm, &request, room);
    }
    assert_eq!(tpm.command, COMMAND);
    assert_eq!(tpm.count, before + 1);
    assert_eq!(last, [&RESPONSE[..], &[0]].concat());
}

fn serve(bus: &mut VirtioI2c, tpm: &mut Last, bytes: &[u8], room: usize) -> Vec<u8> {
    let mut answer = Vec::new();
    let length = bytes.len();
    let request = Request {
        bytes,
        length,
        room,
    };
    bus.serve(request, tpm, &mut answer);
    assert!(answer.is_empty() || answer.len() == room);
    answer
}

/// A request, and the room for its answer.
type Sent = (usize, Vec<u8>);

/// The locality is asked for, after what is written to it before, and the command written.
fn begin(before: &[u8]) -> Vec<Sent> {
    let before = before.iter().map(|value| to(&[0x04, *value]));
    let (first, last) = COMMAND.split_at(COMMAND.len() - 1);
    let command = [
        to(&[0, 0]),
        to(&[0x40, 1]),
        to(&[0x04, 0x02]),
        to(&[0x18, 0x40]),
        to(&[&[0x24], first].concat()),
        to(&[&[0x24], last].concat()),
        to(&[0x18, 0x20]),
    ];
    before.chain(command).collect()
}

/// The response is read.
fn end() -> [Sent; 2] {
    [to(&[0x24]), from(RESPONSE.len())]
}

fn to(bytes: &[u8]) -> Sent {
    (1, [&[0x5c, 0, 0, 0, 0, 0, 0, 0], bytes].concat())
}

fn from(length: usize) -> Sent {
    (length + 1, vec![0x5c, 0, 0, 0, 2, 0, 0, 0])
}

fn pack(requests: &[Sent]) -> Vec<u8> {
    let byte = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    let one =
        |(room, request): &Sent| [&[byte(*room), byte(request.len())], request.as_slice()].concat();
    requests.iter().flat_map(one).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;

    #[test]
    fn the_seeds_have_their_commands_carried_out() -> Result<()> {
        for seed in (VIRTIO_I2C.seeds)()? {
            run(&seed);
        }
        Ok(())
    }
}
