//! Logs for tests, written field by field, with the PCRs that a TPM would have beside them. The
//! PCRs are computed apart from the replay: by another library, measurement by measurement.

use std::collections::BTreeMap;

use cert_chain::HashAlgorithm;
use ring::digest;

use super::{EventLog, EventType};

/// A log under construction.
#[derive(Clone, Debug)]
pub struct LogWriter {
    bytes: Vec<u8>,
    /// The banks announced; none for a log of the form that firmware for TPM 1.2 writes.
    banks: Vec<(u16, u16)>,
    pcrs: BTreeMap<(HashAlgorithm, u8), Vec<u8>>,
    start_of_pcr_0: u8,
}

impl LogWriter {
    /// A log with SHA-1 alone, without a header.
    pub fn sha1() -> Self {
        Self {
            bytes: Vec::new(),
            banks: Vec::new(),
            pcrs: BTreeMap::new(),
            start_of_pcr_0: 0,
        }
    }

    /// A crypto-agile log with these banks.
    pub fn crypto_agile(banks: &[HashAlgorithm]) -> Self {
        let banks: Vec<_> = banks
            .iter()
            .map(|bank| (bank.identifier(), bank.digest_length() as u16))
            .collect();
        Self::announcing(&banks, b"")
    }

    /// A crypto-agile log whose header announces these algorithms (`TPM_ALG_ID` and length), with
    /// what its maker adds.
    pub fn announcing(banks: &[(u16, u16)], vendor_info: &[u8]) -> Self {
        let mut data = b"Spec ID Event03\0".to_vec();
        data.extend([0, 0, 0, 0, 0, 2, 0, 2]);
        data.extend((banks.len() as u32).to_le_bytes());
        for (identifier, length) in banks {
            data.extend(identifier.to_le_bytes());
            data.extend(length.to_le_bytes());
        }
        data.push(vendor_info.len() as u8);
        data.extend(vendor_info);
        let mut writer = Self::sha1();
        writer.sha1_event(0, EventType::NO_ACTION, &[0; 20], &data);
        writer.banks = banks.to_vec();
        writer
    }

    /// From where PCR 0 begins in the TPM; the log does not say so by itself.
    pub fn started_at(mut self, start_of_pcr_0: u8) -> Self {
        self.start_of_pcr_0 = start_of_pcr_0;
        self
    }

    /// Measures `data` into all banks.
    pub fn measure(&mut self, pcr: u8, event_type: EventType, data: &[u8]) {
        let banks: Vec<HashAlgorithm> = self.known_banks();
        self.measure_in(&banks, pcr, event_type, data);
    }

    /// Measures `data` into these banks alone.
    pub fn measure_in(
        &mut self,
        banks: &[HashAlgorithm],
        pcr: u8,
        event_type: EventType,
        data: &[u8],
    ) {
        let digests: Vec<(u16, Vec<u8>)> = banks
            .iter()
            .map(|bank| {
                let digest = hash(*bank, &[data]);
                self.extend(*bank, pcr, &digest);
                (bank.identifier(), digest)
            })
            .collect();
        self.event(u32::from(pcr), event_type, &digests, data);
    }

    /// A note, which no PCR measures.
    pub fn note(&mut self, pcr: u32, data: &[u8]) {
        let digests: Vec<(u16, Vec<u8>)> = self
            .banks
            .iter()
            .map(|(identifier, length)| (*identifier, vec![0; usize::from(*length)]))
            .collect();
        self.event(pcr, EventType::NO_ACTION, &digests, data);
    }

    /// An event as it is given, which the PCRs beside the log do not take note of.
    pub fn event(
        &mut self,
        pcr: u32,
        event_type: EventType,
        digests: &[(u16, Vec<u8>)],
        data: &[u8],
    ) {
        if self.banks.is_empty() {
            let digest = digests
                .first()
                .map_or_else(|| vec![0; 20], |(_, digest)| digest.clone());
            self.sha1_event(pcr, event_type, &digest, data);
            return;
        }
        self.bytes.extend(pcr.to_le_bytes());
        self.bytes.extend(event_type.0.to_le_bytes());
        self.bytes.extend((digests.len() as u32).to_le_bytes());
        for (identifier, digest) in digests {
            self.bytes.extend(identifier.to_le_bytes());
            self.bytes.extend(digest);
        }
        self.bytes.extend((data.len() as u32).to_le_bytes());
        self.bytes.extend(data);
    }

    /// Any bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// The log.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The PCRs of a bank that were extended.
    pub fn pcrs(&self, bank: HashAlgorithm) -> BTreeMap<u8, Vec<u8>> {
        self.pcrs
            .iter()
            .filter(|((of, _), _)| *of == bank)
            .map(|((_, pcr), value)| (*pcr, value.clone()))
            .collect()
    }

    /// Extends a PCR without an event.
    pub fn extend(&mut self, bank: HashAlgorithm, pcr: u8, digest: &[u8]) {
        let mut start = vec![0; bank.digest_length()];
        if let (0, Some(last)) = (pcr, start.last_mut()) {
            *last = self.start_of_pcr_0;
        }
        let value = self.pcrs.entry((bank, pcr)).or_insert(start);
        *value = hash(bank, &[value, digest]);
    }

    fn sha1_event(&mut self, pcr: u32, event_type: EventType, digest: &[u8], data: &[u8]) {
        self.bytes.extend(pcr.to_le_bytes());
        self.bytes.extend(event_type.0.to_le_bytes());
        self.bytes.extend(digest);
        self.bytes.extend((data.len() as u32).to_le_bytes());
        self.bytes.extend(data);
    }

    fn known_banks(&self) -> Vec<HashAlgorithm> {
        if self.banks.is_empty() {
            return vec![HashAlgorithm::Sha1];
        }
        self.banks
            .iter()
            .filter_map(|(identifier, _)| HashAlgorithm::from_identifier(*identifier))
            .collect()
    }
}

/// The PCRs of a bank that a log leads to; empty if it does not account for all of that bank.
pub fn replayed(log: &EventLog, bank: HashAlgorithm) -> BTreeMap<u8, Vec<u8>> {
    let replay = log.replay();
    replay
        .bank(bank)
        .filter(|bank| bank.first_gap().is_none())
        .into_iter()
        .flat_map(|bank| bank.extended())
        .filter_map(|(pcr, value)| Some((pcr, value.ok()?.as_bytes().to_vec())))
        .collect()
}

fn hash(bank: HashAlgorithm, parts: &[&[u8]]) -> Vec<u8> {
    let algorithm = match bank {
        HashAlgorithm::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        HashAlgorithm::Sha256 => &digest::SHA256,
        HashAlgorithm::Sha384 => &digest::SHA384,
        HashAlgorithm::Sha512 => &digest::SHA512,
    };
    digest::digest(algorithm, &parts.concat()).as_ref().to_vec()
}
