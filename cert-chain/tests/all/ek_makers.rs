//! EK certificates as TPM makers sign them, made and verified by OpenSSL.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
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
        self.verify_at(chain, roots, UnixTime::now())
    }

    fn verify_at(
        &self,
        chain: &EkChain,
        roots: &str,
        at: UnixTime,
    ) -> Result<CertifiedEndorsementKey> {
        let roots = TpmMakerRoots::from_pem(&fs::read(self.path(roots))?)?;
        let certificate = fs::read(self.path("ek.crt"))?;
        let certified = CertifiedEndorsementKey::verify(&certificate, chain, &self.ek, &roots, at);
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

/// Why a certificate is refused with these roots, and nothing in the TPM beside it.
fn refusal(maker: &Maker, roots: &str) -> Result<String> {
    let refused = maker.verify(&EkChain::default(), roots).err();
    Ok(refused.context("it was accepted")?.to_string())
}

#[test]
fn a_refused_certificate_is_refused_for_its_true_reason() -> Result<()> {
    let short = Maker::new("-algorithm RSA -pkeyopt rsa_keygen_bits:1024", "-sha256")?;
    for roots in ["root.crt", "intermediate.crt"] {
        let chain = short.chain()?;
        let refused = short
            .verify(&chain, roots)
            .err()
            .context("it was accepted")?;
        let text = refused.to_string();
        ensure!(text.contains("RSA key of 1024 bits"), "{roots}: {text}");
    }

    let maker = Maker::new(&curve("P-384"), "-sha384")?;
    let issue = "x509 -req -in intermediate.csr -force_pubkey ek.pem -CA intermediate.crt \
                 -CAkey intermediate.key -set_serial 3 -extfile extensions -extensions ek -outform DER -out ek.crt";
    for (days, told) in [(11 * 365, "expired at 20"), (-1, "is not valid before 20")] {
        let now = UnixTime::now().as_secs().cast_signed();
        let at = u64::try_from(now + days * 24 * 60 * 60)?;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
        let text = maker
            .verify_at(&EkChain::default(), "intermediate.crt", at)
            .err()
            .context("it was accepted")?
            .to_string();
        ensure!(text.contains(told) && text.ends_with('Z'), "{text}");
    }

    fs::write(
        maker.path("extensions"),
        format!("{EXTENSIONS}1.2.3.4=critical,ASN1:NULL\n"),
    )?;
    maker.openssl(&format!("{issue} -days 9"))?;
    let text = refusal(&maker, "intermediate.crt")?;
    ensure!(text.contains("critical extension 1.2.3.4"), "{text}");

    fs::write(maker.path("ek.crt"), "")?;
    let text = refusal(&maker, "intermediate.crt")?;
    ensure!(text.contains("there is no EK certificate"), "{text}");
    Ok(())
}

#[test]
fn a_maker_is_known_by_its_name_however_that_is_encoded() -> Result<()> {
    let maker = Maker::new(&curve("P-256"), "-sha256")?;
    let again = |name: &str, kind: &str| {
        maker.openssl(&format!(
            "req -new -x509 -key intermediate.key -sha256 -{kind} -days 9 -subj {name} -out other.crt"
        ))
    };
    fs::write(
        maker.path("strings"),
        "[req]\nstring_mask=nombstr\ndistinguished_name=d\n[d]\n",
    )?;
    // OpenSSL writes UTF8String by default, and PrintableString with this mask.
    maker.openssl(
        "req -new -x509 -key intermediate.key -sha256 -config strings -days 9 \
         -subj /O=Maker/CN=intermediate -out other.crt",
    )?;
    maker.verify(&EkChain::default(), "other.crt")?;
    again("/O=MAKER/CN=Intermediate", "utf8")?;
    maker.verify(&EkChain::default(), "other.crt")?;
    // The key decides, and another name is another maker.
    again("/O=Maker/CN=intermediates", "utf8")?;
    ensure!(refusal(&maker, "other.crt")?.contains("no configured TPM maker"));
    maker.openssl("req -new -x509 -key root.key -sha256 -days 9 -subj /O=MAKER/CN=Intermediate -out other.crt")?;
    ensure!(refusal(&maker, "other.crt")?.contains("was not signed by the key"));
    Ok(())
}
