//! Keys as swtpm reads them.

use anyhow::Result;
use swtpm_state::{
    Key, KeyError, KeyForm, KeyFormat, KeyOptions, KeySize, KeySource, PassphraseKdf, read_state,
    write_state,
};

const HEX: KeyForm = KeyForm::Key(KeyFormat::Hex);
const BINARY: KeyForm = KeyForm::Key(KeyFormat::Binary);

/// Whether both open what the other has encrypted.
fn are_the_same(one: &Key, other: &Key) -> Result<bool> {
    Ok(read_state(&write_state(b"state", Some(one))?, Some(other)).is_ok())
}

#[test]
fn hexadecimal_digits_and_bytes_give_the_same_key() -> Result<()> {
    for (size, digits) in [(KeySize::Bits128, 32), (KeySize::Bits256, 64)] {
        let hex = "0123456789abcdefFEDCBA9876543210".repeat(digits / 32);
        let bytes = hex::decode(&hex)?;
        let key = Key::from_bytes(&bytes, BINARY, size)?;
        for written in [
            hex.clone(),
            format!("0x{hex}"),
            format!("{hex}\n"),
            format!("{hex} and what follows"),
        ] {
            let read = Key::read(written.as_bytes(), HEX, size)?;
            assert!(are_the_same(&key, &read)?, "{written}");
        }
    }
    Ok(())
}

#[test]
fn passphrases_give_the_keys_that_openssl_derives() -> Result<()> {
    // openssl kdf -keylen 32 -kdfopt digest:SHA512 -kdfopt pass:password -kdfopt salt:swtpm
    //   -kdfopt iter:1000 PBKDF2; printf password | sha512sum
    for (kdf, expected) in [
        (PassphraseKdf::Pbkdf2, PBKDF2),
        (PassphraseKdf::Sha512, SHA512),
    ] {
        for size in [KeySize::Bits128, KeySize::Bits256] {
            let key = Key::from_bytes(b"password", KeyForm::Passphrase(kdf), size)?;
            let digits = expected.get(..2 * size.bytes()).unwrap_or_default();
            let expected = Key::from_bytes(digits.as_bytes(), HEX, size)?;
            assert!(are_the_same(&key, &expected)?, "{kdf:?} {size:?}");
            let line = Key::from_bytes(b"password\n", KeyForm::Passphrase(kdf), size)?;
            assert!(!are_the_same(&key, &line)?, "a line's end counts");
        }
    }
    Ok(())
}

const PBKDF2: &str = "e7e0e1e00b313f678bfda581bf72a7e25053d797e2180b6ca57b3a359123865a";
const SHA512: &str = "b109f3bbbc244eb82441917ed06d618b9008dd09b3befd1b5e07394c706a8bb9";

#[test]
fn a_key_of_another_length_or_form_is_refused_and_not_shown() {
    let secret = "00112233445566778899aabbccddeegg";
    let refusals = [
        Key::from_bytes(secret.as_bytes(), HEX, KeySize::Bits128),
        Key::from_bytes(b"00112233445566778899aabbccddee", HEX, KeySize::Bits128),
        Key::from_bytes(&[b'a'; 32], HEX, KeySize::Bits256),
        Key::from_bytes(&[b'a'; 64], HEX, KeySize::Bits128),
        Key::from_bytes(&[7; 15], BINARY, KeySize::Bits128),
        Key::from_bytes(&[7; 16], BINARY, KeySize::Bits256),
        Key::from_bytes(b"", HEX, KeySize::Bits128),
        Key::from_bytes(
            b"",
            KeyForm::Passphrase(PassphraseKdf::Pbkdf2),
            KeySize::Bits128,
        ),
        Key::read(
            std::io::repeat(b'a'),
            KeyForm::Passphrase(PassphraseKdf::Sha512),
            KeySize::Bits128,
        ),
    ];
    for refused in refusals {
        let shown = format!("{refused:?}");
        assert!(refused.is_err() && !shown.contains("0011"), "{shown}");
    }
    let key = Key::from_bytes(&[b'a'; 32], HEX, KeySize::Bits128);
    assert_eq!(format!("{key:?}"), "Ok(Key(128 bits))");
}

#[test]
fn names_that_swtpm_does_not_know_are_refused_with_those_that_it_knows() {
    assert_eq!("aes-cbc".parse::<KeySize>().ok(), Some(KeySize::Bits128));
    assert_eq!(
        "aes-256-cbc".parse::<KeySize>().ok(),
        Some(KeySize::Bits256)
    );
    let error = "aes-256-gcm"
        .parse::<KeySize>()
        .map_err(|error| error.to_string());
    assert!(error.is_err_and(|error| error.contains("aes-256-cbc")));
    assert!(matches!(
        "scrypt".parse::<PassphraseKdf>(),
        Err(KeyError::Unknown { .. })
    ));
    assert!("base64".parse::<KeyFormat>().is_err());
}

#[test]
fn key_options_are_read_as_swtpm_reads_them() -> Result<()> {
    let cases = [
        (
            "file=/k",
            KeySource::File("/k".into()),
            HEX,
            KeySize::Bits128,
        ),
        (
            "fd=7,format=binary,mode=aes-cbc",
            KeySource::Descriptor(7),
            BINARY,
            KeySize::Bits128,
        ),
        (
            "pwdfile=/p=q,mode=aes-256-cbc,remove=true",
            KeySource::File("/p=q".into()),
            KeyForm::Passphrase(PassphraseKdf::Pbkdf2),
            KeySize::Bits256,
        ),
        (
            "kdf=sha512,pwdfd=0",
            KeySource::Descriptor(0),
            KeyForm::Passphrase(PassphraseKdf::Sha512),
            KeySize::Bits128,
        ),
    ];
    for (text, source, form, size) in cases {
        let expected = KeyOptions {
            source,
            form,
            size,
            remove: text.contains("remove"),
        };
        assert_eq!(text.parse::<KeyOptions>()?, expected);
    }
    for text in [
        "",
        "mode=aes-cbc",
        "file=/k,fd=3",
        "fd=-1",
        "fd=x",
        "file=/k,mode=aes-512",
        "file=/k,cipher=aes",
        "file=/k,remove=perhaps",
    ] {
        assert!(text.parse::<KeyOptions>().is_err(), "{text}");
    }
    Ok(())
}
