//! The Debian packages, made of the programs under test: what is in them, whether systemd takes
//! their units, and whether what they install works.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use test_support::process::Process;
use test_support::programs::workspace_folder;
use test_support::run_folder::RunFolder;
use test_support::software_tpm::MadeTpm;
use test_support::tool::Tool;
use vrot_tests::host::switch_on;

use crate::packed::{PACKAGES, build, file, install};

/// What a package has for each of its programs, below `/usr/share`: pages of its commands as well.
const MADE_OF_COMMAND_LINES: [&str; 4] = [
    "/usr/share/bash-completion/completions/",
    "/usr/share/fish/vendor_completions.d/",
    "/usr/share/man/man1/",
    "/usr/share/zsh/vendor-completions/_",
];

/// Everything beside these and the documents, as `mode path`.
const CONTENTS: [(&str, &[&str]); 7] = [
    (
        "vrot-host",
        &[
            "-rw-r--r-- /etc/apparmor.d/abstractions/libvirt-qemu.d/vrot",
            "-rwxr-xr-x /etc/libvirt/hooks/qemu.d/vrot",
            "-rw-r--r-- /etc/vtpm-manager/config.toml",
            "-rw-r--r-- /etc/vtpm-manager/libvirt.toml",
            "-rwxr-xr-x /usr/bin/vtpm-backend",
            "-rwxr-xr-x /usr/bin/vtpm-managerd",
            "-rw-r--r-- /usr/lib/systemd/system/vrot-dashboard.service",
            "-rw-r--r-- /usr/lib/systemd/system/vrot-libvirt-sync.service",
            "-rw-r--r-- /usr/lib/systemd/system/vrot-libvirt-sync.timer",
            "-rw-r--r-- /usr/lib/systemd/system/vtpm-managerd-tenants.socket",
            "-rw-r--r-- /usr/lib/systemd/system/vtpm-managerd.service",
            "-rw-r--r-- /usr/lib/sysusers.d/vtpm-manager.conf",
            "-rw-r--r-- /usr/lib/tmpfiles.d/vtpm-manager.conf",
            "-rw-r--r-- /usr/share/vrot/grafana-dashboard.json",
            "-rw-r--r-- /usr/share/vrot/prometheus-rules.yml",
            "-rw-r--r-- /usr/share/vrot/tpm-i2c.aml",
        ],
    ),
    ("vrot-operator", &["-rwxr-xr-x /usr/bin/vtpmctl"]),
    (
        "vrot-swtpm",
        &[
            "-rw-r--r-- /etc/vtpm-manager/swtpm.toml",
            "-rwxr-xr-x /usr/bin/swtpm",
            "-rwxr-xr-x /usr/bin/swtpm_ioctl",
            "-rwxr-xr-x /usr/bin/swtpm_setup",
        ],
    ),
    (
        "vrot-guest",
        &[
            "-rw-r--r-- /etc/default/vrot-service",
            "-rwxr-xr-x /usr/bin/vrot-service",
            "-rw-r--r-- /usr/lib/systemd/system/vrot-proxy@.service",
            "-rw-r--r-- /usr/lib/systemd/system/vrot-service.service",
        ],
    ),
    (
        "vrot-device",
        &[
            "-rwxr-xr-x /usr/bin/vrot-device",
            "-rw-r--r-- /usr/lib/systemd/system/vrot-device-proxy@.service",
        ],
    ),
    (
        "vrot-confirm",
        &[
            "-rw-r--r-- /etc/default/vrot-confirm",
            "-rwxr-xr-x /usr/bin/vrot-confirm",
            "-rw-r--r-- /usr/lib/systemd/system/vrot-confirm.service",
            "-rw-r--r-- /usr/lib/sysusers.d/vrot-confirm.conf",
            "-rw-r--r-- /usr/lib/tmpfiles.d/vrot-confirm.conf",
        ],
    ),
    ("vrot-tenant", &["-rwxr-xr-x /usr/bin/vrot-tenant"]),
];

const DOCUMENTS: [&str; 5] = [
    "README.md",
    "SECURITY.md",
    "changelog.gz",
    "copyright",
    "third-party-licences.gz",
];

#[test]
fn packages_hold_these_files_with_these_modes_and_all_are_roots() -> Result<()> {
    for (package, contents) in CONTENTS {
        let mut expected: Vec<String> = contents.iter().map(ToString::to_string).collect();
        for document in documents()? {
            expected.push(format!("-rw-r--r-- /usr/share/doc/{package}/{document}"));
        }
        let mut found = Vec::new();
        let mut manual = Vec::new();
        let listing = Tool::new("dpkg-deb").arg("-c").arg(file(package)?).text()?;
        for line in listing.lines() {
            let mut words = line.split_whitespace();
            let mode = words.next().context("a mode")?;
            assert_eq!(words.next(), Some("root/root"), "{line}");
            let path = words.next_back().context("a path")?;
            if mode.starts_with('d') {
                assert_eq!(mode, "drwxr-xr-x", "{line}");
            } else {
                let path = path.trim_start_matches('.');
                match MADE_OF_COMMAND_LINES
                    .iter()
                    .find_map(|at| path.strip_prefix(at))
                {
                    Some(name) => {
                        assert_eq!(mode, "-rw-r--r--", "{line}");
                        manual.push((path.to_owned(), name.to_owned()));
                    }
                    None => found.push(format!("{mode} {path}")),
                }
            }
        }
        has_manual_of_its_programs(&manual, contents)?;
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{package}");
    }
    Ok(())
}

/// With those that README.md leads to.
fn documents() -> Result<Vec<String>> {
    let mut documents: Vec<String> = DOCUMENTS.map(str::to_owned).into();
    for entry in fs::read_dir(workspace_folder()?.join("docs"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") {
            documents.push(format!("docs/{name}"));
        }
    }
    Ok(documents)
}

/// Each program has its page and its completion for each shell, and there is nothing of others.
fn has_manual_of_its_programs(manual: &[(String, String)], contents: &[&str]) -> Result<()> {
    let programs: Vec<&str> = (contents.iter())
        .filter_map(|line| Some(line.split_once("/usr/bin/")?.1))
        .collect();
    for program in &programs {
        for file in [
            format!("/usr/share/bash-completion/completions/{program}"),
            format!("/usr/share/fish/vendor_completions.d/{program}.fish"),
            format!("/usr/share/man/man1/{program}.1.gz"),
            format!("/usr/share/zsh/vendor-completions/_{program}"),
        ] {
            ensure!(manual.iter().any(|(path, _)| *path == file), "no {file}");
        }
    }
    for (path, name) in manual {
        let name = name.split('.').next().unwrap_or_default();
        let is_of = |program: &&str| {
            name.strip_prefix(*program)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        ensure!(
            programs.iter().any(is_of),
            "{path} is of no program of the package"
        );
    }
    Ok(())
}

#[test]
fn packages_say_what_they_need_and_what_is_the_administrators() -> Result<()> {
    let manifest: toml::Table =
        fs::read_to_string(workspace_folder()?.join("Cargo.toml"))?.parse()?;
    let version = manifest
        .get("workspace")
        .and_then(|workspace| workspace.get("package")?.get("version")?.as_str())
        .context("the workspace has a version")?;
    let needs: BTreeMap<&str, &[&str]> = [
        (
            "vrot-host",
            [
                "libc6",
                "libtpms0",
                "libtss2-esys",
                "libtss2-tcti-device0",
                "systemd",
                "tpm-udev",
                "vrot-operator",
            ]
            .as_slice(),
        ),
        ("vrot-operator", &["libc6"]),
        ("vrot-swtpm", &["libc6", "libtpms0", "swtpm-tools"]),
        (
            "vrot-guest",
            &["libtss2-esys", "libtss2-tcti-device0", "tpm-udev"],
        ),
        ("vrot-device", &["libc6"]),
        (
            "vrot-confirm",
            &[
                "libtss2-esys",
                "libtss2-tcti-device0",
                "systemd",
                "tpm-udev",
            ],
        ),
        ("vrot-tenant", &["libc6"]),
    ]
    .into();
    for (package, needs) in needs {
        let field = |name: &str| {
            Tool::new("dpkg-deb")
                .arg("-f")
                .arg(file(package)?)
                .arg(name)
                .text()
                .map(|text| text.trim().to_owned())
        };
        assert_eq!(field("Package")?, package);
        assert_eq!(field("Version")?, version);
        let depends = field("Depends")?;
        for need in needs {
            ensure!(
                depends.split(", ").any(|one| one.starts_with(need)),
                "{package} does not depend on {need}: {depends}"
            );
        }
        // Neither an issuer nor a device nor a tenant has a TPM of its own, or a service of ours.
        let bare = ["vrot-operator", "vrot-device", "vrot-tenant"].contains(&package);
        for foreign in ["tss2", "tpm", "systemd"] {
            ensure!(!bare || !depends.contains(foreign), "{package}: {depends}");
        }
        ensure!(
            package != "vrot-device" || !depends.contains("libt"),
            "a device needs no TPM and no software for one: {depends}"
        );
        ensure!(
            !depends.contains('@') && !depends.contains(", ,"),
            "{depends}"
        );
    }
    for (package, expected) in [
        (
            "vrot-host",
            "/etc/apparmor.d/abstractions/libvirt-qemu.d/vrot\n/etc/libvirt/hooks/qemu.d/vrot\n\
             /etc/vtpm-manager/config.toml\n/etc/vtpm-manager/libvirt.toml\n",
        ),
        ("vrot-swtpm", "/etc/vtpm-manager/swtpm.toml\n"),
        ("vrot-guest", "/etc/default/vrot-service\n"),
        ("vrot-confirm", "/etc/default/vrot-confirm\n"),
    ] {
        let conffiles = Tool::new("dpkg-deb").arg("-I").arg(file(package)?);
        assert_eq!(conffiles.arg("conffiles").text()?, expected);
    }
    Ok(())
}

#[test]
fn the_same_programs_give_the_same_packages() -> Result<()> {
    let again = tempfile::tempdir()?;
    build(again.path())?;
    for package in PACKAGES {
        let first = file(package)?;
        let name = first.file_name().context("a name")?;
        ensure!(
            fs::read(&first)? == fs::read(again.path().join(name))?,
            "{package} differs from one build to the next"
        );
    }
    Ok(())
}

/// Licences such as MIT's ask that their text goes along.
#[test]
fn the_licences_of_all_linked_libraries_go_along() -> Result<()> {
    let installed = tempfile::tempdir()?;
    for (package, library) in [
        ("vrot-host", "tokio 1."),
        ("vrot-operator", "hyper 1."),
        ("vrot-swtpm", "clap 4."),
        ("vrot-guest", "minicbor 2."),
        ("vrot-device", "rustls-webpki 0."),
        ("vrot-confirm", "unicode-security 0."),
        ("vrot-tenant", "hyper 1."),
    ] {
        install(package, installed.path())?;
        let documents = installed.path().join("usr/share/doc").join(package);
        let text = Tool::new("gzip")
            .arg("-dc")
            .arg(documents.join("third-party-licences.gz"))
            .run()?;
        let text = String::from_utf8_lossy(&text);
        let (index, texts) = text.split_once("\n==== text").context("texts")?;
        ensure!(index.lines().any(|line| line.starts_with(library)));
        ensure!(texts.contains("Permission is hereby granted, free of charge"));
        ensure!(!index.lines().any(|line| line.ends_with(": ")), "{index}");
    }
    Ok(())
}

#[test]
fn what_can_be_switched_on_is_stopped_and_forgotten_with_its_package() -> Result<()> {
    let packaging = workspace_folder()?.join("vtpm-manager/packaging");
    for package in PACKAGES {
        let folder = packaging.join(package);
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.context("a file without a name")?;
            let is_unit = [".service", ".socket", ".timer"]
                .iter()
                .any(|end| name.ends_with(end));
            if !is_unit || !fs::read_to_string(&path)?.contains("[Install]") {
                continue;
            }
            // Of a template, each instance.
            let units = name.replace("@.", "@*.");
            for script in ["prerm", "postrm"] {
                let said = fs::read_to_string(folder.join(script))?;
                ensure!(said.contains(&units), "{package}: {script} leaves {units}");
            }
        }
    }
    Ok(())
}

#[test]
fn systemd_takes_the_units_and_finds_them_confined() -> Result<()> {
    for (package, unit, most) in [
        ("vrot-host", "vtpm-managerd.service", 15),
        ("vrot-host", "vrot-dashboard.service", 40),
        ("vrot-host", "vrot-libvirt-sync.service", 40),
        ("vrot-guest", "vrot-service.service", 25),
        ("vrot-guest", "vrot-proxy@.service", 25),
        ("vrot-device", "vrot-device-proxy@.service", 15),
        ("vrot-confirm", "vrot-confirm.service", 20),
    ] {
        let installed = tempfile::tempdir()?;
        // A host has the command line of the operator, too.
        for package in [package, "vrot-operator"] {
            install(package, installed.path())?;
        }
        let path = installed.path().join("usr/lib/systemd/system").join(unit);
        // It looks for the programs on this machine.
        let text = fs::read_to_string(&path)?;
        let here = installed.path().join("usr/bin");
        let here = format!("={}/", here.display());
        ensure!(text.contains("=/usr/bin/"), "{text}");
        fs::write(&path, text.replace("=/usr/bin/", &here))?;

        let said = Tool::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&path)
            .outcome()?;
        // It also speaks of other units of this machine, and ends well with most faults.
        let errors = String::from_utf8_lossy(&said.stderr);
        let ours: Vec<&str> = errors.lines().filter(|line| line.contains(unit)).collect();
        ensure!(said.status.success() && ours.is_empty(), "{unit}: {errors}");

        // 0 is a unit that can do nothing, 100 one that can do everything.
        Tool::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(format!("--threshold={most}"))
            .arg(&path)
            .run()?;
    }
    Ok(())
}

#[test]
fn units_name_documents_that_their_package_has() -> Result<()> {
    let mut looked_at = 0;
    for package in PACKAGES {
        let installed = tempfile::tempdir()?;
        install(package, installed.path())?;
        let Ok(units) = fs::read_dir(installed.path().join("usr/lib/systemd/system")) else {
            continue;
        };
        for unit in units {
            let path = unit?.path();
            let text = fs::read_to_string(&path)?;
            let named: Vec<&str> = (text.lines())
                .filter_map(|line| line.strip_prefix("Documentation="))
                .flat_map(str::split_whitespace)
                .filter_map(|named| named.strip_prefix("file:///"))
                .collect();
            for name in named {
                let found = installed.path().join(name).is_file();
                ensure!(found, "{}: there is no /{name}", path.display());
                looked_at += 1;
            }
        }
    }
    ensure!(looked_at > 0, "no unit names a document");
    Ok(())
}

#[test]
fn apparmor_takes_the_rule_for_qemu_under_libvirt() -> Result<()> {
    let installed = tempfile::tempdir()?;
    install("vrot-host", installed.path())?;
    let rule = "etc/apparmor.d/abstractions/libvirt-qemu.d/vrot";
    let profile = installed.path().join("profile");
    let parse = |rules: &str| {
        fs::write(&profile, format!("profile vm {{\n{rules}\n}}\n"))?;
        Tool::new("apparmor_parser")
            .args(["--skip-kernel-load", "--skip-cache"])
            .arg(&profile)
            .outcome()
    };
    let included = format!("#include \"{}\"", installed.path().join(rule).display());
    let said = parse(&included)?;
    ensure!(said.status.success(), "{said:?}");
    ensure!(!parse(&format!("{included}\n /x rw"))?.status.success());
    Ok(())
}

#[test]
fn systemd_takes_the_users_and_folders() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test makes folders of other users: run it as root"
    );
    let installed = tempfile::tempdir()?;
    for package in ["vrot-host", "vrot-confirm"] {
        install(package, installed.path())?;
    }
    let root = format!("--root={}", installed.path().display());
    Tool::new("systemd-sysusers").arg(&root).run()?;
    let read = |name: &str| fs::read_to_string(installed.path().join(name));
    let (users, groups) = (read("etc/passwd")?, read("etc/group")?);
    ensure!(users.contains("\nvtpm-manager:") || users.starts_with("vtpm-manager:"));
    ensure!(groups.lines().any(|line| line.starts_with("vrot:")));
    let is_there = |line: &str| line.starts_with("vrot-confirm:");
    ensure!(users.lines().any(is_there) && groups.lines().any(is_there));
    let may_use_tpm = |line: &str| line.starts_with("tss:") && line.ends_with(":vrot-confirm");
    ensure!(groups.lines().any(may_use_tpm), "{groups}");

    Tool::new("systemd-tmpfiles")
        .args([&root, "--create"])
        .run()?;
    for (folder, mode) in [
        ("var/lib/vtpm-manager", 0o700),
        ("run/vtpm-manager", 0o710),
        ("var/lib/vrot-confirm", 0o700),
    ] {
        let metadata = fs::metadata(installed.path().join(folder))?;
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{folder}");
    }
    Ok(())
}

#[test]
fn scripts_of_the_packages_keep_state_until_they_are_purged() -> Result<()> {
    for package in ["vrot-host", "vrot-guest", "vrot-device", "vrot-confirm"] {
        let control = tempfile::tempdir()?;
        Tool::new("dpkg-deb")
            .arg("-e")
            .arg(file(package)?)
            .arg(control.path())
            .run()?;
        for script in ["postinst", "prerm", "postrm"] {
            let path = control.path().join(script);
            assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o755);
            Tool::new("sh").arg("-n").arg(&path).run()?;
            let text = fs::read_to_string(&path)?;
            ensure!(!text.contains("systemctl enable"), "{package}: {script}");
            let (before, _) = text.split_once("= purge").unwrap_or((&text, ""));
            ensure!(!before.contains("rm -"), "{package}: {script}");
        }
    }
    Ok(())
}

#[test]
fn what_is_installed_works() -> Result<()> {
    let run = RunFolder::create("package")?;
    let root = run.join("root");
    for package in PACKAGES {
        install(package, &root)?;
    }
    let bin = root.join("usr/bin");
    for name in [
        "vtpm-backend",
        "vtpmctl",
        "vrot-service",
        "vrot-device",
        "vrot-confirm",
        "vrot-tenant",
    ] {
        let said = Tool::new(bin.join(name)).arg("--version").text()?;
        ensure!(said.starts_with(name) || said.contains(' '), "{said}");
    }

    let tpm_state = run.join("tpm-state");
    MadeTpm::first(&["sha256"])?.copy_to(&tpm_state)?;
    let tpm = switch_on(&run, "host", &tpm_state)?;
    let event_log = run.join("event-log");
    fs::write(&event_log, [])?;
    // The shipped configuration with all its entries, in another place.
    let config = root.join("etc/vtpm-manager/config.toml");
    let mut text = String::new();
    for line in fs::read_to_string(&config)?.lines() {
        match line.strip_prefix('#') {
            Some(entry) if !entry.is_empty() && !entry.starts_with(' ') => text.push_str(entry),
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    for (there, here) in [
        ("device:/dev/tpmrm0", tpm.tcti()),
        ("/run/vrot-host/event-log", event_log.display().to_string()),
        ("/var/lib/vtpm-manager", at(&root.join("var"))),
        ("/run/vtpm-manager", at(&run.join("run"))),
        ("/usr/bin/vtpm-backend", at(&bin.join("vtpm-backend"))),
    ] {
        let quoted = format!("\"{there}");
        ensure!(
            text.contains(&quoted),
            "{there} is not in the configuration"
        );
        text = text.replace(&quoted, &format!("\"{here}"));
    }
    fs::write(&config, text)?;

    let mut command = Command::new(bin.join("vtpm-managerd"));
    command.arg("--config").arg(&config);
    let mut manager = Process::start("vtpm-managerd", command, &run.log("manager.log"))?;
    let socket = run.join("run/api.sock");
    manager.wait_until("the manager's socket", Duration::from_secs(30), || {
        Ok(UnixStream::connect(&socket).ok().map(drop))
    })?;
    let shown = Tool::new(bin.join("vtpmctl"))
        .arg("--socket")
        .arg(&socket)
        .args(["--output", "json", "host", "show"])
        .run()?;
    let shown: Value = serde_json::from_slice(&shown)?;
    assert_eq!(
        shown.get("state_dir").and_then(Value::as_str),
        Some(at(&root.join("var")).as_str())
    );
    ensure!(manager.stop()?.success());
    Ok(())
}

/// The shipped file with either mode, and with its other entry.
#[test]
fn the_programs_for_launchers_take_their_shipped_configuration() -> Result<()> {
    let installed = tempfile::tempdir()?;
    install("vrot-swtpm", installed.path())?;
    let config = installed.path().join("etc/vtpm-manager/swtpm.toml");
    let shipped = fs::read_to_string(&config)?;
    let state = installed.path().join("state");
    fs::create_dir(&state)?;
    let set_up = || {
        let mut tool = Tool::new(installed.path().join("usr/bin/swtpm_setup"));
        tool = tool.env("VROT_SWTPM_CONFIG", &config);
        tool.args(["--tpm2", "--createek", "--tpm-state"])
            .arg(&state)
            .outcome()
    };
    let plain = set_up()?;
    ensure!(plain.status.success(), "{plain:?}");
    ensure!(state.join("tpm2-00.permall").exists(), "{plain:?}");

    let manager = installed.path().join("no-manager.sock");
    let anchored = shipped
        .replace("mode = \"plain\"", "mode = \"anchored\"")
        .replace("#socket", "socket")
        .replace("/run/vtpm-manager/swtpm.sock", &at(&manager));
    ensure!(anchored.contains(&at(&manager)), "{shipped}");
    fs::write(&config, anchored)?;
    fs::remove_file(state.join("tpm2-00.permall"))?;
    let refused = set_up()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned()
        + &String::from_utf8_lossy(&refused.stdout);
    ensure!(!refused.status.success(), "{said}");
    ensure!(said.contains(&at(&manager)), "{said}");
    ensure!(!state.join("tpm2-00.permall").exists(), "an empty TPM");
    Ok(())
}

fn at(path: &Path) -> String {
    path.display().to_string()
}
