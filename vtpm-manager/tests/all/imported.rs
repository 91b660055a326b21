//! TPMs that had their life with swtpm become vRoTs, and are given back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use test_support::software_tpm::SoftwareTpm;
use test_support::tool::Tool;
use uuid::Uuid;

use crate::support::identity::verified;
use crate::support::vmm::{Vmm, nv_read};
use crate::support::{Host, TENANT, said, wait_until};

/// What a VM has in its TPM.
const INDEX: u32 = 0x0150_0001;
const CONTENT: &[u8] = b"remember";

/// Where swtpm keeps the TPM of a VM, in libvirt's layout, after the VM has used it.
fn used_with_swtpm(host: &Host, folder: &str, vm: Uuid) -> Result<(PathBuf, Vec<u8>)> {
    let place = PathBuf::from(host.path(folder))
        .join(vm.to_string())
        .join("tpm2");
    fs::create_dir_all(&place)?;
    let public = PathBuf::from(host.path(&format!("{vm}.ek")));
    let swtpm = switched_on(host, &place)?;
    let tool = |name: &str| Tool::new(name).env("TPM2TOOLS_TCTI", swtpm.tcti());
    tool("tpm2_nvdefine")
        .args(["-Q", "-C", "o", "-s", "8", "0x01500001"])
        .run()?;
    let content = PathBuf::from(host.path(&format!("{vm}.content")));
    fs::write(&content, CONTENT)?;
    tool("tpm2_nvwrite")
        .args(["-Q", "-C", "o", "0x01500001", "-i"])
        .arg(&content)
        .run()?;
    // As swtpm_setup does with a certificate of its maker.
    tool("tpm2_nvdefine")
        .args(["-Q", "-C", "p", "-s", "8"])
        .args([
            "-a",
            "platformcreate|ppwrite|ppread|ownerread|authread|no_da|writedefine",
        ])
        .arg("0x01c00002")
        .run()?;
    tool("tpm2_createek")
        .args(["-Q", "-G", "rsa", "-f", "pem", "-c"])
        .arg(host.path(&format!("{vm}.ctx")))
        .arg("-u")
        .arg(&public)
        .run()?;
    swtpm.switch_off()?;
    Ok((place, fs::read(public)?))
}

fn switched_on(host: &Host, place: &Path) -> Result<SoftwareTpm> {
    let id = Uuid::new_v4();
    let socket = PathBuf::from(host.path(&format!("{}.tpm", id.simple())));
    SoftwareTpm::start("swtpm", place, &socket, Path::new(&host.path("swtpm.log")))
}

/// What is in the files of a folder.
fn contents(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        files.push((path.clone(), fs::read(&path)?));
    }
    files.sort();
    Ok(files)
}

#[test]
fn a_tpm_of_swtpm_becomes_a_vrot_with_all_that_is_in_it_and_is_given_back() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = Uuid::new_v4();
    let (place, ek) = used_with_swtpm(&host, "swtpm", vm)?;
    let name = place.display().to_string();
    let before = contents(&place)?;
    let import = ["import", "--tenant", TENANT, &name];

    let dry = host.json(["import", "--tenant", TENANT, "--dry-run", &name])?;
    assert_eq!(dry[0]["result"], "would-be-imported", "{dry}");
    assert_eq!(contents(&place)?, before, "a dry run changes nothing");
    let imported = host.json(import)?;
    assert_eq!(imported[0]["result"], "imported", "{imported}");
    let vm = vm.to_string();
    assert_eq!(imported[0]["vm"], vm.as_str());
    assert_eq!(host.json(["show", &vm])?["imported"], true);
    let made_here = host.create()?;
    assert_eq!(host.json(["show", &made_here])?["imported"], false);

    // It is certified, with the endorsement key that the VM has known.
    let identity = host.json(["identity", &vm])?;
    assert_eq!(verified(&host, &identity)?.claims().vm.to_string(), vm);
    let found = identity["ek_rsa"]["public_key_pem"].as_str();
    assert_eq!(found.map(str::trim), Some(String::from_utf8(ek)?.trim()));
    let audit = host.audit()?;
    let line = audit.iter().find(|line| line["event"] == "vrot-imported");
    assert_eq!(line.context("a line")?["vm"], vm.as_str());

    // What the VM had is there, and the certificate in its place.
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    assert_eq!(nv_read(&mut vmm, INDEX)?, CONTENT);
    ensure!(
        nv_read(&mut vmm, 0x01c0_0002)?.len() > 500,
        "no EK certificate"
    );
    drop(vmm);

    // Nobody uses the old place by accident.
    ensure!(switched_on(&host, &place).is_err(), "swtpm starts it");
    let refused = host.refused(import)?;
    ensure!(refused.contains("1 of 1"), "{refused}");

    // It is given back as it was; what the vRoT has done is not lost by accident.
    host.ctl(["stop", &vm])?;
    let refused = said(&mut host.vtpmctl(["import", "--undo", &name]))?;
    assert_eq!(refused.status, 1);
    ensure!(refused.out.contains("--even-if-used"), "{}", refused.out);
    let undone = host.json(["import", "--undo", "--even-if-used", &name])?;
    assert_eq!(undone[0]["result"], "undone", "{undone}");
    assert_eq!(contents_of_permanent(&place)?, contents_of(&before)?);
    ensure!(host.refused(["show", &vm])?.contains("no vRoT"));
    switched_on(&host, &place)?.switch_off()?;
    let refused = said(&mut host.vtpmctl(["import", "--undo", &name]))?;
    ensure!(refused.out.contains("not taken over"), "{}", refused.out);
    Ok(())
}

fn contents_of(files: &[(PathBuf, Vec<u8>)]) -> Result<Vec<u8>> {
    let state = files
        .iter()
        .find(|(path, _)| path.ends_with("tpm2-00.permall"));
    Ok(state.context("a state")?.1.clone())
}

#[test]
fn of_many_tpms_each_that_can_be_is_imported_and_the_others_are_left_as_they_are() -> Result<()> {
    let host = Host::enrolled()?;
    let [first, second, running, damaged, foreign, owned] = [(); 6].map(|()| Uuid::new_v4());
    let mut places = Vec::new();
    for vm in [first, second, running, damaged, foreign, owned] {
        places.push(used_with_swtpm(&host, "swtpm", vm)?.0);
    }
    let [_, _, of_running, of_damaged, of_foreign, of_owned] = &places[..] else {
        anyhow::bail!("six places");
    };
    let _swtpm = switched_on(&host, of_running)?;
    fs::write(of_damaged.join("tpm2-00.permall"), b"not what it was")?;
    // In swtpm's form, and no state of a TPM.
    let nonsense = [
        &[2, 1, 0, 10, 0, 0, 0, 0, 0, 20, 0, 1, 0, 0, 0, 4][..],
        b"none",
    ]
    .concat();
    fs::write(of_foreign.join("tpm2-00.permall"), nonsense)?;
    let owner = switched_on(&host, of_owned)?;
    Tool::new("tpm2_changeauth")
        .args(["-c", "o", "secret"])
        .env("TPM2TOOLS_TCTI", owner.tcti())
        .run()?;
    owner.switch_off()?;
    let left = [of_damaged, of_foreign, of_owned];
    let before = left.map(|place| contents_of_permanent(place));

    let all = host.path("swtpm");
    let said = said(
        Command::new(host.vtpmctl(["--output"]).get_program())
            .args(["--output", "json", "--socket"])
            .arg(host.socket())
            .args(["import", "--tenant", TENANT, "--all", &all]),
    )?;
    assert_eq!(said.status, 1, "{}", said.err);
    ensure!(said.err.contains("4 of 6"), "{}", said.err);
    let results: Value = serde_json::from_str(&said.out)?;
    for (vm, expected, reason) in [
        (first, "imported", ""),
        (second, "imported", ""),
        (running, "failed", "in use"),
        (damaged, "failed", "no state"),
        (foreign, "failed", "nothing was created"),
        (owned, "failed", "TPM2_EvictControl"),
    ] {
        let vm = vm.to_string();
        let results = results.as_array().context("a list")?;
        let entry = results.iter().find(|entry| entry["vm"] == vm.as_str());
        let entry = entry.context("an entry")?;
        assert_eq!(entry["result"], expected, "{entry}");
        let found = entry["reason"].as_str().unwrap_or_default();
        ensure!(found.contains(reason), "{entry}");
        assert_eq!(
            host.ctl(["show", &vm]).is_ok(),
            expected == "imported",
            "{vm}"
        );
    }
    for (place, before) in left.iter().zip(before) {
        assert_eq!(
            contents_of_permanent(place)?,
            before?,
            "{}",
            place.display()
        );
    }
    host.ctl(["audit", "verify"])?;
    Ok(())
}

fn contents_of_permanent(place: &Path) -> Result<Vec<u8>> {
    Ok(fs::read(place.join("tpm2-00.permall"))?)
}

#[test]
fn a_place_stays_out_of_use_unless_the_manager_says_that_no_vrot_is_made() -> Result<()> {
    let host = Host::enrolled_on_small_disk("")?;
    let vm = Uuid::new_v4();
    let (place, _) = used_with_swtpm(&host, "swtpm", vm)?;
    let name = place.display().to_string();
    let import = ["import", "--tenant", TENANT, &name];
    let filling = host.fill_disk()?;

    // There is room for a backend, and none for what the store is to hold.
    let room = fs::File::options().write(true).open(&filling)?;
    let failed = loop {
        let said = said(&mut host.vtpmctl(import))?;
        assert_eq!(said.status, 1, "{}", said.out);
        if !said.out.contains("nothing was created") {
            break said;
        }
        room.set_len(room.metadata()?.len().saturating_sub(4096))?;
    };
    ensure!(failed.out.contains("not known"), "{}", failed.out);
    let kept = contents(&place)?;
    let refused = said(&mut host.vtpmctl(["import", "--undo", &name]))?;
    ensure!(refused.out.contains("--even-if-used"), "{}", refused.out);
    assert_eq!(contents(&place)?, kept);
    ensure!(switched_on(&host, &place).is_err(), "swtpm starts it");

    // A file that is open keeps its blocks.
    drop(room);
    fs::remove_file(filling)?;
    wait_until("the store to take it", || {
        // Until it does, the place is given back, or not.
        said(&mut host.vtpmctl(["import", "--undo", "--even-if-used", &name]))?;
        Ok(said(&mut host.vtpmctl(import))?.status == 0)
    })
}

#[test]
fn a_place_is_given_back_unasked_only_by_the_host_that_has_its_unused_vrot() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = Uuid::new_v4();
    let (place, _) = used_with_swtpm(&host, "swtpm", vm)?;
    let (name, vm) = (place.display().to_string(), vm.to_string());
    let import = ["import", "--tenant", TENANT, &name];
    let undo = ["import", "--undo", &name];
    host.json(import)?;
    host.json(undo)?;

    // Whether its vRoT was used before it was deleted, nobody knows.
    host.json(import)?;
    host.ctl(["delete", &vm])?;
    let kept = contents(&place)?;
    let refused = said(&mut host.vtpmctl(undo))?;
    ensure!(refused.out.contains("--even-if-used"), "{}", refused.out);
    assert_eq!(contents(&place)?, kept);

    // Another host has it.
    let note = place.join("tpm2-00.permall");
    let here = fs::read_to_string(&note)?;
    let named = here.lines().last().context("a line of JSON")?;
    let mut elsewhere: Value = serde_json::from_str(named)?;
    elsewhere["host"] = "another.example".into();
    fs::write(&note, here.replace(named, &elsewhere.to_string()))?;
    let refused = said(host.vtpmctl(undo).arg("--even-if-used"))?;
    ensure!(refused.out.contains("another.example"), "{}", refused.out);
    fs::write(&note, here)?;

    host.json(["import", "--undo", "--even-if-used", &name])?;
    switched_on(&host, &place)?.switch_off()
}

#[test]
fn of_one_tpm_a_host_has_one_vrot_however_often_it_is_imported() -> Result<()> {
    let host = Host::enrolled()?;
    let [vm, other] = [(); 2].map(|()| Uuid::new_v4());
    let (place, _) = used_with_swtpm(&host, "swtpm", vm)?;
    let copy = PathBuf::from(host.path("copy")).join(other.to_string());
    fs::create_dir_all(&copy)?;
    fs::copy(place.join("tpm2-00.permall"), copy.join("tpm2-00.permall"))?;
    let before = contents_of_permanent(&copy)?;
    host.json(["import", "--tenant", TENANT, &place.display().to_string()])?;

    let import = ["import", "--tenant", TENANT, &copy.display().to_string()];
    let refused = said(&mut host.vtpmctl(import))?;
    assert_eq!(refused.status, 1);
    ensure!(
        refused.out.contains(&format!("of VM {vm} already")),
        "{}",
        refused.out
    );
    ensure!(
        host.refused(["show", &other.to_string()])?
            .contains("no vRoT")
    );
    assert_eq!(contents_of_permanent(&copy)?, before, "it is given back");
    host.ctl(["delete", &vm.to_string()])?;
    host.json(import)?;
    host.ctl(["audit", "verify"])?;
    Ok(())
}
