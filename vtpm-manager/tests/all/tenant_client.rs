//! `vrot-tenant` asks managers: two hosts of one issuer, two tenants, four VMs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use attestation::event_log::EventType;
use attestation::event_log::writer::LogWriter;
use attestation::{BOOT_PCRS, EventLog, reference_values};
use cert_chain::HashAlgorithm;
use serde_json::Value;
use test_support::tpm_commands::pcr_extend_with;
use uuid::Uuid;

use crate::support::evidence::leaf;
use crate::support::tenant::{port, serve_tenants};
use crate::support::vmm::Vmm;
use crate::support::{DOMAIN, Host, program, said, wait_until};

/// Two hosts that serve tenants, and on each a VM of `acme` and one of `other`, all of them running.
struct Scene {
    hosts: [Host; 2],
    /// By host: of `acme`, of `other`.
    vms: [[String; 2]; 2],
    _vmms: Vec<Vmm>,
}

/// What follows events; it ends with this.
struct Watching {
    client: Child,
    lines: BufReader<ChildStdout>,
}

const FIRMWARE: &[u8] = b"firmware";
const TENANTS: [&str; 2] = ["acme", "other"];

impl Scene {
    fn new(more: &str) -> Result<Self> {
        let (mut first, mut second) = (Host::start()?, Host::start_on_another_makers_tpm()?);
        for host in [&mut first, &mut second] {
            boot(host)?;
            host.make_operator_key()?;
            host.initialise()?;
        }
        first.make_issuer()?;
        let issuer = first.path("issuer");
        first.ctl(["host", "enrol", "--name", "host-1", "--issuer", &issuer])?;
        // The first host's issuer accepts the second one's TPM and operator, too.
        let roots = first.path("issuer/tpm-roots.pem");
        let makers = [fs::read(&roots)?, fs::read(second.path("makers.pem"))?].concat();
        fs::write(&roots, makers)?;
        let operator = second.path("operator.pem.pub");
        first.ctl(["issuer", "operator-key", "add", "--dir", &issuer, &operator])?;
        second.ctl(["host", "enrol", "--name", "host-2", "--issuer", &issuer])?;
        fs::create_dir(second.path("issuer"))?;
        fs::copy(
            first.path("issuer/root.pem"),
            second.path("issuer/root.pem"),
        )?;
        let more = more.replace("ISSUER.CRL", &first.path("issuer.crl"));
        if !more.is_empty() {
            let list = first.path("issuer.crl");
            first.ctl(["issuer", "crl", "--dir", &issuer, "--out", &list])?;
        }
        let mut vmms = Vec::new();
        let mut vms = Vec::new();
        for host in [&mut first, &mut second] {
            serve_tenants(host, &more)?;
            let mut started = |tenant| -> Result<String> {
                let vm = Uuid::new_v4().to_string();
                host.ctl(["create", "--vm", &vm, "--tenant", tenant])?;
                host.ctl(["start", &vm])?;
                let mut vmm = Vmm::attach(&host.control(&vm)?)?;
                // Its identity key is certified once evidence is to be had.
                leaf(&mut vmm)?;
                measure(&mut vmm)?;
                vmms.push(vmm);
                Ok(vm)
            };
            vms.push([started(TENANTS[0])?, started(TENANTS[1])?]);
        }
        let scene = Self {
            vms: [vms[0].clone(), vms[1].clone()],
            hosts: [first, second],
            _vmms: vmms,
        };
        for tenant in TENANTS {
            scene.settings(tenant)?;
        }
        Ok(scene)
    }

    fn path(&self, name: &str) -> String {
        self.hosts[0].path(name)
    }

    /// Certificate, policy and settings of a tenant.
    fn settings(&self, tenant: &str) -> Result<()> {
        let issuer = self.path("issuer");
        let (pem, key) = (format!("{tenant}.pem"), format!("{tenant}.key"));
        self.hosts[0].ctl([
            "issuer",
            "tenant",
            "add",
            tenant,
            "--dir",
            &issuer,
            "--out",
            &self.path(&pem),
            "--new-key",
            &self.path(&key),
        ])?;
        fs::write(
            self.path(&format!("{tenant}.policy")),
            policy(tenant, "booted")?,
        )?;
        fs::write(self.path("strict.policy"), policy(tenant, "other")?)?;
        let mut text = format!(
            "certificate = \"{pem}\"\nkey = \"{key}\"\nroots = \"issuer/root.pem\"\n\
             policy = \"{tenant}.policy\"\n"
        );
        for (number, host) in self.hosts.iter().enumerate() {
            text += &format!(
                "\n[[host]]\nname = \"host-{}.{DOMAIN}\"\naddress = \"127.0.0.1:{}\"\n",
                number + 1,
                port(host)?
            );
        }
        fs::write(self.path(&format!("{tenant}.toml")), text)?;
        Ok(())
    }

    fn command(&self, tenant: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("vrot-tenant")?);
        command
            .args(["--output", "json", "--config"])
            .arg(self.path(&format!("{tenant}.toml")))
            .args(arguments);
        Ok(command)
    }

    fn ask(&self, tenant: &str, arguments: &[&str]) -> Result<(i32, Value)> {
        let said = said(&mut self.command(tenant, arguments)?)?;
        let told = serde_json::from_str(&said.out);
        let told = told.with_context(|| format!("{}{}", said.out, said.err))?;
        Ok((said.status, told))
    }

    fn watch(&self, tenant: &str) -> Result<Watching> {
        let mut command = self.command(tenant, &["watch", "--earlier"])?;
        let mut client = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(client.stdout.take().context("its output")?);
        Ok(Watching { client, lines })
    }
}

impl Watching {
    /// The next line that is so.
    fn line(&mut self, is: impl Fn(&Value) -> bool) -> Result<Value> {
        loop {
            let mut line = String::new();
            ensure!(self.lines.read_line(&mut line)? > 0, "it has ended");
            let line: Value = serde_json::from_str(&line)?;
            if is(&line) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// What a host measures before its manager starts, into its TPM and its log.
fn boot(host: &mut Host) -> Result<()> {
    ensure!(host.shut_down()?.success());
    host.extend_pcr(0, FIRMWARE)?;
    fs::write(host.path("event-log"), boot_log())?;
    host.start_again()
}

fn boot_log() -> Vec<u8> {
    let mut log = LogWriter::crypto_agile(&[HashAlgorithm::Sha256]);
    log.measure(0, EventType::S_CRTM_VERSION, FIRMWARE);
    log.bytes().to_vec()
}

/// TPM2_PCR_Extend of PCR 0, as a guest's firmware does it.
fn measure(vmm: &mut Vmm) -> Result<()> {
    let digest = HashAlgorithm::Sha256.hash(&[b"booted"]);
    let digest = digest.as_bytes().try_into()?;
    vmm.succeed(&pcr_extend_with(0, digest))?;
    Ok(())
}

/// One that expects the hosts' boot, and that VMs measured this into PCR 0, and nothing else.
fn policy(tenant: &str, measured: &str) -> Result<String> {
    let sha256 = HashAlgorithm::Sha256;
    let host = reference_values(&EventLog::parse(&boot_log())?, sha256, BOOT_PCRS)?;
    let first = sha256.hash(&[measured.as_bytes()]);
    let first = sha256.hash(&[&[0; 32], first.as_bytes()]);
    let rest = (1..=9).chain(11..=14);
    let rest = rest.map(|pcr| format!("{pcr} = [\"sha256:{}\"]\n", hex::encode([0; 32])));
    Ok(format!(
        "[trust]\nroots = \"issuer/root.pem\"\n\n[expect]\ntenant = \"{tenant}\"\n\
         hosts = [\"host-1.{DOMAIN}\", \"host-2.{DOMAIN}\"]\n\n{}\n\
         [vm.reference]\n[vm.reference.pcrs]\n0 = [\"sha256:{first}\"]\n{}\n\
         [vm.without_log]\ndemand = [\"pinned-pcrs\"]\n",
        host.to_toml("host"),
        rest.collect::<String>()
    ))
}

fn vms_of(told: &Value) -> Vec<Vec<String>> {
    let of_host = |host: &Value| {
        let vms = host["vms"].as_array().into_iter().flatten();
        vms.filter_map(|vm| vm["vm"].as_str().map(str::to_owned))
            .collect()
    };
    let hosts = told["hosts"].as_array().into_iter().flatten();
    hosts.map(of_host).collect()
}

#[test]
fn two_tenants_of_two_hosts_see_and_attest_each_its_own_vms() -> Result<()> {
    let scene = Scene::new("")?;
    for (number, tenant) in TENANTS.into_iter().enumerate() {
        let own: Vec<Vec<String>> = (scene.vms.iter())
            .map(|of_host| vec![of_host[number].clone()])
            .collect();
        let (status, told) = scene.ask(tenant, &["vms"])?;
        assert_eq!((status, vms_of(&told)), (0, own.clone()), "{told:#}");
        let (status, told) = scene.ask(tenant, &["attest", "--all"])?;
        assert_eq!(told["verdict"], "affirming", "{told:#}");
        assert_eq!((status, vms_of(&told)), (0, own.clone()));
        // Of another tenant's VM nobody knows anything.
        let foreign = &scene.vms[1][1 - number];
        let (status, told) = scene.ask(tenant, &["show", foreign])?;
        assert_eq!(status, 2, "{told:#}");
        let (status, told) = scene.ask(tenant, &["attest", foreign])?;
        assert_eq!(
            (status, &told["missing"][0]),
            (1, &Value::from(foreign.as_str()))
        );
        let (status, told) = scene.ask(tenant, &["show", &own[1][0]])?;
        assert_eq!(
            (status, &told["hosts"][1]["vm"]["state"]),
            (0, &"running".into())
        );
    }

    // A policy of its own refuses one VM, and no other one.
    let strict = format!(
        "\n[[vm]]\nid = \"{}\"\npolicy = \"strict.policy\"\n",
        scene.vms[1][1]
    );
    let settings = fs::read_to_string(scene.path("other.toml"))?;
    fs::write(scene.path("other.toml"), settings + &strict)?;
    let (status, told) = scene.ask("other", &["attest", "--all"])?;
    assert_eq!((status, &told["verdict"]), (1, &"contraindicated".into()));
    assert_eq!(told["hosts"][0]["verdict"], "affirming", "{told:#}");
    assert_eq!(told["hosts"][1]["verdict"], "contraindicated");

    // What is kept is what the device's verifier makes the same of.
    let folder = scene.path("kept");
    fs::create_dir(&folder)?;
    let (status, _) = scene.ask("acme", &["attest", "--all", "--save-evidence", &folder])?;
    assert_eq!(status, 0);
    let kept = format!("{folder}/host-2.{DOMAIN}");
    let nonce = fs::read_to_string(format!("{kept}.nonce"))?;
    let mut verify = Command::new(program("vrot-device")?);
    verify
        .args(["verify", "--purpose", "tenant", "--nonce", nonce.trim()])
        .args([
            "--evidence",
            &format!("{kept}.cbor"),
            "--policy",
            &scene.path("acme.policy"),
        ]);
    let said = said(&mut verify)?;
    assert_eq!(said.status, 0, "{}{}", said.out, said.err);
    ensure!(said.out.contains(&scene.vms[1][0]), "{}", said.out);
    Ok(())
}

#[test]
fn events_of_all_hosts_are_followed_beyond_a_restart_and_a_host_that_is_down_is_told_of()
-> Result<()> {
    let mut scene = Scene::new("")?;
    let mut watching = scene.watch("acme")?;
    // Of two hosts, whichever tells first.
    let mut waited_for: Vec<&str> = scene
        .vms
        .iter()
        .map(|of_host| of_host[0].as_str())
        .collect();
    while !waited_for.is_empty() {
        let started = watching.line(|line| line["kind"] == "started")?;
        assert_eq!(started["tenant"], "acme");
        waited_for.retain(|vm| started["vm"] != *vm);
    }
    let host = format!("host-2.{DOMAIN}");
    ensure!(scene.hosts[1].shut_down()?.success());
    watching.line(|line| line["host"] == host.as_str() && line["kind"] == "ended")?;
    let (status, told) = scene.ask("acme", &["attest", "--all"])?;
    assert_eq!(status, 3, "{told:#}");
    assert_eq!(told["hosts"][0]["verdict"], "affirming");
    assert_eq!(told["hosts"][1]["error"]["code"], "unreachable");

    // It comes up again, at the same place.
    let at = fs::read_to_string(scene.path("acme.toml"))?;
    let at = at.rsplit_once("127.0.0.1:").context("an address")?.1;
    let at = at.split('"').next().context("a port")?;
    let config = scene.hosts[1].path("config.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(
        &config,
        text.replace("127.0.0.1:0", &format!("127.0.0.1:{at}")),
    )?;
    scene.hosts[1].start_again()?;
    watching.line(|line| line["host"] == host.as_str() && line["kind"] == "manager-restarted")?;
    let vm = &scene.vms[1][0];
    scene.hosts[1].ctl(["stop", vm])?;
    let stopped = watching.line(|line| line["kind"] == "stopped")?;
    assert_eq!(
        (&stopped["vm"], &stopped["host"]),
        (&vm.as_str().into(), &host.into())
    );
    Ok(())
}

#[test]
fn a_tenant_that_is_revoked_is_told_so_by_every_host() -> Result<()> {
    let scene = Scene::new("crls = [\"ISSUER.CRL\"]\ncrl_max_age_hours = 1\n")?;
    let mut watching = scene.watch("acme")?;
    watching.line(|line| line["kind"] == "started")?;
    let (issuer, list) = (scene.path("issuer"), scene.path("issuer.crl"));
    scene.hosts[0].ctl([
        "issuer",
        "tenant",
        "revoke",
        "acme",
        "--dir",
        &issuer,
        "--reason",
        "privilege-withdrawn",
        "--crl",
        &list,
    ])?;
    watching.line(|line| line["kind"] == "ended" || line["kind"] == "lost")?;
    wait_until("the hosts to refuse the tenant", || {
        let (status, told) = scene.ask("acme", &["vms"])?;
        let codes = [0, 1].map(|host| told["hosts"][host]["error"]["code"] == "refused-by-host");
        Ok(status == 3 && codes == [true, true])
    })?;
    assert_eq!(scene.ask("other", &["vms"])?.0, 0);
    Ok(())
}
