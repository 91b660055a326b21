//! The bus: requests, and how they fail.

use vhost_user_tpm::{Device, VirtioI2c};

use crate::i2c_driver::{
    ACCESS, COMMAND_READY, Driver, FAIL_NEXT, FIFO, GET_RANDOM, GO, READ, STATUS, TPM,
};

#[test]
fn requests_without_bytes_are_offered_and_acknowledged() {
    assert_eq!(VirtioI2c::default().features(), 1);
    let mut driver = Driver::default();
    assert_eq!(driver.request(TPM, 0, &[], 1), [0]);
    assert_eq!(driver.request(TPM, READ, &[], 1), [0]);
}

#[test]
fn at_other_addresses_there_is_nothing() {
    let mut driver = Driver::ready();
    for address in (0..0x400).filter(|address| *address != TPM) {
        assert_eq!(driver.request(address, 0, &[ACCESS, 0x20], 1), [1]);
        assert_eq!(driver.request(address, 0, &[], 1), [1]);
        assert_eq!(driver.request(address, READ, &[], 3), [0, 0, 1]);
    }
    // The lowest bit is no part of the address.
    assert_eq!(
        driver.raw(&[0x5d, 0, 0, 0, 0, 0, 0, 0, ACCESS, 0x20], 1),
        [1]
    );
    assert_eq!(driver.read(ACCESS, 1), [0xa1]);
}

#[test]
fn a_read_before_any_register_was_selected_is_not_acknowledged() {
    let mut driver = Driver::default();
    assert_eq!(driver.request(TPM, READ, &[], 2), [0, 1]);
    assert!(!driver.try_write(&[0x77]));
    assert_eq!(driver.request(TPM, READ, &[], 2), [0, 1]);
}

#[test]
fn after_a_failed_request_those_of_its_group_fail_and_no_more() {
    let mut driver = Driver::ready();
    driver.send(&GET_RANDOM);
    let go = [STATUS, GO];
    assert_eq!(driver.request(0x10, FAIL_NEXT, &go, 1), [1]);
    assert_eq!(driver.request(TPM, FAIL_NEXT, &go, 1), [1]);
    assert_eq!(driver.request(TPM, 0, &go, 1), [1]);
    assert!(driver.tpm.commands.is_empty());
    // The group is over.
    assert_eq!(driver.request(TPM, FAIL_NEXT, &go, 1), [0]);
    assert_eq!(driver.tpm.commands.len(), 1);
    // One that succeeds lets the next one be tried.
    assert_eq!(driver.request(TPM, FAIL_NEXT, &[FIFO], 1), [0]);
    assert_eq!(driver.request(TPM, READ, &[], 3), [0x80, 1, 0]);
    // A new driver begins with a new group.
    assert_eq!(driver.request(0x10, FAIL_NEXT, &go, 1), [1]);
    driver.bus.reset();
    assert_eq!(driver.request(TPM, 0, &[ACCESS], 1), [0]);
}

#[test]
fn a_request_that_is_neither_read_nor_write_fails() {
    let mut driver = Driver::ready();
    // A read that brings bytes, a write that has room for some.
    assert_eq!(driver.request(TPM, READ, &[ACCESS, 0x20], 1), [1]);
    assert_eq!(driver.request(TPM, 0, &[ACCESS, 0x20], 3), [0, 0, 1]);
    // No place for a status, or for more than anybody reads; no header.
    assert!(driver.request(TPM, 0, &[ACCESS, 0x20], 0).is_empty());
    driver.write(&[ACCESS]);
    assert!(driver.request(TPM, READ, &[], 0x1_0001).is_empty());
    assert!(driver.raw(&[0x5c, 0, 0, 0, 0, 0, 0], 1).is_empty());
    assert!(driver.raw(&[], 1).is_empty());
    assert_eq!(driver.read(ACCESS, 1), [0xa1]);
}

#[test]
fn the_longest_read_is_answered_and_the_longest_write_taken() {
    let mut driver = Driver::ready();
    driver.write(&[ACCESS]);
    let answer = driver.request(TPM, READ, &[], 0x1_0000);
    assert_eq!(answer[..2], [0xa1, 0xff]);
    assert_eq!(answer.last(), Some(&0));
    driver.write(&[STATUS, COMMAND_READY]);
    assert!(driver.try_write(&[&[FIFO][..], &[0; 4096]].concat()));
    assert!(!driver.try_write(&[&[FIFO][..], &[0; 4097]].concat()));
}

#[test]
fn a_reset_of_the_bus_reaches_the_interface_and_no_further() {
    let mut driver = Driver::ready();
    driver.send(&GET_RANDOM);
    driver.write(&[STATUS, GO]);
    driver.bus.reset();
    assert_eq!(driver.read(ACCESS, 1), [0x81], "nobody has the locality");
    driver.write(&[ACCESS, 0x02]);
    assert_eq!(driver.read(FIFO, 4), [0xff; 4], "the response is gone");
    assert_eq!(driver.tpm.commands.len(), 1);
}
