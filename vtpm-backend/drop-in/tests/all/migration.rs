//! A VM moves between two hosts that share the place of its TPM's state.

use anyhow::Result;

use crate::peers::{NEWER, Place, until};

#[test]
fn the_state_is_given_free_when_the_vm_leaves_and_locked_when_it_arrives() -> Result<()> {
    for source in NEWER {
        for target in NEWER {
            let what = format!("{source:?} to {target:?}");
            let here = Place::of(&source)?;
            let there = Place::of(&target)?;
            let shared = here.path("state");
            let _leaves = here.serve(
                "swtpm socket --ctrl type=unixio,path=DIR/s --tpmstate dir=DIR/state --tpm2 \
                 --migration release-lock-outgoing",
                "s",
            )?;
            here.good("swtpm_ioctl --unix DIR/s -i")?;
            let line = format!(
                "swtpm socket --ctrl type=unixio,path=DIR/s --tpmstate dir={} --tpm2 \
                 --migration release-lock-outgoing,incoming",
                shared.display()
            );
            let _arrives = there.serve(&line, "s")?;
            for (part, file) in [("permanent", "p"), ("volatile", "v"), ("savestate", "x")] {
                here.good(&format!(
                    "swtpm_ioctl --unix DIR/s --save {part} DIR/{file}"
                ))?;
                std::fs::copy(here.path(file), there.path(file))?;
            }
            for (part, file) in [("permanent", "p"), ("volatile", "v")] {
                let line = format!("swtpm_ioctl --unix DIR/s --load {part} DIR/{file}");
                assert!(until(|| there.good(&line).is_ok()), "{what}: {part}");
            }
            there.good("swtpm_ioctl --unix DIR/s -i")?;
            // The state is the other's now.
            here.good("swtpm_ioctl --unix DIR/s --stop")?;
            here.refused("swtpm_ioctl --unix DIR/s -i")?;
        }
    }
    Ok(())
}
