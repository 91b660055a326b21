//! Certificates, public areas and enrolment messages: what a host or a guest hands to an issuer
//! or to a device.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Result;
use attestation::fixture::{Host, Vm, now};
use cert_chain::ek_certificate::EkCertificate;
use cert_chain::ek_chain::EkChain;
use cert_chain::enrolment::{Answer, Certificate, Challenge, EnrolmentId, Message, Request};
use cert_chain::pem::{
    FoundCertificate, Place, blocks, certificates, encode_certificate, encode_crl,
    encode_public_key,
};
use cert_chain::profile::host_ik::HostCertificate;
use cert_chain::profile::vik::VikCertificate;
use cert_chain::{
    AttestationKey, CertificateSerial, CertifiedEndorsementKey, CredentialBlob, Crl, EkSpec,
    EndorsementKey, HostName, PublicArea, RevocationDemand, TpmDevice, TpmMakerRoots, TrustAnchors,
    Validity, VikChain, issue_vrot_certificate,
};

use super::Target;

/// A vIK's chain as it lies in NV memory, and its validation.
pub(super) const CHAIN: Target = Target {
    name: "certificate-chain",
    run: |input| {
        let Ok(identity) = &*IDENTITY else { return };
        if let Ok(chain) = VikChain::from_concatenated_der(input) {
            let _ = chain.verify(&identity.anchors, now());
        }
    },
    seeds: || Ok(vec![identity()?.chain_bytes()]),
};

/// A host's certificate as its reader sees it. A changed one does not get that far in a chain:
/// its signature is looked at before. So the reader is fed by itself, as for the next two.
pub(super) const HOST_CERTIFICATE: Target = Target {
    name: "host-certificate",
    run: |input| {
        if let Ok(certificate) = HostCertificate::read(input) {
            assert_eq!(&**certificate.der(), input);
        }
    },
    seeds: || Ok(vec![identity()?.chain.host_certificate().to_vec()]),
};

/// A vIK's certificate, with its claims.
pub(super) const VIK_CERTIFICATE: Target = Target {
    name: "vik-certificate",
    run: |input| {
        let Ok(identity) = &*IDENTITY else { return };
        let _ = VikCertificate::read(input, &identity.host);
    },
    seeds: || Ok(vec![identity()?.chain.vik_certificate().to_vec()]),
};

/// An endorsement key's certificate.
pub(super) const EK_CERTIFICATE: Target = Target {
    name: "ek-certificate",
    run: |input| {
        let Ok(identity) = &*IDENTITY else { return };
        let roots = &identity.makers;
        let _ =
            CertifiedEndorsementKey::verify(input, &EkChain::default(), &identity.ek, roots, now());
        if let Ok(certificate) = EkCertificate::read(input) {
            let _ = certificate.is_for(&identity.ek);
            let _ = certificate.device();
        }
    },
    seeds: || Ok(vec![identity()?.ek_certificate.clone()]),
};

/// What a TPM has above its EK certificate.
pub(super) const EK_CHAIN: Target = Target {
    name: "ek-chain",
    run: |input| {
        let _ = EkChain::read(input);
    },
    seeds: || Ok(vec![identity()?.chain_bytes()]),
};

/// Roots in PEM and DER, and PEM files of other things.
pub(super) const ROOTS: Target = Target {
    name: "roots",
    run: |input| {
        let _ = TrustAnchors::from_pem(input);
        // All of a file is read, or it is refused.
        if let Ok(found) = certificates(input) {
            // Within a certificate in DER, such bytes are a part of it.
            let in_der = |at: usize| {
                found.iter().any(|found| match found.place {
                    Place::Byte(begin) => (begin..begin + found.der.len()).contains(&at),
                    Place::Line(_) => false,
                })
            };
            let marks = input
                .windows(ANY_BEGIN.len())
                .enumerate()
                .filter(|(at, window)| *window == ANY_BEGIN && !in_der(*at));
            let of_pem = |found: &&FoundCertificate| matches!(found.place, Place::Line(_));
            assert!(marks.count() <= found.iter().filter(of_pem).count());
        }
        let _ = blocks(input);
    },
    seeds: root_seeds,
};

/// A revocation list, and a host's chain beside it.
pub(super) const REVOCATION_LIST: Target = Target {
    name: "revocation-list",
    run: |input| {
        let _ = Crl::all_from_file(input);
        let Ok(identity) = &*IDENTITY else { return };
        if let Ok(list) = Crl::read(input) {
            assert_eq!(list.der(), input);
            let _ = list.find(&identity.serial);
        }
        let demand = RevocationDemand::Listed {
            max_age: Duration::from_secs(86_400),
        };
        let anchors = identity.anchors.clone().demanding(demand);
        let verified = identity.chain.verify(&anchors.with_carried([input]), now());
        assert!(
            verified.is_err() || identity.lists.iter().any(|list| list == input),
            "a list that the issuer did not make was accepted"
        );
    },
    seeds: || {
        let identity = identity()?;
        let pem = identity.lists.iter().map(|list| encode_crl(list));
        let of_pem = pem.map(String::into_bytes);
        Ok(identity.lists.iter().cloned().chain(of_pem).collect())
    },
};

/// Enrolment messages in JSON.
pub(super) const ENROLMENT: Target = Target {
    name: "enrolment-message",
    run: |input| {
        let _ = Request::from_json(input);
        let _ = Challenge::from_json(input);
        let _ = Answer::from_json(input);
        let _ = Certificate::from_json(input);
    },
    seeds: enrolment_seeds,
};

/// A key's public area, and what is derived from it.
pub(super) const PUBLIC_AREA: Target = Target {
    name: "public-area",
    run: |input| {
        let Ok(area) = PublicArea::parse(input) else {
            return;
        };
        assert_eq!(area.as_bytes(), input, "a public area is what was parsed");
        let _ = (area.name(), area.subject_public_key_info());
        let _ = AttestationKey::try_from(area.clone());
        let _ = EndorsementKey::try_from(area);
    },
    seeds: || Ok(vec![identity()?.vik.clone(), STORAGE_KEY.to_vec()]),
};

/// One tree for the whole run: an issuer, a host, a VM.
struct Identity {
    anchors: TrustAnchors,
    roots: String,
    host: HostName,
    chain: VikChain,
    vik: Vec<u8>,
    /// Its certificate is the host's word, as a vRoT's is.
    ek: EndorsementKey,
    ek_certificate: Vec<u8>,
    makers: TpmMakerRoots,
    serial: CertificateSerial,
    /// Revocation lists: of nobody, and of the host.
    lists: Vec<Vec<u8>>,
}

static IDENTITY: LazyLock<Result<Identity>> = LazyLock::new(|| {
    let host = Host::new("host-1");
    let Vm {
        certificate: vik_certificate,
        public,
        vrot,
        ..
    } = host.vm();
    let roots = host.issuer.certificate_pem();
    let makers = TpmMakerRoots::from_pem(&encode_certificate(&host.certificate))?;
    let ek = EndorsementKey::try_from(PublicArea::parse(STORAGE_KEY)?)?;
    let spec = EkSpec {
        vrot,
        ek: ek.clone(),
        device: TpmDevice {
            manufacturer: 0x4942_4d00,
            firmware_version: 0x2024_0125,
            specification_level: 0,
            specification_revision: 164,
        },
        validity: Validity::starting(now(), Duration::from_secs(86_400))?,
    };
    let ek_certificate = issue_vrot_certificate(&spec, &host.key, &host.certificate)?.to_vec();
    let lists = [
        host.revocation_list(1, 0, &[]),
        host.revocation_list(2, 0, &[&host.certificate]),
    ];
    Ok(Identity {
        serial: CertificateSerial::of_certificate(&host.certificate)?,
        lists: lists.map(|list| list.der().to_vec()).into(),
        anchors: TrustAnchors::from_pem(&roots)?,
        roots,
        chain: VikChain::from_der_list(&[vik_certificate, host.certificate])?,
        vik: public,
        host: host.name,
        ek,
        ek_certificate,
        makers,
    })
});

fn identity() -> Result<&'static Identity> {
    IDENTITY
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error:#}"))
}

impl Identity {
    fn chain_bytes(&self) -> Vec<u8> {
        [
            &**self.chain.vik_certificate(),
            &**self.chain.host_certificate(),
        ]
        .concat()
    }
}

const ANY_BEGIN: &[u8] = b"-----BEGIN ";

fn root_seeds() -> Result<Vec<Vec<u8>>> {
    let identity = identity()?;
    let pem = identity.roots.clone();
    let joined = [pem.trim_end(), &pem].concat();
    let older = pem.replace("CERTIFICATE", "X509 CERTIFICATE");
    let der = &**identity.chain.host_certificate();
    Ok(vec![
        pem.clone().into_bytes(),
        joined.into_bytes(),
        older.into_bytes(),
        [pem.as_bytes(), der].concat(),
        encode_public_key(&identity.ek.subject_public_key_info()).into_bytes(),
    ])
}

fn enrolment_seeds() -> Result<Vec<Vec<u8>>> {
    let identity = identity()?;
    let enrolment: EnrolmentId = "07070707070707070707070707070707".parse()?;
    let host: HostName = HostName::new("host-1", &"demo.example".parse()?)?;
    let messages = [
        Request {
            host: "host-1".to_owned(),
            ek_certificate: identity.chain.host_certificate().to_vec(),
            ek_chain: identity.chain.host_certificate().to_vec(),
            ek: STORAGE_KEY.to_vec(),
            ik: identity.vik.clone(),
            policy_key: identity.vik.clone(),
            policy_ref: b"reference".to_vec(),
        }
        .to_json(),
        Challenge {
            enrolment,
            host: host.clone(),
            credential: CredentialBlob {
                id_object: vec![1; 68],
                encrypted_secret: vec![2; 258],
            },
        }
        .to_json(),
        Answer {
            enrolment,
            secret: vec![3; 32],
        }
        .to_json(),
        Certificate {
            host,
            certificate: identity.chain.host_certificate().to_vec(),
            root: identity.chain.host_certificate().to_vec(),
        }
        .to_json(),
    ];
    Ok(messages.into_iter().map(String::into_bytes).collect())
}

/// `TPMT_PUBLIC` of an endorsement key on P-256 (its point is the curve's generator).
const STORAGE_KEY: &[u8] = b"\x00\x23\x00\x0b\x00\x03\x00\xb2\x00\x20\
    \x83\x71\x97\x67\x44\x84\xb3\xf8\x1a\x90\xcc\x8d\x46\xa5\xd7\x24\
    \xfd\x52\xd7\x6e\x06\x52\x0b\x64\xf2\xa1\xda\x1b\x33\x14\x69\xaa\
    \x00\x06\x00\x80\x00\x43\x00\x10\x00\x03\x00\x10\
    \x00\x20\x6b\x17\xd1\xf2\xe1\x2c\x42\x47\xf8\xbc\xe6\xe5\x63\xa4\x40\xf2\
    \x77\x03\x7d\x81\x2d\xeb\x33\xa0\xf4\xa1\x39\x45\xd8\x98\xc2\x96\
    \x00\x20\x4f\xe3\x42\xe2\xfe\x1a\x7f\x9b\x8e\xe7\xeb\x4a\x7c\x0f\x9e\x16\
    \x2b\xce\x33\x57\x6b\x31\x5e\xce\xcb\xb6\x40\x68\x37\xbf\x51\xf5";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_accepted_by_what_they_are_seeds_for() -> Result<()> {
        let identity = identity()?;
        let chain = VikChain::from_concatenated_der(&identity.chain_bytes())?;
        chain.verify(&identity.anchors, now())?;
        HostCertificate::read(identity.chain.host_certificate())?;
        VikCertificate::read(identity.chain.vik_certificate(), &identity.host)?;
        let (certificate, makers) = (&identity.ek_certificate, &identity.makers);
        let key = CertifiedEndorsementKey::verify(
            certificate,
            &EkChain::default(),
            &identity.ek,
            makers,
            now(),
        )?;
        assert!(key.device().is_some(), "the make is read");
        for seed in enrolment_seeds()? {
            let read = [
                Request::from_json(&seed).is_ok(),
                Challenge::from_json(&seed).is_ok(),
                Answer::from_json(&seed).is_ok(),
                Certificate::from_json(&seed).is_ok(),
            ];
            assert_eq!(read.iter().filter(|read| **read).count(), 1);
        }
        Ok(())
    }
}
