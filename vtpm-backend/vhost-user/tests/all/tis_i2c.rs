//! The registers of the TPM on the bus.

use vhost_user_tpm::Device;

use crate::i2c_driver::{
    ACCESS, ALWAYS, AVAILABLE, CHECKSUM, CHECKSUM_ENABLE, COMMAND_READY, Driver, EXPECT, FIFO,
    GET_RANDOM, GO, RETRY, STATUS, checksum,
};

#[test]
fn a_command_and_its_response_go_as_linux_drives_them() {
    let mut driver = Driver::ready();
    for _ in 0..3 {
        driver.send(&GET_RANDOM);
        driver.write(&[STATUS, GO]);
        assert_eq!(driver.receive(), driver.tpm.response);
        driver.write(&[STATUS, COMMAND_READY]);
    }
    assert_eq!(driver.tpm.commands, [GET_RANDOM; 3]);
}

#[test]
fn a_driver_finds_a_tpm_2_0_without_interrupts_and_without_guard_times() {
    let mut driver = Driver::default();
    // Before it has the locality, and all bits that Linux wants to be zero are.
    assert_eq!(driver.word(0x30), 0x0060_0082);
    assert_eq!(driver.word(0x48), 0x0001_1014);
    assert_eq!(driver.read(0x4c, 1), [1]);
    assert_eq!(driver.word(0x08), 0);
    assert_eq!(driver.word(0x14), 0);
    assert_eq!(driver.read(0x38, 2), [0x2e, 0]);
    assert_eq!(driver.read(ACCESS, 1), [0x81]);
    assert_eq!(driver.read(0x00, 1), [0]);
    assert_eq!(driver.read(CHECKSUM_ENABLE, 1), [0]);
}

#[test]
fn status_and_fifo_are_to_be_had_by_whoever_has_the_locality() {
    let mut driver = Driver::default();
    assert_eq!(driver.word(STATUS), u32::MAX);
    assert_eq!(driver.read(FIFO, 2), [0xff; 2]);
    driver.write(&[STATUS, COMMAND_READY]);
    driver.write(&[ACCESS, 0x02]);
    assert_eq!(driver.read(ACCESS, 1), [0xa1]);
    assert_eq!(driver.status(), ALWAYS, "the write before had no effect");
    driver.send_ready();
    driver.write(&[ACCESS, 0x20]);
    assert_eq!(driver.read(ACCESS, 1), [0x81]);
    assert_eq!(driver.status(), 0xff);
}

#[test]
fn giving_the_locality_up_forgets_command_and_response() {
    let mut driver = Driver::ready();
    driver.send(&GET_RANDOM);
    driver.write(&[STATUS, GO]);
    driver.write(&[ACCESS, 0x20]);
    driver.write(&[ACCESS, 0x02]);
    assert_eq!(driver.status(), ALWAYS);
    assert_eq!(driver.read(FIFO, 4), [0xff; 4]);
    driver.write(&[STATUS, GO]);
    driver.write(&[STATUS, RETRY]);
    assert_eq!(driver.status(), ALWAYS);
    assert_eq!(driver.tpm.commands.len(), 1);
}

#[test]
fn there_is_no_other_locality() {
    let mut driver = Driver::ready();
    for locality in 1..=u8::MAX {
        assert!(!driver.try_write(&[0x00, locality]));
    }
    assert_eq!(driver.read(0x00, 1), [0]);
    // Seizing it, and two wishes at once, mean nothing.
    driver.write(&[ACCESS, 0x08]);
    driver.write(&[ACCESS, 0x22]);
    assert_eq!(driver.read(ACCESS, 1), [0xa1]);
}

#[test]
fn selecting_the_fifo_again_does_not_move_it() {
    let mut driver = Driver::ready();
    driver.send(&GET_RANDOM);
    driver.write(&[STATUS, GO]);
    let first = driver.read(FIFO, 20);
    driver.write(&[FIFO]);
    driver.write(&[FIFO]);
    let second = driver.read(FIFO, 56);
    assert_eq!([first, second].concat(), driver.tpm.response);
}

#[test]
fn a_response_is_read_again_after_response_retry() {
    let mut driver = Driver::ready();
    driver.send(&GET_RANDOM);
    driver.write(&[STATUS, GO]);
    assert_eq!(driver.read(FIFO, 30), driver.tpm.response[..30]);
    assert_eq!(
        driver.read(CHECKSUM, 2),
        checksum(&driver.tpm.response[..30])
    );
    for _ in 0..50 {
        driver.write(&[STATUS, RETRY]);
        assert_eq!(driver.receive(), driver.tpm.response);
    }
    assert_eq!(driver.tpm.commands.len(), 1, "it is carried out once");
}

#[test]
fn behind_the_end_of_a_response_there_are_ones() {
    let mut driver = Driver::ready();
    driver.tpm.response = vec![0; 10];
    driver.send(&GET_RANDOM);
    driver.write(&[STATUS, GO]);
    assert_eq!(driver.burst(), 10);
    let read = driver.read(FIFO, 14);
    assert_eq!(read, [&[0; 10][..], &[0xff; 4]].concat());
    assert_eq!(driver.burst(), 0);
}

#[test]
fn half_a_command_is_not_carried_out() {
    let mut driver = Driver::ready();
    driver.write(&[STATUS, COMMAND_READY]);
    for count in 1..GET_RANDOM.len() {
        driver.write(&[STATUS, COMMAND_READY]);
        driver.write(&[&[FIFO][..], &GET_RANDOM[..count]].concat());
        driver.write(&[STATUS, GO]);
        assert_eq!(driver.status(), ALWAYS | EXPECT);
    }
    assert!(driver.tpm.commands.is_empty());
    driver.write(&[FIFO, GET_RANDOM[11]]);
    driver.write(&[STATUS, GO]);
    assert_eq!(driver.tpm.commands, [GET_RANDOM]);
}

#[test]
fn command_ready_in_the_middle_of_a_command_begins_anew() {
    let mut driver = Driver::ready();
    driver.write(&[STATUS, COMMAND_READY]);
    driver.write(&[&[FIFO][..], &GET_RANDOM[..7]].concat());
    driver.write(&[STATUS, COMMAND_READY]);
    assert_eq!(driver.status(), ALWAYS | COMMAND_READY);
    driver.send(&GET_RANDOM);
    driver.write(&[STATUS, GO]);
    assert_eq!(driver.status(), ALWAYS | AVAILABLE);
    driver.write(&[STATUS, COMMAND_READY]);
    assert_eq!(driver.status(), ALWAYS | COMMAND_READY, "no response");
    assert_eq!(driver.tpm.commands, [GET_RANDOM]);
}

#[test]
fn what_goes_beyond_a_command_is_dropped() {
    let mut driver = Driver::ready();
    driver.write(&[STATUS, COMMAND_READY]);
    driver.write(&[&[FIFO][..], &GET_RANDOM, &[1; 1000]].concat());
    assert_eq!(driver.status(), ALWAYS);
    assert_eq!(driver.read(CHECKSUM, 2), checksum(&GET_RANDOM));
    driver.write(&[&[FIFO][..], &[2; 4000]].concat());
    driver.write(&[STATUS, GO]);
    assert_eq!(driver.tpm.commands, [GET_RANDOM]);
    // A response cannot be written to.
    driver.write(&[&[FIFO][..], &[3; 9]].concat());
    assert_eq!(driver.receive(), driver.tpm.response);
}

#[test]
fn the_longest_command_is_carried_out_and_a_longer_one_is_for_the_tpm_to_refuse() {
    let mut driver = Driver::ready();
    let mut command = vec![0x11; 4096];
    command[2..6].copy_from_slice(&4096_u32.to_be_bytes());
    driver.send(&command);
    driver.write(&[STATUS, GO]);
    assert_eq!(driver.tpm.commands, [command.as_slice()]);

    for length in [0, 9, 4097, u32::MAX] {
        driver.tpm.commands.clear();
        command[2..6].copy_from_slice(&length.to_be_bytes());
        driver.write(&[STATUS, COMMAND_READY]);
        driver.write(&[&[FIFO][..], &command].concat());
        assert_eq!(
            driver.status(),
            ALWAYS,
            "{length}: nothing more is expected"
        );
        driver.write(&[STATUS, GO]);
        assert_eq!(driver.tpm.commands, [&command[..6]]);
    }
}

#[test]
fn a_status_with_several_orders_orders_nothing() {
    let mut driver = Driver::ready();
    driver.send(&GET_RANDOM);
    for value in [GO | COMMAND_READY, GO | RETRY, 0xff, 0x01, 0x80] {
        driver.write(&[STATUS, value]);
        assert_eq!(driver.status(), ALWAYS);
    }
    // commandCancel, and what is in the upper bytes of a whole word.
    driver.write(&[STATUS + 3, 1]);
    driver.write(&[STATUS, 0, 0, 0, 1]);
    assert!(driver.tpm.commands.is_empty());
    driver.write(&[STATUS, GO, 0, 0, 0]);
    assert_eq!(driver.tpm.commands.len(), 1);
}

#[test]
fn the_bytes_of_a_status_can_be_read_one_by_one() {
    let mut driver = Driver::ready();
    driver.write(&[STATUS, COMMAND_READY]);
    let whole = driver.read(STATUS, 4);
    assert_eq!(whole, [ALWAYS | COMMAND_READY, 0, 0x10, 0]);
    for (offset, byte) in (0..4).zip(&whole) {
        assert_eq!(driver.read(STATUS + offset, 1), [*byte]);
    }
    assert_eq!(driver.read(STATUS + 1, 2), whole[1..3]);
    assert_eq!(driver.read(STATUS + 2, 4), [0x10, 0, 0xff, 0xff]);
}

#[test]
fn a_register_that_there_is_not_is_not_acknowledged() {
    let mut driver = Driver::ready();
    for address in [0x01, 0x05, 0x0c, 0x1c, 0x20, 0x25, 0x41, 0x4d, 0x80, 0xff] {
        assert!(driver.try_read(address, 1).is_none(), "{address:#04x}");
        assert!(!driver.try_write(&[address, 0]), "{address:#04x}");
    }
    // More than a register has, and what cannot be changed.
    assert!(!driver.try_write(&[STATUS, GO, 0, 0, 0, 0]));
    assert!(!driver.try_write(&[ACCESS, 0x20, 0]));
    assert!(!driver.try_write(&[0x38, 0x2f]));
    assert_eq!(driver.read(ACCESS, 1), [0xa1]);
}

#[test]
fn a_driver_that_enabled_checksums_has_them_from_a_new_backend_too() {
    let mut driver = Driver::default();
    driver.write(&[ACCESS, 0x02]);
    assert_eq!(driver.read(CHECKSUM_ENABLE, 1), [0]);
    driver.send(&GET_RANDOM);
    driver.write(&[STATUS, GO]);
    assert_eq!(driver.receive(), driver.tpm.response);
}

impl Driver {
    fn send_ready(&mut self) {
        self.write(&[STATUS, COMMAND_READY]);
        assert_eq!(self.status(), ALWAYS | COMMAND_READY);
    }
}

#[test]
fn a_command_that_takes_long_keeps_neither_the_bus_nor_its_driver_waiting() {
    let mut driver = Driver::ready();
    driver.tpm.is_slow = true;
    driver.send(&GET_RANDOM);
    driver.write(&[STATUS, GO]);
    assert_eq!(driver.status(), ALWAYS, "no response, and nothing is taken");
    assert_eq!(driver.burst(), 0);
    assert_eq!(driver.read(FIFO, 4), [0xff; 4]);
    driver.write(&[FIFO, 1, 2, 3]);
    driver.write(&[STATUS, GO]);
    assert_eq!(driver.tpm.commands, [GET_RANDOM]);
    let response = driver.tpm.response.clone();
    assert!(driver.bus.complete(&response));
    assert_eq!(driver.receive(), response);
    assert!(!driver.bus.complete(&response), "there is only one");
}

#[test]
fn a_command_that_the_driver_gives_up_has_no_response() {
    for give_up in [
        [STATUS, COMMAND_READY],
        // activeLocality: gives the locality up.
        [ACCESS, 0x20],
    ] {
        let mut driver = Driver::ready();
        driver.tpm.is_slow = true;
        driver.send(&GET_RANDOM);
        driver.write(&[STATUS, GO]);
        driver.write(&give_up);
        assert_eq!(driver.tpm.given_up, 1);
        let response = driver.tpm.response.clone();
        assert!(!driver.bus.complete(&response));
        driver.write(&[ACCESS, 0x02]);
        driver.tpm.is_slow = false;
        driver.send(&GET_RANDOM);
        driver.write(&[STATUS, GO]);
        assert_eq!(driver.receive(), response, "the next one has its own");
        assert_eq!(driver.tpm.given_up, 1);
    }
}

#[test]
fn a_driver_that_resets_the_bus_gets_no_response_from_before() {
    let mut driver = Driver::ready();
    driver.tpm.is_slow = true;
    driver.send(&GET_RANDOM);
    driver.write(&[STATUS, GO]);
    driver.bus.reset();
    assert!(!driver.bus.complete(&GET_RANDOM));
}
