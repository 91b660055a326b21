//! EK certificates as TPM makers sign them, made and verified by OpenSSL.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use cert_chain::ek_certificate::EkCertificateError;
use cert_chain::ek_chain::EkChain;
use cert_chain::{CertifiedEndorsementKey, EndorsementKey, TpmMakerRoots};
use rcgen::KeyPair;
use rustls_pki_types::UnixTime;
use test_support::tool::Tool;

use crate::support::p256_endorsement_key;

const EXTENSIONS: &str = "[ca]\nbasicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign\n\
    subjectKeyIdentifier=hash\n[ek]\nbasicConstraints=critical,CA:false\n\
    keyUsage=critical,keyAgreement\nextendedKeyUsage=2.23.133.8.1\n\
    authorityKeyIdentifier=keyid\n";

/// A maker with a root and an intermediate, which signs endorsement keys in one way.
struct Maker {
    folder: tempfile::TempDir,
    ek: EndorsementKey,
}

impl Maker {
    /// `key` is for `openssl genpkey`, `signing` for whatever signs.
    fn new(key: &str, signing: &str) -> Result<Self> {
        let maker = Self {
            folder: tempfile::tempdir()?,
            ek: p256_endorsement_key(&KeyPair::generate()?),
        };
        fs::write(maker.path("extensions"), EXTENSIONS)?;
        fs::write(
            maker.path("ek.pem"),
            cert_chain::pem::encode_public_key(&maker.ek.subject_public_key_info()),
        )?;
        for name in ["root", "intermediate"] {
            maker.openssl(&format!("genpkey {key} -out {name}.key"))?;
            maker.openssl(&format!(
                "req -new -key {name}.key {signing} -subj /O=Maker/CN={name} -out {name}.csr"
            ))?;
        }
        let issue = "-days 3650 -extfile extensions";
        maker.openssl(&format!(
            "x509 -req -in root.csr -signkey root.key {signing} {issue} -extensions ca -out root.crt"
        ))?;
        maker.openssl(&format!(
            "x509 -req -in intermediate.csr -CA root.crt -CAkey root.key -set_serial 2 {signing} \
             {issue} -extensions ca -out intermediate.crt"
        ))?;
        maker.openssl(&format!(
            "x509 -req -in intermediate.csr -force_pubkey ek.pem -CA intermediate.crt \
             -CAkey intermediate.key -set_serial 3 {signing} {issue} -extensions ek \
             -outform DER -out ek.crt"
        ))?;
        maker.openssl("x509 -in intermediate.crt -outform DER -out chain")?;
        Ok(maker)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn openssl(&self, line: &str) -> Result<()> {
        run(self.folder.path(), line)
    }

    /// Whether OpenSSL finds the same path.
    fn openssl_verifies(&self) -> Result<()> {
        self.openssl("x509 -inform DER -in ek.crt -out ek.crt.pem")?;
        self.openssl("verify -CAfile root.crt -untrusted intermediate.crt ek.crt.pem")
    }

    fn verify(&self, chain: &EkChain, roots: &str) -> Result<CertifiedEndorsementKey> {
        let roots = TpmMakerRoots::from_pem(&fs::read(self.path(roots))?)?;
        let certificate = fs::read(self.path("ek.crt"))?;
        let certified =
            CertifiedEndorsementKey::verify(&certificate, chain, &self.ek, &roots, UnixTime::now());
        Ok(certified?)
    }

    fn chain(&self) -> Result<EkChain> {
        let mut chain = fs::read(self.path("chain"))?;
        chain.extend_from_slice(&[0xff; 64]);
        Ok(EkChain::read(&chain)?)
    }
}

fn run(folder: &Path, line: &str) -> Result<()> {
    let openssl = Tool::new("openssl").args(line.split_whitespace());
    openssl.folder(folder).run().map(drop)
}

fn curve(name: &str) -> String {
    format!("-algorithm EC -pkeyopt ec_paramgen_curve:{name}")
}

#[test]
fn makers_with_every_usual_algorithm_are_verified_as_openssl_does() -> Result<()> {
    let rsa = "-algorithm RSA -pkeyopt rsa_keygen_bits:4096";
    for (key, signing) in [
        (curve("P-521"), "-sha512"),
        (curve("P-521"), "-sha384"),
        (curve("P-384"), "-sha512"),
        (curve("P-384"), "-sha384"),
        (curve("P-256"), "-sha512"),
        (rsa.to_owned(), "-sha512"),
        (
            rsa.to_owned(),
            "-sha384 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest",
        ),
    ] {
        let maker = Maker::new(&key, signing)?;
        maker.openssl_verifies()?;
        maker.verify(&maker.chain()?, "root.crt")?;
        maker.verify(&EkChain::default(), "intermediate.crt")?;
        // Another signature: the last byte is part of it.
        let mut certificate = fs::read(maker.path("ek.crt"))?;
        if let Some(last) = certificate.last_mut() {
            *last ^= 1;
        }
        fs::write(maker.path("ek.crt"), certificate)?;
        let refused = maker.verify(&maker.chain()?, "root.crt").err();
        let text = refused.map(|error| error.to_string()).unwrap_or_default();
        ensure!(
            text.contains("was not signed by the key"),
            "{key} {signing}: {text}"
        );
    }
    Ok(())
}

#[test]
fn a_chain_in_the_tpm_leads_to_a_root_and_is_trusted_for_nothing_else() -> Result<()> {
    let maker = Maker::new(&curve("P-384"), "-sha384")?;
    let unknown = |verified: Result<CertifiedEndorsementKey>| {
        let error = verified.err().and_then(|error| error.downcast().ok());
        matches!(error, Some(EkCertificateError::UnknownMaker { .. }))
    };
    maker.verify(&maker.chain()?, "root.crt")?;
    ensure!(unknown(maker.verify(&EkChain::default(), "root.crt")));
    // The whole chain of a maker that nobody accepts, with its root in it.
    let stranger = Maker::new(&curve("P-384"), "-sha384")?;
    stranger.openssl("x509 -in root.crt -outform DER -out root.der")?;
    let whole = [
        fs::read(stranger.path("chain"))?,
        fs::read(stranger.path("root.der"))?,
    ]
    .concat();
    fs::write(
        stranger.path("other.crt"),
        crate::support::Maker::new("Other").root_pem(),
    )?;
    ensure!(unknown(
        stranger.verify(&EkChain::read(&whole)?, "other.crt")
    ));
    Ok(())
}

#[test]
fn an_algorithm_that_is_not_supported_is_named() -> Result<()> {
    let maker = Maker::new(&curve("P-256"), "-sha1")?;
    let error = maker.verify(&maker.chain()?, "root.crt").err();
    let text = error.map(|error| error.to_string()).unwrap_or_default();
    ensure!(text.contains("ecdsa-with-SHA1"), "{text}");
    Ok(())
}
