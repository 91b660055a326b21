//! Configurations that are accepted, and what is said of others.

use std::os::unix::fs::PermissionsExt;

use backend_link::admission::VmmAdmission;

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("config.toml"))
}

#[test]
fn the_rollback_anchor_has_two_policies() -> anyhow::Result<()> {
    let with = |line: &str| parse(&format!("tpm = \"device:/dev/tpmrm0\"\n{line}"));
    assert_eq!(with("")?.anchor_policy, AnchorPolicy::default());
    let strict = with("anchor_policy = \"strict\"")?;
    assert_eq!(strict.anchor_policy, AnchorPolicy::Strict);
    let often = with("checkpoint_interval_s = 60")?.anchor_policy;
    assert_eq!(often.limit().as_secs(), 60);
    for seconds in [0, 65_536] {
        let refused = with(&format!("checkpoint_interval_s = {seconds}"));
        assert!(matches!(refused, Err(ConfigError::Interval { .. })));
    }
    assert!(with("anchor_policy = \"lax\"").is_err());
    Ok(())
}

#[test]
fn certificates_are_renewed_in_the_first_half_of_their_life() -> anyhow::Result<()> {
    let with = |lines: &str| parse(&format!("tpm = \"device:/dev/tpmrm0\"\n{lines}"));
    let seconds = |config: Config| {
        let RenewalConfig { lifetime, after } = config.renewal;
        (lifetime.as_secs(), after.as_secs())
    };
    assert_eq!(seconds(with("")?), (86_400, 43_200));
    assert_eq!(seconds(with("vik_lifetime_s = 3600")?), (3600, 1800));
    let early = "vik_lifetime_s = 3600\nvik_renew_after_s = 60";
    assert_eq!(seconds(with(early)?), (3600, 60));
    for line in [
        "vik_lifetime_s = 599",
        "vik_lifetime_s = 604801",
        "vik_renew_after_s = 0",
        "vik_renew_after_s = 43201",
    ] {
        let refused = with(line);
        assert!(
            matches!(refused, Err(ConfigError::Renewal { .. })),
            "{line}"
        );
    }
    Ok(())
}

#[test]
fn vmms_of_other_users_are_let_in_by_name_or_number() -> anyhow::Result<()> {
    let with = |lines: &str| parse(&format!("tpm = \"device:/dev/tpmrm0\"\n{lines}"));
    assert_eq!(with("")?.vmms, Vmms::default());
    let some = with("vmm_users = [\"root\", 64055]\nvmm_group = \"root\"")?;
    let expected = Vmms {
        admission: VmmAdmission {
            uids: vec![0, 64055],
        },
        gid: Some(0),
    };
    assert_eq!(some.vmms, expected);
    for (lines, named) in [
        ("vmm_users = [\"no body\"]\nvmm_group = 0", "no body"),
        ("vmm_users = [0]\nvmm_group = \"no group\"", "no group"),
    ] {
        let error = with(lines).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains(named)), "{lines}");
    }
    Ok(())
}

#[test]
fn a_guest_waits_half_a_second_for_durability_or_as_long_as_its_host_says() -> anyhow::Result<()> {
    let with = |lines: &str| parse(&format!("tpm = \"device:/dev/tpmrm0\"\n{lines}"));
    assert_eq!(with("")?.durability_deadline_ms, 500);
    let short = with("durability_deadline_ms = 80")?;
    assert_eq!(short.durability_deadline_ms, 80);
    for milliseconds in [0, 5001] {
        let refused = with(&format!("durability_deadline_ms = {milliseconds}"));
        assert!(matches!(refused, Err(ConfigError::Deadline { .. })));
    }
    Ok(())
}

#[test]
fn a_vmm_waits_for_each_answer_unless_its_host_says_otherwise() -> anyhow::Result<()> {
    let with = |lines: &str| parse(&format!("tpm = \"device:/dev/tpmrm0\"\n{lines}"));
    assert_eq!(with("")?.answer_within_ms, None);
    assert_eq!(with("answer_within_ms = 80")?.answer_within_ms, Some(80));
    for milliseconds in [0, 9, 60_001] {
        let refused = with(&format!("answer_within_ms = {milliseconds}"));
        let said = refused.err().map(|error| error.to_string());
        assert!(said.is_some_and(|said| said.contains(&milliseconds.to_string())));
    }
    Ok(())
}

#[test]
fn a_tpm_is_all_that_must_be_configured() -> anyhow::Result<()> {
    let config = parse("tpm = \"device:/dev/tpmrm0\"")?;
    assert_eq!(config.socket, Path::new(api_types::DEFAULT_SOCKET));
    assert_eq!(
        config.store(),
        Path::new("/var/lib/vtpm-manager/store.redb")
    );
    assert!(config.backend.ends_with("vtpm-backend"));
    Ok(())
}

/// A configuration with its state and runtime folders, which are not there yet.
fn with_folders_in(scratch: &Path) -> anyhow::Result<(PathBuf, [PathBuf; 2])> {
    let (state, run) = (scratch.join("state"), scratch.join("run"));
    let path = scratch.join("config.toml");
    std::fs::write(
        &path,
        format!(
            "tpm = \"device:/dev/tpm0\"\nstate_dir = \"{}\"\nruntime_dir = \"{}\"\n",
            state.display(),
            run.display()
        ),
    )?;
    Ok((path, [state, run]))
}

#[test]
fn folders_in_which_others_can_write_are_refused() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let (path, [state, run]) = with_folders_in(scratch.path())?;
    assert!(Config::load(&path).is_ok(), "neither is there yet");
    std::fs::create_dir(&state)?;
    for (mode, accepted) in [
        (0o700, true),
        (0o755, true),
        (0o775, false),
        (0o1777, false),
    ] {
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(mode))?;
        assert_eq!(Config::load(&path).is_ok(), accepted, "{mode:o}");
    }
    std::fs::remove_dir(&state)?;
    std::fs::write(&run, "no folder")?;
    let refused = Config::load(&path).err().map(|error| error.to_string());
    assert!(refused.is_some_and(|error| error.contains("runtime_dir")));
    Ok(())
}

/// The tests are run as root, as `vtpmctl doctor` is.
#[test]
fn root_looks_at_a_configuration_for_whoever_has_the_state_folder() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let (path, [state, run]) = with_folders_in(scratch.path())?;
    for folder in [&state, &run] {
        std::fs::create_dir(folder)?;
        std::os::unix::fs::chown(folder, Some(61_999), None)?;
    }
    assert!(Config::load(&path).is_err(), "root is another user");
    assert!(Config::load_for_its_manager(&path).is_ok());
    std::os::unix::fs::chown(&run, Some(61_998), None)?;
    assert!(Config::load_for_its_manager(&path).is_err(), "two users");
    Ok(())
}

#[test]
fn what_is_wrong_is_named() {
    let long = format!(
        "tpm = \"device:/dev/tpm0\"\nruntime_dir = \"/{}\"",
        "x".repeat(MAX_RUNTIME_DIR)
    );
    for (text, named) in [
        ("state_dir = \"/x\"", "tpm"),
        ("tpm = \"nonsense\"", "nonsense"),
        ("tpm = \"device:/dev/tpm0\"\nsokcet = \"/x\"", "sokcet"),
        ("tpm = \"device:/dev/tpm0\"\nstate_dir = \"x\"", "absolute"),
        (
            "tpm = \"device:/dev/tpm0\"\npcr_bank = \"sha1\"",
            "sha256, sha384 or sha512",
        ),
        ("tpm = \"device:/dev/tpm0\"\npcr_bank = \"sm3\"", "sha384"),
        (
            "tpm = \"device:/dev/tpm0\"\nquoted_pcrs = []",
            "quoted_pcrs",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\npolicy_pcrs = [24]",
            "policy_pcrs",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\npolicy_pcrs = [16, 23]",
            "policy_pcrs",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\nbackend_uids = { first = 0, count = 9 }",
            "backend_uids",
        ),
        // Root's own group and nobody are on every Debian.
        (
            "tpm = \"device:/dev/tpm0\"\nbackend_uids = { first = 65000, count = 1000 }",
            "nobody",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\nbackend_uids = { first = 4000000, count = 10 }\n\
             allowed_uids = [4000003]",
            "4000003",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\nbackend_uids = { first = 4000000, count = 10 }\n\
             vmm_users = [7]\nvmm_group = 4000009",
            "4000009",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\nhost_evidence_per_minute = 0",
            "at least 1",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\nanchor_policy = \"strict\"\n\
             checkpoint_interval_s = 5",
            "no interval",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\nallowed_uids = [4294967295]",
            "allowed_uids",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\n[pool]\nsize = 10001\ntenants = [\"a\"]",
            "at most 10000",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\n[pool]\nsize = 9223372036854775807\n\
             tenants = [\"a\", \"b\"]",
            "at most 10000",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\n[pool]\nsize = 1\ntenants = [\"a\", \"a\"]",
            "twice",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\nstate_dir = \"/s\"\nruntime_dir = \"/s\"",
            "two folders",
        ),
        (
            "tpm = \"device:/dev/tpm0\"\nsocket = \"/var/lib/vtpm-manager/store.redb\"",
            "state folder",
        ),
        (&long, "shorter"),
    ] {
        let message = match parse(text) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(message.contains(named), "{text}: {message}");
        assert!(message.contains("config.toml"), "{text}: {message}");
    }
}
