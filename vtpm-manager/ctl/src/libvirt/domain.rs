//! A domain's XML, as far as it concerns its vRoT.
//!
//! Whoever may define domains may start any VM, so nothing here protects from that person; but a name,
//! a description or metadata of others may come from anywhere. So the text is bounded, DTDs and with
//! them entities are refused, and an element counts only where libvirt looks for it.

use std::path::{Path, PathBuf};

use cert_chain::{Tenant, VmId};
use roxmltree::{Document, Node, ParsingOptions};

use super::error::LibvirtError;

/// The namespace of our metadata: `<vrot:vrot xmlns:vrot="urn:vrot:libvirt:1" tenant="acme"/>`.
pub(super) const NAMESPACE: &str = "urn:vrot:libvirt:1";
/// Longest text.
pub(super) const MAX_TEXT: usize = 1024 * 1024;
/// Domains have some hundreds of elements.
const MAX_NODES: u32 = 100_000;

/// What a domain says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Domain {
    /// Its number, which is that of the VM.
    pub(super) vm: VmId,
    /// Its name.
    pub(super) name: String,
    /// Whose it says that it is.
    pub(super) tenant: Option<Tenant>,
    /// Its TPM.
    pub(super) tpm: DomainTpm,
}

/// A domain's TPM.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DomainTpm {
    /// None at all.
    None,
    /// The vRoT of this VM.
    Own,
    /// A link in our folder that is not this VM's.
    OfAnother(PathBuf),
    /// One that libvirt starts by itself, by swtpm's programs.
    Emulator,
    /// Something else.
    Other,
}

/// Reads XML.
pub(super) fn parse(text: &str) -> Result<Document<'_>, LibvirtError> {
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(text, options).map_err(LibvirtError::Xml)
}

/// Where the vRoT of a VM is linked.
pub(super) fn link(links: &Path, vm: VmId) -> PathBuf {
    links.join(format!("{vm}.sock"))
}

impl Domain {
    /// Reads a domain; `links` is where our links are.
    pub(super) fn read(document: &Document<'_>, links: &Path) -> Result<Self, LibvirtError> {
        let root = document.root_element();
        if !root.has_tag_name("domain") {
            return Err(LibvirtError::NoDomain("this is something else"));
        }
        let name = one(root, "name")?.ok_or(LibvirtError::NoDomain("there is no name"))?;
        let uuid = one(root, "uuid")?.ok_or(LibvirtError::NoUuid)?;
        let vm = text(uuid);
        let vm: VmId = vm.parse().map_err(|source| LibvirtError::Identifier {
            what: "UUID",
            value: vm.to_owned(),
            source,
        })?;
        Ok(Self {
            vm,
            name: text(name).to_owned(),
            tenant: tenant(root)?,
            tpm: tpm(root, links, vm)?,
        })
    }

    /// Whether it has to do with us; refused if what it says of itself does not fit.
    pub(super) fn is_ours(&self, links: &Path) -> Result<bool, LibvirtError> {
        match &self.tpm {
            DomainTpm::Own => Ok(true),
            DomainTpm::OfAnother(found) => Err(LibvirtError::OfAnother {
                vm: self.vm,
                found: found.clone(),
                own: link(links, self.vm),
            }),
            DomainTpm::None | DomainTpm::Emulator | DomainTpm::Other if self.tenant.is_some() => {
                Err(LibvirtError::OtherTpm { vm: self.vm })
            }
            DomainTpm::None | DomainTpm::Emulator | DomainTpm::Other => Ok(false),
        }
    }
}

/// The one child of a name.
pub(super) fn one<'a, 'i>(
    parent: Node<'a, 'i>,
    name: &str,
) -> Result<Option<Node<'a, 'i>>, LibvirtError> {
    let mut children = parent.children().filter(|child| child.has_tag_name(name));
    match (children.next(), children.next()) {
        (_, Some(_)) => Err(LibvirtError::NoDomain("an element of it stands twice")),
        (child, None) => Ok(child),
    }
}

/// Our element in a domain's metadata.
pub(super) fn our_metadata<'a, 'i>(
    root: Node<'a, 'i>,
) -> Result<Option<Node<'a, 'i>>, LibvirtError> {
    let Some(metadata) = one(root, "metadata")? else {
        return Ok(None);
    };
    let is_ours = |child: &Node<'_, '_>| child.tag_name().namespace() == Some(NAMESPACE);
    let mut ours = metadata.children().filter(is_ours);
    match (ours.next(), ours.next()) {
        (_, Some(_)) => Err(LibvirtError::NoDomain("its vRoT metadata stand twice")),
        (Some(other), _) if other.tag_name().name() != "vrot" => {
            Err(LibvirtError::Metadata(other.tag_name().name().to_owned()))
        }
        (ours, None) => Ok(ours),
    }
}

fn tenant(root: Node<'_, '_>) -> Result<Option<Tenant>, LibvirtError> {
    let Some(ours) = our_metadata(root)? else {
        return Ok(None);
    };
    if let Some(unknown) = ours.attributes().find(|known| known.name() != "tenant") {
        return Err(LibvirtError::Metadata(unknown.name().to_owned()));
    }
    let Some(value) = ours.attribute("tenant") else {
        return Ok(None);
    };
    let tenant = value.parse().map_err(|source| LibvirtError::Identifier {
        what: "tenant",
        value: value.to_owned(),
        source,
    })?;
    Ok(Some(tenant))
}

/// The domain's TPMs; libvirt takes one, and a proxy for the virtual machine's own beside it on one
/// architecture that is not ours.
pub(super) fn tpms<'a, 'i>(root: Node<'a, 'i>) -> Result<Vec<Node<'a, 'i>>, LibvirtError> {
    let devices = one(root, "devices")?;
    let all = devices.into_iter().flat_map(|devices| devices.children());
    Ok(all.filter(|child| child.has_tag_name("tpm")).collect())
}

fn tpm(root: Node<'_, '_>, links: &Path, vm: VmId) -> Result<DomainTpm, LibvirtError> {
    let all = tpms(root)?;
    let Some(first) = all.first() else {
        return Ok(DomainTpm::None);
    };
    let backend = one(*first, "backend")?;
    let source = match (
        backend,
        backend.and_then(|backend| backend.attribute("type")),
    ) {
        (Some(backend), Some("external")) => one(backend, "source")?,
        (_, Some("emulator")) => return Ok(DomainTpm::Emulator),
        _ => None,
    };
    let path = source
        .and_then(|source| source.attribute("path"))
        .map(Path::new);
    Ok(match path {
        Some(path) if path == link(links, vm) && all.len() == 1 => DomainTpm::Own,
        Some(path) if path.starts_with(links) => DomainTpm::OfAnother(path.to_owned()),
        _ => DomainTpm::Other,
    })
}

fn text<'a>(node: Node<'a, '_>) -> &'a str {
    node.text().unwrap_or_default().trim()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::libvirt) const VM: &str = "1f0e9d8c-7b6a-4958-8776-655443322110";
    pub(in crate::libvirt) const LINKS: &str = "/run/vrot-vms";

    pub(in crate::libvirt) fn domain(metadata: &str, devices: &str) -> String {
        format!(
            "<domain type='kvm'>\n  <name>vm</name>\n  <uuid>{VM}</uuid>\n{metadata}  \
             <memory>1</memory>\n  <devices>\n{devices}  </devices>\n</domain>\n"
        )
    }

    pub(in crate::libvirt) fn tpm_at(path: &str) -> String {
        format!(
            "    <tpm model='tpm-crb'><backend type='external'><source type='unix' mode='connect' \
             path='{path}'/></backend></tpm>\n"
        )
    }

    fn read(text: &str) -> Result<(Domain, bool), String> {
        let document = parse(text).map_err(|error| error.to_string())?;
        let links = Path::new(LINKS);
        let domain = Domain::read(&document, links).map_err(|error| error.to_string())?;
        let ours = domain.is_ours(links).map_err(|error| error.to_string())?;
        Ok((domain, ours))
    }

    fn refusal(text: &str) -> String {
        read(text).err().unwrap_or_default()
    }

    #[test]
    fn a_domain_is_ours_by_a_link_that_is_called_after_it() {
        let own = tpm_at(&format!("{LINKS}/{VM}.sock"));
        let metadata = "<metadata><v:vrot xmlns:v='urn:vrot:libvirt:1' tenant='acme'/></metadata>";
        let (read_domain, ours) =
            read(&domain(metadata, &own)).unwrap_or_else(|error| panic!("{error}"));
        assert!(ours);
        assert_eq!(read_domain.vm.to_string(), VM);
        assert_eq!(
            read_domain
                .tenant
                .map(|tenant| tenant.to_string())
                .as_deref(),
            Some("acme")
        );
        for other in [
            String::new(),
            tpm_at("/run/other.sock"),
            "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>".to_owned(),
        ] {
            assert_eq!(
                read(&domain("", &other)).map(|(_, ours)| ours),
                Ok(false),
                "{other}"
            );
            assert!(
                refusal(&domain(metadata, &other)).contains("its TPM is another one"),
                "{other}"
            );
        }
    }

    #[test]
    fn the_vrot_of_another_vm_is_refused() {
        for other in [
            "2f0e9d8c-7b6a-4958-8776-655443322110.sock",
            "x",
            &format!("../vrot-vms/{VM}.sock"),
        ] {
            let said = refusal(&domain("", &tpm_at(&format!("{LINKS}/{other}"))));
            assert!(said.contains("is not its own"), "{other}: {said}");
        }
        // Two of them are none.
        let own = tpm_at(&format!("{LINKS}/{VM}.sock"));
        assert!(refusal(&domain("", &format!("{own}{own}"))).contains("is not its own"));
    }

    #[test]
    fn what_is_no_domain_or_says_what_is_not_known_is_refused() {
        let ours =
            |what: &str| format!("<metadata><v:vrot xmlns:v='{NAMESPACE}' {what}/></metadata>");
        for (text, why) in [
            (String::new(), "no XML"),
            ("<domain>".to_owned(), "no XML"),
            (
                "<!DOCTYPE d [<!ENTITY e 'x'>]><domain>&e;</domain>".to_owned(),
                "no XML",
            ),
            ("<network/>".to_owned(), "something else"),
            ("<domain><uuid>x</uuid></domain>".to_owned(), "no name"),
            ("<domain><name>a</name></domain>".to_owned(), "`<uuid>`"),
            (
                "<domain><name>a</name><uuid>x</uuid></domain>".to_owned(),
                "UUID is `x`",
            ),
            (
                "<domain><name>a</name><name>b</name></domain>".to_owned(),
                "twice",
            ),
            (domain(&ours("create='yes'"), ""), "`create`"),
            (domain(&ours("tenant='a b'"), ""), "tenant is `a b`"),
            (domain(&ours("").repeat(2), ""), "twice"),
        ] {
            let said = refusal(&text);
            assert!(said.contains(why), "{text}: {said}");
        }
        let many = format!("<domain>{}</domain>", "<a/>".repeat(100_001));
        assert!(refusal(&many).contains("no XML"));
    }
}
