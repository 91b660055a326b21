//! What a host has a vRoT quote without its guest: with the certified key or not at all, and with nothing
//! that the guest could notice but the time.

use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail, ensure};
use backend_link::frame::{receive, send};
use backend_link::message::{FromBackend, ToBackend};
use backend_link::quote::{NoQuote, Quote, QuoteOrder, QuoteOutcome};

use crate::support::managed::{Backend, OWNER, define_index};
use crate::support::{INIT, STARTUP, Vmm, code, command, with_password, words};

const ENDORSEMENT: u32 = 0x4000_000b;
const HANDLE: u32 = 0x8101_0010;
const QUALIFYING_DATA: [u8; 32] = [0x5a; 32];
const SHA256: u16 = 0x0b;
const SHA384: u16 = 0x0c;
/// The boot's: 0 to 9 and 11 to 14.
const PCRS: u32 = 0x7bff;
/// A restricted P-256 key that signs, of this TPM.
const TEMPLATE: [u8; 24] = [
    0, 0x23, 0, 0x0b, 0, 0x05, 0x04, 0x72, 0, 0, 0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10, 0, 0, 0,
    0,
];

/// A vRoT with its manager and a guest, and the key that it was manufactured with.
struct Host {
    backend: Backend,
    manager: UnixStream,
    vmm: Vmm,
    /// The key's.
    name: Vec<u8>,
}

impl Host {
    fn with_key() -> Result<Self> {
        let backend = Backend::start()?;
        let manager = backend.opened(50, None)?;
        let mut vmm = backend.guest()?.wait()?;
        let name = made_key(&mut vmm)?;
        Ok(Self {
            backend,
            manager,
            vmm,
            name,
        })
    }

    fn quoted(&mut self) -> Result<Quote> {
        quoted(&mut self.manager, &self.name)
    }
}

fn create_primary(vmm: &mut Vmm, hierarchy: u32) -> Result<u32> {
    create_primary_with(vmm, hierarchy, &[])
}

/// The same with an authorization value, of which the key's name does not tell.
fn create_primary_with(vmm: &mut Vmm, hierarchy: u32, value: &[u8]) -> Result<u32> {
    let length = u16::try_from(TEMPLATE.len())?.to_be_bytes();
    let size = u16::try_from(value.len())?;
    let sensitive = [
        &(size + 4).to_be_bytes(),
        &size.to_be_bytes(),
        value,
        &[0; 2],
    ]
    .concat();
    let body = [&sensitive, &length[..], &TEMPLATE, &[0; 6]].concat();
    let response = vmm.execute(&with_password(0x131, &[hierarchy], &body))?;
    ensure!(code(&response) == 0, "{response:02x?}");
    let handle = response.get(10..14).context("a handle")?;
    Ok(u32::from_be_bytes(handle.try_into()?))
}

fn run(vmm: &mut Vmm, command: &[u8]) -> Result<Vec<u8>> {
    let response = vmm.execute(command)?;
    ensure!(code(&response) == 0, "{command:02x?}: {response:02x?}");
    Ok(response)
}

fn flush(vmm: &mut Vmm, handle: u32) -> Result<()> {
    run(vmm, &command(0x165, &words(&[handle]))).map(drop)
}

/// TPM2_EvictControl: puts an object at a handle, or takes it away from there.
fn evict(vmm: &mut Vmm, object: u32) -> Result<()> {
    let evict = with_password(0x120, &[OWNER, object], &words(&[HANDLE]));
    run(vmm, &evict).map(drop)
}

/// Makes the key and keeps it, as at manufacture; its name.
fn made_key(vmm: &mut Vmm) -> Result<Vec<u8>> {
    let key = create_primary(vmm, ENDORSEMENT)?;
    let read = run(vmm, &command(0x173, &words(&[key])))?;
    evict(vmm, key)?;
    flush(vmm, key)?;
    // Header, public area, name: each of both with its length before it.
    let (length, rest) = (read.get(10..).and_then(<[u8]>::split_first_chunk)).context("an area")?;
    let name = rest.get(usize::from(u16::from_be_bytes(*length)) + 2..);
    Ok(name
        .and_then(|name| name.get(..34))
        .context("a name")?
        .to_vec())
}

fn order(name: &[u8]) -> QuoteOrder {
    QuoteOrder {
        handle: HANDLE,
        template: TEMPLATE.to_vec().into(),
        name: name.to_vec().into(),
        pcrs: PCRS,
        banks: vec![SHA256, SHA384],
        qualifying_data: QUALIFYING_DATA.into(),
    }
}

/// The answer, and how many states were pushed before it.
fn ask(manager: &mut UnixStream, order: QuoteOrder) -> Result<(QuoteOutcome, usize)> {
    send(manager, &ToBackend::Quote { id: 7, order })?;
    let mut states = 0;
    loop {
        match receive(manager)? {
            FromBackend::Quoted { id, outcome } => {
                ensure!(id == 7);
                return Ok((outcome, states));
            }
            FromBackend::StateChanged { sequence, .. } => {
                states += 1;
                send(manager, &ToBackend::Persisted { sequence })?;
            }
            _ => {}
        }
    }
}

fn quoted(manager: &mut UnixStream, name: &[u8]) -> Result<Quote> {
    match ask(manager, order(name))? {
        (QuoteOutcome::Quoted(quote), _) => Ok(quote),
        (other, _) => bail!("{other:?}"),
    }
}

fn refused(manager: &mut UnixStream, name: &[u8]) -> Result<NoQuote> {
    match ask(manager, order(name))? {
        (QuoteOutcome::NotQuoted(why), _) => Ok(why),
        (other, _) => bail!("{other:?}"),
    }
}

/// All that a guest can ask its TPM without a side effect: objects, sessions, counters, PCRs.
fn observed(vmm: &mut Vmm) -> Result<Vec<Vec<u8>>> {
    let mut seen = Vec::new();
    for (capability, first) in [
        (1, 0x8000_0000),
        (1, 0x0200_0000),
        (1, 0x0300_0000),
        (1, 0x8100_0000),
        (1, 0x0100_0000),
        (4, 0),
        (5, 0),
        // Variable properties: the counter of failed authorizations among them.
        (6, 0x200),
    ] {
        seen.push(run(
            vmm,
            &command(0x17a, &words(&[capability, first, 254])),
        )?);
    }
    // With the number of changes.
    let pcrs = [0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0, 0];
    seen.push(run(vmm, &command(0x17e, &pcrs))?);
    // TPM2_ReadClock, without the time.
    let clock = run(vmm, &command(0x181, &[]))?;
    seen.push(clock.get(26..).context("a clock")?.to_vec());
    Ok(seen)
}

#[test]
fn a_guest_notices_nothing_of_its_hosts_quotes() -> Result<()> {
    let mut host = Host::with_key()?;
    // A session and an object of the guest's.
    let session = [
        &words(&[0x4000_0007, 0x4000_0007])[..],
        &[0, 16],
        &[1; 16],
        &[0, 0, 1, 0, 0x10, 0, 0x0b],
    ];
    run(&mut host.vmm, &command(0x176, &session.concat()))?;
    create_primary(&mut host.vmm, OWNER)?;
    run(
        &mut host.vmm,
        &with_password(
            0x182,
            &[4],
            &[&[0, 0, 0, 1, 0, 0x0b], &[3; 32][..]].concat(),
        ),
    )?;
    let before = observed(&mut host.vmm)?;
    // What the guest changed comes first.
    while ask(&mut host.manager, order(&host.name))?.1 > 0 {}
    for _ in 0..50 {
        let (outcome, states) = ask(&mut host.manager, order(&host.name))?;
        let QuoteOutcome::Quoted(quote) = outcome else {
            bail!("{outcome:?}");
        };
        assert_eq!(states, 0, "permanent state changed");
        let attest: &[u8] = &quote.attest;
        ensure!(attest.windows(32).any(|bytes| bytes == QUALIFYING_DATA));
        assert_eq!(quote.pcr_values.len(), 14 * 32);
        // PCR 4 was extended, and PCR 3 was not.
        assert_ne!(quote.pcr_values.get(4 * 32..5 * 32), Some(&[0; 32][..]));
        assert_eq!(quote.pcr_values.get(3 * 32..4 * 32), Some(&[0; 32][..]));
    }
    assert_eq!(observed(&mut host.vmm)?, before);
    Ok(())
}

#[test]
fn a_guest_that_took_the_key_away_or_holds_every_place_is_quoted_all_the_same() -> Result<()> {
    let mut host = Host::with_key()?;
    let with_it = host.quoted()?;
    evict(&mut host.vmm, HANDLE)?;
    let before = observed(&mut host.vmm)?;
    let anew = host.quoted()?;
    assert_eq!(anew.public, with_it.public);
    assert_eq!(observed(&mut host.vmm)?, before);
    // Another key at its handle.
    let other = create_primary(&mut host.vmm, OWNER)?;
    evict(&mut host.vmm, other)?;
    flush(&mut host.vmm, other)?;
    assert_eq!(host.quoted()?.public, with_it.public);
    // No place for an object.
    let mut held = Vec::new();
    for _ in 0..3 {
        let handle = create_primary(&mut host.vmm, OWNER)?;
        held.push((
            handle,
            run(&mut host.vmm, &command(0x173, &words(&[handle])))?,
        ));
    }
    let before = observed(&mut host.vmm)?;
    assert_eq!(host.quoted()?.public, with_it.public);
    assert_eq!(observed(&mut host.vmm)?, before);
    for (handle, public) in held {
        assert_eq!(
            run(&mut host.vmm, &command(0x173, &words(&[handle])))?,
            public
        );
    }
    Ok(())
}

#[test]
fn a_guest_that_keeps_the_key_with_an_authorization_value_is_quoted_all_the_same() -> Result<()> {
    let mut host = Host::with_key()?;
    let with_it = host.quoted()?;
    evict(&mut host.vmm, HANDLE)?;
    let key = create_primary_with(&mut host.vmm, ENDORSEMENT, b"x")?;
    evict(&mut host.vmm, key)?;
    flush(&mut host.vmm, key)?;
    // It is at its handle, with its name, and of no use without the value.
    let read = run(&mut host.vmm, &command(0x173, &words(&[HANDLE])))?;
    ensure!(
        read.windows(host.name.len())
            .any(|bytes| bytes == host.name)
    );
    let quote = [&[0, 0, 0, 0x10][..], &[0, 0, 0, 1, 0, 0x0b, 3, 1, 0, 0]].concat();
    let response = host.vmm.execute(&with_password(0x158, &[HANDLE], &quote))?;
    assert_eq!(code(&response), 0x9a2);
    let before = observed(&mut host.vmm)?;
    assert_eq!(host.quoted()?.public, with_it.public);
    assert_eq!(observed(&mut host.vmm)?, before);
    // No place for an object either.
    for _ in 0..3 {
        create_primary(&mut host.vmm, OWNER)?;
    }
    let before = observed(&mut host.vmm)?;
    assert_eq!(host.quoted()?.public, with_it.public);
    assert_eq!(observed(&mut host.vmm)?, before);
    Ok(())
}

/// TPM2_HashSequenceStart, SHA-256, without an authorization value.
fn begin_hash(vmm: &mut Vmm) -> Result<u32> {
    let response = run(vmm, &command(0x186, &[0, 0, 0, 0x0b]))?;
    let handle = response.get(10..14).context("a handle")?;
    Ok(u32::from_be_bytes(handle.try_into()?))
}

/// TPM2_SequenceComplete: the digest of what was fed, and this.
fn complete_hash(vmm: &mut Vmm, sequence: u32, rest: u8) -> Result<Vec<u8>> {
    let body = [&[0, 1, rest][..], &words(&[0x4000_0007])].concat();
    let response = run(vmm, &with_password(0x13e, &[sequence], &body))?;
    // Header, size of the parameters, size of the digest.
    Ok(response.get(16..48).context("a digest")?.to_vec())
}

#[test]
fn hash_sequences_that_hold_every_place_go_on_after_a_quote() -> Result<()> {
    let mut host = Host::with_key()?;
    let digests = |vmm: &mut Vmm, manager: Option<&mut UnixStream>| -> Result<Vec<Vec<u8>>> {
        let mut sequences = Vec::new();
        for number in 0..3u8 {
            let sequence = begin_hash(vmm)?;
            // TPM2_SequenceUpdate: more than a block, and not a whole number of them.
            let fed = [&[0, 100][..], &[number; 100]].concat();
            run(vmm, &with_password(0x15c, &[sequence], &fed))?;
            sequences.push(sequence);
        }
        if let Some(manager) = manager {
            let before = observed(vmm)?;
            for _ in 0..3 {
                quoted(manager, &host.name)?;
            }
            assert_eq!(observed(vmm)?, before);
        }
        let complete = |sequence| complete_hash(vmm, sequence, 9);
        sequences.into_iter().map(complete).collect()
    };
    let undisturbed = digests(&mut host.vmm, None)?;
    assert_eq!(
        digests(&mut host.vmm, Some(&mut host.manager))?,
        undisturbed
    );
    Ok(())
}

/// Requests of the control channel.
const HASH_START: [u32; 1] = [6];
const HASH_DATA: [u32; 3] = [7, 4, 0x626f_6f74];
const HASH_END: [u32; 1] = [8];

fn tell(vmm: &mut Vmm, request: &[u32]) -> Result<()> {
    ensure!(vmm.control(&words(request), 4)? == [0; 4], "{request:?}");
    Ok(())
}

/// TPM2_PCR_Read of PCR 0.
fn first_pcr(vmm: &mut Vmm) -> Result<Vec<u8>> {
    run(vmm, &command(0x17e, &[0, 0, 0, 1, 0, 0x0b, 3, 1, 0, 0]))
}

#[test]
fn a_measurement_that_the_vmm_has_begun_is_not_cut_off_by_its_host() -> Result<()> {
    let mut host = Host::with_key()?;
    let mut launch = |between: &mut dyn FnMut() -> Result<()>| {
        tell(&mut host.vmm, &[INIT, 0])?;
        tell(&mut host.vmm, &HASH_START)?;
        between()?;
        tell(&mut host.vmm, &HASH_DATA)?;
        between()?;
        tell(&mut host.vmm, &HASH_END)?;
        run(&mut host.vmm, &STARTUP)?;
        first_pcr(&mut host.vmm)
    };
    let undisturbed = launch(&mut || Ok(()))?;
    let quote_between = launch(&mut || {
        assert_eq!(refused(&mut host.manager, &host.name)?, NoQuote::Busy);
        Ok(())
    })?;
    assert_eq!(quote_between, undisturbed);
    // Its manager's commands wait as well: TPM2_GetRandom.
    let command_between = launch(&mut || {
        let command = command(0x17b, &[0, 8]).into();
        send(&mut host.manager, &ToBackend::Execute { id: 3, command })?;
        loop {
            if let FromBackend::Executed { response, .. } = receive(&mut host.manager)? {
                assert_eq!(code(&response), 0x922);
                return Ok(());
            }
        }
    })?;
    assert_eq!(command_between, undisturbed);
    host.quoted()?;
    // Whoever measured and went away does not measure any more.
    tell(&mut host.vmm, &HASH_START)?;
    let Host {
        backend,
        mut manager,
        vmm,
        name,
    } = host;
    drop(vmm);
    let vmm = Vmm::over(backend.control_channel()?)?;
    quoted(&mut manager, &name)?;
    drop(vmm);
    Ok(())
}

#[test]
fn what_a_guest_did_to_make_a_quote_impossible_is_told_and_no_other_key_quotes() -> Result<()> {
    let mut host = Host::with_key()?;
    let other_name = [&[0, 0x0b][..], &[7; 32]].concat();
    assert_eq!(
        refused(&mut host.manager, &other_name)?,
        NoQuote::AnotherKey
    );
    // TPM2_SetCommandCodeAuditStatus: TPM2_Quote.
    let audit = |set: bool| {
        let one = [0, 0, 0, 1, 0, 0, 1, 0x58];
        let none = [0; 4];
        let lists = match set {
            true => [&[0, 0x10], &one[..], &none].concat(),
            false => [&[0, 0x10], &none[..], &one].concat(),
        };
        with_password(0x140, &[OWNER], &lists)
    };
    run(&mut host.vmm, &audit(true))?;
    assert_eq!(refused(&mut host.manager, &host.name)?, NoQuote::Audited);
    run(&mut host.vmm, &audit(false))?;
    host.quoted()?;
    evict(&mut host.vmm, HANDLE)?;
    // TPM2_HierarchyChangeAuth
    run(
        &mut host.vmm,
        &with_password(0x129, &[ENDORSEMENT], &[0, 3, 1, 2, 3]),
    )?;
    let before = observed(&mut host.vmm)?;
    let why = refused(&mut host.manager, &host.name)?;
    ensure!(matches!(why, NoQuote::Key { .. }), "{why:?}");
    assert_eq!(
        observed(&mut host.vmm)?,
        before,
        "nothing was counted against anybody"
    );
    Ok(())
}

#[test]
fn a_tpm_that_is_off_not_started_or_suspended_is_not_quoted_and_stays_as_it_is() -> Result<()> {
    let backend = Backend::start()?;
    let mut manager = backend.opened(50, None)?;
    let name = [&[0, 0x0b][..], &[7; 32]].concat();
    assert_eq!(refused(&mut manager, &name)?, NoQuote::Off);
    let mut vmm = backend.vmm()?;
    assert_eq!(refused(&mut manager, &name)?, NoQuote::NotStarted);
    run(&mut vmm, &STARTUP)?;
    let name = made_key(&mut vmm)?;
    ensure!(define_index(&mut vmm, 0x0150_0000)? == 0);
    quoted(&mut manager, &name)?;
    send(&mut manager, &ToBackend::Suspend)?;
    while !matches!(receive(&mut manager)?, FromBackend::Suspended { .. }) {}
    assert_eq!(refused(&mut manager, &name)?, NoQuote::Aside);
    send(&mut manager, &ToBackend::Hold { held: false })?;
    quoted(&mut manager, &name)?;
    Ok(())
}
