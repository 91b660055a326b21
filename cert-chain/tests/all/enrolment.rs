//! The issuer refuses every request that is not what it says it is, before it signs anything.

use cert_chain::attestation_key::AttestationKeyError;
use cert_chain::ek_certificate::EkCertificateError;
use cert_chain::enrolment::{
    Accepted, Answer, Certificate, Challenge, EnrolmentError, EnrolmentState, MAX_MESSAGE, Message,
    MessageError, OperatorKeyError, OperatorKeys, PENDING_LIFETIME, PendingEnrolment, Request,
};
use cert_chain::policy::authorize_digest;
use cert_chain::{Issuer, ObjectAttributes, PublicArea, TpmMakerRoots, TpmName};
use rcgen::KeyPair;
use rustls_pki_types::UnixTime;

use crate::support::{
    ATTESTATION, Maker, NOW, at, now, p256_endorsement_key, request, signing_area, years,
};

struct Enrolment {
    issuer: Issuer,
    maker: Maker,
    roots: TpmMakerRoots,
}

impl Enrolment {
    fn new() -> Self {
        let maker = Maker::new("Maker");
        let roots = TpmMakerRoots::from_pem(&maker.root_pem()).unwrap();
        Self {
            issuer: Issuer::create("demo.example".parse().unwrap(), years(10)).unwrap(),
            maker,
            roots,
        }
    }

    /// By an issuer that accepts the request's operator key.
    fn challenge(
        &self,
        request: &Request,
    ) -> Result<(Challenge, PendingEnrolment), EnrolmentError> {
        let operators = operator_of(request).into_iter().collect();
        self.challenge_of(request, &operators)
    }

    fn challenge_of(
        &self,
        request: &Request,
        operators: &OperatorKeys,
    ) -> Result<(Challenge, PendingEnrolment), EnrolmentError> {
        let accepted = Accepted {
            roots: &self.roots,
            operators,
        };
        self.issuer.challenge(request, accepted, now())
    }

    /// By an issuer that accepts this operator key.
    fn certify(
        &self,
        pending: &mut PendingEnrolment,
        answer: &Answer,
        at: UnixTime,
    ) -> Result<Certificate, EnrolmentError> {
        let operators = [pending.policy_key().clone()].into_iter().collect();
        let accepted = Accepted {
            roots: &self.roots,
            operators: &operators,
        };
        self.issuer.certify(pending, answer, accepted, years(1), at)
    }

    /// The reason for refusing a good request after this change.
    fn refusal(&self, change: impl FnOnce(&mut Request)) -> EnrolmentError {
        let mut request = request(&self.maker);
        change(&mut request);
        self.challenge(&request).unwrap_err()
    }
}

fn operator_of(request: &Request) -> Option<TpmName> {
    let area = PublicArea::parse(&request.policy_key).ok()?;
    Some(area.name())
}

#[test]
fn a_good_request_is_challenged() {
    let enrolment = Enrolment::new();
    let (challenge, pending) = enrolment.challenge(&request(&enrolment.maker)).unwrap();
    assert_eq!(challenge.host.to_string(), "host-1.demo.example");
    assert_eq!(challenge.enrolment, pending.enrolment());
    assert_eq!(pending.maker(), "CN=Maker");
    assert!(matches!(pending.state(), EnrolmentState::Waiting(_)));
}

#[test]
fn keys_and_names_that_do_not_qualify_are_refused() {
    let enrolment = Enrolment::new();
    for host in ["", "Host", "a.b", "host_1"] {
        assert!(matches!(
            enrolment.refusal(|r| r.host = host.to_owned()),
            EnrolmentError::HostName(_)
        ));
    }
    assert!(matches!(
        enrolment.refusal(|r| r.ik = r.ek.clone()),
        EnrolmentError::IdentityKey(AttestationKeyError::Decrypts)
    ));
    assert!(matches!(
        enrolment.refusal(|r| r.ek = r.ik.clone()),
        EnrolmentError::EndorsementKey(_)
    ));
    assert!(matches!(
        enrolment.refusal(|r| r.ik.clear()),
        EnrolmentError::PublicArea {
            which: "identity key",
            ..
        }
    ));
}

#[test]
fn an_identity_key_without_the_operators_policy_is_refused() {
    let enrolment = Enrolment::new();
    let key = KeyPair::generate().unwrap();
    for policy in [&[][..], &[0; 32]] {
        assert!(matches!(
            enrolment.refusal(|r| r.ik = signing_area(&key, ATTESTATION, policy)),
            EnrolmentError::PolicyMismatch { .. }
        ));
    }
    assert!(matches!(
        enrolment.refusal(|r| r.policy_ref.push(0)),
        EnrolmentError::PolicyReference { .. }
    ));
    // Under that policy in earnest: the operator's approvals for something else would do.
    let for_something_else = |r: &mut Request| {
        r.policy_ref = b"firmware-update".to_vec();
        let operator = operator_of(r).unwrap();
        let policy = authorize_digest(&operator, &r.policy_ref);
        r.ik = signing_area(&key, ATTESTATION, policy.as_bytes());
    };
    assert!(matches!(
        enrolment.refusal(for_something_else),
        EnrolmentError::PolicyReference { .. }
    ));
    assert!(matches!(
        enrolment.refusal(|r| r.policy_key = signing_area(&key, ObjectAttributes::SIGN, &[])),
        EnrolmentError::PolicyMismatch { .. }
    ));
    let password_too = ATTESTATION.with(ObjectAttributes::USER_WITH_AUTH);
    assert!(matches!(
        enrolment.refusal(|r| r.ik = signing_area(&key, password_too, &[9; 32])),
        EnrolmentError::PolicyBypassed
    ));
}

#[test]
fn an_identity_key_under_a_strangers_operator_key_is_refused() {
    let enrolment = Enrolment::new();
    let good = request(&enrolment.maker);
    let operators = operator_of(&good).into_iter().collect();
    enrolment.challenge_of(&good, &operators).unwrap();
    // Everything about it is in order, but for whose approvals it obeys.
    let strangers = request(&enrolment.maker);
    assert!(matches!(
        enrolment.challenge_of(&strangers, &operators),
        Err(EnrolmentError::OperatorKey(OperatorKeyError::Unknown { found }))
            if Some(&found) == operator_of(&strangers).as_ref()
    ));
}

#[test]
fn an_issuer_that_accepts_no_operator_key_certifies_nothing_and_names_the_remedy() {
    let enrolment = Enrolment::new();
    let refused = enrolment
        .challenge_of(&request(&enrolment.maker), &OperatorKeys::default())
        .unwrap_err();
    assert!(matches!(
        refused,
        EnrolmentError::OperatorKey(OperatorKeyError::NoneAccepted)
    ));
    assert!(refused.to_string().contains("issuer operator-key add"));
}

#[test]
fn an_endorsement_key_that_no_accepted_maker_certified_is_refused() {
    let enrolment = Enrolment::new();
    let refusal = |change: &dyn Fn(&mut Request)| match enrolment.refusal(change) {
        EnrolmentError::EkCertificate(error) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(
        refusal(&|r| r.ek_certificate = request(&Maker::new("Other")).ek_certificate),
        EkCertificateError::UnknownMaker { issuer } if issuer == "CN=Other"
    ));
    assert!(matches!(
        refusal(&|r| r.ek_certificate = request(&enrolment.maker).ek_certificate),
        EkCertificateError::KeyMismatch
    ));
    assert!(matches!(
        refusal(&|r| r.ek_certificate.clear()),
        EkCertificateError::Missing
    ));
    assert!(matches!(
        refusal(&|r| r.ek_certificate.push(1)),
        EkCertificateError::Malformed
    ));
    for chain in [&b"no certificate"[..], &[0xff; 20_000], &[0x30]] {
        let refused = enrolment.refusal(|r| r.ek_chain = chain.to_vec());
        assert!(matches!(refused, EnrolmentError::EkChain(_)), "{refused:?}");
    }

    let ek = p256_endorsement_key(&KeyPair::generate().unwrap());
    let certified = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        let certificate = enrolment.maker.certify(ek.public_area(), change);
        refusal(&|r| {
            r.ek = ek.public_area().as_bytes().to_vec();
            r.ek_certificate = certificate.to_vec();
        })
    };
    assert!(matches!(
        certified(&|p| p.extended_key_usages.clear()),
        EkCertificateError::Usage
    ));
    assert!(matches!(
        certified(&|p| p.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature]),
        EkCertificateError::KeyUsage
    ));
    assert!(matches!(
        certified(&|p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
        EkCertificateError::IsCa
    ));
    assert!(matches!(
        certified(&|p| p.not_after = rcgen::date_time_ymd(2020, 1, 1)),
        EkCertificateError::Expired { .. }
    ));
    assert!(matches!(
        certified(&|p| p.not_before = rcgen::date_time_ymd(2100, 1, 1)),
        EkCertificateError::NotYetValid { .. }
    ));
}

#[test]
fn the_name_of_an_endorsement_key_is_the_templates_and_not_the_requests() {
    let enrolment = Enrolment::new();
    let good = request(&enrolment.maker);
    // noDA, and a policy that anybody satisfies: the certificate is for the public key alone.
    for (position, bit) in [(6, 0x04), (7, 0x40), (10, 0x01)] {
        let mut stated = good.clone();
        let byte = stated.ek.get_mut(position).unwrap();
        *byte ^= bit;
        let Err(EnrolmentError::EkCertificate(error)) = enrolment.challenge(&stated) else {
            panic!("byte {position} was not looked at");
        };
        assert!(matches!(error, EkCertificateError::Template), "{error:?}");
    }
}

#[test]
fn what_the_issuer_no_longer_accepts_is_not_certified_and_spends_nothing() {
    let mut enrolment = Enrolment::new();
    let (_, mut pending) = enrolment.challenge(&request(&enrolment.maker)).unwrap();
    let answer = Answer {
        enrolment: pending.enrolment(),
        secret: vec![0; 32],
    };
    let accepted_once = enrolment.roots.clone();
    let others = Maker::new("Other");
    enrolment.roots = TpmMakerRoots::from_pem(&others.root_pem()).unwrap();
    assert!(matches!(
        enrolment.certify(&mut pending, &answer, now()),
        Err(EnrolmentError::EkCertificate(
            EkCertificateError::UnknownMaker { .. }
        ))
    ));
    enrolment.roots = accepted_once;
    let operators = OperatorKeys::default();
    let accepted = Accepted {
        roots: &enrolment.roots,
        operators: &operators,
    };
    assert!(matches!(
        enrolment
            .issuer
            .certify(&mut pending, &answer, accepted, years(1), now()),
        Err(EnrolmentError::OperatorKey(OperatorKeyError::NoneAccepted))
    ));
    assert!(matches!(pending.state(), EnrolmentState::Waiting(_)));
}

#[test]
fn a_wrong_answer_spends_the_enrolment() {
    let enrolment = Enrolment::new();
    let (challenge, mut pending) = enrolment.challenge(&request(&enrolment.maker)).unwrap();
    let answer = Answer {
        enrolment: challenge.enrolment,
        secret: vec![0; 32],
    };
    let mut certify = |answer: &Answer| enrolment.certify(&mut pending, answer, now());
    assert!(matches!(certify(&answer), Err(EnrolmentError::WrongAnswer)));
    assert!(matches!(
        certify(&answer),
        Err(EnrolmentError::AlreadyAnswered)
    ));
    // Being spent survives storage.
    let stored = serde_json::to_string(&pending).unwrap();
    let restored: PendingEnrolment = serde_json::from_str(&stored).unwrap();
    assert_eq!(restored.state(), &EnrolmentState::Answered);
}

#[test]
fn an_answer_to_another_enrolment_spends_nothing_and_a_late_one_comes_too_late() {
    let enrolment = Enrolment::new();
    let (_, mut pending) = enrolment.challenge(&request(&enrolment.maker)).unwrap();
    let (other, _) = enrolment.challenge(&request(&enrolment.maker)).unwrap();
    let elsewhere = Answer {
        enrolment: other.enrolment,
        secret: vec![0; 32],
    };
    assert!(matches!(
        enrolment.certify(&mut pending, &elsewhere, now()),
        Err(EnrolmentError::AnotherEnrolment { .. })
    ));
    assert!(matches!(pending.state(), EnrolmentState::Waiting(_)));

    let answer = Answer {
        enrolment: pending.enrolment(),
        secret: vec![0; 32],
    };
    let too_late = at(NOW + PENDING_LIFETIME.as_secs() + 1);
    assert!(matches!(
        enrolment.certify(&mut pending, &answer, too_late),
        Err(EnrolmentError::Expired { .. })
    ));
}

#[test]
fn messages_state_type_and_version_and_nothing_unknown() {
    let maker = Maker::new("Maker");
    let request = request(&maker);
    let json = request.to_json();
    assert_eq!(Request::from_json(json.as_bytes()).unwrap(), request);
    assert!(json.starts_with("{\n  \"type\": \"host-enrolment-request\",\n  \"version\": 1,"));

    let read = |text: String| Request::from_json(text.as_bytes());
    assert!(matches!(
        read(json.replace("\"version\": 1", "\"version\": 2")),
        Err(MessageError::Version { found }) if found == "2"
    ));
    assert!(matches!(
        read(json.replace("\"version\": 1,", "")),
        Err(MessageError::Version { .. })
    ));
    assert!(matches!(
        read(json.replace("-request", "-answer")),
        Err(MessageError::Type { found, .. }) if found == "host-enrolment-answer"
    ));
    assert!(matches!(
        read(json.replace("\"host\"", "\"extra\": 1, \"host\"")),
        Err(MessageError::Json(_))
    ));
    assert!(matches!(
        read(" ".repeat(MAX_MESSAGE + 1)),
        Err(MessageError::TooLong { .. })
    ));
    assert!(Request::from_json(b"[]").is_err());
    assert!(Request::from_json(&[0xff, 0xfe]).is_err());
}

#[test]
fn a_message_with_texts_that_a_terminal_would_obey_is_refused_and_the_field_named() {
    let json = request(&Maker::new("Maker")).to_json();
    let escape = "\\u001b[2J\\u001b]52;c;cm0=\\u0007";
    let deceiving = [escape, "\\u202e", "\u{200b}", "\\r", "\u{9b}2J", "\u{2066}"];
    for text in deceiving {
        for (place, with, field) in [
            ("\"host-1\"", format!("\"host-1{text}\""), "`host`"),
            ("host-enrolment-request", format!("host{text}"), "`type`"),
            (
                "\"version\": 1",
                format!("\"version\": \"{text}\""),
                "`version`",
            ),
            (
                "\"host\"",
                format!("\"{text}\": 1, \"host\""),
                "the name of a field",
            ),
            (
                "\"host-1\"",
                format!("[\"a\", {{\"b\": \"{text}\"}}]"),
                "`b`",
            ),
        ] {
            let changed = json.replacen(place, &with, 1);
            let error = Request::from_json(changed.as_bytes()).unwrap_err();
            assert!(
                matches!(&error, MessageError::Unprintable { field: found } if found == field),
                "{text:?} in {field}: {error:?}"
            );
            assert!(error.to_string().chars().all(|c| !c.is_control()));
        }
    }
}

#[test]
fn an_answer_does_not_show_its_secret() {
    let enrolment = Enrolment::new();
    let (challenge, pending) = enrolment.challenge(&request(&enrolment.maker)).unwrap();
    let answer = Answer {
        enrolment: challenge.enrolment,
        secret: vec![0xab; 32],
    };
    let shown = format!("{answer:?}");
    assert!(!shown.contains("secret") && !shown.contains("171, 171"));
    assert!(answer.to_json().contains("abab"));
    assert!(!format!("{pending:?}").contains("secret"));
}

#[test]
fn hostile_requests_never_panic() {
    let enrolment = Enrolment::new();
    let good = request(&enrolment.maker);
    for position in 0..good.ek_certificate.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut hostile = good.clone();
            if let Some(byte) = hostile.ek_certificate.get_mut(position) {
                *byte ^= change;
            }
            assert!(enrolment.challenge(&hostile).is_err(), "byte {position}");
        }
    }
    let json = good.to_json();
    for position in 0..json.len() {
        let mut hostile = json.clone().into_bytes();
        if let Some(byte) = hostile.get_mut(position) {
            *byte = b'"';
        }
        let _ = Request::from_json(&hostile);
    }
}
