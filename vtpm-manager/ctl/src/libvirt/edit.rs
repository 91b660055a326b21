//! `vtpmctl libvirt-xml`: the `<tpm>` element of a domain, by itself or put into the domain's XML.
//!
//! Everything else in the text stays as it is, byte for byte.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use cert_chain::{Tenant, VmId};
use roxmltree::{Document, Node};

use crate::arguments::XmlArguments;
use crate::error::CtlError;
use crate::files::not_needed;
use crate::output::Output;
use api_types::wire::TpmDeviceModel;

use super::config::Config;
use super::domain::{self, Domain, DomainTpm, MAX_TEXT, NAMESPACE};
use super::error::LibvirtError;

/// Prints the element, or the domain with it.
pub(super) fn run(arguments: &XmlArguments, output: &Output) -> Result<(), CtlError> {
    let config = Config::read(&arguments.config.config)?;
    let model = TpmDeviceModel::from(arguments.device);
    let xml = match (&arguments.domain, arguments.vm) {
        (Some(file), _) => {
            let text = read_domain(file)?;
            let edit = Edit {
                links: &config.links,
                model,
                tenant: arguments.tenant.as_ref(),
                replace: arguments.replace,
            };
            edit.apply(&text).map_err(|error| of_file(file, error))?
        }
        (None, Some(vm)) => element(&config.links, vm, model),
        (None, None) => return Err(LibvirtError::NoUuid.into()),
    };
    let value = serde_json::json!({ "xml": &xml });
    output.document(&value, &xml)
}

/// A file that holds no domain is named.
fn of_file(file: &Path, error: LibvirtError) -> CtlError {
    match error {
        LibvirtError::Xml(_) | LibvirtError::NoDomain(_) => not_needed(file, error.into()),
        other => other.into(),
    }
}

fn read_domain(file: &Path) -> Result<String, LibvirtError> {
    let failed = |source| LibvirtError::Input {
        from: format!("`{}`", file.display()),
        source,
    };
    if file == Path::new("-") {
        read_all(io::stdin().lock()).map_err(failed)
    } else {
        File::open(file).and_then(read_all).map_err(failed)
    }
}

/// Reads a text of limited length.
pub(super) fn read_all(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    let limit = u64::try_from(MAX_TEXT)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    from.take(limit).read_to_string(&mut text)?;
    if text.len() > MAX_TEXT {
        return Err(io::Error::other("it is longer"));
    }
    Ok(text)
}

/// How a VM's vRoT stands in a domain.
fn element(links: &Path, vm: VmId, model: TpmDeviceModel) -> String {
    let path = domain::link(links, vm).display().to_string();
    format!(
        "<tpm model='{}'>\n  <backend type='external'>\n    <source type='unix' mode='connect' \
         path='{}'/>\n  </backend>\n</tpm>",
        model.name(),
        escaped(&path)
    )
}

fn escaped(value: &str) -> String {
    let mut text = String::new();
    for c in value.chars() {
        match c {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '\'' => text.push_str("&apos;"),
            c => text.push(c),
        }
    }
    text
}

/// What is to be put into a domain.
struct Edit<'a> {
    links: &'a Path,
    model: TpmDeviceModel,
    tenant: Option<&'a Tenant>,
    replace: bool,
}

/// A text in the place of another one.
struct Change {
    place: Range<usize>,
    text: String,
}

impl Edit<'_> {
    fn apply(&self, text: &str) -> Result<String, LibvirtError> {
        let document = domain::parse(text)?;
        let found = Domain::read(&document, self.links)?;
        let changes = [
            self.tpm(&document, &found)?,
            self.metadata(&document, &found)?,
        ];
        let mut changes: Vec<Change> = changes.into_iter().flatten().collect();
        // From the end on, so that places stay what they are.
        changes.sort_by_key(|change| std::cmp::Reverse(change.place.start));
        let mut edited = text.to_owned();
        for change in changes {
            edited.replace_range(change.place, &change.text);
        }
        // What is printed is what the hook will take.
        let document = domain::parse(&edited)?;
        Domain::read(&document, self.links)?.is_ours(self.links)?;
        Ok(edited)
    }

    fn tpm(&self, document: &Document<'_>, found: &Domain) -> Result<Option<Change>, LibvirtError> {
        let root = document.root_element();
        let element = element(self.links, found.vm, self.model);
        match &found.tpm {
            DomainTpm::Own => return Ok(None),
            DomainTpm::None => {}
            DomainTpm::OfAnother(_) | DomainTpm::Emulator | DomainTpm::Other if !self.replace => {
                return Err(LibvirtError::HasTpm { vm: found.vm });
            }
            DomainTpm::OfAnother(_) | DomainTpm::Emulator | DomainTpm::Other => {
                let tpms = domain::tpms(root)?;
                let [tpm] = tpms.as_slice() else {
                    return Err(LibvirtError::NoDomain("it has several TPMs"));
                };
                return Ok(Some(Change {
                    place: tpm.range(),
                    text: indented(&element, 4).trim_start().to_owned(),
                }));
            }
        }
        let devices =
            domain::one(root, "devices")?.ok_or(LibvirtError::NoDomain("there are no devices"))?;
        into(document, devices, &indented(&element, 4)).map(Some)
    }

    fn metadata(
        &self,
        document: &Document<'_>,
        found: &Domain,
    ) -> Result<Option<Change>, LibvirtError> {
        let root = document.root_element();
        let Some(tenant) = self.tenant else {
            return Ok(None);
        };
        match &found.tenant {
            Some(said) if said == tenant => return Ok(None),
            Some(said) => {
                return Err(LibvirtError::HasTenant {
                    vm: found.vm,
                    found: said.clone(),
                    wanted: tenant.clone(),
                });
            }
            None => {}
        }
        let ours = format!(
            "<vrot:vrot xmlns:vrot='{NAMESPACE}' tenant='{}'/>",
            escaped(tenant.as_str())
        );
        if let Some(empty) = domain::our_metadata(root)? {
            return Ok(Some(Change {
                place: empty.range(),
                text: ours,
            }));
        }
        if let Some(metadata) = domain::one(root, "metadata")? {
            return into(document, metadata, &indented(&ours, 4)).map(Some);
        }
        let uuid = domain::one(root, "uuid")?.ok_or(LibvirtError::NoUuid)?;
        let end = uuid.range().end;
        let element = format!("<metadata>\n{}\n</metadata>", indented(&ours, 2));
        Ok(Some(Change {
            place: end..end,
            text: format!("\n{}", indented(&element, 2)),
        }))
    }
}

/// Puts an element at the end of its parent.
fn into(
    document: &Document<'_>,
    parent: Node<'_, '_>,
    element: &str,
) -> Result<Change, LibvirtError> {
    let range = parent.range();
    let whole = document.input_text().get(range.clone()).unwrap_or_default();
    let name = parent.tag_name().name();
    // An end tag may have white space after its name; a slash in a value of an attribute is none.
    let Some(length) = whole.rfind("</").filter(|_| !whole.ends_with("/>")) else {
        let open = whole.trim_end_matches("/>").trim_end();
        return Ok(Change {
            place: range,
            text: format!("{open}>\n{element}\n  </{name}>"),
        });
    };
    let inside = whole.get(..length).unwrap_or_default();
    let blank = inside.trim_end_matches([' ', '\t']);
    let place = range.start.saturating_add(blank.len());
    let end = range.start.saturating_add(length);
    let gap = if blank.ends_with('\n') { "" } else { "\n" };
    Ok(Change {
        place: place..end,
        text: format!("{gap}{element}\n  "),
    })
}

fn indented(text: &str, by: usize) -> String {
    let lines: Vec<String> = text
        .lines()
        .map(|line| format!("{:by$}{line}", ""))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::domain::tests::{LINKS, VM, domain, tpm_at};
    use super::*;

    fn edit(text: &str, tenant: Option<&str>, replace: bool) -> Result<String, String> {
        let tenant: Option<Tenant> = tenant.and_then(|tenant| tenant.parse().ok());
        let edit = Edit {
            links: Path::new(LINKS),
            model: TpmDeviceModel::TpmCrb,
            tenant: tenant.as_ref(),
            replace,
        };
        edit.apply(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_domain_gets_its_tpm_and_its_tenant_and_nothing_else_changes() {
        let before = domain("", "    <emulator>/q</emulator>\n");
        let after = edit(&before, Some("acme"), false);
        let expected = format!(
            "<domain type='kvm'>\n  <name>vm</name>\n  <uuid>{VM}</uuid>\n  <metadata>\n    \
             <vrot:vrot xmlns:vrot='urn:vrot:libvirt:1' tenant='acme'/>\n  </metadata>\n  \
             <memory>1</memory>\n  <devices>\n    <emulator>/q</emulator>\n    \
             <tpm model='tpm-crb'>\n      <backend type='external'>\n        \
             <source type='unix' mode='connect' path='{LINKS}/{VM}.sock'/>\n      </backend>\n    \
             </tpm>\n  </devices>\n</domain>\n"
        );
        assert_eq!(after.as_deref(), Ok(expected.as_str()));
        // Once more changes nothing.
        assert_eq!(
            edit(&expected, Some("acme"), false).as_deref(),
            Ok(expected.as_str())
        );
        assert!(edit(&expected, Some("other"), false).is_err_and(|said| said.contains("acme")));
    }

    #[test]
    fn others_metadata_and_empty_elements_are_kept() {
        let metadata =
            "  <metadata><o:x xmlns:o='urn:o' y='/>'/><!-- </metadata> --></metadata >\n";
        let text = domain(metadata, "").replace("<devices>\n  </devices>", "<devices/>");
        let after = edit(&text, Some("acme"), false).unwrap_or_default();
        assert!(
            after.contains("y='/>'/><!-- </metadata> -->\n    <vrot:vrot"),
            "{after}"
        );
        assert!(after.contains("<devices>\n    <tpm"), "{after}");
    }

    #[test]
    fn another_tpm_is_replaced_only_when_asked() {
        for other in ["/run/other.sock", "/run/vrot-vms/x.sock"] {
            let text = domain("", &tpm_at(other));
            assert!(edit(&text, None, false).is_err_and(|said| said.contains("--replace")));
            let after = edit(&text, None, true).unwrap_or_default();
            assert!(
                !after.contains(other) && after.contains(&format!("{VM}.sock")),
                "{after}"
            );
        }
    }
}
