//! The format of sealed data, which outlives the program that wrote them.

use anyhow::{Context, Result};
use cert_chain::operator::PolicyKey;
use cert_chain::{HashAlgorithm, PcrValues};
use vrot_service::sealing::{ContentKey, Header, HeaderError, SealedTo, stream};

/// A file of version 1, under a key of 32 bytes 0x07.
const GOLDEN: &[u8] = include_bytes!("data/sealed_v1.bin");
const DATA: &[u8] = b"what a VM keeps for itself\n";

fn boot() -> Result<SealedTo> {
    let values = [(0, "00"), (7, "77"), (14, "ee")].map(|(pcr, byte)| (pcr, byte.repeat(48)));
    let values = values.iter().map(|(pcr, value)| (*pcr, value.as_str()));
    let values = PcrValues::from_hex(HashAlgorithm::Sha384, values)?;
    Ok(SealedTo::Boot(values))
}

fn header(to: SealedTo) -> Result<Header> {
    let parent = format!("000b{}", "ab".repeat(32)).parse()?;
    Ok(Header::new(to, parent, vec![0x11; 78], vec![0x22; 158]))
}

fn key() -> Result<ContentKey> {
    ContentKey::from_bytes(&[7; stream::KEY_LENGTH]).context("a key")
}

#[test]
fn a_file_of_version_1_is_read_and_written_as_ever() -> Result<()> {
    let header = header(boot()?)?;
    let mut written = header.to_bytes();
    stream::seal(&key()?, &header.digest(), &mut &*DATA, &mut written)?;
    assert_eq!(hex::encode(&written), hex::encode(GOLDEN));
    let mut file = GOLDEN;
    assert_eq!(Header::read(&mut file)?, header);
    let mut data = Vec::new();
    stream::open(&key()?, &header.digest(), &mut file, &mut data)?;
    assert_eq!(data, DATA);
    Ok(())
}

#[test]
fn the_beginning_comes_back_as_it_was_written() -> Result<()> {
    let key = PolicyKey::generate()?.public().clone();
    for to in [SealedTo::Vrot, boot()?, SealedTo::Approved(key)] {
        let header = header(to)?;
        let bytes = [header.to_bytes().as_slice(), b"data"].concat();
        let mut file = bytes.as_slice();
        assert_eq!(Header::read(&mut file)?, header);
        assert_eq!(file, b"data");
        for length in 0..bytes.len() - 4 {
            let mut cut = bytes.get(..length).context("a part")?;
            assert!(Header::read(&mut cut).is_err(), "{length}");
        }
    }
    Ok(())
}

#[test]
fn a_beginning_that_is_none_is_refused_with_its_reason() -> Result<()> {
    let read = |bytes: &[u8]| Header::read(&mut &*bytes);
    let good = header(SealedTo::Vrot)?.to_bytes();
    let body = good.get(10..).context("a body")?;
    let framed = |body: &[u8]| -> Result<Vec<u8>> {
        let length = u16::try_from(body.len())?.to_be_bytes();
        Ok([b"vRoTseal".as_slice(), &length, body].concat())
    };
    assert!(matches!(read(b"-----BEGIN"), Err(HeaderError::Magic)));
    let announced = [b"vRoTseal".as_slice(), &[0xff; 2]].concat();
    assert!(matches!(read(&announced), Err(HeaderError::TooLong { .. })));
    // The version is the first value of the map.
    let mut later = body.to_vec();
    *later.get_mut(2).context("a version")? = 2;
    let later = framed(&later)?;
    assert!(matches!(
        read(&later),
        Err(HeaderError::Version { found: 2 })
    ));
    let longer = framed(&[body, &[0]].concat())?;
    assert!(matches!(read(&longer), Err(HeaderError::Form)));
    // The same number in a longer form.
    let mut loose = body.to_vec();
    loose.splice(2..3, [0x18, 1]);
    assert!(matches!(read(&framed(&loose)?), Err(HeaderError::Form)));
    Ok(())
}
