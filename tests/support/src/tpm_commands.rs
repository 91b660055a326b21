//! Commands to a TPM as whoever has it sends them, byte by byte (TPM 2.0 Library, Part 3).

/// `TPM_RH_OWNER`
const OWNER: u32 = 0x4000_0001;

/// An authorization area with an empty password: its size, `TPM_RS_PW`, no nonce, no attributes, no value.
pub const PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];

/// Numbers as they stand in commands.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// A command without sessions; handles and parameters.
pub fn command(code: u32, body: &[u8]) -> Vec<u8> {
    framed(0x8001, code, body)
}

/// A command whose first handle, which may be a hierarchy, is used with an empty password.
pub fn with_password(code: u32, handles: &[u32], parameters: &[u8]) -> Vec<u8> {
    let body = [&words(handles)[..], &PASSWORD, parameters].concat();
    framed(0x8002, code, &body)
}

/// `TPM2_PCR_Extend` in the SHA-256 bank, always with the same digest.
pub fn pcr_extend(pcr: u32) -> Vec<u8> {
    pcr_extend_with(pcr, &[7; 32])
}

/// The same with this digest.
pub fn pcr_extend_with(pcr: u32, digest: &[u8; 32]) -> Vec<u8> {
    let digests = [&[0, 0, 0, 1, 0, 0x0b][..], digest].concat();
    with_password(0x182, &[pcr], &digests)
}

/// `TPM2_PCR_Read` of one PCR in the SHA-256 bank: its digest ends the response.
pub fn pcr_read(pcr: u32) -> Vec<u8> {
    let selected = (1u32 << (pcr % 24)).to_le_bytes();
    let [first, second, third, _] = selected;
    command(0x17e, &[0, 0, 0, 1, 0, 0x0b, 3, first, second, third])
}

/// `TPM2_CreatePrimary` of an RSA-2048 key for decryption, another one for each number: a TPM has to look
/// for its primes.
pub fn rsa_key(number: u8) -> Vec<u8> {
    let public = [
        &[0, 1, 0, 0x0b][..],          // RSA, SHA-256
        &0x0003_0072u32.to_be_bytes(), // fixedTPM … restricted, decrypt
        &[0, 0],                       // no policy
        &[0, 6, 0, 128, 0, 0x43],      // AES-128 in CFB mode
        &[0, 0x10],                    // no scheme
        &[8, 0, 0, 0, 0, 0],           // 2048 bits, exponent 65537
        &[0, 4, 1, 2, 3, number],
    ]
    .concat();
    let size = u16::try_from(public.len()).unwrap_or(u16::MAX);
    let sensitive = [0, 4, 0, 0, 0, 0];
    let parameters = [&sensitive[..], &size.to_be_bytes(), &public, &[0; 6]].concat();
    with_password(0x131, &[OWNER], &parameters)
}

fn framed(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(10 + body.len()).unwrap_or(u32::MAX);
    [
        &tag.to_be_bytes()[..],
        &size.to_be_bytes(),
        &code.to_be_bytes(),
        body,
    ]
    .concat()
}
